"""Killed trainings end like whole ones, and two processes learn what one does; each in a run of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def run(script: str, folder: Path) -> str:
    """Run a script of this folder on one thread; return what it printed."""
    quiet = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "ROOTSAM_PROGRESS": "0"}
    command = [sys.executable, str(HERE / script), str(folder)]
    done = subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_ten_kills_at_random_moments_change_nothing(tmp_path):
    assert "10 kills, same weights and history" in run("killed_training.py", tmp_path)


def test_two_processes_follow_the_curve_of_one(tmp_path):
    run("two_processes.py", tmp_path)
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert len(one) == len(two) == 4
    # Sums of gradients are rounded otherwise, so the curves part slowly.
    assert abs(one[0]["loss"] - two[0]["loss"]) < 1e-3
    np.testing.assert_allclose([r["loss"] for r in one], [r["loss"] for r in two], rtol=0.02)
