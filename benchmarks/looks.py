"""Do scans of another light or camera still work: `.venv/bin/python benchmarks/looks.py [NAME=STAGE …]`.

Trained stages on one crop of 768 px of each of SegRoot's select and valid scans, and on drawn scans, as they are and as
another camera might have seen them: darker, brighter, grey, tinted, noisy. Names tell what they were trained with, and
"NAME, seed 1=STAGE" of which seeds. Each model's scores are kept in runs/real/looks, another machine's too.
Writes data/results/segroot-looks.json of all that lies there: means over the crops, without prompt.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rootsam_lib.data.datasets import load_parts
from rootsam_lib.data.drawn import draw_scan
from rootsam_lib.data.scans import Scan
from rootsam_lib.evaluation.protocols import about_predictor
from rootsam_lib.lessons.claims import RESULTS
from rootsam_lib.metrics import cl_dice, count, iou
from rootsam_lib.predictor import Predictor, load_predictor
from rootsam_lib.results import RUNS, progress, provenance, read_json, rows_table, write_json

FILE = RESULTS / "segroot-looks.json"
KEPT = RUNS / "real" / "looks"
SIDE = 768
Look = Callable[[np.ndarray, np.random.Generator], np.ndarray]
LOOKS: dict[str, Look] = {
    "as it is": lambda image, rng: image,
    "half as bright": lambda image, rng: image * 0.5,
    "twice as bright": lambda image, rng: image * 2,
    "grey": lambda image, rng: np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2),
    "bluish": lambda image, rng: image * (0.75, 1, 1.3),
    "noisy": lambda image, rng: image + rng.normal(0, 10, image.shape),
}


def crop(scan: Scan) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask of the window around the middle of a scan's roots."""
    place = zip(np.nonzero(scan.mask), scan.mask.shape, strict=True)
    top, left = (int(np.clip(np.median(at) - SIDE // 2, 0, length - SIDE)) for at, length in place)
    return scan.image[top : top + SIDE, left : left + SIDE], scan.mask[top : top + SIDE, left : left + SIDE]


def image_sets() -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Images and masks: of real scans, by part, and drawn."""
    parts = load_parts("segroot", "valid")
    sets = {name: [crop(scan) for scan in parts[part]] for name, part in (("select", "val"), ("valid", "test"))}
    return sets | {"drawn": [crop(draw_scan(np.random.default_rng([9, i]), SIDE, SIDE)) for i in range(6)]}


def means(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Root IoU and clDice of masks against their truths, mean over the images."""
    scores = {"root_iou": [iou(count(*pair)) for pair in pairs], "cl_dice": [cl_dice(*pair) for pair in pairs]}
    return {score: float(np.mean(values)) for score, values in scores.items()}


def keep_scores(name: str, predictor: Predictor, sets: Mapping[str, Sequence]) -> None:
    """One model's scores by images and look, written to `KEPT`."""
    rows = []
    for images, pairs in sets.items():
        for look, change in progress(LOOKS.items(), f"{name}, {images}", "look"):
            answers = [
                (predictor(np.clip(change(image, np.random.default_rng(i)), 0, 255).astype(np.uint8)), mask)
                for i, (image, mask) in enumerate(pairs)
            ]
            rows.append({"images": images, "look": look} | means(answers))
    made_by = about_predictor(predictor) | {"provenance": provenance(predictor.model.device)}
    write_json(KEPT / f"{name}.json", {"rows": rows, "model": made_by})


def main() -> None:
    """Score, keep, collect, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="NAME=STAGE")
    named = dict(stage.split("=", 1) for stage in parser.parse_args().stages)
    sets = image_sets() if named else {}
    for name, folder in named.items():
        keep_scores(name, load_predictor(folder, keep=False), sets)
    kept = {file.stem: read_json(file) for file in sorted(KEPT.glob("*.json"))}
    rows = [{"trained_with": name} | row for name, results in kept.items() for row in results["rows"]]
    about = {"title": "Real scans and drawn ones, looks made by computing", "meaning": __doc__}
    models = {name: results["model"] for name, results in kept.items()}
    write_json(FILE, about | {"rows": rows, "models": models, "provenance": provenance()})
    print(rows_table(rows))


if __name__ == "__main__":
    main()
