"""The five augmentation families of the poster: geometric, colour jitter, noise, elastic, occlusion; and tint.

albumentations ignores the global seeds, and its DataLoader workers repeat each other's draws. So every call names its
own seed: the result depends on the seed alone, with or without workers.
"""

import albumentations as A
import cv2
import numpy as np

REFLECT = cv2.BORDER_REFLECT_101
POSTER = ("geometric", "colour jitter", "noise", "elastic", "occlusion")


def augmentation_families(size: int) -> dict[str, list[A.BasicTransform]]:
    """The transforms of each family for patches of size x size px.

    Displacements and holes are given as shares of the patch, so both stages see the same strength. Bending and resizing
    are rare and mild, for they blur roots of three pixels and jitter the edges of their masks.
    """
    hole = (1 / 16, 1 / 6)
    return {
        "geometric": [
            A.HorizontalFlip(p=0.5),
            A.VerticalFlip(p=0.5),
            A.RandomRotate90(p=0.75),
            A.Affine(scale=(0.9, 1.1), translate_percent=(-0.1, 0.1), rotate=(-15, 15), shear=(-4, 4),
                     mask_interpolation=cv2.INTER_LINEAR, border_mode=REFLECT, p=0.3),
        ],
        "colour jitter": [A.ColorJitter((0.8, 1.2), (0.8, 1.2), (0.8, 1.2), (-0.03, 0.03), p=0.5)],
        "noise": [A.GaussNoise(std_range=(0.01, 0.04), p=0.3)],
        "elastic": [A.ElasticTransform(alpha=size / 4, sigma=max(size / 50, 1), mask_interpolation=cv2.INTER_LINEAR,
                                       border_mode=REFLECT, p=0.1)],
        # fill_mask=None keeps the root in the mask: the model should trace it behind what hides it.
        "occlusion": [A.CoarseDropout((1, 4), hole, hole, fill="random_uniform", fill_mask=None, p=0.2)],
        # Not the poster's: other cameras and lights. Each channel is dimmed or lit by itself, or all become grey.
        "tint": [A.MultiplicativeNoise((0.6, 1.4), per_channel=True, elementwise=False, p=0.5), A.ToGray(p=0.2)],
    }  # fmt: skip


def build_augmentation(size: int, families: tuple[str, ...] | None = None) -> A.Compose:
    """One pipeline of the named families (None: the poster's five) for patches of size x size px.

    Raises ValueError for an unknown family.
    """
    available = augmentation_families(size)
    families = POSTER if families is None else families
    for family in families:
        if family not in available:
            raise ValueError(f"augmentation family {family!r} is unknown: choose from {', '.join(available)}.")
    return A.Compose([t for family in families for t in available[family]], strict=True)


def augment(pipeline: A.Compose, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Augment one patch: image uint8 (H, W, 3), mask bool (H, W); the same seed gives the same result everywhere."""
    # Compose.set_random_seed would give every transform the same seed: all would draw the same number and act together.
    for transform, own in zip(pipeline.transforms, np.random.SeedSequence(seed).generate_state(99), strict=False):
        transform.set_random_seed(int(own))
    result = pipeline(image=image, mask=mask.astype(np.uint8))
    return result["image"], result["mask"].astype(bool)
