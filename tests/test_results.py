"""Results files: what cannot be JSON, what is no results file, and tables."""

import json
import math

import pytest

from rootsam_lib.results import (
    markdown_table,
    read_json,
    rows_table,
    table,
    write_json,
)


def test_what_is_no_finite_number_becomes_null(tmp_path):
    content = {"a": math.nan, "b": [math.inf, -math.inf, 1.5], "c": {"d": (math.nan, "x")}}
    file = write_json(tmp_path / "r.json", content)
    assert read_json(file) == {"a": None, "b": [None, None, 1.5], "c": {"d": [None, "x"]}}
    json.loads(file.read_text(), parse_constant=pytest.fail)


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
