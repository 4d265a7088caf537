import math

import pytest
import torch

from stemformer.errors import ConfigError
from stemformer.models.bert import BertConfig
from stemformer.models.model import make_model
from stemformer.training.optimizer import OptimizerConfig, clip_grad_norm, finetuning_learning_rate, make_optimizer


def small_model():
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    return make_model(config, ["masked_lm"], generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"learning_rate": 0.0}, "optimizer.learning_rate is 0.0"),
        ({"learning_rate": float("nan")}, "optimizer.learning_rate is nan"),
        ({"beta1": 1.0}, r"optimizer\.beta1 is 1\.0: expected a number in \[0, 1\)"),
        ({"eps": -1e-6}, r"optimizer\.eps is -1e-06: expected 0 or more"),
        ({"weight_decay": -0.1}, r"optimizer\.weight_decay is -0\.1: expected 0 or more"),
        ({"max_grad_norm": -1.0}, r"optimizer\.max_grad_norm is -1\.0: expected 0 or more"),
    ],
)
def test_impossible_optimizer_is_refused(config, words):
    with pytest.raises(ConfigError, match=words):
        OptimizerConfig(**config)


@pytest.mark.parametrize(
    ("hidden_size", "rate"),
    [(32, 1e-3), (128, 1e-3), (256, 2.7e-4), (384, 1.2e-4), (512, 6.8e-5), (768, 3e-5), (1024, 3e-5)],
)
def test_default_rate_of_finetuning_is_higher_for_smaller_models(hidden_size, rate):
    assert finetuning_learning_rate(hidden_size) == rate


def test_matrices_decay_and_biases_and_norms_do_not():
    model = small_model()
    optimizer = make_optimizer(model, OptimizerConfig(weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        expected = 0.0 if name.endswith("bias") or "norm" in name else 0.3
        assert decay[id(parameter)] == expected, name


def test_each_parameter_is_in_one_group():
    model = small_model()
    ids = [id(p) for group in make_optimizer(model, OptimizerConfig()).param_groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())


def test_parameters_without_gradient_are_left_out():
    model = small_model()
    model.body.embeddings.requires_grad_(False)
    ids = {id(p) for group in make_optimizer(model, OptimizerConfig()).param_groups for p in group["params"]}
    assert ids == {id(p) for p in model.parameters() if p.requires_grad}


def test_optimizer_takes_the_rates_of_its_config():
    config = OptimizerConfig(learning_rate=3e-4, beta1=0.8, beta2=0.95, eps=1e-7)
    for group in make_optimizer(small_model(), config).param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (3e-4, (0.8, 0.95), 1e-7)


def test_step_is_that_of_the_published_algorithm():
    parameter = torch.nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        parameter.weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
    optimizer = make_optimizer(parameter, OptimizerConfig(learning_rate=0.1, weight_decay=0.2, eps=1e-6))
    parameter.weight.grad = torch.tensor([[0.3, -0.1, 2.0]])
    optimizer.step()
    # Algorithm 2 of Loshchilov and Hutter at its first step: the bias-corrected mean over root is g / (|g| + eps).
    w, g = torch.tensor([[1.0, -2.0, 0.5]]).double(), torch.tensor([[0.3, -0.1, 2.0]]).double()
    expected = w * (1 - 0.1 * 0.2) - 0.1 * g / (g.abs() + 1e-6)
    torch.testing.assert_close(parameter.weight.detach().double(), expected, rtol=1e-6, atol=0)  # float32


# Clipping


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("longest", [0.5, 1e3, 0.0])
def test_clipped_step_is_that_of_gradients_that_are_scaled_first(kind, longest):
    config = OptimizerConfig(kind=kind, learning_rate=1e-2)
    ours, theirs = small_model(), small_model()
    optimizers = [make_optimizer(model, config) for model in (ours, theirs)]
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        norm = clip_grad_norm(optimizers[0], ours.parameters(), longest)
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), longest or math.inf)
        assert norm == expected > 0.5
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)  # dividing in place of multiplying: the last bit


def test_short_gradient_after_a_long_one_is_not_scaled():
    model = small_model()
    optimizer = make_optimizer(model, OptimizerConfig())
    for size in (10.0, 1e-3):
        for p in model.parameters():
            p.grad = torch.full_like(p, size)
        clip_grad_norm(optimizer, model.parameters(), 1.0)
    optimizer.step()
    assert all(torch.equal(p.grad, torch.full_like(p, 1e-3)) for p in model.parameters())
