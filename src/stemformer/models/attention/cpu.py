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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

FLASH_FROM = 384
"""Tokens from which float32 sequences on the CPU take the flash kernel."""


_LENGTH_STEP = 32
"""The length of a stack is a multiple of this: whole vector registers, also in bfloat16."""


_STACK_COST = 2**16
"""How many scores cost as much time as one stack more."""


_SCORES_AT_ONCE = 2**20
"""How many scores a block of the `bmm` kernel holds: 2 MiB in bfloat16, so that they stay in the cache."""


_CAUSAL_QUERIES = 64
"""How many queries of causal sequences the `bmm` kernel multiplies with keys at once, at least: a half of a stack's, from 512 a quarter.
Keys behind the last of them are left out."""


_KEPT_SCORES = 2**22
"""How many probabilities of a call the `bmm` kernel keeps for the backward: 8 MiB in bfloat16. What is beyond is computed again."""


@dataclass(frozen=True)
class _Side:
    """The queries or the keys of a stack: `B` sequences of at most `T` tokens.

    `rows` (B, T) numbers the tokens, a padded place repeating its sequence's first one. `is_real` (B, 1, T, 1) is None where no place is
    padded.
    """

    rows: Tensor
    is_real: Tensor | None
    _places: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def places(self, heads: int, step: int) -> Tensor:
        """Returns where each head of each token lies, (B * H * T,), in a tensor whose tokens are `step` heads apart."""
        if (heads, step) not in self._places:  # every layer asks for the same
            self._places[heads, step] = (self.rows[:, None, :] * step + torch.arange(heads)[:, None]).view(-1)
        return self._places[heads, step]


@dataclass(frozen=True)
class _Stack:
    """Some sequences of about one length, as a block of `B` sequences, `T_q` queries and `T_k` keys.

    `bias` (B or 1, 1, T_q or 1, T_k) is 0 or -inf, in the dtype of the scores; None where every place is a token that all may see.
    `parts` are the parts of the queries that are taken at once: the first query, one past the last, how many keys they see, and how many
    of these the bias leaves alone.
    """

    q: _Side
    k: _Side
    bias: Tensor | None
    flash: bool
    parts: tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True)
class _Plan:
    """The stacks of a batch, and how their blocks are taken apart again.

    `q_order` (N * H) says where each head of each query is found in the blocks (B, H, T) of all parts of all stacks, laid end to end;
    `k_order` the same of keys, whose blocks have one part each.
    """

    stacks: tuple[_Stack, ...]
    q_order: Tensor
    k_order: Tensor


