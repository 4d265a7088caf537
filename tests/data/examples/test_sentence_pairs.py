import numpy as np
import pytest
from scipy import stats

from stemformer.data.examples.packing import split_documents
from stemformer.data.examples.sentence_pairs import make_sentence_pairs
from stemformer.data.shards.reader import Shards
from stemformer.errors import ConfigError, DataError

ALPHA = 1e-3
"""Significance level of the statistical tests; seeds are fixed, so the results are deterministic."""


class LineOfTokens(Shards):
    """Split in memory: documents of sentences of words, each word given by its number of tokens."""

    split = "train"

    def __init__(self, documents):
        words = [word for sentences in documents for words in sentences for word in words]
        self._starts_word = np.concatenate([np.arange(n) == 0 for n in words])
        self.num_tokens = len(self._starts_word)
        self._ids = np.arange(self.num_tokens, dtype=np.uint32)  # each id is its own position
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


def get(chunks, number, seed=0):
    return chunks.get_example(number, np.random.default_rng((seed, number)))


def get_all(chunks, times=1):
    """Return number and example of each chunk, for `times` seeds."""
    return [(number, get(chunks, number, seed)) for seed in range(times) for number in range(len(chunks))]


def texts(example):
    """Return the tokens of A and B; in these splits each token is its own position."""
    assert example.segments.tolist() == [0, 1]
    assert len(example.tokens) == len(example.word_starts) == example.lengths.sum()
    a, b = np.split(example.tokens, [example.lengths[0]])
    for text in (a, b):
        assert len(text) >= 1
        np.testing.assert_array_equal(text, np.arange(text[0], text[-1] + 1))
    return a, b


def document_of(line, position):
    return int(np.searchsorted(line.document_starts, position, side="right")) - 1


# Chunks


def test_chunks_and_left_out_chunks_of_a_small_split():
    line = LineOfTokens([[[2]], [[1, 1]], [[3, 1], [2]], [[9]], [[5, 1], [6]]])
    chunks = make_sentence_pairs(line, sequence_length=12)  # 9 without special tokens
    assert (chunks.starts.tolist(), chunks.stops.tolist()) == ([2, 4, 19], [4, 10, 25])
    assert chunks.num_left_out == 3  # [2], [9] and the last sentence, a chunk of a single word
    assert chunks.num_tokens == 14 + 3 * 3
    assert chunks.packing_efficiency == pytest.approx(23 / 36)


@pytest.mark.parametrize("sequence_length", [5, 9, 32, 128, 100_000])
def test_chunks_cover_every_token_except_those_of_single_words(sequence_length):
    line = random_line(seed=1)
    chunks = make_sentence_pairs(line, sequence_length=sequence_length)
    bounds = split_documents(line, max_tokens=sequence_length - 3, ends="sentence")
    pieces = list(zip(*(bound.tolist() for bound in bounds), strict=True))
    kept = list(zip(chunks.starts.tolist(), chunks.stops.tolist(), strict=True))
    left_out = [piece for piece in pieces if piece not in set(kept)]
    assert sorted(kept + left_out) == pieces  # which cover every token once
    assert not any(line.word_starts(start + 1, stop).any() for start, stop in left_out)
    assert chunks.num_left_out == len(left_out)


@pytest.mark.parametrize("sequence_length", [9, 32, 128, 100_000])
def test_chunks_stay_within_a_document_and_fit_the_sequence_length(sequence_length):
    line = random_line(seed=2)
    chunks = make_sentence_pairs(line, sequence_length=sequence_length)
    for start, stop in zip(chunks.starts.tolist(), chunks.stops.tolist(), strict=True):
        assert document_of(line, start) == document_of(line, stop - 1)
        assert stop - start <= sequence_length - 3


def test_chunks_are_full_sentences_if_each_fits():
    line = random_line(seed=3)  # sentences of 96 tokens at most
    chunks = make_sentence_pairs(line, sequence_length=128)
    assert np.isin(chunks.starts, line.sentence_starts).all()
    assert np.isin(chunks.stops, line.sentence_starts).all()


def test_long_document_is_split_into_many_chunks():
    line = LineOfTokens([[[1, 2, 1]] * 300 + [[1] * 5000], [[1] * 4] * 3])
    chunks = make_sentence_pairs(line, sequence_length=32)
    assert chunks.num_left_out == 0
    assert (chunks.stops - chunks.starts).sum() == line.num_tokens
    for number, example in get_all(chunks):
        a, b = texts(example)
        assert len(example.tokens) <= 29
        if example.label:
            assert document_of(line, a[0]) != document_of(line, b[0])
        else:
            assert (a[0], b[-1] + 1) == (chunks.starts[number], chunks.stops[number]) or example.num_dropped_tokens > 0


# Pairs


@pytest.mark.parametrize("task", ["next", "order"])
@pytest.mark.parametrize("sequence_length", [5, 6, 9, 32, 128])
def test_pair_fits_sequence_length_with_its_three_special_tokens(sequence_length, task):
    for _, example in get_all(make_sentence_pairs(random_line(seed=4), sequence_length=sequence_length, task=task)):
        a, b = texts(example)
        assert len(a) + len(b) + 3 <= sequence_length


def test_original_pair_is_the_full_chunk():
    chunks = make_sentence_pairs(random_line(seed=5), sequence_length=48, short_seq_prob=0.0)
    seen = 0
    for number, example in get_all(chunks, times=3):
        if example.label == 0:
            texts(example)
            np.testing.assert_array_equal(example.tokens, np.arange(chunks.starts[number], chunks.stops[number]))
            assert example.num_dropped_tokens == 0
            seen += 1
    assert seen > 100


def test_random_text_is_from_another_document():
    line = random_line(seed=6, num_documents=3)
    chunks = make_sentence_pairs(line, sequence_length=16)
    partners = set()
    for number, example in get_all(chunks, times=8):
        if example.label == 1:
            a, b = texts(example)
            own, other = document_of(line, a[0]), document_of(line, b[0])
            assert a[0] == chunks.starts[number]
            assert own != other == document_of(line, b[-1])
            partners.add((own, other))
    assert len(partners) == 6  # each of three documents with each other one


@pytest.mark.parametrize("task", ["next", "order"])
def test_labels_are_balanced(task):
    chunks = make_sentence_pairs(random_line(seed=7), sequence_length=32, task=task)
    labels = [example.label for _, example in get_all(chunks, times=4)]
    assert set(labels) == {0, 1}
    assert stats.binomtest(sum(labels), len(labels), 0.5).pvalue > ALPHA


def test_sentence_order_label_one_is_swapped():
    chunks = make_sentence_pairs(random_line(seed=8), sequence_length=48, task="order", short_seq_prob=0.0)
    seen = [0, 0]
    for number, example in get_all(chunks, times=2):
        a, b = texts(example)
        first, second = (b, a) if example.label else (a, b)
        chunk = np.arange(chunks.starts[number], chunks.stops[number])
        np.testing.assert_array_equal(np.concatenate([first, second]), chunk)
        assert example.num_dropped_tokens == 0
        seen[example.label] += 1
    assert min(seen) > 50


def test_chunk_of_several_sentences_is_split_between_any_two_of_them():
    chunks = make_sentence_pairs(
        LineOfTokens([[[2, 1], [1, 1], [4], [1, 1]]]), sequence_length=32, task="order", short_seq_prob=0.0
    )
    splits = {tuple(sorted(map(len, texts(example)))) for _, example in get_all(chunks, times=40)}
    assert splits == {(3, 8), (5, 6), (2, 9)}


def test_chunk_of_one_sentence_is_split_before_a_word_with_either_label():
    line = LineOfTokens([[[2, 1, 3]], [[1, 4, 1, 1]]])
    chunks = make_sentence_pairs(line, sequence_length=32, short_seq_prob=0.0)
    found = {0: set(), 1: set()}
    for number, example in get_all(chunks, times=60):
        a, b = texts(example)
        if number == 0:
            found[example.label].add((a[0], a[-1] + 1, b[0], b[-1] + 1))
    assert found[0] == {(0, 2, 2, 6), (0, 3, 3, 6)}
    # A random text also starts inside its sentence and ends with it, as close in length as its words allow.
    assert found[1] == {(0, 2, 7, 13), (0, 3, 11, 13)}


# Randomness


