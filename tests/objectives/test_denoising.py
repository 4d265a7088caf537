"""The denoising objective: what the encoder reads, what the decoder reads and writes."""

import numpy as np
import pytest
import torch

from stemformer.data.examples.batch import collate
from stemformer.data.examples.packing import RawExample
from stemformer.data.shards.reader import open_shards
from stemformer.errors import ConfigError
from stemformer.objectives.denoising import NOISES, Denoising, DenoisingConfig
from stemformer.objectives.masked_lm import SpecialIds

SENTINELS = (5, 6, 7, 8, 9)
SPECIAL = SpecialIds(cls=2, sep=3, mask=4, others=(0, 1, *SENTINELS), sentinels=SENTINELS)
V = 50
WRITE_TEXT = [name for name, noise in NOISES.items() if noise.target == "text"]
WITH_RATE = [name for name, noise in NOISES.items() if 0 < noise.noise_rate < 1]


def raw(lengths=(12, 5), seed=0):
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    tokens = rng.integers(10, V, n)
    sentences = np.zeros(n, bool)
    sentences[::4] = True
    words = rng.random(n) < 0.7
    words[np.cumsum([0, *lengths[:-1]])] = True
    segments = np.zeros(len(lengths), np.int64)
    return RawExample(tokens, words, np.array(lengths), segments, sentence_starts=sentences)


def make(seed=0, example=None, **settings):
    objective = Denoising(DenoisingConfig(**settings), special=SPECIAL, vocab_size=V)
    return objective.corrupt(example or raw(), np.random.default_rng(seed))


def parts(made, index=0):
    """Return source and target of a sequence, without the special tokens around them."""
    a, b = np.cumsum(made.lengths)[index] - made.lengths[index], np.cumsum(made.lengths)[index]
    c = int(np.cumsum(made.decoder_lengths)[index] - made.decoder_lengths[index])
    return made.input_ids[a + 1 : b - 1].tolist(), made.labels[c + 1 : c + made.decoder_lengths[index] - 1].tolist()


@pytest.mark.parametrize("preset", WRITE_TEXT)
def test_the_decoder_writes_the_original_between_start_and_end(preset):
    example, made = raw(), make(preset=preset)
    first, second = example.tokens[:12].tolist(), example.tokens[12:].tolist()
    assert made.decoder_input_ids.tolist() == [3, 2, *first, 3, 2, *second]
    assert made.labels.tolist() == [2, *first, 3, 2, *second, 3]
    assert made.decoder_lengths.tolist() == [14, 7]
    assert made.label_positions.tolist() == list(range(21))


@pytest.mark.parametrize("preset", NOISES)
def test_the_encoder_reads_each_broken_text_between_special_tokens(preset):
    made = make(preset=preset)
    stops = np.cumsum(made.lengths)
    for start, stop in zip(stops - made.lengths, stops, strict=True):
        text = made.input_ids[start:stop]
        assert (text[0], text[-1]) == (2, 3)
        assert not np.isin(text[1:-1], [0, 1, 2, 3]).any()


@pytest.mark.parametrize("preset", ["infilling", "masking", "deletion", "mass", "t5"])
def test_kept_tokens_stay_in_order_and_are_marked_as_copied(preset):
    example = raw((20,))
    made = make(example=example, preset=preset, target="text")
    copied = example.tokens[made.is_copied[1:-1]]
    assert made.input_ids[1:-1][made.input_ids[1:-1] >= 10].tolist() == copied.tolist()
    assert made.is_copied[0] and made.is_copied[-1]
    rate = NOISES[preset].noise_rate
    assert (~made.is_copied).sum() == int(rate * 20 + 0.5)


@pytest.mark.parametrize("preset", ["permutation", "rotation"])
def test_orders_lose_nothing(preset):
    example = raw((20,))
    made = make(example=example, preset=preset)
    assert made.is_copied.all()
    assert sorted(made.input_ids[1:-1]) == sorted(example.tokens)
    assert made.input_ids[1:-1].tolist() != example.tokens.tolist()


