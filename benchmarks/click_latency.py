"""From a click to the redraw, in ms: `.venv/bin/python benchmarks/click_latency.py [--clicks 20] [--threads 2]`.

nano on one drawn scan of 1024 x 1024 px, in JupyterLab and headless Chromium on this machine; every click is made with
the mouse, and the canvas itself reports the time until its answer is drawn. One click before is not counted. Prints the
distribution and writes it to data/results/click-latency.json. Needs `pip install -e ".[dev]"` and Chromium.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import nbformat
import numpy as np

from rootsam_lib import CHECKOUT
from rootsam_lib.lessons.claims import RESULTS
from rootsam_lib.results import provenance, write_json

sys.path.insert(0, str(CHECKOUT / "tests"))
from browser import Widget, chromium, jupyterlab, open_notebook, run_all

FILE = RESULTS / "click-latency.json"
NOTEBOOK = """
import torch
torch.set_num_threads({threads})
from rootsam_lib.apps.widget import annotate
from rootsam_lib.checkpoints import build_sam
from rootsam_lib.apps.correct import Session
from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.predictor import Predictor
session = Session("latency", synthetic_scans("test", 1, seed=0), Predictor(build_sam("nano"), tile_size=1024))
annotate(session)
"""


def latencies(clicks: int, threads: int, seed: int = 0) -> list[int]:
    """ms from each click to its redraw, in the order of the clicks: at random places, root and soil in turn."""
    rng = np.random.default_rng(seed)
    places = rng.permutation([(x, y) for x in range(60, 1000, 80) for y in range(60, 1000, 80)])[: clicks + 1]
    with tempfile.TemporaryDirectory() as folder, chromium() as engine, jupyterlab(Path(folder)) as lab:
        cell = nbformat.v4.new_code_cell(NOTEBOOK.format(threads=threads))
        notebook = nbformat.v4.new_notebook(cells=[cell])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, lab.folder / "latency.ipynb")
        page = open_notebook(lab, engine, "latency")
        run_all(page)
        widget = Widget(page)
        for number, (x, y) in enumerate(places):
            widget.click(int(x), int(y), button=("left", "right")[number % 2])
        return widget.latencies[1:]


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clicks", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.clicks < 1 or options.threads < 1:
        parser.error("--clicks and --threads must be at least 1.")
    each = latencies(options.clicks, options.threads)
    spread = {"min": min(each), "median": np.median(each), "p90": np.percentile(each, 90), "max": max(each)}
    spread = {name: round(float(value)) for name, value in spread.items()}
    write_json(
        FILE,
        {
            "title": "From a click to the redraw, ms: nano, one drawn scan of 1024 x 1024 px, JupyterLab in Chromium",
            "threads": options.threads,
            "milliseconds": spread,
            "each": each,
            "provenance": provenance(),
        },
    )
    print(f"{len(each)} clicks, ms: " + ", ".join(f"{name} {value}" for name, value in spread.items()))


if __name__ == "__main__":
    main()
