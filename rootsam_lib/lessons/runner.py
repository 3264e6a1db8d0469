"""The tutorial from the command line: every notebook headless, in order, then a report and the table of results."""

import argparse
import logging
import os
import sys
import time
from collections import ChainMap
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import nbformat
import yaml
from tqdm.auto import tqdm

from rootsam_lib import CHECKOUT
from rootsam_lib.data.datasets import load_parts, load_scans
from rootsam_lib.data.folders import find_pairs
from rootsam_lib.lessons.parameters import PROFILES, check_parameters, literal, notebook_parameters
from rootsam_lib.lessons.report import write_report
from rootsam_lib.results import COLUMNS, RUNS, markdown_table, provenance, read_json, shown, write_json, write_text

NOTEBOOKS = CHECKOUT / "notebooks"
TABLES = {
    "fixed prompts": "prompted (points from the true mask)",
    "automatic": "automatic (no prompt), the same patches",
    "whole scans": "automatic, whole scans",
}


def load_profile(name: str) -> dict[str, object]:
    """The parameter values of a profile in profiles.yaml. Raises ValueError for an unknown one."""
    profiles = yaml.safe_load(PROFILES.read_text(encoding="utf-8"))
    if name not in profiles:
        raise ValueError(f"profile {name!r} is unknown: choose one of {', '.join(profiles)}.")
    return profiles[name]


def existing_folder(name: str, path: str) -> str:
    """A folder's absolute path: notebooks run in their own folder, where a relative one would mean another place."""
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise ValueError(f"{name} is {path!r}, but there is no such folder: check the path.")
    return str(folder)


def run_notebook(path: Path, executed: Path, parameters: dict[str, object]) -> str:
    """Execute one notebook into `executed`; return "" or, where a cell failed, the error in one line."""
    import papermill  # slow to import, and only needed here
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    try:
        papermill.execute_notebook(
            str(path),
            str(executed),
            parameters=parameters,
            cwd=str(NOTEBOOKS),
            kernel_name="python3",
            progress_bar=False,
            iopub_timeout=60,  # seconds; on a busy machine the default of 4 loses outputs
            extra_arguments=["--log-level=50"],  # the kernel's notes on its sockets have no place on the console
        )
    except PapermillExecutionError as error:
        return f"{path.name} stopped: {error.ename}: {error.evalue}\nIts cells: {shown(executed)}"
    except DeadKernelError:
        return f"{path.name} stopped: its kernel died, most likely out of memory: lower VIEWS or LIMIT."
    return ""


def check_own_images(values: Mapping[str, object], lessons: Mapping[str, Mapping[str, object]]) -> None:
    """Raises ValueError or FileNotFoundError, before hours of lessons, for own images that some of them could not use
    or would not look at. lessons: {name: its parameters as they stand}."""
    source, place = values.get("DATA", "synthetic"), str(values.get("DATA_DIR") or os.environ.get("ROOTSAM_DATA") or "")
    using = [name for name, parameters in lessons.items() if "DATA" in parameters]
    if source == "synthetic" and values.get("DATA_DIR") and using:
        raise ValueError("DATA_DIR is given, but DATA is synthetic: add -p DATA folder, or --only 09.")
    if "09_your_own_images" in lessons and values.get("NEW_DIR") and not values.get("DATA_DIR"):
        raise ValueError("NEW_DIR is given, but lesson 09 would learn drawn cracks: add -p DATA_DIR with your pairs.")
    if "09_your_own_images" in lessons and values.get("NEW_DIR"):
        find_pairs(Path(str(values["NEW_DIR"])), need_masks=False)
    if source != "folder" or not using:
        if "09_your_own_images" in lessons and values.get("DATA_DIR"):
            find_pairs(Path(str(values["DATA_DIR"])), need_masks=True)
        return
    if not place:
        raise ValueError("DATA is folder, but no folder is given: add -p DATA_DIR /path/to/your_scans.")
    given = ChainMap(dict(values), *map(dict, lessons.values()))  # lessons that train share their defaults
    if "LIMIT" in given:
        parts = load_parts(source, given["TEST_SPLIT"], place, given["LIMIT"], given["SEED"])
    else:  # lessons that train nothing
        parts = {"all": load_scans(source, "all", place)}
    for scan in (scan for part in parts.values() for scan in part):
        if scan.mm_per_px is None and "08_whole_scans" in lessons:
            raise ValueError(
                f"{scan.name} states no resolution, and lesson 08 measures in mm: put it into the folder's "
                "name, such as scans_300dpi, or leave that lesson out (--only 00,01,02,03,04,05,06,07)."
            )


def store_outputs(executed: Path, path: Path) -> None:
    """Write an executed copy back as the notebook itself, without what papermill notes about its machine and clock.

    A widget lives with its kernel: of one, only the picture beside it is kept.
    """
    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("widgets", None)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    for part in (notebook, *notebook.cells):
        for key in ("papermill", "execution"):
            part.metadata.pop(key, None)
    write_text(path, nbformat.writes(notebook) + "\n")


