"""Augmentation: the families, the same result for the same seed, with and without DataLoader workers."""

import albumentations as A
import numpy as np
import pytest
import torch

import rootsam_lib.data.augment as augment_module
from rootsam_lib.data.augment import augment, augmentation_families, build_augmentation
from rootsam_lib.training.config import stage_pair


def sample(size=64):
    image = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    mask = np.zeros((size, size), bool)
    mask[20:24, 5:60] = True
    return image, mask


class Views(torch.utils.data.Dataset):
    """Augmented views of one patch, one seed an item."""

    def __init__(self):
        self.pipeline = build_augmentation(64)

    def __len__(self):
        return 8

    def __getitem__(self, number):
        image, mask = augment(self.pipeline, *sample(), seed=number)
        return torch.from_numpy(image), torch.from_numpy(mask)


def test_same_with_and_without_workers():
    alone = list(torch.utils.data.DataLoader(Views(), batch_size=4))
    with_workers = list(torch.utils.data.DataLoader(Views(), batch_size=4, num_workers=2))
    for (images, masks), (other_images, other_masks) in zip(alone, with_workers, strict=True):
        assert images.equal(other_images) and masks.equal(other_masks)
    first = torch.cat([images for images, _ in alone])
    assert len({bytes(image.numpy()) for image in first}) == 8  # no view repeats another


def test_transforms_act_independently():
    # Seeding the whole pipeline at once makes all its transforms draw the same numbers: both flips or none.
    pipeline = build_augmentation(8, ("geometric",))
    pipeline.transforms = pipeline.transforms[:2]
    image = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    flips = [image, image[:, ::-1], image[::-1], image[::-1, ::-1]]
    seen = np.zeros(4)
    for seed in range(400):
        seen += [np.array_equal(augment(pipeline, image, image[..., 0] > 9, seed)[0], flip) for flip in flips]
    assert seen.sum() == 400 and seen.min() > 60


def test_seed_decides():
    pipeline = build_augmentation(64)
    first, again, other = (augment(pipeline, *sample(), seed=s)[0] for s in (5, 5, 6))
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize("family", list(augmentation_families(64)))
def test_each_family_does_something_and_keeps_types(family):
    image, mask = sample()
    pipeline = build_augmentation(64, (family,))
    results = [augment(pipeline, image, mask, seed) for seed in range(8)]
    assert any((i != image).any() for i, _ in results)
    assert all(i.shape == image.shape and i.dtype == np.uint8 and m.dtype == bool for i, m in results)
    if family in ("colour jitter", "noise", "occlusion", "tint"):
        assert all((m == mask).all() for _, m in results)  # the root stays annotated, also behind a hole
    else:
        assert any((m != mask).any() for _, m in results)


def test_tint_dims_whole_channels_or_makes_grey():
    image, mask = sample()
    pipeline = build_augmentation(64, ("tint",))
    views = [augment(pipeline, image, mask, seed)[0] for seed in range(40)]
    grey = [view for view in views if (view == view[..., :1]).all()]
    assert 2 < len(grey) < 20
    changed = next(v for v in views if (v != image).any() and (v != v[..., :1]).any())
    gains = [np.median(changed[..., c][image[..., c] > 50] / image[..., c][image[..., c] > 50]) for c in range(3)]
    expected = np.clip(image * np.array(gains), 0, 255)  # one gain for all of a channel, and another one for the next
    assert np.abs(changed - expected).max() < 3 and np.ptp(gains) > 0.05


def test_families_are_named_in_one_text():
    assert stage_pair(families="")[0].families is None
    assert stage_pair(families="colour jitter, tint")[1].families == ("colour jitter", "tint")
    with pytest.raises(ValueError, match="'blur' is unknown"):
        stage_pair(families="blur")


def test_unknown_family_is_refused():
    with pytest.raises(ValueError, match="choose from geometric"):
        build_augmentation(64, ("blur",))


def test_arguments_are_strict(monkeypatch):
    # An argument that the installed albumentations does not know would only warn, and leave the family at its defaults.
    monkeypatch.setattr(
        augment_module, "augmentation_families", lambda size: {"noise": [A.GaussNoise(var_limit=(1, 2))]}
    )
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="var_limit"):
        build_augmentation(64, ("noise",))
