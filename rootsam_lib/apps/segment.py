"""A whole folder of scans: masks, overlays and one table of root traits.

On the command line `python -m rootsam_lib segment FOLDER --model RUN`; the same in four lines:

    from rootsam_lib.apps.segment import segment_folder
    from rootsam_lib.predictor import load_predictor
    report = segment_folder("my_scans", load_predictor("runs/quick/stage2-0123abcd"), "my_roots", dpi=300)
    print(report.failed or "all scans are done", report.table)
"""

import argparse
import contextlib
import difflib
import errno
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from rootsam_lib import checked
from rootsam_lib.data.datasets import Entry, find_pairs, folder_resolution, load_entry
from rootsam_lib.data.images import MAX_MEGAPIXELS, checked_dpi
from rootsam_lib.data.masks import checked_coding, find_coding
from rootsam_lib.data.scans import Scan
from rootsam_lib.drawing import overlay
from rootsam_lib.metrics import cl_dice, count, dice, dilate, iou
from rootsam_lib.predictor import Predictor, load_predictor
from rootsam_lib.prompts import ROOT, SOIL, Prompts
from rootsam_lib.results import (
    append_csv,
    check_name,
    claim_folder,
    csv_text,
    file_hash,
    progress,
    read_csv,
    shown,
    whole_lines,
    write_csv,
    write_image,
)
from rootsam_lib.traits import CLEANING, Cleaning, trait_row

DISK_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
)  # of the disk that is written to: no later scan would fare better


class Report(NamedTuple):
    """What became of a folder: the trait rows of its scans, the table's path, how many scans were done before, and for
    each scan that failed one sentence."""

    rows: list[dict[str, object]]
    table: Path
    skipped: int
    failed: dict[str, str]


class Table:
    """A CSV with one row a scan that grows by whole lines, so that each costs the same and outlives a kill."""

    def __init__(self, path: Path):
        self.path, self.rows = path, {}
        self.columns: list[str] = []  # of the file, empty where there is none
        if path.is_file():
            whole_lines(path)
        if path.is_file() and path.stat().st_size:
            rows = read_csv(path, text=None)
            self.columns = list(rows[0]) if rows else []
            if rows and ("scan" not in self.columns or csv_text(rows, self.columns).encode() != path.read_bytes()):
                raise ValueError(
                    f"{shown(path)} was changed since it was written, as by a spreadsheet program: move it elsewhere "
                    "to keep it, and its scans are done again."
                )
            self.rows = {row["scan"]: row for row in rows}

    def add(self, row: Mapping[str, object]) -> None:
        """Add a scan's row, on the disk before this returns."""
        self.rows[row["scan"]] = row = {name: _cell(value) for name, value in row.items()}
        if self.columns and set(row) <= set(self.columns):
            append_csv(self.path, row, self.columns)
        else:  # the first one, or one with other columns, as of a scan without resolution
            self._write()

    def keep(self, names: Iterable[str]) -> None:
        """Keep the rows of these scans only, in this order."""
        rows = {name: self.rows[name] for name in names if name in self.rows}
        if list(rows) != list(self.rows):
            self.rows = rows
            self._write()

    def _write(self) -> None:
        if self.rows:
            write_csv(self.path, list(self.rows.values()))
        else:
            self.path.unlink(missing_ok=True)
        self.columns = list(dict.fromkeys(name for row in self.rows.values() for name in row))


