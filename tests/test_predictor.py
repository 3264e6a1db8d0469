"""Whole scans: every pixel covered, any size, no seams, prompts in the right tile."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rootsam_lib.apps.fitting import fit_brightness, fit_scale
from rootsam_lib.checkpoints import build_sam, save_checkpoint, weights_hash
from rootsam_lib.model import Prediction
from rootsam_lib.predictor import Click, Predictor, load_predictor, tile_starts
from rootsam_lib.predictor.selection import changes_at_clicks, follow_clicks, select_roots
from rootsam_lib.prompts import Prompts


@pytest.fixture(scope="module")
def model():
    return build_sam("nano").eval()


def ask(model, image, tile_size, overlap, prompts=(None, None), **options):
    """A mask, its logits and the estimate of its IoU, without the axis of masks."""
    predictor = Predictor(model, tile_size=tile_size, overlap=overlap, **options)
    predictor.set_image(image)
    return tuple(part[0] for part in predictor.predict(*prompts))


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
    mask, _, logits = ask(model, image, 64, 16)
    assert mask.shape == logits.shape == shape and mask.dtype == bool
    assert np.isfinite(logits).all() and ((logits > 0) == mask).all()


def test_one_tile_is_the_models_own_answer(model):
    image = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    with torch.no_grad():
        alone = model.decode(model.encode(image[None])).logits
    expected = torch.nn.functional.interpolate(alone, (128, 128), mode="bilinear")[0, 0].numpy()
    np.testing.assert_allclose(ask(model, image, 128, 32)[2], expected, atol=1e-4)


def test_constant_logits_have_no_seams(model, monkeypatch):
    answer = Prediction(torch.full((1, 1, 16, 16), 2.5), torch.tensor([[0.7]]), torch.zeros(1, 1, 16, 16))
    monkeypatch.setattr(type(model), "decode", lambda self, features, *_: answer)
    _, estimate, logits = ask(model, np.zeros((150, 170, 3), np.uint8), 64, 24)
    np.testing.assert_allclose(logits, 2.5, rtol=1e-5)
    assert estimate == pytest.approx(0.7)


def test_no_root_no_estimate(model, monkeypatch):
    answer = Prediction(torch.full((1, 1, 16, 16), -1.0), torch.tensor([[0.7]]), torch.zeros(1, 1, 16, 16))
    monkeypatch.setattr(type(model), "decode", lambda self, features, *_: answer)
    mask, estimate, _ = ask(model, np.zeros((64, 64, 3), np.uint8), 64, 0)
    assert not mask.any() and np.isnan(estimate)


def test_flips_are_turned_back_and_averaged(model):
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    points, labels = np.array([[9.0, 20.0], [50.0, 33.0]], np.float32), np.array([1, 0])
    by_hand = []
    for rows, columns in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        turned = points.copy()
        turned[:, 0] = 63 - points[:, 0] if columns < 0 else points[:, 0]
        turned[:, 1] = 63 - points[:, 1] if rows < 0 else points[:, 1]
        flipped = np.ascontiguousarray(image[::rows, ::columns])
        by_hand.append(ask(model, flipped, 64, 0, Prompts(turned, labels))[2][::rows, ::columns])
    found = ask(model, image, 64, 0, Prompts(points, labels), tta=True)[2]
    np.testing.assert_allclose(found, np.mean(by_hand, axis=0), atol=1e-4)
    assert np.abs(found - by_hand[0]).max() > 0.01


def test_corrections_with_a_detail_path_begin_with_its_answer():
    detailed = build_sam("nano").eval()
    detailed.add_detail()
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(detailed.sam.sam_mask_decoder.detail.finer.weight, generator=generator)
    torch.nn.init.normal_(detailed.sam.sam_mask_decoder.detail.all_roots.weight, generator=generator)
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    predictor = Predictor(detailed, 2.0, 64, 0)
    predictor.set_image(image)
    first = predictor.correct()
    assert (first == predictor.predict()[0][0]).all()
    moved = predictor.correct([(10, 20, 1 - int(first[20, 10]))])
    assert (moved != first)[:, :64].any() and (moved == first)[:, 64:].all()
    assert not predictor.correct([], "empty").any()
    assert predictor.correct([(10, 20, 1)], "empty")[20, 10]


def test_which_roots_clicks_select_by_hand():
    logits = np.full((40, 60), -3.0, np.float32)
    logits[5:8, 2:30] = logits[5:8, 32:58] = 2.0  # one root with a gap of 2 px
    logits[20:23, 2:58] = 2.0
    logits[30:33, 2:20] = logits[30:33, 40:58] = 2.0  # a broken one
    nothing, third, joining = (np.full_like(logits, -5) for _ in range(3))
    third[11:16, 8:20] = 1.0  # a root that only the prompted answer has
    joining[30:33, 10:50] = 1.0
    upper, lower, broken = ((logits > 0) & (np.arange(40) // 12 == part)[:, None] for part in range(3))
    for prompted, clicks, expected in (
        (nothing, [Click(10, 6, 1)], upper),
        (nothing, [Click(10, 11, 1)], upper),  # 4 px beside it
        (nothing, [Click(10, 13, 1)], upper & False),  # too far from both
        (third, [Click(10, 13, 1)], third > 0),
        (third, [Click(10, 6, 1)], upper),  # not asked for
        (joining, [Click(10, 6, 1)], upper),
        (nothing, [Click(10, 31, 1)], broken & (np.arange(60) < 30)),
        (joining, [Click(15, 31, 1)], broken | (joining > 0)),
        (nothing, [Click(10, 6, 1), Click(10, 21, 1)], upper | lower),
        (nothing, [Click(10, 6, 1), Click(10, 21, 0)], upper),
        (nothing, [Click(10, 6, 0)], upper & False),
        (nothing, [Click(11, 6, 1), Click(50, 6, 0)], upper & (np.arange(60) < 31)),  # shared out at the middle, 30.5
    ):
        assert ((select_roots(logits, prompted, clicks) > 0) == expected).all(), clicks


def test_points_select_roots_across_tiles_and_bring_missed_ones(model, monkeypatch):
    roots, missed = np.full((64, 192), -3.0, np.float32), slice(54, 58)
    roots[10:14, 20:180] = roots[40:44, 70:180] = 4.0

    def answer(self, views):
        for tile, clicks, _ in views:
            seen = roots.copy()
            if clicks:  # only who points at it is told of the third root
                seen[missed, 10:50] = 1.0
            yield seen[tile.row : tile.row + 64, tile.column : tile.column + 64], 0.5

    monkeypatch.setattr(Predictor, "_decode", answer)
    image = np.zeros((64, 192, 3), np.uint8)
    np.testing.assert_array_equal(ask(model, image, 64, 0, select=True)[2], roots)
    for x, y, rows in ((30, 12, slice(10, 14)), (20, 56, missed)):
        mask, _, logits = ask(model, image, 64, 0, Prompts(np.array([[x, y]], np.float32), np.array([1])), select=True)
        assert mask[rows].sum() == mask.sum() > 0 and ((logits > 0) == mask).all()
    assert ask(model, image, 64, 0, Prompts(np.array([[30.0, 12.0]]), np.array([1])))[0][40:44].any()  # as it is


def test_a_point_reaches_only_the_tiles_it_lies_in(model):
    image = np.random.default_rng(0).integers(0, 255, (64, 192, 3), dtype=np.uint8)
    point = Prompts(np.array([[20.0, 30.0]], np.float32), np.array([1]))
    with_point, without = ask(model, image, 64, 0, point)[2], ask(model, image, 64, 0)[2]
    assert np.abs(with_point - without)[:, :64].max() > 0.01
    np.testing.assert_allclose(with_point[:, 64:], without[:, 64:], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tile_size": 100}, "multiple of 32"),
        ({"tile_size": 64, "overlap": 40}, "overlap is 40"),
        ({"tile_size": 0}, "tile_size is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"input_scale": float("nan")}, "input_scale is nan"),
        ({"input_scale": -1}, "input_scale is -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(model, settings, says):
    with pytest.raises(ValueError, match=says):
        Predictor(model, **settings)


@pytest.mark.parametrize(
    ("image", "points", "labels", "says"),
    [
        (np.zeros((64, 64), np.uint8), None, None, r"must be uint8 \(H, W, 3\)"),
        (np.zeros((64, 64, 3)), None, None, "float64"),
        (None, None, None, r"call set_image\(image\) first"),
        (np.zeros((64, 64, 3), np.uint8), [[64.0, 3.0]], [1], r"point \(64, 3\) lies outside the image of 64 × 64 px"),
        (np.zeros((64, 64, 3), np.uint8), [[np.nan, 3.0]], [1], "lies outside"),
        (np.zeros((64, 64, 3), np.uint8), [[4.0, 3.0]], [2], "has label 2: give 1 for root or 0 for soil"),
    ],
)
def test_questions_that_cannot_be_are_refused(model, image, points, labels, says):
    predictor = Predictor(model, tile_size=64)
    with pytest.raises(ValueError, match=says):
        if image is not None:
            predictor.set_image(image)
        predictor.predict(points, labels)


def test_embeddings_that_are_kept_change_nothing(model):
    image = np.random.default_rng(0).integers(0, 255, (64, 160, 3), dtype=np.uint8)
    point = Prompts(np.array([[20.0, 30.0]], np.float32), np.array([1]))
    kept, fresh = (Predictor(model, tile_size=64, keep=keep) for keep in (True, False))
    for question in (None, point, None):
        assert (kept(image, question) == fresh(image, question)).all()
    assert not any(tile.embeddings for tile in fresh._tiles) and all(tile.embeddings for tile in kept._tiles)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("batch", [3, 100])
def test_batches_of_tiles_and_flips_give_the_same_masks(small_scans, batch, keep):
    image, nano = small_scans[0].image, build_sam("nano").eval()
    points = Prompts(np.array([[20.0, 30.0], [90.0, 70.0], [25.0, 40.0]], np.float32), np.array([1, 1, 0]))
    alone, together = (Predictor(nano, 1.5, 96, tta=True, keep=keep, batch=size) for size in (1, batch))
    encoded = []
    encode, nano.encode = nano.encode, lambda *given: encoded.append(len(given[0])) or encode(*given)
    for question in (None, points):
        masks, estimates, logits = zip(*(ask_all(p, image, question) for p in (alone, together)), strict=True)
        assert masks[0].any() and (masks[0] == masks[1]).all()
        np.testing.assert_allclose(*logits, atol=1e-3)
        np.testing.assert_allclose(*estimates, atol=1e-5)
    assert set(encoded) == {1, min(batch, 64), *([64 % batch] if batch < 64 else [])}
    for start in ("automatic", "empty"):
        one, other = (p.correct([(30, 40, 1), (200, 180, 0)], start) for p in (alone, together))
        assert one.any() and (one == other).all()


def ask_all(predictor, image, prompts):
    predictor.set_image(image)
    return predictor.predict(*(prompts or (None, None)))


def test_a_checkpoint_says_how_to_use_it(model, tmp_path):
    file = tmp_path / "stage1-0" / "best.safetensors"
    save_checkpoint(model, file, {"input_scale": 1.5, "patch_size": 2048})
    for source in (file, file.parent):
        predictor = load_predictor(source)
        assert (predictor.input_scale, predictor.tile_size) == (1.5, 1024)
        assert predictor.about["weights"] == weights_hash(model)
    assert load_predictor(file, tile_size=64).tile_size == 64 and not load_predictor(file).select
    save_checkpoint(model, file, {"input_scale": 1.5, "patch_size": 2048, "selection": True})
    assert load_predictor(file).select and not load_predictor(file, select=False).select
    with pytest.raises(FileNotFoundError, match=r"is no trained stage: give the folder of one, such as .*stage1-0"):
        load_predictor(tmp_path)
    save_checkpoint(model, file)
    with pytest.raises(ValueError, match="does not say which model it is"):
        load_predictor(file)
    file.write_bytes(b"half")
    with pytest.raises(ValueError, match=r"best.safetensors is no safetensors file, or is damaged"):
        load_predictor(file)


def test_a_click_that_the_model_ignores_is_obeyed_there_and_nowhere_else():
    logits = np.full((100, 120), -4.0, np.float32)
    logits[40:60, 20:100] = 3.0
    done = follow_clicks(logits, [(110, 10, 1), (50, 50, 0)], reach=5, margin=2)
    assert done[10, 110] == 2 and done[50, 50] == -2 and (logits[40:60, 20:100] == 3).all(), "a copy, and on its side"
    rows, columns = np.mgrid[:100, :120]
    around = [(abs(rows - y) <= 20) & (abs(columns - x) <= 20) for x, y in ((110, 10), (50, 50))]
    near = around[0] | around[1]
    assert (done[~near] == logits[~near]).all() and (done[near] != logits[near]).mean() > 0.9
    assert (follow_clicks(logits, [(50, 50, 1), (5, 5, 0)]) == logits).all(), "clicks that agree change nothing"
    assert follow_clicks(logits, [(0, 0, 1), (119, 99, 1)])[0, 0] == 2, "a corner is no trap"


def test_a_correction_changes_the_mask_only_at_its_clicks():
    before, after = (np.full((100, 200), -4.0, np.float32) for _ in range(2))
    before[10:13, 5:195] = 3.0  # a root that is there, and that the answer to a click elsewhere leaves out
    before[50:53, 5:195] = 3.0  # a false root
    after[80:83, 5:195] = 5.0  # a missed root
    after[95:97, 5:20] = 5.0  # another piece, which nobody asked for
    rooted = changes_at_clicks(before, after, [(100, 83, 1)])  # two pixels beside the root
    assert (rooted[80:83, 5:195] == 5).all() and (rooted[10:13, 5:195] == 3).all() and rooted[95, 10] == -4
    cut = changes_at_clicks(before, after, [(100, 51, 0)], reach=40)
    assert (cut[50:53, 60:141] == -4).all() and (cut[50:53, 5:60] == 3).all() and (cut[50:53, 141:195] == 3).all()
    assert (changes_at_clicks(before, after, [(100, 30, 1), (100, 81, 0)]) == before).all(), "nothing to change there"
    assert (before[80] == -4).all(), "a copy"


class LineFinder:
    """Finds one line, whose width for the encoder grows with the root of the width that it has there, as a model's
    pieces do: 6 px for a line that is 6 px wide. Finds nothing where it looks wider than 60 px."""

    def __init__(self, width, input_scale=1.5):
        self.width, self.input_scale, self.root_width, self.asked = width, input_scale, 6.0, []
        self.model = type("Model", (), {"label": "a line finder"})

    def at_scale(self, input_scale):
        other = LineFinder(self.width, input_scale)
        other.asked = [*self.asked, input_scale]
        return other

    def __call__(self, image):
        seen = np.sqrt(6 * self.width * self.input_scale)
        mask = np.zeros((200, 200), bool)
        if seen < np.sqrt(6 * 60):
            mask[50 : 50 + max(1, round(seen / self.input_scale))] = True
        return mask


@pytest.mark.parametrize("width", [1.5, 4, 8, 16, 30, 60])
def test_scale_follows_the_width_of_roots(width):
    """Expected by hand: lines look 6 px wide at scale 6 / width; 4 px at 1.5 is what the model was trained on."""
    fitted, said = fit_scale(LineFinder(width), [np.zeros((200, 200, 3), np.uint8)])
    if width == 4:
        assert fitted.input_scale == 1.5 and "as wide as" in said
    else:
        assert 6 / width / 1.5 < fitted.input_scale < 6 / width * 1.5 and "in place of 1.5" in said


def test_scale_stays_where_nothing_is_found_or_known():
    blind = LineFinder(1e9)
    fitted, said = fit_scale(blind, [np.zeros((8, 8, 3), np.uint8)])
    assert fitted is blind and "no root" in said
    blind.root_width = 0.0
    assert "does not say" in fit_scale(blind, [np.zeros((8, 8, 3), np.uint8)])[1]


def test_a_given_width_sets_scale_and_tiles(model):
    predictor = Predictor(model, 1.5, 512, select=True, root_width=6.0, smallest=4.0)
    wide = predictor.for_width(16)
    assert wide.input_scale == 0.375 and wide.tile_size == 2048 and wide.overlap == 512
    assert (wide.select, wide.root_width, wide.smallest) == (True, 6.0, 4.0)
    with pytest.raises(ValueError, match="root width"):
        predictor.for_width(0)
    with pytest.raises(ValueError, match="does not say how wide"):
        Predictor(model).for_width(5)


def test_specks_are_left_out_unless_clicked(model, monkeypatch):
    """By hand: at root width 3 and scale 1 pieces of fewer than 2 x 9 px go; two pieces 2 px apart count as one."""
    logits = np.full((64, 64), -1.0, np.float32)
    logits[5:8, 5:8] = 1  # 9 px: goes
    logits[20:23, 10:13] = logits[20:23, 14:17] = 1  # 18 px over a gap of one: stays
    predictor = Predictor(model, tile_size=64, overlap=0, root_width=3.0, smallest=2.0)
    answer = torch.from_numpy(logits)[None, None]
    monkeypatch.setattr(predictor.model, "decode", lambda *_: Prediction(answer, torch.ones(1, 1), answer))
    predictor.set_image(np.zeros((64, 64, 3), np.uint8))
    large = logits > 0
    large[5:8, 5:8] = False
    np.testing.assert_array_equal(predictor.predict()[0][0], large)
    np.testing.assert_array_equal(predictor.correct(), large)
    assert predictor.correct([(6, 6, 1)])[5:8, 5:8].all()  # the person says that it is one


def test_brightness_is_fitted_to_the_training_scans(model):
    predictor = Predictor(model, brightness=60.0)
    texture = np.random.default_rng(0).uniform(0.5, 1.5, (64, 64, 3))
    as_it_was, said = fit_brightness(predictor, [(45 * texture).astype(np.uint8)])
    assert as_it_was is predictor and said == ""
    for mean, gain in ((6.0, 10.0), (120.0, 0.5)):
        fitted, said = fit_brightness(predictor, [(mean * texture).round().astype(np.uint8)])
        assert fitted.gain == pytest.approx(gain, rel=0.02) and f"{fitted.gain:g} times as bright" in said
        assert fitted.at_scale(0.5).gain == fitted.gain and fitted.about["gain"] == fitted.gain
    spots = (6 * texture).astype(np.uint8)
    spots[:4] = 85  # more than a thousandth of the values: no gain may take them beyond white
    assert fit_brightness(predictor, [spots])[0].gain == 3.0
    spots[:4] = 255
    white, said = fit_brightness(predictor, [spots])
    assert white is predictor and "parts of it would turn white (gain" in said
    several = [(6 * texture).astype(np.uint8), spots, (6 * texture).astype(np.uint8)]  # one label in one of them
    assert fit_brightness(Predictor(model, brightness=60.0), several)[0].gain > 3
    uneven = [(mean * np.ones_like(texture)).astype(np.uint8) for mean in (20, 20, 150)]  # one is a white reference
    assert fit_brightness(predictor, uneven) == (
        predictor,
        "Mean values from 20 to 150 get one gain: part these scans.",
    )
    assert fit_brightness(predictor, [uneven[2] // 75, uneven[1]])[1].endswith(
        "Mean values from 2 to 20 get one gain: part these scans."
    )
    assert fit_brightness(predictor, [])[0] is predictor
    for unknown in (fit_brightness(Predictor(model), [spots]), fit_brightness(predictor, [np.zeros_like(spots)])):
        assert unknown[0].gain == 1 and unknown[1] == ""


def test_gain_is_the_same_as_a_brighter_image(model):
    image = np.random.default_rng(0).integers(0, 80, (96, 70, 3), np.uint8)
    brighter = np.clip(image * 4.0, 0, 255).astype(np.uint8)
    plain, shown = Predictor(model, tile_size=64), Predictor(model, tile_size=64, gain=4.0)
    plain.set_image(brighter)
    shown.set_image(image)
    np.testing.assert_array_equal(plain.predict()[2], shown.predict()[2])
