"""The feature bank: the frozen encoder's output for augmented views of every patch, computed once and kept.

With a frozen encoder almost all of an epoch would recompute what does not change. The bank keeps `views` augmented
views of each patch, and every epoch encodes a share of them anew, so that augmentation never stands still. Prompts are
drawn afresh each time, since only the decoder needs them.

What a place in the bank holds depends on seed, patch, view and generation alone. So a bank that was left half filled,
by an interruption or a kill, goes on where it stood, and ends as if nothing had happened; and whether features are kept
on a GPU, in RAM, on a disk or not at all changes the speed, not what a place holds.
"""

import copy
import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import albumentations as A
import numpy as np
import psutil
import torch
from torch import Tensor

from rootsam_lib.checkpoints import weights_hash
from rootsam_lib.data.augment import augment
from rootsam_lib.data.scans import Patch
from rootsam_lib.model import Features, RootSAM, encoder_size, images_at_once
from rootsam_lib.results import progress, provenance, shown, write_json
from rootsam_lib.training.devices import ahead, choose_place, measure_room, preparing_threads

VIEW_STREAM, ORDER_STREAM = 1, 4  # tell uses of a seed apart, so that no two draw the same numbers


class Batch(NamedTuple):
    """B views, for prompts to be drawn from and losses to be computed on.

    features; masks bool (B, H, W) as NumPy; names of the patches; sizes (h, w) of the part of each that shows the scan:
    the rest is mirrored, where a scan is smaller than the patch.
    """

    features: Features
    masks: np.ndarray
    names: list[str]
    sizes: list[tuple[int, int]]


