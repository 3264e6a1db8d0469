"""A notebook's parameters: the literals in its parameters cell, and what is given in their place."""

import ast
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat

from rootsam_lib.results import assigned


def literal(text: str) -> object:
    """A command-line value as Python reads it (1e-4 is a float, True a bool); other words are strings."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def notebook_parameters(path: Path) -> dict[str, object]:
    """Names and default values in a notebook's parameters cell."""
    cells = nbformat.read(path, as_version=4).cells
    (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    return assigned(cell.source)


def check_parameters(given: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    """The given values as the types of the defaults: 3.0 becomes 3 where a whole number is wanted.

    Raises ValueError for an unknown name, saying the right spelling, and for a value of another type: papermill itself
    would only warn, and the lesson would run on its defaults.
    """
    checked = {}
    for name, value in given.items():
        if name not in defaults:
            close = difflib.get_close_matches(name.upper(), defaults, n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(sorted(defaults))}."
            raise ValueError(f"there is no parameter {name!r}: {hint}")
        kind = type(defaults[name])
        number = isinstance(value, (int, float)) and isinstance(value, bool) == (kind is bool)
        if kind is not str and not (number and (kind is not int or float(value).is_integer())):
            raise ValueError(f"parameter {name} is {value!r}, but must be {kind.__name__}, such as {defaults[name]!r}.")
        checked[name] = kind(value)  # also of a str: a folder may be called 2024
    return checked


def check_injected(cells: Sequence[str]) -> None:
    """Check the values that papermill was given, inside the running notebook.

    cells: the code of all cells that ran so far, IPython's `In`. papermill writes the given values into a cell of their
    own behind the parameters cell. Raises ValueError as `check_parameters` does.
    """
    parameters = [values for values in map(assigned, cells) if "PROFILE" in values]
    for cell in cells:
        if cell.startswith("# Parameters\n"):
            check_parameters(assigned(cell), parameters[0])
