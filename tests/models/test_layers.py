import pytest
import torch
from torch import nn

from stemformer.models.layers import (
    ACTIVATIONS,
    Dropout,
    FeedForward,
    GatedFeedForward,
    MultiHeadAttention,
    pad_to_bucket,
    rms_norm,
)

# 2^20 values: the share of zeros has a standard deviation of at most sqrt(0.25 / 2^20) = 0.0005; allow four.
MANY, SPREAD = 2**20, 0.002


def dropped(rate, *, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return Dropout(rate).train()(torch.ones(MANY, dtype=dtype))


@pytest.mark.parametrize(("rate", "rounded"), [(0.1, 26 / 256), (0.5, 0.5), (0.9, 230 / 256), (0.999, 255 / 256)])
def test_dropout_zeroes_its_rounded_rate(rate, rounded):
    assert abs((dropped(rate) == 0).float().mean().item() - rounded) < SPREAD


@pytest.mark.parametrize(("rate", "rounded"), [(0.1, 26 / 256), (0.5, 0.5), (0.999, 255 / 256)])
def test_dropout_scales_the_other_values_by_the_rounded_rate(rate, rounded):
    kept = dropped(rate)
    torch.testing.assert_close(kept[kept != 0].unique(), torch.tensor([1 / (1 - rounded)]))  # float32 rounding


def test_dropout_gradient_is_its_mask_and_scale():
    torch.manual_seed(0)
    x = torch.randn(1000, requires_grad=True)
    y = Dropout(0.3).train()(x)
    y.sum().backward()
    assert torch.equal(y, x * x.grad) and 0 < x.grad.count_nonzero() < 1000


def test_dropout_keeps_the_dtype():
    assert dropped(0.1, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("size", [1, 7, 8, 9, 1001])
def test_dropout_accepts_sizes_not_divisible_by_eight(size):
    torch.manual_seed(0)
    assert Dropout(0.5).train()(torch.ones(size, 1)).shape == (size, 1)


def test_dropout_of_adjacent_values_is_independent():
    # Eight values share one random word: pairs at every distance within it must agree half of the time.
    kept = dropped(0.5) != 0
    for distance in range(1, 9):
        agree = (kept[distance:] == kept[:-distance]).float().mean().item()
        assert abs(agree - 0.5) < SPREAD, distance


def test_dropout_in_evaluation_changes_nothing():
    x = torch.linspace(-1, 1, 50)
    assert Dropout(0.5).eval()(x) is x


@pytest.mark.parametrize("rate", [0.0, 0.001])
def test_dropout_of_a_rate_that_rounds_to_zero_changes_nothing(rate):
    x = torch.linspace(-1, 1, 50)
    assert Dropout(rate).train()(x) is x


def test_dropout_repeats_with_the_same_seed():
    assert torch.equal(dropped(0.3, seed=5), dropped(0.3, seed=5))


def test_dropout_differs_with_another_seed():
    assert not torch.equal(dropped(0.3, seed=5), dropped(0.3, seed=6))


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_dropout_refuses_invalid_rates(rate):
    with pytest.raises(ValueError, match="dropout rate"):
        Dropout(rate)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_equals_that_of_transformers(name):
    theirs = pytest.importorskip("transformers.activations").ACT2FN[name]
    x = torch.linspace(-5, 5, 101)
    torch.testing.assert_close(ACTIVATIONS[name]()(x), theirs(x))  # their tanh form sums in another order


def test_feed_forward_is_two_linears_with_an_activation_between():
    torch.manual_seed(0)
    layer = FeedForward(6, 10, activation="relu")
    x = torch.randn(5, 6)
    assert torch.equal(layer(x), nn.functional.linear(layer.up(x).relu(), layer.down.weight, layer.down.bias))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_layer_equals_that_of_torch(causal):
    torch.manual_seed(0)
    ours, theirs = MultiHeadAttention(12, 3, causal=causal), nn.MultiheadAttention(12, 3, batch_first=True)
    ours.load_state_dict(
        {
            "qkv.weight": theirs.in_proj_weight,
            "qkv.bias": torch.randn(36),
            "out.weight": theirs.out_proj.weight,
            "out.bias": theirs.out_proj.bias,
        }
    )
    theirs.in_proj_bias.data.copy_(ours.qkv.bias)
    x = torch.randn(9, 12)
    mask = torch.triu(torch.ones(9, 9, dtype=torch.bool), 1) if causal else None
    expected = theirs(x[None], x[None], x[None], attn_mask=mask, need_weights=False)[0][0]
    found = ours(x, torch.tensor([0, 9], dtype=torch.int32), 9)
    torch.testing.assert_close(found, expected)  # torch's defaults for float32: sums in another order


@pytest.mark.parametrize(("n", "rows"), [(0, 0), (1, 1), (63, 63), (65, 66), (2001, 2016), (2016, 2016)])
def test_padding_is_zeros_and_few_rows(n, rows):
    x = torch.ones(n, 3)
    padded = pad_to_bucket(x)
    assert padded.shape == (rows, 3) and rows <= n * 33 / 32
    assert torch.equal(padded[:n], x) and padded[n:].count_nonzero() == 0


@pytest.mark.parametrize(("n", "rows"), [(0, 0), (1, 32), (32, 32), (33, 64), (2001, 2016), (4097, 4224)])
def test_padding_to_a_multiple_is_on_the_cpu_only(n, rows):
    x = torch.arange(n)
    padded = pad_to_bucket(x, multiple=32)
    assert len(padded) == len(pad_to_bucket(padded)) == rows and torch.equal(padded[:n], x)
    assert len(pad_to_bucket(torch.empty(n, device="meta"), multiple=32)) == n


def test_few_bucket_sizes_occur():
    assert len({len(pad_to_bucket(torch.empty(n, 0))) for n in range(1024, 2048)}) <= 33


def values_and_gradients(function, *inputs):
    """Return the output of a function and the gradients of its inputs, for an output gradient of random numbers."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    y = function(*inputs)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return [y.detach(), *torch.autograd.grad(y, inputs, upstream.to(y.dtype))]


@pytest.mark.parametrize("shape", [(7, 32), (7, 3, 16)])
def test_rms_norm_is_that_of_pytorch_with_its_gradients(shape):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(shape, generator=generator), torch.randn(shape[-1], generator=generator)
    found = values_and_gradients(lambda x, w: rms_norm(x, w, 1e-6), x, weight)
    expected = values_and_gradients(lambda x, w: nn.functional.rms_norm(x, w.shape, w, 1e-6), x, weight)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    # Also of a part of a tensor, such as the queries.
    part = torch.cat([x, x], -1).unflatten(-1, (2, shape[-1]))[..., 0, :]
    assert torch.equal(rms_norm(part, weight, 1e-6), rms_norm(x, weight, 1e-6))


def test_rms_norm_of_bfloat16_is_computed_in_float32():
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight = torch.rand(64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(rms_norm(x, weight, 1e-6), rms_norm(x.float(), weight, 1e-6).bfloat16())


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "silu", "relu", "relu2"])
def test_gate_is_the_activation_of_one_half_times_the_other(activation):
    layer = GatedFeedForward(8, 16, activation=activation)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    found = values_and_gradients(layer.gate, x)
    expected = values_and_gradients(lambda x: ACTIVATIONS[activation]()(x[:, :16]) * x[:, 16:], x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_heads_of_a_group_share_keys_and_values():
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    grouped = MultiHeadAttention(32, 4, num_key_value_heads=2, causal=True)
    full = MultiHeadAttention(32, 4, causal=True)
    full.load_state_dict(grouped.state_dict() | repeated_keys_and_values(grouped))
    cu_seqlens = torch.tensor([0, 2, 6], dtype=torch.int32)
    torch.testing.assert_close(grouped(x, cu_seqlens, 4), full(x, cu_seqlens, 4))


def repeated_keys_and_values(attention):
    """Return `qkv` of an attention of full heads that equals one of two groups of two heads."""
    state = {}
    for kind in ("weight", "bias"):
        q, k, v = getattr(attention.qkv, kind).split((32, 16, 16))
        k, v = (part.unflatten(0, (2, 8)).repeat_interleave(2, 0).flatten(0, 1) for part in (k, v))
        state[f"qkv.{kind}"] = torch.cat([q, k, v])
    return state
