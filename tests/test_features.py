"""The feature bank holds what the encoder would say, changes in turn, fits its room, and trusts no damaged file."""

import json
import shutil

import numpy as np
import pytest
import torch

from rootsam_lib.checkpoints import build_sam
from rootsam_lib.data.augment import augment, build_augmentation
from rootsam_lib.data.scans import Patch, tile
from rootsam_lib.model import Features
from rootsam_lib.nano.scenes import numbered_scene
from rootsam_lib.prompts import next_click
from rootsam_lib.training import feature_bank as features
from rootsam_lib.training.devices import Room, choose_place, measure_room, read_rate
from rootsam_lib.training.feature_bank import FeatureBank

PIPELINE = build_augmentation(128)
POINTS = (torch.tensor([[[30.0, 40.0], [90.0, 70.0]]]), torch.tensor([[1, 0]]))


@pytest.fixture(scope="module")
def model():
    return build_sam("nano").eval()


@pytest.fixture(scope="module")
def patches(small_scans):
    return tile(small_scans[0], 128)


def drawn(patch, number, view=0, generation=0, seed=0):
    """The view that the bank should hold, drawn by hand."""
    own = np.random.SeedSequence([features.VIEW_STREAM, seed, number, view, generation]).generate_state(1)[0]
    return augment(PIPELINE, patch.image, patch.mask, int(own))


def entry(bank, slot):
    return {part: kept[slot].clone() for part, kept in bank.store.items() if part != "checksum"}


def same(a, b):
    return all(a[part].equal(b[part]) for part in a)


@pytest.mark.parametrize("place", ["memory", "disk", "live"])
def test_kept_and_live_features_give_the_same_logits(model, patches, tmp_path, place):
    where = {"memory": {}, "disk": {"folder": tmp_path / "bank", "most_gb": 1}, "live": {"most_gb": 0}}[place]
    bank = FeatureBank(model, patches, PIPELINE, views=2, **where)
    bank.fill(0)
    for number, view in ((0, 0), (3, 1 if place != "live" else 0)):
        image, mask = drawn(patches[number], number, view)
        batch = bank.batch([number], [view], model.device)
        with torch.no_grad():
            kept, live = (model.decode(f, *POINTS).logits for f in (batch.features, model.encode(image[None])))
        assert (kept - live).abs().max() < 1e-5
        assert (batch.masks[0] == mask).all() and batch.names == [patches[number].name]


@pytest.mark.parametrize("detail", [False, True])
def test_every_place_serves_the_same(patches, tmp_path, detail):
    model, served = build_sam("nano").eval(), []
    if detail:
        model.add_detail()
    for place in ("disk", "memory", "pinned", "gpu", "live"):
        where = {"folder": tmp_path / "bank", "most_gb": 1, "place": place, "dtype": torch.bfloat16}
        bank = FeatureBank(model, patches, PIPELINE, 2, refresh=0.5, **where)
        assert bank.place == place and (bank.fill(1) == 0) == (place == "live")
        bank.fill(2)
        served.append(bank.batch([3, 0, 3], [1, 0, 0], model.device))
    for other in served[1:]:
        assert all(a.equal(b) for a, b in zip(served[0].features.maps, other.features.maps, strict=True))
        assert (served[0].masks == other.masks).all() and served[0].names == other.names
        assert not detail or served[0].features.pixels.equal(other.features.pixels)


