"""Attention over flat tokens: `attend()`, the only place that knows where one sequence ends and the next begins.

A batch is one run of `N` tokens with `cu_seqlens` (S+1,) as boundaries; nothing is padded outside this file. Which kernel runs inside
is decided by device, dtype and length, from the measured table in `docs/benchmarks.md`:

| device | dtype | length | kernel |
|---|---|---|---|
| CPU | float32 | below 384 | `bmm`: sequences of about one length stacked, matrix products, backward by hand |
| CPU | float32 | from 384 | `flash`: PyTorch's CPU flash kernel on sequences of exactly one length |
| CPU | other | any | `bmm` |
| CUDA | float16, bfloat16 | any | `torch.nn.attention.varlen.varlen_attn` |
| other | any | any | `padded`: one padded block, `scaled_dot_product_attention` |

Source: Vaswani et al. 2017, section 3.2.1 (scaled dot products); Dao et al. 2022 (recomputing probabilities in the backward).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["FLASH_FROM", "attend"]

FLASH_FROM = 384
"""Tokens from which float32 sequences on the CPU take the flash kernel."""

_LENGTH_STEP = 8
"""Below `FLASH_FROM`, lengths are rounded up to a multiple of this; what is stacked together wastes at most 7 tokens a sequence."""

_SCORES_AT_ONCE = 2**19
"""How many scores a block of the `bmm` kernel holds: 2 MiB in float32, so that they stay in the cache."""


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
        cu_q: int32 offsets at which the query sequences begin; the last entry is N.
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
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16):
        from torch.nn.attention.varlen import varlen_attn

        window = (-1, 0) if causal else (-1, -1)
        out = varlen_attn(q, k, v, cu_q, cu_k, max_q, max_k, window_size=window)  # type: ignore[assignment]
        return out
    out = _attend(q, k, v, cu_q, cu_k, max_q, max_k, causal)[0]
    return out


# ---------------------------------------------------------------------------------------------- the operator and its backward


@torch.library.custom_op("stemformer::attend", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, causal: bool
) -> tuple[Tensor, Tensor]:
    """Forward; also the log of each softmax's denominator, (N, H) in float32, which only the flash kernel fills and needs."""
    if q.device.type != "cpu":
        return _padded(q, k, v, cu_q, cu_k, max_q, max_k, causal), q.new_empty(0, dtype=torch.float32)
    return _forward_cpu(q, k, v, cu_q, cu_k, causal)


@_attend.register_fake
def _attend_fake(
    q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, causal: bool
) -> tuple[Tensor, Tensor]:
    rows = (q.shape[0], q.shape[1]) if q.device.type == "cpu" else (0,)
    return q.new_empty(q.shape), q.new_empty(rows, dtype=torch.float32)


@torch.library.custom_op("stemformer::attend_backward", mutates_args=())
def _attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Backward: gradients of q, k and v. Probabilities are computed again, never stored."""
    if q.device.type != "cpu":
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            again = _padded(leaves[0], leaves[1], leaves[2], cu_q, cu_k, max_q, max_k, causal)
            dq, dk, dv = torch.autograd.grad(again, leaves, grad)
        return dq.contiguous(), dk.contiguous(), dv.contiguous()
    return _backward_cpu(grad, q, k, v, out, lse, cu_q, cu_k, causal)


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
    max_q: int,
    max_k: int,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, cu_q, cu_k, ctx.max_q, ctx.max_k, ctx.causal = inputs
    ctx.save_for_backward(q, k, v, *output, cu_q, cu_k)


def _differentiate(ctx, grad, _):  # type: ignore[no-untyped-def]
    q, k, v, out, lse, cu_q, cu_k = ctx.saved_tensors
    grads = _attend_backward(grad, q, k, v, out, lse, cu_q, cu_k, ctx.max_q, ctx.max_k, ctx.causal)
    return (*grads, None, None, None, None, None)


_attend.register_autograd(_differentiate, setup_context=_save)


# --------------------------------------------------------------------------------------------------------- CPU: stacks and kernels


@dataclass(frozen=True)
class _Stack:
    """Some sequences of about one length, as a block of `B` sequences, `T_q` queries and `T_k` keys.

    `*_rows` (B, T) number the tokens, a padded place repeating its sequence's first token (read from) or naming one row past the
    end (written to). `bias` (B, 1, T_q or 1, T_k) is 0 or -inf; None where every place is a token that all may see.
    """

    q_rows: Tensor
    k_rows: Tensor
    q_targets: Tensor
    k_targets: Tensor
    bias: Tensor | None
    is_padded: bool
    flash: bool


def _rows(cu: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns token numbers (B, T) of the chosen sequences and where they are real."""
    lengths = cu[chosen + 1] - cu[chosen]
    places = np.arange(lengths.max())
    real = places < lengths[:, None]
    return np.where(real, cu[chosen][:, None] + places, cu[chosen][:, None]), real


