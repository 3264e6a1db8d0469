"""A whole folder of scans: masks, overlays and one table of root traits.

On the command line `python -m rootsam_lib segment FOLDER --model RUN`; the same in four lines:

    from rootsam_lib.apps.segment import load_run, segment_folder
    model, settings = load_run("runs/quick/stage2-0123abcd")  # or "nano", the model before any training
    report = segment_folder("my_scans", model, "my_roots", **settings, dpi=300)
    print(report.failed or "all scans are done", report.table)
"""

import csv
import difflib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from rootsam_lib.checkpoints import MODELS, build_sam, weights_hash
from rootsam_lib.data.datasets import Entry, find_pairs, load_entry
from rootsam_lib.data.images import resolution
from rootsam_lib.data.scans import Scan
from rootsam_lib.drawing import overlay
from rootsam_lib.lessons.checks import Repeats, check_background
from rootsam_lib.metrics import cl_dice, count, dice, dilate, iou
from rootsam_lib.model import RootSAM
from rootsam_lib.predictor_old import segment
from rootsam_lib.prompts import Prompts
from rootsam_lib.results import progress, read_json, write_csv, write_json
from rootsam_lib.training.stage import load_stage
from rootsam_lib.traits import CLEANING, Cleaning, root_length_mm, trait_row


class Report(NamedTuple):
    """What became of a folder: the trait rows of its scans, the table's path, how many scans were done before, and for
    each scan that failed one sentence."""

    rows: list[dict[str, object]]
    table: Path
    skipped: int
    failed: dict[str, str]


def load_run(run: str | Path) -> tuple[RootSAM, dict[str, object]]:
    """A model to segment with, and how: {"input_scale", "tile_size"}, as `segment_folder` takes them.

    run: the folder of a trained stage (with best.safetensors and stage.json), whose input_scale and patch size are taken, or
    the name of a model before any training, such as "nano". Raises FileNotFoundError when it is neither.
    """
    if str(run) in MODELS:
        return build_sam(str(run)), {"input_scale": 1.0, "tile_size": 512}
    folder = Path(run).expanduser()
    if not (folder / "stage.json").is_file():
        close = sorted(str(path.parent) for path in folder.glob("**/stage*/stage.json"))
        hint = f"such as {close[-1]}" if close else "as notebooks 03 and 04 make it, or nano for the base model"
        raise FileNotFoundError(f"{folder} is no trained stage: give the folder of one, {hint}.")
    stage = load_stage(folder)
    return stage.model(), {
        "input_scale": float(stage.config["input_scale"]),
        "tile_size": min(int(stage.config["patch_size"]), 1024),
    }


def segment_folder(
    folder: str | Path,
    model: RootSAM,
    out: str | Path | None = None,
    *,
    input_scale: float = 1.0,
    tile_size: int = 512,
    dpi: float | None = None,
    prompts: Mapping[str, Prompts] | None = None,
    tta: bool = False,
    window_mm: float | None = None,
    tube_angle: float = 45.0,
    cleaning: Cleaning = CLEANING,
    say: Callable[[str], object] = lambda line: print(line, file=sys.stderr),
) -> Report:
    """Segment all images of a folder and measure their roots.

    For every image X, of any size, it writes X-mask.png (0 and 255), X-overlay.jpg, and a row of traits.csv; where a
    mask lies beside the image (by the names that `datasets.read_folder` knows), a row of scores.csv as well.
    out: where to; beside the folder, with "-roots" added to its name, when None. dpi: dots per inch of all images, else
    each must state it (see `images.resolution`). prompts: points by scan name, see `read_prompts`; None for the automatic
    mode. window_mm, tube_angle and cleaning: see `traits.trait_row`. say: gets one line for each scan that fails.
    A scan without any root found, or with the mask of the one before, gives a warning (see `guards`).
    One scan is in memory at a time. A scan that was done with the same settings is not done again, so an interrupted
    call goes on where it was. Raises ValueError before any work for a folder without images, an image without
    resolution, prompts that fit no scan, and an `out` that holds results of other settings.
    """
    folder = Path(folder).expanduser()
    entries = find_pairs(folder, need_masks=False)
    out = folder.resolve().with_name(folder.resolve().name + "-roots") if out is None else Path(out).expanduser()
    if out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{out} lies inside {folder}: write to a folder outside, or its masks would be read as input.")
    check_resolution(entries, dpi)
    prompts = dict(prompts or {})
    check_prompts(prompts, entries)
    settings = {
        "weights": weights_hash(model),
        "input_scale": input_scale,
        "tile_size": tile_size,
        "tta": tta,
        "dpi": dpi,
    }
    measuring = {"window_mm": window_mm, "tube_angle": tube_angle, "cleaning": cleaning}
    settings |= measuring | {"cleaning": asdict(cleaning)}
    settings |= {"prompts": {name: [p.points.tolist(), p.labels.tolist()] for name, p in sorted(prompts.items())}}
    check_settings(out, settings)

    tables = {"traits.csv": read_rows(out / "traits.csv"), "scores.csv": read_rows(out / "scores.csv")}
    repeats, failed, skipped = Repeats(), {}, 0
    for entry in progress(entries, f"segment {folder.name}", "scan"):
        if is_done(entry, out, tables):
            skipped += 1
            continue
        try:
            scan = load_entry(entry, dpi)
            found = segment(
                model,
                scan.image,
                tile_size,
                tile_size // 4,
                prompts=prompts.get(scan.name),
                input_scale=input_scale,
                tta=tta,
            )
        except (ValueError, OSError, MemoryError) as error:
            failed[entry.name] = str(error) or f"{entry.image} does not fit into memory."
            say(f"{entry.name}: {failed[entry.name]}")
            continue
        repeats.check(found.mask, scan.name)
        check_background(found.mask, scan.name)
        tables["traits.csv"][scan.name] = trait_row(scan, found.mask, found.iou, **measuring)
        if scan.mask is not None:
            tables["scores.csv"][scan.name] = score_row(scan, found.mask, cleaning)
        write_image(out / f"{scan.name}-overlay.jpg", overlay(scan.image, found.mask))
        write_image(out / f"{scan.name}-mask.png", np.where(found.mask, 255, 0).astype(np.uint8))
        for name, rows in tables.items():  # the rows last: without them a scan counts as not done
            if rows:
                write_csv(out / name, [rows[e.name] for e in entries if e.name in rows])
    rows = [tables["traits.csv"][e.name] for e in entries if e.name in tables["traits.csv"] and e.name not in failed]
    return Report(rows, out / "traits.csv", skipped, failed)


