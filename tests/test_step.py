"""One step: its prompts, its clicks, its parts, and how it is held together when interrupted."""

import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rootsam_lib.checkpoints import build_sam
from rootsam_lib.data.scans import tile
from rootsam_lib.metrics import cl_dice
from rootsam_lib.model import encoder_size
from rootsam_lib.prompts import Prompts, click_prompt
from rootsam_lib.training import step
from rootsam_lib.training.config import PRESETS, StageConfig, stage_pair
from rootsam_lib.training.devices import build_accelerator
from rootsam_lib.training.feature_bank import FeatureBank
from rootsam_lib.training.loop import Run, train_stage, uninterrupted
from rootsam_lib.training.step import batch_loss, click_loss, train_step, training_prompts, wanted_roots

CONFIG = StageConfig(1, "nano", 128, 1e-3, correction_share=0.0)


@pytest.fixture(scope="module")
def patches(small_scans):
    return tile(small_scans[0], 128)


def step_of(patches, config, bank_gb=1.0, **changes):
    """The weights after one step on all patches, and its loss."""
    model, accelerator = build_sam("nano").train(), build_accelerator()
    bank = FeatureBank(model, patches, most_gb=bank_gb)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = accelerator.prepare(torch.optim.SGD(trained, lr=0.1))
    chosen = (np.arange(len(patches)), np.zeros(len(patches), int))
    loss = train_step(model, optimizer, accelerator, bank, replace(config, **changes), 0, 0, chosen)
    return loss, torch.cat([p.detach().flatten() for p in trained])


def test_micro_batches_change_nothing_but_memory(patches):
    loss, weights = step_of(patches, CONFIG)
    # Not equal to the last digit: SAM2.1's padding points are tokens too, and a batch pads to its longest prompt.
    assert step_of(patches, CONFIG, micro_batches=2)[0] == pytest.approx(loss, abs=5e-4)
    whole, alike = (step_of(patches, CONFIG, micro_batches=n, no_prompt_share=1.0) for n in (1, 2))
    assert whole[0] == pytest.approx(alike[0], abs=1e-5) and (whole[1] - alike[1]).abs().max() < 1e-4
    assert (weights - step_of(patches, CONFIG, seed=1)[1]).abs().max() > 1e-4  # other prompts do change something


def test_a_step_without_a_bank_is_the_same_step(patches):
    loss, weights = step_of(patches, CONFIG)
    live, same = step_of(patches, CONFIG, bank_gb=0.0)
    assert live == pytest.approx(loss, abs=2e-4) and (weights - same).abs().max() < 1e-3


