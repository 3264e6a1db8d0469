"""The sampler follows the EDT map, on any mask; corrective clicks land in the largest error."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import distance_transform_edt
from scipy.stats import chisquare

from rootsam_lib.metrics import label_roots
from rootsam_lib.prompts import (
    PADDING,
    ROOT,
    SOIL,
    Prompts,
    edt_map,
    fixed_prompts,
    meant_roots,
    next_click,
    point_probability,
    sample_points,
    selection_prompts,
    stack_prompts,
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
    # Root points are all different; the uniform and the near-root soil points are drawn apart, and may meet.
    roots = points[labels == ROOT]
    assert len(np.unique(roots, axis=0)) == len(roots)


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


def test_a_slip_is_as_wide_as_said():
    points = np.tile(np.array([[24, 30]], np.float32), (40_000, 1))
    moved = with_slips(Prompts(points, np.full(len(points), ROOT)), 2.0, (60, 60), np.random.default_rng(1)).points
    # On a root 9 px wide, aimed at its middle, a click stays where its slip rounds to 4 px or less.
    assert abs((np.abs(moved[:, 0] - 24) <= 4).mean() - 0.9756) < 0.005  # erf(4.5 / 2 / sqrt(2))


def three_roots() -> np.ndarray:
    """Numbered roots: 1 a bar, 2 two squares that touch at a corner, 3 one pixel."""
    mask = np.zeros((20, 30), bool)
    mask[2:5, 2:28] = True
    mask[8:11, 3:6] = mask[11:14, 6:9] = True
    mask[18, 20] = True
    return label_roots(mask, least=1)[0]


@pytest.mark.parametrize(
    ("clicks", "meant"),
    [
        ([], {1, 2, 3}),  # no point: all roots
        ([(5, 5, PADDING)], {1, 2, 3}),
        ([(10, 3, ROOT)], {1}),
        ([(4, 9, ROOT)], {2}),  # with the square that it touches at a corner
        ([(10, 3, ROOT), (20, 18, ROOT)], {1, 3}),
        ([(10, 3, ROOT), (20, 3, ROOT), (15, 15, SOIL)], {1}),
        ([(10, 3, ROOT), (7, 12, SOIL), (0, 0, PADDING)], {1}),
        ([(10, 3, ROOT), (25, 3, SOIL), (4, 9, ROOT)], {2}),  # a root with points of both kinds is not meant
        ([(10, 3, SOIL)], set()),  # only what carries a root point is meant
        ([(15, 15, ROOT)], set()),  # a root point on soil means no root
    ],
)
def test_what_a_prompt_means_by_hand(clicks, meant):
    roots = three_roots()
    given = np.array(clicks, np.float32).reshape(-1, 3)
    prompts = Prompts(given[:, :2], given[:, 2].astype(int))
    np.testing.assert_array_equal(meant_roots(roots, prompts), np.isin(roots, list(meant)))


@given(MASKS, st.integers(1, 8), st.integers(0, 7), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_selection_prompts_mean_whole_roots_and_never_what_they_say_is_not_wanted(mask, count, n_soil, seed):
    roots, number = label_roots(mask, least=1)
    if not number or n_soil >= count:
        with pytest.raises(ValueError, match="give a root"):
            selection_prompts(roots, count, n_soil, np.random.default_rng(seed))
        return
    prompts, meant = selection_prompts(roots, count, n_soil, np.random.default_rng(seed), slip=0.0)
    x, y = prompts.points.astype(int).T
    assert prompts.points.shape == (count, 2) and prompts.points.dtype == np.float32  # as many as asked for: no padding
    assert (prompts.labels == SOIL).sum() == (0 if mask.all() else n_soil)
    carrying = roots[y, x]
    assert (carrying[prompts.labels == ROOT] > 0).all()
    assert not meant[y, x][prompts.labels == SOIL].any()
    np.testing.assert_array_equal(meant, np.isin(roots, carrying[prompts.labels == ROOT]))
    again = selection_prompts(roots, count, n_soil, np.random.default_rng(seed), slip=0.0)
    np.testing.assert_array_equal(again[0].points, prompts.points)


def test_selections_leave_roots_out_and_point_at_them():
    roots, rng = three_roots(), np.random.default_rng(0)
    sets = [selection_prompts(roots, 6, 2, rng, slip=0.0) for _ in range(400)]
    assert 0.0 < np.mean([(meant == (roots > 0)).all() for _, meant in sets]) < 0.4
    other = [roots[int(y), int(x)] > 0 for p, _ in sets for (x, y), k in zip(*p, strict=True) if k == SOIL]
    assert 0.25 < np.mean(other) < 0.55  # by half, where a root is left over
    ones = [selection_prompts(roots, 1, 0, rng)[1].sum() for _ in range(2000)]
    depth = distance_transform_edt(roots > 0)
    share = [depth[roots == root].sum() / depth.sum() for root in (1, 2, 3)]
    assert chisquare([ones.count((roots == root).sum()) for root in (1, 2, 3)], 2000 * np.array(share)).pvalue > 1e-3


def test_slipped_points_mean_what_they_were_aimed_at():
    mask = np.zeros((60, 60), bool)
    mask[30, 5:55] = True  # one pixel wide: most slips miss it
    roots = label_roots(mask)[0]
    sets = [selection_prompts(roots, 1, 0, np.random.default_rng(seed), slip=3.0) for seed in range(300)]
    assert all((meant == mask).all() for _, meant in sets)
    on_root = np.mean([mask[tuple(p.points[0, ::-1].astype(int))] for p, _ in sets])
    assert 0.45 < on_root < 0.7  # half do not slip, and a slip of 3 px stays within its row by one chance in eight
