"""Numbers for masks, each under its own name.

Rule for empty masks: where truth and prediction are both empty, IoU and Dice are 1; where one of them is, 0.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from skimage.morphology import skeletonize


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


def cl_dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Centre-line Dice of two masks, bool (H, W): are the roots traced, whatever their drawn width?

    Harmonic mean of the share of the predicted skeleton that lies in the truth and of the true skeleton that lies in
    the prediction. 1 when both masks are empty, 0 when one is. (Shit et al. 2021, equations 1 to 3.)
    """
    if not prediction.any() or not truth.any():
        return float(prediction.any() == truth.any())
    found, true = skeletonize(prediction), skeletonize(truth)
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
