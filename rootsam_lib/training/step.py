"""One step of training: fresh prompts and what they mean, the hybrid loss, correction clicks where the model is wrong.

A view is one augmented version of a patch; the feature bank keeps the frozen encoder's output for it. Views with roots
are asked three ways, from one run of the embedding: for all roots (no point), for one (one point) and for several (more
points, some of them on what is not wanted). Views without roots are only asked for all. Were the target "all roots"
whatever the points say, the best answer would be to ignore them.

The weights below were taken over from a trial on real scans; none was compared alone.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from rootsam_lib.losses import boundary_schedule, hybrid_loss, signed_distance
from rootsam_lib.metrics import label_roots
from rootsam_lib.model import Prediction, RootSAM, resize_logits
from rootsam_lib.prompts import (
    PADDING,
    Prompts,
    click_prompt,
    error_click,
    meant_roots,
    selection_prompts,
    stack_prompts,
)
from rootsam_lib.training.config import StageConfig
from rootsam_lib.training.feature_bank import Batch, FeatureBank

STEP_STREAM = 5  # tells this use of a seed from others, so that no two draw the same numbers
# Weight of each kind of prompt in the loss; they need not add up to 1. "none" is the automatic mode.
KIND_WEIGHTS = {"none": 0.5, "one": 0.35, "several": 0.25}
CORRECTION_WEIGHT = 0.3  # of a step's correction rounds together
CLICK_RADIUS = 40  # px: half the side of the window in which the answer must follow a click
MOST_CLICKS = 3  # of a step with correction clicks; each step draws its number
IOU_WEIGHT = 0.05  # of the predicted IoU's squared error, or the head that predicts it would go stale
PATH_WEIGHT = 2.0  # of "none" where a detail path answers, which then learns from it more than from any prompt
FIRST_WEIGHT, FIRST_ROOT_WEIGHT = 0.9, 4.0  # of its weighted cross entropy, and of a root's pixels in that
CLIP_NORM = 1.0
NO_POINT = Prompts(np.zeros((1, 2), np.float32), np.full(1, PADDING))


class Plan(NamedTuple):
    """What a step does in all its views alike: (points, soil points) of its prompts of several points, its number of
    correction rounds, and which kind of prompt these begin with."""

    several: tuple[int, int] = (2, 0)
    corrections: int = 0
    corrected: str = "none"


def draw_plan(config: StageConfig, rng: np.random.Generator) -> Plan:
    """One step's plan; with config.n_root 1 no step has prompts of several points."""
    corrections = int(rng.integers(1, MOST_CLICKS + 1)) if rng.random() < config.correction_share else 0
    points = int(rng.integers(2, config.n_root + 1)) if config.n_root > 1 else 0
    soil = int(rng.integers(min(config.n_soil, points - 1) + 1)) if points else 0
    return Plan((points, soil), corrections, "none" if rng.random() < 0.5 else "one")


class Asked(NamedTuple):
    """P prompts of one kind, and what their answers are compared with.

    views: which view each is asked of. points float32 (P, N, 2) and labels int64 (P, N), on the CPU, where they are
    counted; all of one number, so that nothing is padded. meant: the roots that each means, bool (P, H, W). truth,
    distance: the meant roots and their own signed distance, float (P, 1, H, W), on the model's device.
    """

    views: list[int]
    points: Tensor
    labels: Tensor
    meant: np.ndarray
    truth: Tensor
    distance: Tensor


def training_prompts(
    masks: np.ndarray,
    config: StageConfig,
    rngs: Sequence[np.random.Generator],
    several: tuple[int, int],
    device: torch.device | str = "cpu",
) -> dict[str, Asked]:
    """Fresh prompts for views with masks bool (B, H, W), from one generator a view, by kind: see `KIND_WEIGHTS`.

    Views without roots are only asked for all roots, of which there are none. All of it needs no weights.
    """
    roots = [label_roots(mask, least=1)[0] for mask in masks]
    drawn = {"none": [(view, NO_POINT, meant_roots(own, NO_POINT)) for view, own in enumerate(roots)]}
    for kind, (count, n_soil) in {"one": (1, 0), "several": several}.items():
        drawn[kind] = []
        for view, (own, rng) in enumerate(zip(roots, rngs, strict=True)):
            if count and own.any():
                prompts, meant = selection_prompts(own, count, n_soil, rng, config.edt_exponent, config.slip)
                drawn[kind].append((view, prompts, meant if config.selection else masks[view]))
    asked = {}
    for kind, sets in drawn.items():
        if sets:
            views, prompts, meant = zip(*sets, strict=True)
            targets = (_maps(meant, device), _maps([signed_distance(mask) for mask in meant], device))
            asked[kind] = Asked(list(views), *stack_prompts(prompts, "cpu"), np.stack(meant), *targets)
    return asked


