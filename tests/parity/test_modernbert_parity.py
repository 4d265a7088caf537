"""ModernBERT against transformers: logits, gradients, an optimizer step, and folders in both directions."""

import json

import pytest
import torch
from parity_frame import (
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

from stemformer.errors import CheckpointError
from stemformer.huggingface.load import load_model
from stemformer.huggingface.save import save_model
from stemformer.models.model import make_model
from stemformer.models.modernbert import ModernBertConfig

transformers = pytest.importorskip("transformers")

SPECIAL_IDS = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
ALTERNATING = ["full_attention", "sliding_attention", "sliding_attention"]


def theirs(**options):
    """Return a masked LM of transformers, every parameter random."""
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    options = {"layer_types": ALTERNATING, "local_attention": 16, "max_position_embeddings": 512, **options}
    config = transformers.ModernBertConfig(**sizes, intermediate_size=48, pad_token_id=0, **SPECIAL_IDS, **options)
    return random_model(transformers.ModernBertForMaskedLM, config)


@pytest.mark.parametrize("layer_types", [ALTERNATING, ["full_attention"] * 3, None])
def test_logits_of_their_folder_are_equal(layer_types, tmp_path):
    model = theirs(layer_types=layer_types)
    with torch.no_grad():
        assert_close(logits_of(opened(model, tmp_path)), their_logits_of(model))


def test_thetas_are_read(tmp_path):
    ropes = {
        kind: {"rope_type": "default", "rope_theta": theta}
        for kind, theta in (("full_attention", 500.0), ("sliding_attention", 20.0))
    }
    model = theirs(rope_parameters=ropes)
    with torch.no_grad():
        assert_close(logits_of(opened(model, tmp_path)), their_logits_of(model))


def test_folder_of_an_older_version_is_read(tmp_path):
    model = theirs(layer_types=["full_attention", "sliding_attention", "full_attention"])
    model.save_pretrained(tmp_path)
    old = {"global_attn_every_n_layers": 2, "global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0}
    rewrite(tmp_path, layer_types=None, rope_parameters=None, **old)
    with torch.no_grad():
        assert_close(logits_of(load_model(tmp_path)), their_logits_of(model))


def test_gradients_are_equal(tmp_path):
    model = theirs()
    assert_equal_gradients(opened(model, tmp_path), model)


def test_weights_after_an_optimizer_step_are_equal(tmp_path):
    model = theirs()
    assert_equal_optimizer_step(opened(model, tmp_path), model)


@pytest.mark.parametrize("heads", [["masked_lm"], []])
def test_transformers_opens_our_folder_with_equal_numbers(heads, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    options = {"layer_types": tuple(ALTERNATING), "local_attention": 16, "max_position_embeddings": 512}
    config = ModernBertConfig(vocab_size=VOCAB, **sizes, **options)
    ours = make_model(config, heads, generator=torch.Generator().manual_seed(0)).eval()
    save_model(ours, tmp_path)
    kind = transformers.ModernBertForMaskedLM if heads else transformers.ModernBertModel
    model, info = kind.from_pretrained(tmp_path, attn_implementation="eager", output_loading_info=True)
    assert not any(info.values())
    ids = texts()[4]
    with torch.no_grad():
        states = ours.body(*flat([ids]))
        found = ours.lm_logits(states) if heads else states
        assert_close(found, model.eval()(input_ids=ids[None])[0][0])


def test_pooling_of_a_folder_without_a_classifier_does_not_matter(tmp_path):
    theirs(classifier_pooling="mean").save_pretrained(tmp_path / "theirs")
    save_model(load_model(tmp_path / "theirs"), tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["classifier_pooling"] == "cls"


def test_saved_folder_is_read_unchanged(tmp_path):
    ours = opened(theirs(), tmp_path / "theirs")
    save_model(ours, tmp_path / "ours")
    assert_read_unchanged(ours, tmp_path / "ours")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"hidden_activation": "swish"}, "hidden_act is 'swish'; expected one of gelu"),
        ({"layer_types": ["full_attention", "linear_attention", "full_attention"]}, "has 'linear_attention'; expected"),
        ({"layer_types": ["full_attention"]}, "has 1 entries for 3 layers"),
        ({"norm_bias": True}, "norm_bias is True, only False is supported"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type is 'yarn', only 'default'"),
        ({"rope_scaling": {"type": "linear"}}, "type is 'linear', only 'default'"),
        ({"rope_scaling": {"rope_type": "default", "factor": 2.0}}, "factor is 2.0, only None"),
        ({"classifier_activation": "relu"}, "classifier_activation is 'relu', only 'gelu'"),
        (
            {"architectures": ["ModernBertForSequenceClassification"], "classifier_pooling": "mean"},
            "classifier_pooling is 'mean', only 'cls'",
        ),
    ],
)
def test_unsupported_settings_are_refused_by_name(changes, expected, tmp_path):
    theirs().save_pretrained(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=expected):
        load_model(tmp_path)
