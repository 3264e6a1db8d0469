"""Whole folders: any size and format, resumable, each result belongs to its input, one bad image stops no other."""

import csv
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from stub_predictor import StubPredictor

from rootsam_lib import results
from rootsam_lib.__main__ import main
from rootsam_lib.apps import fitting, outputs, segment
from rootsam_lib.apps.outputs import merge_shards, parse_shard
from rootsam_lib.apps.segment import segment_folder
from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.data.folders import find_pairs
from rootsam_lib.data.points import read_prompts
from rootsam_lib.metrics import count, dice, dilate, iou
from rootsam_lib.predictor import load_predictor
from rootsam_lib.results import file_hash, read_csv, read_json, write_json

NAMES = ["a_T001_L001_11.04.17", "a_T001_L002_11.04.17", "a_T002_L001_11.04.17"]


@pytest.fixture
def scans(tmp_path):
    """Three images of different sizes and formats, white lines on black; one has a mask, none states a resolution."""
    folder = tmp_path / "scans"
    (folder / "images").mkdir(parents=True)
    for i, name in enumerate(NAMES):
        Image.fromarray(drawn(i)).save(folder / "images" / f"{name}{['.png', '.bmp', '.tif'][i]}")
    truth = np.roll(drawn(2)[..., 1] > 127, 1, axis=0)
    Image.fromarray(truth).save(folder / "images" / f"{NAMES[2]}-mask.png")
    return folder


def drawn(number: int) -> np.ndarray:
    image = np.zeros((128 - 20 * number, 160, 3), np.uint8)
    image[..., 2] = np.arange(len(image))[:, None] % 8 * 10  # soil
    image[20 + number : 25 + number, 10:120] = image[30:90, 70:74] = 255
    return image


def run(folder: Path, predictor: StubPredictor | None = None, **changes: object):
    """What `segment_folder` answers, into the folder's neighbour `out`, and the lines that it says of single scans."""
    of_all = "resolution: ", "masks coded ", "dates are read as day.month.year: "
    said: list[str] = []
    changes = {"out": folder.with_name("out"), "dpi": 300, "say": said.append, **changes}
    report = segment_folder(folder, predictor or StubPredictor(), **changes)
    return report, [line for line in said if not line.startswith(of_all)]


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def contents(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in out.iterdir() if not file.name.startswith(".")}


def image_of(scans: Path, number: int) -> Path:
    return next(path for path in (scans / "images").iterdir() if path.stem == NAMES[number])


# --- What is written


def test_masks_overlays_and_tables(scans):
    report = segment_folder(scans, StubPredictor(), dpi=300)
    out = scans.with_name("scans-roots")
    assert report.table == out / "traits.csv" and not report.failed and report.skipped == 0
    for i, name in enumerate(NAMES):
        truth = drawn(i)[..., 1] > 127
        np.testing.assert_array_equal(np.asarray(Image.open(out / f"{name}-mask.png")), np.where(truth, 255, 0))
        area = report.rows[i]["root_area_mm2"] / (25.4 / 300) ** 2
        assert area == pytest.approx(truth.sum(), rel=0.01)
        assert Image.open(out / f"{name}-overlay.jpg").size == (160, 128 - 20 * i)
    table = rows(report.table)
    assert [row["scan"] for row in table] == NAMES == [row["scan"] for row in report.rows]
    assert [row["tube"] for row in table] == ["T001", "T001", "T002"] and table[1]["location"] == "2"
    assert {row["date"] for row in table} == {"2017-04-11"}
    assert table[0]["image_sha256"] == file_hash(image_of(scans, 0))
    (score,) = rows(out / "scores.csv")  # of the last of the three, which has a mask
    found = drawn(2)[..., 1] > 127
    truth = np.roll(found, 1, axis=0)
    assert score["scan"] == NAMES[2]
    for name, expected in (
        ("root_iou", iou(count(found, truth))),
        ("dice", dice(count(found, truth))),
        ("dilated_dice", dice(count(found, dilate(truth)))),
    ):
        assert float(score[name]) == pytest.approx(expected, rel=1e-4)
    assert float(score["root_length_mm"]) == pytest.approx(float(table[2]["root_length_mm"]))
    assert float(score["true_root_length_mm"]) == pytest.approx(float(table[2]["root_length_mm"]), rel=0.01)
    assert not list(out.glob("*.partial*"))


