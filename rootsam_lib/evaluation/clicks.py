"""A person, simulated: who clicks where the mask is most wrong, and takes time for it.

Every click is drawn from the true mask: this is what a perfectly informed person would reach, and not how well a person
sees.
"""

import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from rootsam_lib.data.scans import Scan, check_masks
from rootsam_lib.evaluation.bootstrap import NAN, RatioTerms, collect, interval, tube_weights
from rootsam_lib.metrics import cl_dice, count, iou, thinned
from rootsam_lib.predictor import Click, Predictor
from rootsam_lib.prompts import next_click
from rootsam_lib.results import progress, provenance, read_json, write_json

Predict = Callable[[Sequence[Click]], np.ndarray]  # all clicks so far -> mask bool (H, W): `Predictor.correct`
CLICKS = (0, 1, 3, 5, 10, 20)
THRESHOLDS = (0.6, 0.7, 0.8, 0.85)
SHARE = 0.95  # of the root IoU with all clicks: enough
SKIP = 6  # px around a click within which nobody clicks again
# Seconds of a person's time, at least and at most; a value between is as likely as another.
SECONDS = {"find": (1.0, 6.0), "click": (0.7, 1.4), "review": (20.0, 60.0)}  # per click, per click, per scan
TIME_SOURCES = {
    "find": "1 to 6 s to see the next mistake and get there: RootPainter's simulated annotator (sim_benchmark) takes "
    "1.5 s between strokes; a scan of 2550 x 2273 px needs zooming. Upper end: our assumption, no value found",
    "click": "0.7 to 1.4 s: a stroke on soil and on root in RootPainter's simulated annotator; a click is no longer",
    "review": "20 to 60 s to look over the scan before and after: our assumption, no value found in the literature",
}


def minutes_for(clicks: float, seconds: Mapping = SECONDS, rng: np.random.Generator | None = None) -> float:
    """Minutes for a scan with so many clicks: at the middle of each span of seconds, or, with `rng`, drawn from it."""
    find, click, review = (sum(span) / 2 if rng is None else rng.uniform(*span) for span in seconds.values())
    return (review + clicks * (find + click)) / 60


# --- One image


def simulate_click(
    truth: np.ndarray,
    mask: np.ndarray,
    rng: np.random.Generator,
    jitter: float = 2.0,
    given: Sequence[Click] = (),
    skip: int = 0,
) -> Click | None:
    """The next click: `next_click`, moved by a normal error of `jitter` px (SD) where that stays in the same mistake.

    A click in the exact middle flatters a model. skip: px around each click in `given` within which mistakes are passed
    over: a person sees that a click did nothing there, and goes on. 0 is the RITM rule. None when nothing is wrong.
    """
    if skip:
        mask = mask.copy()
        for x, y, _ in given:
            near = (slice(max(y - skip, 0), y + skip + 1), slice(max(x - skip, 0), x + skip + 1))
            mask[near] = truth[near]
    click = next_click(truth, mask)
    if click is None:
        return None
    x, y, label = (int(value) for value in click)
    wrong = truth & ~mask if label else mask & ~truth
    column, row = (int(value) for value in np.rint(rng.normal((x, y), jitter)))
    inside = 0 <= row < wrong.shape[0] and 0 <= column < wrong.shape[1] and wrong[row, column]
    return Click(column, row, label) if inside else Click(x, y, label)


def correct(
    predict: Predict, truth: np.ndarray, clicks: int, rng: np.random.Generator, jitter: float = 2.0, skip: int = 0
) -> tuple[list[np.ndarray], list[Click]]:
    """The masks with 0, 1, ... `clicks` clicks, and the clicks. Where nothing is wrong any more the mask stays."""
    masks, given = [predict([])], []
    while len(given) < clicks:
        click = simulate_click(truth, masks[-1], rng, jitter, given, skip)
        if click is None:
            break
        given.append(click)
        masks.append(predict(given))
    return masks + masks[-1:] * (clicks + 1 - len(masks)), given


def corrected_row(
    predict: Predict,
    truth: np.ndarray,
    clicks: int,
    rng: np.random.Generator,
    jitter: float,
    skip: int,
    length: Callable[[np.ndarray], float] = lambda mask: float(thinned(mask).sum()),
    at: Collection[int] | None = None,
) -> dict[str, object]:
    """One image, corrected: lists of what its mask is worth after 0, 1, ... clicks, the clicks, and how many it obeyed.

    length: of a mask's roots; by default the pixels of its centre lines, short by the same share for every mask of an
    image. at: after which numbers of clicks centre-line Dice and length are measured (None: all); the others are NaN.
    """
    masks, given = correct(predict, truth, clicks, rng, jitter, skip)

    def measured(score: Callable[[np.ndarray], float]) -> list[float]:
        return [score(mask) if at is None or k in at else NAN for k, mask in enumerate(masks)]

    return {
        "root_iou": [iou(count(mask, truth)) for mask in masks],
        "cl_dice": measured(lambda mask: cl_dice(mask, truth)),
        "length": measured(length),
        "true_length": length(truth),
        "obeyed": sum(int(mask[y, x] == label) for mask, (x, y, label) in zip(masks[1:], given, strict=False)),
        "given": len(given),
        "clicks": [list(click) for click in given],
    }


# --- Many images


