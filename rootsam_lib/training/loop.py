"""Training: one stage at a time, with the image encoder frozen.

Stage 1 learns local features on 512 px patches, from the base model; Stage 2 learns connectivity and branching on
1024 px patches, from Stage 1, at a tenth of the rate. (Poster, fine-tuning.)

One loop for CPU, CUDA and MPS, one process or many, through accelerate. On two GPUs of a notebook:
`accelerate.notebook_launcher(train_stage, (config, train, val, RUNS / PROFILE), num_processes=2)`.
"""

import ast
import csv
import hashlib
import io
import json
import os
import shutil
import signal
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, ReduceLROnPlateau

import rootsam_lib
from rootsam_lib.checkpoints import MODELS, build_sam, save_checkpoint, weights_hash
from rootsam_lib.data.augment import build_augmentation
from rootsam_lib.data.scans import Patch, Scan, check_masks, tile
from rootsam_lib.evaluation.validation import FixedPrompts, score
from rootsam_lib.metrics import summarise
from rootsam_lib.model import RootSAM
from rootsam_lib.results import progress, provenance, shown, write_json, write_text
from rootsam_lib.training.config import StageConfig
from rootsam_lib.training.devices import build_accelerator
from rootsam_lib.training.feature_bank import FeatureBank
from rootsam_lib.training.step import train_step

EPOCH_STREAM, PATCH_STREAM = 2, 3  # tell uses of a seed apart, so that no two draw the same numbers


@dataclass(frozen=True)
class Stage:
    """A finished stage: its folder, its configuration, the best epoch's weights and the history, one row an epoch."""

    folder: Path
    config: dict[str, object]
    history: list[dict[str, float]]

    @property
    def weights(self) -> Path:
        return self.folder / "best.safetensors"

    def model(self) -> RootSAM:
        """Build the model with the best epoch's weights."""
        return build_sam(str(self.config["model"]), self.weights)


def training_patches(scans: Sequence[Scan], config: StageConfig) -> list[Patch]:
    """All patches with roots, and as many without as config.soil_share asks for (drawn from config.seed)."""
    patches = [patch for scan in scans for patch in tile(scan, config.patch_size)]
    rooted = [p for p in patches if p.mask.any()]
    soil = [p for p in patches if not p.mask.any()]
    if not rooted:
        raise ValueError(f"none of the {len(scans)} training scans has a root: check the masks, or take more scans.")
    wanted = min(len(soil), round(len(rooted) * config.soil_share / (1 - config.soil_share)))
    chosen = np.random.default_rng([PATCH_STREAM, config.seed]).permutation(len(soil))[:wanted]
    return rooted + [soil[i] for i in sorted(chosen)]


