"""What the browser tests share: a JupyterLab of their own, headless Chromium, and what a person does in a notebook."""

import contextlib
import io
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat
import numpy as np
import pytest
from PIL import Image

from rootsam_lib import CHECKOUT

PATIENCE = 150_000  # ms that a page waits for anything, for a busy machine
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
QUIET += ["--disable-sync", "--no-first-run", "--disable-dev-shm-usage"]


class Lab(NamedTuple):
    """A running JupyterLab: its address, its token, and the folder that it serves and that its kernels take as home."""

    address: str
    token: str
    folder: Path


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[Lab]:
    """JupyterLab on a free port, serving `folder`, with its own settings and this checkout's rootsam_lib; ends with the
    block, kernels included. Raises RuntimeError with the end of its log where it does not start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, own = secrets.token_hex(8), folder / ".jupyter"
    settings = {name: own / name for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    settings |= {"HOME": folder, "ROOTSAM_HOME": folder, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    settings["PYTHONPATH"] = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    news = settings["JUPYTER_CONFIG_DIR"] / "lab/user-settings/@jupyterlab/apputils-extension"
    news.mkdir(parents=True)
    news = news / "notification.jupyterlab-settings"
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}", "--ServerApp.port_retries=0"]
    command += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"]
    command += ["--ServerApp.ip=127.0.0.1", "--ServerApp.allow_root=True"]
    log, address, answers = own / "lab.log", f"http://127.0.0.1:{port}", False
    with open(log, "w") as file:
        server = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {name: str(value) for name, value in settings.items()},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        for _ in range(480):
            if server.poll() is not None:
                break
            try:
                urllib.request.urlopen(f"{address}/api?token={token}", timeout=1)
                answers = True
                break
            except OSError:
                time.sleep(0.25)
        if not answers:
            raise RuntimeError(f"JupyterLab did not start: {log.read_text()[-900:]}")
        yield Lab(address, token, folder)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


@contextlib.contextmanager
def chromium() -> Iterator:
    """Headless Chromium, driven by Playwright. Skips the test, with a word on how to get it, where either is absent."""
    sync_api = pytest.importorskip("playwright.sync_api", reason='no playwright: pip install -e ".[dev]"')
    pytest.importorskip("jupyterlab", reason='no JupyterLab: pip install -e ".[dev]"')
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=QUIET)
        yield browser
        browser.close()


def open_notebook(lab: Lab, browser, name: str, **options: object):
    """A page with a notebook of the lab's folder. options: of Playwright's `browser.new_page`."""
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
    page.set_default_timeout(PATIENCE)
    page.goto(f"{lab.address}/doc/tree/{name}.ipynb?token={lab.token}")
    page.wait_for_selector(".jp-Notebook .jp-Cell", state="attached")
    for _ in range(PATIENCE // 250):  # the page says idle before it is connected; the server knows
        with urllib.request.urlopen(f"{lab.address}/api/sessions?token={lab.token}") as answer:
            kernels = [session["kernel"] for session in json.load(answer) if session["path"] == f"{name}.ipynb"]
        if any(kernel["connections"] and kernel["execution_state"] == "idle" for kernel in kernels):
            break
        page.wait_for_timeout(250)
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', state="attached")
    return page


def run_cell(lab: Lab, browser, name: str, source: str, **options: object):
    """A page with a new notebook `name` of one cell, which was run. options: see `open_notebook`."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, lab.folder / f"{name}.ipynb")
    page = open_notebook(lab, browser, name, **options)
    run_all(page)
    return page


def run_all(page) -> None:
    """Run all cells of a notebook without outputs with the menu, as a person does."""
    started = "[...document.querySelectorAll('.jp-InputPrompt')].some(prompt => /[*0-9]/.test(prompt.textContent))"
    for _ in range(20):  # a press that comes before the kernel listens is lost
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        for _ in range(20):
            if page.evaluate(started):
                return
            page.wait_for_timeout(100)
    raise AssertionError("the cells do not run")


