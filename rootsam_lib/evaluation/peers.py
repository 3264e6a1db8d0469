"""Baselines: what a score is worth without any learning. Predictors for `protocols`, which ignore prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from skimage.color import rgb2gray
from skimage.filters import sato, threshold_otsu

from rootsam_lib.data.scans import Patch
from rootsam_lib.prompts import Prompts

SIGMAS = (2, 3, 4)  # px: roots of 4 to 10 px width


def brightness_threshold(image: np.ndarray, prompts: Prompts | None = None) -> np.ndarray:
    """Call everything brighter than Otsu's threshold root; a picture of one brightness has none. bool (H, W)."""
    grey = rgb2gray(image)
    return grey > threshold_otsu(grey) if np.ptp(grey) > 0 else np.zeros(grey.shape, bool)


def ridge_strength(image: np.ndarray) -> np.ndarray:
    """How much a bright line passes through each pixel, float32 (H, W): Sato's filter (Sato et al. 1998)."""
    return sato(rgb2gray(image), sigmas=SIGMAS, black_ridges=False).astype(np.float32)


@dataclass(frozen=True)
class RidgeFilter:
    """Call every pixel root whose `ridge_strength` is above a threshold; `fit_ridge` finds it."""

    threshold: float

    def __call__(self, image: np.ndarray, prompts: Prompts | None = None) -> np.ndarray:
        return ridge_strength(image) > self.threshold

    @property
    def about(self) -> str:
        return f"Sato ridge filter, sigmas {SIGMAS} px, threshold {self.threshold:.4g} (fitted on training patches)"


def fit_ridge(patches: Sequence[Patch], bins: int = 200) -> RidgeFilter:
    """The threshold with the best pooled Dice on training patches. Raises ValueError where none has a root."""
    rooted = [patch for patch in patches if patch.mask.any()]
    if not rooted:
        raise ValueError("none of the patches has a root, so no threshold can be fitted: take more patches.")
    strengths = [ridge_strength(patch.image) for patch in patches]
    edges = np.linspace(0, max(float(s.max()) for s in strengths), bins + 1)
    root, soil = np.zeros(bins), np.zeros(bins)
    for strength, patch in zip(strengths, patches, strict=True):
        root += np.histogram(strength[patch.mask], edges)[0]
        soil += np.histogram(strength[~patch.mask], edges)[0]
    found, false = root[::-1].cumsum()[::-1], soil[::-1].cumsum()[::-1]  # above each lower edge
    dice = 2 * found / (found + false + root.sum())
    return RidgeFilter(float(edges[int(dice.argmax())]))
