"""CPU kernels of `attend()`: sequences sorted into length buckets, padded within each."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Minimum length for which float32 sequences use the flash kernel.
FLASH_FROM = 384
# Bucket lengths are multiples of this: full vector registers, also in bfloat16.
_LENGTH_MULTIPLE = 32
# Time cost of one more bucket, in number of scores.
_BUCKET_COST = 2**16
# Maximum number of scores of a bucket: 2 MiB in bfloat16, which stay in the cache.
_BUCKET_SCORES = 2**20
# Minimum number of queries of a causal chunk: half of a bucket's queries, from 512 a quarter.
_CAUSAL_QUERIES = 64
# Maximum number of probabilities kept for the backward pass: 8 MiB in bfloat16.
_KEPT_SCORES = 2**22

# Probabilities of each chunk of each bucket; None for a bucket whose probabilities are recomputed.
_KeptProbabilities = list[list[Tensor] | None]


@dataclass(frozen=True)
class _PaddedSide:
    """Queries or keys of `B` sequences; padding, which is not real, repeats the first token."""

    rows: Tensor  # (B, T) token numbers
    is_real: Tensor | None  # (B, 1, T, 1), None without padding
    _index: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def index(self, heads: int, step: int) -> Tensor:
        """Return the row of each head of each token (B * H * T,), with `step` rows per token."""
        if (heads, step) not in self._index:
            self._index[heads, step] = (self.rows[:, None, :] * step + torch.arange(heads)[:, None]).view(-1)
        return self._index[heads, step]


class _QueryChunk(NamedTuple):
    """Queries `first` to `stop` of a bucket, and the range of keys that some of them see."""

    first: int
    stop: int
    first_key: int
    stop_key: int
    # (B or 1, 1, queries or 1, last keys) 0 or -inf, in the dtype of the scores; None if nothing is masked.
    bias: Tensor | None = None


class _LengthBucket(NamedTuple):
    """Sequences of similar length as a block of `B` sequences, `T_q` queries and `T_k` keys."""

    q: _PaddedSide
    k: _PaddedSide
    flash: bool
    chunks: tuple[_QueryChunk, ...]


class _BucketPlan(NamedTuple):
    """Buckets of a batch, and the order that restores flat tokens from them."""

    buckets: tuple[_LengthBucket, ...]
    # (N * H) and (M * H) index of each head of each query and key in the blocks (B, H, T) of all chunks and buckets.
    q_order: Tensor
    k_order: Tensor


def _plan_for(q: Tensor, cu_q: Tensor, cu_k: Tensor, causal: bool, window: int | None = None) -> _BucketPlan:
    flash_from = FLASH_FROM if q.dtype == torch.float32 else 2**31
    return _plan(cu_q.numpy().tobytes(), cu_k.numpy().tobytes(), q.shape[1], causal, window, q.dtype, flash_from)


# Every layer of a step needs the same plan. Older plans would only fragment memory.
@lru_cache(maxsize=4)
def _plan(
    cu_q_bytes: bytes,
    cu_k_bytes: bytes,
    heads: int,
    causal: bool,
    window: int | None,
    dtype: torch.dtype,
    flash_from: int,
) -> _BucketPlan:
    """Sort sequences into buckets; raise ValueError for invalid sequences."""
    cu_q, cu_k = (np.frombuffer(x, np.int32).astype(np.int64) for x in (cu_q_bytes, cu_k_bytes))
    q_lengths, k_lengths = np.diff(cu_q), np.diff(cu_k)
    if len(q_lengths) and min(q_lengths.min(), k_lengths.min()) <= 0:
        raise ValueError("attend: a sequence is empty. Leave empty sequences out of the batch.")
    if (causal or window is not None) and (k_lengths < q_lengths).any():
        raise ValueError("attend: a sequence has fewer keys than queries, with a causal mask or a window.")

    # Long sequences: one flash bucket for each exact shape.
    is_flash = (q_lengths >= flash_from) & (k_lengths >= flash_from) & ((q_lengths == k_lengths) | (not causal))
    # With a window, chunks of queries need few of the keys.
    if window is not None:
        is_flash &= window >= k_lengths - 1
    long, others = np.flatnonzero(is_flash), np.flatnonzero(~is_flash)
    shapes, shape_index = np.unique(np.stack([q_lengths, k_lengths])[:, long], axis=1, return_inverse=True)
    groups = [long[shape_index.reshape(-1) == number] for number in range(shapes.shape[1])]
    options: dict[str, Any] = {"causal": causal, "window": window}
    buckets = [_make_bucket(cu_q, cu_k, group, dtype, flash=True, **options) for group in groups]

    # Others: buckets of similar lengths, each split so that its scores fit in the cache.
    for group in _group_by_length(q_lengths[others], k_lengths[others], heads):
        chosen = np.sort(others[group])
        scores = heads * int(_round_up(q_lengths[chosen].max()) * _round_up(k_lengths[chosen].max()))
        parts = np.array_split(chosen, min(-(-len(chosen) * scores // _BUCKET_SCORES), len(chosen)))
        buckets += [_make_bucket(cu_q, cu_k, part, dtype, flash=False, **options) for part in parts]

    q_blocks = [(bucket.q, [(chunk.first, chunk.stop) for chunk in bucket.chunks]) for bucket in buckets]
    k_blocks = [(bucket.k, [(0, bucket.k.rows.shape[1])]) for bucket in buckets]
    orders = (_flat_order(x, int(cu[-1]), heads) for x, cu in ((q_blocks, cu_q), (k_blocks, cu_k)))
    return _BucketPlan(tuple(buckets), *orders)


def _group_by_length(q_lengths: np.ndarray, k_lengths: np.ndarray, heads: int) -> list[np.ndarray]:
    """Group sequences of similar length: sort, and split at the least total cost of buckets and their scores."""
    if not len(k_lengths):
        return []
    order = np.lexsort((q_lengths, k_lengths))
    max_k = _round_up(k_lengths[order])
    max_q = _round_up(np.maximum.accumulate(q_lengths[order]))
    # Candidate bounds: where the rounded length changes.
    ends = np.append(np.flatnonzero(np.diff(max_k)) + 1, len(order))
    starts = np.concatenate([[0], ends])

    # Dynamic program: minimum cost up to each bound, and the start of the last group.
    best, split = [0.0], [0]
    for end in ends:
        area = heads * float(max_q[end - 1] * max_k[end - 1])
        costs = [cost + _BUCKET_COST + (end - start) * area for cost, start in zip(best, starts, strict=False)]
        best.append(min(costs))
        split.append(costs.index(best[-1]))

    # Follow the splits back from the end.
    groups, number = [], len(ends)
    while number:
        groups.append(order[starts[split[number]] : starts[number]])
        number = split[number]
    return groups[::-1]


def _make_bucket(
    cu_q: np.ndarray,
    cu_k: np.ndarray,
    chosen: np.ndarray,
    dtype: torch.dtype,
    *,
    causal: bool,
    window: int | None,
    flash: bool,
) -> _LengthBucket:
    multiple, num_real = 1 if flash else _LENGTH_MULTIPLE, len(chosen)
    if dtype != torch.float32:
        # Copies of the last sequence: oneDNN keeps a kernel for each number of sequences (`docs/log.md`).
        chosen = np.pad(chosen, (0, -num_real % (1 << max(0, num_real.bit_length() - 4))), "edge")
    q_rows, q_real = _padded_rows(cu_q, chosen, multiple)
    k_rows, k_real = _padded_rows(cu_k, chosen, multiple)
    is_own = np.arange(len(chosen))[:, None] < num_real
    q, k = (
        _PaddedSide(torch.from_numpy(rows), None if real.all() else torch.from_numpy(real[:, None, :, None]))
        for rows, real in ((q_rows, q_real & is_own), (k_rows, k_real & is_own))
    )
    if flash:
        return _LengthBucket(q, k, flash, (_QueryChunk(0, q_rows.shape[1], 0, k_rows.shape[1]),))
    return _LengthBucket(q, k, flash, tuple(_query_chunks(q_real, k_real, dtype, causal, window)))


def _query_chunks(
    q_real: np.ndarray, k_real: np.ndarray, dtype: torch.dtype, causal: bool, window: int | None
) -> Iterator[_QueryChunk]:
    """Yield chunks of the queries of a bucket, by which (B, T) queries and keys are real."""
    num_q, num_k = q_real.shape[1], k_real.shape[1]
    # Distances that hide nothing need no mask.
    window = None if window is None or window >= num_k - 1 else window
    # Distance of the last query to the last key.
    shift = (k_real.sum(1) - q_real.sum(1))[:, None, None, None]
    size, is_aligned = num_q, not shift.any()
    if is_aligned and window is not None:
        size = max(_CAUSAL_QUERIES, int(_round_up(window)))
    elif is_aligned and causal:
        size = max(_CAUSAL_QUERIES, int(_round_up(num_q / (2 if num_q < 512 else 4))))
    for first in range(0, num_q, size):
        stop, first_key, stop_key = min(first + size, num_q), 0, num_k
        if is_aligned and causal:
            stop_key = min(stop, num_k)
        if is_aligned and window is not None:
            first_key = max(0, first - window) // _LENGTH_MULTIPLE * _LENGTH_MULTIPLE
            stop_key = min(stop_key, int(_round_up(stop + window)))
        keys, own = np.arange(first_key, stop_key), np.arange(first, stop)[:, None] + shift  # (B, 1, queries, 1)
        hidden = ~k_real[:, None, None, first_key:stop_key]  # (B, 1, 1, keys)
        if causal or window is not None:
            far = keys > own + (0 if causal else window)  # (B, 1, queries, keys)
            far = far if window is None else far | (keys < own - window)
            if is_aligned and (causal or not hidden.any()):
                # Padded keys come after all real queries, so a causal mask hides them too.
                hidden = far[:1]
            else:
                # Padded queries see all keys, so that their softmax is finite.
                hidden = (hidden | far) & q_real[:, None, first:stop, None]
        # The mask begins before the first key that is hidden from some query.
        masked, bias = np.flatnonzero(hidden.any((0, 1, 2))), None
        if len(masked):
            from_key = masked[0] // _LENGTH_MULTIPLE * _LENGTH_MULTIPLE
            bias = torch.where(torch.from_numpy(hidden[..., from_key:]), -torch.inf, 0.0).to(dtype)
        yield _QueryChunk(first, stop, first_key, stop_key, bias)


def _round_up(lengths: Any, multiple: int = _LENGTH_MULTIPLE) -> Any:
    return -(-lengths // multiple) * multiple


def _padded_rows(cu: np.ndarray, chosen: np.ndarray, multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """Return token numbers (B, T), padded with a sequence's first, and whether they are real."""
    lengths = cu[chosen + 1] - cu[chosen]
    positions = np.arange(_round_up(lengths.max(), multiple))
    real = positions < lengths[:, None]
    return np.where(real, cu[chosen][:, None] + positions, cu[chosen][:, None]), real


