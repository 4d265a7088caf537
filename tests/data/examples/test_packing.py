from itertools import pairwise

import numpy as np
import pytest

from stemformer.data.examples.packing import make_token_stream, pack_documents, pack_first_fit, split_documents
from stemformer.data.shards.reader import Shards
from stemformer.errors import ConfigError


def read(rows, number):
    """Tokens, word starts and lengths of a row."""
    passage = rows.get_example(number, np.random.default_rng(0))
    assert passage.segments.tolist() == [0] * len(passage.lengths)
    return passage.tokens, passage.word_starts, passage.lengths


class LineOfTokens(Shards):
    """A split in memory: documents of sentences of words, each word a number of tokens."""

    split = "train"

    def __init__(self, documents):
        words = [word for sentences in documents for words in sentences for word in words]
        self._starts_word = np.concatenate([np.arange(n) == 0 for n in words])
        self.num_tokens = len(self._starts_word)
        self._ids = np.arange(self.num_tokens, dtype=np.uint16)  # an id says where it stands
        sizes = [[sum(words) for words in sentences] for sentences in documents]
        self.document_starts = np.cumsum([0, *(sum(lengths) for lengths in sizes)])
        self.sentence_starts = np.cumsum([0, *(n for lengths in sizes for n in lengths)])

    def tokens(self, start, stop):
        assert 0 <= start < stop <= self.num_tokens
        return self._ids[start:stop]

    def word_starts(self, start, stop):
        assert 0 <= start <= stop <= self.num_tokens
        return self._starts_word[start:stop]


def random_line(seed, num_documents=40, longest_word=4):
    rng = np.random.default_rng(seed)
    return LineOfTokens(
        [
            [rng.integers(1, longest_word + 1, rng.integers(1, 25)).tolist() for _ in range(rng.integers(1, 7))]
            for _ in range(num_documents)
        ]
    )


def first_fit(lengths, row_length):
    """The textbook's algorithm, with every row open."""
    rooms, rows = [], []
    for length in lengths:
        row = next((i for i, room in enumerate(rooms) if room >= length), len(rooms))
        if row == len(rooms):
            rooms.append(row_length)
        rooms[row] -= length
        rows.append(row)
    return rows


# Pieces


@pytest.mark.parametrize("room", [1, 2, 3, 7, 30, 126, 100_000])
def test_pieces_cover_every_token_once_in_order(room):
    line = random_line(seed=1)
    starts, stops = split_documents(line, room=room)
    assert starts[0] == 0
    assert stops[-1] == line.num_tokens
    np.testing.assert_array_equal(starts[1:], stops[:-1])
    assert (stops > starts).all()


@pytest.mark.parametrize("room", [1, 2, 3, 7, 30, 126, 100_000])
def test_pieces_fit_their_room(room):
    starts, stops = split_documents(random_line(seed=2), room=room)
    assert (stops - starts).max() <= room


@pytest.mark.parametrize("room", [3, 30, 126, 100_000])
def test_pieces_never_cross_documents(room):
    line = random_line(seed=3)
    starts, stops = split_documents(line, room=room)
    first = np.searchsorted(line.document_starts, starts, side="right")
    last = np.searchsorted(line.document_starts, stops - 1, side="right")
    np.testing.assert_array_equal(first, last)


@pytest.mark.parametrize("room", [5, 17, 30, 126])
def test_pieces_are_the_longest_that_end_at_a_sentence_or_else_before_a_word(room):
    line = random_line(seed=4)
    for start, stop in zip(*split_documents(line, room=room), strict=True):
        document_end = line.document_starts[line.document_starts > start].min()
        reach = min(start + room, document_end)
        sentences = [int(s) for s in line.sentence_starts if start < s <= reach]
        words = [int(w) for w in range(start + 1, reach + 1) if w == line.num_tokens or line._starts_word[w]]
        assert stop == (sentences or words)[-1]


def test_word_longer_than_the_room_is_cut_anywhere():
    starts, stops = split_documents(LineOfTokens([[[2, 11, 1]]]), room=4)
    assert list(zip(starts.tolist(), stops.tolist(), strict=True)) == [(0, 2), (2, 6), (6, 10), (10, 14)]


def test_document_that_fits_exactly_is_one_piece():
    starts, stops = split_documents(LineOfTokens([[[2, 2], [1]], [[5]]]), room=5)
    assert (starts.tolist(), stops.tolist()) == ([0, 5], [5, 10])


def test_sentence_that_ends_at_the_room_is_not_cut_earlier():
    _, stops = split_documents(LineOfTokens([[[2, 2], [1], [3]]]), room=5)
    assert stops.tolist() == [5, 8]


# Packing


@pytest.mark.parametrize("seed", range(20))
def test_packing_is_first_fit_while_all_rows_are_open(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 33, 120)  # at most 120 rows, below the number that stay open
    np.testing.assert_array_equal(pack_first_fit(lengths, 32), first_fit(lengths.tolist(), 32))


