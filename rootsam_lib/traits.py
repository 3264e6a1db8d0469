"""Root traits: from a mask and the edge of a pixel to millimetres of root, one tidy row a scan, and its quality.

Where the edge of a pixel is not known (cracks, vessels and fungi seldom have dpi) everything is in pixels, and the
names of the columns say so: `root_length_px` in place of `root_length_mm`.

A trait is only as good as its mask: judge a model's traits against those of the true masks
(`evaluation.bootstrap.agreement`), and look at the QC columns of a scan before you use its row.
"""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d, label
from skan import Skeleton

from rootsam_lib import checked, checked_mask
from rootsam_lib.data.scans import Scan
from rootsam_lib.metrics import EIGHT, thinned
from rootsam_lib.prompts import edt_map
from rootsam_lib.results import read_csv, read_json, shown

METHODS = ("smoothed", "kimura", "chain")
CLASSES_MM = (0.3, 0.6, 1.0)  # bounds between the diameter classes
CLASSES_PX = (4, 8, 12)  # about the same at 300 dpi
_LOCATION = re.compile(r"(?:^|[_\-. ])L(\d{1,3})(?=[_\-. ]|$)")


@dataclass(frozen=True)
class Cleaning:
    """What is taken off a mask before it is measured; (0, 0) takes nothing off.

    speck_mm2: pieces of root, and holes in roots, smaller than this are noise; speck_px: the same in pixels, where the
    edge of a pixel is not known; at 300 dpi the defaults are equal. spur_diameters: a branch that ends freely and is
    shorter than so many diameters of the root where it leaves is a bump on its edge and no lateral.
    Raises ValueError for a value below 0 or that is no number.
    """

    speck_mm2: float = 0.1
    spur_diameters: float = 1.0
    speck_px: float = 14

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            checked(name, value, 0)


CLEANING = Cleaning()
LEAST_ANGLE = 2.0  # degrees: below, an angle was meant in radians


class Tracing(NamedTuple):
    """A measured mask, in pixels: the cleaned mask bool (H, W), its pruned centre lines bool (H, W), the paths between
    their ends and branch points, each float (N, 2) as (row, column), and the diameters along each path, float (N,)."""

    mask: np.ndarray
    centre_lines: np.ndarray
    paths: list[np.ndarray]
    diameters: list[np.ndarray]


def trace(
    mask: np.ndarray, mm_per_px: float | None, cleaning: Cleaning = CLEANING, excluded: np.ndarray | None = None
) -> Tracing:
    """Clean a mask, bool (H, W), thin it to centre lines, prune their spurs, and walk along them.

    mm_per_px: the edge of a pixel, by which specks are judged; None where it is not known. excluded, bool (H, W): what
    is no window; a root ends at its edge.

    A spur runs from the middle of a root to a bump on its edge, so it is about half a diameter long, plus the bump.
    Where several meet only the shortest goes, and then all are looked at again: a root's own forked tip keeps a branch.
    The diameter is twice the distance from the centre line to the nearest soil pixel; on drawn lines of 2 to 12 px at
    all angles it is 0 to 0.4 px too large on average, on lines of one pixel by one. Raises ValueError for what is no
    mask, or a pixel without size.
    """
    checked_mask(mask, one=True)
    if mm_per_px is not None:
        checked("mm_per_px, the edge of a pixel (25.4 / dpi),", mm_per_px, 0, 1, above=True)
    smallest = cleaning.speck_px if mm_per_px is None else cleaning.speck_mm2 / mm_per_px**2
    window = np.True_ if excluded is None else ~excluded
    mask = ~_without_specks(~_without_specks(mask & window, smallest, EIGHT), smallest) & window
    centre_lines = thinned(mask)
    distance = edt_map(mask)
    while (skeleton := _skeleton(centre_lines)) is not None:
        spurs = _spurs(skeleton, distance, cleaning.spur_diameters)
        if not len(spurs):
            break
        pixels = np.concatenate([skeleton.path(number) for number in spurs])
        pixels = pixels[skeleton.degrees[pixels] <= 2]  # the branch point stays
        centre_lines[tuple(skeleton.coordinates[pixels].astype(int).T)] = False
        centre_lines = thinned(centre_lines)  # what is left of a branch point is no corner
    paths = [] if skeleton is None else [skeleton.path_coordinates(i) for i in range(skeleton.n_paths)]
    return Tracing(mask, centre_lines, paths, [2 * distance[tuple(path.astype(int).T)] for path in paths])