def screenshot(page, name: str) -> None:
    """A picture of the page, kept only where ROOTSAM_SCREENSHOTS names a folder."""
    if place := os.environ.get("ROOTSAM_SCREENSHOTS"):
        Path(place).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(place) / f"{name}.png")


class Widget:
    """The clicking widget on a page, and what a person does there. session: the folder that it writes to."""

    def __init__(self, page, session: Path | None = None):
        self.page, self.session = page, session
        self.latencies: list[int] = []  # ms from a click to its redraw
        self.ready()

    def ready(self) -> None:
        """Wait until it shows an image and waits for nothing, and bring it into view."""
        cell = self.page.locator(".jp-CodeCell", has_text="annotate(session)").last
        cell.wait_for(state="attached")
        cell.scroll_into_view_if_needed()
        self.page.wait_for_function(
            "() => { const c = document.querySelector('.rootsam canvas');"
            "return c && c.dataset.answer && c.dataset.scale && !c.dataset.waiting; }"
        )
        seen = 0
        for _ in range(100):  # outputs that are still laid out above it may push it away again
            self.page.evaluate("document.querySelector('.rootsam canvas').scrollIntoView({block: 'center'})")
            self.page.wait_for_timeout(150)
            box = self.canvas
            inside = box["top"] >= 0 and box["top"] + box["height"] <= self.page.viewport_size["height"]
            seen = seen + 1 if inside else 0
            if seen == 3:
                return
        raise AssertionError("the widget does not stay in view")

    @property
    def canvas(self) -> dict:
        """What the canvas says of itself (scale, x, y, answer, latency), and where it is on the screen."""
        return self.page.evaluate(
            "() => { const c = document.querySelector('.rootsam canvas'), b = c.getBoundingClientRect();"
            "return {...c.dataset, left: b.left, top: b.top, width: b.width, height: b.height}; }"
        )

    def place(self, x: int, y: int) -> tuple[float, float]:
        """Where the middle of an image pixel is on the screen."""
        c = self.canvas
        scale = float(c["scale"])
        return c["left"] + float(c["x"]) + (x + 0.5) * scale, c["top"] + float(c["y"]) + (y + 0.5) * scale

    def answered(self, action) -> None:
        """Do something that the kernel answers, and wait for the redraw."""
        before = self.canvas["answer"]
        action()
        self.page.wait_for_function(
            "before => document.querySelector('.rootsam canvas').dataset.answer !== before", arg=before
        )
        self.latencies.append(int(self.canvas["latency"]))

    def click(self, x: int, y: int, **options: object) -> None:
        self.answered(lambda: self.page.mouse.click(*self.place(x, y), **options))

    def tap(self, x: int, y: int) -> None:
        self.answered(lambda: self.page.touchscreen.tap(*self.place(x, y)))

    def key(self, key: str) -> None:
        self.answered(lambda: self.page.keyboard.press(key))

    def log(self, index: int = 0) -> list[tuple[int, int, int]]:
        """The clicks on disk of an image, counted in the order of names: (x, y, label)."""
        file = sorted((self.session / "clicks").glob("*.json"))[index]
        return [(click["x"], click["y"], click["label"]) for click in json.loads(file.read_text())["clicks"]]

    def entry(self, number: int = -1) -> tuple:
        """One entry of the first image's log on disk: its tool and its places."""
        file = sorted((self.session / "clicks").glob("*.json"))[0]
        return tuple(json.loads(file.read_text())["clicks"][number][key] for key in ("tool", "x", "y", "x2", "y2"))

    def mask(self, index: int = 0) -> np.ndarray:
        """The mask on disk."""
        return np.asarray(Image.open(sorted((self.session / "masks").glob("*.png"))[index]))

    def pixels(self) -> np.ndarray:
        """The canvas as it is on the screen: int (H, W, 3)."""
        box = self.canvas
        clip = {"x": box["left"], "y": box["top"], "width": box["width"], "height": box["height"]}
        return np.asarray(Image.open(io.BytesIO(self.page.screenshot(clip=clip))).convert("RGB")).astype(int)

    def says(self, part: str) -> str:
        """The text of a part of it: name, place, state, said or legend."""
        return self.page.text_content(f".rootsam .{part}")
