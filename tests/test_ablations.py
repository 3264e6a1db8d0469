"""Variants are what they say, differ from each other, and are refused by name before anything is trained."""

from dataclasses import replace

import numpy as np
import pytest

from rootsam_lib.checkpoints import build_sam
from rootsam_lib.lessons import ablations
from rootsam_lib.lessons.ablations import REFERENCE, VARIANTS, seed_spread, train_variants
from rootsam_lib.training.config import stage_pair


def test_every_variant_is_a_valid_and_different_configuration():
    first, second = stage_pair("nano")
    for detail, families, same in ((False, None, "no detail path"), (True, ("tint",), "detail path")):
        start = replace(first, detail=detail, families=families, schedule="plateau" if detail else "cosine")
        seen = {name: str((replace(start, **v.changes), v.stages)) for name, v in VARIANTS.items()}
        twice = [name for name, config in seen.items() if list(seen.values()).count(config) > 1]
        assert twice[0] == REFERENCE and same in twice and len(twice) == 3
    assert all(replace(second, **v.changes).stage == 2 for v in VARIANTS.values())


def test_an_unknown_variant_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="variant 'no roots' is unknown: choose from reference, uniform prompts"):
        train_variants(["one point", "no roots"], stage_pair("nano"), [], [], tmp_path)


def test_the_reference_comes_first_two_stages_train_two_and_nothing_is_trained_twice(monkeypatch, tmp_path):
    trained = []

    class Done:
        weights = "weights of stage 1"

        def model(self):
            return build_sam("nano")

    def train_stage(config, train, val, runs, base="default"):
        trained.append((config.stage, config.edt_exponent, base))
        return Done()

    monkeypatch.setattr(ablations, "train_stage", train_stage)
    names = ["two stages", "no detail path", "uniform prompts"]
    predictors = train_variants(names, stage_pair("nano"), [], [], tmp_path)
    assert list(predictors) == [REFERENCE, "two stages", "uniform prompts"]
    assert trained == [
        (1, 1.0, "default"),
        (1, 1.0, "default"),
        (2, 1.0, "weights of stage 1"),
        (1, 0.0, "default"),
    ]


def test_seed_spread_by_hand():
    rows = {
        REFERENCE: {"root_iou": [0.30, 0.2, 0.4]},
        "seed 1": {"root_iou": [0.32, 0.2, 0.4]},
        "no focus": {"root_iou": [0.9, 0.8, 1.0]},  # another recipe, not another seed
        "seed 2": {"root_iou": [0.34, 0.2, 0.4]},
    }
    middle, spread = seed_spread(rows, "root_iou")
    assert (middle, spread) == (pytest.approx(0.32), pytest.approx(0.02))
    del rows["seed 1"], rows["seed 2"]
    assert np.isnan(seed_spread(rows, "root_iou")[1])
