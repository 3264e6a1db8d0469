"""New and vanished root length against drawn truth: `.venv/bin/python benchmarks/timeseries.py [FOLDER …]`.

Draws windows whose roots grow and die, follows them with their exact masks, and writes
data/results/timeseries-drawn.json. FOLDERs of real images, each of one window at several dates, are aligned as well,
in order of their dates; so is the last image of each with the first of the next folder, which shows another place.
"""

import argparse
import itertools
from collections.abc import Sequence
from datetime import date as calendar
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from rootsam_lib import checked
from rootsam_lib.apps.timeseries import TOLERANCE_PX, align, follow
from rootsam_lib.data.drawn import DPI, STEP, Stroke, scanned, scene_of
from rootsam_lib.data.folders import find_pairs
from rootsam_lib.data.images import read_image
from rootsam_lib.data.scans import Scan, parse_date
from rootsam_lib.lessons.claims import RESULTS
from rootsam_lib.results import progress, provenance, write_json

FILE = RESULTS / "timeseries-drawn.json"


class Growth(NamedTuple):
    """What is true of one date of `growing_scans`, in mm: root length in the window; and, in what this scan and the one
    before both show, the length of both and how much is new or has vanished since (0 at the first date). shift: (rows,
    columns) px by which the scene moved in the window since the scan before."""

    length: float
    shared_before: float
    shared_length: float
    new: float
    vanished: float
    shift: tuple[int, int]


def growing_scans(
    rng: np.random.Generator,
    dates: int = 4,
    height: int = 1024,
    width: int = 1024,
    *,
    days: int = 14,
    dying: float = 0.3,
    shift: int = 8,
) -> tuple[list[Scan], list[Growth]]:
    """One window scanned at several dates, `days` apart, while its roots grow and die; and what is true of each date.

    Every root begins at its own time, elongates from its base within one to two intervals, and stays or, with the
    chance `dying`, vanishes as a whole between two later dates. Soil, stones, tape and fibres are the same ones; drops
    and noise of the scanner are new; from the second date on the window lies up to `shift` px beside its first place.
    True lengths are those of the drawn centre lines that can be seen: not under tape, fog or another root; and what
    grows exactly where another root was before, or still is when it dies, is neither new nor vanished.
    Raises as `draw_scan` does.
    """
    for name, value, low in (("dates", dates, 1), ("days", days, 1), ("shift", shift, 0)):
        checked(name, value, low, whole=True)
    for side, pixels in (("height", height), ("width", width)):
        checked(side, pixels, 64, whole=True)
    scene = scene_of(rng, height + 2 * shift, width + 2 * shift)
    count = len(scene.roots)
    birth, speed = rng.uniform(-2, dates - 1, count), rng.uniform(0.5, 1, count)
    death = np.where(rng.random(count) < dying, birth + 1 / speed + rng.uniform(0, dates, count), np.inf)
    places = np.zeros((dates, 2), int)  # of the window's upper left pixel
    places[1:] = rng.integers(-shift, shift + 1, (dates - 1, 2))
    places += shift
    points = np.concatenate([np.zeros((0, 2)), *(stroke.points for stroke in scene.roots)])
    y, x = (np.clip(np.round(points[:, k]), 0, scene.fog.shape[1 - k] - 1).astype(int) for k in (1, 0))
    lengths = [len(stroke.points) for stroke in scene.roots]
    owner = np.repeat(np.arange(count), lengths)
    scans, growth, before = [], [], None
    for t, place in enumerate(places):
        grown = np.where(t < death, np.clip((t - birth) * speed, 0, 1), 0)
        kept = [round(share * length) for share, length in zip(grown, lengths, strict=True)]
        alive = [s._replace(points=s.points[:k], widths=s.widths[:k]) for s, k in zip(scene.roots, kept, strict=True)]
        image, mask = scanned(rng, scene, [stroke for stroke in alive if len(stroke.points) > 1])
        window = tuple(slice(low, low + side) for low, side in zip(place, (height, width), strict=True))
        day = (calendar(2017, 4, 11) + timedelta(days=days * t)).isoformat()
        scans.append(Scan(image[window], mask[window], f"drawn_T000_L001_{day}", "T000", day, 25.4 / DPI))
        there = np.concatenate([np.zeros(0, bool), *(np.arange(n) < k for n, k in zip(lengths, kept, strict=True))])
        now = there, there & (_topmost(alive, mask.shape)[y, x] == owner) & ~scene.hidden[y, x], mask
        (was_there, was_seen, was_mask), last = before or now, places[max(t - 1, 0)]
        low, high = np.maximum(place, last), np.minimum(place, last) + np.array([height, width])
        shared = (y >= low[0]) & (y < high[0]) & (x >= low[1]) & (x < high[1])
        own = (y >= place[0]) & (y < place[0] + height) & (x >= place[1]) & (x < place[1] + width)
        new, gone = now[1] & ~was_there & ~was_mask[y, x], was_seen & ~there & ~mask[y, x]
        steps = now[1] & own, was_seen & shared, now[1] & shared, new & shared, gone & shared
        moved = tuple((last - place).tolist())
        growth.append(Growth(*(float(part.sum() * STEP * 25.4 / DPI) for part in steps), moved))
        before = now
    return scans, growth


