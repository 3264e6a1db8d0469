"""One window over time: length at each date, what is new and what has vanished between two, and the depth profile.

On the command line `python -m rootsam_lib timeseries FOLDER` after `segment FOLDER`; here `follow` for scans at hand.

The tube is put back and the scanner lowered anew at every date, so the same root lies some pixels elsewhere: scans are
aligned first. A piece of centre line is *new* where the scan before has none beside it, and has *vanished* where the
next scan has none. That takes masks at their word: a root that the model misses once counts as vanished and, at the
date after, as new. So read turnover of a model's masks only after a look at its errors on scans of yours.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date as calendar
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from scipy.ndimage import convolve, distance_transform_edt, label
from skimage.registration import phase_cross_correlation

from rootsam_lib import checked
from rootsam_lib.apps.outputs import check_exclude, mask_now, out_folder
from rootsam_lib.data.folders import IMAGE_FOLDERS, Entry, dated_names, find_pairs, load_entry
from rootsam_lib.data.scans import Scan, check_dates, parse_date, parse_tube
from rootsam_lib.metrics import EIGHT
from rootsam_lib.results import atomic, file_hash, progress, shown, told, write_csv
from rootsam_lib.traits import CLEANING, Cleaning, Tracing, parse_location, read_done, segment_lengths, trace, trait_row

LEAST_MATCH = 0.15  # scans of one window two months apart match by 0.5 or more, those of two windows by 0.02
TOLERANCE_PX = 5.0  # what alignment leaves within a real scan is up to 3 px, and a hand is 1 px off
CROSSING = 2.5  # tolerances: at a right angle a line is beside another one for 2


class Alignment(NamedTuple):
    """How the scene moved from one scan to the next, (rows, columns) in px, and how well the two then match: the
    correlation of their contrast where both show it, 1 for the same image and about 0 for two places."""

    shift: tuple[int, int]
    match: float


def align(before: np.ndarray, after: np.ndarray) -> Alignment:
    """Align two images of one window, uint8 (H, W, 3), of any two sizes, by phase correlation of their local contrast.

    Brightness, and what changes slowly over the image, is taken out first. scikit-image, upsampled to one pixel.
    """
    if min(*before.shape[:2], *after.shape[:2]) < 2:
        return Alignment((0, 0), 0.0)
    shape = np.max([before.shape[:2], after.shape[:2]], axis=0) // 2
    first, second = (_contrast(image, shape) for image in (before, after))
    taper = np.outer(*(np.hanning(side) for side in shape)).astype(np.float32)
    found = phase_cross_correlation(first * taper, second * taper, upsample_factor=2)[0]
    rows, columns = (round(float(-2 * moved)) for moved in found)
    ours, theirs = shared(tuple(shape), tuple(shape), (round(rows / 2), round(columns / 2)))
    known = (first[ours], second[theirs])
    varied = min(part.size for part in known) > 1 and all(part.std() > 0 for part in known)
    match = float(np.corrcoef(*(part.ravel() for part in known))[0, 1]) if varied else 0.0
    return Alignment((rows, columns), match)


def _contrast(image: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """An image at half its size, as float32 `shape`: each pixel against its surroundings, over their spread."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    grey = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    fine = cv2.GaussianBlur(grey, (0, 0), 1) - cv2.GaussianBlur(grey, (0, 0), 6)
    fine /= np.sqrt(cv2.GaussianBlur(fine * fine, (0, 0), 12)) + 1
    padded = np.zeros(shape, np.float32)
    rows, columns = np.minimum(shape, fine.shape)
    padded[:rows, :columns] = fine[:rows, :columns]
    return padded


def shared(before: tuple[int, int], after: tuple[int, int], shift: tuple[int, int]) -> tuple[tuple, tuple]:
    """The rows and columns of two images, of these shapes, that show the same place, after such a `shift`."""
    starts = [(max(0, -moved), max(0, moved)) for moved in shift]
    sizes = [max(0, min(a - i, b - j)) for a, b, (i, j) in zip(before, after, starts, strict=True)]
    return tuple(
        tuple(slice(start[k], start[k] + size) for start, size in zip(starts, sizes, strict=True)) for k in (0, 1)
    )


