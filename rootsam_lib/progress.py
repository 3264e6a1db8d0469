"""One progress bar for all long work, in notebooks and on the console."""

import os
from collections.abc import Iterable

from tqdm.auto import tqdm


def progress(items: Iterable, what: str, unit: str, **options: object) -> tqdm:
    """tqdm over `items`; silent where ROOTSAM_PROGRESS=0, as in stored notebooks, where a bar would only be noise."""
    quiet = os.environ.get("ROOTSAM_PROGRESS") == "0"
    return tqdm(items, desc=what, unit=unit, disable=bool(options.pop("disable", False)) or quiet, **options)
