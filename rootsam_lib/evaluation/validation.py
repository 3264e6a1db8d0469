"""What training asks of a model: scores on validation patches, with fixed prompts and with none.

Everything that is reported, with intervals and on whole scans, is in `protocols`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rootsam_lib.data.scans import Patch
from rootsam_lib.metrics import Counts, count, iou
from rootsam_lib.model import Features, RootSAM, encoder_size, resize_logits
from rootsam_lib.prompts import Prompts, fixed_prompts, stack_prompts
from rootsam_lib.training.feature_bank import FeatureBank


@dataclass(frozen=True)
class FixedPrompts:
    """The poster's protocol: every model gets the same seeded points, drawn once from the true mask, n_root and n_soil
    of them per patch, with no person in the loop."""

    n_root: int = 10
    n_soil: int = 5
    seed: int = 0


@torch.no_grad()
def predict(model: RootSAM, features: Features, prompts: Sequence[Prompts] | None = None) -> np.ndarray:
    """Masks bool (B, H, W) in pixels of the original images, for one prompt set per image or none at all."""
    points, labels = stack_prompts(prompts, model.device) if prompts is not None else (None, None)
    logits = model.decode(features, points, labels).logits
    return (resize_logits(logits, features.image_size)[:, 0] > 0).cpu().numpy()


def score(model: RootSAM, bank: FeatureBank, protocol: FixedPrompts | None = FixedPrompts()) -> list[Counts]:
    """Ask the model for every patch of the bank (view 0) with the protocol's points, or without any prompt (None).

    Returns one `Counts` a patch, over the pixels that show the scan.
    """
    model.eval()
    counts = []
    for number in range(len(bank)):
        batch = bank.batch([number], [0], model.device)
        height, width = batch.sizes[0]  # without the mirrored padding of small scans
        truth = batch.masks[0, :height, :width]
        prompts = None
        if protocol is not None:
            prompts = [fixed_prompts(truth, batch.names[0], protocol.n_root, protocol.n_soil, protocol.seed)]
        counts.append(count(predict(model, batch.features, prompts)[0, :height, :width], truth))
    return counts


def prompt_use(
    model: RootSAM,
    patches: Sequence[Patch],
    protocol: FixedPrompts = FixedPrompts(),
    input_scale: float = 1.0,
) -> dict[str, float]:
    """A guard: mean root IoU with the protocol's points, with moved points (mirrored at the diagonal) and with none.

    A model that uses its prompts does worse with wrong ones; one that ignores them does not. Patches without roots are
    left out. Raises ValueError when none has any.
    """
    model.eval()
    rooted = [patch for patch in patches if patch.mask.any()]
    if not rooted:
        raise ValueError("none of the patches has a root, so points on roots cannot be moved: take more patches.")
    scores = []
    for patch in rooted:
        given = fixed_prompts(patch.mask, patch.name, protocol.n_root, protocol.n_soil, protocol.seed)
        moved = given._replace(points=given.points[:, ::-1].copy())
        features = model.encode(patch.image[None], encoder_size(len(patch.image), input_scale))
        masks = [predict(model, features, prompts)[0] for prompts in ([given], [moved], None)]
        scores.append([iou(count(mask, patch.mask)) for mask in masks])
    return dict(zip(("true points", "moved points", "no points"), np.mean(scores, axis=0).tolist(), strict=True))