def _without_specks(mask: np.ndarray, smallest: float, neighbours: np.ndarray | None = None) -> np.ndarray:
    """A mask without its pieces of fewer than `smallest` pixels."""
    pieces, _ = label(mask, neighbours)
    return mask & (np.bincount(pieces.ravel()) >= smallest)[pieces]


def _skeleton(centre_lines: np.ndarray) -> Skeleton | None:
    """skan's graph of centre lines; None where no two pixels touch, which has no length."""
    pieces, _ = label(centre_lines, EIGHT)
    return Skeleton(centre_lines) if (np.bincount(pieces.ravel())[1:] > 1).any() else None


def _spurs(skeleton: Skeleton, distance: np.ndarray, diameters: float) -> list[int]:
    """Numbers of the paths that are spurs: at each branch point the shortest, if it is short enough."""
    clusters, _ = label(branch_pixels(skeleton.skeleton_image), EIGHT)
    shortest: dict[int, tuple[float, int]] = {}
    for number, length in enumerate(skeleton.path_lengths()):
        ends = sorted(skeleton.path(number)[[0, -1]], key=lambda pixel: skeleton.degrees[pixel])
        free, base = skeleton.degrees[ends[0]] == 1, tuple(skeleton.coordinates[ends[1]].astype(int))
        if free and skeleton.degrees[ends[1]] > 2 and length < diameters * 2 * distance[base]:
            shortest[clusters[base]] = min(shortest.get(clusters[base], (np.inf, 0)), (length, number))
    return [number for _, number in shortest.values()]


def branch_pixels(centre_lines: np.ndarray) -> np.ndarray:
    """The pixels, bool (H, W), at which more than two centre lines meet."""
    lines = (centre_lines > 0).astype(np.uint8)
    around = cv2.boxFilter(lines, -1, (3, 3), normalize=False, borderType=cv2.BORDER_CONSTANT)  # itself counts too
    return (lines > 0) & (around > 3)


