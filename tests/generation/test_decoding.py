"""Decoding compared with transformers' generate, token by token, and its other guarantees."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from stemformer.errors import CheckpointError, ConfigError, DataError
from stemformer.generation.decoding import DecodingConfig, beam_search, decode, filter_logits
from stemformer.huggingface.save import save_model
from stemformer.models.bert import BertConfig
from stemformer.models.gpt import GptConfig
from stemformer.models.inference.cached_gpt import GptDecoder
from stemformer.models.llama import ArceeConfig, LlamaConfig, Qwen3Config
from stemformer.models.model import make_model

transformers = pytest.importorskip("transformers")

VOCAB, EOS, POSITIONS = 61, 7, 40


CONFIGS = {
    "gpt2": GptConfig,
    "llama": partial(LlamaConfig, num_key_value_heads=2),
    "qwen3": partial(Qwen3Config, num_key_value_heads=1, head_size=16),
    "arcee": ArceeConfig,
}


@pytest.fixture(scope="module", params=CONFIGS)
def ours(request):
    config = CONFIGS[request.param](
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=POSITIONS,
        initializer_range=0.3,
        eos_token_id=EOS,
    )
    return make_model(config, ["causal_lm"], generator=torch.Generator().manual_seed(0)).eval()


@pytest.fixture(scope="module")
def theirs(ours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt")
    save_model(ours, folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def prompts(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.integers(8, VOCAB, n)) for n in lengths]


def generated(model, prompt, **options):
    """Return the new tokens of transformers, without the end-of-text token."""
    out = model.generate(prompt[None], attention_mask=torch.ones_like(prompt[None]), pad_token_id=0, **options)[
        0
    ].tolist()
    new = out[len(prompt) :]
    end = options.get("eos_token_id", EOS)
    return new[: new.index(end)] if end in new else new


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_tokens_equal_those_of_transformers(ours, theirs, penalty):
    config = DecodingConfig(max_new_tokens=25, temperature=0, repetition_penalty=penalty)
    inputs = prompts(3, 12, 7, 1, 15)
    outputs = decode(ours, inputs, config)
    for prompt, output in zip(inputs, outputs, strict=True):
        expected = generated(theirs, prompt, max_new_tokens=25, do_sample=False, repetition_penalty=penalty)
        assert output.ids == expected
        assert output.ended == ("eos" if len(expected) < 25 else "length")
    assert {output.ended for output in outputs} >= {"length"}


@pytest.mark.parametrize("num_beams", [2, 4])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_beams_equal_those_of_transformers(ours, theirs, num_beams, length_penalty):
    config = DecodingConfig(max_new_tokens=12, num_beams=num_beams, length_penalty=length_penalty)
    inputs = prompts(3, 12, 7, 1, 15, 4, seed=1)
    options = {"num_beams": num_beams, "length_penalty": length_penalty, "do_sample": False, "early_stopping": False}
    expected = [generated(theirs, prompt, max_new_tokens=12, **options) for prompt in inputs]
    assert [output.ids for output in beam_search(ours, inputs, config)] == expected
    assert [beam_search(ours, [prompt], config)[0].ids for prompt in inputs] == expected


@pytest.mark.parametrize("constraints", [{"no_repeat_ngram_size": 2}, {"min_new_tokens": 8}])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_constrained_tokens_equal_those_of_transformers(ours, theirs, num_beams, constraints):
    config = DecodingConfig(max_new_tokens=14, num_beams=num_beams, temperature=float(num_beams > 1), **constraints)
    inputs, options = prompts(3, 12, 7, 1, 15), {"max_new_tokens": 14, "num_beams": num_beams, "do_sample": False}
    # A token that the model writes is the end.
    eos = generated(theirs, inputs[0], **options)[2]
    decoder = GptDecoder(ours, rows=5 * num_beams)
    decoder.config = replace(decoder.config, eos_token_id=eos)

    def expected(**constraints):
        return [generated(theirs, prompt, eos_token_id=eos, **options, **constraints) for prompt in inputs]

    run = beam_search if num_beams > 1 else decode
    assert [output.ids for output in run(decoder, inputs, config)] == expected(**constraints) != expected()


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.1},
        {"temperature": 1.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    ],
)
def test_filtered_logits_equal_those_of_transformers(options):
    from transformers import generation

    scores = torch.randn(50, VOCAB, generator=torch.Generator().manual_seed(0)) * 3
    warpers = {
        "temperature": generation.TemperatureLogitsWarper,
        "top_k": generation.TopKLogitsWarper,
        "top_p": generation.TopPLogitsWarper,
        "min_p": generation.MinPLogitsWarper,
    }
    expected = scores
    for name, value in options.items():
        expected = warpers[name](value)(None, expected)
    outputs = filter_logits(scores, DecodingConfig(**options))
    assert torch.equal(outputs.isinf(), expected.isinf())
    torch.testing.assert_close(outputs.softmax(-1), expected.softmax(-1))


def test_prepared_decoder_serves_several_calls(ours):
    reader = GptDecoder(ours, rows=3)
    inputs = prompts(3, 12, 7)
    for options in ({"temperature": 0}, {"seed": 3}):
        config = DecodingConfig(max_new_tokens=10, **options)
        assert [t.ids for t in decode(reader, inputs, config)] == [t.ids for t in decode(ours, inputs, config)]
    config = DecodingConfig(max_new_tokens=10, num_beams=3)
    found, expected = ([output.ids for output in beam_search(model, inputs, config)] for model in (reader, ours))
    assert found == expected


def test_log_probability_is_that_of_the_model(ours, theirs):
    (prompt,) = prompts(6)
    (output,) = decode(ours, [prompt], DecodingConfig(max_new_tokens=8, temperature=0))
    ids = torch.cat([prompt, torch.tensor(output.ids + [EOS] * (output.ended == "eos"))])
    with torch.no_grad():
        logits = theirs(ids[None]).logits[0].log_softmax(-1)
    each = logits[len(prompt) - 1 : -1].gather(1, ids[len(prompt) :, None])
    assert output.log_probability == pytest.approx(each.sum().item(), rel=1e-4)


def test_samples_depend_on_the_seed_and_not_on_the_batch(ours):
    inputs = prompts(3, 12, 7)
    config = DecodingConfig(max_new_tokens=10, seed=5)
    outputs = decode(ours, inputs, config)
    assert [t.ids for t in decode(ours, inputs, config)] == [t.ids for t in outputs]
    assert decode(ours, inputs[:1], config)[0].ids == outputs[0].ids
    assert [t.ids for t in decode(ours, inputs, DecodingConfig(max_new_tokens=10, seed=6))] != [t.ids for t in outputs]


def test_sampled_tokens_have_the_frequencies_of_the_model(ours, theirs):
    (prompt,) = prompts(5)
    with torch.no_grad():
        p = theirs(prompt[None]).logits[0, -1].softmax(-1)
    outputs = decode(ours, [prompt] * 4000, DecodingConfig(max_new_tokens=1))
    counts = torch.bincount(torch.tensor([t.ids[0] if t.ids else EOS for t in outputs]), minlength=VOCAB)
    assert (counts / 4000 - p).abs().max() < 4 * (0.25 / 4000) ** 0.5


def test_on_token_receives_each_token_and_can_stop_a_text(ours):
    received = []

    def on_token(number, token):
        received.append((number, token))
        return number == 0 and len(received) > 4

    outputs = decode(ours, prompts(3, 9), DecodingConfig(max_new_tokens=6, seed=1), on_token=on_token)
    for number, output in enumerate(outputs):
        assert [token for n, token in received if n == number] == output.ids
    assert outputs[0].ended == "stop" and len(outputs[0].ids) < 6


def test_window_slides_only_with_overflow_slide(ours, theirs):
    (prompt,) = prompts(POSITIONS - 3)
    with pytest.raises(DataError, match=f"more than the model's maximum length of {POSITIONS}: generate at most 3"):
        decode(ours, [prompt], DecodingConfig(max_new_tokens=9))
    (output,) = decode(ours, [prompt], DecodingConfig(max_new_tokens=60, temperature=0, overflow="slide"))
    text = prompt.tolist()
    start = 0
    # As documented: the second half of the window becomes the context.
    for token in output.ids:
        if len(text) - start >= POSITIONS + 1:
            start = len(text) - POSITIONS // 2
        with torch.no_grad():
            assert theirs(torch.tensor([text[start:]])).logits[0, -1].argmax() == token
        text.append(token)
    assert len(output.ids) == 60 or output.ended == "eos"


@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 1}, {"seed": 2, "repetition_penalty": 1.3}])
def test_text_with_a_sliding_window_does_not_depend_on_the_batch(ours, options):
    config = DecodingConfig(max_new_tokens=2 * POSITIONS, overflow="slide", **options)
    mine, longer = prompts(POSITIONS // 3, POSITIONS - 2)
    (single,) = decode(ours, [mine], config)
    together, _ = decode(ours, [mine, longer], config)
    assert together.ids == single.ids
    assert together.log_probability == pytest.approx(single.log_probability, rel=1e-4)


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.1}, {"num_beams": 2}]
)
def test_damaged_weights_are_an_error(options):
    config = GptConfig(vocab_size=VOCAB, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model = make_model(config, ["causal_lm"])
    model.body.norm.bias.data[3] = torch.nan
    config, inputs = DecodingConfig(max_new_tokens=3, **options), prompts(4, 7)
    with pytest.raises(CheckpointError, match="scores are not finite") as caught:
        beam_search(model, inputs, config) if config.num_beams > 1 else decode(model, inputs, config)
    assert caught.value.exit_code == 3


def test_no_prompts_give_no_outputs(ours):
    assert decode(ours, [], DecodingConfig()) == []


def test_empty_and_overlong_prompts_are_errors(ours):
    with pytest.raises(DataError, match="prompt 2 of 2 is empty"):
        decode(ours, [*prompts(2), torch.empty(0, dtype=torch.long)], DecodingConfig(max_new_tokens=1))
    with pytest.raises(
        DataError, match=f"41 tokens; .* more than the model's maximum length of {POSITIONS}: shorten it"
    ):
        decode(ours, prompts(41), DecodingConfig(max_new_tokens=1))


def test_end_of_an_overlong_prompt_is_the_context(ours):
    config = DecodingConfig(max_new_tokens=4, temperature=0, overflow="slide")
    (prompt,) = prompts(POSITIONS + 1)
    (output,), (output_of_end,) = (decode(ours, [part], config) for part in (prompt, prompt[-(POSITIONS // 2) :]))
    assert output.ids == output_of_end.ids


def test_masked_model_does_not_generate():
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    with pytest.raises(ConfigError, match="has no causal-LM head, so it cannot generate text"):
        decode(make_model(config, ["masked_lm"]), prompts(2), DecodingConfig(max_new_tokens=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": 1e-9}, "temperature is 1e-09: expected 0 .greedy. or a number of at least"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"min_p": 1.0}, "min_p is 1.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"num_beams": 0}, "num_beams is 0"),
        ({"num_beams": 2, "top_k": 5}, "does not sample"),
        ({"num_beams": 2, "overflow": "slide"}, "does not support a sliding window"),
    ],
)
def test_settings_out_of_range_are_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        DecodingConfig(**options)
