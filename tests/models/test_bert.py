import pytest
import torch
from torch import nn

from stemformer.errors import ConfigError
from stemformer.models import body as body_module
from stemformer.models.bert import Bert, BertConfig
from stemformer.models.layers import initialize_weights, pad_to_bucket
from stemformer.models.model import make_model

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
CONFIG = BertConfig(**SIZES, num_hidden_layers=3)
WIDE = BertConfig(vocab_size=2000, hidden_size=128, num_hidden_layers=1, num_attention_heads=4, intermediate_size=256)


def body(config=CONFIG, *, seed=0):
    made = Bert(config)
    initialize_weights(made, std=config.initializer_range, generator=torch.Generator().manual_seed(seed))
    return made.eval()


def flat(lengths, *, seed=0):
    """Return the five arguments of the body for random sequences of these lengths."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, SIZES["vocab_size"], (sum(lengths),), generator=rng)
    types = torch.randint(0, 2, (sum(lengths),), generator=rng)
    cu = torch.tensor([0, *lengths]).cumsum(0).int()
    return ids, torch.cat([torch.arange(n) for n in lengths]), types, cu, max(lengths)


@pytest.mark.parametrize("num_layers", [0, 1, 5])
def test_body_has_the_number_of_layers_of_the_config(num_layers):
    config = BertConfig(**SIZES, num_hidden_layers=num_layers)
    arguments = flat([4, 7])
    states = body(config)(*arguments, return_layers=tuple(range(num_layers + 1)))
    assert len(Bert(config).layers) == num_layers and list(states) == list(range(num_layers + 1))


def test_returned_last_layer_is_the_default_result():
    model, arguments = body(), flat([4, 7])
    assert torch.equal(model(*arguments, return_layers=(3,))[3], model(*arguments))


def test_returned_layer_zero_is_the_embeddings():
    model, arguments = body(), flat([4, 7])
    assert torch.equal(model(*arguments, return_layers=(0,))[0], model.embeddings(*arguments[:3]))


def test_only_the_requested_layers_are_returned():
    states = body()(*flat([4, 7]), return_layers=(2, 0))
    assert set(states) == {0, 2} and all(state.shape == (11, 16) for state in states.values())


def test_replaced_states_are_the_input_of_the_next_layer():
    model, arguments = body(), flat([4, 7])
    new = torch.randn(11, 16, generator=torch.Generator().manual_seed(1))
    states = model(*arguments, return_layers=(1, 2, 3), replace={2: new})
    assert torch.equal(states[2], new)
    assert torch.equal(states[3], model.layers[2](new, *arguments[3:]))
    assert torch.equal(states[1], model(*arguments, return_layers=(1,))[1])


@pytest.mark.parametrize("layer", range(4))
def test_replacing_a_layer_by_its_own_states_changes_nothing(layer):
    model, arguments = body(), flat([4, 7])
    own = model(*arguments, return_layers=(layer,))[layer]
    assert torch.equal(model(*arguments, replace={layer: own}), model(*arguments))


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_layer_that_does_not_exist_is_refused(layer):
    model, arguments = body(), flat([4])
    with pytest.raises(ValueError, match="Layers"):
        model(*arguments, return_layers=(layer,))
    with pytest.raises(ValueError, match="Layers"):
        model(*arguments, replace={layer: torch.zeros(4, 16)})


def test_sequences_of_a_batch_do_not_see_each_other():
    model, (ids, *rest) = body(), flat([4, 7, 5])
    changed = ids.clone()
    changed[4:11] = (changed[4:11] + 1) % SIZES["vocab_size"]
    before, after = model(ids, *rest), model(changed, *rest)
    same = torch.tensor([True] * 4 + [False] * 7 + [True] * 5)
    assert torch.equal(before[same], after[same]) and not torch.equal(before[~same], after[~same])


def test_sequence_alone_equals_the_sequence_in_a_batch():
    model, (ids, positions, types, _, _) = body(), flat([4, 7, 5])
    alone = model(ids[4:11], positions[4:11], types[4:11], torch.tensor([0, 7], dtype=torch.int32), 7)
    # float32: matrix products of another number of rows sum in another order.
    torch.testing.assert_close(model(*flat([4, 7, 5]))[4:11], alone, rtol=0, atol=1e-5)


@pytest.fixture
def without_padding(monkeypatch):
    """Call a function without padding."""

    def call(function):
        with monkeypatch.context() as patch:
            patch.setattr(body_module, "pad_to_bucket", lambda x: x)
            return function()

    return call


def test_padding_changes_neither_states_nor_gradients(without_padding):
    model, arguments = body(), flat([30, 31, 32, 32])
    assert pad_to_bucket(torch.zeros(125, 1)).shape != (125, 1)
    upstream = torch.randn(125, 16, generator=torch.Generator().manual_seed(2))

    def states_and_gradients():
        states = model(*arguments)
        return states, *torch.autograd.grad(states, list(model.parameters()), upstream)

    for found, expected in zip(states_and_gradients(), without_padding(states_and_gradients), strict=True):
        # float32: matrix products of another number of rows sum in another order.
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_layers_are_returned_and_replaced_without_padding():
    model, arguments = body(), flat([30, 31, 32, 32])
    own = model(*arguments, return_layers=(0, 1, 3))
    assert all(states.shape == (125, 16) for states in own.values())
    assert torch.equal(model(*arguments, replace={1: own[1]}), own[3])


def test_replaced_states_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"have \{1: 10\} tokens; expected 11"):
        body()(*flat([4, 7]), replace={1: torch.zeros(10, 16)})


def test_boundaries_that_end_before_the_tokens_are_refused():
    ids, positions, types, _, longest = flat([4, 7])
    with pytest.raises(ValueError, match="cu_seqlens ends at 9, but there are 11 tokens"):
        body()(ids, positions, types, torch.tensor([0, 4, 9], dtype=torch.int32), longest)


def test_dropout_applies_in_training_only():
    model, arguments = body(BertConfig(**SIZES, num_hidden_layers=2, hidden_dropout_prob=0.5)), flat([4, 7])
    assert torch.equal(model(*arguments), model(*arguments))
    model.train()
    torch.manual_seed(0)
    first, second = model(*arguments), model(*arguments)
    torch.manual_seed(0)
    assert not torch.equal(first, second) and torch.equal(first, model(*arguments))


# Initialization


def parameters_of(model, kind, name):
    return [getattr(part, name) for part in model.modules() if isinstance(part, kind)]


@pytest.mark.parametrize("std", [0.02, 0.1])
def test_initial_matrices_have_the_standard_deviation_of_the_config(std):
    model = Bert(WIDE)
    initialize_weights(model, std=std, generator=torch.Generator().manual_seed(0))
    matrices = [w for w in parameters_of(model, (nn.Linear, nn.Embedding), "weight") if w.numel() > 10_000]
    weights = [w for w in matrices if w is not model.embeddings.position.weight]
    assert len(weights) == 5  # words, qkv, out, up, down
    for weight in weights:
        # From 10,000 draws the deviation is known to 1/sqrt(20,000) = 0.7 %, and the mean to 1 % of it: four times each.
        assert abs(weight.std().item() / std - 1) < 0.03 and abs(weight.mean().item() / std) < 0.04


def test_initial_positions_are_sinusoids_of_that_root_mean_square():
    model = Bert(WIDE)
    initialize_weights(model, std=0.02, generator=torch.Generator().manual_seed(0))
    positions = model.embeddings.position.weight.detach()
    assert positions.square().mean().sqrt().item() == pytest.approx(0.02, rel=1e-5)
    # The product of two positions depends on their distance alone and is largest at distance 0.
    products = positions @ positions.T
    torch.testing.assert_close(products[3:60, 3:60], products[:57, :57], rtol=1e-4, atol=1e-6)
    assert (products.argmax(1) == torch.arange(len(products))).all()


def test_initial_matrices_are_not_truncated():
    words = make_model(WIDE, generator=torch.Generator().manual_seed(0)).body.embeddings.word.weight
    assert 0.04 < (words.abs() > 2 * WIDE.initializer_range).float().mean().item() < 0.05  # of a normal: 0.0455


def test_initial_linear_biases_are_zero():
    biases = parameters_of(make_model(CONFIG, generator=torch.Generator().manual_seed(0)), nn.Linear, "bias")
    assert len(biases) == 4 * 3 and not any(bias.count_nonzero() for bias in biases)


def test_initial_norms_are_one_and_zero():
    model = make_model(CONFIG, generator=torch.Generator().manual_seed(0))
    norms = [part for part in model.modules() if isinstance(part, nn.LayerNorm)]
    assert len(norms) == 1 + 2 * 3 and all(norm.weight.eq(1).all() and norm.bias.eq(0).all() for norm in norms)


def test_every_parameter_of_the_body_is_in_the_table():
    model = Bert(CONFIG)
    for parameter in model.parameters():
        parameter.data.fill_(99)
    initialize_weights(model, std=0.02, generator=torch.Generator().manual_seed(0))
    assert [name for name, p in model.named_parameters() if (p == 99).any()] == []


def test_same_seed_gives_the_same_weights():
    first, second = (make_model(CONFIG, ["masked_lm"], generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_another_seed_gives_other_weights():
    first, second = (make_model(CONFIG, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4))
    assert not torch.equal(first.body.embeddings.word.weight, second.body.embeddings.word.weight)


def test_global_seed_does_not_matter():
    torch.manual_seed(0)
    first = body(seed=3)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), body(seed=3).parameters(), strict=True))


@pytest.mark.parametrize("heads", [["masked_lm"], ["next_sentence", "masked_lm"]])
def test_initial_body_does_not_depend_on_its_heads(heads):
    bare, full = (make_model(CONFIG, names, generator=torch.Generator().manual_seed(3)) for names in ([], heads))
    expected, found = bare.body.state_dict(), full.body.state_dict()
    assert list(expected) == list(found) and all(torch.equal(expected[name], found[name]) for name in expected)


# Config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "model.vocab_size is 0"),
        ({"hidden_size": 0}, "model.hidden_size is 0"),
        ({"num_attention_heads": 0}, "model.num_attention_heads is 0"),
        ({"intermediate_size": -3}, "model.intermediate_size is -3"),
        ({"max_position_embeddings": 0}, "model.max_position_embeddings is 0"),
        ({"num_hidden_layers": -1}, "model.num_hidden_layers is -1"),
        ({"type_vocab_size": 0}, "model.type_vocab_size is 0"),
        ({"num_attention_heads": 5}, "is not divisible by 5 heads"),
        ({"hidden_act": "swish"}, "expected one of gelu, gelu_new, gelu_pytorch_tanh, relu"),
        ({"hidden_dropout_prob": 1.0}, r"model.hidden_dropout_prob is 1.0"),
        ({"hidden_dropout_prob": -0.1}, r"model.hidden_dropout_prob is -0.1"),
    ],
)
def test_config_that_cannot_be_built_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        BertConfig(**SIZES | changes)


@pytest.mark.parametrize("chosen", [[0, 3, 4, 9], [7], [], [5, 2, 5]])
def test_states_and_gradients_of_some_rows_equal_those_of_all(chosen):
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
    )
    model = make_model(config, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(0, 50, (10,), generator=torch.Generator().manual_seed(1))
    positions, cu = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 4, 5]), torch.tensor([0, 4, 10], dtype=torch.int32)
    arguments, rows = (ids, positions, torch.zeros_like(ids), cu, 6), torch.tensor(chosen, dtype=torch.int64)
    weights = torch.randn(len(chosen), 16, generator=torch.Generator().manual_seed(2))
    gradients = []
    for states in (model.body(*arguments)[rows], model.body(*arguments, rows=rows)):
        model.zero_grad()
        (states * weights).sum().backward()
        gradients.append((states.detach(), [p.grad.clone() for p in model.parameters()]))
    (every, all_gradients), (some, some_gradients) = gradients
    torch.testing.assert_close(some, every, rtol=1e-5, atol=1e-6)
    for a, b in zip(some_gradients, all_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
