"""Protocols on predictors whose scores are known beforehand, on models, and on the baselines."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from skimage.draw import line

from rootsam_lib.checkpoints import build_sam
from rootsam_lib.data.scans import Patch, Scan, tile
from rootsam_lib.evaluation.bootstrap import collect
from rootsam_lib.evaluation.peers import RidgeFilter, brightness_threshold, fit_ridge
from rootsam_lib.evaluation.protocols import (
    DEFINITIONS,
    control,
    evaluate,
    score_answer,
    score_images,
    selection,
)
from rootsam_lib.metrics import count, dice, summarise
from rootsam_lib.predictor import Predictor
from rootsam_lib.prompts import POSTER_PROMPTS, FixedPrompts, Prompts
from rootsam_lib.results import markdown_table, read_json, write_json
from rootsam_lib.training.feature_bank import FeatureBank
from rootsam_lib.training.loop import score


def patch(mask: np.ndarray, number: int = 0, tube: str = "T001") -> Patch:
    image = np.full((*mask.shape, 3), 60, np.uint8)
    image[mask] = 200
    return Patch(image, mask, f"p{number}", tube, (0, 0), 0.1)


@pytest.fixture
def patches() -> list[Patch]:
    """Two with a root of 4 x 40 px, from two tubes, and one of soil."""
    mask = np.zeros((64, 64), bool)
    mask[20:24, 10:50] = True
    return [patch(mask, 0, "T001"), patch(mask.T, 1, "T002"), patch(mask & False, 2, "T002")]


def bright(image: np.ndarray, prompts: Prompts | None = None) -> np.ndarray:
    return image[..., 0] > 100


def nothing(image: np.ndarray, prompts: Prompts | None = None) -> np.ndarray:
    return np.zeros(image.shape[:2], bool)


class Untrained:
    """Finds nothing, and can be corrected without effect."""

    def __call__(self, image, prompts=None):
        return nothing(image)

    def set_image(self, image):
        self.image = image

    def correct(self, clicks):
        return nothing(self.image)


def half(image: np.ndarray, prompts: Prompts | None = None) -> np.ndarray:
    """Finds the left half of every image's root, and one false pixel."""
    mask = image[..., 0] > 100
    mask[:, 32:] = False
    mask[0, 0] = True
    return mask


def test_known_predictors_have_known_scores(patches):
    results = evaluate({"bright": bright, "nothing": nothing, "half": half}, patches, FixedPrompts(3, 2), draws=50)
    perfect, empty, part = (results["tables"]["automatic"][name] for name in ("bright", "nothing", "half"))
    assert set(perfect) <= set(DEFINITIONS)
    for metric in ("root_iou", "class_mean_iou", "pooled_dice", "cl_dice", "precision", "recall"):
        assert perfect[metric] == pytest.approx([1, 1, 1]), metric
    assert perfect["soil_false_alarm"][0] == empty["soil_false_alarm"][0] == 0 and part["soil_false_alarm"][0] == 1
    assert empty["root_iou"][0] == 0
    assert empty["class_mean_iou"][0] == pytest.approx((1 - 160 / 64**2) / 2)
    # The first root lies 22 of 40 columns within the left half, the second one wholly: it is a column.
    assert part["recall"][0] == pytest.approx((88 / 160 + 1) / 2)
    assert part["pooled_dice"][0] == pytest.approx(2 * 248 / (2 * 248 + 3 + 72))
    change = results["gains"]["automatic"]["nothing"]
    assert change["root_iou"][0] == -1 and change["class_mean_iou_relative"][0] == pytest.approx(
        empty["class_mean_iou"][0] - 1
    )


