"""What a reader moves and clicks, in JupyterLab: a slider as in the lessons, and the widget by mouse and keys.

Each runs in a small notebook of its own; the lessons themselves are executed by `test_lessons.py`.
"""

import numpy as np
import pytest
from browser import Widget, run_cell, screenshot

from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.prompts import next_click

pytestmark = pytest.mark.slow
SLIDER = """
import matplotlib.pyplot as plt
import numpy as np
from rootsam_lib.lessons import figures
figures.start_lesson()
def power(exponent):
    figure, ax = plt.subplots()
    ax.plot(np.linspace(0, 1) ** exponent)
    return figure, f"A curve of x to the power of {exponent:g}"
figures.interactive(power, exponent=figures.slider("EDT exponent", 1, 0, 6, 0.25))
"""
SESSION = """
from rootsam_lib.apps.correct import Session
from rootsam_lib.apps.widget import annotate
from rootsam_lib.checkpoints import build_sam
from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.predictor import Predictor
session = Session("session", synthetic_scans("test", 3, seed=0), Predictor(build_sam("nano"), tile_size=1024))
annotate(session)
"""


def test_a_moved_slider_changes_the_picture(lab, browser):
    page = run_cell(lab, browser, "slider", SLIDER, viewport={"width": 1400, "height": 1000})
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
    screenshot(page, "slider-moved")
    page.close()


def test_a_person_corrects_by_mouse_and_keys(lab, browser):
    truth = synthetic_scans("test", 3, seed=0)[0].mask
    x, y, _ = map(int, next_click(truth, np.zeros_like(truth)))  # in the middle of the thickest root
    page = run_cell(lab, browser, "clicks", SESSION)
    widget = Widget(page, lab.folder / "session")
    screenshot(page, "07-1-opened")
    before = widget.pixels()
    widget.click(x, y)
    screenshot(page, "07-2-root-click")
    assert widget.log() == [(x, y, 1)]
    assert np.abs(widget.pixels() - before).max(axis=2).astype(bool).sum() > 100, "the canvas has changed"
    with_one, dim = widget.mask(), widget.pixels()[..., :3].mean()
    for _ in range(3):
        page.keyboard.press("l")
    page.wait_for_timeout(300)
    screenshot(page, "07-2-light")
    assert widget.pixels()[..., :3].mean() > 1.2 * dim and float(page.input_value(".rootsam .light")) == 2
    page.locator(".rootsam .light").fill("1")
    page.locator(".rootsam canvas").focus()
    page.wait_for_timeout(300)
    assert widget.pixels()[..., :3].mean() == pytest.approx(dim, abs=0.5)
    widget.click(300, 320, button="right")
    assert widget.log() == [(x, y, 1), (300, 320, 0)]
    screenshot(page, "07-3-soil-click")
    widget.key("z")
    assert widget.log() == [(x, y, 1)] and np.array_equal(widget.mask(), with_one)
    page.mouse.move(*widget.place(x, y))
    page.mouse.wheel(0, -600)
    page.wait_for_timeout(200)
    assert float(widget.canvas["scale"]) > 1
    widget.click(x + 21, y + 17)
    assert widget.log()[1] == (x + 21, y + 17, 1), "under zoom a click lands where it was made"
    screenshot(page, "07-4-zoom")
    for key, tool in (("t", "trace"), ("b", "exclude")):
        page.keyboard.press(key)
        page.mouse.click(*widget.place(x - 40, y + 3))
        page.keyboard.press("z")  # takes the first of two clicks back, and nothing else
        page.mouse.click(*widget.place(x - 30, y + 30))
        page.mouse.move(*widget.place(x, y + 35))
        screenshot(page, f"07-4-{tool}")
        widget.click(x + 30, y + 40)
        assert widget.entry() == (tool, x - 30, y + 30, x + 30, y + 40)
    assert not widget.mask()[y + 30 : y + 41, x - 30 : x + 31].any(), "a box is left out"
    widget.key("z")
    traced = widget.mask()
    assert traced[y + 30, x - 30] and traced[y + 40, x + 30]
    page.keyboard.press("x")
    widget.click(x + 30, y + 40)
    assert widget.entry()[0] == "remove" and not widget.mask()[y + 40, x + 30]
    screenshot(page, "07-4-remove")
    for _ in range(2):
        widget.key("z")
    assert len(widget.log()) == 2
    page.keyboard.press("r")
    widget.key("s")
    assert widget.says("said").startswith("saved in session")

    page.keyboard.press("Control+s")  # the notebook's own save, with the widget's output
    page.wait_for_timeout(1000)
    page.reload()
    widget.ready()
    screenshot(page, "07-5-reloaded")
    assert "2 clicks" in widget.says("state"), "after a reload it goes on"
    widget.click(100, 100)
    assert widget.log() == [(x, y, 1), (x + 21, y + 17, 1), (100, 100, 1)]
    widget.key("e")
    assert widget.says("legend") == "foundmissedfalse root"
    screenshot(page, "07-6-errors")
    page.keyboard.press("h")
    assert page.is_visible(".rootsam .help")
    screenshot(page, "07-7-help")
    page.keyboard.press("h")
    page.keyboard.press("l")
    widget.key("d")
    widget.key("n")
    assert widget.says("place") == "image 2 of 3, 1 done"
    assert float(page.input_value(".rootsam .light")) == 1.25, "the next image is as bright"
    screenshot(page, "07-8-next")
    print(f"from click to redraw at 1024 px, ms: {sorted(widget.latencies)}")
    page.close()
