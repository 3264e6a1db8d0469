"""Masks and clicks in other programs' files: PNG, RootPainter's annotations, COCO's run lengths, a folder dataset.

A RootPainter annotation (Smith et al. 2022) is a PNG of the image's size: red where a person marked root, green where
they marked soil, transparent elsewhere.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt, label

from rootsam_lib.data.images import open_image
from rootsam_lib.data.scans import Scan, parse_tube
from rootsam_lib.predictor_corrector import Click
from rootsam_lib.prompts import ROOT, SOIL
from rootsam_lib.results import shown, write_json

RED, GREEN = (255, 0, 0, 180), (0, 255, 0, 180)


def save_png(path: str | Path, pixels: np.ndarray) -> Path:
    """Write a mask, bool (H, W), as 0 and 255, or any uint8 image, as PNG, making its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels).save(path)
    return path


# --- RootPainter


def to_rootpainter(root: np.ndarray, soil: np.ndarray) -> np.ndarray:
    """An annotation, uint8 (H, W, 4), from what is known to be root and known to be soil, both bool (H, W).

    Raises ValueError where a pixel is both.
    """
    if (root & soil).any():
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


def annotation_clicks(root: np.ndarray, soil: np.ndarray) -> list[Click]:
    """One click for every painted piece, at its pixel deepest inside: how a foreign annotation starts a session."""
    clicks = []
    for painted, kind in ((root, ROOT), (soil, SOIL)):
        pieces, count = label(painted, np.ones((3, 3), int))
        depth = distance_transform_edt(np.pad(painted, 1))[1:-1, 1:-1]
        for piece in range(1, count + 1):
            row, column = np.unravel_index(int(np.where(pieces == piece, depth, 0).argmax()), depth.shape)
            clicks.append(Click(int(column), int(row), kind))
    return clicks


# --- COCO


def to_rle(mask: np.ndarray) -> dict[str, list[int]]:
    """A mask, bool (H, W), as COCO's uncompressed run lengths: {"size": [H, W], "counts": [...]}.

    Pixels are read column by column; counts alternate between soil and root and begin with soil, 0 where the first
    pixel is root.
    """
    pixels = mask.ravel(order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff([0, *changes.tolist(), pixels.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if pixels.size and pixels[0] else counts}


def from_rle(rle: Mapping) -> np.ndarray:
    """The mask, bool (H, W), of uncompressed run lengths. Raises ValueError where they do not fill the image."""
    height, width = rle["size"]
    counts = rle["counts"]
    if isinstance(counts, (str, bytes)):
        raise ValueError("these run lengths are compressed to a string: decode them with pycocotools first.")
    if sum(counts) != height * width:
        raise ValueError(f"run lengths cover {sum(counts)} pixels of an image of {height} × {width}: damaged.")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape((height, width), order="F")


def write_coco(path: str | Path, masks: Mapping[str, np.ndarray]) -> Path:
    """COCO's JSON with one annotation, all roots of it, per image; masks bool (H, W) by file name."""
    images, annotations = [], []
    for number, (name, mask) in enumerate(masks.items(), start=1):
        height, width = mask.shape
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = [0, 0, 0, 0]
        if rows.size:
            box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        entry = {"id": number, "image_id": number, "category_id": 1, "iscrowd": 1, "area": int(mask.sum())}
        annotations.append(entry | {"bbox": [int(value) for value in box], "segmentation": to_rle(mask)})
    categories = [{"id": 1, "name": "root"}]
    return write_json(path, {"images": images, "annotations": annotations, "categories": categories})


def read_coco(path: str | Path) -> dict[str, np.ndarray]:
    """Masks, bool (H, W), by file name; an image's annotations are laid over each other.

    Raises ValueError for a file that is not of this form; polygons are not read.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        names = {image["id"]: image["file_name"] for image in content["images"]}
        masks = {image["file_name"]: np.zeros((image["height"], image["width"]), bool) for image in content["images"]}
        for entry in content["annotations"]:
            masks[names[entry["image_id"]]] |= from_rle(entry["segmentation"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{shown(path)} is not COCO with run lengths ({type(error).__name__}: {error}): export masks as RLE."
        ) from None
    return masks


# --- Back into training


def export_folder(folder: str | Path, scans: Sequence[Scan], masks: Sequence[np.ndarray], part: str = "") -> Path:
    """Write images and masks as a folder dataset, which `datasets.load_parts("folder", ...)` and the lessons read.

    part: "train", "valid" or "test" puts them into that part of the split; "" leaves the split to the reader. A scan
    whose name does not tell its tube gets it in front, so that the split keeps tubes together. The resolution goes into
    the image's own entry.
    """
    folder = Path(folder) / part
    for scan, mask in zip(scans, masks, strict=True):
        name = scan.name if parse_tube(scan.name) == scan.tube or not parse_tube(f"{scan.tube}_") else ""
        name = name or f"{scan.tube}_{scan.name}"
        save_png(folder / "masks" / f"{name}.png", mask)
        (folder / "images").mkdir(parents=True, exist_ok=True)
        dpi = {"dpi": (25.4 / scan.mm_per_px,) * 2} if scan.mm_per_px else {}
        Image.fromarray(scan.image).save(folder / "images" / f"{name}.png", **dpi)
    return folder
