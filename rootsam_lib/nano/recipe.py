"""SAM's recipe for promptable segmentation (Kirillov et al. 2023, section 3 and appendix A): what one step of `nano`'s
pretraining draws, clicks on and learns from.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rootsam_lib.model import RootSAM
from rootsam_lib.nano.scenes import Scene, object_sizes
from rootsam_lib.prompts import draw_click, error_click, stamp_clicks


@dataclass(frozen=True)
class Phase:
    """A part of the curriculum: `steps` steps on scenes of `size` px. trunk: its learning rate, over the decoder's."""

    steps: int
    size: int
    images: int
    objects: int
    difficulty: float
    trunk: float
    fresh: int = 2  # new scenes per step; each scene is seen images / fresh times, with other prompts and flips
    pool: int = 192


@dataclass
class Batch:
    """images uint8 (B, S, S, 3), truth bool (P, S, S), points float32 (P, N, 2), labels int64 (P, N); P = B objects."""

    images: np.ndarray
    truth: np.ndarray
    points: np.ndarray
    labels: np.ndarray


def draw_batch(rng: np.random.Generator, scenes: list[Scene], phase: Phase) -> Batch:
    """Pick scenes, flip them, pick objects in each, and click on them: one click, or up to eight of both labels.

    One object in ten is a set of two or three of one family, all of them clicked: many clicks mean many objects.
    """
    clicks = 1 if rng.random() < 0.6 else int(rng.integers(2, 9))
    smallest = max(16, 0.0012 * phase.size**2)
    images, truth = [], []
    points = np.zeros((phase.images * phase.objects, clicks, 2), np.float32)
    labels = np.full((phase.images * phase.objects, clicks), -1, np.int64)
    while len(images) < phase.images:
        scene = scenes[rng.integers(len(scenes))]
        visible = np.flatnonzero(object_sizes(scene) >= smallest)
        visible = visible[visible > 0]
        if not len(visible):
            continue
        turn, flip = int(rng.integers(4)), 1 - 2 * int(rng.integers(2))
        image, numbers = np.rot90(scene.image, turn)[:, ::flip], np.rot90(scene.labels, turn)[:, ::flip]
        images.append(image[..., rng.permutation(3)])
        chosen = rng.permutation(np.resize(rng.permutation(visible), phase.objects))
        for target in chosen:
            members = [target]
            if clicks > 1 and rng.random() < 0.1:
                alike = visible[(scene.families[visible] == scene.families[target]) & (visible != target)]
                members += list(rng.permutation(alike)[: min(2, clicks - 1)])
            row = len(truth)
            truth.append(np.isin(numbers, members))
            for i in range(clicks):
                inside = i < len(members) or rng.random() < 0.65
                region = numbers == members[i % len(members)] if inside else ~truth[-1]
                if region.any():
                    points[row, i], labels[row, i] = draw_click(rng, region), int(inside)
    return Batch(np.stack(images), np.stack(truth), points, labels)


def embed(model: RootSAM, images: np.ndarray, train_trunk: bool) -> tuple[Tensor, list[Tensor]]:
    """As `RootSAM.encode` and the start of `decode`, with gradient: the neck runs once for all rounds of clicks."""
    sam = model.sam
    pixels = torch.from_numpy(images).to(model.device).permute(0, 3, 1, 2).float() / 255
    pixels = ((pixels - model.pixel_mean) / model.pixel_std).contiguous(memory_format=torch.channels_last)
    with torch.set_grad_enabled(train_trunk):
        maps = sam.image_encoder.trunk(pixels)
    fpn, _ = sam.image_encoder.neck(list(maps))
    decoder = sam.sam_mask_decoder
    return fpn[2] + sam.no_mem_embed.view(1, -1, 1, 1), [decoder.conv_s0(fpn[0]), decoder.conv_s1(fpn[1])]


