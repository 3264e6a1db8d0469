"""One step: its prompts, its clicks, its parts, and how it is held together when interrupted."""

import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.optimizer import AcceleratedOptimizer

from rootsam_lib.checkpoints import build_sam
from rootsam_lib.data.scans import Patch, tile
from rootsam_lib.metrics import cl_dice, count, iou
from rootsam_lib.model import encoder_size
from rootsam_lib.predictor import Predictor
from rootsam_lib.prompts import Prompts, click_prompt
from rootsam_lib.training import step
from rootsam_lib.training.config import PRESETS, StageConfig, stage_pair
from rootsam_lib.training.devices import InPlace, ahead, build_accelerator
from rootsam_lib.training.feature_bank import FeatureBank
from rootsam_lib.training.loop import Run, train_stage, uninterrupted
from rootsam_lib.training.step import (
    Plan,
    batch_loss,
    click_loss,
    draw_plan,
    prepare_step,
    train_step,
    training_prompts,
)

CONFIG = StageConfig(1, "nano", 128, 1e-3, correction_share=0.0)


@pytest.fixture(scope="module")
def patches(small_scans):
    return tile(small_scans[0], 128)


def step_of(patches, config, bank_gb=1.0, **changes):
    """The weights after one step on all patches, and its loss."""
    config = replace(config, **changes)
    model, accelerator = build_sam("nano").train(), build_accelerator("no")
    if config.detail:
        model.add_detail()
    bank = FeatureBank(model, patches, most_gb=bank_gb)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = accelerator.prepare(torch.optim.SGD(trained, lr=0.1))
    chosen = (np.arange(len(patches)), np.zeros(len(patches), int))
    loss = train_step(model, optimizer, accelerator, bank, config, 0, 0, chosen)
    return loss, torch.cat([p.detach().flatten() for p in trained])


def test_micro_batches_change_nothing_but_memory(patches):
    loss, weights = step_of(patches, CONFIG)
    parts, alike = step_of(patches, CONFIG, micro_batches=2)
    assert parts == pytest.approx(loss, abs=1e-5) and (weights - alike).abs().max() < 1e-4
    assert (weights - step_of(patches, CONFIG, seed=1)[1]).abs().max() > 1e-4  # other prompts do change something


def test_steps_that_are_prepared_ahead_are_the_same_steps(patches):
    config, chosen = replace(CONFIG, correction_share=1.0, micro_batches=2), (np.arange(4), np.zeros(4, int))
    ended = []
    for executor, number in ((InPlace(), 0), (ThreadPoolExecutor(3), 3)):
        model, accelerator = build_sam("nano").train(), build_accelerator("no")
        bank = FeatureBank(model, patches)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = accelerator.prepare(torch.optim.AdamW(trained, 1e-3))
        prepare = partial(executor.submit, prepare_step, accelerator, bank, config, 0, chosen=chosen)
        with executor:
            losses = [
                train_step(model, optimizer, accelerator, bank, config, 0, step, chosen, ready.result())
                for step, ready in ahead(range(3), prepare, number)
            ]
        ended.append((losses, torch.cat([p.detach().flatten() for p in trained])))
    assert ended[0][0] == ended[1][0] and len(set(ended[0][0])) == 3 and ended[0][1].equal(ended[1][1])


@pytest.mark.parametrize("detail", [False, True])
def test_a_step_without_a_bank_is_the_same_step(patches, detail):
    loss, weights = step_of(patches, CONFIG, detail=detail)
    live, same = step_of(patches, CONFIG, bank_gb=0.0, detail=detail)
    assert live == pytest.approx(loss, abs=2e-4) and (weights - same).abs().max() < 1e-3


def test_every_view_is_asked_for_all_for_one_and_for_several_roots(patches):
    masks = np.stack([*(p.mask for p in patches), patches[0].mask & False])
    rngs = [np.random.default_rng(i) for i in range(len(masks))]
    sets = training_prompts(masks, CONFIG, rngs, (5, 2))
    rooted = [i for i, mask in enumerate(masks) if mask.any()]
    assert {kind: s.views for kind, s in sets.items()} == {
        "none": list(range(len(masks))),
        "one": rooted,
        "several": rooted,
    }
    assert (sets["none"].labels == -1).all() and (sets["none"].meant == masks).all()
    assert (sets["one"].labels == 1).all() and (sets["several"].labels == torch.tensor([1, 1, 1, 0, 0])).all()
    for kind in ("one", "several"):
        for view, meant in zip(sets[kind].views, sets[kind].meant, strict=True):
            assert meant.any() and not (meant & ~masks[view]).any()
    assert any((s.meant[i] != masks[v]).any() for s in (sets["one"], sets["several"]) for i, v in enumerate(s.views))
    hints = training_prompts(masks, replace(CONFIG, selection=False), rngs, (5, 2))
    assert all((hints[kind].meant == masks[rooted]).all() for kind in ("one", "several"))
    assert "several" not in training_prompts(masks, CONFIG, rngs, (0, 0))
    assert list(training_prompts(masks[-1:], CONFIG, rngs[-1:], (5, 2))) == ["none"]


def test_plans_are_drawn_within_their_bounds():
    rng, config = np.random.default_rng(0), replace(CONFIG, n_root=4, n_soil=2, correction_share=0.3)
    plans = [draw_plan(config, rng) for _ in range(400)]
    assert {plan.several for plan in plans} == {(2, 0), (2, 1), (3, 0), (3, 1), (3, 2), (4, 0), (4, 1), (4, 2)}
    assert {plan.corrections for plan in plans} == {0, 1, 2, 3} and {plan.corrected for plan in plans} == {
        "none",
        "one",
    }
    assert 0.2 < np.mean([plan.corrections > 0 for plan in plans]) < 0.4
    assert all(draw_plan(replace(config, n_root=1), rng).several == (0, 0) for _ in range(9))


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


