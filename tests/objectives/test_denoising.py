"""The denoising objective: what the encoder reads, what the decoder reads and writes."""

import numpy as np
import pytest
import torch

from stemformer.data.examples.batch import collate
from stemformer.data.examples.packing import RawExample
from stemformer.errors import ConfigError
from stemformer.objectives.denoising import NOISES, Denoising, DenoisingConfig
from stemformer.objectives.masked_lm import SpecialIds

SPECIAL = SpecialIds(cls=2, sep=3, mask=4, others=(0, 1))
V = 50


def raw(lengths=(12, 5), seed=0):
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    tokens = rng.integers(5, V, n)
    sentences = np.zeros(n, bool)
    sentences[::4] = True
    words = rng.random(n) < 0.7
    words[np.cumsum([0, *lengths[:-1]])] = True
    segments = np.zeros(len(lengths), np.int64)
    return RawExample(tokens, words, np.array(lengths), segments, sentence_starts=sentences)


def make(seed=0, example=None, **settings):
    objective = Denoising(DenoisingConfig(**settings), special=SPECIAL, vocab_size=V)
    return objective.corrupt(example or raw(), np.random.default_rng(seed))


@pytest.mark.parametrize("preset", NOISES)
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


@pytest.mark.parametrize("preset", ["infilling", "masking", "deletion", "fragment"])
def test_kept_tokens_stay_in_order_and_are_marked_as_copied(preset):
    example = raw((20,))
    made = make(example=example, preset=preset)
    copied = example.tokens[made.is_copied[1:-1]]
    assert made.input_ids[1:-1][made.input_ids[1:-1] != 4].tolist() == copied.tolist()
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


@pytest.mark.parametrize("preset", NOISES)
def test_without_rates_the_source_is_the_text(preset):
    rates = {} if NOISES[preset].spans == "none" else {"noise_rate": 0.0}
    made = make(preset=preset, permute_rate=0.0, rotate_prob=0.0, **rates)
    assert made.input_ids.tolist() == made.labels.tolist()
    assert made.is_copied.all()


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
    assert made.input_ids[1:-1].min() >= 5
    assert (made.input_ids[1:-1] != example.tokens).sum() > 150


def test_equal_generators_give_equal_examples():
    first, second, other = make(3), make(3), make(4)
    assert np.array_equal(first.input_ids, second.input_ids)
    assert not np.array_equal(first.input_ids, other.input_ids)


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
        ("fragment", "mean_span_length", 3.0),
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
