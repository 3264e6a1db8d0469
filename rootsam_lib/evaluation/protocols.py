"""Protocols: how a predictor is asked, what its answers are worth, and how sure that is.

(a) fixed prompts, the poster's: 512 px patches, the same seeded points for every model, drawn once from the true mask;
(b) automatic: no prompt at all, on the same patches and on whole scans;
(c) correction: up to 20 clicks by the RITM rule with jitter, from the automatic mask on;
(d) segroot: pooled Dice over whole scans, against the raw truth and against the truth dilated by one pixel: the whole
    scans of (b), for the published split.

A predictor is a callable (image uint8 (H, W, 3), `Prompts` or None) -> bool (H, W): RootSAM models through
`ModelPredictor`, and anything else, such as those in `baselines`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import NamedTuple

import numpy as np
import torch

from rootsam_lib.checkpoints import weights_hash
from rootsam_lib.data.scans import Patch, Scan, check_masks
from rootsam_lib.evaluation.bootstrap import RatioTerms, difference, estimates, relative_gain, tube_weights
from rootsam_lib.evaluation.clicks import correction_parts
from rootsam_lib.metrics import (
    DEFINITIONS,
    Counts,
    boundary_f,
    cl_dice,
    class_mean_iou,
    count,
    dice,
    dilate,
    iou,
    precision,
    recall,
)
from rootsam_lib.model import RootSAM, encoder_size, resize_logits
from rootsam_lib.predictor_corrector import Click, Corrector
from rootsam_lib.predictor_old import segment
from rootsam_lib.prompts import POSTER, FixedPrompts, Prompts, fixed_prompts, stack_prompts
from rootsam_lib.results import progress, provenance
from rootsam_lib.traits import root_length_mm

Predictor = Callable[[np.ndarray, Prompts | None], np.ndarray]
MEANING = DEFINITIONS | {
    "precision": "mean over images with roots of the share of the pixels called root that are root",
    "recall": "mean over images with roots of the share of the root's pixels that are found",
    "cl_dice": "mean over images with roots of centre-line Dice: are the roots traced, whatever their drawn width?",
    "boundary_f": "mean over images with roots of the boundary F-score: edges within 2 px of each other",
    "root_iou_dilated": "root_iou against the truth grown by one pixel",
    "pooled_dice_dilated": "pooled_dice against the truth grown by one pixel",
    "soil_false_mm_per_cm2": "mm of root found per cm2 of window, over all images without roots",
    "…@k": "after k correction clicks; length_bias is found / true root length - 1, over all patches",
    "noc@t": "mean number of clicks until root IoU reaches t; a patch that never does counts as the most clicks",
    "failures@t": "share of the patches that never reach root IoU t",
}


class ModelPredictor:
    """A model as a predictor: an image of one patch is decoded at once, a larger one in blended tiles.

    input_scale: how much images are enlarged for the encoder. tile_size: px. flips: tiles of larger images are seen in four
    flips (`inference.segment`'s tta). The features of the last patch are kept, so that asking again is cheap.
    """

    def __init__(self, model: RootSAM, input_scale: float = 1.0, tile_size: int = 512, flips: bool = False):
        self.model, self.input_scale, self.tile_size, self.flips = model.eval(), input_scale, tile_size, flips
        self._image, self._embedding = None, None

    def __call__(self, image: np.ndarray, prompts: Prompts | None = None) -> np.ndarray:
        if max(image.shape[:2]) > self.tile_size:
            return segment(
                self.model, image, self.tile_size, self.tile_size // 4, prompts, self.input_scale, self.flips
            ).mask
        return resize_logits(self._decode(image, prompts), image.shape[:2])[0, 0].cpu().numpy() > 0

    def session(self, image: np.ndarray) -> Callable[[Sequence[Click]], np.ndarray]:
        """One image's correction: ask it with all clicks so far, none at first."""
        return Corrector(self.model, image, self.input_scale, self.tile_size).ask

    @torch.no_grad()
    def _decode(self, image: np.ndarray, prompts: Prompts | None) -> torch.Tensor:
        """The decoder's logits for a patch, at its own resolution."""
        if self._image is not image:
            features = self.model.encode(np.ascontiguousarray(image)[None], encoder_size(len(image), self.input_scale))
            self._image, self._embedding = image, self.model.embed(features)
        given = (None, None) if prompts is None else stack_prompts([prompts], self.model.device)
        return self.model.decode(self._embedding, *given).logits


# --- Scores of one image, and of many


class Score(NamedTuple):
    """What one image contributes: pixel counts against the truth, and against the truth dilated by one pixel;
    centre-line Dice; boundary F-score; and, where the image has no root, the falsely found mm and the window's cm2."""

    raw: Counts
    dilated: Counts
    cl_dice: float
    boundary_f: float
    false_mm: float
    cm2: float


def score_mask(prediction: np.ndarray, truth: np.ndarray, mm_per_px: float | None) -> Score:
    """Score one mask, bool (H, W), against its truth."""
    raw, soil, area, false_mm = count(prediction, truth), not truth.any(), 0.0, 0.0
    if soil and mm_per_px:
        area = prediction.size * mm_per_px**2 / 100
        false_mm = root_length_mm(prediction, mm_per_px) if prediction.any() else 0.0
    shape = (1.0, 1.0) if soil else (cl_dice(prediction, truth), boundary_f(prediction, truth))
    return Score(raw, count(prediction, dilate(truth)), *shape, false_mm, area)


def summary_parts(scores: Sequence[Score]) -> dict[str, RatioTerms]:
    """All of `metrics.DEFINITIONS` as ratios of sums over images.

    Means run over images with roots; images without are scored by their false roots only. Raises ValueError for none.
    """
    if not scores:
        raise ValueError("there is no image to score: check the split and the limit.")
    rooted = np.array([float(s.raw.tp + s.raw.fn > 0) for s in scores])
    soil = 1 - rooted

    def mean(of: Callable[[Score], float]) -> RatioTerms:
        return RatioTerms(np.array([of(s) for s in scores]) * rooted, rooted)

    def pooled(over: Callable[[Counts], int], under: Callable[[Counts], int], which: str = "raw") -> RatioTerms:
        counts = [getattr(s, which) for s in scores]
        return RatioTerms(np.array([float(over(c)) for c in counts]), np.array([float(under(c)) for c in counts]))

    return {
        "root_iou": mean(lambda s: iou(s.raw)),
        "class_mean_iou": mean(lambda s: class_mean_iou(s.raw)),
        "pooled_iou": pooled(lambda c: c.tp, lambda c: c.tp + c.fp + c.fn),
        "dice": mean(lambda s: dice(s.raw)),
        "pooled_dice": pooled(lambda c: 2 * c.tp, lambda c: 2 * c.tp + c.fp + c.fn),
        "precision": mean(lambda s: precision(s.raw)),
        "recall": mean(lambda s: recall(s.raw)),
        "cl_dice": mean(lambda s: s.cl_dice),
        "boundary_f": mean(lambda s: s.boundary_f),
        "root_iou_dilated": mean(lambda s: iou(s.dilated)),
        "pooled_dice_dilated": pooled(lambda c: 2 * c.tp, lambda c: 2 * c.tp + c.fp + c.fn, "dilated"),
        "soil_false_alarm": RatioTerms(np.array([float(s.raw.fp > 0) for s in scores]) * soil, soil),
        "soil_false_mm_per_cm2": RatioTerms(np.array([s.false_mm for s in scores]), np.array([s.cm2 for s in scores])),
    }


def score_images(
    predictor: Predictor,
    images: Sequence[Patch | Scan],
    protocols: Sequence[FixedPrompts | None] = (None,),
    desc: str = "score",
) -> list[list[Score]]:
    """Ask for every image with each protocol's points, None for no prompt: a list of `Score`, one an image, for each.

    Only pixels that show the scan count, not the mirrored padding of small scans.
    """
    scores: list[list[Score]] = [[] for _ in protocols]
    for image in progress(images, desc, "image", leave=False):
        height, width = (n - p for n, p in zip(image.mask.shape, getattr(image, "padding", (0, 0)), strict=True))
        truth = image.mask[:height, :width]
        for protocol, own in zip(protocols, scores, strict=True):
            prompts = None
            if protocol is not None:
                prompts = fixed_prompts(truth, image.name, protocol.n_root, protocol.n_soil, protocol.seed)
            mask = predictor(image.image, prompts)[:height, :width]
            own.append(score_mask(mask, truth, image.mm_per_px))
    return scores


# --- All protocols, for several predictors


def evaluate(
    predictors: Mapping[str, Predictor],
    patches: Sequence[Patch],
    protocol: FixedPrompts = POSTER,
    scans: Sequence[Scan] = (),
    clicked: Sequence[Patch] = (),
    prompted: Sequence[str] | None = None,
    on_scans: Mapping[str, Predictor] | None = None,
    draws: int = 2000,
) -> dict[str, object]:
    """All protocols for several predictors on the same images with the same points; a results dictionary.

    predictors: by the name of their row. prompted: those that take prompts (None: all); the others have automatic rows
    only. scans, clicked: what the whole-scan and the correction protocol run on, if anything. on_scans: further rows of
    the whole-scan table.
    "tables" holds one table a protocol: {row: {metric: [value, low, high]}}, 95 % intervals by `intervals`; "gains" the
    paired change from the first row to each other, relative for class-mean IoU. "counts" are the pixel counts of every
    patch with fixed prompts.
    """
    check_masks([*patches, *scans])
    prompted = list(predictors) if prompted is None else list(prompted)
    rng = np.random.default_rng(protocol.seed)
    weights = tube_weights([p.tube for p in patches], rng, draws)
    parts: dict[str, dict[str, dict[str, RatioTerms]]] = {"fixed prompts": {}, "automatic": {}}
    counts = {}
    for name, predictor in predictors.items():
        asked = (None, protocol) if name in prompted else (None,)
        automatic, *fixed = score_images(predictor, patches, asked, f"{name}: patches")
        parts["automatic"][name] = summary_parts(automatic)
        for scores in fixed:
            parts["fixed prompts"][name] = summary_parts(scores)
            counts[name] = [tuple(s.raw) for s in scores]
    draws_of = {"fixed prompts": weights, "automatic": weights}
    if scans:
        draws_of["whole scans"] = tube_weights([s.tube for s in scans], rng, draws)
        parts["whole scans"] = {
            name: summary_parts(score_images(predictor, scans, desc=f"{name}: whole scans")[0])
            for name, predictor in {**predictors, **(on_scans or {})}.items()
        }
    devices = [p.model.device for p in predictors.values() if isinstance(p, ModelPredictor)]
    rooted = [patch for patch in clicked if patch.mask.any()]
    if rooted:
        draws_of["correction"] = tube_weights([p.tube for p in rooted], rng, draws)
        parts["correction"] = {
            name: correction_parts(predictors[name], rooted, seed=protocol.seed) for name in prompted
        }
    return {
        "protocol": {"name": "fixed prompts", "patch": patches[0].mask.shape[0], **asdict(protocol)},
        "images": {
            "patches_with_roots": sum(bool(p.mask.any()) for p in patches),
            "patches_without_roots": sum(not p.mask.any() for p in patches),
            "scans": len(scans),
            "corrected_patches": len(rooted),
            "tubes": len({p.tube for p in patches}),
        },
        "intervals": f"95 %, bootstrap of {draws} draws over tubes, paired between rows",
        "definitions": MEANING,
        "models": {name: about_predictor(p) for name, p in {**predictors, **(on_scans or {})}.items()},
        "tables": {
            table: {name: estimates(row, draws_of[table]) for name, row in rows.items()}
            for table, rows in parts.items()
        },
        "gains": {table: gains(rows, draws_of[table]) for table, rows in parts.items()},
        "patches": [{"name": p.name, "tube": p.tube} for p in patches],
        "counts": {"order": list(Counts._fields), **counts},
        "provenance": provenance(devices[0] if devices else "cpu"),
    }


def gains(rows: Mapping[str, Mapping[str, RatioTerms]], weights: np.ndarray) -> dict[str, dict[str, list[float]]]:
    """The paired change of every score from the first row, and class-mean IoU's relative change as well."""
    first, *others = rows
    changes = {}
    for name in others:
        changes[name] = {key: list(difference(part, rows[first][key], weights)) for key, part in rows[name].items()}
        if "class_mean_iou" in rows[name]:
            pair = rows[name]["class_mean_iou"], rows[first]["class_mean_iou"]
            changes[name]["class_mean_iou_relative"] = list(relative_gain(*pair, weights))
    return changes


def about_predictor(predictor: Predictor) -> dict[str, object]:
    """What a row was made by: a model's label, weights and settings, or a baseline's own description."""
    if isinstance(predictor, ModelPredictor):
        model, settings = (
            predictor.model,
            {name: getattr(predictor, name) for name in ("input_scale", "tile_size", "flips")},
        )
        return {"model": model.label, "weights": weights_hash(model), **settings}
    return {"model": getattr(predictor, "about", getattr(predictor, "__name__", type(predictor).__name__))}
