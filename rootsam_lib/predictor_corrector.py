"""One image and the clicks on it: the encoder runs once, a click runs the decoder only.

The mask is a function of the image, the weights and the list of clicks: the first mask's logits go back into the
decoder with every click stamped into them, and where the answer still does not follow a click, `inference.obey` makes
it. So taking a click back, moving one or reading a list from a file costs one decoding and ends at the same mask.
(Feeding each answer into the next question, as training does, needs all answers in between, and ended no better.)

An image larger than a tile is cut as `inference.segment` cuts it, each tile encoded once; a click is shown to the tiles
that it lies in, and their logits fade into their neighbours'.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rootsam_lib.model import Embedding, RootSAM, encoder_size, resize_logits
from rootsam_lib.predictor_old import obey, tile_starts
from rootsam_lib.prompts import ROOT, SOIL, click_prompt

STARTS = ("automatic", "empty")
NO_ROOT = -10.0  # the logit of an empty start: soil, and by far


class Click(NamedTuple):
    """x to the right and y down, in whole pixels of the image; label 1 root, 0 soil."""

    x: int
    y: int
    label: int


def parse_clicks(text: str) -> list[Click]:
    """Clicks from a parameter: "x,y,label" joined by ";", such as "310,200,1;40,52,0"; "" is no click.

    Raises ValueError, naming the entry, for anything else.
    """
    clicks = []
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        try:
            x, y, label = (int(number) for number in entry.split(","))
        except ValueError:
            label = -1
        if label not in (ROOT, SOIL):
            raise ValueError(
                f"click {entry!r} is not x,y,label: give whole pixels and 1 for root or 0 for soil, as in 310,200,1."
            )
        clicks.append(Click(x, y, label))
    return clicks


@dataclass
class _Tile:
    """A tile's place, what the decoder is asked of, the logits it starts from, and its answer to the clicks in it."""

    row: int
    column: int
    embedding: Embedding
    start: Tensor  # (1, 1, side / 4, side / 4)
    clicks: tuple[Click, ...]
    logits: np.ndarray  # float32 (side, side)
    iou: float


