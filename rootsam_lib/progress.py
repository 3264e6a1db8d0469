"""What all long work shares: one progress bar, in notebooks and on the console, and one place for downloads."""

import os
from collections.abc import Iterable
from pathlib import Path

import pooch
from tqdm.auto import tqdm


def progress(items: Iterable, what: str, unit: str, **options: object) -> tqdm:
    """tqdm over `items`; silent where ROOTSAM_PROGRESS=0, as in stored notebooks, where a bar would only be noise."""
    quiet = os.environ.get("ROOTSAM_PROGRESS") == "0"
    return tqdm(items, desc=what, unit=unit, disable=bool(options.pop("disable", False)) or quiet, **options)


def cache_dir() -> Path:
    """Where downloads are kept: ROOTSAM_CACHE, or the user's cache folder."""
    return Path(os.environ.get("ROOTSAM_CACHE") or pooch.os_cache("rootsam"))
