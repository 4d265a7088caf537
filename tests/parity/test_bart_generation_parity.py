"""Decoding of BART against transformers' `generate`: greedy and beams, in batches of ragged sources."""

import pytest
import torch
from parity_frame import VOCAB, opened, random_model

from stemformer.errors import ConfigError
from stemformer.generation.beam_search import BeamConfig, search_beams
from stemformer.models.inference.cached_bart import BartTextDecoder

transformers = pytest.importorskip("transformers")

NEW = 14
SIZES = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "init_std": 0.3,
    "forced_eos_token_id": None,
    "decoder_start_token_id": 2,
}


@pytest.fixture(scope="module", params=["Bart", "MBart"])
def pair(request, tmp_path_factory):
    config = getattr(transformers, f"{request.param}Config")(**SIZES)
    theirs = random_model(getattr(transformers, f"{request.param}ForConditionalGeneration"), config)
    with torch.no_grad():
        # Texts that depend on their sources, of different lengths.
        for layer in theirs.model.decoder.layers:
            layer.encoder_attn.out_proj.weight.mul_(4)
        theirs.final_logits_bias[0, config.eos_token_id] = 2.5
    return opened(theirs, tmp_path_factory.mktemp("bart")), theirs


def sources(number=24):
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, 30, (number,), generator=generator).tolist()
    return [torch.randint(4, VOCAB, (length,), generator=generator).tolist() for length in lengths]


def theirs_of(model, source, **options):
    """Return the new tokens of one source, which is not padded, without the end."""
    config = model.config
    start = torch.tensor([[config.decoder_start_token_id, config.bos_token_id]])
    ids = torch.tensor([source])
    settings = {"max_new_tokens": NEW, "do_sample": False, "forced_eos_token_id": None, "num_return_sequences": 1}
    found = model.generate(ids, decoder_input_ids=start, **{**settings, **options})
    ends = (config.eos_token_id, config.pad_token_id)
    return [[token for token in row[2:].tolist() if token not in ends] for row in found]


def ours_of(model, texts, **options):
    decoder = BartTextDecoder(model, rows=len(texts) * options.get("num_beams", 4))
    found = search_beams(decoder, texts, BeamConfig(max_new_tokens=NEW, **options))
    return [[hypothesis.ids for hypothesis in each] for each in found]


def test_greedy_texts_equal_those_of_transformers(pair):
    ours, theirs = pair
    found = ours_of(ours, sources(), num_beams=1)
    expected = [theirs_of(theirs, source, num_beams=1) for source in sources()]
    assert found == expected
    assert len({len(text[0]) for text in expected}) > 1 and len({tuple(text[0]) for text in expected}) > 8


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [0.6, 1.0, 2.0])
def test_beams_equal_those_of_transformers(pair, length_penalty, early_stopping):
    ours, theirs = pair
    options = {"num_beams": 4, "length_penalty": length_penalty, "early_stopping": early_stopping}
    texts = sources(12)
    found = ours_of(ours, texts, **options, num_return_sequences=2)
    expected = [theirs_of(theirs, source, **options, num_return_sequences=2) for source in texts]
    assert found == expected


CONSTRAINTS = [
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 9},
    {"no_repeat_ngram_size": 3, "min_new_tokens": 6},
]


@pytest.mark.parametrize("constraints", CONSTRAINTS)
@pytest.mark.parametrize("num_beams", [1, 4])
def test_constrained_texts_equal_those_of_transformers(pair, num_beams, constraints):
    ours, theirs = pair
    # Two texts of each source, so that the search may not end with the best one.
    options = {"num_beams": num_beams, "num_return_sequences": min(2, num_beams), **constraints}
    texts = sources(10)
    found = ours_of(ours, texts, **options)
    assert found == [theirs_of(theirs, source, **options) for source in texts]
    # The constraints make a difference.
    assert found != ours_of(ours, texts, num_beams=num_beams, num_return_sequences=min(2, num_beams))


def test_a_text_without_repeated_tokens_can_end(pair):
    ours, theirs = pair
    texts = sources(10)
    found = ours_of(ours, texts, num_beams=1, no_repeat_ngram_size=1)
    expected = [theirs_of(theirs, source, num_beams=1, no_repeat_ngram_size=1) for source in texts]
    # In `generate` the start `</s>` of the decoder forbids the end.
    for (ids,), (unended,) in zip(found, expected, strict=True):
        assert len(set(ids)) == len(ids) <= len(unended) == NEW and ids == unended[: len(ids)]
    assert any(len(ids) < NEW for (ids,) in found)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"no_repeat_ngram_size": 2, "min_new_tokens": 4}])
