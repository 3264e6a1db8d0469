"""What several tests share: small scans, and one thread so that many small steps do not wait for each other."""

import http.server
import os
import threading
from pathlib import Path

import pytest
import torch
from browser import chromium, jupyterlab

from rootsam_lib import CHECKOUT
from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.data.scans import Scan

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_scans() -> list[Scan]:
    """Four drawn scans of 256 x 256 px from two tubes, all with roots."""
    scans = [s for s in synthetic_scans("train", 24, seed=3, height=256, width=256) if s.mask.mean() > 0.005]
    return [Scan(s.image, s.mask, f"s{i}", f"T{i // 2:03d}", "", s.mm_per_px) for i, s in enumerate(scans[:4])]


@pytest.fixture
def segroot() -> Path:
    """A copy of SegRoot's scans; without one the test skips and says how to get it."""
    for place in (os.environ.get("ROOTSAM_DATA"), CHECKOUT.parent / "shared" / "segroot"):
        if place and any(Path(place).glob("**/*-mask.jpg")):
            return Path(place)
    pytest.skip("no copy of SegRoot: set ROOTSAM_DATA to its folder")


@pytest.fixture
def server(tmp_path):
    """A web server on this machine: the folder that it serves, and its address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Silent(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=folder)

        def log_message(self, *arguments):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    yield folder, f"http://127.0.0.1:{httpd.server_port}/"
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; skips, with a word on how to get it, where it is absent."""
    with chromium() as engine:
        yield engine


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    """JupyterLab in a folder of its own."""
    with jupyterlab(tmp_path_factory.mktemp("lab")) as running:
        yield running
