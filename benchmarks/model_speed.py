"""Seconds to encode, to decode and for a whole scan: `.venv/bin/python benchmarks/model_speed.py [nano tiny]`.

Encoding one image and decoding one prompt set: medians of nine runs after two that are not counted. A whole scan of
2550 x 2273 px, with nano, tiles of 512 px: one run after one that is not counted, by how much tiles are enlarged, and
in four flips. Weights are random: they do not change the time. Writes data/results/model-speed.json.
"""

import os
import sys
import time
from functools import partial
from statistics import median

import numpy as np
import torch

from rootsam_lib.checkpoints import build_sam
from rootsam_lib.lessons.claims import RESULTS
from rootsam_lib.predictor import Predictor
from rootsam_lib.results import provenance, write_json

SCAN = (2273, 2550)


def seconds(call, repeats: int = 9) -> float:
    """Median wall-clock seconds of a call."""
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return median(times[2:])


def main(names: list[str]) -> None:
    """Print one line a model and size, and one a way to look at a whole scan."""
    rows = []
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name in names:
        model = build_sam(name, weights=None).eval()
        for size in (512, 1024):
            image = np.random.default_rng(0).integers(0, 255, (1, size, size, 3), dtype=np.uint8)
            features = model.encode(image)
            points, labels = torch.rand(1, 10, 2) * size, torch.ones(1, 10, dtype=torch.long)
            with torch.no_grad():
                encode = seconds(partial(model.encode, image))
                decode = seconds(partial(model.decode, features, points, labels))
            print(f"{name:>9} {size:5d} px: encode {encode:.3f} s, decode {decode:.3f} s, ratio {encode / decode:.1f}")
            rows.append({"model": name, "size": size, "encode_s": encode, "decode_s": decode})
    scan = np.random.default_rng(0).integers(0, 255, (*SCAN, 3), dtype=np.uint8)
    model, scans = build_sam("nano", weights=None).eval(), []
    Predictor(model)(scan[:600])
    for input_scale, flips in ((1.0, False), (1.5, False), (1.5, True)):
        started = time.perf_counter()
        Predictor(model, input_scale, tta=flips, keep=False)(scan)
        scans.append({"input_scale": input_scale, "flips": flips, "seconds": time.perf_counter() - started})
        print(
            f"whole scan, enlarged {input_scale:g} times{', four flips' if flips else ''}: {scans[-1]['seconds']:.1f} s"
        )
    about = {"threads": torch.get_num_threads(), "scan": SCAN, "models": rows, "scans": scans}
    write_json(RESULTS / "model-speed.json", about | {"provenance": provenance()})


if __name__ == "__main__":
    main(sys.argv[1:] or ["nano", "tiny"])
