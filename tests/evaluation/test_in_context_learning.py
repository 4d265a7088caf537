"""What a GPT makes of what it has read: beside transformers' own attention and scores, and on models whose figures are known."""

import math

import numpy as np
import pytest
import torch

from stemformer.data.examples.batch import Example, collate
from stemformer.data.shards.reader import open_shards
from stemformer.evaluation.in_context_learning import (
    early_and_late,
    induction_scores,
    late_minus_early,
    make_in_context,
    repeat_gain,
    repeated_tokens,
)
from stemformer.huggingface.save import save_model
from stemformer.models.gpt import GptConfig
from stemformer.models.model import make_model
from stemformer.objectives.causal_lm import CausalLm, CausalLmConfig

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


def random_model(**changes):
    return make_model(
        GptConfig(**{**SIZES, **changes}), ["causal_lm"], generator=torch.Generator().manual_seed(0)
    ).eval()


@pytest.fixture
def repeated():
    return repeated_tokens(60, end=3, number=20, texts=5)


@torch.inference_mode()
def theirs_of(ours, folder, ids, **options):
    transformers = pytest.importorskip("transformers")
    save_model(ours, folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return theirs(input_ids=ids, **options)


# Random tokens that come twice


def test_tokens_come_twice_behind_an_end(repeated):
    batch, num_first = repeated
    rows = batch.input_ids.view(5, 41)
    assert (rows[:, 0] == 3).all() and (rows[:, 1:] != 3).all()
    assert torch.equal(rows[:, 1:21], rows[:, 21:])
    assert torch.equal(batch.labels[:num_first], batch.labels[num_first:])
    assert batch.label_positions[0] == 1 and batch.label_positions[num_first] == 21
    ids, _ = repeated_tokens(60, end=3, number=2000, texts=1)
    assert ids.input_ids[1:].unique().tolist() == [i for i in range(60) if i != 3]


def test_scores_of_heads_are_those_of_transformers_attention(repeated, tmp_path):
    ours = random_model()
    found = induction_scores(ours, repeated)
    attention = theirs_of(ours, tmp_path, repeated[0].input_ids.view(5, 41), output_attentions=True).attentions
    assert found.shape == (3, 4)
    for layer, of_layer in enumerate(attention):  # (S, H, T, T)
        expected = np.mean([[of_layer[s, :, 21 + j, 2 + j].numpy() for j in range(20)] for s in range(5)], (0, 1))
        np.testing.assert_allclose(found[layer], expected, rtol=1e-4, atol=1e-6)
    assert found.std() > 0.003  # heads differ, so a mixed-up order would be seen


def test_head_that_looks_at_everything_alike_has_its_share(repeated):
    ours = random_model()
    for layer in ours.body.layers:
        torch.nn.init.zeros_(layer.attention.qkv.weight)
    expected = np.mean([1 / (22 + j) for j in range(20)])
    np.testing.assert_allclose(induction_scores(ours, repeated), np.full((3, 4), expected), rtol=1e-5)


def test_head_that_looks_where_it_should_scores_one(repeated):
    """The only head of the second layer looks 19 places back, to what came behind the first time of a token; words say nothing."""
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


def test_gain_of_the_second_time_is_that_of_transformers_scores(repeated, tmp_path):
    ours = random_model()
    ids = repeated[0].input_ids.view(5, 41)
    nats = -theirs_of(ours, tmp_path, ids).logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    expected = nats[:, 1:20].mean() - nats[:, 21:40].mean()
    assert repeat_gain(ours, repeated) == pytest.approx(expected.item(), abs=1e-4)
    assert abs(expected) > 0.01


# Late and early places of a row


def row(*lengths):
    """A row of sequences whose places are all scored, with labels that tell sequence and place."""
    n = sum(lengths)
    labels = np.concatenate([100 * i + np.arange(length) for i, length in enumerate(lengths)])
    return Example(np.ones(n, np.int64), np.array(lengths), np.arange(n), labels)


def test_places_are_those_of_sequences_that_fill_a_row():
    batch = collate([row(32), row(28, 4), row(3, 29)], range(3))
    ((chosen, num_early),) = early_and_late([batch], 32, most=9)
    assert chosen.labels.tolist() == [2, 3, 102, 103, 28, 29, 30, 31, 128]
    assert chosen.label_positions.tolist() == [2, 3, 34, 35, 28, 29, 30, 31, 60]
    assert num_early == 4 and chosen.cu_seqlens.tolist() == [0, 32, 61]
    ((fewer, _),) = early_and_late([batch], 32, most=1)
    assert fewer.cu_seqlens.tolist() == [0, 32]


@pytest.mark.parametrize(("lengths", "row_length"), [((28, 4), 32), ((7,), 7)])
def test_without_long_sequences_there_is_nothing_to_compare(lengths, row_length):
    assert early_and_late([collate([row(*lengths)], [0])], row_length, most=9) == []


def test_difference_is_of_the_mean_losses_by_transformers(tmp_path):
    ours = random_model()
    ids = torch.randint(60, (4, 33), generator=torch.Generator().manual_seed(1))
    examples = [Example(i[:-1].numpy(), np.array([32]), np.arange(32), i[1:].numpy()) for i in ids]
    batches = [collate(examples[:3], range(3)), collate(examples[3:], range(1))]
    nats = -theirs_of(ours, tmp_path, ids[:, :-1]).logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    expected = nats[:, 28:].mean() - nats[:, 2:4].mean()
    assert late_minus_early(ours, early_and_late(batches, 32, most=9)) == pytest.approx(expected.item(), abs=1e-4)


# Together


@pytest.mark.parametrize(("documents", "row_length"), [("apart", 24), ("stream", 32)])
def test_figures_of_a_held_out_split(tiny, documents, row_length):
    shards = open_shards(tiny / "data", "held_out")
    objective = CausalLm(CausalLmConfig(documents=documents), end=3)
    measure = make_in_context(objective.make_examples(shards, row_length), objective)
    told = measure(random_model(vocab_size=shards.vocab_size).train())
    assert set(told) == {"held_out_late_minus_early", "repeat_gain", "induction_score", "heads"}
    assert np.shape(told["heads"]) == (3, 4)
    assert told["induction_score"] == pytest.approx(np.max(told["heads"]), abs=1e-4)
    again = measure(random_model(vocab_size=shards.vocab_size))
    assert again == told and all(map(math.isfinite, (told["repeat_gain"], told["held_out_late_minus_early"])))


def test_rows_too_short_for_anything_give_nothing(tiny):
    shards = open_shards(tiny / "data", "held_out")
    objective = CausalLm(CausalLmConfig(), end=3)
    assert make_in_context(objective.make_examples(shards, 4), objective)(random_model()) == {}
