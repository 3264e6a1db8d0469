"""The simulated annotator: times, clicks needed, intervals over tubes, and a run that goes on."""

from dataclasses import replace

import numpy as np
import pytest

from rootsam_lib.checkpoints import build_sam
from rootsam_lib.data.scans import Scan
from rootsam_lib.evaluation import clicks
from rootsam_lib.evaluation.clicks import (
    SECONDS,
    TIME_SOURCES,
    clicks_until,
    corrected_row,
    minutes_for,
    simulate,
    summarise,
)
from rootsam_lib.predictor import Predictor


@pytest.fixture(scope="module")
def nano():
    return Predictor(build_sam("nano"), tile_size=256)


def row(tube: str, scores: list[float], lengths: list[float], true: float = 100.0) -> dict:
    given = len(scores) - 1
    scored = {"root_iou": scores, "cl_dice": scores, "length": lengths, "true_length": true}
    return {"name": tube, "tube": tube, "given": given, "obeyed": given, **scored}


def test_minutes():
    assert set(TIME_SOURCES) == set(SECONDS)
    seconds = {"find": (4.0, 6.0), "click": (1.0, 1.0), "review": (30.0, 30.0)}
    assert minutes_for(10, seconds) == pytest.approx((30 + 10 * (5 + 1)) / 60)
    drawn = [minutes_for(10, seconds, np.random.default_rng(i)) for i in range(200)]
    assert 80 / 60 <= min(drawn) < 82 / 60 and 98 / 60 < max(drawn) <= 100 / 60


def test_clicks_until_a_goal():
    assert clicks_until([0.1, 0.5, 0.4, 0.8], 0.45) == 1 and clicks_until([0.1, 0.2], 0.9) == 1
    assert clicks_until([0.5, 0.6], 0.5) == 0


def test_summary_by_hand(monkeypatch):
    for name, seconds in (("find", 0), ("click", 6), ("review", 0)):
        monkeypatch.setitem(SECONDS, name, (seconds, seconds))
    rows = [row("T1", [0.2, 0.4, 0.8], [50, 80, 100]), row("T2", [0.79, 0.8, 0.8], [100, 110, 130])]
    done = summarise(rows)
    assert done["clicks"] == 1.0 and done["clicks_interval"] == [0.0, 2.0], "2 and 0 clicks, two tubes"
    assert done["minutes"] == pytest.approx(0.1) and done["minutes_interval"] == pytest.approx([0.0, 0.2])
    assert done["after_clicks"][0]["length_error"] == pytest.approx(0.25)
    assert done["after_clicks"][2] == pytest.approx({"root_iou": 0.8, "cl_dice": 0.8, "length_error": 0.15})
    same = [row("T1", [0.2, 0.8], [9, 9]), row("T1", [0.8, 0.8], [9, 9])]
    assert summarise(same)["clicks_interval"] == [0.5, 0.5], "scans of one tube are drawn together"
    assert summarise(rows, seed=1) == summarise(rows, seed=1)
    with pytest.raises(ValueError, match="no image to score"):
        summarise([])


def annotated(nano, scan, most=6, jitter=1.0, **options) -> dict:
    rng = np.random.default_rng(0)
    nano.set_image(scan.image)
    return corrected_row(nano.correct, scan.mask, most, rng, jitter, clicks.SKIP, **options)


def test_one_scan(nano, small_scans):
    scan = small_scans[0]
    told = annotated(nano, scan)
    assert len(told["root_iou"]) == len(told["cl_dice"]) == len(told["length"]) == 7
    assert told == annotated(nano, scan) and told["given"] == len(told["clicks"]) == 6
    assert len({(x, y) for x, y, _ in told["clicks"]}) == 6, "nobody clicks twice on one place"
    assert told["clicks"] != annotated(nano, scan, jitter=3.0)["clicks"]
    exact = annotated(nano, scan, 1, 0.0)["clicks"][0]
    assert scan.mask[exact[1], exact[0]] == exact[2], "without tremor a click says the truth"
    few = annotated(nano, scan, at=(0, 6))
    assert [k for k, value in enumerate(few["cl_dice"]) if not np.isnan(value)] == [0, 6]
    assert few["length"][6] == told["length"][6] and few["root_iou"] == told["root_iou"]
    with pytest.raises(ValueError, match="no mask"):
        simulate({"base": nano}, [Scan(scan.image, None, "bare", "T1")])


def test_a_run_goes_on_where_it_was(tmp_path, nano, small_scans, monkeypatch):
    done = []
    monkeypatch.setattr(clicks, "corrected_row", lambda *given: done.append(given[2]) or corrected_row(*given))
    options = {"out": tmp_path, "clicks": 2}
    simulate({"base": nano}, small_scans[:1], **options)
    results = simulate({"base": nano}, small_scans[:3], **options)
    assert len(done) == 3, "the first scan is read, not annotated again"
    assert results["rows"]["base"]["scans"] == 3 and results["rows"]["base"]["tubes"] == 2
    assert results["rows"]["base"] == simulate({"base": nano}, small_scans[:3], clicks=2)["rows"]["base"]
    done.clear()
    simulate({"base": nano}, small_scans[:1], out=tmp_path, clicks=3)
    assert done == [3], "another setting is another run"
    other = replace(small_scans[0], mask=np.roll(small_scans[0].mask, 1, 0))
    simulate({"base": nano}, [other], out=tmp_path, clicks=3)
    assert done == [3, 3], "another truth under the same name is another scan"
    assert results["data"]["real"] is False and len(results["models"]["base"]["weights"]) == 16


def test_the_cost_lesson_reads_what_the_last_model_needs(nano, small_scans):
    results = simulate({"other": nano, "stage2": nano}, small_scans[:2], clicks=2)
    row, minutes = results["rows"]["stage2"], results["minutes_per_scan"]
    assert results["clicks_per_scan"] == row["clicks"] and minutes["mean"] == row["minutes"]
    assert [minutes["low"], minutes["high"]] == list(row["minutes_interval"])
