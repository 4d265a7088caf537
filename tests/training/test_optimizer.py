import math

import pytest
import torch

from stemformer.errors import ConfigError
from stemformer.models.bert import BertConfig
from stemformer.models.model import make_model
from stemformer.training.budget import learning_rate_factor
from stemformer.training.config import ScheduleConfig
from stemformer.training.optimizer import OptimizerConfig, clip_grad_norm, make_optimizer, newton_schulz

KINDS = ["linear", "cosine", "constant", "wsd"]


def factors(num_steps, **config):
    return [learning_rate_factor(step, num_steps, ScheduleConfig(**config)) for step in range(num_steps)]


def small_model():
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    return make_model(config, ["masked_lm"], generator=torch.Generator().manual_seed(0))


# Schedules


@pytest.mark.parametrize("kind", KINDS)
def test_warmup_rises_evenly_to_the_peak(kind):
    assert factors(20, kind=kind, warmup_steps=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_first_step_moves_without_warmup(kind):
    assert factors(20, kind=kind, warmup_steps=0)[0] == 1.0


def test_warmup_ratio_is_a_fraction_of_the_full_run():
    assert factors(40, warmup_ratio=0.25)[:10] == [(step + 1) / 10 for step in range(10)]


def test_warmup_steps_win_over_the_share():
    assert factors(40, warmup_ratio=0.5, warmup_steps=2)[:3] == [0.5, 1.0, 1.0]


def test_linear_falls_evenly_and_its_last_step_still_moves():
    assert factors(8, kind="linear", warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_linear_would_reach_zero_one_step_behind_the_last():
    assert learning_rate_factor(8, 8, ScheduleConfig(warmup_steps=4)) == 0.0


def test_cosine_is_half_way_in_the_middle():
    config = ScheduleConfig(kind="cosine", warmup_steps=0)
    assert learning_rate_factor(50, 100, config) == pytest.approx(0.5)
    assert learning_rate_factor(25, 100, config) == pytest.approx(0.5 + 0.5 * math.cos(math.pi / 4))


def test_constant_stays():
    assert factors(30, kind="constant", warmup_steps=3)[2:] == [1.0] * 28


def test_wsd_stays_and_falls_over_the_last_share():
    got = factors(20, kind="wsd", warmup_steps=2, decay_ratio=0.25)
    assert got == pytest.approx([0.5, *[1.0] * 15, 0.8, 0.6, 0.4, 0.2])


def test_wsd_falls_over_all_that_warmup_leaves_where_the_share_is_larger():
    got = factors(10, kind="wsd", warmup_steps=6, decay_ratio=0.9)
    assert got[6:] == pytest.approx([1.0, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd"])
def test_final_share_is_where_the_fall_ends(kind):
    config = ScheduleConfig(kind=kind, warmup_steps=2, min_lr_ratio=0.1)
    assert learning_rate_factor(100, 100, config) == pytest.approx(0.1)
    assert min(factors(100, kind=kind, warmup_steps=2, min_lr_ratio=0.1)) >= 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("warmup", [0, 1, 5, 1000])
def test_factor_is_above_zero_and_at_most_one_at_every_step(kind, num_steps, warmup):
    assert all(0 < factor <= 1 for factor in factors(num_steps, kind=kind, warmup_steps=warmup))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"warmup_ratio": 1.5}, "schedule.warmup_ratio is 1.5"),
        ({"decay_ratio": -0.1}, "schedule.decay_ratio is -0.1"),
        ({"min_lr_ratio": 2.0}, "schedule.min_lr_ratio is 2.0"),
        ({"warmup_steps": -1}, "schedule.warmup_steps is -1"),
    ],
)
def test_impossible_schedule_is_refused(config, words):
    with pytest.raises(ConfigError, match=words):
        ScheduleConfig(**config)


# The optimizer


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


# ------------------------------------------------------------------------------------------------------------------------------ Muon


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


def test_a_matrix_of_zeros_stays_finite():
    assert newton_schulz(torch.zeros(1, 4, 4)).count_nonzero() == 0


def test_muon_refuses_an_impossible_momentum():
    with pytest.raises(ConfigError, match=r"momentum is 1.0"):
        OptimizerConfig(kind="muon", momentum=1.0)


def test_settings_of_muon_warn_where_they_have_no_effect():
    with pytest.warns(UserWarning, match="no effect with optimizer.kind = 'adamw'"):
        make_optimizer(small_model(), OptimizerConfig(momentum=0.9))


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
