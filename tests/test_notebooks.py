"""The notebooks as they are committed: order of parts, outputs, pictures, links. `test_lessons.py` runs them."""

import re
import subprocess
import sys

import nbformat
import pytest

from rootsam_lib import CHECKOUT
from rootsam_lib.lessons.runner import NOTEBOOKS

LESSONS = sorted(NOTEBOOKS.glob("*.ipynb"))
PAGES = [CHECKOUT / "README.md", NOTEBOOKS / "README.md", CHECKOUT / "data" / "results" / "README.md"]


def repository() -> str:
    """Where the project lives: the one address, in pyproject.toml."""
    (found,) = re.findall(r'^urls = \{ Repository = "(https://github\.com/.+)" \}$',
                          (CHECKOUT / "pyproject.toml").read_text(), re.MULTILINE)  # fmt: skip
    return found


@pytest.fixture(params=LESSONS, ids=lambda path: path.stem)
def lesson(request):
    return request.param, nbformat.read(request.param, as_version=4)


def test_there_are_lessons():
    assert [path.name[:2] for path in LESSONS] == [*(f"{number:02d}" for number in range(10)), "A1", "A2"]


def test_parts_in_order(lesson):
    path, notebook = lesson
    cells = notebook.cells
    assert cells[0].source.startswith(f"# {path.name[:2]} · ") and "**" in cells[0].source
    badge = repository().replace("https://github.com", "https://colab.research.google.com/github")
    assert f"({badge}/blob/main/notebooks/{path.name})" in cells[0].source, "the Colab badge does not point here"
    assert cells[1].cell_type == "code" and "google.colab" in cells[1].source
    text = [cell.source for cell in cells]
    places = [next(i for i, t in enumerate(text) if t.startswith(start)) for start in
              ("## What you will learn", "PROFILE = ", "## You should have seen", "## Exercises")]  # fmt: skip
    assert places == sorted(places) and places[1] == places[0] + 1
    (last,) = [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    assert places[1] <= last <= places[1] + 1 and "\nfigures.start_lesson()" in text[last + 1], "parameters not checked"
    assert text[places[3]].count("<details>") >= 2, "exercises need folded solutions"
    assert text[-1].startswith("**") and "](" in text[-1], "no link to the next lesson"
    recording = [i for i, t in enumerate(text) if f'record(PROFILE, "{path.stem}", ' in t and ", globals())" in t]
    assert recording == [max(i for i, cell in enumerate(cells) if cell.cell_type == "code")], "records not at the end"


def test_every_lesson_shares_its_first_cell(lesson):
    _, notebook = lesson
    assert notebook.cells[1].source == nbformat.read(LESSONS[0], as_version=4).cells[1].source


@pytest.mark.parametrize("page", [*LESSONS, *PAGES], ids=lambda path: path.stem)
def test_the_address_is_the_one_of_pyproject(page):
    named = set(re.findall(r"github(?:\.com)?/([\w.-]+/rootsam)\b", page.read_text(encoding="utf-8")))
    assert named <= {repository().removeprefix("https://github.com/")}
    assert f'project = \\"{repository()}\\"' in page.read_text(encoding="utf-8") or page in PAGES


@pytest.mark.slow
def test_pytest_collects_the_lessons_from_anywhere(tmp_path):
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-q", "--collect-only", "--nbmake"]
    for folder, where in ((CHECKOUT, ["notebooks"]), (NOTEBOOKS, []), (tmp_path, [str(NOTEBOOKS)])):
        run = subprocess.run([*command, *where], cwd=folder, capture_output=True, text=True, check=True)
        assert re.findall(r"::(\w+)\.ipynb", run.stdout) == [path.stem for path in LESSONS]


def test_parameters_are_commented_literals(lesson):
    _, notebook = lesson
    last = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    lines = [line for cell in notebook.cells[3 : last + 1] for line in cell.source.splitlines()]
    undocumented = [line for line in lines if "  # " not in line and not line.startswith("SEED")]
    assert not undocumented, f"parameters without a word on what they are: {undocumented}"
    for line in lines:
        assert re.fullmatch(r"[A-Z][A-Z0-9_]* = (-?[\d.]+|\"[^\"]*\"|True|False)(  # .+)?", line), line
    assert lines[0].startswith('PROFILE = "quick"')


def test_lessons_that_train_share_a_cell_of_parameters():
    training = [path for path in LESSONS if path.name[:2] in ("03", "04", "05", "06", "08")]
    notebooks = [nbformat.read(path, as_version=4) for path in training]
    assert len({notebook.cells[3].source for notebook in notebooks}) == 1
    assert all(notebook.cells[3].metadata["tags"] == ["shared-parameters"] for notebook in notebooks)


def test_executed_top_to_bottom_without_errors(lesson):
    path, notebook = lesson
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "not a clean run"
    for cell in code:
        lines = cell.source.count("\n") + 1
        assert lines <= 15, f"a cell of {lines} lines: {cell.source[:60]}"
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", f"warnings on show: {output.get('text')}"
    assert path.stat().st_size < 1_000_000
    assert any("image/jpeg" in output.get("data", {}) for cell in code for output in cell.outputs), "no picture"
    assert str(CHECKOUT) not in path.read_text(), "names a path of the machine that it ran on"


def test_pictures_tell_what_they_show(lesson):
    _, notebook = lesson
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if {"image/jpeg", "image/png"} & set(output.get("data", {}))]
    alts = [output.metadata.get("image/jpeg", {}).get("alt", "") for output in pictures]
    assert all(len(alt.split()) >= 5 for alt in alts), "a picture without alt text"
    assert len(set(alts)) == len(alts), "two pictures with the same alt text"


def test_no_output_is_cut_off_or_a_bare_object(lesson):
    _, notebook = lesson
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        text = output.get("text", output.get("data", {}).get("text/plain", ""))
        kinds = set(output.get("data", {}))
        if kinds == {"text/plain"} or "application/vnd.jupyter.widget-view+json" in kinds:
            assert not re.search(r" at 0x[0-9a-f]+|Slider\(|Path\(", text), text
        assert not text.rstrip().endswith(("…", "...")), text
        longest = max(map(len, text.splitlines()), default=0)
        assert longest <= (200 if output.output_type == "stream" else 1000), text


def test_every_lesson_has_a_control_and_a_picture_without_it(lesson):
    _, notebook = lesson
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    calls = [cell for cell in code if re.search(r"figures\.interactive\(|^annotate\(", cell.source, re.MULTILINE)]
    assert calls, "nothing to try"
    for cell in calls:
        kinds = [kind for output in cell.outputs for kind in output.get("data", {})]
        assert kinds.count("image/jpeg") == 1, "a control needs one static picture"
        texts = [output.get("data", {}).get("text/plain", "") for output in cell.outputs]  # in the place of the widget
        assert "annotate(" in cell.source or any(re.match(r"\[[a-z]+\] ", text) for text in texts)


def test_links_resolve_and_dollars_are_no_formula(lesson):
    path, notebook = lesson
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", cell.source):
                assert target.startswith("https://") or (path.parent / target).exists(), target
            assert not re.search(r"(?<!\\)\$\d[\d,.]*(\s|$)", cell.source), "two bare dollars set a formula"
            for line in cell.source.splitlines():
                assert line.count("$") < 2, f"JupyterLab sets a formula from two escaped dollars too: {line}"
