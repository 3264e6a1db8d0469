"""Numbers for masks, each under its own name.

Rule for empty masks: where truth and prediction are both empty, every score is 1; where one of them is, 0. So the
precision of a prediction without roots is 1 on soil, and 0 where there are roots; likewise for recall.

SegRoot's masks are drawn thinner than the roots, and its published score belongs to masks dilated by one pixel. Such
scores are made with `dilate(truth)` in the place of the truth, and have "dilated" in their names.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from scipy.ndimage import label
from skimage.morphology import skeletonize
from torch import Tensor

from rootsam_lib import checked_mask
from rootsam_lib.prompts import edt_map

EIGHT = np.ones((3, 3), int)  # pixels that touch at a corner belong to one root
MIN_ROOT_PX = 20  # a smaller piece is noise of a mask's drawing, and no root of its own


class Counts(NamedTuple):
    """Pixels: true positive, false positive, false negative, true negative; positive = root.

    Whole numbers for one image, arrays or tensors (...,) for several.
    """

    tp: int | np.ndarray | Tensor
    fp: int | np.ndarray | Tensor
    fn: int | np.ndarray | Tensor
    tn: int | np.ndarray | Tensor


def count(prediction: np.ndarray | Tensor, truth: np.ndarray | Tensor) -> Counts:
    """Compare masks, bool (..., H, W), arrays or tensors, image by image. Every score below takes the result.

    Raises ValueError when their shapes differ, or when they are no masks.
    """
    _check_pair(prediction, truth)
    tp, called, true = (mask.sum((-2, -1)) for mask in (prediction & truth, prediction, truth))
    if prediction.ndim == 2:
        tp, called, true = int(tp), int(called), int(true)
    pixels = prediction.shape[-2] * prediction.shape[-1]
    return Counts(tp, called - tp, true - tp, pixels - called - true + tp)


def _check_pair(prediction: np.ndarray | Tensor, truth: np.ndarray | Tensor, one: bool = False) -> None:
    """Raises ValueError when two masks differ in shape, or when they are no masks; one: or when they are several."""
    if checked_mask(prediction, "prediction", one).shape != checked_mask(truth, "truth", one).shape or truth.ndim < 2:
        shapes = f"prediction is {tuple(prediction.shape)} and truth is {tuple(truth.shape)}"
        raise ValueError(f"{shapes}: compare masks of one image.")


def _share(part, whole, opposite=0):
    """part / whole; where the whole is empty it is 1 if the opposite is empty too, else 0."""
    empty = whole == 0
    return (part + (empty & (opposite == 0))) / (whole + empty)


def iou(counts: Counts) -> float | np.ndarray | Tensor:
    """Root IoU (Jaccard index): TP / (TP + FP + FN)."""
    return _share(counts.tp, counts.tp + counts.fp + counts.fn)


def dice(counts: Counts) -> float | np.ndarray | Tensor:
    """Root Dice (F1): 2 TP / (2 TP + FP + FN)."""
    return _share(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn)


def class_mean_iou(counts: Counts) -> float | np.ndarray | Tensor:
    """Mean of root IoU and soil IoU, what most U-Net papers on roots call mIoU."""
    soil = Counts(tp=counts.tn, fp=counts.fn, fn=counts.fp, tn=counts.tp)
    return (iou(counts) + iou(soil)) / 2


def precision(counts: Counts) -> float | np.ndarray | Tensor:
    """The share of the pixels called root that are root: TP / (TP + FP); 1 or 0 by the empty rule when none is."""
    return _share(counts.tp, counts.tp + counts.fp, counts.fn)


def recall(counts: Counts) -> float | np.ndarray | Tensor:
    """The share of the root's pixels that are found: TP / (TP + FN); 1 or 0 by the empty rule when there are none."""
    return _share(counts.tp, counts.tp + counts.fn, counts.fp)


