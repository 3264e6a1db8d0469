"""Training: one stage at a time, with the image encoder frozen.

Stage 1 learns local features on 512 px patches, from the base model; Stage 2 learns connectivity and branching on
1024 px patches, from Stage 1, at a tenth of the rate. (Poster, fine-tuning.)
"""

import csv
import hashlib
import io
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from rootsam_lib.augment import build_augmentation
from rootsam_lib.evaluation import FixedPrompts, score
from rootsam_lib.features import Batch, FeatureBank
from rootsam_lib.losses import boundary_schedule, hybrid_loss
from rootsam_lib.metrics import summarise
from rootsam_lib.progress import progress
from rootsam_lib.prompts import PADDING, Prompts, sample_points, stack_prompts
from rootsam_lib.results import provenance, shown, write_json, write_text
from rootsam_lib.sam import HERE, MODELS, RootSAM, build_sam, resize_logits, save_weights, weights_hash
from rootsam_lib.scans import Patch, Scan, check_masks, tile

# What a stage is computed by: its folder's name depends on it.
CODE = [
    f"{room}.py" for room in ("augment", "evaluation", "features", "losses", "metrics", "prompts", "sam", "training")
]
EPOCH_STREAM, PATCH_STREAM = 2, 3  # tell uses of a seed apart, so that no two draw the same numbers

# The poster's rate is for Meta's models. nano is smaller and less trained, and needs a higher one; both stages keep the
# poster's ratio of 10 : 1.
STAGE1_RATE = {"nano": 2e-3, "tiny": 1e-4, "small": 1e-4, "base_plus": 1e-4, "large": 1e-4}


