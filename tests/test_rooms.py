"""The library's rooms: how many there are, that no import runs up, and what a command loads."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rootsam_lib

PACKAGE = Path(rootsam_lib.__file__).parent
# From low to high: a room imports from itself and from the rooms before it.
ORDER = ["results", "prompts", "losses", "metrics", "model", "data", "checkpoints", "traits", "predictor", "training"]
ORDER += ["drawing", "evaluation", "apps", "lessons", "nano", "__main__"]
HEAVY = {"pandas", "matplotlib", "ipywidgets", "anywidget", "IPython", "nbformat", "nbclient", "papermill"}


def imports(room: str) -> Iterator[tuple[str, str]]:
    """Every import in a room, also inside its functions: the place, and the full name of what is imported."""
    for file in sorted((PACKAGE / room).glob("**/*.py")) or [PACKAGE / f"{room}.py"]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
            else:
                continue
            yield from ((f"{file.relative_to(PACKAGE)}, line {node.lineno}", name) for name in names)


def loaded(*command: str) -> set[str]:
    """The top-level packages that a Python command loads, from its import times."""
    run = subprocess.run([sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=True)
    return {line.rpartition("|")[2].strip().split(".")[0] for line in run.stderr.splitlines() if "|" in line}


def test_at_most_16_rooms_and_each_has_its_place():
    files = [path for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    found = {path.stem for path in files} - {"__init__"}
    assert found == set(ORDER) and len(found) <= 16


@pytest.mark.parametrize("room", ORDER)
def test_no_import_runs_up(room):
    above = ORDER[ORDER.index(room) + 1 :]
    found = [(place, name, name.split(".")) for place, name in imports(room)]
    assert found
    assert not [f"{place} imports {name}" for place, name, parts in found if parts[0] == ""]  # relative
    ours = [(place, name, parts[1:2]) for place, name, parts in found if parts[0] == "rootsam_lib"]
    assert not [f"{place} imports {name}" for place, name, target in ours if set(target) & set(above)]


@pytest.mark.parametrize("room", ["prompts", "losses", "model", "drawing"])
def test_method_and_drawing_import_no_tables_plots_or_widgets(room):
    tops = {name.split(".")[0] for _, name in imports(room)}
    assert not tops & HEAVY
    if room == "drawing":
        assert tops - sys.stdlib_module_names <= {"numpy", "PIL", "rootsam_lib"}


def test_segment_starts_without_widgets_plots_or_notebook_packages():
    packages = loaded("-c", "import rootsam_lib.apps.commands, rootsam_lib.apps.segment")
    assert "torch" in packages
    assert not packages & (HEAVY - {"pandas", "IPython"})


def test_importing_the_library_takes_no_torch():
    packages = loaded("-c", "import rootsam_lib")
    assert "rootsam_lib" in packages and "torch" not in packages
