"""Clicks, undo, files, reopening, replay, refusals, triage: a session without any browser."""

import csv
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from rootsam_lib.apps import correct
from rootsam_lib.apps.correct import Session, read_log, replay
from rootsam_lib.apps.triage import triage
from rootsam_lib.checkpoints import build_sam
from rootsam_lib.data.folders import ImageFiles
from rootsam_lib.data.masks import read_exclusion, read_mask
from rootsam_lib.data.scans import Scan
from rootsam_lib.evaluation.tools import parse_edits
from rootsam_lib.metrics import count, iou
from rootsam_lib.model import resize_logits
from rootsam_lib.predictor import Click, Predictor, parse_clicks
from rootsam_lib.predictor.selection import changes_at_clicks, follow_clicks
from rootsam_lib.prompts import click_prompt, next_click
from rootsam_lib.results import read_json, write_json


@pytest.fixture(scope="module")
def nano():
    return Predictor(build_sam("nano"))


def tiny(number: int = 1, side: int = 64) -> list[Scan]:
    rng = np.random.default_rng(5)
    images = rng.integers(0, 255, (number, side, side, 3), dtype=np.uint8)
    return [Scan(image, None, f"i{n:03d}", f"T{n:03d}") for n, image in enumerate(images)]


def table(folder) -> list[dict[str, str]]:
    with open(folder / "session.csv", newline="") as file:
        return list(csv.DictReader(file))


# --- What clicks do to a mask


def clicked(predictor, image, clicks=(), start="automatic", **settings) -> Predictor:
    """A predictor of its own for an image, after these clicks."""
    own = Predictor(predictor.model, **settings)
    own.set_image(image)
    own.correct(clicks, start)
    return own


def test_clicks_in_a_parameter():
    assert parse_clicks("3,4,1; 5,6,0;") == [Click(3, 4, 1), Click(5, 6, 0)] and parse_clicks(" ") == []
    for bad in ("3,4", "3,4,2", "a,b,1", "3.5,4,1", "3,4,1,5"):
        with pytest.raises(ValueError, match=r"is not x,y,label: give whole pixels"):
            parse_clicks(f"1,1,1;{bad}")


@torch.no_grad()
def test_the_first_mask_and_the_first_click_by_hand(nano, small_scans):
    scan, model = small_scans[0], nano.model
    features = model.encode(scan.image[None])
    first = model.decode(features).logits
    corrector = clicked(nano, scan.image)
    automatic = (resize_logits(first, (256, 256))[0, 0] > 0).numpy()
    assert automatic.any() and np.array_equal(corrector.mask, automatic)
    x, y, label = next_click(scan.mask, automatic)
    points, labels = torch.tensor([[[x, y]]]), torch.tensor([[label]])
    answer = model.decode(features, points, labels, click_prompt(first, points, labels, 256))
    before, after = (resize_logits(logits, (256, 256))[0, 0].numpy() for logits in (first, answer.logits))
    told = follow_clicks(changes_at_clicks(before, after, [(x, y, label)]), [(x, y, label)])
    assert np.array_equal(corrector.correct([(x, y, label)]), told > 0)
    assert corrector.mask[int(y), int(x)] == label, "at the click itself the person is right"
    assert corrector.predicted_iou == pytest.approx(float(answer.iou))


def test_a_large_image_is_segmented_as_whole_scans_are(nano, small_scans):
    predictor = clicked(nano, small_scans[0].image, tile_size=128)
    assert np.array_equal(predictor.mask, predictor.predict()[0][0])


def test_any_way_to_a_list_of_clicks_ends_at_the_same_mask(nano, small_scans):
    image = small_scans[1].image
    for tile_size in (1024, 128):
        one, other = (clicked(nano, image, tile_size=tile_size) for _ in range(2))
        wanted = [(40, 50, 1), (200, 210, 0), (128, 120, 1)]
        straight = one.correct(wanted).copy()
        for detour in ([(9, 9, 0)], [(40, 50, 1)], [], [(200, 210, 0), (40, 50, 1)]):
            other.correct(detour)
        assert np.array_equal(other.correct(wanted), straight) and other.predicted_iou == one.predicted_iou
        assert np.array_equal(one.correct([]), clicked(nano, image, tile_size=tile_size).mask)


