"""The set-up for Colab and Kaggle, on a machine that only pretends to be them: neither was run itself.

An empty environment is given packages of Colab's names and versions and a folder of packages as its only index. That
folder offers newer ones of everything, so that whatever pip would replace on Colab it replaces here.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import nbformat
import pytest
from packaging.version import Version
from test_notebooks import repository

from rootsam_lib import CHECKOUT

pytestmark = pytest.mark.slow

NOTEBOOKS = CHECKOUT / "notebooks"
# What Colab is known to have; it lacks hydra-core, iopath, papermill, skan and sam2 at least.
COLAB = {
    "torch": "2.11.0+cu128",
    "torchvision": "0.26.0+cu128",
    "ipywidgets": "7.7.1",
    "numpy": "2.0.2",
    "numba": "0.60.0",
    "traitlets": "5.7.1",
    "ipykernel": "6.17.1",
    "ipython": "7.34.0",
    "albumentations": "2.0.8",
}
COLAB_SETUPTOOLS = "75.2.0"  # the test's environment has the setuptools of this one
NEWER = {
    "torch": "2.14.1",
    "torchvision": "0.29.1",
    "ipywidgets": "8.1.9",
    "numpy": "2.9.0",
    "numba": "0.68.1",
    "traitlets": "5.16.1",
    "ipykernel": "7.4.0",
    "ipython": "9.18.1",
    "albumentations": "2.0.9",
    "sam2": "1.1.0",
}
NEEDS = {
    "torchvision": ["torch"],
    "sam2": ["torch>=2.5.1", "torchvision>=0.20.1", "hydra-core>=1.3.2", "iopath>=0.1.10"],
    "skan": ["numba>=0.53"],
    "papermill": ["traitlets>=5.1"],
}


def dist_info(name: str, version: str) -> dict[str, str]:
    """The files of an empty package, as a wheel holds them."""
    folder = f"{name.replace('-', '_')}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {need}\n" for need in NEEDS.get(name, []))
    return {
        f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{folder}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{folder}/RECORD": "",
        f"{folder}/INSTALLER": "pip\n",
    }


def required() -> dict[str, str]:
    """The project's dependencies: name and lower bound."""
    text = (CHECKOUT / "pyproject.toml").read_text()
    listed = re.findall(
        r'"([^"]+)"', text[text.index("\ndependencies = [") : text.index("[project.optional-dependencies]")]
    )
    assert all(entry.count(">=") == 1 and "<" not in entry and "==" not in entry for entry in listed), (
        "lower bounds only"
    )
    return dict(entry.split(">=") for entry in listed)


def test_no_bound_is_above_what_colab_has():
    bounds = required()
    (build,) = re.findall(r'requires = \["setuptools>=([\d.]+)"\]', (CHECKOUT / "pyproject.toml").read_text())
    pairs = {"setuptools": (build, COLAB_SETUPTOOLS), **{name: (bounds.get(name, "0"), COLAB[name]) for name in COLAB}}
    assert not {name: pair for name, pair in pairs.items() if Version(pair[0]) > Version(pair[1])}


@pytest.fixture
def colab(tmp_path):
    """A copy of the project, and the environment in which `python3` and pip see Colab's packages."""
    project, wheels, env = tmp_path / "rootsam", tmp_path / "wheels", tmp_path / "env"
    for folder in (project / "notebooks", project / "rootsam_lib", wheels):
        folder.mkdir(parents=True)
    shutil.copy(NOTEBOOKS / "colab_setup.sh", project / "notebooks")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, project)
    (project / "rootsam_lib" / "__init__.py").touch()
    offered = required() | {"hydra-core": "1.3.2", "iopath": "0.1.10"} | NEWER
    for name, version in offered.items():
        with zipfile.ZipFile(wheels / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", "w") as wheel:
            for file, text in dist_info(name, version).items():
                wheel.writestr(file, text)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True)
    (site,) = env.glob("lib/python3*/site-packages")
    for name, version in COLAB.items():
        for file, text in dist_info(name, version).items():
            (site / file).parent.mkdir(exist_ok=True)
            (site / file).write_text(text)
    for tool in ("pip", "setuptools", "wheel", "packaging"):  # Colab has them, and the index does not
        place = Path(importlib.util.find_spec(tool).origin).parent
        for folder in (place, *place.parent.glob(f"{tool}-*.dist-info"), *place.parent.glob("_distutils_hack"),
                       *place.parent.glob("pkg_resources")):  # fmt: skip
            if not (site / folder.name).exists():
                shutil.copytree(folder, site / folder.name)
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))}
    variables |= {
        "PATH": f"{env / 'bin'}:{os.environ['PATH']}",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_CONFIG_FILE": os.devnull,
    }
    return project, variables


def installed(variables: dict[str, str]) -> dict[str, str]:
    code = "from importlib.metadata import distributions as d\nfor x in d(): print(x.metadata['Name'], x.version)"
    run = subprocess.run(["python3", "-c", code], env=variables, check=True, capture_output=True, text=True)
    return dict(line.split() for line in run.stdout.splitlines())


def test_set_up_installs_what_is_missing_and_keeps_what_is_there(colab):
    project, variables = colab
    before = installed(variables)
    assert before.items() >= COLAB.items() and "sam2" not in before
    # This test can fail: pip, left free to upgrade, would take another torch from this index.
    free = ["python3", "-m", "pip", "install", "--dry-run", "--upgrade", "torch"]
    told = subprocess.run(free, env=variables, check=True, capture_output=True, text=True).stdout
    assert f"Would install torch-{NEWER['torch']}" in told
    run = subprocess.run(
        ["bash", str(project / "notebooks" / "colab_setup.sh")], env=variables, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    after = installed(variables)
    assert {name: after[name] for name in before} == before, "something of Colab's was replaced"
    assert set(after) - set(before) == (set(required()) | {"hydra-core", "iopath", "rootsam_lib"}) - set(before)
    again = subprocess.run(
        ["bash", str(project / "notebooks" / "colab_setup.sh")], env=variables, capture_output=True, text=True
    )
    assert again.returncode == 0 and installed(variables) == after, "a second run changes something"


def first_cell() -> str:
    return nbformat.read(sorted(NOTEBOOKS.glob("00_*.ipynb"))[0], as_version=4).cells[1].source


@pytest.fixture
def commands(monkeypatch):
    """The commands that the set-up cell would run."""
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append(command))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return ran


def find_spec_without_the_library(name, *arguments):
    return None if name == "rootsam_lib" else importlib.machinery.PathFinder.find_spec(name)


def test_the_cell_does_nothing_at_home_or_where_the_library_is_installed(commands, monkeypatch):
    exec(first_cell(), {})
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    exec(first_cell(), {})  # on Colab, but with the package installed
    assert not commands


@pytest.mark.parametrize("place", ["/content", "/kaggle/working"])
@pytest.mark.parametrize("cloned", [False, True])
def test_the_cell_fetches_and_sets_up_on_colab_and_kaggle(commands, monkeypatch, cloned, place):
    if place == "/content":
        monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    else:
        monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    monkeypatch.setattr(importlib.util, "find_spec", find_spec_without_the_library)
    monkeypatch.setattr(os.path, "isdir", lambda path: cloned)
    exec(first_cell(), {})
    clone = ["git", "clone", "--depth", "1", repository(), f"{place}/rootsam"]
    set_up = ["bash", f"{place}/rootsam/notebooks/colab_setup.sh"]
    assert commands == ([set_up] if cloned else [clone, set_up])
    assert sys.path[0] == f"{place}/rootsam"
