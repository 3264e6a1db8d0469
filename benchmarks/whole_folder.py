"""How fast is a folder of scans segmented: `.venv/bin/python benchmarks/whole_folder.py [--scans 40] [--growth]`.

The same drawn scans of 2550 x 2273 px, with nano at input scale 1.5: one scan after the other in one process; with
workers that read and measure; and split among two launched processes, of one thread each. Seconds include the start of
all processes. Files are equal byte for byte where as many threads compute them, as with OMP_NUM_THREADS=1; else the
last digits of a model's estimate and pixels on a root's edge may differ.
--growth: seconds a scan for 10, 100 and 1,000 small scans with a model that costs nothing, first and when all is done
already. Writes data/results/whole-folder.json.
"""

import argparse
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
from rootsam_lib.data.drawn import draw_scan
from rootsam_lib.lessons.claims import RESULTS
from rootsam_lib.results import progress, provenance, read_json, rows_table, write_json

sys.path.insert(0, str(CHECKOUT / "tests"))
from stub_predictor import StubPredictor  # a model that costs nothing

SCAN = (2273, 2550)
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
WAYS = {
    "one process": ([sys.executable], ["--workers", "0"]),
    "with workers": ([sys.executable], ["--workers", "2"]),
    "two launched processes": (LAUNCH, ["--workers", "0"]),
}


def draw(folder: Path, number: int, shape: tuple[int, int]) -> Path:
    """A folder of up to ten drawn scans, and of the same ones moved by 7 px and more where more are wanted."""
    folder.mkdir()
    numbers = progress(range(min(number, 10)), "draw", "scan")
    drawn = [draw_scan(np.random.default_rng(i), *shape).image for i in numbers]
    for i in range(number):
        image = np.roll(drawn[i % len(drawn)], i // len(drawn) * 7 * 3)  # 3 values a pixel
        Image.fromarray(image).save(folder / f"s_T{i:04d}.png")
    return folder


def contents(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in out.iterdir() if not file.name.startswith(".")}


def masks(out: Path) -> np.ndarray:
    return np.concatenate([np.asarray(Image.open(file)).ravel() for file in sorted(out.glob("*-mask.png"))])


def ways(scans: int, shape: tuple[int, int]) -> list[dict[str, object]]:
    """Seconds a scan of each way, and whether its files are the first one's; how many mask pixels are not."""
    rows, first = [], None
    with tempfile.TemporaryDirectory() as place:
        folder = draw(Path(place) / "scans", scans, shape)
        for way, (program, extra) in WAYS.items():
            out = Path(place) / way.replace(" ", "-")
            call = [*program, "-m", "rootsam_lib", "segment", str(folder), "--model", "nano", "--out", str(out)]
            call += ["--input-scale", "1.5", "--dpi", "300", *extra]
            print(f"{way} …", flush=True)
            started = time.perf_counter()
            subprocess.run(call, check=True)
            row = {"way": way, "seconds_a_scan": (time.perf_counter() - started) / scans}
            first = first or out
            row["same_bytes"] = contents(out) == contents(first)
            row["mask_pixels_that_differ"] = int((masks(out) != masks(first)).sum())
            rows.append(row)
            print(row, flush=True)
    return rows


def growth(numbers: tuple[int, ...] = (10, 100, 1000)) -> list[dict[str, object]]:
    """Seconds a scan by the number of scans; the first number twice, for what is loaded or compiled only once."""
    rows = []
    for number in (numbers[0], *numbers):
        with tempfile.TemporaryDirectory() as place:
            folder = draw(Path(place) / "scans", number, (64, 80))
            row = {"scans": number}
            for name in ("first_s_a_scan", "again_s_a_scan"):
                started = time.perf_counter()
                segment_folder(folder, StubPredictor(), Path(place) / "out", dpi=300, say=lambda line: None)
                row[name] = (time.perf_counter() - started) / number
        print(row, flush=True)
        rows.append(row)
    return rows[1:]


def main() -> None:
    """Print the tables and keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=40)
    parser.add_argument("--shape", type=int, nargs=2, default=SCAN, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--growth", action="store_true", help="only the cost by the number of scans")
    parser.add_argument("--out", type=Path, default=RESULTS / "whole-folder.json")
    options = parser.parse_args()
    about = {"title": "Embedded toy: drawn scans", "meaning": __doc__, "threads": torch.get_num_threads()}
    rows = growth() if options.growth else ways(options.scans, tuple(options.shape))
    before = read_json(options.out) if options.out.is_file() else {}  # of the other kind of rows
    about = before | about | {"growth" if options.growth else "ways": rows, "shape": options.shape}
    write_json(options.out, about | {"provenance": provenance()})
    print(rows_table(rows))


if __name__ == "__main__":
    main()
