"""Whole folders: any size and format, resumable, and one bad image does not stop the others."""

import csv
import functools
import os

import numpy as np
import pytest
from PIL import Image

from rootsam_lib.__main__ import main
from rootsam_lib.apps import segment as folders
from rootsam_lib.apps.segment import load_run, read_prompts, segment_folder
from rootsam_lib.checkpoints import build_sam, save_checkpoint
from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.metrics import count, dilate, iou
from rootsam_lib.predictor import Segmentation
from rootsam_lib.prompts import Prompts
from rootsam_lib.results import write_json

# nano finds hardly a root without points before it is trained, and says so.
pytestmark = pytest.mark.filterwarnings("ignore::rootsam_lib.guards.SuspicionWarning")
NAMES = ["a_T001_L001_11.04.17", "a_T001_L002_11.04.17", "a_T002_L001_11.04.17"]


@pytest.fixture(scope="module")
def model():
    return build_sam("nano").eval()


@functools.cache
def drawn():
    return synthetic_scans("train", 3, seed=4, height=128, width=160)


@pytest.fixture
def scans(tmp_path):
    """Three images of different sizes and formats; one has a mask, none states a resolution."""
    folder = tmp_path / "scans"
    (folder / "images").mkdir(parents=True)
    for i, scan in enumerate(drawn()):
        Image.fromarray(scan.image[: 128 - 20 * i]).save(folder / "images" / f"{NAMES[i]}{['.png', '.jpg', '.tif'][i]}")
    Image.fromarray(scan.mask[:88]).save(folder / "images" / f"{NAMES[2]}-mask.png")
    return folder


