import numpy as np
import pytest
from scipy import stats

from stemformer.data.examples.packing import split_documents
from stemformer.data.examples.sentence_pairs import make_sentence_pairs
from stemformer.data.shards.reader import Shards
from stemformer.errors import ConfigError, DataError

ALPHA = 1e-3
"""Of the statistical tests. Seeds are fixed, so a test passes always or never: this is how unlucky a right program may be."""


class LineOfTokens(Shards):
    """A split in memory: documents of sentences of words, each word a number of tokens."""

    split = "train"

    def __init__(self, documents):
        words = [word for sentences in documents for words in sentences for word in words]
        self._starts_word = np.concatenate([np.arange(n) == 0 for n in words])
        self.num_tokens = len(self._starts_word)
        self._ids = np.arange(self.num_tokens, dtype=np.uint32)  # an id says where it stands
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


def draw(chunks, number, seed=0):
    return chunks.get_example(number, np.random.default_rng((seed, number)))


def draws(chunks, times=1):
    """Returns number and passage of each chunk, `times` over."""
    return [(number, draw(chunks, number, seed)) for seed in range(times) for number in range(len(chunks))]


def texts(passage):
    """Returns A and B as tokens, which in these lines are places."""
    assert passage.segments.tolist() == [0, 1]
    assert len(passage.tokens) == len(passage.word_starts) == passage.lengths.sum()
    a, b = np.split(passage.tokens, [passage.lengths[0]])
    for text in (a, b):
        assert len(text) >= 1
        np.testing.assert_array_equal(text, np.arange(text[0], text[-1] + 1))
    return a, b


def document_of(line, place):
    return int(np.searchsorted(line.document_starts, place, side="right")) - 1


# Chunks


def test_chunks_and_those_left_out_are_as_counted_by_hand():
    line = LineOfTokens([[[2]], [[1, 1]], [[3, 1], [2]], [[9]], [[5, 1], [6]]])
    chunks = make_sentence_pairs(line, row_length=12)  # room for 9
    assert (chunks.starts.tolist(), chunks.stops.tolist()) == ([2, 4, 19], [4, 10, 25])
    assert chunks.num_left_out == 3  # [2], [9] and the last sentence, which is a chunk and a single word
    assert chunks.num_tokens == 14 + 3 * 3
    assert chunks.packing_efficiency == pytest.approx(23 / 36)


@pytest.mark.parametrize("row_length", [5, 9, 32, 128, 100_000])
def test_chunks_cover_every_token_but_those_of_single_words(row_length):
    line = random_line(seed=1)
    chunks = make_sentence_pairs(line, row_length=row_length)
    pieces = list(zip(*(ends.tolist() for ends in split_documents(line, room=row_length - 3)), strict=True))
    kept = list(zip(chunks.starts.tolist(), chunks.stops.tolist(), strict=True))
    left_out = [piece for piece in pieces if piece not in set(kept)]
    assert sorted(kept + left_out) == pieces  # which cover every token once
    assert not any(line.word_starts(start + 1, stop).any() for start, stop in left_out)
    assert chunks.num_left_out == len(left_out)


@pytest.mark.parametrize("row_length", [9, 32, 128, 100_000])
def test_chunks_stay_within_a_document_and_fit_a_row(row_length):
    line = random_line(seed=2)
    chunks = make_sentence_pairs(line, row_length=row_length)
    for start, stop in zip(chunks.starts.tolist(), chunks.stops.tolist(), strict=True):
        assert document_of(line, start) == document_of(line, stop - 1)
        assert stop - start <= row_length - 3


def test_chunks_are_whole_sentences_where_each_fits_a_row():
    line = random_line(seed=3)  # sentences of 96 tokens at most
    chunks = make_sentence_pairs(line, row_length=128)
    assert np.isin(chunks.starts, line.sentence_starts).all()
    assert np.isin(chunks.stops, line.sentence_starts).all()


def test_document_longer_than_any_row_is_cut_into_many_chunks():
    line = LineOfTokens([[[1, 2, 1]] * 300 + [[1] * 5000], [[1] * 4] * 3])
    chunks = make_sentence_pairs(line, row_length=32)
    assert chunks.num_left_out == 0
    assert (chunks.stops - chunks.starts).sum() == line.num_tokens
    for number, passage in draws(chunks):
        a, b = texts(passage)
        assert len(passage.tokens) <= 29
        if passage.label:
            assert document_of(line, a[0]) != document_of(line, b[0])
        else:
            assert (a[0], b[-1] + 1) == (chunks.starts[number], chunks.stops[number]) or passage.num_dropped_tokens > 0


