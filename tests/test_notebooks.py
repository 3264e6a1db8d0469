"""The notebooks: order of parts, committed executed, and a changed parameter changes their results."""

import json
import os
import re
import time
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
from PIL import Image
from rootsam_lib.lessons.training_figures import LiveCurve, centre_line_gaps

from rootsam_lib import CHECKOUT
from rootsam_lib.__main__ import NOTEBOOKS
from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.results import write_json, write_text

LESSONS = sorted(NOTEBOOKS.glob("*.ipynb"))
REPOSITORY = "https://colab.research.google.com/github/rootsam/rootsam/blob/main/notebooks/"


def source(cell) -> str:
    return "".join(cell["source"])


@pytest.fixture(params=LESSONS, ids=lambda path: path.stem)
def lesson(request):
    return request.param, nbformat.read(request.param, as_version=4)


def test_there_are_lessons():
    assert [path.name[:2] for path in LESSONS][:8] == ["00", "01", "02", "03", "04", "05", "06", "07"]


def test_parts_in_order(lesson):
    path, notebook = lesson
    cells = notebook.cells
    assert source(cells[0]).startswith(f"# {path.name[:2]} · ") and "**" in source(cells[0])
    assert f"{REPOSITORY}{path.name}" in source(cells[0]), "the Colab badge does not point here"
    assert cells[1].cell_type == "code" and "google.colab" in source(cells[1])
    text = [source(c) for c in cells]
    places = [next(i for i, t in enumerate(text) if t.startswith(start)) for start in
              ("## What you will learn", "PROFILE = ", "## You should have seen", "## Exercises")]  # fmt: skip
    assert places == sorted(places) and places[1] == places[0] + 1
    assert text[places[3]].count("<details>") >= 2, "exercises need folded solutions"
    assert text[-1].startswith("**") and "](" in text[-1], "no link to the next lesson"
    recording = [i for i, t in enumerate(text) if "record(" in t and notebook.cells[i].cell_type == "code"]
    assert recording and recording[-1] == max(i for i, c in enumerate(notebook.cells) if c.cell_type == "code")


def test_every_lesson_shares_its_first_cell(lesson):
    _, notebook = lesson
    assert source(notebook.cells[1]) == source(nbformat.read(LESSONS[0], as_version=4).cells[1])


def test_parameters_are_commented_literals(lesson):
    _, notebook = lesson
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    lines = source(cell).splitlines()
    undocumented = [line for line in lines if "  # " not in line and not line.startswith(("SEED", "STAGE"))]
    assert not undocumented, f"parameters without a word on what they are: {undocumented}"
    for line in lines:
        assert re.fullmatch(r"[A-Z][A-Z0-9_]* = (-?[\d.]+|\"[^\"]*\"|True|False)(  # .+)?", line), line
    assert 'PROFILE = "quick"' in source(cell)


def test_executed_top_to_bottom_without_errors(lesson):
    path, notebook = lesson
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1)), "not a clean run"
    for cell in code:
        assert source(cell).count("\n") < 25, "a cell of more than 25 lines"
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", f"warnings on show: {output.get('text')}"
    assert path.stat().st_size < 1_000_000
    assert any("image/jpeg" in o.get("data", {}) for c in code for o in c.outputs), "no picture"
    assert str(CHECKOUT) not in path.read_text(), "names a path of the machine that it ran on"


def pictures(notebook) -> list:
    """All outputs that are pictures, with their cells."""
    return [
        (cell, output)
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if {"image/jpeg", "image/png"} & set(output.get("data", {}))
    ]


def test_pictures_tell_what_they_show(lesson):
    _, notebook = lesson
    spoken = [o.metadata.get("image/jpeg", {}).get("alt", "") for _, o in pictures(notebook)]
    assert all(len(alt.split()) >= 5 for alt in spoken), "a picture without alt text"
    assert len(set(spoken)) == len(spoken), "two pictures with the same alt text"


def test_no_output_is_cut_off_or_a_bare_object(lesson):
    _, notebook = lesson
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            text = output.get("text", output.get("data", {}).get("text/plain", ""))
            kinds = set(output.get("data", {}))
            if kinds == {"text/plain"} or "application/vnd.jupyter.widget-view+json" in kinds:
                assert not re.search(r" at 0x[0-9a-f]+|Slider\(|Path\(", text), text
            assert not text.rstrip().endswith(("…", "...")), text
            longest = max(map(len, text.splitlines()), default=0)
            assert longest <= (200 if output.output_type == "stream" else 1000), text


def test_every_lesson_has_a_control_and_a_picture_without_it(lesson):
    _, notebook = lesson
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    calls = [cell for cell in code if re.search(r"figures\.interactive\(|^annotate\(", source(cell), re.MULTILINE)]
    assert calls, "nothing to try"
    for cell in calls:
        kinds = [kind for output in cell.outputs for kind in output.get("data", {})]
        assert kinds.count("image/jpeg") == 1, "a control needs one static picture"
        said = [output.get("data", {}).get("text/plain", "") for output in cell.outputs]  # in the place of the widget
        assert "annotate(" in source(cell) or any(re.match(r"\[[a-z]+\] ", text) for text in said)


