"""Numbers for masks, each under its own name.

Rule for empty masks: where truth and prediction are both empty, every score is 1; where one of them is, 0. So the
precision of a prediction without roots is 1 on soil, and 0 where there are roots; likewise for recall.

SegRoot's masks are drawn thinner than the roots, and its published score belongs to masks dilated by one pixel. Such
scores are made with `dilate(truth)` in the place of the truth, and have "dilated" in their names.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_dilation
from scipy.spatial import cKDTree
from skimage.morphology import skeletonize
from skimage.segmentation import find_boundaries


class Counts(NamedTuple):
    """Pixels of one image: true positive, false positive, false negative, true negative; positive = root."""

    tp: int
    fp: int
    fn: int
    tn: int


DEFINITIONS = {
    "root_iou": "mean over images with roots of the root's IoU",
    "class_mean_iou": "mean over images with roots of (root + soil IoU) / 2; finding no root at all scores about 0.5",
    "pooled_iou": "one root IoU over all pixels of all images",
    "dice": "mean over images with roots of the root's Dice",
    "pooled_dice": "one root Dice over all pixels of all images",
    "soil_false_alarm": "share of the images without roots in which at least one pixel is called root",
}


def count(prediction: np.ndarray, truth: np.ndarray) -> Counts:
    """Compare two bool masks (H, W). Raises ValueError when their shapes differ."""
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction is {prediction.shape} and truth is {truth.shape}: compare masks of one image.")
    prediction, truth = prediction.astype(bool), truth.astype(bool)
    tp = int((prediction & truth).sum())
    fp, fn = int(prediction.sum()) - tp, int(truth.sum()) - tp
    return Counts(tp, fp, fn, prediction.size - tp - fp - fn)


def iou(counts: Counts) -> float:
    """Root IoU (Jaccard index): TP / (TP + FP + FN)."""
    union = counts.tp + counts.fp + counts.fn
    return counts.tp / union if union else 1.0


def dice(counts: Counts) -> float:
    """Root Dice (F1): 2 TP / (2 TP + FP + FN)."""
    total = 2 * counts.tp + counts.fp + counts.fn
    return 2 * counts.tp / total if total else 1.0


def class_mean_iou(counts: Counts) -> float:
    """Mean of root IoU and soil IoU, what most U-Net papers on roots call mIoU."""
    soil = Counts(tp=counts.tn, fp=counts.fn, fn=counts.fp, tn=counts.tp)
    return (iou(counts) + iou(soil)) / 2


def precision(counts: Counts) -> float:
    """The share of the pixels called root that are root: TP / (TP + FP); 1 or 0 by the empty rule when none is."""
    called = counts.tp + counts.fp
    return counts.tp / called if called else float(counts.fn == 0)


def recall(counts: Counts) -> float:
    """The share of the root's pixels that are found: TP / (TP + FN); 1 or 0 by the empty rule when there are none."""
    true = counts.tp + counts.fn
    return counts.tp / true if true else float(counts.fp == 0)


def dilate(mask: np.ndarray) -> np.ndarray:
    """A mask, bool (H, W), grown by one pixel in all eight directions (a 3 x 3 square): the truth of dilated scores."""
    return binary_dilation(mask, np.ones((3, 3), bool))


def boundary_f(prediction: np.ndarray, truth: np.ndarray, tolerance: float = 2.0) -> float:
    """Boundary F-score of two masks, bool (H, W): are the edges in the right place?

    Harmonic mean of the share of the predicted boundary that lies within `tolerance` px of the true one, and of the
    true boundary that lies within it of the predicted one (Csurka et al. 2013). A mask's boundary is its pixels with
    soil above, below, left or right of them; the image border is none. Where a mask has no boundary (no root, or
    nothing else) the score is 1 when both masks are equal, else 0. Raises ValueError for a tolerance below 0 and for
    masks of different shapes.
    """
    if tolerance < 0:
        raise ValueError(f"tolerance is {tolerance} px: it must be 0 or more.")
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction is {prediction.shape} and truth is {truth.shape}: compare masks of one image.")
    found, true = (np.argwhere(find_boundaries(mask, connectivity=1, mode="inner")) for mask in (prediction, truth))
    if not len(found) or not len(true):
        return float((prediction == truth).all())
    near, covered = (
        float((cKDTree(there).query(here)[0] <= tolerance).mean()) for here, there in ((found, true), (true, found))
    )
    return 2 * near * covered / (near + covered) if near + covered else 0.0


def cl_dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Centre-line Dice of two masks, bool (H, W): are the roots traced, whatever their drawn width?

    Harmonic mean of the share of the predicted skeleton that lies in the truth and of the true skeleton that lies in
    the prediction. 1 when both masks are empty, 0 when one is. (Shit et al. 2021, equations 1 to 3.)
    """
    if not prediction.any() or not truth.any():
        return float(prediction.any() == truth.any())
    # Lee's thinning: the default one erases a diagonal bar of even width from end to end.
    found, true = (skeletonize(mask, method="lee") > 0 for mask in (prediction, truth))
    precision, sensitivity = truth[found].mean(), prediction[true].mean()
    return float(2 * precision * sensitivity / (precision + sensitivity)) if precision + sensitivity else 0.0


def summarise(counts: Sequence[Counts]) -> dict[str, float]:
    """All of `DEFINITIONS` over images, plus how many images have roots and how many have none.

    Images without roots are scored apart, by false alarms only (and in the pooled figures, which see every pixel):
    their IoU is 0 or 1 and would drown the others. Means over no image are NaN. Raises ValueError for no image at all.
    """
    if not counts:
        raise ValueError("there is no image to score: check the split and the limit.")
    rooted = [c for c in counts if c.tp + c.fn]
    soil = [c for c in counts if not c.tp + c.fn]
    pooled = Counts(*np.sum(counts, axis=0).tolist())

    def mean(values: list[float]) -> float:
        return float(np.mean(values)) if values else float("nan")

    return {
        "root_iou": mean([iou(c) for c in rooted]),
        "class_mean_iou": mean([class_mean_iou(c) for c in rooted]),
        "dice": mean([dice(c) for c in rooted]),
        "pooled_iou": iou(pooled),
        "pooled_dice": dice(pooled),
        "soil_false_alarm": mean([float(c.fp > 0) for c in soil]),
        "images_with_roots": len(rooted),
        "images_without_roots": len(soil),
    }
