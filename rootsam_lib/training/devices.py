"""Where a model runs: its device, accelerate's processes and precision, and the C library's memory on a CPU."""

import ctypes
import platform

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

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


def build_accelerator(precision: str = "auto") -> Accelerator:
    """accelerate's device, processes and mixed precision; "auto" is bf16 or fp16 by what a GPU computes natively."""
    if precision == "auto":
        precision = "no"
        if torch.cuda.is_available():
            precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # accelerate refuses a second precision in one process, and a notebook may well try another one.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=precision)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator
