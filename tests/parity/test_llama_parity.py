"""Llama, Qwen3, Arcee and EuroBERT against transformers: logits, gradients, an optimizer step, decoding, folders both ways."""

import json

import pytest
import torch
from parity_frame import (
    RELATIVE,
    VOCAB,
    assert_close,
    assert_equal_gradients,
    assert_equal_optimizer_step,
    assert_read_unchanged,
    flat,
    logits_of,
    opened,
    random_model,
    rewrite,
    texts,
    their_logits_of,
)

from stemformer.errors import CheckpointError, ConfigError
from stemformer.huggingface.load import load_model
from stemformer.huggingface.save import save_model
from stemformer.models.inference.cached_gpt import GptDecoder
from stemformer.models.llama import ArceeConfig, EuroBertConfig, LlamaConfig, Qwen3Config
from stemformer.models.model import ARCHITECTURES, make_model

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
# Class of transformers and options; heads of an own size are wider than the hidden size.
CASES = {
    "llama": ("Llama", {}),
    "grouped": ("Llama", {"num_key_value_heads": 2, "rope_theta": 500.0}),
    "one_group": ("Llama", {"num_key_value_heads": 1, "head_dim": 12, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"num_key_value_heads": 4, "head_dim": 8}),
    "qwen3_grouped": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}),
    "arcee": ("Arcee", {}),
    "arcee_grouped": ("Arcee", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "eurobert": ("EuroBert", {"pad_token_id": 0, "tie_word_embeddings": True}),
    "eurobert_grouped": (
        "EuroBert",
        {"pad_token_id": 0, "num_key_value_heads": 2, "rope_parameters": {"rope_theta": 250.0, "rope_type": "default"}},
    ),
}
CAUSAL = [case for case in CASES if "eurobert" not in case]
CONFIGS = {
    "llama": LlamaConfig(**SIZES, intermediate_size=48, eos_token_id=3),
    "grouped": LlamaConfig(**SIZES, intermediate_size=48, eos_token_id=3, num_key_value_heads=2, rope_theta=500.0),
    "qwen3": Qwen3Config(**SIZES, intermediate_size=48, eos_token_id=3, num_key_value_heads=2, head_size=12),
    "arcee": ArceeConfig(**SIZES, intermediate_size=48, eos_token_id=3, num_key_value_heads=1),
    "eurobert": EuroBertConfig(**SIZES, intermediate_size=48, num_key_value_heads=2, mask_token_id=4),
}


def theirs(case, kind=None, **options):
    """Return a model of transformers, every parameter random."""
    name, own = CASES[case]
    kind = kind or ("ForCausalLM" if case in CAUSAL else "ForMaskedLM")
    config = {"max_position_embeddings": 512, "bos_token_id": 3, "eos_token_id": 3, **own, **options}
    config = getattr(transformers, f"{name}Config")(**SIZES, intermediate_size=48, **config)
    return random_model(getattr(transformers, name + kind), config)


@pytest.mark.parametrize("case", CASES)
def test_logits_of_their_folder_are_equal(case, tmp_path):
    model = theirs(case)
    ours = opened(model, tmp_path)
    assert (ours.lm_head.decoder is None) == CASES[case][1].get("tie_word_embeddings", False)
    with torch.no_grad():
        assert_close(logits_of(ours), their_logits_of(model))


@pytest.mark.parametrize("activation", ["gelu", "relu", "relu2"])
def test_other_activations_are_equal(activation, tmp_path):
    model = theirs("llama", hidden_act=activation)
    with torch.no_grad():
        assert_close(logits_of(opened(model, tmp_path)), their_logits_of(model))


def test_folder_of_an_older_version_is_read(tmp_path):
    model = theirs("grouped")
    model.save_pretrained(tmp_path)
    old = {"rope_parameters": None, "rope_scaling": None, "rope_theta": 500.0, "head_dim": None}
    rewrite(tmp_path, **old, tie_word_embeddings=False)
    with torch.no_grad():
        assert_close(logits_of(load_model(tmp_path)), their_logits_of(model))


