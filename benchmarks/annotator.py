"""The simulated annotator on real scans: `.venv/bin/python benchmarks/annotator.py STAGE` (folder of a trained stage).

Works through the whole scans of SegRoot's valid split in every way of `evaluation.clicks.WAYS`, and writes
data/results/segroot-annotator.json. Stopped, it goes on where it was (runs/annotator).
"""

import argparse

from rootsam_lib.data.datasets import load_scans
from rootsam_lib.evaluation.clicks import WAYS, simulate
from rootsam_lib.lessons.claims import RESULTS
from rootsam_lib.predictor import load_predictor
from rootsam_lib.results import RUNS, write_json

FILE = RESULTS / "segroot-annotator.json"
MINUTES = (0, 1, 2, 4.5, 10)


def main() -> None:
    """Annotate, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", help="folder of a trained stage")
    parser.add_argument("--ways", help="which ways, joined by ; (default: all)")
    parser.add_argument("--limit", type=int, default=None, help="most scans (default: all)")
    options = parser.parse_args()
    scans = load_scans("segroot", "valid", limit=options.limit)
    common = {"out": RUNS / "annotator", "minutes": MINUTES, "real": True}
    ways = options.ways.split(";") if options.ways else tuple(WAYS)
    results = simulate(scans, load_predictor(options.stage), ways, **common)
    write_json(FILE, results)
    for way, row in results["rows"].items():
        for at, scores in row.items():
            told = (f"{name} {value:.3f} ({low:.3f} to {high:.3f})" for name, (value, low, high) in scores.items())
            print(f"{way}, {at} min: {', '.join(told)}")


if __name__ == "__main__":
    main()