def test_several_prompt_sets_for_each_view(patches):
    bank = FeatureBank(build_sam("nano"), patches)
    batch, config = bank.batch([0, 1], [0, 0], torch.device("cpu")), replace(CONFIG, prompt_sets=3, no_prompt_share=0.0)
    prompts = training_prompts(batch, config, [np.random.default_rng(i) for i in range(2)])
    assert len(prompts) == 6
    for i, p in enumerate(prompts):
        x, y = p.points[p.labels == 1].astype(int).T
        assert batch.masks[i // 3, y, x].all()
    assert not np.array_equal(prompts[0].points, prompts[1].points)
    assert np.isfinite(step_of(patches, config)[0])


def test_empty_prompts_in_the_asked_share(patches):
    batch = FeatureBank(build_sam("nano"), patches).batch([0], [0], torch.device("cpu"))
    config = replace(CONFIG, prompt_sets=600, no_prompt_share=0.3)
    prompts = training_prompts(batch, config, [np.random.default_rng(0)])
    assert 0.24 < np.mean([len(p.labels) == 1 and p.labels[0] == -1 for p in prompts]) < 0.36


def test_click_loss_by_hand():
    logits, truth = torch.zeros(2, 1, 20, 20), torch.zeros(2, 1, 20, 20)
    logits[0, 0, 5, 5] = 3.0
    points = torch.tensor([[[5.0, 5.0], [0.0, 0.0]], [[9.0, 9.0], [19.0, 0.0]]])
    labels = torch.tensor([[0, -1], [1, 1]])
    plain = F.softplus(torch.tensor(0.0))
    first = (8 * plain + F.softplus(torch.tensor(3.0))) / 9
    assert click_loss(logits, truth, points, labels, 1) == pytest.approx(float((first + plain) / 2))
    assert click_loss(logits, truth, points, torch.full((2, 2), -1), 1) == 0
    nothing = click_loss(logits.requires_grad_(), truth, points, torch.full((2, 2), -1), 1)
    assert nothing == 0 and nothing.requires_grad


def test_points_of_the_first_prompt_are_insisted_on(patches):
    """Their windows' cross entropy is added to what is minimised, and not to the loss that is reported."""
    batch = FeatureBank(build_sam("nano"), patches[:1]).batch([0], [0], torch.device("cpu"))
    model = build_sam("nano").eval()

    def losses(**changes):
        config = replace(CONFIG, **{"n_soil": 0, "n_root": 1, **changes})
        return [loss.item() for loss in batch_loss(model, batch, config, 0, [np.random.default_rng(3)])]

    without, once, twice = (losses(no_prompt_share=0.0, point_weight=weight) for weight in (0.0, 1.0, 2.0))
    assert without[1] == once[1] == twice[1] and once[0] > without[0] + 0.01
    assert twice[0] - without[0] == pytest.approx(2 * (once[0] - without[0]), rel=1e-4)
    assert losses(no_prompt_share=1.0, point_weight=0.0) == losses(no_prompt_share=1.0, point_weight=1.0)


def test_the_fed_back_mask_carries_the_clicks():
    logits = torch.full((1, 1, 16, 16), 50.0, requires_grad=True)
    fed = click_prompt(logits, torch.tensor([[[32.0, 12.0]]]), torch.tensor([[0]]), 64)
    assert fed[0, 0, 3, 8] == -30 and fed[0, 0, 10, 10] == 32 and not fed.requires_grad


def test_centre_line_dice_by_hand():
    truth, shifted, half = (np.zeros((20, 30), bool) for _ in range(3))
    truth[8:11, 2:28], shifted[14:17, 2:28], half[8:11, 2:15] = True, True, True
    assert cl_dice(truth, truth) == 1 and cl_dice(shifted, truth) == 0
    assert 0.6 < cl_dice(half, truth) < 0.72  # all of it lies in the truth, about half of which is traced
    thick = truth.copy()
    thick[7:12, 2:28] = True
    assert cl_dice(thick, truth) > 0.97  # the width does not count
    empty = truth & False
    assert cl_dice(empty, empty) == 1 and cl_dice(empty, truth) == cl_dice(truth, empty) == 0


def test_in_some_views_only_clicks_tell_which_roots_are_wanted():
    mask = np.zeros((40, 40), bool)
    mask[5:8, 2:38], mask[20:23, 2:38], mask[32:35, 2:38] = True, True, True
    lonely = mask & (np.arange(40) < 10)[:, None]
    masks = np.stack([mask, mask, lonely, mask & False])
    empty = Prompts(np.zeros((1, 2), np.float32), np.array([-1]))
    prompts = [empty, Prompts(np.ones((1, 2), np.float32), np.array([1])), empty, empty]
    left = []
    for seed in range(20):
        rngs = [np.random.default_rng([seed, i]) for i in range(4)]
        wanted, changed = wanted_roots(masks, prompts, rngs, 1.0)
        # Whole roots go, never all, and only where there are several and no point has said which are meant.
        assert changed.tolist() == [True, False, False, False] and (wanted[1:] == masks[1:]).all()
        left.append(tuple(wanted[0][[6, 21, 33], 20]))
        assert wanted[0].sum() == 108 * sum(left[-1])
    assert {sum(rows) for rows in left} == {2} and len(set(left)) == 3
    rngs = [np.random.default_rng(i) for i in range(4)]
    assert not wanted_roots(masks, prompts, rngs, 0.0)[1].any() and masks[0].sum() == 3 * 108


def test_the_first_round_still_learns_all_roots(patches, monkeypatch):
    model, config = build_sam("nano").train(), replace(CONFIG, no_prompt_share=1.0)
    batch = FeatureBank(model, patches).batch([0, 1], [0, 0], torch.device("cpu"))

    def losses(share: float) -> tuple[float, float]:
        rngs = [np.random.default_rng([3, i]) for i in range(2)]
        monkeypatch.setattr(step, "UNWANTED_SHARE", share)
        whole, first = batch_loss(model, batch, config, 0, rngs, corrections=2)
        return whole.item(), first.item()

    (all_roots, first), (some_roots, same) = losses(0.0), losses(1.0)
    assert first == same and all_roots != some_roots


def test_presets_reach_both_stages():
    first, second = stage_pair("nano", hardware="t4", views=3)
    assert (first.batch_size, second.batch_size) == (PRESETS["t4"].batch_size, PRESETS["t4"].batch_size // 2)
    assert first.precision == second.precision == "fp16" and first.bank_gb == PRESETS["t4"].bank_gb and first.views == 3
    assert stage_pair("nano", hardware="t4", batch_size=2)[0].batch_size == 2
    with pytest.raises(ValueError, match="choose one of cpu, t4, a100"):
        stage_pair("nano", hardware="tpu")
    assert [preset.ran for preset in PRESETS.values()] == [True, False, False]


def test_zoom_is_a_multiple_of_32():
    assert (
        encoder_size(512, 1.0) is None
        and encoder_size(512, 1.5) == 768
        and encoder_size(512, 2) == 1024
        and encoder_size(500, 1.3) == 640
    )
    with pytest.raises(ValueError, match="must be greater than 0"):
        encoder_size(512, -1)


@pytest.fixture
def usual_ctrl_c():
    """What Ctrl-C does in a program of its own: processes that run tests side by side are made deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_waits_for_the_end_of_a_step(usual_ctrl_c):
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        done.append(True)
    assert done
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_averaged_weights():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    run = Run(model, None, None)
    torch.nn.init.ones_(model.weight)
    run.end_step(0.0, 0.99)
    assert float(run.ema["weight"]) == pytest.approx(0.9)  # early on by more: 1 - 1/10
    for _ in range(2000):
        run.end_step(0.0, 0.99)
    torch.nn.init.zeros_(model.weight)
    run.end_step(0.0, 0.99)
    assert float(run.ema["weight"].detach()) == pytest.approx(0.99, abs=1e-4)
    with pytest.raises(KeyboardInterrupt), run.averaged():
        assert float(model.weight.detach()) == pytest.approx(0.99, abs=1e-4)
        raise KeyboardInterrupt
    assert float(model.weight.detach()) == 0
    run.end_step(0.0, 0.0)
    assert float(run.ema["weight"].detach()) == 0  # no ema_decay


def test_half_precision_trains_too(small_scans, tmp_path):
    config = StageConfig(1, "nano", 128, 1e-3, epochs=1, views=1, precision="bf16", correction_share=1.0, detail=True)
    stage = train_stage(config, small_scans[:1], small_scans[2:3], tmp_path)
    assert np.isfinite(stage.history[0]["loss"])
    build_accelerator("no")