def test_mass_masks_a_fragment_and_writes_it_alone():
    for seed in range(50):
        example = raw((11,), seed)
        source, target = parts(made := make(seed, example, preset="mass"))
        start = source.index(4)
        assert source == [*example.tokens[:start], *[4] * 6, *example.tokens[start + 6 :]]
        assert target == example.tokens[start : start + 6].tolist()
        assert made.is_copied.tolist() == [True, *[False] * 6, True]
        assert made.decoder_input_ids.tolist() == [3, 2, *target]


def test_spans_of_t5_are_written_after_their_sentinels():
    for seed in range(50):
        example = raw((40,), seed)
        source, target = parts(made := make(seed, example, preset="t5", noise_rate=0.3, mean_span_length=4.0))
        found = [i for i in source if i in SENTINELS]
        # 12 lost tokens in 3 spans, or 4 if one is split at the end; the last sentinel ends the target.
        assert found == list(SENTINELS[: len(found)]) and len(found) in (3, 4)
        assert target[0] == SENTINELS[0] and target[-1] == SENTINELS[len(found)]
        assert sum(i not in SENTINELS for i in target) == 12
        bounds = [target.index(i) for i in SENTINELS[: len(found) + 1]]
        spans = {i: target[a + 1 : b] for i, a, b in zip(found, bounds, bounds[1:], strict=False)}
        assert all(spans.values())
        assert [x for i in source for x in spans.get(i, [i])] == example.tokens.tolist()
        assert made.is_copied[1:-1].tolist() == [i in SENTINELS for i in target]


def test_a_prefix_is_continued_from_each_cut_equally_often():
    counts = np.zeros(8, int)
    for seed in range(1400):
        example = raw((8,), seed % 7)
        source, target = parts(make(seed, example, preset="prefix"))
        assert source + target == example.tokens.tolist()
        counts[len(source)] += 1
    assert counts[0] == 0 and counts[1:].min() > 155
    source, target = parts(make(example=raw((1,)), preset="prefix"))
    assert (len(source), len(target)) == (0, 1)


def test_prefixes_of_words_end_with_a_word():
    example = raw((60,))
    for seed in range(30):
        source, _ = parts(make(seed, example, preset="prefix", unit="word"))
        assert example.word_starts[len(source)]


def test_a_language_model_reads_nothing():
    made, example = make(preset="left_to_right"), raw()
    assert made.input_ids.tolist() == [2, 3, 2, 3]
    assert parts(made)[1] + parts(made, 1)[1] == example.tokens.tolist()
    assert made.is_copied.sum() == 4 and (made.labels[made.is_copied] < 4).all()


@pytest.mark.parametrize("preset", ["mass", "t5", "prefix"])
def test_lost_tokens_of_permuted_sentences_are_written_as_they_come(preset):
    example = raw((20,))
    source, target = parts(make(5, example, preset=preset, permute_rate=1.0))
    text = [i for i in source if i >= 10] + [i for i in target if i >= 10]
    assert sorted(text) == sorted(example.tokens)
    order = target if preset == "mass" else source
    first = [i for i in order if i >= 10]
    assert first != [i for i in example.tokens if i in first][: len(first)]


@pytest.mark.parametrize("preset", WITH_RATE)
@pytest.mark.parametrize("rate", [0.1, 0.25, 0.6])
def test_exactly_the_share_is_lost(preset, rate):
    for n in (1, 2, 7, 16):
        example = raw((n,), n)
        for seed in range(10):
            made = make(seed, example, preset=preset, noise_rate=rate, target="text")
            assert (~made.is_copied).sum() == int(rate * n + 0.5)


