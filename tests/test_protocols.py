"""Protocols on predictors whose scores are known beforehand, on models, and on the baselines."""

import math

import numpy as np
import pytest
import torch
from skimage.draw import line

from rootsam_lib.checkpoints import build_sam
from rootsam_lib.data.scans import Patch, Scan, tile
from rootsam_lib.evaluation import protocols
from rootsam_lib.evaluation import validation as evaluation
from rootsam_lib.evaluation.peers import RidgeFilter, brightness_threshold, fit_ridge
from rootsam_lib.evaluation.protocols import ModelPredictor, evaluate, score_images, score_mask
from rootsam_lib.metrics import DEFINITIONS, Counts, summarise
from rootsam_lib.prompts import FixedPrompts, Prompts
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


def half(image: np.ndarray, prompts: Prompts | None = None) -> np.ndarray:
    """Finds the left half of every image's root, and one false pixel."""
    mask = image[..., 0] > 100
    mask[:, 32:] = False
    mask[0, 0] = True
    return mask


def test_known_predictors_have_known_scores(patches):
    results = evaluate({"bright": bright, "nothing": nothing, "half": half}, patches, FixedPrompts(3, 2), draws=50)
    perfect, empty, part = (results["tables"]["automatic"][name] for name in ("bright", "nothing", "half"))
    assert set(perfect) >= set(DEFINITIONS) - {"images"}
    for metric in ("root_iou", "class_mean_iou", "pooled_dice", "cl_dice", "boundary_f", "precision", "recall"):
        assert perfect[metric] == pytest.approx([1, 1, 1]), metric
    assert perfect["soil_false_alarm"][0] == empty["soil_false_alarm"][0] == 0 and part["soil_false_alarm"][0] == 1
    assert perfect["root_iou_dilated"][0] == pytest.approx(160 / (6 * 42)) and empty["root_iou"][0] == 0
    assert empty["class_mean_iou"][0] == pytest.approx((1 - 160 / 64**2) / 2)
    # The first root lies 22 of 40 columns within the left half, the second one wholly: it is a column.
    assert part["recall"][0] == pytest.approx((88 / 160 + 1) / 2)
    assert part["pooled_dice"][0] == pytest.approx(2 * 248 / (2 * 248 + 3 + 72))
    assert part["soil_false_mm_per_cm2"][0] >= 0
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
    assert seen["a"] == seen["b"] and len(seen["a"]) == 3
    assert set(results["tables"]["fixed prompts"]) == {"a", "b"} and "floor" in results["tables"]["automatic"]
    on_root = [patches[0].mask[int(y), int(x)] for x, y in seen["a"][0]]
    assert sum(on_root) == 4, "four of the seven points lie on the root"


def test_agrees_with_the_scores_that_training_uses(small_scans):
    model, cut = build_sam("nano"), tile(small_scans[0], 128)
    bank = FeatureBank(model, cut)
    for protocol in (FixedPrompts(4, 2), None):
        here = score_images(ModelPredictor(model), cut, [protocol])[0]
        assert [s.raw for s in here] == score(model, bank, protocol)
        parts = protocols.summary_parts(here)
        for key, value in summarise([s.raw for s in here]).items():
            if key in parts:
                assert parts[key].value == pytest.approx(value, nan_ok=True), key


def test_models_on_scans_larger_than_a_patch(small_scans):
    (scan,) = small_scans[:1]
    model = build_sam("nano")
    whole = evaluate({"base": ModelPredictor(model, tile_size=256)}, tile(scan, 256), scans=[scan], draws=20)
    tables = whole["tables"]  # one tile is the whole scan: its score is that of the patch
    assert tables["whole scans"]["base"]["root_iou"] == pytest.approx(tables["automatic"]["base"]["root_iou"])
    assert whole["models"]["base"]["model"].startswith("nano (SAM2.1 decoder")
    mask = ModelPredictor(model, tile_size=128)(scan.image, None)
    assert mask.shape == scan.mask.shape and mask.dtype == bool


def test_mirrored_padding_is_not_scored(small_scans):
    cut = Scan(small_scans[0].image[:100], small_scans[0].mask[:100], "cut", "T000")
    results = evaluate({"all": lambda image, _: np.ones(image.shape[:2], bool)}, tile(cut, 256), draws=5)
    assert results["counts"]["all"][0][:2] == (cut.mask.sum(), 100 * 256 - cut.mask.sum())


