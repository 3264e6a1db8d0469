"""The command line: run the lessons headless, segment a folder of scans, print a table of results.

`python -m rootsam_lib tutorial [--profile NAME] [-p NAME VALUE ...] [--only 01,03]`
`python -m rootsam_lib segment FOLDER --model RUN [--out DIR] [--dpi N] ...`
"""

import argparse
import ast
import difflib
import logging
import os
import sys
import time
import warnings
from pathlib import Path

import nbformat
import yaml
from tqdm.auto import tqdm

from rootsam_lib import CHECKOUT
from rootsam_lib.lessons.report import write_report
from rootsam_lib.results import COLUMNS, RUNS, markdown_table, provenance, read_json, shown, write_json, write_text

NOTEBOOKS = CHECKOUT / "notebooks"
PROFILES = Path(__file__).parent / "lessons" / "profiles.yaml"
TABLES = {
    "fixed prompts": "prompted (points from the true mask)",
    "automatic": "automatic (no prompt), the same patches",
    "whole scans": "automatic, whole scans",
}


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


def check_parameters(given: dict[str, object], known: dict[object, dict[str, object]]) -> dict[str, object]:
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
        wrong = f"parameter {name} is {value!r}, but must be {type(default).__name__}, such as {default!r}."
        if isinstance(default, str):
            value = str(value)  # a folder may be called 2024
        elif isinstance(default, bool) != isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(wrong)
        elif isinstance(default, int) and not isinstance(default, bool):
            if not float(value).is_integer():
                raise ValueError(wrong)
            value = int(value)
        checked[name] = value
    return checked


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
    import papermill
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
    """Run the notebooks in order into runs/<profile>/notebooks/, then print the results. Returns the exit code."""
    known = {path: notebook_parameters(path) for path in sorted(NOTEBOOKS.glob("[0-9A]*.ipynb"))}
    if not known:
        raise ValueError(f"no notebooks in {NOTEBOOKS}: run this from a clone of the project.")
    paths = [path for path in known if not only or path.name.split("_")[0] in only]
    if not paths:
        raise ValueError(f"--only {','.join(only)} names no notebook: use their numbers, such as 01,03.")
    if "PROFILE" in {name.upper() for name in given}:
        raise ValueError("parameter PROFILE is set by --profile, not by -p.")
    values = {"PROFILE": profile} | check_parameters(load_profile(profile) | given, known)
    if update and values != {"PROFILE": "quick"}:
        raise ValueError("--update stores the outputs of the defaults only: leave out --profile and -p.")
    if values.get("DATA_DIR"):
        values["DATA_DIR"] = existing_folder("DATA_DIR", str(values["DATA_DIR"]))
    if os.environ.get("ROOTSAM_DATA"):
        os.environ["ROOTSAM_DATA"] = existing_folder("ROOTSAM_DATA", os.environ["ROOTSAM_DATA"])

    os.environ |= {
        "ROOTSAM_PROGRESS": "0",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    logging.getLogger("papermill").setLevel(logging.ERROR)
    folder, minutes = RUNS / profile / "notebooks", {}
    earlier = sorted(path.parent.name for path in (RUNS / profile).glob("stage*/stage.json"))
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
    if update:  # only now, so that every lesson sees the same commit
        for path in paths:
            store_outputs(folder / path.name, path)
    print(f"\n{len(paths)} notebooks in {sum(minutes.values()):.1f} min; executed copies in {shown(folder)}")
    about = {"minutes": minutes, "stages_read_from_earlier_runs": earlier, "provenance": provenance()}
    write_json(RUNS / profile / "results" / "minutes.json", about)
    print(f"report: {shown(write_report(RUNS / profile, values, provenance()))}")
    evaluation = RUNS / profile / "results" / "evaluation.json"
    if any(path.stem == "05_evaluation" for path in paths):
        results = read_json(evaluation)
        print(f"\n{results['title']}, {results['intervals']}")
        for table, what in TABLES.items():
            print(f"\n{what}\n{markdown_table(results, table)}")
        print(f"\nfrom {shown(evaluation)}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The command line; one sentence and exit code 2 for what a user can mistype."""
    parser = argparse.ArgumentParser(prog="python -m rootsam_lib", description="RootSAM from the command line.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("tutorial", help="run the notebooks headless, in order")
    run.add_argument("--profile", default="quick", help="a set of parameters from profiles.yaml (default: quick)")
    run.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="set a parameter")
    run.add_argument("--only", default="", help="numbers of the notebooks to run, such as 01,03")
    run.add_argument("--update", action="store_true", help="write the outputs back into notebooks/ (for maintainers)")
    table = commands.add_parser("table", help="print a results file as a Markdown table")
    table.add_argument("file", type=Path)
    table.add_argument("--table", default="fixed prompts", help=f"one of: {', '.join(TABLES)}, correction")
    table.add_argument("--columns", default="", help="metrics to show, such as root_iou,pooled_dice")
    scans = commands.add_parser("segment", help="find and measure the roots of a folder of scans")
    scans.add_argument("folder", type=Path, help="images (png, jpg, tif), of any size; masks are not needed")
    scans.add_argument("--model", required=True, help="a trained stage's folder or checkpoint, or nano")
    scans.add_argument("--out", type=Path, help="where to write (default: FOLDER-roots, beside the folder)")
    scans.add_argument(
        "--input-scale", type=float, help="how much tiles are enlarged (default: as the stage was trained)"
    )
    scans.add_argument("--tile", type=int, help="tile side in px (default: the stage's patch size, at most 1024)")
    scans.add_argument("--dpi", type=float, help="resolution of all scans (default: as files say; without any, in px)")
    scans.add_argument("--mask-coding", help="what is root in masks beside the images, such as 0/1 (default: found)")
    scans.add_argument("--max-megapixels", type=float, default=250, help="larger images are not read (default: 250)")
    scans.add_argument("--prompts", type=Path, help="points: a CSV with columns scan, x, y, label (1 root, 0 soil)")
    scans.add_argument("--tta", action="store_true", help="also look at flipped tiles: four times the work")
    scans.add_argument("--window-mm", type=float, help="tube length between locations (default: the image's height)")
    scans.add_argument("--tube-angle", type=float, default=45.0, help="degrees to the horizontal (default: 45)")
    options = parser.parse_args(arguments)
    try:
        if options.command == "segment":
            from rootsam_lib.apps.segment import segment_command  # torch and skan are slow to import

            return segment_command(options)
        if options.command == "table":
            columns = options.columns.split(",") if options.columns else COLUMNS
            print(markdown_table(read_json(options.file), options.table, columns))
            return 0
        given = {name: literal(value) for name, value in options.p}
        return tutorial(
            options.profile, given, [number for number in options.only.split(",") if number], options.update
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it was.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
