"""Agreement of predicted with true traits, by hand."""

import math

import numpy as np
import pytest

from rootsam_lib.evaluation.agreement import agreement, length_factor


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
    with pytest.raises(ValueError, match="at least two scans"):
        agreement([1.0], [1.0], ["a"])
    with pytest.raises(ValueError, match="for every scan"):
        agreement([1.0, 2.0], [1.0], ["a", "b"])


def test_length_factor():
    assert length_factor([1.0, 3.0], [2.0, 6.0]) == 2
    with pytest.raises(ValueError, match="have roots"):
        length_factor([0.0], [2.0])
