"""What calibration on k annotated scans is worth on other tubes: `.venv/bin/python benchmarks/calibration.py ROOTS`.

ROOTS is what `segment` wrote from SegRoot's valid split with its masks. Again and again k scans are drawn, whole tubes
first, the calibration is fitted on them and judged on all scans of the other tubes. The second part measures how wide
roots look in the image, in the true masks and in the model's, across the same lines. Writes
data/results/segroot-calibration.json.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d, map_coordinates

from rootsam_lib.data.datasets import load_scans
from rootsam_lib.data.masks import read_mask
from rootsam_lib.evaluation.bootstrap import agreement, interval, tube_weights
from rootsam_lib.evaluation.calibration import calibrated, calibrated_traits, fit_calibration
from rootsam_lib.lessons.claims import RESULTS
from rootsam_lib.results import progress, provenance, read_csv, read_json, write_json
from rootsam_lib.traits import trace

FILE = RESULTS / "segroot-calibration.json"
SCANS = (2, 5, 10)
ACROSS = np.arange(-15, 15.1, 0.5)  # px to both sides of a root's line


def judge(rows: list[dict], true: list[dict], tubes: np.ndarray, k: int, draws: int, seed: int) -> dict:
    """Bias and R² of every calibrated trait on scans of tubes that were not calibrated on, with intervals over tubes;
    and the middle 95 % of the bias of single calibrations, each on its own test scans."""
    rng, names, size = np.random.default_rng([seed, k]), np.unique(tubes), rows[0]["mm_per_px"]
    errors = {(name, with_contrast): [[] for _ in rows] for name in true[0] for with_contrast in (True, False)}
    single = {key: [] for key in errors}
    for _ in progress(range(draws), f"{k} scans", "draw"):
        chosen = np.concatenate([np.flatnonzero(tubes == tube) for tube in rng.permutation(names)])[:k]
        test = np.flatnonzero(~np.isin(tubes, tubes[chosen]))
        fitted = fit_calibration([rows[i] for i in chosen], [true[i] for i in chosen], tubes[chosen], size, {}, draws=1)
        plain = {name: sum(true[i][name] for i in chosen) / sum(rows[i][name] for i in chosen) for name in true[0]}
        answers = [calibrated(rows[i], fitted) for i in test]
        for name, with_contrast in errors:
            got = [
                a[f"calibrated_{name}"] if with_contrast else plain[name] * rows[i][name]
                for i, a in zip(test, answers, strict=True)
            ]
            error = np.array(got) - [true[i][name] for i in test]
            single[name, with_contrast].append(error.sum() / sum(true[i][name] for i in test))
            for i, value in zip(test, error, strict=True):
                errors[name, with_contrast][i].append(value)
    weights = np.vstack([np.ones(len(rows)), tube_weights(tubes, np.random.default_rng(seed))])
    found = {}
    for (name, with_contrast), values in errors.items():
        truth = np.array([row[name] for row in true])
        mean, square = (np.array([np.mean(np.power(v, p)) for v in values]) for p in (1, 2))
        centre = (weights @ truth) / weights.sum(axis=1)
        spread = (weights * (truth - centre[:, None]) ** 2).sum(axis=1)
        with np.errstate(divide="ignore"):
            bias, r2 = (weights @ mean) / (weights @ truth), 1 - (weights @ square) / spread
        key = name if with_contrast else f"{name}, one factor"
        if with_contrast or "length" in name:
            found[key] = {
                "relative_bias": [float(bias[0]), *interval(bias[1:])],
                "r2": [float(r2[0]), *interval(r2[1:])],
                "relative_bias_of_single_calibrations": list(interval(np.array(single[name, with_contrast]))),
            }
    return found


def half_width(profile: np.ndarray) -> float:
    """Full width in px at half the height of a mean profile across a root, over the ground at both ends."""
    height = profile - (profile[:10].mean() + profile[-10:].mean()) / 2
    top = len(height) // 2 - 6 + int(np.argmax(height[len(height) // 2 - 6 : len(height) // 2 + 7]))
    left, right = (np.flatnonzero(side < height[top] / 2) for side in (height[top::-1], height[top:]))
    sides = []
    for beyond, values in ((left, height[top::-1]), (right, height[top:])):
        n = int(beyond[0])
        sides.append(n - 1 + (values[n - 1] - height[top] / 2) / (values[n - 1] - values[n]))
    return float(sum(sides) / 2)  # ACROSS has two samples in a pixel


def widths(image: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> list[float]:
    """`half_width` of grey level, true mask and model's mask across the true lines that the model has found."""
    layers, profiles = (image.mean(axis=2), truth.astype(float), mask.astype(float)), ([], [], [])
    for path in trace(truth, None).paths:
        line = gaussian_filter1d(path, 3, axis=0, mode="nearest")
        along = np.gradient(line, axis=0) if len(line) >= 40 else line[:0]
        normal = (
            np.stack([-along[:, 1], along[:, 0]], axis=1) / np.maximum(np.linalg.norm(along, axis=1), 1e-9)[:, None]
        )
        for start in range(0, len(along) - 19, 20):
            part = slice(start, start + 20)
            places = (line[part, None] + ACROSS[None, :, None] * normal[part, None]).transpose(2, 0, 1)
            cuts = [map_coordinates(layer, places, order=1, mode="nearest").mean(axis=0) for layer in layers]
            if cuts[2].max() > 0.5:
                for kept, cut in zip(profiles, cuts, strict=True):
                    kept.append(cut)
    return [half_width(np.mean(kept, axis=0)) for kept in profiles]


