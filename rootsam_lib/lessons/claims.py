"""The poster's claims, each beside what this project's results files say of it: a lesson's last table, and README's.

A claim *holds* where its number reaches what the poster says, with the whole 95 % interval; it *does not hold* where it
was tested and that was not shown; where no results file tests it, it is *not tested here*. Differences between two
trainings must also exceed what three trainings that differ by their seed alone differ by.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rootsam_lib import CHECKOUT
from rootsam_lib.lessons.ablations import REFERENCE, VARIANTS
from rootsam_lib.losses import boundary_schedule
from rootsam_lib.results import cell, read_json, table

RESULTS = CHECKOUT / "data" / "results"
HOLDS, FAILS, UNTESTED = "holds", "does not hold", "not tested here"


class Finding(NamedTuple):
    """What was found about a claim: one of the three verdicts, the number behind it, and its results file."""

    verdict: str
    number: str
    source: str


class Claim(NamedTuple):
    """A claim of the poster, the numbers of the lessons that are about it, and what reads its finding from a folder."""

    lessons: tuple[str, ...]
    says: str
    find: Callable[[Path], Finding]


def _verdict(holds: bool) -> str:
    return HOLDS if holds else FAILS


def worth(*variants: str) -> Callable[[Path], Finding]:
    """Whether leaving any of these choices out (`ablations.VARIANTS`) costs prompted root IoU, beyond luck."""

    def find(folder: Path) -> Finding:
        results = read_json(folder / "segroot-ablations.json")
        scores = {name: row["root_iou"][0] for name, row in results["tables"]["fixed prompts"].items()}
        seeds = [score for name, score in scores.items() if name == REFERENCE or "seed" in VARIANTS[name].changes]
        luck = max(seeds) - min(seeds)
        gains = {name: results["gains"]["fixed prompts"][name]["root_iou"] for name in variants if name in scores}
        if not gains:
            return Finding(UNTESTED, "–", "")
        told = [f"{name}: {cell(gain)}" for name, gain in gains.items()]
        number = f"prompted root IoU, {', '.join(told)}; seeds differ by {luck:.3f}"
        if "no boundary" in gains:
            number += f"; boundary weight up to {boundary_schedule(results['epochs'] - 1):g}"
        return Finding(_verdict(all(g[2] < 0 and -g[0] > luck for g in gains.values())), number, "segroot-ablations")

    return find


def better_than_base(folder: Path) -> Finding:
    """Whether training the decoder raises root IoU with the poster's points."""
    gain = read_json(folder / "segroot-nano.json")["gains"]["fixed prompts"]["stage1"]["root_iou"]
    return Finding(_verdict(gain[1] > 0), f"prompted root IoU +{cell(gain)}", "segroot-nano")


def base_is_poor(folder: Path) -> Finding:
    """Whether the base model finds fewer roots than after training, by itself and with the poster's points."""
    tables = read_json(folder / "segroot-nano.json")["tables"]
    asked = [tables[protocol] for protocol in ("fixed prompts", "automatic")]
    (given, alone), trained = ([of[name]["root_iou"] for of in asked] for name in ("base", "stage2"))
    number = (
        f"root IoU {cell(given)} with points, {cell(alone)} without ({trained[0][0]:.3f}, {trained[1][0]:.3f} trained)"
    )
    poor = given[2] < trained[0][1] and alone[2] < trained[1][1]
    return Finding(_verdict(poor), number, "segroot-nano")


def relative_gain(folder: Path) -> Finding:
    """The poster's +37 %, taken as class-mean IoU: it does not say, but that alone gives a poor base its 66 / 1.37."""
    results = read_json(folder / "segroot-nano.json")
    gain = results["gains"]["fixed prompts"]["stage2"]["class_mean_iou_relative"]
    base, trained = (results["tables"]["fixed prompts"][name]["root_iou"][0] for name in ("base", "stage2"))
    number = f"class-mean IoU {cell(gain, form='+.0%')}; root IoU {trained / base - 1:+.0%}"
    return Finding(_verdict(gain[1] >= 0.37), number, "segroot-nano")