def test_masks_are_asked_for_by_name(small_scans):
    bare = Scan(small_scans[0].image, None, "bare", "T005")
    with pytest.raises(ValueError, match="bare@0,0 has no mask"):
        evaluate({"base": nothing}, tile(bare, 256))
    with pytest.raises(ValueError, match="no image to score"):
        protocols.summary_parts([])


def test_results_file_round_trip(patches, tmp_path):
    results = evaluate({"base": nothing}, patches[:2], draws=20, clicked=patches)
    again = read_json(write_json(tmp_path / "r.json", results))
    assert again["tables"]["automatic"]["base"]["soil_false_alarm"] == [None, None, None]  # NaN becomes null
    table = markdown_table(again)
    assert "| base | 0.000 (0.00 to 0.00) |" in table and table.endswith("– |")
    assert "noc@0.6" in markdown_table(again, "correction", ["noc@0.6"])
    with pytest.raises(ValueError, match=r"no table 'whole scans'.*fixed prompts"):
        markdown_table(again, "whole scans")
    with pytest.raises(ValueError, match="no column 'miou'"):
        markdown_table(again, columns=["miou"])
    with pytest.raises(FileNotFoundError, match="make tutorial"):
        read_json(tmp_path / "none.json")


def test_false_length_on_soil_by_hand():
    soil = np.zeros((200, 300), bool)
    assert score_mask(soil, soil, 0.1).false_mm == 0
    found = soil.copy()
    found[100:104, 50:250] = True  # 200 px long and 4 wide; its centre line is up to 2 px shorter at each end
    score = score_mask(found, soil, 0.1)
    assert score.false_mm / score.cm2 == pytest.approx(20 / 6, rel=0.03)  # 20 mm on 20 x 30 mm = 6 cm2
    double = score_mask(found, soil, 0.2)
    assert double.false_mm / double.cm2 == pytest.approx(score.false_mm / score.cm2 / 2)
    assert score_mask(found, found, 0.1).cm2 == 0, "an image with roots says nothing of false length on soil"


def test_the_encoder_runs_once_for_all_questions_about_an_image(small_scans, monkeypatch):
    model, cut = build_sam("nano"), tile(small_scans[0], 128)[:2]
    calls, encode = [], type(model).encode
    monkeypatch.setattr(type(model), "encode", lambda self, *a: calls.append(1) or encode(self, *a))
    score_images(ModelPredictor(model), cut, [None, FixedPrompts(2, 1)])
    assert len(calls) == 2


def test_flips_are_a_row_of_whole_scans_only(small_scans):
    model = build_sam("nano")
    rows = {"flips": ModelPredictor(model, tile_size=128, flips=True)}
    plain = {"base": ModelPredictor(model, tile_size=128)}
    results = evaluate(plain, tile(small_scans[0], 128)[:2], scans=small_scans[:1], on_scans=rows, draws=20)
    assert list(results["tables"]["whole scans"]) == ["base", "flips"] and "flips" not in results["tables"]["automatic"]
    scores = [results["tables"]["whole scans"][name]["pooled_dice"][0] for name in ("base", "flips")]
    assert scores[0] != scores[1] and results["models"]["flips"]["flips"] and not results["models"]["base"]["flips"]


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
    counts = [Counts(*protocols.count(found, mask)) for found in (ridge(picture), brightness_threshold(picture))]
    assert protocols.dice(counts[0]) > 0.7 > protocols.dice(counts[1])
    assert isinstance(ridge, RidgeFilter) and "fitted on training patches" in ridge.about
    with pytest.raises(ValueError, match="take more patches"):
        fit_ridge([Patch(picture, mask & False, "p", "T1", (0, 0))])


def test_no_grad_is_kept(small_scans):
    predictor = ModelPredictor(build_sam("nano"))
    cut = tile(small_scans[0], 128)[0]
    logits = predictor._decode(cut.image, None)
    assert not logits.requires_grad and torch.isfinite(logits).all() and evaluation.FixedPrompts is FixedPrompts
    assert not math.isnan(float(logits.mean()))