def _flat_order(sides: Sequence[tuple[_PaddedSide, Sequence[tuple[int, int]]]], num_tokens: int, heads: int) -> Tensor:
    """Return the index (N * H) of each head of each token in the blocks (B, H, T) of `sides`."""
    order, offset = np.empty((num_tokens, heads), np.int64), 0
    for side, ranges in sides:
        rows = side.rows.numpy()
        real = np.ones_like(rows, bool) if side.is_real is None else side.is_real.numpy()[:, 0, :, 0]
        for first, stop in ranges:
            index = offset + np.arange(len(rows) * heads * (stop - first)).reshape(len(rows), heads, -1)  # (B, H, T)
            order[rows[:, first:stop][real[:, first:stop]]] = index.swapaxes(1, 2)[real[:, first:stop]]
            offset += index.size
    return torch.from_numpy(order.reshape(-1))


def _gatherer(x: Tensor) -> Callable[[_PaddedSide], Tensor]:
    """Return a function from a side to its block (B, H, T, K): one copy, also of a slice."""
    heads, size = x.shape[1:]
    if x.stride(2) != 1 or x.stride(1) != size or x.stride(0) % size:
        x = x.contiguous()
    step = x.stride(0) // size
    flat = x.as_strided(((x.shape[0] - 1) * step + heads, size), (size, 1))

    def gather(side: _PaddedSide) -> Tensor:
        return flat.index_select(0, side.index(heads, step)).view(-1, heads, side.rows.shape[1], size)

    return gather


