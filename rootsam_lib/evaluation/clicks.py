"""Simulated correction: clicks where a mask is most wrong, and what it is worth after each of them.

Every click is drawn from the true mask: this is what a perfectly informed person would reach, and not how well
one sees.
"""

from collections.abc import Callable, Sequence

import numpy as np

from rootsam_lib.data.scans import Patch
from rootsam_lib.evaluation.bootstrap import RatioTerms
from rootsam_lib.metrics import cl_dice, count, iou
from rootsam_lib.predictor_corrector import Click
from rootsam_lib.prompts import Prompts, next_click
from rootsam_lib.results import progress
from rootsam_lib.traits import root_length_mm

Ask = Callable[[Sequence[Click]], np.ndarray]  # all clicks so far -> mask bool (H, W)
CLICKS = (0, 1, 3, 5, 10, 20)
THRESHOLDS = (0.6, 0.7, 0.8, 0.85)


def aim(
    truth: np.ndarray,
    mask: np.ndarray,
    rng: np.random.Generator,
    jitter: float = 2.0,
    given: Sequence[Click] = (),
    skip: int = 0,
) -> Click | None:
    """The next click: `next_click`, moved by a normal error of `jitter` px where that stays in the same mistake.

    A click in the exact middle flatters a model. skip: px around each click in `given` within which mistakes are passed
    over: a person sees that a click did nothing there, and goes on. 0 is the RITM rule. None when nothing is wrong.
    """
    if skip:
        mask = mask.copy()
        for x, y, _ in given:
            near = (slice(max(y - skip, 0), y + skip + 1), slice(max(x - skip, 0), x + skip + 1))
            mask[near] = truth[near]
    click = next_click(truth, mask)
    if click is None:
        return None
    x, y, label = (int(value) for value in click)
    wrong = truth & ~mask if label else mask & ~truth
    column, row = (int(value) for value in np.rint(rng.normal((x, y), jitter)))
    inside = 0 <= row < wrong.shape[0] and 0 <= column < wrong.shape[1] and wrong[row, column]
    return Click(column, row, label) if inside else Click(x, y, label)


def correct(
    ask: Ask, truth: np.ndarray, clicks: int, rng: np.random.Generator, jitter: float = 2.0, skip: int = 0
) -> tuple[list[np.ndarray], list[Click]]:
    """The masks with 0, 1, ... `clicks` clicks, and the clicks. Where nothing is wrong any more the mask stays."""
    masks, given = [ask([])], []
    while len(given) < clicks and (click := aim(truth, masks[-1], rng, jitter, given, skip)) is not None:
        given.append(click)
        masks.append(ask(given))
    return masks + masks[-1:] * (clicks + 1 - len(masks)), given


def asker(predictor: Callable, image: np.ndarray) -> Ask:
    """How one image is asked again and again: a model through its session, anything else with all points at once."""
    if hasattr(predictor, "session"):
        return predictor.session(image)

    def ask(given: Sequence[Click]) -> np.ndarray:
        rows = np.array(given, np.float32).reshape(-1, 3)
        return predictor(image, Prompts(rows[:, :2], rows[:, 2].astype(np.int64)) if given else None)

    return ask


def correction_parts(
    predictor: Callable,
    patches: Sequence[Patch],
    clicks: Sequence[int] = CLICKS,
    jitter: float = 2.0,
    seed: int = 0,
) -> dict[str, RatioTerms]:
    """Scores after so many simulated clicks, over the patches with roots: "root_iou@k", "cl_dice@k", "length_bias@k"
    (found / true root length - 1, pooled), and for each threshold t "noc@t" (clicks until root IoU reaches t, failures
    counted as the most clicks) and "failures@t" (share of patches that do not reach it).

    predictor: as in `protocols`. Raises ValueError where no patch has roots.
    """
    rooted = [patch for patch in patches if patch.mask.any()]
    if not rooted:
        raise ValueError("none of the patches has a root, so there is nothing to correct: take more patches.")
    most, rows = max(clicks), []
    for number, patch in enumerate(progress(rooted, "correction clicks", "patch", leave=False)):
        rng = np.random.default_rng([seed, number])
        masks, _ = correct(asker(predictor, patch.image), patch.mask, most, rng, jitter)
        ious = [iou(count(mask, patch.mask)) for mask in masks]
        scale = patch.mm_per_px or 1.0
        true_mm = root_length_mm(patch.mask, scale)
        row = {f"root_iou@{k}": (ious[k], 1) for k in clicks}
        row |= {f"cl_dice@{k}": (cl_dice(masks[k], patch.mask), 1) for k in clicks}
        row |= {f"length_bias@{k}": (root_length_mm(masks[k], scale) - true_mm, true_mm) for k in clicks}
        for t in THRESHOLDS:
            reached = next((k for k, value in enumerate(ious) if value >= t), None)
            row |= {f"noc@{t:g}": (most if reached is None else reached, 1), f"failures@{t:g}": (reached is None, 1)}
        rows.append(row)
    return {key: RatioTerms(*np.array([row[key] for row in rows], float).T) for key in rows[0]}
