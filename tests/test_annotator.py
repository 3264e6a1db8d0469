"""The clicking widget: its messages without a browser, and itself in real JupyterLab in headless Chromium."""

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
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbconvert import HTMLExporter
from PIL import Image

from rootsam_lib import CHECKOUT
from rootsam_lib.annotator import Annotator, layer_png, still
from rootsam_lib.prompts import next_click
from rootsam_lib.sam import build_sam
from rootsam_lib.sessions import Session
from rootsam_lib.synthetic import synthetic_scans

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
LATENCIES = []


@pytest.fixture
def session(tmp_path, small_scans):
    return Session(tmp_path, small_scans[:2], build_sam("nano"))


# --- Without a browser


def test_messages_drive_the_session(session):
    widget = Annotator(session)
    first = widget.layer
    widget.hear({"do": "add", "x": 100, "y": 90, "label": 1})
    assert widget.points == [[100, 90, 1]] and widget.layer != first and widget.status["answer"] == 2
    widget.hear({"do": "move", "number": 0, "x": 20, "y": 30})
    widget.hear({"do": "undo"})
    assert widget.points == [[100, 90, 1]]
    widget.hear({"do": "redo"})
    widget.hear({"do": "remove", "number": 0})
    assert widget.points == [] and widget.layer == first
    widget.hear({"do": "done"})
    assert widget.status["done"] and widget.status["done_images"] == 1
    image = widget.image
    widget.hear({"do": "next"})
    assert widget.status["position"] == 1 and widget.image != image and not widget.status["done"]
    widget.hear({"do": "previous"})
    widget.hear({"do": "save"})
    assert widget.status["message"].startswith("saved in ") and (session.folder / "session.csv").is_file()


def test_what_cannot_be_done_is_said_and_changes_nothing(session):
    widget = Annotator(session)
    before = widget.layer
    for message in ({"do": "add", "x": 999, "y": 1, "label": 1}, {"do": "remove", "number": 3}, {"do": "fly"}, {}):
        widget.hear(message)
        assert widget.status["message"] and widget.status["refused"]
        assert widget.layer == before and widget.points == []


def test_layers_hold_the_masks_to_the_pixel(session):
    mask, truth = np.random.default_rng(0).random((2, 37, 53)) > 0.5
    seen = np.asarray(Image.open(io.BytesIO(layer_png(mask))).convert("RGBA"))
    assert np.array_equal(seen[..., 3] > 0, mask)
    seen = np.asarray(Image.open(io.BytesIO(layer_png(mask, truth))).convert("RGBA"))
    assert np.array_equal(seen[..., 3] > 0, mask | truth)
    colours = [{tuple(colour) for colour in seen[where]} for where in (mask & truth, truth & ~mask, mask & ~truth)]
    assert colours == [{(0x94, 0xC1, 0x1F, 255)}, {(0xE8, 0x4A, 0x27, 255)}, {(0x00, 0x56, 0xA4, 255)}]
    widget = Annotator(session)
    widget.hear({"do": "view", "view": "error"})
    assert widget.status["has_truth"] and widget.layer == layer_png(session.mask, session.scan.mask)


def test_a_picture_stays_where_no_kernel_runs(session):
    session.add(100, 100, 1)
    picture = np.asarray(Image.open(io.BytesIO(still(session))))
    assert picture.shape == (256, 256, 3)
    red, green, blue = picture[100, 100].astype(int)
    assert green > red + 60 and green > blue + 60, "the click is drawn where it was made"
    bundle = Annotator(session)._repr_mimebundle_()
    assert "Run this cell" in (bundle[0] if isinstance(bundle, tuple) else bundle)["text/plain"]


def test_a_lesson_as_html_shows_the_picture(tmp_path):
    """What nbconvert, or a site that shows notebooks, makes of the committed lesson: no widget, but a still."""
    lesson = CHECKOUT / "notebooks" / "07_correct_by_clicking.ipynb"
    notebook = nbformat.read(lesson, as_version=4)
    cell = next(c for c in notebook.cells if c.source.startswith("annotate("))
    notebook.cells = [cell]
    html, _ = HTMLExporter().from_notebook_node(notebook)
    assert '<img alt="' in html or "data:image/jpeg;base64," in html
    assert "widget-view" not in json.dumps(cell.outputs), "a dead widget is stored"
    assert "Run this cell to click" in html


# --- In the browser