class Corrector:
    """An encoded image, uint8 (H, W, 3), and its mask under a list of clicks.

    start: "automatic" (the mask without any prompt) or "empty" (soil, until a tile gets its first click). input_scale: how
    much tiles are enlarged for the encoder. tile_size: px; tiles overlap by an eighth. A smaller image is one tile of
    its own size, mirrored up to a multiple of 32. Raises ValueError for a start or a tile size that cannot be.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: RootSAM,
        image: np.ndarray,
        input_scale: float = 1.0,
        tile_size: int = 1024,
        start: str = "automatic",
    ):
        if start not in STARTS:
            raise ValueError(f"start is {start!r}: choose one of {', '.join(STARTS)}.")
        if tile_size % 32 or tile_size < 32:
            raise ValueError(f"tile_size is {tile_size}: give a multiple of 32; 512 and 1024 are usual.")
        self.model = model.eval()
        self.shape = image.shape[:2]
        self.side = min(tile_size, 32 * -(-max(self.shape) // 32))
        overlap = self.side // 8
        below_right = [(0, max(self.side - length, 0)) for length in self.shape]
        padded = np.pad(image, (*below_right, (0, 0)), mode="symmetric")
        self._padded = padded.shape[:2]
        ramp = np.minimum(np.arange(1, self.side + 1), np.arange(self.side, 0, -1)).astype(np.float32)
        ramp = np.clip(ramp / overlap, 1e-3, 1)
        self._weight = ramp[:, None] * ramp[None]
        self._tiles: list[_Tile] = []
        for row in tile_starts(self._padded[0], self.side, overlap):
            for column in tile_starts(self._padded[1], self.side, overlap):
                piece = padded[row : row + self.side, column : column + self.side]
                features = model.encode(np.ascontiguousarray(piece)[None], encoder_size(self.side, input_scale))
                embedding = model.embed(features)
                logits, iou = model.decode(embedding)
                if start == "empty":
                    logits = torch.full_like(logits, NO_ROOT)
                full = resize_logits(logits, (self.side, self.side))[0, 0].cpu().numpy()
                self._tiles.append(_Tile(row, column, embedding, logits, (), full, float(iou)))
        self._first = [(tile.logits, tile.iou) for tile in self._tiles]
        self.clicks: tuple[Click, ...] = ()
        self.mask = self._blend()

    @property
    def predicted_iou(self) -> float:
        """The model's own estimate of its mask's IoU, mean over the tiles."""
        return float(np.mean([tile.iou for tile in self._tiles]))

    def ask(self, clicks: Iterable[Sequence[float]]) -> np.ndarray:
        """The mask, bool (H, W), under these clicks, each (x, y, label); only tiles whose clicks changed are decoded.

        Raises ValueError for a click outside the image or a label that is neither 1 nor 0.
        """
        clicks = tuple(self._checked(click) for click in clicks)
        for number, tile in enumerate(self._tiles):
            inside = tuple(c for c in clicks if self._holds(tile, c))
            if inside == tile.clicks:
                continue
            tile.clicks = inside
            tile.logits, tile.iou = self._answer(tile) if inside else self._first[number]
        self.clicks = clicks
        self.mask = self._blend()
        return self.mask

    @torch.no_grad()
    def moved_prompts(self, points: np.ndarray) -> float:
        """Mean IoU of the first mask with those of several prompt sets on roots, int (sets, N, 2) as (x, y) px.

        What it measures: whether the answer depends on where exactly one points. 1 where no tile has such a point.
        """
        agreements = []
        for tile, (first, _) in zip(self._tiles, self._first, strict=True):
            local = points - np.array([tile.column, tile.row])
            inside = ((local >= 0) & (local < self.side)).all(axis=2)
            if not inside.any():
                continue
            labels = torch.from_numpy(np.where(inside, ROOT, -1))
            logits = self.model.decode(tile.embedding, torch.from_numpy(local).float(), labels).logits
            masks = (resize_logits(logits, (self.side, self.side))[:, 0] > 0).cpu().numpy()
            either = (masks | (first > 0)).sum(axis=(1, 2))
            agreements.extend((masks & (first > 0)).sum(axis=(1, 2))[either > 0] / either[either > 0])
        return float(np.mean(agreements)) if agreements else 1.0

    def _checked(self, click: Sequence[float]) -> Click:
        x, y, label = click
        height, width = self.shape
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"click ({x}, {y}) lies outside the image of {width} × {height} px.")
        if label not in (ROOT, SOIL):
            raise ValueError(f"click ({x}, {y}) has label {label}: give 1 for root or 0 for soil.")
        return Click(int(x), int(y), int(label))

    def _holds(self, tile: _Tile, click: Click) -> bool:
        return 0 <= click.x - tile.column < self.side and 0 <= click.y - tile.row < self.side

    @torch.no_grad()
    def _answer(self, tile: _Tile) -> tuple[np.ndarray, float]:
        given = torch.tensor([[(c.x - tile.column, c.y - tile.row, c.label) for c in tile.clicks]])
        points, labels = given[..., :2].float().to(self.model.device), given[..., 2].to(self.model.device)
        fed = click_prompt(tile.start, points, labels, self.side)
        logits, iou = self.model.decode(tile.embedding, points, labels, fed)
        full = resize_logits(logits, (self.side, self.side))[0, 0].cpu().numpy()
        return obey(full, given[0].tolist()), float(iou)

    def _blend(self) -> np.ndarray:
        """From nothing every time and in one order, so that the same clicks give the same mask to the last bit."""
        height, width = self.shape
        if len(self._tiles) == 1:
            return self._tiles[0].logits[:height, :width] > 0
        total = np.zeros(self._padded, np.float32)  # dividing by the sum of weights would not change its sign
        for tile in self._tiles:
            total[tile.row : tile.row + self.side, tile.column : tile.column + self.side] += self._weight * tile.logits
        return total[:height, :width] > 0
