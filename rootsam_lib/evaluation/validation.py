"""A control: does a model use its prompts?"""

from collections.abc import Sequence

import numpy as np

from rootsam_lib.data.scans import Patch
from rootsam_lib.metrics import count, iou
from rootsam_lib.model import RootSAM
from rootsam_lib.predictor import Predictor
from rootsam_lib.prompts import POSTER, FixedPrompts


def prompt_use(
    model: RootSAM,
    patches: Sequence[Patch],
    protocol: FixedPrompts = POSTER,
    input_scale: float = 1.0,
) -> dict[str, float]:
    """A guard: mean root IoU with the protocol's points, with moved points (mirrored at the diagonal) and with none.

    A model that uses its prompts does worse with wrong ones; one that ignores them does not. Patches without roots are
    left out. Raises ValueError when none has any.
    """
    predictor = Predictor(model, input_scale, 1024)
    rooted = [patch for patch in patches if patch.mask.any()]
    if not rooted:
        raise ValueError("none of the patches has a root, so points on roots cannot be moved: take more patches.")
    scores = []
    for patch in rooted:
        given = protocol.draw(patch.mask, patch.name)
        moved = given._replace(points=given.points[:, ::-1].copy())
        masks = [predictor(patch.image, prompts) for prompts in (given, moved, None)]
        scores.append([iou(count(mask, patch.mask)) for mask in masks])
    return dict(zip(("true points", "moved points", "no points"), np.mean(scores, axis=0).tolist(), strict=True))
