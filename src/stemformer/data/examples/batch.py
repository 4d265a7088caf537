"""Examples and batches of flat tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, Shaped
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
    # Inputs of a decoder and their lengths, for each sequence; labels are at positions of these.
    decoder_input_ids: Int[np.ndarray, "t"] | None = None
    decoder_lengths: Int[np.ndarray, "s"] | None = None
    # Whether each label is a token that the source has.
    is_copied: Bool[np.ndarray, "m"] | None = None


@dataclass(frozen=True)
class Run:
    """Flat tokens of a decoder: sequence `s` belongs to sequence `s` of the batch.

    Attributes:
        position_ids: Position within the sequence, from 0.
        cu_seqlens: (S+1,) int32 sequence boundaries; the last entry is T.
    """

    input_ids: Int[Tensor, "T"]
    position_ids: Int[Tensor, "T"]
    cu_seqlens: Int[Tensor, "S1"]
    max_seqlen: int

    def to(self, device: torch.device) -> "Run":
        """Move the tokens to a device, as `Batch.to` does."""
        moved: Run = _moved(self, device)
        return moved


@dataclass(frozen=True)
class Batch:
    """Batch without padding: `N` tokens in `S` sequences, `M` of them scored; ids are int64.

    Attributes:
        position_ids: Position within the sequence, from 0.
        cu_seqlens: (S+1,) int32 sequence boundaries; the last entry is N.
        label_positions: Tokens whose states are scored; of the decoder, if there is one.
        labels: Target ids at `label_positions`; `IGNORE_INDEX` is not scored.
        summary_positions: Tokens whose states represent their sequences.
        example_numbers: Indices of the examples in their data set, for error messages.
        sequence_labels: Labels of sequences, int64 or float32, if there are any.
        num_dropped_tokens: Number of corpus tokens replaced by a random text or cut off.
        is_causal: Whether each token sees the earlier ones only, in a model that is not causal itself.
        decoder: Inputs of the decoder of an encoder-decoder.
        is_copied: Whether each label is a token that the encoder sees, in denoising.
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
    decoder: Run | None = None
    is_copied: Bool[Tensor, "M"] | None = None

    @property
    def num_tokens(self) -> int:
        """Number of tokens, those of the decoder included."""
        return len(self.input_ids) + (0 if self.decoder is None else len(self.decoder.input_ids))

    def to(self, device: torch.device) -> "Batch":
        """Move the batch to a device; copies to an accelerator are asynchronous."""
        moved: Batch = _moved(self, device)
        return moved if self.decoder is None else replace(moved, decoder=self.decoder.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name, but those of the decoder."""
        return _tensors(self)


def _tensors(parts: Any) -> dict[str, Tensor]:
    return {f.name: x for f in fields(parts) if isinstance(x := getattr(parts, f.name), Tensor)}


def _moved(parts: Any, device: torch.device) -> Any:
    if device.type == "cpu":
        return parts
    moved = {name: x.pin_memory().to(device, non_blocking=True) for name, x in _tensors(parts).items()}
    return replace(parts, **moved)


def collate(examples: Sequence[Example], example_numbers: Sequence[int]) -> Batch:
    """Concatenate examples into a batch."""
    tokens = _make_run([e.input_ids for e in examples], [e.lengths for e in examples], example_numbers)
    decoder_ids = [e.decoder_input_ids for e in examples if e.decoder_input_ids is not None]
    decoder_lengths = [e.decoder_lengths for e in examples if e.decoder_lengths is not None]
    decoder = _make_run(decoder_ids, decoder_lengths, example_numbers) if decoder_ids else None
    segments = [np.zeros_like(e.input_ids) if e.token_type_ids is None else e.token_type_ids for e in examples]
    sequence_labels = [e.sequence_labels for e in examples if e.sequence_labels is not None]
    label_dtype = np.float32 if any(labels.dtype.kind == "f" for labels in sequence_labels) else np.int64
    # Positions within an example become positions within the batch by adding the example's offset.
    offsets = _offsets([e.input_ids for e in examples])
    summary_positions = [
        offset + (np.cumsum(e.lengths) - e.lengths if e.summary_positions is None else e.summary_positions)
        for offset, e in zip(offsets, examples, strict=True)
    ]
    copied = [e.is_copied for e in examples if e.is_copied is not None]
    label_offsets = _offsets(decoder_ids) if decoder_ids else offsets
    label_positions = [offset + e.label_positions for offset, e in zip(label_offsets, examples, strict=True)]
    return Batch(
        input_ids=tokens.input_ids,
        position_ids=tokens.position_ids,
        token_type_ids=_concatenate(segments),
        cu_seqlens=tokens.cu_seqlens,
        max_seqlen=tokens.max_seqlen,
        label_positions=_concatenate(label_positions),
        labels=_concatenate([e.labels for e in examples]),
        summary_positions=_concatenate(summary_positions),
        example_numbers=tuple(int(n) for n in example_numbers),
        sequence_labels=_concatenate(sequence_labels, label_dtype) if sequence_labels else None,
        num_dropped_tokens=sum(e.num_dropped_tokens for e in examples),
        is_causal=examples[0].is_causal,
        decoder=decoder,
        is_copied=_concatenate(copied, np.bool_) if copied else None,
    )


def _make_run(ids: Sequence[np.ndarray], lengths: Sequence[np.ndarray], example_numbers: Sequence[int]) -> Run:
    """Concatenate the sequences of examples."""
    sizes = np.concatenate(lengths)
    if sizes.min() < 1:
        raise DataError(f"One of the examples {list(example_numbers)} has a sequence without a token.")
    cu_seqlens = np.concatenate([[0], np.cumsum(sizes)])  # (S+1,)
    positions = np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], sizes)
    boundaries = torch.from_numpy(cu_seqlens.astype(np.int32))
    return Run(_concatenate(ids), _concatenate([positions]), boundaries, int(sizes.max()))


def _offsets(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return the index of the first token of each example in the batch."""
    sizes = np.array([len(ids) for ids in arrays])
    return np.cumsum(sizes) - sizes


def pad_to_bucket_sizes(batch: Batch) -> Batch:
    """Pad a batch on the CPU to bucketed sizes, which limits the number of different shapes.

    The padding tokens (about 1 in 16 at most, more if sequences are very short) form extra
    sequences; extra labels are `IGNORE_INDEX`. Sequence labels must be integers, and there must be no decoder.
    """
    assert batch.decoder is None, "an encoder-decoder has no bucket sizes"
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
