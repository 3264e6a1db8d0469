"""The models: built alike, frozen where they should be, the same answers as sam2's own predictor, safe loading."""

import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rootsam_lib import checkpoints as zoo
from rootsam_lib import model as model_file
from rootsam_lib.checkpoints import build_sam, download_checkpoint, load_weights, save_checkpoint, weights_hash
from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.metrics import count, iou
from rootsam_lib.model import half_precision, resize_logits
from rootsam_lib.predictor import load_predictor


@pytest.fixture(scope="module")
def nano():
    return build_sam("nano", weights=None, seed=1)


@pytest.fixture(scope="module")
def tiny():
    return build_sam("tiny", weights=None, seed=1)


def images(height=64, width=96, count=2):
    return np.random.default_rng(0).integers(0, 255, (count, height, width, 3), dtype=np.uint8)


def some_points(count=2):
    points = torch.tensor([[[20.0, 30.0], [50.0, 40.0]]]).repeat(count, 1, 1)
    return points, torch.tensor([[1, 0]]).repeat(count, 1)


def test_parameter_table_counts_everything_once(nano, tiny):
    for model in (nano, tiny):
        rows = {row["part"]: row for row in model.parameter_table()}
        assert sum(row["parameters"] for row in rows.values()) == sum(p.numel() for p in model.parameters())
        assert [part for part, row in rows.items() if row["state"] == "trained"] == ["prompt encoder", "mask decoder"]
        trained = sum(row["parameters"] for row in rows.values() if row["state"] == "trained")
        assert trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("size", [(64, 96), (32, 32), (160, 128)])
