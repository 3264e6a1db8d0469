"""Protocols: how a predictor is asked, what its answers are worth, and how sure that is.

(a) fixed prompts, the poster's: 512 px patches, the same seeded points for every model, drawn once from the true mask;
(b) automatic: no prompt at all, on the same patches and on whole scans;
(c) selection: one click on a root, and nothing else: is that root found, and only that one?
(d) control: some of the roots are wanted. Points on them, as many on other roots, none: which points does it take?
(e) correction: up to 20 clicks by the RITM rule with jitter, from the automatic mask on;
(f) segroot: pooled Dice over whole scans, against the raw truth and against the truth dilated by one pixel: the whole
    scans of (b), for the published split.

What a prompt means, in all of them: no point, all roots; points, the roots that carry a positive one.

A predictor is a callable (image uint8 (H, W, 3), `Prompts` or None) -> bool (H, W): `predictor.Predictor`, and
anything else, such as those in `peers`.
"""

import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial

import numpy as np
from scipy.ndimage import distance_transform_edt

from rootsam_lib import checked_mask
from rootsam_lib.data.scans import Patch, Scan, check_masks
from rootsam_lib.evaluation.bootstrap import (
    NAN,
    RatioTerms,
    collect,
    difference,
    estimates,
    relative_gain,
    tube_weights,
)  # fmt: skip
from rootsam_lib.evaluation.clicks import CLICKS, correct, correction_terms
from rootsam_lib.metrics import (
    Counts,
    betti0_error,
    broken_pieces,
    cl_dice,
    class_mean_iou,
    count,
    dice,
    dilate,
    iou,
    label_roots,
    precision,
    recall,
)
from rootsam_lib.predictor import Predictor
from rootsam_lib.prompts import POSTER_PROMPTS, ROOT, FixedPrompts, Prompts, meant_roots, sample_points, with_slips
from rootsam_lib.results import progress, provenance
from rootsam_lib.traits import root_length_mm

MaskPredictor = Callable[[np.ndarray, Prompts | None], np.ndarray]
SLIP_PX = 2.0  # how far a hand misses its aim in "selection" (SD)
JITTER_PX = 2.0  # the same in "correction", where a click stays within its mistake
DEFINITIONS = {
    "root_iou": "mean over images with roots of the root's IoU",
    "class_mean_iou": "mean over images with roots of (root + soil IoU) / 2; finding no root at all scores about 0.5",
    "pooled_iou": "one root IoU over all pixels of all images",
    "dice": "mean over images with roots of the root's Dice",
    "pooled_dice": "one root Dice over all pixels of all images",
    "precision": "mean over images with roots of the share of the pixels called root that are root",
    "recall": "mean over images with roots of the share of the root's pixels that are found",
    "cl_dice": "mean over images with roots of centre-line Dice: are the roots traced, whatever their drawn width?",
    "betti0_error": "mean over images with roots of |pieces found - pieces there|",
    "pieces_per_root": "pieces in which a root is found, over all roots that are found at all; 1 is whole",
    "pooled_dice_dilated": "pooled_dice against the truth grown by one pixel",
    "soil_false_alarm": "share of the images without roots in which at least one pixel is called root",
    "meant_iou": "fixed prompts: mean IoU with the roots that the points mean, those that carry a root point",
    "meant_cl_dice": "fixed prompts: mean centre-line Dice with the roots that the points mean",
    "clicked_iou": "selection: mean IoU of the answer to one click with the root that was clicked",
    "clicked_cl_dice": "selection: mean centre-line Dice of that answer with the root that was clicked",
    "other_iou": "selection: mean IoU of that answer with the nearest other root, where there is one",
    "true_points": "control: mean IoU with the wanted roots, one point on each of them; images with two roots or more",
    "moved_points": "control: the same, with as many points on roots that are not wanted",
    "no_points": "control: the same, without any point",
    "true_minus_moved": "control: how much the place of the points decides; 0 where a model ignores them",
    "…@k": "after k correction clicks; length_bias is found / true root length - 1, over all patches, and length_error "
    "the mean over patches of |found - true| / true root length",
    "noc@t": "mean number of clicks until root IoU reaches t; a patch that never does counts as the most clicks",
    "failures@t": "share of the patches that never reach root IoU t",
}


