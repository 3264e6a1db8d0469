"""The clicking widget: its messages without a browser, and itself in real JupyterLab in headless Chromium."""

import io
import json
import re

import nbformat
import numpy as np
import pytest
from browser import Widget, run_cell, screenshot
from nbconvert import HTMLExporter
from PIL import Image, ImageColor

from rootsam_lib import CHECKOUT
from rootsam_lib.apps import correct
from rootsam_lib.apps.correct import Session
from rootsam_lib.apps.widget import Annotator, layer_png, still
from rootsam_lib.checkpoints import build_sam
from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.drawing import FALSE, FOUND, MASK, MISSED, ROOT_POINT, SOIL_POINT
from rootsam_lib.predictor import Predictor
from rootsam_lib.prompts import next_click


@pytest.fixture
def session(tmp_path, small_scans):
    return Session(tmp_path, small_scans[:2], Predictor(build_sam("nano")))


# --- Without a browser


def test_messages_drive_the_session(session):
    widget = Annotator(session)
    first = widget.layer
    widget.hear({"do": "add", "x": 100, "y": 90, "label": 1})
    point = [100, 90, 1, "click", -1, -1]
    assert widget.points == [point] and widget.layer != first and widget.status["answer"] == 2
    widget.hear({"do": "move", "number": 0, "x": 20, "y": 30})
    widget.hear({"do": "undo"})
    assert widget.points == [point]
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


def test_a_dark_scan_is_first_shown_as_bright_as_the_model_sees_it(tmp_path, small_scans):
    session = Session(tmp_path, small_scans[:1], Predictor(build_sam("nano"), gain=2.5))
    assert Annotator(session).status["light"] == 2.5


def test_tools_have_messages_of_their_own(session):
    widget = Annotator(session)
    before = session.mask.copy()
    widget.hear({"do": "use", "tool": "trace", "x": 20, "y": 30, "x2": 60, "y2": 50})
    assert widget.points == [[20, 30, 1, "trace", 60, 50]] and session.mask.sum() > before.sum()
    widget.hear({"do": "use", "tool": "remove", "x": 20, "y": 30})
    assert not session.mask[28:33, 18:23].any() and not widget.status["message"]
    widget.hear({"do": "use", "tool": "remove", "x": 20, "y": 30})
    assert widget.status["message"].startswith("nothing changed")
    for _ in range(3):
        widget.hear({"do": "undo"})
    assert np.array_equal(session.mask, before)
    widget.hear({"do": "use", "tool": "exclude", "x": 200, "y": 180, "x2": 10, "y2": 5})
    assert not session.mask[5:181, 10:201].any()
    assert Image.open(io.BytesIO(still(session))).size == (256, 256)


def test_what_cannot_be_done_is_said_and_changes_nothing(session):
    widget = Annotator(session)
    before = widget.layer
    for message in (
        {"do": "add", "x": 999, "y": 1, "label": 1},
        {"do": "remove", "number": 3},
        {"do": "fly"},
        {},
        {"do": "use", "tool": "trace", "x": 3, "y": 1},
        {"do": "use", "tool": "saw", "x": 3, "y": 1},
    ):
        widget.hear(message)
        assert widget.status["message"] and widget.status["refused"], message
        assert widget.layer == before and widget.points == []


def test_layers_hold_the_masks_to_the_pixel(session):
    mask, truth = np.random.default_rng(0).random((2, 37, 53)) > 0.5
    seen = np.asarray(Image.open(io.BytesIO(layer_png(mask))).convert("RGBA"))
    assert np.array_equal(seen[..., 3] > 0, mask)
    seen = np.asarray(Image.open(io.BytesIO(layer_png(mask, truth))).convert("RGBA"))
    assert np.array_equal(seen[..., 3] > 0, mask | truth)
    colours = [{tuple(colour) for colour in seen[where]} for where in (mask & truth, truth & ~mask, mask & ~truth)]
    assert colours == [{(0xF2, 0xF2, 0xF2, 255)}, {(0xFF, 0x9D, 0x00, 255)}, {(0x2F, 0x8F, 0xFF, 255)}]
    widget = Annotator(session)
    widget.hear({"do": "view", "view": "error"})
    assert widget.status["has_truth"] and widget.layer == layer_png(session.mask, session.scan.mask)


