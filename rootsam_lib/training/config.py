"""What a stage of training is: its settings, the poster's two stages, and presets for common hardware."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from rootsam_lib import checked, checked_flag
from rootsam_lib.checkpoints import EMBEDDED, MODELS
from rootsam_lib.data.augment import build_augmentation
from rootsam_lib.prompts import MOST_EXPONENT

PRECISIONS = ("auto", "no", "fp16", "bf16")
SCHEDULES = ("plateau", "cosine")


class Preset(NamedTuple):
    """Settings for a kind of hardware. model is a suggestion; batch_size is Stage 1's, Stage 2 takes half."""

    hardware: str
    model: str
    batch_size: int
    micro_batches: int
    bank_gb: float
    precision: str
    ran: bool  # whether this project has been run on it


PRESETS = {
    "cpu": Preset("CPU, 2 cores", "nano", 4, 1, 8.0, "auto", True),
    "t4": Preset("T4, 16 GB", "small", 8, 2, 30.0, "fp16", False),
    "a100": Preset("A100 or H100, 40 GB or more", "large", 16, 1, 100.0, "bf16", False),
}


@dataclass(frozen=True)
class StageConfig:
    """Everything that decides what a stage learns, apart from the scans and the weights it starts from."""

    stage: int
    model: str
    patch_size: int  # px
    lr: float
    epochs: int = 12
    batch_size: int = 4  # patches per step, of all processes together
    micro_batches: int = 1  # parts that a process computes its patches of a step in: more parts need less memory
    precision: str = "auto"  # no, fp16 or bf16; auto: half precision on CUDA alone
    views: int = 2  # augmented views of each patch in the feature bank
    refresh: float = 0.1  # the share of all views that every epoch encodes anew
    bank_gb: float = 8.0  # the most room on disk for the feature bank; 0: every batch runs the encoder
    input_scale: float = 1.0  # how much patches are enlarged for the encoder: one logit per 4 / input_scale px
    train_neck: bool = False  # also train the encoder's neck; the poster's encoder is frozen, neck included
    detail: bool = False  # also give the decoder a path to fine detail that answers for all roots; the poster does not
    n_root: int = 10  # most points of a prompt that asks for several roots; each step draws its number
    n_soil: int = 3  # most of them that say what is not wanted
    edt_exponent: float = 1.0
    slip: float = 2.0  # px (SD) by which half of the training points miss their aim
    selection: bool = True  # points mean the roots that carry them; False: all roots, whatever the points say
    correction_share: float = 0.2  # of the steps go on with correction clicks
    point_weight: float = 1.0  # of the cross entropy in a window around every point and click
    ce_weight: float = 2.0  # of the cross entropy over all pixels
    fn_weight: float = 0.5  # Abraham & Khan's 0.7 / 0.3 scored no better on real roots: data/results
    fp_weight: float = 0.5
    focal_exponent: float = 0.75
    boundary_start: float = 0.01  # the boundary term's weight in the first epoch
    boundary_step: float = 0.01  # what it rises by each epoch, up to 0.2
    weight_decay: float = 1e-4
    ema_decay: float = 0.99  # of the average of the weights over steps, which is scored and kept; 0: no average
    schedule: str = "plateau"  # how the rate falls: when validation stalls, or after a warm-up as a cosine to 0
    patience: int = 1  # plateau: epochs without a better validation score before the rate is halved
    soil_share: float = 0.15  # of the training patches hold no root
    families: tuple[str, ...] | None = None  # augmentation families; None: the poster's five
    seed: int = 0

    def __post_init__(self) -> None:
        for name, options in (("model", MODELS), ("precision", PRECISIONS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in options:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown: choose one of {', '.join(options)}.")
        for name in ("stage", "patch_size", "epochs", "batch_size", "micro_batches", "views", "n_root"):
            object.__setattr__(self, name, checked(name, getattr(self, name), 1, whole=True))  # 3.0 becomes 3
        checked("seed", self.seed, 0, 2**32 - 1, whole=True)
        for name in ("n_soil", "patience", "seed"):
            object.__setattr__(self, name, checked(name, getattr(self, name), 0, whole=True))
        checked("lr", self.lr, 0, 1, above=True)
        checked("input_scale", self.input_scale, 0, 32, above=True)
        for name in ("refresh", "correction_share", "ema_decay"):
            checked(name, getattr(self, name), 0, 1)
        for name in ("bank_gb", "point_weight", "fn_weight", "fp_weight", "focal_exponent"):
            checked(name, getattr(self, name), 0)
        for name in ("slip", "ce_weight", "boundary_start", "boundary_step", "weight_decay"):
            checked(name, getattr(self, name), 0)
        checked("soil_share", self.soil_share, 0, 0.99)
        checked("edt_exponent", self.edt_exponent, 0, MOST_EXPONENT)
        for name in ("train_neck", "detail", "selection"):
            checked_flag(name, getattr(self, name))
        if self.patch_size % 32:
            raise ValueError(f"patch_size is {self.patch_size}: choose a multiple of 32.")
        build_augmentation(self.patch_size, self.families)  # refuses unknown families


def stage1(model: str = "nano", **changes: object) -> StageConfig:
    """Stage 1: 512 px patches; the poster's 1e-4 for Meta's models, 2e-3 for nano."""
    lr = 2e-3 if model in EMBEDDED else 1e-4  # nano is smaller and less trained, and needs a higher one
    return StageConfig(**{"stage": 1, "model": model, "patch_size": 512, "lr": lr, **changes})


def stage2(model: str = "nano", **changes: object) -> StageConfig:
    """Stage 2: 1024 px patches at a tenth of Stage 1's rate; half the batch, for patches are four times as large, and
    four times the points, so that they lie as close together."""
    first = stage1(model)
    own = {"stage": 2, "patch_size": 1024, "lr": first.lr / 10, "batch_size": first.batch_size // 2}
    points = {"n_root": 4 * first.n_root, "n_soil": 4 * first.n_soil}
    return replace(first, **{**own, **points, **changes})


def parse_families(text: str) -> tuple[str, ...] | None:
    """Families of augmentation from a parameter, joined by commas; None, the poster's, for "". Raises ValueError for an
    unknown one."""
    families = tuple(name.strip() for name in text.split(",")) if text.strip() else None
    build_augmentation(32, families)
    return families


def stage_pair(
    model: str = "nano", epochs: tuple[int, int] = (12, 6), lr: float = 0, hardware: str = "cpu", **changes: object
) -> tuple[StageConfig, StageConfig]:
    """Both stages with common settings: lr is Stage 1's (0: the model's own), Stage 2 takes a tenth.

    hardware: a key of `PRESETS`, for batch size, room for the feature bank and precision. families: also as one text,
    joined by commas; "" for the poster's.
    """
    if np.shape(epochs) != (2,):
        raise ValueError(f"epochs is {epochs!r}: give two numbers, of Stage 1 and of Stage 2.")
    if hardware not in PRESETS:
        raise ValueError(f"hardware {hardware!r} is unknown: choose one of {', '.join(PRESETS)}.")
    preset = PRESETS[hardware]
    own = {name: getattr(preset, name) for name in ("micro_batches", "bank_gb", "precision")} | changes
    if isinstance(own.get("families"), str):
        own["families"] = parse_families(own["families"])
    rates = ({"lr": lr}, {"lr": lr / 10}) if checked("lr", lr, 0) else ({}, {})
    return (
        stage1(model, **{"epochs": epochs[0], "batch_size": preset.batch_size, **rates[0], **own}),
        stage2(model, **{"epochs": epochs[1], "batch_size": preset.batch_size // 2, **rates[1], **own}),
    )
