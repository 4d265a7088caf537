"""What the tasks share: their settings, and examples made from labelled records."""

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


@dataclass(frozen=True)
class TaskExamples:
    """What a model sees of some records: one example each, or several windows of a long one.

    Attributes:
        examples: In the order of the records.
        records: (n,) number of the record that each belongs to.
        scored: For each example what its scores stand for: which words, or where its passage is. Empty where nothing needs to be known.
        counts: What was windowed, cut or could not be aligned, in words, with how often.
    """

    examples: Sequence[Example]
    records: Int[np.ndarray, "n"]
    scored: Sequence[Any]
    counts: dict[str, int]

    def __len__(self) -> int:
        return len(self.examples)

    def get_example(self, index: int, rng: np.random.Generator) -> Example:
        """Returns an example; nothing about it is random."""
        return self.examples[index]

    @cached_property
    def sizes(self) -> Int[np.ndarray, "n"]:
        """Tokens of each example."""
        return np.array([len(e.input_ids) for e in self.examples], np.int64)

    @property
    def num_tokens(self) -> int:
        """Tokens of all examples, special ones included."""
        return int(self.sizes.sum())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that is trained on."""
        digest = hashlib.sha256()
        for e in self.examples:
            for part in (e.input_ids, e.lengths, e.label_positions, e.labels, e.sequence_labels):
                digest.update(b"-" if part is None else np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()


def make_example(
    parts: Sequence[Int[np.ndarray, "_"]],
    tokenizer: Tokenizer,
    *,
    answer: Any = None,
    label_positions: Int[np.ndarray, "m"] | None = None,
    labels: Int[np.ndarray, "m"] | None = None,
) -> Example:
    """Returns `[CLS] a [SEP]`, or with two parts `[CLS] a [SEP] b [SEP]`, as one sequence, for which the state of `[CLS]` stands.

    A model that reads from left to right has each text begin as in pre-training, `<eos> a` or `<eos> a <eos> b`, and the state of the last
    token stands for all.

    Args:
        parts: Ids of the texts.
        tokenizer: Knows the special ids.
        answer: What is asked about the sequence; None where nothing is.
        label_positions: Places that are scored.
        labels: What they are.
    """
    begin = tokenizer.bos_token_id
    if begin is None:
        pieces = [np.array([tokenizer.cls_id]), *(x for part in parts for x in (part, np.array([tokenizer.sep_id])))]
    else:
        pieces = [x for part in parts for x in (np.array([begin]), part)]
    ids = np.concatenate(pieces).astype(np.int64)
    second = np.zeros(len(ids), np.int64)
    second[len(parts[0]) + 2 :] = 1
    none = np.empty(0, np.int64)
    return Example(
        ids,
        lengths=np.array([len(ids)]),
        label_positions=none if label_positions is None else label_positions,
        labels=none if labels is None else labels,
        token_type_ids=second,
        sequence_labels=None if answer is None else np.array([answer]),
        summary_positions=None if begin is None else np.array([len(ids) - 1]),
    )


def num_special(tokenizer: Tokenizer, *, num_texts: int) -> int:
    """Returns how many tokens `make_example` adds to those of the texts."""
    return num_texts + (tokenizer.bos_token_id is None)


def truncate_pair(first: int, second: int, room: int) -> tuple[int, int]:
    """Returns how many tokens of two texts fit into `room`: the longer one loses tokens until they do.

    Example:
        >>> trimmed(10, 3, 8)
        (5, 3)

    Source: Devlin et al. 2019, the released code (one token at a time from the longer text).
    """
    if first + second <= room:
        return first, second
    half = room // 2
    if first <= half:
        return first, room - first
    if second <= half:
        return room - second, second
    return room - half, half


def sliding_windows(length: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Returns begin and end of windows of at most `room` that cover `length` places, each sharing about `stride` with the one before.

    They share half of their places at most, whatever is asked, so that few tokens do not make many windows. They are as even as they can
    be, so the last one is not a stub.

    Example:
        >>> windows(10, 6, 2)
        [(0, 6), (4, 10)]
        >>> windows(5, 6, 2)
        [(0, 5)]
    """
    if length <= room:
        return [(0, length)]
    step = room - min(stride, room // 2)
    number = 1 + math.ceil((length - room) / step)
    begins = np.linspace(0, length - room, number).round().astype(int).tolist()
    return [(begin, begin + room) for begin in begins]