def test_how_dates_are_read_is_said(scans):
    said: list[str] = []
    segment_folder(scans, StubPredictor(), scans.with_name("out"), say=said.append)
    assert f"dates are read as day.month.year: {NAMES[0]} is of 2017-04-11." in said


def test_without_a_resolution_lengths_are_in_pixels(scans):
    (scans / "images" / f"{NAMES[0]}.png").rename(scans / "images" / "one_300dpi.png")
    report, _ = run(scans, dpi=None)
    assert not report.failed
    by_name = {row["scan"]: row for row in report.rows}
    wide = by_name[NAMES[1]]["root_length_px"]
    assert by_name["one_300dpi"]["root_length_mm"] and not by_name["one_300dpi"]["root_length_px"]
    assert not by_name[NAMES[1]]["root_length_mm"]
    assert wide == pytest.approx(160, rel=0.1), "110 + 60 px, less some at crossings and tips"
    assert sum(not row["root_length_px"] for row in rows(report.table)) == 1
    (score,) = rows(report.table.with_name("scores.csv"))
    assert float(score["true_root_length_px"]) == pytest.approx(float(score["root_length_px"]), rel=0.02)


def test_no_root_and_a_mask_that_repeats_are_said(scans):
    Image.fromarray(np.zeros((50, 60, 3), np.uint8)).save(scans / "images" / "empty.png")
    Image.fromarray(drawn(0)).save(scans / "images" / "twin.png")
    _, said = run(scans)
    assert len(said) == 2 and said[0].startswith("empty: no root was found")
    assert said[1].startswith(f"twin: its mask is exactly that of {NAMES[0]}")


# --- What is done is not done again, and only that


def test_what_is_done_is_not_done_again(scans):
    first, _ = run(scans)
    before = contents(scans.with_name("out"))
    again = StubPredictor()
    second, said = run(scans, again)
    assert again.shapes == [] and second.skipped == 3 and second.rows == first.rows and said == []
    assert contents(scans.with_name("out")) == before


@pytest.mark.parametrize("older", [True, False])
def test_an_image_with_other_bytes_is_done_again_whatever_its_date(scans, older):
    run(scans)
    image = image_of(scans, 1)
    changed = drawn(1)
    changed[60:65, 10:60] = 255
    Image.fromarray(changed).save(image)
    stamp = image.stat().st_mtime + (-1e6 if older else 1e6)
    os.utime(image, (stamp, stamp))
    again = StubPredictor()
    report, _ = run(scans, again)
    assert again.shapes == [changed.shape] and report.skipped == 2
    assert [row["scan"] for row in report.rows] == NAMES
    assert report.rows[1]["root_length_mm"] > 1.2 * report.rows[0]["root_length_mm"]


def test_a_touched_image_is_not_done_again(scans):
    run(scans)
    os.utime(image_of(scans, 0), (2e9, 2e9))
    assert run(scans)[0].skipped == 3


def test_a_corrected_truth_is_scored_again(scans):
    report, _ = run(scans)
    truth = scans / "images" / f"{NAMES[2]}-mask.png"
    Image.fromarray(drawn(2)[..., 1] > 127).save(truth)
    os.utime(truth, (1e9, 1e9))
    report, _ = run(scans)
    assert report.skipped == 2 and float(rows(report.table.with_name("scores.csv"))[0]["root_iou"]) == 1
    truth.unlink()
    report, _ = run(scans)
    assert report.skipped == 3 and not report.table.with_name("scores.csv").exists()
    Image.fromarray(drawn(0)[..., 1] > 127).save(scans / "images" / f"{NAMES[0]}-mask.png")
    report, _ = run(scans)
    assert report.skipped == 2 and rows(report.table.with_name("scores.csv"))[0]["scan"] == NAMES[0]


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "flipped"])
@pytest.mark.parametrize("ending", ["mask.png", "overlay.jpg"])
def test_damaged_outputs_are_made_again(scans, ending, damage):
    run(scans)
    out = scans.with_name("out")
    before = contents(out)
    file = out / f"{NAMES[0]}-{ending}"
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 255
    damaged = {"empty": b"", "cut": before[file.name][:-40], "flipped": bytes(whole), "gone": None}[damage]
    file.unlink() if damaged is None else file.write_bytes(damaged)
    report, _ = run(scans)
    after = contents(out)
    aside = [after.pop(name) for name in list(after) if "-changed-" in name]
    assert report.skipped == 2 and after == before
    assert aside == ([damaged] if ending == "mask.png" and damaged is not None else []), "what a mask was is kept"