def _restore_flat(blocks: Sequence[Tensor], order: Tensor, like: Tensor) -> Tensor:
    """Return flat tokens in the shape of `like`, padding zero, from blocks (B, H, T, *rest) of all buckets."""
    # Gathering from concatenated blocks is several times faster than scattering each.
    rest = like.shape[2:]
    rows = torch.cat([block.reshape(-1, *rest) for block in blocks])
    num_tokens = len(order) // like.shape[1]
    if num_tokens == len(like):
        return rows.index_select(0, order).view(like.shape)
    out = like.new_empty(like.shape)
    torch.index_select(rows, 0, order, out=out[:num_tokens].view(-1, *rest))
    out[num_tokens:].zero_()
    return out


def forward_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    causal: bool,
    window: int | None = None,
    kept: _KeptProbabilities | None = None,
) -> tuple[Tensor, Tensor]:
    """Return output (N, H, K) and log-sum-exp (N, H) of flash buckets; `kept` is for the backward."""
    if int(cu_q[-1]) > q.shape[0]:
        raise ValueError(f"attend: cu_q ends at {int(cu_q[-1])}, but there are {q.shape[0]} tokens.")
    gather_q, gather_k, gather_v = _gatherer(q), _gatherer(k), _gatherer(v)
    outputs, logs, budget, plan = [], [], _KEPT_SCORES, _plan_for(q, cu_q, cu_k, causal, window)
    for bucket in plan.buckets:
        bq, bk, bv = gather_q(bucket.q), gather_k(bucket.k), gather_v(bucket.k)  # (B, H, T, K)
        probabilities: list[Tensor] = []
        if bucket.flash:
            out, log = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(bq, bk, bv, 0.0, causal)
            outputs.append(out)
        else:
            log = bq.new_zeros(bq.shape[:3], dtype=torch.float32)
            bq, bk, bv = (x.flatten(0, 1) for x in (bq, bk, bv))  # (B*H, T, K)
            probabilities = [_probabilities(bq, bk, chunk) for chunk in bucket.chunks]
            outputs += [
                torch.bmm(p, bv[:, chunk.first_key : chunk.stop_key])
                for p, chunk in zip(probabilities, bucket.chunks, strict=True)
            ]
        logs.append(log)
        if kept is not None:
            size = sum(p.numel() for p in probabilities)
            kept.append(probabilities if size <= budget else None)
            budget -= size if size <= budget else 0
    lse = q.new_zeros(q.shape[:2], dtype=torch.float32)
    if any(bucket.flash for bucket in plan.buckets):
        lse = _restore_flat(logs, plan.q_order, lse)
    return _restore_flat(outputs, plan.q_order, q), lse


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
    window: int | None = None,
    kept: _KeptProbabilities | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v; probabilities that were not kept are recomputed."""
    gather_q, gather_k, gather_v = _gatherer(q), _gatherer(k), _gatherer(v)
    gather_grad, gather_out, gather_lse = _gatherer(grad), _gatherer(out), _gatherer(lse[..., None])
    dq, dk, dv, plan = [], [], [], _plan_for(q, cu_q, cu_k, causal, window)
    for number, bucket in enumerate(plan.buckets):
        bq, bk, bv, bg = gather_q(bucket.q), gather_k(bucket.k), gather_v(bucket.k), gather_grad(bucket.q)
        if bucket.flash:
            block_out, block_lse = gather_out(bucket.q), gather_lse(bucket.q)[..., 0]
            *chunk_dq, block_dk, block_dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                bg, bq, bk, bv, block_out, block_lse, 0.0, causal
            )
        else:
            chunk_dq, block_dk, block_dv = _backward_bmm(bg, bq, bk, bv, bucket, kept[number] if kept else None)
        dq += chunk_dq
        dk.append(block_dk)
        dv.append(block_dv)
    return _restore_flat(dq, plan.q_order, q), _restore_flat(dk, plan.k_order, k), _restore_flat(dv, plan.k_order, v)


def _probabilities(q: Tensor, k: Tensor, chunk: _QueryChunk) -> Tensor:
    """Return softmax(q k^T / sqrt(K) + bias) of a chunk, (B*H, queries, keys)."""
    first, stop, first_key, stop_key, bias = chunk
    keys = k[:, first_key:stop_key].transpose(1, 2)
    scores = torch.baddbmm(q.new_empty(1, 1, 1), q[:, first:stop], keys, beta=0, alpha=q.shape[2] ** -0.5)
    if bias is not None:
        by_sequence = scores.view(len(bias), -1, *scores.shape[1:])  # (B or 1, H or B*H, queries, keys)
        by_sequence[..., scores.shape[2] - bias.shape[3] :].add_(bias)
    return torch.softmax(scores, -1)


def _backward_bmm(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bucket: _LengthBucket, kept: list[Tensor] | None
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return the gradients of each chunk of queries, of keys and of values, (B*H, T, K)."""
    b, h, _, size = q.shape
    if bucket.q.is_real is not None:
        grad.mul_(bucket.q.is_real)
    q, k, v, grad = (x.view(b * h, -1, size) for x in (q, k, v, grad))  # (B*H, T, K)
    unused = q.new_empty(1, 1, 1)
    dq, dk, dv = [], unused, unused
    for number, chunk in reversed(list(enumerate(bucket.chunks))):
        first, stop, first_key, stop_key, _ = chunk
        p = kept[number] if kept is not None else _probabilities(q, k, chunk)  # (B*H, queries, keys)
        dout = grad[:, first:stop]
        dp = torch.bmm(dout, v[:, first_key:stop_key].transpose(1, 2))
        ds = torch.ops.aten._softmax_backward_data(dp, p, -1, dp.dtype)
        dq.append(torch.baddbmm(unused, ds, k[:, first_key:stop_key], beta=0, alpha=size**-0.5))
        if number == len(bucket.chunks) - 1 and stop_key - first_key == k.shape[1]:
            # The last chunk sees all keys and comes first; the others add to its dk and dv.
            dv = torch.bmm(p.transpose(1, 2), dout)
            dk = torch.baddbmm(unused, ds.transpose(1, 2), q[:, first:stop], beta=0, alpha=size**-0.5)
            continue
        if number == len(bucket.chunks) - 1:
            dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        dv[:, first_key:stop_key].baddbmm_(p.transpose(1, 2), dout)
        dk[:, first_key:stop_key].baddbmm_(ds.transpose(1, 2), q[:, first:stop], alpha=size**-0.5)
    return dq[::-1], dk, dv