def clicks_until(scores: Sequence[float], goal: float) -> int:
    """The first number of clicks after which a score reaches the goal; where it never does, all that were tried."""
    return next((k for k, score in enumerate(scores) if score >= goal), len(scores) - 1)


def correction_terms(rows: Sequence[Mapping], clicks: Sequence[int] = CLICKS) -> dict[str, RatioTerms]:
    """Scores over the rows of `corrected_row`: after k clicks "root_iou@k", "cl_dice@k", "length_bias@k" (found / true
    length - 1, pooled) and "length_error@k" (mean of |length - true| / true, over images with roots); and for each
    threshold t "noc@t" (clicks until root IoU reaches t, failures counted as all clicks) and "failures@t" (share that
    does not reach it)."""
    scores = []
    for row in rows:
        true, own = row["true_length"], {}
        for k in clicks:
            off = row["length"][k] - true
            own |= {f"root_iou@{k}": row["root_iou"][k], f"cl_dice@{k}": row["cl_dice"][k]}
            own |= {f"length_bias@{k}": (off, true), f"length_error@{k}": abs(off) / true if true else NAN}
        for t in THRESHOLDS:
            own |= {f"noc@{t:g}": clicks_until(row["root_iou"], t), f"failures@{t:g}": max(row["root_iou"]) < t}
        scores.append(own)
    return collect(scores)


def summarise(rows: Sequence[Mapping], seed: int = 0) -> dict[str, object]:
    """Clicks and minutes per scan with 95 % intervals, and scores after k clicks, over one model's scans.

    Clicks: until the root IoU is within 95 % of the same model's with all clicks. A model that ignores its clicks
    needs none by this definition, so look at `after_clicks` and `obeyed_share` as well. Intervals draw whole tubes; in
    that of the minutes, the seconds are drawn anew as well. Raises ValueError for no row.
    """
    needed = collect([{"clicks": clicks_until(r["root_iou"], SHARE * r["root_iou"][-1])} for r in rows])["clicks"]
    rng, most = np.random.default_rng(seed), len(rows[0]["root_iou"]) - 1
    clicks = needed.samples(tube_weights([row["tube"] for row in rows], rng))
    minutes = np.array([minutes_for(mean, rng=rng) for mean in clicks])
    shown = sorted({k for k in CLICKS if k < most} | {most})
    terms, given = correction_terms(rows, shown), sum(row["given"] for row in rows)
    return {
        "scans": len(rows),
        "tubes": len({row["tube"] for row in rows}),
        "clicks": needed.value,
        "clicks_interval": list(interval(clicks)),
        "minutes": minutes_for(needed.value),
        "minutes_interval": list(interval(minutes)),
        "obeyed_share": sum(row["obeyed"] for row in rows) / given if given else 1.0,
        "after_clicks": {
            k: {name: terms[f"{name}@{k}"].value for name in ("root_iou", "cl_dice", "length_error")} for k in shown
        },
    }


def simulate(
    predictors: Mapping[str, Predictor],
    scans: Sequence[Scan],
    out: str | Path | None = None,
    clicks: int = 20,
    jitter: float = 1.0,
    seed: int = 0,
    real: bool = False,
) -> dict[str, object]:
    """Several models, each corrected on the same whole scans: a results dictionary, "rows" (see `summarise`) by name.

    After a click that changed nothing the next one goes elsewhere (`SKIP`). out: a folder that keeps a file per scan
    and model; what is there already, from the same weights and settings, is read instead of annotated again. real:
    whether these are photographs or drawn. Raises ValueError for a scan without mask.
    """
    check_masks(scans)
    setting = {"clicks": clicks, "jitter": jitter, "seed": seed}
    about = {name: predictor.about for name, predictor in predictors.items()}
    rows: dict[str, list[dict]] = {name: [] for name in predictors}
    for name, predictor in predictors.items():
        for scan in progress(scans, f"annotate: {name}", "scan", leave=False):
            hashes = [zlib.crc32(pixels.tobytes()) for pixels in (scan.image, scan.mask)]
            made_with = setting | about[name] | {"scan": hashes}
            file = Path(out) / name / f"{scan.name}.json" if out else None
            kept = read_json(file) if file and file.is_file() else {}
            if kept.get("setting") != made_with:
                rng = np.random.default_rng([seed, scan.mask.shape[0], int(scan.mask.sum())])
                predictor.set_image(scan.image)
                row = corrected_row(predictor.correct, scan.mask, clicks, rng, jitter, SKIP)
                kept = {"setting": made_with, "row": {"name": scan.name, "tube": scan.tube} | row}
                if file:
                    write_json(file, kept)
            rows[name].append(kept["row"])
    summaries = {name: summarise(of, seed=seed) for name, of in rows.items()}
    last = summaries[list(predictors)[-1]]
    low, high = last["minutes_interval"]
    return {
        "protocol": {"name": "simulated annotator", "share": SHARE, **setting},
        "minutes_per_scan": {"mean": last["minutes"], "low": low, "high": high},  # for the cost model
        "clicks_per_scan": last["clicks"],
        "times": {"seconds": SECONDS, "sources": TIME_SOURCES},
        "data": {"real": real, "scans": [scan.name for scan in scans]},
        "models": about,
        "rows": summaries,
        "per_scan": rows,
        "provenance": provenance(next(iter(predictors.values())).model.device),
    }
