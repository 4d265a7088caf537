"""Laws of the noises: exact shares, spans apart, every token lost equally often, uniform orders."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from stemformer.objectives import noise
from stemformer.objectives.noise import NoisyText, Spans

CHOICES = {
    "units": lambda n, rate, rng: noise.choose_units(n, rate, rng),
    "poisson": lambda n, rate, rng: noise.choose_poisson_spans(n, rate, 3.0, rng),
    "fixed": lambda n, rate, rng: noise.choose_fixed_spans(n, rate, 3.0, rng),
    "fragment": lambda n, rate, rng: noise.choose_fragment(n, rate, rng),
}


def lost(spans, n):
    return noise.is_in_spans(spans, n)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("rate", [0.0, 0.15, 0.3, 0.5, 0.8, 1.0])
def test_the_exact_share_is_lost(name, rate):
    for n in (1, 2, 3, 7, 20, 128, 512):
        for seed in range(20):
            spans = CHOICES[name](n, rate, np.random.default_rng(seed))
            assert lost(spans, n).sum() == spans.lengths.sum() == int(rate * n + 0.5)


@pytest.mark.parametrize("name", ["poisson", "fixed", "fragment"])
def test_spans_are_ascending_and_do_not_touch(name):
    for n in (5, 20, 128):
        for seed in range(200):
            spans = CHOICES[name](n, 0.3, np.random.default_rng(seed))
            stops = spans.starts + spans.lengths
            assert (spans.starts >= 0).all() and (stops <= n).all()
            assert (spans.starts[1:] > stops[:-1]).all()


@pytest.mark.parametrize("name", ["units", "poisson", "fixed"])
@pytest.mark.parametrize(("draws", "tolerance"), [(5_000, 0.065), pytest.param(10**5, 0.01, marks=pytest.mark.slow)])
def test_each_token_is_lost_equally_often(name, draws, tolerance):
    n = 12
    rng = np.random.default_rng(0)
    counts = sum(lost(CHOICES[name](n, 0.5, rng), n).astype(int) for _ in range(draws))
    # The first and the last one too; 4.6 standard deviations, and 3.2 of the many draws.
    assert np.abs(counts / (0.5 * draws) - 1).max() < tolerance


def test_tokens_of_fragments_and_suffixes_are_lost_as_often_as_they_are_defined_to_be():
    n, draws = 8, 3000
    rng = np.random.default_rng(0)
    fragments = sum(lost(noise.choose_fragment(n, 0.5, rng), n).astype(int) for _ in range(draws)) / draws
    suffixes = sum(lost(noise.choose_suffix(n, rng), n).astype(int) for _ in range(draws)) / draws
    # Of 5 fragments of 4 tokens, 1 has the first, 4 have the middle ones; of 7 suffixes, none has the first.
    assert fragments == pytest.approx(np.array([1, 2, 3, 4, 4, 3, 2, 1]) / 5, abs=0.03)
    assert suffixes == pytest.approx(np.arange(8) / 7, abs=0.03)


@pytest.mark.parametrize("mean", [1.5, 3.0, 3.5])
def test_lengths_of_spans_are_poisson(mean):
    rng = np.random.default_rng(0)
    lengths = np.concatenate([noise.choose_poisson_spans(20_000, 0.15, mean, rng).lengths for _ in range(20)])
    most = int(mean + 4)
    counts = np.bincount(np.minimum(lengths, most))
    law = stats.poisson(mean)
    expected = np.append(law.pmf(np.arange(most)), law.sf(most - 1)) * len(lengths)
    # One length in about 1,000 is cut, and one is split at the end of the text.
    assert stats.chisquare(counts, expected).pvalue > 1e-3


@pytest.mark.parametrize("mean", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("rate", [0.002, 0.05, 0.3, 0.9])
def test_a_mask_for_each_span_makes_no_text_longer(mean, rate):
    for n in (1, 7, 20, 250, 512):
        for seed in range(40):
            spans = noise.choose_poisson_spans(n, rate, mean, np.random.default_rng(seed))
            assert spans.lengths.sum() == noise.number_lost(n, rate)
            text = noise.infill(NoisyText.of(np.arange(n)), spans, np.full(len(spans.starts), -5))
            assert len(text.ids) <= n


def test_spans_over_the_end_continue_at_the_start():
    splits = 0
    for seed in range(300):
        spans = noise.choose_poisson_spans(10, 0.4, 3.0, np.random.default_rng(seed))
        is_lost = lost(spans, 10)
        splits += is_lost[0] and is_lost[-1]
    assert splits > 10


@pytest.mark.parametrize("rate", [0.9, 0.97])
def test_spans_without_room_between_them_are_joined(rate):
    for seed in range(100):
        spans = noise.choose_poisson_spans(30, rate, 1.0, np.random.default_rng(seed))
        assert lost(spans, 30).sum() == int(rate * 30 + 0.5)
        assert (spans.starts[1:] > (spans.starts + spans.lengths)[:-1]).all()


def test_fixed_spans_are_as_many_as_their_mean_length_says():
    for seed in range(50):
        spans = noise.choose_fixed_spans(200, 0.15, 3.0, np.random.default_rng(seed))
        # One more if a span is split at the end.
        assert len(spans.starts) in (10, 11) and (spans.lengths > 0).all()


def test_fragments_start_anywhere():
    starts = Counter(int(noise.choose_fragment(10, 0.5, np.random.default_rng(s)).starts[0]) for s in range(6000))
    assert set(starts) == set(range(6))
    assert min(starts.values()) > 850


TEXT = NoisyText.of(np.arange(10, 20))
SPANS = Spans(np.array([0, 3, 5, 9]), np.array([2, 0, 3, 1]))


def test_deleted_tokens_are_gone():
    found = noise.delete(TEXT, SPANS)
    assert found.ids.tolist() == [12, 13, 14, 18]
    assert found.origins.tolist() == [2, 3, 4, 8]


def test_masked_tokens_are_replaced_one_by_one():
    found = noise.mask_each(TEXT, SPANS, np.array([1, 2, 3, 4, 5, 6]))
    assert found.ids.tolist() == [1, 2, 12, 13, 14, 3, 4, 5, 18, 6]
    assert found.origins.tolist() == [-1, -1, 2, 3, 4, -1, -1, -1, 8, -1]


def test_infilled_spans_become_one_id_each():
    found = noise.infill(TEXT, SPANS, np.array([1, 2, 3, 4]))
    assert found.ids.tolist() == [1, 12, 2, 13, 14, 3, 18, 4]
    assert found.origins.tolist() == [-1, 2, -1, 3, 4, -1, 8, -1]


def test_lost_tokens_are_written_with_or_without_sentinels():
    found = noise.lost_tokens(TEXT, SPANS)
    assert found.ids.tolist() == [10, 11, 15, 16, 17, 19]
    assert found.origins.tolist() == [0, 1, 5, 6, 7, 9]
    found = noise.lost_tokens(TEXT, SPANS, np.array([1, 2, 3, 4, 5]))
    assert found.ids.tolist() == [1, 10, 11, 2, 3, 15, 16, 17, 4, 19, 5]
    assert found.origins.tolist() == [-1, 0, 1, -1, -1, 5, 6, 7, -1, 9, -1]
    nothing = Spans(np.zeros(0, int), np.zeros(0, int))
    assert noise.lost_tokens(TEXT, nothing, np.array([1])).ids.tolist() == [1]


def test_spans_of_words_become_spans_of_their_tokens():
    found = noise.token_spans(Spans(np.array([0, 2]), np.array([1, 2])), np.array([0, 3, 4, 6]), 10)
    assert found.starts.tolist() == [0, 4] and found.lengths.tolist() == [3, 6]


def test_sentence_orders_are_uniform():
    starts, draws = np.array([0, 2, 3, 7]), 12_000
    rng = np.random.default_rng(0)
    counts = Counter(tuple(noise.permute_sentences(starts, 9, 1.0, rng)) for _ in range(draws))
    pieces = [(0, 1), (2,), (3, 4, 5, 6), (7, 8)]
    expected = {sum(order, ()) for order in permutations(pieces)}
    assert set(counts) == expected
    assert stats.chisquare([counts[order] for order in expected]).pvalue > 1e-3


def test_sentences_that_are_not_chosen_keep_their_positions():
    starts = np.arange(0, 20, 2)
    for seed in range(50):
        order = noise.permute_sentences(starts, 20, 0.3, np.random.default_rng(seed))
        assert sorted(order) == list(range(20))
        assert (order[::2] != starts).sum() <= 3


def test_rotations_are_uniform_and_never_the_identity():
    rng = np.random.default_rng(0)
    counts = Counter(int(noise.rotate_text(5, rng)[0]) for _ in range(4000))
    assert set(counts) == {1, 2, 3, 4} and min(counts.values()) > 900
    assert noise.rotate_text(5, rng).tolist() != [0, 1, 2, 3, 4]
    assert noise.rotate_text(1, rng).tolist() == [0] and noise.rotate_text(0, rng).tolist() == []


def test_no_rate_changes_nothing():
    rng = np.random.default_rng(0)
    for choose in CHOICES.values():
        spans = choose(10, 0.0, rng)
        assert noise.delete(TEXT, spans).ids.tolist() == TEXT.ids.tolist()
        assert noise.infill(TEXT, spans, np.zeros(0, int)).ids.tolist() == TEXT.ids.tolist()
    assert noise.permute_sentences(np.array([0, 4]), 10, 0.0, rng).tolist() == list(range(10))


@pytest.mark.parametrize("name", CHOICES)
def test_equal_generators_give_equal_noise(name):
    first, second = (CHOICES[name](50, 0.3, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(first.starts, second.starts) and np.array_equal(first.lengths, second.lengths)
