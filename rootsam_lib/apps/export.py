"""Masks and clicks in other programs' files: RootPainter's annotations, COCO's run lengths, a folder dataset.

A RootPainter annotation (Smith et al. 2022) is a PNG of the image's size: red where a person marked root, green where
they marked soil, transparent elsewhere.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rootsam_lib import checked, checked_mask
from rootsam_lib.data.images import open_image
from rootsam_lib.data.scans import Scan, check_scans, parse_tube
from rootsam_lib.predictor import Click
from rootsam_lib.prompts import ROOT
from rootsam_lib.results import (
    check_names,
    claim_folder,
    file_hash,
    read_json,
    shown,
    write_image,
    write_json,
    write_mask,
)

PARTS = ("", "train", "valid", "test")
RED, GREEN = (255, 0, 0, 180), (0, 255, 0, 180)


# --- RootPainter


def to_rootpainter(root: np.ndarray, soil: np.ndarray) -> np.ndarray:
    """An annotation, uint8 (H, W, 4), from what is known to be root and known to be soil, both bool (H, W).

    Raises ValueError where a pixel is both.
    """
    if (checked_mask(root, "root") & checked_mask(soil, "soil")).any():
        raise ValueError(
            f"{int((root & soil).sum())} pixels are root and soil at once: an annotation says one of both."
        )
    painted = np.zeros((*root.shape, 4), np.uint8)
    painted[root], painted[soil] = RED, GREEN
    return painted


def paint_clicks(clicks: Sequence[Click], shape: tuple[int, int], radius: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Clicks as brush dabs: (root, soil), each bool (H, W). Where two overlap the later one stays."""
    root, soil = np.zeros(shape, bool), np.zeros(shape, bool)
    y, x = np.ogrid[: shape[0], : shape[1]]
    for click in clicks:
        dab = (x - click[0]) ** 2 + (y - click[1]) ** 2 <= radius**2
        (root if click[2] == ROOT else soil)[dab] = True
        (soil if click[2] == ROOT else root)[dab] = False
    return root, soil


def from_rootpainter(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read an annotation PNG: (root, soil), each bool (H, W); pixels in neither were left open.

    Raises ValueError for a file without transparency, or one that is painted in other colours.
    """
    opened = open_image(Path(path))
    if opened.mode not in ("RGBA", "P", "PA", "LA"):
        raise ValueError(f"{shown(path)} has no transparency: a RootPainter annotation is transparent where unpainted.")
    pixels = np.asarray(opened.convert("RGBA")).astype(int)
    painted = pixels[..., 3] > 0
    root = painted & (pixels[..., 0] > 127) & (pixels[..., 1] < 128)
    soil = painted & (pixels[..., 1] > 127) & (pixels[..., 0] < 128)
    if (painted & ~root & ~soil).any():
        raise ValueError(
            f"{shown(path)} is painted in other colours than red (root) and green (soil): export it again."
        )
    return root, soil


# --- COCO


def to_rle(mask: np.ndarray) -> dict[str, list[int]]:
    """A mask, bool (H, W), as COCO's uncompressed run lengths: {"size": [H, W], "counts": [...]}.

    Pixels are read column by column; counts alternate between soil and root and begin with soil, 0 where the first
    pixel is root.
    """
    pixels = checked_mask(mask).ravel(order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff([0, *changes.tolist(), pixels.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if pixels.size and pixels[0] else counts}


def from_rle(rle: Mapping) -> np.ndarray:
    """The mask, bool (H, W), of uncompressed run lengths. Raises ValueError for others, or where they do not fill the
    image."""
    try:
        if isinstance(rle["counts"], (str, bytes)):
            raise ValueError("counts is text, COCO's compressed run lengths: decode it by pycocotools first.")
        if len(rle["size"]) != 2:
            raise ValueError(f"size is {rle['size']!r}: give height and width.")
        height, width = (checked("size", side, 0, whole=True) for side in rle["size"])
        counts = [checked("counts", run, 0, whole=True) for run in rle["counts"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"these are no run lengths ({type(error).__name__}): give size and counts.") from None
    if sum(counts) != height * width:
        raise ValueError(f"run lengths cover {sum(counts)} pixels of an image of {height} × {width}: damaged.")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape((height, width), order="F")


# --- Back into training


def export_folder(folder: str | Path, scans: Sequence[Scan], masks: Sequence[np.ndarray], part: str = "") -> Path:
    """Write images and masks as a folder dataset, which `datasets.load_parts("folder", ...)` and the lessons read.

    part: "train", "valid" or "test" puts them into that part of the split; "" leaves the split to the reader. A scan
    whose name does not tell its tube gets it in front, so that the split keeps tubes together. The resolution goes into
    the image's own entry. A mask that was changed there since it was written, as by hand, is kept under another name,
    with a warning. Returns the folder of the part.
    Raises ValueError before anything is written: for another part, names that repeat or cannot be files' names, a mask
    of another size than its image, and a folder that holds files which this function did not write.
    """
    folder = Path(folder).expanduser()
    if part not in PARTS:
        raise ValueError(f"part is {part!r}: choose one of {', '.join(map(repr, PARTS))}.")
    check_scans(scans)
    if not isinstance(masks, Sequence) or len(masks) != len(scans):
        number = len(masks) if isinstance(masks, Sequence) else "no list of"
        raise ValueError(f"{len(scans)} scans and {number} masks are given: give one mask a scan.")
    names = []
    for scan, mask in zip(scans, masks, strict=True):
        checked_mask(mask, f"mask of {scan.name}", one=True)
        if mask.shape != scan.image.shape[:2]:
            raise ValueError(
                f"{scan.name}: the mask is {mask.dtype} {mask.shape}, but must be bool and of the image's size."
            )
        told = parse_tube(scan.name) == scan.tube or not parse_tube(f"{scan.tube}_")
        names.append(scan.name if told else f"{scan.tube}_{scan.name}")
    check_names(names)
    about, note = {"made_by": "rootsam_lib.apps.export"}, folder / "export.json"
    lock = claim_folder(folder, note.name, about)
    try:
        written = read_json(note).get("masks", {})  # the hash of each, as it was written last
        for scan, mask, name in zip(scans, masks, names, strict=True):
            file = folder / part / "masks" / f"{name}.png"
            key = file.relative_to(folder).as_posix()
            if changed := write_mask(file, mask, written.get(key)):
                warnings.warn(f"{name}: {changed}", stacklevel=2)
            written[key] = file_hash(file)
            dpi = {"dpi": (25.4 / scan.mm_per_px,) * 2} if scan.mm_per_px else {}
            write_image(folder / part / "images" / file.name, scan.image, **dpi)
        write_json(note, about | {"masks": written})
    finally:
        lock.release()
    return folder / part
