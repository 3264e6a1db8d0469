"""A session: a list of images that a person goes through with clicks, saved after each of them.

A session's folder holds session.json (how its masks are made), masks/X.png (the image's size, root white),
clicks/X.json (the log: what was done when, on which image, with which weights), session.csv (one row an image) and,
where rectangles were left out, excluded/X.png (white there, as `masks.read_exclusion` reads it).
An entry of the log is a click for the model or one use of a tool (`evaluation.tools`): the mask is the model's answer
to the clicks, and then the tools in their order.
The log is the truth: reopening a folder replays it and goes on there, so that a killed kernel costs at most the last
click. No widget here: `widget` shows a session, a notebook or a script drives it headless.
"""

import contextlib
import hashlib
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rootsam_lib import checked
from rootsam_lib.checkpoints import weights_hash
from rootsam_lib.data.scans import Scan, check_scans
from rootsam_lib.evaluation.tools import TOOLS, Edit, apply_edits, check_edit, excluded
from rootsam_lib.model import RootSAM
from rootsam_lib.predictor import STARTS, Click, Predictor, check_predictor
from rootsam_lib.prompts import ROOT, SOIL
from rootsam_lib.results import (
    LATER,
    check_names,
    claim_folder,
    file_hash,
    read_json,
    shown,
    write_csv,
    write_image,
    write_json,
    write_mask,
)
from rootsam_lib.traits import CLEANING, measure

PAUSE = 60.0  # s: a longer silence between two clicks is a break, and counts as this much
SETTINGS = ("input_scale", "tile_size", "overlap", "tta", "root_width", "smallest", "gain")  # of the predictor
USED = ("weights", *SETTINGS, "start")  # what a mask depends on beside its clicks
LOGGED = {"image": ("name", "sha256", "width", "height"), "row": ("state", "seconds"), "setting": USED}


class Clicked(NamedTuple):
    """A click and what came of it: its time (ISO, UTC), the predicted IoU afterwards, and whether the mask at the click
    then said what was clicked. A click is a question to the model, not a brush: it may be ignored. With another tool
    (one of `tools.TOOLS`) it is one use of that, x2 and y2 as in `tools.Edit`, obeyed where it changed the mask."""

    x: int
    y: int
    label: int
    time: str
    predicted_iou: float
    obeyed: bool
    tool: str = "click"
    x2: int = -1
    y2: int = -1


