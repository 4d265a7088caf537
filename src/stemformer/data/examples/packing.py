"""Packing of documents into examples of constant length.

Documents are split into *chunks* as long as fit, and chunks are packed first-fit into rows. A causal
model may instead read fixed-length windows of all documents joined. Each epoch but the first puts
the documents together anew, by a permutation keyed by (seed, epoch).
"""

from collections.abc import Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from stemformer.data.examples.sampling import example_generator
from stemformer.data.shards.reader import Shards
from stemformer.errors import ConfigError

# For small chunks; when another one is needed, the fullest is closed.
_MAX_OPEN_ROWS = 256
# Number of the generator of an epoch's order; numbers of examples are lower.
_ORDER = 2**62


@dataclass(frozen=True)
class RawExample:
    """Text of an example, before the objective adds special tokens and corruption."""

    tokens: Int[np.ndarray, "n"]
    # Always set for the first token of a segment.
    word_starts: Bool[np.ndarray, "n"]
    # Number of tokens of each segment.
    lengths: Int[np.ndarray, "p"]
    # 0: the segment opens a sequence; 1: it is text B of the one before.
    segments: Int[np.ndarray, "p"]
    # Of a pair of texts: 0 original, 1 altered.
    label: int | None = None
    # Corpus tokens replaced by a random text or cut off.
    num_dropped_tokens: int = 0
    # Whether a segment starts or ends a document; `PackedDataset` only.
    starts_document: Bool[np.ndarray, "p"] | None = None
    ends_document: Bool[np.ndarray, "p"] | None = None
    # Whether a sentence starts with the token; `PackedDataset` only.
    sentence_starts: Bool[np.ndarray, "n"] | None = None


