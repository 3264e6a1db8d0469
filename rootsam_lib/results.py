"""Files that the project writes, and what all long work shares: atomic writes, tables, results files, progress.

Every number that a chart, a README or a lesson shows is read from a results file. It names its configuration, seed,
data, device, versions and commit, so that it can be made again.
"""

import errno
import json
import math
import os
import platform
import re
import shutil
import subprocess
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from io import BytesIO, StringIO
from pathlib import Path
from urllib.parse import urljoin

import numpy as np
import pandas as pd
import pooch
import requests
import torch
from filelock import FileLock, Timeout
from PIL import Image
from tqdm.auto import tqdm

from rootsam_lib import CHECKOUT, HOME

PACKAGES = ("torch", "sam2", "timm", "albumentations", "numpy", "scipy")
RUNS = HOME / "runs"
COLUMNS = ("root_iou", "class_mean_iou", "pooled_iou", "dice", "pooled_dice", "cl_dice", "soil_false_alarm")


def commit() -> str:
    """The project's git commit, with "+changes" when the work tree differs from it; "unknown" outside a checkout."""
    call = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    try:
        return subprocess.run(call, cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


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


_PARTIAL = re.compile(r"\.\d+\.partial(\.|$)")


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A file beside `path` to write to; when the block ends it takes the path's place, flushed to the disk first.

    After a crash, a kill or a full disk `path` is what it was before, or whole. Makes the folder. Two processes do not
    disturb each other: each has a partial file of its own. Raises OSError that names the path, also where the writer's
    own error for a full disk is another one, as torch's and safetensors'.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem[:60]}.{os.getpid()}.partial{path.suffix}")
    try:
        partial.touch()  # where one may not write, before any work
        yield partial
        with open(partial, "rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    except Exception as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)  # safetensors' word for it
        if full or shutil.disk_usage(path.parent).free < 1 << 16:
            raise OSError(errno.ENOSPC, "no space left on device: make room and run it again", str(path)) from error
        if isinstance(error, OSError) and error.filename == str(partial):
            error.filename = str(path)  # the name that people know
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, first 16 hex digits: what it holds, whatever its name and date say."""
    return pooch.file_hash(str(path))[:16]


def encode_image(pixels: np.ndarray, suffix: str = ".png", **options: object) -> bytes:
    """An image, uint8 (H, W) or (H, W, 3 or 4), or a mask, bool (H, W), as 0 and 255, as the bytes of a file with this
    ending. options: of Pillow's `Image.save`, such as dpi."""
    written, options = BytesIO(), {"quality": 90, **options}
    if pixels.dtype == bool:
        pixels, options["compress_type"] = pixels.astype(np.uint8) * 255, 3  # 3: run lengths, fast for masks
    kind = Image.registered_extensions().get(suffix.lower())
    if kind is None:
        raise ValueError(
            f"a picture cannot be written as {suffix or 'a file without ending'}: call it .png, .jpg or .tif."
        )
    Image.fromarray(pixels).save(written, kind, **options)
    return written.getvalue()


def write_image(path: str | Path, pixels: np.ndarray, **options: object) -> Path:
    """Write an image atomically, see `encode_image`; the path's ending says in which format."""
    with atomic(path) as partial:
        partial.write_bytes(encode_image(pixels, Path(path).suffix, **options))
    return Path(path)


def write_mask(path: str | Path, mask: np.ndarray, written: str | None) -> str:
    """Write a mask, bool (H, W), atomically. A different one that is there, as corrected by hand, is kept under another
    name; returns a sentence that says so, else "".

    written: the `file_hash` of what was written there last, which may be written over; None where that is not known.
    """
    path, said = Path(path), ""
    with atomic(path) as partial:
        partial.write_bytes(encode_image(mask))
        if path.is_file() and (there := file_hash(path)) not in (written, file_hash(partial)):
            aside = path.with_name(f"{path.stem}-changed-{there[:6]}{path.suffix}")
            os.replace(path, aside)
            said = f"its mask was not as it was written (changed or damaged): kept as {aside.name}, and made again."
    return said


def write_csv(path: str | Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write rows as a CSV, atomically: a column for every name that a row has, in order; what is not known is empty.

    A text that a spreadsheet would run as a formula (a scan called =1+1) gets a ' in front; `read_csv` takes it off.
    """
    write_text(path, csv_text(rows, list(dict.fromkeys(name for row in rows for name in row))))
    return Path(path)


def csv_text(rows: Sequence[Mapping[str, object]], columns: Sequence[str], header: bool = True) -> str:
    """Rows as `write_csv` writes them."""
    plain = [{name: _inert(value) for name, value in row.items()} for row in rows]
    table = pd.DataFrame(plain, columns=list(columns), dtype=object)  # whole numbers stay whole beside empty cells
    return table.to_csv(index=False, header=header, lineterminator="\n")


def read_csv(path: str | Path, text: Sequence[str] | None = ()) -> list[dict[str, object]]:
    """The rows of a CSV that `write_csv` or a spreadsheet program wrote (UTF-8 with or without a mark; `,`, tab, or `;`
    with decimal commas). Empty cells are None.

    text: columns that stay text where they look like numbers; None for all of them. Raises FileNotFoundError or
    ValueError, in one sentence.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} {'is no file' if path.exists() else 'does not exist'}: check its name.")
    try:
        content = path.read_text(encoding="utf-8-sig")
        separator = max(",;\t", key=content.split("\n", 1)[0].count)
        table = pd.read_csv(
            StringIO(content),
            sep=separator,
            decimal="," if separator == ";" else ".",
            dtype=object if text is None else dict.fromkeys(text, object),
            keep_default_na=False,
            na_values=[""],
        )
    except ValueError as error:  # pandas' errors and those of decoding are such
        why = str(error).splitlines()[0]
        raise ValueError(f"{shown(path)} is no table ({why}): save it as CSV in UTF-8.") from None
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError(f"{shown(path)} is no table (rows are longer than the first line): save it again as CSV.")
    head = [name.strip().strip('"') for name in content.split("\n", 1)[0].split(separator)]
    if twice := [name for name in head if name and head.count(name) > 1]:
        raise ValueError(f"{shown(path)} has two columns {twice[0]!r}: rename one.")
    return table.map(_unquoted).astype(object).where(table.notna(), None).to_dict("records")


_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def _inert(value: object) -> object:
    """The value, with a ' before a text that begins as a formula and is no number."""
    if not isinstance(value, str) or not _FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def _unquoted(value: object) -> object:
    return value[1:] if isinstance(value, str) and value.startswith("'") and _FORMULA.match(value) else value


def _plain(value: object) -> object:
    """NaN and infinity have no place in JSON: they become null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | Path, content: dict[str, object]) -> Path:
    """Write a results file atomically as JSON; what is no finite number becomes null."""
    write_text(path, json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return Path(path)


def read_json(path: str | Path) -> dict:
    """Read a results file. Raises FileNotFoundError, saying how results are made, or ValueError for what is none."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no results file at {path}: run `make tutorial` first, or the notebook that writes it."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise ValueError(f"{shown(path)} is damaged ({where}): make it again.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{shown(path)} is no results file (it holds no object in braces): make it again.")
    return content


def markdown_table(results: dict, name: str = "fixed prompts", columns: Sequence[str] = COLUMNS) -> str:
    """One protocol's table of an evaluation's results as Markdown: one row a model, one column a metric.

    name: "fixed prompts", "automatic" (the same patches), "whole scans", "selection", "control" or "correction".
    Raises ValueError for a table or column that is not there,
    naming those that are.
    """
    tables = results.get("tables", {})
    if not isinstance(tables, dict) or name not in tables:
        there = f"those here are {', '.join(tables)}" if tables else "choose an evaluation.json"
        raise ValueError(f"this results file holds no table {name!r} of models: {there}.")
    try:
        rows = [[model, *(cell(row[c]) for c in columns)] for model, row in tables[name].items()]
    except KeyError as error:
        there = ", ".join(next(iter(tables[name].values())))
        raise ValueError(f"no column {error} in {name!r}: choose from {there}.") from None
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"table {name!r} of this results file is damaged: make it again.") from None
    return table(["", *(f"`{column}`" for column in columns)], rows)


