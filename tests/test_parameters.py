"""Parameters: what a user can mistype is refused with the right spelling, on the command line and inside a notebook."""

import math

import papermill
import pytest
from nbclient import NotebookClient
from nbformat import v4

from rootsam_lib.lessons import parameters
from rootsam_lib.lessons.parameters import (
    assigned,
    check_injected,
    check_parameters,
    current_parameters,
    literal,
    notebook_parameters,
    record,
)
from rootsam_lib.lessons.runner import NOTEBOOKS
from rootsam_lib.results import RUNS, read_json
from rootsam_lib.training.config import stage1

DEFAULTS = {
    "PROFILE": "quick",
    "SEED": 0,
    "LR": 0.5,
    "DATA": "synthetic",
    "DATA_DIR": "",
    "EPOCHS": 3,
    "CLICKS": "",
    "EDITS": "",
    "VARIANT_NAMES": "all",
    "FLAG": True,
    "INPUT_SCALE": 1.0,
    "TUBE_ANGLE": 45.0,
    "PAIRS": 8,
    "PATCH": 256,
    "LOOP_SCANS": 3,
    "LOOP_LR": 1e-3,
    "TEST_SPLIT": "test",
    "FAMILIES": "",
    "ROOT_CLICKS": "",
    "WAGE": 16.0,
    "LIMIT": 0,
}


def test_values_become_the_types_of_the_defaults():
    given = {"LR": 1, "SEED": 2.0, "DATA_DIR": 2024, "FLAG": False}
    assert check_parameters(given, DEFAULTS) == {"LR": 1, "SEED": 2, "DATA_DIR": "2024", "FLAG": False}
    bad = ({"SEED": "3"}, {"SEED": True}, {"SEED": 1.5}, {"SEED": float("inf")}, {"FLAG": 1}, {"LR": "1e-4"})
    for given in bad:
        with pytest.raises(ValueError, match=f"parameter {next(iter(given))} is .* must be"):
            check_parameters(given, DEFAULTS)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PROFILE", "fulll", "choose one of quick, mine, segroot, full"),
        ("DATA", "segrot", "choose one of synthetic, segroot, folder"),
        ("EPOCHS", -1, "give a number, 1 or more"),
        ("EPOCHS", 0, "give a number, 1 or more"),
        ("LR", -1e-3, "give a number, 0 or more and at most 1"),
        ("LR", 10.0, "give a number, 0 or more and at most 1"),
        ("SEED", 2**32, "give a number, 0 or more and at most"),
        ("WAGE", 0.0, "give a number, greater than 0"),
        ("LIMIT", 2, "give 0 for all scans, or 3 or more"),
        ("LR", float("nan"), "give a number, 0 or more"),
        ("INPUT_SCALE", 1e-9, "give a number, 0.03125 or more and at most 32"),
        ("TUBE_ANGLE", 0.785, "give a number, 2 or more and at most 90"),
        ("PAIRS", 1, "give a number, 2 or more"),
        ("PATCH", 100, "give a multiple of 32"),
        ("LOOP_SCANS", 0, "give a number, 1 or more"),
        ("LOOP_LR", 0.0, "give a number, greater than 0"),
        ("TEST_SPLIT", "all", "choose one of valid, test"),
    ],
)
def test_values_that_cannot_be_are_refused_before_any_lesson(name, value, says):
    with pytest.raises(ValueError, match=f"parameter {name} is {value!r}: {says}"):
        check_parameters({name: value}, DEFAULTS)
    with pytest.raises(ValueError, match="click '3,4' is not x,y,label"):
        check_parameters({"CLICKS": "3,4"}, DEFAULTS)
    with pytest.raises(ValueError, match="edit 'trace,3,4' is not tool,x,y"):
        check_parameters({"EDITS": "trace,3,4"}, DEFAULTS)
    with pytest.raises(ValueError, match="augmentation family 'colour jiter' is unknown"):
        check_parameters({"FAMILIES": "noise, colour jiter"}, DEFAULTS)
    with pytest.raises(ValueError, match="ROOT_CLICKS is '60,325,1': give two clicks or more"):
        check_parameters({"ROOT_CLICKS": "60,325,1"}, DEFAULTS)
    with pytest.raises(ValueError, match="ROOT_CLICKS is '3,4,1;3,4,1': give two clicks or more, on several"):
        check_parameters({"ROOT_CLICKS": "3,4,1;3,4,1"}, DEFAULTS)
    with pytest.raises(ValueError, match="click '-3,4,1' is not x,y,label"):
        check_parameters({"CLICKS": "-3,4,1"}, DEFAULTS)
    with pytest.raises(ValueError, match="variant 'seed 3' is unknown"):
        check_parameters({"VARIANT_NAMES": "seed 1, seed 3"}, DEFAULTS)


def test_command_line_values_are_read_as_python_does():
    assert [literal(text) for text in ("1e-4", "3", "True", "-2", "folder")] == [1e-4, 3, True, -2, "folder"]
    assert check_parameters({"CLICKS": literal("60,325,1")}, DEFAULTS) == {"CLICKS": "60,325,1"}, "one click, no tuple"


