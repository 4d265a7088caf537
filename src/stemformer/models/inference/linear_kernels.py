"""Products of few rows with a matrix, as decoding has them. Their time is that of reading the matrix, so it is laid out to be read fast.

| device | weights | rows at most | layout |
|---|---|---|---|
| CPU | float32 | 1 | `long runs`: a copy whose longer side is contiguous (MKL); a part for each thread where MKL itself would take one |
| CPU, Intel's | bfloat16, few | 1 | `long runs` in float32, which hold them exactly |
| CPU | bfloat16 | 3 | `halves`: panels of float16 (FBGEMM), multiplied in float32; not for large ones where there is AMX |
| CPU without bfloat16 kernels | bfloat16 | any | `halves`; a float32 copy, laid out as above, where packing does not pay |
| CPU | float32, bfloat16 | any | `blocks`: oneDNN's own layout |
| other | any | any | as it is |

On a CPU without bfloat16 kernels in oneDNN (AVX2), PyTorch's own multiply slowly and round each result to 8 bits, so they are not used.
Measured in `docs/benchmarks.md`. From 2^-14 on, float16 holds a bfloat16 weight exactly; a smaller one changes by 2^-25 at most.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

LinearKernel = Callable[[Tensor], Tensor]
"""Rows (R, I) of any dtype to rows (R, O), in float32 or the weight's dtype."""

_BLOCK_ROWS = 4
"""oneDNN reads faster for four rows than for one, two or three; not in bfloat16 with AMX, whose units multiply sixteen at once."""

_FEW_WEIGHTS = 2**19
"""Fewer weights lie in the cache, where a call costs more than reading them does."""

_STEPS_FOR_A_COPY = 8
"""Steps in which a copy in runs or blocks has paid for itself."""

_STEPS_FOR_HALVES = 128
"""The same for halves, whose packing takes 5 to 15 ns a weight."""


def make_linear_kernel(
    weight: Float[Tensor, "O I"],
    bias: Float[Tensor, "O"] | None,
    *,
    rows: int,
    steps: float = torch.inf,
    activation: nn.Module | None = None,
) -> LinearKernel:
    """Returns a function from rows x to `activation(x weight^T + bias)`.

    It takes any number of rows, and is fast for as many as were announced. On the CPU it holds a copy of the weight, in float32 where
    the weight is bfloat16 and neither oneDNN nor float16 can take it.

    Args:
        weight: Of a linear layer.
        bias: Likewise.
        rows: Most rows of a usual call.
        steps: How often it will be called; a copy is made only where it pays.
        activation: None for none.

    Example:
        >>> make_product(torch.eye(2), torch.tensor([1.0, 2.0]), rows=1)(torch.tensor([[3.0, 4.0]]))
        tensor([[4., 6.]])
    """
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    lay_out = _layout(weight, rows=rows, steps=steps)
    if lay_out is not _in_halves and _lacks_kernels(weight):
        weight, bias = weight.float(), None if bias is None else bias.float()
        lay_out = _layout(weight, rows=rows, steps=steps)
    if lay_out is _in_blocks:
        return _in_blocks(weight, bias, activation)
    product = lay_out(weight, bias)
    return product if activation is None else lambda x: activation(product(x))


def _layout(weight: Tensor, *, rows: int, steps: float) -> Callable[[Tensor, Tensor | None], LinearKernel]:
    if not _is_packable(weight) or steps < _STEPS_FOR_A_COPY:
        return _as_it_is
    is_few, is_float32 = weight.numel() < _FEW_WEIGHTS, weight.dtype == torch.float32
    if rows == 1 and (is_float32 or (is_few and _is_intel())):
        return _in_long_runs
    pays = steps >= _STEPS_FOR_HALVES and (rows < _BLOCK_ROWS or _lacks_kernels(weight))
    is_for_amx = _has_amx() and not is_few
    return _in_halves if not is_float32 and pays and not is_for_amx and _fits_halves(weight) else _in_blocks


