"""How far from a click does its answer reach: `.venv/bin/python benchmarks/reach.py NAME=STAGE [NAME=STAGE …]`.

Each true root of SegRoot's valid scans that reaches further than 256 px from one of its ends is clicked once, near that
end. Of its centre line, which share does the answer cover, by the distance from the click? Asked of trained stages, the
first of which the others are compared with: as they are used, where the click picks a root of the automatic mask, and
with what the decoder says by itself, on tiles of 1024 px for all of them ("own answer"). "automatic" is the mask
without a click: what is not in it, no click can pick. Each stage's sums are kept in runs/real/reach. Writes
data/results/segroot-reach.json, intervals over tubes.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from rootsam_lib.data.datasets import describe, load_parts
from rootsam_lib.data.scans import Scan
from rootsam_lib.evaluation.bootstrap import collect, difference, estimates, tube_weights
from rootsam_lib.evaluation.protocols import about_predictor
from rootsam_lib.lessons.claims import RESULTS
from rootsam_lib.metrics import dilate, label_roots, thinned
from rootsam_lib.predictor import Predictor, load_predictor
from rootsam_lib.results import RUNS, progress, provenance, read_json, rows_table, write_json

FILE = RESULTS / "segroot-reach.json"
KEPT = RUNS / "real" / "reach"
WAYS = {"as used": {"tile_size": 512}, "own answer": {"tile_size": 1024, "select": False}}
BANDS = (0, 128, 256, 512, np.inf)  # px from the click
TOLD = ("0 to 128 px", "128 to 256 px", "256 to 512 px", "over 512 px")
NEAR = 2  # px: a centre line that an answer comes so near to is covered, as a hand slips by that much


def long_roots(mask: np.ndarray) -> Iterator[tuple[np.ndarray, tuple[int, int], np.ndarray]]:
    """Of each long root: its centre line, (row, column) (N, 2), the click (x, y), at most 12 px from the line's end,
    and each pixel's distance from the click."""
    roots, number = label_roots(mask)
    lines = thinned(mask) * roots
    for root in range(1, number + 1):
        line = np.argwhere(lines == root)
        if not len(line):
            continue
        end = line[np.argmax(np.hypot(*(line - line[0]).T))]  # farthest from any pixel of it: an end
        near = line[np.hypot(*(line - end).T) <= 12]
        row, column = near[np.argmax(np.hypot(*(near - end).T))]
        away = np.hypot(*(line - (row, column)).T)
        if away.max() > BANDS[2]:
            yield line, (int(column), int(row)), away


def covered(answer: np.ndarray, line: np.ndarray, away: np.ndarray) -> dict[str, tuple[int, int]]:
    """Covered pixels and pixels of a centre line in each of `BANDS`; covered: within `NEAR` px of the answer."""
    there = dilate(answer, NEAR)[tuple(line.T)]
    bands = {told: (away >= low) & (away < high) for told, (low, high) in zip(TOLD, pairwise(BANDS), strict=True)}
    return {name: (int(there[inside].sum()), int(inside.sum())) for name, inside in bands.items()}


def reach(predictor: Predictor, scan: Scan) -> dict[str, Mapping[str, tuple[int, int]]]:
    """Sums over a scan's long roots: of the answer to each click, and of the automatic mask."""
    predictor.set_image(scan.image)
    automatic = predictor.predict()[0][0]
    rows: dict[str, list] = {"click": [], "automatic": []}
    for line, place, away in long_roots(scan.mask):
        rows["click"].append(covered(predictor.predict([place], [1])[0][0], line, away))
        rows["automatic"].append(covered(automatic, line, away))
    return {
        asked: {band: tuple(map(sum, zip((0, 0), *(row[band] for row in own), strict=True))) for band in TOLD}
        for asked, own in rows.items()
    }


def sums_of(name: str, folder: str, scans: Sequence[Scan]) -> dict[str, object]:
    """A stage's sums, scan by scan, for both ways of asking, and what made them: from the disk or made now."""
    note = KEPT / f"{name}.json"
    kept = read_json(note) if note.is_file() else {}
    for way, changes in WAYS.items():
        if way not in kept:
            predictor = load_predictor(folder, **changes)
            kept[way] = [reach(predictor, scan) for scan in progress(scans, f"{name}, {way}", "scan")]
            kept["model"] = about_predictor(predictor)
            write_json(note, kept)
    return kept


def main() -> None:
    """Click, compare, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", metavar="NAME=STAGE")
    named = dict(stage.split("=", 1) for stage in parser.parse_args().stages)
    parts = load_parts("segroot", "valid")
    scans = parts["test"]
    weights = tube_weights([scan.tube for scan in scans], np.random.default_rng(0), 2000)
    kept = {name: sums_of(name, folder, scans) for name, folder in named.items()}
    first, rows, differences = next(iter(named)), {}, {}
    for way in WAYS:
        for asked in ("click", "automatic"):
            terms = {
                name: collect([{band: tuple(pair) for band, pair in row[asked].items()} for row in own[way]])
                for name, own in kept.items()
            }
            for name, own in terms.items():
                key = f"{name}, {way}, {asked}"
                rows[key] = estimates(own, weights)
                if name != first:
                    differences[key] = {
                        band: list(difference(part, terms[first][band], weights)) for band, part in own.items()
                    }
    about = describe("segroot", "valid", parts) | {"meaning": __doc__, "provenance": provenance()}
    about["roots"] = sum(1 for scan in scans for _ in long_roots(scan.mask))
    models = {name: own["model"] for name, own in kept.items()}
    write_json(FILE, about | {"rows": rows, "against the first": differences, "models": models})
    print(rows_table([{"": name} | {band: value[0] for band, value in row.items()} for name, row in rows.items()]))


if __name__ == "__main__":
    main()
