"""Checks against silent failure: each answers one question that a score alone does not.

What cannot be right raises `Suspicious`; what may be right once in a while only warns, with `SuspicionWarning`.
"""

import copy
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from rootsam_lib.losses import focal_tversky_loss
from rootsam_lib.metrics import count, iou
from rootsam_lib.model import RootSAM, encoder_size, resize_logits
from rootsam_lib.prompts import Prompts

Predictor = Callable[[np.ndarray, Prompts], np.ndarray]  # image (H, W, 3) and points to a mask, bool (H, W)
Weights = Mapping[str, Tensor] | str | Path


class Suspicious(ValueError):
    """Something ran without an error and cannot be right."""


class SuspicionWarning(UserWarning):
    """Something ran without an error and is probably not right."""


def check_prompts_move(predict: Predictor, image: np.ndarray, prompts: Prompts, least: float = 0.01) -> float:
    """Prompts that move must move the mask: ask again with all points turned by 180° about the image's middle.

    Returns how much of the mask changed: 1 - IoU of the two masks. Raises Suspicious when that is below `least`, and
    ValueError without points.
    """
    if not (prompts.labels >= 0).any():
        raise ValueError("there is no point to move: give at least one.")
    far = np.array([image.shape[1] - 1, image.shape[0] - 1], np.float32)
    before, after = predict(image, prompts), predict(image, prompts._replace(points=far - prompts.points))
    changed = 1 - iou(count(after, before))
    if changed < least:
        raise Suspicious(
            f"moving all {len(prompts.labels)} points changed {changed:.1%} of the mask: the model ignores its "
            "prompts; train with points in more steps (lower no_prompt_share) and more corrections (correction_share)."
        )
    return changed


def check_background(mask: np.ndarray, name: str) -> bool:
    """Whether a mask, bool (H, W), holds any root; warns with SuspicionWarning when it does not."""
    if mask.any():
        return True
    warnings.warn(
        f"{name}: no root at all was found; look at the image, and if it has roots, at the model's training.",
        SuspicionWarning,
        stacklevel=2,
    )
    return False


def check_trained(before: Weights, after: Weights, parts: tuple[str, ...] = ("conv_s0", "conv_s1")) -> dict[str, float]:
    """Training must change these parts: the greatest change of a weight, by part.

    before, after: state dicts, or weights files. conv_s0 and conv_s1 belong to the mask decoder but run beside the
    frozen encoder: where that runs without gradient, or its outputs are kept, they silently stay as they were.
    Raises Suspicious for a part that did not change, ValueError for one that is not there or has another shape.
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
            raise Suspicious(f"{part} did not change in training: run it with gradient, outside of what is kept.")
    return changes


def check_overfit(
    model: RootSAM,
    image: np.ndarray,
    mask: np.ndarray,
    input_scale: float = 2.0,
    target: float = 0.9,
    steps: int = 200,
    lr: float = 4e-3,
) -> list[float]:
    """A model that can learn at all can learn one patch by heart: train a copy on it, without prompts or augmentation.

    image: uint8 (S, S, 3); mask: bool (S, S), with roots; 256 px are enough, and take seconds. input_scale: thin roots
    need finer logits than one per 4 px, or no mask of them reaches the target.
    Returns the root IoU before every step, up to the first that reaches `target`. Raises Suspicious when none does:
    then gradient, loss or mask are broken. ValueError for a mask without roots. The model itself does not change.
    """
    if not mask.any():
        raise ValueError("the mask has no root, so there is nothing to learn by heart: take another patch.")
    learner = copy.deepcopy(model).train()
    features = learner.encode(image[None], encoder_size(len(image), input_scale))
    truth = torch.from_numpy(mask[None, None]).to(learner.device).float()
    optimizer = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
    reached = []
    for _ in range(steps):
        logits = resize_logits(learner.decode(features).logits, mask.shape)
        reached.append(iou(count((logits[0, 0] > 0).cpu().numpy(), mask)))
        if reached[-1] >= target:
            return reached
        loss = focal_tversky_loss(logits, truth, 0.5, 0.5, 1.0) + F.binary_cross_entropy_with_logits(logits, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    raise Suspicious(
        f"after {steps} steps on one single patch root IoU is {max(reached):.2f}, not {target}: the model cannot "
        "learn; check that the trained parts get gradients, and that image and mask belong together."
    )