def test_every_predictor_gets_the_same_points_and_a_table_of_its_own(patches):
    seen = {"a": [], "b": []}

    def spy(name):
        def predictor(image, prompts=None):
            if prompts is not None:
                seen[name].append(prompts.points.tolist())
            return bright(image)

        return predictor

    results = evaluate({n: spy(n) for n in seen} | {"floor": nothing}, patches, FixedPrompts(4, 3), prompted=["a", "b"])
    assert seen["a"] == seen["b"] and [len(points) for points in seen["a"]] == [7, 1, 7, 1, 7]
    for table in ("fixed prompts", "selection", "control"):
        assert set(results["tables"][table]) == {"a", "b"}
    assert "floor" in results["tables"]["automatic"]
    on_root = [patches[0].mask[int(y), int(x)] for x, y in seen["a"][0]]
    assert sum(on_root) == 4, "four of the seven points lie on the root"


def test_agrees_with_the_scores_that_training_uses(small_scans):
    model, cut = build_sam("nano"), tile(small_scans[0], 128)
    bank = FeatureBank(model, cut)
    for protocol in (FixedPrompts(4, 2), None):
        here = score_images(Predictor(model), iter(cut), [partial(score_answer, protocol=protocol)])[0]
        there = score(model, bank.batches(), [protocol])[0]
        assert [row["counts"] for row in here] == there
        terms = collect(here)
        for key, value in summarise(there).items():
            assert terms[key].value == pytest.approx(value, nan_ok=True), key


def test_models_on_scans_larger_than_a_patch(small_scans):
    (scan,) = small_scans[:1]
    model = build_sam("nano")
    whole = evaluate({"base": Predictor(model, tile_size=256)}, tile(scan, 256), scans=[scan], draws=20)
    tables = whole["tables"]  # one tile is the whole scan: its score is that of the patch
    pair = [tables[table]["base"]["root_iou"] for table in ("whole scans", "automatic")]
    assert pair[0] == pytest.approx(pair[1], nan_ok=True)
    assert whole["models"]["base"]["model"].startswith("nano (SAM2.1 decoder")
    mask = Predictor(model, tile_size=128)(scan.image, None)
    assert mask.shape == scan.mask.shape and mask.dtype == bool


def test_mirrored_padding_is_not_scored(small_scans):
    cut = Scan(small_scans[0].image[:100], small_scans[0].mask[:100], "cut", "T000")
    results = evaluate({"all": lambda image, _: np.ones(image.shape[:2], bool)}, tile(cut, 256), draws=5)
    assert results["counts"]["all"][0][:2] == (cut.mask.sum(), 100 * 256 - cut.mask.sum())


def test_masks_are_asked_for_by_name(small_scans):
    bare = Scan(small_scans[0].image, None, "bare", "T005")
    with pytest.raises(ValueError, match="bare@0,0 has no mask"):
        evaluate({"base": nothing}, tile(bare, 256))


def test_results_file_round_trip(patches, tmp_path):
    results = evaluate({"base": Untrained()}, patches[:2], draws=20, clicked=patches)
    again = read_json(write_json(tmp_path / "r.json", results))
    assert again["tables"]["automatic"]["base"]["soil_false_alarm"] == [None, None, None]  # NaN becomes null
    table = markdown_table(again)
    assert "| base | 0.000 (0.000 to 0.000) |" in table and table.endswith("– |")
    assert "noc@0.6" in markdown_table(again, "correction", ["noc@0.6"])
    with pytest.raises(ValueError, match=r"no table 'whole scans'.*fixed prompts"):
        markdown_table(again, "whole scans")
    with pytest.raises(ValueError, match="no column 'miou'"):
        markdown_table(again, columns=["miou"])
    with pytest.raises(FileNotFoundError, match="make tutorial"):
        read_json(tmp_path / "none.json")


def test_the_encoder_runs_once_for_all_questions_about_an_image(small_scans, monkeypatch):
    model, cut = build_sam("nano"), tile(small_scans[0], 128)[:2]
    calls, encode = [], type(model).encode
    monkeypatch.setattr(type(model), "encode", lambda self, *a: calls.append(1) or encode(self, *a))
    score_images(
        Predictor(model), cut, [score_answer, partial(score_answer, protocol=POSTER_PROMPTS), selection, control]
    )
    assert len(calls) == 2