class FeatureBank:
    """Encoded views of patches, in a GPU's memory, in RAM or in memory-mapped files.

    model: gives the frozen encoder; if its decoder has a detail path, the views' images are kept as well, for the path.
    patches: all of one size. pipeline: augmentation, or None for the patches as they are. views: how many views of each
    patch. refresh: the share of all views that every epoch encodes anew. input_scale: how much patches are enlarged for
    the encoder. dtype: how features are kept; bfloat16 halves the room, float32 keeps them as the encoder gave them.
    folder: where the files are, several processes may share them; the system keeps them in memory as far as they fit.
    None: in this process's memory.
    most_gb: the most room that the bank may take; None: half of the free memory. Where it is short, fewer views are
    kept, and where not even one of each patch fits, the others are encoded each time they are asked for: with
    most_gb=0 all of them, which is the usual training loop.
    place: where views are kept, see `devices.choose_place`, which chooses when None: with a GPU the folder is only one
    of the places. live: as was chosen when the training began.
    Files of other weights, patches or settings, and damaged ones, are said to be so and made anew.
    Raises ValueError for no patch at all, OSError when the disk has less room than most_gb asks for.
    """

    def __init__(
        self,
        model: RootSAM,
        patches: Sequence[Patch],
        pipeline: A.Compose | None = None,
        views: int = 1,
        seed: int = 0,
        input_scale: float = 1.0,
        dtype: torch.dtype = torch.float32,
        desc: str = "encode",
        folder: Path | None = None,
        most_gb: float | None = None,
        refresh: float = 0.0,
        place: str | None = None,
        live: bool | None = None,
    ):
        if not patches:
            raise ValueError("there is no patch to encode: check the data's split and limit.")
        self.model, self.patches, self.pipeline = model, list(patches), pipeline
        self.seed, self.input_scale, self.desc, self.refresh = seed, input_scale, desc, refresh
        self.names = [patch.name for patch in patches]
        self.image_size = height, width = patches[0].mask.shape
        self.encoder_size = encoder_size(height, input_scale)
        self.sizes = [(height - patch.padding[0], width - patch.padding[1]) for patch in patches]
        self.at_once = images_at_once(self.encoder_size or height, model.device)
        self.dtype = dtype
        maps = next(self._encode([patches[0].image]))
        layout = {f"map{i}": (tuple(m.shape), dtype) for i, m in enumerate(maps)}
        layout["mask"] = (-(-height * width // 8),), torch.uint8
        if model.sam.sam_mask_decoder.detail is not None:
            layout["image"] = (height, width, 3), torch.uint8
        self.parts = list(layout)
        self.view_bytes = sum(int(np.prod(shape)) * kind.itemsize for shape, kind in layout.values())
        gigabytes = 0.5 * psutil.virtual_memory().available / 1e9 if most_gb is None else most_gb
        room = int(gigabytes * 1e9 // self.view_bytes)
        self.views = max(1, min(views, room // len(patches)))
        self.kept = min(len(patches) * self.views, room)
        if place is None and self.kept:
            folder_above = None if folder is None else Path(folder).parent
            free = measure_room(model.device, folder_above, self._seconds_a_view)
            place, why = choose_place(self.view_bytes, self.kept, free, live)
            if free.gpu:
                where = {"gpu": "on the GPU", "pinned": "in RAM", "disk": "on the disk", "live": "nowhere"}
                print(f"{desc}: features are kept {where[place]}: {why}.")
        self.place = place or "memory"
        if self.place == "live":  # what takes no room need not be reduced
            self.views, self.kept = views, len(patches) * views
        elif gigabytes and (self.views < views or self.kept < len(patches)):
            rest = f"{self.views} of each patch." if self.kept >= len(patches) else "the others are encoded each time."
            print(f"{desc}: {self.kept} views of {self.view_bytes / 1e6:.1f} MB fit into {gigabytes:.3g} GB; {rest}")
        order = np.random.default_rng([ORDER_STREAM, seed]).permutation(len(patches) * self.views)
        self.turn = order / len(order)  # when in a round of refreshing each view has its turn, 0 to 1
        self.epoch = 0
        self.checked = np.zeros(self.kept, bool)  # views that this process has written, or read and found whole
        layout |= {"generation": ((), torch.int32)}
        if self.place == "disk":
            self.store = self._open(Path(folder), layout | {"checksum": ((), torch.int64)})
        else:
            self.store = {} if self.place == "live" else self._allocate(layout, None)
        if self.place not in ("disk", "live"):
            self.store["generation"].fill_(-1)
        if pipeline is None:
            self.fill(0)

    def __len__(self) -> int:
        return len(self.names)

    def fill(self, epoch: int, rank: int = 0, processes: int = 1) -> int:
        """Encode what the bank lacks for an epoch, this process's part of it; return how many views that were."""
        self.epoch = epoch
        if self.place == "live":
            return 0
        wanted = self._generations(epoch)[: self.kept]
        mine = np.arange(self.kept) % processes == rank  # by number: other processes fill theirs at the same time
        there = self.store["generation"].numpy() == wanted
        if self.place == "disk":
            damaged = [s for s in np.flatnonzero(mine & there & ~self.checked) if self._checksum(s) != self._noted(s)]
            if damaged:
                print(f"{self.desc}: {len(damaged)} views on the disk are damaged and made anew.")
            there[damaged] = False
        self.checked |= there
        stale = np.flatnonzero(mine & ~there)
        parts = [stale[start : start + self.at_once] for start in range(0, len(stale), self.at_once)]
        threads = preparing_threads(self.model.device)
        with (
            ThreadPoolExecutor(threads) as pool,
            progress(None, self.desc, "view", total=len(stale), leave=False) as bar,
        ):  # views are drawn while those before are encoded
            for slots, drawn in ahead(parts, lambda slots: pool.submit(self._drawn, slots, wanted), threads):
                images, masks = zip(*drawn.result(), strict=True)
                for slot, image, mask, maps in zip(slots, images, masks, self._encode(images), strict=True):
                    self._keep(slot, image, mask, maps, int(wanted[slot]))
                    bar.update()
        return len(stale)

    def _keep(self, slot: int, image: np.ndarray, mask: np.ndarray, maps: Sequence[Tensor], generation: int) -> None:
        # A kill may come at any moment: the view counts as missing until all of it is there.
        self.store["generation"][slot] = -1
        for i, level in enumerate(maps):
            self.store[f"map{i}"][slot] = level.to(self.dtype)
        self.store["mask"][slot] = torch.from_numpy(np.packbits(mask))
        if "image" in self.parts:
            self.store["image"][slot] = torch.from_numpy(image)
        if self.place == "disk":
            self.store["checksum"][slot] = self._checksum(slot)
        self.store["generation"][slot] = generation
        self.checked[slot] = True

    def batch(self, patches: Sequence[int], views: Sequence[int], device: torch.device) -> Batch:
        """Put the given view of each given patch together, as of the epoch that `fill` was last called for.

        Raises RuntimeError for a view that was not filled for it.
        """
        wanted = self._generations(self.epoch)
        slots = np.asarray(patches) * self.views + np.asarray(views)
        stored = slots < (0 if self.place == "live" else self.kept)
        there, absent = slots[stored], slots[~stored]
        levels, images, masks = [], [], []
        if there.size:
            for slot in there:
                if int(self.store["generation"][slot]) != wanted[slot]:
                    patch, view = divmod(int(slot), self.views)
                    raise RuntimeError(f"view {view} of patch {patch} is not in the bank yet: call fill({self.epoch}).")
                bits = np.unpackbits(self.store["mask"][slot].numpy(), count=self.image_size[0] * self.image_size[1])
                masks.append(bits.reshape(self.image_size).view(bool))
            levels.append([self._gather(f"map{i}", there, device).float() for i in range(4)])
            images += [self._gather("image", there, device)] if "image" in self.parts else []
        if absent.size:
            drawn, new = zip(*self._drawn(absent, wanted), strict=True)
            made = [torch.stack(level) for level in zip(*self._encode(drawn), strict=True)]
            # A view of the bank's schedule is as the bank would give it back.
            levels.append([(x.to(self.dtype) if self.place == "live" else x).to(device).float() for x in made])
            images += [torch.from_numpy(np.stack(drawn)).to(device)] if "image" in self.parts else []
            masks += new
        back = np.argsort(np.concatenate([np.flatnonzero(stored), np.flatnonzero(~stored)]))

        def joined(parts: Sequence[Tensor]) -> Tensor:
            return parts[0] if len(parts) == 1 else torch.cat(parts)[back]

        seen = self.model.pixels(joined(images), self.encoder_size).to(device) if images else None
        names, sizes = [self.names[p] for p in patches], [self.sizes[p] for p in patches]
        features = Features(tuple(map(joined, zip(*levels, strict=True))), self.image_size, seen)
        return Batch(features, np.stack([masks[row] for row in back]), names, sizes)

    def _gather(self, part: str, slots: np.ndarray, device: torch.device) -> Tensor:
        """A part of some views, on a device; from pinned memory without waiting for it."""
        store = self.store[part]
        if store.device.type == device.type:
            return store[slots].to(device)
        gathered = torch.empty((len(slots), *store.shape[1:]), dtype=store.dtype, device=device)
        for row, slot in zip(gathered, slots, strict=True):
            row.copy_(store[slot], non_blocking=True)
        return gathered

    def batches(self, size: int = 1) -> Iterator[Batch]:
        """View 0 of every patch in order, `size` patches at a time, on the model's device."""
        for start in range(0, len(self), size):
            patches = range(start, min(start + size, len(self)))
            yield self.batch(patches, [0] * len(patches), self.model.device)

    def _encode(self, images: Sequence[np.ndarray]) -> Iterator[tuple[Tensor, ...]]:
        """The trunk's maps of each image, (C, h, w), encoded `at_once` together; a last batch is filled up, so that
        features do not depend on how many images they were encoded with."""
        for start in range(0, len(images), self.at_once):
            part = list(images[start : start + self.at_once])
            filled = part + part[:1] * (self.at_once - len(part))
            maps = self.model.encode(np.stack(filled), self.encoder_size).maps
            yield from ([*zip(*maps, strict=True)][: len(part)])

    def _seconds_a_view(self) -> float:
        """What encoding a view takes, the second time."""
        for _ in range(2):
            started = time.perf_counter()
            for maps in self._encode([self.patches[0].image] * self.at_once):
                maps[-1].sum().item()  # waits for the device
        return (time.perf_counter() - started) / self.at_once

    def _checksum(self, slot: int) -> int:
        """CRC-32 of all that a view's place holds."""
        code = 0
        for part in self.parts:
            code = zlib.crc32(self.store[part][slot].view(torch.uint8).numpy(), code)
        return code

    def _noted(self, slot: int) -> int:
        return int(self.store["checksum"][slot])

    def _generations(self, epoch: int) -> np.ndarray:
        """Which drawing of each view an epoch sees: kept ones change in turn, all others every epoch."""
        if self.pipeline is None:
            return np.zeros(len(self.turn), np.int64)
        # In whole thousandths: a sum of floats could pass a view's turn in one run and not in another.
        wanted = (np.floor(1000 * self.turn).astype(np.int64) + round(1000 * self.refresh) * epoch) // 1000
        wanted[self.kept :] = epoch
        return wanted

    def _drawn(self, slots: np.ndarray, wanted: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """The views of some slots: image and mask."""
        # Transforms hold the state of their draws: each of several threads needs its own.
        pipeline = self.pipeline if preparing_threads(self.model.device) == 1 else copy.deepcopy(self.pipeline)
        views = []
        for patch, view, generation in zip(*np.divmod(slots, self.views), wanted[slots], strict=True):
            image, mask = self.patches[patch].image, self.patches[patch].mask
            if pipeline is not None:
                own = [VIEW_STREAM, self.seed, int(patch), int(view), int(generation)]
                image, mask = augment(pipeline, image, mask, int(np.random.SeedSequence(own).generate_state(1)[0]))
            views.append((image, mask))
        return views

    def _key(self, layout: dict) -> str:
        """A digest of all that decides what the bank holds."""
        seen = hashlib.sha256(weights_hash(self.model.sam.image_encoder.trunk).encode())
        for patch in self.patches:
            seen.update(f"{zlib.crc32(np.ascontiguousarray(patch.image))} {zlib.crc32(patch.mask.tobytes())}".encode())
        pipeline = A.to_dict(self.pipeline) if self.pipeline is not None else None
        settings = [pipeline, self.views, self.kept, self.seed, self.input_scale, self.image_size, str(layout)]
        seen.update(json.dumps([settings, provenance()["versions"]], sort_keys=True, default=str).encode())
        return seen.hexdigest()

    def _allocate(self, layout: dict, folder: Path | None) -> dict[str, Tensor]:
        """One tensor for each part, all views along its first axis."""
        store = {}
        for part, (shape, kind) in layout.items():
            shape = (self.kept, *shape)
            if folder is None or not self.kept:
                seen = part.startswith(("map", "image"))  # by the model; the rest by this class
                device = self.model.device if seen and self.place == "gpu" else "cpu"
                pinned = seen and self.place == "pinned" and torch.cuda.is_available()
                store[part] = torch.empty(shape, dtype=kind, device=device, pin_memory=pinned)
            else:
                count = int(np.prod(shape))
                reserve(folder / f"{part}.bin", count * kind.itemsize)
                flat = torch.from_file(str(folder / f"{part}.bin"), shared=True, size=count, dtype=kind)
                store[part] = flat.view(shape)
        return store

    def _open(self, folder: Path, layout: dict) -> dict[str, Tensor]:
        """The bank in a folder: the one that is there if it is this one, else a new one."""
        key = self._key(layout)
        sizes = {f"{part}.bin": self.kept * int(np.prod(s)) * kind.itemsize for part, (s, kind) in layout.items()}
        if fault := bank_fault(folder, key, sizes):
            if folder.exists():
                print(f"The feature bank in {shown(folder)} {fault}: it is made anew.")
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
            if sum(sizes.values()) > (free := shutil.disk_usage(folder).free):
                wanted = f"the feature bank takes {sum(sizes.values()) / 1e9:.1f} GB and {free / 1e9:.1f} GB are free"
                raise OSError(f"{wanted} where {shown(folder)} is: lower BANK_GB or VIEWS, or make room.")
            store = self._allocate(layout, folder)
            store["generation"].fill_(-1)
            write_json(folder / "bank.json", {"key": key, "sizes": sizes})
            return store
        return self._allocate(layout, folder)


def bank_fault(folder: Path, key: str, sizes: dict[str, int]) -> str:
    """What is wrong with the bank in a folder, "" when nothing is. sizes: bytes of each of its files."""
    try:
        about = json.loads((folder / "bank.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "has no readable description"
    if not isinstance(about, dict) or about.get("key") != key:
        return "is of other weights, scans or settings"
    for name, size in sizes.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if found != size:
            return f"is truncated ({name} has {found:,} of {size:,} bytes)"
    return ""


def reserve(path: Path, size: int) -> None:
    """Give a file its room on the disk now: writing to a mapped file on a full disk would end the process (SIGBUS)."""
    with open(path, "ab") as file:
        if file.tell() < size and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise OSError(f"no room for the feature bank at {shown(path)} ({error}): lower BANK_GB.") from error
