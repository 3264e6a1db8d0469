"""A whole folder of scans: masks, overlays and one table of root traits.

On the command line `python -m rootsam_lib segment FOLDER --model RUN`; from Python see notebooks/README.

Many processes, on one machine or on many with a common disk, share the scans of a folder: one a GPU, or without one up
to one a core, for each then has one thread (OMP_NUM_THREADS) and `accelerate launch` would start a single one:

    torchrun --standalone --nproc-per-node 8 -m rootsam_lib segment FOLDER --model RUN

and where they cannot talk to each other, as jobs of their own, with `python -m rootsam_lib merge FOLDER` at the end:

    sbatch --array=1-8 --wrap 'python -m rootsam_lib segment FOLDER --model RUN --shard $SLURM_ARRAY_TASK_ID/8'
    parallel python -m rootsam_lib segment FOLDER --model RUN --shard {}/8 ::: $(seq 8)
"""

import contextlib
import difflib
import errno
import multiprocessing
import os
import signal
import sys
import threading
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch

from rootsam_lib import checked, checked_flag
from rootsam_lib.apps.fitting import fit_to_folder
from rootsam_lib.apps.outputs import (
    Report,
    fit_lock,
    is_done,
    out_folder,
    output_files,
    parse_shard,
    report_of,
    scans_told,
    settings_known,
    tables_of,
)
from rootsam_lib.data.folders import Entry, dated_names, find_pairs, folder_resolution, load_entry, named_folder
from rootsam_lib.data.images import MAX_MEGAPIXELS, checked_dpi, header, resolution
from rootsam_lib.data.masks import checked_coding, checked_exclusion, find_coding
from rootsam_lib.data.points import read_points
from rootsam_lib.data.scans import Scan, check_dates
from rootsam_lib.drawing import overlay
from rootsam_lib.evaluation.calibration import calibrated, check_model, check_resolution, read_calibration, score_row
from rootsam_lib.predictor import Predictor, check_predictor
from rootsam_lib.prompts import Prompts
from rootsam_lib.results import (
    check_free,
    check_name,
    claim_folder,
    file_hash,
    progress,
    shown,
    told,
    write_image,
    write_mask,
)
from rootsam_lib.training.devices import InPlace, ahead
from rootsam_lib.traits import CLEANING, LEAST_ANGLE, Cleaning, parse_location, trait_row

