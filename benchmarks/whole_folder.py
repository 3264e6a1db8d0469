"""How fast is a folder of scans segmented: `.venv/bin/python benchmarks/whole_folder.py [--scans 40] [--growth]`.

The same drawn scans of 2550 x 2273 px, with nano at input scale 1.5: one scan after the other in one process; with
workers that read and measure; and split among two launched processes. Their files must be equal byte for byte.
--growth: seconds a scan for 10, 100 and 1,000 small scans with a model that costs nothing, first and when all is done
already. Writes data/results/whole-folder.json.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rootsam_lib import CHECKOUT
from rootsam_lib.apps.segment import segment_folder
from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.results import provenance, rows_table, write_json

SCAN = (2273, 2550)
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1", "--num_processes", "2"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no"]
WAYS = {
    "one process": ([sys.executable], ["--workers", "0"]),
    "with workers": ([sys.executable], []),
    "two launched processes": (LAUNCH, ["--workers", "0"]),
}


class Threshold:
    """A model that costs nothing: bright is root."""

    about, root_width = {"model": "threshold", "weights": ""}, 0.0

    def set_image(self, image: np.ndarray) -> None:
        self.image = image

    def predict(self, *_: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        logits = self.image[..., 1].astype(np.float32) - 127
        return (logits > 0)[None], np.ones(1), logits[None]


def draw(folder: Path, number: int, shape: tuple[int, int]) -> Path:
    folder.mkdir()
    for i, scan in enumerate(synthetic_scans("train", number, seed=0, height=shape[0], width=shape[1])):
        Image.fromarray(scan.image).save(folder / f"s_T{i:04d}.png")
    return folder


def contents(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in out.iterdir() if not file.name.startswith(".")}


def ways(scans: int, shape: tuple[int, int]) -> list[dict[str, object]]:
    """Seconds a scan of each way, and whether all files are the first one's."""
    rows, first = [], {}
    with tempfile.TemporaryDirectory() as place:
        folder = draw(Path(place) / "scans", scans, shape)
        for way, (program, extra) in WAYS.items():
            out = Path(place) / way.replace(" ", "-")
            call = [*program, "-m", "rootsam_lib", "segment", str(folder), "--model", "nano", "--out", str(out)]
            call += ["--input-scale", "1.5", "--dpi", "300", *extra]
            started = time.perf_counter()
            subprocess.run(call, check=True, capture_output=True, env=os.environ | {"ROOTSAM_PROGRESS": "0"})
            taken = (time.perf_counter() - started) / scans
            first = first or contents(out)
            rows.append({"way": way, "seconds_a_scan": taken, "same_bytes": contents(out) == first})
    return rows


def growth(numbers: tuple[int, ...] = (10, 100, 1000)) -> list[dict[str, object]]:
    """Seconds a scan by the number of scans."""
    rows = []
    for number in numbers:
        with tempfile.TemporaryDirectory() as place:
            folder = draw(Path(place) / "scans", number, (64, 80))
            row = {"scans": number}
            for name in ("first_s_a_scan", "again_s_a_scan"):
                started = time.perf_counter()
                segment_folder(folder, Threshold(), Path(place) / "out", dpi=300, say=lambda line: None)
                row[name] = (time.perf_counter() - started) / number
            rows.append(row)
    return rows


def main() -> None:
    """Print the tables and keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=40)
    parser.add_argument("--shape", type=int, nargs=2, default=SCAN, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--growth", action="store_true", help="only the cost by the number of scans")
    parser.add_argument("--out", type=Path, default=CHECKOUT / "data" / "results" / "whole-folder.json")
    options = parser.parse_args()
    os.environ.setdefault("ROOTSAM_PROGRESS", "0")
    about = {"title": "Embedded toy: drawn scans", "meaning": __doc__, "threads": torch.get_num_threads()}
    rows = growth() if options.growth else ways(options.scans, tuple(options.shape))
    about |= {"growth" if options.growth else "ways": rows, "shape": options.shape}
    write_json(options.out, about | {"provenance": provenance()})
    print(rows_table(rows))


if __name__ == "__main__":
    main()