def test_a_click_decodes_only_the_tiles_that_it_lies_in(nano, small_scans, monkeypatch):
    corrector = clicked(nano, small_scans[0].image, tile_size=128)  # three by three, at 0, 64 and 128
    calls, decode = [], nano.model.decode
    monkeypatch.setattr(nano.model, "decode", lambda *a, **k: calls.append(1) or decode(*a, **k))
    before = corrector.mask
    corrector.correct([(10, 10, 1)])
    assert len(calls) == 1 and np.array_equal(corrector.mask[128:], before[128:])
    corrector.correct([(10, 10, 1), (100, 10, 0)])
    assert len(calls) == 3, "a click where two tiles overlap is shown to both"


def test_any_size_and_an_empty_start(nano):
    rng = np.random.default_rng(0)
    for height, width in ((50, 130), (33, 20), (300, 70)):
        image = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        corrector = clicked(nano, image, tile_size=128, start="empty")
        assert corrector.mask.shape == (height, width) and not corrector.mask.any()
        assert corrector.correct([(width - 1, height - 1, 1)], "empty").shape == (height, width)


def test_an_interrupted_start_is_made_anew(nano, small_scans, monkeypatch):
    corrector = clicked(nano, small_scans[0].image, tile_size=128)
    mask, begin, parts = corrector.mask, corrector._begin, []

    def interrupted(tiles, start):
        if parts:
            raise KeyboardInterrupt
        parts.append(begin(tiles, start))

    monkeypatch.setattr(corrector, "_begin", interrupted)
    with pytest.raises(KeyboardInterrupt):
        corrector.correct((), "empty")
    monkeypatch.undo()
    assert np.array_equal(corrector.correct(()), mask) and mask.any()


def test_clicks_that_cannot_be_are_refused(nano):
    image = tiny()[0].image
    for clicks, start, match in (
        ([], "full", "choose one of automatic, empty"),
        ([(64, 3, 1)], "automatic", "outside the image of 64 × 64 px"),
        ([(3, float("nan"), 1)], "automatic", "outside the image"),
        ([(3, 3, 2)], "automatic", "1 for root or 0 for soil"),
    ):
        with pytest.raises(ValueError, match=match):
            clicked(nano, image, clicks, start)


# --- The session


def test_add_move_remove_undo_redo(tmp_path, nano):
    session = Session(tmp_path, tiny(), nano)
    masks = [session.mask.copy()]
    for click in ((10, 10, 1), (50, 20, 0)):
        session.add(*click)
        masks.append(session.mask.copy())
    session.move(0, 12, 30)
    assert [c[:3] for c in session.clicks] == [(12, 30, 1), (50, 20, 0)]
    session.remove(1)
    assert [c[:3] for c in session.clicks] == [(12, 30, 1)]
    for _ in range(2):
        session.undo()
    assert np.array_equal(session.mask, masks[2])
    session.undo()
    assert np.array_equal(session.mask, masks[1]) and len(session.clicks) == 1
    session.redo()
    assert np.array_equal(session.mask, masks[2])
    session.add(30, 30, 1)  # a new click forgets what was undone
    session.redo()
    assert len(session.clicks) == 3
    for _ in range(9):
        session.undo()
    assert session.clicks == () and np.array_equal(session.mask, masks[0])
    with pytest.raises(IndexError, match="no click 4"):
        session.remove(4)
    session.add(1, 1, 1)
    with pytest.raises(ValueError, match="outside"):
        session.add(99, 1, 1)
    assert len(session.clicks) == 1, "a refused click changes nothing"


def test_what_the_machine_may_use_stays(tmp_path, nano):
    session = Session(tmp_path, tiny(2), Predictor(nano.model, batch=1, keep=False))
    session.open(1)
    assert (session.predictor.batch, session.predictor.keep) == (1, False)


