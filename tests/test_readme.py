"""Numbers in the README are those of the results files, to the letter."""

import re

import numpy as np
import pytest

from rootsam_lib import CHECKOUT
from rootsam_lib.results import markdown_table, read_json
from rootsam_lib.stages import PRESETS

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
RESULTS = CHECKOUT / "data" / "results"


TABLES = {
    "fixed prompts": ("root_iou", "class_mean_iou", "pooled_iou", "pooled_dice", "cl_dice"),
    "automatic": ("root_iou", "class_mean_iou", "pooled_dice", "cl_dice", "soil_false_alarm"),
    "whole scans": ("root_iou", "pooled_dice", "pooled_dice_dilated", "precision", "recall", "cl_dice"),
    "correction": ("root_iou@0", "root_iou@10", "root_iou@20", "cl_dice@0", "cl_dice@10", "failures@0.6"),
}


@pytest.mark.parametrize("table", TABLES)
def test_tables_are_the_results_files(table):
    results = read_json(RESULTS / "segroot-nano.json")
    assert markdown_table(results, table, TABLES[table]) in README
    images = results["images"]
    about = f"{images['patches_with_roots']} patches with roots and {images['patches_without_roots']} without"
    assert about in README and results["intervals"].split(",")[0] in README


def test_the_leak_is_told_as_it_is():
    results = read_json(RESULTS / "segroot-nano.json")
    tubes = {patch["name"].split("@")[0]: patch["tube"] for patch in results["patches"]}
    shared = sum(tube in results["data"]["tubes_in_several_parts"] for tube in tubes.values())
    assert f"{shared} of its {len(tubes)} scans are of tubes that also occur in its train split" in README


def test_minutes_are_the_results_files():
    minutes = read_json(RESULTS / "tutorial-quick.json")["minutes"]
    lessons = sorted(path.stem for path in (CHECKOUT / "notebooks").glob("*.ipynb"))
    assert sorted(minutes) == lessons
    for lesson, spent in minutes.items():
        (line,) = [line for line in README.splitlines() if f"(notebooks/{lesson}.ipynb)" in line]
        assert f"| {spent:.1f} |" in line


def test_results_files_name_what_they_were_made_from():
    results = read_json(RESULTS / "segroot-nano.json")
    assert (
        results["data"]["real"] and results["data"]["source"] == "segroot" and results["data"]["test_split"] == "valid"
    )
    assert {"base", "stage1", "stage2", "threshold", "ridge"} == set(results["tables"]["whole scans"])
    assert {"commit", "device", "versions", "made"} <= set(results["provenance"])
    assert results["config"]["stage2"]["seed"] == results["protocol"]["seed"]


def preset_row(key: str) -> str:
    p = PRESETS[key]
    batch, room = f"{p.batch_size} / {p.batch_size // 2}", f"{p.bank_gb:g} GB"
    state = "run here" if p.ran else "**not run here**"
    return f"| `{key}` | {p.hardware} | {p.model} | {batch} | {p.micro_batches} | {room} | {p.precision} | {state} |"


@pytest.mark.parametrize("key", PRESETS)
def test_presets_are_those_of_the_library(key):
    assert preset_row(key) in README


def speed_row(row: dict) -> str:
    """One line of the README's table of training speed."""
    ratios = f"{row['a'] / row['b']:.1f} | {row['b'] / row['c']:.2f}"
    seconds = " | ".join(f"{row[kind]:.3f}" for kind in "abc")
    return f"| {row['model']}, {row['size']} px, batch {row['batch']} | {seconds} | {ratios} |"


def test_speed_is_the_results_files():
    rows = read_json(RESULTS / "training-speed.json")["rows"]
    assert {(row["model"], row["size"]) for row in rows} == {(m, s) for m in ("nano", "tiny") for s in (512, 1024)}
    for row in rows:
        assert speed_row(row) in README


def spread(rows: list[dict], key: str) -> str:
    values = np.array([row[key] for row in rows])
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


@pytest.mark.parametrize("way", ["feature bank", "live encoder"])
def test_bank_and_live_encoding_are_the_results_files(way):
    rows = [row for row in read_json(RESULTS / "bank-against-live.json")["rows"] if row["way"] == way]
    assert len({row["seed"] for row in rows}) == len(rows) >= 3
    scores = " | ".join(spread(rows, key) for key in ("root_iou", "automatic_root_iou"))
    assert f"| {way} | {len(rows)} | {scores} |" in README


def test_links_resolve():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (CHECKOUT / target).exists(), target