def test_packing_fills_no_row_beyond_its_length_when_rows_are_closed():
    lengths = np.random.default_rng(5).integers(3, 129, 20_000)
    rows = pack_first_fit(lengths, 128)
    filled = np.bincount(rows, weights=lengths)
    assert filled.max() <= 128
    assert filled.min() > 0  # rows are numbered without gaps


def test_packing_of_short_pieces_leaves_little_room():
    lengths = np.random.default_rng(6).integers(3, 65, 20_000)
    rows = pack_first_fit(lengths, 128)
    fill = lengths.sum() / (128 * (rows.max() + 1))
    assert fill > 0.99  # 0.999 with this seed; without looking back at open rows it is 0.78


def test_packing_of_nothing_is_nothing():
    assert len(pack_first_fit(np.empty(0, np.int64), 16)) == 0


# Rows


@pytest.mark.parametrize("row_length", [8, 32, 128])
def test_rows_hold_at_most_their_length_with_special_tokens(row_length):
    rows = pack_documents(random_line(seed=7), row_length=row_length)
    for number in range(len(rows)):
        tokens, _, lengths = read(rows, number)
        assert len(tokens) == lengths.sum()
        assert len(tokens) + 2 * len(lengths) <= row_length


def test_rows_together_hold_every_token_once():
    line = random_line(seed=8)
    rows = pack_documents(line, row_length=32)
    found = np.concatenate([read(rows, number)[0] for number in range(len(rows))])
    np.testing.assert_array_equal(np.sort(found), np.arange(line.num_tokens))


def test_row_reads_back_the_word_starts_of_its_tokens():
    line = random_line(seed=9)
    rows = pack_documents(line, row_length=32)
    for number in range(len(rows)):
        tokens, words, lengths = read(rows, number)
        expected = line._starts_word[tokens]
        expected[np.cumsum(lengths) - lengths] = True  # a piece begins a word, even where a long word was cut
        np.testing.assert_array_equal(words, expected)


def test_piece_that_begins_inside_a_long_word_begins_a_word():
    rows = pack_documents(LineOfTokens([[[9]]]), row_length=6)
    assert [read(rows, number)[1].tolist() for number in range(len(rows))] == [
        [True, False, False, False],
        [True, False, False, False],
        [True],
    ]


def test_reading_a_row_leaves_the_shards_as_they_are():
    line = LineOfTokens([[[9]]])
    before = line._starts_word.copy()
    read(pack_documents(line, row_length=6), 1)
    np.testing.assert_array_equal(line._starts_word, before)


def test_rows_keep_pieces_in_stream_order():
    rows = pack_documents(random_line(seed=10), row_length=64)
    for number in range(len(rows)):
        pieces = rows.starts[rows.offsets[number] : rows.offsets[number + 1]]
        assert (np.diff(pieces) > 0).all()


def test_num_tokens_and_fill_count_special_tokens():
    rows = pack_documents(LineOfTokens([[[3]], [[4]], [[6]]]), row_length=12)
    assert len(rows) == 2  # 5 + 6 tokens, then 8
    assert rows.num_tokens == 13 + 3 * 2
    assert rows.packing_efficiency == pytest.approx(19 / 24)


def test_row_length_without_room_for_a_token_is_refused():
    with pytest.raises(ConfigError, match="row_length is 2: expected more than the 2 special tokens"):
        pack_documents(LineOfTokens([[[3]]]), row_length=2)


# Stream


@pytest.mark.parametrize("row_length", [1, 7, 64, 100_000])
def test_stream_is_every_document_between_ends_and_rows_share_one_token(row_length):
    line = random_line(seed=11)
    end = 65_535
    stream = make_token_stream(line, row_length=row_length, end=end)
    expected = [end]
    for start, stop in zip(line.document_starts[:-1], line.document_starts[1:], strict=True):
        expected += [*range(start, stop), end]
    assert stream.num_tokens == len(expected) - 1
    rows = [read(stream, number) for number in range(len(stream))]
    assert all(len(tokens) == row_length + 1 for tokens, *_ in rows[:-1])
    assert all(a[0][-1] == b[0][0] for a, b in pairwise(rows))
    assert np.concatenate([rows[0][0][:1], *(tokens[1:] for tokens, *_ in rows)]).tolist() == expected
    for tokens, words, lengths in rows:
        assert lengths.tolist() == [len(tokens)] and words[tokens == end].all()
    assert stream.packing_efficiency == pytest.approx(stream.num_tokens / (len(stream) * row_length))


def test_stream_of_rows_without_a_token_is_refused():
    with pytest.raises(ConfigError, match="row_length is 0: expected at least 1"):
        make_token_stream(LineOfTokens([[[3]]]), row_length=0, end=9)
