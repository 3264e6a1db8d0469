"""The feature bank: what the frozen encoder says of augmented views of every patch, computed once.

With a frozen encoder almost all of an epoch would recompute what does not change. The bank holds `views` augmented
views of each patch in memory; prompts are drawn afresh each time, since only the decoder needs them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import albumentations as A
import numpy as np
import torch
from torch import Tensor

from rootsam_lib.augment import augment
from rootsam_lib.losses import signed_distance
from rootsam_lib.progress import progress
from rootsam_lib.sam import Features, RootSAM
from rootsam_lib.scans import Patch


class Batch(NamedTuple):
    """features of B views; masks bool (B, H, W) as NumPy (prompts are drawn from it); names of the patches."""

    features: Features
    masks: np.ndarray
    names: list[str]

    def truth(self, device: torch.device) -> Tensor:
        """The masks as float (B, 1, H, W)."""
        return torch.from_numpy(self.masks).float().unsqueeze(1).to(device)

    def distance(self, device: torch.device) -> Tensor:
        """The masks' signed distance in px, float (B, 1, H, W): taken after augmentation, as it must be."""
        return torch.from_numpy(np.stack([signed_distance(m) for m in self.masks])).unsqueeze(1).to(device)


class FeatureBank:
    """Encoded views of patches, in memory.

    model: gives the frozen encoder. patches: all of one size. pipeline: augmentation, or None for the patches as they
    are. views: how many views of each patch. encode_size: side in px to which patches are resized for the encoder.
    """

    def __init__(
        self,
        model: RootSAM,
        patches: Sequence[Patch],
        pipeline: A.Compose | None = None,
        views: int = 1,
        seed: int = 0,
        encode_size: int | None = None,
        dtype: torch.dtype = torch.bfloat16,
        note: str = "encode",
    ):
        if not patches:
            raise ValueError("there is no patch to encode: check the data's split and limit.")
        self.views = views
        self.names = [patch.name for patch in patches]
        self.entries: list[tuple[tuple[Tensor, ...], np.ndarray]] = []
        self.image_size = patches[0].mask.shape
        for number in progress(range(len(patches) * views), note, "view", leave=False):
            patch, view = patches[number // views], number % views
            image, mask = patch.image, patch.mask
            if pipeline is not None:
                view_seed = int(np.random.SeedSequence([seed, number // views, view]).generate_state(1)[0])
                image, mask = augment(pipeline, image, mask, view_seed)
            features = model.encode(image[None], encode_size)
            # bfloat16 halves the memory; packed bits make the masks negligible.
            self.entries.append((tuple(m[0].to(dtype).cpu() for m in features.maps), np.packbits(mask)))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def gigabytes(self) -> float:
        """Memory that the features take."""
        per_view = sum(m.numel() * m.element_size() for m in self.entries[0][0])
        return per_view * len(self.entries) / 1e9

    def batch(self, patches: Sequence[int], views: Sequence[int], device: torch.device) -> Batch:
        """Put the given view of each given patch together."""
        chosen = [self.entries[p * self.views + v] for p, v in zip(patches, views, strict=True)]
        maps = tuple(torch.stack(level).float().to(device) for level in zip(*(maps for maps, _ in chosen), strict=True))
        height, width = self.image_size
        masks = [np.unpackbits(bits, count=height * width).reshape(height, width).astype(bool) for _, bits in chosen]
        return Batch(Features(maps, self.image_size), np.stack(masks), [self.names[p] for p in patches])
