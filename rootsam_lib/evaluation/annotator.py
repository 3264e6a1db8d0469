"""A person, simulated: who clicks where the mask is most wrong, and takes time for it.

    python -m rootsam_lib.evaluation.annotator --data segroot --split valid --weights stage2=FILE --out FOLDER

works through whole scans, once with the published weights and once with those of FILE; stopped, it goes on at the scan
where it was. Every click is drawn from the true mask: this is what a perfect eye would reach, and not how well a person
sees.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from skimage.morphology import skeletonize

from rootsam_lib.checkpoints import MODELS, build_sam, weights_hash
from rootsam_lib.data.datasets import load_scans
from rootsam_lib.data.scans import Scan, check_masks
from rootsam_lib.evaluation.bootstrap import interval, tube_weights
from rootsam_lib.evaluation.clicks import correct
from rootsam_lib.metrics import cl_dice, count, iou
from rootsam_lib.model import RootSAM
from rootsam_lib.predictor_corrector import Corrector
from rootsam_lib.results import progress, provenance, read_json, shown, write_json

TIME_SOURCES = {
    "find": "1 to 6 s to see the next mistake and get there: RootPainter's simulated annotator (sim_benchmark) takes "
    "1.5 s between strokes; a scan of 2550 x 2273 px needs zooming. Upper end: our assumption, no value found",
    "click": "0.7 to 1.4 s: a stroke on soil and on root in RootPainter's simulated annotator; a click is no longer",
    "review": "20 to 60 s to look over the scan before and after: our assumption, no value found in the literature",
}
SKIP = 6  # px around a click within which nobody clicks again


@dataclass(frozen=True)
class TimeModel:
    """Seconds of a person's time, each as (least, most); a value between is as likely as another. See TIME_SOURCES."""

    find: tuple[float, float] = (1.0, 6.0)  # per click
    click: tuple[float, float] = (0.7, 1.4)  # per click
    review: tuple[float, float] = (20.0, 60.0)  # per scan

    def __post_init__(self) -> None:
        for name, (least, most) in asdict(self).items():
            if not 0 <= least <= most:
                raise ValueError(f"{name} is {least} to {most} s: give two times, the shorter one first.")

    def minutes(self, clicks: float | np.ndarray, rng: np.random.Generator | None = None) -> float | np.ndarray:
        """Minutes for a scan with so many clicks: at the middle of the ranges, or, with `rng`, drawn from them."""
        find, click, review = ((sum(r) / 2 if rng is None else rng.uniform(*r)) for r in asdict(self).values())
        return (review + clicks * (find + click)) / 60


def skeleton_length(mask: np.ndarray) -> float:
    """Pixels of the mask's skeleton: a length that is short by the same share for every mask of one image."""
    return float(skeletonize(mask).sum())


def annotate(
    model: RootSAM,
    scan: Scan,
    clicks: int = 20,
    input_scale: float = 1.0,
    tile_size: int = 1024,
    jitter: float = 1.0,
    seed: int = 0,
    length: Callable[[np.ndarray], float] = skeleton_length,
) -> dict[str, object]:
    """One scan, corrected by up to `clicks` clicks; lists hold what the mask was worth after 0, 1, ... of them.

    Each click is `correction.aim` at the mask so far, moved by `jitter` px (SD) as a hand moves it; where it was
    clicked already, it goes to the next mistake. Raises ValueError for a scan without mask.
    """
    check_masks([scan])
    rng = np.random.default_rng([seed, scan.mask.shape[0], int(scan.mask.sum())])
    masks, given = correct(
        Corrector(model, scan.image, input_scale, tile_size).ask, scan.mask, clicks, rng, jitter, SKIP
    )
    return {
        "name": scan.name,
        "tube": scan.tube,
        "true_length": length(scan.mask),
        "root_iou": [iou(count(mask, scan.mask)) for mask in masks],
        "cl_dice": [cl_dice(mask, scan.mask) for mask in masks],
        "length": [length(mask) for mask in masks],
        "obeyed": sum(int(mask[y, x] == label) for mask, (x, y, label) in zip(masks[1:], given, strict=False)),
        "given": len(given),
        "clicks": [list(click) for click in given],
    }


def clicks_until(scores: Sequence[float], goal: float) -> int:
    """The first number of clicks after which a score reaches the goal; where it never does, all that were tried."""
    return next((k for k, score in enumerate(scores) if score >= goal), len(scores) - 1)


