"""Intervals: how far would a score move if other tubes had been scanned?

Scans of one tube look alike, and patches of one scan even more so: they are not independent samples. So the bootstrap
here draws *tubes* with replacement (a cluster bootstrap: Davison & Hinkley 1997, section 3.8), and every image counts
as often as its tube was drawn. All models and metrics of a comparison see the same draws: differences between models
are paired.

Every score is a ratio of two sums over images: a mean over some images (values / ones), or a pooled figure (pixels /
pixels). `RatioTerms` holds both terms of each image.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95


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


def mean_terms(values: Sequence[float], counted: Sequence[bool] | None = None) -> RatioTerms:
    """The mean of one value an image; counted: over which images, all when None."""
    ones = np.ones(len(values)) if counted is None else np.asarray(counted, float)
    return RatioTerms(np.where(ones > 0, np.asarray(values, float), 0), ones)


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

    Raises ValueError for no image.
    """
    if not len(tubes):
        raise ValueError("there is no image to draw from: check the split and the limit.")
    names, home = np.unique(list(tubes), return_inverse=True)
    return rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)[:, home]


def interval(samples: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The middle `level` of bootstrap samples; samples in which nothing counted are left out."""
    known = samples[np.isfinite(samples)]
    if not len(known):
        return float("nan"), float("nan")
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(known, [tail, 100 - tail])
    return float(low), float(high)


def _estimate(value: float, samples: np.ndarray, weights: np.ndarray) -> Estimate:
    """One tube alone says nothing about others: no interval (NaN), and not one of no width."""
    several = (weights != weights[0]).any()
    return Estimate(value, *(interval(samples) if several else (float("nan"), float("nan"))))


def estimate(terms: RatioTerms, weights: np.ndarray) -> Estimate:
    """A score with its interval, from `tube_weights`."""
    return _estimate(terms.value, terms.samples(weights), weights)


def relative_gain(new: RatioTerms, old: RatioTerms, weights: np.ndarray) -> Estimate:
    """new / old - 1 with its paired interval: both models on the same images and the same draws."""
    value = new.value / old.value - 1 if old.value else float("nan")
    return _estimate(value, ratio(new.samples(weights), old.samples(weights)) - 1, weights)


def difference(new: RatioTerms, old: RatioTerms, weights: np.ndarray) -> Estimate:
    """new - old with its paired interval."""
    return _estimate(new.value - old.value, new.samples(weights) - old.samples(weights), weights)


def estimates(scores: Mapping[str, RatioTerms], weights: np.ndarray) -> dict[str, list[float]]:
    """[value, low, high] of several scores, as results files hold them."""
    return {name: list(estimate(terms, weights)) for name, terms in scores.items()}
