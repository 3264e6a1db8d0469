"""Where a model runs and its features are kept: device, accelerate's processes and precision, memory and disk; and what
is prepared while it runs."""

import ctypes
import os
import platform
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import NamedTuple, TypeVar

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from rootsam_lib import checked
from rootsam_lib.model import half_precision

_Item = TypeVar("_Item")
MOST_THREADS = 8  # each has a step's features at hand
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # mallopt's options, from glibc's malloc.h


def keep_freed_memory() -> None:
    """Tell the C library to keep the memory of freed tensors for the next ones, where it is glibc's (Linux).

    By default it hands every large block back to the system, and asks for it page by page in the next step: up to a
    third of a step's time at 1024 px on a CPU.
    """
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**28)):
            libc.mallopt(option, value)


def launched(name: str) -> int:
    """How many processes a launcher says that it started. Raises ValueError where that is no number."""
    text = os.environ.get(name) or "1"
    return checked(f"the environment variable {name}", int(text) if text.isdecimal() else text, 1, whole=True)


def build_accelerator(precision: str = "auto") -> Accelerator:
    """accelerate's device, processes and mixed precision; "auto": that of `model.half_precision`, so none without CUDA,
    and a training gives the same numbers on every CPU."""
    if precision == "auto":
        precision = {None: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}[half_precision()]
    # accelerate refuses a second precision in one process, and a notebook may well try another one.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    # Without being told so, accelerate takes each process that torchrun starts on a CPU for the only one.
    on_cpus = launched("WORLD_SIZE") > 1 and not torch.cuda.is_available()
    accelerator = Accelerator(mixed_precision=precision, cpu=on_cpus)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator


def preparing_threads(device: torch.device) -> int:
    """How many threads draw views and prepare steps while a GPU computes; a CPU has nothing to spare for more than one.

    Distance maps, of which a step needs dozens, are made by OpenCV, which lets other threads run meanwhile.
    """
    return max(1, min(MOST_THREADS, (os.cpu_count() or 1) - 1)) if device.type == "cuda" else 1


# --- Where features are kept

GPU_SHARE, RAM_SHARE = 0.4, 0.5  # of what is free, for features: training needs the rest


class Room(NamedTuple):
    """What was measured before features are kept: free bytes on the GPU (0: there is none), in RAM and on the disk
    (None: no file is wanted), and for a GPU also bytes a second that the disk gives and seconds to encode a view."""

    gpu: int
    ram: int
    disk: int | None
    disk_rate: float = 0.0
    encode_seconds: float = 0.0


def choose_place(view_bytes: int, views: int, room: Room, live: bool | None = None) -> tuple[str, str]:
    """Where features of so many views of `view_bytes` each are kept, and why, in a sentence.

    "gpu", else "pinned" (RAM that a GPU reads by itself), where they fit; else "disk" or "live" (encoded whenever they
    are asked for), whichever is faster. Without a GPU the encoder never is: "disk", which the system keeps in RAM as
    far as it fits, or "memory" where no file is wanted. live: as it was decided when a training began.
    """
    need = view_bytes * views
    size, read = f"{need / 1e9:.2g} GB of features", view_bytes / (room.disk_rate or float("inf"))
    if live:
        return "live", "as when this training began"
    if not room.gpu:
        return "memory" if room.disk is None else "disk", f"{size}, no GPU"
    if need <= GPU_SHARE * room.gpu:
        return "gpu", f"{size} fit into the GPU's memory ({room.gpu / 1e9:.3g} GB are free)"
    if need <= RAM_SHARE * room.ram:
        return "pinned", f"{size} fit into RAM ({room.ram / 1e9:.3g} GB are free)"
    times = f"a view is read in {1e3 * read:.0f} ms and encoded in {1e3 * room.encode_seconds:.0f} ms"
    if live is not False and need > (room.disk or 0):
        return "live", f"{size} fit nowhere ({(room.disk or 0) / 1e9:.3g} GB of disk are free)"
    if live is None and room.encode_seconds < read:
        return "live", f"{size} do not fit into RAM, and {times}"
    return "disk", f"{size} do not fit into RAM, and {times}"


def measure_room(device: torch.device, folder: Path | None, encode: Callable[[], float]) -> Room:
    """What `choose_place` asks for. folder: where files would be, None for none. encode: gives seconds to encode a
    view."""
    ram, disk = psutil.virtual_memory().available, None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        disk = shutil.disk_usage(folder).free
    if device.type != "cuda":
        return Room(0, ram, disk)
    return Room(torch.cuda.mem_get_info(device)[0], ram, disk, read_rate(folder) if disk else 0.0, encode())


def read_rate(folder: Path, size: int = 2**26) -> float:
    """Bytes a second that the disk gives of a new file (Linux: one that the system no longer holds in RAM)."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(os.urandom(size))
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        started = time.perf_counter()
        file.read()
        return size / (time.perf_counter() - started)


def scratch(run: Path) -> Path:
    """Where a run's feature bank lies: in its folder, or below ROOTSAM_SCRATCH, so that a ROOTSAM_HOME on a slow or
    small disk, such as a mounted Drive, keeps only what matters."""
    below = os.environ.get("ROOTSAM_SCRATCH")
    return (Path(below) / "rootsam" / run.parent.name / run.name if below else run) / "bank"


# --- Work ahead of the device


def ahead(items: Iterable[_Item], start: Callable[[_Item], Future], number: int = 1) -> Iterator[tuple[_Item, Future]]:
    """Items with what was started for each, in order; up to `number` later ones are started before one is handed out,
    so that they are worked on while the caller uses it."""
    waiting: deque[tuple[_Item, Future]] = deque()
    for item in items:
        waiting.append((item, start(item)))
        if len(waiting) > number:
            yield waiting.popleft()
    yield from waiting


class InPlace(Executor):
    """An executor of `concurrent.futures` that works in the caller's own thread, at once."""

    def submit(self, work: Callable, /, *arguments: object, **named: object) -> Future:
        """The outcome of a call, or its exception; an interruption goes through."""
        future = Future()
        try:
            future.set_result(work(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future