def test_points_are_insisted_on(patches):
    """Their windows' cross entropy is added to what is minimised, and not to the loss that is reported."""
    batch = FeatureBank(build_sam("nano"), patches[:1]).batch([0], [0], torch.device("cpu"))
    model = build_sam("nano").eval()

    def losses(weight):
        rngs = [np.random.default_rng(3)]
        return [x.item() for x in batch_loss(model, batch, replace(CONFIG, point_weight=weight), 0, rngs, Plan())]

    without, once, twice = (losses(weight) for weight in (0.0, 1.0, 2.0))
    assert without[1] == once[1] == twice[1] and once[0] > without[0] + 0.01
    assert twice[0] - without[0] == pytest.approx(2 * (once[0] - without[0]), rel=1e-4)


@pytest.mark.parametrize("corrected", ["none", "one"])
def test_corrections_go_on_towards_what_their_prompts_meant(patches, monkeypatch, corrected):
    batch = FeatureBank(build_sam("nano"), patches).batch([0, 1], [0, 0], torch.device("cpu"))
    model, seen = build_sam("nano").eval(), []

    def error_click(rng, found, meant):
        seen.append(meant)
        return step_error_click(rng, found, meant)

    step_error_click = step.error_click
    monkeypatch.setattr(step, "error_click", error_click)
    rngs = [[np.random.default_rng(i) for i in range(2)] for _ in range(3)]
    alone, first = batch_loss(model, batch, CONFIG, 0, rngs[0], Plan((3, 1)))
    assert not seen
    whole, same = batch_loss(model, batch, CONFIG, 0, rngs[1], Plan((3, 1), 2, corrected))
    meant = training_prompts(batch.masks, CONFIG, rngs[2], (3, 1))[corrected].meant
    assert len(seen) == 4 and (np.stack(seen) == np.concatenate([meant, meant])).all()
    assert whole > alone + 0.05 and first == same  # the loss that is reported stays comparable


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


def test_a_click_selects_its_root_after_some_steps():
    """Two parallel roots: what a click on one of them brings back is that one, and without a click both."""
    image, roots = np.full((96, 96, 3), 70, np.uint8), np.zeros((96, 96), int)
    image += np.random.default_rng(0).integers(0, 20, image.shape, dtype=np.uint8)
    roots[16:24, 8:88], roots[64:72, 8:88] = 1, 2
    image[roots > 0] = (190, 170, 130)
    patch = Patch(image, roots > 0, "bars", "", (0, 0))
    model, accelerator = build_sam("nano").train(), build_accelerator("no")
    bank = FeatureBank(model, [patch, patch], input_scale=2.0)
    optimizer = accelerator.prepare(torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3))
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    losses = [
        train_step(model, optimizer, accelerator, bank, CONFIG, 0, number, (np.arange(2), np.zeros(2, int)))
        for number in range(40)
    ]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    assert all(p.equal(frozen[n]) for n, p in model.named_parameters() if n in frozen)
    predictor = Predictor(model, 2.0, 96, 0)
    automatic = predictor(image)
    assert iou(count(automatic, roots > 0)) > 0.7
    for root, row in ((1, 20), (2, 68)):
        clicked = predictor(image, Prompts(np.array([[30, row]], np.float32), np.ones(1, int)))
        assert iou(count(clicked, roots == root)) > iou(count(automatic, roots == root)) + 0.2


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
    assert float(run.ema["weight"].detach()) == 0  # no average


def test_half_precision_trains_too(small_scans, tmp_path):
    config = StageConfig(1, "nano", 128, 1e-3, epochs=1, views=1, precision="bf16", correction_share=1.0, detail=True)
    stage = train_stage(config, small_scans[:1], small_scans[2:3], tmp_path)
    assert np.isfinite(stage.history[0]["loss"])
    build_accelerator("no")


def test_a_gradient_too_large_for_half_precision_is_skipped_and_resumes(patches, tmp_path):
    """What an old GPU does in fp16: the scaler finds infinite gradients, skips the step and scales the loss less."""
    model = build_sam("nano").train()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = AcceleratedOptimizer(torch.optim.AdamW(trained, 1e-3), scaler=scaler)
    run = Run(model, optimizer, None, scaler)
    batch = FeatureBank(model, patches).batch([0], [0], torch.device("cpu"))
    before = torch.cat([p.detach().flatten() for p in trained])
    for factor, moves in ((1.0, True), (1e38, False), (1.0, True)):
        scale = scaler.get_scale()
        loss, _ = batch_loss(model, batch, CONFIG, 0, [np.random.default_rng(0)], Plan())
        scaler.scale(loss * factor).backward()
        optimizer.step()
        optimizer.zero_grad()
        run.end_step(loss.item(), 0.99)
        after = torch.cat([p.detach().flatten() for p in trained])
        assert after.isfinite().all() and bool((after != before).any()) == moves
        assert optimizer.step_was_skipped == (not moves) and scaler.get_scale() == (scale if moves else scale / 2)
        before = after
    run.save(tmp_path / "last.pt")
    other = torch.amp.GradScaler("cpu", init_scale=8.0)
    again = Run(model, AcceleratedOptimizer(torch.optim.AdamW(trained, 1e-3), scaler=other), None, other)
    again.load(tmp_path / "last.pt")
    assert other.get_scale() == 2.0**15 and again.steps == 3