def score_row(scan: Scan, mask: np.ndarray, cleaning: Cleaning = CLEANING) -> dict[str, object]:
    """A mask against the true one: root IoU and Dice, Dice with the truth dilated by one pixel, clDice, and lengths."""
    counts = count(mask, scan.mask)
    return {
        "scan": scan.name,
        "tube": scan.tube,
        "root_iou": iou(counts),
        "dice": dice(counts),
        "dilated_dice": dice(count(mask, dilate(scan.mask))),
        "cl_dice": cl_dice(mask, scan.mask),
        "root_length_mm": root_length_mm(mask, scan.mm_per_px, cleaning=cleaning),
        "true_root_length_mm": root_length_mm(scan.mask, scan.mm_per_px, cleaning=cleaning),
    }


def is_done(entry: Entry, out: Path, tables: Mapping[str, Mapping[str, object]]) -> bool:
    """Whether a scan has its rows and files, and none is older than its image."""
    files = [out / f"{entry.name}-mask.png", out / f"{entry.name}-overlay.jpg"]
    rows = ["traits.csv"] + (["scores.csv"] if entry.mask else [])
    if not all(entry.name in tables[table] for table in rows) or not all(file.is_file() for file in files):
        return False
    return min(file.stat().st_mtime for file in files) >= entry.image.stat().st_mtime


def check_resolution(entries: Sequence[Entry], dpi: float | None) -> None:
    """Raises ValueError, naming the first image whose file states no resolution, unless `dpi` gives it for all."""
    if dpi is not None:
        if dpi <= 0:
            raise ValueError(f"dpi is {dpi}: give the scanner's dots per inch, such as 300.")
        return
    silent = []
    for entry in entries:
        try:
            stated, _ = resolution(entry.image)
        except (OSError, ValueError):
            continue  # it fails by itself later, in its own sentence
        if not stated:
            silent.append(entry.image)
    if silent:
        raise ValueError(
            f"{silent[0]} states no resolution ({len(silent)} of {len(entries)} images do not), and millimetres need "
            "one: give dpi (--dpi on the command line), such as 300 for a CI-600."
        )


def check_settings(out: Path, settings: dict[str, object]) -> None:
    """Note the settings of a run in its folder. Raises ValueError when results of others are there already."""
    note = out / "segment.json"
    if note.is_file():
        before = read_json(note)
        if other := [name for name, value in settings.items() if before.get(name) != value]:
            raise ValueError(f"{out} holds results of other settings ({', '.join(other)}): give another folder as out.")
    else:
        write_json(note, settings)


def read_rows(path: Path) -> dict[str, dict[str, object]]:
    """Rows of an earlier run's table by scan; none where there is no table."""
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {row["scan"]: row for row in csv.DictReader(file)}


def read_prompts(path: str | Path) -> dict[str, Prompts]:
    """Prompts by scan from a CSV with the columns scan, x, y, label: pixels from the upper left, label 1 root, 0 soil.

    Raises FileNotFoundError, or ValueError with the number of the line that is wrong.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a CSV with the columns scan, x, y, label.")
    points: dict[str, list[tuple[float, float, int]]] = {}
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if missing := {"scan", "x", "y", "label"} - set(reader.fieldnames or ()):
            raise ValueError(f"{path} lacks the columns {', '.join(sorted(missing))}: its first line must name them.")
        for row in reader:
            try:
                x, y, told = float(row["x"]), float(row["y"]), int(row["label"])
                if told not in (0, 1) or not (0 <= x < np.inf and 0 <= y < np.inf):
                    raise ValueError
            except (TypeError, ValueError):
                wanted = "x and y in pixels, from 0, and a label of 1 (root) or 0 (soil)"
                raise ValueError(f"{path}, line {reader.line_num}: give {wanted}.") from None
            points.setdefault(row["scan"], []).append((x, y, told))
    return {
        scan: Prompts(np.array([p[:2] for p in given], np.float32), np.array([p[2] for p in given], np.int64))
        for scan, given in points.items()
    }


def check_prompts(prompts: Mapping[str, Prompts], entries: Sequence[Entry]) -> None:
    """Raises ValueError for prompts of a scan that is not there."""
    names = [entry.name for entry in entries]
    for scan in prompts:
        if scan not in names:
            close = difflib.get_close_matches(scan, names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"the folder holds {names[0]} and {len(names) - 1} others."
            raise ValueError(f"prompts are given for {scan!r}, which is no scan of the folder: {hint}")


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write an image atomically; its format is that of the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    kind = {".png": "PNG", ".jpg": "JPEG"}[path.suffix]
    Image.fromarray(pixels).save(partial, format=kind, **({"quality": 90} if kind == "JPEG" else {}))
    os.replace(partial, path)