def test_pair_is_a_function_of_the_generator():
    line = random_line(seed=9)
    chunks, again = (make_sentence_pairs(line, sequence_length=32) for _ in range(2))
    for number in reversed(range(len(again))):
        get(again, number, seed=99)
    for number in range(len(chunks)):
        one, other = get(chunks, number), get(again, number)
        for name in ("tokens", "word_starts", "lengths"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert (one.label, one.num_dropped_tokens) == (other.label, other.num_dropped_tokens)


def test_different_seeds_give_different_pairs():
    chunks = make_sentence_pairs(random_line(seed=10), sequence_length=64)
    examples = [get(chunks, 3, seed) for seed in range(20)]
    assert len({example.tokens.tobytes() for example in examples}) > 3


@pytest.mark.parametrize("task", ["next", "order"])
def test_dropped_tokens_are_those_of_the_chunk_that_are_not_seen(task):
    chunks = make_sentence_pairs(random_line(seed=11), sequence_length=40, task=task, short_seq_prob=0.5)
    total = 0
    for number, example in get_all(chunks, times=2):
        chunk = np.arange(chunks.starts[number], chunks.stops[number])
        a, b = texts(example)
        seen = a if example.label and task == "next" else np.concatenate([a, b])
        assert example.num_dropped_tokens == len(np.setdiff1d(chunk, seen))
        total += example.num_dropped_tokens
    assert total > 0


# Short pairs


def test_short_pairs_are_full_sentences_from_the_start_and_can_be_split():
    line = random_line(seed=12)
    chunks = make_sentence_pairs(line, sequence_length=128, task="order", short_seq_prob=1.0)
    cut = 0
    for number, example in get_all(chunks):
        positions = np.sort(np.concatenate(texts(example)))
        start, stop = chunks.starts[number], chunks.stops[number]
        np.testing.assert_array_equal(positions, np.arange(start, positions[-1] + 1))
        assert positions[-1] + 1 == stop or positions[-1] + 1 in line.sentence_starts
        cut += int(positions[-1] + 1 < stop)
    assert cut > len(chunks) / 4


def test_fraction_of_short_pairs_is_short_seq_prob():
    line = LineOfTokens([[[1, 1]] * 30] * 200)  # chunks of 60 tokens, shortened by any target from 2 to 58
    chunks = make_sentence_pairs(line, sequence_length=63, task="order", short_seq_prob=0.3)
    short = [len(example.tokens) < 60 for _, example in get_all(chunks, times=5)]
    share = 0.3 * 58 / 59  # of the targets 2 to 60, all but 60 shorten
    assert stats.binomtest(sum(short), len(short), share).pvalue > ALPHA


def test_pair_is_not_shortened_to_what_cannot_be_split():
    chunks = make_sentence_pairs(LineOfTokens([[[3], [1, 1]]]), sequence_length=16, task="order", short_seq_prob=1.0)
    assert {len(example.tokens) for _, example in get_all(chunks, times=50)} == {5}


# Random texts


@pytest.mark.parametrize("sequence_length", [64, 128, 256])
def test_random_text_is_about_as_long_as_the_replaced_one(sequence_length):
    chunks = make_sentence_pairs(
        random_line(seed=13, num_documents=200), sequence_length=sequence_length, short_seq_prob=0.0
    )
    random_texts = [(int(p.lengths[1]), p.num_dropped_tokens) for _, p in get_all(chunks, times=2) if p.label]
    found, true = np.mean(random_texts, 0)
    assert found == pytest.approx(true, rel=0.04)  # 0.02 with this seed; 0.2 for any text of a random chunk


def test_random_text_ends_with_a_sentence_if_one_fits():
    line = random_line(seed=14, num_documents=200)
    chunks = make_sentence_pairs(
        line, sequence_length=128
    )  # longer than any sentence, so original texts always end with one
    ends = [texts(p)[1][-1] + 1 in line.sentence_starts for _, p in get_all(chunks, times=2) if p.label]
    assert np.mean(ends) > 0.995  # closest in length alone, then cut, gives 0.987


def test_random_text_that_does_not_fit_is_cut_before_a_word():
    line = LineOfTokens([[[5], [2, 2]], [[2] * 10]])
    chunks = make_sentence_pairs(line, sequence_length=23, short_seq_prob=0.0)
    random_texts = [texts(p)[1] for n, p in get_all(chunks, times=30) if n == 0 and p.label]
    assert len(random_texts) > 5
    for text in random_texts:  # 20 tokens fit, 5 are A: the last of the other 15 is half a word
        np.testing.assert_array_equal(text, np.arange(9, 23))


# Errors


def test_single_document_is_refused_for_next_sentence_only():
    line = LineOfTokens([[[1, 2], [3, 1]]])
    with pytest.raises(DataError, match="needs a second document"):
        make_sentence_pairs(line, sequence_length=32)
    assert len(make_sentence_pairs(line, sequence_length=32, task="order")) == 1


def test_second_document_that_cannot_be_split_does_not_count():
    with pytest.raises(DataError, match="needs a second document"):
        make_sentence_pairs(LineOfTokens([[[1, 2], [3, 1]], [[4]]]), sequence_length=32)


def test_text_of_single_words_is_refused():
    with pytest.raises(DataError, match="No text can be split into two"):
        make_sentence_pairs(LineOfTokens([[[1]], [[4]]]), sequence_length=32)


@pytest.mark.parametrize("sequence_length", [0, 3, 4])
def test_sequence_length_without_room_for_two_texts_is_refused(sequence_length):
    with pytest.raises(ConfigError, match=f"sequence_length is {sequence_length}: expected at least 5"):
        make_sentence_pairs(random_line(seed=15), sequence_length=sequence_length)
