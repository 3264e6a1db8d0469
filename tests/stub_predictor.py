"""A predictor that costs nothing, and a run of its own for the tests that kill it.

python tests/stub_predictor.py FOLDER OUT [WORKERS]
"""

import sys
import time
from types import SimpleNamespace

import numpy as np

from rootsam_lib.apps.segment import segment_folder


class StubPredictor:
    """Takes as root what is brighter than 127 in the image's green, with a predicted IoU of a half. It notes the names
    of what it is asked, and raises `faults[number]` at the question of that number, from 0."""

    def __init__(self, **faults: Exception):
        self.about = {
            "model": "stub",
            "weights": "0" * 16,
            "input_scale": 1.0,
            "tile_size": 64,
            "overlap": 16,
            "tta": False,
        }
        self.root_width = self.brightness = 0.0
        self.model = SimpleNamespace(device=SimpleNamespace(type="cpu"), fold_norms=lambda: None)
        self.faults = {int(number.strip("_")): error for number, error in faults.items()}
        self.shapes: list[tuple[int, ...]] = []
        self.points: list[object] = []

    def set_image(self, image: np.ndarray) -> None:
        self.image = image
        self.shapes.append(image.shape)
        if error := self.faults.get(len(self.shapes) - 1):
            raise error

    def predict(self, points: object = None, labels: object = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.points.append(points)
        logits = self.image[..., 1].astype(np.float32) - 127
        return (logits > 0)[None], np.array([0.5]), logits[None]


if __name__ == "__main__":
    print("ready", flush=True)
    predictor, workers = StubPredictor(), int(sys.argv[3]) if len(sys.argv) > 3 else 0
    if workers:  # it says so at its first question, when they are there, and then hangs

        def wait(image: np.ndarray) -> None:
            print("asked", flush=True)
            time.sleep(600)

        predictor.set_image = wait
    segment_folder(sys.argv[1], predictor, sys.argv[2], dpi=300, workers=workers, say=lambda line: None)