def _is_packable(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not (hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.ops.quantized, "linear_prepack_fp16")):
        return False  # operators that PyTorch does not promise to keep
    if weight.dtype == torch.bfloat16 and _has_bf16_kernels():
        return True
    is_known = weight.dtype in (torch.float32, torch.bfloat16)
    return is_known and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def _lacks_kernels(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and not _has_bf16_kernels()


def _has_bf16_kernels() -> bool:
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(available and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _is_intel() -> bool:
    return "Intel" in str(torch.cpu.get_capabilities().get("cpu_name"))


def _has_amx() -> bool:
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def _fits_halves(weight: Tensor) -> bool:
    largest = float(weight.abs().max())
    return torch.backends.quantized.engine in ("x86", "fbgemm") and largest <= torch.finfo(torch.float16).max


def _as_it_is(weight: Tensor, bias: Tensor | None) -> LinearKernel:
    return lambda x: F.linear(x if x.dtype == weight.dtype else x.to(weight.dtype), weight, bias)


def _in_long_runs(weight: Tensor, bias: Tensor | None) -> LinearKernel:
    weight, bias = weight.float(), None if bias is None else bias.float()
    parts = 1 if _is_intel() else torch.get_num_threads()
    if parts > 1:
        return _in_parts(weight, bias, parts)
    if weight.shape[0] < weight.shape[1]:
        return _as_it_is(weight, bias)
    across = weight.t().contiguous()
    return lambda x: x @ across if bias is None else torch.addmm(bias, x, across)


def _in_parts(weight: Tensor, bias: Tensor | None, parts: int) -> LinearKernel:
    """Long runs, as a batch of products with as many columns each, which MKL gives to as many threads."""
    num_out, num_in = weight.shape
    many, spare = _as_it_is(weight, bias), -num_out % parts
    split = F.pad(weight, (0, 0, 0, spare)).view(parts, -1, num_in).mT  # (P, I, O / P)
    split = split.contiguous() if num_out > num_in else split
    if bias is not None:
        bias = F.pad(bias, (0, spare)).view(parts, 1, -1)

    def product(x: Tensor) -> Tensor:
        if len(x) > 1:
            return many(x)
        each = x.expand(parts, 1, num_in)
        y = torch.bmm(each, split) if bias is None else torch.baddbmm(bias, each, split)
        return y.view(1, -1)[:, :num_out] if spare else y.view(1, -1)

    return product


def _in_blocks(weight: Tensor, bias: Tensor | None, activation: nn.Module | None = None) -> LinearKernel:
    blocks, dtype = torch.ops.mkldnn._reorder_linear_weight(weight, 4 * _BLOCK_ROWS), weight.dtype
    multiply = torch.ops.mkldnn._linear_pointwise
    multiple = 1 if dtype == torch.bfloat16 and _has_amx() else _BLOCK_ROWS
    after = ("gelu", activation.approximate) if isinstance(activation, nn.GELU) else ("none", "")

    def product(x: Tensor) -> Tensor:
        spare = -len(x) % multiple
        filled = F.pad(x, (0, 0, 0, spare)) if spare else x
        y: Tensor = multiply(filled if x.dtype == dtype else filled.to(dtype), blocks, bias, after[0], [], after[1])
        return y[: len(x)] if spare else y

    return product if activation is None or after[0] == "gelu" else lambda x: activation(product(x))


def _in_halves(weight: Tensor, bias: Tensor | None) -> LinearKernel:
    panels = torch.ops.quantized.linear_prepack_fp16(weight.float(), None if bias is None else bias.float())
    multiply, many = torch.ops.quantized.linear_dynamic_fp16, _as_it_is(weight, bias)
    is_for_all = _lacks_kernels(weight)
    return lambda x: multiply(x, panels) if is_for_all or len(x) < _BLOCK_ROWS else many(x)
