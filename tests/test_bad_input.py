"""Bad input through the public ways: what comes of it is right, refused in one sentence that names the file or the
parameter, or said aloud; never silent, never a traceback.

Each case is a line of a table: how a user meets it, and what must come of it.
"""

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from stub_predictor import StubPredictor

from rootsam_lib.__main__ import main
from rootsam_lib.apps import commands, correct, segment
from rootsam_lib.apps.correct import Session, read_log
from rootsam_lib.apps.export import export_folder, from_rle, from_rootpainter, to_rle, to_rootpainter
from rootsam_lib.apps.outputs import Report
from rootsam_lib.apps.rsml import export_roots
from rootsam_lib.apps.segment import segment_folder
from rootsam_lib.apps.timeseries import align, follow_folder
from rootsam_lib.apps.triage import triage
from rootsam_lib.checkpoints import build_sam, load_weights, save_checkpoint
from rootsam_lib.data.datasets import load_scans
from rootsam_lib.data.folders import ImageFiles, read_folder
from rootsam_lib.data.images import read_image
from rootsam_lib.data.masks import read_mask
from rootsam_lib.data.points import read_prompts
from rootsam_lib.data.scans import Scan, check_masks, tile
from rootsam_lib.drawing import overlay
from rootsam_lib.evaluation.bootstrap import agreement, tube_weights
from rootsam_lib.evaluation.clicks import annotate_scan
from rootsam_lib.evaluation.protocols import evaluate, score_answer, score_mask
from rootsam_lib.lessons.runner import tutorial
from rootsam_lib.losses import boundary_loss, focal_tversky_loss
from rootsam_lib.metrics import betti0_error, cl_dice, dilate, label_roots
from rootsam_lib.predictor import Predictor, load_predictor
from rootsam_lib.prompts import FixedPrompts, Prompts, edt_map, meant_roots, sample_points
from rootsam_lib.results import read_csv, read_json, write_csv, write_image
from rootsam_lib.training.config import stage1, stage_pair
from rootsam_lib.training.devices import build_accelerator
from rootsam_lib.training.loop import train_stage
from rootsam_lib.traits import depth_mm, measure

IMAGE = np.zeros((64, 64, 3), np.uint8)
IMAGE[20:26, 4:60] = 255
BYTES, RNG = IMAGE[..., 0].copy(), np.random.default_rng(0)
MASK = BYTES > 0
IMAGE[..., 2] = np.maximum(IMAGE[..., 2], np.arange(64)[:, None] % 8 * 10)  # soil


class Bench:
    """A folder with one good image, `good.png`, and the ways in which people use the library."""

    def __init__(self, place: Path, monkeypatch, capsys):
        self.place, self.patch, self.capsys = place, monkeypatch, capsys
        self.scans, self.out = place / "scans", place / "out"
        self.scans.mkdir()
        self.image("good.png")
        self.said: list[str] = []

    def image(self, name: str | bytes, content: bytes | np.ndarray | None = None) -> Path:
        path = self.scans / "new.png"
        content = (BYTES if b"mask" in os.fsencode(name) else IMAGE) if content is None else content
        path.write_bytes(content) if isinstance(content, bytes) else Image.fromarray(content).save(path)
        wanted = os.path.join(os.fsencode(self.scans), os.fsencode(name))
        os.makedirs(os.path.dirname(wanted), exist_ok=True)
        os.rename(path, wanted)
        return self.scans / os.fsdecode(name)

    def file(self, name: str, content: bytes | str) -> Path:
        path = self.place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def segment(self, predictor: object = None, **changes: object) -> Report:
        settings = {"dpi": 300, "say": self.said.append, **changes}
        return segment_folder(self.scans, predictor or StubPredictor(), self.out, **settings)

    def again(self, name: str, content: bytes | str) -> Report:
        """Segment, put something else into a file of the results, and segment again."""
        self.segment()
        self.file(f"out/{name}", content)
        return self.segment()

    def cli(self, *words: object, model: str = "stub") -> None:
        if model == "stub":
            self.patch.setattr(commands, "load_predictor", lambda *_, **__: StubPredictor())
        call = ["segment", str(self.scans), "--model", model, "--out", str(self.out), "--dpi", "300"]
        code = main([*call, *map(str, words)])
        told = self.capsys.readouterr()
        if code == 2:
            assert told.err.startswith("error: ") and not self.out.exists()
            raise ValueError(told.err.removeprefix("error: ").rstrip("\n"))
        self.said += told.err.splitlines()

    def session(self, *names: str, folder: str = "session") -> Session:
        scans = [Scan(IMAGE, None, name, "T1") for name in names]
        return Session(self.place / folder, scans, nano())

    def log(self, content: str | Callable[[str], str]) -> Session:
        """Click once, put something else into the click log, and open the session again."""
        session = self.session("a")
        session.add(9, 8, 1)
        path = session.log_path("a")
        path.write_text(content(path.read_text()) if callable(content) else content)
        return self.session("a")

    def export(self, *names: str, mask: np.ndarray = MASK, part: str = "", folder: str = "out") -> Path:
        scans = [Scan(IMAGE, None, name, "") for name in names]
        return export_folder(self.place / folder, scans, [mask] * len(scans), part)

    def followed(self, command: str, file: str, what: str) -> None:
        """Segment, take a name out of a file of the results, and go on with another command."""
        self.image("good-mask.png")
        self.segment()
        path = self.out / file
        path.write_text(path.read_text().replace(what, "gone", 1))
        self.capsys.readouterr()
        assert main([command, str(self.out)]) == 2
        raise ValueError(self.capsys.readouterr().err.removeprefix("error: ").rstrip("\n"))

    def resized(self) -> object:
        """The files of the field, of a mask that has another size than its scan."""
        self.segment()
        Image.fromarray(BYTES[::2, ::2]).save(self.out / "good-mask.png")
        return export_roots(self.out)

    def warned(self) -> None:
        self.image("T001_L001_2017-04-11.png")
        (self.scans / "a.gif").touch()
        self.segment()
        main(["timeseries", str(self.scans), "--roots", str(self.out)])
        self.said = [line for line in self.capsys.readouterr().err.splitlines() if "a.gif" in line]
        assert not any("UserWarning" in line for line in self.said)

    def prompts(self, content: bytes | str) -> Report:
        return self.segment(prompts=read_prompts(self.file("points.csv", content)))


def nano() -> Predictor:
    if not _NANO:
        _NANO.append(load_predictor("nano", tile_size=64))
    return _NANO[0]


def asked(places: object, labels: object) -> object:
    predictor = nano()
    predictor.set_image(IMAGE)
    return predictor.predict(places, labels)


_NANO: list[Predictor] = []


class Case(NamedTuple):
    """What a user does, and what comes of it: "refused" (an error), "failed" (the scan, while good.png is done),
    "said" (a line), each with a part of the sentence; or "right", with a check of the answer."""

    name: str
    does: Callable[[Bench], object]
    becomes: str
    what: str | Callable[[Bench, object], bool]


def odd_name(name: str | bytes) -> Case:
    return Case(f"name {name!r:.40}", lambda b: (b.image(name), b.segment())[1], "failed", "cannot be a file's name")


def kept_name(name: str) -> Case:
    """A name that tables could mistake for a number, a missing value or a formula."""

    def right(bench: Bench, report: Report) -> bool:
        again = bench.segment()
        text = (bench.out / "traits.csv").read_text()
        cells = [line.split(",")[0] for line in text.splitlines()]
        return (
            sorted(row["scan"] for row in report.rows) == sorted(["good", name])
            and (again.skipped, again.failed) == (2, {})
            and not any(cell[:1] in "=+-@" and not cell.lstrip("-+").isdigit() for cell in cells[1:])
        )

    return Case(f"scan called {name}", lambda b: (b.image(f"{name}.png"), b.segment())[1], "right", right)


def option(*words: object, what: str, model: str = "stub") -> Case:
    return Case(" ".join(map(str, words)), lambda b: b.cli(*words, model=model), "refused", what)


def points(name: str, content: bytes | str, what: str) -> Case:
    return Case(f"prompts {name}", lambda b: b.prompts(content), "refused", what)


