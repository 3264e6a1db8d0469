"""The check of a GPU runs, here with settings of seconds and on the CPU; what a step waits for is counted; and the
arithmetic of memory holds."""

import importlib.util
import subprocess
import sys

import pytest

from rootsam_lib import CHECKOUT
from rootsam_lib.results import read_json

SCRIPT = CHECKOUT / "benchmarks" / "gpu_check.py"


@pytest.mark.slow
def test_every_part_runs(tmp_path):
    call = [sys.executable, str(SCRIPT), "--tiny", "--out", str(tmp_path / "gpu.json")]
    done = subprocess.run(call, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    result = read_json(tmp_path / "gpu.json")
    for part in ("encoder", "step", "precisions", "whole scans"):
        assert isinstance(result[part], list), result[part]
    assert [row["place"] for row in result["step"]] == ["live", "memory", "pinned", "gpu"]
    assert all(row["finite"] for row in result["precisions"])
    assert all(row["pixels_that_differ"] == 0 for row in result["whole scans"])
    killed = result["killed"]
    assert killed["exit_codes"] == [0, -9, 0] and killed["weights_differ_by"] == 0
    assert killed["losses"][0] == killed["losses"][1]


def test_the_host_waits_once_a_step_and_once_a_click_round():
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    plain, corrected = script.counts(script.TINY)
    assert plain["host_reads"] == {"tolist": 1}
    assert corrected["host_reads"] == {"cpu": 3, "tolist": 1}
    assert plain["dispatches"] < corrected["dispatches"]