def test_a_mask_that_a_person_changed_is_kept_and_said(scans):
    run(scans)
    file = scans.with_name("out") / f"{NAMES[0]}-mask.png"
    before = file.read_bytes()
    Image.fromarray(np.zeros((128, 160), np.uint8)).save(file)
    by_hand = file.read_bytes()
    report, (line,) = run(scans)
    (aside,) = file.parent.glob("*changed*")
    assert aside.read_bytes() == by_hand and file.read_bytes() == before and aside.name in line
    assert report.skipped == 2 and run(scans)[0].skipped == 3


def test_the_row_of_a_deleted_scan_goes(scans):
    run(scans)
    image_of(scans, 1).unlink()
    report, (line,) = run(scans)
    assert [row["scan"] for row in rows(report.table)] == [NAMES[0], NAMES[2]] == [row["scan"] for row in report.rows]
    assert line.startswith("1 rows of scans that are gone") and NAMES[1] in line
    assert (report.table.parent / f"{NAMES[1]}-mask.png").is_file()


def test_a_scan_that_fails_now_has_no_row_of_before(scans):
    run(scans)
    image_of(scans, 1).write_bytes(b"nothing")
    report, _ = run(scans)
    assert list(report.failed) == [NAMES[1]] and [row["scan"] for row in rows(report.table)] == [NAMES[0], NAMES[2]]


def test_another_mask_coding_scores_again(scans):
    report, _ = run(scans)
    assert rows(report.table.with_name("scores.csv"))[0]["mask_coding"] == "0/255"
    report, _ = run(scans, mask_coding="255/0")
    assert report.skipped == 2 and float(rows(report.table.with_name("scores.csv"))[0]["root_iou"]) < 0.05
    assert run(scans, mask_coding="255/0")[0].skipped == 3


def test_other_settings_are_refused(scans):
    run(scans)
    with pytest.raises(ValueError, match=r"other settings \(dpi\)"):
        run(scans, dpi=600)
    with pytest.raises(ValueError, match=r"other settings \(tube_angle\)"):
        run(scans, tube_angle=60.0)


# --- Kills


def test_an_interrupted_folder_goes_on(scans):
    with pytest.raises(KeyboardInterrupt):
        run(scans, StubPredictor(_1=KeyboardInterrupt()))
    out = scans.with_name("out")
    assert [row["scan"] for row in rows(out / "traits.csv")] == NAMES[:1]
    again = StubPredictor()
    assert run(scans, again)[0].skipped == 1 and len(again.shapes) == 2
    straight, _ = run(scans, out=scans.with_name("straight"))
    assert contents(out) == contents(straight.table.parent)


def test_a_torn_last_line_is_repaired(scans):
    run(scans)
    out = scans.with_name("out")
    before = contents(out)
    for table, kept in (("traits.csv", 2), ("scores.csv", 2), ("traits.csv", 0)):
        lines = before[table].splitlines(keepends=True)
        (out / table).write_bytes(b"".join(lines[:-1]) + lines[-1][:9] if kept else lines[0][:9])
        report, _ = run(scans)
        assert report.skipped == kept and contents(out) == before


