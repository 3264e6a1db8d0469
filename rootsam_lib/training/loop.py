"""Training: one stage at a time, with the image encoder frozen.

Stage 1 starts from the base model on 512 px patches, for local features; Stage 2 goes on from it on 1024 px patches,
where more of each root's course can be seen, at a tenth of the learning rate. (Poster, fine-tuning.)

One loop for CPU, CUDA and MPS, one process or many, through accelerate. On two GPUs of a notebook:
`accelerate.notebook_launcher(train_stage, (config, train, val, RUNS / PROFILE), num_processes=2)`.
"""

import copy
import itertools
import math
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from rootsam_lib.checkpoints import LOAD_ERRORS, build_sam, load_weights, save_checkpoint, weights_hash
from rootsam_lib.data.augment import build_augmentation
from rootsam_lib.data.scans import Scan, check_masks, leak_report, tile
from rootsam_lib.metrics import Counts, count, root_widths, summarise
from rootsam_lib.model import RootSAM, resize_logits
from rootsam_lib.prompts import POSTER_PROMPTS, FixedPrompts, stack_prompts
from rootsam_lib.results import (
    atomic,
    file_hash,
    lock_folder,
    progress,
    provenance,
    read_json,
    shown,
    write_csv,
    write_json,
)
from rootsam_lib.training.config import StageConfig
from rootsam_lib.training.devices import InPlace, ahead, build_accelerator, preparing_threads, scratch
from rootsam_lib.training.feature_bank import Batch, FeatureBank
from rootsam_lib.training.stage import Stage, load_stage, run_id, training_patches
from rootsam_lib.training.step import Prepared, prepare_step, train_step

EPOCH_STREAM = 2  # tells this use of a seed from others, so that no two draw the same numbers
SAVE_SECONDS = 30.0  # what a kill may cost
WARMUP = 30  # steps in which a cosine's rate rises to the whole, or a tenth of all steps where these are few


def train_stage(
    config: StageConfig,
    train: Sequence[Scan],
    val: Sequence[Scan],
    runs: Path,
    base: str | Path = "default",
    after_epoch: Callable[[list[dict[str, float]]], object] = lambda history: None,
    save_seconds: float = SAVE_SECONDS,
) -> Stage:
    """Train one stage, or go on with it, or return it when it is already done.

    train: scans to learn from. val: scans of other tubes, on which the best epoch is chosen and a plateau's rate
    is lowered; they must not be the ones that scores are reported on. runs: the folder that holds one folder per
    setting. base: the weights to start from, "default" for those of config.model.
    after_epoch: called with the history so far.
    Writes best.safetensors (the averaged weights of the best epoch), last.pt (all that resuming needs), history.csv
    and stage.json. Seeded: on CPU it repeats bit for bit, also when it was interrupted or killed. An interruption waits
    for the step in hand and keeps it; a kill loses at most about `save_seconds` of training.
    """
    if not isinstance(config, StageConfig):
        raise ValueError(f"config is a {type(config).__name__}: give one StageConfig, as stage1('nano') returns.")
    check_masks([*train, *val])
    if shared := {scan.name for scan in train} & {scan.name for scan in val}:
        warnings.warn(
            f"{min(shared)} is in train and in val: the best epoch is chosen on what is learned by heart.", stacklevel=2
        )
    leaks = [tube for tube in leak_report({"train": train, "val": val}) if tube]
    if leaks and not shared:
        warnings.warn(f"tubes in train and in val: {', '.join(leaks)}: scores on val flatter.", stacklevel=2)
    accelerator = build_accelerator(config.precision)
    main = accelerator.is_main_process
    model = build_sam(config.model, base).to(accelerator.device)
    started_from = weights_hash(model)
    model.sam.image_encoder.neck.requires_grad_(config.train_neck)
    if config.detail:
        model.add_detail(config.seed)
    folder = Path(runs).expanduser() / f"stage{config.stage}-{run_id(config, train, val, started_from)}"
    if (folder / "stage.json").is_file():
        stage = load_stage(folder)
        print(f"Stage {config.stage}: already trained, read from {shown(folder)}.")
        shutil.rmtree(scratch(folder), ignore_errors=True)  # left by a kill in the run's last moment
        return stage

    # Two trainings of one stage at once would undo each other's work.
    lock = lock_folder(folder, again=True) if main else None
    try:
        return _train(config, train, val, folder, model, accelerator, started_from, after_epoch, save_seconds)
    finally:
        if lock:
            lock.release()


