"""The hybrid loss: focal Tversky (few root pixels, much soil) + boundary (sharp edges on fine roots) + cross entropy.

All losses take logits and work in fp32, also under autocast. They are finite, with finite gradients, for empty, full
and perfect masks.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rootsam_lib import checked_mask
from rootsam_lib.prompts import edt_map


class HybridLoss(NamedTuple):
    """The weighted sum that is minimised, and its terms (scalars)."""

    total: Tensor
    tversky: Tensor
    boundary: Tensor
    cross_entropy: Tensor


def tversky_index(
    probability: Tensor, truth: Tensor, fn_weight: float = 0.7, fp_weight: float = 0.3, smooth: float = 1.0
) -> Tensor:
    """(TP + s) / (TP + fn_weight FN + fp_weight FP + s), per image.

    probability, truth: (B, 1, H, W), sums over H and W. Returns (B,). With both weights 0.5 it is the Dice index.
    Papers and libraries swap the letters alpha and beta, hence the names. (Salehi et al. 2017, equation 3.) Raises
    ValueError for two shapes, and for a truth of 8 bits. (Values are not looked at: a GPU would have to be waited for.)
    """
    _check_shapes(probability, truth)
    axes = (1, 2, 3)
    true_positive = (probability * truth).sum(axes)
    false_negative = ((1 - probability) * truth).sum(axes)
    false_positive = (probability * (1 - truth)).sum(axes)
    return (true_positive + smooth) / (true_positive + fn_weight * false_negative + fp_weight * false_positive + smooth)


def _check_shapes(answer: Tensor, truth: Tensor) -> None:
    """Raises ValueError for two shapes, which would be stretched to one another without a word."""
    if not (isinstance(answer, Tensor) and isinstance(truth, Tensor)):
        raise ValueError(f"the answer is a {type(answer).__name__}, the truth a {type(truth).__name__}: give tensors.")
    if truth.dtype == torch.uint8:  # of a file, 0 and 255
        raise ValueError("the truth is of 8 bits, in which root may be 255: give bool, as mask > 127.")
    if answer.ndim != 4 or answer.shape != truth.shape:
        shapes = f"the answer is {tuple(answer.shape)} and the truth {tuple(truth.shape)}"
        raise ValueError(f"{shapes}: resize one, to (B, 1, H, W) both.")


def focal_tversky_loss(
    logits: Tensor,
    truth: Tensor,
    fn_weight: float = 0.7,
    fp_weight: float = 0.3,
    exponent: float = 0.75,
    smooth: float = 1.0,
) -> Tensor:
    """Mean over images of (1 - Tversky index) ** exponent.

    logits, truth: (B, 1, H, W). exponent is 1 / gamma of Abraham & Khan 2019 (gamma = 4/3). Without the clamp the
    power's gradient is infinite at a perfect mask, and NaN after the chain rule.
    """
    _check_shapes(logits, truth)
    with torch.autocast(logits.device.type, enabled=False):
        index = tversky_index(logits.float().sigmoid(), truth.float(), fn_weight, fp_weight, smooth)
        return (1 - index).clamp_min(1e-6).pow(exponent).mean()


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Distance in px to the root's boundary: positive on soil, negative inside a root; float32 (H, W).

    An empty or a full mask has no boundary and gives 0 everywhere. Inside, the distance to the nearest soil pixel is
    kept whole: subtracting 1, as the published code does, would leave roots of one pixel's width without weight.
    (Kervadec et al. 2019, section 2.)
    """
    if not checked_mask(mask).any() or mask.all():
        return np.zeros(mask.shape, np.float32)
    return edt_map(~mask) - edt_map(mask)


def boundary_loss(logits: Tensor, distance: Tensor) -> Tensor:
    """Mean over pixels of signed distance x probability, the distance in units of the image's longer side.

    logits: (B, 1, H, W); distance: (B, 1, H, W) in px from `signed_distance` of the target. Dividing by the
    side makes the weight carry over from 512 to 1024 px. Negative when roots are found: never use it alone, and never
    let a scheduler watch it with a relative threshold. (Kervadec et al. 2019, equation 5.)
    """
    _check_shapes(logits, distance)
    with torch.autocast(logits.device.type, enabled=False):
        return (logits.float().sigmoid() * distance.float()).mean() / max(logits.shape[-2:])


def hybrid_loss(
    logits: Tensor,
    truth: Tensor,
    distance: Tensor,
    boundary_weight: float,
    fn_weight: float = 0.7,
    fp_weight: float = 0.3,
    exponent: float = 0.75,
    ce_weight: float = 0.0,
) -> HybridLoss:
    """Focal Tversky + boundary_weight x boundary (poster, hybrid loss) + ce_weight x the mean cross entropy over all
    pixels, which the poster does without; shapes as for the terms.

    Focal Tversky looks at overlap alone: a mask that is far off has hardly a gradient, and soil without any root none
    that tells pixels apart. Cross entropy has one everywhere.
    """
    tversky = focal_tversky_loss(logits, truth, fn_weight, fp_weight, exponent)
    boundary = boundary_loss(logits, distance)
    cross_entropy = F.binary_cross_entropy_with_logits(logits.float(), truth.float())
    total = tversky + boundary_weight * boundary + ce_weight * cross_entropy
    return HybridLoss(total, tversky, boundary, cross_entropy)


def boundary_schedule(epoch: int, start: float = 0.01, step: float = 0.01, most: float = 0.2) -> float:
    """The boundary term's weight in an epoch (from 0): it rises by `step` from `start`, up to `most`.

    The regional loss finds the roots first, then the boundary term sharpens them. (Kervadec et al. 2019, section 3.)
    """
    return min(start + step * epoch, most)
