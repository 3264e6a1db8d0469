"""The simulated annotator on real scans: `.venv/bin/python benchmarks/annotator.py STAGE` (folder of a trained stage).

Works through the whole scans of SegRoot's valid split in every way of `evaluation.clicks.WAYS`, and writes
data/results/segroot-annotator.json. Stopped, it goes on where it was (runs/annotator). With `--logits FOLDER`, which
holds the automatic logits of each scan as NAME.npy, no model is asked: ways that click for its answer are left out.
"""

import argparse
from pathlib import Path

import numpy as np

from rootsam_lib import HOME
from rootsam_lib.data.datasets import load_scans
from rootsam_lib.data.scans import Scan
from rootsam_lib.evaluation.clicks import WAYS, simulate
from rootsam_lib.predictor import load_predictor
from rootsam_lib.results import RUNS, write_json

FILE = HOME / "data" / "results" / "segroot-annotator.json"
MINUTES = (0, 1, 2, 4.5, 10)


def main() -> None:
    """Annotate, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("stage", nargs="?", help="folder of a trained stage")
    source.add_argument("--logits", type=Path, help="folder of automatic logits, NAME.npy, instead of a model")
    parser.add_argument("--made-by", default="unknown", help="which model made the logits, in words")
    parser.add_argument("--ways", help="which ways, joined by ; (default: all that can be)")
    parser.add_argument("--limit", type=int, default=None, help="most scans (default: all)")
    options = parser.parse_args()
    scans = load_scans("segroot", "valid", limit=options.limit)
    common = {"out": RUNS / "annotator", "minutes": MINUTES, "real": True}
    ways = [way for way, tools in WAYS.items() if options.stage or "click" not in tools]
    ways = options.ways.split(";") if options.ways else ways
    if options.stage:
        results = simulate(scans, load_predictor(options.stage), ways, **common)
    else:

        def logits(scan: Scan) -> np.ndarray:
            return np.load(options.logits / f"{scan.name}.npy").astype(np.float32)

        results = simulate(scans, None, ways, logits=logits, made_by={"model": options.made_by}, **common)
    write_json(FILE, results)
    for way, row in results["rows"].items():
        for at, scores in row.items():
            told = (f"{name} {value:.3f} ({low:.3f} to {high:.3f})" for name, (value, low, high) in scores.items())
            print(f"{way}, {at} min: {', '.join(told)}")


if __name__ == "__main__":
    main()
