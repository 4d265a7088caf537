import gc
import pickle
import weakref
from functools import partial
from itertools import chain, pairwise

import numpy as np
import pytest

from stemformer.data.examples.packing import make_token_stream, pack_documents, pack_first_fit, split_documents
from stemformer.data.shards.reader import Shards
from stemformer.errors import ConfigError

EOS = 65_535


def read(rows, number):
    """Return tokens, word starts and lengths of a row."""
    example = rows.get_example(number, np.random.default_rng(0))
    assert example.segments.tolist() == [0] * len(example.lengths)
    return example.tokens, example.word_starts, example.lengths


class LineOfTokens(Shards):
    """Split in memory: documents of sentences of words, each word given by its number of tokens."""

    split = "train"

    def __init__(self, documents):
        words = [word for sentences in documents for words in sentences for word in words]
        self._starts_word = np.concatenate([np.arange(n) == 0 for n in words])
        self.num_tokens = len(self._starts_word)
        self._ids = np.arange(self.num_tokens, dtype=np.uint16)  # each id is its own position
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


def first_fit(lengths, sequence_length):
    """Textbook first-fit, with every row open."""
    free_tokens, rows = [], []
    for length in lengths:
        row = next((i for i, free in enumerate(free_tokens) if free >= length), len(free_tokens))
        if row == len(free_tokens):
            free_tokens.append(sequence_length)
        free_tokens[row] -= length
        rows.append(row)
    return rows


# Chunks


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 7, 30, 126, 100_000])
def test_chunks_cover_every_token_once_in_order(max_tokens):
    line = random_line(seed=1)
    starts, stops = split_documents(line, max_tokens=max_tokens)
    assert starts[0] == 0
    assert stops[-1] == line.num_tokens
    np.testing.assert_array_equal(starts[1:], stops[:-1])
    assert (stops > starts).all()


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 7, 30, 126, 100_000])
def test_chunks_have_at_most_max_tokens(max_tokens):
    starts, stops = split_documents(random_line(seed=2), max_tokens=max_tokens)
    assert (stops - starts).max() <= max_tokens


@pytest.mark.parametrize("max_tokens", [3, 30, 126, 100_000])
def test_chunks_never_cross_documents(max_tokens):
    line = random_line(seed=3)
    starts, stops = split_documents(line, max_tokens=max_tokens)
    first = np.searchsorted(line.document_starts, starts, side="right")
    last = np.searchsorted(line.document_starts, stops - 1, side="right")
    np.testing.assert_array_equal(first, last)


@pytest.mark.parametrize("max_tokens", [5, 17, 30, 126])
def test_chunks_are_the_longest_that_end_before_a_word(max_tokens):
    line = random_line(seed=4)
    for start, stop in zip(*split_documents(line, max_tokens=max_tokens), strict=True):
        document_end = line.document_starts[line.document_starts > start].min()
        reach = min(start + max_tokens, document_end)
        words = [w for w in range(start + 1, reach + 1) if w == document_end or line._starts_word[w]]
        assert stop == words[-1]


@pytest.mark.parametrize("max_tokens", [5, 17, 30, 126])
def test_chunks_of_sentences_are_the_longest_that_end_at_a_sentence_or_else_before_a_word(max_tokens):
    line = random_line(seed=4)
    for start, stop in zip(*split_documents(line, max_tokens=max_tokens, ends="sentence"), strict=True):
        document_end = line.document_starts[line.document_starts > start].min()
        reach = min(start + max_tokens, document_end)
        sentences = [int(s) for s in line.sentence_starts if start < s <= reach]
        words = [int(w) for w in range(start + 1, reach + 1) if w == line.num_tokens or line._starts_word[w]]
        assert stop == (sentences or words)[-1]


def test_word_longer_than_a_chunk_is_split_anywhere():
    starts, stops = split_documents(LineOfTokens([[[2, 11, 1]]]), max_tokens=4)
    assert list(zip(starts.tolist(), stops.tolist(), strict=True)) == [(0, 2), (2, 6), (6, 10), (10, 14)]


def test_document_that_fits_exactly_is_one_chunk():
    starts, stops = split_documents(LineOfTokens([[[2, 2], [1]], [[5]]]), max_tokens=5)
    assert (starts.tolist(), stops.tolist()) == ([0, 5], [5, 10])


def test_sentence_that_ends_at_the_limit_is_not_split_earlier():
    _, stops = split_documents(LineOfTokens([[[2, 2], [1], [3]]]), max_tokens=5, ends="sentence")
    assert stops.tolist() == [5, 8]


def test_long_documents_fill_their_rows():
    documents = [[[2] * 9 + [1]] * 50] * 20  # sentences of 19 tokens
    assert pack_documents(LineOfTokens(documents), sequence_length=32).packing_efficiency > 0.98


# Packing