def main() -> None:
    """Judge, measure, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", type=Path)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", default="", help="what is special about these masks, for the results file")
    options = parser.parse_args()
    text = ("scan", "tube", "date")
    scores = read_csv(options.roots / "scores.csv", text)
    measured = {row["scan"]: row for row in read_csv(options.roots / "traits.csv", text)}
    rows, tubes = [measured[row["scan"]] for row in scores], np.array([row["tube"] for row in scores])
    traits = calibrated_traits(scores[0])
    true = [{name: row[f"true_{name}"] for name in traits} for row in scores]
    before = {name: agreement([r[name] for r in rows], [t[name] for t in true], tubes, options.seed) for name in traits}
    after = {str(k): judge(rows, true, tubes, k, options.draws, options.seed) for k in SCANS}
    scans = {scan.name: scan for scan in load_scans("segroot", "valid")}
    wide = {}
    for name in progress([row["scan"] for row in scores], "widths", "scan"):
        mask = read_mask(options.roots / f"{name}-mask.png", "0/255")
        wide[name] = widths(scans[name].image, scans[name].mask, mask)
    table = np.array(list(wide.values()))
    results = {
        "title": "Real scans: SegRoot (valid split), calibration from k annotated scans of other tubes",
        "note": options.note,
        "data": {"source": "segroot", "test_split": "valid", "real": True, "scans": [row["scan"] for row in scores]},
        "config": {"draws": options.draws, "seed": options.seed, "model": read_json(options.roots / "segment.json")},
        "as_measured": before,
        "calibrated_on": after,
        "contrast": {row["scan"]: row["qc_root_contrast"] for row in rows},
        "widths_px": {
            "columns": ["image", "true mask", "model's mask"],
            "mean": table.mean(axis=0).tolist(),
            "correlation_with_image": [float(np.corrcoef(table[:, 0], table[:, k])[0, 1]) for k in (1, 2)],
            "scans": wide,
        },
        "provenance": provenance(),
    }
    write_json(FILE, results)
    for k, found in after.items():
        for name, row in found.items():
            shown = ", ".join(
                f"{what} {row[what][0]:.3f} ({row[what][1]:.2f} to {row[what][2]:.2f})"
                for what in ("relative_bias", "r2")
            )
            print(f"{k} scans, {name}: {shown}")
    print("widths", results["widths_px"]["mean"], results["widths_px"]["correlation_with_image"])


if __name__ == "__main__":
    main()
