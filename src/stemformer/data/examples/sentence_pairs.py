"""Sentence pairs for next-sentence and sentence-order prediction.

A chunk (see `packing.py`) is split into A and B. Half the time, B is replaced by a random text of
another document (next sentence), or A and B are swapped (sentence order). Only the text may reveal
the label, so a random B has the kinds of boundaries of the true one and about its length.

Source: Devlin et al. 2019, section 3.1, task 2, and appendix A.2; sentence order: Lan et al. 2020,
section 3.1. Where we differ: the 2018 code continues after A if B was replaced; here every epoch
uses the same chunks, and the replaced tokens are counted. A chunk of a single sentence is split
inside it; the 2018 code always gives it a random B.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from stemformer.data.examples.packing import RawExample, ShardDataset, read_raw_example, split_documents
from stemformer.data.shards.reader import Shards
from stemformer.errors import ConfigError, DataError

# [CLS] A [SEP] B [SEP].
_NUM_SPECIAL = 3
# Random chunks searched for a replacement of B; more make its length closer.
_NUM_CANDIDATES = 4
# For spans that do not fit: more tokens than any chunk holds.
_PENALTY = 2**40


@dataclass(frozen=True)
class SentencePairDataset(ShardDataset):
    """Pairs of texts, one per document chunk."""

    # First token of each chunk, in corpus order.
    starts: Int[np.ndarray, "c"]
    # Its end (exclusive).
    stops: Int[np.ndarray, "c"]
    # Is B the continuation of A, or are A and B in order?
    task: Literal["next", "order"]
    # Probability that a pair is shortened to a random length.
    short_seq_prob: float
    # Chunks of a single word, which cannot be split.
    num_left_out: int

    def __len__(self) -> int:
        return len(self.starts)

    def get_example(self, index: int, rng: np.random.Generator) -> RawExample:
        """Return a pair made from a chunk; all random choices come from `rng`."""
        start, stop = int(self.starts[index]), int(self.stops[index])
        if rng.random() < self.short_seq_prob:
            stop = self._shorten(start, stop, target=int(rng.integers(2, self.sequence_length - _NUM_SPECIAL + 1)))
        boundaries = self._sentence_starts(start, stop)
        boundaries = boundaries if len(boundaries) else self._word_starts(start, stop)
        middle = int(boundaries[rng.integers(len(boundaries))])
        a, b = (start, middle), (middle, stop)
        label = int(rng.random() < 0.5)
        num_dropped = int(self.stops[index]) - stop
        if label and self.task == "order":
            a, b = b, a
        elif label:
            b = self._random_text(index, b, max_tokens=self.sequence_length - _NUM_SPECIAL - (middle - start), rng=rng)
            num_dropped += stop - middle
        return replace(read_raw_example(self.shards, [a, b], [0, 1]), label=label, num_dropped_tokens=num_dropped)

    # Sentence and word starts strictly inside a span.
    def _sentence_starts(self, start: int, stop: int) -> Int[np.ndarray, "s"]:
        starts = self.shards.sentence_starts
        return starts[np.searchsorted(starts, start, side="right") : np.searchsorted(starts, stop, side="left")]

    def _word_starts(self, start: int, stop: int) -> Int[np.ndarray, "w"]:
        return start + 1 + np.flatnonzero(self.shards.word_starts(start + 1, stop))

    def _is_sentence_start(self, positions: Int[np.ndarray, "p"]) -> Bool[np.ndarray, "p"]:
        starts = self.shards.sentence_starts
        return starts[np.searchsorted(starts, positions)] == positions

    def _shorten(self, start: int, stop: int, *, target: int) -> int:
        """Return the last sentence end within `target`, `stop` if that is not possible."""
        ends = self._sentence_starts(start, stop)
        ends = ends[ends - start <= target]
        return int(ends[-1]) if len(ends) and len(self._word_starts(start, int(ends[-1]))) else stop

    def _random_text(
        self, index: int, replaced: tuple[int, int], *, max_tokens: int, rng: np.random.Generator
    ) -> tuple[int, int]:
        """Return a span of another document with the boundaries of the replaced text and about its length."""
        starts_sentence, ends_sentence = self._is_sentence_start(np.array(replaced))
        length = replaced[1] - replaced[0]
        documents = self._documents
        first, last = np.searchsorted(documents, [documents[index], documents[index] + 1])
        spans: list[tuple[int, int]] = []
        for other in rng.integers(len(self) - (last - first), size=_NUM_CANDIDATES).tolist():
            # Skip the chunks of the document itself.
            other += int((last - first) * (other >= first))
            start, stop = int(self.starts[other]), int(self.stops[other])
            bounds = np.concatenate([[start], self._word_starts(start, stop), [stop]])
            is_sentence = self._is_sentence_start(bounds)
            starts, stops = (bounds[is_sentence == kind] for kind in (starts_sentence, ends_sentence))
            if not (len(starts) and len(stops) and starts[0] < stops[-1]):
                starts, stops = bounds[:1], bounds[-1:]
            # Longer spans than fit come last: if cut, they would end where no true text does.
            lengths = stops[None, :] - starts[:, None]
            distance = np.abs(lengths - length) + _PENALTY * (lengths > max_tokens)
            distance[lengths <= 0] = 2 * _PENALTY
            i, j = np.unravel_index(distance.argmin(), distance.shape)
            spans.append((int(starts[i]), int(stops[j])))
        start, stop = min(spans, key=lambda span: (span[1] - span[0] > max_tokens, abs(span[1] - span[0] - length)))
        if stop - start > max_tokens:
            words = self._word_starts(start, start + max_tokens + 1)
            stop = int(words[-1]) if len(words) else start + max_tokens
        return start, stop

    @cached_property
    def _documents(self) -> Int[np.ndarray, "c"]:
        return np.searchsorted(self.shards.document_starts, self.starts, side="right") - 1


def make_sentence_pairs(
    shards: Shards, *, sequence_length: int, task: Literal["next", "order"] = "next", short_seq_prob: float = 0.1
) -> SentencePairDataset:
    """Return the sentence pairs of a split; arguments as in `SentencePairDataset`."""
    if sequence_length < (least := _NUM_SPECIAL + 2):
        raise ConfigError(f"sequence_length is {sequence_length}: expected at least {least}, for two texts of a token.")
    starts, stops = split_documents(shards, max_tokens=sequence_length - _NUM_SPECIAL, ends="sentence")
    # A chunk can be split between sentences, or else between words.
    sentences = shards.sentence_starts
    is_single = np.searchsorted(sentences, starts, side="right") == np.searchsorted(sentences, stops, side="left")
    can_split = np.ones(len(starts), bool)
    for i in np.flatnonzero(is_single).tolist():
        can_split[i] = shards.word_starts(int(starts[i]) + 1, int(stops[i])).any()
    num_left_out = int((~can_split).sum())
    starts, stops = starts[can_split], stops[can_split]
    num_tokens = int((stops - starts + _NUM_SPECIAL).sum())
    pairs = SentencePairDataset(shards, sequence_length, num_tokens, starts, stops, task, short_seq_prob, num_left_out)
    if len(pairs) == 0:
        problem = "No text can be split into two: every document is a single word"
        raise DataError(f"{problem}. Use objective.sentences=none with such text.")
    if task == "next" and len(np.unique(pairs._documents)) < 2:
        is_held_out = shards.split == "held_out"
        option = "a larger --held-out" if is_held_out else "--documents, which sets where documents end"
        problem = "Next-sentence prediction needs a second document to take random texts from"
        advice = f"Prepare the text with {option}, or use objective.sentences=order."
        raise DataError(f"{problem}; the {shards.split} split has one. {advice}")
    return pairs