def cell(estimate: Sequence[float | None], intervals: bool = True, form: str = ".3f") -> str:
    """A score as people read it: value, and low to high in brackets; a dash where there is none."""
    value, low, high = (math.nan if number is None else number for number in estimate)
    if math.isnan(value):
        return "–"
    interval = f" ({low:{form}} to {high:{form}})" if intervals and not math.isnan(low) else ""
    return f"{value:{form}}{interval}"


def rows_table(rows: Sequence[Mapping[str, object]], columns: Sequence[str] | None = None) -> str:
    """Rows as a Markdown table; columns: which, all of the first row's when None. Numbers get four digits."""
    if not rows:
        raise ValueError("there is no row to show.")
    columns = list(columns or rows[0])

    def short(value: object) -> str:
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        return "–" if missing else f"{value:.4g}" if isinstance(value, float) else str(value)

    return table(columns, [[short(row[column]) for column in columns] for row in rows])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of ready-made cells. (pandas' to_markdown would need one more package, tabulate.)"""

    def line(cells: Sequence[str]) -> str:
        return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"

    return "\n".join([line(head), "|---" * len(head) + "|", *map(line, rows)])


def told(error: Exception) -> str:
    """An error in one line for people; those of the operating system name their file and what to look at."""
    if not (isinstance(error, OSError) and error.strerror and error.filename):
        return " ".join(str(error).split()) or type(error).__name__
    todo = "" if ": " in error.strerror else ": check the path, and whether you may read and write there."
    return f"{shown(error.filename)}: {error.strerror}{todo}"


def shown(path: str | Path) -> str:
    """A path as people should see it: relative to the project where it lies inside, and fit to print."""
    path = Path(path)
    text = str(path.relative_to(HOME)) if path.is_relative_to(HOME) else str(path)
    return os.fsencode(text).decode("utf-8", "backslashreplace")  # bytes that are no UTF-8 cannot be printed


def lock_folder(folder: str | Path, again: bool = False) -> FileLock:
    """Hold a folder until the lock is released or this process ends, so that no second process writes into it.

    again: it may be held already by this process, for the same; then it is held until both release it. Raises
    ValueError that names who holds it.
    """
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0, thread_local=False, is_singleton=again)
    note = folder / ".lock.json"
    try:
        lock.acquire()
    except Timeout:
        try:
            held = "by process {pid} on {host} since {since}".format(**read_json(note))
        except (OSError, ValueError, KeyError):
            held = "by another process"
        raise ValueError(
            f"{shown(folder)} is in use {held}: wait for it or end it first, since two at once would undo each "
            "other's work."
        ) from None
    except NotImplementedError:  # a disk without locks, such as some network drives
        warnings.warn(f"{shown(folder)} lies on a disk without locks: do not use it twice at once.", stacklevel=2)
    since = datetime.now().isoformat(" ", timespec="seconds")
    write_json(note, {"pid": os.getpid(), "host": platform.node(), "since": since})
    return lock