def test_a_table_that_a_program_saved_anew_is_refused_untouched(scans):
    run(scans)
    table = scans.with_name("out") / "traits.csv"
    text = table.read_bytes()
    for saved in (text[:-1], text.replace(b"\n", b"\r"), text.replace(b"\n", b"\r\n"), text + b"note\n"):
        table.write_bytes(saved)
        with pytest.raises(ValueError, match=r"traits.csv was changed since it was written"):
            run(scans)
        assert table.read_bytes() == saved


KILLS = int(os.environ.get("ROOTSAM_KILLS", "4"))


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_at_the_same_bytes(tmp_path):
    folder, many = tmp_path / "scans", 30
    folder.mkdir()
    for number in range(many):
        image = np.zeros((64, 64, 3), np.uint8)
        image[::7, :, 2] = 90  # soil
        image[number : number + 4, 5:60] = 255
        Image.fromarray(image).save(folder / f"s_T{number:03d}.png")
        if number % 2:
            Image.fromarray(image[..., 0]).save(folder / f"s_T{number:03d}-mask.png")
    straight, _ = run(folder, out=tmp_path / "straight")
    rng, killed, out = random.Random(0), 0, tmp_path / "out"
    while killed < KILLS:
        if killed and killed % 4 == 0:  # done by now, or nearly: once more from nothing
            out = tmp_path / f"out{killed}"
        program = [sys.executable, str(Path(__file__).with_name("stub_predictor.py")), str(folder), str(out)]
        process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.wait()
        killed += 1
        if (out / "traits.csv").is_file():
            for row in read_csv(out / "traits.csv", text=None)[:-1]:
                assert file_hash(out / f"{row['scan']}-mask.png") == row["mask_sha256"]
    for out in tmp_path.glob("out*"):
        report, said = run(folder, out=out)
        assert said == [] and len(report.rows) == many
        assert contents(out) == contents(straight.table.parent)


def test_a_scan_costs_the_same_however_many_there_are(tmp_path, monkeypatch):
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(40):
        Image.fromarray(np.full((32, 32, 3), number, np.uint8)).save(folder / f"{number:03d}.png")
    written = []
    really = outputs.write_csv
    monkeypatch.setattr(outputs, "write_csv", lambda path, rows: written.append(len(rows)) or really(path, rows))
    report, _ = run(folder)
    assert len(rows(report.table)) == 40 and written == [1], "the table is written once, then rows are appended"


# --- Many workers, many processes


def many(tmp_path: Path, number: int) -> Path:
    """A folder of drawn scans, every third one with a mask."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for i, scan in enumerate(synthetic_scans("train", number, seed=4, height=64, width=80)):
        Image.fromarray(scan.image).save(folder / f"s_T{i:03d}.png")
        if i % 3 == 0:
            Image.fromarray(scan.mask).save(folder / f"s_T{i:03d}-mask.png")
    return folder


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Its worker processes; multiprocessing also keeps one that counts its resources."""
    return [child for child in process.children() if "spawn_main" in "".join(child.cmdline())]


@pytest.mark.slow
def test_workers_write_the_same_bytes(tmp_path):
    folder = many(tmp_path, 9)
    (folder / "s_T004.png").write_bytes(b"nothing")
    Image.fromarray(np.full((64, 80), 4000, np.uint16)).save(folder / "s_T006.png")
    (folder / "s_T006-mask.png").unlink()
    with pytest.warns(UserWarning, match=r"\(16-bit\) holds"):
        alone, said = run(folder)
    with pytest.warns(UserWarning, match=r"\(16-bit\) holds"):
        helped, same = run(folder, out=tmp_path / "helped", workers=2)
    assert contents(helped.table.parent) == contents(alone.table.parent) and helped.rows == alone.rows
    assert same == said and list(helped.failed) == list(alone.failed) == ["s_T004"] and len(helped.rows) == 8
    assert not workers_of(psutil.Process()), "none is left"


