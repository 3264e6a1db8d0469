"""Drawn concrete with cracks: thin dark structures that are no roots, for the lesson on your own images."""

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from rootsam_lib import checked
from rootsam_lib.data.scans import Scan
from rootsam_lib.results import write_image


def _crack(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A crack's path, int (N, 2) as (x, y) in eighths of a px, and its width along it, int (N,) px."""
    steps = int(rng.integers(size // 4, size // 2))
    bends = gaussian_filter1d(rng.normal(0, 0.9, steps), 2) + gaussian_filter1d(rng.normal(0, 2.5, steps), 25)
    heading = rng.uniform(0, 2 * np.pi) + bends
    path = rng.uniform(0.1, 0.9, 2) * size + np.cumsum(3 * np.stack([np.cos(heading), np.sin(heading)], 1), axis=0)
    width = rng.uniform(1.5, 3.5) * np.linspace(1, 0.4, steps)
    return np.round(8 * path).astype(int), np.maximum(1, width.round()).astype(int)


def crack_images(count: int, rng: np.random.Generator, size: int = 512) -> list[Scan]:
    """Draw `count` images of size x size px: grey concrete with stains, pores and dark cracks; their masks are exact.

    Photographs of cracks seldom have a resolution: mm_per_px is None, and lengths will be in pixels.
    Raises ValueError for a count below 0, or a size below 32.
    """
    count, size = checked("count", count, 0, whole=True), checked("size", size, 32, whole=True)
    images = []
    for number in range(count):
        grains = ((0.7, 12), (3, 16), (40, 60))  # px, and how much they differ
        noise = sum(s * a * gaussian_filter(rng.normal(size=(size, size)), s) for s, a in grains)
        grey = rng.uniform(120, 190) + noise
        for x, y in rng.uniform(0, size, (int(rng.integers(5, 25)), 2)).astype(int):  # pores: dark, but round
            cv2.circle(grey, (int(x), int(y)), int(rng.integers(1, 6)), float(rng.uniform(50, 100)), -1)
        mask = np.zeros((size, size), np.uint8)
        for path, width in (_crack(rng, size) for _ in range(rng.integers(2, 5))):
            for start, end, thick in zip(path[:-1].tolist(), path[1:].tolist(), width.tolist(), strict=False):
                cv2.line(mask, start, end, 1, thick, cv2.LINE_8, shift=3)
        dark = np.clip(rng.uniform(35, 70) + 6 * noise / noise.std(), 15, None)
        image = np.clip(grey - dark * gaussian_filter(mask.astype(float), 0.7), 0, 255).astype(np.uint8)
        images.append(Scan(np.repeat(image[..., None], 3, axis=2), mask > 0, f"wall{number:02d}", f"wall{number:02d}"))
    return images


def write_pairs(folder: Path, scans: Iterable[Scan]) -> Path:
    """Write images and their masks as anyone's would lie on a disk, images/X.png and masks/X.png; return the folder."""
    for scan in scans:
        write_image(folder / "images" / f"{scan.name}.png", scan.image)
        write_image(folder / "masks" / f"{scan.name}.png", np.uint8(255) * scan.mask)
    return folder
