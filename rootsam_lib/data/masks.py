"""What a mask file says: which of its values are root. It is found once for all masks of a folder, and said.

A coding is a short text, so that results files and the command line can hold it:

- "0/255", "0/1", "1/2", "255/0": value of soil / value of root; a pixel is what it is nearer to.
- "labels": 0 (or black, or transparent) is soil; every other number or colour is root.
- "red", "green", "blue": root is where that colour alone is painted.

Found without a word from the user: two values; one bright value with grey edges or the noise of JPEG; red paint, with
or without green for soil as in RootPainter. Everything else is refused with a sentence that asks for the coding.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from rootsam_lib.data.images import MAX_MEGAPIXELS, deep_colours, open_image, open_once
from rootsam_lib.results import file_hash, progress, shown

# A colour's code has a bit for each channel (red 1, green 2, blue 4) above half of the file's highest value.
COLOURS = {"red": 1, "green": 2, "blue": 4}
_BLACK, _WHITE, _DARK = 0, 7, 8
_PAIR = re.compile(r"(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)")
_RECTANGLES = re.compile(r"\s*\d+(\s*,\s*\d+){3}\s*(;\s*\d+(\s*,\s*\d+){3}\s*)*")
_NEARLY_EMPTY = 2e-4  # share of root over a folder; SegRoot's lies at 1.1 %


class _Seen(NamedTuple):
    """One mask: pixels by value, or by colour code where it is painted; the values of pieces that are of one value
    only; of places where 2 x 2 px have one value, which an edge's grey hardly has; whether its format blurs values."""

    path: Path
    painted: bool
    levels: Counter
    flat: Counter
    solid: Counter
    lossy: bool


def checked_coding(coding: str) -> str:
    """A coding, if it is one. Raises ValueError that lists what there is."""
    pair = _PAIR.fullmatch(coding) if isinstance(coding, str) else None
    if not (coding in ("labels", *COLOURS) or (pair and float(pair[1]) != float(pair[2]))):
        raise ValueError(
            f"mask_coding is {coding!r}: give soil/root, such as 0/255 or 0/1, or one of labels, {', '.join(COLOURS)}."
        )
    return coding


def read_mask(
    source: str | Path | Image.Image, coding: str | None = None, max_megapixels: float = MAX_MEGAPIXELS
) -> np.ndarray:
    """A mask file (or what `open_image` gave) as (H, W) bool, True is root, turned upright by its EXIF orientation.

    coding: see above; None finds it from this file alone (`find_coding` does so for a whole folder).
    Raises what `open_image` and `find_coding` raise, and ValueError for an unknown coding.
    """
    opened = open_once(source, max_megapixels)
    path = Path(opened.filename)
    coding = find_coding([path], max_megapixels)[0] if coding is None else checked_coding(coding)
    pixels = _pixels(opened)
    return _is_root(_codes(pixels) if coding in COLOURS else reduce(np.maximum, np.moveaxis(pixels, 2, 0)), coding)


