"""Variable-length attention over flat tokens.

`attend()` is the only function that knows sequence boundaries. A batch is `N` flat tokens with
boundaries `cu_seqlens` (S+1,); nothing is padded outside this room. The kernel depends on device,
dtype and length, from the measurements in `docs/benchmarks.md`:

| device | dtype | length | kernel |
|---|---|---|---|
| CPU | float32 | below 384 | `cpu.py`: length buckets, batched matrix products, hand-written backward |
| CPU | float32 | from 384 | `cpu.py`: PyTorch's CPU flash kernel on sequences of exactly one length |
| CPU | other | any | `cpu.py`: length buckets |
| CUDA | float16, bfloat16 | any | `torch.nn.attention.varlen.varlen_attn`, for the head sizes it supports |
| other | any | any | `_attend_padded`: one padded block, `scaled_dot_product_attention` |

Source: Vaswani et al. 2017, section 3.2.1 (scaled dot-product attention); Dao et al. 2022
(recomputation of probabilities in the backward pass).
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from stemformer.models.attention.cpu import backward_cpu, forward_cpu


def attend(
    q: Float[Tensor, "N H K"],
    k: Float[Tensor, "M H K"],
    v: Float[Tensor, "M H K"],
    *,
    cu_q: Int[Tensor, "S1"],
    cu_k: Int[Tensor, "S1"],
    max_q: int,
    max_k: int,
    causal: bool = False,
    window: int | None = None,
) -> Float[Tensor, "N H K"]:
    """Return softmax(q k^T / sqrt(K)) v within each sequence.

    Args:
        q: Queries of all sequences, concatenated.
        k: Keys; sequence `s` of the queries attends to sequence `s` of the keys.
        v: Values of the keys.
        cu_q: int32 boundaries of the query sequences; the last entry is N. On the CPU, more rows
            may follow as padding; their output is zero.
        cu_k: int32 boundaries of the key sequences.
        max_q: Maximum length of a query sequence (`max_k`: of a key sequence).
        causal: Query i attends to key j only if `j <= i + len_k - len_q` (aligned at the bottom right).
        window: Query i attends to key j only if `|i + len_k - len_q - j| <= window`; None: to all.

    Example:
        >>> import torch
        >>> q, k, v = torch.randn(3, 5, 2, 4).unbind()
        >>> cu = torch.tensor([0, 2, 5], dtype=torch.int32)
        >>> attend(q, k, v, cu_q=cu, cu_k=cu, max_q=3, max_k=3).shape
        torch.Size([5, 2, 4])
    """
    # CUDA in half precision: PyTorch's variable-length flash kernel.
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and q.shape[2] % 8 == 0 and q.shape[2] <= 256:
        from torch.nn.attention.varlen import varlen_attn

        reach = -1 if window is None else window
        sides = (reach, 0 if causal else reach)
        return varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, window_size=sides)  # type: ignore[return-value]
    if not len(q):
        raise ValueError("attend: there are no tokens. Leave empty sequences out of the batch.")

    # Other devices and dtypes: one padded block.
    if q.device.type != "cpu":
        return _attend_padded(q, k, v, cu_q, cu_k, max_q, max_k, causal, window)

    # CPU. A compiled graph needs the operator; eager mode avoids its overhead.
    if torch.compiler.is_compiling():
        return _attend(q, k, v, cu_q, cu_k, causal, window)[0]
    needs_grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    # Compute in the dtype of the inputs.
    with torch.autocast("cpu", enabled=False):
        return _AttendOnCpu.apply(q, k, v, cu_q, cu_k, causal, window, needs_grad)  # type: ignore[no-untyped-call]


def attend_cached(
    q: Float[Tensor, "R H K"],
    keys: Float[Tensor, "SG K P"],
    values: Float[Tensor, "SG P K"],
    *,
    mask: Float[Tensor, "S B2 P"] | None = None,
    num_beams: int = 1,
) -> Float[Tensor, "R HK"]:
    """Return the attention output of one new token of each beam of S sequences.

    Args:
        q: Queries of R = S * B beams; those of a sequence are adjacent, and are rows of one product with its keys.
        keys: Cached keys of all P columns, the new ones included; heads of a sequence are adjacent. Each of
            G heads of keys serves a group of H / G query heads.
        mask: Added to the scores of each beam, or one row (B2 = 1) to those of all beams of a sequence; needed where
            the cache is padded or beams have columns of their own.
    """
    # Two batched products: PyTorch's kernel takes up to twice as long for one query per sequence.
    num_rows, num_heads, size = q.shape
    num_sequences = num_rows // num_beams
    num_groups = len(keys) // num_sequences
    q = q if q.dtype == keys.dtype else q.to(keys.dtype)
    if num_beams > 1:
        q = q.view(num_sequences, num_beams, num_groups, -1, size).transpose(1, 2)  # (S, G, B, H / G, K)
    q = q.reshape(len(keys), -1, size)  # (S * G, B * H / G, K)
    scores = torch.baddbmm(_unused_input(q.device, q.dtype), q, keys, beta=0, alpha=size**-0.5)  # (S * G, B * H / G, P)
    if mask is not None:
        scores.view(num_sequences, num_groups, num_beams, -1, scores.shape[2]).add_(mask[:, None, :, None])
    out = torch.bmm(scores.softmax(-1), values)  # (S * G, B * H / G, K)
    if num_beams > 1:
        out = out.view(num_sequences, num_groups, num_beams, -1, size).transpose(1, 2)
    return out.reshape(num_rows, num_heads * size)


@lru_cache
def _unused_input(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return an input for `baddbmm`, which ignores it at beta=0."""
    return torch.empty(1, 1, 1, device=device, dtype=dtype)