# --- Scores of one image: a number counts in a mean, a pair is a numerator and a denominator (see `bootstrap.collect`)


def score_mask(prediction: np.ndarray, truth: np.ndarray, excluded: np.ndarray | None = None) -> dict[str, object]:
    """Score one mask, bool (H, W), against its truth, by the names of `DEFINITIONS`; "counts" are its pixel counts.

    Means run over images with roots; an image without is scored by its false roots only. Pixels that are excluded, bool
    (H, W), count nowhere. Raises ValueError for a mask that is not bool, or of another size.
    """
    checked_mask(prediction, "answer", one=True)
    checked_mask(truth, "truth", one=True)
    if prediction.shape != truth.shape:
        raise ValueError(f"the answer is {prediction.shape} and the truth {truth.shape}: compare masks of one image.")
    window = np.ones(truth.shape, bool) if excluded is None else ~excluded
    prediction, truth = prediction & window, truth & window
    raw, dilated = (count(prediction[window][None], true[window][None]) for true in (truth, dilate(truth)))
    rooted, pieces = bool(truth.any()), broken_pieces(prediction, truth)
    means = {
        "root_iou": iou(raw),
        "class_mean_iou": class_mean_iou(raw),
        "dice": dice(raw),
        "precision": precision(raw),
        "recall": recall(raw),
        "cl_dice": cl_dice(prediction, truth),
        "betti0_error": betti0_error(prediction, truth),
    }
    return {
        **{name: value if rooted else NAN for name, value in means.items()},
        "pooled_iou": (raw.tp, raw.tp + raw.fp + raw.fn),
        "pooled_dice": (2 * raw.tp, 2 * raw.tp + raw.fp + raw.fn),
        "pooled_dice_dilated": (2 * dilated.tp, 2 * dilated.tp + dilated.fp + dilated.fn),
        "pieces_per_root": (int(pieces.sum()), int((pieces > 0).sum())),
        "soil_false_alarm": NAN if rooted else float(raw.fp > 0),
        "counts": tuple(raw),
    }


# A question asks a predictor about one image; what it returns is collected over images.
Question = Callable[[MaskPredictor, Patch | Scan], object]


def visible(image: Patch | Scan) -> tuple[slice, slice]:
    """The rows and columns that show the scan, and not the mirrored padding of small scans; only they are scored."""
    padding = getattr(image, "padding", (0, 0))
    return tuple(slice(0, length - pad) for length, pad in zip(image.mask.shape, padding, strict=True))


def ask(predictor: MaskPredictor, image: Patch | Scan, prompts: Prompts | None) -> np.ndarray:
    """A predictor's mask of what is `visible`. Raises ValueError for one that is not of the image's size."""
    answer = checked_mask(predictor(image.image, prompts), "answer", one=True)
    if answer.shape != image.mask.shape:
        raise ValueError(
            f"{image.name}: the answer is {answer.shape}, the image {image.mask.shape}: cut its padding off."
        )
    return answer[visible(image)]


def score_answer(predictor: MaskPredictor, image: Patch | Scan, protocol: FixedPrompts | None = None) -> dict:
    """(a) The protocol's points, or (b) no prompt at all (None); against all roots, and (a) also against those that the
    points mean."""
    window = visible(image)
    truth = image.mask[window]
    prompts = protocol.draw(truth, image.name) if protocol else None
    answer = ask(predictor, image, prompts)
    excluded = None if image.excluded is None else image.excluded[window]
    scores = score_mask(answer, truth, excluded)
    if prompts:
        answer = answer if excluded is None else answer & ~excluded
        meant = meant_roots(label_roots(truth)[0], prompts)
        asked = {"meant_iou": iou(count(answer, meant)), "meant_cl_dice": cl_dice(answer, meant)}
        scores |= {name: value if meant.any() else NAN for name, value in asked.items()}
    return scores


