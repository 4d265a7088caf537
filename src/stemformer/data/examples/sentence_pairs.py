"""Pairs of texts: does B follow A, or which of the two comes first?

A *chunk* is a run of whole sentences of one document that fills a row, and an example. Its own generator splits it into A and B and
then, half the time, puts a text of another document in the place of B (next sentence) or B before A (sentence order). Nothing but
the text may give the answer away, so the strange B begins and ends as the true one does and is about as long.

Source: Devlin et al. 2019, section 3.1, task 2, and appendix A.2; sentence order: Lan et al. 2020, section 3.1. Where we differ: the
2018 code goes on behind the A of a displaced B, here every epoch looks at the same chunks and the displaced tokens are counted; and
a chunk of a single sentence is split within it, where the 2018 code gives it a random B always.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from stemformer.data.examples.packing import RawExample, read_raw_example, split_documents
from stemformer.data.shards.reader import Shards
from stemformer.errors import ConfigError, DataError

_NUM_SPECIAL = 3  # [CLS] A [SEP] B [SEP]
_CANDIDATES = 4
"""Random chunks that a strange text is looked for in; with more, its length says less."""
_FAR = 2**40
"""More tokens than a chunk holds."""


@dataclass(frozen=True)
class SentencePairDataset:
    """The examples of a split, as pairs.

    Attributes:
        shards: The token line.
        starts: First token of each chunk, in stream order.
        stops: One past the last.
        row_length: Tokens a pair may hold, special tokens included.
        task: What is asked: `next` or `order`.
        short_share: Share of the examples that are cut to a random length, so that short pairs are seen too.
        num_left_out: Chunks of a single word, which cannot be split.
    """

    shards: Shards
    starts: Int[np.ndarray, "c"]
    stops: Int[np.ndarray, "c"]
    row_length: int
    task: Literal["next", "order"]
    short_share: float
    num_left_out: int

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def fingerprint(self) -> str:
        """Of the data that they are made from."""
        return self.shards.fingerprint

    @property
    def num_tokens(self) -> int:
        """Tokens of all chunks, special tokens included, if none were cut short or displaced."""
        return int((self.stops - self.starts).sum()) + _NUM_SPECIAL * len(self)

    @property
    def fill(self) -> float:
        """Share of the places of rows of `row_length` that a token fills."""
        return self.num_tokens / max(1, len(self) * self.row_length)

    def get_example(self, index: int, rng: np.random.Generator) -> RawExample:
        """Returns a pair made of a chunk: what is drawn depends on the generator alone."""
        start, whole = int(self.starts[index]), int(self.stops[index])
        stop = whole
        if rng.random() < self.short_share:
            stop = self._shorter(start, stop, target=int(rng.integers(2, self.row_length - _NUM_SPECIAL + 1)))
        places = self._sentences(start, stop)
        places = places if len(places) else self._words(start, stop)
        middle = int(places[rng.integers(len(places))])
        a, b = (start, middle), (middle, stop)
        label = int(rng.random() < 0.5)
        if label and self.task == "order":
            a, b = b, a
        elif label:
            b = self._partner(index, b, room=self.row_length - _NUM_SPECIAL - (middle - start), rng=rng)
        displaced = whole - stop + (stop - middle if label and self.task == "next" else 0)
        return read_raw_example(self.shards, [a, b], segments=[0, 1], label=label, num_dropped_tokens=displaced)

    def _sentences(self, start: int, stop: int) -> Int[np.ndarray, "s"]:
        """Returns the sentence starts strictly inside a span."""
        starts = self.shards.sentence_starts
        return starts[np.searchsorted(starts, start, side="right") : np.searchsorted(starts, stop, side="left")]

    def _is_sentence_start(self, places: Int[np.ndarray, "p"]) -> Bool[np.ndarray, "p"]:
        """Says of places whether a sentence begins there, or the one before ends."""
        starts = self.shards.sentence_starts
        is_start: np.ndarray = starts[np.searchsorted(starts, places)] == places
        return is_start

    def _words(self, start: int, stop: int) -> Int[np.ndarray, "w"]:
        """Returns the word starts strictly inside a span."""
        return start + 1 + np.flatnonzero(self.shards.word_starts(start + 1, stop))

    def _shorter(self, start: int, stop: int, *, target: int) -> int:
        """Returns where a chunk ends once it is cut to at most `target` tokens at a sentence end, if that leaves something to split."""
        ends = self._sentences(start, stop)
        ends = ends[ends - start <= target]
        return int(ends[-1]) if len(ends) and len(self._words(start, int(ends[-1]))) else stop

    def _partner(
        self, number: int, replaced: tuple[int, int], *, room: int, rng: np.random.Generator
    ) -> tuple[int, int]:
        """Returns a span of another document, of all in a few random chunks the one that is nearest in length to the text it replaces.

        It begins and ends at a sentence where that one does, and within a sentence where that one does.

        Args:
            number: The chunk whose document is left out.
            replaced: The text in whose place it stands.
            room: Longest it may be.
            rng: Of the example.
        """
        opens, closes = self._is_sentence_start(np.array(replaced))
        length = replaced[1] - replaced[0]
        documents = self._documents
        first, last = np.searchsorted(documents, [documents[number], documents[number] + 1])
        spans: list[tuple[int, int]] = []
        for other in rng.integers(len(self) - (last - first), size=_CANDIDATES).tolist():
            other += int((last - first) * (other >= first))
            begin, end = int(self.starts[other]), int(self.stops[other])
            bounds = np.concatenate([[begin], self._words(begin, end), [end]])
            is_sentence = self._is_sentence_start(bounds)
            begins, ends = (bounds[is_sentence == kind] for kind in (opens, closes))
            if not (len(begins) and len(ends) and begins[0] < ends[-1]):
                begins, ends = bounds[:1], bounds[-1:]
            sizes = ends[None, :] - begins[:, None]
            away = np.abs(sizes - length) + _FAR * (sizes > room)  # one that must be cut would end as no true text does
            away[sizes <= 0] = 2 * _FAR  # a span ends behind its beginning
            i, j = np.unravel_index(away.argmin(), away.shape)
            spans.append((int(begins[i]), int(ends[j])))
        begin, end = min(spans, key=lambda span: (span[1] - span[0] > room, abs(span[1] - span[0] - length)))
        if end - begin > room:
            words = self._words(begin, begin + room + 1)
            end = int(words[-1]) if len(words) else begin + room
        return begin, end

    @cached_property
    def _documents(self) -> Int[np.ndarray, "c"]:
        """The document of each chunk."""
        return np.searchsorted(self.shards.document_starts, self.starts, side="right") - 1


def make_sentence_pairs(
    shards: Shards, *, row_length: int, task: Literal["next", "order"] = "next", short_share: float = 0.1
) -> SentencePairDataset:
    """Returns the pairs of a split; the same for the same shards and arguments.

    Args:
        shards: An opened split.
        row_length: Tokens of a pair at most, its three special tokens included.
        task: As in `SentencePairDataset`, like the next.
        short_share: Share of the examples that are cut short.

    Raises:
        ConfigError: A row too short for a pair.
        DataError: No chunk can be split, or there is a single document, so no text comes from another.
    """
    room = row_length - _NUM_SPECIAL
    if room < 2:
        raise ConfigError(f"row_length is {row_length}: expected at least {_NUM_SPECIAL + 2}, for two texts of a token")
    starts, stops = split_documents(shards, room=room)
    sentences = shards.sentence_starts
    single = np.searchsorted(sentences, starts, side="right") == np.searchsorted(sentences, stops, side="left")
    can_split = np.ones(len(starts), bool)
    for i in np.flatnonzero(single).tolist():
        can_split[i] = shards.word_starts(int(starts[i]) + 1, int(stops[i])).any()
    chunks = SentencePairDataset(
        shards, starts[can_split], stops[can_split], row_length, task, short_share, int((~can_split).sum())
    )
    if len(chunks) == 0:
        raise DataError(
            "no text can be split into two: every document is a single word; use objective.sentences=none with such text"
        )
    if task == "next" and len(np.unique(chunks._documents)) < 2:
        way_out = (
            "prepare the text with a larger --held-out"
            if shards.split == "held_out"
            else "say where documents end with --documents when you prepare the text"
        )
        raise DataError(
            f"next sentence needs a second document to take a random text from, the {shards.split} split has one: "
            f"{way_out}, or use objective.sentences=order"
        )
    return chunks
