"""Does the feature bank cost accuracy? `.venv/bin/python benchmarks/bank_against_live.py [--seeds 3] [--epochs 12]`.

Stage 1 of nano on the drawn scans, for as many epochs with the feature bank (two views a patch, a tenth of them anew
each epoch) and with every patch augmented and encoded anew each time; the same seeds. Writes one row a way and seed to
data/results/bank-against-live.json as it goes, goes on from there, and prints the table.
"""

import argparse
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from readme import bank_table

from rootsam_lib.data.datasets import load_parts
from rootsam_lib.lessons.claims import RESULTS
from rootsam_lib.results import provenance, read_json, write_json
from rootsam_lib.training.config import stage1
from rootsam_lib.training.loop import train_stage

FILE = RESULTS / "bank-against-live.json"
WAYS = {"feature bank": 8.0, "live encoder": 0.0}


def main() -> None:
    """Train what the results file lacks, then print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    parts = load_parts("synthetic")
    config = stage1("nano", epochs=options.epochs)
    about = {"title": "Embedded toy: drawn scans", "data": "synthetic, val part", "config": asdict(config)}
    rows = read_json(FILE)["rows"] if FILE.is_file() else []
    for seed in range(options.seeds):
        for way, room in WAYS.items():
            if any(row["way"] == way and row["seed"] == seed for row in rows):
                continue
            own = stage1("nano", epochs=options.epochs, seed=seed, bank_gb=room)
            with tempfile.TemporaryDirectory() as runs:
                started = time.monotonic()
                stage = train_stage(own, parts["train"], parts["val"], Path(runs))
                minutes = (time.monotonic() - started) / 60
            best = max(stage.history, key=lambda row: row["val_score"])
            scores = {key: best[key] for key in ("root_iou", "automatic_root_iou", "pooled_dice")}
            rows.append({"way": way, "seed": seed, "minutes": round(minutes, 2), **scores})
            write_json(FILE, about | {"rows": rows, "provenance": provenance()})
    print(bank_table({"rows": rows}))


if __name__ == "__main__":
    main()
