"""Weights that leave: sam2's own predictor, Hugging Face's and ONNX Runtime answer as RootSAM does."""

import re
import shutil

import numpy as np
import pytest
import torch
from hydra import initialize_config_dir, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from sam2.build_sam import build_sam2
from sam2.sam2_image_predictor import SAM2ImagePredictor
from test_cli import refused
from test_sam import with_trained_path

from rootsam_lib.__main__ import main
from rootsam_lib.apps import weights
from rootsam_lib.checkpoints import MODELS, NANO, SAM2_FILES, build_sam, check_sam2, save_checkpoint
from rootsam_lib.predictor import Predictor
from rootsam_lib.results import write_image

IMAGE = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), dtype=np.uint8)
POINTS, LABELS = np.array([[310.0, 200.0], [40.0, 700.0], [512.0, 90.0]], np.float32), np.array([1, 0, 1])
NONE = np.zeros((1, 2), np.float32), np.array([-1])  # no prompt, for programs that insist on one


def stored(folder, name, detail=False):
    """A checkpoint as a trained stage writes it, with random weights."""
    model = with_trained_path(name) if detail else build_sam(name, weights=None, seed=1)
    save_checkpoint(model, folder / "best.safetensors", {"input_scale": 1.5, "patch_size": 512})
    return folder / "best.safetensors"


@pytest.mark.parametrize("name", ["nano", pytest.param("tiny", marks=pytest.mark.slow)])
def test_sam2s_own_predictor_loads_it_strictly_and_answers_the_same(tmp_path, name, capsys):
    source = stored(tmp_path, name)
    assert main(["export", "--to", "sam2", str(source), str(tmp_path / "out.pt")]) == 0
    assert "give it tiles of 683 x 683 px" in capsys.readouterr().out  # 1024 / 1.5
    GlobalHydra.instance().clear()
    if name == "nano":
        initialize_config_dir(str(NANO), version_base="1.2")
    else:
        initialize_config_module("sam2", version_base="1.2")
    config = "nano.yaml" if name == "nano" else "configs/sam2.1/sam2.1_hiera_t.yaml"
    theirs = SAM2ImagePredictor(build_sam2(config, tmp_path / "out.pt", device="cpu", apply_postprocessing=False))
    ours = Predictor(build_sam(name, source), tile_size=1024)
    for predictor in (theirs, ours):
        predictor.set_image(IMAGE)
    for points, labels in ((POINTS, LABELS), NONE):
        answer = theirs.predict(points, labels, multimask_output=False, return_logits=True)
        expected = ours.predict(points, labels)
        np.testing.assert_allclose(answer[0], expected[2], atol=1e-4)
        np.testing.assert_allclose(answer[1], expected[1], atol=1e-4)
        assert np.ptp(expected[2]) > 0.1


def test_a_detail_path_is_refused_or_left_out_at_a_price_that_is_told(tmp_path, capsys):
    source, out, scan = stored(tmp_path, "nano", detail=True), tmp_path / "out.pt", tmp_path / "scan.png"
    write_image(scan, IMAGE[:128, :96])
    said = refused(capsys, "export", "--to", "sam2", str(source), str(out))
    assert "--without-detail" in said and not out.exists()
    asked = ["export", "--to", "sam2", str(source), str(out)]
    assert "--without-detail" in refused(capsys, *asked, "--scan", str(scan))
    assert main([*asked, "--without-detail", "--scan", str(scan)]) == 0
    (told,) = re.findall(r"agree with an IoU of (\S+)", capsys.readouterr().out)
    model = with_trained_path("nano")
    whole = Predictor(model, 1.5)(IMAGE[:128, :96])
    model.sam.sam_mask_decoder.detail = None
    without = Predictor(model, 1.5)(IMAGE[:128, :96])
    expected = (whole & without).sum() / (whole | without).sum()
    assert float(told) == pytest.approx(expected, abs=6e-4) and expected < 1
    model.sam.load_state_dict(torch.load(out, weights_only=True)["model"])  # strict


def test_what_cannot_be_exported_is_refused_before_anything_is_written(tmp_path, capsys):
    out = tmp_path / "out"
    assert "Hiera" in refused(capsys, "export", "--to", "transformers", "nano", str(out))
    assert "must end in .pt" in refused(capsys, "export", "--to", "sam2", "nano", str(out))
    assert "no trained stage" in refused(capsys, "export", "--to", "onnx", str(tmp_path / "nowhere"), str(out))
    assert not list(tmp_path.iterdir())
    out.mkdir()
    assert "is there already" in refused(capsys, "export", "--to", "onnx", "nano", str(out))


