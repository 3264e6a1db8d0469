"""Results files: what cannot be JSON, what is no results file, tables, and the parameters that a lesson records."""

import json
import math

import pytest
from nbclient import NotebookClient
from nbformat import v4

from rootsam_lib import results
from rootsam_lib.results import (
    current_parameters,
    markdown_table,
    read_json,
    record,
    rows_table,
    table,
    write_json,
)

CELLS = (
    'PROFILE = "quick"  # where\nSTEPS = 60\nLR = 1e-3',
    "# of this lesson\nFLIPS = False\nSHARE = -0.5\nSIZES = (1, 2)",
    "import math\nfrom rootsam_lib.prompts import ROOT  # an imported constant is no parameter",
    "# Parameters\nSTEPS = 5\n",  # what papermill adds
    "%matplotlib inline",
    "LIMIT = 3\nlr = LR / 2",
)
EXPECTED = {"PROFILE": "quick", "STEPS": 5, "LR": 1e-3, "FLIPS": False, "SHARE": -0.5}


def test_what_is_no_finite_number_becomes_null(tmp_path):
    content = {"a": math.nan, "b": [math.inf, -math.inf, 1.5], "c": {"d": (math.nan, "x")}}
    file = write_json(tmp_path / "r.json", content)
    assert read_json(file) == {"a": None, "b": [None, None, 1.5], "c": {"d": [None, "x"]}}
    json.loads(file.read_text(), parse_constant=pytest.fail)


def test_parameters_are_what_the_parameters_cell_set():
    namespace = {"In": ["", *CELLS]}
    for cell in CELLS:
        exec(cell.replace("%matplotlib inline", ""), namespace)
    assert namespace["LIMIT"] == 3 and namespace["ROOT"] == 1
    assert current_parameters(namespace) == EXPECTED


def test_a_plain_script_has_its_upper_case_literals():
    namespace = {"PROFILE": "quick", "SEED": 3, "RUNS": results.RUNS, "lower": 1, "TTA": True, "SIZES": [1]}
    assert current_parameters(namespace) == {"PROFILE": "quick", "SEED": 3, "TTA": True}


def test_a_running_notebook_records_its_parameters(tmp_path, monkeypatch):
    """In a kernel, with a cell as papermill adds it and one that a reader changed and ran again."""
    monkeypatch.setenv("ROOTSAM_HOME", str(tmp_path))
    last = 'from rootsam_lib.results import record\nrecord(PROFILE, "99_test", {"score": 0.5}, globals())'
    cells = [v4.new_code_cell(cell) for cell in (*CELLS, CELLS[1].replace("-0.5", "0.25"), last)]
    NotebookClient(v4.new_notebook(cells=cells), timeout=120, kernel_name="python3").execute()
    kept = read_json(tmp_path / "runs" / "quick" / "lessons" / "99_test.json")
    assert kept["parameters"] == EXPECTED | {"SHARE": 0.25} and kept["metrics"] == {"score": 0.5}
    assert {"commit", "device", "versions"} <= set(kept["provenance"])


def test_record_takes_a_namespace(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RUNS", tmp_path)
    file = record("quick", "01_test", {"a": math.nan}, {"SEED": 1, "other": 2})
    assert file == tmp_path / "quick" / "lessons" / "01_test.json"
    assert read_json(file)["parameters"] == {"SEED": 1} and read_json(file)["metrics"] == {"a": None}


def test_tables_in_markdown():
    assert table(["", "b"], [["x", "1"], ["", "2"]]) == "| | b |\n|---|---|\n| x | 1 |\n| | 2 |"
    rows = [{"name": "a", "n": 3, "x": 0.123456}, {"name": "b", "n": None, "x": math.nan}]
    assert rows_table(rows) == "| name | n | x |\n|---|---|---|\n| a | 3 | 0.1235 |\n| b | – | – |"
    assert rows_table(rows, ("x",)).splitlines()[2] == "| 0.1235 |"
    scores = {"tables": {"control": {"base": {"iou": [0.5, 0.25, None]}, "new": {"iou": [0.5, 0.25, 0.75]}}}}
    lines = markdown_table(scores, "control", ["iou"]).splitlines()
    assert lines[0] == "| | `iou` |" and lines[3] == "| new | 0.500 (0.250 to 0.750) |"
    with pytest.raises(ValueError, match="no row to show"):
        rows_table([])