def test_flips_are_a_row_of_whole_scans_only(small_scans):
    model = build_sam("nano")
    rows = {"flips": Predictor(model, tile_size=128, tta=True)}
    plain = {"base": Predictor(model, tile_size=128)}
    results = evaluate(plain, tile(small_scans[0], 128)[:2], scans=small_scans[:1], on_scans=rows, draws=20)
    assert list(results["tables"]["whole scans"]) == ["base", "flips"] and "flips" not in results["tables"]["automatic"]
    scores = [results["tables"]["whole scans"][name]["pooled_dice"][0] for name in ("base", "flips")]
    assert scores[0] != scores[1] and results["models"]["flips"]["tta"] and not results["models"]["base"]["tta"]


# --- One click selects a root


@pytest.fixture
def three_roots() -> Patch:
    """Three bars of 8 x 40 px, 12 and 28 px of soil between them, and a speck of 3 x 3 px."""
    mask = np.zeros((96, 64), bool)
    for row in (10, 30, 66):
        mask[row : row + 8, 12:52] = True
    mask[90:93, 5:8] = True
    return patch(mask)


def obedient(image: np.ndarray, prompts: Prompts | None = None) -> np.ndarray:
    """Finds the bars on or next to which a point lies; all without any."""
    mask = image[..., 0] > 100
    if prompts is None:
        return mask
    wanted = mask & False
    for row in (10, 30, 66):
        if ((prompts.points[:, 1] > row - 6) & (prompts.points[:, 1] < row + 14)).any():
            wanted[row : row + 8] = mask[row : row + 8]
    return wanted


def test_selection_by_hand(three_roots):
    good, deaf, none = (selection(predictor, three_roots) for predictor in (obedient, bright, nothing))
    assert good == {"clicked_iou": 1, "clicked_cl_dice": 1, "other_iou": 0}
    assert deaf["clicked_iou"] == deaf["other_iou"] == pytest.approx(320 / (3 * 320 + 9))
    assert none == {"clicked_iou": 0, "clicked_cl_dice": 0, "other_iou": 0}
    alone = patch(np.where(np.arange(96)[:, None] < 20, three_roots.mask, False))
    assert math.isnan(selection(bright, alone)["other_iou"]) and selection(bright, alone)["clicked_iou"] == 1
    assert all(map(math.isnan, selection(bright, patch(alone.mask & False)).values()))


def test_the_nearest_other_root_is_meant(three_roots):
    """Answers with the nearest other root of the one that is clicked, which its place tells."""
    nearest = {10: 30, 30: 10, 66: 30}

    def neighbour(image, prompts=None):
        mask, (_, y) = np.zeros(image.shape[:2], bool), prompts.points[0]
        row = nearest[min(nearest, key=lambda start: abs(y - start - 3.5))]
        mask[row : row + 8, 12:52] = True
        return mask

    clicked = [selection(neighbour, replace(three_roots, name=f"p{i}")) for i in range(12)]
    assert all(row == {"clicked_iou": 0, "clicked_cl_dice": 0, "other_iou": 1} for row in clicked)


def test_clicks_are_seeded_by_name_and_slip(three_roots):
    seen = []

    def spy(image, prompts=None):
        seen.append((tuple(prompts.points[0]), prompts.labels.tolist()))
        return bright(image)

    for name in ("a", "a", *"bcdefghijklmnopqrstuvwxyz"):
        selection(spy, replace(three_roots, name=name))
    assert seen[0] == seen[1] and len(set(point for point, _ in seen)) > 20 and all(told == [1] for _, told in seen)
    on_root = [three_roots.mask[int(y), int(x)] for (x, y), _ in seen]
    assert 0.5 < np.mean(on_root) < 1, "some slip off a bar of 8 px"
    selection(spy, replace(three_roots, name="a"), seed=1)
    assert seen[-1] != seen[0]


