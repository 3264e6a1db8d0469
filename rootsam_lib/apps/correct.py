"""A session: a list of images that a person goes through with clicks, saved after each of them.

A session's folder holds masks/X.png (the image's size, root white), clicks/X.json (the log: what was clicked when, on
which image, with which weights) and session.csv (one row an image). The log is the truth: reopening a folder replays it
and goes on there, so that a killed kernel costs at most the last click. No widget here: `annotator` shows a session,
a notebook or a script drives it headless.
"""

import csv
import hashlib
import io
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from rootsam_lib.checkpoints import weights_hash
from rootsam_lib.data.images import read_image, resolution
from rootsam_lib.data.scans import Scan, parse_date, parse_tube
from rootsam_lib.model import RootSAM
from rootsam_lib.predictor_corrector import Click, Corrector
from rootsam_lib.results import shown, write_json, write_text
from rootsam_lib.traits import measure as measure_traits

PAUSE = 60.0  # s: a longer silence between two clicks is a break, and counts as this much
UNDO_STEPS = 200


class Clicked(NamedTuple):
    """A click and what came of it: its time (ISO, UTC), the predicted IoU afterwards, and whether the mask at the click
    then said what was clicked. A click is a question to the model, not a brush: it may be ignored."""

    x: int
    y: int
    label: int
    time: str
    predicted_iou: float
    obeyed: bool


