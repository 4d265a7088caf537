"""Causal LM: labels, each scored exactly once, and loss and gradients against transformers."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from stemformer.data.examples.batch import collate
from stemformer.data.examples.sampling import example_generator
from stemformer.data.shards.reader import Shards, open_shards
from stemformer.huggingface.save import save_model
from stemformer.models.gpt import GptConfig
from stemformer.models.model import make_model
from stemformer.objectives.causal_lm import CausalLm, CausalLmConfig
from stemformer.objectives.masked_lm import SpecialIds
from stemformer.objectives.objective import LossModule

EOS = 3


@pytest.fixture(scope="module")
def shards(tiny):
    return open_shards(tiny / "data")


CONFIGS = [
    CausalLmConfig(direction, documents) for direction in ("forward", "backward") for documents in ("apart", "stream")
]


def examples_of(shards, sequence_length, config=CausalLmConfig()):  # noqa: B008  # frozen
    objective = CausalLm(config, special=SpecialIds(eos=EOS))
    rows = objective.make_examples(shards, sequence_length)
    made = []
    for number in range(len(rows)):
        rng = example_generator(0, 0, number)
        made.append(objective.corrupt(rows.get_example(number, rng), rng))
    return objective, rows, made


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("sequence_length", [8, 33, 128])
def test_every_token_and_one_eos_per_document_is_scored_once(shards, sequence_length, config):
    _, rows, made = examples_of(shards, sequence_length, config)
    labels = np.concatenate([example.labels for example in made])
    expected = np.bincount(np.asarray(shards.tokens(0, shards.num_tokens)), minlength=shards.manifest.vocab_size)
    expected[EOS] += len(shards.document_starts) - 1
    assert np.array_equal(np.bincount(labels, minlength=len(expected)), expected)
    assert all(len(example.input_ids) <= sequence_length for example in made)
    assert rows.num_tokens == sum(len(example.input_ids) for example in made)


def test_label_of_each_position_is_the_next_token(shards):
    _, _, made = examples_of(shards, 33)
    for example in made:
        stops = np.cumsum(example.lengths)
        for start, stop in pairwise([0, *stops.tolist()]):
            assert example.input_ids[start] == EOS
            scored = (example.label_positions >= start) & (example.label_positions < stop)
            positions, labels = example.label_positions[scored], example.labels[scored]
            assert np.array_equal(positions, np.arange(start, start + len(positions)))
            assert np.array_equal(labels[: stop - start - 1], example.input_ids[start + 1 : stop])
            if len(labels) == stop - start:  # the piece ends its document
                assert labels[-1] == EOS


class TwoDocuments(Shards):
    """Tokens 10 11 12 13 14 in two sentences, then 15 16; each document in a shard of its own."""

    num_tokens, split = 7, "train"
    document_starts, sentence_starts = np.array([0, 5, 7]), np.array([0, 3, 5, 7])

    def __init__(self):
        pass

    def tokens(self, start, stop):
        assert (start < 5) == (stop <= 5), "crosses a shard"
        return np.arange(10 + start, 10 + stop, dtype=np.uint16)

    def word_starts(self, start, stop):
        return np.ones(stop - start, bool)


def inputs_and_labels(config, sequence_length):
    """Return input:label pairs (- for no label) of each piece of each row."""
    _, _, made = examples_of(TwoDocuments(), sequence_length, config)
    pieces = []
    for example in made:
        labels = np.full(len(example.input_ids), -1)
        labels[example.label_positions] = example.labels
        cuts = np.cumsum(example.lengths)[:-1]
        pairs = zip(np.split(example.input_ids, cuts), np.split(labels, cuts), strict=True)
        pieces.append([" ".join(f"{a}:{b if b >= 0 else '-'}" for a, b in zip(*pair, strict=True)) for pair in pairs])
    return pieces


def test_inputs_and_labels_of_two_documents():
    assert inputs_and_labels(CausalLmConfig(), 4) == [
        ["3:10 10:11 11:12 12:-"],
        ["3:13 13:14 14:3"],
        ["3:15 15:16 16:3"],
    ]
    backward = inputs_and_labels(CausalLmConfig("backward"), 4)
    assert backward == [["3:12 12:11 11:10 10:3"], ["3:14 14:13 13:-"], ["3:16 16:15 15:3"]]
    (both,) = inputs_and_labels(CausalLmConfig("backward"), 99)
    assert both == ["3:16 16:15 15:3", "3:14 14:13 13:12 12:11 11:10 10:3"]


def test_inputs_and_labels_of_a_stream_of_two_documents():
    forward = inputs_and_labels(CausalLmConfig(documents="stream"), 4)
    assert forward == [["3:10 10:11 11:12 12:13"], ["13:14 14:3 3:15 15:16"], ["16:3"]]
    backward = inputs_and_labels(CausalLmConfig("backward", "stream"), 4)
    assert backward == [["13:12 12:11 11:10 10:3"], ["16:15 15:3 3:14 14:13"], ["3:16"]]


@pytest.mark.parametrize("config", CONFIGS)
def test_loss_and_gradients_equal_those_of_transformers(shards, tmp_path, config):
    transformers = pytest.importorskip("transformers")
    objective, _, made = examples_of(shards, 33, config)
    batch = collate(made[:6], range(6))
    sizes = GptConfig(
        vocab_size=shards.manifest.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_dropout_prob=0.0,
        max_position_embeddings=40,
        initializer_range=0.2,
        eos_token_id=EOS,
    )
    ours = make_model(sizes, ["causal_lm"], generator=torch.Generator().manual_seed(0))
    save_model(ours, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    loss = LossModule(ours, objective)(batch)["causal_lm"]
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