def click_loss(logits: Tensor, truth: Tensor, points: Tensor, labels: Tensor, radius: int) -> Tensor:
    """Mean cross entropy in the square window of `radius` px around every click or point: where the answer must obey.

    logits, truth (P, 1, H, W); points (P, N, 2) and labels (P, N) in px of them, -1 is skipped. Every prompt set counts
    alike, by the mean over its points; 0 for those without any.
    """
    height, width = logits.shape[-2:]
    x, y = points.round().unbind(-1)
    columns = ((torch.arange(width, device=x.device) - x[..., None]).abs() <= radius).float()  # (P, N, W): each window
    rows = ((torch.arange(height, device=y.device) - y[..., None]).abs() <= radius).float()
    given = (labels >= 0).float()
    pixels = (rows.sum(2) * columns.sum(2)).clamp_min(1)
    share = given / given.sum(1, keepdim=True).clamp_min(1) / pixels / len(points)
    weight = torch.einsum("pn,pnh,pnw->phw", share, rows, columns)
    return (weight * F.binary_cross_entropy_with_logits(logits, truth, reduction="none")[:, 0]).sum()


def first_roots_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross entropy in which a root's pixels count more, for a net that starts from nothing: where many pixels to one
    are soil, the first roots would be found late. logits, truth (B, 1, H, W)."""
    weight = torch.tensor(FIRST_ROOT_WEIGHT, device=logits.device)
    return F.binary_cross_entropy_with_logits(logits, truth, pos_weight=weight)


def answer_loss(
    prediction: Prediction, truth: Tensor, distance: Tensor, config: StageConfig, boundary_weight: float
) -> tuple[Tensor, Tensor]:
    """The hybrid loss of answers plus the predicted IoU's squared error, and their logits (P, 1, H, W).

    truth, distance: the meant roots and their own signed distance, float (P, 1, H, W).
    """
    logits = resize_logits(prediction.logits, truth.shape[-2:])
    weights = (config.fn_weight, config.fp_weight, config.focal_exponent, config.ce_weight)
    loss = hybrid_loss(logits, truth, distance, boundary_weight, *weights).total
    found = (logits.detach() > 0).float()
    union = ((found + truth) > 0).sum((2, 3))
    true_iou = torch.where(union > 0, (found * truth).sum((2, 3)) / union.clamp_min(1), 1.0)
    return loss + IOU_WEIGHT * F.mse_loss(prediction.iou.float(), true_iou), logits


def batch_loss(
    model: RootSAM,
    batch: Batch,
    config: StageConfig,
    epoch: int,
    rngs: Sequence[np.random.Generator],
    plan: Plan,
    asked: dict[str, Asked] | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss of one batch, a mean over its views; rngs: one generator a view, for its prompts and clicks; asked: its
    prompts, where they are drawn already.

    For each kind of prompt: the hybrid loss, the predicted IoU's squared error, and the cross entropy around the
    points. Correction rounds go on from one kind towards the roots that it meant: each adds a click where the last mask
    is wrong, and feeds back the last logits with all clicks stamped into them. With a detail path "all roots" is the
    path's own answer, which it learns from nothing: `first_roots_loss`.
    Returns the whole, to be minimised, and the first answers' losses alone, for the history; these still shift as the
    boundary term's weight rises, and with views that lack roots.
    """
    device = model.device
    boundary_weight = boundary_schedule(epoch, config.boundary_start, config.boundary_step)
    embedding = model.embed(batch.features)
    total = first = torch.zeros((), device=device)
    asked = asked or training_prompts(batch.masks, config, rngs, plan.several, device)
    for kind, (views, points, labels, meant, truth, distance) in asked.items():
        own, fed = embedding.of(views), None
        given, rounds = points.shape[1], plan.corrections if kind == plan.corrected else 0
        for turn in range(rounds + 1):
            prediction = model.decode(own, points, labels, fed)
            there, what = points.to(device), labels.to(device)
            loss, logits = answer_loss(prediction, truth, distance, config, boundary_weight)
            share = (CORRECTION_WEIGHT / rounds if turn else KIND_WEIGHTS[kind]) * len(views) / len(batch.masks)
            if not turn:
                first = first + share * loss.detach()
            if kind == "none" and not turn and embedding.detail is not None:
                share *= PATH_WEIGHT
                loss = loss + FIRST_WEIGHT * first_roots_loss(logits, truth)
            new = slice(given if turn else 0, None)
            around = click_loss(logits, truth, there[:, new], what[:, new], CLICK_RADIUS)
            total = total + share * (loss + config.point_weight * around)
            if turn < rounds:
                found = (logits.detach()[:, 0] > 0).cpu().numpy()
                clicks = [error_click(rngs[view], *each) for view, *each in zip(views, found, meant, strict=True)]
                clicks = torch.tensor(clicks)[:, None]
                points, labels = torch.cat([points, clicks[..., :2].float()], 1), torch.cat([labels, clicks[..., 2]], 1)
                new = (x[:, given:].to(device) for x in (points, labels))
                fed = click_prompt(prediction.low_res, *new, meant.shape[-1])
    return total, first