class ImageFiles(Sequence):
    """Image files as scans without masks, each read when it is asked for: for sessions larger than memory."""

    def __init__(self, paths: Iterable[str | Path]):
        self.paths = [Path(path) for path in paths]
        self.names = [path.stem for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Scan:
        path = self.paths[index]
        dpi, _ = resolution(path)
        tube = parse_tube(path.stem) or path.stem
        return Scan(read_image(path), None, path.stem, tube, parse_date(path.stem), 25.4 / dpi if dpi else None)


def image_hash(image: np.ndarray) -> str:
    """SHA-256 over an image's size and pixels, first 16 hex digits: its identity in click logs."""
    return hashlib.sha256(str(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()[:16]


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask, bool (H, W), atomically as a PNG of one bit a pixel, root white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    Image.fromarray(mask).save(partial, format="PNG", compress_level=1)
    os.replace(partial, path)


def traits(mask: np.ndarray, scan: Scan) -> dict[str, float]:
    """`traits.measure` of a mask, or nothing where the size of a pixel is not known."""
    return measure_traits(mask, scan.mm_per_px) if scan.mm_per_px else {}


def read_log(path: str | Path) -> dict:
    """A click log. Raises FileNotFoundError or ValueError, in one sentence, where there is none or it is damaged."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no click log at {shown(path)}: open the session's folder that holds clicks/X.json.")
    try:
        log = json.loads(path.read_text(encoding="utf-8"))
        [Clicked(**click) for click in log["clicks"]], log["image"]["sha256"], log["setting"]["weights"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{shown(path)} is not a click log, or is damaged ({type(error).__name__}): delete it to start that image "
            "anew, or put the right one in its place."
        ) from None
    return log


def _refuse_foreign(log: Mapping, what: str, setting: Mapping | None = None, image: np.ndarray | None = None) -> None:
    if setting is not None and (other := {k for k, v in setting.items() if log["setting"].get(k) != v} - {"model"}):
        differs = ", ".join(f"{key} {log['setting'].get(key)} there, {setting[key]} here" for key in sorted(other))
        raise ValueError(f"{what} was made with another setting ({differs}): take that one, or another folder.")
    if image is not None and log["image"]["sha256"] != (here := image_hash(image)):
        raise ValueError(
            f"{what} belongs to another image (hash {log['image']['sha256']} there, {here} here): take the image that "
            "it was made on, or another folder."
        )


def replay(model: RootSAM, image: np.ndarray, log: Mapping | str | Path) -> np.ndarray:
    """The mask, bool (H, W), of a click log: the very mask that was saved with it.

    Raises ValueError for a log of another image or other weights, and what `read_log` raises.
    """
    if not isinstance(log, Mapping):
        log = read_log(log)
    setting = log["setting"]
    what = f"the click log of {log['image']['name']}"
    _refuse_foreign(log, what, {"weights": weights_hash(model)}, image)
    corrector = Corrector(model, image, setting["input_scale"], setting["tile_size"], setting["start"])
    return corrector.ask((c["x"], c["y"], c["label"]) for c in log["clicks"])


class Session:
    """A person's way through a list of images. One image is open, and only that one's embedding is kept.

    folder: where everything is kept; an existing session goes on there. scans: `Scan`s, or `ImageFiles`; where a scan
    has a mask it serves the error view only. input_scale, tile_size, start: see `Corrector`. measure: what the CSV says of a
    mask beside its pixels, a function of (mask, scan) that returns a dictionary of numbers. It may take seconds, so it
    runs when an image is done, left or saved, and not at every click.
    clock: seconds since 1970. Raises ValueError for names that repeat or cannot be files, and for logs of other weights
    or another setting.
    """

    def __init__(
        self,
        folder: str | Path,
        scans: Sequence[Scan],
        model: RootSAM,
        input_scale: float = 1.0,
        tile_size: int = 1024,
        start: str = "automatic",
        measure: Callable[[np.ndarray, Scan], Mapping[str, float]] = traits,
        clock: Callable[[], float] = time.time,
    ):
        self.folder, self.scans, self.model = Path(folder), scans, model
        self.names: list[str] = list(getattr(scans, "names", None) or (scan.name for scan in scans))
        if not self.names:
            raise ValueError("a session needs at least one image: check the split, the limit or the folder.")
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise ValueError(f"two images are called {twice}: rename one, for masks are kept by name.")
        if odd := [name for name in self.names if not name or "/" in name or "\\" in name or name.startswith(".")]:
            raise ValueError(f"an image is called {odd[0]!r}, which cannot be a file's name: rename it.")
        weights = weights_hash(model)
        self.setting = {"model": model.label, "weights": weights, "input_scale": input_scale}
        self.setting |= {"tile_size": tile_size, "start": start}
        self.measure, self.clock = measure, clock
        self.rows: dict[str, dict[str, object]] = {}
        for name in self.names:
            if self.log_path(name).is_file():
                log = read_log(self.log_path(name))
                _refuse_foreign(log, f"the click log of {name}", self.setting)
                self.rows[name] = log["row"]
        waiting = [i for i, name in enumerate(self.names) if not self.is_done(i)]
        self.open(waiting[0] if waiting else 0)

    def log_path(self, name: str) -> Path:
        return self.folder / "clicks" / f"{name}.json"

    def mask_path(self, name: str) -> Path:
        return self.folder / "masks" / f"{name}.png"

    @property
    def name(self) -> str:
        return self.names[self.position]

    @property
    def mask(self) -> np.ndarray:
        """The open image's mask, bool (H, W)."""
        return self.corrector.mask

    def is_done(self, index: int) -> bool:
        return self.rows.get(self.names[index], {}).get("state") == "done"

    # --- From image to image

    def open(self, index: int) -> None:
        """Open an image: encode it, and replay what was clicked on it. Raises IndexError outside the list, ValueError
        for a log of another image; the session then stays where it was."""
        if not 0 <= index < len(self.names):
            raise IndexError(f"there is no image {index}: this session has {len(self.names)}, counted from 0.")
        scan, clicks = self.scans[index], ()
        path = self.log_path(self.names[index])
        if path.is_file():
            log = read_log(path)
            _refuse_foreign(log, f"the click log of {self.names[index]}", image=scan.image)
            clicks = tuple(Clicked(**click) for click in log["clicks"])
        if hasattr(self, "corrector"):
            self._finish_row()
            del self.corrector  # before the next one is made: one embedding in memory, not two
        options = {key: self.setting[key] for key in ("input_scale", "tile_size", "start")}
        self.corrector = Corrector(self.model, scan.image, **options)
        self.corrector.ask(click[:3] for click in clicks)
        self.scan, self.position, self.clicks = scan, index, clicks
        self._hash = image_hash(scan.image)
        self._past: deque[tuple[Clicked, ...]] = deque(maxlen=UNDO_STEPS)
        self._future: list[tuple[Clicked, ...]] = []
        self._seconds = float(self.rows.get(self.name, {}).get("seconds", 0))
        self._heard = self.clock()

    def next(self) -> None:
        """Open the next image; the last one stays open."""
        if self.position + 1 < len(self.names):
            self.open(self.position + 1)

    def previous(self) -> None:
        """Open the image before; the first one stays open."""
        if self.position > 0:
            self.open(self.position - 1)

    def set_done(self, done: bool = True) -> None:
        """Say that the open image's mask is good (or take that back); its row gets what `measure` says."""
        self._save("done" if done else "open", measured=done)

    # --- Clicks on the open image: each one decodes once and is saved

    def add(self, x: float, y: float, label: int) -> None:
        """Click at (x, y) px: label 1 root, 0 soil. Raises ValueError outside the image."""
        self._edit([*self.clicks, (x, y, label)], len(self.clicks))

    def move(self, number: int, x: float, y: float) -> None:
        """Put click `number` (from 0) somewhere else."""
        self._known(number)
        changed = list(self.clicks)
        changed[number] = (x, y, self.clicks[number].label)
        self._edit(changed, number)

    def remove(self, number: int) -> None:
        """Take click `number` (from 0) away."""
        self._known(number)
        self._edit([click for i, click in enumerate(self.clicks) if i != number])

    def undo(self) -> None:
        """Take the last change back. After a reopening: the last click."""
        if self._past or self.clicks:
            self._future.append(self.clicks)
            self._set(self._past.pop() if self._past else self.clicks[:-1])

    def redo(self) -> None:
        """Do again what was last undone."""
        if self._future:
            self._past.append(self.clicks)
            self._set(self._future.pop())

    def apply(self, clicks: Iterable[Click]) -> None:
        """The headless path: add these clicks one after the other, without those that are there already."""
        there = {click[:3] for click in self.clicks}
        for click in clicks:
            if tuple(click) not in there:
                self.add(*click)

    def _known(self, number: int) -> None:
        if not 0 <= number < len(self.clicks):
            raise IndexError(f"there is no click {number}: this image has {len(self.clicks)}, counted from 0.")

    def _edit(self, clicks: list[Sequence], new: int | None = None) -> None:
        before = self.clicks
        mask = self.corrector.ask(click[:3] for click in clicks)  # refuses before anything changes
        if new is not None:
            x, y, label = self.corrector.clicks[new]
            stamp = datetime.fromtimestamp(self.clock(), timezone.utc).isoformat(timespec="milliseconds")
            iou = round(self.corrector.predicted_iou, 4)
            clicks[new] = Clicked(x, y, label, stamp, iou, bool(mask[y, x]) == bool(label))
        self._past.append(before)
        self._future.clear()
        self.clicks = tuple(clicks)
        self._save("open")

    def _set(self, clicks: tuple[Clicked, ...]) -> None:
        self.corrector.ask(click[:3] for click in clicks)
        self.clicks = clicks
        self._save("open")

    # --- Files

    def save(self) -> None:
        """Write log, mask and row of the open image again, with what `measure` says."""
        self._save(str(self.rows.get(self.name, {}).get("state", "open")), measured=True)

    def _finish_row(self) -> None:
        row = self.rows.get(self.name)
        if row and row["state"] == "open":
            self._save("open", measured=True)

    def _save(self, state: str, measured: bool = False) -> None:
        now = self.clock()
        self._seconds += min(max(now - self._heard, 0), PAUSE)
        self._heard = now
        row = {
            "image": self.name,
            "state": state,
            "clicks": len(self.clicks),
            "root_clicks": sum(click.label for click in self.clicks),
            "obeyed": sum(click.obeyed for click in self.clicks),
            "seconds": round(self._seconds, 1),
            "root_pixels": int(self.mask.sum()),
            "predicted_iou": round(self.corrector.predicted_iou, 4),
        }
        if measured:
            said = self.measure(self.mask, self.scan)
            plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in said.items()}
            row |= {key: None if value != value else value for key, value in plain.items()}  # NaN: empty in the CSV
        height, width = self.mask.shape
        log = {
            "image": {
                "name": self.name,
                "sha256": self._hash,
                "height": height,
                "width": width,
            },
            "setting": self.setting,
            "clicks": [click._asdict() for click in self.clicks],
            "row": row,
        }
        self.rows[self.name] = row
        write_json(self.log_path(self.name), log)
        write_mask(self.mask_path(self.name), self.mask)
        write_text(self.folder / "session.csv", self._table())

    def _table(self) -> str:
        rows = [self.rows[name] for name in self.names if name in self.rows]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = io.StringIO()
        writer = csv.DictWriter(table, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return table.getvalue()