def selection(predictor: MaskPredictor, image: Patch | Scan, seed: int = 0) -> dict[str, float]:
    """(c) One click on a root, drawn by EDT over all roots, which the hand misses by 2 px (SD); seeded by image name.

    Returns the answer's IoU and centre-line Dice with the root that was clicked, and its IoU with the nearest other
    root; NaN where there is none.
    """
    window = visible(image)
    roots, number = label_roots(image.mask[window])
    if not number:
        return dict.fromkeys(("clicked_iou", "clicked_cl_dice", "other_iou"), NAN)
    rng = np.random.default_rng([1, seed, zlib.crc32(image.name.encode())])
    aimed = sample_points(roots > 0, 1, 0, rng)
    x, y = aimed.points[0].astype(int)
    clicked, others = roots == roots[y, x], (roots > 0) & (roots != roots[y, x])
    answer = ask(predictor, image, with_slips(aimed, SLIP_PX, roots.shape, rng))
    nearest = np.where(others, distance_transform_edt(~clicked), np.inf).argmin()
    return {
        "clicked_iou": iou(count(answer, clicked)),
        "clicked_cl_dice": cl_dice(answer, clicked),
        "other_iou": iou(count(answer, roots == roots.flat[nearest])) if others.any() else NAN,
    }


def control(predictor: MaskPredictor, image: Patch | Scan, seed: int = 0) -> dict[str, float]:
    """(d) Half of the roots, drawn by the image's name, are wanted. The answers' IoU with the wanted roots: with one
    point on each of them, with as many points on the other roots, without any; NaN where there are not two roots."""
    window = visible(image)
    roots, number = label_roots(image.mask[window])
    if number < 2:
        return dict.fromkeys(("true_points", "moved_points", "no_points", "true_minus_moved"), NAN)
    rng = np.random.default_rng([2, seed, zlib.crc32(image.name.encode())])
    order, half = rng.permutation(number) + 1, number // 2
    wanted = np.isin(roots, order[:half])

    def points_on(chosen: np.ndarray) -> Prompts:
        drawn = [sample_points(roots == root, 1, 0, rng).points for root in chosen]
        return Prompts(np.concatenate(drawn), np.full(len(drawn), ROOT))

    asked = points_on(order[:half]), points_on(order[half : 2 * half]), None
    true, moved, none = (iou(count(ask(predictor, image, points), wanted)) for points in asked)
    return {"true_points": true, "moved_points": moved, "no_points": none, "true_minus_moved": true - moved}


def score_images(
    predictor: MaskPredictor,
    images: Iterable[Patch | Scan],
    questions: Collection[Question] = (score_answer,),
    desc: str = "score",
) -> list[tuple]:
    """Ask every question about every image: for each question its results, one an image.

    All questions about an image come one after the other, so that a model encodes it once.
    """
    bar = progress(images, desc, "image", leave=False)
    return list(zip(*([question(predictor, image) for question in questions] for image in bar), strict=True))


def correction_scores(predictor: Predictor, patches: Sequence[Patch], seed: int = 0) -> dict[str, RatioTerms]:
    """(e) The scores of `correction_terms` over patches with roots; centre lines and lengths are measured after the
    numbers of clicks in `CLICKS` only, for they take long."""
    rows = []
    for number, patch in enumerate(progress(patches, "correction clicks", "patch", leave=False)):
        rng, truth = np.random.default_rng([seed, number]), patch.mask
        length = partial(root_length_mm, mm_per_px=patch.mm_per_px or 1.0)
        predictor.set_image(patch.image)
        masks, _ = correct(predictor.correct, truth, max(CLICKS), rng, JITTER_PX)
        row = {"root_iou": [iou(count(mask, truth)) for mask in masks], "true_length": length(truth)}
        for name, score in (("cl_dice", partial(cl_dice, truth=truth)), ("length", length)):
            row[name] = [score(mask) if k in CLICKS else NAN for k, mask in enumerate(masks)]
        rows.append(row)
    return correction_terms(rows)


