"""The simulated annotator: tools on masks drawn by hand, minutes, intervals over tubes, and a run that goes on."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from skimage.draw import line as drawn_line

from rootsam_lib.checkpoints import build_sam
from rootsam_lib.data.scans import Scan
from rootsam_lib.evaluation import clicks
from rootsam_lib.evaluation.clicks import SECONDS, TIME_SOURCES, WAYS, annotate_scan, clicks_until, simulate, summarise
from rootsam_lib.evaluation.tools import Edit, apply_edits, check_edit, excluded, remove_segment, trace_between
from rootsam_lib.metrics import cl_dice, dilate
from rootsam_lib.predictor import Predictor

SOIL_IMAGE = np.full((120, 160, 3), 90, np.uint8)


def root(*places: tuple[int, int]) -> np.ndarray:
    """A root of three px along straight lines between (x, y)."""
    mask = np.zeros(SOIL_IMAGE.shape[:2], bool)
    for (x, y), (x2, y2) in pairwise(places):
        mask[drawn_line(y, x, y2, x2)] = True
    return dilate(mask)


def logits_of(mask: np.ndarray, found: float = 5.0) -> np.ndarray:
    return np.where(mask, found, -9.0).astype(np.float32)


# --- The tools


def test_a_trace_follows_what_the_model_half_sees():
    bent, nothing = root((10, 60), (60, 20), (110, 60)), np.zeros(SOIL_IMAGE.shape[:2], bool)
    edit = Edit("trace", 10, 60, 110, 60)
    traced = trace_between(nothing, edit, logits_of(bent, -3.0), SOIL_IMAGE)
    assert cl_dice(traced, bent) == 1.0 and traced[19:23, 60].any()
    straight = trace_between(nothing, edit, np.zeros(nothing.shape, np.float32), SOIL_IMAGE)
    assert cl_dice(straight, root((10, 60), (110, 60))) == 1.0, "where nothing is seen the way is straight"
    bright = np.where(bent[..., None], 200, SOIL_IMAGE).astype(np.uint8)
    seen = trace_between(nothing, edit, np.zeros(nothing.shape, np.float32), bright)
    assert cl_dice(seen, bent) == 1.0, "the image alone leads as well"


def test_a_trace_starts_on_the_roots_and_has_their_width():
    there = dilate(root((10, 60), (50, 60))) | root((100, 60), (150, 60))
    traced = trace_between(there, Edit("trace", 48, 63, 103, 57), np.zeros(there.shape, np.float32), SOIL_IMAGE)
    added = traced & ~there
    assert (traced & there).sum() == there.sum() and set(np.flatnonzero(added.any(0))) == set(range(53, 99))
    assert set(added[:, 60:90].sum(0)) <= {3, 5} and added[60, 53:99].all(), "on the centre lines, not at the clicks"


def test_a_segment_goes_and_its_neighbours_stay():
    trunk, branch = root((10, 60), (150, 60)), root((80, 60), (110, 20))
    mask = trunk | branch
    left = remove_segment(mask, 100, 33)
    assert not left[15:50, 90:115].any() and left[60, 10:151].all()
    left = remove_segment(mask, 30, 63)
    assert not left[60, 10:70].any() and left[60, 90:150].all() and left[22, 108]
    assert np.array_equal(remove_segment(mask, 30, 90), mask), "no root is near"
    speck = np.zeros_like(mask)
    speck[5:7, 5:7] = True
    assert np.array_equal(remove_segment(mask | speck, 6, 8), mask)


def test_edits_in_their_order_and_a_rectangle_left_out():
    nothing, zeros = np.zeros(SOIL_IMAGE.shape[:2], bool), np.zeros(SOIL_IMAGE.shape[:2], np.float32)
    edits = [Edit("trace", 10, 60, 110, 60), Edit("remove", 50, 60), Edit("exclude", 30, 100, 20, 90)]
    assert apply_edits(nothing, edits[:1], zeros, SOIL_IMAGE).any()
    assert not apply_edits(nothing, edits, zeros, SOIL_IMAGE).any()
    assert apply_edits(nothing, edits[1::-1], zeros, SOIL_IMAGE).any(), "there was nothing to remove yet"
    out = excluded(nothing.shape, edits)
    assert out.sum() == 121 and out[90:101, 20:31].all()
    assert check_edit(Edit("remove", 3.0, 4), nothing.shape) == Edit("remove", 3, 4)
    for bad, match in (
        (Edit("saw", 1, 1), "choose one of trace"),
        (Edit("trace", 1, 1), "x2 of trace is -1"),
        (Edit("remove", 160, 1), "x of remove is 160"),
        (Edit("exclude", 1, 1, 2, 120), "y2"),
    ):
        with pytest.raises(ValueError, match=match):
            check_edit(bad, nothing.shape)


# --- The person


TRUTH = root((10, 20), (150, 25)) | root((20, 50), (60, 90), (140, 100))
FALSE = root((90, 45), (150, 60))
FOUND = root((10, 20), (70, 22)) | FALSE


def annotated(way: str, minutes=(0, 1, 4.5), predict=None, seed: int = 0, found: float = 5.0) -> dict:
    logits = np.where(FOUND, found, np.where(TRUTH, -4.0, -9.0)).astype(np.float32)
    return annotate_scan(TRUTH, SOIL_IMAGE, logits, way, np.random.default_rng(seed), minutes, predict, jitter=0.0)


def test_every_way_does_what_its_tools_can():
    scores = {way: [cl_dice(m, TRUTH) for m in annotated(way)["masks"]] for way in WAYS if "click" not in WAYS[way]}
    assert all(of[0] == (0 if "hand" in way else scores["trace"][0]) for way, of in scores.items())
    assert all(of == sorted(of) and of[-1] > of[0] for of in scores.values())
    assert scores["trace and remove"][-1] > 0.95 > max(scores["trace"][-1], scores["remove"][-1])
    assert scores["by hand"][-1] > 0.95 > scores["by hand, image alone"][-1], "nothing is in this image"
    assert not annotated("remove")["masks"][-1][50:60, 100:140].any()


def test_minutes_are_the_sum_of_seconds(monkeypatch):
    for name, one in {"review": 30, "find": 5, "click": 1, "reach": 2, "undo": 3}.items():
        monkeypatch.setitem(SECONDS, name, (one, one))
    assert set(TIME_SOURCES) == set(SECONDS)
    done = annotated("remove", (0, 0.5, 0.59, 0.6, 2))
    assert done["actions"] == {"remove": 1, "taken back": 0} and done["ready"] == pytest.approx(36 / 60)
    assert [int(mask[52, 118]) for mask in done["masks"]] == [1, 1, 1, 0, 0], "done after 36 s, and not before"
    traced = annotated("trace", (0, 20))
    used = traced["actions"]["trace"] * 4 + traced["actions"]["taken back"] * 3
    assert (traced["ready"] * 60 - 30 - used) % 5 == pytest.approx(0), "a find for each, one click more for an end"
    with pytest.raises(ValueError, match="from few to many"):
        annotated("trace", (2, 1))


def test_a_click_that_does_not_help_is_taken_back_and_traced():
    asked = []

    def deaf(given):
        asked.append(list(given))
        return FOUND

    many = np.any([root((10, y), (60, y)) for y in range(10, 115, 13)], axis=0)
    done = annotate_scan(many, SOIL_IMAGE, logits_of(many, -3.0), "mixed", np.random.default_rng(0), (0, 10), deaf)
    assert done["actions"]["click"] == len(asked) == 4 < done["actions"]["trace"], "four of six refused: asked no more"
    assert all(len(given) == 1 for given in asked) and done["actions"]["taken back"] >= 4
    assert cl_dice(done["masks"][-1], many) > 0.95
    done = annotated("mixed", (0, 10), lambda given: FOUND | TRUTH)
    assert done["actions"]["click"] == 1 and done["actions"]["trace"] == 0
    only = annotated("clicks", (0, 10), lambda given: FOUND | TRUTH)
    assert only["actions"] == {"click": 1, "taken back": 0} and only["masks"][-1][60, 30]
    with pytest.raises(ValueError, match="give predict"):
        annotated("clicks")


def test_the_same_seed_is_the_same_person():
    one, same, other = (annotated("trace and remove", seed=seed)["ready"] for seed in (1, 1, 2))
    assert one == same != other


# --- Many scans


def test_clicks_until_a_goal():
    assert clicks_until([0.1, 0.5, 0.4, 0.8], 0.45) == 1 and clicks_until([0.1, 0.2], 0.9) == 1
    assert clicks_until([0.5, 0.6], 0.5) == 0


def row(tube: str, scores: list[float], lengths: list[float]) -> dict:
    return {"tube": tube, "root_iou": scores, "cl_dice": scores, "length": lengths, "true_length": 100.0}


def test_summary_by_hand():
    done = summarise([row("T1", [0.2, 0.8], [50, 90]), row("T2", [0.6, 0.8], [110, 110])], (0, 4.5))
    assert list(done) == ["0", "4.5"] and done["0"]["cl_dice"] == pytest.approx([0.4, 0.2, 0.6])
    assert done["0"]["length_error"] == pytest.approx([0.3, 0.1, 0.5])
    assert done["4.5"]["length_error"] == pytest.approx([0.1, 0.1, 0.1])
    assert done["4.5"]["length_bias"] == pytest.approx([0.0, -0.1, 0.1])
    same = summarise([row("T1", [0.2], [50]), row("T1", [0.6], [50])], (0,))
    assert np.isnan(same["0"]["cl_dice"][1]), "one tube says nothing of others"


@pytest.fixture(scope="module")
def nano():
    return Predictor(build_sam("nano"), tile_size=256)


def test_a_run_goes_on_where_it_was(tmp_path, nano, small_scans, monkeypatch):
    done = []
    monkeypatch.setattr(clicks, "annotate_scan", lambda *given: done.append(given[3]) or annotate_scan(*given))
    ways, options = ("by hand", "mixed"), {"out": tmp_path, "minutes": (0, 1)}
    simulate(small_scans[:1], nano, ways, **options)
    results = simulate(small_scans[:2], nano, ways, **options)
    assert done == ["by hand", "mixed"] * 2, "the first scan is read, not annotated again"
    assert results["rows"] == simulate(small_scans[:2], nano, ways, minutes=(0, 1))["rows"]
    assert results["rows"]["by hand"]["0"]["cl_dice"][0] == 0 < results["rows"]["by hand"]["1"]["cl_dice"][0]
    assert results["data"]["real"] is False and len(results["model"]["weights"]) == 16
    done.clear()
    simulate(small_scans[:1], nano, ways[:1], out=tmp_path, minutes=(0, 2))
    other = replace(small_scans[0], mask=np.roll(small_scans[0].mask, 1, 0))
    simulate([other], nano, ways[:1], out=tmp_path, minutes=(0, 2))
    assert done == ["by hand"] * 2, "other minutes, and another truth under the same name, are another run"
    with pytest.raises(ValueError, match="no mask"):
        simulate([Scan(small_scans[0].image, None, "bare", "T1")], nano)
