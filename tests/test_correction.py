"""Simulated clicks fall on mistakes, count as they should, and are fed back to a model."""

import numpy as np
import pytest

from rootsam_lib.checkpoints import build_sam
from rootsam_lib.data.scans import Patch, tile
from rootsam_lib.evaluation.clicks import correct, simulate_click
from rootsam_lib.evaluation.protocols import correction_scores
from rootsam_lib.predictor import Predictor
from rootsam_lib.prompts import ROOT, SOIL


@pytest.fixture
def patches() -> list[Patch]:
    """Two with a root of 4 x 40 px, from two tubes, and one of soil; roots are bright."""
    mask = np.zeros((64, 64), bool)
    mask[20:24, 10:50] = True
    masks = (mask, mask.T, mask & False)
    images = [np.where(m[..., None], 200, 60).astype(np.uint8).repeat(3, 2) for m in masks]
    return [Patch(images[i], m, f"p{i}", f"T{min(i, 1)}", (0, 0), 0.1) for i, m in enumerate(masks)]


class Fixed:
    """Answers with one mask, whatever is clicked: all that is bright, or nothing."""

    def __init__(self, brighter_than: int):
        self.brighter_than = brighter_than

    def set_image(self, image):
        self.image = image

    def correct(self, clicks):
        return self.image[..., 0] > self.brighter_than


class Obedient(Fixed):
    """Makes a disk of 2 px right around every click, and counts the clicks that it was given each time."""

    def __init__(self):
        self.given = []

    def correct(self, clicks):
        self.given.append(len(clicks))
        mask = np.zeros(self.image.shape[:2], bool)
        y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
        for column, row, label in clicks:
            mask[(x - column) ** 2 + (y - row) ** 2 <= 4] = label == ROOT
        return mask


def test_correction_clicks_are_counted(patches):
    deaf = correction_scores(Fixed(255), patches[:2])
    assert deaf["noc@0.6"].value == 20 and deaf["failures@0.6"].value == 1 and deaf["length_bias@5"].value == -1
    good = correction_scores(Fixed(100), patches[:2])
    assert good["noc@0.85"].value == 0 and good["failures@0.85"].value == 0 and good["length_bias@0"].value == 0
    assert good["length_error@20"].value == 0 and deaf["length_error@0"].value == 1
    model = Obedient()
    some = correction_scores(model, patches[:1])
    assert model.given == list(range(21))
    assert some["root_iou@0"].value == 0 < some["root_iou@1"].value < some["root_iou@5"].value


def test_a_finished_mask_is_left_alone(patches):
    predictor = Fixed(100)
    predictor.set_image(patches[0].image)
    masks = correct(predictor.correct, patches[0].mask, 4, np.random.default_rng(0), 1.0)[0]
    assert len(masks) == 5 and all((m == patches[0].mask).all() for m in masks)


def test_jitter_stays_within_the_mistake(patches):
    truth, rng = patches[0].mask, np.random.default_rng(0)
    clicks = [simulate_click(truth, truth & False, rng, 3.0) for _ in range(200)]
    assert all(truth[int(y), int(x)] and label == ROOT for x, y, label in clicks) and len(set(clicks)) > 20
    false = [simulate_click(truth & False, truth, rng, 3.0) for _ in range(50)]
    assert all(truth[int(y), int(x)] and label == SOIL for x, y, label in false)
    assert simulate_click(truth, truth, rng) is None
    assert simulate_click(truth, truth & False, rng, 0.0) == simulate_click(truth, truth & False, rng, 0.0)


def test_a_models_session_feeds_its_first_logits_back(small_scans, monkeypatch):
    cut = tile(small_scans[0], 256)[0]
    model = build_sam("nano")
    fed, decode = [], type(model).decode

    def spy(self, features, points=None, labels=None, mask_input=None, multimask=False):
        fed.append((None if points is None else points.shape[1], mask_input is not None))
        return decode(self, features, points, labels, mask_input, multimask)

    monkeypatch.setattr(type(model), "decode", spy)
    predictor = Predictor(model)
    predictor.set_image(cut.image)
    masks, _ = correct(predictor.correct, cut.mask, 3, np.random.default_rng(0), 2.0)
    assert fed == [(None, False), (1, True), (2, True), (3, True)]
    assert any((masks[0] != m).any() for m in masks[1:])


def test_corrections_start_automatic_and_click_on_mistakes(small_scans, monkeypatch):
    model = build_sam("nano").eval()
    patch = max((p for scan in small_scans for p in tile(scan, 128)), key=lambda p: p.mask.sum())
    asked, decode = [], type(model).decode

    def noted(self, embedding, points=None, labels=None, fed=None):
        asked.append((points, labels, fed))
        return decode(self, embedding, points, labels, fed)

    monkeypatch.setattr(type(model), "decode", noted)
    predictor = Predictor(model)
    predictor.set_image(patch.image)
    masks, clicks = correct(predictor.correct, patch.mask, 4, np.random.default_rng(0), 1.0)
    assert len(masks) == 5 and len(clicks) == 4 and asked[0] == (None, None, None)
    for turn in range(1, len(asked)):
        points, labels, fed = asked[turn]
        assert points.shape == (1, turn, 2) and fed is not None
        x, y = points[0, -1].int().tolist()
        assert (x, y, int(labels[0, -1])) == clicks[turn - 1]
        assert patch.mask[y, x] == clicks[turn - 1].label and masks[turn - 1][y, x] != clicks[turn - 1].label
