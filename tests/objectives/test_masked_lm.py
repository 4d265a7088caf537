import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from stemformer.data.examples.batch import collate
from stemformer.data.examples.packing import RawExample
from stemformer.errors import ConfigError
from stemformer.models.bert import BertConfig
from stemformer.models.heads import MaskedLmHead
from stemformer.models.model import make_model
from stemformer.objectives.masked_lm import (
    MaskedLm,
    MaskedLmConfig,
    SpecialIds,
    choose_spans,
    choose_tokens,
    choose_words,
)
from stemformer.objectives.objective import LossModule

V = 60
SPECIAL = SpecialIds(cls=2, sep=3, mask=4)
UNITS = ["token", "word", "span"]
ALPHA = 1e-3
"""Significance level of the statistical tests; seeds are fixed, so a test passes always or never."""


def hide(masked, tokens, words, lengths, rng):
    """Corrupt a row whose segments are sequences of their own."""
    return masked.corrupt(RawExample(tokens, words, lengths, np.zeros(len(lengths), np.int64)), rng)


def objective(**config):
    return MaskedLm(MaskedLmConfig(**config), special=SPECIAL, vocab_size=V)


def random_row(rng, longest=60):
    """Return tokens (none special), word starts and lengths of a row."""
    lengths = rng.integers(1, longest, rng.integers(1, 6))
    n = int(lengths.sum())
    words = rng.random(n) < rng.uniform(0.2, 1)
    words[np.cumsum(lengths) - lengths] = True
    return rng.integers(5, V, n), words, lengths


def random_rows(number, seed=0):
    rng = np.random.default_rng(seed)
    return [(random_row(rng), np.random.default_rng((seed, i))) for i in range(number)]


def ones(n):
    return np.ones(n, bool)


# Number of scored tokens


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("rate", [0.01, 0.15, 0.4, 0.99])
def test_number_of_scored_tokens_is_exact(unit, rate):
    masked = objective(mask_rate=rate, unit=unit)
    for row, rng in random_rows(150):
        example = hide(masked, *row, rng)
        assert len(example.labels) == len(example.label_positions) == max(1, round(rate * len(row[0])))


@pytest.mark.parametrize("unit", UNITS)
def test_scored_positions_are_distinct_and_ascending(unit):
    for row, rng in random_rows(150, seed=1):
        assert (np.diff(hide(objective(mask_rate=0.3, unit=unit), *row, rng).label_positions) > 0).all()


@pytest.mark.parametrize("unit", UNITS)
def test_row_of_one_token_has_it_scored(unit):
    example = hide(objective(unit=unit), np.array([9]), ones(1), np.array([1]), np.random.default_rng(0))
    assert (example.label_positions.tolist(), example.labels.tolist()) == ([1], [9])


# Input ids and labels


@pytest.mark.parametrize("unit", UNITS)
def test_special_tokens_surround_each_sequence_and_are_never_scored(unit):
    masked = objective(mask_rate=0.6, unit=unit)
    for row, rng in random_rows(100, seed=2):
        example = hide(masked, *row, rng)
        ends = np.cumsum(example.lengths)
        firsts = ends - example.lengths
        np.testing.assert_array_equal(example.lengths, row[2] + 2)
        assert (example.input_ids[firsts] == SPECIAL.cls).all()
        assert (example.input_ids[ends - 1] == SPECIAL.sep).all()
        assert not np.isin(example.label_positions, np.concatenate([firsts, ends - 1])).any()


@pytest.mark.parametrize("unit", UNITS)
def test_labels_are_the_original_ids_and_other_tokens_are_unchanged(unit):
    masked = objective(mask_rate=0.3, unit=unit)
    for row, rng in random_rows(100, seed=3):
        example = hide(masked, *row, rng)
        restored = example.input_ids.copy()
        restored[example.label_positions] = example.labels
        parts = np.split(row[0], np.cumsum(row[2])[:-1])
        expected = np.concatenate([[SPECIAL.cls, *part, SPECIAL.sep] for part in parts])
        np.testing.assert_array_equal(restored, expected)


