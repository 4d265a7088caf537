"""ModernBERT against transformers: logits, gradients, an optimizer step, and folders in both directions."""

import json

import pytest
import torch
import torch.nn.functional as F

from stemformer.errors import CheckpointError
from stemformer.huggingface.load import load_model
from stemformer.huggingface.save import save_model
from stemformer.models.hf_names import MODERNBERT, to_hugging_face
from stemformer.models.model import make_model
from stemformer.models.modernbert import ModernBertConfig
from stemformer.training.optimizer import OptimizerConfig, make_optimizer

transformers = pytest.importorskip("transformers")

RELATIVE = 1e-5  # of the largest value: float32 sums differ in order only
AFTER_A_STEP = 2e-6
VOCAB = 97
# Longer than the window of the sliding layers; one with CPU's flash kernel.
LENGTHS = [9, 40, 1, 17, 420, 8]
SPECIAL_IDS = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
ALTERNATING = ["full_attention", "sliding_attention", "sliding_attention"]


def theirs(**options):
    """Return a masked LM of transformers, every parameter random."""
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    options = {"layer_types": ALTERNATING, "local_attention": 16, "max_position_embeddings": 512, **options}
    config = transformers.ModernBertConfig(**sizes, intermediate_size=48, pad_token_id=0, **SPECIAL_IDS, **options)
    torch.manual_seed(0)
    model = transformers.ModernBertForMaskedLM._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def opened(model, folder):
    model.save_pretrained(folder)
    return load_model(folder)


def texts():
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(1, VOCAB, (length,), generator=generator) for length in LENGTHS]


def logits_of(model):
    ids, cu_seqlens = torch.cat(texts()), torch.tensor([0, *LENGTHS]).cumsum(0).int()
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    return model.lm_logits(model.body(ids, positions, torch.zeros_like(ids), cu_seqlens, max(LENGTHS)))


def their_logits_of(model):
    return torch.cat([model(input_ids=ids[None]).logits[0] for ids in texts()])


def loss_of(logits):
    return F.cross_entropy(logits, torch.cat(texts()).roll(1))


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max().item() <= RELATIVE * expected.abs().max().item()


def rewrite(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


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
    ours = opened(model, tmp_path)
    loss_of(logits_of(ours)).backward()
    loss_of(their_logits_of(model)).backward()
    found = to_hugging_face({name: p.grad for name, p in ours.named_parameters()}, MODERNBERT)
    expected = {name: p.grad for name, p in model.named_parameters()}
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max().item() <= RELATIVE * largest, name


def test_weights_after_an_optimizer_step_are_equal(tmp_path):
    model = theirs()
    ours = opened(model, tmp_path)
    optimizer = make_optimizer(ours, OptimizerConfig(learning_rate=1e-3, weight_decay=0.0, eps=1e-6, beta2=0.999))
    reference = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0)
    loss_of(logits_of(ours)).backward()
    loss_of(their_logits_of(model)).backward()
    optimizer.step()
    reference.step()
    found = to_hugging_face(ours.state_dict(), MODERNBERT)
    for name, parameter in model.named_parameters():
        assert (found[name] - parameter).abs().max().item() <= AFTER_A_STEP, name


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
    cu_seqlens, positions = torch.tensor([0, len(ids)]).int(), torch.arange(len(ids))
    with torch.no_grad():
        states = ours.body(ids, positions, torch.zeros_like(ids), cu_seqlens, len(ids))
        found = ours.lm_logits(states) if heads else states
        assert_close(found, model.eval()(input_ids=ids[None])[0][0])


def test_pooling_of_a_folder_without_a_classifier_does_not_matter(tmp_path):
    theirs(classifier_pooling="mean").save_pretrained(tmp_path / "theirs")
    save_model(load_model(tmp_path / "theirs"), tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["classifier_pooling"] == "cls"


def test_saved_folder_is_read_unchanged(tmp_path):
    ours = opened(theirs(), tmp_path / "theirs")
    save_model(ours, tmp_path / "ours")
    again = load_model(tmp_path / "ours")
    assert again.config == ours.config
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), ours.state_dict().values(), strict=True))


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
