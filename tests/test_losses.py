"""The losses agree with independent implementations, and stay finite where losses usually do not."""

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from monai.losses import TverskyLoss

from rootsam_lib.losses import (
    boundary_loss,
    boundary_schedule,
    focal_tversky_loss,
    hybrid_loss,
    signed_distance,
    tversky_index,
)


def random_pair(seed: int = 0, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, 1, 16, 20, generator=generator)
    return logits, (torch.rand(batch, 1, 16, 20, generator=generator) < 0.2).float()


@pytest.mark.parametrize(("fn", "fp"), [(0.7, 0.3), (0.5, 0.5), (0.2, 0.8)])
def test_tversky_is_monais(fn, fp):
    logits, truth = random_pair()
    reference = TverskyLoss(sigmoid=True, alpha=fp, beta=fn, smooth_nr=1.0, smooth_dr=1.0)
    torch.testing.assert_close(1 - tversky_index(logits.sigmoid(), truth, fn, fp).mean(), reference(logits, truth))


def test_focal_tversky_is_smps_for_one_image():
    # That library raises the mean over images to the power, so the two can only agree on one image at a time; its alpha
    # weighs false positives.
    logits, truth = random_pair(batch=1)
    reference = smp.losses.TverskyLoss("binary", from_logits=True, alpha=0.3, beta=0.7, gamma=0.75, smooth=1.0)
    torch.testing.assert_close(focal_tversky_loss(logits, truth, 0.7, 0.3, 0.75), reference(logits, truth))


def test_tversky_by_hand():
    probability = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 2, 2)
    truth = torch.tensor([1.0, 0.0, 1.0, 0.0]).view(1, 1, 2, 2)  # one each of TP, FP, FN, TN
    assert tversky_index(probability, truth, 0.7, 0.3, smooth=0.0).item() == pytest.approx(1 / (1 + 0.7 + 0.3))
    assert tversky_index(probability, truth, 2.0, 1.0, smooth=1.0).item() == pytest.approx(2 / 5)


@given(arrays(bool, (7, 9)))
@settings(max_examples=60, deadline=None)
def test_signed_distance_by_brute_force(mask):
    expected = np.zeros(mask.shape)
    if mask.any() and not mask.all():
        grid = np.stack(np.meshgrid(range(7), range(9), indexing="ij"), -1).reshape(-1, 2)
        for row, column in grid:
            other = grid[mask.ravel() != mask[row, column]]
            nearest = np.sqrt(((other - (row, column)) ** 2).sum(1)).min()
            expected[row, column] = -nearest if mask[row, column] else nearest
    np.testing.assert_allclose(signed_distance(mask), expected, atol=1e-4)


def test_a_root_of_one_pixel_has_weight():
    mask = np.zeros((9, 9), bool)
    mask[4] = True
    assert (signed_distance(mask)[mask] == -1).all()


def test_boundary_loss_by_hand_and_across_sizes():
    mask = np.zeros((32, 32), bool)
    mask[10:20, 10:20] = True
    distance = torch.from_numpy(signed_distance(mask))[None, None]
    logits = torch.zeros(1, 1, 32, 32)
    assert boundary_loss(logits, distance).item() == pytest.approx(0.5 * distance.mean().item() / 32)
    perfect = torch.where(torch.from_numpy(mask), 20.0, -20.0)[None, None]
    assert boundary_loss(perfect, distance) < 0 < boundary_loss(-perfect, distance)
    large = mask.repeat(2, 0).repeat(2, 1)
    twice = boundary_loss(torch.zeros(1, 1, 64, 64), torch.from_numpy(signed_distance(large))[None, None])
    assert twice.item() == pytest.approx(boundary_loss(logits, distance).item(), rel=0.1)


def test_the_hybrid_loss_is_the_weighted_sum_of_its_terms():
    logits, truth = random_pair()
    distance = torch.from_numpy(np.stack([signed_distance(t[0].bool().numpy()) for t in truth]))[:, None]
    loss = hybrid_loss(logits, truth, distance, 0.3, ce_weight=2.0)
    assert loss.total.item() == pytest.approx((loss.tversky + 0.3 * loss.boundary + 2 * loss.cross_entropy).item())
    by_hand = -(truth * logits.sigmoid().log() + (1 - truth) * (1 - logits.sigmoid()).log()).mean()
    torch.testing.assert_close(loss.cross_entropy, by_hand)
    assert hybrid_loss(logits, truth, distance, 0.3).total == loss.tversky + 0.3 * loss.boundary


@pytest.mark.parametrize("truth_value", [0.0, 1.0])
@pytest.mark.parametrize("logit", [-200.0, -5.0, 0.0, 5.0, 200.0])
def test_finite_for_empty_full_and_perfect_masks(truth_value, logit):
    truth = torch.full((2, 1, 8, 8), truth_value)
    logits = torch.full((2, 1, 8, 8), logit, requires_grad=True)
    distance = torch.from_numpy(np.stack([signed_distance(t[0].bool().numpy()) for t in truth]))[:, None]
    with torch.autocast("cpu", torch.bfloat16):
        loss = hybrid_loss(logits, truth, distance, 0.1, ce_weight=2.0)
    loss.total.backward()
    assert torch.isfinite(loss.total) and torch.isfinite(logits.grad).all()
    assert loss.total.dtype == torch.float32


def test_perfect_mask_has_finite_gradient_although_the_power_has_none():
    truth = torch.zeros(1, 1, 8, 8)
    truth[..., 2:4] = 1
    logits = ((truth * 2 - 1) * 300).requires_grad_()
    focal_tversky_loss(logits, truth).backward()
    assert torch.isfinite(logits.grad).all()
    naive = ((truth * 2 - 1) * 300).requires_grad_()
    (1 - tversky_index(naive.sigmoid(), truth)).pow(0.75).mean().backward()
    assert torch.isnan(naive.grad).any()  # the trap that the clamp closes


def test_fp32_under_autocast():
    logits, truth = random_pair()
    with torch.autocast("cpu", torch.bfloat16):
        inside = focal_tversky_loss(logits, truth)
    torch.testing.assert_close(inside, focal_tversky_loss(logits, truth), rtol=0, atol=0)


def test_boundary_weight_rises_to_its_limit():
    weights = [boundary_schedule(epoch) for epoch in range(40)]
    assert weights[0] == 0.01 and weights == sorted(weights) and weights[-1] == 0.2