@pytest.mark.parametrize("seed", range(20))
def test_packing_is_first_fit_while_all_rows_are_open(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 33, 120)  # at most 120 rows, fewer than stay open
    np.testing.assert_array_equal(pack_first_fit(lengths, 32), first_fit(lengths.tolist(), 32))


def test_packing_never_overfills_a_row_when_rows_are_closed():
    lengths = np.random.default_rng(5).integers(3, 129, 20_000)
    rows = pack_first_fit(lengths, 128)
    filled = np.bincount(rows, weights=lengths)
    assert filled.max() <= 128
    assert filled.min() > 0  # rows are numbered without gaps


def test_packing_of_short_chunks_is_efficient():
    lengths = np.random.default_rng(6).integers(3, 65, 20_000)
    rows = pack_first_fit(lengths, 128)
    efficiency = lengths.sum() / (128 * (rows.max() + 1))
    assert efficiency > 0.99  # 0.999 with this seed; next-fit, without open rows, gives 0.78


def test_packing_of_no_chunks_is_empty():
    assert len(pack_first_fit(np.empty(0, np.int64), 16)) == 0


# Packed rows


@pytest.mark.parametrize("sequence_length", [8, 32, 128])
def test_rows_fit_sequence_length_with_special_tokens(sequence_length):
    rows = pack_documents(random_line(seed=7), sequence_length=sequence_length)
    for number in range(len(rows)):
        tokens, _, lengths = read(rows, number)
        assert len(tokens) == lengths.sum()
        assert len(tokens) + 2 * len(lengths) <= sequence_length


def test_rows_cover_every_token_once():
    line = random_line(seed=8)
    rows = pack_documents(line, sequence_length=32)
    found = np.concatenate([read(rows, number)[0] for number in range(len(rows))])
    np.testing.assert_array_equal(np.sort(found), np.arange(line.num_tokens))


def test_row_has_the_word_starts_of_its_tokens():
    line = random_line(seed=9)
    rows = pack_documents(line, sequence_length=32)
    for number in range(len(rows)):
        tokens, words, lengths = read(rows, number)
        expected = line._starts_word[tokens]
        expected[np.cumsum(lengths) - lengths] = True  # a chunk starts a word, also where a long word was split
        np.testing.assert_array_equal(words, expected)


def test_chunk_that_starts_inside_a_long_word_starts_a_word():
    rows = pack_documents(LineOfTokens([[[9]]]), sequence_length=6)
    assert [read(rows, number)[1].tolist() for number in range(len(rows))] == [
        [True, False, False, False],
        [True, False, False, False],
        [True],
    ]


def test_reading_a_row_does_not_change_the_shards():
    line = LineOfTokens([[[9]]])
    before = line._starts_word.copy()
    read(pack_documents(line, sequence_length=6), 1)
    np.testing.assert_array_equal(line._starts_word, before)


def test_rows_keep_chunks_in_corpus_order():
    rows = pack_documents(random_line(seed=10), sequence_length=64)
    for number in range(len(rows)):
        starts = rows.starts[rows.offsets[number] : rows.offsets[number + 1]]
        assert (np.diff(starts) > 0).all()


@pytest.mark.parametrize("sequence_length", [16, 64])
def test_epochs_fill_rows_with_other_chunks_and_hold_each_once(sequence_length):
    line = random_line(seed=12, num_documents=400)
    rows = pack_documents(line, sequence_length=sequence_length)

    def chunks(examples):
        assert len(examples) == len(rows) and examples.num_tokens == rows.num_tokens
        read_rows = (read(examples, number) for number in range(len(examples)))
        return [[c.tolist() for c in np.split(tokens, np.cumsum(n)[:-1])] for tokens, _, n in read_rows]

    first, second, third = (chunks(rows.for_epoch(3, epoch)) for epoch in range(3))
    assert first == chunks(rows)
    for epoch in (second, third):
        assert sorted(chain(*epoch)) == sorted(chain(*first))
        assert [list(map(len, row)) for row in epoch] == [list(map(len, row)) for row in first]
    # Chunks of a length that no other has stay.
    neighbors = [{(a[0], b[0]) for row in epoch for a, b in pairwise(row)} for epoch in (first, second, third)]
    assert all(len(a & b) < 0.1 * len(a) for a, b in [neighbors[:2], neighbors[1:], neighbors[::2]])
    assert second != chunks(rows.for_epoch(4, 1))


