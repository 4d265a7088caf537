"""Examples encoded from labelled records, and how texts are fitted into the model's length."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int

from stemformer.data.examples.batch import Example
from stemformer.data.tokenization.tokenizer import Tokenizer

_NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class TaskExamples:
    """Examples encoded from records, in their order: one per record, or several windows of a long one."""

    examples: Sequence[Example]
    # Index of the record of each example.
    records: Int[np.ndarray, "n"]
    # What the logits of an example refer to: indices of words (tagging), `Window` of the passage (question answering),
    # `WrittenPiece` of what is written (seq2seq).
    scored: Sequence[Any]
    # How often texts were split, truncated or could not be aligned, by description.
    counts: dict[str, int]
    # Tokens of each record (of multiple choice: of each option) before cutting, without special tokens.
    lengths: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def for_epoch(self, seed: int, epoch: int) -> "TaskExamples":
        """Return the examples of one epoch: all."""
        return self

    def get_example(self, index: int, rng: np.random.Generator) -> Example:
        return self.examples[index]

    @cached_property
    def sizes(self) -> Int[np.ndarray, "n"]:
        both = ((e.input_ids, e.decoder_input_ids) for e in self.examples)
        return np.array([len(ids) + (0 if other is None else len(other)) for ids, other in both], np.int64)

    @property
    def num_sequences(self) -> int:
        """Number of sequences; an example of multiple choice has one for each option."""
        return sum(len(example.lengths) for example in self.examples)

    @property
    def num_tokens(self) -> int:
        return int(self.sizes.sum())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the inputs and labels of all examples."""
        digest = hashlib.sha256()
        for e in self.examples:
            for part in (e.input_ids, e.lengths, e.label_positions, e.labels, e.sequence_labels):
                digest.update(b"-" if part is None else np.ascontiguousarray(part).tobytes())
            if e.decoder_input_ids is not None:
                digest.update(e.decoder_input_ids.tobytes())
        return digest.hexdigest()


def make_example(
    parts: Sequence[Int[np.ndarray, "_"]],
    tokenizer: Tokenizer,
    *,
    answer: Any = None,
    label_positions: Int[np.ndarray, "m"] = _NONE,
    labels: Int[np.ndarray, "m"] = _NONE,
) -> Example:
    """Build `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`; causal models read `<eos> a` or `<eos> a <eos> b`.

    The state of `[CLS]`, of a causal model that of the last token, represents the sequence; `answer`
    is its label.
    """
    bos = tokenizer.bos_token_id
    if bos is None:
        sep = [tokenizer.sep_token_id]
        pieces = [[tokenizer.cls_token_id], *(x for part in parts for x in (part, sep))]
    else:
        pieces = [x for part in parts for x in ([bos], part)]
    ids = np.concatenate(pieces).astype(np.int64)
    return Example(
        ids,
        lengths=np.array([len(ids)]),
        label_positions=label_positions,
        labels=labels,
        token_type_ids=(np.arange(len(ids)) >= len(parts[0]) + 2).astype(np.int64),
        sequence_labels=None if answer is None else np.array([answer]),
        summary_positions=None if bos is None else np.array([len(ids) - 1]),
    )


def num_special_tokens(tokenizer: Tokenizer, *, num_texts: int) -> int:
    """Return the number of tokens that `make_example` adds to those of the texts."""
    return num_texts + (tokenizer.bos_token_id is None)


def truncate_pair(first: int, second: int, max_tokens: int) -> tuple[int, int]:
    """Return the lengths of two texts after truncating the longer one, as in the code of Devlin et al. 2019."""
    if first + second <= max_tokens:
        return first, second
    # The shorter text keeps up to half of the tokens; of two longer ones, the second gets the smaller half.
    second = min(second, max(max_tokens // 2, max_tokens - first))
    return max_tokens - second, second


def sliding_windows(length: int, size: int, stride: int) -> list[tuple[int, int]]:
    """Return the bounds of even windows of at most `size`, which overlap by about `stride`."""
    if length <= size:
        return [(0, length)]
    step = size - min(stride, size // 2)
    number = 1 + math.ceil((length - size) / step)
    starts = np.linspace(0, length - size, number).round().astype(int).tolist()
    return [(start, start + size) for start in starts]
