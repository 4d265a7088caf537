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
    """One training example: `n` tokens, special tokens included, in `s` sequences; see `Batch`."""

    input_ids: Int[np.ndarray, "n"]
    # Sum to n.
    lengths: Int[np.ndarray, "s"]
    label_positions: Int[np.ndarray, "m"]
    labels: Int[np.ndarray, "m"]
    # 0 everywhere.
    token_type_ids: Int[np.ndarray, "n"] | None = None
    sequence_labels: Shaped[np.ndarray, "s ..."] | None = None
    num_dropped_tokens: int = 0
    # The first token of each sequence.
    summary_positions: Int[np.ndarray, "s"] | None = None
    is_causal: bool = False


@dataclass(frozen=True)
class Batch:
    """Batch without padding: `N` tokens in `S` sequences, `M` of them scored; ids are int64.

    Attributes:
        position_ids: Position within the sequence, from 0.
        cu_seqlens: (S+1,) int32 sequence boundaries; the last entry is N.
        labels: Target ids at `label_positions`; `IGNORE_INDEX` is not scored.
        summary_positions: Tokens whose states represent their sequences.
        example_numbers: Indices of the examples in their data set, for error messages.
        sequence_labels: Labels of sequences, int64 or float32, if there are any.
        num_dropped_tokens: Number of corpus tokens replaced by a random text or cut off.
        is_causal: Whether each token sees the earlier ones only, in a model that is not causal itself.
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
    is_causal: bool = False

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
    """Concatenate examples into a batch."""
    lengths = np.concatenate([e.lengths for e in examples])
    if lengths.min() < 1:
        raise DataError(f"One of the examples {list(example_numbers)} has a sequence without a token.")
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])  # (S+1,)
    segments = [np.zeros_like(e.input_ids) if e.token_type_ids is None else e.token_type_ids for e in examples]
    sequence_labels = [e.sequence_labels for e in examples if e.sequence_labels is not None]
    label_dtype = np.float32 if any(labels.dtype.kind == "f" for labels in sequence_labels) else np.int64
    # Positions within an example become positions within the batch by adding the example's offset.
    sizes = np.array([len(e.input_ids) for e in examples])
    offset_examples = list(zip(np.cumsum(sizes) - sizes, examples, strict=True))
    summary_positions = [
        offset + (np.cumsum(e.lengths) - e.lengths if e.summary_positions is None else e.summary_positions)
        for offset, e in offset_examples
    ]
    return Batch(
        input_ids=_concatenate([e.input_ids for e in examples]),
        position_ids=_concatenate([np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths)]),
        token_type_ids=_concatenate(segments),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        max_seqlen=int(lengths.max()),
        label_positions=_concatenate([offset + e.label_positions for offset, e in offset_examples]),
        labels=_concatenate([e.labels for e in examples]),
        summary_positions=_concatenate(summary_positions),
        example_numbers=tuple(int(n) for n in example_numbers),
        sequence_labels=_concatenate(sequence_labels, label_dtype) if sequence_labels else None,
        num_dropped_tokens=sum(e.num_dropped_tokens for e in examples),
        is_causal=examples[0].is_causal,
    )


def pad_to_bucket_sizes(batch: Batch) -> Batch:
    """Pad a batch on the CPU to bucketed sizes, which limits the number of different shapes.

    The padding tokens (about 1 in 16 at most, more if sequences are very short) form extra
    sequences; extra labels are `IGNORE_INDEX`. Sequence labels must be integers.
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


def _concatenate(arrays: Sequence[np.ndarray], dtype: type[np.generic] = np.int64) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays).astype(dtype))
