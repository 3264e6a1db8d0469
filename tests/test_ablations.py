"""Variants are what they say, differ from each other, and are refused by name before anything is trained."""

from dataclasses import replace

import pytest

from rootsam_lib import ablations
from rootsam_lib.ablations import REFERENCE, VARIANTS, train_variants
from rootsam_lib.stages import stage_pair


def test_every_variant_is_a_valid_and_different_configuration():
    first, second = stage_pair("nano")
    seen = [(replace(first, **v.changes), v.stages) for v in VARIANTS.values()]
    assert len({str(each) for each in seen}) == len(VARIANTS) and seen[0] == (first, 1)
    assert all(replace(second, **v.changes).stage == 2 for v in VARIANTS.values())


def test_an_unknown_variant_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="variant 'no roots' is unknown: choose from reference, uniform prompts"):
        train_variants(["one point", "no roots"], stage_pair("nano"), [], [], tmp_path)


def test_the_reference_comes_first_and_two_stages_train_two(monkeypatch, tmp_path):
    trained = []

    class Done:
        weights = "weights of stage 1"

        def model(self):
            return type("Model", (), {"eval": lambda self: self})()

    def train_stage(config, train, select, runs, base="default"):
        trained.append((config.stage, config.edt_exponent, base))
        return Done()

    monkeypatch.setattr(ablations, "train_stage", train_stage)
    predictors = train_variants(["two stages", "uniform prompts"], stage_pair("nano"), [], [], tmp_path)
    assert list(predictors) == [REFERENCE, "two stages", "uniform prompts"]
    assert trained == [
        (1, 1.0, "default"),
        (1, 1.0, "default"),
        (2, 1.0, "weights of stage 1"),
        (1, 0.0, "default"),
    ]