def test_any_multiple_of_32(nano, size):
    features = nano.encode(images(*size))
    assert [m.shape[-1] for m in features.maps] == [size[1] // s for s in (4, 8, 16, 32)]
    prediction = nano.decode(features, *some_points())
    assert prediction.logits.shape == (2, 1, size[0] // 4, size[1] // 4) and prediction.iou.shape == (2, 1)
    assert nano.decode(features, *some_points(), multimask=True).logits.shape[1] == 3


def test_the_encoder_is_frozen_and_stays_in_eval_mode(nano):
    nano.train()
    assert not any(module.training for module in nano.sam.image_encoder.modules())
    assert nano.sam.sam_mask_decoder.training
    first, second = nano.encode(images()), nano.encode(images())
    assert all(a.equal(b) and not a.requires_grad for a, b in zip(first.maps, second.maps, strict=True))


@pytest.mark.parametrize(
    ("card", "native", "half"),
    [
        ("NVIDIA H200", True, torch.bfloat16),
        ("Tesla T4", False, torch.float16),
        ("NVIDIA GeForce GTX 1660 Ti", False, None),
    ],
)
def test_half_precision_by_the_card(card, native, half, monkeypatch):
    assert half_precision() is None or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: card)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert half_precision() == half


def test_folded_norms_change_rounding_alone_and_no_weight():
    model, images = build_sam("nano").eval(), np.random.default_rng(0).integers(0, 255, (1, 96, 128, 3), np.uint8)
    before, weights = model.encode(images).maps, weights_hash(model)
    norms = sum(isinstance(part, torch.nn.BatchNorm2d) for part in model.sam.image_encoder.trunk.modules())
    model.fold_norms()
    (folded,) = model._folded
    assert norms > 40 and not any(isinstance(part, torch.nn.BatchNorm2d) for part in folded.modules())
    for old, new in zip(before, model.encode(images).maps, strict=True):
        assert 0 < (old - new).abs().max() < 1e-4 * old.abs().max()
    assert weights_hash(model) == weights and not any("_folded" in name for name in model.state_dict())


def test_a_trunk_whose_answer_would_change_is_not_folded(monkeypatch):
    model = build_sam("nano").eval()
    monkeypatch.setattr(model_file, "fuse_conv_bn_eval", lambda conv, norm: conv)
    model.fold_norms()
    assert model._folded == ()


def test_gradients_reach_the_decoder_through_kept_features(nano):
    nano.zero_grad()
    nano.decode(nano.encode(images()), *some_points()).logits.square().mean().backward()
    reached = {name for name, p in nano.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    for part in ("conv_s0.weight", "conv_s1.weight", "point_embeddings.0.weight", "point_embeddings.1.weight"):
        assert any(name.endswith(part) for name in reached), part
    assert not any("image_encoder" in name for name in reached)


def test_the_detail_path_leaves_prompts_as_they_are_until_it_learns(tmp_path):
    model = build_sam("nano", weights=None, seed=1).eval()
    before = model.decode(model.encode(images()), *some_points())
    assert before.low_res is before.logits
    count = sum(p.numel() for p in model.parameters())
    model.add_detail(seed=3)
    after = model.decode(model.encode(images()), *some_points())
    torch.testing.assert_close(after.low_res, before.logits, atol=0, rtol=0)
    finer = before.logits
    for _ in range(2):
        finer = F.interpolate(finer, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(after.logits, finer, atol=0, rtol=0)  # a logit for every pixel of the encoder's input
    assert (model.decode(model.encode(images())).logits == -3).all()  # by itself it finds nothing yet
    rows = {row["part"]: row for row in model.parameter_table()}
    own = sum(p.numel() for p in model.sam.sam_mask_decoder.detail.parameters())
    assert sum(row["parameters"] for row in rows.values()) == count + own and own < 1e6
    assert rows["mask decoder"]["state"] == "trained"

    model.add_detail(seed=4)  # it is there: nothing happens
    again = build_sam("nano", weights=None, seed=1)
    again.add_detail(seed=3)
    assert weights_hash(model) == weights_hash(again)
    save_checkpoint(model, tmp_path / "detail.safetensors")
    assert weights_hash(build_sam("nano", tmp_path / "detail.safetensors")) == weights_hash(model)


def with_trained_path(name="nano"):
    """A model whose detail path has something to say."""
    model = build_sam(name, weights=None, seed=1).eval()
    model.add_detail()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for last in ("out4", "out8", "out16", "finer", "all_roots"):
            getattr(model.sam.sam_mask_decoder.detail, last).weight.normal_(0, 0.05, generator=generator)
    return model


def test_the_detail_path_sees_single_pixels_and_their_neighbours():
    model = with_trained_path()
    picture = np.full((1, 64, 64, 3), 90, np.uint8)
    seen = model.encode(picture)
    seen.pixels[0, :, 33, 33] += 2.0  # the trunk's maps stay as they are
    plain, moved = model.embed(model.encode(picture)), model.embed(seen)
    assert moved.image.equal(plain.image)  # what is finer than stride 16 does not reach it
    place = (moved.fine[0] - plain.fine[0]).abs().sum(1)[0]  # the pixel lies in place 8, 8
    assert place.max() == 0  # nor what is finer than stride 4
    assert moved.detail.shape == (1, 32, 32, 32)
    place = (moved.detail - plain.detail).abs().sum(1)[0]  # the pixel lies in place 16, 16
    assert place[16, 16] > 0 and place[16, 14] > 0


def test_without_a_prompt_the_detail_path_answers():
    model = with_trained_path()
    embedding, points = model.embed(model.encode(images())), torch.tensor([[[0.0, 0.0]], [[20.0, 30.0]]])
    both = model.decode(embedding, points, torch.tensor([[-1], [1]]))
    path = model.sam.sam_mask_decoder.detail.answer(embedding.detail)
    torch.testing.assert_close(both.logits[:1], path.logits[:1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.decode(embedding).logits, path.logits, atol=0, rtol=0)
    assert (both.logits[1] - path.logits[1]).abs().max() > 0.01 and path.low_res.shape == (2, 1, 16, 24)
    logits = torch.full((4, 4), -50.0)
    logits[:2, :2] = torch.tensor([[2.0, -2.0], [-1.0, 3.0]])
    p = logits.sigmoid()
    expected = (p[0, 0] + p[1, 1]) / (2 + p[0, 1] + p[1, 0])
    detail = model.sam.sam_mask_decoder.detail
    detail.all_roots.forward = lambda _: F.pixel_unshuffle(logits.view(1, 1, 4, 4), 2)
    torch.testing.assert_close(detail.answer(embedding.detail).iou, expected.view(1, 1))


def test_each_mask_of_several_is_refined_by_itself():
    model = with_trained_path()
    embedding = model.embed(model.encode(images()))
    three = model.decode(embedding, *some_points(), multimask=True)
    assert three.logits.shape == (2, 3, 64, 96) and three.low_res.shape == (2, 3, 16, 24)
    path = model.sam.sam_mask_decoder.detail
    for mask in range(3):
        alone = path.refine(three.low_res[:, mask : mask + 1], embedding.detail)
        torch.testing.assert_close(three.logits[:, mask : mask + 1], alone, atol=1e-5, rtol=1e-5)
    assert (three.logits - F.interpolate(three.low_res, scale_factor=4, mode="bilinear")).abs().max() > 0.01


def test_the_detail_path_fits_metas_models():
    model = with_trained_path("tiny")
    first = model.decode(model.encode(images()), *some_points())
    assert first.logits.shape == (2, 1, 64, 96)
    again = model.decode(model.encode(images()), *some_points(), first.low_res)
    assert again.logits.shape == (2, 1, 64, 96) and torch.isfinite(again.logits).all()


def test_several_prompt_sets_for_one_image_are_independent(nano):
    features = nano.encode(images(count=1))
    points = torch.tensor([[[20.0, 30.0]], [[70.0, 10.0]]])
    labels = torch.ones(2, 1, dtype=torch.long)
    together = nano.decode(features, points, labels).logits
    apart = torch.cat([nano.decode(features, points[i : i + 1], labels[i : i + 1]).logits for i in (0, 1)])
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)


def test_padding_and_no_prompt_mean_the_same(nano):
    features = nano.encode(images())
    padded = nano.decode(features, torch.zeros(2, 1, 2), torch.full((2, 1), -1)).logits
    torch.testing.assert_close(nano.decode(features).logits, padded)


def test_points_are_in_pixels_of_the_image_whatever_the_encoder_sees(nano):
    picture = images(64, 64, 1)
    points, labels = torch.tensor([[[10.0, 12.0]]]), torch.tensor([[1]])
    features = nano.encode(picture, 128)
    assert resize_logits(nano.decode(features, points, labels).logits, features.image_size).shape == (1, 1, 64, 64)
    # The same features, said to come from a 128 px image: the same place has twice the coordinates.
    doubled = nano.decode(features._replace(image_size=(128, 128)), points * 2 + 0.5, labels)
    torch.testing.assert_close(nano.decode(features, points, labels).logits, doubled.logits, atol=1e-4, rtol=1e-4)


def test_same_answer_as_sam2s_own_predictor(tiny):
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    picture = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), dtype=np.uint8)
    points, labels = np.array([[300.0, 200.0], [700.0, 800.0]]), np.array([1, 0])
    predictor = SAM2ImagePredictor(tiny.sam.eval())
    predictor.set_image(picture)
    _, iou, theirs = predictor.predict(points, labels, multimask_output=False, return_logits=True)
    tiny.eval()
    with torch.no_grad():
        ours = tiny.decode(tiny.encode(picture[None]), torch.tensor(points[None]).float(), torch.tensor(labels[None]))
    np.testing.assert_allclose(ours.logits[0].numpy(), theirs, atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(ours.iou[0].numpy(), iou, atol=1e-4)


def test_moving_the_prompts_moves_the_mask():
    model = build_sam("nano").eval()
    picture = np.full((1, 256, 256, 3), 90, np.uint8)
    picture[:, 40:100, 40:100] = (200, 120, 60)
    picture[:, 150:220, 150:220] = (60, 120, 200)
    features = model.encode(picture)
    here, there = (
        model.decode(features, torch.full((1, 1, 2), float(x)), torch.ones(1, 1).long()).logits[0, 0] > 0
        for x in (70, 185)
    )
    assert (here != there).sum() > 500 / 16  # one logit per 4 px
    assert here[17, 17] and there[46, 46]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (np.zeros((1, 64, 64, 3), np.float32), "uint8"),
        (np.zeros((64, 64, 3), np.uint8), "uint8"),
        (np.zeros((1, 60, 64, 3), np.uint8), "multiples of 32"),
    ],
)
def test_bad_images_are_refused(nano, bad, says):
    with pytest.raises(ValueError, match=says):
        nano.encode(bad)


