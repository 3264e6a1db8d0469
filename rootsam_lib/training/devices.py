"""Where a model runs: its device, accelerate's processes and precision, and the C library's memory on a CPU."""

import ctypes
import platform

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from rootsam_lib.model import pick_device

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


def cpu_computes_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16 (AVX512-BF16; AMX has them too). Elsewhere torch emulates it, and
    a step takes longer than in float32, not less."""
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # since torch 2.6
    return bool(known and known() and torch.backends.mkldnn.is_available())


def build_accelerator(precision: str = "auto") -> Accelerator:
    """accelerate's device, processes and mixed precision; "auto": bf16 or fp16, if computed natively."""
    if precision == "auto":
        precision = "no"
        if torch.cuda.is_available():
            precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        elif pick_device().type == "cpu" and cpu_computes_bf16():
            precision = "bf16"
    # accelerate refuses a second precision in one process, and a notebook may well try another one.
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=precision)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator
