"""Linear layers for few rows (decoding), bound by memory bandwidth: weights laid out for fast reads.

| device | weights | maximum rows | kernel |
|---|---|---|---|
| CPU | float32 | 1 | MKL: copy with the longer side contiguous; one part per thread where MKL would use a single thread |
| CPU, Intel | bfloat16, small | 1 | MKL on an exact float32 copy |
| CPU | bfloat16 | 3 | FBGEMM: float16 panels, multiplied in float32; not for large weights with AMX |
| CPU without bfloat16 kernels | bfloat16 | any | FBGEMM; a float32 copy, laid out as above, if packing does not pay |
| CPU with AVX2 only | float32, small | any | MKL: copy with the output side contiguous |
| CPU | float32, bfloat16 | any | oneDNN: its own blocked layout |
| other | any | any | `F.linear` |

On a CPU without bfloat16 kernels in oneDNN (AVX2), PyTorch's own are slow and round each result to
8 bits, so they are not used. Measured in `docs/benchmarks.md`. From 2^-14 on, float16 holds a
bfloat16 weight exactly; a smaller one changes by at most 2^-25.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

# Function from rows (R, I) of any dtype to rows (R, O), in float32 or the weight's dtype.
LinearKernel = Callable[[Tensor], Tensor]

# oneDNN is faster for four rows than for fewer; not in bfloat16 with AMX (16 rows).
_BLOCK_ROWS = 4
# Smaller weights stay in the cache, where a call costs more than reading them.
_SMALL_WEIGHT = 2**19
# Minimum number of calls that pays for an MKL or oneDNN copy.
_MIN_STEPS_COPY = 8
# Minimum number of calls that pays for FBGEMM packing, which takes 5 to 15 ns per weight.
_MIN_STEPS_FP16 = 128


def make_linear_kernel(
    weight: Float[Tensor, "O I"],
    bias: Float[Tensor, "O"] | None,
    *,
    rows: int,
    steps: float = torch.inf,
    activation: nn.Module | None = None,
) -> LinearKernel:
    """Make `activation(x @ weight.T + bias)`, fastest for `steps` calls with `rows` rows."""
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    kernel = _choose_kernel(weight, rows=rows, steps=steps)
    if kernel is not _fbgemm and _lacks_bf16_kernels(weight):
        weight, bias = weight.float(), None if bias is None else bias.float()
        kernel = _choose_kernel(weight, rows=rows, steps=steps)
    if kernel is _onednn:
        return _onednn(weight, bias, activation)
    linear = kernel(weight, bias)
    return linear if activation is None else lambda x: activation(linear(x))


def _choose_kernel(weight: Tensor, *, rows: int, steps: float) -> Callable[[Tensor, Tensor | None], LinearKernel]:
    if not _is_packable(weight) or steps < _MIN_STEPS_COPY:
        return _plain
    is_small, is_float32 = weight.numel() < _SMALL_WEIGHT, weight.dtype == torch.float32
    if rows == 1 and (is_float32 or (is_small and _is_intel())):
        return _mkl
    if is_float32 and is_small and _is_avx2():
        return _transposed
    pays = steps >= _MIN_STEPS_FP16 and (rows < _BLOCK_ROWS or _lacks_bf16_kernels(weight))
    uses_amx = _has_amx() and not is_small
    return _fbgemm if not is_float32 and pays and not uses_amx and _fits_float16(weight) else _onednn


def _is_packable(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    # These operators are private to PyTorch and may disappear.
    if not (hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.ops.quantized, "linear_prepack_fp16")):
        return False
    if weight.dtype == torch.bfloat16 and _has_bf16_kernels():
        return True
    is_supported = weight.dtype in (torch.float32, torch.bfloat16)
    return is_supported and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def _lacks_bf16_kernels(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and not _has_bf16_kernels()


def _has_bf16_kernels() -> bool:
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(available and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _is_avx2() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def _is_intel() -> bool:
    return "Intel" in str(torch.cpu.get_capabilities().get("cpu_name"))


def _has_amx() -> bool:
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def _fits_float16(weight: Tensor) -> bool:
    largest = float(weight.abs().max())
    return torch.backends.quantized.engine in ("x86", "fbgemm") and largest <= torch.finfo(torch.float16).max


def _plain(weight: Tensor, bias: Tensor | None) -> LinearKernel:
    return lambda x: F.linear(x if x.dtype == weight.dtype else x.to(weight.dtype), weight, bias)


def _transposed(weight: Tensor, bias: Tensor | None) -> LinearKernel:
    transposed = weight.t().contiguous()
    return lambda x: x @ transposed if bias is None else torch.addmm(bias, x, transposed)


def _mkl(weight: Tensor, bias: Tensor | None) -> LinearKernel:
    weight, bias = weight.float(), None if bias is None else bias.float()
    parts = 1 if _is_intel() else torch.get_num_threads()
    if parts > 1:
        return _mkl_per_thread(weight, bias, parts)
    return _plain(weight, bias) if weight.shape[0] < weight.shape[1] else _transposed(weight, bias)


def _mkl_per_thread(weight: Tensor, bias: Tensor | None, parts: int) -> LinearKernel:
    """Batch of products with equal numbers of columns, one for each thread."""
    num_out, num_in = weight.shape
    plain, padding = _plain(weight, bias), -num_out % parts
    split = F.pad(weight, (0, 0, 0, padding)).view(parts, -1, num_in).mT  # (P, I, O / P)
    split = split.contiguous() if num_out > num_in else split
    if bias is not None:
        bias = F.pad(bias, (0, padding)).view(parts, 1, -1)

    def linear(x: Tensor) -> Tensor:
        if len(x) > 1:
            return plain(x)
        repeated = x.expand(parts, 1, num_in)
        y = torch.bmm(repeated, split) if bias is None else torch.baddbmm(bias, repeated, split)  # (P, 1, O / P)
        return y.view(1, -1)[:, :num_out] if padding else y.view(1, -1)

    return linear


def _onednn(weight: Tensor, bias: Tensor | None, activation: nn.Module | None = None) -> LinearKernel:
    blocks, dtype = torch.ops.mkldnn._reorder_linear_weight(weight, 4 * _BLOCK_ROWS), weight.dtype
    multiply = torch.ops.mkldnn._linear_pointwise
    multiple = 1 if dtype == torch.bfloat16 and _has_amx() else _BLOCK_ROWS
    fused = ("gelu", activation.approximate) if isinstance(activation, nn.GELU) else ("none", "")

    def linear(x: Tensor) -> Tensor:
        padding = -len(x) % multiple
        padded = F.pad(x, (0, 0, 0, padding)) if padding else x
        y: Tensor = multiply(padded if x.dtype == dtype else padded.to(dtype), blocks, bias, fused[0], [], fused[1])
        return y[: len(x)] if padding else y

    return linear if activation is None or fused[0] == "gelu" else lambda x: activation(linear(x))


def _fbgemm(weight: Tensor, bias: Tensor | None) -> LinearKernel:
    panels = torch.ops.quantized.linear_prepack_fp16(weight.float(), None if bias is None else bias.float())
    multiply, plain = torch.ops.quantized.linear_dynamic_fp16, _plain(weight, bias)
    any_rows = _lacks_bf16_kernels(weight)
    return lambda x: multiply(x, panels) if any_rows or len(x) < _BLOCK_ROWS else plain(x)
