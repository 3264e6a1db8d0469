"""The report of a headless run: one page with every lesson, that needs nothing from anywhere."""

import html.parser
import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter
from traitlets.config import Config

from rootsam_lib.lessons.report import outputs, table, write_report
from rootsam_lib.lessons.runner import NOTEBOOKS
from rootsam_lib.results import write_json

CHROMIUM = Path("/usr/bin/chromium")


class Page(html.parser.HTMLParser):
    """What a page loads, its pictures' alt texts, and whether every tag that was opened is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.loads, self.alts, self.open, self.links, self.handlers = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.handlers += [name for name in attrs if name.startswith("on") or name == "style"]
        self.loads += [attrs[key] for key in ("src", "srcset", "data", "poster") if key in attrs]
        if tag in ("link", "script", "iframe", "object", "embed", "base"):
            self.loads.append(tag)
        if tag == "img":
            self.alts.append(attrs.get("alt"))
        if tag == "a":
            self.links.append(attrs["href"])
        if tag not in ("img", "meta", "br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def report(tmp_path):
    folder = tmp_path / "quick"
    shutil.copytree(NOTEBOOKS, folder / "notebooks", ignore=shutil.ignore_patterns("*.sh", ".*", "*.md"))
    made = {"commit": "abc", "versions": {"torch": "9.9"}}
    for path in NOTEBOOKS.glob("0[0-6]*.ipynb"):
        content = {
            "metrics": {"base_root_iou": 0.123456, "by": {"thin": None}},
            "parameters": {"SEED": 0},
            "provenance": made,
        }
        write_json(folder / "lessons" / f"{path.stem}.json", content)
    write_json(folder / "results" / "minutes.json", {"minutes": {"00_tour": 0.25}})
    return write_report(folder, {"PROFILE": "quick", "NOTE": "<script>alert(1)</script>"}, made)


def test_every_lesson_is_there_and_nothing_is_loaded(report):
    text = report.read_text()
    page = Page(text)
    lessons = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    assert page.links == [f"#{stem}" for stem in lessons]
    assert all(f'<h2 id="{stem}">' in text for stem in lessons)
    assert page.loads and all(load.startswith("data:image/") for load in page.loads)
    assert "url(" not in text and "@import" not in text and "<script" not in text
    assert not page.open and all(page.alts)
    pictures = sum(
        "image/jpeg" in output.get("data", {})
        for path in NOTEBOOKS.glob("*.ipynb")
        for cell in nbformat.read(path, 4).cells
        for output in cell.get("outputs", [])
    )
    assert len(page.alts) == pictures + len(lessons), "a card of the index has no picture"
    assert all(
        word in text
        for word in ("What the poster says", "not tested here", "root IoU, base 0.123", "prefers-color-scheme")
    )
    assert "0.1235" in text and "by.thin" in text and "0.25 min" in text
    assert "versions.torch" in text and "has recorded none" in text and "a toy run" in text


def test_alt_texts_reach_nbconverts_page():
    """Its default template writes none; the configuration that `make` installs takes one that does."""
    settings = json.loads((NOTEBOOKS / "jupyter_nbconvert_config.json").read_text())
    (path,) = NOTEBOOKS.glob("00_*.ipynb")
    text, _ = HTMLExporter(config=Config(settings)).from_filename(str(path))
    alts = re.findall(r'<img[^>]*alt="([^"]*)"', text)
    assert len(alts) > 4 and all(len(alt.split()) >= 3 for alt in alts)
    assert not any("No description" in alt for alt in alts) and "image/jpeg;base64" in text


def test_it_opens_in_a_browser_without_a_network(report):
    if not CHROMIUM.exists():
        pytest.skip("no Chromium at /usr/bin/chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason='no playwright: pip install -e ".[dev]"')
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_context(offline=True).new_page()
        asked, complaints = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(report.as_uri())
        broken = page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).length")
        page.set_viewport_size({"width": 390, "height": 800})
        wide = page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        browser.close()
    assert broken == 0 and wide and not complaints
    assert all(url.startswith(("file:", "data:")) for url in asked)


def shown(*outputs_of_cells) -> str:
    cells = [nbformat.v4.new_markdown_cell("## Here"), nbformat.v4.new_code_cell(outputs=list(outputs_of_cells))]
    return outputs(nbformat.v4.new_notebook(cells=cells))


def display(kind: str, content: str):
    return nbformat.v4.new_output("display_data", {kind: content, "text/plain": "a picture"})


def test_tables_and_names():
    made = shown(
        display("text/markdown", "**a** b\n\n| x | `y` |\n|---|---|\n| 1 | 2 |\n\nsee [it](https://example.org/x)")
    )
    assert "<h3>Here</h3>" in made and "<strong>a</strong> b" in made and "example.org" not in made
    assert all(f"<{tag}>" in made for tag in ("table", "th", "td", "code")) and "---" not in made
    assert "<th>a.b</th>" in table({"a": {"b": 1}}).replace(" ", "") and "&lt;b&gt;" in table({"x": "<b>"})


@pytest.mark.parametrize(
    "kind, content",
    [
        ("image/png", 'iVBO" onerror="alert(1)'),
        ("image/jpeg", '"><script>alert(1)</script>'),
        ("text/html", "<script>alert(1)</script>"),
        ("image/svg+xml", "<svg onload='alert(1)'></svg>"),
        ("application/javascript", "alert(1)"),
        ("text/markdown", "<img src=x onerror=alert(1)> ![](https://example.org/a.png) [b](javascript:alert(1))"),
        ("text/plain", "<script>alert(1)</script>"),
    ],
)
def test_outputs_are_inert(kind, content):
    """Whatever an executed notebook holds: no script, no handler, nothing that is loaded from elsewhere."""
    page = Page(shown(display(kind, content)))
    assert all(load.startswith("data:image/") for load in page.loads)  # a script in such a picture does not run
    assert not page.handlers and not page.links


def test_a_damaged_lesson_is_left_out_and_said(report):
    folder = report.parent
    (folder / "notebooks" / "07_cost.ipynb").write_text('{"cells": [')
    (folder / "lessons" / "02_hybrid_loss.json").write_text('{"parameters": 3}')
    with pytest.warns(UserWarning, match="07_cost.* damaged, and left out of the report: run lesson 07 again") as said:
        page = write_report(folder, {}, {}).read_text()
    assert len(said) == 2 and 'id="02_hybrid_loss"' not in page and 'id="03_stage1"' in page


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the tutorial first"):
        write_report(tmp_path, {}, {})