# Operators for compiled graphs.
_attend = torch.library.custom_op(
    "stemformer::attend",
    forward_cpu,
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor cu_q, Tensor cu_k, bool causal, int? window) -> (Tensor, Tensor)",
)


@_attend.register_fake
def _attend_fake(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


_attend_backward = torch.library.custom_op(
    "stemformer::attend_backward",
    backward_cpu,
    mutates_args=(),
    schema="(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor cu_q, Tensor cu_k, "
    "bool causal, int? window) -> (Tensor, Tensor, Tensor)",
)


@_attend_backward.register_fake
def _attend_backward_fake(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, cu_q, cu_k, ctx.causal, ctx.window = inputs
    ctx.save_for_backward(q, k, v, *output, cu_q, cu_k)


def _differentiate(ctx, grad, _):  # type: ignore[no-untyped-def]
    q, k, v, out, lse, cu_q, cu_k = ctx.saved_tensors
    return (*_attend_backward(grad, q, k, v, out, lse, cu_q, cu_k, ctx.causal, ctx.window), *(None,) * 4)


_attend.register_autograd(_differentiate, setup_context=_save)


class _AttendOnCpu(torch.autograd.Function):
    """CPU kernels in eager mode; keeps probabilities of short sequences for the backward."""

    @staticmethod
    def forward(ctx, q, k, v, cu_q, cu_k, causal, window, needs_grad):  # type: ignore[no-untyped-def]
        ctx.causal, ctx.window, ctx.kept = causal, window, [] if needs_grad else None
        out, lse = forward_cpu(q, k, v, cu_q, cu_k, causal, window, ctx.kept)
        ctx.save_for_backward(q, k, v, out, lse, cu_q, cu_k)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        # Free the probabilities now rather than with the graph; a second backward recomputes them.
        kept, ctx.kept = ctx.kept, None
        q, k, v, out, lse, cu_q, cu_k = ctx.saved_tensors
        return (*backward_cpu(grad, q, k, v, out, lse, cu_q, cu_k, ctx.causal, ctx.window, kept), *(None,) * 5)


def _attend_padded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    causal: bool,
    window: int | None,
) -> Tensor:
    """Compute `attend` on one padded block, without synchronization with the device."""
    # Boolean mask of visible keys; padded queries see all keys, so that their softmax is finite.
    q_rows, q_real = padded_rows(cu_q, max_q)  # (S, max_q)
    k_rows, k_real = padded_rows(cu_k, max_k)  # (S, max_k)
    visible = k_real[:, None, :].expand(-1, max_q, -1)  # (S, max_q, max_k)
    if causal or window is not None:
        shift = ((cu_k[1:] - cu_k[:-1]) - (cu_q[1:] - cu_q[:-1]))[:, None, None]
        q_steps, k_steps = (torch.arange(n, device=q.device) for n in (max_q, max_k))
        ahead = k_steps - (q_steps[:, None] + shift)  # (S, max_q, max_k)
        near = ahead.abs() <= (max_k if window is None else window)
        visible = visible & (near & (ahead <= 0) if causal else near) | (visible & ~q_real[:, :, None])

    # Gather into (S, H, max, K), attend, and gather back into flat tokens.
    bq, bk, bv = (x[rows].transpose(1, 2) for x, rows in ((q, q_rows), (k, k_rows), (v, k_rows)))
    out = F.scaled_dot_product_attention(bq, bk, bv, attn_mask=visible[:, None]).transpose(1, 2)  # (S, max_q, H, K)
    token = torch.arange(q.shape[0], device=q.device, dtype=cu_q.dtype)
    sequence = torch.searchsorted(cu_q[1:].contiguous(), token, right=True)
    return out.reshape(-1, *q.shape[1:]).index_select(0, sequence * max_q + token - cu_q[sequence])  # (N, H, K)


def padded_rows(cu: Tensor, max_length: int) -> tuple[Tensor, Tensor]:
    """Return token numbers (S, max_length), padded with the first, and whether they are real."""
    steps = torch.arange(max_length, device=cu.device, dtype=cu.dtype)
    starts = cu[:-1, None]
    real = steps < cu[1:, None] - starts
    return torch.where(real, starts + steps, starts), real
