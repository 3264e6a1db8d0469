"""The report of a headless run: one page with every lesson, that needs nothing from anywhere."""

import html.parser
import shutil
from pathlib import Path

import nbformat
import pytest

from rootsam_lib.__main__ import NOTEBOOKS
from rootsam_lib.lessons.report import flat, markdown, write_report
from rootsam_lib.results import write_json

CHROMIUM = Path("/usr/bin/chromium")


class Page(html.parser.HTMLParser):
    """What a page loads, its pictures' alt texts, and whether every tag that was opened is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.loads, self.alts, self.open, self.links = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
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
            "metrics": {"root_iou": 0.123456, "by": {"thin": None}},
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
    assert len(page.alts) == pictures
    assert "0.1235" in text and "<td>by.thin</td><td>–</td>" in text and "0.25 min" in text
    assert "versions.torch" in text and "recorded no metrics" in text and "a toy run" in text


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
        wide = page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        browser.close()
    assert broken == 0 and wide and not complaints
    assert all(url.startswith(("file:", "data:")) for url in asked)


def test_tables_and_names():
    made = markdown("**a** b\n\n| x | `y` |\n|---|---|\n| 1 | <2 |\n\nsee [it](https://example.org/x)")
    assert "<p><b>a</b> b</p>" in made and "<tr><th>x</th><th><code>y</code></th></tr>" in made
    assert "<td>&lt;2</td>" in made and "example.org" not in made and "---" not in made
    assert flat({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the tutorial first"):
        write_report(tmp_path, {}, {})