@pytest.mark.slow
def test_sam2model_has_every_key_and_answers_the_same(tmp_path):
    transformers = pytest.importorskip("transformers")
    weights.export_weights(stored(tmp_path, "tiny"), tmp_path / "out", "transformers")
    theirs = transformers.Sam2Model.from_pretrained(tmp_path / "out").eval()
    processor = transformers.Sam2Processor.from_pretrained(tmp_path / "out")
    ours = build_sam("tiny", tmp_path / "best.safetensors").eval()
    asked = processor(IMAGE, input_points=[[POINTS.tolist()]], input_labels=[[LABELS.tolist()]], return_tensors="pt")
    torch.testing.assert_close(asked["pixel_values"], ours.pixels(IMAGE[None]), atol=1e-5, rtol=0)
    with torch.no_grad():
        features = theirs.get_image_embeddings(asked.pop("pixel_values"))
        embedding = ours.embed(ours.encode(IMAGE[None]))
        expected = ours.decode(embedding, torch.tensor(POINTS)[None], torch.tensor(LABELS)[None])
        prompts = {key: asked[key] for key in ("input_points", "input_labels")}
        answer = theirs(image_embeddings=features, multimask_output=False, **prompts)
        torch.testing.assert_close(answer.pred_masks[0], expected.logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(answer.iou_scores[0], expected.iou, atol=1e-4, rtol=0)
        answer = theirs(image_embeddings=features, multimask_output=False)
        torch.testing.assert_close(answer.pred_masks[0], ours.decode(embedding).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["small", *(pytest.param(x, marks=pytest.mark.slow) for x in ("base_plus", "large"))])
def test_keys_and_shapes_of_the_other_sizes_are_sam2models(name, monkeypatch, tmp_path):
    pytest.importorskip("transformers")
    monkeypatch.setattr(weights, "_write_folder", lambda out, write: None)  # what is tested comes before it
    weights.to_transformers(build_sam(name, weights=None), tmp_path)  # loads strictly


@pytest.mark.slow
def test_onnxruntime_answers_the_same_with_a_detail_path(tmp_path):
    onnxruntime, side = pytest.importorskip("onnxruntime"), 128
    pytest.importorskip("onnxscript")
    model = with_trained_path()
    weights.to_onnx(model, tmp_path / "out", size=side)
    encoder, decoder = (onnxruntime.InferenceSession(tmp_path / "out" / f"{x}.onnx") for x in ("encoder", "decoder"))
    # X-AnyLabeling takes the encoder's outputs and the decoder's inputs by their order, and the size from the shape.
    assert [x.name for x in encoder.get_outputs()] == ["high_res_feats_0", "high_res_feats_1", "image_embed"]
    assert [x.name for x in decoder.get_inputs()] == weights.INPUTS
    assert encoder.get_inputs()[0].shape == [1, 3, side, side]
    image = IMAGE[None, :side, :side]
    fine, middle, embed = encoder.run(None, {"image": model.pixels(image).numpy()})
    mask = np.random.default_rng(1).normal(0, 3, (1, 1, side // 4, side // 4)).astype(np.float32)
    for points, labels in ((POINTS / 8, LABELS), (POINTS[:1] / 8, LABELS[:1]), NONE):
        for given in (False, True):
            prompt = (points[None], labels[None].astype(np.float32), mask, np.array([given], np.float32))
            answer = decoder.run(None, dict(zip(weights.INPUTS, (embed, fine, middle, *prompt), strict=True)))
            with torch.no_grad():
                asked = torch.tensor(points)[None], torch.tensor(labels)[None], torch.tensor(mask) if given else None
                expected = model.decode(model.encode(image), *asked)
            for got, wanted in zip(answer, expected, strict=True):
                np.testing.assert_allclose(got, wanted.numpy(), atol=1e-4)


def test_another_sam2_is_refused_and_line_endings_do_not_count(tmp_path):
    check_sam2()
    source = MODELS["tiny"].config.parents[2]
    for name in SAM2_FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((source / name).read_bytes().replace(b"\n", b"\r\n"))
    check_sam2(tmp_path)
    changed = shutil.copytree(tmp_path, tmp_path / "changed")
    decoder = changed / "modeling/sam/mask_decoder.py"
    decoder.write_text(decoder.read_text() + "\n# changed\n")
    with pytest.raises(ValueError, match=r"mask_decoder\.py is not the one.*git\+https://github.com/facebookresearch"):
        check_sam2(changed)
    decoder.unlink()
    with pytest.raises(ValueError, match=r"mask_decoder\.py is not the one"):
        check_sam2(changed)
