"""What a mask file says: which of its values are root. It is found once for all masks of a folder, and said.

A coding is a short text, so that results files and the command line can hold it:

- "0/255", "0/1", "1/2", "255/0": value of soil / value of root; a pixel is what it is nearer to.
- "labels": 0 (or black, or transparent) is soil; every other number or colour is root.
- "red", "green", "blue", "yellow", "magenta", "cyan": root is where that colour is painted.
- "alpha": root is where the file is opaque.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from rootsam_lib.data.images import MAX_MEGAPIXELS, deep_colours, open_image, upright
from rootsam_lib.results import progress, shown

# A colour's code has a bit for each channel (red 1, green 2, blue 4) above half of the file's highest value.
COLOURS = {"red": 1, "green": 2, "blue": 4, "yellow": 3, "magenta": 5, "cyan": 6}
_WHITE = 7
_PAIR = re.compile(r"(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)")
_LOSSY = ("JPEG", "MPO", "WEBP")
_NEARLY_EMPTY = 2e-4  # share of root over a folder; SegRoot's lies at 1.1 %
_MANY = 9  # so many numbers, each for pieces of its own, are single roots and not classes


class _Seen(NamedTuple):
    """One mask: pixels by value, and of these the ones in pieces of a single value; pixels by colour code, or None for
    a grey mask; whether its format blurs values; how many colours it holds."""

    path: Path
    levels: Counter
    flat: Counter
    codes: Counter | None
    lossy: bool
    colours: int


def checked_coding(coding: str) -> str:
    """A coding, if it is one. Raises ValueError that lists what there is."""
    pair = _PAIR.fullmatch(coding) if isinstance(coding, str) else None
    if not (coding in ("labels", "alpha", *COLOURS) or (pair and float(pair[1]) != float(pair[2]))):
        raise ValueError(
            f"mask_coding is {coding!r}: give soil/root, such as 0/255 or 0/1, or one of labels, alpha, "
            f"{', '.join(COLOURS)}."
        )
    return coding


def read_mask(
    source: str | Path | Image.Image, coding: str | None = None, max_megapixels: float = MAX_MEGAPIXELS
) -> np.ndarray:
    """A mask file (or what `open_image` gave) as (H, W) bool, True is root, turned upright by its EXIF orientation.

    coding: see above; None finds it from this file alone (`find_coding` does so for a whole folder).
    Raises what `open_image` and `find_coding` raise, and ValueError for an unknown coding.
    """
    opened = source if isinstance(source, Image.Image) else open_image(source, max_megapixels)
    path = Path(opened.filename)
    coding = find_coding([path], max_megapixels)[0] if coding is None else checked_coding(coding)
    values, colours, alpha, _ = _pixels(opened)
    if coding == "alpha":
        if alpha is None:
            raise ValueError(f"{shown(path)} has no alpha channel, but mask_coding is alpha: leave it out.")
        return alpha > 127
    if coding == "labels":
        return values > 0
    if coding in COLOURS:
        return np.zeros(values.shape, bool) if colours is None else _codes(colours) == COLOURS[coding]
    soil, root = map(float, _PAIR.fullmatch(coding).groups())
    between = (soil + root) / 2
    return values > between if root > soil else values < between


def find_coding(paths: Iterable[str | Path], max_megapixels: float = MAX_MEGAPIXELS) -> tuple[str, str]:
    """The one coding of all these masks, and what was found, in a sentence for people.

    Masks that cannot be read are left out: they are refused when they are read. Warns where nearly no pixel is root, or
    where more than half of a mask is, for then it is probably inverted. Raises ValueError, asking for mask_coding,
    where the values leave open what is root: classes, a photograph, only green paint, masks of several codings.
    """
    paths = [Path(path) for path in paths]
    seen = []
    for path in progress(paths, "look at masks", "mask", disable=len(paths) <= 20):
        try:
            seen.append(_look(path, max_megapixels))
        except _DrawnInAlpha:
            raise _ask(path, "draws its mask in the alpha channel") from None
        except (OSError, ValueError):
            continue
    painted = [one for one in seen if one.codes is not None]
    grey = [one for one in seen if one.codes is None and any(one.levels)]
    if painted and grey:
        raise _ask(grey[0].path, f"is grey, but {shown(painted[0].path)} is painted in colours")
    if painted:
        coding, how = _colour(painted)
        shares = [one.codes[COLOURS[coding]] / one.codes.total() for one in painted]
        shares += [0.0] * (len(seen) - len(painted))
    else:
        coding, how = _grey(seen)
        shares = [_share(one.levels, coding) for one in seen]
    if not seen:
        return coding, "no mask can be read"
    share = float(np.mean(shares))
    files = shown(paths[0]) if len(seen) == 1 else f"{len(seen)} masks"
    if full := [number for number, share in enumerate(shares) if share > 0.5]:
        more = f" ({len(full)} of {len(seen)} masks hold more than half)" if len(seen) > 1 else ""
        first = f"{shown(seen[full[0]].path)}: {shares[full[0]]:.0%} of the pixels are root{more}"
        soil, _, root = coding.partition("/")
        other = f" give mask_coding {root}/{soil}, or" if root else ""
        warnings.warn(f"{first}; if the mask is inverted,{other} save it with roots white.", stacklevel=2)
    if share < _NEARLY_EMPTY:
        lost = " A JPEG of small values such as 0/1 loses them: export PNG." if any(one.lossy for one in seen) else ""
        warnings.warn(f"{files}: only {share:.2%} of the pixels are root.{lost}", stacklevel=2)
    return coding, f"masks {how}, root share {100 * share:.2g} % ({files})"


class _DrawnInAlpha(ValueError):
    """A mask of one colour whose transparency varies."""


def _pixels(opened: Image.Image) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, bool]:
    """A mask's brightest channel (H, W), its colours (H, W, 3) or None where all are greys, its alpha (H, W) or None,
    and whether its format blurs values. What is transparent counts as black, where something is not."""
    path, raw, deep = Path(opened.filename), opened, opened.info["deep"]
    lossy = opened.format in _LOSSY or opened.info.get("compression") == "jpeg"
    if opened.mode in ("P", "PA"):
        opened = opened.convert("RGBA")
    elif opened.mode not in ("L", "LA", "RGB", "RGBA", "F") and not opened.mode.startswith("I"):
        opened = opened.convert("L" if opened.mode == "1" else "RGB")
    pixels = upright(np.atleast_3d(deep_colours(path) if deep else np.asarray(opened)), raw)
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise ValueError(f"{shown(path)} holds pixels that are no number: save the mask as 8-bit PNG.")
    alpha = pixels[..., -1] if opened.mode in ("RGBA", "LA") and not deep else None
    colours = pixels if alpha is None else pixels[..., :-1]
    if alpha is not None and np.ptp(alpha) > 0 and (alpha == 0).any():
        colours = np.where((alpha > 0)[..., None], colours, 0)
    if colours.shape[2] == 1:
        return colours[..., 0], None, alpha, lossy
    red, green, blue = np.moveaxis(colours, -1, 0)
    values = np.maximum(np.maximum(red, green), blue)
    top = values.max()
    coloured = (values - np.minimum(np.minimum(red, green), blue) > (64 if lossy else min(32, top // 2))).sum()
    grey = coloured <= (0.1 * (values > top // 2).sum() if lossy else 0)
    return values, None if grey else colours, alpha, lossy


def _codes(colours: np.ndarray) -> np.ndarray:
    """The colour code of every pixel, uint8 (H, W)."""
    return (colours > colours.max() // 2).astype(np.uint8) @ np.array([1, 2, 4], np.uint8)


def _look(path: Path, max_megapixels: float) -> _Seen:
    """Count what a mask holds. Raises what `open_image` raises, and _DrawnInAlpha."""
    values, colours, alpha, lossy = _pixels(open_image(path, max_megapixels))
    if alpha is not None and np.ptp(alpha) > 0 and not values.any():
        raise _DrawnInAlpha
    if colours is not None:
        codes = Counter(dict(enumerate(np.bincount(_codes(colours).ravel(), minlength=8).tolist())))
        packed = colours.astype(np.uint64) @ np.array([1, 2**16, 2**32], np.uint64)
        return _Seen(path, Counter(), Counter(), codes, lossy, len(np.unique(packed)))
    levels = _count(values)
    flat: Counter = Counter()
    if len(levels) > 2 and not lossy:
        pieces, number = ndimage.label(values > 0, np.ones((3, 3), int))
        low, high = (of(values, pieces, range(number + 1)) for of in (ndimage.minimum, ndimage.maximum))
        flat = _count(values[(values > 0) & (low == high)[pieces]])
    return _Seen(path, levels, flat, None, lossy, 0)


def _count(values: np.ndarray) -> Counter:
    """How often every value occurs."""
    if values.dtype == np.uint8:
        counts = np.bincount(values.ravel(), minlength=256)
        return Counter({level: int(counts[level]) for level in np.flatnonzero(counts).tolist()})
    levels, counts = np.unique(values, return_counts=True)
    return Counter(dict(zip(levels.tolist(), counts.tolist(), strict=True)))


def _share(levels: Counter, coding: str) -> float:
    """The share of root among counted values."""
    if coding == "labels":
        return 1 - levels[0] / levels.total()
    soil, root = map(float, coding.split("/"))
    return sum(count for level, count in levels.items() if level > (soil + root) / 2) / levels.total()


def _grey(seen: Sequence[_Seen]) -> tuple[str, str]:
    """The coding of masks without colours, and how it is said."""
    levels = sorted(set().union(*(one.levels for one in seen)))
    if not any(levels):
        return "0/255", "hold 0 only"
    if len(levels) == 1:
        return f"0/{levels[0]:.15g}", f"hold {levels[0]:g} only"
    if len(levels) == 2:
        coding = f"{levels[0]:.15g}/{levels[1]:.15g}"
        return coding, f"coded {coding}"
    if set(levels) <= {0, 1, 255, 65535} and all(len(one.levels) <= 2 for one in seen):
        return "labels", f"coded {' and '.join(f'0/{level}' for level in levels if level)}"
    found = {}
    for lossy, rule in ((True, _blurred), (False, _exact)):
        if group := [one for one in seen if one.lossy == lossy and any(one.levels)]:
            two = sorted(set().union(*(one.levels for one in group)) | {0})
            coding, how = (f"0/{two[1]:.15g}", f"coded 0/{two[1]:.15g}") if len(two) == 2 else rule(group)
            found[coding] = how, group[0]
    if len(found) > 1:
        (first, (_, one)), (second, (_, other)) = found.items()
        raise _ask(one.path, f"is coded {first}, but {shown(other.path)} is coded {second}")
    ((coding, (how, _)),) = found.items()
    return coding, how


def _blurred(seen: Sequence[_Seen]) -> tuple[str, str]:
    """The coding of JPEG masks: values scatter around that of soil, 0, and that of root."""
    levels = sum((one.levels for one in seen), Counter())
    top = max(levels)
    above = sorted(level for level in levels if level > top / 2)
    reached = np.cumsum([levels[level] for level in above])
    bright = int(reached[-1])
    root = above[int(np.searchsorted(reached, bright / 2))]  # the median of what is brighter than half
    common, count = max(((level, count) for level, count in levels.items() if level), key=lambda pair: pair[1])
    if root < 10 and count > 0.97 * (levels.total() - levels[0]):
        return f"0/{common}", f"coded 0/{common} (JPEG)"
    if root < 10:
        raise _ask(seen[0].path, f"is a JPEG of values up to {top}, which its compression has blurred: export PNG")
    root = 255 if root >= 235 else root
    picture, third = _between(levels, root)
    if picture or third:
        worst = max(seen, key=lambda one: sum(n for level, n in one.levels.items() if root / 4 < level < 3 * root / 4))
        raise _ask(worst.path, f"holds many values between 0 and {root}")
    return f"0/{root}", f"coded 0/{root} (JPEG)"


def _between(levels: Counter, root: float) -> tuple[bool, bool]:
    """Whether as many values lie between 0 and root as in a photograph, and whether they heap up at a third one."""
    counts, _ = np.histogram(list(levels), bins=64, range=(0, root * 65 / 64), weights=list(levels.values()))
    bright = sum(count for level, count in levels.items() if level > root / 2)
    middle = counts[16:48]
    peak = (middle[:-1] + middle[1:]).max()
    picture = middle.sum() > 1.5 * bright or middle.sum() > 0.2 * levels.total()
    return picture, peak > middle.sum() / 2 and peak > bright / 20


def _exact(seen: Sequence[_Seen]) -> tuple[str, str]:
    """The coding of lossless masks of more than two values: grey edges, or a number for every root."""
    levels, flat = (sum((getattr(one, name) for one in seen), Counter()) for name in ("levels", "flat"))
    top = max(levels)
    picture, third = _between(levels, top)
    soil = levels.pop(0, 0)
    between = levels.total() - levels[top]
    apart = flat.total() - flat[top]  # pixels in pieces of one value: grey edges are hardly ever
    most = max(levels.values())
    edges = (
        len(levels) > 2
        and apart < 0.05 * max(between, levels[top])
        and not picture
        and (levels[top] == most or not third)
    )
    if edges and (top >= 200 or top == 1) and min(levels) >= 0:
        return f"0/{top:.15g}", f"coded 0/{top:.15g} with grey edges"
    whole = all(level == int(level) and level > 0 for level in levels)
    if whole and len(levels) >= _MANY and apart > 0.5 * between and soil > most:
        return "labels", f"hold a number for every root ({min(levels):g} to {top:g})"
    listed = ", ".join(f"{level:g}" for level in [0] * bool(soil) + sorted(levels)[:6])
    worst = max(seen, key=lambda one: len(one.levels))
    listed += f" (all {len(seen)} masks together)" if len(seen) > 1 else ""
    raise _ask(worst.path, f"holds the values {listed}{', …' if len(levels) > 6 else ''}")


def _colour(seen: Sequence[_Seen]) -> tuple[str, str]:
    """The coding of masks that are painted in colours."""
    codes = sum((one.codes for one in seen), Counter())
    ground = _WHITE if codes[_WHITE] > codes[0] else 0
    painted = {code: count for code, count in codes.items() if code != ground and count}
    shades = any(one.lossy or one.colours > 8 for one in seen)  # edges between two colours hold others
    if shades:
        painted = {code: count for code, count in painted.items() if count > 0.03 * sum(painted.values())}
    names = [name for name, code in COLOURS.items() if code in painted] + ["white"] * (_WHITE in painted)
    names += ["black"] * (0 in painted)
    several = not shades and any(one.colours > len([c for c in one.codes.values() if c]) for one in seen)
    if names == ["red", "green"] and not several:
        return "red", "painted red (root) and green (soil), what is unpainted counts as soil"
    if len(names) == 1 and names[0] in COLOURS and names != ["green"] and not several:
        return names[0], f"painted {names[0]}"
    what = f"is painted {' and '.join(names)}" if not several else f"holds {max(one.colours for one in seen)} colours"
    raise _ask(seen[0].path, f"{what}{', which is root in some programs and soil in others' * (names == ['green'])}")


def _ask(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{shown(path)} {what}; which of it is root cannot be told: give mask_coding (--mask-coding), such as 0/255 "
        f"(soil/root), labels (all but 0) or {', '.join(list(COLOURS)[:2])}."
    )
