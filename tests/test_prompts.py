"""The sampler follows the EDT map, on any mask; corrective clicks land in the largest error."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import distance_transform_edt
from scipy.stats import chisquare

from rootsam_lib.prompts import (
    PADDING,
    ROOT,
    SOIL,
    Prompts,
    edt_map,
    fixed_prompts,
    next_click,
    point_probability,
    sample_points,
    stack_prompts,
    stay_on_root,
    with_slips,
)

MASKS = arrays(bool, st.tuples(st.integers(4, 24), st.integers(4, 24)))


def root(height: int = 12, width: int = 40) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[3:8, 5:30] = True
    mask[4, 30:38] = True  # a root of one pixel's width
    return mask


@given(MASKS)
@settings(max_examples=50, deadline=None)
def test_edt_is_scipys(mask):
    expected = distance_transform_edt(mask) if not mask.all() else np.ones(mask.shape)
    np.testing.assert_allclose(edt_map(mask), expected, atol=1e-4)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_frequencies_agree_with_the_edt_map(exponent):
    mask, draws = root(), 20_000
    rng = np.random.default_rng(0)
    seen = np.zeros(mask.shape)
    for _ in range(draws):
        (x, y), *_ = sample_points(mask, 1, 0, rng, exponent).points
        seen[int(y), int(x)] += 1
    expected = draws * distance_transform_edt(mask) ** exponent * mask
    expected *= draws / expected.sum()
    assert chisquare(seen[mask], expected[mask]).pvalue > 0.001
    assert seen[~mask].sum() == 0


def test_a_uniform_sampler_would_be_noticed():
    mask = root()
    rng = np.random.default_rng(0)
    seen = np.zeros(mask.shape)
    for _ in range(5000):
        (x, y), *_ = sample_points(mask, 1, 0, rng, exponent=0).points
        seen[int(y), int(x)] += 1
    assert chisquare(seen[mask], 5000 * point_probability(mask, 1)[mask]).pvalue < 1e-6


@given(MASKS, st.integers(0, 6), st.integers(0, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_points_lie_where_their_label_says(mask, n_root, n_soil, seed):
    points, labels = sample_points(mask, n_root, n_soil, np.random.default_rng(seed), hard_band=(1, 3))
    assert points.shape == (n_root + n_soil, 2) and points.dtype == np.float32
    assert (labels == ROOT).sum() == min(n_root, mask.sum())
    assert (labels == SOIL).sum() == min(n_soil, (~mask).sum()) or (labels == SOIL).sum() > (~mask).sum()
    for (x, y), label in zip(points.astype(int), labels, strict=True):
        if label != PADDING:
            assert mask[y, x] == (label == ROOT)
    real = points[labels != PADDING]
    # Points of one label are all different, but the uniform and the near-root soil points are drawn apart.
    roots = points[labels == ROOT]
    assert len(np.unique(roots, axis=0)) == len(roots) and len(real) <= len(points)


def test_hard_soil_points_lie_near_a_root():
    mask = np.zeros((200, 200), bool)
    mask[100:104, 20:180] = True
    points, labels = sample_points(mask, 0, 40, np.random.default_rng(0), hard_share=1.0, hard_band=(3, 8))
    away = distance_transform_edt(~mask)[points[:, 1].astype(int), points[:, 0].astype(int)]
    assert (labels == SOIL).all() and away.min() >= 3 and away.max() <= 8


def test_fixed_prompts_depend_on_name_and_seed_only():
    mask = root(40, 40)
    first = fixed_prompts(mask, "scan@0,0", 4, 4, seed=1)
    np.testing.assert_array_equal(first.points, fixed_prompts(mask, "scan@0,0", 4, 4, seed=1).points)
    assert (first.points != fixed_prompts(mask, "scan@0,512", 4, 4, seed=1).points).any()
    assert (first.points != fixed_prompts(mask, "scan@0,0", 4, 4, seed=2).points).any()


def test_next_click_takes_the_deepest_error():
    truth, prediction = np.zeros((60, 60), bool), np.zeros((60, 60), bool)
    truth[10:13, 5:50] = True  # missed, 3 px wide
    prediction[30:41, 20:31] = True  # false, 11 px wide
    assert next_click(truth, prediction) == (25.0, 35.0, SOIL)
    assert next_click(truth, np.zeros_like(truth))[2] == ROOT
    assert next_click(truth, truth) is None
    empty = np.zeros_like(truth)
    assert next_click(empty, empty) is None
    assert next_click(~empty, empty) == (29.0, 29.0, ROOT)


def test_stacking_pads_with_minus_one():
    sets = [
        Prompts(np.ones((2, 2), np.float32), np.array([1, 0])),
        Prompts(np.zeros((1, 2), np.float32), np.array([1])),
    ]
    points, labels = stack_prompts(sets, "cpu")
    assert points.shape == (2, 2, 2) and labels.tolist() == [[1, 0], [1, -1]]


@pytest.mark.parametrize("arguments", [{"n_root": -1, "n_soil": 0}, {"n_root": 1, "n_soil": 1, "exponent": -1}])
def test_bad_numbers_are_refused(arguments):
    with pytest.raises(ValueError, match="0"):
        sample_points(root(), rng=np.random.default_rng(0), **arguments)


def test_distances_do_not_depend_on_threads_or_memory():
    mask = np.random.default_rng(0).random((200, 300)) < 0.9
    threads, found = cv2.getNumThreads(), []
    try:
        for count, shift in ((1, 0), (1, 3), (2, 0), (2, 7)):
            cv2.setNumThreads(count)
            buffer = np.zeros(mask.size + 16, bool)
            moved = buffer[shift : shift + mask.size].reshape(mask.shape)
            moved[:] = mask
            found.append(edt_map(moved))
    finally:
        cv2.setNumThreads(threads)
    assert all(np.array_equal(other, found[0]) for other in found)
    np.testing.assert_allclose(found[0], distance_transform_edt(mask), rtol=1e-6)


def test_slips_have_the_given_size_and_keep_labels_inside():
    aimed = Prompts(np.full((4000, 2), 50, np.float32), np.ones(4000, np.int64))
    slipped = with_slips(aimed, 3.0, (100, 100), np.random.default_rng(0))
    off = slipped.points - aimed.points
    assert abs(off.mean()) < 0.15 and np.allclose(off.std(0), (9 + 1 / 12) ** 0.5, atol=0.15)  # rounded to pixels
    assert (slipped.labels == 1).all() and slipped.points.dtype == np.float32
    corner = Prompts(np.array([[0, 0], [9, 4], [0, 0]], np.float32), np.array([1, 0, -1]))
    inside = with_slips(corner, 50.0, (5, 10), np.random.default_rng(0)).points
    assert (inside >= 0).all() and (inside <= (9, 4)).all() and (inside[2] == 0).all()
    assert (with_slips(corner, 0.0, (5, 10), np.random.default_rng(0)).points == corner.points).all()
    with pytest.raises(ValueError, match="slip is -1"):
        with_slips(corner, -1, (5, 10), np.random.default_rng(0))


def test_a_deeper_aim_forgives_a_slip():
    mask = np.zeros((60, 60), bool)
    mask[:, 20:29] = True  # 9 px wide; rows do not matter, for it leaves the image at both ends
    shares = [stay_on_root(mask, e, 2.0, 40_000, np.random.default_rng(1)) for e in (0.0, 1.0, 50.0)]
    # By hand, at exponent 50 every click aims at the middle column: it stays where |slip| rounds to 4 px or less.
    assert abs(shares[2] - 0.9756) < 0.005  # erf(4.5 / 2 / sqrt(2))
    assert shares[0] < shares[1] - 0.05 < shares[2] - 0.1
    assert stay_on_root(mask, 1.0, 0.0, 100, np.random.default_rng(1)) == 1
    with pytest.raises(ValueError, match="no root to click on"):
        stay_on_root(mask & False, 1.0, 0.0, 100, np.random.default_rng(1))