def test_control_by_hand(three_roots):
    good, deaf = control(obedient, three_roots), control(bright, three_roots)
    # One of the three bars is wanted; all of them and the speck are found without a point.
    everything = 320 / (3 * 320 + 9)
    assert good == pytest.approx({"true_points": 1, "moved_points": 0, "no_points": everything, "true_minus_moved": 1})
    assert deaf["true_points"] == deaf["moved_points"] == deaf["no_points"] and deaf["true_minus_moved"] == 0
    asked = []
    control(lambda image, prompts=None: asked.append(prompts) or bright(image), three_roots)
    true, moved, none = asked
    rows = [int(np.searchsorted((20, 50), prompts.points[0, 1])) for prompts in (true, moved)]
    assert len(true.points) == len(moved.points) == 1 and rows[0] != rows[1] and none is None
    one = patch(np.where(np.arange(96)[:, None] < 20, three_roots.mask, False))
    assert all(map(math.isnan, control(bright, one).values()))


def test_selection_and_control_are_tables_with_intervals_by_tube(three_roots):
    pieces = [replace(three_roots, name=f"p{i}", tube=f"T{i // 2}") for i in range(6)]
    soil = patch(three_roots.mask & False, 9, "T0")
    results = evaluate({"deaf": bright, "good": obedient}, [*pieces, soil], draws=40)
    deaf, good = (results["tables"]["selection"][name] for name in ("deaf", "good"))
    assert good["clicked_iou"] == [1, 1, 1] and deaf["clicked_iou"] == pytest.approx([320 / 969] * 3)
    assert results["tables"]["control"]["good"]["true_minus_moved"] == [1, 1, 1]
    assert results["gains"]["control"]["good"]["true_minus_moved"] == [1, 1, 1]
    assert set(results["tables"]["control"]["good"]) | set(good) <= set(results["definitions"])
    # Found by half: two pieces of each bar, or the first bar only.
    halves = np.ones((96, 64), bool)
    halves[:, 30:32] = False
    broken = evaluate({"broken": lambda i, _: bright(i) & halves}, pieces, prompted=[], draws=5)
    assert list(broken["tables"]) == ["automatic"]
    row = broken["tables"]["automatic"]["broken"]
    assert row["pieces_per_root"][0] == 2 and row["betti0_error"][0] == 3
    first = evaluate({"first": lambda i, _: bright(i) & (np.arange(96)[:, None] < 20)}, pieces, prompted=[], draws=5)
    row = first["tables"]["automatic"]["first"]
    assert row["pieces_per_root"][0] == 1
    assert row["betti0_error"][0] == 3


# --- Baselines


def test_threshold_finds_what_is_brighter(patches):
    assert (brightness_threshold(patches[0].image) == patches[0].mask).all()
    assert not brightness_threshold(patches[2].image).any(), "one brightness has no root"


def test_ridge_filter_finds_lines_and_leaves_blobs():
    rng = np.random.default_rng(0)
    mask, image = np.zeros((128, 128), bool), rng.normal(80, 6, (128, 128))
    for r0, c0, r1, c1 in ((5, 10, 120, 60), (30, 120, 100, 20)):
        rows, columns = line(r0, c0, r1, c1)
        for d in range(-2, 3):
            mask[rows, np.clip(columns + d, 0, 127)] = True
    image[mask] += 60
    blob = np.zeros_like(mask)
    blob[10:50, 80:120] = ~mask[10:50, 80:120]
    image[blob] += 60
    picture = np.repeat(np.clip(image, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    ridge = fit_ridge([Patch(picture, mask, "p", "T1", (0, 0))])
    counts = [count(found, mask) for found in (ridge(picture), brightness_threshold(picture))]
    assert dice(counts[0]) > 0.7 > dice(counts[1])
    assert isinstance(ridge, RidgeFilter) and "fitted on training patches" in ridge.about
    with pytest.raises(ValueError, match="take more patches"):
        fit_ridge([Patch(picture, mask & False, "p", "T1", (0, 0))])