def _rounded(lengths: Any, multiple: int = _LENGTH_STEP) -> Any:
    return -(-lengths // multiple) * multiple


def _rows(cu: np.ndarray, chosen: np.ndarray, multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns token numbers (B, T) of the chosen sequences and where they are real."""
    lengths = cu[chosen + 1] - cu[chosen]
    places = np.arange(_rounded(lengths.max(), multiple))
    real = places < lengths[:, None]
    return np.where(real, cu[chosen][:, None] + places, cu[chosen][:, None]), real


def _make_side(rows: np.ndarray, real: np.ndarray) -> _Side:
    return _Side(torch.from_numpy(rows), None if real.all() else torch.from_numpy(real[:, None, :, None]))


def _order(sides: Sequence[tuple[_Side, Sequence[tuple[int, int]]]], num_tokens: int, heads: int) -> Tensor:
    """Returns where each head of each token is found in blocks (B, H, T), given for each side the places that its blocks reach over."""
    order, at = np.empty((num_tokens, heads), np.int64), 0
    for side, spans in sides:
        rows = side.rows.numpy()
        real = np.ones_like(rows, bool) if side.is_real is None else side.is_real.numpy()[:, 0, :, 0]
        for first, stop in spans:
            numbers = at + np.arange(len(rows) * heads * (stop - first)).reshape(len(rows), heads, -1)
            order[rows[:, first:stop][real[:, first:stop]]] = numbers.swapaxes(1, 2)[real[:, first:stop]]
            at += numbers.size
    return torch.from_numpy(order.reshape(-1))


def _make_stack(
    cu_q: np.ndarray, cu_k: np.ndarray, chosen: np.ndarray, dtype: torch.dtype, *, causal: bool, flash: bool
) -> _Stack:
    multiple = 1 if flash else _LENGTH_STEP
    q_rows, q_real = _rows(cu_q, chosen, multiple)
    k_rows, k_real = _rows(cu_k, chosen, multiple)
    num_q, num_k = q_rows.shape[1], k_rows.shape[1]
    hidden = ~k_real[:, None, None, :]
    parts: tuple[tuple[int, int, int, int], ...] = ((0, num_q, num_k, 0),)
    if causal and not flash:
        shift = (k_real.sum(1) - q_real.sum(1))[:, None, None, None]
        later = np.arange(num_k) > np.arange(num_q)[:, None] + shift
        if shift.any():  # padded queries see everything, so that their softmax stays finite
            hidden = (hidden | later) & q_real[:, None, :, None]
        else:
            hidden = later[:1]  # padded keys lie behind all queries that count
            size = max(_CAUSAL_QUERIES, int(_rounded(num_q / (2 if num_q < 512 else 4))))
            parts = tuple((a, min(a + size, num_q), min(a + size, num_k), a) for a in range(0, num_q, size))
    bias = torch.where(torch.from_numpy(hidden), -torch.inf, 0.0).to(dtype) if not flash and hidden.any() else None
    return _Stack(_make_side(q_rows, q_real), _make_side(k_rows, k_real), bias, flash, parts)


def _groups(q_lengths: np.ndarray, k_lengths: np.ndarray, heads: int) -> list[np.ndarray]:
    """Returns which sequences are stacked together: sorted by length and cut where scores and stacks cost least together.

    A stack computes the square of its longest sequence for each; and every further stack costs what `_STACK_COST` scores cost.
    """
    if not len(k_lengths):
        return []
    order = np.lexsort((q_lengths, k_lengths))
    longest_k = _rounded(k_lengths[order])
    longest_q = _rounded(np.maximum.accumulate(q_lengths[order]))
    # A cut within one step of length saves nothing.
    ends = np.append(np.flatnonzero(np.diff(longest_k)) + 1, len(order))
    starts = np.concatenate([[0], ends])
    best, cut = [0.0], [0]  # cost of the sequences up to each end, and where their last stack begins
    for end in ends:
        area = heads * float(longest_q[end - 1] * longest_k[end - 1])
        costs = [before + _STACK_COST + (end - start) * area for before, start in zip(best, starts, strict=False)]
        best.append(min(costs))
        cut.append(costs.index(best[-1]))
    groups, at = [], len(ends)
    while at:
        groups.append(order[starts[cut[at]] : starts[at]])
        at = cut[at]
    return groups[::-1]


@lru_cache(maxsize=4)
def _plan(cu_q_bytes: bytes, cu_k_bytes: bytes, heads: int, causal: bool, dtype: torch.dtype, flash_from: int) -> _Plan:
    """Sorts sequences into stacks. Every layer of a step asks with the same boundaries, so the answer is kept.

    As many answers are kept as one step asks for: what stays longer lies between the memory of later steps.
    """
    cu_q, cu_k = (np.frombuffer(x, np.int32).astype(np.int64) for x in (cu_q_bytes, cu_k_bytes))
    q_lengths, k_lengths = np.diff(cu_q), np.diff(cu_k)
    if len(q_lengths) and min(q_lengths.min(), k_lengths.min()) <= 0:
        raise ValueError("attend: a sequence without a token; leave empty texts out of the batch")
    if causal and (k_lengths < q_lengths).any():
        raise ValueError("attend: a causal sequence has fewer keys than queries")
    exact = (q_lengths >= flash_from) & (k_lengths >= flash_from) & ((q_lengths == k_lengths) | (not causal))
    stacks = []
    shapes, which = np.unique(np.stack([q_lengths, k_lengths])[:, exact], axis=1, return_inverse=True)
    for number in range(shapes.shape[1]):
        chosen = np.flatnonzero(exact)[which.reshape(-1) == number]
        stacks.append(_make_stack(cu_q, cu_k, chosen, dtype, causal=causal, flash=True))
    others = np.flatnonzero(~exact)
    for group in _groups(q_lengths[others], k_lengths[others], heads):
        chosen = np.sort(others[group])
        scores = heads * int(_rounded(q_lengths[chosen].max()) * _rounded(k_lengths[chosen].max()))
        num_parts = -(-len(chosen) * scores // _SCORES_AT_ONCE)
        for part in np.array_split(chosen, min(num_parts, len(chosen))):
            stacks.append(_make_stack(cu_q, cu_k, part, dtype, causal=causal, flash=False))
    spans = [(stack.q, [part[:2] for part in stack.parts]) for stack in stacks]
    whole = [(stack.k, [(0, stack.k.rows.shape[1])]) for stack in stacks]
    return _Plan(tuple(stacks), _order(spans, int(cu_q[-1]), heads), _order(whole, int(cu_k[-1]), heads))


def _plan_for(q: Tensor, cu_q: Tensor, cu_k: Tensor, causal: bool) -> _Plan:
    flash_from = FLASH_FROM if q.dtype == torch.float32 else 2**31
    return _plan(cu_q.numpy().tobytes(), cu_k.numpy().tobytes(), q.shape[1], causal, q.dtype, flash_from)


def _reader(x: Tensor) -> Callable[[_Side], Tensor]:
    """Returns a function from a side of a stack to its block (B, H, T, K), one copy, also of a slice of a larger tensor."""
    heads, size = x.shape[1:]
    if x.stride(2) != 1 or x.stride(1) != size or x.stride(0) % size:
        x = x.contiguous()
    step = x.stride(0) // size
    flat = x.as_strided(((x.shape[0] - 1) * step + heads, size), (size, 1))

    def read(side: _Side) -> Tensor:
        places = side.places(heads, step)
        return flat.index_select(0, places).view(-1, heads, side.rows.shape[1], size)

    return read


def _gathered(blocks: Sequence[Tensor], order: Tensor, like: Tensor) -> Tensor:
    """Returns a tensor like the given one from the blocks (B, H, T, *rest) of all stacks, see `_Plan`; rows past the last token are zero.

    To put rows into one block and take them from there in order is several times faster than to write each to its place.
    """
    rest = like.shape[2:]
    rows = torch.cat([block.reshape(-1, *rest) for block in blocks])
    num_tokens = len(order) // like.shape[1]
    if num_tokens == len(like):
        return rows.index_select(0, order).view(like.shape)
    out = like.new_empty(like.shape)
    torch.index_select(rows, 0, order, out=out[:num_tokens].view(-1, *rest))
    out[num_tokens:].zero_()
    return out


def _probabilities(q: Tensor, k: Tensor, stack: _Stack, part: tuple[int, int, int, int]) -> Tensor:
    """Returns softmax(q k^T / sqrt(K)) for a part of the queries of a block, (B*H, queries, keys).

    Args:
        q: Of the block, (B*H, T_q, K).
        k: Likewise, (B*H, T_k, K).
        stack: That the block is of.
        part: Which queries, how many keys they see, and how many of these are hidden from none.
    """
    first, stop, seen, free = part
    scores = torch.baddbmm(
        q.new_empty(1, 1, 1), q[:, first:stop], k[:, :seen].transpose(1, 2), beta=0, alpha=q.shape[2] ** -0.5
    )
    if stack.bias is not None:
        bias = stack.bias if stack.bias.shape[2] == 1 else stack.bias[:, :, first:stop]
        scores.view(len(bias), -1, stop - first, seen)[..., free:].add_(bias[..., free:seen])
    return torch.softmax(scores, -1)


def _forward_bmm(q: Tensor, k: Tensor, v: Tensor, stack: _Stack) -> tuple[list[Tensor], list[Tensor]]:
    """Returns what each part of a block (B, H, T_q, K) of queries gathers, (B*H, queries, K), and its probabilities."""
    size = q.shape[-1]
    flat_q, flat_k, flat_v = (x.view(-1, x.shape[2], size) for x in (q, k, v))
    probabilities = [_probabilities(flat_q, flat_k, stack, part) for part in stack.parts]
    return [torch.bmm(p, flat_v[:, : p.shape[2]]) for p in probabilities], probabilities


def forward_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    causal: bool,
    kept: list[list[Tensor] | None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Forward; `kept` receives the probabilities of each stack for the backward, as long as there is room for them."""
    room = 0 if kept is None else _KEPT_SCORES
    if int(cu_q[-1]) > q.shape[0]:
        raise ValueError(f"attend: cu_q ends at {int(cu_q[-1])}, there are {q.shape[0]} tokens")
    read_q, read_k, read_v = _reader(q), _reader(k), _reader(v)
    blocks, logs = [], []
    plan = _plan_for(q, cu_q, cu_k, causal)
    for stack in plan.stacks:
        bq, bk, bv = read_q(stack.q), read_k(stack.k), read_v(stack.k)
        if stack.flash:
            block, of_block = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(bq, bk, bv, 0.0, causal)
            blocks.append(block)
        else:
            of_parts, probabilities = _forward_bmm(bq, bk, bv, stack)
            of_block = bq.new_zeros(bq.shape[:3], dtype=torch.float32)
            blocks += of_parts
        logs.append(of_block)
        if kept is not None:
            number = 0 if stack.flash else sum(p.numel() for p in probabilities)
            is_kept = not stack.flash and number <= room
            kept.append(probabilities if is_kept else None)
            room -= number if is_kept else 0
    lse = q.new_zeros(q.shape[:2], dtype=torch.float32)
    if any(stack.flash for stack in plan.stacks):
        lse = _gathered(logs, plan.q_order, lse)
    return _gathered(blocks, plan.q_order, q), lse


def backward_cpu(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    causal: bool,
    kept: list[list[Tensor] | None] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    read_q, read_k, read_v, read_grad, read_out, read_lse = map(_reader, (q, k, v, grad, out, lse[..., None]))
    plan = _plan_for(q, cu_q, cu_k, causal)
    dq, dk, dv = [], [], []
    for number, stack in enumerate(plan.stacks):
        bq, bk, bv, bg = read_q(stack.q), read_k(stack.k), read_v(stack.k), read_grad(stack.q)
        if stack.flash:
            bo, bl = read_out(stack.q), read_lse(stack.q)[..., 0]
            of_q, of_k, of_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                bg, bq, bk, bv, bo, bl, 0.0, causal
            )
            of_parts = [of_q]
        else:
            of_parts, of_k, of_v = _backward_bmm(bg, bq, bk, bv, stack, kept[number] if kept else None)
        dq += of_parts
        dk.append(of_k)
        dv.append(of_v)
    return _gathered(dq, plan.q_order, q), _gathered(dk, plan.k_order, k), _gathered(dv, plan.k_order, v)


def _backward_bmm(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, stack: _Stack, kept: list[Tensor] | None
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Returns the gradients of each part of the queries of a block (B, H, T, K), of its keys and of its values, (B*H, T, K) each.

    Probabilities that were not kept are computed again.
    """
    b, h, _, size = q.shape
    if stack.q.is_real is not None:
        grad.mul_(stack.q.is_real)
    q, k, v, grad = (x.view(b * h, -1, size) for x in (q, k, v, grad))
    nothing = q.new_empty(1, 1, 1)
    dq, dk, dv = [], nothing, nothing
    for number, part in reversed(list(enumerate(stack.parts))):  # the last one sees all keys, the others add to it
        first, stop, seen, _ = part
        p = kept[number] if kept is not None else _probabilities(q, k, stack, part)
        of_part = grad[:, first:stop]
        dp = torch.bmm(of_part, v[:, :seen].transpose(1, 2))
        ds = torch.ops.aten._softmax_backward_data(dp, p, -1, dp.dtype)
        dq.append(torch.baddbmm(nothing, ds, k[:, :seen], beta=0, alpha=size**-0.5))
        if number == len(stack.parts) - 1:
            dv = torch.bmm(p.transpose(1, 2), of_part)
            dk = torch.baddbmm(nothing, ds.transpose(1, 2), q[:, first:stop], beta=0, alpha=size**-0.5)
        else:
            dv[:, :seen].baddbmm_(p.transpose(1, 2), of_part)
            dk[:, :seen].baddbmm_(ds.transpose(1, 2), q[:, first:stop], alpha=size**-0.5)
    return dq[::-1], dk, dv
