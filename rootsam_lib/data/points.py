"""Points that a person gives for scans, from a CSV or from Python."""

import re
from pathlib import Path

import numpy as np

from rootsam_lib import checked
from rootsam_lib.prompts import ROOT, SOIL, Prompts
from rootsam_lib.results import read_csv


def read_points(name: str, given: object) -> Prompts:
    """Points of one scan as `Prompts`. Raises ValueError, naming the scan, for what is no pair of points and labels."""
    try:
        points, labels = (np.asarray(part, float) for part in given)
    except (TypeError, ValueError):
        points = labels = np.zeros(0)
    fits = points.ndim == 2 and points.shape[1] == 2 and labels.shape == points.shape[:1]
    if not fits or not np.isin(labels, (SOIL, ROOT)).all():
        raise ValueError(f"prompts of {name} are no Prompts: give points (N, 2) and N labels, 1 for root, 0 for soil.")
    if not (np.isfinite(points).all() and (points >= 0).all()):
        raise ValueError(f"prompts of {name} hold a coordinate below 0 or that is no number: give pixels of the image.")
    if len(labels) and not labels.any():
        raise ValueError(f"prompts of {name} are soil points only, which ask for no root: add a root point.")
    if len(labels) and points.max() <= 1 and (points % 1).any():
        raise ValueError(f"prompts of {name} are shares of the image's sides: give pixels.")
    kind_at: dict[tuple[int, int], float] = {}
    for (x, y), kind in zip(points.astype(int).tolist(), labels, strict=True):
        if kind_at.setdefault((x, y), kind) != kind:
            raise ValueError(f"prompts of {name} say both root and soil at ({x}, {y}): keep one of both points.")
    return Prompts(points.astype(np.float32), labels.astype(np.int64))


def read_prompts(path: str | Path) -> dict[str, Prompts]:
    """Prompts by scan from a CSV with the columns scan, x, y, label: pixels from the upper left, label 1 root, 0 soil.

    Raises FileNotFoundError, or ValueError with the number of the row that is wrong.
    """
    path = Path(path).expanduser()
    rows = [{str(name).strip().lower(): cell for name, cell in row.items()} for row in read_csv(path, text=None)]
    if not rows or not {"scan", "x", "y", "label"} <= set(rows[0]):
        raise ValueError(f"{path} lacks points or columns: its first line must be scan,x,y,label.")
    points: dict[str, list[tuple[float, float, int]]] = {}
    for number, row in enumerate(rows, start=1):
        try:
            if not row["scan"]:
                raise ValueError("scan is empty: give its name in every row.")
            x, y = (checked(name, _number(row[name]), 0) for name in "xy")
            kind = checked("label", _number(row["label"]), SOIL, ROOT, whole=True)
        except ValueError as error:
            raise ValueError(f"{path}, row {number} below the first line: {error}") from None
        points.setdefault(row["scan"], []).append((x, y, kind))
    for scan, given in points.items():
        if all(kind == SOIL for *_, kind in given):
            raise ValueError(f"{path}: {scan} has soil points only, which ask for no root: add a root point.")
    if max(max(x, y) for given in points.values() for x, y, _ in given) <= 1:
        raise ValueError(f"{path}: no x or y is above 1: give pixels of the image, not shares of its sides.")
    return {
        scan: Prompts(np.array([p[:2] for p in given], np.float32), np.array([p[2] for p in given], np.int64))
        for scan, given in points.items()
    }


def _number(text: str | None) -> object:
    """A cell's number, with a decimal comma or point; the cell itself where it is none, or may mean thousands."""
    if re.fullmatch(r"\s*[1-9]\d{0,2}(,\d{3})+\s*", str(text)):
        return text
    try:
        return float(str(text).replace(",", "."))
    except ValueError:
        return text