NOTEBOOK = """
import torch
torch.set_num_threads(2)
from rootsam_lib.annotator import annotate
from rootsam_lib.sam import build_sam
from rootsam_lib.sessions import Session
from rootsam_lib.synthetic import synthetic_scans
drawn = synthetic_scans("test", 2, seed=0)
session = Session("session", drawn, build_sam("nano"))
annotate(session)
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on a free port, in a folder of its own: (address, token, folder)."""
    pytest.importorskip("playwright", reason='no playwright: pip install -e ".[dev]"')
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium (Debian), then run again")
    folder = tmp_path_factory.mktemp("lab")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(8)
    own = {"HOME": folder, "JUPYTER_CONFIG_DIR": folder / "config", "JUPYTER_DATA_DIR": folder / "data"}
    own |= {"JUPYTER_RUNTIME_DIR": folder / "runtime", "PYTHONPATH": CHECKOUT, "ROOTSAM_HOME": folder}
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        f"--port={port}",
        f"--IdentityProvider.token={token}",
    ]
    command += ["--ServerApp.ip=127.0.0.1", "--ServerApp.allow_root=True", f"--ServerApp.root_dir={folder}"]
    news = folder / "config/lab/user-settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=os.environ | {k: str(v) for k, v in own.items()}, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"{address}/api?token={token}", timeout=1)
                    break
                except OSError:
                    if server.poll() is not None:
                        pytest.fail(f"JupyterLab did not start: {(folder / 'lab.log').read_text()[-600:]}")
                    time.sleep(0.25)
            yield address, token, folder
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def browser(lab):
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    quiet += ["--disable-sync", "--no-first-run", "--disable-dev-shm-usage"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield chromium
        chromium.close()


class Page:
    """A notebook in JupyterLab whose last cell shows the widget, and what a person does there."""

    def __init__(self, lab, browser, name: str, source: str, touch: bool = False):
        address, token, self.folder = lab
        cells = [nbformat.v4.new_code_cell(source)]
        metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), self.folder / f"{name}.ipynb")
        self.page = browser.new_page(viewport={"width": 1280, "height": 900})
        self.page.set_default_timeout(150_000)  # for a busy machine
        self.page.goto(f"{address}/doc/tree/{name}.ipynb?token={token}")
        self.name = name

    def run(self):
        self.page.wait_for_selector(".jp-CodeCell")
        self.page.wait_for_function(
            "document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'"
        )
        for _ in range(20):  # the first press may come before the notebook listens
            self.page.click(".jp-CodeCell .jp-InputArea-editor")
            self.page.keyboard.press("Shift+Enter")
            self.page.wait_for_timeout(500)
            if self.page.inner_text(".jp-CodeCell .jp-InputPrompt >> nth=0").strip() != "[ ]:":
                break
        self.ready()

    def ready(self):
        self.page.wait_for_selector(".rootsam canvas[data-answer]")
        self.page.wait_for_function(
            "() => { const c = document.querySelector('.rootsam canvas');"
            "return c.dataset.scale && !c.dataset.waiting; }"
        )
        self.page.evaluate("document.querySelector('.rootsam').scrollIntoView({block: 'end'})")
        self.page.wait_for_timeout(200)

    @property
    def canvas(self) -> dict:
        return self.page.evaluate(
            "() => { const c = document.querySelector('.rootsam canvas'), b = c.getBoundingClientRect();"
            "return {...c.dataset, left: b.left, top: b.top, width: b.width, height: b.height}; }"
        )

    def place(self, x: int, y: int) -> tuple[float, float]:
        """Where the middle of an image pixel is on the screen."""
        c = self.canvas
        return c["left"] + float(c["x"]) + (x + 0.5) * float(c["scale"]), c["top"] + float(c["y"]) + (y + 0.5) * float(
            c["scale"]
        )

    def answered(self, action):
        """Do something that the kernel answers, and wait for the redraw."""
        before = self.canvas["answer"]
        action()
        self.page.wait_for_function(
            "before => { const c = document.querySelector('.rootsam canvas'); return c.dataset.answer !== before; }",
            arg=before,
        )
        if latency := self.canvas.get("latency"):
            LATENCIES.append(int(latency))

    def click(self, x: int, y: int, **options):
        self.answered(lambda: self.page.mouse.click(*self.place(x, y), **options))

    def key(self, key: str):
        self.answered(lambda: self.page.keyboard.press(key))

    def log(self, index: int = 0) -> list[tuple[int, int, int]]:
        name = sorted(path.name for path in (self.folder / self.session / "clicks").glob("*.json"))[index]
        clicks = json.loads((self.folder / self.session / "clicks" / name).read_text())["clicks"]
        return [(c["x"], c["y"], c["label"]) for c in clicks]

    session = "session"

    def mask(self, index: int = 0) -> np.ndarray:
        return np.asarray(Image.open(sorted((self.folder / self.session / "masks").glob("*.png"))[index]))

    def pixels(self) -> np.ndarray:
        box = self.canvas
        clip = {key: box[key] for key in ("width", "height")} | {"x": box["left"], "y": box["top"]}
        return np.asarray(Image.open(io.BytesIO(self.page.screenshot(clip=clip))).convert("RGB")).astype(int)

    def picture(self, name: str):
        """A screenshot, kept only where ROOTSAM_SCREENSHOTS names a folder."""
        if place := os.environ.get("ROOTSAM_SCREENSHOTS"):
            Path(place).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(place) / f"{name}.png")


