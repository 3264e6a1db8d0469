"""Roots of another width: `.venv/bin/python benchmarks/root_width.py STAGE [--crops 4]`.

A trained stage on drawn scans whose roots are 0.5 to 10 times as wide, and on crops of real scans (SegRoot's train
split, those that chose the stage's best epoch) resampled to 0.5, 1, 2 and 4 times: at the input scale of the training,
and at the one that `fit_scale` finds. Writes data/results/root-width.json.
"""

import argparse
import time
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from looks import SIDE, crop, means

from rootsam_lib.apps.fitting import fit_scale
from rootsam_lib.data.datasets import load_parts
from rootsam_lib.data.drawn import draw_scan
from rootsam_lib.lessons.claims import RESULTS
from rootsam_lib.metrics import root_widths
from rootsam_lib.predictor import Predictor, load_predictor
from rootsam_lib.results import provenance, write_json

FILE = RESULTS / "root-width.json"
THICKNESS, RESAMPLED = (0.5, 1, 2, 4, 7, 10), (0.5, 1, 2, 4)
Pairs = Sequence[tuple[np.ndarray, np.ndarray]]


def image_sets(crops: int) -> Iterator[tuple[str, Pairs]]:
    """Names of sets of images and masks, and the sets."""
    for thickness in THICKNESS:
        scans = [draw_scan(np.random.default_rng([9, i]), SIDE, SIDE, thickness=thickness) for i in range(crops)]
        yield f"drawn, roots × {thickness:g}", [(scan.image, scan.mask) for scan in scans]
    middle = [crop(scan) for scan in load_parts("segroot", "valid")["val"][:crops]]
    for factor in RESAMPLED:
        size, smaller = (int(SIDE * factor),) * 2, factor < 1
        yield (
            f"real, resampled × {factor:g}",
            [
                (
                    cv2.resize(image, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC),
                    cv2.resize(np.float32(mask), size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
                    > 0.5,
                )
                for image, mask in middle
            ],
        )


def scores(predictor: Predictor, pairs: Pairs) -> dict[str, float]:
    """Means over the images."""
    return means([(predictor(image), mask) for image, mask in pairs])


def main() -> None:
    """Fit, score, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage")
    parser.add_argument("--crops", type=int, default=4)
    options = parser.parse_args()
    own, rows = load_predictor(options.stage, keep=False), []
    for name, pairs in image_sets(options.crops):
        start = time.perf_counter()
        fitted, said = fit_scale(own, [image for image, _ in pairs])
        seconds = time.perf_counter() - start
        width = float(np.median(np.concatenate([root_widths(mask) for _, mask in pairs])))
        row = {"images": name, "true_width_px": width, "input_scale": fitted.input_scale, "fit_seconds": seconds}
        rows.append(row | {"at_the_trainings_scale": scores(own, pairs), "fitted": scores(fitted, pairs)})
        print(
            f"{name}: {width:.1f} px wide; {said}", rows[-1]["at_the_trainings_scale"], rows[-1]["fitted"], flush=True
        )
        write_json(FILE, {"model": own.about, "crops": options.crops, "rows": rows, "provenance": provenance()})


if __name__ == "__main__":
    main()