def test_points_that_do_not_fit_are_refused(nano):
    with pytest.raises(ValueError, match="multiple of the number of images"):
        nano.decode(nano.encode(images(count=2)), torch.zeros(3, 1, 2), torch.ones(3, 1))


def test_save_and_load(nano, tiny, tmp_path):
    path = tmp_path / "a" / "nano.safetensors"
    save_checkpoint(nano, path)
    other = build_sam("nano", weights=None, seed=2)
    assert weights_hash(other) != weights_hash(nano)
    load_weights(other, path)
    assert weights_hash(other) == weights_hash(nano)
    assert not list(tmp_path.rglob("*.partial"))
    with pytest.raises(ValueError, match="does not hold weights of model 'tiny'"):
        load_weights(tiny, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        load_weights(other, path)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        build_sam("nano", tmp_path / "missing.safetensors")
    with pytest.raises(ValueError, match="choose one of nano"):
        build_sam("huge")


def test_embedded_weights_are_compared_with_their_card(tmp_path, monkeypatch):
    for name, most in (("nano", 10e6), (zoo.ROOTS, 12e6)):
        assert zoo.embedded_checkpoint(name).stat().st_size <= most
    for file in ("nano.safetensors", "nano.json"):
        (tmp_path / file).write_bytes((zoo.NANO / file).read_bytes())
    with open(tmp_path / "nano.safetensors", "ab") as file:
        file.write(b"x")
    monkeypatch.setattr(zoo, "NANO", tmp_path)
    with pytest.raises(ValueError, match=r"not the file that nano\.json describes"):
        zoo.embedded_checkpoint()


def test_download_of_a_checkpoint_in_metas_format(tiny, server, tmp_path, monkeypatch):
    folder, url = server
    monkeypatch.setenv("ROOTSAM_CACHE", str(tmp_path / "cache"))
    file = folder / zoo.MODELS["tiny"].checkpoint
    torch.save({"model": tiny.sam.state_dict()}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(zoo.MODELS, "tiny", zoo.MODELS["tiny"]._replace(sha256=digest))
    path = download_checkpoint("tiny", url)
    assert weights_hash(build_sam("tiny", path)) == weights_hash(tiny)
    file.unlink()
    assert download_checkpoint("tiny", url) == path  # now from the cache


def test_download_that_is_not_the_published_file(server, tmp_path, monkeypatch):
    folder, url = server
    monkeypatch.setenv("ROOTSAM_CACHE", str(tmp_path / "cache"))
    (folder / zoo.MODELS["tiny"].checkpoint).write_bytes(b"truncated")
    with pytest.raises(OSError, match="not the published file"):
        download_checkpoint("tiny", url)
    with pytest.raises(OSError, match="could not be fetched"):
        download_checkpoint("small", url)
    monkeypatch.setenv("HTTP_PROXY", "http://:nonsense:")
    monkeypatch.setenv("NO_PROXY", "")
    with pytest.raises(OSError, match=r"could not be fetched .*Invalid.*: check the connection and the proxy"):
        download_checkpoint("small", "http://models.invalid/")
    assert not list((tmp_path / "cache").glob("*.pt"))


@pytest.mark.parametrize("detail", [False, True])
def test_an_answer_does_not_depend_on_its_batch_mates(detail):
    """SAM2.1's prompt encoder embeds label -1: padding would change an answer by up to a fifth of its pixels."""
    model, generator = with_trained_path() if detail else build_sam().eval(), torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (3, 128, 128, 3), dtype=torch.uint8, generator=generator)
    points, labels = 127 * torch.rand(6, 5, 2, generator=generator), torch.full((6, 5), -1)
    for row, given in enumerate((0, 1, 3, 5, 2, 3)):
        labels[row, torch.randperm(5, generator=generator)[:given]] = torch.arange(given) % 2
    fed = 5 * torch.randn(6, 1, 32, 32, generator=generator)
    features = model.encode(images)
    for mask_input in (None, fed):
        together = model.decode(features, points, labels, mask_input)
        for row in range(6):
            given = labels[row] >= 0
            own = (points[row][given][None], labels[row][given][None]) if given.any() else (None, None)
            alone = model.decode(
                model.encode(images[row // 2][None]), *own, None if mask_input is None else mask_input[row : row + 1]
            )
            torch.testing.assert_close(together.logits[row], alone.logits[0], atol=1e-4, rtol=1e-5)
            torch.testing.assert_close(together.iou[row], alone.iou[0], atol=1e-5, rtol=1e-5)


def test_nano_roots_finds_drawn_roots_without_any_training():
    scan = synthetic_scans("test", 1, height=512, width=512)[0]
    drawn, plain = (load_predictor(name, tile_size=512) for name in ("nano-roots", "nano"))
    assert drawn.select and 3 < drawn.root_width < 6
    assert iou(count(drawn(scan.image), scan.mask)) > 0.4 > iou(count(plain(scan.image), scan.mask))
    assert build_sam("nano-roots").sam.sam_mask_decoder.detail is not None