def table(name: str, content: bytes | str, what: str) -> Case:
    return Case(f"csv {name}", lambda b: read_csv(b.file("t.csv", content)), "refused", what)


def reads(name: str, content: bytes | str, rows: list[dict[str, object]]) -> Case:
    return Case(f"csv {name}", lambda b: read_csv(b.file("t.csv", content)), "right", lambda _, found: found == rows)


def results(name: str, content: bytes | str, what: str) -> Case:
    return Case(f"json {name}", lambda b: read_json(b.file("r.json", content)), "refused", what)


def shown_table(name: str, content: dict, what: str) -> Case:
    def does(bench: Bench) -> None:
        code = main(["table", str(bench.file("r.json", json.dumps(content))), "--columns", "dice"])
        told = bench.capsys.readouterr().err
        assert code == 2 and told.startswith("error: ")
        raise ValueError(told.removeprefix("error: ").rstrip("\n"))

    return Case(f"table {name}", does, "refused", what)


def changed(file: str, name: str, content: bytes | str, what: str) -> Case:
    return Case(f"{file} {name}", lambda b: b.again(file, content), "refused", what)


def log(name: str, content: str | Callable[[str], str]) -> Case:
    return Case(f"log {name}", lambda b: b.log(content), "refused", "a.json is not a click log, or is damaged")


def said_of(name: str, pixels: np.ndarray, what: str, file: str = "a-mask.png", **how: object) -> Case:
    """Read a folder whose second image, a, has these pixels as its mask (or whatever `file` is), and hear a line."""

    def does(bench: Bench) -> None:
        bench.image("a.png")
        bench.image("good-mask.png")
        if file == "a-mask.gif":
            bench.image("a-mask.png")
        path = bench.scans / file
        Image.fromarray(pixels).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))
        read_folder(bench.scans, say=bench.said.append, **how)

    return Case(name, does, "said", what)


def saved(image: Image.Image, path: Path, **how: object) -> Path:
    image.save(path, **how)
    return path


def unreadable(bench: Bench) -> None:
    """Who runs tests as root may read everything, so the answer to the question is put into its place."""
    (bench.scans / "closed").mkdir()
    bench.patch.setattr(os, "access", lambda path, *_: Path(path).name != "closed")
    bench.segment()


def closed_model(bench: Bench) -> None:
    path = checkpoint(bench)
    bench.patch.setattr(os, "access", lambda path, *_: Path(path).suffix != ".safetensors")
    with pytest.raises(PermissionError, match="may not be read"):
        load_weights(build_sam("nano", None), path)
    load_predictor(path)


def closed_image(bench: Bench) -> Report:
    def closed(path: Path, mode: str) -> object:
        if Path(path).name == "bad.png":
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, mode)

    bench.image("bad.png")
    bench.patch.setattr("rootsam_lib.data.images.open", closed, raising=False)
    return bench.segment()


def closed_file(bench: Bench) -> Report:
    def closed(path: Path, _hash: Callable = segment.file_hash) -> str:
        if Path(path).name == "bad.png":
            raise PermissionError(13, "Permission denied", str(path))
        return _hash(path)

    bench.image("bad.png")
    bench.patch.setattr(segment, "file_hash", closed)
    return bench.segment()


def two_channels(path: Path) -> Path:
    how = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unspecified"]}
    tifffile.imwrite(path, np.dstack([BYTES, BYTES]), **how)
    return path


def one_of_another_coding(bench: Bench) -> object:
    """It would be read as empty: its values are too few to show among the others'."""
    edges = np.asarray(Image.fromarray(BYTES).resize((61, 61)).resize((64, 64)))
    for number in range(29):
        bench.image(f"b{number}.png")
        bench.image(f"b{number}-mask.png", edges)
    bench.image("a.png")
    bench.image("a-mask.png", BYTES // 255)
    bench.image("good-mask.png", edges)
    return read_folder(bench.scans, say=bench.said.append)


def linked(bench: Bench) -> object:
    (bench.place / "elsewhere").mkdir()
    (bench.scans / "there").symlink_to(bench.place / "elsewhere")
    return bench.segment()


def deep(path: Path, **how: object) -> Path:
    colours = np.moveaxis(IMAGE.astype(np.uint16) * 200, 2, 0) if how else IMAGE.astype(np.float32) / 254.9
    tifffile.imwrite(path, colours if how else colours[..., 0], **how)
    return path


def by_hand(bench: Bench) -> object:
    """A mask of a finished folder that a painting program saved as 0 and 1."""
    bench.segment()
    Image.fromarray(BYTES // 255).save(bench.out / "good-mask.png")
    return export_roots(bench.out, say=bench.said.append)


def two_resolutions(bench: Bench) -> object:
    for name in ("T001_L001_2017-04-11_300dpi.png", "T001_L002_2017-04-11.png"):
        bench.image(name)
    bench.segment(dpi=None)
    return follow_folder(bench.scans, bench.out, say=bench.said.append)


def dated(bench: Bench, *names: str) -> object:
    """A time series of images with these names."""
    for name in names:
        bench.image(f"{name}.png")
    bench.segment()
    return follow_folder(bench.scans, bench.out, say=bench.said.append)


def scan_of(name: str) -> Scan:
    return Scan(IMAGE, MASK, name, name)


def replaced_image(bench: Bench) -> object:
    """Two dates of a window, of which the second image is saved anew after `segment`, and another window."""
    for name in ("T001_L001_2017-04-11", "T001_L001_2017-05-11", "T002_L001_2017-04-11"):
        bench.image(f"{name}.png")
    bench.segment()
    bench.image("T001_L001_2017-05-11.png", IMAGE // 2)
    return follow_folder(bench.scans, bench.out, say=bench.said.append)


def two_plots(bench: Bench) -> object:
    """Plots in folders of their own whose tubes have the same numbers."""
    for name in ("plotA/images/T001_L001_2017-04-11", "plotB/images/T001_L001_2017-04-12"):
        bench.image(f"{name}.png")
    bench.segment()
    return follow_folder(bench.scans, bench.out, say=bench.said.append)


def dated_folders(bench: Bench, *lost: str, inside: str = "") -> object:
    """Two dates of a window in folders that are called by their dates; lost: columns that a program dropped."""
    for date in ("2017-04-11", "2017-05-11"):
        bench.image(f"{date}{inside}/T001_L001.png")
    bench.segment()
    table = bench.out / "traits.csv"
    write_csv(table, [{k: v for k, v in row.items() if k not in lost} for row in read_csv(table)])
    return follow_folder(bench.scans, bench.out, say=bench.said.append)


def one_faulty_window(bench: Bench) -> object:
    """Two windows, of which one has a mask that somebody saved in another size."""
    for name in ("T001_L001_2017-04-11", "T002_L001_2017-04-11"):
        bench.image(f"{name}.png")
    bench.segment()
    Image.fromarray(BYTES[::2, ::2]).save(bench.out / "T001_L001_2017-04-11-mask.png")
    rows, _, faulty = follow_folder(bench.scans, bench.out, say=bench.said.append)
    assert [row["tube"] for row in rows] == ["T002"] and faulty == ["T001 L001"]


def renamed_for_resolution(bench: Bench) -> Report:
    """Segment without a resolution, put it into the folder's name, and go on."""
    bench.segment(dpi=None)
    bench.scans = bench.scans.rename(bench.place / "scans_300dpi")
    return bench.segment(dpi=None)


def painted_where_excluded(bench: Bench, **how: object) -> float:
    """The length in RhizoVision's table of a mask with a root painted by hand into what was excluded."""
    bench.segment(exclude="0,0,64,15")
    painted = BYTES.copy()
    painted[5:8, 4:60] = 255
    Image.fromarray(painted).save(bench.out / "good-mask.png")
    export_roots(bench.out, say=bench.said.append, **how)
    return read_csv(bench.out / "rhizovision.csv")[0]["Total.Root.Length.mm"]


def hot(bench: Bench) -> np.ndarray:
    """A 12-bit picture in 16 bits with one dead pixel."""
    pixels = RNG.integers(200, 4000, (64, 64)).astype(np.uint16)
    pixels[3, 3] = 65535
    tifffile.imwrite(bench.place / "hot.tif", pixels)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        read_image(bench.place / "hot.tif")
    bench.said += [str(warning.message) for warning in found]


def changed_in_place(bench: Bench) -> bool:
    predictor, image = nano(), IMAGE.copy()
    predictor(image)
    image[:] = RNG.integers(0, 256, image.shape)
    predictor.set_image(image)
    found = predictor.predict()[2]
    predictor.set_image(IMAGE)
    predictor.set_image(image.copy())
    return bool(np.array_equal(found, predictor.predict()[2]))


def full_disk(bench: Bench) -> None:
    """torch and safetensors have errors of their own for it."""
    bench.patch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 0}))
    bench.patch.setattr("rootsam_lib.checkpoints.save_file", lambda *_, **__: 1 / 0)
    save_checkpoint(build_sam("nano"), bench.place / "m.safetensors", {"input_scale": 1.0, "patch_size": 64})