LATER = {"gain": 1.0}  # settings that notes of earlier versions lack, and what they were then


def claim_folder(folder: str | Path, marker: str, settings: dict[str, object], again: bool = False) -> FileLock:
    """Make a folder this program's own, and hold it (see `lock_folder`). The settings are noted in the file `marker`.

    Settings under which nothing was made yet, as where every scan failed, give way. Raises ValueError for a folder that
    holds other files, which could be overwritten, or results of other settings, or that another process holds.
    """
    folder = Path(folder)
    note = folder / marker
    check_free(folder, marker)
    lock = lock_folder(folder, again)
    try:
        for torn in folder.rglob("*.partial*"):  # of a process that was killed; none other writes here now
            if _PARTIAL.search(torn.name):
                torn.unlink()
        if not _made(folder, marker):
            write_json(note, settings)
        before = LATER | read_json(note)
        if other := [name for name, value in _plain(settings).items() if before.get(name) != value]:
            raise ValueError(
                f"{shown(folder)} holds results of other settings ({', '.join(other)}): give another folder."
            )
    except BaseException:
        lock.release()
        raise
    return lock


def _made(folder: Path, marker: str) -> list[str]:
    names = [file.name for file in folder.iterdir()]
    return sorted(name for name in names if not (name[0] == "." or name == marker or _PARTIAL.search(name)))


def check_free(folder: Path, marker: str) -> None:
    """Raises ValueError for a folder that `claim_folder` will refuse, whatever the settings: a file, or one that holds
    other files."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{shown(folder)} is a file: give a folder.")
    if folder.is_dir() and not (folder / marker).is_file() and (kept := _made(folder, marker)):
        raise ValueError(
            f"{shown(folder)} holds files that were not written here (first: {kept[0]}), which could be overwritten: "
            "give a new or an empty folder."
        )


def check_name(name: str) -> None:
    """Raises ValueError for a name that cannot be a file's: empty, hidden, with a folder or with characters that have
    no place in a name, or too long."""
    odd = any(letter in "/\\:" or unicodedata.category(letter) in ("Cc", "Cs") for letter in name)
    if not name or name[0] == "." or odd or len(os.fsencode(name)) > 230:
        raise ValueError(f"an image is called {name[:60]!a}, which cannot be a file's name: rename it.")


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError for no name, one that cannot be a file's, and two that would be the same file, also on a disk
    that does not tell upper from lower case."""
    if not names:
        raise ValueError("there is no image to work on, but at least one is needed: check the split, limit or folder.")
    seen: dict[str, str] = {}
    for name in names:
        check_name(name)
        if (same := name.casefold()) in seen:
            raise ValueError(f"two images are called {seen[same]} and {name}: rename one, for files are kept by name.")
        seen[same] = name


def progress(items: Iterable, what: str, unit: str, **options: object) -> tqdm:
    """tqdm over `items`; silent where ROOTSAM_PROGRESS=0, as in stored notebooks, where a bar would only be noise."""
    quiet = os.environ.get("ROOTSAM_PROGRESS") == "0"
    return tqdm(items, desc=what, unit=unit, disable=bool(options.pop("disable", False)) or quiet, **options)


def cache_dir() -> Path:
    """Where downloads are kept: ROOTSAM_CACHE, or the user's cache folder."""
    return Path(os.environ.get("ROOTSAM_CACHE") or pooch.os_cache("rootsam"))


def downloader(progressbar: bool = False) -> pooch.HTTPDownloader:
    """How everything is fetched: with a time limit, and never redirected from https to plain http, where anyone on the
    way could change the file."""

    def stay_encrypted(response: requests.Response, **_: object) -> None:
        target = urljoin(response.url, response.headers.get("location", ""))
        if response.url.startswith("https:") and not target.startswith("https:"):
            raise ConnectionError("redirected to plain http")

    return pooch.HTTPDownloader(progressbar=progressbar, timeout=60, hooks={"response": stay_encrypted})