# Pairs


@pytest.mark.parametrize("task", ["next", "order"])
@pytest.mark.parametrize("row_length", [5, 6, 9, 32, 128])
def test_pair_never_exceeds_the_row_with_its_three_special_tokens(row_length, task):
    for _, passage in draws(make_sentence_pairs(random_line(seed=4), row_length=row_length, task=task)):
        a, b = texts(passage)
        assert len(a) + len(b) + 3 <= row_length


def test_text_that_follows_is_the_rest_of_the_chunk():
    chunks = make_sentence_pairs(random_line(seed=5), row_length=48, short_share=0.0)
    seen = 0
    for number, passage in draws(chunks, times=3):
        if passage.label == 0:
            texts(passage)
            np.testing.assert_array_equal(passage.tokens, np.arange(chunks.starts[number], chunks.stops[number]))
            assert passage.num_dropped_tokens == 0
            seen += 1
    assert seen > 100


def test_strange_text_is_from_another_document():
    line = random_line(seed=6, num_documents=3)
    chunks = make_sentence_pairs(line, row_length=16)
    partners = set()
    for number, passage in draws(chunks, times=8):
        if passage.label == 1:
            a, b = texts(passage)
            own, other = document_of(line, a[0]), document_of(line, b[0])
            assert a[0] == chunks.starts[number]
            assert own != other == document_of(line, b[-1])
            partners.add((own, other))
    assert len(partners) == 6  # each of three with each other one


@pytest.mark.parametrize("task", ["next", "order"])
def test_half_of_the_pairs_have_each_label(task):
    chunks = make_sentence_pairs(random_line(seed=7), row_length=32, task=task)
    labels = [passage.label for _, passage in draws(chunks, times=4)]
    assert set(labels) == {0, 1}
    assert stats.binomtest(sum(labels), len(labels), 0.5).pvalue > ALPHA


def test_sentence_order_of_label_one_is_swapped():
    chunks = make_sentence_pairs(random_line(seed=8), row_length=48, task="order", short_share=0.0)
    seen = [0, 0]
    for number, passage in draws(chunks, times=2):
        a, b = texts(passage)
        first, second = (b, a) if passage.label else (a, b)
        whole = np.arange(chunks.starts[number], chunks.stops[number])
        np.testing.assert_array_equal(np.concatenate([first, second]), whole)
        assert passage.num_dropped_tokens == 0
        seen[passage.label] += 1
    assert min(seen) > 50


def test_chunk_of_several_sentences_is_split_between_any_two_of_them():
    chunks = make_sentence_pairs(
        LineOfTokens([[[2, 1], [1, 1], [4], [1, 1]]]), row_length=32, task="order", short_share=0.0
    )
    splits = {tuple(sorted(map(len, texts(passage)))) for _, passage in draws(chunks, times=40)}
    assert splits == {(3, 8), (5, 6), (2, 9)}


def test_chunk_of_one_sentence_is_split_before_a_word_with_either_label():
    line = LineOfTokens([[[2, 1, 3]], [[1, 4, 1, 1]]])
    chunks = make_sentence_pairs(line, row_length=32, short_share=0.0)
    found = {0: set(), 1: set()}
    for number, passage in draws(chunks, times=60):
        a, b = texts(passage)
        if number == 0:
            found[passage.label].add((a[0], a[-1] + 1, b[0], b[-1] + 1))
    assert found[0] == {(0, 2, 2, 6), (0, 3, 3, 6)}
    # a strange text too begins inside its sentence and ends with it, as near in length as its words allow
    assert found[1] == {(0, 2, 7, 13), (0, 3, 11, 13)}


# Chance


