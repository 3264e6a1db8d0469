"""The U-Nets: what learns and what does not, and training that goes on where it was."""

import numpy as np
import pytest
import torch

from rootsam_lib.checkpoints import build_sam
from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.evaluation import peers
from rootsam_lib.evaluation.peers import UNet, train_unet, unet_loss
from rootsam_lib.training.config import stage1


@pytest.fixture(scope="module")
def trunk():
    return build_sam("nano").sam.image_encoder.trunk.backbone.state_dict()


@pytest.fixture(scope="module")
def scans():
    return synthetic_scans("train", 1, height=128, width=128)


CONFIG = stage1(patch_size=64, batch_size=4, epochs=2, families=(), soil_share=0.0, schedule="cosine")


def test_what_is_frozen_stays_and_all_else_learns(trunk, scans, tmp_path):
    for frozen in (True, False):
        net = train_unet(trunk, frozen, CONFIG, scans, tmp_path / str(frozen)).model
        stem = net.net.encoder.model.conv_stem.weight
        assert torch.equal(stem, trunk["conv_stem.weight"]) == frozen
        fresh = UNet(trunk, frozen).net.decoder.state_dict()
        assert not any(torch.equal(p, fresh[n]) for n, p in net.net.decoder.named_parameters())


def test_the_loss_falls(trunk, scans):
    torch.manual_seed(0)
    net, (scan,) = UNet(trunk, False), scans
    image, mask = scan.image[:64, :64], scan.mask[:64, :64].copy()
    mask[30:34] = True
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    losses = []
    for _ in range(8):
        loss = unet_loss(net, [image, image], [mask, mask], CONFIG, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_goes_on_after_an_interruption(trunk, scans, tmp_path, monkeypatch):
    """Stopped in the second epoch, it ends with the weights of a training in one go; asked again it only reads."""
    whole = train_unet(trunk, True, CONFIG, scans, tmp_path / "whole")
    calls, loss = [], peers.unet_loss

    def stop(net, images, masks, config, epoch):
        calls.append(epoch)
        if epoch == 1 and calls.count(1) == 1:
            raise KeyboardInterrupt
        return loss(net, images, masks, config, epoch)

    monkeypatch.setattr(peers, "unet_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        train_unet(trunk, True, CONFIG, scans, tmp_path / "two")
    second = train_unet(trunk, True, CONFIG, scans, tmp_path / "two")
    assert second.about["weights"] == whole.about["weights"]
    done = len(calls)
    assert train_unet(trunk, True, CONFIG, scans, tmp_path / "two").about == second.about and len(calls) == done


def test_answers_as_the_predictor_asks(trunk):
    predictor = peers.Predictor(UNet(trunk, True), tile_size=64, overlap=16)
    image = np.random.default_rng(0).integers(0, 255, (100, 70, 3), dtype=np.uint8)
    predictor.set_image(image)
    mask, iou, logits = predictor.predict()
    assert mask.shape == logits.shape == (1, 100, 70) and np.isfinite(logits).all() and np.isnan(iou[0])