def _make_stack(cu_q: np.ndarray, cu_k: np.ndarray, chosen: np.ndarray, *, causal: bool, flash: bool) -> _Stack:
    q_rows, q_real = _rows(cu_q, chosen)
    k_rows, k_real = _rows(cu_k, chosen)
    hidden = ~k_real[:, None, None, :]
    if causal and not flash:
        shift = (k_real.sum(1) - q_real.sum(1))[:, None, None, None]
        hidden = hidden | (np.arange(k_rows.shape[1]) > np.arange(q_rows.shape[1])[:, None] + shift)
        hidden = hidden & q_real[:, None, :, None]  # padded queries see everything, so that their softmax stays finite
    bias = torch.where(torch.from_numpy(hidden), -torch.inf, 0.0) if hidden.any() else None
    return _Stack(
        q_rows=torch.from_numpy(q_rows),
        k_rows=torch.from_numpy(k_rows),
        q_targets=torch.from_numpy(np.where(q_real, q_rows, cu_q[-1])),
        k_targets=torch.from_numpy(np.where(k_real, k_rows, cu_k[-1])),
        bias=bias,
        is_padded=not bool(q_real.all() and k_real.all()),
        flash=flash,
    )


@lru_cache(maxsize=64)
def _plan(cu_q_bytes: bytes, cu_k_bytes: bytes, heads: int, causal: bool, flash_from: int) -> tuple[_Stack, ...]:
    """Sorts sequences into stacks. Every layer of a step asks with the same boundaries, so the answer is kept."""
    cu_q, cu_k = (np.frombuffer(x, np.int32).astype(np.int64) for x in (cu_q_bytes, cu_k_bytes))
    q_lengths, k_lengths = np.diff(cu_q), np.diff(cu_k)
    if len(q_lengths) and min(q_lengths.min(), k_lengths.min()) <= 0:
        raise ValueError("attend: a sequence without a token; leave empty texts out of the batch")
    if causal and (k_lengths < q_lengths).any():
        raise ValueError("attend: a causal sequence has fewer keys than queries")
    exact = (q_lengths >= flash_from) & (k_lengths >= flash_from) & ((q_lengths == k_lengths) | (not causal))
    rounded = [np.where(exact, x, -(-x // _LENGTH_STEP) * _LENGTH_STEP) for x in (q_lengths, k_lengths)]
    shapes, which = np.unique(np.stack([*rounded, exact]), axis=1, return_inverse=True)
    stacks = []
    for number, (t_q, t_k, flash) in enumerate(shapes.T):
        chosen = np.flatnonzero(which.reshape(-1) == number)
        at_once = len(chosen) if flash else max(1, _SCORES_AT_ONCE // int(heads * t_q * t_k))
        for start in range(0, len(chosen), at_once):
            stacks.append(_make_stack(cu_q, cu_k, chosen[start : start + at_once], causal=causal, flash=bool(flash)))
    return tuple(stacks)


def _plan_for(q: Tensor, cu_q: Tensor, cu_k: Tensor, causal: bool) -> tuple[_Stack, ...]:
    flash_from = FLASH_FROM if q.dtype == torch.float32 else 2**31
    return _plan(cu_q.numpy().tobytes(), cu_k.numpy().tobytes(), q.shape[1], causal, flash_from)


def _reader(x: Tensor) -> Callable[[Tensor], Tensor]:
    """Returns a function from token numbers (B, T) to a block (B, H, T, K), one copy, also of a slice of a larger tensor."""
    heads, size = x.shape[1:]
    if x.stride(2) != 1 or x.stride(1) != size or x.stride(0) % size:
        x = x.contiguous()
    step = x.stride(0) // size
    flat = x.as_strided(((x.shape[0] - 1) * step + heads, size), (size, 1))
    head = torch.arange(heads)[:, None]

    def read(rows: Tensor) -> Tensor:
        places = rows[:, None, :] * step + head  # (B, H, T)
        return flat.index_select(0, places.view(-1)).view(*places.shape, size)

    return read


def _writer(like: Tensor) -> tuple[Tensor, Callable[[Tensor, Tensor], None]]:
    """Returns a tensor like the given one and a function that writes a block (B, H, T, K) to token numbers (B, T)."""
    heads = like.shape[1]
    rest = like.shape[2:]
    spare = like.new_empty(like.shape[0] + 1, heads, *rest)  # the last row takes what was padded
    flat = spare.view(-1, *rest)
    head = torch.arange(heads)[:, None]

    def write(rows: Tensor, block: Tensor) -> None:
        places = rows[:, None, :] * heads + head
        flat.index_copy_(0, places.view(-1), block.reshape(-1, *rest))

    return spare, write


def _probabilities(q: Tensor, k: Tensor, stack: _Stack) -> Tensor:
    """Returns softmax(q k^T / sqrt(K)) for a block, (B*H, T_q, T_k)."""
    b, h, t_q, size = q.shape
    q, k = q.view(b * h, t_q, size), k.view(b * h, -1, size)
    scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=size**-0.5)
    if stack.bias is not None:
        scores.view(b, h, t_q, -1).add_(stack.bias)
    return torch.softmax(scores, -1)


def _forward_cpu(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    if int(cu_q[-1]) != q.shape[0]:
        raise ValueError(f"attend: cu_q ends at {int(cu_q[-1])}, there are {q.shape[0]} tokens")
    read_q, read_k, read_v = _reader(q), _reader(k), _reader(v)
    out, write = _writer(q)
    lse, write_lse = _writer(q.new_empty(q.shape[0], q.shape[1], dtype=torch.float32))
    lse.zero_()  # what the bmm kernel leaves out must not be what lay in memory
    for stack in _plan_for(q, cu_q, cu_k, causal):
        bq, bk, bv = read_q(stack.q_rows), read_k(stack.k_rows), read_v(stack.k_rows)
        if stack.flash:
            block, block_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(bq, bk, bv, 0.0, causal)
            write_lse(stack.q_targets, block_lse.contiguous())
        else:
            b, h, t_k, size = bk.shape
            block = torch.bmm(_probabilities(bq, bk, stack), bv.view(b * h, t_k, size)).view_as(bq)
        write(stack.q_targets, block)
    return out[:-1], lse[:-1]


def _backward_cpu(
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
    read_q, read_k, read_v, read_grad, read_out, read_lse = map(_reader, (q, k, v, grad, out, lse[..., None]))
    (dq, write_q), (dk, write_k), (dv, write_v) = _writer(q), _writer(k), _writer(v)
    for stack in _plan_for(q, cu_q, cu_k, causal):
        bq, bk, bv, bg = read_q(stack.q_rows), read_k(stack.k_rows), read_v(stack.k_rows), read_grad(stack.q_rows)
        if stack.flash:
            bo, bl = read_out(stack.q_rows), read_lse(stack.q_rows)[..., 0]
            grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                bg, bq, bk, bv, bo, bl, 0.0, causal
            )
        else:
            grads = _backward_bmm(bg, bq, bk, bv, stack, padding=q.shape[0])
        for write, targets, block in zip(
            (write_q, write_k, write_v), (stack.q_targets, stack.k_targets, stack.k_targets), grads, strict=True
        ):
            write(targets, block)
    return dq[:-1], dk[:-1], dv[:-1]


def _backward_bmm(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, stack: _Stack, *, padding: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of a block (B, H, T, K) of queries, keys and values."""
    b, h, t_q, size = q.shape
    if stack.is_padded:
        grad.mul_((stack.q_targets != padding)[:, None, :, None])
    probabilities = _probabilities(q, k, stack)
    q, k, v, grad = (x.view(b * h, -1, size) for x in (q, k, v, grad))
    dv = torch.bmm(probabilities.transpose(1, 2), grad)
    dp = torch.bmm(grad, v.transpose(1, 2))
    ds = torch.ops.aten._softmax_backward_data(dp, probabilities, -1, dp.dtype)
    nothing = q.new_empty(1, 1, 1)
    dq = torch.baddbmm(nothing, ds, k, beta=0, alpha=size**-0.5)
    dk = torch.baddbmm(nothing, ds.transpose(1, 2), q, beta=0, alpha=size**-0.5)
    return dq.view(b, h, t_q, size), dk.view(b, h, -1, size), dv.view(b, h, -1, size)


# ------------------------------------------------------------------------------------------------------- any device: one padded block


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