def segment_folder(
    folder: str | Path,
    predictor: Predictor,
    out: str | Path | None = None,
    *,
    dpi: float | None = None,
    mask_coding: str | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
    prompts: Mapping[str, Prompts] | None = None,
    window_mm: float | None = None,
    tube_angle: float = 45.0,
    cleaning: Cleaning = CLEANING,
    say: Callable[[str], object] = lambda line: print(line, file=sys.stderr),
) -> Report:
    """Segment all images of a folder and measure their roots.

    For every image X, of any size, it writes X-mask.png (0 and 255), X-overlay.jpg, and a row of traits.csv; where a
    mask lies beside the image (by the names that `datasets.read_folder` knows), a row of scores.csv as well.
    out: where to; beside the folder, with "-roots" added to its name, when None. dpi: dots per inch of all images, else
    what each states (see `images.resolution`); without any, traits are in pixels. mask_coding: what is root in the
    masks, found in them when None (see `masks`). max_megapixels: larger images are not read. prompts: points by scan
    name, see `read_prompts`; None for all roots. window_mm, tube_angle and cleaning: see `traits.trait_row`. say: gets
    one line for what was found in the files, and for each scan that fails, in which no root was found, or whose mask
    is another one's.

    One scan is in memory at a time. What was done with the same settings, from the same bytes of image and true mask
    and with outputs that are still as they were written, is not done again; so an interrupted call goes on where it
    was. A mask that was changed since is kept under another name and made again.
    Raises ValueError or FileNotFoundError before any work: for a folder without images, settings that cannot be, two
    images of one name, masks that leave open what is root, prompts that fit no scan, and an `out` that holds other
    files or results of other settings, or that another process writes to.
    """
    folder = Path(folder).expanduser()
    if dpi is not None:
        dpi = checked_dpi(dpi)
    if mask_coding is not None:
        mask_coding = checked_coding(mask_coding)
    max_megapixels = checked("max_megapixels", max_megapixels, 0, above=True)
    if window_mm is not None:
        window_mm = checked("window_mm", window_mm, 0, above=True)
    tube_angle = checked("tube_angle", tube_angle, 0, 90, above=True)
    entries = find_pairs(folder, need_masks=False)
    out = folder.resolve().with_name(folder.resolve().name + "-roots") if out is None else Path(out).expanduser()
    if out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{out} lies inside {folder}: write to a folder outside, or its masks would be read as input.")
    prompts = dict(prompts or {})
    check_prompts(prompts, entries)
    measuring = {"window_mm": window_mm, "tube_angle": tube_angle, "cleaning": cleaning}
    settings = predictor.about | {"dpi": dpi} | measuring | {"cleaning": asdict(cleaning)}
    settings |= {"prompts": {name: [p.points.tolist(), p.labels.tolist()] for name, p in sorted(prompts.items())}}

    lock = claim_folder(out, "segment.json", settings)
    try:
        traits, scores = Table(out / "traits.csv"), Table(out / "scores.csv")
        names = [entry.name for entry in entries]
        if gone := [name for name in traits.rows if name not in set(names)]:
            say(f"{len(gone)} rows of scans that are gone from {folder.name} are dropped, as {gone[0]}; masks stay.")
        done = {entry.name for entry in entries if is_done(entry, out, traits, scores, mask_coding, say)}
        traits.keep(name for name in names if name in done)
        scores.keep(entry.name for entry in entries if entry.name in done and entry.mask)
        mask_of = {row.get("mask_sha256"): name for name, row in traits.rows.items()}

        failed = {}
        left = [entry for entry in entries if entry.name not in done]
        how = _look(entries, left, dpi, mask_coding, max_megapixels, say)
        for entry in progress(left, f"segment {folder.name}", "scan", disable=not left):
            try:
                trait, score = _segment(entry, predictor, out, how, prompts.get(entry.name), measuring)
            except Exception as error:  # one fault, one scan
                if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                    raise
                failed[entry.name] = _reason(error, entry)
                say(f"failed: {entry.name}: {failed[entry.name]}")
                continue
            if score:
                scores.add(score)
            traits.add(trait)  # last: without it a scan counts as not done
            if trait["qc_all_background"]:
                say(f"{entry.name}: no root was found: if it has some, look at the model's training and input_scale.")
            elif (other := mask_of.setdefault(trait["mask_sha256"], entry.name)) != entry.name:
                say(f"{entry.name}: its mask is exactly that of {other}: check whether both are the same image.")
        traits.keep(names)
        scores.keep(names)
        text = [name for name in traits.columns if name in ("scan", "tube", "date") or name.endswith("_sha256")]
        rows = read_csv(traits.path, text) if traits.rows else []
        return Report(rows, traits.path, len(done), failed)
    except OSError as error:
        if error.errno in DISK_ERRORS:
            todo = "make room and run it again, it goes on where it was"
            raise OSError(error.errno, f"{error.strerror}: {todo}", str(out)) from None
        raise
    finally:
        lock.release()


