import numpy as np
import pytest
import torch

from stemformer.models.embeddings import KeptGradients, look_up
from stemformer.models.llama import LlamaConfig
from stemformer.models.model import make_model
from stemformer.models.modernbert import ModernBertConfig
from stemformer.objectives.causal_lm import CausalLmConfig
from stemformer.objectives.masked_lm import MaskedLmConfig, SpecialIds
from stemformer.objectives.objective import lookup_only_weights, make_objective
from stemformer.objectives.sampled_softmax import lm_loss_sum
from stemformer.training.initialization import keep_lookup_gradients

V, D = 60, 16
SIZES = {"vocab_size": V, "hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
COUNTS = np.arange(V)[::-1].astype(np.uint64)


def make(kind, *, size):
    """Return a model with tied or untied output and its objective, whose softmax sums over `size` ids (0: all)."""
    if kind == "tied":
        model, config = make_model(ModernBertConfig(**SIZES), ["masked_lm"]), MaskedLmConfig(sampled_softmax=size)
    else:
        model = make_model(LlamaConfig(**SIZES), ["causal_lm"], tied=False)
        config = CausalLmConfig(sampled_softmax=size)
    return model, make_objective(config, special=SpecialIds(1, 2, 3, 4), vocab_size=V, unigram_counts=COUNTS)


def add_gradients(model, objective, seed):
    torch.manual_seed(seed)
    ids = torch.randint(5, V, (12,))
    labels = torch.randint(5, V, (12,))
    states = model.body(ids, torch.arange(12), torch.zeros(12, dtype=torch.long), torch.tensor([0, 12]).int(), 12)
    lm_loss_sum(model, states, labels, objective.sampled_softmax).total.backward()


@pytest.mark.parametrize(
    ("kind", "size", "number"), [("tied", 20, 1), ("tied", 0, 0), ("untied", 20, 2), ("untied", 0, 1)]
)
def test_kept_gradients_are_the_dense_ones_of_each_step(kind, size, number):
    (model, objective), (other, _) = make(kind, size=size), make(kind, size=size)
    other.load_state_dict(model.state_dict())
    weights = lookup_only_weights(model, objective)
    assert len(weights) == number
    kept = KeptGradients(weights)
    for step in range(3):
        for micro_batch in range(2):
            for each in (model, other):
                add_gradients(each, objective, 2 * step + micro_batch)
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, atol=1e-6, rtol=1e-5)
        for each in (model, other):
            each.zero_grad(set_to_none=True)
        kept.clear()
        assert all(weight.grad is not None and not weight.grad.any() for weight in weights)


def test_ids_of_evaluation_are_not_remembered():
    weight = torch.nn.Parameter(torch.randn(V, D))
    KeptGradients([weight])
    with torch.no_grad():
        look_up(weight, torch.tensor([1, 2]))
    assert weight.ids_used == []
    look_up(weight, torch.tensor([[3, 4]]))
    assert [ids.tolist() for ids in weight.ids_used] == [[3, 4]]


def test_a_model_prepared_again_has_the_gradients_of_its_new_objective():
    model, sampled = make("tied", size=20)
    other, full = make("tied", size=0)
    other.load_state_dict(model.state_dict())
    keep_lookup_gradients(model, sampled)
    add_gradients(model, sampled, 0)
    keep_lookup_gradients(model, full)
    for seed in range(2):
        for each in (model, other):
            each.zero_grad(set_to_none=True)
            each.kept_gradients.clear()
            add_gradients(each, full, seed)
        torch.testing.assert_close(model.body.embeddings.word.weight.grad, other.body.embeddings.word.weight.grad)


def test_frozen_embeddings_get_no_gradient():
    model, sampled = make("tied", size=20)
    model.body.embeddings.requires_grad_(False)
    keep_lookup_gradients(model, sampled)
    add_gradients(model, sampled, 0)
    model.kept_gradients.clear()
    assert model.body.embeddings.word.weight.grad is None