def test_literals_of_a_cell():
    assert assigned('A = 1  # one\nB = -0.5\nC = "x"\nfor i in []:\n    D = 2') == {"A": 1, "B": -0.5, "C": "x"}
    assert assigned("this is no Python") == {}


def test_what_papermill_injects_is_checked_in_the_notebook():
    parameters = ['PROFILE = "quick"', "SEED = 0\nIMAGES = 700"]  # shared with other lessons, and the lesson's own
    found = check_injected(["import os", *parameters, '# Parameters\nPROFILE = "mine"\nIMAGES = 5.0\n'])
    assert found == {"PROFILE": "mine", "IMAGES": 5} and type(found["IMAGES"]) is int
    assert check_injected([*parameters, "images = 5"]) == {}  # a reader's own cell
    with pytest.raises(ValueError, match="parameter IMAGES is -1: give"):
        check_injected([parameters[0], "SEED = 0\nIMAGES = -1"])  # written into the parameters cell
    for wrong, message in (("images = 5", "'images': did you mean IMAGES"), ('SEED = "3"', "SEED is '3'")):
        with pytest.raises(ValueError, match=message):
            check_injected([*parameters, f"# Parameters\n{wrong}\n"])


def test_every_notebook_names_its_parameters():
    for path in NOTEBOOKS.glob("[0-9A]*.ipynb"):
        assert {"PROFILE", "SEED"} <= set(notebook_parameters(path))


@pytest.mark.slow
def test_papermill_stops_at_a_name_that_the_notebook_does_not_have(tmp_path):
    """Only its first cells run: the third of ours refuses."""
    path, executed = NOTEBOOKS / "07_cost.ipynb", tmp_path / "06.ipynb"
    with pytest.raises(papermill.PapermillExecutionError, match="no parameter 'images': did you mean IMAGES"):
        papermill.execute_notebook(
            str(path), str(executed), {"images": 5}, cwd=str(tmp_path), kernel_name="python3", progress_bar=False
        )


def test_no_training_scan_is_a_cost_too_and_whole_numbers_may_come_as_floats():
    assert check_parameters({"TRAINING_SCANS": 0}, {"TRAINING_SCANS": 40}) == {"TRAINING_SCANS": 0}
    with pytest.raises(ValueError, match="SCANS is 0"):
        check_parameters({"SCANS": 0}, {"SCANS": 4})
    config = stage1("nano", epochs=3.0, seed=1.0)
    assert (config.epochs, config.seed) == (3, 1) and isinstance(config.epochs, int) and isinstance(config.seed, int)


# --- What a lesson records

CELLS = (
    'PROFILE = "quick"  # where\nSTEPS = 60\nLR = 1e-3',
    "# of this lesson\nFLIPS = False\nSHARE = -0.5\nSIZES = (1, 2)",
    "import math\nfrom rootsam_lib.prompts import ROOT  # an imported constant is no parameter",
    "# Parameters\nSTEPS = 5\n",  # what papermill adds
    "%matplotlib inline",
    "LIMIT = 3\nlr = LR / 2",
)
EXPECTED = {"PROFILE": "quick", "STEPS": 5, "LR": 1e-3, "FLIPS": False, "SHARE": -0.5}


def test_parameters_are_what_the_parameters_cell_set():
    namespace = {"In": ["", *CELLS]}
    for cell in CELLS:
        exec(cell.replace("%matplotlib inline", ""), namespace)
    assert namespace["LIMIT"] == 3 and namespace["ROOT"] == 1
    assert current_parameters(namespace) == EXPECTED


def test_a_plain_script_has_its_upper_case_literals():
    namespace = {"PROFILE": "quick", "SEED": 3, "RUNS": RUNS, "lower": 1, "TTA": True, "SIZES": [1]}
    assert current_parameters(namespace) == {"PROFILE": "quick", "SEED": 3, "TTA": True}


def test_a_running_notebook_records_its_parameters(tmp_path, monkeypatch):
    """In a kernel, with a cell as papermill adds it and one that a reader changed and ran again."""
    monkeypatch.setenv("ROOTSAM_HOME", str(tmp_path))
    last = 'from rootsam_lib.lessons.parameters import record\nrecord(PROFILE, "99_test", {"score": 0.5}, globals())'
    cells = [v4.new_code_cell(cell) for cell in (*CELLS, CELLS[1].replace("-0.5", "0.25"), last)]
    NotebookClient(v4.new_notebook(cells=cells), timeout=120, kernel_name="python3").execute()
    kept = read_json(tmp_path / "runs" / "quick" / "lessons" / "99_test.json")
    assert kept["parameters"] == EXPECTED | {"SHARE": 0.25} and kept["metrics"] == {"score": 0.5}
    assert {"commit", "device", "versions"} <= set(kept["provenance"])


def test_record_takes_a_namespace(tmp_path, monkeypatch):
    monkeypatch.setattr(parameters, "RUNS", tmp_path)
    file = record("quick", "01_test", {"a": math.nan}, {"SEED": 1, "other": 2})
    assert file == tmp_path / "quick" / "lessons" / "01_test.json"
    assert read_json(file)["parameters"] == {"SEED": 1} and read_json(file)["metrics"] == {"a": None}
