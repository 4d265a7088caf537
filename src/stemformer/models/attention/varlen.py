"""Attention over flat tokens: `attend()`, the only place that knows where one sequence ends and the next begins.

A batch is one run of `N` tokens with `cu_seqlens` (S+1,) as boundaries; nothing is padded outside this file. Which kernel runs inside
is decided by device, dtype and length, from the measured table in `docs/benchmarks.md`:

| device | dtype | length | kernel |
|---|---|---|---|
| CPU | float32 | below 384 | `bmm`: sequences of about one length stacked, matrix products, backward by hand; causal queries in parts |
| CPU | float32 | from 384 | `flash`: PyTorch's CPU flash kernel on sequences of exactly one length |
| CPU | other | any | `bmm` |
| CUDA | float16, bfloat16 | any | `torch.nn.attention.varlen.varlen_attn`, for head sizes that it takes |
| other | any | any | `padded`: one padded block, `scaled_dot_product_attention` |

Source: Vaswani et al. 2017, section 3.2.1 (scaled dot products); Dao et al. 2022 (recomputing probabilities in the backward).
"""

from functools import lru_cache

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
) -> Float[Tensor, "N H K"]:
    """Returns softmax(q k^T / sqrt(K)) v, each sequence for itself.

    Args:
        q: Queries of all sequences, one after the other.
        k: Keys; sequence `s` of the queries looks at sequence `s` of the keys.
        v: Values.
        cu_q: int32 offsets at which the query sequences begin; the last entry is N. On the CPU there may be more rows than that, which
            belong to no sequence: zeros come out.
        cu_k: The same for keys and values.
        max_q: Length of the longest query sequence, a Python int.
        max_k: Length of the longest key sequence.
        causal: Query i of a sequence sees key j only if `j <= i + len_k - len_q` (aligned at the bottom right).

    Raises:
        ValueError: A sequence has no token, or (causal) fewer keys than queries.

    Example:
        >>> import torch
        >>> q, k, v = torch.randn(3, 5, 2, 4).unbind()
        >>> cu = torch.tensor([0, 2, 5], dtype=torch.int32)
        >>> attend(q, k, v, cu_q=cu, cu_k=cu, max_q=3, max_k=3).shape
        torch.Size([5, 2, 4])
    """
    out: Tensor
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and q.shape[2] % 8 == 0 and q.shape[2] <= 256:
        from torch.nn.attention.varlen import varlen_attn

        window = (-1, 0) if causal else (-1, -1)
        out = varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, window_size=window)  # type: ignore[assignment]
        return out
    if not len(q):
        raise ValueError("attend: no tokens; leave empty texts out of the batch")
    if q.device.type != "cpu":
        return _padded(q, k, v, cu_q, cu_k, max_q, max_k, causal)
    if torch.compiler.is_compiling():
        out = _attend(q, k, v, cu_q, cu_k, causal)[0]
    else:  # without what the operator's wrapping costs in Python, and with room for more than tensors
        is_trained = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        with torch.autocast("cpu", enabled=False):  # in the dtype that was given
            out = _AttendOnCpu.apply(q, k, v, cu_q, cu_k, causal, is_trained)[0]  # type: ignore[no-untyped-call]
    return out


def attend_cached(
    qkv: Float[Tensor, "S 3 H K"],
    *,
    new: Float[Tensor, "S 2 H K"],
    keys: Float[Tensor, "SH K P"],
    values: Float[Tensor, "SH P K"],
    mask: Float[Tensor, "S 1 1 P"] | None = None,
) -> Float[Tensor, "S HK"]:
    """Returns what a new token of each sequence gathers from itself and all before it, whose keys and values a cache holds; for decoding.

    Two batched products: PyTorch's kernel takes up to twice as long for a single query a sequence. Each operation more costs some
    microseconds, in a step that takes a millisecond.

    Args:
        qkv: Query, key and value of the next token of each sequence.
        new: Where the cache takes its key and value; the last of the P places.
        keys: Of the cache, of all places up to its own, heads of one sequence after those of the other.
        values: Likewise.
        mask: Added to the scores of the P places; needed where some are empty.

    Returns:
        For each sequence, its heads one after the other.

    Example:
        >>> import torch
        >>> cache = torch.zeros(2, 1, 2, 2, 3)
        >>> keys, values = cache.flatten(1, 2).unbind()
        >>> new = cache.permute(1, 3, 0, 2, 4)[:, 1]
        >>> attend_cached(torch.randn(1, 3, 2, 3), new=new, keys=keys.mT, values=values).shape
        torch.Size([1, 6])
    """
    num_sequences, _, _, size = qkv.shape
    q, kv = qkv.split_with_sizes((1, 2), 1)
    new.copy_(kv)
    q = (q if q.dtype == keys.dtype else q.to(keys.dtype)).reshape(-1, 1, size)  # (S * H, 1, K)
    scores = torch.baddbmm(_nothing(q.device, q.dtype), q, keys, beta=0, alpha=size**-0.5)
    if mask is not None:
        scores.view(num_sequences, -1, 1, scores.shape[2]).add_(mask)
    return torch.bmm(scores.softmax(-1), values).view(num_sequences, -1)