def segment_lengths(path: np.ndarray, method: str = "smoothed") -> np.ndarray:
    """Lengths in px of the steps of a path (N, 2) from pixel to pixel: float (N - 1,); their sum is the path's length.

    - "smoothed": the path is smoothed first (Gaussian, 2 px; its ends stay), then measured. On drawn straight lines of
      1 to 12 px width at all angles it is 0.06 % too long on average, and never by more than 0.3 %.
    - "kimura": sqrt(Nd² + (Nd + No / 2)²) + No / 2 from Nd diagonal and No straight steps (Kimura et al. 1999), the
      usual one for roots: 1.7 % too long on average, 0 to 3 % by angle. Each step gets its share.
    - "chain": 1 for a straight step and √2 for a diagonal one, as skan does: 5.5 % too long, up to 8 %.

    The first is the default: its bias does not depend on where a root points, and a ragged mask does not lengthen it.
    Raises ValueError for another method.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown: choose one of {', '.join(METHODS)}.")
    path = np.asarray(path, float)
    if method == "smoothed" and len(path) > 2:
        smooth = gaussian_filter1d(path, 2.0, axis=0, mode="nearest")
        smooth[[0, -1]] = path[[0, -1]]
        path = smooth
    steps = np.hypot(*np.diff(path, axis=0).T)
    if method == "kimura" and len(steps):
        diagonal = int((steps > 1.2).sum())
        straight = len(steps) - diagonal
        steps = steps * (np.hypot(diagonal, diagonal + straight / 2) + straight / 2) / steps.sum()
    return steps


def root_length_mm(mask: np.ndarray, mm_per_px: float, cleaning: Cleaning = CLEANING) -> float:
    """Length of all roots of a mask, bool (H, W), in mm, along their centre lines (see `trace`, `segment_lengths`).

    Thinning ends a centre line about half a diameter before the root's own end: a short loss at every tip.
    """
    return float(sum(segment_lengths(path).sum() for path in trace(mask, mm_per_px, cleaning).paths) * mm_per_px)


def measure(
    mask: np.ndarray, mm_per_px: float | None, cleaning: Cleaning = CLEANING, excluded: np.ndarray | None = None
) -> dict[str, float]:
    """The traits of one mask, bool (H, W), with units in their names: mm, or px where mm_per_px is None.

    Length ("smoothed", and Kimura's for comparison with other papers), length per area of window (per cm², or per px²;
    all pixels that are not excluded, bool (H, W), are window), area, mean diameter (weighted by length; NaN without
    roots), length by diameter (bounds: CLASSES_MM or CLASSES_PX; a bound belongs to the class above it), and branch
    points (where roots cross there are one or two as well). Raises what `trace` raises.
    """
    unit, size, classes = ("px", 1.0, CLASSES_PX) if mm_per_px is None else ("mm", mm_per_px, CLASSES_MM)
    tracing = trace(mask, mm_per_px, cleaning, excluded)
    pixels = mask.size - (0 if excluded is None else int(excluded.sum()))
    lengths = np.concatenate([np.zeros(0), *(segment_lengths(path) for path in tracing.paths)]) * size
    kimura = sum(segment_lengths(path, "kimura").sum() for path in tracing.paths) * size
    between = [(along[:-1] + along[1:]) / 2 for along in tracing.diameters]
    diameters = np.concatenate([np.zeros(0), *between]) * size
    total = float(lengths.sum())
    by_class = np.bincount(np.searchsorted(classes, diameters, side="right"), lengths, len(classes) + 1)
    names = [f"below_{classes[0]:g}", *(f"{low:g}_to_{high:g}" for low, high in itertools.pairwise(classes))]
    names.append(f"from_{classes[-1]:g}")
    per_area, area = ("px_per_px2", pixels) if mm_per_px is None else ("mm_per_cm2", pixels * size**2 / 100)
    return {
        f"root_length_{unit}": total,
        f"root_length_kimura_{unit}": float(kimura),
        f"length_density_{per_area}": total / area if area else float("nan"),
        f"root_area_{unit}2": float(tracing.mask.sum() * size**2),
        f"mean_diameter_{unit}": float((diameters * lengths).sum() / total) if total else float("nan"),
        **{f"length_{unit}_diameter_{n}_{unit}": float(part) for n, part in zip(names, by_class, strict=True)},
        "branch_points": int(label(branch_pixels(tracing.centre_lines), EIGHT)[1]),
    }


def root_contrast(image: np.ndarray, mask: np.ndarray, excluded: np.ndarray | None = None) -> float | None:
    """How far roots stand out: their mean grey level less that of the soil around them, over that soil's spread.

    image: uint8 (H, W, 3); mask, excluded: bool (H, W). The soil is what lies 4 to 12 px from the mask. None without
    root, or without soil of several levels. The fainter roots are, the more of them a model misses (`calibration`).
    """
    away = edt_map(~mask)
    grey, kept = image.mean(axis=2, dtype=np.float32), np.True_ if excluded is None else ~excluded
    root, soil = grey[mask & kept], grey[(away > 4) & (away <= 12) & kept]
    return float((root.mean() - soil.mean()) / soil.std()) if root.size and soil.size and soil.std() else None


def parse_location(name: str) -> int | None:
    """The location, a scan's number along its tube, in a CID file name (`…_T002_L004_…` gives 4), or None."""
    found = _LOCATION.search(name)
    return int(found[1]) if found else None