def find_coding(
    paths: Iterable[str | Path], max_megapixels: float = MAX_MEGAPIXELS, coding: str | None = None
) -> tuple[str, str]:
    """The one coding of all these masks, and what was found, in a sentence for people.

    coding: one that is given, for which only the share of root is looked at.

    Masks that cannot be read are left out: they are refused when they are read. Warns where nearly no pixel is root, or
    where more than half of a mask is, for then it is probably inverted, and of a JPEG of 0/1, which has lost some.
    Raises ValueError, asking for mask_coding, where the values leave open what is root: classes, numbers, a photograph,
    other paint, masks of several codings.
    """
    paths = [Path(path) for path in paths]
    seen = []
    for path in progress(paths, "look at masks", "mask", disable=len(paths) <= 20):
        try:
            seen.append(_look(path, max_megapixels))
        except (OSError, ValueError):
            continue
    if not seen:
        return coding or "0/255", "no mask can be read"
    painted = [one for one in seen if one.painted]
    grey = [one for one in seen if not one.painted and any(one.levels)]
    if painted and grey and coding is None:
        if len(grey) <= len(painted):
            raise _ask(grey[0].path, f"is grey, but {shown(painted[0].path)} is painted in colours")
        raise _ask(painted[0].path, f"is painted in colours, but {shown(grey[0].path)} is grey")
    if coding is None:
        coding, how = _colour(painted) if painted else _grey(seen)
        values = [(np.array([*one.levels]), np.array([*one.levels.values()])) for one in seen]
        shares = [float(counts[_is_root(levels, coding)].sum() / counts.sum()) for levels, counts in values]
    else:
        how, shares = f"are read as {coding}", [read_mask(one.path, coding, max_megapixels).mean() for one in seen]
        if coding == "labels" and (noisy := [one.path for one in seen if one.lossy]):
            warnings.warn(
                f"{shown(noisy[0])} is a JPEG, whose noise around a root is root as well for labels ({len(noisy)} of "
                f"{len(seen)} masks): export PNG, or give mask_coding 0/255 where root is white.",
                stacklevel=2,
            )
    files = shown(paths[0]) if len(seen) == 1 else f"{len(seen)} masks"
    if full := [number for number, share in enumerate(shares) if share > 0.5]:
        soil, _, root = coding.partition("/")
        other = f" give mask_coding {root}/{soil}, or" if root else ""
        warnings.warn(
            f"{shown(seen[full[0]].path)}: {shares[full[0]]:.0%} of the pixels are root ({len(full)} of {len(seen)} "
            f"masks hold more than half); if the mask is inverted,{other} save it with roots white.",
            stacklevel=2,
        )
    if coding not in ("labels", *COLOURS):
        low, high = sorted(map(float, coding.split("/")))
        beyond = [
            one
            for one in seen
            if not (one.lossy or one.painted) and not low <= min(one.levels) <= max(one.levels) <= high
        ]
        if beyond:
            strange = next(level for level in beyond[0].levels if not low <= level <= high)
            what = f"{strange:g}, neither of {coding}, which counts as what it is nearer to"
            warnings.warn(
                f"{shown(beyond[0].path)} holds {what} ({len(beyond)} of {len(seen)} masks hold such): if that is "
                "another class, save the masks with roots white and all else black.",
                stacklevel=2,
            )
    share = float(np.mean(shares))
    if share and (bare := [one for one, own in zip(seen, shares, strict=True) if not own]):
        varied = [
            one for one in bare if len(one.levels) > 1 and not one.lossy
        ]  # an empty one is of one value, JPEG aside
        odd = shown((varied or bare)[0].path)
        doubt = f"what is drawn there is no root by {coding}" if varied else "if roots are drawn there"
        warnings.warn(
            f"{odd} holds no root ({len(bare)} of {len(seen)} masks hold none): {doubt}, save it as the others.",
            stacklevel=2,
        )
    small = any(one.lossy and not one.painted and 0 < max(one.levels) < 10 for one in seen)
    if share < _NEARLY_EMPTY or small:
        lost = "If something is drawn there, give another mask_coding."
        if any(one.lossy for one in seen):
            lost = "A JPEG of small values such as 0/1 loses them: export PNG, or give another mask_coding."
        warnings.warn(f"{files}: only {share:.2%} of the pixels are root. {lost}", stacklevel=2)
    return coding, f"masks {how}, root share {float(f'{100 * share:.2g}'):g} % ({files})"


