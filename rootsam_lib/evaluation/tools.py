"""What a person's tools do to a mask beside clicks for the model: trace a root between two clicks, remove the segment
under a click, leave a rectangle out. Masks are bool (H, W), places (x, y) in whole px of the image."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt, label
from skimage.color import rgb2gray
from skimage.filters import sato
from skimage.graph import route_through_array

from rootsam_lib import checked
from rootsam_lib.metrics import EIGHT, thinned
from rootsam_lib.traits import trace

TOOLS = ("trace", "remove", "exclude")
SNAP = 6  # px: an end so near to a centre line starts on it; a click so near to a segment means it
MARGIN = 40  # px around both ends in which a path is sought, and a width measured
FAR = 250  # px: so far from the click a segment may be removed
RADIUS = 1.5  # px: half the width of a root where no mask is near that tells it
SURE = (-10.0, 6.0)  # logits at and below the first are soil, at and above the second root


class Edit(NamedTuple):
    """One use of a tool: "trace" from (x, y) to (x2, y2), "remove" at (x, y), "exclude" the rectangle between both."""

    tool: str
    x: int
    y: int
    x2: int = -1
    y2: int = -1


def path_cost(logits: np.ndarray, image: np.ndarray) -> np.ndarray:
    """What a step through each pixel costs, float (H, W), 0.02 to 1: little where the model or the image sees a root.

    Four fifths are from the logits, one from how bright a line is beside the brightest in sight (Sato's filter, Sato et
    al. 1998); shares and power were chosen on six of SegRoot's valid scans, where little depends on them.
    image: uint8 (H, W, 3).
    """
    if not np.isfinite(logits).all():
        raise ValueError("logits hold NaN or infinite numbers: give those of Predictor.predict.")
    ridge = sato(rgb2gray(image), sigmas=(1, 2), black_ridges=False)
    line = np.clip(ridge / max(np.quantile(ridge, 0.99), 1e-6), 0, 1)
    low, high = SURE
    root = (np.clip(logits, low, high) - low) / (high - low)
    return 0.02 + 0.98 * (1 - 0.8 * root - 0.2 * line) ** 3


def window_around(shape: tuple[int, int], xs: Iterable[int], ys: Iterable[int], margin: int) -> tuple[slice, slice]:
    """The part of an image of that shape that holds these places, and `margin` px around them."""
    (left, right), (top, bottom) = ((min(of) - margin, max(of) + margin + 1) for of in (list(xs), list(ys)))
    return slice(max(top, 0), min(bottom, shape[0])), slice(max(left, 0), min(right, shape[1]))


def trace_between(mask: np.ndarray, edit: Edit, logits: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The mask with a root along the cheapest path (`path_cost`) between two places.

    Ends within `SNAP` px of a centre line of the mask move onto it. The new root is as wide as the mask's roots near it
    (the median along their centre lines), and what is root already stays as it is. logits: float (H, W), the automatic
    answer's. The path is sought in a window around both ends (live-wire, Mortensen & Barrett 1995).
    """
    window = window_around(mask.shape, (edit.x, edit.x2), (edit.y, edit.y2), MARGIN)
    near, line = mask[window], thinned(mask[window])
    lined = np.argwhere(line)
    ends = np.array([(edit.y, edit.x), (edit.y2, edit.x2)]) - (window[0].start, window[1].start)
    for i, end in enumerate(ends):
        away = np.hypot(*(lined - end).T)
        if len(lined) and away.min() <= SNAP:
            ends[i] = lined[away.argmin()]
    cost = path_cost(logits[window].astype(np.float32), image[window])
    path, _ = route_through_array(cost, *map(tuple, ends), fully_connected=True, geometric=True)
    radius = float(np.median(distance_transform_edt(near)[line])) if len(lined) else RADIUS
    away = np.ones(near.shape, bool)
    away[tuple(np.transpose(path))] = False
    traced = mask.copy()
    traced[window] |= distance_transform_edt(away) < radius
    return traced


def remove_segment(mask: np.ndarray, x: int, y: int) -> np.ndarray:
    """The mask without the segment next to a click: the root between two ends or branch points of its centre line.

    Spurs on its edge part no segment (`traits.trace`). Of a segment that is longer, `FAR` px around the click go. Where
    no root lies within `SNAP` px the mask stays as it is.
    """
    window = window_around(mask.shape, (x,), (y,), FAR)
    near, row, column = mask[window], y - window[0].start, x - window[1].start
    pixels = np.argwhere(near)
    away = np.hypot(*(pixels - (row, column)).T)
    if not len(pixels) or away.min() > SNAP:
        return mask
    row, column = pixels[away.argmin()]
    pieces, _ = label(near, EIGHT)
    gone = pieces == pieces[row, column]
    owner = np.zeros(near.shape, int)
    for number, path in enumerate(trace(gone, None).paths, 1):
        owner[tuple(path.astype(int).T)] = number
    if owner.max() > 1:
        nearest = owner[tuple(distance_transform_edt(owner == 0, return_distances=False, return_indices=True))]
        gone &= nearest == nearest[row, column]
    left = mask.copy()
    left[window] &= ~gone
    return left


def parse_edits(text: str) -> list[Edit]:
    """Edits from a parameter: "tool,x,y" or "tool,x,y,x2,y2", joined by ";", such as "trace,10,20,90,40;remove,30,31".

    Raises ValueError, naming the entry, for anything else.
    """
    edits = []
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        tool, *places = entry.split(",")
        if tool not in TOOLS or len(places) != (2 if tool == "remove" else 4) or not all(p.isdecimal() for p in places):
            raise ValueError(f"edit {entry!r} is not tool,x,y or tool,x,y,x2,y2 in whole px: see tools.Edit.")
        edits.append(Edit(tool, *map(int, places)))
    return edits


def check_edit(edit: Edit, shape: tuple[int, int]) -> Edit:
    """The edit in whole px. Raises ValueError for another tool, and for a place outside an image of that shape."""
    if edit.tool not in TOOLS:
        raise ValueError(f"tool {edit.tool!r} is unknown: choose one of {', '.join(TOOLS)}.")
    places = {"x": 1, "y": 0} | ({} if edit.tool == "remove" else {"x2": 1, "y2": 0})
    whole = {n: int(checked(f"{n} of {edit.tool}", getattr(edit, n), 0, shape[i] - 1)) for n, i in places.items()}
    return edit._replace(**whole)


def apply_edits(mask: np.ndarray, edits: Iterable[Edit], logits: np.ndarray, image: np.ndarray) -> np.ndarray:
    """A mask after these traces and removals, in their order. Raises what `check_edit` raises."""
    for edit in (check_edit(edit, mask.shape) for edit in edits):
        if edit.tool == "trace":
            mask = trace_between(mask, edit, logits, image)
        elif edit.tool == "remove":
            mask = remove_segment(mask, edit.x, edit.y)
    return mask


def excluded(shape: tuple[int, int], edits: Iterable[Edit]) -> np.ndarray:
    """What the rectangles among the edits leave out, bool (H, W): both corners belong to it."""
    out = np.zeros(shape, bool)
    for edit in edits:
        if edit.tool == "exclude":
            out[window_around(shape, (edit.x, edit.x2), (edit.y, edit.y2), 0)] = True
    return out