def test_texts_of_many_sources_equal_those_of_transformers(pair, options):
    ours, theirs = pair
    texts = sources(200)
    found = ours_of(ours, texts, num_beams=4, **options)
    assert found == [theirs_of(theirs, source, num_beams=4, **options) for source in texts]


def test_scores_equal_those_of_transformers(pair):
    ours, theirs = pair
    config, (source,) = theirs.config, sources(1)
    start = torch.tensor([[config.decoder_start_token_id, config.bos_token_id]])
    options = {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 0.7, "max_new_tokens": NEW}
    how = {"do_sample": False, "return_dict_in_generate": True, "output_scores": True, "forced_eos_token_id": None}
    expected = theirs.generate(torch.tensor([source]), decoder_input_ids=start, **options, **how).sequences_scores
    decoder = BartTextDecoder(ours, rows=4)
    (found,) = search_beams(decoder, [source], BeamConfig(**options))
    torch.testing.assert_close(torch.tensor([each.score for each in found]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("constraints", [{}, {"no_repeat_ngram_size": 2, "min_new_tokens": 3}])
def test_texts_do_not_depend_on_the_batch(pair, constraints):
    ours, _ = pair
    texts = sources()
    together = ours_of(ours, texts, num_beams=3, **constraints)
    assert together == [ours_of(ours, [text], num_beams=3, **constraints)[0] for text in texts]


@pytest.mark.parametrize("early_stopping", [False, "never"])
def test_each_text_has_its_own_limit(pair, early_stopping):
    ours, theirs = pair
    texts, limits = sources(12), [2 + i % (NEW - 1) for i in range(12)]
    config = BeamConfig(num_beams=3, max_new_tokens=NEW, early_stopping=early_stopping)
    found = search_beams(BartTextDecoder(ours, rows=36), texts, config, limits=limits)
    expected = [
        theirs_of(theirs, text, num_beams=3, max_new_tokens=limit, early_stopping=early_stopping)[0]
        for text, limit in zip(texts, limits, strict=True)
    ]
    assert [each[0].ids for each in found] == expected


def test_a_text_is_left_as_soon_as_none_can_be_better(pair):
    ours, theirs = pair
    steps, texts = {}, sources(8)
    for number in (1, 4):
        decoder = BartTextDecoder(ours, rows=32)
        step, rows = decoder.decode_step, []
        decoder.decode_step = lambda tokens, step=step, rows=rows: rows.append(len(tokens)) or step(tokens)
        # Without a length penalty, a running text that is worse than the best ended one cannot win.
        config = BeamConfig(max_new_tokens=NEW, length_penalty=0.0, num_return_sequences=number)
        found = search_beams(decoder, texts, config)
        steps[number] = sum(rows)
        expected = [theirs_of(theirs, source, num_beams=4, length_penalty=0.0)[0] for source in texts]
        assert [each[0].ids for each in found] == expected
    assert steps[1] < steps[4]


def test_steps_equal_the_forward_without_cache(pair):
    from stemformer.models.bart import DecoderInput

    ours, _ = pair
    texts, new = sources(3), torch.tensor([[7, 9, 11], [20, 21, 22], [4, 5, 6]])
    decoder = BartTextDecoder(ours, rows=3)
    logits = [decoder.prefill(texts, 8)]
    logits += [decoder.decode_step(new[:, step]) for step in range(3)]
    config = ours.config
    start = torch.tensor([config.decoder_start_token_id, config.bos_token_id]).expand(3, -1)
    ids = torch.cat([start, new], 1)
    lengths = torch.tensor([0, *map(len, texts)]).cumsum(0).int()
    source = torch.tensor([token for text in texts for token in text])
    positions = torch.cat([torch.arange(len(text)) for text in texts])
    run = DecoderInput(ids.flatten(), torch.arange(5).repeat(3), torch.tensor([0, 5, 10, 15]).int(), 5)
    with torch.no_grad():
        states = ours.body(source, positions, torch.zeros_like(source), lengths, max(map(len, texts)), decoder=run)
        expected = ours.lm_logits(states).view(3, 5, -1)
    torch.testing.assert_close(torch.stack(logits, 1), expected[:, 1:], rtol=1e-4, atol=1e-4)


def test_more_beams_than_half_of_the_ids_are_refused(pair):
    with pytest.raises(ConfigError, match="num_beams is 60: expected at most half of the 97 ids"):
        ours_of(pair[0], sources(1), num_beams=60)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_return_sequences": 5}, "num_return_sequences is 5: expected 1 to 4"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens is 9: expected at most 8, max_new_tokens"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size is -1"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        BeamConfig(**options)