def test_views_are_the_same_however_many_are_encoded_together(model, patches, tmp_path, monkeypatch):
    one = FeatureBank(model, patches, PIPELINE, 2)
    monkeypatch.setattr(features, "images_at_once", lambda *_: 3)
    sizes, encode = [], model.encode
    monkeypatch.setattr(model, "encode", lambda images, size: sizes.append(len(images)) or encode(images, size))
    three = FeatureBank(model, patches, PIPELINE, 2, folder=tmp_path / "bank", most_gb=1)
    live = FeatureBank(model, patches, PIPELINE, 2, place="live")
    assert one.fill(0) == three.fill(0) == 8 and set(sizes) == {1, 3}
    asked = ([0, 1, 2, 3], [1, 0, 1, 0])
    batches = [bank.batch(*asked, model.device) for bank in (one, three, live)]
    for other in batches[1:]:
        for a, b in zip(batches[0].features.maps, other.features.maps, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        assert (batches[0].masks == other.masks).all()


def test_views_are_the_same_however_many_threads_draw_them(model, patches, monkeypatch):
    many = [patch for patch in patches for _ in range(8)]
    one = FeatureBank(model, many, PIPELINE, 1)
    monkeypatch.setattr(features, "preparing_threads", lambda device: 4)
    four = FeatureBank(model, many, PIPELINE, 1)
    for bank in (one, four):
        bank.fill(0)
    assert all(one.store[part].equal(four.store[part]) for part in one.store)


GB = 10**9


@pytest.mark.parametrize(
    ("room", "live", "place", "says"),
    [
        (Room(0, 8 * GB, 100 * GB), None, "disk", "no GPU"),
        (Room(0, 8 * GB, 0), None, "disk", "no GPU"),  # where it is refused, with what to do
        (Room(0, 8 * GB, None), None, "memory", "no GPU"),
        (
            Room(40 * GB, 8 * GB, 1, 1e9, 0.1),
            None,
            "gpu",
            "16 GB of features fit into the GPU's memory (40 GB are free)",
        ),
        (Room(39 * GB, 33 * GB, 1, 1e9, 0.1), None, "pinned", "fit into RAM (33 GB are free)"),
        (Room(15 * GB, 10 * GB, 70 * GB, 1e9, 0.02), None, "disk", "a view is read in 16 ms and encoded in 20 ms"),
        (Room(15 * GB, 10 * GB, 70 * GB, 5e8, 0.02), None, "live", "a view is read in 32 ms and encoded in 20 ms"),
        (Room(15 * GB, 10 * GB, 10 * GB, 1e9, 0.02), None, "live", "fit nowhere (10 GB of disk are free)"),
        (Room(15 * GB, 10 * GB, 70 * GB, 5e8, 0.02), False, "disk", "read in 32 ms"),  # as it was decided before
        (Room(40 * GB, 8 * GB, 70 * GB, 1e9, 0.1), True, "live", "as when this training began"),
        (Room(0, 8 * GB, 70 * GB), True, "live", "as when this training began"),
        (Room(15 * GB, 10 * GB, 10 * GB, 1e9, 0.02), False, "disk", "read in 16 ms"),
    ],
)
def test_where_features_live_follows_from_what_was_measured(room, live, place, says):
    chosen, why = choose_place(16 * 10**6, 1000, room, live)
    assert chosen == place and says in why


def test_what_is_measured(tmp_path):
    room = measure_room(torch.device("cpu"), tmp_path / "new", lambda: 0.0)
    assert room.gpu == 0 < room.ram and 0 < room.disk == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    assert measure_room(torch.device("cpu"), None, lambda: 0.0).disk is None
    assert read_rate(tmp_path, 1 << 16) > 0 and list(tmp_path.iterdir()) == [tmp_path / "new"]


@pytest.mark.parametrize("room", [1, 0])
def test_a_detail_path_gets_the_pixels_of_its_view(patches, tmp_path, room):
    detailed = build_sam("nano").eval()
    detailed.add_detail()
    bank = FeatureBank(detailed, patches, PIPELINE, input_scale=1.5, folder=tmp_path / "bank", most_gb=room)
    bank.fill(0)
    for _ in range(2):  # also read back from the disk
        batch = bank.batch([0, 2], [0, 0], detailed.device)
        live = np.stack([drawn(patches[number], number)[0] for number in (0, 2)])
        torch.testing.assert_close(batch.features.pixels, detailed.encode(live, 192).pixels, atol=0, rtol=0)
        bank = FeatureBank(detailed, patches, PIPELINE, input_scale=1.5, folder=tmp_path / "bank", most_gb=room)
        assert bank.fill(0) == 0
    assert FeatureBank(build_sam("nano"), patches).batch([0], [0], detailed.device).features.pixels is None


def test_half_precision_hardly_changes_masks(model):
    both = either = 0
    for number in range(6):
        scene = numbered_scene(7, 0, number, 256)  # what nano knows: objects
        target = int(np.argmax(np.bincount(scene.labels.ravel())[1:])) + 1
        x, y, _ = next_click(scene.labels == target, np.zeros((256, 256), bool))
        patch = Patch(scene.image, scene.labels == target, f"scene{number}", "", (0, 0))
        masks = []
        for kind in (torch.float32, torch.bfloat16):
            batch = FeatureBank(model, [patch], dtype=kind).batch([0], [0], model.device)
            with torch.no_grad():
                masks.append(model.decode(batch.features, torch.tensor([[[x, y]]]), torch.ones(1, 1).long()).logits > 0)
        both, either = both + int((masks[0] & masks[1]).sum()), either + int((masks[0] | masks[1]).sum())
    assert both > 1000 and both / either >= 0.99


def test_gradients_reach_conv_s0_and_conv_s1_through_the_bank(model, patches):
    batch = FeatureBank(model, patches, dtype=torch.bfloat16).batch([0, 1], [0, 0], model.device)
    model.zero_grad()
    model.decode(batch.features, *(x.repeat(2, *[1] * (x.ndim - 1)) for x in POINTS)).logits.square().mean().backward()
    for layer in (model.sam.sam_mask_decoder.conv_s0, model.sam.sam_mask_decoder.conv_s1):
        assert layer.weight.grad.abs().sum() > 0
    model.zero_grad()


def test_a_share_of_the_views_is_drawn_anew_each_epoch(model, patches):
    bank = FeatureBank(model, patches, PIPELINE, views=4, refresh=0.25)
    assert bank.fill(0) == 16 and bank.fill(0) == 0
    seen, changes = [entry(bank, slot) for slot in range(16)], np.zeros(16, int)
    for epoch in range(1, 5):
        assert 3 <= bank.fill(epoch) <= 5
        now = [entry(bank, slot) for slot in range(16)]
        changes += [not same(a, b) for a, b in zip(seen, now, strict=True)]
        seen = now
    assert (changes == 1).all()  # four epochs of a quarter each: every view once
    mask = drawn(patches[1], 1, view=2, generation=1)[1]
    assert (bank.batch([1], [2], model.device).masks[0] == mask).all()
    later = FeatureBank(model, patches, PIPELINE, views=4, refresh=0.25)
    later.fill(4)  # the same without having gone through the epochs before
    assert all(same(entry(later, slot), seen[slot]) for slot in range(16))


def test_patches_without_augmentation_never_change(model, patches):
    bank = FeatureBank(model, patches, refresh=0.5)
    assert bank.fill(0) == bank.fill(3) == 0


def test_a_bank_on_disk_goes_on_where_it_stood(model, patches, tmp_path, monkeypatch, capsys):
    def open_bank():
        return FeatureBank(model, patches, PIPELINE, 2, folder=tmp_path / "bank", most_gb=1, refresh=0.5)

    encoded, encode = [], FeatureBank._encode

    def dies(self, images):
        encoded.append(1)
        if len(encoded) == 5:  # one at the start, to learn the sizes
            raise KeyboardInterrupt
        return encode(self, images)

    monkeypatch.setattr(FeatureBank, "_encode", dies)
    with pytest.raises(KeyboardInterrupt):
        open_bank().fill(0)
    monkeypatch.undo()
    capsys.readouterr()
    again = open_bank()
    assert again.fill(0) == 8 - 3
    whole = FeatureBank(model, patches, PIPELINE, 2, refresh=0.5)
    whole.fill(0)
    assert all(same(entry(again, slot), entry(whole, slot)) for slot in range(8))
    assert open_bank().fill(0) == 0 and "anew" not in capsys.readouterr().out


def test_processes_share_the_work(model, patches, tmp_path):
    def open_bank():
        return FeatureBank(model, patches, PIPELINE, 2, folder=tmp_path / "bank", most_gb=1)

    first, second = open_bank(), open_bank()
    assert first.fill(0, rank=0, processes=2) == 4 and second.fill(0, rank=0, processes=1) == 4
    assert (first.store["generation"] == 0).all()  # the files are shared


@pytest.mark.parametrize("fault", ["truncated", "foreign", "other seed", "unreadable"])
def test_damaged_and_foreign_banks_are_made_anew(model, patches, tmp_path, capsys, fault):
    folder = tmp_path / "bank"
    FeatureBank(model, patches, PIPELINE, folder=folder, most_gb=1).fill(0)
    seed, other = 0, model
    if fault == "truncated":
        with open(folder / "map1.bin", "r+b") as file:
            file.truncate(1000)
    elif fault == "foreign":
        other = build_sam("nano", weights=None).eval()
    elif fault == "other seed":
        seed = 1
    else:
        (folder / "bank.json").write_text("{")
    words = {"truncated": "is truncated (map1.bin has 1,000 of", "unreadable": "has no readable description"}
    bank = FeatureBank(other, patches, PIPELINE, folder=folder, most_gb=1, seed=seed)
    said = capsys.readouterr().out
    assert words.get(fault, "is of other weights, scans or settings") in said and said.count("\n") == 1
    assert bank.fill(0) == len(patches)
    assert json.loads((folder / "bank.json").read_text())["key"]
    again = FeatureBank(other, patches, PIPELINE, folder=folder, most_gb=1, seed=seed)
    assert again.fill(0) == 0 and not capsys.readouterr().out


def test_a_bank_keeps_to_its_room(model, patches, capsys):
    one = FeatureBank(model, patches).view_bytes / 1e9
    fewer = FeatureBank(model, patches, PIPELINE, views=3, most_gb=9 * one)
    assert fewer.views == 2 and fewer.kept == 8 and "2 of each patch" in capsys.readouterr().out
    some = FeatureBank(model, patches, PIPELINE, views=3, most_gb=2.5 * one)
    assert (some.views, some.kept) == (1, 2) and "the others are encoded each time" in capsys.readouterr().out
    assert some.fill(0) == 2
    first = some.batch([0, 3], [0, 0], model.device)
    assert some.fill(1) == 0
    second = some.batch([0, 3], [0, 0], model.device)
    assert (first.masks[0] == second.masks[0]).all() and (first.masks[1] != second.masks[1]).any()
    assert isinstance(second.features, Features) and len(second.features.maps[0]) == 2


def test_a_full_disk_is_seen_before_the_work(model, patches, tmp_path, monkeypatch):
    class Full:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Full)
    with pytest.raises(OSError, match="lower BANK_GB or VIEWS, or make room"):
        FeatureBank(model, patches, PIPELINE, folder=tmp_path / "bank", most_gb=1)


