"""From documents to examples: which spans of the token line belong to example number `i`.

An example's text, before anything is hidden in it, is a `RawExample`. Masked and causal language models read *rows*. A document is cut
into *pieces* that fit a row, at sentence ends where possible; each piece is a sequence with special tokens of its own. Pieces are
packed first-fit, in stream order, into rows of a constant number of tokens; a row is an example. Nothing is dropped: every token of
the corpus lies in exactly one piece. A causal model may also read a *stream*: all documents joined, cut wherever a row is full. Pairs
of texts are in `chunks.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Int

from stemformer.data.shards.reader import Shards
from stemformer.errors import ConfigError

_OPEN_ROWS = 256
"""How many rows stay open for small pieces; when one more is needed, the fullest is closed."""


@dataclass(frozen=True)
class RawExample:
    """The text of an example, one or more sequences of one or two segments, without special tokens but for the ends within a stream.

    Attributes:
        tokens: (n,) int64 ids of all segments, one after the other.
        word_starts: (n,) which of them begin a word; the first of a segment always does.
        lengths: (p,) tokens of each segment.
        segments: (p,) 0 where a segment opens a sequence, 1 where it is text B of the sequence before it.
        label: What is asked about the pair of texts, if anything is: 0 they belong together as they stand, 1 they do not.
        num_dropped_tokens: Tokens of the corpus that this drawing left out: a random text stands in their place, or the pair was cut short.
        begins: (p,) which segments begin their document; of rows only.
        ends: (p,) which end it; of rows only.
    """

    tokens: Int[np.ndarray, "n"]
    word_starts: Bool[np.ndarray, "n"]
    lengths: Int[np.ndarray, "p"]
    segments: Int[np.ndarray, "p"]
    label: int | None = None
    num_dropped_tokens: int = 0
    begins: Bool[np.ndarray, "p"] | None = None
    ends: Bool[np.ndarray, "p"] | None = None


@dataclass(frozen=True)
class PackedDataset:
    """The examples of a split.

    Attributes:
        shards: The token line.
        starts: First token of each piece, in the order of the rows that hold them.
        stops: One past the last token of each piece.
        offsets: (num_rows + 1,) row `i` holds the pieces `offsets[i]` to `offsets[i + 1]`.
        row_length: Tokens a row may hold, special tokens included.
        num_special: Special tokens a piece carries.
    """

    shards: Shards
    starts: Int[np.ndarray, "p"]
    stops: Int[np.ndarray, "p"]
    offsets: Int[np.ndarray, "r1"]
    row_length: int
    num_special: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def fingerprint(self) -> str:
        """Of the data that they are made from."""
        return self.shards.fingerprint

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows, special tokens included."""
        return int((self.stops - self.starts).sum()) + self.num_special * len(self.starts)

    @property
    def fill(self) -> float:
        """Share of the rows' places that hold a token."""
        return self.num_tokens / max(1, len(self) * self.row_length)

    def get_example(self, index: int, rng: np.random.Generator) -> RawExample:
        """Returns the text of a row, each of its pieces a sequence; nothing about it is random."""
        pieces = slice(self.offsets[index], self.offsets[index + 1])
        spans = list(zip(self.starts[pieces].tolist(), self.stops[pieces].tolist(), strict=True))
        passage = read_raw_example(self.shards, spans, segments=[0] * len(spans))
        documents, starts, stops = self.shards.document_starts, self.starts[pieces], self.stops[pieces]
        begins = documents[np.searchsorted(documents, starts)] == starts
        return replace(passage, begins=begins, ends=documents[np.searchsorted(documents, stops)] == stops)


@dataclass(frozen=True)
class TokenStream:
    """The examples of a split as one line: an end, the first document, an end, the second, ... and an end; a row is a span of it.

    A row holds one token more than `row_length`, which the next row begins with: each of its tokens but one is asked for from those on
    the other side of it. So every token is asked for exactly once, and one end a document. The last row may be shorter.

    Attributes:
        shards: The token line.
        row_length: Tokens a model reads of a row.
        end: Id of the token that ends a document.
        marks: (num_documents + 1,) where the ends stand in the line.
    """

    shards: Shards
    row_length: int
    end: int
    marks: Int[np.ndarray, "d1"]

    def __len__(self) -> int:
        return -(-self.num_tokens // self.row_length)

    @property
    def fingerprint(self) -> str:
        """Of the data that they are made from."""
        return self.shards.fingerprint

    @property
    def num_tokens(self) -> int:
        """Tokens that a model reads of all rows."""
        return int(self.marks[-1])

    @property
    def fill(self) -> float:
        """Share of the rows' places that hold a token."""
        return self.num_tokens / max(1, len(self) * self.row_length)

    def get_example(self, index: int, rng: np.random.Generator) -> RawExample:
        """Returns the text of a row, one sequence, with the ends in it; nothing about it is random."""
        first = index * self.row_length
        stop = min(first + self.row_length, self.num_tokens) + 1
        before, until = np.searchsorted(self.marks, [first, stop]).tolist()
        documents = self.shards.document_starts
        cuts = [first - before, *documents[before:until].tolist(), stop - until]
        spans = [(a, b) for a, b in pairwise(cuts) if a < b]
        text = read_raw_example(self.shards, spans, segments=[0] * len(spans))
        is_text = np.ones(stop - first, bool)
        is_text[self.marks[before:until] - first] = False
        tokens, word_starts = np.full(len(is_text), self.end, np.int64), ~is_text
        tokens[is_text], word_starts[is_text] = text.tokens, text.word_starts
        return RawExample(tokens, word_starts, lengths=np.array([len(tokens)]), segments=np.zeros(1, np.int64))


def pack_documents(shards: Shards, *, row_length: int, num_special: int = 2) -> PackedDataset:
    """Returns the rows of a split; the same for the same shards and lengths.

    Args:
        shards: An opened split.
        row_length: Tokens a row holds at most, special tokens included.
        num_special: Special tokens around each piece (`[CLS]` and `[SEP]`: two).

    Raises:
        ConfigError: A row that holds no token beside the special ones.
    """
    room = row_length - num_special
    if room < 1:
        raise ConfigError(
            f"row_length is {row_length}: expected more than the {num_special} special tokens of a sequence"
        )
    starts, stops = split_documents(shards, room=room)
    row_of = pack_first_fit(stops - starts + num_special, row_length)
    order = np.argsort(row_of, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row_of))]) if len(row_of) else np.zeros(1, np.int64)
    return PackedDataset(shards, starts[order], stops[order], offsets, row_length, num_special)


