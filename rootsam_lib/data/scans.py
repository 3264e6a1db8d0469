"""One scan: the type, what its name says, splits that keep a tube together, tiling.

A minirhizotron is a clear tube in the soil; a scanner inside it looks at the roots that grow along the wall. The same
tube is scanned at several depths on several dates, so two scans of one tube show partly the same roots: a split that
puts them in two parts leaks. `grouped_split` keeps a tube in one part, `leak_report` names the tubes that are not.
Files are read by `images` and `masks`, whole sets of scans (SegRoot, your folder, drawn ones) by `datasets.load_scans`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from scipy.stats import rankdata

from rootsam_lib import checked

_TUBE = re.compile(r"(?:^|[_\-. ])(?:T|[Tt]ube[_\-. ]?)(\d{1,4})(?=[_\-. ]|$)")
_DATES = (
    (re.compile(r"(?<!\d)(\d{4})[._-](\d\d)[._-](\d\d)(?!\d)"), "%Y-%m-%d"),
    (re.compile(r"(?<!\d)(\d\d)\.(\d\d)\.(\d\d)(?!\d)"), "%d-%m-%y"),
)
_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class Scan:
    """One scan: `image` (H, W, 3) uint8 RGB; `mask` (H, W) bool, True is root, or None; `tube` groups scans of one
    tube; `date` is ISO yyyy-mm-dd or ""; `mm_per_px` is the edge of a pixel in mm, or None where it is not known;
    `excluded` (H, W) bool is what counts neither as root nor as window, such as tape (see `masks.read_exclusion`).

    Raises ValueError for arrays of another shape or dtype, and for another date or edge."""

    image: np.ndarray
    mask: np.ndarray | None
    name: str
    tube: str
    date: str = ""
    mm_per_px: float | None = None
    excluded: np.ndarray | None = None

    def __post_init__(self) -> None:
        image = self.image
        for what in ("image", "mask", "excluded"):
            array = getattr(self, what)
            if not isinstance(array, np.ndarray if what == "image" else np.ndarray | None):
                raise ValueError(f"{self.name}: the {what} is a {type(array).__name__}: make it an array first.")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            got = f"{image.shape} {image.dtype}"
            raise ValueError(f"{self.name}: the image must be (H, W, 3) uint8, but is {got}; convert it to RGB first.")
        for what, mask in (("mask", self.mask), ("excluded", self.excluded)):
            if mask is not None and (mask.dtype != bool or mask.shape != image.shape[:2]):
                want, got = f"{image.shape[:2]} bool", f"{mask.shape} {mask.dtype}"
                raise ValueError(f"{self.name}: the {what} must be {want}, but is {got}; threshold or resize it first.")
        if self.date != parse_date(self.date):
            raise ValueError(f"{self.name}: the date is {self.date!r}: give it as 2017-04-11, or '' for none.")
        if self.mm_per_px is not None:
            checked(f"mm_per_px of {self.name}, 25.4 / dpi,", self.mm_per_px, 0, 1, above=True)


@dataclass(frozen=True, eq=False)
class Patch:
    """A square piece of a scan: `image` (size, size, 3) uint8 and `mask` (size, size) bool or None, both views into the
    scan; `name` is "scan@row,col"; `origin` (row, col) of its upper left pixel; `padding` (rows, columns) that were
    added below and to the right by reflection because the scan is smaller than the patch; `excluded` as the scan's."""

    image: np.ndarray
    mask: np.ndarray | None
    name: str
    tube: str
    origin: tuple[int, int]
    mm_per_px: float | None = None
    padding: tuple[int, int] = (0, 0)
    excluded: np.ndarray | None = None


def parse_tube(name: str) -> str:
    """The tube in a file name (`Untitled_T012_L004_…` or `…tube12…` gives "T012"), or "" where there is none.

    Only the number counts: two crops that share tube numbers fall in one group, which is coarser but never a leak."""
    found = _TUBE.search(name)
    return f"T{int(found[1]):03d}" if found else ""


def parse_date(name: str) -> str:
    """The date in a file name as yyyy-mm-dd: `2017.06.08`, `2017-06-08`, or CID's day first `11.04.17`; "" if none."""
    for pattern, order in _DATES:
        for found in pattern.findall(name):
            try:
                if (date := datetime.strptime("-".join(found), order).date().isoformat()) >= "1980":
                    return date
            except ValueError:
                continue  # digits that are no date, such as a time or a version
    return ""


