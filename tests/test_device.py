import contextlib
import platform
import subprocess
import sys

import pytest
import torch

from stemformer.device import autocast, choose_compile, choose_device, choose_precision, is_out_of_memory
from stemformer.errors import ConfigError

CPU = torch.device("cpu")


def test_auto_device_is_what_the_machine_has():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_named_device_is_taken():
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("name", ["gpu", "meta", "mps", "cpu:x", ""])
def test_unknown_device_is_refused(name):
    with pytest.raises(ConfigError, match="Expected auto, cpu, cuda or cuda:N"):
        choose_device(name)


def test_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        ConfigError, match=r"'cuda:1' does not exist: this machine has 1 CUDA devices. Use --device cpu"
    ):
        choose_device("cuda:1")


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_named_precision_is_taken(name):
    assert choose_precision(name, CPU) == name


def test_unknown_precision_is_refused():
    with pytest.raises(ConfigError, match=r"Precision 'fp16' is unknown\. Expected auto, fp32 or bf16"):
        choose_precision("fp16", CPU)


@pytest.mark.parametrize(
    ("abilities", "expected"),
    [({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "bf16"), ({"avx2": True}, "fp32"), ({}, "fp32")],
)
def test_auto_precision_goes_by_the_processor(monkeypatch, abilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)
    assert choose_precision("auto", CPU) == expected


def test_bf16_forwards_compute_in_bf16_and_fp32_ones_do_not():
    a = torch.ones(2, 2)
    with autocast(CPU, "bf16"):
        assert (a @ a).dtype == torch.bfloat16
    with autocast(CPU, "fp32"):
        assert (a @ a).dtype == torch.float32
    assert isinstance(autocast(CPU, "fp32"), contextlib.nullcontext)


@pytest.mark.parametrize(
    ("wanted", "device", "expected"),
    [(None, "cpu", False), (None, "cuda", True), (True, "cpu", True), (False, "cuda", False)],
)
def test_blocks_are_compiled_on_cuda_or_where_it_is_wanted(wanted, device, expected):
    assert choose_compile(wanted, torch.device(device)) is expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
        (ValueError("CUDA error: out of memory"), False),
    ],
)
def test_exhausted_memory_is_recognized_by_class_or_text(error, expected):
    assert is_out_of_memory(error) is expected


FAULTS = """
import resource, sys, torch
from stemformer.device import configure_allocator
if sys.argv[1] == "keep":
    configure_allocator(torch.device("cpu"))
for _ in range(10):  # small blocks that are made in between may split what was freed, a few times
    torch.ones(40 * 2**20, dtype=torch.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(40 * 2**20, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is the GNU C library's")
@pytest.mark.skipif(
    tuple(map(int, platform.libc_ver()[1].split("."))) < (2, 35), reason="older ones keep 32 MiB at most"
)
def test_freed_memory_is_used_again():
    kept, returned = (
        int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "give back")
    )
    assert kept < returned / 10
