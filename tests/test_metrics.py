"""Each metric on masks whose score can be counted by hand, and the rule for empty ones."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import dice as scipy_dice
from scipy.spatial.distance import jaccard

from rootsam_lib.metrics import Counts, class_mean_iou, count, dice, iou, summarise

PAIR = arrays(bool, (2, 6, 7))


def test_by_hand():
    truth, prediction = np.zeros((4, 5), bool), np.zeros((4, 5), bool)
    truth[0, :4] = True
    prediction[0, 2:] = True
    counts = count(prediction, truth)
    assert counts == Counts(tp=2, fp=1, fn=2, tn=15)
    assert iou(counts) == 2 / 5 and dice(counts) == 4 / 7
    assert class_mean_iou(counts) == pytest.approx((2 / 5 + 15 / 18) / 2)


@given(PAIR)
@settings(max_examples=60, deadline=None)
def test_against_scipy(pair):
    prediction, truth = pair
    counts = count(prediction, truth)
    if counts.tp + counts.fp + counts.fn:
        assert iou(counts) == pytest.approx(1 - jaccard(truth.ravel(), prediction.ravel()))
        assert dice(counts) == pytest.approx(1 - scipy_dice(truth.ravel(), prediction.ravel()))


def test_empty_rule():
    assert iou(Counts(0, 0, 0, 9)) == dice(Counts(0, 0, 0, 9)) == class_mean_iou(Counts(0, 0, 0, 9)) == 1
    assert iou(Counts(0, 1, 0, 8)) == iou(Counts(0, 0, 1, 8)) == 0


def test_finding_no_root_scores_about_half_on_the_class_mean():
    # The poster's baseline of 48.2 % is what a model scores that finds nothing at 3.6 % root pixels.
    assert class_mean_iou(Counts(tp=0, fp=0, fn=36, tn=964)) == pytest.approx(0.482)


def test_summary_by_hand():
    counts = [Counts(2, 2, 0, 96), Counts(0, 0, 10, 90), Counts(0, 0, 0, 100), Counts(0, 5, 0, 95)]
    summary = summarise(counts)
    assert summary["root_iou"] == pytest.approx((0.5 + 0) / 2)
    assert summary["dice"] == pytest.approx((2 / 3 + 0) / 2)
    assert summary["pooled_iou"] == pytest.approx(2 / (2 + 7 + 10))
    assert summary["pooled_dice"] == pytest.approx(4 / (4 + 7 + 10))
    assert summary["soil_false_alarm"] == 0.5
    assert (summary["images_with_roots"], summary["images_without_roots"]) == (2, 2)


def test_no_roots_anywhere_is_nan_not_a_crash():
    summary = summarise([Counts(0, 0, 0, 100)])
    assert math.isnan(summary["root_iou"]) and summary["soil_false_alarm"] == 0 and summary["pooled_dice"] == 1


def test_bad_input():
    with pytest.raises(ValueError, match="no image"):
        summarise([])
    with pytest.raises(ValueError, match="masks of one image"):
        count(np.zeros((2, 2), bool), np.zeros((2, 3), bool))
