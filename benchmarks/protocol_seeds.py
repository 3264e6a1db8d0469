"""Every protocol of lesson 05 with three seeds: `.venv/bin/python benchmarks/protocol_seeds.py 1 2`.

Seed 0 is the lesson's own, data/results/segroot-nano.json. Both stages of every other seed are trained as the profile
`segroot` sets it, or read from runs/real, where `real_scans.py seeds` leaves them. They are asked the same questions
with the same points, and each seed's answers are kept there too. Writes data/results/segroot-seeds.json: the mean over
seeds of every score that all have, the least and the largest.
"""

import argparse
from collections.abc import Mapping, Sequence

import numpy as np
from real_scans import FOLDER, ask, profile_pair, stages

from rootsam_lib import CHECKOUT, HOME
from rootsam_lib.checkpoints import build_sam
from rootsam_lib.data.datasets import load_parts
from rootsam_lib.data.scans import tile
from rootsam_lib.evaluation.protocols import evaluate
from rootsam_lib.lessons.runner import load_profile
from rootsam_lib.predictor import Predictor, load_predictor
from rootsam_lib.results import provenance, read_json, write_json

FILE = HOME / "data" / "results" / "segroot-seeds.json"
LESSON = CHECKOUT / "data" / "results" / "segroot-nano.json"
PROTOCOLS = ("fixed prompts", "automatic", "selection", "control", "correction")


def answers(seed: int) -> dict[str, object]:
    """One seed's results, from the disk or made now: lesson 05's, without whole scans."""
    file = FOLDER / "protocols" / f"seed {seed}.json"
    if not file.is_file():
        parts = load_parts("segroot", "valid")
        patches = [patch for scan in parts["test"] for patch in tile(scan, 512)]
        rooted, most = [patch for patch in patches if patch.mask.any()], load_profile("segroot")["CLICK_PATCHES"]
        first, second = stages(parts, seed)
        predictors = {"base": Predictor(build_sam("nano"), profile_pair(seed)[0].input_scale)}
        predictors |= {"stage1": load_predictor(first.folder), "stage2": ask(second)}
        clicked = rooted[:: max(1, len(rooted) // most)][:most]
        write_json(file, evaluate(predictors, patches, clicked=clicked))
    return read_json(file)


def over_seeds(results: Sequence[Mapping], part: str) -> dict[str, dict[str, dict[str, list[float]]]]:
    """By protocol, model and score: the mean of the seeds, the least and the largest."""
    return {
        protocol: {
            model: {
                score: [float(f([r[part][protocol][model][score][0] for r in results])) for f in (np.mean, min, max)]
                for score, value in row.items()
                if value[0] is not None
            }
            for model, row in results[0][part][protocol].items()
            if all(model in r[part][protocol] for r in results)
        }
        for protocol in PROTOCOLS
    }


def main() -> None:
    """Ask, collect, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", type=int, nargs="+")
    seeds, lesson = parser.parse_args().seeds, read_json(LESSON)
    results = [lesson, *(answers(seed) for seed in seeds)]
    about = {name: lesson[name] for name in ("title", "data", "definitions", "images", "protocol") if name in lesson}
    about |= {"seeds": [0, *seeds], "config": lesson["config"]}
    made_by = [{name: r[name] for name in ("models", "provenance")} for r in results]
    parts = {part: over_seeds(results, part) for part in ("tables", "gains")}
    write_json(FILE, about | parts | {"made_by": made_by, "provenance": provenance()})
    print(FILE)


if __name__ == "__main__":
    main()