def check_dates(names: Iterable[str]) -> str:
    """How dates such as 05.01.17 are read in these names, in one sentence; "" where there are none.

    Raises ValueError where one of them is still to come, or can only be read with day and month in another order, for
    then the others are as well.
    """
    names, today = list(names), datetime.now().date().isoformat()
    for name in names:
        years = [(last, middle) for year, middle, last in _DATES[0][0].findall(name) if "1980" <= year <= today[:4]]
        short = (
            [] if _DATES[0][0].search(name) else [found[:2] for found in _DATES[1][0].findall(name)[:1]]
        )  # then times
        swapped = any(31 >= int(month) > 12 >= int(day) > 0 for day, month in years + short)
        if swapped or parse_date(name) > today:
            order = "year-month-day" if _DATES[0][0].search(name) else "day.month.year"
            raise ValueError(f"{name} holds a date that is not {order}: rename all, as 2017-04-11.")
    first = next((n for n in names if _DATES[1][0].search(n) and not _DATES[0][0].search(n) and parse_date(n)), "")
    return f"dates are read as day.month.year: {first} is of {parse_date(first)}" if first else ""


def _tube_of(item: object) -> str:
    return (parse_tube(item) or item) if isinstance(item, str) else item.tube


def grouped_split(items: Iterable[_T], shares: Mapping[str, float], rng: np.random.Generator) -> dict[str, list[_T]]:
    """Split scans (or patches, or file names) so that a tube is in one part only, and parts come near their shares.

    The largest tubes are placed first, each in the part that lacks most scans; `rng` orders tubes of equal size. No
    part stays empty. Shares are relative weights. Raises ValueError for fewer tubes than parts, or a share <= 0.
    """
    items = list(items)
    for part, share in shares.items():
        checked(f"the share of {part}", share, 0, above=True)
    if not shares:
        raise ValueError("shares are empty: give every part its share.")
    sizes = Counter(_tube_of(item) for item in items)
    if len(sizes) < len(shares):
        raise ValueError(
            f"{len(items)} scans come from {len(sizes)} tubes, too few for {len(shares)} parts ({', '.join(shares)}) "
            "that share no tube; add scans of other tubes, or ask for split 'all' and keep new scans in another folder."
        )
    tubes = [sorted(sizes)[i] for i in rng.permutation(len(sizes))]
    tubes.sort(key=lambda tube: -sizes[tube])
    lacking = {part: share / sum(shares.values()) * len(items) for part, share in shares.items()}
    empty, home = set(shares), {}
    for placed, tube in enumerate(tubes):
        must_fill = len(tubes) - placed <= len(empty)
        home[tube] = max((part for part in shares if part in empty or not must_fill), key=lambda part: lacking[part])
        lacking[home[tube]] -= sizes[tube]
        empty.discard(home[tube])
    return {part: [item for item in items if home[_tube_of(item)] == part] for part in shares}


def leak_report(parts: Mapping[str, Iterable[object]]) -> dict[str, list[str]]:
    """Which tubes occur in several parts: {tube: [part, …]}, empty when the split keeps every tube together.

    `parts` maps a part's name to its scans, patches or file names."""
    where: dict[str, list[str]] = {}
    for part, items in parts.items():
        for tube in {_tube_of(item) for item in items}:
            where.setdefault(tube, []).append(part)
    return {tube: found for tube, found in sorted(where.items()) if len(found) > 1}


def check_leaks(parts: Mapping[str, Iterable[Scan]]) -> None:
    """Raises ValueError, naming both, for a picture that lies in two parts: by another name, encoded anew, resized,
    turned, mirrored, brightened, or shifted or cropped by up to a hundredth of its side.

    Compared are cells of grey, less what is around them (light and its fall-off), by rank correlation: first 32 x 32 of
    all pictures, where copies reach 0.94, any two of 52 SegRoot scans 0.66 (0.80 with one label stuck on), and pictures
    in one frame, as a dish, 0.96; then 128 x 128 of those that reach 0.9, shifted by up to four cells, where copies
    reach 0.64 and drawn dishes 0.55. Of pictures without anything to see, only equal ones are found.
    """
    every = [(part, scan) for part, scans in parts.items() for scan in scans]
    if not every:
        return
    looks = np.array([_look(scan.image, 32) for _, scan in every])
    flat, turned = looks.reshape(len(looks), -1), [np.array(each) for each in zip(*map(_turns, looks), strict=True)]
    alike = np.max([flat @ other.reshape(flat.shape).T for other in turned], axis=0) > 0.9
    bare = ~flat.any(axis=1)
    for i, j in zip(*np.nonzero(np.triu(alike | np.outer(bare, bare), 1)), strict=True):
        (part, scan), (its, other) = every[i], every[j]
        if part != its and (np.array_equal(scan.image, other.image) if bare[i] else _same(scan.image, other.image)):
            raise ValueError(
                f"{scan.name} ({part}) and {other.name} ({its}) are nearly the same picture, and scores would "
                "be of what was trained on: take one out, or put both into one part."
            )


