import pytest
import torch

from stemformer.errors import ConfigError
from stemformer.models.bert import BertConfig
from stemformer.models.llama import LlamaConfig
from stemformer.models.model import make_model
from stemformer.training.muon import newton_schulz
from stemformer.training.optimizer import OptimizerConfig, make_optimizer


def small_model():
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    return make_model(config, ["masked_lm"], generator=torch.Generator().manual_seed(0))


def muon(model, **values):
    return make_optimizer(model, OptimizerConfig(kind="muon", **values))


def with_gradients(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return model


def test_muon_moves_the_matrices_of_the_layers_and_adamw_the_rest():
    ours, adamw = with_gradients(small_model()), with_gradients(small_model())
    before = {name: p.detach().clone() for name, p in ours.named_parameters()}
    muon(ours).step()
    make_optimizer(adamw, OptimizerConfig()).step()
    theirs = dict(adamw.named_parameters())
    for name, parameter in ours.named_parameters():
        is_matrix = ".layers." in name and parameter.ndim == 2
        assert torch.equal(parameter, theirs[name]) != is_matrix, name
        assert not torch.equal(parameter, before[name]), name


def test_muon_step_is_that_of_the_published_algorithm():
    model = with_gradients(small_model())
    weight = model.body.layers[0].feed_forward.up.weight
    before, momentum = weight.detach().clone(), torch.zeros_like(weight)
    optimizer = muon(model, learning_rate=0.01, muon_lr_multiplier=3.0, momentum=0.9, weight_decay=0.1)
    for seed in (1, 2):
        with_gradients(model, seed)
        optimizer.step()
        momentum = 0.9 * momentum + 0.1 * weight.grad
        x = newton_schulz((0.1 * weight.grad + 0.9 * momentum)[None])[0]
        before = before * (1 - 0.03 * 0.1) - 0.03 * 0.2 * max(weight.shape) ** 0.5 * x
    torch.testing.assert_close(weight.detach(), before, rtol=1e-5, atol=1e-7)


def test_muon_with_an_interval_updates_matrices_at_times_and_the_rest_at_each_step():
    model = with_gradients(small_model())
    weight, bias = model.body.layers[0].feed_forward.up.weight, model.body.layers[0].feed_forward.up.bias
    first, momentum = weight.detach().clone(), torch.zeros_like(weight)
    options = {"learning_rate": 0.01, "muon_lr_multiplier": 3.0, "momentum": 0.9, "weight_decay": 0.1}
    optimizer = muon(model, **options, muon_interval=3)
    for seed in (1, 2, 3):
        assert torch.equal(weight, first)
        with_gradients(model, seed)
        before = bias.detach().clone()
        optimizer.step()
        assert not torch.equal(bias, before)
        momentum = 0.9 * momentum + 0.1 * weight.grad
    x = newton_schulz((0.1 * weight.grad + 0.9 * momentum)[None])[0]
    expected = first * (1 - 0.09 * 0.1) - 0.09 * 0.2 * max(weight.shape) ** 0.5 * x
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-5, atol=1e-7)


def test_muon_takes_query_key_and_value_for_three_matrices():
    model = with_gradients(small_model())
    weight = model.body.layers[0].attention.qkv.weight
    before, gradient = weight.detach().clone(), weight.grad.clone()
    muon(model, learning_rate=1.0, muon_lr_multiplier=1.0, weight_decay=0.0).step()
    d = weight.shape[1]
    for part in range(3):
        rows = slice(part * d, (part + 1) * d)
        moved = (before - weight.detach())[rows] / (0.2 * d**0.5)
        torch.testing.assert_close(moved, newton_schulz(gradient[rows][None])[0], rtol=1e-4, atol=1e-5)


def test_muon_takes_query_key_and_value_of_grouped_heads_for_matrices_of_their_own_size():
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16}
    config = LlamaConfig(vocab_size=20, **sizes, num_key_value_heads=2, head_size=6)
    model = with_gradients(make_model(config, ["causal_lm"], generator=torch.Generator().manual_seed(0)))
    weight = model.body.layers[1].attention.qkv.weight
    before, gradient = weight.detach().clone(), weight.grad.clone()
    muon(model, learning_rate=1.0, muon_lr_multiplier=1.0, weight_decay=0.0).step()
    for rows in (slice(24), slice(24, 36), slice(36, 48)):
        moved = (before - weight.detach())[rows] / (0.2 * max(gradient[rows].shape) ** 0.5)
        torch.testing.assert_close(moved, newton_schulz(gradient[rows][None])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 16, 4), (2, 4, 16)])
def test_orthogonalized_matrices_keep_their_directions(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = newton_schulz(matrices)
    assert found.shape == matrices.shape
    values = torch.linalg.svdvals(found)
    assert float(values.min()) > 0.5 and float(values.max()) < 1.3
    before_u, _, before_vh = torch.linalg.svd(matrices, full_matrices=False)
    # The singular vectors stay: the product with the exact orthogonal factor is symmetric and positive.
    exact = before_u @ before_vh
    torch.testing.assert_close((exact.mT @ found), (exact.mT @ found).mT, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_end_near_one_however_unlike_they_are(dtype):
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(64, 64, generator=generator))[0] for _ in range(2))
    values = torch.logspace(0, -2, 64)
    assert float(values.min() / values.norm()) > 0.003
    found = newton_schulz(((u * values) @ v)[None].to(dtype))[0].float()
    diagonal = (u.T @ found @ v.T).diagonal()
    assert float(diagonal.min()) > 0.78 and float(diagonal.max()) < 1.23


def test_a_matrix_of_zeros_stays_finite():
    assert newton_schulz(torch.zeros(1, 4, 4)).count_nonzero() == 0


def test_muon_refuses_an_impossible_momentum():
    with pytest.raises(ConfigError, match=r"momentum is 1.0"):
        OptimizerConfig(kind="muon", momentum=1.0)


def test_settings_of_muon_warn_where_they_have_no_effect():
    with pytest.warns(UserWarning, match="no effect with optimizer.kind = 'adamw'"):
        make_optimizer(small_model(), OptimizerConfig(momentum=0.9))