def image_hash(image: np.ndarray) -> str:
    """SHA-256 over an image's size and pixels, first 16 hex digits: its identity in click logs."""
    return hashlib.sha256(str(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()[:16]


def read_log(path: str | Path) -> dict:
    """A click log. Raises FileNotFoundError or ValueError, in one sentence, where there is none or it is damaged."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no click log at {shown(path)}: open the session's folder that holds clicks/X.json.")
    try:
        log = read_json(path)
        image, log["setting"] = log["image"], LATER | log["setting"]
        for part, names in LOGGED.items():
            if missing := set(names) - set(log[part]):
                raise KeyError(missing)
        for click in (Clicked(**click) for click in log["clicks"]):
            checked("x", click.x, 0, image["width"] - 1, whole=True)
            checked("y", click.y, 0, image["height"] - 1, whole=True)
            checked("label", click.label, SOIL, ROOT, whole=True)
            if click.tool != "click":
                check_edit(click_edit(click), (image["height"], image["width"]))
        checked("seconds", log["row"]["seconds"], 0)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{shown(path)} is not a click log, or is damaged ({type(error).__name__}): delete it to start that image "
            "anew, or put the right one in its place."
        ) from None
    return log


def _refuse_foreign(log: Mapping, image: np.ndarray, setting: Mapping[str, object]) -> None:
    """Raises ValueError for a log of another image, or one that was made with another setting."""
    there = {"image": log["image"]["sha256"], **log["setting"]}
    for name, here in {"image": image_hash(image), **setting}.items():
        if there.get(name) != here:
            raise ValueError(
                f"the click log of {log['image']['name']} does not fit ({name}: {there.get(name)} there, {here} here): "
                "take what it was made with, or another folder."
            )


def replay(model: RootSAM, image: np.ndarray, log: Mapping | str | Path) -> np.ndarray:
    """The mask, bool (H, W), of a click log: the very mask that was saved with it.

    Raises ValueError for a log of another image or other weights, and what `read_log` raises.
    """
    if not isinstance(log, Mapping):
        log = read_log(log)
    _refuse_foreign(log, image, {"weights": weights_hash(model)})
    predictor = _predictor(model, image, log["setting"])
    return corrected(predictor, image, [Clicked(**click) for click in log["clicks"]], log["setting"]["start"]).mask


def _predictor(model: RootSAM, image: np.ndarray, setting: Mapping, **machine: object) -> Predictor:
    predictor = Predictor(model, **{name: setting[name] for name in SETTINGS}, **machine)
    predictor.set_image(image)
    return predictor


class Corrected(NamedTuple):
    """A mask, bool (H, W), and what it was made from: clicks for the model, edits, and the mask before exclusion."""

    mask: np.ndarray
    asked: list[tuple]
    edits: list[Edit]
    edited: np.ndarray


def click_edit(click: Clicked) -> Edit:
    """The use of a tool that an entry of the log is."""
    return Edit(click.tool, click.x, click.y, click.x2, click.y2)


def corrected(
    predictor: Predictor, image: np.ndarray, clicks: Sequence[Clicked], start: str, last: Corrected | None = None
) -> Corrected:
    """The mask of an image that `predictor` holds: its answer to the clicks, then the tools in their order.

    last: what was made before; where the new list only goes on from it, so does the work.
    """
    asked = [click[:3] for click in clicks if click.tool == "click"]
    edits = [click_edit(click) for click in clicks if click.tool != "click"]
    edited, new = predictor.correct(asked, start), edits
    if last and last.asked == asked and last.edits == edits[: len(last.edits)]:
        edited, new = last.edited, edits[len(last.edits) :]
    if new:
        edited = apply_edits(edited, new, predictor.predict()[2][0], image)
    return Corrected(edited & ~excluded(edited.shape, edits), asked, edits, edited)


class Session:
    """A person's way through a list of images. One image is open, and only that one's embedding is kept.

    folder: where everything is kept; an existing session goes on there. scans: `Scan`s, or `folders.ImageFiles`; where
    a scan has a mask it serves the error view only. start: see `Predictor.correct`. What `traits.measure` says of a
    mask may take seconds, so it is asked when an image is done, left or saved, and not at every click.
    A folder belongs to one process; in it, to the session that was made last (as when a notebook's cell is run again).
    Raises ValueError for names that repeat or cannot be files, for a folder that holds other files, is in use or was
    made with other weights or another setting, and where no image can be opened.
    """

    def __init__(
        self, folder: str | Path, scans: Sequence[Scan], predictor: Predictor, start: str = "automatic"
    ) -> None:
        if start not in STARTS:
            raise ValueError(f"start is {start!r}: choose one of {', '.join(STARTS)}.")
        check_predictor(predictor)
        scans = list(scans) if isinstance(scans, Iterator) else scans
        if not hasattr(scans, "names"):
            check_scans(scans)
        folder = Path(folder).expanduser()
        self.folder, self.scans, self.predictor = folder, scans, predictor
        self.names: list[str] = list(getattr(scans, "names", None) or (scan.name for scan in scans))
        check_names(self.names)
        self.setting = predictor.about | {"start": start}
        self._restore_note()
        self._lock = claim_folder(folder, "session.json", self.setting, again=True)
        try:
            logs = {name: self.log_path(name) for name in self.names}
            self.rows = {name: read_log(path)["row"] for name, path in logs.items() if path.is_file()}
            if gone := sorted({path.stem for path in (folder / "clicks").glob("*.json")} - set(self.names)):
                told = f"{len(gone)} images of this session are not among the scans (first: {gone[0]})"
                warnings.warn(f"{told}: their clicks and masks stay, their rows leave session.csv.", stacklevel=2)
            order = sorted(range(len(self.names)), key=self.is_done)  # the first that is not done, in their order
            if passed := self._open_first(order):
                warnings.warn(passed, stacklevel=2)
        except BaseException:
            self._lock.release()
            raise
        self._turn = self._lock.turn = object()

    def _restore_note(self) -> None:
        """Make session.json again from a click log, which says the setting as well, where it is gone or damaged."""
        note, logs = self.folder / "session.json", sorted((self.folder / "clicks").glob("*.json"))
        with contextlib.suppress(OSError, ValueError):
            if not logs or read_json(note):
                return
        if logs and not (self.folder / "session.json").is_dir():
            warnings.warn(f"{note.name} of this session is gone or damaged: made again from its clicks.", stacklevel=3)
            write_json(note, read_log(logs[0])["setting"])

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
        return self._made.mask

    @property
    def excluded(self) -> np.ndarray:
        """What the open image's rectangles leave out, and what was excluded from its scan before, bool (H, W)."""
        out = excluded(self.mask.shape, self._made.edits)
        return out if self.scan.excluded is None else out | self.scan.excluded

    @property
    def clicks(self) -> tuple[Clicked, ...]:
        """The clicks on the open image."""
        return self._states[self._at]

    def is_done(self, index: int) -> bool:
        return self.rows.get(self.names[index], {}).get("state") == "done"

    # --- From image to image

    def open(self, index: int) -> None:
        """Open an image: encode it, and replay what was clicked on it. Raises IndexError outside the list, ValueError
        for a log of another image; the session then stays where it was."""
        if not 0 <= index < len(self.names):
            raise IndexError(f"there is no image {index}: this session has {len(self.names)}, counted from 0.")
        scan, clicks = self.scans[index], []
        path = self.log_path(self.names[index])
        if path.is_file():
            log = read_log(path)
            clicks = log["clicks"]
            _refuse_foreign(log, scan.image, {name: self.setting[name] for name in USED})
        # One of its own, so that the open image's stays until the next one is there.
        machine = {"keep": self.predictor.keep, "batch": self.predictor.batch}  # what it may use: changes no mask
        predictor = _predictor(self.predictor.model, scan.image, self.setting, **machine)
        made = tuple(Clicked(**click) for click in clicks)
        mask_path, written = self.mask_path(self.names[index]), log.get("mask_sha256") if path.is_file() else None
        if written is None and mask_path.is_file():  # of an earlier version
            written = file_hash(mask_path)
        mask = corrected(predictor, scan.image, made, self.setting["start"])
        if hasattr(self, "scan") and self.rows.get(self.name, {}).get("state") == "open":
            self.save()
        self.predictor, self.scan, self.position, self._made = predictor, scan, index, mask
        self._hash, self._written = image_hash(scan.image), written
        self._states = [made[:number] for number in range(len(made) + 1)]  # of the clicks, for undo and redo
        self._at = len(made)
        self._seconds = float(self.rows.get(self.name, {}).get("seconds", 0))
        self._heard = time.time()

    def next(self) -> str:
        """Open the next image; the last one stays open. Returns what was passed over because it cannot be opened."""
        return self._open_first(range(self.position + 1, len(self.names)))

    def previous(self) -> str:
        """Open the image before, as `next` does; the first one stays open."""
        return self._open_first(range(self.position - 1, -1, -1))

    def _open_first(self, indices: Iterable[int]) -> str:
        """Open the first of these images that can be opened; raises the first one's error where none can."""
        errors: list[Exception] = []
        for index in indices:
            try:
                self.open(index)
            except Exception as error:  # damaged, gone, too large: the others are no worse for it
                errors.append(error)
            else:
                return "; ".join(f"passed over: {error}" for error in errors)
        if errors:
            raise errors[0]
        return ""

    def set_done(self, done: bool = True) -> None:
        """Say that the open image's mask is good (or take that back); its row gets what `measure` says."""
        if not isinstance(done, bool):
            raise ValueError(f"done is {done!r}: give True or False.")
        self._save("done" if done else "open", measured=done)

    # --- Clicks on the open image: each one decodes once and is saved

    def add(self, x: float, y: float, label: int) -> None:
        """Click at (x, y) px: label 1 root, 0 soil. Raises ValueError outside the image."""
        click = self.predictor.checked_click((x, y, label))  # whole numbers of Python's own, for the log
        self._edit([*self.clicks, Clicked(*click, "", 0.0, False)], len(self.clicks))

    def use(self, tool: str, x: int, y: int, x2: int = -1, y2: int = -1) -> None:
        """Use a tool as in `tools.Edit`. Raises ValueError for another tool, and for a place outside the image."""
        edit = check_edit(Edit(tool, x, y, x2, y2), self.mask.shape)
        label = ROOT if tool == "trace" else SOIL
        clicked = Clicked(edit.x, edit.y, label, "", 0.0, False, tool, edit.x2, edit.y2)
        self._edit([*self.clicks, clicked], len(self.clicks))

    def move(self, number: int, x: float, y: float) -> None:
        """Put click `number` (from 0) somewhere else."""
        self._known(number)
        changed = list(self.clicks)
        changed[number] = changed[number]._replace(x=x, y=y)
        self._edit(changed, number)

    def remove(self, number: int) -> None:
        """Take click `number` (from 0) away."""
        self._known(number)
        self._edit([click for i, click in enumerate(self.clicks) if i != number])

    def undo(self) -> None:
        """Take the last change back. After a reopening: the last click."""
        self._go(self._at - 1)

    def redo(self) -> None:
        """Do again what was last undone."""
        self._go(self._at + 1)

    def _go(self, number: int) -> None:
        if 0 <= number < len(self._states):
            with self._unless_saved():
                self._made = self._correct(self._states[number])
                self._at = number
                self._save("open")

    def apply(self, clicks: Iterable[Click | Edit]) -> None:
        """The headless path: add these clicks and edits one after the other, without those that are there already."""
        there = {click[:3] if click.tool == "click" else click_edit(click) for click in self.clicks}
        for click in clicks:
            click = click if isinstance(click, Edit) else self.predictor.checked_click(click)
            if click not in there:
                (self.use if isinstance(click, Edit) else self.add)(*click)

    def _known(self, number: int) -> None:
        if not 0 <= number < len(self.clicks):
            raise IndexError(f"there is no click {number}: this image has {len(self.clicks)}, counted from 0.")

    def _edit(self, clicks: list[Clicked], new: int | None = None) -> None:
        with self._unless_saved():
            self._change(clicks, new)

    def _change(self, clicks: list[Clicked], new: int | None) -> None:
        before, self._made = self.mask, self._correct(clicks)  # refuses before anything changes
        if new is not None:
            changed = clicks[new]
            x, y = int(changed.x), int(changed.y)
            told = bool(self.mask[y, x]) == bool(changed.label)
            if changed.tool != "click":
                told = not np.array_equal(self.mask, before)
            stamp = datetime.fromtimestamp(time.time(), timezone.utc).isoformat(timespec="milliseconds")
            estimate = round(self.predictor.predicted_iou, 4)
            clicks[new] = changed._replace(x=x, y=y, time=stamp, predicted_iou=estimate, obeyed=told)
        self._at += 1
        self._states[self._at :] = [tuple(clicks)]  # a new change forgets what was undone
        self._save("open")

    @contextlib.contextmanager
    def _unless_saved(self) -> Iterator[None]:
        """What is changed in a block is as before where it cannot be saved, as on a full disk."""
        before = self._made, self._at, list(self._states)
        try:
            yield
        except BaseException:
            self._made, self._at, self._states = before
            raise

    def _correct(self, clicks: Sequence[Clicked]) -> Corrected:
        return corrected(self.predictor, self.scan.image, clicks, self.setting["start"], self._made)

    # --- Files

    def save(self) -> None:
        """Write log, mask and row of the open image again, with what `measure` says."""
        self._save(str(self.rows.get(self.name, {}).get("state", "open")), measured=True)

    def _save(self, state: str, measured: bool = False) -> None:
        if self._turn is not self._lock.turn:
            raise ValueError(f"the session in {self.folder.name} was opened again since: go on with the newer one.")
        now = time.time()
        self._seconds += min(max(now - self._heard, 0), PAUSE)
        self._heard = now
        row = {
            "image": self.name,
            "state": state,
            "clicks": len(self.clicks),
            "root_clicks": sum(click.label for click in self.clicks if click.tool == "click"),
            **{tool: sum(click.tool == tool for click in self.clicks) for tool in TOOLS},
            "obeyed": sum(click.obeyed for click in self.clicks),
            "seconds": round(self._seconds, 1),
            "root_pixels": int((self.mask & ~self.excluded).sum()),
            "predicted_iou": round(self.predictor.predicted_iou, 4),
        }
        if measured:
            try:
                row |= measure(self.mask, self.scan.mm_per_px, CLEANING, self.excluded)
            except Exception as error:  # the mask is kept all the same
                row["not_measured"] = f"{type(error).__name__}: {error}"
        height, width = self.mask.shape
        log = {
            "image": {"name": self.name, "sha256": self._hash, "height": height, "width": width},
            "setting": self.setting,
            "clicks": [click._asdict() for click in self.clicks],
            "row": row,
        }
        path = self.mask_path(self.name)
        if said := write_mask(path, self.mask, self._written):
            warnings.warn(f"{self.name}: {said}", stacklevel=2)
        self._written = log["mask_sha256"] = file_hash(path)
        write_json(self.log_path(self.name), log)
        out = self.folder / "excluded" / f"{self.name}.png"
        if self.excluded.any():
            write_image(out, self.excluded)
        else:
            out.unlink(missing_ok=True)
        changed = measured or state != self.rows.get(self.name, {}).get("state")
        self.rows[self.name] = row
        if changed:  # not at every click, which would cost more the more images there are; the log has the row
            write_csv(self.folder / "session.csv", [self.rows[name] for name in self.names if name in self.rows])
