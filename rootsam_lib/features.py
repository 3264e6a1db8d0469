"""The feature bank: what the frozen encoder says of augmented views of every patch, computed once.

With a frozen encoder almost all of an epoch would recompute what does not change. The bank holds `views` augmented
views of each patch in memory; prompts are drawn afresh each time, since only the decoder needs them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import albumentations as A
import numpy as np
import psutil
import torch
from torch import Tensor

from rootsam_lib.augment import augment
from rootsam_lib.losses import signed_distance
from rootsam_lib.progress import progress
from rootsam_lib.sam import Features, RootSAM
from rootsam_lib.scans import Patch

VIEW_STREAM = 1  # tells this use of a seed from others, so that no two draw the same numbers


class Batch(NamedTuple):
    """features of B views; masks bool (B, H, W) as NumPy, for prompts are drawn from them; names of the patches; sizes
    (h, w) of the part of each that shows the scan: the rest is mirrored, where a scan is smaller than the patch."""

    features: Features
    masks: np.ndarray
    names: list[str]
    sizes: list[tuple[int, int]]

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
    dtype: how features are kept; bfloat16 halves the memory, float32 keeps them as the encoder gave them.
    Raises MemoryError, before the work is done, when the views would take more than 70 % of the free memory.
    """

    def __init__(
        self,
        model: RootSAM,
        patches: Sequence[Patch],
        pipeline: A.Compose | None = None,
        views: int = 1,
        seed: int = 0,
        encode_size: int | None = None,
        dtype: torch.dtype = torch.float32,
        note: str = "encode",
    ):
        if not patches:
            raise ValueError("there is no patch to encode: check the data's split and limit.")
        self.views = views
        self.names = [patch.name for patch in patches]
        height, width = patches[0].mask.shape
        self.sizes = [(height - patch.padding[0], width - patch.padding[1]) for patch in patches]
        self.entries: list[tuple[tuple[Tensor, ...], np.ndarray]] = []
        self.image_size = patches[0].mask.shape
        for number in progress(range(len(patches) * views), note, "view", leave=False):
            patch, view = patches[number // views], number % views
            image, mask = patch.image, patch.mask
            if pipeline is not None:
                view_seed = int(np.random.SeedSequence([VIEW_STREAM, seed, number // views, view]).generate_state(1)[0])
                image, mask = augment(pipeline, image, mask, view_seed)
            features = model.encode(image[None], encode_size)
            # Packed bits make the masks negligible.
            self.entries.append((tuple(m[0].to(dtype).cpu() for m in features.maps), np.packbits(mask)))
            if number == 0:
                self._check_memory(len(patches) * views)

    def __len__(self) -> int:
        return len(self.names)

    def _check_memory(self, count: int) -> None:
        wanted = count * sum(m.numel() * m.element_size() for m in self.entries[0][0]) / 1e9
        free = psutil.virtual_memory().available / 1e9
        if wanted > 0.7 * free:
            room = f"{count} encoded views take {wanted:.1f} GB and {free:.1f} GB are free"
            raise MemoryError(f"{room}: lower VIEWS, LIMIT or ENCODE_SIZE.")

    def batch(self, patches: Sequence[int], views: Sequence[int], device: torch.device) -> Batch:
        """Put the given view of each given patch together."""
        chosen = [self.entries[p * self.views + v] for p, v in zip(patches, views, strict=True)]
        maps = tuple(torch.stack(level).float().to(device) for level in zip(*(maps for maps, _ in chosen), strict=True))
        height, width = self.image_size
        masks = [np.unpackbits(bits, count=height * width).reshape(height, width).astype(bool) for _, bits in chosen]
        names, sizes = [self.names[p] for p in patches], [self.sizes[p] for p in patches]
        return Batch(Features(maps, self.image_size), np.stack(masks), names, sizes)
