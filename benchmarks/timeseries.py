"""New and vanished root length against drawn truth: `.venv/bin/python benchmarks/timeseries.py [FOLDER …]`.

Draws windows whose roots grow and die, follows them with their exact masks, and writes
data/results/timeseries-drawn.json. FOLDERs of real images, each of one window at several dates, are aligned as well,
in order of their dates; so is the last image of each with the first of the next folder, which shows another place.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np

from rootsam_lib import HOME
from rootsam_lib.apps.timeseries import TOLERANCE_PX, align, follow
from rootsam_lib.data.datasets import find_pairs
from rootsam_lib.data.drawn import growing_scans
from rootsam_lib.data.images import read_image
from rootsam_lib.data.scans import parse_date
from rootsam_lib.results import progress, provenance, write_json

FILE = HOME / "data" / "results" / "timeseries-drawn.json"


def main() -> None:
    """Draw, follow, align, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--dates", type=int, default=4)
    parser.add_argument("--side", type=int, default=768)
    options = parser.parse_args()
    intervals = []
    for seed in progress(range(options.windows), "windows", "window"):
        scans, growth = growing_scans(np.random.default_rng(seed), options.dates, options.side, options.side)
        rows = follow(scans, say=str)
        for row, true in list(zip(rows, growth, strict=True))[1:]:
            standing = (true.shared_before + true.shared_length) / 2
            if not standing:
                continue  # a window without roots has no turnover
            intervals.append(
                {
                    "window": seed,
                    "shift": [row["shift_rows"], row["shift_columns"]],
                    "true_shift": list(true.shift),
                    "match": row["match"],
                    "new_mm": [row.get("new_length_mm"), true.new],
                    "vanished_mm": [row.get("vanished_length_mm"), true.vanished],
                    "length_mm": [row["root_length_mm"], true.length],
                    "turnover_per_year": [row.get("turnover_per_year"), true.new / standing * 365.25 / row["days"]],
                }
            )
    sums = {name: np.sum([row[name] for row in intervals], axis=0) for name in ("new_mm", "vanished_mm", "length_mm")}
    turnover = np.mean([row["turnover_per_year"] for row in intervals], axis=0)
    errors = {name: float(found / true - 1) for name, (found, true) in (sums | {"turnover": turnover}).items()}
    images = [
        sorted((entry.image for entry in find_pairs(folder, need_masks=False)), key=lambda path: parse_date(path.stem))
        for folder in options.folders
    ]
    pairs = [pair for files in images for pair in itertools.pairwise(files)]
    others = [(files[-1], after[0]) for files, after in itertools.pairwise(images)]
    real = []
    for same, (before, after) in [*((True, pair) for pair in pairs), *((False, pair) for pair in others)]:
        found = align(read_image(before), read_image(after))
        real.append({"images": [before.name, after.name], "same_window": same, **found._asdict()})
    results = {
        "title": "Embedded toy: drawn windows over time, exact masks",
        "data": {"source": "growing_scans", "seeds": list(range(options.windows)), "real": False},
        "config": {"dates": options.dates, "days": 14, "side": options.side, "tolerance_px": TOLERANCE_PX},
        "shifts_found": float(np.mean([row["shift"] == row["true_shift"] for row in intervals])),
        "relative_errors": errors,
        "intervals": intervals,
        "alignment_of_real_scans": real,
        "provenance": provenance(),
    }
    write_json(FILE, results)
    print(results["shifts_found"], errors, *real, sep="\n")


if __name__ == "__main__":
    main()