@dataclass(frozen=True)
class StageConfig:
    """Everything that decides what a stage learns, apart from the scans and the weights it starts from."""

    stage: int
    model: str
    patch_size: int  # px
    learning_rate: float
    epochs: int = 12
    batch_size: int = 4
    views: int = 2  # augmented views of each patch in the feature bank
    encode_size: int | None = None  # side in px that the encoder sees; None: the patch as it is
    n_root: int = 10  # most root points of a training prompt; each one draws its number
    n_soil: int = 5
    edt_exponent: float = 1.0
    no_prompt_share: float = 0.25  # of the training prompts are empty, so that the model also works without
    fn_weight: float = 0.5  # Abraham & Khan's 0.7 / 0.3 drew real roots, three pixels wide, far too wide
    fp_weight: float = 0.5
    focal_exponent: float = 0.75
    boundary_start: float = 0.01  # the boundary term's weight in the first epoch
    boundary_step: float = 0.01  # what it rises by each epoch
    boundary_most: float = 0.2
    iou_weight: float = 0.05  # of the predicted IoU's squared error, or its head would go stale
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    patience: int = 2  # epochs without a better validation score before the rate falls
    rate_factor: float = 0.5
    soil_share: float = 0.15  # of the training patches hold no root
    families: tuple[str, ...] | None = None  # augmentation families; None: all five
    seed: int = 0

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"model {self.model!r} is unknown: choose one of {', '.join(MODELS)}.")
        for name in ("patch_size", "epochs", "batch_size", "views", "learning_rate", "n_root"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be greater than 0.")
        for name in ("no_prompt_share", "soil_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 0 and below 1.")
        if (self.encode_size or self.patch_size) % 32:
            raise ValueError(
                f"patches are encoded at {self.encode_size or self.patch_size} px: choose a multiple of 32."
            )
        build_augmentation(self.patch_size, self.families)  # refuses unknown families


def stage1(model: str = "nano", **changes: object) -> StageConfig:
    """Stage 1: 512 px patches; the poster's 1e-4 for Meta's models, 2e-3 for nano."""
    if model not in MODELS:
        raise ValueError(f"model {model!r} is unknown: choose one of {', '.join(MODELS)}.")
    return replace(StageConfig(1, model, 512, STAGE1_RATE[model]), **changes)


def stage2(model: str = "nano", **changes: object) -> StageConfig:
    """Stage 2: 1024 px patches at a tenth of Stage 1's rate; half the batch, for patches are four times as large."""
    first = stage1(model)
    return replace(
        first, **{"stage": 2, "patch_size": 1024, "learning_rate": first.learning_rate / 10, "batch_size": 2, **changes}
    )


def stage_pair(
    model: str = "nano", epochs: tuple[int, int] = (12, 6), learning_rate: float = 0, **changes: object
) -> tuple[StageConfig, StageConfig]:
    """Both stages with common settings: learning_rate is Stage 1's (0: the model's own), Stage 2 takes a tenth."""
    if learning_rate < 0:
        raise ValueError(f"learning_rate is {learning_rate}: it must be 0 (the model's own) or more.")
    rates = ({"learning_rate": learning_rate}, {"learning_rate": learning_rate / 10}) if learning_rate else ({}, {})
    first = stage1(model, epochs=epochs[0], **rates[0], **changes)
    return first, stage2(model, epochs=epochs[1], **rates[1], **changes)


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


def training_prompts(masks: np.ndarray, config: StageConfig, rng: np.random.Generator) -> list[Prompts]:
    """Fresh prompts for a batch of masks (B, H, W): 1 to n_root root points, up to n_soil soil points, or none."""
    prompts = []
    for mask in masks:
        if rng.random() < config.no_prompt_share:
            prompts.append(Prompts(np.zeros((1, 2), np.float32), np.full(1, PADDING)))
        else:
            n_root, n_soil = int(rng.integers(1, config.n_root + 1)), int(rng.integers(0, config.n_soil + 1))
            prompts.append(sample_points(mask, n_root, n_soil, rng, config.edt_exponent))
    return prompts


def batch_loss(model: RootSAM, batch: Batch, prompts: list[Prompts], config: StageConfig, epoch: int) -> Tensor:
    """The hybrid loss of one batch, plus the predicted IoU's squared error. Raises FloatingPointError on NaN."""
    device = batch.features.maps[0].device
    truth, distance = batch.truth(device), batch.distance(device)
    prediction = model(batch.features, *stack_prompts(prompts, device))
    logits = resize_logits(prediction.logits, truth.shape[-2:])
    weight = boundary_schedule(epoch, config.boundary_start, config.boundary_step, config.boundary_most)
    loss = hybrid_loss(logits, truth, distance, weight, config.fn_weight, config.fp_weight, config.focal_exponent)
    found = (logits.detach() > 0).float()
    union = ((found + truth) > 0).sum((2, 3))
    true_iou = torch.where(union > 0, (found * truth).sum((2, 3)) / union.clamp_min(1), 1.0)
    total = loss.total + config.iou_weight * F.mse_loss(prediction.iou.float(), true_iou)
    if not torch.isfinite(total):
        raise FloatingPointError(
            f"the loss is {total.item()} in epoch {epoch}: lower learning_rate, or check the masks."
        )
    return total


def _run_id(config: StageConfig, train: Sequence[Scan], select: Sequence[Scan], base: str) -> str:
    """Eight hex digits for config, scans, starting weights and code: no other setting shares the folder."""
    code = [path.read_text(encoding="utf-8") for path in (MODELS[config.model].config, *(HERE / file for file in CODE))]
    scans = [
        [(s.name, zlib.crc32(np.ascontiguousarray(s.image)), zlib.crc32(np.ascontiguousarray(s.mask))) for s in part]
        for part in (train, select)
    ]
    identity = json.dumps([asdict(config), scans, base, code, provenance()["versions"]], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:8]


def train_stage(
    config: StageConfig,
    train: Sequence[Scan],
    select: Sequence[Scan],
    runs: Path,
    base: str | Path = "default",
) -> Stage:
    """Train one stage, or go on with it, or return it when it is already done.

    train: scans to learn from. select: scans of other tubes, on which the best epoch is chosen and the rate is lowered;
    they must not be the ones that scores are reported on. runs: the folder that holds one folder per setting. base: the
    weights to start from, "default" for the model as it is published.
    Writes best.safetensors, last.pt, history.csv and stage.json. Seeded: on CPU it repeats bit for bit, also when it
    was interrupted, since every epoch draws from its own generator; what is lost is the epoch in hand, and the time to
    encode the views again.
    """
    check_masks([*train, *select])
    accelerator = Accelerator()
    model = build_sam(config.model, base).to(accelerator.device)
    started_from = weights_hash(model)
    folder = Path(runs) / f"stage{config.stage}-{_run_id(config, train, select, started_from)}"
    if (folder / "stage.json").is_file():
        print(f"Stage {config.stage}: already trained, read from {shown(folder)}.")
        return load_stage(folder)

    patches = training_patches(train, config)
    held_out = [patch for scan in select for patch in tile(scan, config.patch_size)]
    if not any(patch.mask.any() for patch in held_out):
        raise ValueError(f"none of the {len(select)} validation scans has a root: take more scans, or another seed.")
    print(f"Stage {config.stage}: {config.epochs} epochs on {len(patches)} patches, kept in {shown(folder)}.")
    encoding = {"encode_size": config.encode_size, "seed": config.seed}
    pipeline = build_augmentation(config.patch_size, config.families)
    note = f"Stage {config.stage}: encode"
    bank = FeatureBank(model, patches, pipeline, config.views, dtype=torch.bfloat16, note=note, **encoding)
    held_out_bank = FeatureBank(model, held_out, **encoding, note="encode validation patches")

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    # The validation score is an absolute number between 0 and 1; a loss with a negative term would never look "worse".
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=config.rate_factor, patience=config.patience, threshold=1e-3, threshold_mode="abs"
    )
    history = _resume(folder / "last.pt", model, optimizer, scheduler)
    model, optimizer = accelerator.prepare(model, optimizer)

    epochs = range(len(history), config.epochs)
    bar = progress(epochs, f"Stage {config.stage}", "epoch")
    for epoch in bar:
        rng = np.random.default_rng([EPOCH_STREAM, config.seed, config.stage, epoch])
        order, views = rng.permutation(len(bank)), rng.integers(config.views, size=len(bank))
        model.train()
        losses = []
        for start in range(0, len(order), config.batch_size):
            chosen = order[start : start + config.batch_size]
            batch = bank.batch(chosen, views[chosen], accelerator.device)
            loss = batch_loss(model, batch, training_prompts(batch.masks, config, rng), config, epoch)
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(trained, config.clip_norm)
            optimizer.step()
            losses.append(loss.item())

        plain = accelerator.unwrap_model(model)
        scores = summarise(score(plain, held_out_bank, FixedPrompts(seed=config.seed)))
        rate = optimizer.param_groups[0]["lr"]
        scheduler.step(scores["root_iou"])
        best_so_far = max((row["root_iou"] for row in history), default=-1.0)
        history.append({"epoch": epoch, "rate": rate, "loss": float(np.mean(losses)), **scores})
        if scores["root_iou"] > best_so_far:
            save_weights(plain, folder / "best.safetensors")
        _save_last(folder / "last.pt", plain, optimizer, scheduler, history)
        bar.set_postfix(loss=f"{history[-1]['loss']:.3f}", root_iou=f"{scores['root_iou']:.3f}", rate=f"{rate:.1e}")

    scans = {"train": [s.name for s in train], "select": [s.name for s in select]}
    patches = {"train": len(bank), "select": len(held_out_bank)}
    about = {"config": asdict(config), "base": started_from, "scans": scans, "patches": patches}
    write_json(folder / "stage.json", about | {"provenance": provenance(accelerator.device)})
    return load_stage(folder)


