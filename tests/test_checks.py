"""Checks: each is silent where all is well and speaks up where it is not."""

import warnings

import numpy as np
import pytest
import torch

from rootsam_lib.checkpoints import build_sam, save_checkpoint
from rootsam_lib.lessons.checks import (
    check_background,
    check_click_selects,
    check_control,
    check_prompts_move,
    check_trained,
    expect,
)
from rootsam_lib.prompts import Prompts

IMAGE = np.zeros((60, 80, 3), np.uint8)
POINT = Prompts(np.array([[10.0, 20.0]], np.float32), np.array([1]))


def disk(image: np.ndarray, prompts: Prompts) -> np.ndarray:
    """A predictor that listens: a square around every root point."""
    mask = np.zeros(image.shape[:2], bool)
    for x, y in prompts.points[prompts.labels == 1].astype(int):
        mask[max(0, y - 4) : y + 5, max(0, x - 4) : x + 5] = True
    return mask


def test_moved_prompts_move_the_mask():
    assert check_prompts_move(disk, IMAGE, POINT) == 1
    asked = []
    check_prompts_move(lambda image, prompts: asked.append(prompts) or disk(image, prompts), IMAGE, POINT)
    np.testing.assert_array_equal(asked[1].points, [[69, 39]])  # turned about the middle of 80 x 60 px
    fixed = np.eye(60, 80, dtype=bool)
    for deaf in (fixed, fixed & False):
        with pytest.raises(ValueError, match="ignores its prompts"):
            check_prompts_move(lambda image, prompts, mask=deaf: mask, IMAGE, POINT)
    with pytest.raises(ValueError, match="no point to move"):
        check_prompts_move(disk, IMAGE, POINT._replace(labels=np.array([-1])))


def test_clicks_on_two_roots_select_two():
    one, other, same = check_click_selects(disk, IMAGE, POINT, POINT._replace(points=np.float32([[60, 40]])))
    assert one[20, 10] and not one[40, 60] and other[40, 60] and same == 0
    everything = np.ones((60, 80), bool)
    with pytest.raises(ValueError, match="ignores its prompts"):
        check_click_selects(lambda image, prompts: everything, IMAGE, POINT, POINT)


def test_a_model_that_scores_alike_with_moved_points_is_refused():
    assert check_control({"true_minus_moved": [0.3, 0.2, 0.4]}) == 0.3
    for ignored in (0.006, -0.1, float("nan")):  # 0.414 with true and 0.408 with moved points was once let through
        with pytest.raises(ValueError, match="ignores its prompts"):
            check_control({"true_minus_moved": [ignored, -0.1, 0.1]})


def test_all_background_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_background(disk(IMAGE, POINT), "a")
    with pytest.warns(UserWarning, match="scan7: no root at all"):
        check_background(np.zeros((5, 5), bool), "scan7")


def test_untrained_fine_features_are_noticed(tmp_path):
    model = build_sam("nano")
    before = {name: value.clone() for name, value in model.sam.state_dict().items()}
    with torch.no_grad():
        model.sam.sam_mask_decoder.conv_s0.weight[0, 0] += 0.25
    with pytest.raises(ValueError, match="conv_s1 did not change"):
        check_trained(before, model.sam.state_dict())
    with torch.no_grad():
        model.sam.sam_mask_decoder.conv_s1.bias[0] += 0.5
    changes = check_trained(before, model.sam.state_dict())
    assert changes == pytest.approx({"conv_s0": 0.25, "conv_s1": 0.5})
    save_checkpoint(model, tmp_path / "after.safetensors")
    assert check_trained(before, tmp_path / "after.safetensors") == changes  # files, too
    with pytest.raises(ValueError, match="conv_s7 is not in both"):
        check_trained(before, before, ("conv_s7",))


def test_a_finding_must_hold_as_written_and_may_fail_elsewhere():
    expect(True, "nothing", as_written=True)
    with pytest.raises(AssertionError, match="the loss did not fall"):
        expect(False, "the loss did not fall", as_written=True)
    with pytest.warns(UserWarning, match="other than in the lesson as it was written: the loss did not fall"):
        expect(False, "the loss did not fall", as_written=False)