def tutorial(profile: str, given: dict[str, object], only: list[str], update: bool = False) -> int:
    """Run the notebooks in order into runs/<profile>/notebooks/, then print the results. Returns the exit code.

    Each notebook is given those of the values whose name it has. Every name and type is checked before anything runs.
    """
    known = {path: notebook_parameters(path) for path in sorted(NOTEBOOKS.glob("[0-9A]*.ipynb"))}
    if not known:
        raise ValueError(f"no notebooks in {NOTEBOOKS}: run this from a clone of the project.")
    paths = [path for path in known if not only or path.name.split("_")[0] in only]
    if strange := set(only) - {path.name.split("_")[0] for path in paths}:
        raise ValueError(f"--only {','.join(sorted(strange))} names no notebook: use their numbers, such as 01,03.")
    given = {name.upper(): value for name, value in given.items()}
    if "PROFILE" in given:
        raise ValueError("parameter PROFILE is set by --profile, not by -p.")
    defaults = {name: default for parameters in known.values() for name, default in parameters.items()}
    running = {name for path in paths for name in known[path]}
    if idle := sorted(name for name in given if name in defaults and name not in running):
        raise ValueError(
            f"parameter {idle[0]} is of no lesson that would run: leave it out, or choose others by --only."
        )
    values = {"PROFILE": profile} | check_parameters(load_profile(profile) | given, defaults)
    if update and (only or values != {"PROFILE": "quick"}):
        raise ValueError("--update stores all lessons on their defaults: leave out --only, --profile and -p.")
    if update and any((RUNS / profile).glob("stage*")):  # lesson 00 would show a stage that no reader has yet
        raise ValueError(f"{shown(RUNS / profile)} holds stages of an earlier run: `make notebooks` removes them.")
    for name in ("DATA_DIR", "NEW_DIR"):
        if values.get(name):
            values[name] = existing_folder(name, str(values[name]))
    check_own_images(values, {path.stem: known[path] for path in paths})
    if os.environ.get("ROOTSAM_DATA"):
        os.environ["ROOTSAM_DATA"] = existing_folder("ROOTSAM_DATA", os.environ["ROOTSAM_DATA"])

    os.environ |= {
        "ROOTSAM_PROGRESS": "0",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    logging.getLogger("papermill").setLevel(logging.ERROR)
    folder, minutes = RUNS / profile / "notebooks", {}
    folder.mkdir(parents=True, exist_ok=True)
    bar = tqdm(paths, unit="notebook", desc=f"tutorial ({profile})")
    for path in bar:
        bar.set_postfix_str(path.stem)
        started = time.monotonic()
        changed = {n: values[n] for n, default in known[path].items() if n in values and values[n] != default}
        if error := run_notebook(path, folder / path.name, changed):
            bar.close()
            print(f"\n{error}", file=sys.stderr)
            return 1
        minutes[path.stem] = round((time.monotonic() - started) / 60, 2)
    metrics = {path.stem: read_json(RUNS / profile / "lessons" / f"{path.stem}.json")["metrics"] for path in paths}
    about = {"minutes": minutes, "metrics": metrics, "provenance": provenance()}
    clock = RUNS / profile / "results" / "minutes.json"
    before = {}  # of the lessons that did not run this time
    with suppress(OSError, ValueError, KeyError, TypeError):  # nothing that a report must wait for
        before = dict(read_json(clock)["minutes"])
    write_json(clock, about | {"minutes": before | minutes})
    if update:  # only now, so that every lesson sees the same commit
        for path in paths:
            store_outputs(folder / path.name, path)
        write_json(CHECKOUT / "data" / "results" / "tutorial-quick.json", about)
    print(f"\n{len(paths)} notebooks in {sum(minutes.values()):.1f} min; executed copies in {shown(folder)}")
    print(f"report: {shown(write_report(RUNS / profile, values, provenance()))}; minutes: {shown(clock)}")
    if any(path.stem == "05_evaluation" for path in paths):
        evaluation = RUNS / profile / "results" / "evaluation.json"
        results = read_json(evaluation)
        print(f"\n{results['title']}, {results['intervals']}")
        for table, what in TABLES.items():
            print(f"\n{what}\n{markdown_table(results, table)}")
        print(f"\nfrom {shown(evaluation)}")
    return 0


def tutorial_command(options: argparse.Namespace) -> int:
    """`python -m rootsam_lib tutorial`."""
    given = {name: literal(value) for name, value in options.p}
    return tutorial(options.profile, given, [part for part in options.only.split(",") if part], options.update)


def table_command(options: argparse.Namespace) -> int:
    """`python -m rootsam_lib table`."""
    columns = options.columns.split(",") if options.columns else COLUMNS
    print(markdown_table(read_json(options.file), options.table, columns))
    return 0