def of_patch(bench: Bench, size: object) -> object:
    path = bench.place / "m.safetensors"
    save_checkpoint(build_sam("nano"), path, {"input_scale": 1.0, "patch_size": size})
    return load_predictor(path)


def simulated(bench: Bench, way: str) -> object:
    """One scan, corrected in some way."""
    return annotate_scan(MASK, IMAGE, np.zeros(MASK.shape, np.float32), way, RNG)


def numpy_label(bench: Bench) -> object:
    """A click whose label comes from an array, in a session and in the same one opened again."""
    bench.session("a").add(np.float32(3), np.int64(4), np.int64(1))
    first, again = bench.session("a").clicks[0][:3], bench.session("a")
    again.undo()
    again.redo()
    return first, again.clicks[0][:3]


def padded_answer() -> object:
    """The score of a mask that is larger than its image."""
    patch = tile(replace(scan_of("a"), mask=np.zeros(IMAGE.shape[:2], bool)), 64)[0]
    return score_answer(lambda image, prompts=None: np.pad(patch.mask, 1), patch)


LABELS, POINT_2 = MASK.astype(int), Prompts(np.array([[5.0, 22]], np.float32), np.array([2]))
LOGITS = torch.zeros(1, 1, 4, 4)


def answers_with_nan() -> object:
    predictor = Predictor(build_sam("nano"), tile_size=64)
    torch.nn.init.constant_(predictor.model.sam.sam_mask_decoder.mask_tokens.weight, float("nan"))
    return predictor(IMAGE)


def launched_by(bench: Bench) -> object:
    bench.patch.setenv("WORLD_SIZE", "two")
    return build_accelerator("no")


def lost_note(bench: Bench) -> Session:
    """A session whose note is gone goes on with its clicks."""
    bench.session("a").add(9, 8, 1)
    (bench.place / "session" / "session.json").write_text('{"torn')
    session = bench.session("a")
    assert [click[:3] for click in session.clicks] == [(9, 8, 1)]
    return session


def clicked_twice(bench: Bench) -> list[tuple]:
    """A click that could not be kept does not count; the next one does."""
    session = bench.session("a")
    session.add(3, 3, 1)
    with bench.patch.context() as patch:
        patch.setattr(correct, "write_json", lambda *_: no_room(bench))
        with pytest.raises(OSError, match="No space"):
            session.add(9, 9, 1)
    session.add(9, 9, 1)
    return [click[:3] for click in session.clicks]


def no_room(bench: Bench) -> None:
    raise OSError(28, "No space left on device", str(bench.place))


