"""The command line: what a user can mistype is refused in one sentence, before anything runs."""

import subprocess
import sys

import numpy as np
import yaml
from PIL import Image

from rootsam_lib.__main__ import main
from rootsam_lib.lessons.parameters import check_parameters, notebook_parameters
from rootsam_lib.lessons.runner import NOTEBOOKS, PROFILES, load_profile


def refused(capsys, *arguments) -> str:
    assert main(list(arguments)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and "Traceback" not in said
    return said


def test_unknown_parameter_names_the_closest(capsys):
    assert "did you mean STAGE1_EPOCHS?" in refused(capsys, "tutorial", "-p", "STAGE1_EPOCH", "3")
    assert "choose from" in refused(capsys, "tutorial", "-p", "zzz", "3")


def test_wrong_type_profile_and_number(capsys):
    assert "must be float" in refused(capsys, "tutorial", "-p", "LR", "fast")
    assert "must be int" in refused(capsys, "tutorial", "-p", "SEED", "1.5")
    assert "choose one of quick" in refused(capsys, "tutorial", "--profile", "huge")
    assert "--profile" in refused(capsys, "tutorial", "-p", "PROFILE", "mine")
    assert "names no notebook" in refused(capsys, "tutorial", "--only", "77")
    assert "no such folder" in refused(capsys, "tutorial", "-p", "DATA_DIR", "nowhere")
    for extra in (("-p", "SEED", "3"), ("--only", "00")):
        assert "all lessons on their defaults" in refused(capsys, "tutorial", "--update", *extra)
    assert "no results file" in refused(capsys, "table", "nowhere.json")


def test_own_images_are_looked_at_before_any_lesson_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("ROOTSAM_DATA", raising=False)
    rng, mask = np.random.default_rng(0), np.zeros((48, 48), np.uint8)
    mask[8:12] = 255
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(tmp_path / f"a_T00{number}.png")
        Image.fromarray(mask).save(tmp_path / f"a_T00{number}-mask.png")
    mine = ("tutorial", "-p", "DATA_DIR", str(tmp_path))
    assert "add -p DATA folder, or --only 09" in refused(capsys, *mine)
    assert "add -p DATA_DIR /path/to/your_scans" in refused(capsys, "tutorial", "-p", "DATA", "folder")
    assert "add -p DATA_DIR with your pairs" in refused(capsys, "tutorial", "-p", "NEW_DIR", str(tmp_path))
    folder = (*mine, "-p", "DATA", "folder")
    assert "states no resolution, and lesson 08" in refused(capsys, *folder)
    Image.fromarray(mask[:40]).save(tmp_path / "a_T003-mask.png")
    assert "a_T003-mask.png is 48 × 40 pixels" in refused(capsys, *folder)


def test_every_profile_names_real_parameters_of_the_right_type():
    known = [notebook_parameters(path) for path in NOTEBOOKS.glob("*.ipynb")]
    defaults = {name: default for parameters in known for name, default in parameters.items()}
    for name in yaml.safe_load(PROFILES.read_text()):
        check_parameters(load_profile(name), defaults)


def test_lessons_that_train_share_their_defaults():
    lessons = [notebook_parameters(next(NOTEBOOKS.glob(f"{n}_*.ipynb"))) for n in ("03", "04", "05")]
    shared = set.intersection(*map(set, lessons))
    assert {"DATA", "LIMIT", "STAGE1_EPOCHS", "LR", "VIEWS", "INPUT_SCALE", "DETAIL", "SEED"} <= shared
    for name in shared:
        assert len({lesson[name] for lesson in lessons}) == 1, name


def test_help_of_segment_loads_no_notebook_package():
    code = "import sys; from rootsam_lib.__main__ import main\ntry: main(['segment', '--help'])\n"
    code += "except SystemExit: print('loaded:', *sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split("loaded:")[1].split())
    notebook_packages = {"ipywidgets", "anywidget", "matplotlib", "nbformat", "nbclient", "papermill"}
    assert not loaded & (notebook_packages | {"torch", "pandas"})