SCANS_A_WORKER = 4  # a worker takes seconds to start: fewer scans are not worth one
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # of the disk that is written to: no later scan fares better


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
    fit: bool = False,
    brighten: bool = False,
    exclude: str | Path | None = None,
    calibration: str | Path | None = None,
    shard: tuple[int, int] | None = None,
    workers: int = 0,
    say: Callable[[str], object] = lambda line: print(line, file=sys.stderr),
) -> Report:
    """Segment all images of a folder and measure their roots.

    For every image X, of any size, it writes X-mask.png (0 and 255), X-overlay.jpg, and a row of traits.csv; where a
    mask lies beside the image (by the names that `folders.read_folder` knows), a row of scores.csv as well.
    out: where to; beside the folder, with "-roots" added to its name, when None. dpi: dots per inch of all images, else
    what each states (see `images.resolution`); without any, traits are in pixels. mask_coding: what is root in the
    masks, found in them when None (see `masks`). max_megapixels: larger images are not read. prompts: points by scan
    name, see `points.read_prompts`; None for all roots. window_mm, tube_angle and cleaning: see `traits.trait_row`.
    fit: show the images to the model at the scale that fits their roots, and brighten: as bright as those it learned
    from, see `fitting.fit_to_folder`. exclude: what is neither root nor window, see `masks.read_exclusion`.
    calibration: a file, fitted for this model at this resolution, that adds calibrated columns, see
    `evaluation.calibration`; where the scale is to be fitted, its own is taken. shard: (2, 8) does the second of eight
    parts of the scans, into a folder of its own beside `out`, for `merge_shards`. workers: processes that read the next
    scans and measure the last ones while the model works; 0: all is done here, one after the other. say: gets one line
    for what was found in the files, and for each scan that fails, in which no root was found, or whose mask is another
    one's.

    One scan is in memory at a time, and two more for each worker. What was done with the same settings, from the same
    bytes of image and true mask and with outputs that are still as they were written, is not done again; so an
    interrupted call goes on where it was. A mask that was changed since is kept under another name and made again.
    Raises ValueError or FileNotFoundError before any work: for a folder without images, settings that cannot be, two
    images of one name, masks that leave open what is root, prompts that fit no scan, and an `out` that holds other
    files or results of other settings, or that another process writes to.
    """
    folder = _checked_folder(folder)
    check_predictor(predictor)
    dpi = dpi if dpi is None else checked_dpi(dpi)
    mask_coding = mask_coding if mask_coding is None else checked_coding(mask_coding)
    checked("max_megapixels", max_megapixels, 0, above=True)
    checked("workers", workers, 0, whole=True)
    fit, brighten = checked_flag("fit", fit), checked_flag("brighten", brighten)
    measuring = _checked_measuring(window_mm, tube_angle, cleaning)
    if shard:
        shard = parse_shard("/".join(map(str, shard)) if isinstance(shard, tuple) else str(shard))
    all_entries, whole = find_pairs(folder, need_masks=False), out_folder(folder, out)
    prompts = _checked_prompts(prompts, all_entries, say)
    _say_doubts(all_entries, say)
    entries, out = all_entries, whole
    if shard:
        entries, out = entries[shard[0] - 1 :: shard[1]], whole.with_name(f"{whole.name}-{shard[0]}-of-{shard[1]}")
    check_free(out, "segment.json")
    excluded = None if exclude is None else checked_exclusion(exclude, [entry.name for entry in all_entries])
    factors = read_calibration(calibration, say) if calibration else None
    settings = {"dpi": dpi} | measuring | {"cleaning": asdict(cleaning), "exclude": excluded, "calibration": factors}
    settings["prompts"] = {name: [p.points.tolist(), p.labels.tolist()] for name, p in sorted(prompts.items())}

    with ExitStack() as held:
        asked = {"root width": (fit, predictor.root_width), "brightness": (brighten, predictor.brightness)}
        unknown = [name for name, (wanted, known) in asked.items() if wanted and not known]
        fit, brighten = fit and predictor.root_width > 0, brighten and predictor.brightness > 0
        with fit_lock(whole) if shard else contextlib.nullcontext():  # one shard finds the scale for all
            if fit or brighten:
                known = ([factors["model"]] if factors else []) + settings_known(out, whole)  # factors hold at theirs
                predictor = fit_to_folder(predictor, all_entries, known, max_megapixels, say, fit, brighten)
            if factors:
                check_model(factors, predictor.about)
                gain = predictor.about.get("gain", 1.0)
                shown_as = f" and gain {gain:g}" if gain != 1 or brighten else ""
                say(f"input scale {predictor.about['input_scale']:g}{shown_as}, at which the calibration was fitted")
            settings = predictor.about | settings
            if shard and whole.exists():  # merged before, under these settings: what it holds is done
                claim_folder(whole, "segment.json", settings).release()
            held.callback(claim_folder(out, "segment.json", settings).release)
        if unknown:
            say(f"the model does not say its {' and '.join(unknown)}: not fitted to that")
        tables = tables_of({out, whole})
        traits, scores = tables[out]
        names = dict.fromkeys(entry.name for entry in entries)
        if gone := [name for name in traits.rows if name not in names]:
            say(f"{len(gone)} rows of scans that are gone from {folder.name} are dropped, as {gone[0]}; masks stay.")
        written = {name: row.get("mask_sha256") for name, row in traits.rows.items()}
        left = [
            e for e in entries if not any(is_done(e, place, *own, mask_coding, dpi) for place, own in tables.items())
        ]
        done = set(names) - {entry.name for entry in left}
        again = [entry.name for entry in left if _is_of_another_image(entry, traits.rows.get(entry.name))]
        if again:
            say(f"{scans_told(len(again))} done before from another image of that name, as {again[0]}: made anew")
        traits.keep(name for name in names if name in done)
        scores.keep(entry.name for entry in entries if entry.name in done and entry.mask)

        if left and factors:
            _check_resolutions(left, dpi, factors)
        if left:
            say(folder_resolution(left, dpi, strict=False))  # a bad name fails by itself
        if any(entry.mask for entry in left):
            masks = [entry.mask for entry in all_entries if entry.mask]
            mask_coding, found = find_coding(masks, max_megapixels, mask_coding)
            say(found)
        reading = {"dpi": dpi, "mask_coding": mask_coding, "max_megapixels": max_megapixels, "exclude": exclude}
        workers = min(workers, len(left) // SCANS_A_WORKER)
        spawned = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, spawned, _start_worker) if workers else InPlace()
        held.callback(pool.shutdown, cancel_futures=True)

        failed, mask_of = {}, {row["mask_sha256"]: name for name, row in traits.rows.items()}
        measure = partial(_measure, out=out, measuring=measuring, factors=factors)
        coming = _segmented(left, predictor, prompts, pool, workers, partial(_read, reading=reading), measure, written)
        for entry, measured in progress(coming, f"segment {folder.name}", "scan", total=len(left), disable=not left):
            name = entry.name
            try:
                trait, score, changed = measured.result()
            except Exception as error:  # one fault, one scan
                _raise_if_of_all(error, out)
                failed[name] = _reason(error, entry)
                say(f"failed: {name}: {failed[name]}")
                continue
            if changed:
                say(f"{name}: {changed}")
            if score:
                scores.add(score | {"mask_coding": mask_coding, "truth_sha256": trait.pop("truth_sha256")})
            traits.add(trait)  # last: without it a scan counts as not done
            if trait["qc_all_background"]:
                say(f"{name}: no root was found: if it has some, look at the model's training and input_scale.")
            elif (other := mask_of.setdefault(trait["mask_sha256"], name)) != name:
                say(f"{name}: its mask is exactly that of {other}: check whether both are the same image.")
        traits.keep(names)
        scores.keep(names)
        return report_of(traits, len(done), failed)


