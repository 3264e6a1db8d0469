"""Calibration: what a model's lengths, areas and diameters must be multiplied by, fitted on annotated scans of yours.

A model has habits: it misses faint roots, and draws the others wider or thinner than you do. What it does alike on all
scans of one kind, one factor per trait takes off: sum of true values over sum of measured ones. How much length it
misses differs with how far roots stand out from the soil, so from `LEAST_FOR_CONTRAST` annotated scans on the factor of
the length follows their contrast (`traits.root_contrast`) by a power law, within the contrasts it was fitted on.

A calibration is of one model, its settings and one resolution. Its 95 % intervals, from a bootstrap over tubes, say how
far it would move with other annotated tubes.

On the command line: `segment` a folder of annotated scans, `calibrate` what it wrote, then `segment --calibration` the
others (or lay calibration.json into the model's folder, where `segment` finds it and says so). `score_row` is what
`segment` notes of each scan with a mask, and what is fitted on.
"""

import argparse
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from rootsam_lib import checked
from rootsam_lib.data.scans import Scan
from rootsam_lib.evaluation.bootstrap import NAN, RatioTerms, agreement, estimate, interval, tube_weights
from rootsam_lib.metrics import cl_dice, count, dice, dilate, iou
from rootsam_lib.results import LATER, atomic, provenance, read_csv, read_json, shown, write_json
from rootsam_lib.traits import read_done, trait_row

TRAITS = re.compile(r"(root_length|root_area|mean_diameter)_(mm|px)2?")
LEAST_FOR_CONTRAST = 4  # from three scans a power is worse than none
SAME_RESOLUTION = 0.02  # share by which resolutions may differ: what rounding in files does


def calibrated_traits(names: Iterable[str]) -> list[str]:
    """The columns, of these, that are calibrated: length, area and diameter."""
    return [name for name in names if TRAITS.fullmatch(name)]


def fit_calibration(
    measured: Sequence[Mapping[str, object]],
    true: Sequence[Mapping[str, object]],
    tubes: Sequence[str],
    mm_per_px: float | None,
    model: Mapping[str, object],
    seed: int = 0,
    draws: int = 2000,
) -> dict[str, object]:
    """A calibration from k annotated scans, as JSON holds it: {"factors": {trait: [factor, low, high]}, "contrast":
    {"slope": [power, low, high], "at": where the length's factor is the one given, "range": [low, high]} or None, …}.

    measured, true: one row of traits a scan, from `traits.trait_row` of the model's masks and `traits.measure` of the
    true ones; scans without roots on either side say nothing about the diameter. mm_per_px: of all these scans; model:
    what made the masks, `Predictor.about`. Intervals are 95 %, over tubes (NaN from one tube).
    Raises ValueError for no scan, or a trait that is 0 in all measured or in all true masks.
    """
    if not len(measured) == len(true) == len(tubes) or not len(true):
        lengths = f"{len(measured)} measured and {len(true)} true rows and {len(tubes)} tubes"
        raise ValueError(f"{lengths}: give one of each for every annotated scan, and at least one scan.")
    weights, factors, contrast = tube_weights(tubes, np.random.default_rng(seed), draws), {}, None
    for trait in calibrated_traits(true[0]):
        pairs = np.array([[float(row[trait] or 0) for row in rows] for rows in (true, measured)])
        pairs[:, ~np.isfinite(pairs).all(axis=0)] = 0
        if "diameter" in trait:
            pairs[:, (pairs == 0).any(axis=0)] = 0
        if (pairs < 0).any():
            raise ValueError(f"{trait} holds {pairs.min():g}, but no trait is below 0: give what `trait_row` returns.")
        if not pairs.sum(axis=1).all():
            raise ValueError(
                f"{trait} is 0 in all measured or all true masks: annotate scans with roots that it finds."
            )
        if "length" in trait:
            levels = np.array([float(row.get("qc_root_contrast") or 0) for row in measured])
            usable = (levels > 0) & (pairs > 0).all(axis=0)
            if usable.sum() >= LEAST_FOR_CONTRAST and len({tubes[i] for i in np.flatnonzero(usable)}) > 1:
                at = float(np.exp(np.average(np.log(levels[usable]), weights=pairs[1, usable])))
                log = np.log(np.where(usable, levels, at) / at)
                fits = [_power(*pairs, log, usable, counts) for counts in (np.ones(len(true)), *weights)]
                (factor, slope), drawn = fits[0], np.array(fits[1:])
                factors[trait] = [factor, *interval(drawn[:, 0])]
                span = [float(levels[usable].min()), float(levels[usable].max())]
                contrast = {"slope": [slope, *interval(drawn[:, 1])], "at": at, "range": span}
                continue
        factors[trait] = list(estimate(RatioTerms(*pairs), weights))
    return {
        "factors": factors,
        "contrast": contrast,
        "scans": len(true),
        "tubes": len(set(tubes)),
        "mm_per_px": mm_per_px,
        "model": dict(model),
        "provenance": provenance(),
    }