def code_of(path: Path) -> str:
    """A Python file's code without its comments and docstrings: rewording them must not make a trained stage stale."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


def imported_files(start: Path) -> list[Path]:
    """A file of this package and all those of it that it imports, directly or not: what results are computed by."""
    package, found, waiting = Path(rootsam_lib.__file__).parent, set(), [start]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package.name}."):
                waiting.append(package.parent.joinpath(*node.module.split(".")).with_suffix(".py"))
    return sorted(found)


def _run_id(config: StageConfig, train: Sequence[Scan], val: Sequence[Scan], base: str) -> str:
    """Eight hex digits for config, scans, starting weights and code: no other setting shares the folder."""
    code = [MODELS[config.model].config.read_text(encoding="utf-8"), *map(code_of, imported_files(Path(__file__)))]
    scans = [
        [(s.name, zlib.crc32(np.ascontiguousarray(s.image)), zlib.crc32(np.ascontiguousarray(s.mask))) for s in part]
        for part in (train, val)
    ]
    identity = json.dumps([asdict(config), scans, base, code, provenance()["versions"]], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:8]


def train_stage(
    config: StageConfig,
    train: Sequence[Scan],
    val: Sequence[Scan],
    runs: Path,
    base: str | Path = "default",
    save_seconds: float = 30.0,
) -> Stage:
    """Train one stage, or go on with it, or return it when it is already done.

    train: scans to learn from. val: scans of other tubes, on which the best epoch is chosen and the rate is lowered;
    they must not be the ones that scores are reported on. runs: the folder that holds one folder per setting. base: the
    weights to start from, "default" for the model as it is published.
    Writes best.safetensors, last.pt, history.csv and stage.json. Seeded: on CPU it repeats bit for bit, also when it
    was interrupted or killed. An interruption loses the step in hand, a kill at most `save_seconds` of training.
    """
    check_masks([*train, *val])
    accelerator = build_accelerator(config.precision)
    rank, processes, main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    model = build_sam(config.model, base).to(accelerator.device)
    started_from = weights_hash(model)
    model.sam.image_encoder.neck.requires_grad_(config.train_neck)
    if config.detail:
        model.add_detail(config.seed)
    folder = Path(runs) / f"stage{config.stage}-{_run_id(config, train, val, started_from)}"
    if (folder / "stage.json").is_file():
        print(f"Stage {config.stage}: already trained, read from {shown(folder)}.")
        shutil.rmtree(folder / "bank", ignore_errors=True)  # left by a kill in the run's last moment
        return load_stage(folder)

    patches = training_patches(train, config)
    held_out = [patch for scan in val for patch in tile(scan, config.patch_size)]
    if not any(patch.mask.any() for patch in held_out):
        raise ValueError(f"none of the {len(val)} validation scans has a root: take more scans, or another seed.")
    if main:
        print(f"Stage {config.stage}: {config.epochs} epochs on {len(patches)} patches, kept in {shown(folder)}.")
    encoding = {"input_scale": config.input_scale, "seed": config.seed}
    kept = {"folder": folder / "bank", "most_gb": config.bank_gb, "refresh": config.refresh, "dtype": torch.bfloat16}
    pipeline = build_augmentation(config.patch_size, config.families)
    with accelerator.main_process_first():  # it makes the bank's files, and the others open them
        bank = FeatureBank(
            model, patches, pipeline, config.views, desc=f"Stage {config.stage}: encode", **encoding, **kept
        )
    mine = held_out[rank::processes]
    held_out_bank = FeatureBank(model, mine, **encoding, desc="encode validation patches") if mine else None

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay)
    scheduler = build_scheduler(optimizer, config)
    optimizer = accelerator.prepare(optimizer)
    run = Run(model, optimizer, scheduler, accelerator.scaler)
    run.load(folder / "last.pt")
    saved = time.monotonic()

    bar = progress(range(len(run.history), config.epochs), f"Stage {config.stage}", "epoch")
    try:
        for epoch in bar:
            bank.fill(epoch, rank, processes)
            accelerator.wait_for_everyone()
            model.train()
            steps = epoch_steps(bank, config, epoch, processes)
            for step in range(len(run.losses), len(steps)):
                with uninterrupted():
                    loss = train_step(model, optimizer, accelerator, bank, config, epoch, step, steps[step])
                    run.end_step(loss, config.ema_decay)
                if main and time.monotonic() - saved > save_seconds:
                    run.save(folder / "last.pt")
                    saved = time.monotonic()

            with run.averaged():
                asked = {"prompted": FixedPrompts(seed=config.seed), "automatic": None}
                counts = [score(model, held_out_bank, how) if mine else [] for how in asked.values()]
                prompted, automatic = (summarise(gather_object(part)) for part in counts)
                scores = prompted | {f"automatic_{name}": automatic[name] for name in ("root_iou", "pooled_dice")}
                with uninterrupted():
                    better = run.end_epoch(epoch, scores)
                    if main and better:
                        save_checkpoint(model, folder / "best.safetensors")
            with uninterrupted():
                if main:
                    write_history(run.history, folder / "history.csv")
                    run.save(folder / "last.pt")
            last = run.history[-1]
            bar.set_postfix(loss=f"{last['loss']:.3f}", root_iou=f"{last['root_iou']:.3f}", lr=f"{last['lr']:.1e}")
    except KeyboardInterrupt:
        if main:
            run.save(folder / "last.pt")
        raise

    if main:
        write_history(run.history, folder / "history.csv")  # again: an interruption may have come just before
        scans = {"train": [s.name for s in train], "val": [s.name for s in val]}
        number = {"train": len(bank), "val": len(held_out)}
        about = {"config": asdict(config), "base": started_from, "scans": scans, "patches": number}
        write_json(folder / "stage.json", about | {"provenance": provenance(accelerator.device)})
        shutil.rmtree(folder / "bank", ignore_errors=True)  # gigabytes, and never needed again
    accelerator.wait_for_everyone()
    return load_stage(folder)


def build_scheduler(optimizer: torch.optim.Optimizer, config: StageConfig) -> LRScheduler:
    """How the rate falls from epoch to epoch: the poster's ReduceLROnPlateau, or a cosine's half wave to nought."""
    if config.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=config.epochs)
    # The validation score is an absolute number between 0 and 1; a loss with a negative term would never look "worse".
    return ReduceLROnPlateau(
        optimizer, mode="max", factor=config.lr_factor, patience=config.patience, threshold=1e-3, threshold_mode="abs"
    )


def epoch_steps(bank: FeatureBank, config: StageConfig, epoch: int, processes: int = 1) -> list[tuple]:
    """The (patches, views) of an epoch's steps, the same in every process; every patch once, in one of its views.

    A last batch smaller than the number of processes is left out, for each needs a patch.
    """
    rng = np.random.default_rng([EPOCH_STREAM, config.seed, config.stage, epoch])
    order, views = rng.permutation(len(bank)), rng.integers(bank.views, size=len(bank))
    starts = range(0, len(order), config.batch_size)
    chosen = [order[start : start + config.batch_size] for start in starts]
    return [(patches, views[patches]) for patches in chosen if len(patches) >= processes]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C, and a notebook's stop button, to the end of a block: half a step must not be saved."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = []
    before = signal.signal(signal.SIGINT, lambda *_: asked.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


def load_stage(folder: str | Path) -> Stage:
    """Read a finished stage. Raises FileNotFoundError when it is not finished or not there."""
    folder = Path(folder)
    if not (folder / "stage.json").is_file():
        raise FileNotFoundError(f"{folder} holds no finished stage: run notebook 03 (Stage 1) or 04 (Stage 2).")
    with open(folder / "history.csv", newline="", encoding="utf-8") as file:
        history = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return Stage(folder, json.loads((folder / "stage.json").read_text(encoding="utf-8"))["config"], history)


def write_history(history: list[dict[str, float]], path: Path) -> None:
    """One CSV row an epoch."""
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(path, table.getvalue())


class Run:
    """What changes while a stage trains, and therefore what resuming needs: the trained weights and their average over
    steps, the states of optimizer, scheduler and gradient scaler, the history of whole epochs, the losses of the steps
    since.

    No generator has a state to keep, and the bank knows by itself what it holds: see `train_step` and `FeatureBank`.
    """

    def __init__(self, model: RootSAM, optimizer, scheduler, scaler):
        self.model = model
        self.stateful = {"optimizer": optimizer, "scheduler": scheduler} | ({"scaler": scaler} if scaler else {})
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.weights.items()}
        self.steps = 0
        self.history: list[dict[str, float]] = []
        self.losses: list[float] = []

    def end_step(self, loss: float, ema_decay: float) -> None:
        """Note the loss, and move the average a little towards the weights; early on by more."""
        share = min(ema_decay, (1 + self.steps) / (10 + self.steps)) if ema_decay else 0.0
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.weights.values()], 1 - share)
        self.losses.append(loss)
        self.steps += 1

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averaged weights into the model for the length of a block."""
        own = {name: p.detach().clone() for name, p in self.weights.items()}
        try:
            self.model.load_state_dict(self.average, strict=False)
            yield
        finally:
            self.model.load_state_dict(own, strict=False)

    def end_epoch(self, epoch: int, scores: dict[str, float]) -> bool:
        """Add a row to the history, let the scheduler see the score; return whether it is the best one so far.

        The score is the mean of prompted and automatic root IoU: the model is meant for both uses.
        """
        rate = self.stateful["optimizer"].param_groups[0]["lr"]
        both = (scores["root_iou"] + scores["automatic_root_iou"]) / 2
        best_so_far = max((row["val_score"] for row in self.history), default=-1.0)
        row = {"epoch": epoch, "lr": rate, "loss": float(np.mean(self.losses)), "val_score": both}
        self.history.append(row | scores)
        self.losses = []
        scheduler = self.stateful["scheduler"]
        scheduler.step(*([both] if isinstance(scheduler, ReduceLROnPlateau) else []))
        return both > best_so_far

    def save(self, path: Path) -> None:
        """Write all of it atomically."""
        trained = {name: p.detach() for name, p in self.weights.items()}
        state = {name: part.state_dict() for name, part in self.stateful.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        state |= {"model": trained, "average": self.average, "steps": self.steps}
        torch.save(state | {"history": self.history, "losses": self.losses}, partial)
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        """Go on from a saved state, if there is one."""
        if not path.is_file():
            return
        state = torch.load(path, weights_only=True, map_location=self.model.device)
        self.model.load_state_dict(state["model"], strict=False)
        for name, part in self.stateful.items():
            part.load_state_dict(state[name])
        self.average, self.steps = state["average"], state["steps"]
        self.history, self.losses = state["history"], state["losses"]