@pytest.mark.parametrize("preset", WITH_RATE)
def test_no_special_token_is_lost_or_random(preset):
    random = {} if NOISES[preset].replace in ("none", "sentinel") else {"random_replace_prob": 0.5}
    for seed in range(30):
        made = make(seed, raw((30,), seed), preset=preset, **random)
        source, target = parts(made)
        inserted = SENTINELS if preset == "t5" else (4,)
        assert all(i >= 10 or i in inserted for i in source)
        assert all(i >= 10 or (preset == "t5" and i in SENTINELS) for i in target)


@pytest.mark.parametrize("preset", [name for name in NOISES if name not in ("prefix", "left_to_right")])
def test_without_rates_the_source_is_the_text(preset):
    rates = {} if NOISES[preset].spans == "none" else {"noise_rate": 0.0}
    made = make(preset=preset, permute_rate=0.0, rotate_prob=0.0, **rates)
    assert parts(made)[0] + parts(made, 1)[0] == raw().tokens.tolist()
    assert made.is_copied.all()
    # Nothing of the text is lost; the last sentinel is the first one.
    written = {"mass": [], "t5": [SENTINELS[0]]}.get(preset, parts(made)[0])
    assert parts(made)[1] == written


def test_full_words_are_lost():
    example = raw((200,))
    made = make(example=example, preset="deletion", unit="word", noise_rate=0.3)
    words = np.cumsum(example.word_starts) - 1
    lost = words[~made.is_copied[1:-1]]
    assert len(set(lost)) == int(0.3 * (words[-1] + 1) + 0.5)
    assert np.isin(words, lost).sum() == len(lost)


def test_random_tokens_are_never_special():
    example = raw((400,))
    made = make(example=example, preset="masking", noise_rate=0.5, random_replace_prob=1.0)
    assert made.input_ids[1:-1].min() >= 10
    assert (made.input_ids[1:-1] != example.tokens).sum() > 150


@pytest.mark.parametrize("preset", NOISES)
def test_equal_generators_give_equal_examples(preset):
    first, second, *others = (make(seed, preset=preset) for seed in (3, 3, 4, 5, 6))
    assert np.array_equal(first.input_ids, second.input_ids) and np.array_equal(first.labels, second.labels)
    are_equal = [np.array_equal(first.input_ids, other.input_ids) for other in others]
    assert all(are_equal) == (preset == "left_to_right")