def _banks(config, train, val, folder, model, accelerator) -> tuple[FeatureBank, FeatureBank | None]:
    """The features of the training patches, and of this process's part of the validation patches, if it has one."""
    rank, processes, main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    patches = training_patches(train, config)
    held_out = [patch for scan in val for patch in tile(scan, config.patch_size)]
    if not any(patch.mask.any() for patch in held_out):
        raise ValueError(f"none of the {len(val)} validation scans has a root: take more scans, or another seed.")
    if main:
        print(f"Stage {config.stage}: {config.epochs} epochs on {len(patches)} patches, kept in {shown(folder)}.")
    encoding = {"input_scale": config.input_scale, "seed": config.seed}
    kept = {"folder": scratch(folder), "most_gb": config.bank_gb, "refresh": config.refresh, "dtype": torch.bfloat16}
    # Processes share files. A training goes on as it began: encoded live, all views have room, else perhaps fewer.
    decided = None
    with suppress(OSError, ValueError):  # a first run, or a damaged note: where features lie changes no number
        decided = read_json(folder / "features.json").get("live")
    kept |= {"place": "live" if decided else "disk" if processes > 1 else None, "live": decided}
    kept |= {"views": config.views, "desc": f"Stage {config.stage}: encode"}
    with accelerator.main_process_first():  # it makes the bank's files, and the others open them
        bank = FeatureBank(model, patches, build_augmentation(config.patch_size, config.families), **encoding, **kept)
    if main:
        write_json(folder / "features.json", {"place": bank.place, "live": bank.place == "live", "views": bank.views})
    half = torch.bfloat16 if accelerator.device.type == "cuda" else torch.float32
    mine = held_out[rank::processes]
    return bank, FeatureBank(model, mine, **encoding, dtype=half, desc="encode validation patches") if mine else None


def _validation(config, model, val_bank, on_gpu: bool) -> dict[str, float]:
    """Scores of the validation patches, those of all processes, with the fixed prompts and ("automatic_") without."""
    batches = val_bank.batches(config.batch_size if on_gpu else 1) if val_bank else ()
    counts = score(model, batches, (FixedPrompts(seed=config.seed), None))
    prompted, automatic = (summarise(gather_object(part)) for part in counts)
    return prompted | {f"automatic_{name}": value for name, value in automatic.items()}


def _train(config, train, val, folder, model, accelerator, started_from, after_epoch, save_seconds) -> Stage:
    """`train_stage`, once it is clear what is trained and that this process may write."""
    rank, processes, main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    if config.batch_size < processes:
        raise ValueError(f"batch_size is {config.batch_size}, but there are {processes} processes: raise it.")
    bank, val_bank = _banks(config, train, val, folder, model, accelerator)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=config.lr, weight_decay=config.weight_decay
    )
    scheduler = build_scheduler(optimizer, config, config.epochs * len(epoch_steps(bank, config, 0, processes)))
    run = Run(model, accelerator.prepare(optimizer), scheduler, accelerator.scaler)
    run.load(folder / "last.pt")
    if run.history:
        _check_best(folder, model)
    saved, brightness = time.monotonic(), float(np.mean([scan.image.mean() for scan in train]))
    bar = progress(range(len(run.history), config.epochs), f"Stage {config.stage}", "epoch")
    try:
        for epoch in bar:
            bank.fill(epoch, rank, processes)
            accelerator.wait_for_everyone()
            model.train()
            steps = epoch_steps(bank, config, epoch, processes)
            for step, ready in prepared_steps(accelerator, bank, config, epoch, steps, len(run.losses)):
                with uninterrupted():
                    loss = train_step(model, run.optimizer, accelerator, bank, config, epoch, step, steps[step], ready)
                    run.end_step(loss, config.ema_decay)
                if main and time.monotonic() - saved > save_seconds:
                    run.save(folder / "last.pt")
                    saved = time.monotonic()
            with run.averaged():
                scores = _validation(config, model, val_bank, accelerator.device.type == "cuda")
                with uninterrupted():
                    if run.end_epoch(epoch, scores) and main:
                        width = found_width(model, val_bank.batches()) * config.input_scale if val_bank else 0.0
                        about = {"base": started_from, "root_width": width, "brightness": brightness}
                        save_checkpoint(model, folder / "best.safetensors", asdict(config) | about)
            with uninterrupted():
                if main:
                    write_csv(folder / "history.csv", run.history)
                    run.save(folder / "last.pt")
            last = run.history[-1]
            bar.set_postfix(loss=f"{last['loss']:.3f}", root_iou=f"{last['root_iou']:.3f}", lr=f"{last['lr']:.1e}")
            after_epoch(run.history)
    except KeyboardInterrupt:
        if main:
            run.save(folder / "last.pt")
        raise

    if main:
        _check_best(folder, model)
        write_csv(folder / "history.csv", run.history)  # again: an interruption may have come just before
        about = {
            "config": asdict(config),
            "base": started_from,
            "scans": {"train": [s.name for s in train], "val": [s.name for s in val]},
            "patches": {"train": len(bank), "val": sum(len(tile(scan, config.patch_size)) for scan in val)},
            "weights_sha256": file_hash(folder / "best.safetensors"),
        }
        write_json(folder / "stage.json", about | {"provenance": provenance(accelerator.device)})
        shutil.rmtree(scratch(folder), ignore_errors=True)  # gigabytes, and never needed again
    accelerator.wait_for_everyone()
    return load_stage(folder)


