"""A notebook's parameters: the literals in its one or two cells of them, what is given in their place, and the record
of a run that names them."""

import ast
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import nbformat
import yaml

from rootsam_lib import checked
from rootsam_lib.checkpoints import MODELS
from rootsam_lib.data.datasets import SOURCES
from rootsam_lib.evaluation.tools import parse_edits
from rootsam_lib.lessons.ablations import parse_variants
from rootsam_lib.predictor import STARTS, parse_clicks
from rootsam_lib.prompts import MOST_EXPONENT
from rootsam_lib.results import RUNS, provenance, write_json
from rootsam_lib.training.config import PRESETS, SCHEDULES, parse_families
from rootsam_lib.traits import LEAST_ANGLE

PROFILES = Path(__file__).parent / "profiles.yaml"
CHOICES = {"PROFILE": yaml.safe_load(PROFILES.read_text(encoding="utf-8")), "MODEL": MODELS, "DATA": SOURCES}
CHOICES |= {"TEST_SPLIT": ("valid", "test"), "SCHEDULE": SCHEDULES, "HARDWARE": PRESETS, "START": STARTS}


def _two_clicks(text: str) -> None:
    clicks = parse_clicks(text)
    if len(set(clicks)) < max(2, len(clicks)) or not all(click.label for click in clicks):
        raise ValueError(f"ROOT_CLICKS is {text!r}: give two clicks or more, on several roots, x,y,1 joined by ;")


PARSERS = {"CLICKS": parse_clicks, "ROOT_CLICKS": _two_clicks, "EDITS": parse_edits, "VARIANT_NAMES": parse_variants}
PARSERS |= {"FAMILIES": parse_families}
ABOVE = ("LOOP_LR", "WAGE", "MANUAL_MINUTES", "ASSISTED_MINUTES")  # greater than the lowest, not equal to it
RANGES = {
    "INPUT_SCALE": (1 / 32, 32),
    "LR": (0, 1),
    "LOOP_LR": (0, 1),
    "SEED": (0, 2**32 - 1),
    "TUBE_ANGLE": (LEAST_ANGLE, 90),
    "REVIEW_SHARE": (0, 1),
    "EDT_EXPONENT": (0, MOST_EXPONENT),
    "BRIGHTER": (1, 255),
    "PATCH": (32, 8192),
    "PAIRS": (2, math.inf),
}
# Numbers that cannot be 0:
_FROM_ONE = re.compile(r"(?<!TRAINING_)(EPOCHS|STEPS|VIEWS|DRAWS|PAIRS|SCENES|IMAGES|SCANS|PATCHES|PATCH)$")


def literal(text: str) -> object:
    """A command-line value as Python reads it (1e-4 is a float, True a bool); all else is a string, as 60,325,1 is."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, (int, float, str)) else text


def notebook_parameters(path: Path) -> dict[str, object]:
    """Names and default values in a notebook's parameters cell, after those that it shares with other lessons."""
    cells = nbformat.read(path, as_version=4).cells
    tagged = [c for c in cells if {"shared-parameters", "parameters"} & set(c.metadata.get("tags", []))]
    return {name: value for cell in tagged for name, value in assigned(cell.source).items()}


def check_parameters(given: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    """The given values as the types of the defaults: 3.0 becomes 3 where a whole number is wanted.

    Raises ValueError for an unknown name, saying the right spelling, for a value of another type, and for one that can
    be known to be wrong before hours of lessons: a choice that there is not, a number below 0. papermill itself would
    only warn of a name, and the lesson would run on its defaults.
    """
    typed = {}
    for name, value in given.items():
        if name not in defaults:
            close = difflib.get_close_matches(name.upper(), defaults, n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(sorted(defaults))}."
            raise ValueError(f"there is no parameter {name!r}: {hint}")
        kind = type(defaults[name])
        number = isinstance(value, (int, float)) and isinstance(value, bool) == (kind is bool)
        if kind is not str and not (number and (kind is not int or float(value).is_integer())):
            raise ValueError(f"parameter {name} is {value!r}, but must be {kind.__name__}, such as {defaults[name]!r}.")
        if name in CHOICES and value not in list(CHOICES[name]):
            raise ValueError(f"parameter {name} is {value!r}: choose one of {', '.join(CHOICES[name])}.")
        if name in PARSERS:
            PARSERS[name](str(value))
        if kind in (int, float):
            low, high = RANGES.get(name, (int(bool(_FROM_ONE.search(name))), math.inf))
            checked(f"parameter {name}", value, low, high, above=name in ABOVE)
        if name == "LIMIT" and value in (1, 2):
            raise ValueError(
                f"parameter LIMIT is {value}: give 0 for all scans, or 3 or more, so that val has its own."
            )
        if name == "PATCH" and value % 32:
            raise ValueError(f"parameter PATCH is {value}: give a multiple of 32.")
        typed[name] = kind(value)  # also of a str: a folder may be called 2024
    return typed


def check_injected(cells: Sequence[str]) -> dict[str, object]:
    """Check the values that papermill was given, or that a reader wrote into the parameters cell, inside the running
    notebook; the values that papermill was given, as the types of those that they replace.

    cells: the code of all cells that ran so far, IPython's `In`. papermill writes the given values into a cell of their
    own behind the parameters cell. Raises ValueError as `check_parameters` does.
    """
    defaults: dict[str, object] = {}
    given: dict[str, object] = {}
    for cell in cells:
        if cell.startswith("# Parameters\n"):
            given |= check_parameters(assigned(cell), defaults)
        else:
            own = {name: value for name, value in assigned(cell).items() if name.isupper()}
            check_parameters(own, own)
            defaults |= own
    return given


def record(profile: str, lesson: str, metrics: dict[str, object], namespace: Mapping[str, object]) -> Path:
    """Keep a lesson's metrics in runs/<profile>/lessons/<lesson>.json, with its parameters and provenance.

    namespace: the notebook's `globals()`, see `current_parameters`.
    """
    content = {"lesson": lesson, "metrics": metrics, "parameters": current_parameters(namespace)}
    return write_json(RUNS / profile / "lessons" / f"{lesson}.json", content | {"provenance": provenance()})


def current_parameters(namespace: Mapping[str, object]) -> dict[str, object]:
    """What a notebook's parameters are now: the UPPER_CASE names of the cells that only set such names, where their
    values are a str, int, float or bool.

    IPython keeps the code of the cells that ran as `In`: so what papermill or a reader set later counts, and a constant
    that was imported does not. Without it, in a plain script, every such name is taken for a parameter.
    """
    setting = re.compile(r"[A-Z][A-Z0-9_]* = |#|$")
    cells = [cell for cell in namespace.get("In", ()) if all(map(setting.match, cell.splitlines()))]
    names = [name for cell in cells for name in assigned(cell)] or namespace
    values = {name: namespace[name] for name in names if name.isupper() and name in namespace}
    return {name: value for name, value in values.items() if type(value) in (str, int, float, bool)}


def assigned(cell: str) -> dict[str, object]:
    """The literals that a cell's code assigns to names; none where it is not Python."""
    found = {}
    try:
        for line in ast.parse(cell).body:
            if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
                with suppress(ValueError):  # no literal
                    code = ast.unparse(line.value)
                    odd = re.fullmatch(r"float\('(-?inf|nan)'\)", code)  # what papermill writes for such
                    found[line.targets[0].id] = float(odd[1]) if odd else ast.literal_eval(line.value)
    except SyntaxError:
        return {}
    return found