def test_files_after_every_click(tmp_path, nano, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(correct.time, "time", lambda: now[0])
    session = Session(tmp_path, tiny(2), Predictor(nano.model, input_scale=2.0))
    for seconds, x in ((4, 10), (500, 20), (6, 30)):  # 500 s is a break and counts as 60
        now[0] += seconds
        session.add(x, 11, 1)
        mask = read_mask(tmp_path / "masks" / "i000.png")
        assert np.array_equal(mask, session.mask)
    session.set_done()
    log = read_log(tmp_path / "clicks" / "i000.json")
    assert log["setting"]["input_scale"] == 2.0 and len(log["setting"]["weights"]) == len(log["image"]["sha256"]) == 16
    assert [(c["x"], c["label"]) for c in log["clicks"]] == [(10, 1), (20, 1), (30, 1)]
    assert log["clicks"][2]["time"].startswith("1970-01-01T00:25:10") and 0 <= log["clicks"][0]["predicted_iou"] <= 1
    session.next()
    session.add(5, 5, 0)
    rows = table(tmp_path)
    assert [r["image"] for r in rows] == ["i000", "i001"] and [r["state"] for r in rows] == ["done", "open"]
    assert rows[0]["seconds"] == "70.0" and rows[0]["clicks"] == "3" and float(rows[0]["root_length_px"]) >= 0
    assert not list(tmp_path.rglob("*.partial"))


def test_tools_are_logged_undone_and_replayed(tmp_path, nano, small_scans):
    scan = small_scans[2]
    session = Session(tmp_path, [scan], Predictor(nano.model, tile_size=128))
    session.use("trace", 20, 30, 90, 60)
    traced = session.mask.copy()
    assert traced[30, 20] and traced[60, 90] and session.clicks[0].obeyed
    session.add(130, 140, 0)
    session.use("exclude", 10, 20, 60, 70)
    assert not session.mask[20:71, 10:61].any() and session.excluded.sum() == 51 * 51
    out = tmp_path / "excluded" / "s2.png"
    assert np.array_equal(read_exclusion(out.parent, "s2", session.mask.shape), session.excluded), "as segment reads it"
    session.save()
    row, window = session.rows["s2"], session.mask.size - 51 * 51
    assert row["length_density_mm_per_cm2"] == pytest.approx(row["root_length_mm"] / (window * scan.mm_per_px**2 / 100))
    session.use("remove", 90, 60)
    assert not session.mask[60, 90] and session.rows["s2"]["remove"] == session.rows["s2"]["trace"] == 1
    assert np.array_equal(replay(nano.model, scan.image, session.log_path("s2")), session.mask)
    assert np.array_equal(Session(tmp_path, [scan], session.predictor).mask, session.mask)
    session = Session(tmp_path, [scan], session.predictor)
    for _ in range(3):
        session.undo()
    assert np.array_equal(session.mask, traced) and not out.exists()
    session.apply(parse_clicks("20,30,1"))
    assert [click.tool for click in session.clicks] == ["trace", "click"], "a trace from there is no click there"
    with pytest.raises(ValueError, match="x2 of trace"):
        session.use("trace", 1, 1, 999, 1)
    log = json.loads(session.log_path("s2").read_text())
    log["clicks"][0]["x2"] = 256
    write_json(session.log_path("s2"), log)
    with pytest.raises(ValueError, match="is damaged"):
        read_log(session.log_path("s2"))
    for click in log["clicks"][1:]:
        del click["tool"], click["x2"], click["y2"]
    write_json(session.log_path("s2"), log | {"clicks": log["clicks"][1:]})
    assert read_log(session.log_path("s2"))["clicks"], "a log from before there were tools"


def test_a_log_replays_to_the_identical_mask(tmp_path, nano, small_scans):
    scan = small_scans[2]
    session = Session(tmp_path, [scan], Predictor(nano.model, tile_size=128))
    for x, y, label in ((60, 70, 1), (130, 140, 0), (200, 30, 1)):
        session.add(x, y, label)
    session.move(1, 90, 91)
    session.remove(0)
    assert np.array_equal(replay(nano.model, scan.image, session.log_path("s2")), session.mask)
    for file in (session.log_path("s2"), tmp_path / "session.json"):  # as written before predictors had a gain
        content = read_json(file)
        del content.get("setting", content)["gain"]
        write_json(file, content)
    assert np.array_equal(replay(nano.model, scan.image, session.log_path("s2")), session.mask)
    assert np.array_equal(Session(tmp_path, [scan], Predictor(nano.model, tile_size=128)).mask, session.mask)


def test_foreign_logs_are_refused_in_one_sentence(tmp_path, nano):
    scan, other = tiny(2)
    session = Session(tmp_path, [scan], nano)
    session.add(9, 9, 1)
    path = session.log_path(scan.name)
    stranger = build_sam("nano", weights=None, seed=1)

    def refused(kind, match, action):
        with pytest.raises(kind, match=match) as caught:
            action()
        assert "\n" not in str(caught.value)

    refused(ValueError, "other settings .weights", lambda: Session(tmp_path, [scan], Predictor(stranger)))
    larger = Predictor(nano.model, input_scale=2.0)
    refused(ValueError, "other settings .input_scale", lambda: Session(tmp_path, [scan], larger))
    session.add(10, 9, 1)  # still the one that owns the folder
    copied = tmp_path / "copied"
    shutil.copytree(tmp_path / "clicks", copied / "clicks")
    write_json(copied / "session.json", larger.about | {"start": "automatic"})
    refused(ValueError, "does not fit .input_scale: 1.0 there, 2.0 here", lambda: Session(copied, [scan], larger))
    refused(ValueError, "does not fit .weights: ", lambda: replay(stranger, scan.image, path))
    refused(ValueError, "does not fit .image: ", lambda: replay(nano.model, other.image, path))
    swapped = Scan(other.image, None, scan.name, scan.tube)
    refused(ValueError, "does not fit .image: ", lambda: Session(tmp_path, [swapped], nano))


def test_a_refused_image_leaves_the_session_where_it_was(tmp_path, nano):
    scans = tiny(2)
    session = Session(tmp_path, scans, nano)
    session.open(1)
    session.add(4, 4, 1)
    session.open(0)
    session.add(8, 8, 1)
    session.scans = [scans[0], Scan(scans[0].image, None, "i001", "T001")]
    with pytest.raises(ValueError, match=r"does not fit .image: "):
        session.next()
    assert session.name == "i000" and session.mask.shape == (64, 64)
    session.undo()
    assert session.clicks == ()


KILLED = """
import sys
import numpy as np, torch
torch.set_num_threads(1)
from rootsam_lib.checkpoints import build_sam
from rootsam_lib.data.scans import Scan
from rootsam_lib.predictor import Predictor
from rootsam_lib.apps import correct
from rootsam_lib.apps.correct import Session
image = np.random.default_rng(5).integers(0, 255, (1, 64, 64, 3), dtype=np.uint8)[0]
session = Session(sys.argv[1], [Scan(image, None, "i000", "T000")], Predictor(build_sam("nano")))
print("ready", flush=True)
for n in range(10000):
    session.add(n % 64, n // 64, n % 2)
    print(len(session.clicks), flush=True)
"""


@pytest.mark.slow
def test_a_killed_kernel_costs_at_most_the_last_click(tmp_path, nano):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    told = [process.stdout.readline() for _ in range(7)]
    time.sleep(0.05)  # somewhere inside a click
    process.send_signal(signal.SIGKILL)
    told += process.stdout.read().splitlines()
    process.wait()
    session = Session(tmp_path, tiny(), nano)
    assert len(session.clicks) in (int(told[-1]), int(told[-1]) + 1)
    assert [c[:3] for c in session.clicks[:3]] == [(0, 0, 0), (1, 0, 1), (2, 0, 0)]
    count = len(session.clicks)
    session.undo()
    assert len(session.clicks) == count - 1, "after a reopening, undo takes the last click back"


@pytest.mark.slow
def test_sixty_images_two_hundred_clicks_and_flat_memory(tmp_path, nano):
    scans = tiny(60, 32)
    session = Session(tmp_path, scans, nano)

    def resident() -> float:
        return psutil.Process().memory_info().rss / 2**20

    session.add(3, 3, 1)
    for _ in range(10):
        session.next()
        session.add(5, 6, 1)
    early = resident()
    for number in range(11, 60):
        session.next()
        session.add(number % 32, 7, number % 2)
        session.set_done()
    session.open(0)
    for number in range(150):
        session.add(number % 32, number // 32, number % 2)
    assert resident() - early < 100, "memory grows with images or clicks"
    mask, clicks = session.mask, session.clicks
    again = Session(tmp_path, scans, nano)  # a new kernel
    assert again.position == 0 and again.clicks == clicks and len(clicks) == 151
    assert np.array_equal(again.mask, mask)
    assert sum(again.is_done(i) for i in range(60)) == 49
    again.open(30)
    assert [c[:3] for c in again.clicks] == [(30, 7, 0)]
    assert len(table(tmp_path)) == 60


def test_reopening_goes_on_at_the_first_image_that_is_not_done(tmp_path, nano):
    Session(tmp_path, tiny(3), nano).set_done()
    session = Session(tmp_path, tiny(3), nano)
    assert session.name == "i001"
    session.previous()
    session.add(4, 4, 1)  # an image that is changed is no longer done
    assert Session(tmp_path, tiny(3), nano).name == "i000"


def test_image_files_are_read_when_asked_for(tmp_path, nano):
    paths = []
    for scan in tiny(2):
        paths.append(tmp_path / f"{scan.name}_T004_DPI300.png")
        Image.fromarray(scan.image).save(paths[-1])
    files = ImageFiles(paths)
    assert files.names == ["i000_T004_DPI300", "i001_T004_DPI300"]
    assert files[1].tube == "T004" and round(files[1].mm_per_px, 4) == 0.0847 and files[1].mask is None
    session = Session(tmp_path / "s", files, nano)
    paths[1].unlink()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        session.next()
    assert session.position == 0


def test_the_headless_path_adds_each_click_once(tmp_path, nano):
    session = Session(tmp_path, tiny(), nano)
    for _ in range(2):
        session.apply([*parse_clicks("3,4,1;9,9,0"), *parse_edits("trace,3,4,30,40; remove,9,9;")])
    assert [c[:3] for c in session.clicks] == [(3, 4, 1), (9, 9, 0), (3, 4, 1), (9, 9, 0)]
    for bad in ("saw,1,2", "trace,1,2", "remove,1,2,3,4", "remove,1,-2", "trace,a,2,3,4"):
        with pytest.raises(ValueError, match="is not tool,x,y or tool"):
            parse_edits(bad)
    assert json.loads(session.log_path("i000").read_text())["row"]["root_clicks"] == 1


# --- Two at once, foreign folders, faults


def test_a_cell_that_is_run_again_takes_its_session_over(tmp_path, nano):
    first = Session(tmp_path, tiny(), nano)
    first.add(3, 4, 1)
    second = Session(tmp_path, tiny(), nano)
    assert [c[:3] for c in second.clicks] == [(3, 4, 1)]
    second.add(9, 9, 0)
    for action in (lambda: first.add(5, 5, 1), first.undo, first.save, first.set_done):
        with pytest.raises(ValueError, match="was opened again since: go on with the newer one"):
            action()
    second.add(20, 20, 1)
    assert [c["x"] for c in read_log(second.log_path("i000"))["clicks"]] == [3, 9, 20]


TWICE = """
import sys
from rootsam_lib.checkpoints import build_sam
from rootsam_lib.data.scans import Scan
from rootsam_lib.predictor import Predictor
from rootsam_lib.apps import correct
from rootsam_lib.apps.correct import Session
import numpy as np
image = np.random.default_rng(5).integers(0, 255, (1, 64, 64, 3), dtype=np.uint8)[0]
scans = [Scan(image, None, "i000", "T000")]
try:
    Session(sys.argv[1], scans, Predictor(build_sam("nano"))).add(1, 1, 1)
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_second_process_is_told_who_holds_the_session(tmp_path, nano):
    session = Session(tmp_path / "s", tiny(), nano)
    session.add(3, 4, 1)
    command = [sys.executable, "-c", TWICE, str(tmp_path / "s")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"s is in use by process {os.getpid()} on " in said and said.count("\n") == 1
    session.add(5, 6, 0)
    assert len(read_log(session.log_path("i000"))["clicks"]) == 2
    del session
    gc.collect()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "", "now it is free"
    assert len(Session(tmp_path / "s", tiny(), nano).clicks) == 3


def test_one_damaged_image_does_not_block_later_ones(tmp_path, nano):
    paths = []
    for scan in tiny(4):
        paths.append(tmp_path / f"{scan.name}.png")
        Image.fromarray(scan.image).save(paths[-1])
    paths[0].write_bytes(b"nothing")
    paths[2].write_bytes(paths[2].read_bytes()[:300])
    with pytest.warns(UserWarning, match=r"passed over: .*i000\.png cannot be read"):
        session = Session(tmp_path / "s", ImageFiles(paths), nano)
    session.add(4, 4, 1)
    said = session.next()
    assert session.name == "i003" and "i002.png cannot be read" in said and "i000" not in said
    session.previous()
    assert session.name == "i001" and len(session.clicks) == 1
    with pytest.raises(ValueError, match=r"i000\.png cannot be read"):
        session.previous()
    session.add(5, 5, 1)
    assert session.name == "i001" and len(session.clicks) == 2
    with pytest.raises(ValueError, match=r"i000\.png cannot be read"):
        Session(tmp_path / "other", ImageFiles(paths[:1]), nano)


def test_the_open_image_stays_until_the_next_one_is_there(tmp_path, nano, monkeypatch):
    session = Session(tmp_path, tiny(2), nano)
    session.add(4, 4, 1)
    mask = session.mask

    def full(*_):
        raise MemoryError("not enough memory")

    with monkeypatch.context() as patch:
        patch.setattr(nano.model, "encode", full)
        with pytest.raises(MemoryError):
            session.next()
    assert session.name == "i000" and np.array_equal(session.mask, mask)
    session.add(5, 5, 1)
    session.next()
    assert session.name == "i001"


def test_a_measurement_that_fails_keeps_the_mask_and_is_said(tmp_path, nano, monkeypatch):
    def fails(*_):
        raise OverflowError("too long")

    monkeypatch.setattr(correct, "measure", fails)
    session = Session(tmp_path, tiny(2), nano)
    session.add(4, 4, 1)
    session.set_done()
    assert table(tmp_path)[0]["not_measured"] == "OverflowError: too long" and table(tmp_path)[0]["state"] == "done"
    session.next()
    assert session.name == "i001"


def test_the_table_is_not_written_at_every_click(tmp_path, nano, monkeypatch):
    written = []
    monkeypatch.setattr(correct, "write_csv", lambda path, rows: written.append(len(rows)))
    session = Session(tmp_path, tiny(2), nano)
    for number in range(5):
        session.add(number, 4, 1)
    assert written == [1]
    session.next()
    assert written == [1, 1]


# --- Triage


def test_triage_gives_an_order_and_a_reason(nano, small_scans):
    blank = Scan(np.full((256, 256, 3), 120, np.uint8), None, "blank", "T9")
    rows = triage(nano, [*small_scans[:2], blank])
    assert sorted(row["index"] for row in rows) == [0, 1, 2]
    needs = [row["need"] for row in rows]
    assert needs == sorted(needs, reverse=True)
    for row in rows:
        assert row["need"] == 1 - row["agreement"] and 0 <= row["need"] <= 1
        image = [*small_scans[:2], blank][row["index"]].image
        mask, other = nano(image), nano(np.ascontiguousarray(image[:, ::-1]))[:, ::-1]
        assert row["agreement"] == pytest.approx(iou(count(mask, other)))
        assert f"{row['agreement']:.2f}" in row["reason"] if mask.any() else "no root" in row["reason"]
    backwards = triage(nano, [blank, small_scans[1], small_scans[0]])
    assert [row["image"] for row in backwards] == [row["image"] for row in rows], "the list's order plays no part"
