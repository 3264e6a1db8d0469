"""Scans of another brightness: `.venv/bin/python benchmarks/brightness.py NAME=STAGE …`.

Stages, or models by name, on one crop of 768 px of each of SegRoot's select and valid scans and on drawn scans, made
darker or brighter by computing (8 bits, so what is dark loses steps of grey, and what is bright is cut off at white):
shown as they are, and with the gain that `fit_brightness` finds for all crops of a set. No prompt. A checkpoint that
does not say how bright its scans were gets the mean of SegRoot's train scans. Models of earlier calls stay in
data/results/segroot-brightness.json.
"""

import argparse

import numpy as np
from looks import image_sets, means

from rootsam_lib.apps.fitting import fit_brightness
from rootsam_lib.data.datasets import load_parts
from rootsam_lib.evaluation.protocols import about_predictor
from rootsam_lib.lessons.claims import RESULTS
from rootsam_lib.predictor import load_predictor
from rootsam_lib.results import progress, provenance, read_json, rows_table, write_json

FILE = RESULTS / "segroot-brightness.json"
FACTORS = (2.0, 1.0, 0.5, 0.25, 0.12, 0.06)


def main() -> None:
    """Score, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", metavar="NAME=STAGE")
    named = dict(stage.split("=", 1) for stage in parser.parse_args().stages)
    sets = image_sets()
    learned = float(np.mean([scan.image.mean() for scan in load_parts("segroot", "valid")["train"]]))
    before = read_json(FILE) if FILE.is_file() else {"rows": [], "models": {}}
    rows = [row for row in before["rows"] if row["model"] not in named]
    models = before["models"]
    for name, source in named.items():
        predictor = load_predictor(source, keep=False)
        if not predictor.brightness:
            predictor = load_predictor(source, keep=False, brightness=learned)
        models[name] = about_predictor(predictor) | {"brightness": predictor.brightness}
        for part, pairs in progress(sets.items(), name, "set"):
            for factor in FACTORS:
                images = [np.clip(image * factor, 0, 255).astype(np.uint8) for image, _ in pairs]
                truths = [truth for _, truth in pairs]
                fitted = fit_brightness(predictor, images)[0]
                plain = means([(predictor(image), truth) for image, truth in zip(images, truths, strict=True)])
                shown = plain
                if fitted is not predictor:
                    shown = means([(fitted(image), truth) for image, truth in zip(images, truths, strict=True)])
                row = {"model": name, "images": part, "factor": factor, "gain": fitted.gain} | plain
                rows.append(row | {f"fitted_{score}": value for score, value in shown.items()})
        about = {"title": "Real scans and drawn ones, brightness made by computing", "meaning": __doc__}
        write_json(FILE, about | {"rows": rows, "models": models, "provenance": provenance()})
    print(rows_table(rows))


if __name__ == "__main__":
    main()
