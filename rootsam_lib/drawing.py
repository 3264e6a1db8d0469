"""One meaning for each colour, and masks laid over images, as arrays: no plotting package is needed here."""

from collections.abc import Sequence

import numpy as np
from PIL import ImageColor

from rootsam_lib import checked_mask

BASE, STAGE1, STAGE2 = "#0056a4", "#94c11f", "#e84a27"
FOUND, MISSED, FALSE = "#f2f2f2", "#ff9d00", "#2f8fff"  # roots, told apart in every kind of colour vision and in grey
GREW, VANISHED = "#e8c200", "#b87aff"  # between two dates, beside FOUND on both
ERRORS = (FOUND, MISSED, FALSE)  # of `error_view`: what two masks share, only the truth has, only the prediction has
CHANGES = (FOUND, VANISHED, GREW)  # the same for an earlier mask in the truth's place
MASK = "#00e0e0"  # a mask by itself: of no model that is compared, and with no truth beside it
ROOT_POINT, SOIL_POINT = "#2fd32f", "#ff2d2d"  # never by colour alone: a circle and a cross
COLOURS = {"base": BASE, "stage1": STAGE1, "stage2": STAGE2}
NAMES = {"base": "Base model", "stage1": "Stage 1", "stage2": "RootSAM (Stage 2)"}
HATCHES = {"base": "", "stage1": "//", "stage2": ""}  # the colours alone would be lost in a grey print


def overlay(image: np.ndarray, mask: np.ndarray, colour: str = MASK, opacity: float = 0.55) -> np.ndarray:
    """The image with a mask laid over it: uint8 (H, W, 3)."""
    tint = np.array(ImageColor.getrgb(colour), float)
    mixed = image.astype(float)
    mixed[mask] = (1 - opacity) * mixed[checked_mask(mask)] + opacity * tint
    return mixed.round().astype(np.uint8)


def grey(image: np.ndarray) -> np.ndarray:
    """The image without its colours, so that a mask's colour stands out: uint8 (H, W, 3)."""
    return np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)


def error_view(
    image: np.ndarray, prediction: np.ndarray, truth: np.ndarray, colours: Sequence[str] = ERRORS
) -> np.ndarray:
    """The image in dark grey with found roots white, missed roots orange and false roots blue: uint8 (H, W, 3)."""
    view = grey(image) // 2
    for where, colour in zip((prediction & truth, ~prediction & truth, prediction & ~truth), colours, strict=True):
        view = overlay(view, where, colour, 0.95)
    return view