def test_a_batch_has_the_tokens_of_both_halves():
    examples = [make(0), make(1, raw((7,), seed=1))]
    batch = collate(examples, [0, 1])
    assert batch.num_tokens == len(batch.input_ids) + len(batch.decoder.input_ids)
    assert batch.decoder.cu_seqlens.tolist() == [0, 14, 21, 30]
    assert len(batch.cu_seqlens) == len(batch.decoder.cu_seqlens)
    inputs = batch.decoder.input_ids[batch.label_positions]
    starts = batch.decoder.cu_seqlens[:-1].long()
    # Each label is the next input.
    inside = torch.ones(len(inputs), dtype=torch.bool)
    inside[starts] = False
    assert torch.equal(inputs[inside], batch.labels.roll(1)[inside])
    assert batch.is_copied.shape == batch.labels.shape


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_rate": 1.2}, "objective.noise_rate is 1.2: expected a share from 0 to 1"),
        ({"permute_rate": -0.1}, "objective.permute_rate is -0.1"),
        ({"mean_span_length": 0.0}, "objective.mean_span_length is 0.0"),
        ({"random_replace_prob": 2.0}, "objective.random_replace_prob is 2.0"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DenoisingConfig(**settings)


@pytest.mark.parametrize(
    ("preset", "name", "value"),
    [
        ("permutation", "noise_rate", 0.3),
        ("rotation", "unit", "word"),
        ("rotation", "random_replace_prob", 0.1),
        ("masking", "mean_span_length", 3.0),
        ("deletion", "random_replace_prob", 0.1),
        ("mass", "mean_span_length", 3.0),
        ("t5", "random_replace_prob", 0.1),
        ("prefix", "noise_rate", 0.3),
        ("prefix", "random_replace_prob", 0.1),
        ("left_to_right", "noise_rate", 0.5),
        ("left_to_right", "permute_rate", 1.0),
        ("left_to_right", "rotate_prob", 1.0),
        ("left_to_right", "unit", "word"),
        ("permutation", "target", "lost"),
    ],
)
def test_a_value_that_a_preset_does_not_use_is_refused(preset, name, value):
    with pytest.raises(
        ConfigError, match=rf"objective\.{name} is .*, which the noise '{preset}' does not use\. Remove"
    ):
        DenoisingConfig(preset=preset, **{name: value})


@pytest.mark.parametrize("value", [0.5, 1e-6, float("inf"), float("nan")])
def test_mean_lengths_out_of_range_are_refused(value):
    with pytest.raises(ConfigError, match=r"objective\.mean_span_length is .*: expected a number from 1 to 100"):
        DenoisingConfig(mean_span_length=value)


@pytest.mark.parametrize(
    ("sentinels", "settings", "message"),
    [
        ((), {}, r"needs 8 sentinels, <extra_id_0> to <extra_id_7>, and the tokenizer has 0\. Train one with "),
        (range(5, 12), {}, r"tokenizer has 7\. .* --special-tokens bart --num-sentinels 100, and prepare the data"),
        (range(5, 49), {"noise_rate": 0.9, "mean_span_length": 2.0}, r"and the tokenizer has 44\. .*-sentinels 100"),
        (range(5, 400), {"noise_rate": 0.8}, r"objective\.noise_rate is 0\.8: .* would have up to 1\d\d tokens, more"),
    ],
)
def test_t5_without_enough_sentinels_or_room_is_refused(sentinels, settings, message, tiny):
    special = SpecialIds(cls=2, sep=3, mask=4, sentinels=tuple(sentinels))
    objective = Denoising(DenoisingConfig(preset="t5", **settings), special=special, vocab_size=500)
    with pytest.raises(ConfigError, match=message):
        objective.make_examples(open_shards(tiny / "data"), 128)


@pytest.mark.parametrize("word_starts", [[0, 1], [0, 59], [0, 1, 2, 3], [0, 20, 40], [*range(60)], [*range(0, 60, 2)]])
@pytest.mark.parametrize(("rate", "mean"), [(0.15, 3.0), (0.5, 1.0), (0.9, 1.0), (1.0, 3.0)])
def test_spans_of_words_add_at_most_two_tokens_to_a_text(rate, mean, word_starts):
    special = SpecialIds(cls=2, sep=3, mask=4, sentinels=tuple(range(300, 400)))
    config = DenoisingConfig(preset="t5", unit="word", noise_rate=rate, mean_span_length=mean)
    objective = Denoising(config, special=special, vocab_size=400)
    is_start, tokens = np.isin(np.arange(60), word_starts), np.arange(100, 160)
    lengths = [
        len(objective.break_text(tokens, is_start, np.arange(60) == 0, np.random.default_rng(seed)).target.ids)
        for seed in range(50)
    ]
    assert max(lengths) <= 62


@pytest.mark.parametrize("unit", ["token", "word"])
@pytest.mark.parametrize(("rate", "mean"), [(0.15, 3.0), (0.4, 1.0), (0.5, 8.0)])
def test_the_checked_number_of_sentinels_and_tokens_is_never_exceeded(rate, mean, unit, tiny):
    special = SpecialIds(cls=2, sep=3, mask=4, sentinels=tuple(range(300, 360)))
    config = DenoisingConfig(preset="t5", unit=unit, noise_rate=rate, mean_span_length=mean)
    objective = Denoising(config, special=special, vocab_size=400)
    examples = objective.make_examples(open_shards(tiny / "data"), 64)
    for i in range(len(examples)):
        made = objective.corrupt(examples.get_example(i, np.random.default_rng(i)), np.random.default_rng(i))
        assert max(*made.lengths, *made.decoder_lengths) <= 64
