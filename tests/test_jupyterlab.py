"""Lessons in JupyterLab, as a reader has them: run all cells with the menu, then move and click what there is."""

import numpy as np
from browser import Widget, copy_lesson, open_notebook, run_all, screenshot

from rootsam_lib.data.datasets import load_scans
from rootsam_lib.prompts import next_click

pytestmark = pytest.mark.slow

SMALL = {"LIMIT": 3, "STAGE1_EPOCHS": 1, "STAGE2_EPOCHS": 1, "VIEWS": 1, "IMAGE": 0, "CLICKS": ""}
SMALL |= {"SIMULATED_SCANS": 1, "LOOP_SCANS": 1, "LOOP_EPOCHS": 1}
PROMPTS = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.textContent)"


def test_the_slider_of_lesson_01_changes_the_picture(lab, browser):
    copy_lesson("01_edt_prompts", lab.folder)
    page = open_notebook(lab, browser, "01_edt_prompts", viewport={"width": 1400, "height": 1000})
    page.get_by_role("heading", name="01 · EDT prompt sampling").wait_for()
    run_all(page)
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
    screenshot(page, "01-moved")
    page.close()


def test_a_person_corrects_in_lesson_07(lab, browser):
    truth = load_scans("synthetic", "test", limit=SMALL["LIMIT"])[0].mask
    x, y, _ = map(int, next_click(truth, np.zeros_like(truth)))  # in the middle of the thickest root
    copy_lesson("07_correct_by_clicking", lab.folder, **SMALL)
    page = open_notebook(lab, browser, "07_correct_by_clicking")
    run_all(page)
    page.wait_for_function(f"!{PROMPTS}.some(text => text.includes('*'))")
    assert page.evaluate(f"{PROMPTS}.filter(text => !/[0-9]/.test(text))") == [], "a cell failed"
    widget = Widget(page, next(lab.folder.glob("runs/quick/session-*")))
    screenshot(page, "07-1-opened")
    before = widget.pixels()
    widget.click(x, y)
    screenshot(page, "07-2-root-click")
    assert widget.log() == [(x, y, 1)]
    assert np.abs(widget.pixels() - before).max(axis=2).astype(bool).sum() > 100, "the canvas has changed"
    with_one = widget.mask()
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
    widget.key("s")
    assert widget.says("said").startswith("saved in session-")

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
    widget.key("d")
    widget.key("n")
    assert widget.says("place") == "image 2 of 3, 1 done"
    screenshot(page, "07-8-next")
    print(f"from click to redraw at 1024 px, ms: {sorted(widget.latencies)}")
    page.close()
