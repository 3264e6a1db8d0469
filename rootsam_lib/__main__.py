"""Run the lessons headless: `python -m rootsam_lib tutorial [--profile NAME] [-p NAME VALUE ...] [--only 01,03]`."""

import argparse
import ast
import difflib
import logging
import os
import sys
import time
import warnings
from pathlib import Path

import yaml
from tqdm.auto import tqdm

from rootsam_lib import HOME
from rootsam_lib.results import RUNS, markdown_table, read_json, shown

NOTEBOOKS = HOME / "notebooks"
PROFILES = Path(__file__).with_name("profiles.yaml")


def literal(text: str) -> object:
    """A command-line value as Python reads it (1e-4 is a float, True a bool); other words are strings."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def notebook_parameters(path: Path) -> dict[str, object]:
    """Names and default values in a notebook's parameters cell."""
    import papermill  # slow to import, and only needed here

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: literal(entry["default"]) for name, entry in papermill.inspect_notebook(str(path)).items()}


def check_parameters(given: dict[str, object], known: dict[str, dict[str, object]]) -> dict[str, object]:
    """Match given names (in any case) and types against all notebooks' parameters, before anything runs.

    Returns them under their true names. Raises ValueError: papermill itself would only warn and use the default.
    """
    defaults = {name: default for parameters in known.values() for name, default in parameters.items()}
    checked = {}
    for given_name, value in given.items():
        name = given_name.upper()
        if name not in defaults:
            close = difflib.get_close_matches(name, defaults, n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(sorted(defaults))}."
            raise ValueError(f"parameter {given_name!r} is in no notebook: {hint}")
        default = defaults[name]
        number = isinstance(default, (int, float)) and not isinstance(default, bool)
        wanted = (int, float) if number else type(default)
        if not isinstance(value, wanted) or (number and isinstance(value, bool)):
            raise ValueError(
                f"parameter {name} is {value!r}, but must be {type(default).__name__}, such as {default!r}."
            )
        if isinstance(default, int) and not isinstance(default, bool) and value != int(value):
            raise ValueError(f"parameter {name} is {value!r}, but must be a whole number, such as {default!r}.")
        checked[name] = value
    return checked


def load_profile(name: str) -> dict[str, object]:
    """The parameter values of a profile in profiles.yaml. Raises ValueError for an unknown one."""
    profiles = yaml.safe_load(PROFILES.read_text(encoding="utf-8"))
    if name not in profiles:
        raise ValueError(f"profile {name!r} is unknown: choose one of {', '.join(profiles)}.")
    return profiles[name]


def tutorial(profile: str, given: dict[str, object], only: list[str]) -> int:
    """Run the notebooks in order into runs/<profile>/notebooks/, then print the results. Returns the exit code."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    paths = sorted(NOTEBOOKS.glob("[0-9A]*.ipynb"))
    if not paths:
        raise ValueError(f"no notebooks in {NOTEBOOKS}: set ROOTSAM_HOME to a clone of the project.")
    if only:
        paths = [path for path in paths if path.name.split("_")[0] in only]
        if not paths:
            raise ValueError(f"--only {','.join(only)} names no notebook: use their numbers, such as 01,03.")
    known = {path.name: notebook_parameters(path) for path in sorted(NOTEBOOKS.glob("[0-9A]*.ipynb"))}
    if "PROFILE" in {name.upper() for name in given}:
        raise ValueError("parameter PROFILE is set by --profile, not by -p.")
    values = {"PROFILE": profile} | check_parameters(load_profile(profile) | given, known)

    # Bars have no place in a stored notebook, and the kernel's notes on its sockets none on the console.
    os.environ |= {
        "ROOTSAM_PROGRESS": "0",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    logging.getLogger("papermill").setLevel(logging.ERROR)
    folder, started = RUNS / profile / "notebooks", time.time()
    folder.mkdir(parents=True, exist_ok=True)
    bar = tqdm(paths, unit="notebook", desc=f"tutorial ({profile})")
    for path in bar:
        bar.set_postfix_str(path.stem)
        own = {name: value for name, value in values.items() if name in known[path.name]}
        try:
            papermill.execute_notebook(
                str(path),
                str(folder / path.name),
                parameters=own,
                cwd=str(NOTEBOOKS),
                kernel_name="python3",
                progress_bar=False,
                extra_arguments=["--log-level=50"],
            )
        except PapermillExecutionError as error:
            bar.close()
            print(
                f"\n{path.name} stopped: {error.ename}: {error.evalue}\nIts cells: {shown(folder / path.name)}",
                file=sys.stderr,
            )
            return 1
    evaluation = RUNS / profile / "results" / "evaluation.json"
    print(f"\n{len(paths)} notebooks in {(time.time() - started) / 60:.1f} min; executed copies in {shown(folder)}")
    if evaluation.is_file():
        results = read_json(evaluation)
        print(f"\n{results['title']}\n{markdown_table(results)}\nfrom {shown(evaluation)}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The command line; one sentence and exit code 2 for what a user can mistype."""
    parser = argparse.ArgumentParser(prog="python -m rootsam_lib", description="RootSAM from the command line.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("tutorial", help="run the notebooks headless, in order")
    run.add_argument("--profile", default="quick", help="a set of parameters from profiles.yaml (default: quick)")
    run.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="set a parameter")
    run.add_argument("--only", default="", help="numbers of the notebooks to run, such as 01,03")
    table = commands.add_parser("table", help="print a results file as a Markdown table")
    table.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.command == "table":
            print(markdown_table(read_json(options.file)))
            return 0
        given = {name: literal(value) for name, value in options.p}
        return tutorial(options.profile, given, [number for number in options.only.split(",") if number])
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