def dilate(mask: np.ndarray, by: int = 1) -> np.ndarray:
    """A mask, bool (H, W), grown by `by` px in all eight directions (a square); by one: the truth of dilated scores.

    Raises ValueError for several masks at once, as all below do.
    """
    return cv2.dilate(checked_mask(mask, one=True).astype(np.uint8), np.ones((2 * by + 1, 2 * by + 1), np.uint8)) > 0


def thinned(mask: np.ndarray) -> np.ndarray:
    """The centre lines of a mask, both bool (H, W), one pixel wide: Lee et al. 1994.

    Not scikit-image's default (Zhang & Suen 1984), which erases a diagonal bar of even width from end to end.
    """
    return skeletonize(checked_mask(mask, one=True), method="lee") > 0


def root_widths(mask: np.ndarray) -> np.ndarray:
    """How wide a mask, bool (H, W), is along its centre lines: twice their distance to soil, in px, float (N,)."""
    return 2 * edt_map(mask)[thinned(mask)]


def cl_dice(
    prediction: np.ndarray, truth: np.ndarray, drawn: np.ndarray | None = None, line: np.ndarray | None = None
) -> float:
    """Centre-line Dice of two masks, bool (H, W): are the roots traced, whatever their drawn width?

    Harmonic mean of the share of the predicted skeleton that lies in the truth and of the true skeleton that lies in
    the prediction. 1 when both masks are empty, 0 when one is. (Shit et al. 2021, equations 1 to 3.)
    drawn, line: both masks' centre lines (`thinned`), where they are known already.
    """
    _check_pair(prediction, truth, one=True)
    if not prediction.any() or not truth.any():
        return float(prediction.any() == truth.any())
    drawn, line = (thinned(of) if known is None else known for of, known in ((prediction, drawn), (truth, line)))
    inside, traced = truth[drawn].mean(), prediction[line].mean()
    return float(2 * inside * traced / (inside + traced)) if inside + traced else 0.0


def label_roots(mask: np.ndarray, least: int = MIN_ROOT_PX) -> tuple[np.ndarray, int]:
    """The single roots of a mask, bool (H, W): their numbers 1, 2, ... int32 (H, W), 0 elsewhere, and how many.

    A root is what hangs together, corners included: roots that touch are one. Pieces of fewer than `least` px are none.
    """
    pieces, number = label(checked_mask(mask, one=True), EIGHT)
    kept = np.bincount(pieces.ravel(), minlength=number + 1) >= least
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0).astype(np.int32)[pieces], int(kept.sum())


def betti0_error(prediction: np.ndarray, truth: np.ndarray) -> int:
    """How far the number of pieces is off: |pieces of the prediction - pieces of the truth|, masks bool (H, W).

    Pieces of any size count, and touch at corners: the error of the Betti number 0 (Hu et al. 2019).
    """
    _check_pair(prediction, truth, one=True)
    return abs(label(prediction, EIGHT)[1] - label(truth, EIGHT)[1])


def broken_pieces(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """In how many pieces each true root was found: int (roots,); 0 is missed, 1 is whole, more is broken.

    A piece belongs to every root of `label_roots` that it shares a pixel with, so it need not lie within the truth.
    """
    _check_pair(prediction, truth, one=True)
    roots, number = label_roots(truth)
    both = np.stack([roots, label(prediction, EIGHT)[0]])[:, (roots > 0) & prediction]
    return np.bincount(np.unique(both, axis=1)[0], minlength=number + 1)[1:]


def summarise(counts: Sequence[Counts]) -> dict[str, float]:
    """What training watches: "root_iou", the mean over images with roots (NaN without any), and "pooled_dice", over all
    pixels. Scores that are reported, with their intervals, come from `evaluation.protocols`.

    Raises ValueError for no image.
    """
    if not counts:
        raise ValueError("there is no image to score: check the split and the limit.")
    rooted = [iou(c) for c in counts if c.tp + c.fn]
    pooled = Counts(*np.sum(counts, axis=0).tolist())
    return {"root_iou": float(np.mean(rooted)) if rooted else float("nan"), "pooled_dice": dice(pooled)}