@pytest.mark.slow
def test_workers_end_when_who_asked_is_killed(tmp_path):
    program = [sys.executable, str(Path(__file__).with_name("stub_predictor.py")), str(many(tmp_path, 9)), "out", "2"]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, cwd=tmp_path, text=True)
    assert process.stdout.readline() == "ready\n" and process.stdout.readline() == "asked\n"
    workers = workers_of(psutil.Process(process.pid))
    process.kill()
    process.wait()
    assert len(workers) == 2 and not psutil.wait_procs(workers, timeout=60)[1]


def test_shards_merge_into_what_one_run_writes(tmp_path, monkeypatch):
    folder = many(tmp_path, 8)
    whole, _ = run(folder, out=tmp_path / "whole")
    for number in (3, 1):
        report, _ = run(folder, shard=(number, 3))
        assert report.table.parent.name == f"out-{number}-of-3" and len(report.rows) == (3 if number == 1 else 2)
    out, copied = tmp_path / "out", []
    copy = outputs.shutil.copyfile

    def killed(source, target):
        if len(copied) == 5:
            raise KeyboardInterrupt
        copied.append(copy(source, target))

    monkeypatch.setattr(outputs.shutil, "copyfile", killed)
    with pytest.raises(KeyboardInterrupt):
        merge_shards(folder, out)
    monkeypatch.undo()
    first = merge_shards(folder, out)
    assert list(first.failed) == ["s_T001", "s_T004", "s_T007"] and "no shard has done it" in first.failed["s_T001"]
    assert not list(tmp_path.glob("out-*")) and first.skipped == 2
    run(folder, shard=(2, 3))
    by_hand = tmp_path / "out-2-of-3" / "s_T004-mask.png"
    before = by_hand.read_bytes()
    Image.fromarray(np.zeros((64, 80), np.uint8)).save(by_hand)
    assert list(merge_shards(folder, out).failed) == ["s_T004"] and by_hand.is_file(), "what a person drew is kept"
    by_hand.write_bytes(before)
    merged = merge_shards(folder, out)
    assert not merged.failed and contents(out) == contents(whole.table.parent) and merged.rows == whole.rows
    assert run(folder)[0].skipped == 8
    with pytest.raises(FileNotFoundError, match="run the shards first"):
        merge_shards(folder, out)


def test_one_shard_finds_the_scale_for_all(tmp_path, monkeypatch):
    folder, asked = many(tmp_path, 4), []

    class Fitting(StubPredictor):
        input_scale = 1.0

        def __init__(self):
            super().__init__()
            self.root_width = 3.0

        def at_scale(self, scale):
            other = Fitting()
            other.about, other.input_scale = self.about | {"input_scale": scale}, scale
            return other

    def fit_scale(predictor, images):
        asked.append(len(images))
        return predictor.at_scale(0.1 + len(asked)), "fitted"

    monkeypatch.setattr(fitting, "fit_scale", fit_scale)
    for number in (1, 2):
        run(folder, Fitting(), shard=(number, 2), fit=True)
    assert asked == [3] and not merge_shards(folder, tmp_path / "out").failed
    assert read_json(tmp_path / "out" / "segment.json")["input_scale"] == 1.1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "scans"]


def test_what_was_merged_is_not_done_again(tmp_path):
    folder, out = many(tmp_path, 5), tmp_path / "out"
    for number in (1, 2):
        run(folder, shard=(number, 2))
    before = {row["scan"]: row for row in merge_shards(folder, out).rows}
    Image.open(folder / "s_T001.png").rotate(180).save(folder / "s_T009.png")
    with pytest.raises(ValueError, match=r"out holds results of other settings \(dpi\)"):
        run(folder, shard=(1, 2), dpi=600)
    reports = [run(folder, shard=(number, 2))[0] for number in (1, 2)]
    assert [report.skipped for report in reports] == [3, 2] and [len(report.rows) for report in reports] == [0, 1]
    after = {row["scan"]: row for row in merge_shards(folder, out).rows}
    assert list(after) == [*before, "s_T009"] and all(after[name] == row for name, row in before.items())
    assert not list(tmp_path.glob("out-*"))


