"""Intervals: how far would a score move if other tubes had been scanned?

Scans of one tube look alike, and patches of one scan even more so: they are not independent samples. So the bootstrap
here draws *tubes* with replacement (a cluster bootstrap: Davison & Hinkley 1997, section 3.8), and every image counts
as often as its tube was drawn. All models and metrics of a comparison see the same draws: differences between models
are paired.

Every score is a ratio of two sums over images: a mean over some images (values / ones), or a pooled figure (pixels /
pixels). `RatioTerms` holds both terms of each image.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rootsam_lib import checked

NAN = float("nan")


class RatioTerms(NamedTuple):
    """One score of one model: numerators and denominators, float (images,); the score is sum / sum."""

    numerator: np.ndarray
    denominator: np.ndarray

    @property
    def value(self) -> float:
        """The score over all images, NaN where nothing counts."""
        return float(ratio(self.numerator.sum(), self.denominator.sum()))

    def samples(self, weights: np.ndarray) -> np.ndarray:
        """The score in each bootstrap sample, float (draws,); weights from `tube_weights`."""
        return ratio(weights @ self.numerator, weights @ self.denominator)


def collect(rows: Sequence[Mapping[str, float | tuple[float, float]]]) -> dict[str, RatioTerms]:
    """The scores of many images by name, from one row of them for each image.

    A number counts in a mean, NaN leaves its image out; a pair is a numerator and a denominator, to be summed. Pixel
    counts, under the name "counts", are no score.
    Raises ValueError for no row.
    """
    if not rows:
        raise ValueError("there is no image to score: check the split and the limit.")

    def pair(value: float | tuple[float, float]) -> tuple[float, float]:
        if isinstance(value, tuple):
            return value
        return (0, 0) if np.isnan(value) else (value, 1)

    return {key: RatioTerms(*np.array([pair(row[key]) for row in rows], float).T) for key in rows[0] if key != "counts"}


class Estimate(NamedTuple):
    """A score and its 95 % interval."""

    value: float
    low: float
    high: float


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, NaN where that is 0."""
    unknown = np.full(np.shape(numerator), np.nan)
    return np.divide(numerator, denominator, out=unknown, where=np.asarray(denominator) != 0)


def tube_weights(tubes: Sequence[str], rng: np.random.Generator, draws: int = 2000) -> np.ndarray:
    """How often each image counts in each bootstrap sample: int (draws, images), images of one tube always alike.

    Raises ValueError for no image, or no draw.
    """
    draws = checked("draws", draws, 1, whole=True)
    if not len(tubes):
        raise ValueError("there is no image to draw from: check the split and the limit.")
    names, home = np.unique(list(tubes), return_inverse=True)
    return rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)[:, home]


def interval(samples: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of bootstrap samples; samples in which nothing counted are left out."""
    known = samples[np.isfinite(samples)]
    return tuple(np.percentile(known, [2.5, 97.5]).tolist()) if len(known) else (NAN, NAN)


def _estimate(value: float, samples: np.ndarray, weights: np.ndarray) -> Estimate:
    """One tube alone says nothing about others: no interval (NaN), and not one of no width."""
    several = (weights != weights[0]).any()
    return Estimate(value, *(interval(samples) if several else (NAN, NAN)))


def estimate(terms: RatioTerms, weights: np.ndarray) -> Estimate:
    """A score with its interval, from `tube_weights`."""
    return _estimate(terms.value, terms.samples(weights), weights)


def relative_gain(new: RatioTerms, old: RatioTerms, weights: np.ndarray) -> Estimate:
    """new / old - 1 with its paired interval: both models on the same images and the same draws."""
    value = new.value / old.value - 1 if old.value else NAN
    return _estimate(value, ratio(new.samples(weights), old.samples(weights)) - 1, weights)


def difference(new: RatioTerms, old: RatioTerms, weights: np.ndarray) -> Estimate:
    """new - old with its paired interval."""
    return _estimate(new.value - old.value, new.samples(weights) - old.samples(weights), weights)


def estimates(scores: Mapping[str, RatioTerms], weights: np.ndarray) -> dict[str, list[float]]:
    """[value, low, high] of several scores, as results files hold them."""
    return {name: list(estimate(terms, weights)) for name, terms in scores.items()}


def agreement(predicted: Sequence[float], true: Sequence[float], tubes: Sequence[str], seed: int = 0) -> dict:
    """How well a trait of predicted masks agrees with the same trait of the true ones, scan by scan.

    r2: 1 - (sum of squared differences) / (spread of the true values): the share explained *without* a calibration, so
    a bias counts. r2_fitted: squared correlation, what papers usually print; it forgives any bias. bias: mean of
    predicted - true, in the trait's unit; relative_bias: that over the true mean. Both with a 95 % interval (_low,
    _high) over tubes. limits_low and limits_high: bias -+ 1.96 standard deviations (Bland & Altman 1986). One scan has
    a bias alone, the rest is NaN.
    A scan in which one has no such trait (None or NaN, as the diameter where there is no root) is left out, with a
    warning. Raises ValueError for lists of different lengths or without any scan.
    """
    predicted, true, tubes = np.array(predicted, float), np.array(true, float), list(map(str, tubes))
    if not len(predicted) == len(true) == len(tubes) or not len(true):
        lengths = f"{len(predicted)} predicted and {len(true)} true values and {len(tubes)} tubes"
        raise ValueError(f"{lengths}: give one of each for every scan, and at least one scan.")
    known = np.isfinite(predicted) & np.isfinite(true)
    if not known.all():
        if not known.any():
            raise ValueError("no scan has this trait both predicted and true: choose another one.")
        warnings.warn(f"{(~known).sum()} of {len(known)} scans lack the trait and are left out.", stacklevel=2)
        predicted, true, tubes = predicted[known], true[known], [t for t, k in zip(tubes, known, strict=True) if k]
    error = predicted - true
    spread, deviation = true.var(), error.std(ddof=1) if len(error) > 1 else NAN
    both_vary = spread > 0 and predicted.var() > 0
    result = {
        "scans": len(true),
        "tubes": len(set(tubes)),
        "r2": float(1 - (error**2).mean() / spread) if spread else NAN,
        "r2_fitted": float(np.corrcoef(predicted, true)[0, 1] ** 2) if both_vary else NAN,
        "limits_low": float(error.mean() - 1.96 * deviation),
        "limits_high": float(error.mean() + 1.96 * deviation),
    }
    weights = tube_weights(tubes, np.random.default_rng(seed))
    for name, under in (("bias", np.ones(len(true))), ("relative_bias", true)):
        found = estimate(RatioTerms(error, under), weights)
        result |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return result
