"""The plain padded forward against the flat one and against transformers with eager attention."""

import pytest
import torch

from stemformer.huggingface.load import load_model
from stemformer.models.bart import BartConfig, MBartConfig
from stemformer.models.bert import BertConfig
from stemformer.models.gpt import GptConfig
from stemformer.models.hf_names import to_hugging_face
from stemformer.models.layers import row_parts
from stemformer.models.llama import ArceeConfig, EuroBertConfig, LlamaConfig, Qwen3Config
from stemformer.models.model import ARCHITECTURES, make_model
from stemformer.models.modernbert import ModernBertConfig
from stemformer.models.plain import plain_forward

transformers = pytest.importorskip("transformers")

RELATIVE = 1e-5  # of the largest value: the project's bound for float32, whose sums differ in order only
SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
LAYER_TYPES = ("full_attention", "sliding_attention", "full_attention")
CONFIGS = {
    "bert": BertConfig(**SIZES),
    "modernbert": ModernBertConfig(**SIZES, layer_types=LAYER_TYPES, local_attention=8),
    "gpt2": GptConfig(**SIZES, eos_token_id=0),
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_size=12),
    "arcee": ArceeConfig(**SIZES),
    "eurobert": EuroBertConfig(**SIZES, num_key_value_heads=4),
    # The encoder.
    "bart": BartConfig(**SIZES, num_decoder_layers=1),
    "mbart": MBartConfig(**SIZES, num_decoder_layers=1),
}
# Compared with transformers here; BART's encoder is in `test_bart_parity.py`.
COMPARED = [name for name in CONFIGS if name not in ("bart", "mbart")]
# Options of transformers' configs.
LLAMA_OPTIONS = {"llama": {"num_key_value_heads": 2}, "qwen3": {"num_key_value_heads": 2, "head_dim": 12}, "arcee": {}}
LLAMA_OPTIONS["eurobert"] = {"num_key_value_heads": 4, "pad_token_id": 0}
LENGTHS = [9, 40, 1, 17]