@lru_cache
def _nothing(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Returns what `baddbmm` takes for a sum that it does not look at."""
    return torch.empty(1, 1, 1, device=device, dtype=dtype)


def _run(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Forward; also the log of each softmax's denominator, (N, H) in float32, which only the flash kernel fills and needs."""
    return forward_cpu(q, k, v, cu_q, cu_k, causal)


_attend = torch.library.custom_op("stemformer::attend", _run, mutates_args=())


@_attend.register_fake
def _attend_fake(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


def _run_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Backward: gradients of q, k and v. Probabilities are computed again."""
    return backward_cpu(grad, q, k, v, out, lse, cu_q, cu_k, causal)


_attend_backward = torch.library.custom_op("stemformer::attend_backward", _run_backward, mutates_args=())


@_attend_backward.register_fake
def _attend_backward_fake(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, cu_q, cu_k, ctx.causal = inputs
    ctx.save_for_backward(q, k, v, *output, cu_q, cu_k)


def _differentiate(ctx, grad, _):  # type: ignore[no-untyped-def]
    q, k, v, out, lse, cu_q, cu_k = ctx.saved_tensors
    return (*_attend_backward(grad, q, k, v, out, lse, cu_q, cu_k, ctx.causal), None, None, None)


_attend.register_autograd(_differentiate, setup_context=_save)


class _AttendOnCpu(torch.autograd.Function):
    """The same without the operator's wrapping; of short sequences, probabilities are kept for the backward."""

    @staticmethod
    def forward(q, k, v, cu_q, cu_k, causal, is_trained):  # type: ignore[no-untyped-def]
        kept: list[list[Tensor] | None] | None = [] if is_trained else None
        return (*forward_cpu(q, k, v, cu_q, cu_k, causal, kept), kept)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        q, k, v, cu_q, cu_k, ctx.causal, _ = inputs
        out, lse, ctx.kept = output
        ctx.save_for_backward(q, k, v, out, lse, cu_q, cu_k)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):  # type: ignore[no-untyped-def]
        kept, ctx.kept = ctx.kept, None  # they go now, not with the graph; a second backward computes them again
        q, k, v, out, lse, cu_q, cu_k = ctx.saved_tensors
        return (*backward_cpu(grad, q, k, v, out, lse, cu_q, cu_k, ctx.causal, kept), None, None, None, None)


def _padded(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, causal: bool
) -> Tensor:
    """Returns what `attend` returns, through one block (S, H, max, K); never waits for the device."""
    q_places, q_real = _places(cu_q, max_q)
    k_places, k_real = _places(cu_k, max_k)
    visible = k_real[:, None, :].expand(-1, max_q, -1)
    if causal:
        shift = ((cu_k[1:] - cu_k[:-1]) - (cu_q[1:] - cu_q[:-1]))[:, None, None]
        steps_q, steps_k = (torch.arange(n, device=q.device) for n in (max_q, max_k))
        visible = visible & ((steps_k <= steps_q[:, None] + shift) | ~q_real[:, :, None])
    bq, bk, bv = (x[places].transpose(1, 2) for x, places in ((q, q_places), (k, k_places), (v, k_places)))
    out = F.scaled_dot_product_attention(bq, bk, bv, attn_mask=visible[:, None]).transpose(1, 2)  # (S, max_q, H, K)
    token = torch.arange(q.shape[0], device=q.device, dtype=cu_q.dtype)
    sequence = torch.searchsorted(cu_q[1:].contiguous(), token, right=True)
    return out.reshape(-1, *q.shape[1:]).index_select(0, sequence * max_q + token - cu_q[sequence])


def _places(cu: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Returns token numbers (S, longest), a sequence's first token where it has ended, and where they are real."""
    steps = torch.arange(longest, device=cu.device, dtype=cu.dtype)
    starts = cu[:-1, None]
    real = steps < cu[1:, None] - starts
    return torch.where(real, starts + steps, starts), real