def unmatched_length(tracing: Tracing, window: np.ndarray, other: np.ndarray, tolerance: float) -> tuple[float, float]:
    """Length in px of the centre lines of a scan inside a window, bool (H, W), and of those that another scan's centre
    lines, bool (H, W) in the same place, lack within `tolerance` px.

    A line that goes on past the free end of the other's is not beside it: else each growing tip would lose `tolerance`.
    Nor is the short stretch of a line that only crosses the other's, or leaves it as a lateral does.
    """
    ends = other & (convolve(other.astype(int), EIGHT, mode="constant") == 2)
    if other.any():
        distance, nearest = distance_transform_edt(~other, return_indices=True)
        lacking = distance > np.where(ends[tuple(nearest)], 1.5, tolerance)
    else:
        lacking = np.ones(other.shape, bool)
    total = alone = 0.0
    for path in tracing.paths:
        steps, middle = segment_lengths(path), np.round((path[:-1] + path[1:]) / 2).astype(int)
        inside, apart = window[tuple(middle.T)], lacking[tuple(middle.T)]
        if apart.any():
            stretch, _ = label(~apart)
            apart |= np.bincount(stretch, steps)[stretch] <= CROSSING * tolerance
        total += float(steps[inside].sum())
        alone += float(steps[inside & apart].sum())
    return total, alone


def _changes(
    before: Scan, was: Tracing, after: Scan, now: Tracing, shift: tuple[int, int], tolerance: float
) -> tuple[int, tuple[float, float], tuple[float, float]]:
    """What two scans with their tracings share, in px: the window, length and new length of the second, length and
    vanished length of the first."""
    places = shared(was.mask.shape, now.mask.shape, shift)
    seen = np.ones((2, *was.mask[places[0]].shape), bool)
    for part, scan, place in zip(seen, (before, after), places, strict=True):
        if scan.excluded is not None:
            part &= ~scan.excluded[place]
    answers = []
    for own, other, here, there in ((now, was, places[1], places[0]), (was, now, places[0], places[1])):
        window, lines = np.zeros((2, *own.mask.shape), bool)
        window[here], lines[here] = seen.all(axis=0), other.centre_lines[there]
        answers.append(unmatched_length(own, window, lines, tolerance))
    return int(seen.all(axis=0).sum()), *answers


def follow(
    scans: Sequence[Scan],
    *,
    window_mm: float | None = None,
    tube_angle: float = 45.0,
    cleaning: Cleaning = CLEANING,
    tolerance_px: float = TOLERANCE_PX,
    least_match: float = LEAST_MATCH,
    say: Callable[[str], object] = print,
) -> list[dict[str, object]]:
    """One row a date for scans of one window, each with a mask and a date, at one resolution.

    A row holds the length in the window and its density, and, from the second date on, the shift against the date
    before, how well both match, and of what both show: new and vanished length, production and mortality (these per
    cm² of window and day), and turnover a year: new length over the mean length of both dates, as a yearly rate (Gill &
    Jackson 2000 divide by the largest standing length of a year instead). Lengths are in mm, or px without resolution;
    where the match is poorer than `least_match` they stay empty, and `say` gets a sentence.
    window_mm, tube_angle, cleaning: see `traits.trait_row`. tolerance_px: how far beside its old place a root is the
    same one. Raises ValueError for a scan without mask or date, two of one date, or of several resolutions.
    """
    checked("tolerance_px", tolerance_px, 0)
    checked("least_match", least_match, 0, 1)
    scans = sorted(scans, key=lambda scan: scan.date)
    for before, scan in zip([None, *scans], scans, strict=False):
        if scan.mask is None or not scan.date:
            lacks = "mask: segment it first" if scan.mask is None else "date in its name, such as 2017-04-11: rename it"
            raise ValueError(f"{scan.name} has no {lacks}.")
        if before and before.date == scan.date:
            raise ValueError(f"{before.name} and {scan.name} are one window at one date: take one out.")
        if before and before.mm_per_px != scan.mm_per_px:
            raise ValueError(f"{before.name} and {scan.name} differ in resolution: give dpi for both, or scale one.")
    rows, before, traced = [], None, None
    for scan in scans:
        size, unit = scan.mm_per_px or 1.0, "mm" if scan.mm_per_px else "px"
        area = "cm2" if scan.mm_per_px else "px2"
        trait = trait_row(scan, scan.mask, window_mm=window_mm, tube_angle=tube_angle, cleaning=cleaning)
        names = ["tube", "location", "depth_mm", "date", "scan", f"window_{area}", f"root_length_{unit}"]
        row = {name: trait[name] for name in [*names, f"length_density_{unit}_per_{area}"]}
        tracing = trace(scan.mask, scan.mm_per_px, cleaning, scan.excluded)
        if before is not None:
            found = align(before.image, scan.image)
            days = (calendar.fromisoformat(scan.date) - calendar.fromisoformat(before.date)).days
            row |= {"days": days, "shift_rows": found.shift[0], "shift_columns": found.shift[1], "match": found.match}
            if found.match < least_match:
                say(
                    f"{scan.name} does not match {before.name} ({found.match:.2f}; {least_match:g} is needed): "
                    "no new or vanished length; look whether both show the same window."
                )
            else:
                kept, (length, new), (earlier, gone) = _changes(
                    before, traced, scan, tracing, found.shift, tolerance_px
                )
                kept = kept * size**2 / 100 if scan.mm_per_px else kept
                row |= {
                    f"shared_{area}": kept,
                    f"new_length_{unit}": new * size,
                    f"vanished_length_{unit}": gone * size,
                    f"production_{unit}_per_{area}_day": new * size / kept / days if kept else None,
                    f"mortality_{unit}_per_{area}_day": gone * size / kept / days if kept else None,
                    "turnover_per_year": 2 * new / (length + earlier) * 365.25 / days if length + earlier else None,
                }
        rows.append(row)
        before, traced = scan, tracing
    return rows