def load_stage(folder: str | Path) -> Stage:
    """Read a finished stage. Raises FileNotFoundError when it is not finished or not there."""
    folder = Path(folder)
    if not (folder / "stage.json").is_file():
        raise FileNotFoundError(f"{folder} holds no finished stage: run notebook 03 (Stage 1) or 04 (Stage 2).")
    with open(folder / "history.csv", newline="", encoding="utf-8") as file:
        history = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return Stage(folder, json.loads((folder / "stage.json").read_text(encoding="utf-8"))["config"], history)


def _save_last(path: Path, model: RootSAM, optimizer, scheduler, history: list[dict[str, float]]) -> None:
    """The history as CSV, then everything that resuming needs, each atomically: last.pt never knows an epoch more."""
    state = {
        "model": {name: p.detach().cpu() for name, p in model.named_parameters() if p.requires_grad},
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "history": history,
    }
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(path.parent / "history.csv", table.getvalue())
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def _resume(path: Path, model: RootSAM, optimizer, scheduler) -> list[dict[str, float]]:
    """Load the last epoch's state into model, optimizer and scheduler; return the history so far, if any."""
    if not path.is_file():
        return []
    state = torch.load(path, weights_only=True, map_location=model.device)
    model.load_state_dict(state["model"], strict=False)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    return state["history"]
