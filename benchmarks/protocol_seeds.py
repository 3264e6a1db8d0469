"""Every protocol of lesson 05 with three seeds: `.venv/bin/python benchmarks/protocol_seeds.py 1 2`.

Seed 0 is the lesson's own, data/results/segroot-nano.json. Both stages of every other seed are trained as the profile
`segroot` sets it, or read from runs/real, where `real_scans.py seeds` leaves them. They are asked the same questions
with the same points, and each seed's answers are kept there too. Traits are lesson 08's, of Stage 2's masks of whole
scans, which `real_scans.py seeds` keeps. Writes data/results/segroot-seeds.json: the mean over seeds of every score
that all have, the least and the largest.
"""

import argparse
from collections.abc import Mapping, Sequence

import numpy as np
from real_scans import FOLDER, ask, masks_of, profile_pair, stages

from rootsam_lib import traits
from rootsam_lib.checkpoints import build_sam
from rootsam_lib.data.datasets import load_parts
from rootsam_lib.data.scans import Scan, tile
from rootsam_lib.evaluation.bootstrap import agreement
from rootsam_lib.evaluation.protocols import evaluate
from rootsam_lib.lessons.claims import RESULTS
from rootsam_lib.lessons.runner import load_profile
from rootsam_lib.predictor import Predictor, load_predictor
from rootsam_lib.results import provenance, read_json, write_json

FILE = RESULTS / "segroot-seeds.json"
LESSON = RESULTS / "segroot-nano.json"
TRAITS = ("root_length_mm", "root_area_mm2", "mean_diameter_mm")
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


def trait_agreement(seed: int, parts: Mapping[str, Sequence[Scan]]) -> dict[str, dict[str, float]]:
    """Lesson 08's agreement of each trait of Stage 2's masks with that of the true ones, scan by scan."""
    scans = parts["test"]
    masks, _ = masks_of(f"stage2, seed {seed}", lambda: ask(stages(parts, seed)[1]), scans)
    found = [traits.trait_row(scan, mask) for scan, mask in zip(scans, masks, strict=True)]
    true = [traits.trait_row(scan, scan.mask) for scan in scans]
    tubes = [scan.tube for scan in scans]
    return {trait: agreement(*([r[trait] for r in rows] for rows in (found, true)), tubes, 0) for trait in TRAITS}


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
    data = load_parts("segroot", "valid")
    agreed = [trait_agreement(seed, data) for seed in (0, *seeds)]
    parts["traits"] = {
        trait: {name: [float(f([a[trait][name] for a in agreed])) for f in (np.mean, min, max)] for name in first}
        for trait, first in agreed[0].items()
    }
    write_json(FILE, about | parts | {"made_by": made_by, "provenance": provenance()})
    print(FILE)


if __name__ == "__main__":
    main()
