"""Windows over time: drawn roots that grow and die with known truth, alignment by hand, and what is refused."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stub_predictor import StubPredictor

from rootsam_lib import CHECKOUT
from rootsam_lib.__main__ import main
from rootsam_lib.apps.segment import segment_folder
from rootsam_lib.apps.timeseries import align, follow, follow_folder, shared
from rootsam_lib.data.drawn import draw_scan
from rootsam_lib.data.scans import Scan
from rootsam_lib.results import read_csv

spec = importlib.util.spec_from_file_location("growth", CHECKOUT / "benchmarks" / "timeseries.py")
growth = importlib.util.module_from_spec(spec)
spec.loader.exec_module(growth)


@pytest.fixture(scope="module")
def grown():
    return growth.growing_scans(np.random.default_rng(3), 3, 512, 512, days=10)


def test_turnover_of_drawn_growing_scans_is_within_ten_percent(grown):
    scans, growth = grown
    rows = follow(scans[::-1])  # in any order
    assert [row["date"] for row in rows] == ["2017-04-11", "2017-04-21", "2017-05-01"]
    for row, true in zip(rows, growth, strict=True):
        assert row["root_length_mm"] == pytest.approx(true.length, rel=0.12)
    found = [(row["shift_rows"], row["shift_columns"]) for row in rows[1:]]
    assert found == [true.shift for true in growth[1:]] and len(set(found)) == 2
    for name, part in (("new_length_mm", "new"), ("vanished_length_mm", "vanished")):
        true = sum(getattr(one, part) for one in growth)
        assert true > 10 and sum(row.get(name, 0) for row in rows) == pytest.approx(true, rel=0.1), name
    true = np.mean([2 * g.new / (g.shared_before + g.shared_length) * 36.525 for g in growth[1:]])
    assert np.mean([row["turnover_per_year"] for row in rows[1:]]) == pytest.approx(true, rel=0.1)
    row = rows[1]
    assert row["days"] == 10 and row["match"] > 0.8
    assert row["production_mm_per_cm2_day"] == pytest.approx(row["new_length_mm"] / row["shared_cm2"] / 10)
    assert row["shared_cm2"] == pytest.approx(np.prod([512 - abs(moved) for moved in found[0]]) * (2.54 / 300) ** 2)


def test_without_drift_growth_or_death_nothing_is_new(grown):
    (first, _, _), _ = grown
    rows = follow([first, replace(first, date="2017-06-01")])
    assert rows[1]["new_length_mm"] == rows[1]["vanished_length_mm"] == rows[1]["turnover_per_year"] == 0
    assert (rows[1]["shift_rows"], rows[1]["shift_columns"]) == (0, 0) and rows[1]["match"] == pytest.approx(1)


def bar(columns: int, row: int = 100, date: str = "2017-04-11") -> Scan:
    """A bar of 5 px from column 20 on, over a ground that can be aligned."""
    mask = np.zeros((200, 300), bool)
    mask[row - 2 : row + 3, 20:columns] = True
    image = np.random.default_rng(0).integers(0, 255, (200, 300, 3)).astype(np.uint8)
    return Scan(image, mask, f"a_T001_L002_{date}", "T001", date, None)


def test_new_and_vanished_length_by_hand():
    later = bar(200, 103, "2017-04-21")  # the same bar, 3 px lower, and 80 px longer
    row = follow([bar(120), later])[1]
    assert row["new_length_px"] == pytest.approx(80, abs=2) and row["vanished_length_px"] == 0
    assert row["production_px_per_px2_day"] == pytest.approx(row["new_length_px"] / (200 * 300) / 10)
    assert "new_length_mm" not in row
    row = follow([replace(later, date="2017-03-01"), bar(120)])[1]
    assert row["new_length_px"] == 0 and row["vanished_length_px"] == pytest.approx(80, abs=2)
    moved = bar(120, 112, "2017-04-21")  # too far beside to be the same
    row = follow([bar(120), moved])[1]
    assert row["new_length_px"] == pytest.approx(row["vanished_length_px"]) and row["new_length_px"] > 90
    excluded = np.zeros((200, 300), bool)
    excluded[:, 160:] = True  # in one of both is enough
    row = follow([bar(120), replace(later, excluded=excluded)])[1]
    assert row["new_length_px"] == pytest.approx(40, abs=4) and row["shared_px2"] == 200 * 160
    empty = replace(bar(120, date="2017-05-01"), mask=np.zeros((200, 300), bool))
    row = follow([bar(120), empty])[1]
    assert row["vanished_length_px"] > 90 and row["new_length_px"] == 0 and row["turnover_per_year"] == 0


def test_alignment_of_two_sizes_and_what_both_show():
    sheet = draw_scan(np.random.default_rng(3), 420, 420).image
    before, after = sheet[30:330, 20:340], sheet[41:400, 5:305]
    found = align(before, (after * 0.6 + 20).astype(np.uint8))  # darker, and of less contrast
    assert found.shift == (-11, 15) and found.match > 0.7
    ours, theirs = shared(before.shape[:2], after.shape[:2], found.shift)
    np.testing.assert_array_equal(before[ours], after[theirs])
    assert before[ours].shape == (289, 285, 3)
    ours, theirs = shared((10, 10), (10, 10), (20, 0))
    assert np.zeros((10, 10))[ours].size == np.zeros((10, 10))[theirs].size == 0


def test_a_poor_match_is_refused_and_said(grown):
    (first, *_), _ = grown
    other = replace(draw_scan(np.random.default_rng(9), 512, 512, date="2017-06-01"), name="other")
    said = []
    row = follow([first, other], say=said.append)[1]
    assert row["match"] < 0.1 and "new_length_mm" not in row and row["root_length_mm"] > 0
    assert len(said) == 1 and "other does not match drawn_T000_L001_2017-04-11" in said[0]


def test_bad_input_is_one_sentence():
    first = bar(120)
    for scans, match in (
        ([first, replace(first, date="")], "no date in its name"),
        ([first, replace(first, mask=None)], "has no mask: segment it first"),
        ([first, first], "one window at one date"),
        ([first, replace(first, date="2017-05-01", mm_per_px=0.1)], "differ in resolution"),
    ):
        with pytest.raises(ValueError, match=match):
            follow(scans)
    with pytest.raises(ValueError, match="tolerance_px is -1"):
        follow([first], tolerance_px=-1)


def written(folder: Path, grown: list[Scan], location: int) -> None:
    """Images that the stub segments as they are drawn: their green is 255 on roots and below 128 elsewhere."""
    folder.mkdir(exist_ok=True)
    for scan in grown:
        image = scan.image // 2
        image[scan.mask, 1] = 255
        Image.fromarray(image).save(folder / f"a_T003_L{location:03d}_{scan.date}.png")


def test_command_writes_one_table_and_one_figure(grown, tmp_path, capsys):
    folder, roots = tmp_path / "scans", tmp_path / "scans-roots"
    written(folder, grown[0], 1)
    written(folder, grown[0][:2], 4)
    Image.fromarray(grown[0][0].image).save(folder / "no_place.png")
    for date in ("2017-04-11", "2017-05-11"):  # one window, were it known of which tube
        Image.fromarray(grown[0][0].image).save(folder / f"L004_{date}.png")
    segment_folder(folder, StubPredictor(), dpi=300, window_mm=20, exclude="0,0,100,512", say=str)
    assert main(["timeseries", str(folder)]) == 2
    assert "with another exclude" in capsys.readouterr().err
    assert main(["timeseries", str(folder), "--exclude", "0,0,100,512"]) == 0
    said = capsys.readouterr()
    assert "5 scans of 2 windows" in said.out and "no_place is left out" in said.err
    assert "L004_2017-05-11 is left out" in said.err
    rows = read_csv(roots / "timeseries.csv", ("date", "scan"))
    assert [(row["location"], row["date"]) for row in rows] == [
        *((1, scan.date) for scan in grown[0]),
        *((4, scan.date) for scan in grown[0][:2]),
    ]
    assert [row["depth_mm"] for row in rows] == pytest.approx([7.071] * 3 + [49.5] * 2, rel=1e-3)
    assert rows[0]["new_length_mm"] is None and rows[1]["new_length_mm"] == pytest.approx(rows[4]["new_length_mm"])
    cut = [replace(scan, excluded=np.arange(512)[None] < np.full((512, 1), 100)) for scan in grown[0]]
    expected = follow(cut, say=str)
    assert rows[1]["new_length_mm"] == pytest.approx(expected[1]["new_length_mm"], rel=0.1)
    assert rows[1]["window_cm2"] == pytest.approx(expected[1]["window_cm2"])
    assert Image.open(roots / "timeseries.png").width > 1000
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(next(roots.glob("*_L004_*-mask.png")))
    assert main(["timeseries", str(folder), "--exclude", "0,0,100,512"]) == 1
    said = capsys.readouterr()
    assert "3 scans of 1 windows" in said.out and "T003 L004 is left out" in said.err
    with pytest.raises(FileNotFoundError, match=r"holds no segment.json: give the folder that segment wrote"):
        follow_folder(folder, tmp_path)