def test_the_canvas_has_the_colours_of_the_drawings(session):
    named = {"root": ROOT_POINT, "soil": SOIL_POINT, "mask": MASK}
    named |= {"found": FOUND, "missed": MISSED, "false root": FALSE}
    assert Annotator(session).colours == named
    script = (CHECKOUT / "rootsam_lib" / "apps" / "widget.js").read_text()
    assert set(re.findall(r"colours(?:\.(\w+)|\[(\w+)\])", script)) == {("root", ""), ("soil", ""), ("", "what")}
    assert '{ mask: ["mask"], error: ["found", "missed", "false root"], image: [] }[s.view]' in script


def test_what_goes_wrong_is_said_on_the_canvas(session, monkeypatch):
    widget = Annotator(session)
    monkeypatch.setattr(correct, "measure", lambda *_: 1 / 0)
    widget.hear({"do": "add", "x": 10, "y": 10, "label": 1})
    widget.hear({"do": "done"})
    assert widget.status["done"] and "could not be measured: ZeroDivisionError" in widget.status["message"]

    def full(*_):
        raise MemoryError("does not fit")

    with monkeypatch.context() as patch:
        patch.setattr(session.predictor.model, "encode", full)
        widget.hear({"do": "next"})
    assert widget.status["refused"] and widget.status["message"] == "does not fit" and widget.status["position"] == 0
    widget.hear({"do": "next"})
    assert widget.status["position"] == 1


def test_a_picture_stays_where_no_kernel_runs(session):
    session.add(100, 100, 1)
    picture = np.asarray(Image.open(io.BytesIO(still(session))))
    assert picture.shape == (256, 256, 3)
    red, green, blue = picture[100, 100].astype(int)
    assert green > red + 60 and green > blue + 60, "the click is drawn where it was made"
    session.add(40, 180, 0)
    seen = np.asarray(Image.open(io.BytesIO(still(session)))).astype(int)[174:187, 34:47]
    red = (seen[..., 0] > seen[..., 1] + 90) & (seen[..., 0] > seen[..., 2] + 90)
    assert red[6, 6] and red[3, 3] and not red[6, :3].any() and not red[:3, 6].any(), "soil is a cross, not a disk"
    bundle = Annotator(session)._repr_mimebundle_()
    assert "Run this cell" in (bundle[0] if isinstance(bundle, tuple) else bundle)["text/plain"]


def test_a_lesson_as_html_shows_the_picture(tmp_path):
    """What nbconvert, or a site that shows notebooks, makes of the committed lesson: no widget, but a still."""
    lesson = CHECKOUT / "notebooks" / "06_correct_by_clicking.ipynb"
    notebook = nbformat.read(lesson, as_version=4)
    cell = next(c for c in notebook.cells if c.source.startswith("annotate("))
    notebook.cells = [cell]
    html, _ = HTMLExporter().from_notebook_node(notebook)
    assert '<img alt="' in html or "data:image/jpeg;base64," in html
    assert "widget-view" not in json.dumps(cell.outputs), "a dead widget is stored"
    assert "Run this cell to click" in html


# --- In the browser


def opened(lab, browser, name: str, source: str, **options: object) -> Widget:
    """The widget of a notebook with one cell, whose session lies in a folder called `name`."""
    return Widget(run_cell(lab, browser, name, source, **options), lab.folder / name)


TOUCH = """
import torch
torch.set_num_threads(2)
from rootsam_lib.apps.widget import annotate
from rootsam_lib.checkpoints import build_sam
from rootsam_lib.apps.correct import Session
from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.predictor import Predictor
session = Session("touch", synthetic_scans("test", 2, seed=0), Predictor(build_sam("nano"), tile_size=1024))
annotate(session)
"""


