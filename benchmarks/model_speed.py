"""Seconds to encode one image and to decode one prompt set: `.venv/bin/python benchmarks/model_speed.py [nano tiny]`.

Medians of nine runs after two that are not counted. Weights are random: they do not change the time.
"""

import os
import sys
import time
from functools import partial
from statistics import median

import numpy as np
import torch

from rootsam_lib.sam import build_sam


def seconds(call, repeats: int = 9) -> float:
    """Median wall-clock seconds of a call."""
    times = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return median(times[2:])


def main(names: list[str]) -> None:
    """Print one line a model and size."""
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


if __name__ == "__main__":
    main(sys.argv[1:] or ["nano", "tiny"])
