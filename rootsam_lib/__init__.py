"""RootSAM: adapt SAM2.1 to plant roots in minirhizotron scans, and measure what that brings."""

import math
import numbers
import os
from pathlib import Path
from typing import Any

# albumentations asks the network for a newer version at import; nothing here wants that.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

CHECKOUT = Path(__file__).resolve().parent.parent  # notebooks, README, data and git, where the project is a clone
for _name in ("ROOTSAM_HOME", "ROOTSAM_DATA", "ROOTSAM_CACHE", "ROOTSAM_SCRATCH"):
    if os.environ.get(_name):  # a relative one would be another place for a notebook, which runs in its own folder
        os.environ[_name] = str(Path(os.environ[_name]).expanduser().resolve())
# Where runs/ grows: ROOTSAM_HOME, else the clone, else (installed without one) a folder in the user's home.
HOME = Path(
    os.environ.get("ROOTSAM_HOME") or (CHECKOUT if (CHECKOUT / "pyproject.toml").is_file() else Path.home() / "rootsam")
)


def checked_flag(name: str, value: object) -> bool:
    """True or False, if it is one. Raises ValueError that names the setting: any text, as "no", would count as True."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r:.80}: give True or False.")
    return value


def checked_mask(mask: Any, name: str = "mask", one: bool = False) -> Any:
    """A mask, array or tensor, if it is bool; one: an array (H, W). Raises ValueError for 0 and 255, or 0 and 1, which
    would be averaged and inverted as numbers."""
    kind = str(getattr(mask, "dtype", type(mask).__name__))
    if not kind.endswith("bool") or not hasattr(mask, "shape"):
        raise ValueError(f"the {name} is {kind}, but must be a bool array: threshold it first, as in mask > 127.")
    if one and (not hasattr(mask, "astype") or mask.ndim != 2):
        got = f"a {type(mask).__name__} {tuple(mask.shape)}"
        raise ValueError(f"the {name} is {got}, but must be an array (H, W): give one mask at a time.")
    return mask


def checked(
    name: str, value: object, low: float, high: float = math.inf, *, whole: bool = False, above: bool = False
) -> Any:
    """A number, if it is one and lies between low and high (above: greater than low); every setting is checked by this.

    Raises ValueError that names the setting, for what is no number, NaN, infinite, out of range, or not whole where it
    must be. A whole number may come as 3.0, as from a spreadsheet.
    """
    span = f"greater than {low:g}" if above else f"{low:g} or more"
    if high < math.inf:
        span += f" and at most {high:g}"
    kind = "a whole number" if whole else "a number"
    bad = isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value)
    if bad or value < low or value > high or (above and value == low) or (whole and value != int(value)):
        raise ValueError(f"{name} is {value!r:.80}: give {kind}, {span}.")
    return int(value) if whole else value