def checked_exclusion(source: str | Path, names: Iterable[str] | None = None) -> str:
    """What `read_exclusion` will read from a source: rectangles as they are, else what its files hold, as hashes.

    names: of all scans, if known. Raises ValueError for rectangles that are none and a folder's file that belongs to no
    scan, FileNotFoundError for what is neither rectangles nor a file or folder.
    """
    if not isinstance(source, (str, Path)):
        raise ValueError(f"exclude is {source!r}: give text, as '0,0,40,40', or the path of a mask file or folder.")
    text = str(source)
    if _RECTANGLES.fullmatch(text):
        for rectangle in text.split(";"):
            left, top, right, bottom = map(int, rectangle.split(","))
            if left >= right or top >= bottom:
                raise ValueError(f"exclude holds the rectangle {rectangle.strip()}: give left,top,right,bottom in px.")
        return text
    path = Path(source).expanduser()
    if path.is_file():
        return file_hash(path)
    if not text or not path.is_dir():
        raise FileNotFoundError(
            f"exclude is {text!r}: give rectangles left,top,right,bottom in px (several with ; between), a mask file "
            "for all scans, or a folder of mask files that are called as the scans."
        )
    files = sorted(file for file in path.iterdir() if file.is_file() and file.name[0] != ".")
    known = None if names is None else {f"{name}{end}" for name in names for end in ("", "-exclude")}
    if strange := [file for file in files if known is not None and file.stem not in known]:
        raise ValueError(
            f"{shown(strange[0])} is called as no scan: what is excluded from X is X.png or X-exclude.png."
        )
    stems = [file.stem.removesuffix("-exclude") for file in files]
    if twice := [stem for stem in stems if stems.count(stem) > 1]:
        raise ValueError(f"{shown(path)} holds two files of what is excluded from {twice[0]}: take one out.")
    return " ".join(f"{file.stem} {file_hash(file)}" for file in files)


def read_exclusion(source: str | Path, name: str, shape: tuple[int, int]) -> np.ndarray:
    """What of the scan called `name` counts neither as root nor as window, bool `shape`: tape, tube marks, bubbles.

    source: rectangles "left,top,right,bottom" in px, several with ";" between, right and bottom not included; or a mask
    file for all scans, excluded where it is not black (or 0, or transparent); or a folder of such files, called as the
    scans (X.png, or X-exclude.png): a scan without a file there is whole.
    Raises what `checked_exclusion` and `read_mask` raise, and ValueError for a mask of another size, one of JPEG, whose
    noise is not black, a rectangle that lies beside the image, and where nothing of the scan is left.
    """
    if not (str(source) and Path(source).expanduser().is_dir()):  # whose files were all hashed before the first scan
        checked_exclusion(source)
    excluded = np.zeros(shape, bool)
    if _RECTANGLES.fullmatch(str(source)):
        for rectangle in str(source).split(";"):
            left, top, right, bottom = map(int, rectangle.split(","))
            if top >= shape[0] or left >= shape[1]:
                size = f"{shape[1]} × {shape[0]} px"
                raise ValueError(f"exclude: {rectangle.strip()} lies beside {name}, which is {size}: correct it.")
            excluded[top:bottom, left:right] = True
    else:
        path = Path(source).expanduser()
        if path.is_dir():
            path = next((file for file in sorted(path.iterdir()) if file.stem in (name, f"{name}-exclude")), None)
        if path is None:
            return excluded
        drawn = open_image(path)
        if drawn.format in ("JPEG", "MPO"):
            raise ValueError(
                f"{shown(path)} is a JPEG, whose noise would be excluded too: save it as PNG, black and white."
            )
        excluded = read_mask(drawn, "labels")
        if excluded.shape != shape:
            size = f"{excluded.shape[1]} × {excluded.shape[0]} pixels, but {name} is {shape[1]} × {shape[0]}"
            raise ValueError(f"{shown(path)} is {size}: export what is to be excluded at the image's size.")
    if (share := excluded.mean()) > 0.5:
        warnings.warn(f"exclude leaves out {share:.0%} of {name}: what is to be kept must be black.", stacklevel=2)
    if excluded.all():
        raise ValueError(f"exclude leaves nothing of {name}: what is to be kept must be black, or take the scan out.")
    return excluded