def summarise(
    rows: Sequence[Mapping],
    times: TimeModel = TimeModel(),
    share: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, object]:
    """Clicks and minutes per scan with 95 % intervals, and scores after k clicks, over the rows of `annotate`.

    Clicks: until the root IoU is within `share` of the same model's with all clicks. A model that ignores its clicks
    needs none by this definition, so look at `after_clicks` and `obeyed_share` as well.

    Intervals: bootstrap over tubes (scans of one tube are drawn together); in that of the minutes, the seconds of the
    time model are drawn anew as well. length_error: mean of |length - true| / true. Raises ValueError for no row.
    """
    if not rows:
        raise ValueError("no scan was annotated: check the split and the limit.")
    rng = np.random.default_rng(seed)
    tubes = [row["tube"] for row in rows]
    needed = np.array([clicks_until(row["root_iou"], share * row["root_iou"][-1]) for row in rows], float)
    weights = tube_weights(tubes, rng, draws)
    clicks = weights @ needed / weights.sum(axis=1)
    minutes = np.array([times.minutes(mean, rng) for mean in clicks])
    after = {}
    for k in sorted({0, 1, 3, 5, 10, len(rows[0]["root_iou"]) - 1}):
        if k < len(rows[0]["root_iou"]):
            errors = [
                abs(row["length"][k] - row["true_length"]) / row["true_length"] for row in rows if row["true_length"]
            ]
            after[k] = {name: float(np.mean([row[name][k] for row in rows])) for name in ("root_iou", "cl_dice")}
            after[k]["length_error"] = float(np.mean(errors)) if errors else float("nan")
    given = sum(row["given"] for row in rows)
    return {
        "scans": len(rows),
        "tubes": len(set(tubes)),
        "clicks": float(needed.mean()),
        "clicks_interval": list(interval(clicks)),
        "minutes": float(times.minutes(needed.mean())),
        "minutes_interval": list(interval(minutes)),
        "obeyed_share": sum(row["obeyed"] for row in rows) / given if given else 1.0,
        "after_clicks": after,
    }


def simulate(
    models: Mapping[str, RootSAM],
    scans: Sequence[Scan],
    out: str | Path | None = None,
    times: TimeModel = TimeModel(),
    share: float = 0.95,
    clicks: int = 20,
    input_scale: float = 1.0,
    tile_size: int = 1024,
    jitter: float = 1.0,
    seed: int = 0,
    real: bool = False,
) -> dict[str, object]:
    """Several models on the same scans: a results dictionary with `rows` (see `summarise`) by the models' names.

    out: a folder that keeps a file per scan and model; what is there already, from the same weights and settings, is
    read instead of annotated again. real: whether these are photographs or drawn.
    """
    setting = {
        "clicks": clicks,
        "input_scale": input_scale,
        "tile_size": tile_size,
        "jitter": jitter,
        "seed": seed,
    }
    rows, identity = {}, {}
    for name, model in models.items():
        identity[name] = {"model": model.label, "weights": weights_hash(model)}
        made_with = setting | identity[name]
        rows[name] = []
        for scan in progress(scans, f"annotate: {name}", "scan", leave=False):
            file = Path(out) / name / f"{scan.name}.json" if out else None
            kept = read_json(file) if file and file.is_file() else {}
            if kept.get("setting") != made_with:
                kept = {"setting": made_with, "row": annotate(model, scan, **setting)}
                if file:
                    write_json(file, kept)
            rows[name].append(kept["row"])
    summaries = {name: summarise(of, times, share, seed=seed) for name, of in rows.items()}
    last = summaries[list(models)[-1]]
    low, high = last["minutes_interval"]
    return {
        "protocol": {"name": "simulated annotator", "share": share, **setting},
        "minutes_per_scan": {"mean": last["minutes"], "low": low, "high": high},  # for the cost model
        "clicks_per_scan": last["clicks"],
        "times": {"seconds": asdict(times), "sources": TIME_SOURCES},
        "data": {"real": real, "scans": [scan.name for scan in scans]},
        "models": identity,
        "rows": summaries,
        "per_scan": rows,
        "provenance": provenance(next(iter(models.values())).device),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rootsam_lib.evaluation.annotator", description=__doc__)
    parser.add_argument("--data", default="synthetic", help="synthetic, segroot or folder")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--split", default="valid")
    parser.add_argument("--limit", type=int, default=0, help="most scans; 0 takes all")
    parser.add_argument("--model", default="nano", choices=list(MODELS))
    parser.add_argument(
        "--weights", action="append", default=[], metavar="NAME=FILE", help="a trained model; repeat it"
    )
    parser.add_argument("--input-scale", type=float, default=1.0)
    parser.add_argument("--tile-size", type=int, default=1024)
    parser.add_argument("--clicks", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, help="folder for a file per scan and model, and simulated.json")
    given = parser.parse_args(arguments)
    try:
        models = {"base": build_sam(given.model)}
        for entry in given.weights:
            name, equals, file = entry.partition("=")
            if not equals:
                raise ValueError(f"--weights {entry} is not NAME=FILE, such as stage2=runs/.../best.safetensors.")
            models[name] = build_sam(given.model, file)
        scans = load_scans(given.data, given.split, given.data_dir, given.limit or None, given.seed)
        options = {
            "clicks": given.clicks,
            "input_scale": given.input_scale,
            "tile_size": given.tile_size,
            "seed": given.seed,
        }
        results = simulate(models, scans, given.out, real=given.data != "synthetic", **options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    file = write_json(Path(given.out) / "simulated.json", results)
    for name, row in results["rows"].items():
        low, high = row["minutes_interval"]
        last = row["after_clicks"][max(row["after_clicks"])]
        print(
            f"{name}: {row['clicks']:.1f} clicks, {row['minutes']:.1f} ({low:.1f} to {high:.1f}) minutes a scan, ",
            end="",
        )
        print(f"root IoU {row['after_clicks'][0]['root_iou']:.3f} to {last['root_iou']:.3f}")
    print(f"written to {shown(file)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