def fingers(page, *paths: tuple[tuple[float, float], tuple[float, float]]) -> None:
    """One finger a path, (start, end) in px of the screen, all at once and in five steps."""
    touch = page.context.new_cdp_session(page)

    def send(kind: str, share: float | None = None):
        places = [] if share is None else [[a + share * (b - a) for a, b in zip(*path, strict=True)] for path in paths]
        points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(places)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    send("touchStart", 0)
    for step in range(1, 6):
        send("touchMove", step / 5)
    page.wait_for_timeout(150)
    send("touchMove", 1)  # they rest before they leave: after a fling the browser takes no tap
    send("touchEnd")
    page.wait_for_timeout(200)


@pytest.mark.slow
def test_a_person_corrects_with_fingers_on_a_phone(lab, browser):
    truth = synthetic_scans("test", 1, seed=0)[0].mask
    x, y, _ = map(int, next_click(truth, np.zeros_like(truth)))
    widget = opened(lab, browser, "touch", TOUCH, viewport={"width": 390, "height": 844}, has_touch=True)
    page = widget.page
    screenshot(page, "touch-1-opened")
    whole = float(widget.canvas["scale"])
    before = widget.pixels()
    widget.tap(x, y)
    ((left, top, label),) = widget.log()
    assert abs(left - x) <= 1 / whole and abs(top - y) <= 1 / whole and label == 1
    assert np.abs(widget.pixels() - before).max(axis=2).astype(bool).sum() > 30
    assert widget.says("legend") == "mask"
    screenshot(page, "touch-2-root-tap")

    page.tap(".rootsam [data-kind='0']")  # from now on a tap means soil
    widget.ready()
    middle = widget.place(300, 320)
    fingers(page, *(((middle[0] + side * 20, middle[1]), (middle[0] + side * 100, middle[1])) for side in (-1, 1)))
    assert float(widget.canvas["scale"]) > 4 * whole and len(widget.log()) == 1, "two fingers zoom and click nothing"
    widget.tap(300, 320)
    assert widget.log()[1] == (300, 320, 0), "under zoom, to the pixel"
    screenshot(page, "touch-3-zoom-soil-tap")
    start, left = widget.place(340, 360), float(widget.canvas["x"])
    fingers(page, (start, (start[0] + 60, start[1] + 30)))
    assert float(widget.canvas["x"]) == pytest.approx(left + 60, abs=1) and len(widget.log()) == 2, "one finger pans"
    start = widget.place(330, 370)
    widget.answered(lambda: fingers(page, (start, (start[0] + 6, start[1] + 5))))
    assert widget.log()[2] == (330, 370, 0), "a tap with an unsteady finger is a tap"
    widget.answered(lambda: page.tap(".rootsam [data-remove]"))
    start = widget.place(300, 320)
    moved = (start[0] + 12, start[1] - 4), widget.place(270, 310)
    widget.answered(lambda: fingers(page, moved))
    assert len(widget.log()) == 2 and widget.log()[1][0] < 275, "a finger beside a point drags it"
    widget.answered(lambda: page.tap(".rootsam [data-do='undo']"))
    assert widget.log()[1] == (300, 320, 0)

    page.tap(".rootsam [data-kind='trace']")
    widget.ready()
    page.touchscreen.tap(*widget.place(280, 330))
    page.wait_for_timeout(300)
    assert len(widget.log()) == 2, "one end is no root yet"
    widget.tap(310, 335)
    assert widget.entry() == ("trace", 280, 330, 310, 335) and widget.mask()[330, 280]
    page.tap(".rootsam [data-kind='exclude']")
    widget.ready()
    page.touchscreen.tap(*widget.place(270, 325))
    widget.tap(290, 340)
    assert widget.entry()[0] == "exclude" and not widget.mask()[330, 280]
    screenshot(page, "touch-3b-tools")
    for _ in range(2):
        widget.answered(lambda: page.tap(".rootsam [data-do='undo']"))
    page.tap(".rootsam [data-zoom='fit']")
    widget.answered(lambda: page.tap(".rootsam [data-view='error']"))
    screenshot(page, "touch-4-errors")
    keys = page.evaluate("[...document.querySelectorAll('.legend .key')].map(k => getComputedStyle(k).backgroundColor)")
    assert keys == [f"rgb{ImageColor.getrgb(colour)}" for colour in (FOUND, MISSED, FALSE)]
    page.tap(".rootsam [data-help]")
    assert page.is_visible(".rootsam .help")
    screenshot(page, "touch-5-help")
    page.tap(".rootsam [data-help]")
    widget.answered(lambda: page.tap(".rootsam [data-do='done']"))
    widget.answered(lambda: page.tap(".rootsam [data-do='next']"))
    assert widget.says("place") == "image 2 of 2, 1 done"
    wide = page.evaluate("[...document.querySelectorAll('.rootsam *')].filter(e => e.scrollWidth > e.clientWidth + 1"
                         " && getComputedStyle(e).overflow !== 'hidden' && e.clientWidth).length")  # fmt: skip
    assert wide == 0, "nothing sticks out at the side"
    screenshot(page, "touch-6-next")
    page.close()