def mean_iou(folder: Path) -> Finding:
    """The poster's 66 %, in both meanings that an undefined mIoU can have."""
    row = read_json(folder / "segroot-nano.json")["tables"]["fixed prompts"]["stage2"]
    number = f"class-mean IoU {cell(row['class_mean_iou'])}, root IoU {cell(row['root_iou'])}"
    return Finding(_verdict(min(row[s][1] for s in ("class_mean_iou", "root_iou")) >= 0.66), number, "segroot-nano")


def equal_time(folder: Path) -> Finding:
    """Stage 2 against Stage 1 gone on for as long (`benchmarks/real_scans.py context`): better with every seed, by more
    than seeds of either stage differ by?"""
    file = folder / "segroot-whole.json"
    results = read_json(file) if file.is_file() else {"rows": {}}
    seeds = [name.removeprefix("stage2") for name in results["rows"] if name.startswith("stage2, seed")]
    pairs = [f"stage1 continued{seed} - stage2{seed}" for seed in seeds]
    if not pairs or not set(pairs) <= set(results["differences"]):
        return Finding(UNTESTED, "not trained", "")
    gains = [-results["differences"][pair]["pooled_dice"][0] for pair in pairs]
    luck = max(high - low for _, low, high in (results["seeds"][name]["pooled_dice"] for name in ("stage1", "stage2")))
    told = f"{np.mean(gains):+.4f} ({min(gains):+.4f} to {max(gains):+.4f} over {len(gains)} seeds)"
    number = f"pooled Dice {told}; seeds differ by {luck:.4f}"
    return Finding(_verdict(min(gains) > 0 and float(np.mean(gains)) > luck), number, file.stem)


def saving(folder: Path) -> Finding:
    """The poster's arithmetic, from its own minutes: nobody's time was measured here."""
    lessons = read_json(folder / "tutorial-quick.json")["metrics"]
    cost = next(metrics for name, metrics in lessons.items() if name.endswith("_cost"))
    number = "{reduction:.0%}, {productivity:.1f} x, \\${saved:,.0f} follow from 50.18 and 4.5 min".format(**cost)
    return Finding(UNTESTED, f"{number}; nobody's time was measured", "tutorial-quick")


def untested(why: str) -> Callable[[Path], Finding]:
    """A claim that no results file tests."""
    return lambda folder: Finding(UNTESTED, why, "")


CLAIMS = (
    Claim(("00",), "the base model struggles with thin roots", base_is_poor),
    Claim(("01", "A2"), "points by EDT train better than uniform points", worth("uniform prompts")),
    Claim(("02", "A2"), "the hybrid loss is better than its parts", worth("no boundary", "no focus")),
    Claim(("03",), "training decoder and prompts adapts it", better_than_base),
    Claim(("04",), "two stages are better than one of equal time", equal_time),
    Claim(("05",), "+37 % over SAM2.1", relative_gain),
    Claim(("05",), "66 % mIoU", mean_iou),
    Claim(("06",), "corrected masks are better than manual ones", untested("nobody has corrected")),
    Claim(("07",), "91 % cheaper, 11.2 x productivity, \\$8,527 saved", saving),
)  # fmt: skip


def claims_table(lesson: str = "", folder: Path = RESULTS) -> str:
    """Markdown: the poster's claims, what was found, the number with its 95 % interval. lesson: only its own."""
    rows = []
    for claim in CLAIMS:
        if lesson in ("", *claim.lessons):
            verdict, number, source = claim.find(folder)
            rows.append([claim.says, f"**{verdict}**", number, source or "–"])
    return table(["the poster says", "here", "nano's number (95 % interval, or seeds' range)", "from"], rows)
