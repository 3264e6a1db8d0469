"""Numbers in the README are those of the results files, to the letter."""

import importlib.util
import re

import pytest

from rootsam_lib import CHECKOUT
from rootsam_lib.results import read_json

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
RESULTS = CHECKOUT / "data" / "results"


spec = importlib.util.spec_from_file_location("readme", CHECKOUT / "benchmarks" / "readme.py")
readme = importlib.util.module_from_spec(spec)
spec.loader.exec_module(readme)


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda path: path.parent.name)
def test_pages_are_what_the_results_files_say(page):
    text = page.read_text(encoding="utf-8")
    assert text == readme.filled(text), "run benchmarks/readme.py"


def test_every_table_stands_on_a_page():
    pages = "".join(page.read_text(encoding="utf-8") for page in readme.PAGES)
    for name, text in readme.blocks().items():
        assert f"<!-- {name} -->\n\n{text}\n\n<!-- end {name} -->" in pages, name


def test_a_changed_number_is_put_right():
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    wrong = page.replace("| stage2 | 0.", "| stage2 | 9.")
    assert wrong != page and readme.filled(wrong) == page


def prose(page: str) -> str:
    """A page without what `readme.filled` writes, code, link targets and pictures."""
    page = re.sub(r"<!-- (.+?) -->.*?<!-- end \1 -->", "", page, flags=re.DOTALL)
    page = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    return re.sub(r"`[^`]*`|\]\([^)]*\)", "", page)


def test_no_number_is_typed_into_the_readme():
    """But for what is no result: names, versions, sources, and what the set-up needs."""
    text = re.sub(r"\| ([\d.]+) \|$", "| |", prose(README), flags=re.MULTILINE)  # minutes, checked below
    text = text[: text.index("## Citing")]
    allowed = r"SAM2\.1|SAM 2|Python 3\.10|10 GB of disk|WSL2|2 CPU cores|\[[0-9A][0-9] · |Stage [12]|A1|A2|lesson 09"
    assert re.findall(r"\S*\d\S*", re.sub(allowed, "", text)) == []


def test_the_readme_is_short_and_shows_first():
    words = re.sub(r"<!--.*?-->|[|#*`-]+", " ", README).split()
    assert len(words) < 900, len(words)
    first = README[: README.index("## Lessons")]
    places = [first.index(part) for part in ("real-scan.png", "**Adapt", "make tutorial", "**You get**")]
    assert places == sorted(places)


def test_the_leak_is_told_as_it_is():
    results = read_json(RESULTS / "segroot-nano.json")
    tubes = {patch["name"].split("@")[0]: patch["tube"] for patch in results["patches"]}
    shared = sum(tube in results["data"]["tubes_in_several_parts"] for tube in tubes.values())
    for page in (RESULTS / "README.md",):
        text = " ".join(page.read_text(encoding="utf-8").split())
        assert f"{shared} of its {len(tubes)} scans are of tubes that also occur in its train split" in text


def test_minutes_are_the_results_files():
    minutes = read_json(RESULTS / "tutorial-quick.json")["minutes"]
    lessons = sorted(path.stem for path in (CHECKOUT / "notebooks").glob("*.ipynb"))
    assert sorted(minutes) == lessons
    for lesson, spent in minutes.items():
        (line,) = [line for line in README.splitlines() if f"(notebooks/{lesson}.ipynb) |" in line]
        assert f"| {spent:.1f} |" in line


def test_results_files_name_what_they_were_made_from():
    results = read_json(RESULTS / "segroot-nano.json")
    assert (
        results["data"]["real"] and results["data"]["source"] == "segroot" and results["data"]["test_split"] == "valid"
    )
    rows = {"base", "stage1", "stage2", "threshold", "ridge"}
    assert rows == set(results["tables"]["automatic"]) == set(results["tables"]["whole scans"]) - {"stage2, flips"}
    assert {"commit", "device", "versions", "made"} <= set(results["provenance"])
    assert results["config"]["stage2"]["seed"] == results["protocol"]["seed"]


def test_other_results_are_of_real_scans_and_enough_seeds():
    for name in ("ablations", "ablations-cpu", "ablations-recipe", "annotator", "traits"):
        results = read_json(RESULTS / f"segroot-{name}.json")
        assert results["data"]["real"] and {"commit", "device", "made"} <= set(results["provenance"])
    for way in ("feature bank", "live encoder"):
        rows = [row for row in read_json(RESULTS / "bank-against-live.json")["rows"] if row["way"] == way]
        assert len({row["seed"] for row in rows}) == len(rows) >= 3


@pytest.mark.parametrize(
    "page", [*readme.PAGES, CHECKOUT / "notebooks" / "README.md", CHECKOUT / "notebooks" / "GLOSSARY.md"]
)
def test_links_resolve(page):
    text = page.read_text(encoding="utf-8")
    for target, heading in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text):
        linked = page.parent / target if target else page
        assert target.startswith("https://") or linked.exists(), target
        titles = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE) if heading else []
        headings = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
        assert not heading or heading in headings, heading
