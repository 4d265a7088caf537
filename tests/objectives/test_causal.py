"""Next words: what is asked, that nothing is asked twice or left out, and the loss beside transformers'."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from stemformer.data.batches import collate, example_generator
from stemformer.data.shards import open_shards
from stemformer.models.gpt import GptConfig
from stemformer.models.model import make_model
from stemformer.objectives.causal import CausalLm, CausalLmConfig
from stemformer.objectives.sentence_pairs import WithLoss
from stemformer.pretrained import save_model

END = 3


@pytest.fixture(scope="module")
def shards(tiny):
    return open_shards(tiny / "data")


def examples_of(shards, row_length):
    objective = CausalLm(CausalLmConfig(), end=END)
    rows = objective.make_examples(shards, row_length)
    made = []
    for number in range(len(rows)):
        rng = example_generator(0, 0, number)
        made.append(objective.corrupt(rows.draw(number, rng), rng))
    return objective, rows, made


@pytest.mark.parametrize("row_length", [8, 33, 128])
def test_every_token_and_every_end_is_asked_for_once(shards, row_length):
    _, rows, made = examples_of(shards, row_length)
    asked = np.concatenate([example.labels for example in made])
    expected = np.bincount(np.asarray(shards.tokens(0, shards.num_tokens)), minlength=shards.manifest.vocab_size)
    expected[END] += len(shards.document_starts) - 1
    assert np.array_equal(np.bincount(asked, minlength=len(expected)), expected)
    assert all(len(example.input_ids) <= row_length for example in made)
    assert rows.num_tokens == sum(len(example.input_ids) for example in made)


def test_each_place_is_asked_for_the_token_behind_it(shards):
    _, _, made = examples_of(shards, 33)
    for example in made:
        stops = np.cumsum(example.lengths)
        for start, stop in pairwise([0, *stops.tolist()]):
            assert example.input_ids[start] == END
            scored = (example.label_positions >= start) & (example.label_positions < stop)
            places, labels = example.label_positions[scored], example.labels[scored]
            assert np.array_equal(places, np.arange(start, start + len(places)))
            assert np.array_equal(labels[: stop - start - 1], example.input_ids[start + 1 : stop])
            if len(labels) == stop - start:  # the piece ends its document
                assert labels[-1] == END


def test_loss_and_gradients_equal_those_of_transformers(shards, tmp_path):
    transformers = pytest.importorskip("transformers")
    objective, _, made = examples_of(shards, 33)
    batch = collate(made[:6], range(6))
    config = GptConfig(
        vocab_size=shards.manifest.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_dropout_prob=0.0,
        max_position_embeddings=40,
        initializer_range=0.2,
        eos_token_id=END,
    )
    ours = make_model(config, ["causal_lm"], generator=torch.Generator().manual_seed(0))
    save_model(ours, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    loss = WithLoss(ours, objective)(batch)["causal_lm"]
    (loss.total / loss.count).backward()
    lengths = batch.cu_seqlens.diff().tolist()
    mask = torch.arange(batch.max_seqlen) < torch.tensor(lengths)[:, None]
    ids = torch.zeros(mask.shape, dtype=torch.long).masked_scatter(mask, batch.input_ids)
    flat = torch.full_like(batch.input_ids, -100).index_put((batch.label_positions,), batch.labels)
    labels = torch.full(mask.shape, -100).masked_scatter(mask, flat)
    logits = theirs(input_ids=ids, attention_mask=mask.long()).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    expected.backward()
    assert loss.count == (labels != -100).sum()
    assert loss.total.item() / loss.count == pytest.approx(expected.item(), rel=1e-5)
    largest = max(p.grad.abs().max() for p in theirs.parameters())
    word = ours.body.embeddings.word.weight.grad
    assert (word - theirs.transformer.wte.weight.grad).abs().max() <= 1e-5 * largest
    up = ours.body.layers[0].feed_forward.up.weight.grad
    assert (up - theirs.transformer.h[0].mlp.c_fc.weight.grad.t()).abs().max() <= 1e-5 * largest