def decode_all(
    model: RootSAM, embedded: tuple[Tensor, list[Tensor]], points: Tensor, labels: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """All four masks of each prompt set, the single one first: logits (P, 4, S / 4, S / 4) and their IoU (P, 4)."""
    encoder, decoder = model.sam.sam_prompt_encoder, model.sam.sam_mask_decoder
    repeats = len(points) // len(embedded[0])
    image, *high_res = (x.repeat_interleave(repeats, dim=0) for x in (embedded[0], *embedded[1]))
    encoder.image_embedding_size = tuple(image.shape[-2:])
    encoder.input_image_size = tuple(16 * side for side in image.shape[-2:])
    sparse, dense = encoder(points=(points, labels), boxes=None, masks=mask)
    logits, iou, _, _ = decoder.predict_masks(image, encoder.get_dense_pe(), sparse, dense, False, high_res)
    return logits, iou


def mask_losses(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and IoU of each mask, both (P, M), from logits (P, M, H, W) and truth (P, 1, H, W), a share of each pixel.

    20 x focal (gamma 2) + Dice, SAM's weights.
    """
    bce = F.binary_cross_entropy_with_logits(logits, truth.expand_as(logits), reduction="none")
    share = logits.sigmoid()
    focal = ((share - truth).square() * bce).mean((2, 3))
    dice = 1 - (2 * (share * truth).sum((2, 3)) + 1) / (share.sum((2, 3)) + truth.sum((2, 3)) + 1)
    with torch.no_grad():
        inside, object_ = logits > 0, truth >= 0.5
        iou = (inside & object_).sum((2, 3)) / (inside | object_).sum((2, 3)).clamp_min(1)
    return 20 * focal + dice, iou


def recipe_loss(model: RootSAM, batch: Batch, train_trunk: bool, rng: np.random.Generator) -> tuple[Tensor, float]:
    """The loss of one step, averaged over its rounds of clicks, and the mean IoU after the last of them.

    A single click asks for three masks, and only the best of them learns; every later round adds a click in the error
    and feeds back the last logits, in some steps with the clicks stamped into them.
    """
    device = model.device
    truth = torch.from_numpy(batch.truth)[:, None].float().to(device)
    size = truth.shape[-1]
    scale = 1 if size <= 128 else 2  # the loss at half resolution is a quarter of the work, and logits are at a quarter
    truth = F.avg_pool2d(truth, scale)
    masks = truth[:, 0].cpu().numpy() >= 0.5
    points, labels = torch.from_numpy(batch.points).to(device), torch.from_numpy(batch.labels).to(device)
    rounds, stamped = int(rng.choice([2, 3, 5, 8], p=[0.2, 0.4, 0.25, 0.15])), rng.random() < 0.3
    embedded = embed(model, batch.images, train_trunk)
    total, fed = torch.zeros((), device=device), None
    for turn in range(rounds):
        logits, predicted = decode_all(model, embedded, points, labels, fed)
        ambiguous = turn == 0 and points.shape[1] == 1
        if not ambiguous:
            logits, predicted = logits[:, :1], predicted[:, :1]
        fine = F.interpolate(logits, truth.shape[-2:], mode="bilinear", align_corners=False)
        losses, iou = mask_losses(fine, truth)
        loss = losses[:, 0] + (losses[:, 1:].amin(1) if ambiguous else 0)
        total = total + loss.mean() + 2 * (predicted - iou).square().mean()
        chosen = 1 + predicted[:, 1:].argmax(1) if ambiguous else torch.zeros_like(labels[:, 0])
        rows = torch.arange(len(points), device=device)
        if turn + 1 < rounds:
            guess = (fine[rows, chosen] > 0).cpu().numpy()
            new = [error_click(rng, g, m) for g, m in zip(guess, masks, strict=True)]
            new = torch.tensor(np.array(new), device=device)[:, None]
            spot = new[..., :2].float() * scale + (scale - 1) / 2
            points, labels = torch.cat([points, spot], 1), torch.cat([labels, new[..., 2]], 1)
            fed = logits[rows, chosen][:, None].detach().clamp(-32, 32)
            if stamped:
                fed = stamp_clicks(fed, points / 4, labels)
    return total / rounds, float(iou[rows, chosen].mean())