def test_a_person_corrects_in_jupyterlab(lab, browser):
    truth = synthetic_scans("test", 1, seed=0)[0].mask
    x, y, _ = map(int, next_click(truth, np.zeros_like(truth)))  # in the middle of the thickest root
    page = Page(lab, browser, "clicks", NOTEBOOK)
    page.run()
    page.picture("1-opened")
    before = page.pixels()
    page.click(x, y)
    page.picture("2-root-click")
    assert page.log() == [(x, y, 1)]
    assert np.abs(page.pixels() - before).max(axis=2).astype(bool).sum() > 500, "the mask on the canvas has changed"
    with_one = page.mask()
    page.click(300, 320, button="right")
    assert page.log() == [(x, y, 1), (300, 320, 0)]
    page.picture("3-soil-click")
    page.key("z")
    assert page.log() == [(x, y, 1)] and np.array_equal(page.mask(), with_one)
    page.page.mouse.move(*page.place(x, y))
    page.page.mouse.wheel(0, -600)
    page.page.wait_for_timeout(200)
    assert float(page.canvas["scale"]) > 1
    page.picture("4-zoomed")
    page.click(x + 21, y + 17)
    assert page.log()[1] == (x + 21, y + 17, 1), "a click lands where it was made when zoomed in"
    page.key("s")
    assert "saved in session/" in page.page.inner_text(".rootsam .said")

    page.page.keyboard.press("Control+s")  # the notebook's own save, with the widget's output
    page.page.wait_for_timeout(1000)
    page.page.reload()
    page.ready()
    page.picture("5-reloaded")
    assert "2 clicks" in page.page.inner_text(".rootsam .state"), "after a reload it goes on"
    page.click(100, 100)
    assert page.log() == [(x, y, 1), (x + 21, y + 17, 1), (100, 100, 1)]
    page.key("e")
    page.picture("6-errors")
    page.page.keyboard.press("h")
    page.picture("7-help")
    page.page.keyboard.press("h")
    page.key("d")
    page.key("n")
    assert "image 2 of 2, 1 done" in page.page.inner_text(".rootsam .place")
    page.picture("8-next")
    page.page.close()
    print(f"from click to redraw at 1024 px, ms: {sorted(LATENCIES)}")


WIDE = """
import numpy as np, torch
torch.set_num_threads(2)
from rootsam_lib.annotator import annotate
from rootsam_lib.sam import build_sam
from rootsam_lib.scans import Scan
from rootsam_lib.sessions import Session
image = np.random.default_rng(0).integers(0, 255, (200, 3000, 3), dtype=np.uint8)
session = Session("wide", [Scan(image, None, "wide", "T1")], build_sam("nano"), tile_size=256)
annotate(session)
"""


def test_clicks_land_where_they_are_made(lab, browser):
    page = Page(lab, browser, "wide", WIDE)
    page.session = "wide"
    page.run()
    whole = float(page.canvas["scale"])
    assert whole < 0.5, "the image is wider than the canvas"
    page.click(2996, 190)  # a pixel of the screen covers two to three of the image here
    x, y, label = page.log()[0]
    assert abs(x - 2996) <= 1 / whole and abs(y - 190) <= 1 / whole and label == 1
    page.picture("9-wide")
    page.page.mouse.move(*page.place(1500, 100))
    for _ in range(2):
        page.page.mouse.wheel(0, -900)
    page.page.wait_for_timeout(200)
    assert float(page.canvas["scale"]) > 4
    page.click(1500, 100)
    page.answered(lambda: alt_click(page, 1530, 90))
    assert page.log()[1:] == [(1500, 100, 1), (1530, 90, 0)], "under zoom, to the pixel"

    def drag(start, end):
        page.page.mouse.move(*start)
        page.page.mouse.down()
        page.page.mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        page.page.mouse.move(*end)
        page.page.mouse.up()

    start = page.place(1480, 110)
    before = float(page.canvas["x"])
    drag(start, (start[0] + 150, start[1] - 40))
    assert float(page.canvas["x"]) == pytest.approx(before + 150, abs=1) and len(page.log()) == 3, "a drag pans"
    page.click(1470, 120)
    assert page.log()[3] == (1470, 120, 1), "under zoom and pan, to the pixel"
    page.answered(lambda: drag(page.place(1500, 100), page.place(1490, 104)))
    assert page.log()[1] == (1490, 104, 1), "a point is dragged"
    page.page.mouse.move(*page.place(1530, 90))
    page.key("Delete")
    assert [click[:2] for click in page.log()[1:]] == [(1490, 104), (1470, 120)]
    page.picture("10-wide-zoomed")
    page.page.set_viewport_size({"width": 900, "height": 900})
    page.page.wait_for_timeout(300)
    page.ready()
    page.click(1400, 60)
    x, y, _ = page.log()[3]
    assert abs(x - 1400) <= 1 / whole * 1.6 and abs(y - 60) <= 1 / whole * 1.6, "after the window changed its size"
    page.page.close()


def alt_click(page: Page, x: int, y: int):
    page.page.keyboard.down("Alt")
    page.page.mouse.click(*page.place(x, y))
    page.page.keyboard.up("Alt")