def _check_best(folder: Path, model: RootSAM) -> None:
    """Raises ValueError unless the best epoch's weights are there and whole."""
    try:
        with torch.random.fork_rng(devices=[]):
            load_weights(copy.deepcopy(model), folder / "best.safetensors")
    except (ValueError, OSError) as error:
        raise ValueError(f"{shown(folder)}: {error} Delete the folder to train the stage anew.") from None


def build_scheduler(optimizer: torch.optim.Optimizer, config: StageConfig, steps: int) -> LRScheduler:
    """How the rate falls: the poster's ReduceLROnPlateau from epoch to epoch, or from step to step, after a short
    warm-up, a cosine's half wave to 0 at the end of all `steps`."""
    if config.schedule == "cosine":
        warmup = min(WARMUP, steps // 10)
        return LambdaLR(optimizer, lambda s: min((s + 1) / (warmup + 1), 0.5 * (1 + math.cos(math.pi * s / steps))))
    # The validation score is an absolute number between 0 and 1; a loss with a negative term would never look "worse".
    return ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=config.patience, threshold=1e-3, threshold_mode="abs"
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


def prepared_steps(
    accelerator: Accelerator, bank: FeatureBank, config: StageConfig, epoch: int, steps: Sequence[tuple], first: int = 0
) -> Iterator[tuple[int, Prepared]]:
    """An epoch's steps from the first one to do, each with its batch and prompts: see `prepare_step`. For a GPU threads
    prepare the next steps in the meantime; a CPU has nothing to spare for it."""
    on_gpu = accelerator.device.type == "cuda"
    threads = 1 if bank.place == "live" else preparing_threads(accelerator.device)  # live: the GPU encodes, in turn
    with ThreadPoolExecutor(threads) if on_gpu else InPlace() as pool:

        def prepare(step: int) -> Future:
            return pool.submit(prepare_step, accelerator, bank, config, epoch, step, steps[step])

        for step, ready in ahead(range(first, len(steps)), prepare, threads * on_gpu):
            yield step, ready.result()


@torch.no_grad()
def score(
    model: RootSAM, batches: Iterable[Batch], protocols: Sequence[FixedPrompts | None] = (POSTER_PROMPTS, None)
) -> list[list[Counts]]:
    """Ask the model for every patch of the batches with each protocol's points, or without any prompt (None).

    Returns for each protocol one `Counts` a patch, over the pixels that show the scan and not its mirrored padding.
    Raises FloatingPointError for answers that are no numbers.
    """
    model.eval()
    counts: list[list[Counts]] = [[] for _ in protocols]
    for batch in batches:
        embedding = model.embed(batch.features)
        truths = [mask[:height, :width] for mask, (height, width) in zip(batch.masks, batch.sizes, strict=True)]
        for protocol, own in zip(protocols, counts, strict=True):
            prompts = (None, None)
            if protocol is not None:
                drawn = [protocol.draw(truth, name) for truth, name in zip(truths, batch.names, strict=True)]
                prompts = stack_prompts(drawn, model.device)
            logits = resize_logits(model.decode(embedding, *prompts).logits, batch.masks.shape[1:])
            if not logits.isfinite().all():
                raise FloatingPointError("the model answers with NaN, for its training diverged: lower lr.")
            for mask, truth in zip((logits[:, 0] > 0).cpu().numpy(), truths, strict=True):
                own.append(count(mask[: truth.shape[0], : truth.shape[1]], truth))
    return counts


@torch.no_grad()
def found_width(model: RootSAM, batches: Iterable[Batch], most: int = 16) -> float:
    """The mean width in px, along their centre lines, of the roots that the model finds without any prompt in the
    first `most` patches with roots; 0 where it finds none. By it other images can be shown at a fitting scale."""
    model.eval()
    rooted, widths = (batch for batch in batches if batch.masks.any()), [np.zeros(0)]
    for batch in itertools.islice(rooted, most):
        logits = resize_logits(model.decode(model.embed(batch.features)).logits, batch.masks.shape[1:])
        widths += [root_widths(found) for found in (logits[:, 0] > 0).cpu().numpy() if found.any()]
    found = np.concatenate(widths)
    return float(found.mean()) if found.size else 0.0


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


class Run:
    """What changes while a stage trains, and therefore what resuming needs: the trained weights and their average over
    steps (EMA), the states of optimizer, scheduler and gradient scaler, the history of whole epochs, the losses of the
    steps since.

    No generator has a state to keep, and the bank knows by itself what it holds: see `train_step` and `FeatureBank`.
    """

    def __init__(self, model: RootSAM, optimizer, scheduler=None, scaler=None):
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        parts = {"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
        self.stateful = {name: part for name, part in parts.items() if part is not None}
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.ema = {name: p.detach().clone() for name, p in self.weights.items()}
        self.steps = 0
        self.history: list[dict[str, float]] = []
        self.losses: list[float] = []

    def end_step(self, loss: float, ema_decay: float) -> None:
        """Note the loss, update the weights' moving average (faster early on), and move a cosine's learning rate on."""
        decay = min(ema_decay, (1 + self.steps) / (10 + self.steps)) if ema_decay else 0.0
        torch._foreach_lerp_(list(self.ema.values()), [p.detach() for p in self.weights.values()], 1 - decay)
        self.losses.append(loss)
        self.steps += 1
        if isinstance(self.scheduler, LambdaLR):
            self.scheduler.step()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averaged weights into the model for the length of a block."""
        own = {name: p.detach().clone() for name, p in self.weights.items()}
        try:
            self.model.load_state_dict(self.ema, strict=False)
            yield
        finally:
            self.model.load_state_dict(own, strict=False)

    def end_epoch(self, epoch: int, scores: dict[str, float]) -> bool:
        """Add a row to the history, let a plateau's scheduler see the score; return whether it is the best so far.

        The score is the mean of prompted and automatic root IoU: the model is meant for both uses.
        """
        lr, both = self.optimizer.param_groups[0]["lr"], (scores["root_iou"] + scores["automatic_root_iou"]) / 2
        best_so_far = max((row["val_score"] for row in self.history), default=-1.0)
        row = {"epoch": epoch, "lr": lr, "loss": float(np.mean(self.losses)), "val_score": both}
        self.history.append(row | scores)
        self.losses = []
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(both)
        return both > best_so_far

    def save(self, path: Path) -> None:
        """Write all of it atomically."""
        trained = {name: p.detach() for name, p in self.weights.items()}
        state = {name: part.state_dict() for name, part in self.stateful.items()}
        state |= {"model": trained, "ema": self.ema, "steps": self.steps, "stage": path.parent.name}
        with atomic(path) as partial:
            torch.save(state | {"history": self.history, "losses": self.losses}, partial)

    def load(self, path: Path) -> None:
        """Go on from a saved state, if there is one. Raises ValueError for a damaged one or another training's."""
        if not path.is_file():
            return
        try:
            state = torch.load(path, weights_only=True, map_location=self.model.device)
            if (other := state["stage"]) != path.parent.name:
                raise ValueError(f"it is of {other}")
            for part in (state["model"], state["ema"]):
                if part.keys() != self.weights.keys() or not all(p.isfinite().all() for p in part.values()):
                    raise ValueError("weights are missing or no numbers")
            self.model.load_state_dict(state["model"], strict=False)
            for name, part in self.stateful.items():
                part.load_state_dict(state[name])
            self.ema, self.steps, self.history, self.losses = (state[k] for k in ("ema", "steps", "history", "losses"))
        except LOAD_ERRORS as error:
            why = error if isinstance(error, ValueError) else type(error).__name__
            raise ValueError(f"{shown(path)} is damaged ({why}): delete it to start anew.") from error
