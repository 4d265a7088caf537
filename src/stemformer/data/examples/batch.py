"""Examples and batches of flat tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int, Shaped
from torch import Tensor

from stemformer.errors import DataError

IGNORE_INDEX = -100
"""Label that losses ignore, as in PyTorch."""


@dataclass(frozen=True)
class Example:
    """One training example: `n` tokens, special tokens included, in `s` sequences.

    Attributes:
        input_ids: (n,) token ids that the model sees.
        lengths: (s,) number of tokens of each sequence; they sum to n.
        label_positions: (m,) indices into `input_ids` that are scored.
        labels: (m,) target ids at these positions.
        token_type_ids: (n,) segment ids; None means 0 everywhere.
        sequence_labels: (s, ...) labels of sequences; None if the objective has none.
        num_dropped_tokens: Number of corpus tokens replaced by a random text or cut off.
        summary_positions: (s,) indices into `input_ids` of the tokens whose states represent their
            sequences; None means the first token of each.
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
    """Batch without padding: `N` tokens in `S` sequences, `M` of them scored.

    Attributes:
        input_ids: (N,) int64.
        position_ids: (N,) position within the sequence, from 0.
        token_type_ids: (N,) segment ids.
        cu_seqlens: (S+1,) int32 sequence boundaries; the last entry is N.
        max_seqlen: Length of the longest sequence.
        label_positions: (M,) indices into the N tokens that are scored.
        labels: (M,) target ids at these positions; `IGNORE_INDEX` is not scored.
        summary_positions: (S,) indices into the N tokens whose states represent their sequences.
        example_numbers: Indices of the examples in their data set, for error messages.
        sequence_labels: (S, ...) labels of sequences, int64 or float32, if there are any.
        num_dropped_tokens: Corpus tokens left out of these examples.
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
        """Move the batch to a device; copies to an accelerator are asynchronous."""
        if device.type == "cpu":
            return self
        moved = {name: x.pin_memory().to(device, non_blocking=True) for name, x in self.tensors().items()}
        return replace(self, **moved)  # type: ignore[arg-type]

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        return {f.name: x for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)}


def collate(examples: Sequence[Example], example_numbers: Sequence[int]) -> Batch:
    """Concatenate examples into a batch.

    Raises:
        DataError: An example has an empty sequence.
    """
    lengths = np.concatenate([e.lengths for e in examples])
    if lengths.min() < 1:
        raise DataError(f"One of the examples {list(example_numbers)} has a sequence without a token.")
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])  # (S+1,)
    sizes = [len(e.input_ids) for e in examples]
    # Positions within an example become positions within the batch by adding the example's offset.
    offsets = np.concatenate([[0], np.cumsum(sizes)])[:-1]
    label_positions = [e.label_positions + offset for e, offset in zip(examples, offsets, strict=True)]
    segments = [
        e.token_type_ids if e.token_type_ids is not None else np.zeros(n, np.int64)
        for e, n in zip(examples, sizes, strict=True)
    ]
    first_tokens = np.split(cu_seqlens[:-1], np.cumsum([len(e.lengths) for e in examples])[:-1])
    summary_positions = [
        first if e.summary_positions is None else e.summary_positions + offset
        for e, first, offset in zip(examples, first_tokens, offsets, strict=True)
    ]
    sequence_labels = [e.sequence_labels for e in examples if e.sequence_labels is not None]
    return Batch(
        input_ids=_to_long(np.concatenate([e.input_ids for e in examples])),
        position_ids=_to_long(np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths)),
        token_type_ids=_to_long(np.concatenate(segments)),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        max_seqlen=int(lengths.max()),
        label_positions=_to_long(np.concatenate(label_positions)),
        labels=_to_long(np.concatenate([e.labels for e in examples])),
        summary_positions=_to_long(np.concatenate(summary_positions)),
        example_numbers=tuple(int(n) for n in example_numbers),
        sequence_labels=_to_long_or_float(np.concatenate(sequence_labels)) if sequence_labels else None,
        num_dropped_tokens=sum(e.num_dropped_tokens for e in examples),
    )


def pad_to_bucket_sizes(batch: Batch) -> Batch:
    """Pad a batch on the CPU to bucketed sizes, which limits the number of different shapes.

    The padding tokens (about 1 in 16 at most, more if sequences are very short) form extra
    sequences; extra labels are `IGNORE_INDEX`. Losses and gradients do not change. Sequence labels
    must be integers.

    Example:
        >>> batch = collate([Example(np.array([5, 6, 7]), np.array([3]), np.array([1]), np.array([9]))], [0])
        >>> padded = pad_to_bucket_sizes(batch)
        >>> [len(x) for x in (padded.input_ids, padded.cu_seqlens, padded.labels)]
        [16, 9, 16]
    """
    num_tokens, num_labels, num_sequences = len(batch.input_ids), len(batch.labels), len(batch.cu_seqlens) - 1
    max_seqlen = 1 << (batch.max_seqlen - 1).bit_length()
    # Enough extra sequences to hold the padding tokens, none longer than `max_seqlen`.
    step = 1 << max(3, num_sequences.bit_length() - 2)
    extra_sequences = step - num_sequences % step
    while (padding := _round_up(num_tokens + extra_sequences) - num_tokens) > extra_sequences * max_seqlen:
        extra_sequences += step
    boundaries = num_tokens + torch.arange(1, extra_sequences + 1) * padding // extra_sequences
    extra_labels = _round_up(num_labels) - num_labels
    labels = batch.sequence_labels
    return replace(
        batch,
        input_ids=F.pad(batch.input_ids, (0, padding)),
        position_ids=F.pad(batch.position_ids, (0, padding)),
        token_type_ids=F.pad(batch.token_type_ids, (0, padding)),
        cu_seqlens=torch.cat([batch.cu_seqlens, boundaries.int()]),
        max_seqlen=max_seqlen,
        label_positions=F.pad(batch.label_positions, (0, extra_labels)),
        labels=F.pad(batch.labels, (0, extra_labels), value=IGNORE_INDEX),
        summary_positions=F.pad(batch.summary_positions, (0, extra_sequences)),
        sequence_labels=None if labels is None else F.pad(labels, (0, extra_sequences), value=IGNORE_INDEX),
    )


def _round_up(n: int) -> int:
    """Round up by at most 1 in 16, to a multiple of at least 16."""
    step = 1 << max(4, n.bit_length() - 5)
    return -(-n // step) * step


def _to_long(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))


def _to_long_or_float(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)) if values.dtype.kind == "f" else _to_long(values)
