"""Ask a model about an image of any size: `set_image`, then `predict`, as with sam2's own `SAM2ImagePredictor`.

    predictor = load_predictor("runs/quick/stage2-0123abcd")  # or "nano", or a checkpoint file
    predictor.set_image(image)
    masks, iou, logits = predictor.predict()                                  # no point: all roots
    masks, iou, logits = predictor.predict(np.array([[310, 200]]), np.array([1]))  # the roots that carry the point
    mask = predictor.correct([(310, 200, 1), (40, 52, 0)])                    # a mask, corrected click by click

An image larger than a tile is cut into overlapping tiles, whose logits fade into each other so that no seam shows. A
point is shown to the tiles that it lies in. The encoder runs once a tile; every further question runs the decoder only.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rootsam_lib import checked, checked_flag
from rootsam_lib.checkpoints import MODELS, ROOTS, build_sam, embedded_checkpoint, read_about, weights_hash
from rootsam_lib.model import Embedding, RootSAM, encoder_size, images_at_once, resize_logits
from rootsam_lib.predictor.selection import (
    NO_ROOT,
    Click,
    changes_at_clicks,
    connected,
    follow_clicks,
    parse_clicks,
    select_roots,
)
from rootsam_lib.prompts import PADDING, ROOT, SOIL, Prompts, click_prompt, stack_prompts
from rootsam_lib.results import file_hash, read_json, shown

__all__ = ["STARTS", "Click", "Predictor", "check_predictor", "load_predictor", "parse_clicks"]

STARTS = ("automatic", "empty")
SMALLEST = 4.0  # squared root widths: chosen on scans that no score is reported on; in a SegRoot scan 60 px
FLIPS = ((1, 1), (1, -1), (-1, 1), (-1, -1))  # steps through rows and columns; -1 turns them round


def check_predictor(predictor: object) -> None:
    """Raises ValueError for what is no predictor, such as a model's name."""
    if not hasattr(predictor, "about"):
        raise ValueError(
            f"predictor is {predictor!r:.80}: give what load_predictor returns, as load_predictor('nano')."
        )


