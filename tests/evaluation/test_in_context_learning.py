"""In-context learning metrics: equal to those from transformers, and to known ones of constructed models."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from stemformer.data.examples.batch import Example, collate
from stemformer.data.shards.reader import open_shards
from stemformer.evaluation.in_context_learning import (
    early_and_late,
    induction_scores,
    late_minus_early,
    make_in_context_evaluation,
    repeated_tokens,
)
from stemformer.huggingface.save import save_model
from stemformer.models.gpt import GptConfig
from stemformer.models.llama import Qwen3Config
from stemformer.models.model import make_model
from stemformer.objectives.causal_lm import CausalLm, CausalLmConfig
from stemformer.objectives.masked_lm import SpecialIds

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.1,
    "max_position_embeddings": 48,
    "initializer_range": 0.3,
    "eos_token_id": 3,
}


def random_model(config=GptConfig, **changes):
    return make_model(config(**{**SIZES, **changes}), ["causal_lm"], generator=torch.Generator().manual_seed(0)).eval()


@pytest.fixture
def repeated():
    return repeated_tokens(60, end=3, number=20, texts=5)


@torch.inference_mode()
def theirs_of(ours, folder, ids, **options):
    transformers = pytest.importorskip("transformers")
    save_model(ours, folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return theirs(input_ids=ids, **options)


# Repeated random tokens


def test_tokens_are_repeated_after_an_end_token(repeated):
    batch, num_first = repeated
    rows = batch.input_ids.view(5, 41)
    assert (rows[:, 0] == 3).all() and (rows[:, 1:] != 3).all()
    assert torch.equal(rows[:, 1:21], rows[:, 21:])
    assert torch.equal(batch.labels[:num_first], batch.labels[num_first:])
    assert batch.label_positions[0] == 1 and batch.label_positions[num_first] == 21
    ids, _ = repeated_tokens(60, end=3, number=2000, texts=1)
    assert ids.input_ids[1:].unique().tolist() == [i for i in range(60) if i != 3]


@pytest.mark.parametrize("config", [GptConfig, partial(Qwen3Config, num_key_value_heads=2)])
def test_head_scores_equal_those_from_transformers(config, repeated, tmp_path):
    ours = random_model(config)
    found = induction_scores(ours, repeated)
    attention = theirs_of(ours, tmp_path, repeated[0].input_ids.view(5, 41), output_attentions=True).attentions
    assert found.shape == (3, 4)
    for layer, probabilities in enumerate(attention):  # (S, H, T, T)
        expected = np.mean([[probabilities[s, :, 21 + j, 2 + j].numpy() for j in range(20)] for s in range(5)], (0, 1))
        np.testing.assert_allclose(found[layer], expected, rtol=1e-4, atol=1e-6)
    assert found.std() > 0.003  # heads differ, so a mixed-up order would be seen


def test_head_with_uniform_attention_has_a_uniform_score(repeated):
    ours = random_model()
    for layer in ours.body.layers:
        torch.nn.init.zeros_(layer.attention.qkv.weight)
    expected = np.mean([1 / (22 + j) for j in range(20)])
    np.testing.assert_allclose(induction_scores(ours, repeated), np.full((3, 4), expected), rtol=1e-5)


def test_perfect_induction_head_scores_one(repeated):
    """The head of the second layer attends 19 positions back, to the token after the first occurrence."""
    ours = random_model(hidden_size=48, num_attention_heads=1, num_hidden_layers=2)
    with torch.no_grad():
        for parameter in ours.body.parameters():
            parameter.zero_()
        ours.body.embeddings.position.weight.copy_(torch.eye(48))
        ours.body.layers[1].attention_norm.weight.fill_(1.0)
        query, key, _ = ours.body.layers[1].attention.qkv.weight.view(3, 48, 48).unbind(0)
        key.copy_(torch.eye(48))
        query.copy_(10 * torch.eye(48).roll(-19, 0))
        query[-19:] = 0
    scores = induction_scores(ours, repeated)
    assert scores[1, 0] == pytest.approx(1, abs=1e-3)
    assert scores[0, 0] == pytest.approx(np.mean([1 / (22 + j) for j in range(20)]), rel=1e-5)


def test_repeat_gain_equals_that_from_transformers(repeated, tmp_path):
    ours = random_model()
    ids = repeated[0].input_ids.view(5, 41)
    nats = -theirs_of(ours, tmp_path, ids).logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    expected = nats[:, 1:20].mean() - nats[:, 21:40].mean()
    assert -late_minus_early(ours, [repeated]) == pytest.approx(expected.item(), abs=1e-4)
    assert abs(expected) > 0.01


# Late and early positions


def row(*lengths):
    """Row of sequences with all positions scored; labels encode sequence and position."""
    n = sum(lengths)
    labels = np.concatenate([100 * i + np.arange(length) for i, length in enumerate(lengths)])
    return Example(np.ones(n, np.int64), np.array(lengths), np.arange(n), labels)


def test_positions_are_those_of_sequences_that_fill_a_row():
    batch = collate([row(32), row(28, 4), row(3, 29)], range(3))
    ((chosen, num_early),) = early_and_late([batch], 32, most=9)
    assert chosen.labels.tolist() == [2, 3, 102, 103, 28, 29, 30, 31, 128]
    assert chosen.label_positions.tolist() == [2, 3, 34, 35, 28, 29, 30, 31, 60]
    assert num_early == 4 and chosen.cu_seqlens.tolist() == [0, 32, 61]
    ((fewer, _),) = early_and_late([batch], 32, most=1)
    assert fewer.cu_seqlens.tolist() == [0, 32]


@pytest.mark.parametrize(("lengths", "sequence_length"), [((28, 4), 32), ((7,), 7)])
def test_without_long_sequences_nothing_is_selected(lengths, sequence_length):
    assert early_and_late([collate([row(*lengths)], [0])], sequence_length, most=9) == []


def test_difference_equals_that_from_transformers(tmp_path):
    ours = random_model()
    ids = torch.randint(60, (4, 33), generator=torch.Generator().manual_seed(1))
    examples = [Example(i[:-1].numpy(), np.array([32]), np.arange(32), i[1:].numpy()) for i in ids]
    batches = [collate(examples[:3], range(3)), collate(examples[3:], range(1))]
    nats = -theirs_of(ours, tmp_path, ids[:, :-1]).logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    expected = nats[:, 28:].mean() - nats[:, 2:4].mean()
    assert late_minus_early(ours, early_and_late(batches, 32, most=9)) == pytest.approx(expected.item(), abs=1e-4)


# Combined


@pytest.mark.parametrize(("documents", "sequence_length"), [("apart", 24), ("stream", 32)])
def test_metrics_of_a_held_out_split(tiny, documents, sequence_length):
    shards = open_shards(tiny / "data", "held_out")
    objective = CausalLm(CausalLmConfig(documents=documents), special=SpecialIds(eos=3))
    measure = make_in_context_evaluation(objective.make_examples(shards, sequence_length), objective)
    metrics = measure(random_model(vocab_size=shards.vocab_size).train())
    assert set(metrics) == {"held_out_late_minus_early", "repeat_gain", "induction_score", "heads"}
    assert np.shape(metrics["heads"]) == (3, 4)
    assert metrics["induction_score"] == pytest.approx(np.max(metrics["heads"]), abs=1e-4)
    again = measure(random_model(vocab_size=shards.vocab_size))
    assert again == metrics and all(map(math.isfinite, (metrics["repeat_gain"], metrics["held_out_late_minus_early"])))


def test_too_short_rows_give_no_metrics(tiny):
    shards = open_shards(tiny / "data", "held_out")
    objective = CausalLm(CausalLmConfig(), special=SpecialIds(eos=3))
    assert make_in_context_evaluation(objective.make_examples(shards, 4), objective)(random_model()) == {}