WIDE = """
import numpy as np, torch
torch.set_num_threads(2)
from rootsam_lib.apps.widget import annotate
from rootsam_lib.checkpoints import build_sam
from rootsam_lib.data.scans import Scan
from rootsam_lib.apps.correct import Session
image = np.random.default_rng(0).integers(0, 255, (200, 3000, 3), dtype=np.uint8)
from rootsam_lib.predictor import Predictor
session = Session("wide", [Scan(image, None, "wide", "T1")], Predictor(build_sam("nano"), tile_size=256))
annotate(session)
"""


@pytest.mark.slow
def test_clicks_land_where_they_are_made(lab, browser):
    widget = opened(lab, browser, "wide", WIDE)
    page = widget.page
    whole = float(widget.canvas["scale"])
    assert whole < 0.5, "the image is wider than the canvas"
    widget.click(2996, 190)  # a pixel of the screen covers two to three of the image here
    x, y, label = widget.log()[0]
    assert abs(x - 2996) <= 1 / whole and abs(y - 190) <= 1 / whole and label == 1
    screenshot(page, "wide-1-whole")
    page.mouse.move(*widget.place(1500, 100))
    for _ in range(2):
        page.mouse.wheel(0, -900)
    page.wait_for_timeout(200)
    assert float(widget.canvas["scale"]) > 4
    widget.click(1500, 100)
    widget.answered(lambda: alt_click(widget, 1530, 90))
    assert widget.log()[1:] == [(1500, 100, 1), (1530, 90, 0)], "under zoom, to the pixel"

    def drag(start, end):
        page.mouse.move(*start)
        page.mouse.down()
        page.mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        page.mouse.move(*end)
        page.mouse.up()

    start = widget.place(1480, 110)
    before = float(widget.canvas["x"])
    drag(start, (start[0] + 150, start[1] - 40))
    assert float(widget.canvas["x"]) == pytest.approx(before + 150, abs=1) and len(widget.log()) == 3, "a drag pans"
    widget.click(1470, 120)
    assert widget.log()[3] == (1470, 120, 1), "under zoom and pan, to the pixel"
    widget.answered(lambda: drag(widget.place(1500, 100), widget.place(1490, 104)))
    assert widget.log()[1] == (1490, 104, 1), "a point is dragged"
    page.mouse.move(*widget.place(1530, 90))
    widget.key("Delete")
    assert [click[:2] for click in widget.log()[1:]] == [(1490, 104), (1470, 120)]
    screenshot(page, "wide-2-zoom")
    page.set_viewport_size({"width": 900, "height": 900})
    page.wait_for_timeout(300)
    widget.ready()
    widget.click(1400, 60)
    x, y, _ = widget.log()[3]
    assert abs(x - 1400) <= 1 / whole * 1.6 and abs(y - 60) <= 1 / whole * 1.6, "after the window changed its size"
    page.close()


def alt_click(widget: Widget, x: int, y: int):
    widget.page.keyboard.down("Alt")
    widget.page.mouse.click(*widget.place(x, y))
    widget.page.keyboard.up("Alt")