def add_noise(model):
    """Make every parameter random: initial biases and norms would hide a swapped pair."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


def make(name):
    return add_noise(
        make_model(CONFIGS[name], [ARCHITECTURES[name].lm_head], generator=torch.Generator().manual_seed(0))
    )


def their_model(name):
    options = {"attn_implementation": "eager"}
    if name == "bert":
        config = transformers.BertConfig(**SIZES, attention_probs_dropout_prob=0.0, **options)
        return add_noise(transformers.BertModel(config))
    if name == "modernbert":
        ids = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
        config = transformers.ModernBertConfig(
            **SIZES, **ids, pad_token_id=0, layer_types=list(LAYER_TYPES), local_attention=8
        )
        return add_noise(transformers.ModernBertModel._from_config(config, **options))
    if name in LLAMA_OPTIONS:
        kind = {"eurobert": "EuroBert"}.get(name, name.capitalize())
        ids = {"bos_token_id": 0, "eos_token_id": 0}
        config = getattr(transformers, f"{kind}Config")(**SIZES, **ids, **LLAMA_OPTIONS[name])
        return add_noise(getattr(transformers, f"{kind}Model")._from_config(config, **options))
    config = transformers.GPT2Config(
        vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=40, attn_pdrop=0.0, eos_token_id=0, **options
    )
    return add_noise(transformers.GPT2Model(config))


def padded_inputs(lengths=LENGTHS, *, side="right"):
    """Return padded ids, mask and segment ids of random sequences."""
    generator = torch.Generator().manual_seed(2)
    steps, column = torch.arange(max(lengths)), torch.tensor(lengths)[:, None]
    mask = steps < column if side == "right" else steps >= max(lengths) - column
    # Not id 0, whose embedding gets no gradient in transformers.
    ids = torch.randint(1, 97, mask.shape, generator=generator) * mask
    types = torch.randint(0, 2, mask.shape, generator=generator) * mask
    return ids, mask, types


def flat_forward(body, ids, mask, types, **options):
    lengths = mask.sum(1).tolist()
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    positions = torch.cat([torch.arange(length) for length in lengths])
    return body(ids[mask], positions, types[mask], cu_seqlens, max(lengths), **options)


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max().item() <= RELATIVE * expected.abs().max().item()


def assert_same_gradients(found, expected):
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max().item() <= RELATIVE * largest, name


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_every_architecture_is_tested():
    assert set(CONFIGS) == set(ARCHITECTURES)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", CONFIGS)
def test_all_states_equal_those_of_the_flat_forward(name, side):
    model, (ids, mask, types) = make(name), padded_inputs(side=side)
    with torch.no_grad():
        output = plain_forward(model.body, ids, mask.long(), types)
        expected = flat_forward(model.body, ids, mask, types, return_layers=(0, 1, 2, 3))
    assert len(output.hidden_states) == len(expected) == 4
    for number, states in expected.items():
        assert_close(output.hidden_states[number][mask], states)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_of_the_heads_equal_those_of_the_flat_forward(name):
    model, (ids, mask, types) = make(name), padded_inputs()
    with torch.no_grad():
        found = model.lm_logits(plain_forward(model.body, ids, mask, types).hidden_states[-1])
        expected = model.lm_logits(flat_forward(model.body, ids, mask, types))
    assert_close(found[mask], expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_equal_those_of_the_flat_forward(name):
    model, (ids, mask, types) = make(name), padded_inputs()
    upstream = torch.randn(int(mask.sum()), 32, generator=torch.Generator().manual_seed(3))
    (plain_forward(model.body, ids, mask, types).hidden_states[-1][mask] * upstream).sum().backward()
    found = gradients(model)
    model.zero_grad()
    (flat_forward(model.body, ids, mask, types) * upstream).sum().backward()
    assert_same_gradients(found, gradients(model))


@pytest.mark.parametrize("name", COMPARED)
def test_states_and_attentions_equal_those_of_transformers(name, tmp_path):
    theirs = their_model(name)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    ids, mask, types = padded_inputs()
    # GPT-2 would add word embeddings of segment ids.
    segments = {"token_type_ids": types} if name == "bert" else {}
    with torch.no_grad():
        expected = theirs(
            ids, attention_mask=mask.long(), **segments, output_hidden_states=True, output_attentions=True
        )
        output = plain_forward(ours.body, ids, mask, types)
    assert len(output.hidden_states) == len(expected.hidden_states) == 4
    assert len(output.attentions) == len(expected.attentions) == 3
    for found, states in zip(output.hidden_states, expected.hidden_states, strict=True):
        assert_close(found[mask], states[mask])
    for found, weights in zip(output.attentions, expected.attentions, strict=True):
        assert_close(found.transpose(1, 2)[mask], weights.transpose(1, 2)[mask])  # weights of real queries


@pytest.mark.parametrize("name", COMPARED)
def test_gradients_equal_those_of_transformers(name, tmp_path):
    theirs = their_model(name)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    ids, mask, types = padded_inputs()
    segments = {"token_type_ids": types} if name == "bert" else {}
    upstream = torch.randn(int(mask.sum()), 32, generator=torch.Generator().manual_seed(3))
    (plain_forward(ours.body, ids, mask, types).hidden_states[-1][mask] * upstream).sum().backward()
    (theirs(ids, attention_mask=mask.long(), **segments).last_hidden_state[mask] * upstream).sum().backward()
    architecture = ARCHITECTURES[ours.config.model_type]
    found = to_hugging_face(gradients(ours), architecture.parameter_names, row_parts(ours))
    prefix = architecture.parameter_names.prefix
    assert_same_gradients({name.removeprefix(prefix): value for name, value in found.items()}, gradients(theirs))


@pytest.mark.parametrize("name", CONFIGS)
def test_attention_weights_of_tokens_are_a_distribution_over_visible_keys(name):
    model, (ids, mask, types) = make(name), padded_inputs(side="left")
    with torch.no_grad():
        output = plain_forward(model.body, ids, mask, types)
    visible = mask[:, None, :].expand(-1, mask.shape[1], -1)
    for number, weights in enumerate(output.attentions):
        if ARCHITECTURES[name].is_causal:
            visible = visible.tril()
        if name == "modernbert":
            is_sliding = LAYER_TYPES[number] == "sliding_attention"
            visible = mask[:, None, :].expand(-1, mask.shape[1], -1)
            visible = visible.tril(4).triu(-4) if is_sliding else visible
        rows = weights.transpose(1, 2)[mask]  # (N, H, T)
        torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:2]))
        assert rows.transpose(0, 1)[:, ~visible[mask]].count_nonzero() == 0
    assert all(x.isfinite().all() for x in (*output.hidden_states, *output.attentions))


class Exported(torch.nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, input_ids, attention_mask, token_type_ids):
        return plain_forward(self.body, input_ids, attention_mask, token_type_ids)


@pytest.mark.parametrize("name", CONFIGS)
def test_exported_program_has_no_custom_operator_and_takes_any_shape(name):
    model = Exported(make(name).body).eval()
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=40)
    shapes = [{0: batch, 1: length}] * 3
    with torch.no_grad():
        program = torch.export.export(model, padded_inputs(), dynamic_shapes=shapes, strict=False)
        other = padded_inputs([3, 11])
        found, expected = program.module()(*other), model(*other)
    assert "stemformer" not in str(program.graph)
    torch.testing.assert_close(found, expected)
