"""Each metric on masks whose score can be counted by hand, and the rule for empty ones."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.losses import SoftclDiceLoss
from scipy.spatial.distance import dice as scipy_dice
from scipy.spatial.distance import jaccard
from segmentation_models_pytorch.metrics import get_stats
from segmentation_models_pytorch.metrics import precision as smp_precision
from segmentation_models_pytorch.metrics import recall as smp_recall
from skimage.morphology import dilation

from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.metrics import (
    Counts,
    betti0_error,
    broken_pieces,
    cl_dice,
    class_mean_iou,
    count,
    dice,
    dilate,
    iou,
    label_roots,
    precision,
    recall,
    summarise,
)

PAIR = arrays(bool, (2, 6, 7))


def test_by_hand():
    truth, prediction = np.zeros((4, 5), bool), np.zeros((4, 5), bool)
    truth[0, :4] = True
    prediction[0, 2:] = True
    counts = count(prediction, truth)
    assert counts == Counts(tp=2, fp=1, fn=2, tn=15)
    assert iou(counts) == 2 / 5 and dice(counts) == 4 / 7
    assert class_mean_iou(counts) == pytest.approx((2 / 5 + 15 / 18) / 2)


@given(PAIR)
@settings(max_examples=60, deadline=None)
def test_against_scipy(pair):
    prediction, truth = pair
    counts = count(prediction, truth)
    if counts.tp + counts.fp + counts.fn:
        assert iou(counts) == pytest.approx(1 - jaccard(truth.ravel(), prediction.ravel()))
        assert dice(counts) == pytest.approx(1 - scipy_dice(truth.ravel(), prediction.ravel()))


def test_empty_rule():
    assert iou(Counts(0, 0, 0, 9)) == dice(Counts(0, 0, 0, 9)) == class_mean_iou(Counts(0, 0, 0, 9)) == 1
    assert iou(Counts(0, 1, 0, 8)) == iou(Counts(0, 0, 1, 8)) == 0


def test_finding_no_root_scores_about_half_on_the_class_mean():
    # The poster's baseline of 48.2 % is what a model scores that finds nothing at 3.6 % root pixels.
    assert class_mean_iou(Counts(tp=0, fp=0, fn=36, tn=964)) == pytest.approx(0.482)


def test_summary_by_hand():
    counts = [Counts(2, 2, 0, 96), Counts(0, 0, 10, 90), Counts(0, 0, 0, 100), Counts(0, 5, 0, 95)]
    assert summarise(counts) == pytest.approx({"root_iou": (0.5 + 0) / 2, "pooled_dice": 4 / (4 + 7 + 10)})


def test_no_roots_anywhere_is_nan_not_a_crash():
    summary = summarise([Counts(0, 0, 0, 100)])
    assert math.isnan(summary["root_iou"]) and summary["pooled_dice"] == 1


def test_bad_input():
    with pytest.raises(ValueError, match="no image"):
        summarise([])
    with pytest.raises(ValueError, match="masks of one image"):
        count(np.zeros((2, 2), bool), np.zeros((2, 3), bool))
    with pytest.raises(ValueError, match="uint8, but must be a bool array"):
        count(np.zeros((2, 2), bool), np.full((2, 2), 255, np.uint8))


@given(arrays(bool, (2, 3, 2, 4, 3), elements=st.sampled_from([False, False, False, True])))
@settings(max_examples=40, deadline=None)
def test_a_batch_is_scored_as_its_images_are(batch):
    ours = [count(*pair) for pair in batch.reshape(2, 6, 4, 3).swapaxes(0, 1)]
    assert all(type(number) is int for counts in ours for number in counts), "they go into results files"
    for masks in (batch, torch.from_numpy(batch)):
        counts = count(*masks)
        for score in (iou, dice, class_mean_iou, precision, recall):
            assert score(counts).shape == (3, 2)
            np.testing.assert_allclose(score(counts).reshape(-1), [score(c) for c in ours], rtol=1e-6)


def square(side: int = 12, shift: int = 0) -> np.ndarray:
    mask = np.zeros((24, 24), bool)
    mask[6 : 6 + side, 6 + shift : 6 + shift + side] = True
    return mask


@given(PAIR)
@settings(max_examples=60, deadline=None)
def test_precision_and_recall_against_segmentation_models_pytorch(pair):
    prediction, truth = pair
    counts = count(prediction, truth)
    stats = get_stats(*(torch.from_numpy(mask[None, None].astype(int)) for mask in pair), mode="binary")
    if prediction.any():
        assert precision(counts) == pytest.approx(float(smp_precision(*stats)))
    if truth.any():
        assert recall(counts) == pytest.approx(float(smp_recall(*stats)))


def test_precision_and_recall_of_empty_masks():
    assert precision(Counts(0, 0, 0, 9)) == recall(Counts(0, 0, 0, 9)) == 1
    assert precision(Counts(0, 0, 3, 6)) == recall(Counts(0, 0, 3, 6)) == 0  # nothing found of three
    assert precision(Counts(0, 3, 0, 6)) == recall(Counts(0, 3, 0, 6)) == 0  # soil called root


def test_dilation_by_hand_and_against_scikit_image():
    dot = np.zeros((5, 6), bool)
    dot[2, 5] = True
    assert dilate(dot).sum() == 6 and dilate(dot)[1:4, 4:].all()  # 3 x 3, cut off at the border
    mask = np.random.default_rng(0).random((40, 40)) > 0.9
    np.testing.assert_array_equal(dilate(mask), dilation(mask, np.ones((3, 3))))


def test_a_dilated_truth_forgives_a_mask_that_is_a_pixel_too_wide():
    truth = np.zeros((20, 20), bool)
    truth[9:11, 2:18] = True
    wide = dilate(truth)
    assert dice(count(wide, truth)) == pytest.approx(2 * 32 / (32 + 72)) and dice(count(wide, dilate(truth))) == 1


def test_centre_line_dice_by_hand():
    truth = np.zeros((21, 41), bool)
    truth[10, :] = True
    half = truth.copy()
    half[:, 20:] = False
    # All of the prediction's 20 skeleton pixels lie in the truth; 20 of the truth's 41 lie in the prediction.
    assert cl_dice(half, truth) == pytest.approx(2 * (20 / 41) / (1 + 20 / 41))
    wide = dilate(truth)
    assert cl_dice(wide, truth) > 0.98 > dice(count(wide, truth))
    empty = truth & False
    assert cl_dice(empty, empty) == 1 and cl_dice(truth, empty) == cl_dice(empty, truth) == 0


def test_centre_line_dice_against_an_independent_one():
    # MONAI's soft skeleton on hard masks is another thinning (by erosion); the formula is the same.
    for seed in range(3):
        truth = synthetic_scans("train", 1, seed=seed, height=256, width=256)[0].mask
        prediction = np.roll(truth, 1, axis=0) & (np.random.default_rng(seed).random(truth.shape) > 0.02)
        as_batch = (torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (truth, prediction))
        soft = 1 - float(SoftclDiceLoss(iter_=12, smooth=1e-6)(*as_batch))
        assert cl_dice(prediction, truth) == pytest.approx(soft, abs=0.06)


def test_centre_line_dice_sees_a_diagonal_root():
    x, y = np.meshgrid(np.arange(400), np.arange(400))
    bar = (abs(x - y - 1) * 0.5**0.5 < 2) & (x + y > 200) & (x + y < 600)
    half = bar & (x + y < 400)
    assert cl_dice(half, bar) == pytest.approx(2 * 0.5 / 1.5, abs=0.02)


# --- Single roots


def pieces(*spans: tuple[int, int], row: int = 5) -> np.ndarray:
    """Bars of 3 px height in one row of an image of 20 x 80 px, each from one column to before another."""
    mask = np.zeros((20, 80), bool)
    for start, stop in spans:
        mask[row : row + 3, start:stop] = True
    return mask


def test_a_root_is_what_hangs_together_and_is_no_speck():
    mask = pieces((0, 10), (20, 26), (40, 50))  # 30, 18 and 30 px
    numbers, number = label_roots(mask)
    assert number == 2 and (numbers[5, 0], numbers[5, 20], numbers[5, 45]) == (1, 0, 2), "18 px are no root"
    assert label_roots(mask, least=1)[1] == 3 and label_roots(mask & False)[1] == 0
    mask[8, 10:20] = True  # touches the first and the second at a corner
    numbers, number = label_roots(mask)
    assert number == 2 and (numbers == 1).sum() == 30 + 10 + 18 and numbers.dtype == np.int32


def test_betti0_error_by_hand():
    truth = pieces((0, 30)) | pieces((40, 70))
    assert betti0_error(truth, truth) == 0
    assert betti0_error(pieces((0, 70)), truth) == 1, "two merged to one"
    assert betti0_error(pieces((0, 10), (12, 20), (22, 30)) | pieces((40, 70)), truth) == 2, "one broken into three"
    assert betti0_error(truth & False, truth) == 2 == betti0_error(truth, truth & False)


def test_broken_pieces_by_hand():
    truth = pieces((0, 30)) | pieces((40, 70))
    assert broken_pieces(truth, truth).tolist() == [1, 1]
    assert broken_pieces(pieces((0, 10), (12, 20), (22, 30)), truth).tolist() == [3, 0], "broken, and missed"
    assert broken_pieces(pieces((0, 70)), truth).tolist() == [1, 1], "one piece may carry both"
    assert broken_pieces(pieces((0, 30), row=7), truth).tolist() == [1, 0], "half a root to the side is one piece"
    assert broken_pieces(pieces((0, 30), row=12), truth).tolist() == [0, 0], "what lies on soil is a piece of no root"
    assert broken_pieces(truth, truth & False).tolist() == []
