"""What a stage of training is: its settings, the poster's two stages, and presets for common hardware."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from rootsam_lib.checkpoints import MODELS
from rootsam_lib.data.augment import build_augmentation

# The poster's rate is for Meta's models. nano is smaller and less trained, and needs a higher one; both stages keep the
# poster's ratio of 10 : 1.
STAGE1_LR = {"nano": 2e-3, "tiny": 1e-4, "small": 1e-4, "base_plus": 1e-4, "large": 1e-4}
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
    precision: str = "auto"  # no, fp16 or bf16; auto: what the hardware computes natively, on a CPU no
    views: int = 2  # augmented views of each patch in the feature bank
    refresh: float = 0.1  # the share of all views that every epoch encodes anew
    bank_gb: float = 8.0  # the most room on disk for the feature bank; 0: every batch runs the encoder
    input_scale: float = (
        1.0  # how much patches are enlarged for the encoder: the decoder gives one logit per 4 / input_scale px
    )
    train_neck: bool = False  # also train the encoder's neck; the poster's encoder is frozen, neck included
    detail: bool = False  # also add a small convolutional path for fine detail to the decoder; the poster does not
    n_root: int = 10  # most root points of a training prompt; each one draws its number
    n_soil: int = 5
    edt_exponent: float = 1.0
    no_prompt_share: float = 0.5  # of the training prompts are empty, so that the model also works without
    prompt_sets: int = 1  # drawn for every view of a step
    correction_share: float = 0.5  # of the steps go on with correction clicks
    correction_rounds: int = 3  # most clicks of such a step; each one draws its number
    unwanted_share: float = 0.5  # of the corrected views without prompts, in which only some of the roots are wanted
    point_weight: float = 1.0  # of the cross entropy in a window around every point of the first prompt
    click_weight: float = 1.0  # of the same around every correction click
    click_radius: int = 40  # half that window's side, px
    fn_weight: float = 0.5  # Abraham & Khan's 0.7 / 0.3 drew real roots, three pixels wide, far too wide
    fp_weight: float = 0.5
    focal_exponent: float = 0.75
    boundary_start: float = 0.01  # the boundary term's weight in the first epoch
    boundary_step: float = 0.01  # what it rises by each epoch
    boundary_most: float = 0.2
    iou_weight: float = 0.05  # of the predicted IoU's squared error, or its head would go stale
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    ema_decay: float = 0.99  # of the weights over steps: what is scored and kept changes by 1 % of a step; 0: none
    schedule: str = "plateau"  # how the rate falls: when validation stalls, or as a cosine to nought at the end
    patience: int = 1  # plateau: epochs without a better validation score before the rate falls
    lr_factor: float = 0.5
    soil_share: float = 0.15  # of the training patches hold no root
    families: tuple[str, ...] | None = None  # augmentation families; None: all five
    seed: int = 0

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"model {self.model!r} is unknown: choose one of {', '.join(MODELS)}.")
        positive = ("patch_size", "epochs", "batch_size", "micro_batches", "views", "lr", "input_scale", "n_root")
        for name in (*positive, "prompt_sets", "correction_rounds", "click_radius"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be greater than 0.")
        for name in ("no_prompt_share", "soil_share", "refresh", "correction_share", "unwanted_share", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1 or (name == "soil_share" and self.soil_share == 1):
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 0 and at most 1.")
        if self.bank_gb < 0:
            raise ValueError(f"bank_gb is {self.bank_gb}: give the room for the feature bank in GB, or 0 for none.")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is unknown: choose one of {', '.join(PRECISIONS)}.")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule {self.schedule!r} is unknown: choose one of {', '.join(SCHEDULES)}.")
        if self.patch_size % 32:
            raise ValueError(f"patch_size is {self.patch_size}: choose a multiple of 32.")
        build_augmentation(self.patch_size, self.families)  # refuses unknown families


def stage1(model: str = "nano", **changes: object) -> StageConfig:
    """Stage 1: 512 px patches; the poster's 1e-4 for Meta's models, 2e-3 for nano."""
    if model not in MODELS:
        raise ValueError(f"model {model!r} is unknown: choose one of {', '.join(MODELS)}.")
    return replace(StageConfig(1, model, 512, STAGE1_LR[model]), **changes)


def stage2(model: str = "nano", **changes: object) -> StageConfig:
    """Stage 2: 1024 px patches at a tenth of Stage 1's rate; half the batch, for patches are four times as large, and
    four times the points, so that they lie as close together."""
    first = stage1(model)
    own = {"stage": 2, "patch_size": 1024, "lr": first.lr / 10, "batch_size": 2}
    points = {"n_root": 4 * first.n_root, "n_soil": 4 * first.n_soil}
    return replace(first, **{**own, **points, **changes})


def stage_pair(
    model: str = "nano",
    epochs: tuple[int, int] = (12, 6),
    lr: float = 0,
    hardware: str = "cpu",
    **changes: object,
) -> tuple[StageConfig, StageConfig]:
    """Both stages with common settings: lr is Stage 1's (0: the model's own), Stage 2 takes a tenth.

    hardware: a key of `PRESETS`, for batch size, room for the feature bank and precision.
    """
    if hardware not in PRESETS:
        raise ValueError(f"hardware {hardware!r} is unknown: choose one of {', '.join(PRESETS)}.")
    preset = PRESETS[hardware]
    common = {
        "micro_batches": preset.micro_batches,
        "bank_gb": preset.bank_gb,
        "precision": preset.precision,
        **changes,
    }
    if lr < 0:
        raise ValueError(f"lr is {lr}: it must be 0 (the model's own) or more.")
    rates = ({"lr": lr}, {"lr": lr / 10}) if lr else ({}, {})
    first = stage1(model, **{"epochs": epochs[0], "batch_size": preset.batch_size, **rates[0], **common})
    return first, stage2(model, **{"epochs": epochs[1], "batch_size": preset.batch_size // 2, **rates[1], **common})
