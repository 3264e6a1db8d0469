"""What several tests share: small scans, and one thread so that many small steps do not wait for each other."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from rootsam_lib import HOME
from rootsam_lib.scans import Scan
from rootsam_lib.synthetic import synthetic_scans

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_scans() -> list[Scan]:
    """Four drawn scans of 256 x 256 px from two tubes, all with roots."""
    scans = [s for s in synthetic_scans("train", 24, seed=3, height=256, width=256) if s.mask.mean() > 0.005]
    return [Scan(s.image, s.mask, f"s{i}", f"T{i // 2:03d}", "", s.mm_per_px) for i, s in enumerate(scans[:4])]


@pytest.fixture(scope="session")
def segroot() -> Path:
    """A copy of SegRoot's scans; without one the test skips and says how to get it."""
    for place in (os.environ.get("ROOTSAM_DATA"), HOME.parent / "shared" / "segroot"):
        if place and (Path(place) / "data_raw").is_dir():
            return Path(place)
    pytest.skip("no copy of SegRoot: set ROOTSAM_DATA to a folder that holds its data_raw")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
