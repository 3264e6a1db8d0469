"""Draw README's first picture: a real scan, the base model, RootSAM. `.venv/bin/python benchmarks/real_scan.py`

The model is the newest Stage 2 of the profile quick, which has seen drawn scans only (`make tutorial ONLY=03,04`), or
what --model names. Beside the picture a results file says what made it.
"""

import argparse
from pathlib import Path

import numpy as np

from rootsam_lib import CHECKOUT
from rootsam_lib.data.folders import read_folder
from rootsam_lib.lessons import figures
from rootsam_lib.lessons.claims import RESULTS
from rootsam_lib.predictor import load_predictor
from rootsam_lib.results import RUNS, provenance, read_json, shown, write_json
from rootsam_lib.traits import measure

BRIGHTER = 3  # times: the scans are dark; the models see the same picture as the reader

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a trained stage's folder (default: the newest of runs/quick)")
    options = parser.parse_args()
    stages = sorted((RUNS / "quick").glob("stage2-*/stage.json"), key=lambda file: file.stat().st_mtime)
    if not stages and options.model is None:
        parser.error("no finished Stage 2 in runs/quick: run `make tutorial ONLY=03,04` first, or give --model.")
    folder = options.model or stages[-1].parent
    scan = min(read_folder(CHECKOUT / "data" / "real", need_masks=False), key=lambda scan: scan.date)
    image = np.minimum(BRIGHTER * scan.image.astype(int), 255).astype(np.uint8)
    predictors = {"base": load_predictor("nano"), "stage2": load_predictor(folder, tile_size=512)}
    masks = {name: predictor(image) for name, predictor in predictors.items()}
    rows = {name: {"root_share": float(mask.mean()), **measure(mask, None)} for name, mask in masks.items()}
    figures.use_style()
    figures.found_roots(image, masks, f"real scan of {scan.date}, {BRIGHTER} x as bright").savefig(
        RESULTS / "real-scan.png", dpi=100
    )
    names = [name for part in read_json(folder / "stage.json")["scans"].values() for name in part]
    kind = "drawn scans only" if all(name.startswith("synthetic_") for name in names) else "other scans"
    made = {"scan": scan.name, "brighter": BRIGHTER, "rows": rows, "trained_on": kind}
    models = {name: predictor.about for name, predictor in predictors.items()}
    print(shown(write_json(RESULTS / "real-scan.json", made | {"models": models, "provenance": provenance()})))
