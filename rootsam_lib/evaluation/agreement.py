"""How well a trait measured on predicted masks agrees with the same trait of the true masks, scan by scan."""

from collections.abc import Sequence

import numpy as np

from rootsam_lib.evaluation.bootstrap import RatioTerms, estimate, tube_weights


def agreement(
    predicted: Sequence[float],
    true: Sequence[float],
    tubes: Sequence[str],
    seed: int = 0,
    draws: int = 2000,
) -> dict[str, float]:
    """Agreement of a trait of predicted masks with that of the true ones.

    r2: 1 - (sum of squared differences) / (spread of the true values): the share explained *without* a calibration, so
    a bias counts. r2_fitted: squared correlation, what papers usually print; it forgives any bias. bias: mean of
    predicted - true, in the trait's unit; relative_bias: that over the true mean. Both with a 95 % interval (_low,
    _high) from `draws` bootstrap samples of whole tubes; with one tube it is NaN. limits_low and limits_high: bias -+
    1.96 standard deviations (Bland & Altman 1986).
    Raises ValueError for lists of different lengths or fewer than two scans.
    """
    predicted, true = np.asarray(predicted, float), np.asarray(true, float)
    if not len(predicted) == len(true) == len(tubes) or len(true) < 2:
        lengths = f"{len(predicted)} predicted and {len(true)} true values and {len(tubes)} tubes"
        raise ValueError(f"{lengths}: give one of each for every scan, and at least two scans.")
    error = predicted - true
    spread, deviation = true.var(), error.std(ddof=1)
    both_vary = spread > 0 and predicted.var() > 0
    result = {
        "scans": len(true),
        "tubes": len(set(tubes)),
        "r2": float(1 - (error**2).mean() / spread) if spread else float("nan"),
        "r2_fitted": float(np.corrcoef(predicted, true)[0, 1] ** 2) if both_vary else float("nan"),
        "limits_low": float(error.mean() - 1.96 * deviation),
        "limits_high": float(error.mean() + 1.96 * deviation),
    }
    weights = tube_weights(tubes, np.random.default_rng(seed), draws)
    for name, under in (("bias", np.ones(len(true))), ("relative_bias", true)):
        value, low, high = estimate(RatioTerms(error, under), weights)
        if result["tubes"] < 2:
            low = high = float("nan")
        result |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return result


def length_factor(predicted: Sequence[float], true: Sequence[float]) -> float:
    """What predicted values are to be multiplied by so that their sum is the true one's: a calibration.

    Fit it on scans that no score is reported on (the "val" part), and say that it was used. Raises ValueError where
    nothing was predicted, or nothing is there.
    """
    if not sum(predicted) or not sum(true):
        raise ValueError("the sum of the predicted or of the true values is 0: calibrate on scans that have roots.")
    return float(sum(true) / sum(predicted))