def test_links_resolve(lesson):
    path, notebook = lesson
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", source(cell)):
                assert target.startswith("https://") or (path.parent / target).exists(), target


def test_gaps_of_a_broken_root():
    whole = np.zeros((40, 240), bool)
    whole[18:21, 20:220] = True
    broken = whole.copy()
    for start, end in ((60, 63), (115, 125), (180, 200)):  # the first is too short to count
        broken[:, start:end] = False
    gaps = centre_line_gaps(broken, whole)
    # A pixel at each end still counts as found.
    assert np.bincount(gaps.ravel()).tolist() == [gaps.size - 26, 8, 18]
    assert centre_line_gaps(whole, whole).max() == 0
    assert centre_line_gaps(whole & False, whole).max() == 1 and centre_line_gaps(whole, whole & False).max() == 0


def test_the_live_curve_follows_the_newest_history(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(LiveCurve, "_show", lambda _, history: shown.append(history))
    (tmp_path / "stage1-older").mkdir()
    (tmp_path / "stage1-older" / "history.csv").write_text("epoch,loss\n7,0.9\n")
    os.utime(tmp_path / "stage1-older" / "history.csv", (1, 1))
    (tmp_path / "stage1-newer").mkdir()
    with LiveCurve(tmp_path, "Stage 1", "black", seconds=0.05):
        write_text(tmp_path / "stage1-newer" / "history.csv", "epoch,loss\n0,0.5\n1,0.25\n")
        for _ in range(200):
            if shown:
                break
            time.sleep(0.05)
    assert shown[0] == [{"epoch": 0.0, "loss": 0.5}, {"epoch": 1.0, "loss": 0.25}]


def run(name: str, folder: Path, **parameters) -> dict:
    """Execute a lesson with changed parameters and return the metrics that it records."""
    path = next(NOTEBOOKS.glob(f"{name}_*.ipynb"))
    papermill.execute_notebook(
        str(path), str(folder / path.name), parameters, cwd=str(folder), kernel_name="python3",
        progress_bar=False, iopub_timeout=60, extra_arguments=["--log-level=50"],
    )  # fmt: skip
    return json.loads((folder / "runs" / "quick" / "lessons" / f"{path.stem}.json").read_text())["metrics"]


@pytest.fixture(autouse=True)
def own_runs(tmp_path, monkeypatch):
    """Kernels of these tests keep their runs in the test's own folder."""
    monkeypatch.setenv("ROOTSAM_HOME", str(tmp_path))


def test_rerun_of_the_tour(tmp_path):
    plain = run("00", tmp_path)
    one = run("00", tmp_path, N_ROOT=1)
    assert one["base_root_iou"] != plain["base_root_iou"]
    assert plain["stage1_root_iou"] > plain["base_root_iou"], "its small training shows what training changes"
    assert (one["trained_share"], one["coins_returned"]) == (plain["trained_share"], plain["coins_returned"])


def test_rerun_of_the_sampler(tmp_path):
    plain = run("01", tmp_path, DRAWS=2000)
    sharp = run("01", tmp_path, DRAWS=2000, EDT_EXPONENT=3.0)
    assert sharp["expected_depth_px"] > plain["expected_depth_px"] + 0.2
    thin = [plain["thin_share"][str(exponent)] for exponent in (0.0, 1.0)] + [sharp["thin_share"]["3.0"]]
    assert thin[0] > thin[1] > thin[2]


def test_rerun_of_the_loss(tmp_path):
    plain = run("02", tmp_path, STEPS=6)
    dear = run("02", tmp_path, STEPS=6, FOCAL_EXPONENT=1.0)
    assert dear["wrong_mask_loss"] < plain["wrong_mask_loss"] and dear["wrong_mask_iou"] == plain["wrong_mask_iou"]


def test_rerun_of_the_cost(tmp_path):
    plain = run("06", tmp_path, DRAWS=2000)
    assert round(plain["saved"]) == 8527 and plain["measured_saved"] is None
    assert plain["saved_low"] < plain["saved_after_set_up"] < plain["saved_high"]
    measured = {"minutes_per_scan": {"mean": 9.0, "low": 8.0, "high": 10.0}, "clicks_per_scan": 20.0}
    write_json(tmp_path / "runs" / "quick" / "results" / "simulated_annotator.json", measured)
    other = run("06", tmp_path, DRAWS=2000, MANUAL_MINUTES=50.0)
    assert round(other["saved"]) == 8493 and other["break_even"] > plain["break_even"]
    # 4.5 minutes more on each of 700 scans at $16 an hour
    assert round(other["saved_after_set_up"] - other["measured_saved"]) == 840 and other["measured_minutes"] == 9


def test_rerun_of_training_and_evaluation_on_another_rate(tmp_path):
    small = {"LIMIT": 4, "STAGE1_EPOCHS": 2, "STAGE2_EPOCHS": 1, "VIEWS": 1}
    plain = run("03", tmp_path, **small)
    slow = run("03", tmp_path, **small, LR=1e-5)
    assert slow["lr_first"] == 1e-5 and plain["lr_first"] == 2e-3 and plain["epochs"] == slow["epochs"] == 2
    assert plain["loss_last"] < slow["loss_last"]
    waved = run("03", tmp_path, **small, SCHEDULE="cosine", DETAIL=True)
    assert waved["lr_last"] == pytest.approx(1e-3) and plain["lr_last"] == 2e-3
    assert waved["trained_parameters"] == plain["trained_parameters"] + 64_464
    scores = run("05", tmp_path, **small)  # trains Stage 2 itself, since notebook 04 did not run
    fewer = run("05", tmp_path, **small, N_ROOT=1)
    assert scores["stage1_root_iou"] != fewer["stage1_root_iou"]
    assert scores["stage2_root_iou"] != scores["base_root_iou"]
    wide = run("04", tmp_path, **small)  # reads both stages, which are there by now
    assert wide["epochs"] == 1 and wide["lr_first"] == pytest.approx(2e-4)
    longer = run("04", tmp_path, **small | {"STAGE2_EPOCHS": 2})
    assert longer["epochs"] == 2 and longer["stage1_512_gaps"] == wide["stage1_512_gaps"]
    assert longer["stage2_1024"] != wide["stage2_1024"] and longer["stage1_1024"] == wide["stage1_1024"]


def test_rerun_of_the_pretraining(tmp_path):
    few = run("A1", tmp_path, STEPS=16, SCENES=3)
    more = run("A1", tmp_path, STEPS=16, SCENES=4)
    assert more["objects"] > few["objects"] and more["loss_first"] == few["loss_first"]


def test_rerun_of_the_ablations(tmp_path):
    small = {"LIMIT": 4, "ABLATION_EPOCHS": 1}
    one = run("A2", tmp_path, **small, VARIANT_NAMES="uniform prompts")
    other = run("A2", tmp_path, **small, VARIANT_NAMES="no boundary")
    assert one["reference_automatic_root_iou"] == other["reference_automatic_root_iou"]
    assert "uniform prompts_automatic_root_iou_gain" in one and "no boundary_automatic_root_iou_gain" in other


def test_rerun_of_the_clicks(tmp_path):
    small = {"LIMIT": 4, "STAGE1_EPOCHS": 1, "STAGE2_EPOCHS": 1, "VIEWS": 1}
    small |= {"SIMULATED_SCANS": 1, "LOOP_SCANS": 3, "LOOP_EPOCHS": 1}
    none = run("07", tmp_path, **small, CLICKS="")
    some = run("07", tmp_path, **small, CLICKS="300,300,1;600,500,0")
    assert none["clicks"] == 0 and none["after_root_pixels"] == none["before_root_pixels"]
    assert some["clicks"] == 2 and some["before_root_pixels"] == none["before_root_pixels"]
    assert some["after_root_pixels"] != none["after_root_pixels"]
    with pytest.raises(papermill.PapermillExecutionError, match="is not x,y,label"):
        run("07", tmp_path, **small, CLICKS="300;300")


def test_a_folder_of_small_images_without_resolution(tmp_path):
    images = tmp_path / "mine"
    images.mkdir()
    for i, scan in enumerate(synthetic_scans("train", 6, seed=3, height=384, width=448)):
        Image.fromarray(scan.image).save(images / f"a_T{i // 2:03d}_L{i:03d}.png")
        Image.fromarray(scan.mask).save(images / f"a_T{i // 2:03d}_L{i:03d}_mask.png")
    mine = {"DATA": "folder", "DATA_DIR": str(images)}
    assert 0 <= run("00", tmp_path, **mine)["root_iou"] <= 1
    # Three tubes make a split of one tube each: none is left to choose epochs on, and the lesson says so.
    small = {**mine, "STAGE1_EPOCHS": 1, "STAGE2_EPOCHS": 1, "VIEWS": 1}
    with pytest.raises(papermill.PapermillExecutionError, match="raise LIMIT, or add scans of other tubes"):
        run("03", tmp_path, **small)
    for i in range(6):
        for end in ("", "_mask"):
            source_file = images / f"a_T{i // 2:03d}_L{i:03d}{end}.png"
            (images / f"b_T{i + 3:03d}_L{i:03d}{end}.png").write_bytes(source_file.read_bytes())
    assert run("05", tmp_path, **small)["base_class_mean_iou"] > 0


def test_rerun_of_the_traits_with_another_pruning(tmp_path):
    small = {"LIMIT": 4, "STAGE1_EPOCHS": 2, "STAGE2_EPOCHS": 1, "VIEWS": 1}
    plain = run("08", tmp_path, **small)
    strict = run("08", tmp_path, **small, SPECK_MM2=1.0, SPUR_DIAMETERS=4.0)
    assert plain["true_length_mm"] > strict["true_length_mm"] > 0
    assert plain["predicted_length_mm"] >= strict["predicted_length_mm"]