def _pixels(opened: Image.Image) -> np.ndarray:
    """A mask's values as colours (H, W, 3); what is transparent counts as black."""
    path = Path(opened.filename)
    if opened.mode[0] in "IF":
        values = np.asarray(opened)
        if not np.isfinite(values).all():
            raise ValueError(f"{shown(path)} holds pixels that are no number: save the mask as 8-bit PNG.")
        return np.broadcast_to(values[..., None], (*values.shape, 3))
    colours = deep_colours(path) if opened.info["deep"] else np.array(opened.convert("RGB"))
    if not opened.has_transparency_data:
        return colours
    alpha = np.array(opened.convert("RGBA"))[..., 3:]
    visible = alpha > 127  # soft edges of a brush up to their middle
    if not visible.any() and (alpha.any() or (colours != colours[0, 0]).any()):
        raise ValueError(f"{shown(path)} is drawn, but transparent all over: save the mask as black and white.")
    if not visible.all() and not np.where(visible, colours, 0).any() and (visible.any() or not colours.any()):
        raise ValueError(f"{shown(path)} is black on transparent ground: save the mask as black and white.")
    return np.where(visible, colours, 0)


def _codes(colours: np.ndarray) -> np.ndarray:
    """The colour code of every pixel, uint8 (H, W)."""
    bright = colours > colours.max() // 2
    codes = bright.astype(np.uint8) @ np.array([1, 2, 4], np.uint8)
    return np.where((codes == _BLACK) & (colours > colours.max() // 8).any(axis=2), np.uint8(_DARK), codes)


def _is_root(values: np.ndarray, coding: str) -> np.ndarray:
    """Which values (or colour codes) of an array are root: bool of its shape."""
    if coding in COLOURS:
        return values == COLOURS[coding]
    if coding == "labels":
        return values > 0
    soil, root = map(float, coding.split("/"))
    between = (soil + root) / 2
    return values > between if root > soil else values < between


def _look(path: Path, max_megapixels: float) -> _Seen:
    """Count what a mask holds. Raises what `open_image` raises."""
    opened = open_image(path, max_megapixels)
    pixels = _pixels(opened)
    lossy = opened.format in ("JPEG", "MPO", "WEBP") or opened.info.get("compression") == "jpeg"
    values, lowest = (reduce(end, np.moveaxis(pixels, 2, 0)) for end in (np.maximum, np.minimum))  # faster than .max()
    top = values.max()
    coloured = (values - lowest > top // 4).sum()
    paint_or_ground = min((values > top // 2).sum(), (lowest <= top // 2).sum())  # on black or on white
    if coloured > (0.1 * paint_or_ground if lossy else 0):
        return _Seen(path, True, _count(_codes(pixels)), Counter(), Counter(), lossy)
    flat, solid = Counter(), Counter()
    if not lossy:
        pieces, number = ndimage.label(values > 0, np.ones((3, 3), int))
        low, high = (of(values, pieces, range(number + 1)) for of in (ndimage.minimum, ndimage.maximum))
        flat = _count(values[(values > 0) & (low == high)[pieces]])
        corner, side = values[1:, 1:], values[1:] == values[:-1]
        solid = _count(corner[side[:, 1:] & side[:, :-1] & (corner == values[1:, :-1]) & (corner > 0)])
    return _Seen(path, False, _count(values), flat, solid, lossy)


def _count(values: np.ndarray) -> Counter:
    """How often every value occurs."""
    if values.dtype == np.uint8:  # much faster than sorting
        return Counter({level: n for level, n in enumerate(np.bincount(values.ravel()).tolist()) if n})
    levels, counts = np.unique(values, return_counts=True)
    return Counter(dict(zip(levels.tolist(), counts.tolist(), strict=True)))


def _colour(seen: Sequence[_Seen]) -> tuple[str, str]:
    """The coding of masks that are painted in colours."""
    found = set().union(*(one.levels for one in seen))
    paint = found - {_BLACK if _BLACK in found else _WHITE}
    if paint == {COLOURS["red"]}:
        return "red", "painted red"
    if paint == {COLOURS["red"], COLOURS["green"]}:
        return "red", "painted red (root) and green (soil), what is unpainted counts as soil"
    odd = _odd_one(seen)
    own = set(odd.levels) & paint or paint
    names = [name for name, code in COLOURS.items() if code in own]
    more = ["other colours"] * (len(own) > len(names))
    others = " as the others are not" if len(seen) > 1 and own != paint else ""
    raise _ask(odd.path, f"is painted {' and '.join(names + more)}{others}")


def _odd_one(seen: Sequence[_Seen]) -> _Seen:
    """Of masks whose values contradict each other, one with values that fewest of them hold."""
    kinds = Counter(frozenset(one.levels) for one in seen)
    return min(seen, key=lambda one: (kinds[frozenset(one.levels)], -len(one.levels)))


def _grey(seen: Sequence[_Seen]) -> tuple[str, str]:
    """The coding of masks without colours, and how it is said."""
    levels = sum((one.levels for one in seen), Counter())
    if len(levels) == 1:
        (only,) = levels
        return f"0/{only or 255:.15g}", f"hold {only:g} only"
    if len(levels) == 2 and min(levels) >= 0:
        soil, root = sorted(levels)
        return f"{soil:.15g}/{root:.15g}", f"coded {soil:.15g}/{root:.15g}"
    root, lossy = max(levels), all(one.lossy for one in seen)
    pieces = sum((one.flat for one in seen), Counter())
    stray = pieces.total() - pieces[root]  # pieces of one other value: grey edges hardly ever are
    if lossy:  # JPEG scatters values around that of root: the median of what is brighter than half
        bright = sorted(level for level in levels if level > root / 2)
        reached = np.cumsum([levels[level] for level in bright])
        root = bright[int(np.searchsorted(reached, reached[-1] / 2))]
    root = 255 if 235 <= root <= 255 else root
    spread, _ = np.histogram(list(levels), bins=64, range=(0, root * 65 / 64), weights=list(levels.values()))
    middle, top = spread[16:48], spread[48:].sum()  # of JPEG masks, values above root are left out here
    third = (middle[:-1] + middle[1:]).max()
    picture = middle.sum() > 1.5 * top or middle.sum() > 0.2 * levels.total()
    commonest = max((count, level) for level, count in levels.items() if level)[1]
    a_class = third > middle.sum() / 2 and third > top / 20 and (lossy or commonest < root)  # or a straight edge's grey
    # Labels with a rim of 255 (0 soil, 1 root, 255 unknown): edges pass through greys, JPEG scatters around 255.
    flat = [one.levels for one in seen if not one.lossy and len(one.levels) > 2]
    a_class |= any(not any(root / 4 < level < max(levels) for level in levels) for levels in flat)
    solid = sum((one.solid for one in seen), Counter())
    middle_areas = [number for level, number in solid.items() if root / 4 < level < root * 3 / 4]
    a_class |= max(middle_areas, default=0) > max(top / 20, sum(middle_areas) / 2)
    usual = min(levels) >= 0 and (root == 1 or root >= (10 if lossy else 200))
    if usual and stray <= 0.05 * top and not picture and not a_class:
        for one in seen:  # one of 0/1 among many of 0/255 would be read as empty
            highest, flat = max(one.levels), one.flat.total() > one.levels.total() / 2 - one.levels[0] / 2
            if 0 < highest <= root / 2 and (highest < 10 if one.lossy else flat):
                raise _ask(one.path, f"holds nothing above {highest:g}, but the others are coded 0/{root:.15g}")
        return f"0/{root:.15g}", f"coded 0/{root:.15g} ({'JPEG' if lossy else 'grey edges'})"
    worst = _odd_one(seen).path
    listed = ", ".join(f"{level:g}" for level in sorted(levels)[:7]) + ", …" * (len(levels) > 7)
    blurred = ", which JPEG may have blurred (export PNG)" if lossy else ""
    raise _ask(worst, f"holds the values {listed} (all {len(seen)} masks together){blurred}")


def _ask(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{shown(path)} {what}; which of it is root cannot be told: give mask_coding (--mask-coding), such as 0/255 "
        "(soil/root), labels (all but 0) or red; or save the masks with roots white and all else black."
    )