@pytest.mark.parametrize("make", [pack_documents, partial(make_token_stream, eos_token_id=EOS)])
def test_an_epoch_is_a_function_of_seed_and_number_alone(make):
    line = random_line(seed=13)
    examples = make(line, sequence_length=32)
    for epoch in (3, 1, 2, 1, 0, 2):
        fresh = make(line, sequence_length=32).for_epoch(7, epoch)
        for number in range(len(fresh)):
            for a, b in zip(read(examples.for_epoch(7, epoch), number), read(fresh, number), strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("make", [pack_documents, partial(make_token_stream, eos_token_id=EOS)])
def test_one_epoch_is_stored_and_neither_keeps_the_examples_alive_nor_hinders_pickling(make):
    examples = make(random_line(seed=13), sequence_length=32)
    first = examples.for_epoch(7, 1)
    assert examples.for_epoch(7, 1) is first
    same = pickle.loads(pickle.dumps(examples))
    np.testing.assert_array_equal(read(same.for_epoch(7, 1), 0)[0], read(first, 0)[0])
    examples.for_epoch(7, 2)
    references = [weakref.ref(first), weakref.ref(examples)]
    gc.disable()
    try:
        del first
        assert references[0]() is None
        del examples
        assert references[1]() is None
    finally:
        gc.enable()


def test_num_tokens_and_packing_efficiency_count_special_tokens():
    rows = pack_documents(LineOfTokens([[[3]], [[4]], [[6]]]), sequence_length=12)
    assert len(rows) == 2  # 5 + 6 tokens, then 8
    assert rows.num_tokens == 13 + 3 * 2
    assert rows.packing_efficiency == pytest.approx(19 / 24)


def test_sequence_length_without_room_for_a_token_is_refused():
    with pytest.raises(ConfigError, match="sequence_length is 2: expected more than the 2 special tokens"):
        pack_documents(LineOfTokens([[[3]]]), sequence_length=2)


# Token stream


@pytest.mark.parametrize("sequence_length", [1, 7, 64, 100_000])
def test_stream_is_every_document_between_eos_and_windows_share_one_token(sequence_length):
    line = random_line(seed=11)
    stream = make_token_stream(line, sequence_length=sequence_length, eos_token_id=EOS)
    expected = [EOS]
    for start, stop in zip(line.document_starts[:-1], line.document_starts[1:], strict=True):
        expected += [*range(start, stop), EOS]
    assert stream.num_tokens == len(expected) - 1
    rows = [read(stream, number) for number in range(len(stream))]
    assert all(len(tokens) == sequence_length + 1 for tokens, *_ in rows[:-1])
    assert all(a[0][-1] == b[0][0] for a, b in pairwise(rows))
    assert np.concatenate([rows[0][0][:1], *(tokens[1:] for tokens, *_ in rows)]).tolist() == expected
    for tokens, words, lengths in rows:
        assert lengths.tolist() == [len(tokens)] and words[tokens == EOS].all()
    assert stream.packing_efficiency == pytest.approx(stream.num_tokens / (len(stream) * sequence_length))


@pytest.mark.parametrize("sequence_length", [1, 7, 64, 100_000])
def test_epochs_shuffle_the_documents_of_a_stream_and_cut_it_elsewhere(sequence_length):
    line = random_line(seed=11)
    stream = make_token_stream(line, sequence_length=sequence_length, eos_token_id=EOS)
    first, *others = ([read(stream.for_epoch(5, e), n) for n in range(len(stream))] for e in range(4))
    assert [tokens.tolist() for tokens, *_ in first] == [read(stream, n)[0].tolist() for n in range(len(stream))]
    orders = [document_order(line, np.concatenate([tokens[:-1] for tokens, *_ in rows])) for rows in (first, *others)]
    assert orders[0] == list(range(40))
    for rows, order in zip(others, orders[1:], strict=True):
        # Each document once, in full and in another order, and windows that share one token.
        assert sorted(order) == list(range(40))
        assert num_shared_neighbors(orders[0], order) < 10
        assert all(a[0][-1] == b[0][0] for a, b in pairwise([*rows, rows[0]]))
        assert [len(tokens) for tokens, *_ in rows] == [len(tokens) for tokens, *_ in first]
        for tokens, words, _ in rows:
            is_text = (tokens != EOS) & (np.arange(len(tokens)) > 0)
            np.testing.assert_array_equal(words[is_text], line._starts_word[tokens[is_text]])
            assert words[tokens == EOS].all()
    assert num_shared_neighbors(orders[1], orders[2]) < 10
    assert len({stream.for_epoch(seed, epoch).offset for seed in (5, 6) for epoch in (1, 2)}) == 4


def document_order(line, ring):
    """Return the documents of a stream (without its last token) from its first EOS on, after checking their tokens."""
    ring = np.roll(ring, -np.flatnonzero(ring == EOS)[0])
    documents = np.split(ring, np.flatnonzero(ring == EOS))[1:]
    order = np.searchsorted(line.document_starts, [tokens[1] for tokens in documents]).tolist()
    for number, tokens in zip(order, documents, strict=True):
        np.testing.assert_array_equal(tokens[1:], np.arange(*line.document_starts[number : number + 2]))
    return order


def num_shared_neighbors(order, other):
    return len(set(pairwise(order)) & set(pairwise(other)))


def test_stream_of_empty_windows_is_refused():
    with pytest.raises(ConfigError, match="sequence_length is 0: expected at least 1"):
        make_token_stream(LineOfTokens([[[3]]]), sequence_length=0, eos_token_id=9)
