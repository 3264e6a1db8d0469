"""Whole scans: every pixel covered, any size, no seams, prompts in the right tile."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rootsam_lib.checkpoints import build_sam
from rootsam_lib.model import Prediction
from rootsam_lib.predictor_old import obey, segment, tile_starts
from rootsam_lib.prompts import Prompts


@pytest.fixture(scope="module")
def model():
    return build_sam("nano").eval()


@given(st.integers(1, 4000), st.sampled_from([(64, 0), (512, 64), (1024, 128), (96, 40)]))
@settings(max_examples=200, deadline=None)
def test_tiles_cover_everything_and_overlap(length, sizes):
    size, overlap = sizes
    starts = tile_starts(length, size, overlap)
    assert starts[0] == 0 and starts[-1] == max(length - size, 0)
    assert all(b - a <= size - overlap for a, b in itertools.pairwise(starts))


@pytest.mark.parametrize("shape", [(64, 64), (40, 200), (130, 97)])
def test_any_size(model, shape):
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    result = segment(model, image, tile_size=64, overlap=16)
    assert result.mask.shape == result.logits.shape == shape and result.mask.dtype == bool
    assert np.isfinite(result.logits).all() and ((result.logits > 0) == result.mask).all()


def test_one_tile_is_the_models_own_answer(model):
    image = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    with torch.no_grad():
        alone = model.decode(model.encode(image[None])).logits
    expected = torch.nn.functional.interpolate(alone, (128, 128), mode="bilinear")[0, 0].numpy()
    np.testing.assert_allclose(segment(model, image, 128, 32).logits, expected, atol=1e-4)


def test_constant_logits_have_no_seams(model, monkeypatch):
    answer = Prediction(torch.full((1, 1, 16, 16), 2.5), torch.tensor([[0.7]]))
    monkeypatch.setattr(type(model), "decode", lambda self, features, *_: answer)
    found = segment(model, np.zeros((150, 170, 3), np.uint8), 64, 24)
    np.testing.assert_allclose(found.logits, 2.5, rtol=1e-5)
    assert found.iou == pytest.approx(0.7)


def test_no_root_no_estimate(model, monkeypatch):
    answer = Prediction(torch.full((1, 1, 16, 16), -1.0), torch.tensor([[0.7]]))
    monkeypatch.setattr(type(model), "decode", lambda self, features, *_: answer)
    found = segment(model, np.zeros((64, 64, 3), np.uint8), 64, 0)
    assert not found.mask.any() and np.isnan(found.iou)


def test_flips_are_turned_back_and_averaged(model):
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    points, labels = np.array([[9.0, 20.0], [50.0, 33.0]], np.float32), np.array([1, 0])
    by_hand = []
    for rows, columns in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        turned = points.copy()
        turned[:, 0] = 63 - points[:, 0] if columns < 0 else points[:, 0]
        turned[:, 1] = 63 - points[:, 1] if rows < 0 else points[:, 1]
        flipped = np.ascontiguousarray(image[::rows, ::columns])
        by_hand.append(segment(model, flipped, 64, 0, Prompts(turned, labels)).logits[::rows, ::columns])
    found = segment(model, image, 64, 0, Prompts(points, labels), tta=True).logits
    np.testing.assert_allclose(found, np.mean(by_hand, axis=0), atol=1e-4)
    assert np.abs(found - by_hand[0]).max() > 0.01


def test_a_point_reaches_only_the_tiles_it_lies_in(model):
    image = np.random.default_rng(0).integers(0, 255, (64, 192, 3), dtype=np.uint8)
    point = Prompts(np.array([[20.0, 30.0]], np.float32), np.array([1]))
    with_point, without = segment(model, image, 64, 0, point).logits, segment(model, image, 64, 0).logits
    assert np.abs(with_point - without)[:, :64].max() > 0.01
    np.testing.assert_allclose(with_point[:, 64:], without[:, 64:], atol=1e-5)


def test_bad_tiles_are_refused(model):
    for size, overlap in ((100, 0), (64, 40)):
        with pytest.raises(ValueError, match="multiple of 32"):
            segment(model, np.zeros((64, 64, 3), np.uint8), size, overlap)


def test_a_click_that_the_model_ignores_is_obeyed_there_and_nowhere_else():
    logits = np.full((100, 120), -4.0, np.float32)
    logits[40:60, 20:100] = 3.0
    done = obey(logits, [(110, 10, 1), (50, 50, 0)], reach=5, margin=2)
    assert done[10, 110] == 2 and done[50, 50] == -2 and (logits[40:60, 20:100] == 3).all(), "a copy, and on its side"
    rows, columns = np.mgrid[:100, :120]
    around = [(abs(rows - y) <= 20) & (abs(columns - x) <= 20) for x, y in ((110, 10), (50, 50))]
    near = around[0] | around[1]
    assert (done[~near] == logits[~near]).all() and (done[near] != logits[near]).mean() > 0.9
    assert (obey(logits, [(50, 50, 1), (5, 5, 0)]) == logits).all(), "clicks that agree change nothing"
    assert obey(logits, [(0, 0, 1), (119, 99, 1)])[0, 0] == 2, "a corner is no trap"