def _look(
    entries: Sequence[Entry],
    left: Sequence[Entry],
    dpi: float | None,
    mask_coding: str | None,
    max_megapixels: float,
    say: Callable[[str], object],
) -> dict[str, object]:
    """Find what the files that are left say of themselves, and say it: the arguments of `load_entry`."""
    if left:
        with contextlib.suppress(ValueError):  # of one name, which fails by itself
            say(folder_resolution(left, dpi))
    if mask_coding is None and any(entry.mask for entry in left):
        mask_coding, found = find_coding([entry.mask for entry in entries if entry.mask], max_megapixels)
        say(found)
    return {"dpi": dpi, "mask_coding": mask_coding, "max_megapixels": max_megapixels}


def _segment(
    entry: Entry,
    predictor: Predictor,
    out: Path,
    how: Mapping[str, object],
    prompts: Prompts | None,
    measuring: Mapping[str, object],
) -> tuple[dict[str, object], dict[str, object] | None]:
    """Segment one scan and write its mask and overlay. Returns its rows for traits.csv and scores.csv."""
    check_name(entry.name)
    mask_file, overlay_file = output_files(entry.name, out)
    for file in filter(None, (entry.image, entry.mask)):
        if not file.is_file():
            raise ValueError(f"{file} is no regular file: take it out of the folder.")
    hashes = {"image_sha256": file_hash(entry.image)}
    truth = {"mask_coding": how["mask_coding"], "truth_sha256": file_hash(entry.mask)} if entry.mask else {}
    scan = load_entry(entry, **how)
    predictor.set_image(scan.image)
    masks, predicted_iou, _ = predictor.predict(*(prompts or (None, None)))
    mask = masks[0]
    trait = trait_row(scan, mask, float(predicted_iou[0]), **measuring)
    score = score_row(scan, mask, trait, measuring) | truth if truth else None
    write_image(overlay_file, overlay(scan.image, mask))
    write_image(mask_file, mask)
    hashes |= {"mask_sha256": file_hash(mask_file), "overlay_sha256": file_hash(overlay_file)}
    return trait | hashes, score


def score_row(
    scan: Scan, mask: np.ndarray, trait: Mapping[str, object], measuring: Mapping[str, object]
) -> dict[str, object]:
    """A mask against the true one: root IoU and Dice, Dice with the truth dilated by one pixel, clDice, and lengths.

    trait: the mask's own `trait_row`, made with `measuring`.
    """
    counts = count(mask, scan.mask)
    true = trait_row(scan, scan.mask, **measuring)
    length = next(name for name in trait if name.startswith("root_length_"))  # in mm, or px without resolution
    return {
        "scan": scan.name,
        "tube": scan.tube,
        "root_iou": iou(counts),
        "dice": dice(counts),
        "dilated_dice": dice(count(mask, dilate(scan.mask))),
        "cl_dice": cl_dice(mask, scan.mask),
        length: trait[length],
        f"true_{length}": true[length],
    }


def output_files(name: str, out: Path) -> tuple[Path, Path]:
    """Where a scan's mask and its overlay are written."""
    return out / f"{name}-mask.png", out / f"{name}-overlay.jpg"


def is_done(
    entry: Entry, out: Path, traits: Table, scores: Table, mask_coding: str | None, say: Callable[[str], object]
) -> bool:
    """Whether a scan has its rows, and image, true mask and outputs hold what they held when these were written.

    A mask that somebody changed since is set aside, since it will be made again.
    """
    row, score = traits.rows.get(entry.name), scores.rows.get(entry.name)
    if row is None:
        return False

    def same(file: Path, hashed: object) -> bool:
        try:
            return file.is_file() and file_hash(file) == hashed
        except OSError:  # not readable: it fails by itself when it is done again
            return False

    mask, overlay_file = output_files(entry.name, out)
    if mask.is_file() and not same(mask, row.get("mask_sha256")) and _opens(mask):
        aside = mask.with_name(f"{mask.stem}-changed-{file_hash(mask)[:6]}.png")
        os.replace(mask, aside)
        say(f"{entry.name}: its mask was changed since it was written: kept as {aside.name}, and made again.")
    files = {"image_sha256": entry.image, "mask_sha256": mask, "overlay_sha256": overlay_file}
    if not all(same(file, row.get(name)) for name, file in files.items()):
        return False
    if entry.mask is None:
        return True
    coded = score is not None and mask_coding in (None, score.get("mask_coding"))
    return coded and same(entry.mask, score.get("truth_sha256"))