@pytest.mark.parametrize("unit", UNITS)
def test_corruption_leaves_the_row_as_it_was(unit):
    (tokens, words, lengths), rng = random_rows(1, seed=4)[0]
    before = tokens.copy(), words.copy(), lengths.copy()
    hide(objective(mask_rate=0.5, unit=unit), tokens, words, lengths, rng)
    for now, then in zip((tokens, words, lengths), before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("unit", UNITS)
def test_corruption_is_a_function_of_the_generator(unit):
    row = random_rows(1, seed=5)[0][0]
    first, again, other = (
        hide(objective(mask_rate=0.4, unit=unit), *row, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.input_ids, again.input_ids)
    assert not np.array_equal(first.input_ids, other.input_ids)


# Selection


def test_tokens_are_chosen_equally_often():
    n, budget, draws = 20, 3, 6000
    counts = np.zeros(n)
    rng = np.random.default_rng(6)
    for _ in range(draws):
        counts[choose_tokens(n, budget, rng)] += 1
    expected = draws * budget / n
    # Without replacement a count varies less than a multinomial one, by (n - budget) / (n - 1).
    statistic = ((counts - expected) ** 2 / expected).sum() / ((n - budget) / (n - 1))
    assert stats.chi2.sf(statistic, n - 1) > ALPHA


def test_all_words_but_one_are_complete():
    for (_, words, _), rng in random_rows(300, seed=7):
        budget = max(1, round(0.25 * len(words)))
        chosen = np.zeros(len(words), bool)
        chosen[choose_words(words, budget, rng)] = True
        word_of = np.cumsum(words) - 1
        shares = np.bincount(word_of, weights=chosen) / np.bincount(word_of)
        assert ((shares > 0) & (shares < 1)).sum() <= 1


def test_words_are_cut_only_if_no_whole_word_fits():
    words = np.array([1, 0, 0, 1, 0, 0, 1, 0], bool)  # words of 3, 3 and 2 tokens
    for seed in range(50):
        chosen = choose_words(words, 3, np.random.default_rng(seed))
        assert chosen.tolist() in ([0, 1, 2], [3, 4, 5], [0, 6, 7], [3, 6, 7])


def test_first_tokens_of_a_word_longer_than_the_budget_are_chosen():
    words = np.array([1, 0, 0, 0], bool)
    assert choose_words(words, 2, np.random.default_rng(0)).tolist() == [0, 1]


def test_words_of_one_token_are_chosen_equally_often():
    n, budget, draws = 20, 3, 6000
    counts = np.zeros(n)
    rng = np.random.default_rng(8)
    for _ in range(draws):
        counts[choose_words(ones(n), budget, rng)] += 1
    expected = draws * budget / n
    statistic = ((counts - expected) ** 2 / expected).sum() / ((n - budget) / (n - 1))
    assert stats.chi2.sf(statistic, n - 1) > ALPHA


def spans_of_random_rows(number, seed, rate=0.15):
    for (_, words, lengths), rng in random_rows(number, seed):
        chosen, groups = choose_spans(words, lengths, max(1, round(rate * len(words))), rng)
        yield words, lengths, chosen, groups


def test_spans_lie_within_one_sequence():
    for _, lengths, chosen, groups in spans_of_random_rows(300, seed=9):
        sequence = np.repeat(np.arange(len(lengths)), lengths)
        for span in np.unique(groups):
            assert len(np.unique(sequence[chosen[groups == span]])) == 1


def test_spans_are_contiguous_except_for_other_spans():
    for _, _, chosen, groups in spans_of_random_rows(300, seed=10):
        for span in np.unique(groups):
            positions = chosen[groups == span]
            assert np.isin(np.arange(positions[0], positions[-1] + 1), chosen).all()


def test_spans_but_the_last_are_of_whole_words():
    for words, _, chosen, _ in spans_of_random_rows(300, seed=11):
        is_chosen = np.zeros(len(words), bool)
        is_chosen[chosen] = True
        word_of = np.cumsum(words) - 1
        shares = np.bincount(word_of, weights=is_chosen) / np.bincount(word_of)
        assert ((shares > 0) & (shares < 1)).sum() <= 1


def test_span_lengths_are_geometric_up_to_ten_words():
    sizes = []
    for seed in range(4000):
        _, groups = choose_spans(ones(1000), np.array([1000]), 10, np.random.default_rng((12, seed)))
        sizes.append(int((groups == 0).sum()))  # the first span is never cut and meets no other
    assert max(sizes) == 10
    p = 0.2 * 0.8 ** np.arange(10)
    p /= p.sum()  # truncated
    # The end of the sequence cuts one in 200 of the spans: far below the resolution of this sample size.
    assert stats.chisquare(np.bincount(sizes, minlength=11)[1:], 4000 * p).pvalue > ALPHA


@pytest.mark.parametrize("rate", [0.5, 0.9, 0.999])
def test_spans_reach_a_budget_that_is_nearly_everything(rate):
    for words, _, chosen, _ in spans_of_random_rows(60, seed=13, rate=rate):
        assert len(np.unique(chosen)) == max(1, round(rate * len(words)))


# Corruption


def actions(unit, seed, draws=150, n=400):
    """Return the numbers of scored tokens, of those masked, and of those unchanged in many rows."""
    masked = objective(mask_rate=0.15, unit=unit)
    tokens, lengths = np.full(n, 7), np.array([n])
    seen = np.concatenate(
        [
            example.input_ids[example.label_positions]
            for i in range(draws)
            for example in [hide(masked, tokens, ones(n), lengths, np.random.default_rng((seed, i)))]
        ]
    )
    return len(seen), int((seen == SPECIAL.mask).sum()), int((seen == 7).sum())


@pytest.mark.parametrize("unit", ["token", "word"])
def test_tokens_are_masked_replaced_or_kept_with_the_configured_shares(unit):
    number, num_mask, num_same = actions(unit, seed=14)
    # A random word is [MASK] or the same one time in V each. Two-sided binomial tests at alpha each.
    assert stats.binomtest(num_mask, number, 0.8 + 0.1 / V).pvalue > ALPHA
    assert stats.binomtest(num_same, number, 0.1 + 0.1 / V).pvalue > ALPHA


def test_spans_are_masked_replaced_or_kept_with_the_configured_shares():
    number, num_mask, num_same = actions("span", seed=15, draws=400)
    # All tokens of a span (at most 10) share an action: five standard errors of 400 x 60 / 10 independent spans.
    margin = 5 * np.sqrt(1 / 2400)
    assert num_mask / number == pytest.approx(0.8 + 0.1 / V, abs=0.4 * margin)
    assert num_same / number == pytest.approx(0.1 + 0.1 / V, abs=0.3 * margin)


def test_tokens_of_a_span_share_one_action():
    masked = objective(mask_rate=0.1, unit="span", mask_replace_prob=0.5, random_replace_prob=0.0)
    for i in range(50):
        rng = np.random.default_rng((16, i))
        _, groups = choose_spans(ones(200), np.array([200]), 20, np.random.default_rng((16, i)))
        example = hide(masked, np.full(200, 7), ones(200), np.array([200]), rng)
        is_mask = example.input_ids[example.label_positions] == SPECIAL.mask
        assert all(len(set(is_mask[groups == span].tolist())) == 1 for span in np.unique(groups))


@pytest.mark.parametrize("unit", UNITS)
def test_random_ids_are_uniform_over_the_full_vocabulary(unit):
    masked = objective(mask_rate=0.5, unit=unit, mask_replace_prob=0.0, random_replace_prob=1.0)
    n = 400
    seen = np.concatenate(
        [
            example.input_ids[example.label_positions]
            for i in range(100)
            for example in [hide(masked, np.full(n, 7), ones(n), np.array([n]), np.random.default_rng((17, i)))]
        ]
    )
    counts = np.bincount(seen, minlength=V)
    assert len(counts) == V
    assert stats.chisquare(counts).pvalue > ALPHA  # special ids included, as in the 2018 code


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"mask_rate": 0.0}, "objective.mask_rate is 0.0"),
        ({"mask_rate": 1.0}, "objective.mask_rate is 1.0"),
        ({"mask_replace_prob": 0.9, "random_replace_prob": 0.2}, "sum to at most 1"),
        ({"mask_replace_prob": -0.1}, "mask_replace_prob is -0.1"),
    ],
)
def test_impossible_shares_are_refused(config, words):
    with pytest.raises(ConfigError, match=words):
        MaskedLmConfig(**config)


