"""Whole scans: overlapping tiles, whose logits are blended so that no seam shows."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from rootsam_lib.model import RootSAM, encoder_size, resize_logits
from rootsam_lib.prompts import Prompts, stack_prompts


class Segmentation(NamedTuple):
    """mask bool (H, W); logits float32 (H, W), 0 is the mask's edge; iou, the model's own estimate of its root IoU: the
    mean over the tiles in which it finds root, NaN where it finds none."""

    mask: np.ndarray
    logits: np.ndarray
    iou: float = float("nan")


def tile_starts(length: int, size: int, overlap: int) -> list[int]:
    """Where tiles of `size` px begin so that they cover `length` px and neighbours share at least `overlap` px."""
    count = max(1, -(-(length - overlap) // (size - overlap)))
    return np.linspace(0, max(length - size, 0), count).round().astype(int).tolist()


def obey(logits: np.ndarray, clicks: Iterable[Sequence[float]], reach: float = 5.0, margin: float = 2.0) -> np.ndarray:
    """Correct mask logits, float32 (H, W), where the model did not follow a click: at least there the person is right.

    clicks: (x, y, label) in px of the logits, in the order in which they were made. Around a click whose logit is not
    on its side by `margin`, all logits move by what the click's lacks, fading out as a Gaussian of `reach` px.
    Without it one mistake that the model insists on takes every further click.
    """
    logits = logits.copy()
    for x, y, label in clicks:
        column, row, sign = int(x), int(y), 1 if label else -1
        lacking = margin - sign * float(logits[row, column])
        if lacking > 0:
            far = int(4 * reach)
            top, left = max(row - far, 0), max(column - far, 0)
            window = logits[top : row + far + 1, left : column + far + 1]  # a view
            down, right = np.ogrid[: window.shape[0], : window.shape[1]]
            distance = (down + top - row) ** 2 + (right + left - column) ** 2
            window += sign * lacking * np.exp(-distance / (2 * reach**2)).astype(np.float32)
    return logits


@torch.no_grad()
def segment(
    model: RootSAM,
    image: np.ndarray,
    tile_size: int = 1024,
    overlap: int = 128,
    prompts: Prompts | None = None,
    input_scale: float = 1.0,
    tta: bool = False,
) -> Segmentation:
    """Find the roots of a whole scan.

    image: uint8 (H, W, 3) of any size; a side shorter than a tile is mirrored for the model and cut off again. Tiles
    overlap by at least `overlap` px and fade into each other. prompts: points in pixels of the image, each shown to the
    tiles that it lies in; None for the automatic mode. input_scale: how much tiles are enlarged for the encoder. tta: also
    look at every tile flipped left to right, upside down and both, and average the logits; four times the work
    (test-time augmentation). Memory is bounded by one tile and two float32 maps.
    Raises ValueError for a tile size that is not a multiple of 32, or an overlap of half a tile or more.
    """
    if tile_size % 32 or not 0 <= overlap < tile_size // 2:
        given = f"tile_size is {tile_size} and overlap {overlap}"
        raise ValueError(f"{given}: give a multiple of 32, and less than half of it as overlap.")
    model.eval()
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, max(tile_size - height, 0)), (0, max(tile_size - width, 0)), (0, 0)), mode="symmetric")
    # A tile counts little near its own edge, where it knows least; 1e-3 keeps the scan's outermost pixels.
    ramp = np.minimum(np.arange(1, tile_size + 1), np.arange(tile_size, 0, -1)).astype(np.float32)
    ramp = np.clip(ramp / max(overlap, 1), 1e-3, 1)
    weight = ramp[:, None] * ramp[None]
    total, weights = (np.zeros(padded.shape[:2], np.float32) for _ in range(2))
    flips = ((1, 1), (1, -1), (-1, 1), (-1, -1)) if tta else ((1, 1),)
    estimates = []
    for row in tile_starts(padded.shape[0], tile_size, overlap):
        for column in tile_starts(padded.shape[1], tile_size, overlap):
            window = (slice(row, row + tile_size), slice(column, column + tile_size))
            tile = padded[window]
            local = None if prompts is None else _inside(prompts, row, column, tile_size)
            answers = [_ask(model, tile, local, input_scale, flip) for flip in flips]
            logits = np.mean([logits for logits, _ in answers], axis=0)
            if (logits > 0).any():
                estimates.append(np.mean([estimate for _, estimate in answers]))
            total[window] += weight * logits
            weights[window] += weight
    logits = (total / weights)[:height, :width]
    return Segmentation(logits > 0, logits, float(np.mean(estimates)) if estimates else float("nan"))


def _ask(
    model: RootSAM, tile: np.ndarray, prompts: Prompts | None, input_scale: float, flip: tuple[int, int]
) -> tuple[np.ndarray, float]:
    """Logits float32 (size, size) of one tile and the model's estimate of their IoU; the tile is seen through a flip
    (rows, columns; -1 turns them round), and the logits are turned back."""
    size, (rows, columns) = len(tile), flip
    features = model.encode(np.ascontiguousarray(tile[::rows, ::columns])[None], encoder_size(size, input_scale))
    points = labels = None
    if prompts is not None:
        turned = np.where((columns, rows) == np.array(-1), size - 1 - prompts.points, prompts.points)
        points, labels = stack_prompts([Prompts(turned, prompts.labels)], model.device)
    answer = model.decode(features, points, labels)
    logits = resize_logits(answer.logits, (size, size))[0, 0].cpu().numpy()
    return logits[::rows, ::columns], float(answer.iou[0, 0])


def _inside(prompts: Prompts, row: int, column: int, size: int) -> Prompts | None:
    """The points that lie in a tile, in its own pixels; None where there are none."""
    local = prompts.points - np.array([column, row], np.float32)
    inside = ((local >= 0) & (local < size)).all(axis=1)
    return Prompts(local[inside], prompts.labels[inside]) if inside.any() else None