def _power(true: np.ndarray, measured: np.ndarray, log: np.ndarray, usable: np.ndarray, counts: np.ndarray) -> tuple:
    """Factor and power of true = factor · exp(log) ** power · measured: the power by least squares of the logarithms,
    weighted by length, the factor so that the sums agree. NaN where fewer than three usable scans are drawn."""
    if np.count_nonzero(usable & (counts > 0)) < 3:
        return NAN, NAN
    root = np.sqrt(counts * measured)[usable]
    slope = float(np.polyfit(log[usable], np.log(true[usable] / measured[usable]), 1, w=root)[0])
    return float((counts * true).sum() / (counts * measured * np.exp(slope * log)).sum()), slope


def calibrated(row: Mapping[str, object], calibration: Mapping[str, object]) -> dict[str, float | None]:
    """The calibrated columns for a row of `traits.trait_row`: the trait's name with "calibrated_" before it.

    Raises ValueError for a row at another resolution than the calibration's.
    """
    check_resolution(calibration, row["mm_per_px"])
    found, contrast = {}, calibration["contrast"]
    for name, (factor, *_) in calibration["factors"].items():
        if contrast and "length" in name and row["qc_root_contrast"]:
            level = min(max(row["qc_root_contrast"], contrast["range"][0]), contrast["range"][1])
            factor *= (level / contrast["at"]) ** contrast["slope"][0]
        found[f"calibrated_{name}"] = None if row[name] is None else row[name] * factor
    return found


def check_resolution(calibration: Mapping[str, object], mm_per_px: float | None) -> None:
    """Raises ValueError unless this is the calibration's resolution, in mm a pixel or None for an unknown one."""
    fitted = calibration["mm_per_px"]
    if fitted is None and mm_per_px is None:
        return
    if None in (fitted, mm_per_px) or abs(math.log(fitted / mm_per_px)) > SAME_RESOLUTION:
        here, there = (f"{25.4 / size:.0f} dpi" if size else "an unknown resolution" for size in (mm_per_px, fitted))
        raise ValueError(
            f"the scan has {here}, but the calibration was fitted at {there}: fit one on annotated scans of this kind, "
            "or segment without it (a calibration.json in the model's folder is taken by itself)."
        )