def _opens(path: Path) -> bool:
    try:
        with Image.open(path) as opened:
            opened.verify()  # with a PNG's checksums
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def _cell(value: object) -> object:
    """A value as a table says it: numbers with six digits."""
    if isinstance(value, (float, np.floating)):
        return None if np.isnan(value) else f"{value:.6g}"
    return None if value is None else str(value)


def _reason(error: Exception, entry: Entry) -> str:
    """What happened to a scan, in one sentence that names its file or what was wrong with it."""
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError) or "out of memory" in said:
        return f"{entry.image} does not fit into memory ({said}): use smaller tiles, or cut the image."
    return said if isinstance(error, (ValueError, OSError)) else f"{entry.image}: {type(error).__name__}: {said}"


def read_prompts(path: str | Path) -> dict[str, Prompts]:
    """Prompts by scan from a CSV with the columns scan, x, y, label: pixels from the upper left, label 1 root, 0 soil.

    Raises FileNotFoundError, or ValueError with the number of the row that is wrong.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a CSV with the columns scan, x, y, label.")
    rows = read_csv(path, text=None)
    if not rows:
        raise ValueError(f"{path} holds no point: give one row a point, or leave the prompts out.")
    if missing := {"scan", "x", "y", "label"} - set(rows[0]):
        raise ValueError(f"{path} lacks the columns {', '.join(sorted(missing))}: its first line must name them.")
    points: dict[str, list[tuple[float, float, int]]] = {}
    for number, row in enumerate(rows, start=1):
        try:
            x, y = (checked(name, _number(row[name]), 0) for name in "xy")
            kind = checked("label", _number(row["label"]), SOIL, ROOT, whole=True)
            if not row["scan"]:
                raise ValueError("scan is empty: give the name of an image.")
        except ValueError as error:
            raise ValueError(f"{path}, row {number} below the first line: {error}") from None
        points.setdefault(row["scan"], []).append((x, y, kind))
    return {
        scan: Prompts(np.array([p[:2] for p in given], np.float32), np.array([p[2] for p in given], np.int64))
        for scan, given in points.items()
    }


def _number(text: str | None) -> object:
    """A cell's number, with a decimal comma or point; the cell itself where it is none."""
    try:
        return float(str(text).replace(",", "."))
    except ValueError:
        return text


def check_prompts(prompts: Mapping[str, Prompts], entries: Sequence[Entry]) -> None:
    """Raises ValueError for prompts of a scan that is not there."""
    names = [entry.name for entry in entries]
    for scan in prompts:
        if scan not in names:
            close = difflib.get_close_matches(scan, names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"the folder holds {names[0]} and {len(names) - 1} others."
            raise ValueError(f"prompts are given for {scan!r}, which is no scan of the folder: {hint}")


def segment_command(options: argparse.Namespace) -> int:
    """Segment a folder as the command line asks, and say what became of it. Returns 1 when a scan failed, else 0."""

    def say(line: str) -> None:
        tqdm.write(line, file=sys.stderr)

    prompts = read_prompts(options.prompts) if options.prompts else None
    asked = {"input_scale": options.input_scale, "tile_size": options.tile}
    changes = {name: value for name, value in asked.items() if value is not None}
    predictor = load_predictor(options.model, tta=options.tta, keep=False, **changes)
    most = MAX_MEGAPIXELS if options.max_megapixels is None else options.max_megapixels
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: say(f"warning: {message}")
        report = segment_folder(
            options.folder, predictor, options.out, dpi=options.dpi, prompts=prompts, mask_coding=options.mask_coding,
            max_megapixels=most, window_mm=options.window_mm, tube_angle=options.tube_angle, say=say,
        )  # fmt: skip
    if report.rows:
        before = f" ({report.skipped} of them before)" if report.skipped else ""
        print(f"{_scans(len(report.rows))} done{before}; table, masks and overlays in {shown(report.table.parent)}")
    if report.failed:
        first = ", ".join(list(report.failed)[:5]) + (", …" if len(report.failed) > 5 else "")
        print(f"{_scans(len(report.failed))} failed: {first}", file=sys.stderr)
    return int(bool(report.failed))


def _scans(number: int) -> str:
    return f"{number} scan{'s' * (number != 1)}"