def _look(image: np.ndarray, cells: int) -> np.ndarray:
    """What tells a picture from others, float32 (cells, cells): the ranks of its cells, of mean 0 and norm 1; 0 if all
    are equal."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    grey = cv2.resize(grey, (cells, cells), interpolation=cv2.INTER_AREA)
    grey -= cv2.GaussianBlur(grey, (0, 0), 2, borderType=cv2.BORDER_REFLECT)
    ranks = rankdata(grey.round(2)).astype(np.float32).reshape(grey.shape)
    ranks -= ranks.mean()
    return ranks / max(float(np.linalg.norm(ranks)), 1.0)


def _turns(look: np.ndarray) -> list[np.ndarray]:
    """The look in its eight orientations."""
    return [np.ascontiguousarray(np.rot90(side, quarter)) for side in (look, look[::-1]) for quarter in range(4)]


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two images that look alike from afar do so nearby."""
    middle = np.ascontiguousarray(_look(one, 128)[4:-4, 4:-4])
    return max(cv2.matchTemplate(t, middle, cv2.TM_CCOEFF_NORMED).max() for t in _turns(_look(other, 128))) > 0.6


def describe_groups(groups: Mapping[str, str], group_by: str | None = None) -> tuple[str, str]:
    """The groups, {name of a scan: group}, that a split will keep together, in one sentence; and a warning where they
    may be time points, else "".

    Time points of one place (plot0_T1, plot0_T2, plot1_T1, …) look like tubes: what stands before them then occurs with
    several of them.
    """
    sizes = Counter(groups.values())
    listed = ", ".join(f"{group} ({count})" for group, count in sorted(sizes.items())[:8])
    said = f"{len(groups)} scans in {len(sizes)} groups by {f'group_by {group_by!r}' if group_by else 'tube'}: {listed}"
    said += ", …" if len(sizes) > 8 else ""
    alone = sum(name == group for name, group in groups.items())
    said += f"; {alone} names say no group and are each their own" if 0 < alone < len(groups) else ""
    places: dict[str, set[str]] = {}
    for name in () if group_by else groups:
        if found := _TUBE.search(name):
            places.setdefault(name[: found.start()], set()).add(found[0].strip("_-. "))
    for place, tubes in sorted(places.items()):
        if place and len(tubes) > 1 and (len(places) > 1 or place[-1].isdigit()):
            pattern = re.sub(r"\d+", r"\\d+", re.escape(place))
            return said, (
                f"{place} occurs with {', '.join(sorted(tubes)[:3])}: if these are time points and no tubes, scans of "
                f"one place land in several parts; give group_by (of read_folder), such as '^({pattern})'."
            )
    return said, ""


def check_scans(items: Iterable[Scan | Patch]) -> None:
    """Raises ValueError unless this is a list of scans or patches."""
    listed = isinstance(items, Iterable) and not isinstance(items, (str, np.ndarray))
    for item in items if listed else [items]:
        if not listed or not isinstance(item, (Scan, Patch)):
            what = str(item) if isinstance(item, (str, Path)) else f"a {type(item).__name__}"
            raise ValueError(f"{what} is no list of scans: give what read_folder returns, or folders.ImageFiles(...).")


def check_masks(items: Iterable[Scan | Patch]) -> None:
    """Raises ValueError, naming the first scan or patch, unless all of them are such and have masks."""
    items = list(items) if isinstance(items, Iterator) else items
    check_scans(items)
    for item in items:
        if item.mask is None:
            raise ValueError(f"{item.name} has no mask: training and scores need one for every scan.")


def tile(scan: Scan, size: int) -> list[Patch]:
    """Cut a scan into size × size patches (512 and 1024 are usual) that cover every pixel, row by row.

    The last row and column are shifted inward, so that they overlap their neighbours instead of running over the edge;
    a scan smaller than `size` is padded by reflection below and to the right (`Patch.padding` says by how much)."""
    checked("size", size, 1, whole=True)
    height, width = scan.image.shape[:2]
    padding = (max(size - height, 0), max(size - width, 0))
    layers = scan.image, scan.mask, scan.excluded
    if any(padding):
        added = ((0, padding[0]), (0, padding[1]), (0, 0))
        layers = [layer if layer is None else np.pad(layer, added[: layer.ndim], mode="reflect") for layer in layers]
    patches = []
    for row in _starts(layers[0].shape[0], size):
        for col in _starts(layers[0].shape[1], size):
            window = (slice(row, row + size), slice(col, col + size))
            image, mask, excluded = (layer if layer is None else layer[window] for layer in layers)
            name = f"{scan.name}@{row},{col}"
            patches.append(Patch(image, mask, name, scan.tube, (row, col), scan.mm_per_px, padding, excluded))
    return patches


def _starts(length: int, size: int) -> list[int]:
    return [*range(0, length - size, size), length - size]