def test_what_is_drawn_depends_on_the_generator_alone():
    line = random_line(seed=9)
    chunks, again = (make_sentence_pairs(line, row_length=32) for _ in range(2))
    for number in reversed(range(len(again))):
        draw(again, number, seed=99)
    for number in range(len(chunks)):
        one, other = draw(chunks, number), draw(again, number)
        for name in ("tokens", "word_starts", "lengths"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert (one.label, one.num_dropped_tokens) == (other.label, other.num_dropped_tokens)


def test_other_random_numbers_give_other_pairs():
    chunks = make_sentence_pairs(random_line(seed=10), row_length=64)
    passages = [draw(chunks, 3, seed) for seed in range(20)]
    assert len({passage.tokens.tobytes() for passage in passages}) > 3


@pytest.mark.parametrize("task", ["next", "order"])
def test_displaced_tokens_are_those_of_the_chunk_that_are_not_seen(task):
    chunks = make_sentence_pairs(random_line(seed=11), row_length=40, task=task, short_share=0.5)
    total = 0
    for number, passage in draws(chunks, times=2):
        whole = np.arange(chunks.starts[number], chunks.stops[number])
        a, b = texts(passage)
        seen = a if passage.label and task == "next" else np.concatenate([a, b])
        assert passage.num_dropped_tokens == len(np.setdiff1d(whole, seen))
        total += passage.num_dropped_tokens
    assert total > 0


# Short pairs


def test_short_pairs_are_whole_sentences_from_the_beginning_and_can_be_split():
    line = random_line(seed=12)
    chunks = make_sentence_pairs(line, row_length=128, task="order", short_share=1.0)
    cut = 0
    for number, passage in draws(chunks):
        places = np.sort(np.concatenate(texts(passage)))
        start, stop = chunks.starts[number], chunks.stops[number]
        np.testing.assert_array_equal(places, np.arange(start, places[-1] + 1))
        assert places[-1] + 1 == stop or places[-1] + 1 in line.sentence_starts
        cut += int(places[-1] + 1 < stop)
    assert cut > len(chunks) / 4


def test_share_of_short_pairs_is_as_asked():
    line = LineOfTokens([[[1, 1]] * 30] * 200)  # chunks of 60 tokens, cut by any target from 2 to 58
    chunks = make_sentence_pairs(line, row_length=63, task="order", short_share=0.3)
    short = [len(passage.tokens) < 60 for _, passage in draws(chunks, times=5)]
    share = 0.3 * 58 / 59  # of the targets from 2 to 60 two cut nothing off: 60, and 2 to 59 do
    assert stats.binomtest(sum(short), len(short), share).pvalue > ALPHA


def test_pair_is_not_cut_to_what_cannot_be_split():
    chunks = make_sentence_pairs(LineOfTokens([[[3], [1, 1]]]), row_length=16, task="order", short_share=1.0)
    assert {len(passage.tokens) for _, passage in draws(chunks, times=50)} == {5}


# The strange text


@pytest.mark.parametrize("row_length", [64, 128, 256])
def test_strange_text_is_about_as_long_as_the_one_it_replaces(row_length):
    chunks = make_sentence_pairs(random_line(seed=13, num_documents=200), row_length=row_length, short_share=0.0)
    strange = [(int(p.lengths[1]), p.num_dropped_tokens) for _, p in draws(chunks, times=2) if p.label]
    found, true = np.mean(strange, 0)
    assert found == pytest.approx(true, rel=0.04)  # 0.02 with this seed; any text of a random chunk would be 0.2 off


def test_strange_text_ends_with_a_sentence_where_one_that_fits_is_found():
    line = random_line(seed=14, num_documents=200)
    chunks = make_sentence_pairs(line, row_length=128)  # longer than any sentence, so true texts always end with one
    ends = [texts(p)[1][-1] + 1 in line.sentence_starts for _, p in draws(chunks, times=2) if p.label]
    assert np.mean(ends) > 0.995  # nearest in length alone, and then cut to the row, gives 0.987


def test_strange_text_that_cannot_fit_is_cut_before_a_word():
    line = LineOfTokens([[[5], [2, 2]], [[2] * 10]])
    chunks = make_sentence_pairs(line, row_length=23, short_share=0.0)
    strange = [texts(p)[1] for n, p in draws(chunks, times=30) if n == 0 and p.label]
    assert len(strange) > 5
    for text in strange:  # 20 tokens fit, 5 are A: of 15 the last is half a word
        np.testing.assert_array_equal(text, np.arange(9, 23))


# Errors


def test_single_document_is_refused_for_next_sentence_alone():
    line = LineOfTokens([[[1, 2], [3, 1]]])
    with pytest.raises(DataError, match="needs a second document"):
        make_sentence_pairs(line, row_length=32)
    assert len(make_sentence_pairs(line, row_length=32, task="order")) == 1


def test_second_document_that_cannot_be_split_is_no_partner():
    with pytest.raises(DataError, match="needs a second document"):
        make_sentence_pairs(LineOfTokens([[[1, 2], [3, 1]], [[4]]]), row_length=32)


def test_text_of_single_words_is_refused():
    with pytest.raises(DataError, match="no text can be split into two"):
        make_sentence_pairs(LineOfTokens([[[1]], [[4]]]), row_length=32)


@pytest.mark.parametrize("row_length", [0, 3, 4])
def test_row_without_room_for_two_texts_is_refused(row_length):
    with pytest.raises(ConfigError, match=f"row_length is {row_length}: expected at least 5"):
        make_sentence_pairs(random_line(seed=15), row_length=row_length)