def rows(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_masks_overlays_and_table(model, scans, monkeypatch):
    truths = [dilate(scan.mask[: 128 - 20 * i]) for i, scan in enumerate(drawn())]
    asked = iter([Segmentation(truth, np.where(truth, 1.0, -1.0), 0.5) for truth in truths])
    monkeypatch.setattr(folders, "segment", lambda *_, **__: next(asked))
    report = segment_folder(scans, model, tile_size=64, dpi=300)
    out = scans.with_name("scans-roots")
    assert report.table == out / "traits.csv" and not report.failed and report.skipped == 0
    for i, name in enumerate(NAMES):
        mask = np.asarray(Image.open(out / f"{name}-mask.png"))
        np.testing.assert_array_equal(mask, np.where(truths[i], 255, 0))
        area = float(report.rows[i]["root_area_mm2"]) / (25.4 / 300) ** 2  # specks go, and holes are filled
        assert area == pytest.approx(truths[i].sum(), rel=0.1)
        assert Image.open(out / f"{name}-overlay.jpg").size == (160, 128 - 20 * i)
    table = rows(report.table)
    assert [row["scan"] for row in table] == NAMES == [row["scan"] for row in report.rows]
    assert [row["tube"] for row in table] == ["T001", "T001", "T002"] and table[1]["location"] == "2"
    assert {row["date"] for row in table} == {"2017-04-11"}
    (score,) = rows(out / "scores.csv")  # of the last of the three, which has a mask
    expected = iou(count(truths[2], drawn()[2].mask[:88]))
    assert score["scan"] == NAMES[2] and float(score["root_iou"]) == pytest.approx(expected, rel=1e-4)
    assert float(score["dilated_dice"]) == 1 > float(score["dice"]) > 0
    assert float(score["root_length_mm"]) == pytest.approx(float(table[2]["root_length_mm"]))
    assert not list(out.glob("*.partial"))


def test_what_is_done_is_not_done_again(model, scans, monkeypatch):
    out = scans.with_name("out")
    first = segment_folder(scans, model, out, tile_size=64, dpi=300)
    asked = []
    really = folders.segment
    monkeypatch.setattr(folders, "segment", lambda *a, **k: asked.append(a[1].shape) or really(*a, **k))
    again = segment_folder(scans, model, out, tile_size=64, dpi=300)
    assert asked == [] and again.skipped == 3
    assert [row["scan"] for row in again.rows] == NAMES and rows(again.table) == rows(first.table)

    (out / f"{NAMES[1]}-mask.png").rename(out / f"{NAMES[1]}-mask.png.partial")  # killed while writing
    image = next((scans / "images").glob(f"{NAMES[0]}*"))
    os.utime(image, (image.stat().st_atime, image.stat().st_mtime + 1000))  # a new version of the image
    before = rows(first.table)
    assert segment_folder(scans, model, out, tile_size=64, dpi=300).skipped == 1
    assert asked == [(128, 160, 3), (108, 160, 3)] and rows(first.table) == before
    with pytest.raises(ValueError, match=r"other settings \(input_scale\)"):
        segment_folder(scans, model, out, tile_size=64, dpi=300, input_scale=2.0)


def test_an_interrupted_folder_goes_on(model, scans, monkeypatch):
    out = scans.with_name("out")
    really, asked = folders.segment, []

    def interrupted(*arguments, **options):
        asked.append(arguments[1].shape)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return really(*arguments, **options)

    monkeypatch.setattr(folders, "segment", interrupted)
    with pytest.raises(KeyboardInterrupt):
        segment_folder(scans, model, out, tile_size=64, dpi=300)
    assert [row["scan"] for row in rows(out / "traits.csv")] == NAMES[:1]
    assert segment_folder(scans, model, out, tile_size=64, dpi=300).skipped == 1
    assert [row["scan"] for row in rows(out / "traits.csv")] == NAMES


def test_a_damaged_image_is_named_and_the_rest_goes_on(model, scans):
    good = next((scans / "images").glob(f"{NAMES[1]}*"))
    (scans / "images" / "a_T000.jpg").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    said = []
    report = segment_folder(scans, model, tile_size=64, dpi=300, say=said.append)
    assert list(report.failed) == ["a_T000"] and len(report.rows) == 3
    (line,) = said
    assert "a_T000.jpg cannot be read as an image" in line and "\n" not in line


def test_prompts_reach_their_scan_only(model, scans, tmp_path, monkeypatch):
    file = tmp_path / "points.csv"
    file.write_text(f"scan,x,y,label\n{NAMES[1]},20,30,1\n{NAMES[1]},90,60,0\n")
    prompts = read_prompts(file)
    np.testing.assert_array_equal(prompts[NAMES[1]].points, [[20, 30], [90, 60]])
    np.testing.assert_array_equal(prompts[NAMES[1]].labels, [1, 0])
    asked = []
    really = folders.segment
    monkeypatch.setattr(folders, "segment", lambda *a, **k: asked.append(k["prompts"]) or really(*a, **k))
    segment_folder(scans, model, tile_size=64, dpi=300, prompts=prompts)
    assert [given is None for given in asked] == [True, False, True] and asked[1] is prompts[NAMES[1]]


def test_bad_prompts(model, scans, tmp_path):
    file = tmp_path / "points.csv"
    for line in ("a,1,2,5", "a,-1,2,1", "a,x,2,1", "a,1,2", "a,nan,2,1"):
        file.write_text(f"scan,x,y,label\na,1,2,1\n{line}\n")
        with pytest.raises(ValueError, match="line 3: give x and y"):
            read_prompts(file)
    file.write_text("scan,x,y\n")
    with pytest.raises(ValueError, match="lacks the columns label"):
        read_prompts(file)
    with pytest.raises(FileNotFoundError, match="columns scan, x, y, label"):
        read_prompts(tmp_path / "nowhere.csv")
    wrong = {NAMES[0][:-1]: Prompts(np.zeros((1, 2), np.float32), np.ones(1, np.int64))}
    with pytest.raises(ValueError, match=f"did you mean {NAMES[0]}"):
        segment_folder(scans, model, dpi=300, prompts=wrong)


def test_refused_before_any_work(model, scans, tmp_path):
    with pytest.raises(ValueError, match=r"states no resolution \(3 of 3"):
        segment_folder(scans, model)
    with pytest.raises(ValueError, match="lies inside"):
        segment_folder(scans, model, scans / "out", dpi=300)
    with pytest.raises(ValueError, match="dpi is -3"):
        segment_folder(scans, model, dpi=-3)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        segment_folder(tmp_path / "nowhere", model, dpi=300)
    assert not scans.with_name("scans-roots").exists()


def test_a_stated_resolution_is_enough(model, scans):
    stated = scans.rename(scans.with_name("scans_300dpi"))
    for image in (stated / "images").iterdir():
        image.rename(stated / image.name)
    (stated / "images").rmdir()
    report = segment_folder(stated, model, tile_size=64)
    assert {row["mm_per_px"] for row in report.rows} == {25.4 / 300}


def test_runs(model, tmp_path):
    stage = tmp_path / "runs" / "stage2-01234567"
    save_checkpoint(model, stage / "best.safetensors")
    (stage / "history.csv").write_text("epoch\n0\n")
    write_json(stage / "stage.json", {"config": {"model": "nano", "input_scale": 1.5, "patch_size": 2048}})
    _, settings = load_run(stage)
    assert settings == {"input_scale": 1.5, "tile_size": 1024}
    assert load_run("nano")[1] == {"input_scale": 1.0, "tile_size": 512}
    with pytest.raises(FileNotFoundError, match=r"no trained stage.*such as .*stage2-01234567"):
        load_run(tmp_path / "runs")
    with pytest.raises(FileNotFoundError, match="or nano for the base model"):
        load_run(tmp_path / "nowhere")


def test_command_line(scans, capsys):
    out = scans.with_name("out")
    call = ["segment", str(scans), "--model", "nano", "--out", str(out), "--tile", "64", "--dpi", "300"]
    assert main(call) == 0
    assert "3 scans done; table" in capsys.readouterr().out
    assert main(call) == 0 and "(3 of them before)" in capsys.readouterr().out
    (scans / "bad.png").write_bytes(b"nothing")
    assert main(call) == 1
    said = capsys.readouterr()
    assert "bad.png cannot be read" in said.err and "1 scans failed: bad" in said.err and "Traceback" not in said.err
    for wrong, text in ((["--tile", "65"], "other settings"), (["--out", str(out) + "2", "--tile", "65"], "multiple")):
        assert main([*call, *wrong]) in (1, 2) and text in capsys.readouterr().err
    assert main([*call[:2], "--model", "nanno"]) == 2 and "no trained stage" in capsys.readouterr().err
    assert main(call[:4]) == 2 and "give dpi (--dpi" in capsys.readouterr().err
