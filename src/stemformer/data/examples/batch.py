"""From a step's number to its batch.

What is in step `s` is a function of (data, seed, s) alone: example numbers come from a permutation computed by index, and whatever
is random about example `i` in epoch `e` from a generator keyed by (seed, e, i). Resuming needs no state of a loader.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int, Shaped
from torch import Tensor

from stemformer.errors import DataError


@dataclass(frozen=True)
class Example:
    """One example, special tokens included, ready to be put in a batch.

    Attributes:
        input_ids: (n,) what the model sees.
        lengths: (s,) tokens of each of the example's sequences; their sum is n.
        label_positions: (m,) places in `input_ids` that are scored.
        labels: (m,) what should stand there.
        token_type_ids: (n,) segments; None where all are the first.
        sequence_labels: (s, ...) what is asked about each sequence; None where nothing is.
        num_dropped_tokens: Tokens of the corpus that were left out for a random text.
        summary_positions: (s,) places in `input_ids` of the tokens whose states stand for whole sequences; None for the first of each.
    """

    input_ids: Int[np.ndarray, "n"]
    lengths: Int[np.ndarray, "s"]
    label_positions: Int[np.ndarray, "m"]
    labels: Int[np.ndarray, "m"]
    token_type_ids: Int[np.ndarray, "n"] | None = None
    sequence_labels: Shaped[np.ndarray, "s ..."] | None = None
    num_dropped_tokens: int = 0
    summary_positions: Int[np.ndarray, "s"] | None = None


@dataclass(frozen=True)
class Batch:
    """Some examples as one run of `N` tokens, `S` sequences and `M` scored places.

    Attributes:
        input_ids: (N,) int64.
        position_ids: (N,) place in the sequence, from 0.
        token_type_ids: (N,) segment.
        cu_seqlens: (S+1,) int32 offsets at which sequences begin, the last entry N.
        max_seqlen: Tokens of the longest sequence.
        label_positions: (M,) places among the N that are scored.
        labels: (M,) what should stand there.
        summary_positions: (S,) places among the N whose states stand for whole sequences.
        example_numbers: Which examples these are, for messages.
        sequence_labels: (S, ...) what is asked about each sequence, int64 or float32; None where nothing is.
        num_dropped_tokens: Tokens of the corpus that were left out for a random text.
    """

    input_ids: Int[Tensor, "N"]
    position_ids: Int[Tensor, "N"]
    token_type_ids: Int[Tensor, "N"]
    cu_seqlens: Int[Tensor, "S1"]
    max_seqlen: int
    label_positions: Int[Tensor, "M"]
    labels: Int[Tensor, "M"]
    summary_positions: Int[Tensor, "S"]
    example_numbers: tuple[int, ...]
    sequence_labels: Shaped[Tensor, "S ..."] | None = None
    num_dropped_tokens: int = 0

    def to(self, device: torch.device) -> "Batch":
        """Returns the same batch on a device; the copy does not wait for it."""
        if device.type == "cpu":
            return self
        moved = {name: x.pin_memory().to(device, non_blocking=True) for name, x in self.tensors().items()}
        return replace(self, **moved)  # type: ignore[arg-type]

    def tensors(self) -> dict[str, Tensor]:
        """Returns all tensors by name."""
        return {f.name: x for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)}


def collate(examples: Sequence[Example], example_numbers: Sequence[int]) -> Batch:
    """Returns the batch of some examples, in their order.

    Raises:
        DataError: An example has a sequence without a token.
    """
    lengths = np.concatenate([e.lengths for e in examples])
    if lengths.min() < 1:
        raise DataError(f"one of the examples {list(example_numbers)} has a sequence without a token")
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    sizes = [len(e.input_ids) for e in examples]
    before = np.concatenate([[0], np.cumsum(sizes)])[:-1]
    segments = [
        e.token_type_ids if e.token_type_ids is not None else np.zeros(n, np.int64)
        for e, n in zip(examples, sizes, strict=True)
    ]
    firsts = np.split(cu_seqlens[:-1], np.cumsum([len(e.lengths) for e in examples])[:-1])
    summaries = [
        first if e.summary_positions is None else e.summary_positions + at
        for e, first, at in zip(examples, firsts, before, strict=True)
    ]
    asked = [e.sequence_labels for e in examples if e.sequence_labels is not None]
    return Batch(
        input_ids=_long(np.concatenate([e.input_ids for e in examples])),
        position_ids=_long(np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths)),
        token_type_ids=_long(np.concatenate(segments)),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        max_seqlen=int(lengths.max()),
        label_positions=_long(np.concatenate([e.label_positions + at for e, at in zip(examples, before, strict=True)])),
        labels=_long(np.concatenate([e.labels for e in examples])),
        summary_positions=_long(np.concatenate(summaries)),
        example_numbers=tuple(int(n) for n in example_numbers),
        sequence_labels=_numbers(np.concatenate(asked)) if asked else None,
        num_dropped_tokens=sum(e.num_dropped_tokens for e in examples),
    )


def pad_to_bucket_sizes(batch: Batch) -> Batch:
    """Returns a batch with some more tokens, sequences and labels, of which nothing counts, so that few shapes occur.

    Further sequences hold the further tokens, about 1 in 16 at most (more where sequences are very short). Further labels are -100, asked
    for at the first token. Losses are those of the batch, and so are gradients. Of sequences that are asked about, labels must be whole
    numbers.

    Args:
        batch: On the CPU.

    Example:
        >>> batch = collate([Example(np.array([5, 6, 7]), np.array([3]), np.array([1]), np.array([9]))], [0])
        >>> [len(x) for x in (padded(batch).input_ids, padded(batch).cu_seqlens, padded(batch).labels)]
        [16, 9, 16]
    """
    n, num_labels, num_sequences = len(batch.input_ids), len(batch.labels), len(batch.cu_seqlens) - 1
    longest = 1 << (batch.max_seqlen - 1).bit_length()
    step = 1 << max(3, num_sequences.bit_length() - 2)
    further = step - num_sequences % step
    while (spare := _rounded_up(n + further) - n) > further * longest:
        further += step
    ends = n + torch.arange(1, further + 1) * spare // further
    more_labels = _rounded_up(num_labels) - num_labels
    labels = batch.sequence_labels
    return replace(
        batch,
        input_ids=F.pad(batch.input_ids, (0, spare)),
        position_ids=F.pad(batch.position_ids, (0, spare)),
        token_type_ids=F.pad(batch.token_type_ids, (0, spare)),
        cu_seqlens=torch.cat([batch.cu_seqlens, ends.int()]),
        max_seqlen=longest,
        label_positions=F.pad(batch.label_positions, (0, more_labels)),
        labels=F.pad(batch.labels, (0, more_labels), value=-100),
        summary_positions=F.pad(batch.summary_positions, (0, further)),
        sequence_labels=None if labels is None else F.pad(labels, (0, further), value=-100),
    )


def _rounded_up(n: int) -> int:
    step = 1 << max(4, n.bit_length() - 5)
    return -(-n // step) * step


def _long(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))


def _numbers(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)) if values.dtype.kind == "f" else _long(values)