def make_token_stream(shards: Shards, *, row_length: int, end: int) -> TokenStream:
    """Returns the rows of the stream of a split; the same for the same shards and lengths.

    Args:
        shards: An opened split.
        row_length: Tokens a model reads of a row.
        end: Id of the token that ends a document.

    Raises:
        ConfigError: A row without a token.
    """
    if row_length < 1:
        raise ConfigError(f"row_length is {row_length}: expected at least 1")
    starts = shards.document_starts
    return TokenStream(shards, row_length, end, starts + np.arange(len(starts)))


def split_documents(shards: Shards, *, room: int) -> tuple[Int[np.ndarray, "p"], Int[np.ndarray, "p"]]:
    """Returns first and one-past-last token of each piece, in stream order.

    A piece is as many whole sentences of one document as fit into `room` tokens. A sentence that is longer is cut before a word;
    a word that is longer is cut anywhere.
    """
    sentences = np.asarray(shards.sentence_starts)
    ends = np.asarray(shards.document_starts)[1:]
    starts: list[int] = []
    stops: list[int] = []
    start = 0
    for end in ends.tolist():
        while start < end:
            stop = end
            if end - start > room:
                stop = int(sentences[np.searchsorted(sentences, start + room, side="right") - 1])
                if stop <= start:
                    words = np.flatnonzero(np.asarray(shards.word_starts(start + 1, start + room + 1)))
                    stop = start + 1 + int(words[-1]) if len(words) else start + room
            starts.append(start)
            stops.append(stop)
            start = stop
    return np.array(starts, np.int64), np.array(stops, np.int64)


def pack_first_fit(lengths: Int[np.ndarray, "p"], row_length: int) -> Int[np.ndarray, "p"]:
    """Returns the number of the row that each piece goes to: the oldest open row with room for it.

    Args:
        lengths: Tokens of each piece, at most `row_length`.
        row_length: Tokens that a row holds.
    """
    out = np.empty(len(lengths), np.int64)
    room = np.zeros(_OPEN_ROWS, np.int64)
    numbers = np.full(_OPEN_ROWS, -1, np.int64)
    num_rows = 0
    for place, length in enumerate(lengths.tolist()):
        fits = room >= length
        at = int(fits.argmax())
        if not fits[at]:
            at = int(room.argmin())
            room[at:-1], numbers[at:-1] = room[at + 1 :], numbers[at + 1 :]  # stays ordered from oldest to newest
            at = _OPEN_ROWS - 1
            room[at], numbers[at] = row_length, num_rows
            num_rows += 1
        room[at] -= length
        out[place] = numbers[at]
    return out


def read_raw_example(
    shards: Shards,
    spans: Sequence[tuple[int, int]],
    *,
    segments: Sequence[int],
    label: int | None = None,
    num_dropped_tokens: int = 0,
) -> RawExample:
    """Returns the text of some spans of the token line, each a segment.

    Args:
        shards: The token line.
        spans: First and one-past-last token of each segment.
        segments: As in `RawExample`, like the next two.
        label: Of the pair.
        num_dropped_tokens: Tokens left out.
    """
    word_starts = [np.array(shards.word_starts(a, b), bool) for a, b in spans]
    for words in word_starts:
        words[0] = True  # even where a long word was cut
    return RawExample(
        tokens=np.concatenate([shards.tokens(a, b) for a, b in spans]).astype(np.int64),
        word_starts=np.concatenate(word_starts),
        lengths=np.array([b - a for a, b in spans], np.int64),
        segments=np.array(segments, np.int64),
        label=label,
        num_dropped_tokens=num_dropped_tokens,
    )