def full_for_safetensors(bench: Bench) -> None:
    """What safetensors says of a full disk, of which a little is free again once its file is gone."""

    def fails(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    bench.patch.setattr("rootsam_lib.checkpoints.save_file", fails)
    save_checkpoint(build_sam("nano"), bench.place / "a.safetensors")


def with_code(bench: Bench) -> None:
    torch.save({"model": Bench}, bench.place / "a.pt")
    load_weights(build_sam("nano"), bench.place / "a.pt")


def asked_shares() -> object:
    """A click as shares of the image's sides."""
    nano().set_image(IMAGE.copy())
    return nano().predict(np.array([[0.5, 0.25]]), np.array([1]))


def asked_early() -> float:
    """The estimate of a corrected mask that nobody asked for."""
    predictor = nano()
    predictor.set_image(IMAGE.copy())
    predictor.predict()
    return predictor.predicted_iou


def drawn_mask(bench: Bench) -> object:
    """A session whose mask was drawn anew by hand, and one more click."""
    session = bench.session("a")
    session.add(3, 4, 1)
    Image.fromarray(np.full(IMAGE.shape[:2], 255, np.uint8)).save(session.mask_path("a"))
    session.add(30, 20, 1)
    assert len(list(session.mask_path("a").parent.glob("a-changed-*.png"))) == 1
    return session


def fewer_scans(bench: Bench) -> object:
    """A session in which one of two images is called otherwise now."""
    session = bench.session("a", "b")
    session.add(3, 4, 1)
    return bench.session("other", "b")


def checkpoint(bench: Bench, nan: bool = False, about: bool = True) -> Path:
    model, path = build_sam("nano"), bench.place / "model.safetensors"
    if nan:
        with torch.no_grad():
            model.sam.no_mem_embed.fill_(float("nan"))
    if about:
        save_checkpoint(model, path, {"input_scale": 1.0, "patch_size": 64})
    else:
        save_file({"a": torch.zeros(2)}, path)
    return path


CASES = [
    # --- Settings of the command line: nothing is written
    option("--dpi", "nan", what="dpi is nan: give a number, 50 or more"),
    option("--dpi", "inf", what="dpi is inf"),
    option("--dpi", "0.0847", what="dpi is 0.0847"),
    option("--dpi=-300", what="dpi is -300"),
    option("--dpi", "0", what="dpi is 0"),
    option("--dpi", "1e9", what="at most 10000"),
    option("--mask-coding", "0-1", what="mask_coding is '0-1': give soil/root"),
    option("--max-megapixels", "nan", what="max_megapixels is nan"),
    option("--max-megapixels", "0", what="max_megapixels is 0"),
    option("--window-mm", "nan", what="window_mm is nan"),
    option("--window-mm", "inf", what="window_mm is inf"),
    option("--window-mm=-5", what="window_mm is -5"),
    option("--tube-angle", "nan", what="tube_angle is nan"),
    option("--tube-angle", "0", what="tube_angle is 0"),
    option("--tube-angle", "180", what="tube_angle is 180"),
    option("--tile", "65", what="tile_size is 65: give a multiple of 32", model="nano"),
    option("--tile", "0", what="tile_size is 0", model="nano"),
    option("--input-scale", "nan", what="input_scale is nan", model="nano"),
    option("--input-scale=-1", what="input_scale is -1", model="nano"),
    option("--prompts", "nowhere.csv", what="nowhere.csv does not exist: check its name"),
    option("--shard", "", what="shard is '': give its number"),
    option("--shard", "3/2", what="shard is '3/2': give its number"),
    option("--exclude", "", what="exclude is '': give rectangles"),
    # --- Models
    Case("a model that may not be read", closed_model, "refused", "model.safetensors may not be read"),
    Case("a patch size of None", lambda b: of_patch(b, None), "refused", "patch_size of m.safetensors is None"),
    Case(
        "a tensor as Meta's checkpoint",
        lambda b: (torch.save(torch.zeros(3), b.place / "m.pt"), load_weights(build_sam("nano"), b.place / "m.pt")),
        "refused",
        "m.pt does not hold weights of model 'nano'",
    ),
    Case("a full disk", full_disk, "refused", "no space left on device: make room and run it again"),
    Case("no such model", lambda b: b.cli(model="nanno"), "refused", "nanno is no trained stage"),
    Case(
        "a model that is text", lambda b: b.cli(model=str(b.file("m.safetensors", "text"))), "refused", "m.safetensors"
    ),
    Case("an empty model", lambda b: b.cli(model=str(b.file("m.safetensors", ""))), "refused", "m.safetensors"),
    Case(
        "a model of NaN",
        lambda b: b.cli(model=str(checkpoint(b, nan=True))),
        "refused",
        "model.safetensors holds numbers",
    ),
    Case(
        "a model that says nothing",
        lambda b: b.cli(model=str(checkpoint(b, about=False))),
        "refused",
        "model.safetensors does not say which model it is",
    ),
    # --- Folders
    Case("a folder that may not be read", unreadable, "refused", "closed may not be read"),
    said_of(
        "a mask kind that is not read", BYTES, "files of a kind that is not read: 1 (first: a-mask.gif)", "a-mask.gif"
    ),
    said_of("a JPEG mask of 0 and 1", BYTES // 255, "a-mask.jpg holds nothing above 1", "a-mask.jpg")._replace(
        becomes="refused"
    ),
    Case("one mask of 0 and 1 among grey edges", one_of_another_coding, "refused", "a-mask.png holds nothing above 1"),
    said_of("masks of -1 and 0", BYTES.astype(np.int32) // 255 - 1, "the values -1, 0", "a-mask.tif")._replace(
        becomes="refused"
    ),
    Case("a linked folder", linked, "said", "1 linked folders are not looked into (first: there)"),
    Case(
        "a folder for drawn scans",
        lambda b: load_scans("synthetic", "test", b.scans),
        "refused",
        "but source is synthetic: give source 'folder'",
    ),
    said_of("a coding that a mask has not", BYTES, "only 0.00% of the pixels are root", mask_coding="red"),
    said_of("a coding turned round", BYTES, "if the mask is inverted, give mask_coding 0/255", mask_coding="255/0"),
    Case("no such folder", lambda b: segment_folder(b.place / "x", StubPredictor()), "refused", "x is not a folder"),
    Case(
        "a file as folder", lambda b: segment_folder(b.file("f", ""), StubPredictor()), "refused", "f is not a folder"
    ),
    Case(
        "a folder of masks",
        lambda b: (os.rename(b.scans / "good.png", b.scans / "good-mask.png"), b.segment()),
        "refused",
        ", but 1 masks (names such as GT_X, X-mask, X_seg are taken for masks of an image X",
    ),
    Case(
        "an option of folders for drawn scans",
        lambda b: load_scans("synthetic", "train", limit=1, size=(64, 64), dpi=300),
        "refused",
        "dpi is for source 'folder' only",
    ),
    Case("a shard that is none", lambda b: b.segment(shard=(3, 2)), "refused", "shard is '3/2': give its number"),
    Case("a shard as text", lambda b: b.segment(shard="2/1"), "refused", "shard is '2/1': give its number"),
    Case("a model's name", lambda b: b.segment("nano"), "refused", "predictor is 'nano': give what load_predictor"),
    Case("a predictor of a name", lambda b: Predictor("nano"), "refused", "model is 'nano': give a RootSAM"),
    Case("no cleaning", lambda b: b.segment(cleaning=None), "refused", "cleaning is None: give traits.Cleaning"),
    Case(
        "an angle in radians", lambda b: b.segment(tube_angle=0.785), "refused", "tube_angle is 0.785: give a number, 2"
    ),
    Case("dpi for an edge", lambda b: measure(MASK, 300), "refused", "(25.4 / dpi), is 300: give a number"),
    Case("pixels per mm", lambda b: b.segment(dpi=11.811), "refused", "If it is pixels per mm, that is 300 dpi"),
    Case(
        "the results for the scans",
        lambda b: (b.segment(), segment_folder(b.out, StubPredictor(), b.place / "more")),
        "refused",
        "out is what segment wrote: give the folder of the scans",
    ),
    Case(
        "months first",
        lambda b: dated(b, "T001_L001_05.01.17", "T001_L001_07.25.17"),
        "refused",
        "T001_L001_07.25.17 holds a date that is not day.month.year",
    ),
    Case("years first", lambda b: dated(b, "T001_L001_29.05.68"), "refused", "a date that is not day.month.year"),
    Case("days first", lambda b: dated(b, "T001_L001_05.01.17"), "said", "T001_L001_05.01.17 is of 2017-01-05"),
    Case(
        "two scans of a window and day",
        lambda b: dated(b, "T001_L001_05.01.17_08", "T001_L001_05.01.17_15"),
        "refused",
        "are one window at one date: take one out, or segment each plot by itself",
    ),
    Case("an image saved anew", replaced_image, "said", "2017-05-11.png was changed since: segment the folder again"),
    Case(
        "dates of folders", dated_folders, "right", lambda _, found: [r["date"][5:7] for r in found[0]] == ["04", "05"]
    ),
    Case(
        "two plots of one tube",
        two_plots,
        "said",
        "1 windows lie in several folders (T001 L001 in plotA and plotB): followed as",
    ),
    Case(
        "dates of folders of images", lambda b: dated_folders(b, inside="/images"), "right", lambda _, f: len(f[0]) == 2
    ),
    Case(
        "months first in folders",
        lambda b: (b.image("07.25.17/T001_L001.png"), b.segment()),
        "said",
        "07.25.17 holds a date that is not day.month.year",
    ),
    Case("a lost column", lambda b: dated_folders(b, "location"), "right", lambda _, found: len(found[0]) == 2),
    Case(
        "months first, only masks wanted",
        lambda b: (b.image("T001_L001_07.25.17.png"), b.segment()),
        "said",
        "T001_L001_07.25.17 holds a date that is not day.month.year: rename all, as 2017-04-11. Until then",
    ),
    Case("a year to come", lambda b: dated(b, "T001_L001_2107-05-04"), "refused", "a date that is not year-month-day"),
    Case("days for months", lambda b: dated(b, "T001_L001_2017-13-04"), "refused", "a date that is not year-month-day"),
    Case("no location", lambda b: dated(b, "T001_2017-05-04"), "refused", "holds no scan with tube, location and date"),
    Case("a faulty window", one_faulty_window, "said", "T001 L001 is left out: T001_L001_2017-04-11: the mask must be"),
    Case(
        "a resolution that came later",
        renamed_for_resolution,
        "right",
        lambda _, report: report.skipped == 0 and "root_length_mm" in report.rows[0],
    ),
    Case("rsml without exclude", painted_where_excluded, "refused", "was made with another exclude"),
    Case(
        "rsml with exclude",
        lambda b: painted_where_excluded(b, exclude="0,0,64,15"),
        "right",
        lambda _, length: length < 6,
    ),
    Case("a hot pixel", hot, "said", "hardly a pixel is above 3"),
    Case("a location 0", lambda b: (b.image("T001_L000_a.png"), b.segment()), "said", "so T001_L000_a has no depth"),
    Case(
        "points of some scans",
        lambda b: (b.image("b.png"), b.prompts("scan,x,y,label\ngood,9,22,1\n")),
        "said",
        "points for 1 of 2 scans: of the others all roots are sought",
    ),
    Case("a mask of numbers, overlaid", lambda b: overlay(IMAGE, BYTES), "refused", "the mask is uint8"),
    Case("a mask of numbers, in run lengths", lambda b: to_rle(BYTES), "refused", "the mask is uint8"),
    Case("a mask of numbers, painted", lambda b: to_rootpainter(BYTES, ~BYTES), "refused", "the root is uint8"),
    Case(
        "a folder's name to train on",
        lambda b: check_masks("scans"),
        "refused",
        "scans is no list of scans: give what read_folder",
    ),
    Case(
        "labels with a rim of 255",
        lambda b: read_mask(b.image("rim.png", np.uint8(MASK) + np.uint8(254) * (dilate(MASK) & ~MASK))),
        "refused",
        "holds the values 0, 1, 254",
    ),
    Case("a warning of a command", lambda b: b.warned(), "said", "warning: "),
    Case("an empty folder", lambda b: ((b.scans / "good.png").unlink(), b.segment()), "refused", "holds no images"),
    Case("out is a file", lambda b: (b.file("out", ""), b.segment()), "refused", "out is a file: give a folder"),
    Case(
        "out below a file",
        lambda b: (b.file("f", ""), segment_folder(b.scans, StubPredictor(), b.place / "f/out", dpi=300)),
        "refused",
        "f/out",
    ),
    Case(
        "out in the folder", lambda b: segment_folder(b.scans, StubPredictor(), b.scans / "o"), "refused", "lies inside"
    ),
    Case(
        "out with a mask by hand",
        lambda b: (b.file("out/good-mask.png", "mine"), b.segment()),
        "refused",
        "out holds files that were not written here (first: good-mask.png)",
    ),
    Case(
        "out of other settings under which all failed",
        lambda b: (b.segment(exclude="0,0,64,64"), b.segment(exclude="0,0,9,9"))[1],
        "right",
        lambda b, report: len(report.rows) == 1 and not report.failed,
    ),
    Case("out of other settings", lambda b: (b.segment(), b.segment(dpi=600)), "refused", "other settings (dpi)"),
    Case(
        "two images, one name",
        lambda b: ([b.image(n) for n in ("a/b.png", "c/b.png", "a-b.png")], b.segment()),
        "refused",
        "would both be called a-b: rename one",
    ),
    # --- Scans: one fault, one scan
    Case(
        "a program for a printer",
        lambda b: (
            b.image("bad.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"),
            b.segment(),
        )[1],
        "failed",
        "bad.png cannot be read",
    ),
    Case(
        "colours of 16 bits, one after the other",
        lambda b: read_image(deep(b.place / "a.tif", photometric="rgb", planarconfig="separate")),
        "refused",
        "a.tif cannot be read as an image (colours of 16 bits, each stored by itself)",
    ),
    Case(
        "values a little above 1",
        lambda b: read_image(deep(b.place / "a.tif")),
        "right",
        lambda _, image: (image == BYTES[..., None]).all(),
    ),
    Case("an image without its file", lambda b: read_image(Image.fromarray(IMAGE)), "refused", "give the file's path"),
    Case("another image in the same array", changed_in_place, "right", lambda _, same: same),
    Case(
        "16 bits in which 0 is white",
        lambda b: read_image(saved(Image.fromarray(BYTES.astype(np.uint16)), b.place / "a.tif", tiffinfo={262: 0})),
        "refused",
        "a.tif cannot be read as an image (more than 8 bits, and 0 is white)",
    ),
    Case(
        "an image that is transparent",
        lambda b: read_image(b.image("a.png", np.dstack([IMAGE, BYTES]))),
        "said",
        "a.png is transparent in parts",
    ),
    Case(
        "signed bytes",
        lambda b: read_image(saved(Image.fromarray(BYTES), b.place / "a.tif", tiffinfo={339: 2})),
        "refused",
        "a.tif cannot be read as an image (signed values of 8 bits",
    ),
    Case(
        "a channel that is not named",
        lambda b: read_image(two_channels(b.place / "a.tif")),
        "said",
        "a.tif holds 2 channels, of which only the first is read",
    ),
    Case("an image that may not be opened", closed_image, "failed", "bad.png may not be read"),
    Case("an image that may not be read", closed_file, "failed", "bad.png: Permission denied: check the path, and"),
    Case(
        "an exclusion of all",
        lambda b: (b.image("bad.png", IMAGE[:9, :9]), b.segment(exclude="0,0,9,9"))[1],
        "failed",
        "exclude leaves nothing of bad",
    ),
    Case(
        "an exclusion of JPEG",
        lambda b: (
            b.image("bad.png"),
            (b.place / "x").mkdir(),
            saved(Image.fromarray(BYTES), b.place / "x/bad.jpg"),
            b.segment(exclude=str(b.place / "x")),
        )[3],
        "failed",
        "bad.jpg is a JPEG, whose noise",
    ),
    Case("an empty image", lambda b: (b.image("bad.png", b""), b.segment())[1], "failed", "bad.png is empty (0 bytes)"),
    Case("text as image", lambda b: (b.image("bad.png", b"text"), b.segment())[1], "failed", "bad.png cannot be read"),
    Case(
        "half an image",
        lambda b: (b.image("bad.png", (b.scans / "good.png").read_bytes()[:60]), b.segment())[1],
        "failed",
        "bad.png cannot be read",
    ),
    Case("a pipe", lambda b: (os.mkfifo(b.scans / "bad.png"), b.segment())[1], "failed", "bad.png is no regular file"),
    Case(
        "a folder called x.png",
        lambda b: ((b.scans / "bad.png").mkdir(), b.segment())[1],
        "right",
        lambda b, report: [row["scan"] for row in report.rows] == ["good"],
    ),
    Case("a dead link", lambda b: ((b.scans / "bad.png").symlink_to("gone"), b.segment())[1], "failed", "bad.png"),
    Case(
        "a mask of another size",
        lambda b: (b.image("bad.png"), b.image("bad-mask.png", BYTES[:9, :9]), b.segment())[2],
        "failed",
        "bad-mask.png is 9 × 9 pixels",
    ),
    Case(
        "a damaged mask",
        lambda b: (b.image("bad.png"), b.image("bad-mask.png", b"text"), b.segment())[2],
        "failed",
        "bad-mask.png cannot be read",
    ),
    Case(
        "a point outside the image",
        lambda b: (
            b.image("bad.png"),
            b.segment(nano(), prompts={"bad": Prompts(np.array([[64.0, 3]]), np.array([1]))}),
        )[1],
        "refused",
        "prompts of bad: point (64, 3) lies outside of the image",
    ),
    Case(
        "too little memory",
        lambda b: (b.image("bad.png"), b.segment(StubPredictor(_0=MemoryError())))[1],
        "failed",
        "bad.png does not fit into memory",
    ),
    Case(
        "an overflow",
        lambda b: (b.image("bad.png"), b.segment(StubPredictor(_0=OverflowError("too big"))))[1],
        "failed",
        "bad.png: OverflowError: too big",
    ),
    Case(
        "a long name",
        lambda b: (b.image("x" * 250 + ".png"), b.segment())[1],
        "right",
        lambda b, report: len(report.rows) == 2 and not report.failed and b.segment().skipped == 2,
    ),
    Case(
        "a name that is no UTF-8",
        lambda b: (b.image(b"caf\xe9.png"), b.segment())[1],
        "right",
        lambda b, report: [row["scan"] for row in report.rows] == ["caf%e9", "good"] and b.segment().skipped == 2,
    ),
    odd_name("two\nlines.png"),
    odd_name("bell\a.png"),
    odd_name("back\\slash.png"),
    kept_name("=1+1"),
    kept_name("=cmd|' calc'!A0"),
    kept_name("+a"),
    kept_name("-2+3"),
    kept_name("@sum"),
    kept_name("'=x"),
    kept_name("NA"),
    kept_name("nan"),
    kept_name("None"),
    kept_name("1e5"),
    kept_name("007"),
    kept_name("a,b;c"),
    kept_name('say "a"'),
    kept_name("wurzel ü ñ 根"),
    kept_name("<b>bold</b>".replace("/", "-")),
    Case("no root at all", lambda b: (b.image("b.png", IMAGE * 0), b.segment()), "said", "b: no root was found"),
    Case("the same image twice", lambda b: (b.image("twin.png"), b.segment()), "said", "exactly that of good"),
    # --- What earlier runs left
    changed("traits.csv", "from Excel", b"\xef\xbb\xbfscan;tube\r\ngood;x\r\n", "traits.csv was changed since"),
    changed("traits.csv", "without columns", "a,b\n1,2\n", "traits.csv was changed since"),
    changed("traits.csv", "of bytes", bytes(range(256)) + b"\n", "traits.csv"),
    changed("traits.csv", "with longer rows", "scan,a\ngood,1,2,3\n", "traits.csv"),
    changed("segment.json", "cut", '{"weights": ', "segment.json is damaged"),
    changed("segment.json", "empty", "", "segment.json is damaged"),
    changed("segment.json", "of bytes", b"\xff\xfe\x00", "segment.json is damaged"),
    changed("segment.json", "a list", "[1]", "segment.json is no results file"),
    changed("segment.json", "of others", '{"name": "x"}', "holds results of other settings"),
    Case(
        "traits.csv torn",
        lambda b: b.again("traits.csv", "scan,tu"),
        "right",
        lambda b, report: report.skipped == 0 and len(report.rows) == 1,
    ),
    Case(
        "a mask changed by hand",
        lambda b: (b.segment(), Image.fromarray(IMAGE).save(b.out / "good-mask.png"), b.segment()),
        "said",
        "good: its mask was not as it was written (changed or damaged): kept as good-mask-changed-",
    ),
    *(
        Case(
            f"{command} after {file} without {what}",
            lambda b, c=command, f=file, w=what: b.followed(c, f, w),
            "refused",
            f"{file} lacks {what}",
        )
        for command in ("rsml", "calibrate")
        for file, what in (("traits.csv", "mm_per_px"), ("segment.json", "cleaning"))
    ),
    Case("rsml of a mask of 0 and 1", by_hand, "said", "changed by hand and counts as it is now: masks coded 0/1"),
    Case(
        "timeseries of two resolutions", two_resolutions, "refused", "L002_2017-04-11 has no resolution (1 of 2 scans)"
    ),
    Case(
        "rsml of a mask of half the size",
        Bench.resized,
        "refused",
        "good-mask.png is of 32 x 32 px, its scan of 64 x 64",
    ),
    # --- Points
    points("empty", "", "points.csv is no table"),
    points("of soil only", "scan,x,y,label\ngood,5,5,0\n", "good has soil points only, which ask for no root"),
    points("of the first line only", "scan,x,y,label\n", "points.csv lacks points or columns"),
    points("with a column twice", "scan,x,y,label,x\ngood,1,2,1,9\n", "points.csv has two columns 'x': rename one"),
    points("without a column", "scan,x,y\ngood,1,2\n", "points.csv lacks points or columns"),
    points("of no scan", "scan,x,y,label\n,5,5,1\ngood,5,5,1\n", "row 1 below the first line: scan is empty"),
    points("in UTF-16", "scan,x,y,label\ngood,1,2,1\n".encode("utf-16"), "points.csv is no table"),
    points("of bytes", bytes(range(256)), "points.csv"),
    points("with thousands", 'scan,x,y,label\ngood,"1,020",2,1\n', "x is '1,020'"),
    points("of shares", "scan,x,y,label\ngood,0.5,0.25,1\n", "give pixels of the image, not shares"),
    points("with a third label", "scan,x,y,label\ngood,1,2,2\n", "row 1 below the first line: label is 2"),
    points("with NaN", "scan,x,y,label\ngood,nan,2,1\n", "x is nan"),
    points("below 0", "scan,x,y,label\ngood,1,-2,1\n", "y is -2"),
    points("of nowhere", "scan,x,y,label\nother,1,2,1\n", "'other', but no scan is called so"),
    points("that are words", "scan,x,y,label\ngood,left,2,1\n", "x is 'left'"),
    Case(
        "prompts from Excel",
        lambda b: b.prompts(b"\xef\xbb\xbfscan;x;y;label\r\ngood;1,5;2;1\r\n"),
        "right",
        lambda b, report: len(report.rows) == 1,
    ),
    # --- Tables and results files
    Case("csv missing", lambda b: read_csv(b.place / "none.csv"), "refused", "none.csv does not exist"),
    table("empty", "", "t.csv is no table"),
    table("in UTF-16", "a,b\n1,2\n".encode("utf-16"), "t.csv is no table"),
    table("in Latin-1", "a,b\né,2\n".encode("latin-1"), "t.csv is no table"),
    table("with longer rows", "a,b\n1,2\n1,2,3\n", "t.csv is no table"),
    table("with longer rows throughout", "a,b\n1,2,3\n1,2,3\n", "t.csv is no table"),
    reads("from Excel", b"\xef\xbb\xbfa;b\r\n1,5;x\r\n", [{"a": 1.5, "b": "x"}]),
    reads("of tabs", "a\tb\n1.5\tx\n", [{"a": 1.5, "b": "x"}]),
    reads("with missing cells", "a,b\n1,\n,NA\n", [{"a": 1, "b": None}, {"a": None, "b": "NA"}]),
    Case(
        "formulas in a csv",
        lambda b: (write_csv(b.place / "t.csv", [{"a": "=1+1", "b": -1.5}]), read_csv(b.place / "t.csv")),
        "right",
        lambda b, found: found[1] == [{"a": "=1+1", "b": -1.5}] and "'=1+1,-1.5" in (b.place / "t.csv").read_text(),
    ),
    Case("json missing", lambda b: read_json(b.place / "none.json"), "refused", "none.json"),
    results("empty", "", "r.json is damaged"),
    results("cut", '{"a": [1', "r.json is damaged"),
    results("of bytes", bytes(range(128, 256)), "r.json is damaged"),
    results("a list", "[]", "r.json is no results file"),
    results("a number", "3", "r.json is no results file"),
    results("too deep", "[" * 100_000, "r.json is damaged"),
    shown_table("without tables", {}, "holds no table 'fixed prompts'"),
    shown_table("of a list", {"tables": []}, "holds no table 'fixed prompts'"),
    shown_table(
        "of a number", {"tables": {"fixed prompts": 3}}, "table 'fixed prompts' of this results file is damaged"
    ),
    shown_table("of rows that are numbers", {"tables": {"fixed prompts": {"base": 3}}}, "is damaged"),
    shown_table("of scores alone", {"tables": {"fixed prompts": {"base": {"dice": 0.5}}}}, "is damaged"),
    shown_table("without the column", {"tables": {"fixed prompts": {"base": {"iou": [1, 1, 1]}}}}, "no column 'dice'"),
    # --- Sessions
    log("empty", ""),
    log("cut", lambda text: text[:50]),
    log("a list", "[]"),
    log("without clicks", lambda text: text.replace('"clicks"', '"taps"')),
    log("with a click outside", lambda text: text.replace('"x": 9', '"x": 900')),
    log("with a click that is text", lambda text: text.replace('"x": 9', '"x": "9"')),
    log("with NaN", lambda text: text.replace('"x": 9', '"x": NaN')),
    log("with time that is none", lambda text: text.replace('"seconds": ', '"seconds": -9')),
    log("without its setting", lambda text: text.replace('"overlap"', '"lap"')),
    log("without its image", lambda text: text.replace('"sha256"', '"sha"')),
    Case(
        "a session of another start",
        lambda b: Session(b.place / "s", [Scan(IMAGE, None, "a", "T1")], nano(), start="full"),
        "refused",
        "start is 'full': choose one of automatic, empty",
    ),
    log("of another form", json.dumps({"clicks": {}, "image": 3})),
    Case("no such log", lambda b: read_log(b.place / "none.json"), "refused", "none.json"),
    Case("one place", lambda b: asked([31, 20], [1, 1]), "refused", "point_coords and point_labels are"),
    Case("uneven places", lambda b: asked([[31, 20], [3]], [1, 1]), "refused", "point_coords and point_labels are"),
    Case("clicks for prompts", lambda b: nano()(IMAGE, [(31, 20, 1)]), "refused", "prompts are a list: give Prompts"),
    Case("places without labels", lambda b: asked([[3, 3]], None), "refused", "point_coords and point_labels are"),
    Case("labels without places", lambda b: asked(None, [1]), "refused", "point_coords and point_labels are"),
    Case("more places than labels", lambda b: asked([[3, 3], [4, 4]], [1]), "refused", "point_coords and point_labels"),
    Case("a list for an image", lambda b: nano().set_image([[0]]), "refused", "the image is a list"),
    Case(
        "a click of two values",
        lambda b: nano().checked_click((3, 4)),
        "refused",
        "click (3, 4) is no click: give x, y and label",
    ),
    Case("a mask of 0 and 255 for points", lambda b: sample_points(BYTES, 1, 1, RNG), "refused", "the mask is uint8"),
    Case(
        "a mask of 0 and 255 for EDT",
        lambda b: edt_map(BYTES),
        "refused",
        "the mask is uint8, but must be a bool array",
    ),
    Case("a mask of 0 and 255 for clDice", lambda b: cl_dice(BYTES > 0, BYTES), "refused", "the truth is uint8"),
    Case("a mask of 0 and 255 for roots", lambda b: label_roots(BYTES), "refused", "the mask is uint8"),
    Case(
        "a truth of another shape",
        lambda b: focal_tversky_loss(torch.zeros(2, 1, 8, 8), torch.zeros(1, 1, 8, 8)),
        "refused",
        "the answer is (2, 1, 8, 8) and the truth (1, 1, 8, 8)",
    ),
    Case(
        "distances of another shape",
        lambda b: boundary_loss(torch.zeros(2, 1, 8, 8), torch.zeros(1, 1, 8, 8)),
        "refused",
        "the answer is (2, 1, 8, 8) and the truth (1, 1, 8, 8)",
    ),
    *(
        Case(
            f"{score.__name__} of two shapes",
            lambda b, s=score: s(MASK, MASK[:9]),
            "refused",
            "compare masks of one image",
        )
        for score in (cl_dice, betti0_error)
    ),
    Case("masks at once for EDT", lambda b: edt_map(np.stack([MASK, MASK])), "refused", "must be an array (H, W)"),
    Case("masks at once for clDice", lambda b: cl_dice(MASK[None], MASK[None]), "refused", "give one mask at a time"),
    Case("masks at once to grow", lambda b: dilate(np.stack([MASK, MASK])), "refused", "give one mask at a time"),
    Case(
        "a mask in place of numbered roots",
        lambda b: meant_roots(MASK, sample_points(MASK, 1, 0, RNG)),
        "refused",
        "give metrics.label_roots(mask)[0]",
    ),
    Case(
        "a point outside of the roots",
        lambda b: meant_roots(MASK.astype(int), Prompts(np.array([[-3, 2]], np.float32), np.ones(1, int))),
        "refused",
        "a point lies outside of the image",
    ),
    Case("an exponent without end", lambda b: sample_points(MASK, 1, 0, RNG, 300), "refused", "exponent is 300: give"),
    Case("no root point of a protocol", lambda b: FixedPrompts(0, 5), "refused", "n_root is 0: give a whole number"),
    Case("a window above the first", lambda b: depth_mm(0, 25), "refused", "location is 0: give a whole number, 1 or"),
    Case("a picture without a kind", lambda b: write_image(b.place / "x.foo", BYTES), "refused", "call it .png, .jpg"),
    Case("a way that there is not", lambda b: simulated(b, "bogus"), "refused", "way 'bogus' is unknown: choose one"),
    Case("a label of NumPy", numpy_label, "right", lambda b, found: found == ((3, 4, 1), (3, 4, 1))),
    Case("an answer with padding", lambda b: padded_answer(), "refused", "cut its padding off"),
    Case("an estimate before the answer", lambda b: asked_early(), "refused", "call set_image(image) and correct()"),
    Case("a folder without a name", lambda b: ImageFiles(""), "refused", "the folder's name is empty"),
    Case(
        "soil points alone",
        lambda b: b.segment(prompts={"good": ([[3, 3]], [0])}),
        "refused",
        "prompts of good are soil points only",
    ),
    Case(
        "points as shares",
        lambda b: b.segment(prompts={"good": ([[0.3, 0.6]], [1])}),
        "refused",
        "prompts of good are shares of the image's sides",
    ),
    Case(
        "weights that answer with NaN", lambda b: answers_with_nan(), "refused", "answers with NaN: its weights are dam"
    ),
    Case(
        "a truth of a file",
        lambda b: focal_tversky_loss(LOGITS, LOGITS.byte()),
        "refused",
        "the truth is of 8 bits, in",
    ),
    Case(
        "a loss of arrays",
        lambda b: boundary_loss(MASK, MASK),
        "refused",
        "the answer is a ndarray, the truth a ndarra",
    ),
    Case(
        "a label that is none",
        lambda b: meant_roots(LABELS, POINT_2),
        "refused",
        "a point has label 2: give 1 for root",
    ),
    Case(
        "a mask that is a tensor",
        lambda b: b.export("a", mask=torch.from_numpy(MASK)),
        "refused",
        "the mask of a is a Tensor (64, 64), but must be an array (H, W)",
    ),
    Case(
        "a row of whole scans that is a name",
        lambda b: evaluate({"a": nano()}, tile(Scan(IMAGE, MASK, "a", "T1"), 64), on_scans={"x": "nano"}),
        "refused",
        "predictors must be predictors by the name of their row",
    ),
    Case("a launcher's number", launched_by, "refused", "the environment variable WORLD_SIZE is 'two': give a whole"),
    Case(
        "a session without its note", lost_note, "said", "session.json of this session is gone or damaged: made again"
    ),
    Case("a click on a full disk", clicked_twice, "right", lambda b, clicks: clicks == [(3, 3, 1), (9, 9, 1)]),
    Case("a disk that is full for safetensors", full_for_safetensors, "refused", "no space left on device: make room"),
    Case("a checkpoint with code", with_code, "refused", "(it is no checkpoint of weights alone)"),
    Case(
        "the profile for own scans without any",
        lambda b: tutorial("mine", {}, []),
        "refused",
        "DATA is folder, but no folder is given: add -p DATA_DIR",
    ),
    Case(
        "points of another scan",
        lambda b: b.segment(prompts={"Good": ([[3, 3]], [1])}),
        "refused",
        "prompts are given for 'Good', but no scan is called so: correct the name, such as 'good'",
    ),
    Case(
        "points that are no numbers",
        lambda b: b.segment(prompts={"good": ([[np.nan, 3]], [1])}),
        "refused",
        "prompts of good hold a coordinate below 0 or that is no number",
    ),
    Case(
        "points outside of the image",
        lambda b: b.segment(prompts={"good": ([[3, 3], [9000, 3]], [1, 1])}),
        "refused",
        "prompts of good: point (9000, 3) lies outside of the image",
    ),
    Case("an answer about shares", lambda b: asked_shares(), "refused", "shares of the image's sides: give pixels"),
    Case("a fit of text", lambda b: b.segment(fit="no"), "refused", "fit is 'no': give True or False"),
    Case("a folder that is none", lambda b: read_folder(None), "refused", "folder is None: give the path of a folder"),
    Case("a model that is none", lambda b: load_predictor(None), "refused", "the model is None: give a stage's folder"),
    Case(
        "a truth that is none", lambda b: score_mask(MASK, None), "refused", "the truth is NoneType, but must be a bool"
    ),
    Case(
        "an evaluation of one scan",
        lambda b: evaluate({"a": nano()}, Scan(IMAGE, MASK, "a", "T1")),
        "refused",
        "a Scan is no list of scans",
    ),
    Case(
        "an occupied folder, before the scale is sought",
        lambda b: (b.file("out/mine.txt", "x"), b.segment(nano(), fit=True)),
        "refused",
        "out holds files that were not written here (first: mine.txt)",
    ),
    Case(
        "points that contradict each other",
        lambda b: b.segment(prompts={"good": ([[3, 3], [9, 9], [3.4, 3]], [1, 1, 0])}),
        "refused",
        "prompts of good say both root and soil at (3, 3): keep one",
    ),
    Case("a mask drawn into a session", drawn_mask, "said", "was not as it was written (changed or damaged): kept as"),
    Case("a session without one of its scans", fewer_scans, "said", "1 images of this session are not among the scans"),
    Case("half a point", lambda b: sample_points(MASK, 1.5, 1, RNG), "refused", "n_root is 1.5"),
    Case(
        "a place of words",
        lambda b: asked([["a", "b"]], [1]),
        "refused",
        "is no click: give x, y and label, three numbers",
    ),
    Case("a click alone", lambda b: b.session("a").apply((3, 3, 1)), "refused", "click 3 is no click: give x, y and"),
    Case("a click with a label of text", lambda b: b.session("a").apply([(3, 3, "1")]), "refused", "is no click"),
    Case("one file as image files", lambda b: ImageFiles(b.scans / "good.png"), "refused", "is not a folder: give a"),
    Case(
        "a session on paths", lambda b: Session(b.out, [b.scans / "good.png"], nano()), "refused", "is no list of scans"
    ),
    Case(
        "a session on one scan", lambda b: Session(b.out, scan_of("a"), nano()), "refused", "a Scan is no list of scan"
    ),
    Case("a session on arrays", lambda b: Session(b.out, [IMAGE], nano()), "refused", "a ndarray is no list of scans"),
    Case(
        "a session by a name", lambda b: Session(b.out, [scan_of("a")], "nano"), "refused", "predictor is 'nano': give"
    ),
    Case(
        "triage of paths", lambda b: triage(nano(), [b.scans]), "refused", "is no list of scans: give what read_folder"
    ),
    Case("a folder as image files", lambda b: ImageFiles(b.scans), "right", lambda b, files: files.names == ["good"]),
    Case(
        "image files beside masks",
        lambda b: (b.image("good-mask.png"), ImageFiles(b.scans))[1],
        "right",
        lambda b, files: files.names == ["good"] and files[0].mask is None,
    ),
    Case(
        "exclude as a list", lambda b: b.segment(exclude=(0, 0, 9, 9)), "refused", "exclude is (0, 0, 9, 9): give text"
    ),
    Case("a list of dpi", lambda b: b.segment(dpi=[300]), "refused", "dpi is [300]: give a number"),
    Case(
        "a file of prompts", lambda b: b.segment(prompts="x.csv"), "refused", "prompts is 'x.csv': give points by scan"
    ),
    Case("points alone", lambda b: b.segment(prompts={"good": [[3, 3]]}), "refused", "prompts of good are no Prompts"),
    Case("no folder", lambda b: segment_folder(None, StubPredictor()), "refused", "folder is None: give the path"),
    Case(
        "both stages at once",
        lambda b: train_stage(stage_pair("nano"), [], [], b.out),
        "refused",
        "config is a tuple: give one StageConfig",
    ),
    Case(
        "an export of paths", lambda b: export_folder(b.out, ["a.png"], [MASK]), "refused", "a.png is no list of scans"
    ),
    Case("an answer of bytes", lambda b: score_mask(BYTES, MASK), "refused", "the answer is uint8"),
    Case("an answer of one row", lambda b: score_mask(MASK[:1], MASK), "refused", "compare masks of one image"),
    Case("nothing to evaluate", lambda b: evaluate({}, []), "refused", "give at least one predictor and one patch"),
    Case(
        "a row of another name",
        lambda b: evaluate({"Stage1": nano()}, tile(scan_of("a"), 64), prompted=["stage1"]),
        "refused",
        "prompted names 'stage1', which is no row: choose from Stage1",
    ),
    Case(
        "a size of one number", lambda b: from_rle({"size": [3], "counts": [3]}), "refused", "size is [3]: give height"
    ),
    Case("COCO's compressed runs", lambda b: from_rle({"size": [3, 3], "counts": "T1"}), "refused", "by pycocotools"),
    Case("a trait of no scan", lambda b: agreement([None], [1.0], ["a"]), "refused", "no scan has this trait"),
    Case(
        "a scan without a trait",
        lambda b: agreement([1.0, None, 3.0], [1.0, 2.0, 3.0], ["a", "b", "c"]),
        "said",
        "1 of 3 scans lack the trait and are left out",
    ),
    Case("a scan of lists", lambda b: Scan(IMAGE.tolist(), None, "a", ""), "refused", "a: the image is a list"),
    Case("a scan with a mask of PIL", lambda b: Scan(IMAGE, Image.new("1", (9, 9)), "a", ""), "refused", "the mask is"),
    Case("a date by points", lambda b: Scan(IMAGE, None, "a", "", "11.04.2017"), "refused", "the date is '11.04.2017'"),
    Case("an edge below 0", lambda b: Scan(IMAGE, None, "a", "", "", -0.1), "refused", "25.4 / dpi, is -0.1"),
    Case("an edge of text", lambda b: measure(MASK, "0.1"), "refused", "the edge of a pixel (25.4 / dpi), is '0.1'"),
    Case("a mask of lists", lambda b: measure(MASK.tolist(), 0.1), "refused", "the mask is list, but must be a bool"),
    Case("no draws", lambda b: tube_weights(["a"], RNG, 0), "refused", "draws is 0: give a whole number, 1 or more"),
    Case("two images of one pixel", lambda b: align(IMAGE, IMAGE[:1, :1]), "right", lambda b, found: found.match == 0),
    Case("a text for a predictor's True", lambda b: Predictor(nano().model, select="no"), "refused", "select is 'no'"),
    Case(
        "a root width in mm",
        lambda b: load_predictor("nano", root_width=6.0).for_width(0.3),
        "refused",
        "in pixels is 0.3",
    ),
    Case("one number of epochs", lambda b: stage_pair("nano", 3), "refused", "epochs is 3: give two numbers"),
    Case("a text for True", lambda b: stage1(detail="False"), "refused", "detail is 'False': give True or False"),
    Case("a session without images", lambda b: b.session(), "refused", "at least one is needed"),
    Case("a session of one name twice", lambda b: b.session("a", "A"), "refused", "two images are called a and A"),
    Case("a session that climbs", lambda b: b.session("../a"), "refused", "'../a', which cannot be a file's name"),
    Case(
        "a session on masks by hand",
        lambda b: (b.file("session/masks/a.png", "mine"), b.session("a")),
        "refused",
        "session holds files that were not written here (first: masks)",
    ),
    Case(
        "a session of a damaged image",
        lambda b: Session(b.place / "s", ImageFiles([b.image("bad.png", b"text")]), nano()),
        "refused",
        "bad.png cannot be read",
    ),
    Case("a click outside", lambda b: b.session("a").add(64, 3, 1), "refused", "outside the image of 64 × 64 px"),
    Case("a click at NaN", lambda b: b.session("a").add(float("nan"), 3, 1), "refused", "outside the image"),
    Case("a click of a third kind", lambda b: b.session("a").add(3, 3, 2), "refused", "1 for root or 0 for soil"),
    # --- Export
    Case("export that climbs", lambda b: b.export("../../a"), "refused", "'../../a', which cannot be a file's name"),
    Case("export to a root", lambda b: b.export("/tmp/a"), "refused", "'/tmp/a', which cannot be a file's name"),
    Case("export to a drive", lambda b: b.export("C:\\a"), "refused", "which cannot be a file's name"),
    Case("export of one name twice", lambda b: b.export("a", "A"), "refused", "two images are called a and A"),
    Case("export of nothing", lambda b: b.export(), "refused", "at least one is needed"),
    Case("export of a small mask", lambda b: b.export("a", mask=MASK[:9]), "refused", "a: the mask is bool (9, 64)"),
    Case(
        "export of a grey mask",
        lambda b: b.export("a", mask=MASK * 255),
        "refused",
        "the mask of a is int64, but must be a bool array",
    ),
    Case("export to another part", lambda b: b.export("a", part="../x"), "refused", "part is '../x'"),
    Case(
        "export on masks by hand",
        lambda b: (b.file("out/masks/a.png", "mine"), b.export("a")),
        "refused",
        "out holds files that were not written here (first: masks)",
    ),
    Case("runs that are short", lambda b: from_rle({"size": [2, 3], "counts": [5]}), "refused", "cover 5 pixels"),
    Case("runs below 0", lambda b: from_rle({"size": [2, 3], "counts": [-1, 7]}), "refused", "counts is -1"),
    Case("no runs", lambda b: from_rle({"size": 3}), "refused", "these are no run lengths"),
    Case("an annotation missing", lambda b: from_rootpainter(b.place / "x.png"), "refused", "x.png does not exist"),
    Case(
        "an annotation of text", lambda b: from_rootpainter(b.file("x.png", "text")), "refused", "x.png cannot be read"
    ),
    Case(
        "an annotation without alpha",
        lambda b: from_rootpainter(b.image("x.png")),
        "refused",
        "x.png has no transparency",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bad_input(case, tmp_path, monkeypatch, capsys):
    bench, answer, error = Bench(tmp_path, monkeypatch, capsys), None, None
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            answer = case.does(bench)
        except (ValueError, OSError) as caught:  # anything else is a traceback
            error = str(caught)
    said = bench.said + [str(warning.message) for warning in warned]
    if case.becomes == "refused":
        assert error is not None, "it was accepted"
        assert case.what in error and "\n" not in error
        return
    assert error is None, error
    if case.becomes == "failed":
        (reason,) = answer.failed.values()
        assert case.what in reason and "\n" not in reason and any(reason in line for line in said)
        assert [row["scan"] for row in answer.rows] == ["good"]
    elif case.becomes == "said":
        assert any(case.what in line and "\n" not in line for line in said), said
    else:
        assert case.what(bench, answer)


def test_words_that_are_no_numbers_are_refused_by_the_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["segment", "x", "--model", "nano", "--dpi", "many"])
    assert stopped.value.code == 2 and "--dpi: invalid float value: 'many'" in capsys.readouterr().err
