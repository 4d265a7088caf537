import numpy as np
import pytest
import torch

from stemformer.errors import ConfigError
from stemformer.models.bert import BertConfig
from stemformer.models.model import make_model
from stemformer.objectives.causal_lm import CausalLmConfig
from stemformer.objectives.losses import linear_cross_entropy_sum
from stemformer.objectives.masked_lm import MaskedLmConfig, SpecialIds
from stemformer.objectives.objective import make_objective, num_softmax_ids
from stemformer.objectives.sampled_softmax import SampledSoftmax, lm_loss_sum

V, D, M = 300, 8, 40


def inputs(seed=0, *, with_bias=True):
    """Return states, weight and bias that need gradients, and labels of which some are not scored."""
    generator = torch.Generator().manual_seed(seed)
    states, weight = (torch.randn(n, D, generator=generator, requires_grad=True) for n in (M, V))
    bias = torch.randn(V, generator=generator, requires_grad=True) if with_bias else None
    labels = torch.randint(V, (M,), generator=generator)
    labels[::7] = -100
    return states, weight, bias, labels


def counts(seed=0):
    return np.random.default_rng(seed).integers(0, 1000, V).astype(np.uint64)


def test_ids_are_the_most_frequent_the_labels_and_others_once_each():
    torch.manual_seed(0)
    frequency = counts()
    ids, log_weights = SampledSoftmax(frequency, size=90).sample(torch.tensor([5, 5, 17, 200, 299]))
    assert len(ids) == len(ids.unique()) == 90
    assert set(np.argsort(-frequency.astype(np.int64), kind="stable")[:60].tolist()) | {5, 17, 200, 299} <= set(
        ids.tolist()
    )
    # The sampled ids are weighted so that there are V in all.
    weights = log_weights.exp()
    assert set(weights[:60].tolist()) == {1.0}
    assert float(weights.sum()) == pytest.approx(V)


def test_the_seed_determines_the_sample():
    softmax, labels = SampledSoftmax(counts(), size=90), torch.tensor([1])
    samples = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        samples.append(softmax.sample(labels)[0])
    assert torch.equal(samples[0], samples[2])
    assert not torch.equal(samples[0], samples[1])


def test_the_sample_grows_with_the_number_of_rare_labels():
    ids, _ = SampledSoftmax(counts(), size=30).sample(torch.arange(V))
    assert ids.sort().values.tolist() == list(range(V))
    ids, log_weights = SampledSoftmax(counts(), size=30).sample(torch.arange(100))
    assert int((log_weights > 0).sum()) == len(ids) // 2 - 10


@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_are_those_of_the_softmax_over_the_sampled_ids(with_bias):
    states, weight, bias, labels = inputs(with_bias=with_bias)
    softmax = SampledSoftmax(counts(), size=90)
    torch.manual_seed(0)
    loss = softmax.loss_sum(states, weight, bias, labels)
    assert (loss.count, loss.correct) == (M, None)
    parameters = [x for x in (states, weight, bias) if x is not None]
    found = torch.autograd.grad(loss.total, parameters)

    torch.manual_seed(0)
    ids, log_weights = softmax.sample(labels[labels >= 0])
    offsets = torch.full((V,), -torch.inf)
    offsets[ids] = log_weights
    logits = states @ weight.T + offsets + (0 if bias is None else bias)
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(loss.total, expected)
    for a, b in zip(found, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_sum_of_the_softmax_is_that_over_all_ids_in_the_mean():
    states, weight, bias = (x.detach() for x in inputs()[:3])
    states, labels, softmax = states[:1], torch.tensor([3]), SampledSoftmax(counts(), size=60)
    sums = []
    for seed in range(4000):
        torch.manual_seed(seed)
        ids, log_weights = softmax.sample(labels)
        sums.append(float((states @ weight[ids].T + bias[ids] + log_weights).exp().sum()))
    exact = float((states @ weight.T + bias).exp().sum())
    assert np.mean(sums) == pytest.approx(exact, abs=4 * np.std(sums) / len(sums) ** 0.5)
    assert np.std(sums) > 0.05 * exact


def test_mean_loss_of_many_samples_is_near_the_exact_one():
    states, weight, bias, labels = inputs()
    softmax = SampledSoftmax(counts(), size=150)
    torch.manual_seed(0)
    with torch.no_grad():
        weight *= 0.3  # the log of the sum is nearer to the sum's if scores differ less
        exact = float(linear_cross_entropy_sum(states, weight, bias, labels).total)
        losses = [float(softmax.loss_sum(states, weight, bias, labels).total) for _ in range(300)]
    assert np.mean(losses) == pytest.approx(exact, rel=0.02)


def test_loss_without_gradients_is_exact():
    config = BertConfig(vocab_size=V, hidden_size=D, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = make_model(config, ["masked_lm"], generator=torch.Generator().manual_seed(0))
    states, _, _, labels = inputs()
    softmax = SampledSoftmax(counts(), size=90)
    torch.manual_seed(0)
    estimate = lm_loss_sum(model, states, labels, softmax)
    with torch.no_grad():
        exact = lm_loss_sum(model, states, labels, softmax)
        expected = linear_cross_entropy_sum(*model.lm_projection(states), labels)
    assert exact.correct is not None and torch.equal(exact.total, expected.total)
    assert not torch.equal(estimate.total, expected.total)


@pytest.mark.parametrize(("size", "is_sampled"), [(0, False), (V, False), (V - 1, True)])
@pytest.mark.parametrize("make_config", [MaskedLmConfig, CausalLmConfig])
def test_objective_samples_if_the_vocabulary_is_larger(make_config, size, is_sampled):
    config = make_config(sampled_softmax=size)
    special = SpecialIds(cls=1, sep=2, mask=3, eos=0)
    objective = make_objective(config, special=special, vocab_size=V, unigram_counts=counts())
    assert (num_softmax_ids(objective) == size) == is_sampled
    assert num_softmax_ids(make_objective(config, special=special, vocab_size=V)) is None


@pytest.mark.parametrize("make_config", [MaskedLmConfig, CausalLmConfig])
def test_a_negative_size_is_refused(make_config):
    with pytest.raises(ConfigError, match="sampled_softmax is -1: expected 0 or more"):
        make_config(sampled_softmax=-1)
