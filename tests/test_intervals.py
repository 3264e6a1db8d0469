"""Intervals and agreement against hand-computed cases, a normal approximation, and the rules that they are built on."""

import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from rootsam_lib.evaluation.bootstrap import (
    RatioTerms,
    agreement,
    collect,
    difference,
    estimate,
    interval,
    relative_gain,
    tube_weights,
)


def test_images_of_one_tube_are_drawn_together():
    weights = tube_weights(["a", "b", "a", "c"], np.random.default_rng(0), 500)
    assert weights.shape == (500, 4) and (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all(), "three tubes are drawn in every sample"
    assert (weights[:, 0] != weights[:, 1]).any()
    with pytest.raises(ValueError, match="no image"):
        tube_weights([], np.random.default_rng(0))


def test_one_tube_has_no_interval_and_many_alike_have_one_of_no_width():
    one = tube_weights(["a"] * 5, np.random.default_rng(0), 50)
    values = RatioTerms(np.arange(5.0), np.ones(5))
    for found in (estimate(values, one), difference(values, values, one), relative_gain(values, values, one)):
        assert math.isnan(found.low) and math.isnan(found.high)
    assert estimate(values, one).value == 2
    alike = tube_weights(list("abcde"), np.random.default_rng(0), 50)
    assert estimate(RatioTerms(np.full(5, 0.25), np.ones(5)), alike) == pytest.approx((0.25, 0.25, 0.25))


def test_against_scipy():
    values = np.random.default_rng(1).random(60)
    ours = estimate(
        RatioTerms(values, np.ones(60)), tube_weights([str(i) for i in range(60)], np.random.default_rng(2), 9000)
    )
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=9000, rng=3).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.006) and ours.high == pytest.approx(theirs.high, abs=0.006)


def test_patches_of_few_tubes_are_less_sure_than_as_many_of_many():
    values = np.repeat(np.random.default_rng(0).random(8), 10)  # 8 tubes, 10 patches each, all alike within a tube
    tubes, patches = [f"{i // 10}" for i in range(80)], [str(i) for i in range(80)]
    spans = []
    for names in (tubes, patches):
        found = estimate(RatioTerms(values, np.ones(80)), tube_weights(names, np.random.default_rng(0), 3000))
        spans.append(found.high - found.low)
    assert spans[0] > 2 * spans[1]


def test_paired_differences_are_surer_than_their_parts():
    rng = np.random.default_rng(0)
    easy = rng.random(40)  # some images are easy for every model
    old, new = RatioTerms(easy, np.ones(40)), RatioTerms(easy + 0.02, np.ones(40))
    weights = tube_weights([str(i) for i in range(40)], rng, 2000)
    assert difference(new, old, weights) == pytest.approx((0.02, 0.02, 0.02))
    assert estimate(new, weights).high - estimate(new, weights).low > 0.1
    gain = relative_gain(new, old, weights)
    assert gain.value == pytest.approx(0.02 / easy.mean()) and gain.low < gain.value < gain.high


def test_what_nothing_counts_for_is_not_a_number():
    nothing = RatioTerms(np.zeros(3), np.zeros(3))
    weights = tube_weights(list("abc"), np.random.default_rng(0), 10)
    assert all(math.isnan(x) for x in estimate(nothing, weights))
    assert all(math.isnan(x) for x in relative_gain(nothing, nothing, weights))
    assert interval(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0)


def test_a_mean_runs_over_what_counts_and_pairs_are_summed():
    rows = [{"mean": value, "pooled": pair} for value, pair in ((1.0, (1, 2)), (math.nan, (0, 0)), (3.0, (5, 6)))]
    scores = collect(rows)
    terms = scores["mean"]
    assert terms.value == 2 and terms.denominator.tolist() == [1, 0, 1] and scores["pooled"].value == 6 / 8
    with pytest.raises(ValueError, match="no image to score"):
        collect([])
    weights = np.array([[1, 0, 1], [2, 1, 0], [0, 3, 0]])
    np.testing.assert_array_equal(terms.samples(weights), [2, 1, math.nan])


def test_level_of_an_interval():
    assert interval(np.arange(101.0)) == pytest.approx((2.5, 97.5))


# --- Agreement of traits


def test_agreement_by_hand():
    result = agreement([1.0, 2.0, 4.0, 5.0], [1.0, 3.0, 3.0, 5.0], ["a", "a", "b", "b"])
    assert result["bias"] == 0 and result["relative_bias"] == 0 and (result["scans"], result["tubes"]) == (4, 2)
    assert result["r2"] == pytest.approx(1 - 2 / 8)
    assert result["r2_fitted"] == pytest.approx(np.corrcoef([1, 2, 4, 5], [1, 3, 3, 5])[0, 1] ** 2)
    deviation = math.sqrt(2 / 3)
    assert (result["limits_low"], result["limits_high"]) == pytest.approx((-1.96 * deviation, 1.96 * deviation))
    doubled = agreement([2.0, 4.0, 8.0], [1.0, 2.0, 4.0], ["a", "b", "c"])
    assert doubled["r2_fitted"] == pytest.approx(1) and doubled["r2"] < 0 and doubled["relative_bias"] == 1
    assert doubled["relative_bias_low"] == pytest.approx(1) == pytest.approx(doubled["relative_bias_high"])


def test_interval_resamples_whole_tubes():
    # Two tubes of three equal scans: a resample holds tube a twice, both, or tube b twice, so bias is 0, 1 or 2.
    predicted, true = [0.0] * 3 + [2.0] * 3, [0.0] * 6
    result = agreement(predicted, true, ["a"] * 3 + ["b"] * 3, seed=3)
    assert (result["bias_low"], result["bias"], result["bias_high"]) == (0, 1, 2)
    by_scan = agreement(predicted, true, list("abcdef"), seed=3)
    assert 0 < by_scan["bias_low"] < by_scan["bias_high"] < 2
    assert agreement(predicted, true, list("abcdef"), seed=3) == pytest.approx(by_scan, nan_ok=True)
    assert math.isnan(agreement([1.0, 2.0], [1.0, 1.0], ["a", "a"])["bias_low"])
    alone = agreement([3.0], [2.0], ["a"])
    assert (alone["bias"], alone["relative_bias"]) == (1, 0.5) and math.isnan(alone["r2"] + alone["limits_low"])
    with pytest.raises(ValueError, match="at least one scan"):
        agreement([], [], [])
    with pytest.raises(ValueError, match="for every scan"):
        agreement([1.0, 2.0], [1.0], ["a", "b"])
