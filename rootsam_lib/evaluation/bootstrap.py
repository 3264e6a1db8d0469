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

    over: np.ndarray
    under: np.ndarray

    @property
    def value(self) -> float:
        """The score over all images, NaN where nothing counts."""
        return float(ratio(self.over.sum(), self.under.sum()))


class Estimate(NamedTuple):
    """A score and its 95 % interval."""

    value: float
    low: float
    high: float


def ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    """over / under, NaN where under is 0."""
    return np.divide(over, under, out=np.full(np.shape(over), np.nan), where=np.asarray(under) != 0)


def tube_weights(tubes: Sequence[str], rng: np.random.Generator, draws: int = 2000) -> np.ndarray:
    """How often each image counts in each bootstrap sample: int (draws, images), images of one tube always alike.

    Raises ValueError for no image.
    """
    if not len(tubes):
        raise ValueError("there is no image to draw from: check the split and the limit.")
    names, home = np.unique(list(tubes), return_inverse=True)
    return rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)[:, home]


def interval(samples: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of bootstrap samples; samples in which nothing counted are left out."""
    known = samples[np.isfinite(samples)]
    if not len(known):
        return float("nan"), float("nan")
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(known, [tail, 100 - tail])
    return float(low), float(high)


def estimate(parts: RatioTerms, weights: np.ndarray) -> Estimate:
    """A score with its interval, from `tube_weights`."""
    return Estimate(parts.value, *interval(ratio(weights @ parts.over, weights @ parts.under)))


def relative_gain(new: RatioTerms, old: RatioTerms, weights: np.ndarray) -> Estimate:
    """new / old - 1 with its paired interval: both models on the same images and the same draws."""
    samples = ratio(*(ratio(weights @ parts.over, weights @ parts.under) for parts in (new, old))) - 1
    return Estimate(new.value / old.value - 1 if old.value else float("nan"), *interval(samples))


def difference(new: RatioTerms, old: RatioTerms, weights: np.ndarray) -> Estimate:
    """new - old with its paired interval."""
    samples = ratio(weights @ new.over, weights @ new.under) - ratio(weights @ old.over, weights @ old.under)
    return Estimate(new.value - old.value, *interval(samples))


def estimates(scores: Mapping[str, RatioTerms], weights: np.ndarray) -> dict[str, list[float]]:
    """[value, low, high] of several scores, as results files hold them."""
    return {name: list(estimate(parts, weights)) for name, parts in scores.items()}
