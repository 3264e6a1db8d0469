"""One step of training: fresh prompts, the hybrid loss, correction clicks where the model is wrong, one update."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from scipy import ndimage
from torch import Tensor

from rootsam_lib.losses import boundary_schedule, hybrid_loss
from rootsam_lib.model import RootSAM, resize_logits
from rootsam_lib.prompts import PADDING, Prompts, click_prompt, error_click, sample_points, stack_prompts
from rootsam_lib.training.config import StageConfig
from rootsam_lib.training.feature_bank import Batch, FeatureBank

STEP_STREAM = 5  # tells this use of a seed from others, so that no two draw the same numbers
CLICK_RADIUS = 40  # px: half the side of the window in which the answer must follow a click
MOST_CLICKS = 3  # of a step with correction clicks; each step draws its number
UNWANTED_SHARE = 0.5  # of the corrected views without prompts, in which only some of the roots are wanted
IOU_WEIGHT = 0.05  # of the predicted IoU's squared error, or its head would go stale
CLIP_NORM = 1.0


def training_prompts(batch: Batch, config: StageConfig, rngs: Sequence[np.random.Generator]) -> list[Prompts]:
    """Fresh prompts for a batch, from one generator a view: 1 to n_root root points, up to n_soil soil points, or none.

    With prompt_sets above 1, that many for each view, next to each other.
    """
    prompts = []
    for mask, distance, rng in zip(batch.masks, batch.distances, rngs, strict=True):
        for _ in range(config.prompt_sets):
            if rng.random() < config.no_prompt_share:
                prompts.append(Prompts(np.zeros((1, 2), np.float32), np.full(1, PADDING)))
            else:
                n_root, n_soil = int(rng.integers(1, config.n_root + 1)), int(rng.integers(0, config.n_soil + 1))
                drawn = sample_points(mask, n_root, n_soil, rng, config.edt_exponent, distance=distance)
                prompts.append(drawn)
    return prompts


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


def wanted_roots(
    masks: np.ndarray, prompts: Sequence[Prompts], rngs: Sequence[np.random.Generator], share: float
) -> tuple[np.ndarray, np.ndarray]:
    """What corrections should lead to: all roots, or in a share of the views with empty prompts only some of them.

    masks bool (P, H, W). A model trained on all roots as its only target learns that clicks tell it nothing: it knows
    the target already. Where some whole roots are not wanted, only clicks tell which. Returns the new masks and which
    views were changed, bool (P,); those have no boundary map.
    """
    wanted, changed = masks.copy(), np.zeros(len(masks), bool)
    for row, (mask, prompt, rng) in enumerate(zip(masks, prompts, rngs, strict=True)):
        if rng.random() >= share or (prompt.labels != PADDING).any():
            continue
        numbers, count = ndimage.label(mask, np.ones((3, 3)))
        if count > 1:
            left_out = rng.permutation(count)[: rng.integers(1, count // 2 + 1)] + 1
            wanted[row], changed[row] = mask & ~np.isin(numbers, left_out), True
    return wanted, changed


def batch_loss(
    model: RootSAM,
    batch: Batch,
    config: StageConfig,
    epoch: int,
    rngs: Sequence[np.random.Generator],
    corrections: int = 0,
) -> tuple[Tensor, Tensor]:
    """The hybrid loss of one batch, plus the predicted IoU's squared error.

    rngs: one generator a view; they draw the prompts of the first round, to which the cross entropy around the points
    is added. Each of `corrections` further rounds adds a click where the last mask is wrong, feeds back the last logits
    with all clicks stamped into them, and adds the cross entropy around those clicks; see `wanted_roots` for what is
    right then. The first round, which knows no click, counts as much as all others together.
    Returns the whole, to be minimised, and the first round's hybrid loss, which can be compared between steps.
    Raises FloatingPointError on NaN.
    """
    device = model.device
    prompts = training_prompts(batch, config, rngs)
    points, labels = stack_prompts(prompts, device)
    truth, distance = batch.truth(device), batch.distance(device)
    truth, distance = (x.repeat_interleave(config.prompt_sets, 0) for x in (truth, distance))
    masks = batch.masks.repeat(config.prompt_sets, 0)
    drawing = [rng for rng in rngs for _ in range(config.prompt_sets)]
    weight = boundary_schedule(epoch, config.boundary_start, config.boundary_step)
    embedding, given, fed = model.embed(batch.features), points.shape[1], None
    total = first = torch.zeros((), device=device)
    for turn in range(corrections + 1):
        prediction = model.decode(embedding, points, labels, fed)
        logits = resize_logits(prediction.logits, truth.shape[-2:])
        loss = hybrid_loss(logits, truth, distance, weight, config.fn_weight, config.fp_weight, config.focal_exponent)
        found = (logits.detach() > 0).float()
        union = ((found + truth) > 0).sum((2, 3))
        true_iou = torch.where(union > 0, (found * truth).sum((2, 3)) / union.clamp_min(1), 1.0)
        own = loss.total + IOU_WEIGHT * F.mse_loss(prediction.iou.float(), true_iou)
        if not turn:
            first = own.detach()
            own = own + config.point_weight * click_loss(logits, truth, points, labels, CLICK_RADIUS)
        else:
            around = click_loss(logits, truth, points[:, given:], labels[:, given:], CLICK_RADIUS)
            own = (own + around) / corrections
        total = total + own
        if not turn and corrections:  # from here on clicks tell which roots are wanted
            masks, changed = wanted_roots(masks, prompts, drawing, UNWANTED_SHARE)
            truth = torch.from_numpy(masks).unsqueeze(1).to(device).float()
            distance = distance * torch.from_numpy(~changed).to(device).view(-1, 1, 1, 1)
        if turn < corrections:
            wrong = zip(drawing, found[:, 0].cpu().numpy() > 0, masks, strict=True)
            clicks = torch.tensor([error_click(*each) for each in wrong], device=device)[:, None]
            points, labels = torch.cat([points, clicks[..., :2].float()], 1), torch.cat([labels, clicks[..., 2]], 1)
            fed = click_prompt(prediction.logits, points[:, given:], labels[:, given:], truth.shape[-1])
    if not torch.isfinite(total):
        raise FloatingPointError(f"the loss is {total.item()} in epoch {epoch}: lower lr, or check the masks.")
    return total, first


def train_step(
    model: RootSAM,
    optimizer,
    accelerator: Accelerator,
    bank: FeatureBank,
    config: StageConfig,
    epoch: int,
    step: int,
    chosen: tuple[np.ndarray, np.ndarray],
) -> float:
    """One step on this process's part of the chosen (patches, views); return its first rounds' loss.

    What it draws depends on seed, stage, epoch, step and place alone: a resumed run needs no generator's state, and
    two processes draw what one would.
    """
    patches, views = chosen
    stream = [STEP_STREAM, config.seed, config.stage, epoch, step]
    common = np.random.default_rng(stream)
    correct = common.random() < config.correction_share
    corrections = int(common.integers(1, MOST_CLICKS + 1)) if correct else 0
    places = np.arange(len(patches))[accelerator.process_index :: accelerator.num_processes]
    share = accelerator.num_processes / len(patches)
    total = torch.zeros((), device=accelerator.device)
    for part in np.array_split(places, min(config.micro_batches, len(places))):
        batch = bank.batch(patches[part], views[part], accelerator.device)
        rngs = [np.random.default_rng([*stream, int(place)]) for place in part]
        with accelerator.autocast():
            loss, first = batch_loss(model, batch, config, epoch, rngs, corrections)
        accelerator.backward(loss * len(part) * share)
        total += first * len(part) * share
    trained = [p for p in model.parameters() if p.requires_grad]
    if accelerator.num_processes > 1:
        total = average(trained, total, accelerator)
    accelerator.clip_grad_norm_(trained, CLIP_NORM)
    optimizer.step()
    optimizer.zero_grad()
    return float(total)


def average(trained: Sequence[torch.nn.Parameter], loss: Tensor, accelerator: Accelerator) -> Tensor:
    """Give every process the mean gradient, in place, and return the mean loss.

    One exchange of a few million numbers. DistributedDataParallel would have to be told which parts a step leaves out
    (mask prompts without corrections), and takes one forward pass per backward pass, not one per round of clicks.
    """
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in trained]
    flat = torch.cat([loss.reshape(1), *(g.flatten() for g in gradients)])
    loss, *means = accelerator.reduce(flat, "mean").split([1, *(g.numel() for g in gradients)])
    for p, mean in zip(trained, means, strict=True):
        p.grad = mean.view_as(p)
    return loss.squeeze()