def tile_starts(length: int, size: int, overlap: int) -> list[int]:
    """Where tiles of `size` px begin so that they cover `length` px and neighbours share at least `overlap` px."""
    count = max(1, -(-(length - overlap) // (size - overlap)))
    return np.linspace(0, max(length - size, 0), count).round().astype(int).tolist()


@dataclass
class _Tile:
    """A tile's place, its embedding under each flip, and its answer to the clicks in it so far."""

    row: int
    column: int
    embeddings: dict[tuple[int, int], Embedding] = field(default_factory=dict)
    start: Tensor | None = None  # low_res logits (1, 1, h / 4, w / 4) that corrections begin with
    first: tuple[np.ndarray, float] | None = None  # the answer without clicks: logits float32 (side, side), IoU
    answer: tuple[np.ndarray, float] | None = None
    clicks: tuple[Click, ...] = ()


@dataclass(eq=False, repr=False)
class Predictor:
    """A model and how it is used on images.

    input_scale: how much images are enlarged for the encoder. tile_size: px, a multiple of 32; overlap: px that
    neighbouring tiles share at least, a quarter of a tile when None. tta: every tile is also seen flipped left to
    right, upside down and both, and the logits are averaged; four times the work (test-time augmentation). select:
    points pick their roots from the automatic mask, see `select_roots`; `load_predictor` turns it on for models that
    were trained to select, a model before training answers as it is. keep: hold the tiles' embeddings between questions
    (nano: 2 MB for a tile of 512 px, 10 MB with a detail path); without it the memory of one batch
    is enough for an image of any size. root_width: how wide the roots are that the model finds, px of the encoder's
    input (mean along their centre lines); 0 where that is not known. smallest: without points, pieces of fewer than
    smallest x root_width ** 2 pixels of the encoder's input are taken for noise and left out. brightness: the mean
    value, of 255, of the scans that the model learned from; 0 where that is not known. gain: images are made so many
    times as bright for the encoder, see `apps.fitting`. batch: how many tiles and flips are encoded and decoded
    together; None: see `model.images_at_once`.
    Raises ValueError for a setting that cannot be.
    """

    model: RootSAM
    input_scale: float = 1.0
    tile_size: int = 512
    overlap: int | None = None
    tta: bool = False
    select: bool = False
    keep: bool = True
    root_width: float = 0.0
    smallest: float = 0.0
    brightness: float = 0.0
    gain: float = 1.0
    batch: int | None = None

    def __post_init__(self) -> None:
        for name in ("tta", "select", "keep"):
            checked_flag(name, getattr(self, name))
        if not isinstance(self.model, torch.nn.Module):
            told = "give a RootSAM, or take load_predictor(...) for a name or a folder."
            raise ValueError(f"model is {self.model!r:.80}: {told}")
        self.model.eval()
        if self.batch is not None:
            self.batch = checked("batch", self.batch, 1, whole=True)
        self.input_scale = checked("input_scale", self.input_scale, 0, 32, above=True)
        self.tile_size = checked("tile_size", self.tile_size, 32, 8192, whole=True)
        if self.tile_size % 32:
            raise ValueError(f"tile_size is {self.tile_size}: give a multiple of 32; 512 and 1024 are usual.")
        self.root_width, self.smallest = (checked(name, getattr(self, name), 0) for name in ("root_width", "smallest"))
        self.brightness = checked("brightness", self.brightness, 0, 255)
        self.gain = checked("gain", self.gain, 0, 255, above=True)
        most, own = self.tile_size // 2 - 1, self.tile_size // 4 if self.overlap is None else self.overlap
        self.overlap = checked("overlap", own, 0, most, whole=True)
        self._source, self._made_by = None, ()
        self._tiles: list[_Tile] = []

    @property
    def about(self) -> dict[str, object]:
        """What answers are made by, for results files: the model's label, its weights' hash, and the settings."""
        return {"model": self.model.label, "weights": weights_hash(self.model), **self._settings()}

    def _settings(self) -> dict[str, object]:
        names = ("input_scale", "tile_size", "overlap", "tta", "select", "root_width", "smallest", "gain")
        return {name: getattr(self, name) for name in names}

    def at_scale(self, input_scale: float) -> "Predictor":
        """The same predictor at another input scale, with tiles that are as large for the encoder as now."""
        zoom = self.input_scale / checked("input_scale", input_scale, 0, 32, above=True)
        tile_size = min(8192, 32 * max(1, round(self.tile_size * zoom / 32)))
        overlap = min(round(self.overlap * zoom), tile_size // 2 - 1)
        return replace(self, input_scale=input_scale, tile_size=tile_size, overlap=overlap)

    def for_width(self, width: float) -> "Predictor":
        """The same predictor, for images whose roots are about `width` px wide: at the scale at which the encoder sees
        them as wide as the roots that the model was trained on.

        Raises ValueError for a model that does not say how wide these were.
        """
        if not self.root_width:
            raise ValueError(f"{self.model.label} does not say how wide its roots are: give input_scale instead.")
        return self.at_scale(min(self.root_width / checked("root width in pixels", width, 1, 1000), 32))

    def set_image(self, image: np.ndarray) -> None:
        """Take an image, uint8 (H, W, 3), of any size; a side shorter than a tile is mirrored, and cut off again.

        The same array again costs nothing, unless its pixels, a setting or the weights changed. Raises ValueError for
        another shape or dtype.
        """
        if not isinstance(image, np.ndarray):
            raise ValueError(
                f"the image is a {type(image).__name__}, but must be an array, uint8 (H, W, 3): read a file with "
                "data.images.read_image(path)."
            )
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(
                f"the image is {image.dtype} {image.shape}, but must be uint8 (H, W, 3): values from 0 to 255, three "
                "colours last, and no transparency; data.images.read_image(path) gives it so."
            )
        height, width = image.shape[:2]
        made_by = self._settings(), [weight._version for weight in self.model.parameters()]
        if image is self._source and made_by == self._made_by and np.array_equal(self._padded[:height, :width], image):
            return
        self._source, self._made_by = image, made_by
        self.shape = height, width
        self.side = min(self.tile_size, 32 * -(-max(self.shape) // 32))
        below_right = [(0, max(self.side - length, 0)) for length in self.shape]
        self._padded = np.pad(image, (*below_right, (0, 0)), mode="symmetric")
        overlap = min(self.overlap, self.side // 2 - 1)
        # A tile counts little near its own edge, where it knows least; 1e-3 keeps the image's outermost pixels.
        ramp = np.minimum(np.arange(1, self.side + 1), np.arange(self.side, 0, -1)).astype(np.float32)
        ramp = np.clip(ramp / max(overlap, 1), 1e-3, 1)
        self._weight = ramp[:, None] * ramp[None]
        rows, columns = (tile_starts(length, self.side, overlap) for length in self._padded.shape[:2])
        self._tiles = [_Tile(row, column) for row in rows for column in columns]
        self._start, self.mask, self._automatic = "", None, None

    def predict(
        self, point_coords: np.ndarray | None = None, point_labels: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The mask of the image's roots: all of them without points, else those that carry a root point.

        point_coords: (N, 2) as (x, y) px of the image. point_labels: (N,), 1 root, 0 soil; -1 stands for no point.
        Returns masks bool (1, H, W), the model's own estimate of their root IoU, float (1,) (the mean over the tiles in
        which it finds root, NaN where it finds none), and logits float32 (1, H, W), 0 at the mask's edge.
        Raises ValueError before `set_image`, for a point outside of the image, and for another label.
        """
        self._needs_image()
        try:
            coords, labels = np.shape(point_coords), np.shape(point_labels)
        except ValueError:  # rows of several lengths
            coords, labels = "uneven", "theirs"
        if coords[:1] != labels or (coords not in ((), (0,)) and coords[1:] != (2,)):
            got = f"{coords} and {labels}"
            raise ValueError(
                f"point_coords and point_labels are {got}: give (N, 2) places and (N,) labels, or neither."
            )
        points = [] if point_coords is None else list(zip(np.asarray(point_coords), point_labels, strict=True))
        clicks = [self.checked_click((*place, label)) for place, label in points if label != -1]
        if clicks and np.max(point_coords) <= 1 and np.any(np.mod(point_coords, 1)):
            raise ValueError("point_coords are shares of the image's sides: give pixels.")
        if self._automatic is None and (self.select or not clicks):
            logits, iou = self._ask(())
            self._automatic = self._without_specks(logits), iou
        logits, iou = self._ask(clicks) if clicks else self._automatic
        if self.select and clicks:
            logits = select_roots(self._automatic[0], logits, clicks)
        return (logits > 0)[None], np.array([iou]), logits[None]

    def _ask(self, clicks: Sequence[Click]) -> tuple[np.ndarray, float]:
        """The model's own answer to clicks, logits float32 (H, W), and its estimate of their IoU."""
        inside = [self._inside(tile, clicks) for tile in self._tiles]
        asked = [own or not (self.select and clicks) for own in inside]  # of the other tiles nothing is wanted
        flips = FLIPS if self.tta else FLIPS[:1]
        views = zip(self._tiles, inside, asked, strict=True)
        views = [(tile, own, flip) for tile, own, wanted in views if wanted for flip in flips]
        turned = (answer for part in self._parts(views) for answer in self._decode(part))
        answers, nothing = [], (np.full((self.side, self.side), NO_ROOT, np.float32), np.nan)
        for wanted in asked:
            own = [next(turned) for _ in flips] if wanted else [nothing]
            answers.append((np.mean([logits for logits, _ in own], axis=0), np.mean([iou for _, iou in own])))
        logits = self._blend([logits for logits, _ in answers])
        rooted = [iou for tile_logits, iou in answers if (tile_logits > 0).any()]
        return logits, float(np.mean(rooted)) if rooted else float("nan")

    def __call__(self, image: np.ndarray, prompts: Prompts | None = None) -> np.ndarray:
        """The mask, bool (H, W), of one image and its prompts, None for none: what the protocols of evaluation ask."""
        if not (prompts is None or isinstance(prompts, Prompts)):
            raise ValueError(f"prompts are a {type(prompts).__name__}: give Prompts(points, labels), or None.")
        self.set_image(image)
        return self.predict(*(prompts or (None, None)))[0][0]

    def correct(self, clicks: Iterable[Sequence[float]] = (), start: str = "automatic") -> np.ndarray:
        """A mask, bool (H, W), corrected by clicks, each (x, y, label) in px; only tiles whose clicks changed are
        decoded again.

        start: "automatic" (the mask of all roots) or "empty" (soil, until a tile gets its first click). The mask is a
        function of the image, the weights and the list of clicks: the first mask's logits go back into the decoder with
        every click stamped into them, the answer changes the mask at the clicks (`changes_at_clicks`), and where it
        still does not follow a click, `follow_clicks` makes it. So taking a click back or reading a list from a file
        ends at the same mask. (Feeding each answer into the next question, as training does, needs all answers in
        between, and ended no better.)
        Raises ValueError before `set_image`, for another start, a click outside of the image, and another label.
        """
        self._needs_image()
        if start not in STARTS:
            raise ValueError(f"start is {start!r}: choose one of {', '.join(STARTS)}.")
        clicks = tuple(self.checked_click(click) for click in clicks)
        if start != self._start:
            self._start = start
            for tile in self._tiles:
                tile.answer = None
        for part in self._parts([tile for tile in self._tiles if tile.answer is None]):
            self._begin(part, start)
        for tile in self._tiles:
            inside = self._inside(tile, clicks)
            if inside != tile.clicks:
                tile.clicks, tile.answer = inside, self._corrected(tile, inside) if inside else tile.first
        # From nothing every time and in one order, so that the same clicks give the same mask to the last bit.
        logits = self._without_specks(self._blend([tile.answer[0] for tile in self._tiles]), clicks)
        self.mask = logits > 0
        return self.mask

    @property
    def predicted_iou(self) -> float:
        """The model's own estimate of the corrected mask's IoU, mean over the tiles. Raises ValueError before it."""
        if not self._tiles or any(tile.answer is None for tile in self._tiles):
            raise ValueError("there is no corrected mask yet: call set_image(image) and correct() first.")
        return float(np.mean([tile.answer[1] for tile in self._tiles]))

    def _without_specks(self, logits: np.ndarray, clicks: Iterable[Click] = ()) -> np.ndarray:
        """Logits whose smallest pieces, see `smallest`, became soil, except those that carry a root click."""
        least = self.smallest * (self.root_width / self.input_scale) ** 2
        if least <= 1:
            return logits
        pieces = connected(logits)
        small = np.bincount(pieces.flat) < least
        small[[0, *(pieces[click.y, click.x] for click in clicks if click.label == ROOT)]] = False
        return np.where(small[pieces], np.float32(NO_ROOT), logits)

    def _needs_image(self) -> None:
        if self._source is None:
            raise ValueError("there is no image to answer for: call set_image(image) first.")

    def checked_click(self, click: Sequence[float]) -> Click:
        if np.shape(click) != (3,) or any(isinstance(value, str) or value is None for value in click):
            raise ValueError(f"click {click!r} is no click: give x, y and label, three numbers.")
        x, y, label = click
        height, width = self.shape
        if not (0 <= x < width and 0 <= y < height):
            size = f"{width} × {height} px"
            raise ValueError(
                f"point ({x:g}, {y:g}) lies outside the image of {size}: give (x, y), x to the right and y down, in px."
            )
        if label not in (ROOT, SOIL):
            raise ValueError(f"point ({x:g}, {y:g}) has label {label}: give 1 for root or 0 for soil.")
        return Click(int(x), int(y), int(label))

    def _inside(self, tile: _Tile, clicks: Iterable[Click]) -> tuple[Click, ...]:
        """The clicks that lie in a tile, in its own pixels."""
        local = (Click(x - tile.column, y - tile.row, label) for x, y, label in clicks)
        return tuple(c for c in local if 0 <= c.x < self.side and 0 <= c.y < self.side)

    def _parts(self, items: Sequence) -> Iterator[Sequence]:
        """The items in batches: of the size asked for, or that the device takes at once."""
        seen = encoder_size(self.side, self.input_scale) or self.side
        size = self.batch or images_at_once(seen, self.model.device)
        return (items[start : start + size] for start in range(0, len(items), size))

    @torch.inference_mode()
    def _embed(self, views: Sequence[tuple[_Tile, tuple[int, int]]]) -> Embedding:
        """Tiles, each seen through a flip."""
        if new := [(tile, flip) for tile, flip in views if flip not in tile.embeddings]:
            pieces = []
            for tile, (rows, columns) in new:
                window = (slice(tile.row, tile.row + self.side), slice(tile.column, tile.column + self.side))
                piece = self._padded[window][::rows, ::columns]
                if self.gain != 1:
                    piece = np.clip(piece * np.float32(self.gain), 0, 255).astype(np.uint8)
                pieces.append(piece)
            size = encoder_size(self.side, self.input_scale)
            embedding = self.model.embed(self.model.encode(np.stack(pieces), size))
            if not self.keep:
                return embedding
            for number, (tile, flip) in enumerate(new):
                tile.embeddings[flip] = embedding.of([number])
        return Embedding.join([tile.embeddings[flip] for tile, flip in views])

    @torch.inference_mode()
    def _decode(self, views: Sequence[tuple]) -> list[tuple[np.ndarray, float]]:
        """Logits float32 (side, side), and estimates of their IoU, for each (tile, clicks, flip): the tile is seen
        through the flip, and the logits are turned back."""
        prompts = []
        for _, clicks, (rows, columns) in views:
            given = np.array(clicks or [(0, 0, PADDING)], np.float32)
            turned = np.where((columns < 0, rows < 0), self.side - 1 - given[:, :2], given[:, :2])
            prompts.append(Prompts(turned, given[:, 2]))
        embedding = self._embed([(tile, flip) for tile, _, flip in views])
        answer = self.model.decode(embedding, *stack_prompts(prompts, "cpu"))
        logits, ious = self._full(answer.logits), answer.iou[:, 0].tolist()
        back = [own[::rows, ::columns] for own, (_, _, (rows, columns)) in zip(logits, views, strict=True)]
        return list(zip(back, ious, strict=True))

    @torch.inference_mode()
    def _begin(self, tiles: Sequence[_Tile], start: str) -> None:
        """Give tiles their answers without clicks."""
        logits, iou, low_res = self.model.decode(self._embed([(tile, (1, 1)) for tile in tiles]))
        if start == "empty":
            logits, low_res = torch.full_like(logits, NO_ROOT), torch.full_like(low_res, NO_ROOT)
        for number, own in enumerate(zip(tiles, self._full(logits), iou[:, 0].tolist(), strict=True)):
            tile, *answer = own
            tile.first = tile.answer = tuple(answer)
            tile.start, tile.clicks = low_res[number : number + 1], ()

    @torch.inference_mode()
    def _corrected(self, tile: _Tile, clicks: Sequence[Click]) -> tuple[np.ndarray, float]:
        given = torch.tensor([clicks], device=self.model.device)
        points, labels = given[..., :2].float(), given[..., 2]
        fed = click_prompt(tile.start, points, labels, self.side)
        logits, iou, _ = self.model.decode(self._embed([(tile, (1, 1))]), points, labels, fed)
        merged = changes_at_clicks(tile.first[0], self._full(logits)[0], clicks)
        return follow_clicks(merged, clicks), float(iou)

    def _full(self, logits: Tensor) -> np.ndarray:
        """Logits (B, 1, h, w) as float32 (B, side, side). Raises ValueError for what are no numbers."""
        full = resize_logits(logits, (self.side, self.side))[:, 0].cpu().numpy()
        if not np.isfinite(full).all():
            why = "its weights are damaged, or its training diverged"
            raise ValueError(f"{self.model.label} answers with NaN: {why}: take another checkpoint, or train it again.")
        return full

    def _blend(self, tiles: Sequence[np.ndarray]) -> np.ndarray:
        """One map of logits, float32 (H, W), from those of all tiles."""
        height, width = self.shape
        if len(tiles) == 1:
            return tiles[0][:height, :width]
        total, weights = (np.zeros(self._padded.shape[:2], np.float32) for _ in range(2))
        for tile, logits in zip(self._tiles, tiles, strict=True):
            window = (slice(tile.row, tile.row + self.side), slice(tile.column, tile.column + self.side))
            total[window] += self._weight * logits
            weights[window] += self._weight
        return (total / weights)[:height, :width]


def load_predictor(source: str | Path, **changes: object) -> Predictor:
    """A predictor that is used as its checkpoint says it was trained.

    source: the folder of a trained stage, a checkpoint (.safetensors), or the name of a model: "nano-roots" is trained
    on drawn scans, the others for roots not at all. changes: arguments of `Predictor` that differ from the
    checkpoint's. Raises FileNotFoundError, with what lies near, for anything else, and ValueError for a checkpoint that
    does not say what it is.
    """
    if not isinstance(source, (str, Path)) or source == "":
        raise ValueError(f"the model is {source!r}: give a stage's folder, a checkpoint or one of {', '.join(MODELS)}.")
    if str(source) in MODELS.keys() - {ROOTS}:
        return Predictor(build_sam(str(source)), **changes)
    path = embedded_checkpoint(ROOTS) if str(source) == ROOTS else Path(source).expanduser()
    file = path / "best.safetensors" if path.is_dir() else path
    if not file.is_file():
        close = sorted(str(found.parent) for found in path.glob("**/stage*/best.safetensors"))
        hint = f"such as {close[-1]}" if close else "as notebooks 03 and 04 make it, or nano-roots"
        raise FileNotFoundError(f"{path} is no trained stage: give the folder of one, {hint}.")
    note = path / "stage.json"
    if path.is_dir() and not note.is_file():
        warnings.warn(f"{shown(path)} is not trained to its end: the best epoch so far is used.", stacklevel=2)
    elif path.is_dir() and read_json(note).get("weights_sha256") != file_hash(file):
        raise ValueError(f"{shown(path)}: stage.json is of other weights than {file.name}: train the stage again.")
    about = read_about(file)
    patch_size = checked(f"patch_size of {file.name}", about["patch_size"], 32, 8192, whole=True)
    settings = {"input_scale": about["input_scale"], "tile_size": min(patch_size, 1024)}
    settings["select"] = bool(about.get("selection", False))
    settings["root_width"], settings["smallest"] = about.get("root_width", 0), SMALLEST
    settings["brightness"] = about.get("brightness", 0)
    return Predictor(build_sam(str(about["model"]), file), **{**settings, **changes})
