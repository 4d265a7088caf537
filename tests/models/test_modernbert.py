import pytest
import torch

from stemformer.errors import ConfigError
from stemformer.models.layers import GatedFeedForward, initialize_weights
from stemformer.models.model import make_model
from stemformer.models.modernbert import ModernBert, ModernBertConfig

SIZES = {"vocab_size": 60, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}
CONFIG = ModernBertConfig(**SIZES, num_hidden_layers=3)


def body(config=CONFIG):
    made = ModernBert(config)
    initialize_weights(made, std=config.initializer_range, generator=torch.Generator().manual_seed(0))
    return made.eval()


def flat(lengths):
    ids = torch.randint(0, 60, (sum(lengths),), generator=torch.Generator().manual_seed(0))
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    return ids, torch.cat([torch.arange(n) for n in lengths]), torch.zeros_like(ids), cu_seqlens, max(lengths)


def test_no_weight_but_the_output_over_the_vocabulary_has_a_bias():
    model = make_model(CONFIG, ["masked_lm"], generator=torch.Generator())
    assert [name for name, _ in model.named_parameters() if name.endswith("bias")] == ["heads.masked_lm.bias"]


def test_initial_queries_and_keys_of_normed_states_have_variance_one():
    layer = body().layers[1]
    states = torch.nn.functional.layer_norm(torch.randn(500, 64), (64,))
    q, k, v = layer.attention.qkv(states).chunk(3, 1)
    assert q.std().item() == pytest.approx(1, abs=0.1) and k.std().item() == pytest.approx(1, abs=0.1)
    assert v.std().item() == pytest.approx(1, abs=0.1)


def test_initial_outputs_of_feed_forward_layers_are_divided_by_the_root_of_twice_their_number():
    assert body().layers[0].feed_forward.down.weight.std().item() == pytest.approx(0.02 / 6**0.5, rel=0.1)


def test_initial_attention_adds_a_fraction_of_the_mean_of_what_it_sees():
    attention, (_, _, _, cu_seqlens, longest) = body().layers[1].attention, flat([6])
    attention.qkv.weight.data[:128] = 0  # equal scores
    x = torch.randn(6, 64)
    torch.testing.assert_close(attention(x, cu_seqlens, longest), 0.3 * x.mean(0).expand(6, 64), atol=1e-5, rtol=1e-5)


def test_initial_masked_lm_scores_are_about_inner_products_with_the_embeddings():
    model = make_model(CONFIG, ["masked_lm"], generator=torch.Generator().manual_seed(0))
    embeddings = torch.nn.functional.normalize(model.body.embeddings.word.weight.detach(), dim=1)
    states = 8 * embeddings  # normed, as those of the body are
    scores = model.lm_logits(states)
    expected = embeddings @ embeddings.t()
    assert torch.corrcoef(torch.stack([scores.flatten(), expected.flatten()]))[0, 1] > 0.7
    assert (scores.argmax(1) == torch.arange(len(scores))).float().mean() > 0.9


def test_position_matters_only_relative_to_others():
    ids, positions, types, cu_seqlens, longest = flat([6, 9])
    found = body()(ids, positions + 11, types, cu_seqlens, longest)
    torch.testing.assert_close(found, body()(ids, positions, types, cu_seqlens, longest), atol=1e-5, rtol=1e-5)


def test_order_of_tokens_matters():
    ids, positions, *rest = flat([6])
    found = body()(ids, positions.flip(0), *rest)
    assert (found - body()(ids, positions, *rest)).abs().max() > 1e-3


def test_sliding_layers_see_only_nearby_tokens():
    sliding = ModernBertConfig(**SIZES, num_hidden_layers=1, layer_types=("sliding_attention",), local_attention=4)
    model, (ids, *rest) = body(sliding), flat([12])
    changed = ids.clone()
    changed[0] = (ids[0] + 1) % 60
    difference = (model(ids, *rest) - model(changed, *rest)).abs().amax(1)
    assert (difference[:3] > 0).all() and not difference[3:].any()


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_gated_layer_and_its_gradients_equal_the_formula(activation):
    layer = GatedFeedForward(16, 24, activation=activation)
    results = []
    for plain in (False, True):
        x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
        if plain:
            a, b = layer.up(x).chunk(2, -1)
            out = layer.down(layer.activation(a) * b)
        else:
            out = layer(x)
        out.square().sum().backward()
        results.append((out.detach(), x.grad, layer.up.weight.grad, layer.down.weight.grad))
        layer.zero_grad()
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 64}, "heads of an odd size; rotary positions need an even one"),
        ({"layer_types": ("full",)}, "has 'full'; expected full_attention or sliding_attention"),
        ({"layer_types": ("full_attention",)}, "has 1 entries for 3 layers"),
        ({"global_rope_theta": 0.5}, "a number above 1"),
        ({"local_attention": 1}, "at least 2"),
    ],
)
def test_config_that_cannot_be_built_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        ModernBertConfig(**{**SIZES, "num_hidden_layers": 3, **changes})