def depth_mm(location: int, window_mm: float, tube_angle: float = 45.0) -> float:
    """Depth of a window's middle below the top of the first window, in mm.

    location: 1 is the uppermost window. window_mm: how far the scanner moves along the tube from one location to the
    next, a window's height when windows touch. tube_angle: of the tube to the horizontal in degrees, 45 is usual.
    Raises ValueError for an angle below 2 (radians?) or above 90, or a window without height.
    """
    checked("location", location, 1, whole=True)
    checked("tube_angle", tube_angle, LEAST_ANGLE, 90)
    checked("window_mm", window_mm, 0, above=True)
    return float((location - 0.5) * window_mm * np.sin(np.deg2rad(tube_angle)))


def trait_row(
    scan: Scan,
    mask: np.ndarray,
    predicted_iou: float | None = None,
    *,
    window_mm: float | None = None,
    tube_angle: float = 45.0,
    cleaning: Cleaning = CLEANING,
) -> dict[str, object]:
    """One scan's row: what it is, where it lies, `measure` of a mask of it, bool (H, W), and which scans to look at:
    the model's own estimate of its IoU (mean over tiles), whether it found nothing at all (1 or 0), the share of
    pixels in which a colour channel is at 255, where the scanner was blinded, and `root_contrast`.

    window_mm and tube_angle belong to `depth_mm`; without window_mm the image's height is taken. The depth is
    None where the name holds no location, or the window's height is not known. What is excluded from the scan counts
    in no column. Raises what these functions raise.
    """
    if np.shape(mask) != scan.image.shape[:2]:
        raise ValueError(f"{scan.name}: the mask is {np.shape(mask)}, but its image is {scan.image.shape[:2]}.")
    counted = np.ones(mask.shape, bool) if scan.excluded is None else ~scan.excluded
    size = scan.mm_per_px
    location = parse_location(scan.name)
    window = mask.shape[0] * size if window_mm is None and size else window_mm
    known = location and window is not None  # windows count from 1: a location 0 is no place below the first
    return {
        "scan": scan.name,
        "tube": scan.tube,
        "location": location,
        "date": scan.date,
        "depth_mm": depth_mm(location, window, tube_angle) if known else None,
        "mm_per_px": size,
        f"window_{'cm2' if size else 'px2'}": int(counted.sum()) * (size**2 / 100 if size else 1),
        **measure(mask, size, cleaning, scan.excluded),
        "qc_predicted_iou": predicted_iou,
        "qc_all_background": int(not (mask & counted).any()),
        "qc_saturated_share": float((scan.image.max(axis=2) == 255)[counted].mean()) if counted.any() else None,
        "qc_root_contrast": root_contrast(scan.image, mask, scan.excluded),
    }


def read_done(roots: Path) -> tuple[list[dict[str, object]], dict[str, object]]:
    """The rows of traits.csv and the settings in segment.json of a folder that `segment` wrote.

    Raises FileNotFoundError, or ValueError that names the file and what it lacks.
    """
    for file in ("segment.json", "traits.csv"):
        if not (roots / file).is_file():
            raise FileNotFoundError(
                f"{shown(roots)} holds no {file}: give the folder that segment wrote (without --out: FOLDER-roots)."
            )
    rows = read_csv(roots / "traits.csv", ("scan", "tube", "date", "mask_sha256"))
    settings = read_json(roots / "segment.json")
    for file, found, wanted in (
        ("traits.csv", rows[0] if rows else {}, ("scan", "tube", "date", "mm_per_px")),
        ("segment.json", settings, ("cleaning", "window_mm", "tube_angle")),
    ):
        if lacking := [name for name in wanted if name not in found]:
            raise ValueError(f"{shown(roots / file)} lacks {lacking[0]}: segment the folder again into another one.")
    try:
        Cleaning(**settings["cleaning"])
    except TypeError:
        raise ValueError(f"{shown(roots / 'segment.json')} holds no cleaning: segment the folder again.") from None
    for row in rows:
        if row["mm_per_px"] is not None:
            checked(f"{shown(roots / 'traits.csv')}: mm_per_px of {row['scan']}", row["mm_per_px"], 0, above=True)
    return rows, settings
