"""One scan: the type, reading an image or a mask from a file, splits that keep a tube together, tiling.

A minirhizotron is a clear tube in the soil; a scanner inside it looks at the roots that grow along the wall. The same
tube is scanned at several depths on several dates, so two scans of one tube show partly the same roots: a split that
puts them in two parts leaks. `grouped_split` keeps a tube in one part, `leak_report` names the tubes that are not.
Whole sets of scans (SegRoot, your folder, drawn ones) are read by `datasets.load_scans`.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

_TUBE = re.compile(r"(?:^|[_\-. ])(?:T|[Tt]ube[_\-. ]?)(\d{1,4})(?=[_\-. ]|$)")
_DATES = (
    (re.compile(r"(?<!\d)(\d{4})[._-](\d\d)[._-](\d\d)(?!\d)"), "%Y-%m-%d"),
    (re.compile(r"(?<!\d)(\d\d)\.(\d\d)\.(\d\d)(?!\d)"), "%d-%m-%y"),
)
_DPI = re.compile(r"DPI_?(\d{2,4})(?!\d)|(?<!\d)(\d{2,4})_?dpi(?!_?\d)", re.IGNORECASE)
_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class Scan:
    """One scan: `image` (H, W, 3) uint8 RGB; `mask` (H, W) bool, True is root, or None; `tube` groups scans of one
    tube; `date` is ISO yyyy-mm-dd or ""; `mm_per_px` is the edge of a pixel in mm, or None where it is not known.

    Raises ValueError for arrays of another shape or dtype."""

    image: np.ndarray
    mask: np.ndarray | None
    name: str
    tube: str
    date: str = ""
    mm_per_px: float | None = None

    def __post_init__(self) -> None:
        image, mask = self.image, self.mask
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            got = f"{image.shape} {image.dtype}"
            raise ValueError(f"{self.name}: the image must be (H, W, 3) uint8, but is {got}; convert it to RGB first.")
        if mask is not None and (mask.dtype != bool or mask.shape != image.shape[:2]):
            want, got = f"{image.shape[:2]} bool", f"{mask.shape} {mask.dtype}"
            raise ValueError(f"{self.name}: the mask must be {want}, but is {got}; threshold or resize it first.")


@dataclass(frozen=True, eq=False)
class Patch:
    """A square piece of a scan: `image` (size, size, 3) uint8 and `mask` (size, size) bool or None, both views into the
    scan; `name` is "scan@row,col"; `origin` (row, col) of its upper left pixel; `padding` (rows, columns) that were
    added below and to the right by reflection because the scan is smaller than the patch."""

    image: np.ndarray
    mask: np.ndarray | None
    name: str
    tube: str
    origin: tuple[int, int]
    mm_per_px: float | None = None
    padding: tuple[int, int] = (0, 0)


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
                return datetime.strptime("-".join(found), order).date().isoformat()
            except ValueError:
                continue  # digits that are no date, such as a time or a version
    return ""


def parse_dpi(path: str | Path, metadata: tuple[float, float] | None = None) -> float | None:
    """Dots per inch: `DPI120` or `300dpi` in the file's or its folder's name, else the image's own entry where it can
    be believed (equal both ways and from 120 up), else None."""
    if found := _DPI.search("/".join(Path(path).parts[-2:])):
        return float(found[1] or found[2])
    # 72, 96 and 100 are what software writes unasked: SegRoot's scans at 300 dpi say 100.
    if metadata and abs(metadata[0] - metadata[1]) < 1 and 120 <= metadata[0] <= 9600:
        return float(metadata[0])
    return None


def open_image(path: Path) -> Image.Image:
    """A decoded PIL image; its metadata stays readable. Raises FileNotFoundError or ValueError with one sentence."""
    try:
        with Image.open(path) as opened:
            opened.load()
            return opened
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist; check the folder's name.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path} cannot be read as an image ({error}); delete it and copy or download it again."
        ) from None


def read_image(source: str | Path | Image.Image) -> np.ndarray:
    """An image file (or opened image) as (H, W, 3) uint8 RGB, turned upright by its EXIF orientation; grey and palette
    images become RGB, alpha is dropped, 16-bit grey is scaled over its full range. Raises ValueError if unreadable."""
    opened = source if isinstance(source, Image.Image) else open_image(Path(source))
    upright = ImageOps.exif_transpose(opened)
    if upright.mode == "F":
        raise ValueError(f"{opened.filename} holds floating-point pixels; save it with 8 or 16 bits a channel.")
    if upright.mode.startswith("I"):
        grey = np.clip(np.asarray(upright, dtype=np.float64) / 257 + 0.5, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.array(upright.convert("RGB"))


def read_mask(path: str | Path) -> np.ndarray:
    """A mask file as (H, W) bool, True is root.

    JPEG: above 127, for its compression blurs values. Lossless files: the larger of two values (0/1, 0/255), or above
    half the largest where edges are grey. Colour masks are read by their brightest colour channel, and alpha is never
    counted: many RGBA masks have alpha 255 everywhere (PlantRootSeg).

    Raises ValueError for an unreadable file, a mask with more than two classes, and one drawn in the alpha channel;
    warns when more than half of the pixels are root, because then the mask is probably inverted.
    """
    path = Path(path)
    opened = open_image(path)
    lossy = opened.format == "JPEG"
    opened = ImageOps.exif_transpose(opened)
    if opened.mode in ("P", "PA"):
        opened = opened.convert("RGBA")
    pixels = np.atleast_3d(np.asarray(opened))
    colours = pixels[..., :-1] if opened.mode in ("RGBA", "LA") else pixels
    values = colours.max(axis=2)
    if colours.shape[2] == 3 and not lossy and (values - colours.min(axis=2)).max() > 32:  # colours, not greys
        codes = colours.astype(np.uint32) @ np.array([1, 256, 65536], dtype=np.uint32)
        if (count := len(np.unique(codes))) > 2:
            raise ValueError(_too_many(path, f"{count} colours"))
    if colours.shape[2] < pixels.shape[2] and np.ptp(values) == 0 and np.ptp(pixels[..., -1]) > 0:
        raise ValueError(f"{path} draws its mask in the alpha channel; save it as black and white.")
    mask = values > 127 if lossy else _two_classes(values, path)
    if (share := mask.mean()) > 0.5:
        inverted = f"{path}: {share:.0%} of the pixels are root; if the mask is inverted, save it with roots white."
        warnings.warn(inverted, stacklevel=2)
    return mask


def _two_classes(values: np.ndarray, path: Path) -> np.ndarray:
    if values.dtype == bool:
        return values
    levels = np.unique(values)
    if len(levels) <= 2:
        return values == levels[-1] if levels[-1] > 0 else np.zeros(values.shape, bool)
    listed = "the values " + ", ".join(str(value) for value in levels[:6]) + (", …" if len(levels) > 6 else "")
    if levels[-1] <= 32:  # labels, not shades
        raise ValueError(_too_many(path, listed))
    if len(levels) <= 8:  # shades of an edge, or a third class such as 127: cannot be told apart
        cut = f"pixels above {levels[-1] / 2:g} are taken as root; check that no third class is meant."
        warnings.warn(f"{path} holds {listed}: {cut}", stacklevel=3)
    return values > levels[-1] / 2


def _too_many(path: Path, what: str) -> str:
    return f"{path} holds {what}, but a mask has two classes; save one with root 255 and everything else 0."


def _tube_of(item: object) -> str:
    return (parse_tube(item) or item) if isinstance(item, str) else item.tube


def grouped_split(items: Iterable[_T], shares: Mapping[str, float], rng: np.random.Generator) -> dict[str, list[_T]]:
    """Split scans (or patches, or file names) so that a tube is in one part only, and parts come near their shares.

    The largest tubes are placed first, each in the part that lacks most scans; `rng` orders tubes of equal size. No
    part stays empty. Shares are relative weights. Raises ValueError for fewer tubes than parts, or a share <= 0.
    """
    items = list(items)
    if not shares or min(shares.values()) <= 0:
        raise ValueError(f"shares are {dict(shares)}, but need at least one part and every share above 0.")
    sizes = Counter(_tube_of(item) for item in items)
    if len(sizes) < len(shares):
        raise ValueError(
            f"{len(items)} scans come from {len(sizes)} tubes, too few for {len(shares)} parts ({', '.join(shares)}) "
            "that share no tube; add scans of other tubes, or ask for split 'all'."
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


def check_masks(items: Iterable[Scan | Patch]) -> None:
    """Raises ValueError, naming the first scan or patch, unless all of them have masks."""
    for item in items:
        if item.mask is None:
            raise ValueError(f"{item.name} has no mask: training and scores need one for every scan.")


def tile(scan: Scan, size: int) -> list[Patch]:
    """Cut a scan into size × size patches (512 and 1024 are usual) that cover every pixel, row by row.

    The last row and column are shifted inward, so that they overlap their neighbours instead of running over the edge;
    a scan smaller than `size` is padded by reflection below and to the right (`Patch.padding` says by how much)."""
    if size < 1:
        raise ValueError(f"size is {size}, but must be at least 1 pixel; 512 and 1024 are usual.")
    height, width = scan.image.shape[:2]
    padding = (max(size - height, 0), max(size - width, 0))
    image, mask = scan.image, scan.mask
    if any(padding):
        below_right = ((0, padding[0]), (0, padding[1]))
        image = np.pad(image, (*below_right, (0, 0)), mode="reflect")
        mask = None if mask is None else np.pad(mask, below_right, mode="reflect")
    patches = []
    for row in _starts(image.shape[0], size):
        for col in _starts(image.shape[1], size):
            window = (slice(row, row + size), slice(col, col + size))
            piece = None if mask is None else mask[window]
            name = f"{scan.name}@{row},{col}"
            patches.append(Patch(image[window], piece, name, scan.tube, (row, col), scan.mm_per_px, padding))
    return patches


def _starts(length: int, size: int) -> list[int]:
    return [*range(0, length - size, size), length - size]
