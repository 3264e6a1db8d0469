"""Lesson 01 in JupyterLab, as a reader has it: run all cells, move the slider, and the picture changes."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rootsam_lib import CHECKOUT

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture
def lab(tmp_path):
    """A JupyterLab server on a copy of lesson 01, and its address."""
    if not CHROMIUM.exists():
        pytest.skip("no Chromium at /usr/bin/chromium")
    pytest.importorskip("jupyterlab")
    home = tmp_path / "home"
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copy(CHECKOUT / "notebooks" / "01_edt_prompts.ipynb", folder)
    settings = {name: str(home / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR")}
    paths = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    variables = os.environ | settings | {"ROOTSAM_HOME": str(tmp_path), "PYTHONPATH": paths}
    variables["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--port=0",
        "--ServerApp.port_retries=0",
    ]
    command += [
        "--IdentityProvider.token=",
        "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    command.append(f"--ServerApp.root_dir={folder}")
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
    try:
        for _ in range(900):
            found = list((home / "JUPYTER_RUNTIME_DIR").glob("jpserver-*.json"))
            if found and found[0].stat().st_size:
                break
            assert server.poll() is None, (tmp_path / "lab.log").read_text()[-2000:]
            time.sleep(0.1)
        yield json.loads(found[0].read_text())["url"], tmp_path
    finally:
        server.terminate()
        server.wait(20)


def test_the_slider_of_lesson_01_changes_the_picture(lab):
    playwright = pytest.importorskip("playwright.sync_api")
    url, folder = lab
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(120_000)  # for a busy machine
        page.goto(f"{url}lab/tree/01_edt_prompts.ipynb")
        page.get_by_role("heading", name="01 · EDT prompt sampling").wait_for()
        page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]')
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        cell = page.locator(".jp-CodeCell", has_text="EDT exponent").filter(has_text="figures.interactive")
        cell.scroll_into_view_if_needed()
        handle = cell.locator(".noUi-handle, .ui-slider-handle").first
        handle.wait_for()
        picture = cell.locator(".jp-OutputArea-output img")
        picture.wait_for()
        before = picture.get_attribute("src")
        readout = cell.locator(".widget-readout")
        said = float(readout.text_content())  # not inner_text: it is empty while the cell is out of sight
        handle.focus()
        for _ in range(8):  # from 1 to 3
            page.keyboard.press("ArrowRight")
        page.wait_for_function("old => [...document.images].every(image => image.src != old)", arg=before)
        assert picture.count() == 1 and picture.get_attribute("src") != before
        assert float(readout.text_content()) > said
        page.screenshot(path=str(folder / "moved.png"))
        browser.close()
