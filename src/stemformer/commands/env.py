"""Describe the environment: versions, processor, GPU."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from stemformer.device import choose_precision

_PACKAGES = ("stemformer", "torch", "tokenizers", "safetensors", "numpy", "datasets")


def env() -> dict[str, Any]:
    """Describe the environment: versions, processor, threads, bf16 units and GPUs.

    `bf16_units` is whether the processor multiplies matrices faster in bf16 than in fp32.
    """
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bf16_units": choose_precision("auto", torch.device("cpu")) == "bf16",
        "gpus": [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus],
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
