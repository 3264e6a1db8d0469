"""The pictures of correction: what a session's clicks changed, and what simulated clicks are worth."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from rootsam_lib.data.scans import Scan
from rootsam_lib.drawing import COLOURS, NAMES, error_view, overlay
from rootsam_lib.evaluation.bootstrap import interval, tube_weights
from rootsam_lib.lessons.figures import draw_prompts, error_legend, panels
from rootsam_lib.metrics import dilate
from rootsam_lib.predictor_corrector import Click
from rootsam_lib.prompts import Prompts

ADDED, TAKEN = "#00e5ff", "#ff9d00"  # cyan and orange differ in every kind of colour vision, and both stand out on soil


def close_up(points: np.ndarray, shape: tuple[int, int], margin: int = 40, least: int = 320) -> tuple[slice, slice]:
    """The square window (rows, columns) of an image that holds all points (N, 2), with `margin` px around them.

    At least `least` px a side, moved rather than cut at the image's edge; the whole image where it is smaller.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    side = int(max(least, (high - low).max() + 2 * margin))
    starts = [
        int(np.clip((a + b) / 2 - side / 2, 0, max(0, length - side)))
        for a, b, length in zip(low[::-1], high[::-1], shape, strict=True)
    ]
    return slice(starts[0], starts[0] + side), slice(starts[1], starts[1] + side)


def session_panels(scan: Scan, before: np.ndarray, after: np.ndarray, clicks: Sequence[Click]) -> Figure:
    """The first mask, the mask after the clicks, and what changed, close up around the clicks (all, without any)."""
    given = np.array([click[:3] for click in clicks]).reshape(-1, 3)
    window = close_up(given[:, :2], scan.mask.shape) if len(given) else (slice(None), slice(None))
    image, truth, first, last = (array[window] for array in (scan.image, scan.mask, before, after))
    titles = ["first mask", f"after {len(given)} clicks", "added (cyan), taken off (orange)"]
    figure, axes = panels(titles, size=4.2)
    axes[0].imshow(error_view(image, first, truth))
    axes[1].imshow(error_view(image, last, truth))
    changed = overlay(image, dilate(last & ~first), ADDED, 1)
    axes[2].imshow(overlay(changed, dilate(first & ~last), TAKEN, 1))
    if len(given):
        corner = window[1].start, window[0].start
        for ax in axes[1:]:
            draw_prompts(ax, Prompts(given[:, :2] - np.array(corner), given[:, 2]))
    error_legend(figure)
    return figure


def annotator_curves(per_scan: Mapping[str, Sequence[Mapping]], title: str, seed: int = 0) -> Figure:
    """Root IoU, centre-line Dice and length error by simulated clicks: mean over scans, with its 95 % interval.

    per_scan: the rows of `simulated_annotator.annotate` by model; the interval draws whole tubes.
    """
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4))
    labels = {"root_iou": "root IoU", "cl_dice": "centre-line Dice", "length": "error of root length (share)"}
    for (name, rows), style in zip(per_scan.items(), ("--", "-", ":", "-."), strict=False):
        weights = tube_weights([row["tube"] for row in rows], np.random.default_rng(seed))
        for ax, (key, label) in zip(axes, labels.items(), strict=True):
            values = np.array([row[key] for row in rows], float)
            if key == "length":
                true = np.array([[max(row["true_length"], 1)] for row in rows])
                values = np.abs(values - true) / true
            samples = (weights @ values) / weights.sum(axis=1, keepdims=True)
            low, high = zip(*(interval(column) for column in samples.T), strict=True)
            colour = COLOURS.get(name, "0.3")
            ax.fill_between(range(len(low)), low, high, color=colour, alpha=0.18, linewidth=0)
            ax.plot(values.mean(axis=0), style, color=colour, label=NAMES.get(name, name))
            ax.set(xlabel="clicks", ylabel=label)
    for ax in axes:
        ax.set_ylim(bottom=0)
    axes[0].legend(fontsize=9)
    figure.suptitle(f"{title}; bands: 95 % intervals, tubes drawn anew")
    return figure