def _maps(maps: Sequence[np.ndarray], device: torch.device | str) -> Tensor:
    """Maps (P, H, W) as float (P, 1, H, W)."""
    return torch.from_numpy(np.stack(maps)).unsqueeze(1).to(device).float()


class Prepared(NamedTuple):
    """A step without its weights: its plan, and the batch, generators and prompts of each of its parts."""

    plan: Plan
    parts: list[tuple[Batch, list[np.random.Generator], dict[str, Asked]]]


def prepare_step(
    accelerator: Accelerator,
    bank: FeatureBank,
    config: StageConfig,
    epoch: int,
    step: int,
    chosen: tuple[np.ndarray, np.ndarray],
) -> Prepared:
    """All of a step that needs no weights, for a thread to do while the device is busy with the step before.

    What it draws depends on seed, stage, epoch, step and place alone: a resumed run needs no generator's state, and
    two processes draw what one would.
    """
    patches, views = chosen
    stream = [STEP_STREAM, config.seed, config.stage, epoch, step]
    plan, parts = draw_plan(config, np.random.default_rng(stream)), []
    places = np.arange(len(patches))[accelerator.process_index :: accelerator.num_processes]
    for part in np.array_split(places, min(config.micro_batches, len(places))):
        batch = bank.batch(patches[part], views[part], accelerator.device)
        rngs = [np.random.default_rng([*stream, int(place)]) for place in part]
        parts.append((batch, rngs, training_prompts(batch.masks, config, rngs, plan.several, accelerator.device)))
    return Prepared(plan, parts)


def train_step(
    model: RootSAM,
    optimizer,
    accelerator: Accelerator,
    bank: FeatureBank,
    config: StageConfig,
    epoch: int,
    step: int,
    chosen: tuple[np.ndarray, np.ndarray],
    prepared: Prepared | None = None,
) -> float:
    """One step on this process's part of the chosen (patches, views); return the loss of its prompts.

    prepared: what `prepare_step` says of it, where that was called ahead. The host waits for the device once, and once
    more for each round of clicks. Raises FloatingPointError, before any weight changes, for a loss that is no number.
    """
    plan, parts = prepared or prepare_step(accelerator, bank, config, epoch, step, chosen)
    share = accelerator.num_processes / len(chosen[0])
    losses = torch.zeros(2, device=accelerator.device)  # of the prompts, and of all that is minimised
    for batch, rngs, asked in parts:
        with accelerator.autocast():
            loss, first = batch_loss(model, batch, config, epoch, rngs, plan, asked)
        accelerator.backward(loss * len(batch.names) * share)  # share: `average` takes the mean over processes
        losses += torch.stack([first, loss.detach()]) * len(batch.names) * share
    trained = [p for p in model.parameters() if p.requires_grad]
    if accelerator.num_processes > 1:
        losses = average(trained, losses, accelerator)
    reported, whole = losses.tolist()
    if not math.isfinite(whole):
        raise FloatingPointError(f"the loss is {whole} in epoch {epoch}: lower lr, or check the masks.")
    accelerator.clip_grad_norm_(trained, CLIP_NORM)
    optimizer.step()
    optimizer.zero_grad()
    return reported


def average(trained: Sequence[torch.nn.Parameter], losses: Tensor, accelerator: Accelerator) -> Tensor:
    """Give every process the mean gradient, in place, and return the mean losses, (N,).

    One exchange of a few million numbers. DistributedDataParallel would have to be told which parts a step leaves out
    (mask prompts without corrections), and takes one forward pass per backward pass, not one per round of clicks.
    """
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in trained]
    flat = torch.cat([losses, *(g.flatten() for g in gradients)])
    losses, *means = accelerator.reduce(flat, "mean").split([len(losses), *(g.numel() for g in gradients)])
    for p, mean in zip(trained, means, strict=True):
        p.grad = mean.view_as(p)
    return losses