def test_shards_of_other_settings_are_not_merged(tmp_path):
    folder = many(tmp_path, 4)
    run(folder, shard=(1, 2))
    run(folder, shard=(2, 2), dpi=600)
    with pytest.raises(ValueError, match=r"out-2-of-2 holds results of other settings \(dpi\)"):
        merge_shards(folder, tmp_path / "out")


@pytest.mark.parametrize("text", ["0/4", "5/4", "2", "a/b", "1/0", "-1/4"])
def test_shards_that_cannot_be_are_refused(text):
    with pytest.raises(ValueError, match=r"give its number and how many there are, such as 1/8 to 8/8"):
        parse_shard(text)
    assert parse_shard("2/8") == (2, 8)


@pytest.mark.slow
def test_two_launched_processes_write_what_one_does(tmp_path):
    folder = many(tmp_path, 5)
    (folder / "s_T003.png").write_bytes(b"nothing")
    call = ["segment", str(folder), "--model", "nano", "--tile", "64", "--dpi", "300", "--out"]
    assert main([*call, str(tmp_path / "one")]) == 1
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch += ["-m", "rootsam_lib", *call, str(tmp_path / "two")]
    launched = subprocess.run(launch, capture_output=True, text=True, timeout=300)
    assert launched.returncode == 1 and "4 scans done" in launched.stdout, launched.stderr
    assert "1 scan failed: s_T003" in launched.stderr and launched.stderr.count("resolution: 300 dpi as given") == 2
    assert contents(tmp_path / "two") == contents(tmp_path / "one") and not list(tmp_path.glob("two-*"))


# --- One fault, one scan


@pytest.mark.parametrize(
    "error",
    [ValueError("odd"), OverflowError("too large"), MemoryError(), OSError("gone"), RuntimeError("CUDA out of memory")],
)
def test_one_fault_is_one_scan(scans, error):
    report, (line,) = run(scans, StubPredictor(_1=error))
    assert list(report.failed) == [NAMES[1]] and [row["scan"] for row in report.rows] == [NAMES[0], NAMES[2]]
    assert line == f"failed: {NAMES[1]}: {report.failed[NAMES[1]]}" and "\n" not in line
    if isinstance(error, (MemoryError, RuntimeError)):
        assert "does not fit into memory" in line and image_of(scans, 1).name in line
    assert run(scans)[0].skipped == 2


def test_a_failing_measurement_fails_its_scan_only(scans, monkeypatch):
    really = segment.trait_row

    def measured(scan, mask, *rest, **options):
        if scan.name == NAMES[0]:
            raise ZeroDivisionError("division by zero")
        return really(scan, mask, *rest, **options)

    monkeypatch.setattr(segment, "trait_row", measured)
    report, _ = run(scans)
    assert list(report.failed) == [NAMES[0]] and "ZeroDivisionError: division by zero" in report.failed[NAMES[0]]
    assert len(report.rows) == 2


