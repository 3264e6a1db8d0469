"""What `segment` leaves in a folder: rows that grow by whole lines, what counts as done, and shards that are merged."""

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock

from rootsam_lib.data.folders import Entry, find_pairs
from rootsam_lib.data.images import resolution
from rootsam_lib.data.masks import checked_exclusion, find_coding, read_mask
from rootsam_lib.results import atomic, claim_folder, csv_text, file_hash, read_csv, read_json, shown, write_csv


class Report(NamedTuple):
    """What became of a folder: the trait rows of its scans, the table's path, how many scans were done before, and for
    each scan that failed one sentence."""

    rows: list[dict[str, object]]
    table: Path
    skipped: int
    failed: dict[str, str]


def mask_now(roots: Path, row: Mapping[str, object], say: Callable[[str], object]) -> np.ndarray:
    """A scan's mask as it lies in a finished folder, bool (H, W), upright whatever the image's EXIF says; row: of
    traits.csv. One that was changed by hand since goes to `say`, with the values that were taken for root.

    Raises what `read_mask` raises.
    """
    path = roots / f"{row['scan']}-mask.png"
    if file_hash(path) == row.get("mask_sha256"):
        return read_mask(path, "0/255")
    coding, found = find_coding([path])
    say(f"{shown(path)} was changed by hand and counts as it is now: {found}.")
    return read_mask(path, coding)


def check_exclude(settings: Mapping[str, object], exclude: str | None, roots: Path) -> None:
    """Raises ValueError unless this is what was excluded when `segment` wrote a folder with these settings."""
    if settings.get("exclude") != (exclude and checked_exclusion(exclude)):
        raise ValueError(f"{shown(roots)} was made with another exclude: give the one that segment was given.")


class Table:
    """A CSV with one row a scan that grows by whole lines, so that each costs the same and outlives a kill.

    Raises ValueError for a file that was changed since it was written.
    """

    def __init__(self, path: Path):
        self.path, self.rows, self.columns = path, {}, []
        if not path.is_file():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]  # a kill may have torn the last line
        torn = content[len(whole) :].count(b",") < whole.split(b"\n")[0].count(b",") or not whole
        changed = b"\r" in content or not (torn or whole == content)  # a whole line without its end: a program's
        if not changed:
            os.truncate(path, len(whole))
            rows = read_csv(path, text=None) if whole else []
            self.columns = list(rows[0]) if rows else []
            changed = rows and ("scan" not in self.columns or csv_text(rows, self.columns).encode() != whole)
        if changed:
            raise ValueError(
                f"{shown(path)} was changed since it was written, as by a spreadsheet program: move it elsewhere "
                "to keep it, and its scans are done again."
            )
        self.rows = {row["scan"]: row for row in rows}

    def add(self, row: Mapping[str, object]) -> None:
        """Add a scan's row, on the disk before this returns."""
        self.rows[row["scan"]] = row = {name: _cell(value) for name, value in row.items()}
        if not set(row) <= set(self.columns):  # the first one, or one with other columns, as without resolution
            self._write()
            return
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            file.write(csv_text([row], self.columns, header=False))
            file.flush()
            os.fsync(file.fileno())

    def keep(self, names: Iterable[str]) -> None:
        """Keep the rows of these scans only, in this order."""
        rows = {name: self.rows[name] for name in names if name in self.rows}
        if list(rows) != list(self.rows):
            self.rows = rows
            self._write()

    def _write(self) -> None:
        self.columns = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        if self.rows:
            write_csv(self.path, list(self.rows.values()))
        else:
            self.path.unlink(missing_ok=True)


def _cell(value: object) -> object:
    """A value as a table says it: numbers with six digits."""
    if isinstance(value, (float, np.floating)):
        return None if np.isnan(value) else f"{value:.6g}"
    return None if value is None else str(value)


def out_folder(folder: Path, out: str | Path | None) -> Path:
    """Where a folder's results are written: beside it, unless `out` says where. Raises ValueError for inside it."""
    out = folder.resolve().with_name(folder.resolve().name + "-roots") if out is None else Path(out).expanduser()
    if out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{out} lies inside {folder}: write to a folder outside, or its masks would be read as input.")
    return out if out.name not in ("", "..") else out.resolve()


def output_files(name: str, out: Path) -> tuple[Path, Path]:
    """Where a scan's mask and its overlay are written."""
    return out / f"{name}-mask.png", out / f"{name}-overlay.jpg"


def is_done(entry: Entry, out: Path, traits: Table, scores: Table, mask_coding: str | None, dpi: float | None) -> bool:
    """Whether a scan has its rows, and image, true mask and outputs hold what they held when these were written, at the
    resolution that it has now (dpi: of all, whatever files and names say)."""
    row, score = traits.rows.get(entry.name, {}), scores.rows.get(entry.name, {})
    mask, overlay_file = output_files(entry.name, out)
    files = {"mask_sha256": mask, "overlay_sha256": overlay_file, "image_sha256": entry.image}
    if entry.mask:
        files["truth_sha256"] = entry.mask
        if mask_coding not in (None, score.get("mask_coding")):
            return False
    hashed = score | row
    try:
        dpi = dpi or resolution(entry.image)[0]
        if not row or row["mm_per_px"] != _cell(25.4 / dpi if dpi else None):
            return False
        return all(file.is_file() and file_hash(file) == hashed.get(name) for name, file in files.items())
    except (OSError, ValueError):  # not readable, or a name with two resolutions: it fails by itself
        return False