def read_calibration(path: str | Path, say: Callable[[str], object]) -> dict[str, object]:
    """The calibration in a file, which is told to `say`. Raises FileNotFoundError, or ValueError for another file."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: `calibrate` writes it from a segmented folder with masks.")
    found = read_json(path)
    if missing := {"factors", "contrast", "scans", "tubes", "mm_per_px", "model"} - set(found):
        raise ValueError(f"{shown(path)} is no calibration (it lacks {min(missing)}): `calibrate` writes one.")
    try:
        for factor in found["factors"].values():
            checked("a factor", factor[0], 0, above=True)
        if contrast := found["contrast"]:
            checked("slope", contrast["slope"][0], -100, 100)
            for level in (contrast["at"], *contrast["range"]):
                checked("contrast", level, 0, above=True)
        if strange := set(found["factors"]) - set(calibrated_traits(found["factors"])):
            raise ValueError(f"{min(strange)} is no trait that is calibrated")
        if found["mm_per_px"] is not None:
            checked("mm_per_px", found["mm_per_px"], 0, above=True)
        found["model"].get("weights")
        describe_calibration(found)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{shown(path)} is damaged ({type(error).__name__}: {error}): fit it anew.") from None
    say(f"calibration from {shown(path)}: {describe_calibration(found)}")
    return found


def check_model(calibration: Mapping[str, object], about: Mapping[str, object]) -> None:
    """Raises ValueError unless this model with these settings, `Predictor.about`, is the calibration's."""
    if other := [name for name, value in about.items() if (LATER | calibration["model"]).get(name) != value]:
        raise ValueError(
            f"the calibration was fitted with another model or other settings ({', '.join(other)}): fit it anew, or "
            "segment without it (a calibration.json in the model's folder is taken by itself: move it away)."
        )


def describe_calibration(calibration: Mapping[str, object]) -> str:
    """What a calibration does, in one sentence for people."""
    parts = []
    for name, (factor, low, high) in calibration["factors"].items():
        known = low is not None and math.isfinite(low)
        parts.append(f"{name} × {factor:.3f} ({f'{low:.3f} to {high:.3f}' if known else 'no interval: one tube'})")
    if contrast := calibration["contrast"]:
        parts[0] += f" × (contrast / {contrast['at']:.2f}) ^ {contrast['slope'][0]:.2f}"
    size, scans = calibration["mm_per_px"], calibration["scans"]
    at = f"at {25.4 / size:.0f} dpi" if size else "in pixels"
    return f"{', '.join(parts)}; from {scans} scan{'s' * (scans != 1)}, tubes: {calibration['tubes']}, {at}"


def plot_agreement(measured: Sequence[float], true: Sequence[float], tubes: Sequence[str], trait: str):
    """A trait of predicted masks against the true ones, and their difference over their mean with the limits of
    agreement (Bland & Altman 1986), as a Matplotlib figure; see `bootstrap.agreement`."""
    from matplotlib.figure import Figure

    found, measured, true = agreement(measured, true, tubes), np.asarray(measured, float), np.asarray(true, float)
    figure = Figure(figsize=(9, 4), layout="constrained")
    values, differences = figure.subplots(1, 2)
    values.plot(true, measured, "o")
    values.axline((0, 0), slope=1, color="0.6", zorder=0)
    title = f"R² {found['r2']:.2f} ({found['scans']} scans)"
    values.set(xlabel=f"true {trait}", ylabel=f"measured {trait}", title=title)
    differences.plot((measured + true) / 2, measured - true, "o")
    for name, style in (("bias", "-"), ("limits_low", "--"), ("limits_high", "--")):
        differences.axhline(found[name], linestyle=style, color="0.4")
        differences.annotate(
            f"{found[name]:.3g}", (1, found[name]), xycoords=("axes fraction", "data"), ha="right", va="bottom"
        )
    differences.set(xlabel=f"mean of both, {trait}", ylabel="measured - true", title="bias and limits of agreement")
    return figure


def score_row(
    scan: Scan, mask: np.ndarray, trait: Mapping[str, object], measuring: Mapping[str, object]
) -> dict[str, object]:
    """A mask against the true one: root IoU and Dice, Dice with the truth dilated by one pixel, clDice, and what is
    calibrated (length, area, diameter). Pixels that are excluded count nowhere.

    trait: the mask's own `trait_row`, made with `measuring`.
    """
    kept = np.True_ if scan.excluded is None else ~scan.excluded
    truth, grown = scan.mask & kept, dilate(scan.mask & kept) & kept
    counts = count(mask & kept, truth)
    true = trait_row(scan, truth, **measuring)
    return {
        "scan": scan.name,
        "tube": scan.tube,
        "root_iou": iou(counts),
        "dice": dice(counts),
        "dilated_dice": dice(count(mask & kept, grown)),
        "cl_dice": cl_dice(mask & kept, truth),
        **{f"{of}{name}": row[name] for name in calibrated_traits(trait) for of, row in (("", trait), ("true_", true))},
    }


