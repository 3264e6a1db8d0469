"""Files that the project writes, and what all long work shares: atomic writes, tables, results files, progress.

Every number that a chart, a README or a lesson shows is read from a results file. It names its configuration, seed,
data, device, versions and commit, so that it can be made again.
"""

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pooch
import torch
from tqdm.auto import tqdm

from rootsam_lib import CHECKOUT, HOME

PACKAGES = ("torch", "sam2", "timm", "albumentations", "numpy", "scipy")
RUNS = HOME / "runs"
COLUMNS = ("root_iou", "class_mean_iou", "pooled_iou", "dice", "pooled_dice", "cl_dice", "soil_false_alarm")


def commit() -> str:
    """The project's git commit, with "+changes" when the work tree differs from it; "unknown" outside a checkout."""
    try:
        run = [["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"]]
        head, changes = (
            subprocess.run(c, cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
            for c in run
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head + ("+changes" if changes else "")


def provenance(device: torch.device | str = "cpu") -> dict[str, object]:
    """Where and with what a result was made: commit, time, the device that computed it, and package versions."""
    on_gpu = torch.device(device).type == "cuda"
    return {
        "commit": commit(),
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if on_gpu else f"{str(device).upper()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A file beside `path` to write to; when the block ends it takes the path's place, flushed to the disk first.

    After a crash, a kill or a full disk `path` is what it was before, or whole. Makes the folder. Two processes do not
    disturb each other: each has a partial file of its own.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem[:60]}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        with open(partial, "rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_csv(path: str | Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write rows as a CSV, atomically: a column for every name that a row has, in order; what is not known is empty."""
    write_text(path, pd.DataFrame(list(rows)).to_csv(index=False, lineterminator="\n"))
    return Path(path)


def read_csv(path: str | Path, **types: object) -> list[dict[str, object]]:
    """The rows of a CSV that `write_csv` or a spreadsheet program wrote (UTF-8 with or without a mark, `,` or `;`).

    types: columns that are not to be guessed, such as scan=str. Raises FileNotFoundError or ValueError, in one sentence.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: check its name.")
    try:
        table = pd.read_csv(path, sep=None, engine="python", encoding="utf-8-sig", dtype=types or None)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
        raise ValueError(
            f"{shown(path)} is no table ({str(error).splitlines()[0]}): save it as CSV in UTF-8."
        ) from None
    return table.astype(object).where(table.notna(), None).to_dict("records")


def _plain(value: object) -> object:
    """NaN has no place in JSON: it becomes null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def write_json(path: str | Path, content: dict[str, object]) -> Path:
    """Write a results file atomically as JSON."""
    write_text(path, json.dumps(_plain(content), indent=1, ensure_ascii=False) + "\n")
    return Path(path)


def read_json(path: str | Path) -> dict:
    """Read a results file. Raises FileNotFoundError, saying how results are made, when it is not there."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no results file at {path}: run `make tutorial` first, or the notebook that writes it."
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{shown(path)} is damaged (line {error.lineno}): make it again.") from None


def markdown_table(
    results: dict, table: str = "fixed prompts", columns: Sequence[str] = COLUMNS, intervals: bool = True
) -> str:
    """One protocol's table of an evaluation's results as Markdown: one row a model, one column a metric.

    table: "fixed prompts", "automatic" (the same patches), "whole scans" or "correction". intervals: with the 95 %
    interval behind each score. Raises ValueError for a table or column that is not there, naming those that are.
    """
    tables = results.get("tables", {})
    if table not in tables:
        there = f"those here are {', '.join(tables)}" if tables else "choose an evaluation.json"
        raise ValueError(f"this results file holds no table {table!r} of models: {there}.")
    lines = ["| | " + " | ".join(f"`{column}`" for column in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in tables[table].items():
        if missing := [column for column in columns if column not in row]:
            raise ValueError(f"no column {missing[0]!r} in {table!r}: choose from {', '.join(row)}.")
        lines.append(f"| {name} | " + " | ".join(cell(row[column], intervals) for column in columns) + " |")
    return "\n".join(lines)


def cell(estimate: Sequence[float | None], intervals: bool = True) -> str:
    """A score as people read it: value, and low to high in brackets; a dash where there is none."""
    value, low, high = (math.nan if number is None else number for number in estimate)
    if math.isnan(value):
        return "–"
    return f"{value:.3f} ({low:.2f} to {high:.2f})" if intervals and not math.isnan(low) else f"{value:.3f}"


def rows_table(rows: Sequence[Mapping[str, object]], columns: Sequence[str] | None = None) -> str:
    """Rows as a Markdown table; columns: which, all of the first row's when None. Numbers get four digits."""
    if not rows:
        raise ValueError("there is no row to show.")
    columns = list(columns or rows[0])

    def short(value: object) -> str:
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        return "–" if missing else f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join(lines + ["| " + " | ".join(short(row[column]) for column in columns) + " |" for row in rows])


def shown(path: str | Path) -> str:
    """A path as people should see it: relative to the project where it lies inside, and fit to print."""
    path = Path(path)
    text = str(path.relative_to(HOME)) if path.is_relative_to(HOME) else str(path)
    return os.fsencode(text).decode("utf-8", "backslashreplace")  # bytes that are no UTF-8 cannot be printed


def record(profile: str, lesson: str, metrics: dict[str, object], parameters: dict[str, object]) -> Path:
    """Keep a lesson's metrics in runs/<profile>/lessons/<lesson>.json, with its parameters and provenance."""
    content = {"lesson": lesson, "metrics": metrics, "parameters": parameters, "provenance": provenance()}
    return write_json(RUNS / profile / "lessons" / f"{lesson}.json", content)


def progress(items: Iterable, what: str, unit: str, **options: object) -> tqdm:
    """tqdm over `items`; silent where ROOTSAM_PROGRESS=0, as in stored notebooks, where a bar would only be noise."""
    quiet = os.environ.get("ROOTSAM_PROGRESS") == "0"
    return tqdm(items, desc=what, unit=unit, disable=bool(options.pop("disable", False)) or quiet, **options)


def cache_dir() -> Path:
    """Where downloads are kept: ROOTSAM_CACHE, or the user's cache folder."""
    return Path(os.environ.get("ROOTSAM_CACHE") or pooch.os_cache("rootsam"))