def _is_of_another_image(entry: Entry, row: Mapping[str, object] | None) -> bool:
    """Whether a scan's row was made from other bytes than its file holds now."""
    known = (row or {}).get("image_sha256")
    return bool(known) and entry.image.is_file() and known != file_hash(entry.image)


def _check_resolutions(entries: Sequence[Entry], dpi: float | None, factors: Mapping[str, object]) -> None:
    """Raises ValueError where no scan has the calibration's resolution: before any work, which would be in vain."""
    for entry in entries:
        try:
            found = dpi or resolution(entry.image)[0]
            return check_resolution(factors, 25.4 / found if found else None)
        except (ValueError, OSError) as error:
            first = error
    raise ValueError(f"{first} (--dpi gives a resolution)")


def _checked_folder(folder: str | Path) -> Path:
    folder = named_folder(folder)
    if (folder / "segment.json").is_file():
        raise ValueError(f"{shown(folder)} is what segment wrote: give the folder of the scans.")
    return folder


def _checked_measuring(window_mm: float | None, tube_angle: float, cleaning: Cleaning) -> dict[str, object]:
    """How roots are measured, as arguments of `trait_row`."""
    if not isinstance(cleaning, Cleaning):
        raise ValueError(f"cleaning is {cleaning!r}: give traits.Cleaning(...).")
    if window_mm is not None:
        checked("window_mm", window_mm, 0, above=True)
    checked("tube_angle", tube_angle, LEAST_ANGLE, 90)
    return {"window_mm": window_mm, "tube_angle": tube_angle, "cleaning": cleaning}


def _checked_prompts(
    prompts: Mapping[str, Prompts] | None, entries: Sequence[Entry], say: Callable[[str], object]
) -> dict[str, Prompts]:
    """Points by scan, all of them of scans that are there."""
    if not isinstance(prompts or {}, Mapping):
        raise ValueError(f"prompts is {prompts!r}: give points by scan name, as read_prompts(file) returns them.")
    given = {unicodedata.normalize("NFC", name): points for name, points in (prompts or {}).items()}
    prompts = {name: read_points(name, points) for name, points in given.items()}
    images, known = {e.name: e.image for e in entries}, {e.name.lower(): e.name for e in entries}
    for name, asked in prompts.items():
        if name not in images:
            near = difflib.get_close_matches(name.lower(), known, 1, 0.5) or [*known]
            hint = f"correct the name, such as {known[near[0]]!r}"
            raise ValueError(f"prompts are given for {name!r}, but no scan is called so: {hint}.")
        side = np.inf
        with contextlib.suppress(ValueError, OSError), header(images[name]) as opened:  # else it fails by itself
            side = max(opened.size)  # its orientation may turn it
        if len(asked.points) and (far := asked.points[asked.points.max(axis=1) >= side]).size:
            x, y = far[0]
            raise ValueError(f"prompts of {name}: point ({x:g}, {y:g}) lies outside of the image: give (x, y) in px.")
    if prompts and len(prompts) < len(entries):
        say(f"points for {len(prompts)} of {len(entries)} scans: of the others all roots are sought")
    return prompts


