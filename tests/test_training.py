"""A stage trains what it should and nothing else, repeats bit for bit, and goes on after an interruption."""

import csv
import io
import json
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rootsam_lib.checkpoints import build_sam, save_checkpoint, weights_hash
from rootsam_lib.data.scans import Scan, tile
from rootsam_lib.evaluation.protocols import evaluate
from rootsam_lib.predictor import Predictor
from rootsam_lib.prompts import FixedPrompts
from rootsam_lib.results import file_hash, read_json
from rootsam_lib.training import feature_bank, step
from rootsam_lib.training import loop as training
from rootsam_lib.training.config import StageConfig, stage1, stage2, stage_pair
from rootsam_lib.training.feature_bank import FeatureBank
from rootsam_lib.training.loop import train_stage
from rootsam_lib.training.stage import code_of, load_stage, run_id, training_patches

# From random weights; cross entropy would first teach them that most of a window is soil.
CONFIG = StageConfig(
    1,
    "nano",
    128,
    3e-3,
    epochs=4,
    batch_size=4,
    views=1,
    correction_share=0.0,
    point_weight=0.0,
    ce_weight=0.0,
    precision="no",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    save_checkpoint(build_sam("nano", weights=None, seed=0), path)
    return path


@pytest.fixture(scope="module")
def stage(small_scans, base, tmp_path_factory):
    return train_stage(CONFIG, small_scans[:2], small_scans[2:], tmp_path_factory.mktemp("runs"), base)


def interrupt_at(number: int, monkeypatch) -> list[int]:
    """Press the stop button in the middle of a step: the step is finished first. The list grows by one a step."""
    whole_step, calls = training.train_step, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == number:
            signal.raise_signal(signal.SIGINT)
        return whole_step(*arguments)

    monkeypatch.setattr(training, "train_step", interrupted)
    return calls


def test_the_loss_falls(stage):
    losses = [row["loss"] for row in stage.history]
    assert len(losses) == 4 and losses[-1] < losses[0] - 0.01


def test_frozen_weights_do_not_move_and_all_others_that_the_loss_reaches_do(stage, base):
    before, after = build_sam("nano", base).state_dict(), stage.model().state_dict()
    model = build_sam("nano", base)
    features = model.encode(np.zeros((1, 64, 64, 3), np.uint8))
    prediction = model.decode(features, torch.zeros(1, 3, 2), torch.tensor([[1, 0, -1]]))
    (prediction.logits.square().mean() + prediction.iou.sum()).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("conv_s0" in n for n in reached) and any("conv_s1" in n for n in reached) and len(reached) > 60
    assert not any("image_encoder" in name for name in reached)
    for name in before:
        if name in reached:
            assert not before[name].equal(after[name]), f"{name} has not moved"
        elif "image_encoder" in name or "no_mem" in name:
            assert before[name].equal(after[name]), f"{name} is frozen, but moved"


def test_the_neck_learns_only_where_asked_and_the_trunk_never(small_scans, base, tmp_path):
    config = replace(CONFIG, epochs=1, train_neck=True)
    trained = train_stage(config, small_scans[:2], small_scans[2:], tmp_path, base)
    before, after = build_sam("nano", base).state_dict(), trained.model().state_dict()
    moved = {name for name in before if not before[name].equal(after[name])}
    neck = {name for name in before if "image_encoder.neck" in name}
    assert neck and neck <= moved and not any("image_encoder.trunk" in name or "no_mem" in name for name in moved)


def test_the_detail_path_learns_where_asked_and_the_next_stage_keeps_it(small_scans, base, stage, tmp_path):
    config = replace(CONFIG, epochs=1, detail=True)
    first = train_stage(config, small_scans[:2], small_scans[2:], tmp_path, base)
    start = build_sam("nano", base)
    start.add_detail(config.seed)
    before, after = start.state_dict(), first.model().state_dict()
    moved = {name for name in before if not before[name].equal(after[name])}
    detail = {name for name in before if ".detail." in name}
    # Its last layers start at 0, so the others have a gradient from the second step on.
    assert len(detail) > 20 and detail <= moved and not any("image_encoder" in name for name in moved)
    assert not any(".detail." in name for name in stage.model().state_dict())
    second = replace(config, stage=2, patch_size=256, lr=3e-4, batch_size=2)
    kept = train_stage(second, small_scans[:2], small_scans[2:], tmp_path, first.weights).model().state_dict()
    assert {name for name in kept if ".detail." in name} == detail


def test_a_cosine_falls_to_0_and_goes_on_after_an_interruption(small_scans, base, tmp_path, monkeypatch):
    config = replace(CONFIG, schedule="cosine", detail=True, precision="auto", correction_share=0.5)
    whole = train_stage(config, small_scans[:2], small_scans[2:], tmp_path / "whole", base)
    expected = [3e-3 * (1 + np.cos(np.pi * epoch / 4)) / 2 for epoch in range(1, 5)]  # at each epoch's end
    np.testing.assert_allclose([row["lr"] for row in whole.history], expected, rtol=1e-9, atol=1e-12)

    interrupt_at(6, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train_stage(config, small_scans[:2], small_scans[2:], tmp_path / "again", base)
    resumed = train_stage(config, small_scans[:2], small_scans[2:], tmp_path / "again", base)
    assert (resumed.folder / "history.csv").read_text() == (whole.folder / "history.csv").read_text()
    first, second = load_file(whole.weights), load_file(resumed.weights)
    assert not [name for name, value in first.items() if not value.equal(second[name])]


def test_training_leaves_the_smallest_numbers_alone(stage):
    # Flushing them to nought (torch.set_flush_denormal) would train faster, but scipy's KD tree then crashes Python.
    assert np.float64(5e-324) * np.float64(1) > 0


def test_history_and_record(stage):
    with open(stage.folder / "history.csv", newline="") as file:
        assert [int(float(row["epoch"])) for row in csv.DictReader(file)] == [0, 1, 2, 3]
    about = read_json(stage.folder / "stage.json")
    assert about["config"]["lr"] == 3e-3 and about["scans"]["train"] == ["s0", "s1"]
    assert {"commit", "device", "versions"} <= set(about["provenance"])


def test_a_finished_stage_is_not_trained_again(stage, small_scans, base, monkeypatch):
    monkeypatch.setattr(training, "train_step", lambda *_: pytest.fail("trained again"))
    again = train_stage(CONFIG, small_scans[:2], small_scans[2:], stage.folder.parent, base)
    assert again.folder == stage.folder and again.history == stage.history


def test_a_damaged_stage_is_not_taken_for_a_finished_one(stage, small_scans, base, tmp_path):
    copy = tmp_path / stage.folder.name
    shutil.copytree(stage.folder, copy)
    (copy / "best.safetensors").write_bytes(b"other weights")
    with pytest.raises(ValueError, match=r"of other weights than best.safetensors: delete the folder"):
        train_stage(CONFIG, small_scans[:2], small_scans[2:], tmp_path, base)
    (copy / "best.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks best.safetensors: delete it to train it anew"):
        load_stage(copy)
    for content in (b"", b"half a file"):
        (copy / "stage.json").unlink(missing_ok=True)
        (copy / "last.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"last.pt is damaged .*: delete it to"):
            train_stage(CONFIG, small_scans[:2], small_scans[2:], tmp_path, base)


def test_a_stage_whose_notes_are_damaged_is_named(stage, tmp_path):
    contents = ("history.csv", "epoch,loss\n0,abc\n"), ("history.csv", "epoch,loss\n"), ("stage.json", None)
    for number, (name, content) in enumerate(contents):
        copy = tmp_path / str(number) / stage.folder.name
        shutil.copytree(stage.folder, copy)
        about = {"weights_sha256": file_hash(stage.weights)}
        (copy / name).write_text(json.dumps(about) if content is None else content)
        with pytest.raises(ValueError, match=r"stage\.json or history\.csv is damaged: delete the folder to train"):
            load_stage(copy)


def test_what_resuming_needs_is_looked_at_before_the_first_step(small_scans, base, tmp_path, monkeypatch):
    def halfway(history):
        raise KeyboardInterrupt

    given = small_scans[:2], small_scans[2:]
    for number in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            train_stage(replace(CONFIG, seed=number), *given, tmp_path / str(number), base, after_epoch=halfway)
    (folder,), (other,) = ((tmp_path / name).glob("stage1-*") for name in "01")
    whole = (folder / "last.pt").read_bytes()
    monkeypatch.setattr(training, "train_step", lambda *_: pytest.fail("a step was trained"))
    shutil.copy(other / "last.pt", folder)
    with pytest.raises(ValueError, match=rf"last\.pt is damaged \(it is of {other.name}\): delete it"):
        train_stage(replace(CONFIG, seed=0), *given, tmp_path / "0", base)
    state = torch.load(io.BytesIO(whole), weights_only=True)
    next(iter(state["model"].values())).fill_(float("nan"))
    torch.save(state, folder / "last.pt")
    with pytest.raises(ValueError, match=r"last\.pt is damaged \(weights are missing or no numbers\): delete it"):
        train_stage(replace(CONFIG, seed=0), *given, tmp_path / "0", base)
    (folder / "last.pt").write_bytes(whole)
    for harm in (lambda file: file.write_bytes(b"xx"), Path.unlink):
        harm(folder / "best.safetensors")
        with pytest.raises(ValueError, match=r"best\.safetensors.* Delete the folder to train the stage anew\."):
            train_stage(replace(CONFIG, seed=0), *given, tmp_path / "0", base)


def test_patches_that_are_mostly_mirrored_are_said(small_scans):
    side = small_scans[0].image.shape[0]
    with pytest.warns(UserWarning, match=r"are larger than the scans: 75% of them are mirrored: take a smaller patch"):
        training_patches(small_scans[:1], replace(CONFIG, patch_size=2 * side))


def test_two_trainings_of_one_stage_at_once_are_refused(small_scans, base, tmp_path):
    started_from = weights_hash(build_sam("nano", base))
    folder = tmp_path / f"stage1-{run_id(CONFIG, small_scans[:2], small_scans[2:], started_from)}"
    program = "from rootsam_lib.results import lock_folder; held = lock_folder({!r}); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program.format(str(folder))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline()
        with pytest.raises(ValueError, match=f"is in use by process {other.pid}"):
            train_stage(CONFIG, small_scans[:2], small_scans[2:], tmp_path, base)
        other.communicate(b"end\n")


def test_an_interruption_loses_nothing_but_the_step_in_hand(stage, small_scans, base, tmp_path, monkeypatch):
    calls = interrupt_at(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train_stage(CONFIG, small_scans[:2], small_scans[2:], tmp_path, base)
    with pytest.raises(FileNotFoundError, match="no finished stage"):
        load_stage(next(tmp_path.iterdir()))
    resumed = train_stage(CONFIG, small_scans[:2], small_scans[2:], tmp_path, base)
    assert len(calls) == 4 * 2  # four epochs of two batches: none was trained twice
    assert (resumed.folder / "history.csv").read_text() == (stage.folder / "history.csv").read_text()
    whole, again = load_file(stage.weights), load_file(resumed.weights)
    assert not [name for name, value in whole.items() if not value.equal(again[name])]


def test_another_setting_lands_in_another_folder(stage, small_scans, base):
    identities = {
        run_id(config, train, small_scans[2:], weights)
        for config, train, weights in (
            (CONFIG, small_scans[:2], "a"),
            (replace(CONFIG, seed=1), small_scans[:2], "a"),
            (CONFIG, small_scans[:1], "a"),
            (CONFIG, small_scans[:2], "b"),
        )
    }
    assert len(identities) == 4


def test_second_stage_starts_from_the_first(stage, small_scans, tmp_path):
    config = replace(CONFIG, stage=2, patch_size=256, lr=3e-4, epochs=1, batch_size=2)
    second = train_stage(config, small_scans[:2], small_scans[2:], tmp_path, stage.weights)
    first, after = stage.model().state_dict(), second.model().state_dict()
    assert any(not first[n].equal(after[n]) for n in first) and all(
        first[n].equal(after[n]) for n in first if "image_encoder" in n
    )


def test_rates_are_the_posters_and_keep_their_ratio():
    assert (stage1("tiny").lr, stage2("tiny").lr) == (1e-4, 1e-5)
    for model in ("nano", "small", "base_plus", "large"):
        assert stage2(model).lr == pytest.approx(stage1(model).lr / 10)
    first, second = stage_pair("nano", (5, 3), 4e-3, seed=7)
    assert (first.lr, second.lr) == (4e-3, 4e-4)
    assert (first.patch_size, second.patch_size, first.epochs, second.epochs, second.seed) == (512, 1024, 5, 3, 7)


def test_correction_rounds_learn_too(small_scans, base):
    model = build_sam("nano", base).train()
    bank = FeatureBank(model, tile(small_scans[0], 128))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    batch, losses, before = bank.batch([0, 1], [0, 0], model.device), [], {}
    for number in range(12):
        rngs = [np.random.default_rng([number % 2, i]) for i in range(2)]
        total, first = step.batch_loss(model, batch, CONFIG, 0, rngs, step.Plan((3, 1), 2))
        total.backward()
        before = before or {n: float(p.grad.abs().sum()) for n, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
        losses.append((total - first).item())
    assert losses[-1] < 0.95 * losses[0]
    assert any("mask_downscaling" in name for name in before)  # reached only through the fed back mask


def test_the_scheduler_watches_a_score_that_can_stall(small_scans, base, tmp_path):
    config = replace(CONFIG, lr=1e-7, epochs=5, patience=1)
    rates = [row["lr"] for row in train_stage(config, small_scans[:1], small_scans[2:3], tmp_path, base).history]
    assert rates[-1] < rates[0]


def test_predictions_differ_from_the_base_model(stage, small_scans, base):
    predictors = {"base": Predictor(build_sam("nano", base)), "stage1": Predictor(stage.model())}
    results = evaluate(predictors, [p for s in small_scans[2:] for p in tile(s, 128)], FixedPrompts(4, 2, seed=0))
    prompted = results["tables"]["fixed prompts"]
    assert prompted["stage1"]["root_iou"][0] > prompted["base"]["root_iou"][0]
    assert len(results["counts"]["base"]) == len(results["patches"]) == 8
    assert results["models"]["base"]["weights"] != results["models"]["stage1"]["weights"]


def test_patches_without_roots_are_legal(stage, small_scans):
    soil = Scan(small_scans[0].image, np.zeros_like(small_scans[0].mask), "soil", "T009")
    results = evaluate({"stage1": Predictor(stage.model())}, tile(soil, 128))
    row = results["tables"]["fixed prompts"]["stage1"]
    assert np.isnan(row["root_iou"][0]) and results["images"]["patches_without_roots"] == 4
    assert 0 <= row["soil_false_alarm"][0] <= 1
    patches = training_patches([small_scans[0], soil], replace(CONFIG, soil_share=0.5))
    assert any(not p.mask.any() for p in patches)
    bank = FeatureBank(stage.model(), tile(soil, 128))
    batch = bank.batch([0, 1, 2, 3], [0] * 4, torch.device("cpu"))
    rngs = [np.random.default_rng(i) for i in range(4)]
    assert list(step.training_prompts(batch.masks, CONFIG, rngs, (3, 1))) == ["none"]
    assert torch.isfinite(step.batch_loss(stage.model(), batch, CONFIG, 0, rngs, step.Plan((3, 1), 2))[0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"model": "huge"}, "choose one of"),
        ({"patch_size": 100}, "multiple of 32"),
        ({"soil_share": 1.0}, "soil_share"),
        ({"n_root": 0}, "n_root"),
        ({"slip": -1}, "slip is -1"),
        ({"ce_weight": -1}, "ce_weight is -1"),
        ({"families": ("blur",)}, "is unknown"),
        ({"bank_gb": -1}, "bank_gb is -1: give a number, 0 or more"),
        ({"precision": "fp8"}, "choose one of auto, no, fp16, bf16"),
        ({"schedule": "linear"}, "choose one of plateau, cosine"),
        ({"correction_share": 2}, "at most 1"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"point_weight": float("inf")}, "point_weight is inf"),
        ({"seed": -1}, "seed is -1"),
        ({"epochs": 1.5}, "epochs is 1.5: give a whole number"),
        ({"input_scale": 0}, "input_scale is 0"),
        ({"micro_batches": 0}, "micro_batches is 0"),
    ],
)
def test_bad_settings_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        replace(CONFIG, **change)


def test_scans_without_roots_are_refused_before_training(small_scans, base, tmp_path):
    empty = [Scan(s.image, np.zeros_like(s.mask), s.name, s.tube) for s in small_scans]
    with pytest.raises(ValueError, match="training scans has a root"):
        train_stage(CONFIG, empty[:2], small_scans[2:], tmp_path, base)
    with pytest.raises(ValueError, match="validation scans has a root"):
        train_stage(CONFIG, small_scans[:2], empty[2:], tmp_path, base)


def test_scans_without_masks_are_refused_by_name(small_scans, base, tmp_path):
    bare = Scan(small_scans[0].image, None, "bare", "T005")
    with pytest.raises(ValueError, match="bare has no mask"):
        train_stage(CONFIG, [bare], small_scans[2:], tmp_path, base)


def test_nan_stops_with_one_sentence(small_scans, base, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "CLIP_NORM", 1e18)
    for name, batch_size in (("first", 4), ("last", 64)):  # of one step: no later loss tells it
        config = replace(CONFIG, epochs=1, batch_size=batch_size)
        object.__setattr__(config, "lr", 1e18)  # is refused otherwise
        with pytest.raises(FloatingPointError, match="lower lr"):
            train_stage(config, small_scans[:2], small_scans[2:], tmp_path / name, base)


def test_where_features_live_changes_no_weight_and_a_resumed_run_keeps_to_it(small_scans, base, tmp_path, monkeypatch):
    config, places = replace(CONFIG, epochs=2, views=2, refresh=0.5, patch_size=64), []
    given = (small_scans[:1], small_scans[2:3])
    scratch = tmp_path / "scratch"
    monkeypatch.setenv("ROOTSAM_SCRATCH", str(scratch))

    def look(history):
        places.append([len(list(folder.rglob("bank.json"))) for folder in (scratch, tmp_path / "runs")])

    whole = train_stage(config, *given, tmp_path / "runs", base, after_epoch=look)
    assert places == [[1, 0], [1, 0]] and not list(scratch.rglob("*.*")), "in the scratch folder, and gone at the end"
    with monkeypatch.context() as patch:
        patch.setattr(feature_bank, "choose_place", lambda *_: ("live", "for a test"))
        interrupt_at(3, patch)
        with pytest.raises(KeyboardInterrupt):
            train_stage(config, *given, tmp_path / "live", base)
    (folder,) = (tmp_path / "live").iterdir()
    assert read_json(folder / "features.json") == {"place": "live", "live": True, "views": 2}
    again = train_stage(config, *given, tmp_path / "live", base)
    assert read_json(folder / "features.json")["live"] and len(places) == 2
    assert again.history == whole.history and again.weights.read_bytes() == whole.weights.read_bytes()


def test_only_the_code_itself_makes_a_trained_stage_stale(tmp_path):
    text = '"""What it is."""\n\n\ndef one():\n    """Says 1."""\n    return 1  # as asked\n'
    reworded = text.replace("Says 1", "Tells it").replace("as asked", "why")
    changed = text.replace("return 1", "return 2")
    seen = []
    for number, variant in enumerate((text, reworded, changed)):
        (tmp_path / f"{number}.py").write_text(variant)
        seen.append(code_of(tmp_path / f"{number}.py"))
    assert seen[0] == seen[1] != seen[2]


def test_a_tube_in_train_and_in_val_is_said_and_scans_without_one_are_none(small_scans, tmp_path):
    bare = replace(small_scans[0], name="bare", mask=small_scans[0].mask & False)  # without roots nothing is trained
    with (
        pytest.warns(UserWarning, match="tubes in train and in val: T7"),
        pytest.raises(ValueError, match="has a root"),
    ):
        train_stage(CONFIG, [replace(small_scans[0], tube="T7")], [replace(bare, tube="T7")], tmp_path)
    with warnings.catch_warnings(), pytest.raises(ValueError, match="has a root"):
        warnings.simplefilter("error")
        train_stage(CONFIG, [replace(small_scans[0], tube="")], [replace(bare, tube="")], tmp_path)
