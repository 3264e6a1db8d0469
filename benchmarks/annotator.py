"""The simulated annotator on real scans: `.venv/bin/python benchmarks/annotator.py --weights FILE [--input-scale 1.5]`.

Works through the whole scans of SegRoot's valid split, once with the published weights and once with those of a trained
Stage 2, and writes data/results/segroot-annotator.json. Stopped, it goes on at the scan where it was (runs/annotator).
"""

import argparse

from rootsam_lib import HOME
from rootsam_lib.checkpoints import build_sam
from rootsam_lib.data.datasets import load_scans
from rootsam_lib.evaluation.clicks import simulate
from rootsam_lib.predictor import Predictor
from rootsam_lib.results import RUNS, write_json

FILE = HOME / "data" / "results" / "segroot-annotator.json"


def main() -> None:
    """Annotate, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="best.safetensors of a trained Stage 2")
    parser.add_argument("--input-scale", type=float, default=1.0)
    parser.add_argument("--limit", type=int, default=None, help="most scans (default: all)")
    options = parser.parse_args()
    models = {"base": build_sam("nano"), "stage2": build_sam("nano", options.weights)}
    predictors = {name: Predictor(model, options.input_scale, 1024) for name, model in models.items()}
    scans = load_scans("segroot", "valid", limit=options.limit)
    results = simulate(predictors, scans, RUNS / "annotator", real=True)
    write_json(FILE, results)
    for name, row in results["rows"].items():
        low, high = row["minutes_interval"]
        print(f"{name}: {row['clicks']:.1f} clicks, {row['minutes']:.1f} ({low:.1f} to {high:.1f}) minutes a scan")


if __name__ == "__main__":
    main()