@dataclass(frozen=True)
class ShardDataset(Sized):
    """Examples of one split; subclasses define `__len__` and `get_example`."""

    shards: Shards
    # Maximum number of tokens of an example, special tokens included.
    sequence_length: int
    # Of all examples, special tokens included.
    num_tokens: int
    # The last result of `for_epoch`, by seed and epoch.
    _epoch: dict[tuple[int, int], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def fingerprint(self) -> str:
        return self.shards.fingerprint

    @property
    def packing_efficiency(self) -> float:
        """Fraction of the positions that hold a token."""
        return self.num_tokens / max(1, len(self) * self.sequence_length)

    def for_epoch(self, seed: int, epoch: int) -> Any:
        """Return the examples of one epoch, as many as in the others; the last result is cached."""
        if not epoch:
            return self
        examples = self._epoch.get((seed, epoch))
        if examples is None:
            examples = self._shuffle(example_generator(seed, epoch, _ORDER))
            self._epoch.clear()
            # No reference of the data set to itself.
            if examples is not self:
                self._epoch[seed, epoch] = examples
        return examples

    def _shuffle(self, rng: np.random.Generator) -> Any:
        """Return the examples of a further epoch."""
        return self


@dataclass(frozen=True)
class PackedDataset(ShardDataset):
    """Packed dataset: each example is a row of document chunks, with every token in one chunk.

    In each epoch but the first, chunks of equal length trade positions at random, so that each row
    holds other chunks and the number of rows stays the same.
    """

    # First token of each chunk, ordered by row.
    starts: Int[np.ndarray, "p"]
    # Its end (exclusive).
    stops: Int[np.ndarray, "p"]
    # Row `i` holds the chunks `offsets[i]` to `offsets[i + 1]`.
    offsets: Int[np.ndarray, "r1"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def _shuffle(self, rng: np.random.Generator) -> Any:
        lengths = self.stops - self.starts
        slots = np.argsort(lengths, kind="stable")
        chunks = np.lexsort((rng.random(len(lengths)), lengths))
        starts = np.empty_like(self.starts)
        starts[slots] = self.starts[chunks]
        return replace(self, starts=starts, stops=starts + lengths)

    def get_example(self, index: int, rng: np.random.Generator) -> RawExample:
        """Return the text of a row, each chunk as a sequence; `rng` is unused."""
        chunks = slice(self.offsets[index], self.offsets[index + 1])
        starts, stops = self.starts[chunks], self.stops[chunks]
        spans = list(zip(starts.tolist(), stops.tolist(), strict=True))
        documents = self.shards.document_starts
        return replace(
            read_raw_example(self.shards, spans, [0] * len(spans)),
            starts_document=documents[np.searchsorted(documents, starts)] == starts,
            ends_document=documents[np.searchsorted(documents, stops)] == stops,
            sentence_starts=np.concatenate([_sentence_starts(self.shards, *span) for span in spans]),
        )


@dataclass(frozen=True)
class TokenStream(ShardDataset):
    """Split as a token stream (EOS, document, EOS, ..., EOS) in fixed-length windows (causal LM).

    A window has one token more than `sequence_length`, which the next window starts with: it gives
    inputs and shifted labels, so that each token is scored exactly once. The last may be shorter.
    The stream is a ring, whose end is its start. Each epoch but the first shuffles the documents
    and cuts the ring elsewhere.
    """

    eos_token_id: int
    # First token of each document, in the order of the stream.
    starts: Int[np.ndarray, "d"]
    # In the stream, before each document and at the end.
    eos_positions: Int[np.ndarray, "d1"]
    # Position in the stream of the first window.
    offset: int = 0

    def _shuffle(self, rng: np.random.Generator) -> Any:
        offset = int(rng.integers(self.num_tokens))
        order = rng.permutation(len(self.starts))
        eos_positions = np.append(0, np.cumsum(np.diff(self.eos_positions)[order]))
        return replace(self, starts=self.starts[order], eos_positions=eos_positions, offset=offset)

    def __len__(self) -> int:
        return -(-self.num_tokens // self.sequence_length)

    def get_example(self, index: int, rng: np.random.Generator) -> RawExample:
        """Return the text of a window as one sequence, EOS tokens included; `rng` is unused."""
        num_inputs = min(self.sequence_length, self.num_tokens - index * self.sequence_length)
        start = (self.offset + index * self.sequence_length) % self.num_tokens
        stop = start + num_inputs + 1
        if stop <= self.num_tokens + 1:
            tokens, word_starts = self._read(start, stop)
        else:
            parts = self._read(start, self.num_tokens), self._read(0, stop - self.num_tokens)
            tokens, word_starts = map(np.concatenate, zip(*parts, strict=True))
        return RawExample(tokens, word_starts, lengths=np.array([len(tokens)]), segments=np.zeros(1, np.int64))

    def _read(self, start: int, stop: int) -> tuple[Int[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
        """Return tokens and word starts between two positions of the stream."""
        first_eos, last_eos = np.searchsorted(self.eos_positions, [start, stop]).tolist()
        # Documents that overlap, and their parts between the positions.
        documents = np.arange(max(first_eos - 1, 0), min(last_eos, len(self.starts)))
        before = self.eos_positions[documents] + 1
        shifts = self.starts[documents] - before
        firsts = np.maximum(before, start) + shifts
        lasts = np.minimum(self.eos_positions[documents + 1], stop) + shifts
        spans = [(a, b) for a, b in zip(firsts.tolist(), lasts.tolist(), strict=True) if a < b]
        text = read_raw_example(self.shards, spans, [0] * len(spans))
        is_text = np.ones(stop - start, bool)
        is_text[self.eos_positions[first_eos:last_eos] - start] = False
        tokens, word_starts = np.full(len(is_text), self.eos_token_id, np.int64), ~is_text
        tokens[is_text], word_starts[is_text] = text.tokens, text.word_starts
        return tokens, word_starts


def _sentence_starts(shards: Shards, start: int, stop: int) -> Bool[np.ndarray, "n"]:
    """Return for each token of a span whether a sentence starts with it."""
    is_start = np.zeros(stop - start, bool)
    first, last = np.searchsorted(shards.sentence_starts, [start, stop])
    is_start[np.asarray(shards.sentence_starts[first:last]) - start] = True
    return is_start


def pack_documents(
    shards: Shards, *, sequence_length: int, num_special: int = 2, ends: Literal["word", "sentence"] = "word"
) -> PackedDataset:
    """Pack the documents of a split into rows, with `num_special` special tokens per chunk.

    Chunks end as in `split_documents`.
    """
    if sequence_length <= num_special:
        expected = f"more than the {num_special} special tokens of a sequence"
        raise ConfigError(f"sequence_length is {sequence_length}: expected {expected}.")
    starts, stops = split_documents(shards, max_tokens=sequence_length - num_special, ends=ends)
    lengths = stops - starts + num_special
    rows = pack_first_fit(lengths, sequence_length)
    order = np.argsort(rows, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows))]) if len(rows) else np.zeros(1, np.int64)
    return PackedDataset(shards, sequence_length, int(lengths.sum()), starts[order], stops[order], offsets)


def make_token_stream(shards: Shards, *, sequence_length: int, eos_token_id: int) -> TokenStream:
    """Return a split as a stream of tokens in windows of `sequence_length` inputs."""
    if sequence_length < 1:
        raise ConfigError(f"sequence_length is {sequence_length}: expected at least 1.")
    starts = shards.document_starts
    eos_positions = starts + np.arange(len(starts))
    return TokenStream(shards, sequence_length, int(eos_positions[-1]), eos_token_id, starts[:-1], eos_positions)


def split_documents(
    shards: Shards, *, max_tokens: int, ends: Literal["word", "sentence"] = "word"
) -> tuple[Int[np.ndarray, "p"], Int[np.ndarray, "p"]]:
    """Split documents into chunks; return start and end (exclusive) of each, in corpus order.

    Each holds as many full words of a document as fit, or with `ends="sentence"` as many full sentences,
    and of a longer sentence words. Words longer than a chunk are split anywhere.
    """
    sentences = np.asarray(shards.sentence_starts)
    start, bounds = 0, [0]
    for end in np.asarray(shards.document_starts)[1:].tolist():
        while start < end:
            stop = end
            if end - start > max_tokens:
                stop = start
                if ends == "sentence":
                    stop = int(sentences[np.searchsorted(sentences, start + max_tokens, side="right") - 1])
                if stop <= start:
                    words = np.flatnonzero(np.asarray(shards.word_starts(start + 1, start + max_tokens + 1)))
                    stop = start + 1 + int(words[-1]) if len(words) else start + max_tokens
            bounds.append(stop)
            start = stop
    return np.array(bounds[:-1], np.int64), np.array(bounds[1:], np.int64)


def pack_first_fit(lengths: Int[np.ndarray, "p"], sequence_length: int) -> Int[np.ndarray, "p"]:
    """Return the row of each chunk, by its length: the oldest open row with room for it."""
    out = np.empty(len(lengths), np.int64)
    free = np.zeros(_MAX_OPEN_ROWS, np.int64)
    numbers = np.full(_MAX_OPEN_ROWS, -1, np.int64)
    num_rows = 0
    for i, length in enumerate(lengths.tolist()):
        fits = free >= length
        row = int(fits.argmax())
        if not fits[row]:
            # Close the fullest row and open a new one; rows stay ordered from oldest to newest.
            row = int(free.argmin())
            free[row:-1], numbers[row:-1] = free[row + 1 :], numbers[row + 1 :]
            row = _MAX_OPEN_ROWS - 1
            free[row], numbers[row] = sequence_length, num_rows
            num_rows += 1
        free[row] -= length
        out[i] = numbers[row]
    return out


def read_raw_example(shards: Shards, spans: Sequence[tuple[int, int]], segments: Sequence[int]) -> RawExample:
    """Read spans (start, exclusive end) as segments."""
    word_starts = [np.array(shards.word_starts(a, b), bool) for a, b in spans]
    for starts in word_starts:
        # Also where a long word was split.
        starts[0] = True
    return RawExample(
        tokens=np.concatenate([shards.tokens(a, b) for a, b in spans]).astype(np.int64),
        word_starts=np.concatenate(word_starts),
        lengths=np.array([b - a for a, b in spans], np.int64),
        segments=np.array(segments, np.int64),
    )