def follow_folder(
    folder: str | Path,
    roots: str | Path | None = None,
    out: str | Path | None = None,
    *,
    exclude: str | None = None,
    tolerance_px: float = TOLERANCE_PX,
    least_match: float = LEAST_MATCH,
    say: Callable[[str], object] = lambda line: print(line, file=sys.stderr),
) -> tuple[list[dict[str, object]], list[Path], list[str]]:
    """`follow` every window of a folder that `segment` has done; writes timeseries.csv and timeseries.png.

    folder: the images; roots: where their masks and traits.csv are (the folder's name with "-roots", when None; masks
    that were corrected by hand there count as they are now); out: where to write, roots when None. exclude: as it was
    given to `segment`. Scans without tube, location or date in their name are left out, and said, and so is a window
    with a fault.
    Returns the rows, the paths of both files, and the windows with a fault. Raises FileNotFoundError or ValueError, in
    one sentence.
    """
    folder = Path(folder).expanduser()
    roots = out_folder(folder, roots)
    out = roots if out is None else out_folder(folder, out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{shown(out)} is a file: give a folder.")
    entries = {entry.name: entry for entry in find_pairs(folder, need_masks=False)}
    done, settings = read_done(roots)
    check_exclude(settings, exclude, roots)
    named = (name for row in done if row["scan"] in entries for name in dated_names(entries[row["scan"]]))
    if read := check_dates(dict.fromkeys(named)):
        say(read)
    windows = _windows(done, entries, folder, roots, say)
    measuring = {name: settings[name] for name in ("window_mm", "tube_angle")}
    how = {"tolerance_px": tolerance_px, "least_match": least_match, "say": say}
    rows, faulty = [], []
    for (tube, location), window in progress(windows.items(), "follow windows", "window"):
        scans = []
        try:  # one fault, one window
            for row in window:
                entry, size = entries[row["scan"]]._replace(mask=None), row["mm_per_px"]
                if row.get("image_sha256", (now := file_hash(entry.image))) != now:
                    raise ValueError(f"{shown(entry.image)} was changed since: segment the folder again.")
                scan = load_entry(entry, dpi=25.4 / size if size else None, exclude=exclude)
                scans.append(replace(scan, mask=mask_now(roots, row, say)))
            rows += follow(scans, cleaning=Cleaning(**settings["cleaning"]), **measuring, **how)
        except (ValueError, OSError) as error:
            faulty.append(f"{tube} L{int(location):03d}")
            say(f"{faulty[-1]} is left out: {told(error)}")
    if not rows:
        raise ValueError(f"{shown(roots)}: no window could be followed; each one's reason is said above.")
    written = [write_csv(out / "timeseries.csv", rows), out / "timeseries.png"]
    figure = plot_series(rows)
    with atomic(written[1]) as partial:
        figure.savefig(partial, dpi=150)
    return rows, written, faulty


def _windows(
    done: Sequence[dict[str, object]],
    entries: Mapping[str, Entry],
    folder: Path,
    roots: Path,
    say: Callable[[str], object],
) -> dict[tuple[str, int], list[dict[str, object]]]:
    """The rows of traits.csv by their window, (tube, location): what cannot be placed is left out, and said, and what
    would make no curve is refused."""
    windows: dict[tuple[str, int], list[dict]] = {}
    for row in done:
        name, location = row["scan"], parse_location(row["scan"])
        lacking = {
            f"image in {folder.name}": name in entries,
            "tube in its name (T002)": parse_tube(name),
            "location in its name (L004)": location is not None,
            "date in its name or folder's (11.04.17)": row["date"],
        }
        if none := [what for what, there in lacking.items() if not there]:
            say(f"{name} is left out: no {', no '.join(none)}.")
        else:
            windows.setdefault((row["tube"], location), []).append(row)
    if not windows:
        raise ValueError(f"{shown(roots)} holds no scan with tube, location and date in its name (T002_L004_11.04.17).")
    seen: dict[tuple, str] = {}
    for (tube, location), row in ((place, row) for place, window in windows.items() for row in window):
        if (other := seen.setdefault((tube, location, row["date"]), row["scan"])) != row["scan"]:
            raise ValueError(
                f"{other} and {row['scan']} are one window at one date: take one out, or segment each plot by itself."
            )
    places = {
        f"{tube} L{location:03d}": {place_of(entries[row["scan"]].image.relative_to(folder)) for row in window}
        for (tube, location), window in windows.items()
    }
    if several := [name for name, folders in places.items() if len(folders) > 1]:
        first = f"{several[0]} in {' and '.join(sorted(places[several[0]]))}"
        say(
            f"{len(several)} windows lie in several folders ({first}): followed as one each; if the folders are plots, "
            "segment each by itself."
        )
    if all(len(window) == 1 for window in windows.values()):
        say("no window was scanned twice: there is no new or vanished length.")
    followed = [row for window in windows.values() for row in window]
    bare = [row["scan"] for row in followed if not row["mm_per_px"]]
    if 0 < len(bare) < len(followed):
        raise ValueError(
            f"{bare[0]} has no resolution ({len(bare)} of {len(followed)} scans), but others have: millimetres and "
            "pixels make no curve; segment the folder anew with dpi (--dpi)."
        )
    return windows


def place_of(inside: Path) -> str:
    """The folders that an image lies in, but for those that are called images or by a date."""
    parts = [part for part in inside.parent.parts if part.lower() not in IMAGE_FOLDERS and not parse_date(part)]
    return "/".join(parts) or "."


def plot_series(rows: Sequence[dict[str, object]]):
    """Root length density of every window over time, the same over depth at each date, and new and vanished length, as
    a Matplotlib figure; rows from `follow`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    over_time, over_depth, changes = figure.subplots(1, 3)
    density = next(name for name in rows[0] if name.startswith("length_density_"))
    unit = density.removeprefix("length_density_").replace("_per_", " / ")
    days = {row["date"]: calendar.fromisoformat(row["date"]) for row in rows}
    for window in sorted({(row["tube"], row["location"]) for row in rows}):
        mine = [row for row in rows if (row["tube"], row["location"]) == window]
        name = f"{window[0]} L{int(window[1]):03d}"
        over_time.plot([days[row["date"]] for row in mine], [row[density] for row in mine], "o-", label=name)
    for day in sorted(days):
        mine = sorted((row["depth_mm"], row[density]) for row in rows if row["date"] == day and row["depth_mm"])
        over_depth.plot([value for _, value in mine], [depth for depth, _ in mine], "o-", label=day)
    for sign, name in ((1, "new_length"), (-1, "vanished_length")):
        column = f"{name}_{unit.split(' ')[0]}"
        sums = [sum(row.get(column) or 0 for row in rows if row["date"] == day) for day in sorted(days)]
        changes.bar(sorted(days), [sign * value for value in sums], label=name.replace("_", " "))
    over_depth.invert_yaxis()
    over_time.set(title="root length density", xlabel="date", ylabel=unit)
    over_depth.set(title="depth profile", xlabel=unit, ylabel="depth of the window's middle, mm")
    changes.set(title="since the date before, all windows", xlabel="date", ylabel=unit.split(" ")[0])
    for axes in (over_time, over_depth, changes):
        if 0 < len(axes.get_legend_handles_labels()[0]) <= 10:
            axes.legend(fontsize="small")
    over_time.tick_params(axis="x", rotation=30)
    changes.tick_params(axis="x", rotation=30)
    return figure


def timeseries_command(options: argparse.Namespace) -> int:
    """Follow the windows of a folder as the command line asks; 1 when one has a fault, else 0."""
    how = {"exclude": options.exclude, "tolerance_px": options.tolerance_px, "least_match": options.least_match}
    rows, written, faulty = follow_folder(options.folder, options.roots, options.out, **how)
    windows = len({(row["tube"], row["location"]) for row in rows})
    print(f"{len(rows)} scans of {windows} windows; {' and '.join(shown(path) for path in written)}")
    return int(bool(faulty))