def report_of(traits: Table, skipped: int, failed: dict[str, str]) -> Report:
    """What a folder's table says now: numbers as numbers, names and hashes as text."""
    text = [name for name in traits.columns if name in ("scan", "tube", "date") or name.endswith("_sha256")]
    return Report(read_csv(traits.path, text) if traits.rows else [], traits.path, skipped, failed)


def scans_told(number: int) -> str:
    """A number of scans, in words for people."""
    return f"{number} scan{'s' * (number != 1)}"


def shards_of(out: Path) -> list[Path]:
    """The folders in which shards of a folder's results were begun."""
    named = re.compile(re.escape(out.name) + r"-\d+-of-\d+")
    return [p for p in sorted(out.parent.glob("*")) if named.fullmatch(p.name) and (p / "segment.json").is_file()]


def settings_known(out: Path, whole: Path) -> list[dict]:
    """Settings of earlier results: of `out`; where that is a shard's, then also of the merged folder and of the other
    shards."""
    places = [out] if out == whole else [out, whole, *shards_of(whole)]
    return [read_json(place / "segment.json") for place in places if (place / "segment.json").is_file()]


def parse_shard(text: str) -> tuple[int, int]:
    """(2, 8) from "2/8": the second of eight. Raises ValueError for anything else."""
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"shard is {text!r}: give its number and how many there are, such as 1/8 to 8/8.")
    return int(found[1]), int(found[2])


def tables_of(places: Iterable[Path]) -> dict[Path, tuple[Table, Table]]:
    """Each folder's traits and scores."""
    return {place: (Table(place / "traits.csv"), Table(place / "scores.csv")) for place in places}


def fit_lock(out: Path) -> FileLock:
    """Held by the shard that finds the input scale for all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(out.with_name(f".{out.name}.lock"))


def merge_shards(folder: str | Path, out: str | Path | None = None) -> Report:
    """Put what the shards of a folder made into one folder, which then is as one run would have made it.

    folder, out: as the shards were given them. A shard is deleted when all that it holds is merged; a scan that no
    shard has done is named in the report's `failed`. An interrupted call goes on where it was. Raises FileNotFoundError
    where there is no shard, and ValueError for one that is still written to, for one of other settings, and for a mask
    in `out` that is not as it was written.
    """
    say, folder = partial(print, file=sys.stderr), Path(folder).expanduser()
    entries, out = find_pairs(folder, need_masks=False), out_folder(folder, out)
    shards = shards_of(out)
    if not shards:
        raise FileNotFoundError(f"no {out.name}-1-of-… is beside {shown(out)}: run the shards first, with this --out.")
    settings, places = read_json(shards[0] / "segment.json"), [out, *shards]
    with ExitStack() as held:
        for place in places:
            held.callback(claim_folder(place, "segment.json", settings).release)
        tables = tables_of(places)
        traits, scores = tables[out]
        if traits.rows and not traits.rows.keys() & {entry.name for entry in entries}:
            raise ValueError(f"{shown(out)} holds no scan of {shown(folder)}: give the folder that was segmented.")
        before, merged = len(traits.rows), {place: {"traits.csv", "scores.csv", "segment.json"} for place in shards}
        for entry in entries:
            holding = [place for place in places if is_done(entry, place, *tables[place], None, settings.get("dpi"))]
            if holding and holding[0] != out:
                rows = [table.rows.get(entry.name, {}) for table in tables[holding[0]]]
                there, ours = output_files(entry.name, out)[0], (rows[0], traits.rows.get(entry.name, {}))
                if there.is_file() and file_hash(there) not in [row.get("mask_sha256") for row in ours]:
                    raise ValueError(f"{shown(there)} is not as it was written: move it elsewhere, then merge again.")
                for source, target in zip(*(output_files(entry.name, p) for p in (holding[0], out)), strict=True):
                    with atomic(target) as part:
                        shutil.copyfile(source, part)
                if entry.mask:
                    scores.add(rows[1])
                traits.add(rows[0])
            for place in {*holding} - {out}:
                merged[place] |= {file.name for file in output_files(entry.name, place)}
        traits.keep(entry.name for entry in entries)
        scores.keep(entry.name for entry in entries)
        missing = [entry.name for entry in entries if entry.name not in traits.rows]
        mask_of: dict[object, str] = {}
        for name, row in traits.rows.items():
            if (other := mask_of.setdefault(row["mask_sha256"], name)) != name and row["qc_all_background"] == "0":
                say(f"{name}: its mask is exactly that of {other}: check whether both are the same image.")
    for place, files in merged.items():
        if all(file.name in files or file.name.startswith(".lock") for file in place.iterdir()):
            shutil.rmtree(place)
    Path(fit_lock(out).lock_file).unlink(missing_ok=True)
    todo = "no shard has done it: run that shard and merge again, or segment without --shard"
    if missing:
        say(f"{scans_told(len(missing))}, such as {missing[0]}: {todo}")
    return report_of(traits, before, dict.fromkeys(missing, todo))
