"""Root systems in the files of the field: RSML, and the columns of RhizoVision Explorer, from a finished folder.

On the command line `python -m rootsam_lib rsml ROOTS`, where ROOTS is what `segment` wrote; masks that were corrected
by hand since count as they are now. RSML is the Root System Markup Language (Lobet et al. 2015, doi
10.1104/pp.114.253625, schema at github.com/RootSystemML/RSMLValidator).

A mask does not tell which root is whose lateral: every piece of root is a `plant`, and every stretch between two ends
or branch points a `root` of it, without hierarchy. All geometry is in pixels, as RSML asks; `resolution` pixels are one
`unit`.
"""

import argparse
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from scipy.ndimage import convolve, label
from skimage.measure import perimeter

from rootsam_lib.apps.outputs import check_exclude, mask_now
from rootsam_lib.data.images import header
from rootsam_lib.data.masks import read_exclusion
from rootsam_lib.metrics import EIGHT
from rootsam_lib.results import progress, shown, write_csv, write_text
from rootsam_lib.traits import (
    CLASSES_MM,
    CLASSES_PX,
    Cleaning,
    Tracing,
    branch_pixels,
    read_done,
    segment_lengths,
    trace,
)


def rsml(tracing: Tracing, mm_per_px: float | None, name: str, image: str = "", captured: str = "") -> str:
    """One scan's roots as the text of an RSML file.

    mm_per_px: the edge of a pixel; None writes the unit pixel. name: the file's key; image: the image file's name;
    captured: its date, yyyy-mm-dd, or "". Raises ValueError for a scan without roots: the schema has no place for it.
    """
    if not tracing.paths:
        raise ValueError(f"{name} has no roots, and RSML needs one: there is no file to write for it.")
    top = ElementTree.Element("rsml")
    about = ElementTree.SubElement(top, "metadata")
    known = {
        "version": "1",
        "unit": "mm" if mm_per_px else "pixel",
        "resolution": f"{1 / mm_per_px if mm_per_px else 1:.6f}",
        "last-modified": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S"),
        "software": "RootSAM",
        "user": "",
        "file-key": name,
    }
    for tag, text in known.items():
        ElementTree.SubElement(about, tag).text = text
    if image:
        of = ElementTree.SubElement(about, "image")
        ElementTree.SubElement(of, "name").text = image
        if captured:
            ElementTree.SubElement(of, "captured").text = f"{captured}T00:00:00"
    definition = ElementTree.SubElement(ElementTree.SubElement(about, "property-definitions"), "property-definition")
    for tag, text in (("label", "length"), ("type", "real"), ("unit", "pixel")):
        ElementTree.SubElement(definition, tag).text = text
    scene, plants = ElementTree.SubElement(top, "scene"), {}
    pieces, _ = label(tracing.centre_lines, EIGHT)
    for number, (path, diameters) in enumerate(zip(tracing.paths, tracing.diameters, strict=True), start=1):
        piece = int(pieces[tuple(path[0].astype(int))])
        if piece not in plants:
            plants[piece] = ElementTree.SubElement(scene, "plant", id=f"plant{piece}", label=f"piece {piece}")
        root = ElementTree.SubElement(plants[piece], "root", id=f"root{number}", label=f"branch {number}")
        properties = ElementTree.SubElement(root, "properties")
        ElementTree.SubElement(properties, "length").text = f"{segment_lengths(path).sum():.3f}"
        line = ElementTree.SubElement(ElementTree.SubElement(root, "geometry"), "polyline")
        for row, column in path:
            ElementTree.SubElement(line, "point", x=f"{column:.2f}", y=f"{row:.2f}")
        functions = ElementTree.SubElement(root, "functions")
        function = ElementTree.SubElement(functions, "function", name="diameter", domain="polyline")
        for diameter in diameters:
            ElementTree.SubElement(function, "sample", value=f"{diameter:.3f}")
    ElementTree.indent(top)
    return ElementTree.tostring(top, encoding="unicode", xml_declaration=True) + "\n"