def test_no_patch_is_refused(model):
    with pytest.raises(ValueError, match="no patch to encode"):
        FeatureBank(model, [])


def test_what_is_not_filled_is_never_served(model, patches, tmp_path):
    bank = FeatureBank(model, patches, PIPELINE, 2, refresh=1.0)
    with pytest.raises(RuntimeError, match=r"is not in the bank yet: call fill\(0\)"):
        bank.batch([0], [1], model.device)
    bank.fill(0)
    bank.epoch = 1  # as if fill(1) had been cut off: these views are of the epoch before
    with pytest.raises(RuntimeError, match=r"call fill\(1\)"):
        bank.batch([0], [1], model.device)


def test_flipped_bytes_are_found_and_made_anew(model, patches, tmp_path, capsys):
    def open_bank():
        return FeatureBank(model, patches, PIPELINE, folder=tmp_path / "bank", most_gb=1)

    open_bank().fill(0)
    with open(tmp_path / "bank" / "map2.bin", "r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 1]))
    again = open_bank()
    assert again.fill(0) == 1 and "1 views on the disk are damaged and made anew" in capsys.readouterr().out
    whole = FeatureBank(model, patches, PIPELINE)
    whole.fill(0)
    assert all(same(entry(again, slot), entry(whole, slot)) for slot in range(len(patches)))