def calibrate_command(options: argparse.Namespace) -> int:
    """Fit a calibration on a folder that `segment` wrote from scans with masks; write it and the agreement figures."""
    roots = Path(options.roots).expanduser()
    path, text = Path(options.out or roots / "calibration.json").expanduser(), ("scan", "tube", "date")
    if path.suffix != ".json":
        raise ValueError(f"{shown(path)} must end in .json: give a file, such as calibration.json.")
    if options.out and path.is_file() and "factors" not in read_json(path):
        raise ValueError(f"{shown(path)} is there and no calibration: give another file.")
    done, settings = read_done(roots)
    if settings.get("prompts"):
        raise ValueError(
            f"{shown(roots)} was segmented with prompts, which finds other roots: segment without, then fit."
        )
    if not (roots / "scores.csv").is_file():
        raise FileNotFoundError(
            f"{shown(roots)} holds no scores.csv, for no scan had a mask: lay masks beside the images (X-mask.png "
            "beside X.png), segment again, and then calibrate."
        )
    scores = read_csv(roots / "scores.csv", text)
    measured = {row["scan"]: row for row in done}
    traits = calibrated_traits(scores[0]) if scores else []
    if len(traits) < 3:
        raise ValueError(f"{shown(roots)}: scores.csv lacks areas and diameters: segment the annotated scans anew.")
    if "tube" not in scores[0]:
        raise ValueError(f"{shown(roots)}: scores.csv lacks the column tube: segment the annotated scans anew.")
    if gone := [row.get("scan") for row in scores if row.get("scan") not in measured]:
        raise ValueError(f"{shown(roots)}: {gone[0]} is in scores.csv, but not in traits.csv: segment it again.")
    if twice := [name for name, number in Counter(row["scan"] for row in scores).items() if number > 1]:
        raise ValueError(f"{shown(roots)}: {twice[0]} has two rows in scores.csv: take one out, or segment anew.")
    rows, tubes = [measured[row["scan"]] for row in scores], [row["tube"] for row in scores]
    size, names = rows[0]["mm_per_px"], [*traits, *(f"true_{name}" for name in traits)]
    for file, table, wanted in (("scores.csv", scores, names), ("traits.csv", rows, traits)):
        for row, name in itertools.product(table, wanted):
            try:
                float(row[name] or 0)
            except (KeyError, ValueError):
                what = f"{name} of {row['scan']} is {row.get(name)!r}, no number"
                raise ValueError(f"{shown(roots / file)}: {what}: segment the folder anew into another one.") from None
    for row in rows:
        try:
            check_resolution({"mm_per_px": size}, row["mm_per_px"])
        except ValueError:
            first, other = (f"{25.4 / px:.0f} dpi" if px else "no resolution" for px in (size, row["mm_per_px"]))
            raise ValueError(
                f"{shown(roots)}: {rows[0]['scan']} has {first}, but {row['scan']} {other}: a calibration is of one "
                "resolution; segment annotated scans of one into a folder of their own."
            ) from None
    true = [{name: row[f"true_{name}"] for name in traits} for row in scores]
    own = ("dpi", "window_mm", "tube_angle", "cleaning", "prompts", "exclude", "calibration")
    made_by = {name: value for name, value in settings.items() if name not in own}
    fitted = fit_calibration(rows, true, tubes, size, made_by) | {"cleaning": settings["cleaning"]}
    write_json(path, fitted)
    for trait in traits if len(scores) > 1 else ():
        pairs = [(row[trait], row[f"true_{trait}"], row["tube"]) for row in scores]
        pairs = [pair for pair in pairs if None not in pair]
        if len(pairs) > 1:
            with atomic(roots / f"agreement-{trait}.png") as partial:
                plot_agreement(*zip(*pairs, strict=True), trait).savefig(partial, dpi=150)
    print(f"{describe_calibration(fitted)}; in {shown(path)}")
    return 0
