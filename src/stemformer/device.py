"""Device, number format, threads and memory allocation."""

import contextlib
import ctypes
import os
from typing import Any

import torch

from stemformer.errors import ConfigError

# Texts of exhausted memory in errors that have no class of their own: of PyTorch's allocator on the CPU, of the CUDA
# driver outside PyTorch's allocator, and of cuBLAS for its workspace.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def choose_device(name: str) -> torch.device:
    """Return the device with a name; `auto` is CUDA if available, otherwise the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"Device {name!r} is unknown. Expected auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= (number := torch.cuda.device_count()):
        raise ConfigError(f"Device {name!r} does not exist: this machine has {number} CUDA devices. Use --device cpu.")
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """Return `fp32` or `bf16`; `auto` is bf16 if the device has matrix units for it."""
    if name not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"Precision {name!r} is unknown. Expected auto, fp32 or bf16.")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "fp32"


def choose_compile(wanted: bool | None, device: torch.device) -> bool:
    """Return whether to compile the blocks; by default (None) on CUDA only."""
    return device.type == "cuda" if wanted is None else wanted


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Return the context manager for forward passes."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory of the machine or the device is exhausted."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def set_threads(number: int | None) -> None:
    """Set the number of CPU threads; None leaves PyTorch's choice."""
    if number is None:
        return
    # PyTorch ends the process if the number is very large.
    if not 1 <= number <= 1024:
        machine = f"This machine has {os.cpu_count()} processors."
        raise ConfigError(f"--threads {number}: expected a number from 1 to 1024. {machine}")
    torch.set_num_threads(number)


def configure_allocator(device: torch.device) -> None:
    """Make the C library reuse freed memory instead of returning large blocks to the system.

    By default glibc returns each freed block of megabytes at once; the kernel then zeroes the next
    one page by page, a good part of a small model's step (`docs/benchmarks.md`). Memory use stays
    at that of the largest step. No effect without glibc or on other devices.
    """
    if device.type != "cpu":
        return
    # Constants of mallopt(3).
    trim_threshold, mmap_threshold = -1, -3
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        # Older versions accept at most 32 MiB. If the threshold is refused, do not set trimming:
        # that would freeze the threshold at 128 KiB.
        if libc.mallopt(mmap_threshold, 2**31 - 1) or libc.mallopt(mmap_threshold, 2**25):
            libc.mallopt(trim_threshold, 2**31 - 1)