# --- All protocols, for several predictors


def evaluate(
    predictors: Mapping[str, MaskPredictor],
    patches: Sequence[Patch],
    protocol: FixedPrompts = POSTER_PROMPTS,
    scans: Sequence[Scan] = (),
    clicked: Sequence[Patch] = (),
    prompted: Sequence[str] | None = None,
    on_scans: Mapping[str, MaskPredictor] | None = None,
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
    for images in (patches, scans, clicked):
        check_masks(images)
    everywhere = {**predictors, **(on_scans or {})} if isinstance(predictors, Mapping) else {}
    if not isinstance(predictors, Mapping) or not all(map(callable, everywhere.values())):
        raise ValueError("predictors must be predictors by the name of their row, as {'stage1': load_predictor(...)}.")
    if not predictors or not patches:
        raise ValueError("there is nothing to evaluate: give at least one predictor and one patch.")
    if strange := set(prompted or ()) - set(predictors):
        raise ValueError(f"prompted names {min(strange)!r}, which is no row: choose from {', '.join(predictors)}.")
    asked = list(predictors) if prompted is None else list(prompted)
    rng = np.random.default_rng(protocol.seed)
    questions = {
        "fixed prompts": partial(score_answer, protocol=protocol),
        "automatic": score_answer,
        "selection": partial(selection, seed=protocol.seed),
        "control": partial(control, seed=protocol.seed),
    }
    weights = dict.fromkeys(questions, tube_weights([p.tube for p in patches], rng, draws))
    terms: dict[str, dict[str, dict[str, RatioTerms]]] = {table: {} for table in questions}
    counts = {}
    for name, predictor in predictors.items():
        own = questions if name in asked else {"automatic": score_answer}
        for table, rows in zip(own, score_images(predictor, patches, own.values(), f"{name}: patches"), strict=True):
            terms[table][name] = collect(rows)
            if table == "fixed prompts":
                counts[name] = [row["counts"] for row in rows]
    if scans:
        weights["whole scans"] = tube_weights([s.tube for s in scans], rng, draws)
        terms["whole scans"] = {
            name: collect(score_images(predictor, scans, desc=f"{name}: whole scans")[0])
            for name, predictor in everywhere.items()
        }
    rooted = [patch for patch in clicked if patch.mask.any()]
    if rooted:
        weights["correction"] = tube_weights([p.tube for p in rooted], rng, draws)
        terms["correction"] = {name: correction_scores(predictors[name], rooted, protocol.seed) for name in asked}
    terms = {table: rows for table, rows in terms.items() if rows}
    with_roots = sum(bool(p.mask.any()) for p in patches)
    devices = [p.model.device for p in predictors.values() if hasattr(p, "model")]
    return {
        "protocol": {"name": "fixed prompts", "patch": patches[0].mask.shape[0], **asdict(protocol)},
        "images": {
            "patches_with_roots": with_roots,
            "patches_without_roots": len(patches) - with_roots,
            "scans": len(scans),
            "corrected_patches": len(rooted),
            "tubes": len({p.tube for p in patches}),
        },
        "intervals": f"95 %, bootstrap of {draws} draws over tubes, paired between rows",
        "definitions": DEFINITIONS,
        "models": {name: about_predictor(p) for name, p in everywhere.items()},
        "tables": {
            table: {name: estimates(row, weights[table]) for name, row in rows.items()} for table, rows in terms.items()
        },
        "gains": {table: gains(rows, weights[table]) for table, rows in terms.items()},
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


def about_predictor(predictor: MaskPredictor) -> dict[str, object]:
    """What a row was made by: a model's label, weights and settings, or a baseline's own description."""
    told = getattr(predictor, "about", getattr(predictor, "__name__", type(predictor).__name__))
    return told if isinstance(told, dict) else {"model": told}
