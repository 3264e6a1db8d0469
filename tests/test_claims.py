"""The claims table: what each verdict needs, on results files made for it."""

import copy
import json

import pytest

from rootsam_lib.lessons import claims
from rootsam_lib.lessons.claims import CLAIMS, FAILS, HOLDS, RESULTS, UNTESTED, claims_table


@pytest.fixture
def folder(tmp_path):
    """A copy of the project's results files, and a function that changes one value in one of them."""
    for name in ("segroot-nano", "segroot-ablations", "tutorial-quick"):
        (tmp_path / f"{name}.json").write_text((RESULTS / f"{name}.json").read_text())

    def change(name, value, *keys):
        path = tmp_path / f"{name}.json"
        content = json.loads(path.read_text())
        part = content
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = copy.deepcopy(value)
        path.write_text(json.dumps(content))

    return tmp_path, change


@pytest.mark.parametrize(
    "gain, verdict", [([0.5, 0.4, 0.6], HOLDS), ([0.5, 0.3, 0.6], FAILS), ([0.2, 0.1, 0.3], FAILS)]
)
def test_the_whole_interval_must_reach_the_claim(folder, gain, verdict):
    path, change = folder
    change("segroot-nano", gain, "gains", "fixed prompts", "stage2", "class_mean_iou_relative")
    assert claims.relative_gain(path).verdict == verdict


def test_a_choice_must_be_worth_more_than_luck(folder):
    path, change = folder
    find = claims.worth("uniform prompts")
    where = ("gains", "fixed prompts", "uniform prompts", "root_iou")
    for gain, verdict in (([-0.3, -0.4, -0.2], HOLDS), ([-0.001, -0.002, -0.0005], FAILS), ([0.3, 0.2, 0.4], FAILS)):
        change("segroot-ablations", gain, *where)
        assert find(path).verdict == verdict and f"{gain[0]:.3f}" in find(path).number
    assert claims.worth("never run")(path).verdict == UNTESTED


def test_two_stages_must_win_with_every_seed_by_more_than_seeds_differ(folder):
    path, _ = folder
    assert claims.equal_time(path).verdict == UNTESTED
    spread = {"stage1": {"pooled_dice": [0.5, 0.5, 0.5]}, "stage2": {"pooled_dice": [0.5, 0.49, 0.51]}}  # by 0.02
    for gains, verdict in (((0.05, 0.03), HOLDS), ((0.05, -0.001), FAILS), ((0.012, 0.011), FAILS)):
        pairs = {f"stage1 continued, seed {n} - stage2, seed {n}": {"pooled_dice": [-g]} for n, g in enumerate(gains)}
        rows = {f"stage2, seed {n}": {} for n in range(len(gains))}
        text = json.dumps({"rows": rows, "differences": pairs, "seeds": spread})
        (path / "segroot-whole.json").write_text(text)
        assert claims.equal_time(path).verdict == verdict


def test_an_undefined_score_must_be_reached_in_both_meanings(folder):
    path, change = folder
    where = ("tables", "fixed prompts", "stage2")
    change("segroot-nano", [0.7, 0.68, 0.72], *where, "class_mean_iou")
    assert claims.mean_iou(path).verdict == FAILS
    change("segroot-nano", [0.7, 0.68, 0.72], *where, "root_iou")
    assert claims.mean_iou(path).verdict == HOLDS


def test_every_claim_is_told_with_its_number_and_file():
    lines = claims_table().splitlines()
    assert len(lines) == len(CLAIMS) + 2
    for claim in CLAIMS:
        finding = claim.find(RESULTS)
        assert finding.verdict in (HOLDS, FAILS, UNTESTED) and len(finding.number) > 3
        assert (RESULTS / f"{finding.source}.json").is_file() or finding.verdict == UNTESTED
    assert len(claims_table("05").splitlines()) == 4


def test_no_dollar_of_the_table_begins_a_formula():
    cells = claims_table().replace("\\$", "").split("|")
    assert len(cells) > 40 and not any("$" in cell for cell in cells)