def test_a_full_disk_ends_it_and_says_so(scans, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(segment, "write_image", full)
    with pytest.raises(OSError, match="make room and run it again") as caught:
        run(scans)
    assert str(scans.with_name("out")) in str(caught.value)


def test_pipes_and_names_that_cannot_be_written(scans):
    os.mkfifo(scans / "pipe.png")
    names = ["x" * 250 + ".png", b"caf\xe9.png", "two\nlines.png"]
    for name in names:
        Image.fromarray(drawn(0)).save(scans / "x.bmp")
        os.rename(scans / "x.bmp", os.path.join(os.fsencode(scans), os.fsencode(name)))
    report, said = run(scans)
    assert len(report.failed) == 2 == sum(line.startswith("failed: ") for line in said) and len(report.rows) == 5
    assert "pipe.png is no regular file" in report.failed["pipe"]
    assert "cannot be a file's name: rename it" in report.failed["two\nlines"]
    shortened = next(row["scan"] for row in report.rows if row["scan"].startswith("xxx"))
    assert (report.table.parent / f"{shortened}-overlay.jpg").is_file()
    assert (report.table.parent / "caf%e9-mask.png").is_file()


# --- Ownership


def test_two_images_with_one_output_name_are_refused_before_any_work(scans):
    for place in ("a/b.png", "c/b.png", "a-b.png"):
        (scans / place).parent.mkdir(exist_ok=True)
        Image.fromarray(drawn(0)).save(scans / place)
    with pytest.raises(ValueError, match=r"a/b\.png and .*a-b\.png would both be called a-b: rename one"):
        run(scans)
    assert not scans.with_name("out").exists()


def test_a_folder_with_other_files_is_not_written_into(scans):
    out = scans.with_name("out")
    out.mkdir()
    by_hand = out / f"{NAMES[0]}-mask.png"
    by_hand.write_bytes(b"drawn by hand")
    with pytest.raises(ValueError, match=rf"holds files that were not written here \(first: {NAMES[0]}-mask"):
        run(scans)
    assert by_hand.read_bytes() == b"drawn by hand" and len(list(out.iterdir())) == 1
    by_hand.unlink()
    assert not run(scans)[0].failed, "an empty folder is fine"


def test_a_second_process_is_told_who_holds_the_folder(scans):
    out = scans.with_name("out")
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys; from rootsam_lib.results import lock_folder; "
         "lock = lock_folder(sys.argv[1]); print('held', flush=True); sys.stdin.read()", str(out)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=rf"out is in use by process {holder.pid} on .* since 20\d\d-") as caught:
        run(scans)
    assert "\n" not in str(caught.value)
    holder.kill()
    holder.wait()
    assert not run(scans)[0].failed, "a process that died holds nothing"


def test_a_disk_without_locks_is_said(scans, monkeypatch):
    def no_locks(_):
        raise NotImplementedError

    monkeypatch.setattr(results.FileLock, "acquire", no_locks)
    with pytest.warns(UserWarning, match="out lies on a disk without locks: do not use it twice at once"):
        assert not run(scans)[0].failed


# --- Prompts


def test_prompts_reach_their_scan_only(scans, tmp_path):
    file = tmp_path / "points.csv"
    file.write_bytes(f"\ufeffscan;x;y;label\r\n{NAMES[1]};20,5;30;1\r\n{NAMES[1]};90;60;0\r\n".encode())  # from Excel
    prompts = read_prompts(file)
    np.testing.assert_array_equal(prompts[NAMES[1]].points, [[20.5, 30], [90, 60]])
    np.testing.assert_array_equal(prompts[NAMES[1]].labels, [1, 0])
    asked = StubPredictor()
    run(scans, asked, prompts=prompts)
    assert [given is None for given in asked.points] == [True, False, True]
    np.testing.assert_array_equal(asked.points[1], prompts[NAMES[1]].points)
    again, _ = run(scans, StubPredictor(), prompts={NAMES[1]: ([[20.5, 30], [90, 60]], [1, 0])})
    assert again.skipped == len(NAMES), "lists are as good as arrays"


def test_bad_prompts_name_their_row(scans, tmp_path):
    file = tmp_path / "points.csv"
    for line, match in (("a,1,2,5", "label is 5"), ("a,x,2,1", "x is 'x'"), ("a,1,2", "label is None")):
        file.write_text(f"scan,x,y,label\na,1,2,1\n{line}\n")
        with pytest.raises(ValueError, match=f"row 2 below the first line: {match}"):
            read_prompts(file)


# --- The command