def rhizovision_row(tracing: Tracing, mm_per_px: float | None, name: str, seconds: float = 0.0) -> dict[str, object]:
    """One scan's row of RhizoVision Explorer's features.csv: its column names, our measurements (see `traits`).

    Lengths are those of `traits.measure`, along smoothed centre lines; area, perimeter and tips those of the cleaned
    mask. Volume and surface area take each step of a centre line as a cylinder. Diameter ranges are those of
    `traits.CLASSES_MM`, or CLASSES_PX where mm_per_px is None; then all is in px, and the names say so. seconds: how
    long it took to measure.
    """
    unit, size, bounds = ("mm", mm_per_px, CLASSES_MM) if mm_per_px else ("px", 1.0, CLASSES_PX)
    none = np.zeros(0)
    lengths = np.concatenate([none, *(segment_lengths(path) for path in tracing.paths)]) * size
    wide = np.concatenate([none, *((along[:-1] + along[1:]) / 2 for along in tracing.diameters)]) * size
    lines, total = tracing.centre_lines, float(lengths.sum())
    tips = int((lines & (convolve(lines.astype(int), EIGHT, mode="constant") == 2)).sum())
    branches, order = int(label(branch_pixels(lines), EIGHT)[1]), np.argsort(wide)
    half = np.searchsorted(np.cumsum(lengths[order]), total / 2) if total else 0
    row = {
        "File.Name": name,
        "Region.of.Interest": "Full",
        "Number.of.Root.Tips": tips,
        "Number.of.Branch.Points": branches,
        f"Total.Root.Length.{unit}": total,
        f"Branching.frequency.per.{unit}": branches / total if total else 0.0,
        f"Network.Area.{unit}2": float(tracing.mask.sum() * size**2),
        f"Average.Diameter.{unit}": float((wide * lengths).sum() / total) if total else 0.0,
        f"Median.Diameter.{unit}": float(wide[order][half]) if total else 0.0,
        f"Maximum.Diameter.{unit}": float(wide.max()) if total else 0.0,
        f"Perimeter.{unit}": float(perimeter(tracing.mask) * size),
        f"Volume.{unit}3": float((np.pi / 4 * wide**2 * lengths).sum()),
        f"Surface.Area.{unit}2": float((np.pi * wide * lengths).sum()),
        "Computation.Time.s": seconds,
    }
    place = np.searchsorted(bounds, wide, side="right")
    for what, power, weights in (
        ("Root.Length", "", lengths),
        ("Projected.Area", "2", wide * lengths),
        ("Surface.Area", "2", np.pi * wide * lengths),
        ("Volume", "3", np.pi / 4 * wide**2 * lengths),
    ):
        sums = np.bincount(place, weights, len(bounds) + 1)
        row |= {f"{what}.Diameter.Range.{k}.{unit}{power}": float(part) for k, part in enumerate(sums, start=1)}
    return row


def export_roots(
    roots: str | Path,
    exclude: str | None = None,
    say: Callable[[str], object] = lambda line: print(line, file=sys.stderr),
) -> tuple[Path, int]:
    """Write X.rsml for every scan X of a folder that `segment` has written, and rhizovision.csv (of scans with a
    resolution) and rhizovision-px.csv (of those without), beside traits.csv. A scan without roots has a row and no
    RSML, and is said. exclude: as it was given to `segment`.

    Returns the folder and how many RSML files it has got. Raises FileNotFoundError or ValueError for another folder.
    """
    roots = Path(roots).expanduser()
    done, settings = read_done(roots)
    check_exclude(settings, exclude, roots)
    tables: dict[str, list] = {"rhizovision.csv": [], "rhizovision-px.csv": []}
    written = 0
    for row in progress(done, f"export {roots.name}", "scan"):
        name, size, start = row["scan"], row["mm_per_px"], time.perf_counter()
        mask, overlay = mask_now(roots, row, say), roots / f"{name}-overlay.jpg"
        if overlay.is_file():
            with header(overlay) as scan:
                if scan.size != (mask.shape[1], mask.shape[0]):
                    raise ValueError(
                        f"{shown(roots / f'{name}-mask.png')} is of {mask.shape[1]} x {mask.shape[0]} px, its scan of "
                        f"{scan.width} x {scan.height}: save the mask in its scan's size."
                    )
        excluded = read_exclusion(exclude, name, mask.shape) if exclude else None
        tracing = trace(mask, size, Cleaning(**settings["cleaning"]), excluded)
        seconds = time.perf_counter() - start
        tables["rhizovision.csv" if size else "rhizovision-px.csv"].append(
            rhizovision_row(tracing, size, f"{name}-mask.png", seconds)
        )
        if tracing.paths:
            write_text(roots / f"{name}.rsml", rsml(tracing, size, name, f"{name}-mask.png", row["date"] or ""))
            written += 1
        else:
            (roots / f"{name}.rsml").unlink(missing_ok=True)  # of an earlier mask
            say(f"{name} has no roots: a row in the table, no RSML file.")
    for file, rows in tables.items():
        if rows:
            write_csv(roots / file, rows)
    return roots, written


def rsml_command(options: argparse.Namespace) -> int:
    """Write the files of a finished folder as the command line asks."""
    roots, written = export_roots(options.roots, options.exclude)
    print(f"{written} RSML files and RhizoVision's columns in {shown(roots)}")
    return 0