def _say_doubts(entries: Sequence[Entry], say: Callable[[str], object]) -> None:
    """Say what was guessed from the scans' names, and what is doubtful: it changes no mask, only dates and depths."""
    try:
        if read := check_dates(dict.fromkeys(name for entry in entries for name in dated_names(entry))):
            say(f"{read}.")
    except ValueError as error:
        say(f"{error} Until then do not believe the dates in traits.csv.")
    if zero := [entry.name for entry in entries if parse_location(entry.name) == 0]:
        say(f"locations count from 1, so {zero[0]} has no depth, and what lies below it is one window deeper")


def _segmented(
    left: Sequence[Entry],
    predictor: Predictor,
    prompts: Mapping[str, Prompts],
    pool: Executor,
    workers: int,
    read: Callable[[Entry], object],
    measure: Callable[..., object],
    written: Mapping[str, str | None],
) -> Iterator[tuple[Entry, Future]]:
    """Each scan, in order, with the outcome of its measurement, under way in the pool, or why there is none."""

    def segment(coming: tuple[Entry, Future]) -> Future:
        entry, reading = coming
        try:
            scan, hashes, warned = reading.result()
            for warning in warned:
                warnings.warn(warning, stacklevel=2)
            predictor.set_image(scan.image)
            found, sure, _ = predictor.predict(*(prompts.get(entry.name) or (None, None)))
        except Exception as error:
            (failing := Future()).set_exception(error)
            return failing
        return pool.submit(measure, scan, found[0], float(sure[0]), hashes, written.get(entry.name))

    for (entry, _), measured in ahead(ahead(left, partial(pool.submit, read), workers), segment, workers):
        yield entry, measured


def _raise_if_of_all(error: Exception, out: Path) -> None:
    """Raises OSError, saying what to do, for a fault that every later scan would meet as well."""
    if isinstance(error, BrokenExecutor):
        raise OSError(
            "a worker process ended, as for want of memory: run it again with fewer workers (--workers 0: none), it "
            "goes on where it was"
        ) from None
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        todo = "make room and run it again, it goes on where it was"
        raise OSError(error.errno, f"{os.strerror(error.errno)}: {todo}", str(out)) from None


def _start_worker() -> None:
    """Leave Ctrl-C to the process that asked for the work, give way to its model, and end when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    if hasattr(os, "nice"):
        os.nice(10)
    asker = multiprocessing.parent_process()
    threading.Thread(target=lambda: (asker.join(), os._exit(1)), daemon=True).start()


def _read(entry: Entry, reading: Mapping[str, object]) -> tuple[Scan, dict[str, str], list[str]]:
    """A scan, the hashes of its files, taken before they are read, and what reading warned of."""
    check_name(entry.name)
    files = {"image_sha256": entry.image} | ({"truth_sha256": entry.mask} if entry.mask else {})
    for file in files.values():
        if not file.is_file():
            raise ValueError(f"{file} is no regular file: take it out of the folder.")
    hashes = {name: file_hash(file) for name, file in files.items()}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        scan = load_entry(entry, **reading)
    return scan, hashes, [str(warning.message) for warning in warned]


def _measure(
    scan: Scan,
    mask: np.ndarray,
    predicted_iou: float,
    hashes: dict[str, str],
    written: str | None,
    out: Path,
    measuring: Mapping[str, object],
    factors: Mapping[str, object] | None,
) -> tuple[dict[str, object], dict[str, object] | None, str]:
    """Write a scan's mask and overlay; return its trait row with the hashes of all its files, the score row where there
    is a true mask, and a sentence where the mask that was there is not as it was written."""
    if scan.excluded is not None:
        mask = mask & ~scan.excluded
    trait = trait_row(scan, mask, predicted_iou, **measuring)
    if factors:
        trait |= calibrated(trait, factors)
    mask_file, overlay_file = output_files(scan.name, out)
    changed = write_mask(mask_file, mask, written)
    step = -(-max(mask.shape) // 65_000)  # JPEG holds no longer side
    write_image(overlay_file, overlay(scan.image[::step, ::step], mask[::step, ::step]))
    score = None if scan.mask is None else score_row(scan, mask, trait, measuring)
    hashes = hashes | {"mask_sha256": file_hash(mask_file), "overlay_sha256": file_hash(overlay_file)}
    return trait | hashes, score, changed


def _reason(error: Exception, entry: Entry) -> str:
    """What happened to a scan, in one sentence that names its file or what was wrong with it."""
    said = told(error)
    if isinstance(error, MemoryError) or "out of memory" in said:
        return f"{entry.image} does not fit into memory ({said}): use smaller tiles, or cut the image."
    return said if isinstance(error, (ValueError, OSError)) else f"{entry.image}: {type(error).__name__}: {said}"
