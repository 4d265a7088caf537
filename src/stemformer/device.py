"""What a run computes on: device, precision, compilation, and how fast that is at best."""

import contextlib
import ctypes
import os
from typing import Any

import torch

from stemformer.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """Returns the device of a name; `auto` is CUDA where there is one, else the CPU.

    Raises:
        ConfigError: No such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name!r}: there are {torch.cuda.device_count()} CUDA devices here; use --device cpu")
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """Returns `fp32` or `bf16`; `auto` is bf16 where the device multiplies matrices in it faster than in fp32.

    Raises:
        ConfigError: Not one of the three names.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"precision {name!r}: expected auto, fp32 or bf16")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    abilities = torch.cpu.get_capabilities()
    return "bf16" if abilities.get("amx_bf16") or abilities.get("avx512_bf16") else "fp32"


def choose_compile(wanted: bool | None, device: torch.device) -> bool:
    """Returns whether the blocks are compiled; None does so on CUDA alone."""
    return device.type == "cuda" if wanted is None else wanted


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Returns the context in which forwards run."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def set_threads(number: int | None) -> None:
    """Lets this process compute with so many threads; None leaves PyTorch's choice.

    Raises:
        ConfigError: None at all, or more than any machine has: PyTorch would end the process.
    """
    if number is None:
        return
    if not 1 <= number <= _MOST_THREADS:
        raise ConfigError(
            f"--threads {number}: expected a number from 1 to {_MOST_THREADS}; here are {os.cpu_count()} processors"
        )
    torch.set_num_threads(number)


_MOST_THREADS = 1024


def configure_allocator(device: torch.device) -> None:
    """Lets this process use freed memory again instead of giving large blocks back to the system and asking for them anew.

    By default the C library returns each freed block of megabytes at once; the next one of that size is then filled with zeros by the
    system, page by page, which takes a good part of a small model's step (`docs/benchmarks.md`). The process stays so to its end, and
    holds what its largest step needed. Does nothing where the C library is not glibc, or where the work is done on another device.
    """
    if device.type != "cpu":
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        # Older versions take at most 32 MiB; trimming must not be set where the threshold was refused, since that freezes it at 128 KiB.
        if libc.mallopt(_MMAP_THRESHOLD, 2**31 - 1) or libc.mallopt(_MMAP_THRESHOLD, 2**25):
            libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names and numbers of mallopt(3)