# Loss


@pytest.fixture
def scored():
    """Return an objective, a model, a batch and random states."""
    config = BertConfig(vocab_size=V, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    model = make_model(config, ["masked_lm"], generator=torch.Generator().manual_seed(0)).eval()
    masked = objective(mask_rate=0.2)
    batch = collate([hide(masked, *row, rng) for row, rng in random_rows(4, seed=18)], [0, 1, 2, 3])
    states = torch.randn(len(batch.input_ids), 16, generator=torch.Generator().manual_seed(1))
    return masked, model, batch, states


def test_loss_is_the_cross_entropy_of_the_scored_tokens(scored):
    masked, model, batch, states = scored
    loss = masked.loss(model, states[masked.scored_positions(batch)], batch)["masked_lm"]
    everywhere = model.lm_logits(states)
    labels = torch.full((len(states),), -100)
    labels[batch.label_positions] = batch.labels
    expected = F.cross_entropy(everywhere, labels, ignore_index=-100)
    # Two orders of summation in float32.
    torch.testing.assert_close(loss.total / loss.count, expected, rtol=1e-6, atol=0)


def test_counts_are_known_before_the_forward(scored):
    masked, model, batch, states = scored
    losses = masked.loss(model, states[masked.scored_positions(batch)], batch)
    assert (
        masked.counts(batch) == {name: loss.count for name, loss in losses.items()} == {"masked_lm": len(batch.labels)}
    )


def test_head_sees_only_the_scored_tokens(scored):
    masked, model, batch, states = scored
    seen = []
    model.heads["masked_lm"].dense.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    LossModule(model, masked)(batch)
    (shown,) = seen
    arguments = (batch.input_ids, batch.position_ids, batch.token_type_ids, batch.cu_seqlens, batch.max_seqlen)
    states = model.body(*arguments)
    assert len(batch.labels) < len(states)
    torch.testing.assert_close(
        shown, states[batch.label_positions], rtol=1e-5, atol=1e-6
    )  # other block sizes of matrix products


def test_sparse_lookup_gradient_gives_the_dense_gradient(scored):
    masked, model, batch, _ = scored

    def gradient():
        model.zero_grad()
        arguments = (batch.input_ids, batch.position_ids, batch.token_type_ids, batch.cu_seqlens, batch.max_seqlen)
        masked.loss(model, model.body(*arguments, rows=masked.scored_positions(batch)), batch)[
            "masked_lm"
        ].total.backward()
        return model.body.embeddings.word.weight.grad.clone()

    dense = gradient()
    model.share_word_gradient()
    assert model.body.embeddings.word.has_sparse_gradient
    shared = gradient()
    assert not shared.is_sparse
    torch.testing.assert_close(shared, dense)


def test_untied_head_leaves_the_lookup_gradient_dense():
    config = BertConfig(vocab_size=V, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    model = make_model(config, ["masked_lm"])
    model.heads["masked_lm"] = MaskedLmHead(config, tied=False)
    model.share_word_gradient()
    assert not model.body.embeddings.word.has_sparse_gradient