def _topmost(strokes: Sequence[Stroke], shape: tuple[int, int]) -> np.ndarray:
    """Which stroke, by its number, is drawn last at each pixel, int32 `shape`; -1 where there is none."""
    canvas = np.full(shape, -1, np.int32)
    for number, stroke in enumerate(strokes):
        for a, b, width in zip(stroke.points[:-1], stroke.points[1:], stroke.widths[1:], strict=True):
            cv2.line(canvas, *(tuple(np.round(p).astype(int).tolist()) for p in (a, b)), number, max(1, round(width)))
    return canvas


def main() -> None:
    """Draw, follow, align, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--dates", type=int, default=4)
    parser.add_argument("--side", type=int, default=768)
    options = parser.parse_args()
    intervals = []
    for seed in progress(range(options.windows), "windows", "window"):
        scans, growth = growing_scans(np.random.default_rng(seed), options.dates, options.side, options.side)
        rows = follow(scans, say=str)
        for row, true in list(zip(rows, growth, strict=True))[1:]:
            standing = (true.shared_before + true.shared_length) / 2
            if not standing:
                continue  # a window without roots has no turnover
            intervals.append(
                {
                    "window": seed,
                    "shift": [row["shift_rows"], row["shift_columns"]],
                    "true_shift": list(true.shift),
                    "match": row["match"],
                    "new_mm": [row.get("new_length_mm"), true.new],
                    "vanished_mm": [row.get("vanished_length_mm"), true.vanished],
                    "length_mm": [row["root_length_mm"], true.length],
                    "turnover_per_year": [row.get("turnover_per_year"), true.new / standing * 365.25 / row["days"]],
                }
            )
    sums = {name: np.sum([row[name] for row in intervals], axis=0) for name in ("new_mm", "vanished_mm", "length_mm")}
    turnover = np.mean([row["turnover_per_year"] for row in intervals], axis=0)
    errors = {name: float(found / true - 1) for name, (found, true) in (sums | {"turnover": turnover}).items()}
    images = [
        sorted((entry.image for entry in find_pairs(folder, need_masks=False)), key=lambda path: parse_date(path.stem))
        for folder in options.folders
    ]
    pairs = [pair for files in images for pair in itertools.pairwise(files)]
    others = [(files[-1], after[0]) for files, after in itertools.pairwise(images)]
    real = []
    for same, (before, after) in [*((True, pair) for pair in pairs), *((False, pair) for pair in others)]:
        found = align(read_image(before), read_image(after))
        real.append({"images": [before.name, after.name], "same_window": same, **found._asdict()})
    results = {
        "title": "Embedded toy: drawn windows over time, exact masks",
        "data": {"source": "growing_scans", "seeds": list(range(options.windows)), "real": False},
        "config": {"dates": options.dates, "days": 14, "side": options.side, "tolerance_px": TOLERANCE_PX},
        "shifts_found": float(np.mean([row["shift"] == row["true_shift"] for row in intervals])),
        "relative_errors": errors,
        "intervals": intervals,
        "alignment_of_real_scans": real,
        "provenance": provenance(),
    }
    write_json(FILE, results)
    print(results["shifts_found"], errors, *real, sep="\n")


if __name__ == "__main__":
    main()
