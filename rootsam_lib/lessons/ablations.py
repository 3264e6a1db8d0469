"""Ablations: what each choice is worth, by leaving it out or turning it round, everything else alike.

Every variant trains from the same base model, on the same patches, with the same seed; `protocols.evaluate` then gives
the paired difference from the first row. A difference whose interval holds 0 has not been shown; and the interval
covers the choice of tubes only, so a difference within the spread of seeds has not been shown either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from rootsam_lib.data.scans import Scan
from rootsam_lib.predictor import Predictor
from rootsam_lib.training.config import StageConfig
from rootsam_lib.training.loop import train_stage


class Variant(NamedTuple):
    """The question, in words, and what it changes: fields of `StageConfig`, and how many stages are trained."""

    question: str
    changes: Mapping[str, object]
    stages: int = 1


REFERENCE = "reference"
VARIANTS = {
    REFERENCE: Variant("Stage 1 as it is", {}),
    "uniform prompts": Variant("points anywhere on a root, instead of by EDT", {"edt_exponent": 0.0}),
    "EDT squared": Variant("points drawn to the middle of thick roots", {"edt_exponent": 2.0}),
    "all roots": Variant("all roots are the target, whatever the points say", {"selection": False}),
    "one point": Variant("no prompts of several points in training", {"n_root": 1}),
    "steady hand": Variant("no training point misses its aim", {"slip": 0.0}),
    "no point loss": Variant("no cross entropy around the points of a prompt", {"point_weight": 0.0}),
    "no cross entropy": Variant("no cross entropy over all pixels: the poster's hybrid loss", {"ce_weight": 0.0}),
    "no boundary": Variant("no boundary term", {"boundary_start": 0.0, "boundary_step": 0.0}),
    "no focus": Variant("Tversky loss without the focal exponent", {"focal_exponent": 1.0}),
    "Tversky 0.7 / 0.3": Variant("missed root counts more than false root", {"fn_weight": 0.7, "fp_weight": 0.3}),
    "no augmentation": Variant("patches as they are", {"families": (), "views": 1, "refresh": 0.0}),
    "poster's augmentation": Variant("the poster's five families", {"families": None}),
    "four views": Variant("four views of every patch are kept", {"views": 4}),
    "no corrections": Variant("no clicks on mistakes in training", {"correction_share": 0.0}),
    "neck trained": Variant("the encoder's neck learns too; its trunk stays frozen", {"train_neck": True}),
    "detail path": Variant("a U-Net-like path answers 'all roots', and brings the decoder detail", {"detail": True}),
    "no detail path": Variant("SAM2.1's decoder by itself", {"detail": False}),
    "no average": Variant("the last step's weights, not their average", {"ema_decay": 0.0}),
    "plateau": Variant("the rate falls when validation stalls, as the poster's", {"schedule": "plateau"}),
    "finer logits": Variant("patches enlarged 1.5 times for the encoder", {"input_scale": 1.5}),
    "two stages": Variant("and Stage 2 on 1024 px patches after it", {}, 2),
    "seed 1": Variant("nothing but luck: other patches without roots, views and prompts", {"seed": 1}),
    "seed 2": Variant("the same once more", {"seed": 2}),
}


def parse_variants(text: str) -> list[str]:
    """Variants from a parameter: names joined by ",", or "all". Raises ValueError for an unknown name."""
    names = list(VARIANTS) if text == "all" else [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in VARIANTS]:
        raise ValueError(f"variant {unknown[0]!r} is unknown: choose from {', '.join(VARIANTS)}.")
    return names


def train_variants(
    names: Sequence[str],
    stages: tuple[StageConfig, StageConfig],
    train: Sequence[Scan],
    val: Sequence[Scan],
    runs: Path,
) -> dict[str, Predictor]:
    """Train (or read, where it is done) each named variant of both stages; the reference always comes first, and what
    these stages do already is left out.

    Raises ValueError for an unknown name, before anything is trained.
    """
    predictors = {}
    for name in parse_variants(", ".join(dict.fromkeys((REFERENCE, *names)))):
        variant = VARIANTS[name]
        config = replace(stages[0], **variant.changes)
        if name != REFERENCE and config == stages[0] and variant.stages == 1:
            print(f"{name}: left out, for the reference is so already.")
            continue
        stage = train_stage(config, train, val, runs)
        if variant.stages == 2:
            stage = train_stage(replace(stages[1], **variant.changes), train, val, runs, base=stage.weights)
        predictors[name] = Predictor(stage.model(), config.input_scale)
    return predictors


def seed_spread(rows: Mapping[str, Mapping[str, Sequence[float]]], score: str) -> tuple[float, float]:
    """Mean and standard deviation (of a sample) of a score over the reference and the variants that change the seed.

    rows: a table of `protocols.evaluate`. The deviation is NaN where fewer than two of them were trained.
    """
    seeds = [name for name in rows if name == REFERENCE or "seed" in VARIANTS[name].changes]
    values = [rows[name][score][0] for name in seeds]
    return mean(values), stdev(values) if len(values) > 1 else float("nan")
