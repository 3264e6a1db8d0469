"""Checks against silent failure: each answers one question that a score alone does not.

What cannot be right raises ValueError; what may be right once in a while only warns.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from rootsam_lib.evaluation.protocols import MaskPredictor
from rootsam_lib.metrics import count, iou
from rootsam_lib.prompts import Prompts

Weights = Mapping[str, Tensor] | str | Path


def check_prompts_move(predict: MaskPredictor, image: np.ndarray, prompts: Prompts, least: float = 0.2) -> float:
    """Prompts that move must move the mask: ask again with all points turned by 180° about the image's middle.

    Returns how much of the mask changed: 1 - IoU of the two masks. Raises ValueError when that is below `least`, and
    without points.
    """
    if not (prompts.labels >= 0).any():
        raise ValueError("there is no point to move: give at least one.")
    far = np.array([image.shape[1] - 1, image.shape[0] - 1], np.float32)
    before, after = predict(image, prompts), predict(image, prompts._replace(points=far - prompts.points))
    changed = 1 - iou(count(after, before))
    if changed < least:
        raise ValueError(
            f"moving all {len(prompts.labels)} points changed {changed:.1%} of the mask: the model ignores its "
            "prompts; train longer, with selection and with more corrections (correction_share)."
        )
    return changed


def check_click_selects(
    predict: MaskPredictor, image: np.ndarray, first: Prompts, second: Prompts, most: float = 0.5
) -> tuple[np.ndarray, np.ndarray, float]:
    """Clicks on two roots must select two masks: both answers, bool (H, W), and their IoU.

    Raises ValueError where that is above `most`: a model that ignores its prompts answers both alike.
    """
    one, other = predict(image, first), predict(image, second)
    same = iou(count(one, other))
    if same > most:
        raise ValueError(
            f"clicks on two roots gave masks of IoU {same:.2f}: the model ignores its prompts; train it with "
            "selection (StageConfig), and longer."
        )
    return one, other, same


def check_control(row: Mapping[str, Sequence[float]], least: float = 0.05) -> float:
    """Points on the wanted roots must do better than points on others: `true_minus_moved` of the table "control".

    Raises ValueError where that is below `least`: whatever its other scores, the model ignores its prompts.
    """
    gain = row["true_minus_moved"][0]
    if not gain >= least:
        raise ValueError(
            f"points on the wanted roots are worth {gain:.2f} IoU more than points on others: the model ignores its "
            "prompts; train it with selection (StageConfig), and longer."
        )
    return gain


def expect(found: bool, otherwise: str, as_written: bool) -> None:
    """What a lesson found must hold where it runs as it was written, else AssertionError; other scans and other models
    may well answer otherwise, which is a finding too, and only warns."""
    if not found and as_written:
        raise AssertionError(otherwise)
    if not found:
        warnings.warn(f"other than in the lesson as it was written: {otherwise}.", stacklevel=2)


def check_background(mask: np.ndarray, name: str) -> None:
    """Warn when a mask, bool (H, W), holds no root at all."""
    if not mask.any():
        looked = "look at the image, and if it has roots, at the model's training"
        warnings.warn(f"{name}: no root at all was found; {looked}.", stacklevel=2)


def check_trained(before: Weights, after: Weights, parts: tuple[str, ...] = ("conv_s0", "conv_s1")) -> dict[str, float]:
    """Training must change these parts: the greatest change of a weight, by part.

    before, after: state dicts, or weights files. conv_s0 and conv_s1 belong to the mask decoder but run beside the
    frozen encoder: where that runs without gradient, or its outputs are kept, they silently stay as they were.
    Raises ValueError for a part that did not change, is not there or has another shape.
    """
    states = [load_file(given) if isinstance(given, (str, Path)) else given for given in (before, after)]
    changes = {}
    for part in parts:
        names = [name for name in states[0] if part in name.split(".")]
        if not names or any(name not in states[1] or states[1][name].shape != states[0][name].shape for name in names):
            raise ValueError(f"{part} is not in both sets of weights: compare two states of one model.")
        differences = [(states[1][name].float() - states[0][name].float()).abs().max() for name in names]
        changes[part] = float(max(differences))
        if not changes[part] > 0:
            raise ValueError(f"{part} did not change in training: run it with gradient, outside of what is kept.")
    return changes