def test_output_matrix_is_untied_by_default(tmp_path):
    model = theirs("llama")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["tie_word_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with torch.no_grad():
        assert_close(logits_of(load_model(tmp_path)), their_logits_of(model))


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_equal(case, tmp_path):
    model = theirs(case)
    assert_equal_gradients(opened(model, tmp_path), model)


@pytest.mark.parametrize("case", CASES)
def test_weights_after_an_optimizer_step_are_equal(case, tmp_path):
    model = theirs(case)
    assert_equal_optimizer_step(opened(model, tmp_path), model)


@pytest.mark.parametrize("has_head", [True, False])
@pytest.mark.parametrize("case", CONFIGS)
def test_transformers_opens_our_folder_with_equal_numbers(case, has_head, tmp_path):
    architecture = ARCHITECTURES[CONFIGS[case].model_type]
    heads = [architecture.lm_head] if has_head else []
    ours = make_model(CONFIGS[case], heads, generator=torch.Generator().manual_seed(0)).eval()
    save_model(ours, tmp_path)
    language_model = transformers.AutoModelForCausalLM if architecture.is_causal else transformers.AutoModelForMaskedLM
    kind = language_model if heads else transformers.AutoModel
    model, info = kind.from_pretrained(tmp_path, attn_implementation="eager", output_loading_info=True)
    assert not any(info.values())
    assert getattr(model.config, "mask_token_id", 4) == 4
    assert model.config.eos_token_id == model.config.bos_token_id == (3 if architecture.is_causal else None)
    ids = texts()[4]
    with torch.no_grad():
        states = ours.body(*flat([ids]))
        found = ours.lm_logits(states) if heads else states
        assert_close(found, model.eval()(input_ids=ids[None])[0][0])
    assert_read_unchanged(ours, tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_saved_folder_is_read_unchanged(case, tmp_path):
    ours = opened(theirs(case), tmp_path / "theirs")
    save_model(ours, tmp_path / "ours")
    assert_read_unchanged(ours, tmp_path / "ours")
    kind = transformers.AutoModelForCausalLM if case in CAUSAL else transformers.AutoModelForMaskedLM
    model = kind.from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        assert_close(logits_of(ours), their_logits_of(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("case", CAUSAL)
def test_decoding_gives_the_logits_of_the_full_forward(case, dtype, tmp_path):
    ours, inputs = opened(theirs(case), tmp_path).to(dtype), texts()[:4]
    decoder = GptDecoder(ours, rows=4)
    found = [decoder.prefill([ids.tolist() for ids in inputs], max_length=60)]
    new = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    found += [decoder.decode_step(tokens) for tokens in new]
    ours = ours.float()
    for step, scores in enumerate(found):
        longer = [torch.cat([ids, new[:step, row]]) for row, ids in enumerate(inputs)]
        with torch.no_grad():
            expected = logits_of(ours, longer)[torch.tensor([len(ids) for ids in longer]).cumsum(0) - 1]
        # Where the processor has bfloat16 units, the inputs of a product are rounded to 8 bits.
        relative = 2e-2 if dtype == torch.bfloat16 else RELATIVE
        assert (scores - expected).abs().max().item() <= relative * expected.abs().max().item()


@pytest.mark.parametrize("kind", ["ForSequenceClassification", "ForTokenClassification"])
def test_classes_of_a_eurobert_are_equal(kind, tmp_path):
    model = theirs("eurobert_grouped", kind, classifier_pooling="bos", num_labels=3)
    model.save_pretrained(tmp_path)
    head = "sequence" if kind == "ForSequenceClassification" else "token"
    ours = load_model(tmp_path, [head], num_labels=3)
    inputs = texts()[:4]
    tokens = flat(inputs)
    with torch.no_grad():
        states = ours.body(*tokens)
        found = ours.heads[head](states[tokens[3][:-1].long()] if head == "sequence" else states)
        assert_close(found, torch.cat([model(input_ids=ids[None]).logits.view(-1, 3) for ids in inputs]))
    save_model(ours, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["classifier_pooling"] == "bos"


def test_classifier_of_a_eurobert_that_averages_tokens_is_refused(tmp_path):
    theirs("eurobert", "ForSequenceClassification").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="classifier_pooling is 'late', only 'bos' is supported"):
        load_model(tmp_path, ["sequence"], num_labels=2)


def test_later_tokens_change_no_earlier_state(tmp_path):
    ours, inputs = opened(theirs("qwen3_grouped"), tmp_path), texts()[:2]
    changed = [inputs[0], torch.cat([inputs[1][:30], (inputs[1][30:] + 1) % VOCAB])]
    with torch.no_grad():
        before, after = logits_of(ours, inputs), logits_of(ours, changed)
    assert torch.equal(before[:39], after[:39]) and not torch.allclose(before[39:], after[39:])


def test_all_tokens_of_a_eurobert_see_later_ones(tmp_path):
    ours, inputs = opened(theirs("eurobert"), tmp_path), texts()[:2]
    changed = [inputs[0], torch.cat([inputs[1][:39], (inputs[1][39:] + 1) % VOCAB])]
    with torch.no_grad():
        before, after = logits_of(ours, inputs), logits_of(ours, changed)
    assert torch.equal(before[:9], after[:9]) and (before[9:] != after[9:]).any(1).all()


@pytest.mark.parametrize(
    ("case", "changes", "expected"),
    [
        ("llama", {"hidden_act": "swish"}, "hidden_act is 'swish'; expected one of gelu"),
        ("llama", {"attention_bias": True}, "attention_bias is True, only False is supported"),
        ("llama", {"mlp_bias": True}, "mlp_bias is True, only False is supported"),
        ("llama", {"eos_token_id": None}, "has no eos_token_id"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_type is 'llama3', only"),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "type is 'linear'"),
        ("llama", {"num_key_value_heads": 3}, "4 is not divisible by 3 heads of keys"),
        ("llama", {"head_dim": 7}, "head_size is 7; rotary positions need an even one"),
        ("eurobert", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}}, "is 'yarn', only"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window is True, only False"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "has 'sliding_attention', only"),
    ],
)
def test_unsupported_settings_are_refused_by_name(case, changes, expected, tmp_path):
    theirs(case).save_pretrained(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=expected):
        load_model(tmp_path)


def test_first_of_several_end_tokens_is_used(tmp_path):
    theirs("llama").save_pretrained(tmp_path)
    rewrite(tmp_path, eos_token_id=[5, 3])
    with pytest.warns(UserWarning, match="only the first one ends texts"):
        assert load_model(tmp_path).config.eos_token_id == 5


def test_invalid_sizes_are_refused():
    with pytest.raises(ConfigError, match="num_key_value_heads"):
        LlamaConfig(**SIZES, num_key_value_heads=0)


@pytest.mark.parametrize(("config", "std"), [(LlamaConfig, 128**-0.5), (Qwen3Config, 0.02)])
def test_initial_weights(config, std):
    sizes = {"vocab_size": 50, "hidden_size": 128, "num_hidden_layers": 8, "num_attention_heads": 4}
    model = make_model(
        config(**sizes, num_key_value_heads=2, intermediate_size=512),
        ["causal_lm"],
        generator=torch.Generator().manual_seed(0),
    )
    for layer in model.body.layers:
        for weight, expected in (
            (layer.attention.qkv.weight[:192], std),
            (layer.attention.qkv.weight[192:], 0.02),
            (layer.feed_forward.up.weight, 0.02),
            (layer.attention.out.weight, 0.02 / 4),
            (layer.feed_forward.down.weight, 0.02 / 4),
        ):
            assert weight.std().item() == pytest.approx(expected, rel=0.05)
        assert (layer.attention_norm.weight == 1).all()
