"""What the lessons show beside scans: two real crops, kept as they were published, and drawn cracks."""

import hashlib

import numpy as np
import pytest

from rootsam_lib import CHECKOUT
from rootsam_lib.data.folders import read_folder
from rootsam_lib.lessons.cracks import crack_images

REAL = CHECKOUT / "data" / "real"
PUBLISHED = {
    "PD_T088_L004_13.11.18_091057_015_SS_crop.tiff": "404abc73ee3d5678f3f9be8c85e1faebaea1a686154a3f7ac77688126a1b9f0d",
    "PD_T088_L004_17.10.18_140056_014_SS_crop.tiff": "ee7b5900b70a8da2f49ac2916d7a33b490fedcc3e7a2e6bce23c8dcdcac1dc1c",
}


def test_the_real_crops_are_as_published_and_carry_their_licence():
    for name, known in PUBLISHED.items():
        assert hashlib.sha256((REAL / name).read_bytes()).hexdigest() == known
    licence = (REAL / "LICENSE").read_text()
    assert licence.startswith("MIT License") and "alexander-g" in licence
    assert "alexander-g" in (CHECKOUT / "data" / "README.md").read_text()


def test_the_real_crops_have_dates_and_neither_masks_nor_a_resolution():
    said = []
    scans = sorted(read_folder(REAL, need_masks=False, say=said.append), key=lambda scan: scan.date)
    assert [scan.date for scan in scans] == ["2018-10-17", "2018-11-13"] and {scan.tube for scan in scans} == {"T088"}
    assert all(scan.mask is None and scan.mm_per_px is None for scan in scans)
    assert any("no resolution" in sentence for sentence in said)


def test_cracks_are_thin_dark_and_the_same_for_a_seed():
    images, again = (crack_images(3, np.random.default_rng(5), 256) for _ in range(2))
    for one, other in zip(images, again, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        assert 0.002 < one.mask.mean() < 0.05 and one.mm_per_px is None
        assert one.image[one.mask].mean() < one.image[~one.mask].mean() - 15
    assert crack_images(1, np.random.default_rng(6), 256)[0].mask.sum() != images[0].mask.sum()
    with pytest.raises(ValueError, match="size is -1: give a whole number, 32 or more"):
        crack_images(1, np.random.default_rng(0), -1)