def test_command_line(tmp_path, capsys):
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for number, scan in enumerate(synthetic_scans("train", 2, seed=4, height=64, width=80)):
        Image.fromarray(scan.image).save(scans / f"{number}.png")
    call = ["segment", str(scans), "--model", "nano", "--out", str(out), "--tile", "64", "--dpi", "300"]
    assert main(call) == 0
    assert "2 scans done; table" in capsys.readouterr().out
    assert main(call) == 0 and "(2 of them before)" in capsys.readouterr().out
    (scans / "bad.png").write_bytes(b"nothing")
    assert main(call) == 1
    said = capsys.readouterr()
    assert "bad.png cannot be read" in said.err and "Traceback" not in said.err
    assert "1 scan failed: bad; mend what is said above and run it again: what is done is not done anew" in said.err
    shutil.copy(scans / "0.png", scans / "bad.png")
    assert main(call) == 0 and "3 scans done (2 of them before)" in capsys.readouterr().out
    assert main([*call, "--tile", "32"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "other settings (tile_size, overlap)" in error


def test_gain_is_fitted_once_and_kept(tmp_path):
    """Dark scans are shown brighter; asked again for one more scan, with the same gain, without looking anew."""
    texture, told = np.random.default_rng(0).uniform(0.5, 1.5, (64, 64, 3)), []
    (tmp_path / "scans").mkdir()

    def add(name: str, mean: float) -> None:
        Image.fromarray((mean * texture).round().astype(np.uint8)).save(tmp_path / "scans" / f"{name}.png")

    predictor = load_predictor("nano", brightness=60.0, tile_size=64)
    for name, mean in (("a", 10), ("b", 60)):
        add(name, mean)
        segment.segment_folder(tmp_path / "scans", predictor, tmp_path / "out", brighten=True, say=told.append)
        assert read_json(tmp_path / "out" / "segment.json")["gain"] == pytest.approx(6.0, rel=0.02)
    (line,) = [line for line in told if line.startswith("brightness")]
    assert "shown to the model" in line and "60 in the training" in line
    with pytest.raises(ValueError, match=r"results of other settings \(gain\)"):
        segment.segment_folder(tmp_path / "scans", predictor, tmp_path / "out", say=told.append)


def test_scale_is_fitted_once_and_kept(tmp_path, monkeypatch):
    """A folder is segmented at the scale that fits its images; asked again, at that scale, without looking anew."""
    image = np.zeros((64, 64, 3), np.uint8)
    (tmp_path / "scans").mkdir()
    for name in "ab":
        Image.fromarray(image).save(tmp_path / "scans" / f"{name}.png")
    told, asked = [], []

    class Fitted(StubPredictor):
        def __init__(self, input_scale=1.0):
            super().__init__()
            self.root_width, self.input_scale = 6.0, input_scale
            self.about["input_scale"] = input_scale

        at_scale = staticmethod(lambda scale: Fitted(scale))

    def fit(predictor, images):
        asked.append(len(images))
        return predictor.at_scale(0.5), "fitted"

    monkeypatch.setattr(fitting, "fit_scale", fit)
    for _ in range(2):
        segment.segment_folder(tmp_path / "scans", Fitted(), tmp_path / "out", fit=True, say=told.append)
    assert asked == [2] and "fitted" in told
    assert json.loads((tmp_path / "out" / "segment.json").read_text())["input_scale"] == 0.5
    entries = find_pairs(tmp_path / "scans", need_masks=False)  # as a session of the same scans takes it, and keeps it
    assert fitting.fit_to_folder(Fitted(), entries, tmp_path / "out", brightness=False).about[
        "input_scale"
    ] == 0.5 and asked == [2]
    new = fitting.fit_to_folder(Fitted(), entries, tmp_path / "none", say=told.append, brightness=False)
    assert new.about["input_scale"] == 0.5 and asked.pop() == 2
    # A calibration's factors hold at its own scale, so that is taken, and other settings are refused.
    one = {"factors": {"root_length_px": [2, 1, 3]}, "contrast": None, "scans": 3, "tubes": 3, "mm_per_px": None}
    for changes, scale in (({"input_scale": 0.3}, 0.3), ({"tile_size": 9}, 0.0)):
        file = write_json(tmp_path / "calibration.json", one | {"model": Fitted().about | changes})
        how = {"out": tmp_path / f"out{scale}", "fit": True, "calibration": file, "say": told.append}
        if scale:
            segment.segment_folder(tmp_path / "scans", Fitted(), **how)
            assert read_json(how["out"] / "segment.json")["input_scale"] == scale and len(asked) == 1
            assert "input scale 0.3, at which the calibration was fitted" in told
        else:
            with pytest.raises(ValueError, match=r"other settings \(tile_size\): fit it anew, or segment without it"):
                segment.segment_folder(tmp_path / "scans", Fitted(), **how)
            assert not how["out"].exists()
