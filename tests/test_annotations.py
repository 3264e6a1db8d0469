"""Masks and clicks in other programs' files and back, and corrected masks as training data."""

import warnings

import numpy as np
import pytest
from PIL import Image

from rootsam_lib.apps.export import (
    export_folder,
    from_rle,
    from_rootpainter,
    paint_clicks,
    to_rle,
    to_rootpainter,
)
from rootsam_lib.data.datasets import load_parts, load_scans
from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.data.masks import read_mask
from rootsam_lib.data.scans import Scan
from rootsam_lib.predictor import Click
from rootsam_lib.results import write_image
from rootsam_lib.training.config import stage2
from rootsam_lib.training.loop import train_stage


def test_run_lengths_go_down_the_columns():
    # Column by column this reads 0 1 | 0 1 | 1 0: one soil, one root, one soil, two roots, one soil.
    mask = np.array([[0, 0, 1], [1, 1, 0]], bool)
    assert to_rle(mask) == {"size": [2, 3], "counts": [1, 1, 1, 2, 1]}
    # The first pixel is root: the soil before it is counted as 0.
    assert to_rle(~mask) == {"size": [2, 3], "counts": [0, 1, 1, 1, 2, 1]}
    assert np.array_equal(from_rle({"size": [2, 3], "counts": [1, 1, 1, 2, 1]}), mask)


def test_run_lengths_round_trip():
    rng = np.random.default_rng(0)
    masks = [rng.random(shape) > share for shape in ((1, 1), (7, 3), (64, 50)) for share in (0.0, 0.3, 0.9, 1.0)]
    for mask in masks:
        rle = to_rle(mask)
        assert np.array_equal(from_rle(rle), mask) and sum(rle["counts"]) == mask.size
        assert sum(rle["counts"][1::2]) == mask.sum()


def test_rootpainter_both_ways(tmp_path):
    clicks = [Click(10, 12, 1), Click(30, 5, 0), Click(40, 28, 1)]
    root, soil = paint_clicks(clicks, (32, 48), radius=2)
    assert root.sum() == 2 * 13 and soil.sum() == 13, "a disk of radius 2 has 13 pixels"
    file = write_image(tmp_path / "annotations" / "x.png", to_rootpainter(root, soil))
    pixels = np.asarray(Image.open(file))
    assert tuple(pixels[12, 10, :3]) == (255, 0, 0) and tuple(pixels[5, 30, :3]) == (0, 255, 0)
    assert (pixels[..., 3] > 0).sum() == 39
    back = from_rootpainter(file)
    assert np.array_equal(back[0], root) and np.array_equal(back[1], soil)
    later, _ = paint_clicks([Click(5, 5, 1), Click(5, 5, 0)], (9, 9), radius=1)
    assert not later.any(), "the later of two dabs stays"


def test_foreign_annotations_are_refused(tmp_path):
    both = np.ones((2, 2), bool)
    with pytest.raises(ValueError, match="4 pixels are root and soil at once"):
        to_rootpainter(both, both)
    blue = np.zeros((4, 4, 4), np.uint8)
    blue[0, 0] = (0, 0, 255, 180)
    with pytest.raises(ValueError, match="other colours"):
        from_rootpainter(write_image(tmp_path / "b.png", blue))


def test_corrected_masks_are_read_as_a_folder_dataset(tmp_path):
    rng = np.random.default_rng(1)
    scans = [
        Scan(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8), None, f"scan{i}", f"T{i // 2:03d}", "", 25.4 / 300)
        for i in range(16)
    ]
    masks = [rng.random((40, 60)) > 0.8 for _ in scans]
    parts = load_parts("folder", "test", export_folder(tmp_path / "corrected", scans, masks))
    read = {scan.name: scan for part in parts.values() for scan in part}
    assert all(parts[part] for part in ("train", "val", "test")) and "T003_scan6" in read
    for scan, mask in zip(scans, masks, strict=True):
        if found := read.get(f"{scan.tube}_{scan.name}"):
            assert found.tube == scan.tube and found.mm_per_px == pytest.approx(scan.mm_per_px, rel=1e-3)
            assert np.array_equal(found.image, scan.image) and np.array_equal(found.mask, mask)
    assert not {s.tube for s in parts["train"]} & {s.tube for s in parts["test"]}
    stated = tmp_path / "stated"
    export_folder(stated, scans[:4], masks[:4], "train")
    export_folder(stated, scans[8:10], masks[8:10], "valid")
    assert len(load_scans("folder", "train", stated)) == 4 and len(load_scans("folder", "valid", stated)) == 2


def test_a_tube_in_front_that_makes_two_names_one_is_refused(tmp_path):
    image, mask = np.zeros((8, 9, 3), np.uint8), np.zeros((8, 9), bool)
    scans = [Scan(image, None, "T001_a", "T001"), Scan(image, None, "a", "T001")]
    with pytest.raises(ValueError, match="two images are called T001_a and T001_a"):
        export_folder(tmp_path / "out", scans, [mask, mask])
    with pytest.raises(ValueError, match="1 scans and 0 masks"):
        export_folder(tmp_path / "out", scans[:1], [])
    assert not list(tmp_path.iterdir())


def test_a_mask_that_was_changed_by_hand_in_an_export_is_kept_and_said(tmp_path):
    scan, mask = Scan(np.zeros((8, 9, 3), np.uint8), None, "T001_a", "T001"), np.zeros((8, 9), bool)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for new in (mask, mask, ~mask):  # its own files are written again
            part = export_folder(tmp_path / "out", [scan], [new], "train")
    by_hand = np.eye(8, 9, dtype=bool)
    write_image(part / "masks" / "T001_a.png", by_hand)
    with pytest.warns(UserWarning, match="T001_a: its mask was not as it was written .*: kept as T001_a-changed-"):
        export_folder(tmp_path / "out", [scan], [mask], "train")
    (aside,) = (part / "masks").glob("*-changed-*")
    assert np.array_equal(read_mask(aside), by_hand)
    with pytest.warns(UserWarning, match="1 masks belong to no image"):
        (read,) = load_scans("folder", "train", tmp_path / "out")
    assert not read.mask.any()


def test_a_model_trains_on_a_corrected_folder(tmp_path):
    scans = [s for s in synthetic_scans("train", 8, seed=3, height=128, width=128) if s.mask.mean() > 0.01][:3]
    learn = load_scans("folder", "all", export_folder(tmp_path / "corrected", scans, [s.mask for s in scans]))
    assert [s.tube for s in learn] == [s.tube for s in scans]
    brief = stage2("nano", epochs=1, patch_size=128, views=1)
    assert len(train_stage(brief, learn[1:], learn[:1], tmp_path / "runs").history) == 1


def test_masks_as_png(tmp_path):
    mask = np.random.default_rng(2).random((9, 7)) > 0.7
    file = write_image(tmp_path / "deep" / "m.png", mask)
    assert set(np.unique(np.asarray(Image.open(file)))) == {0, 255} and np.array_equal(read_mask(file), mask)
