from functools import partial

import numpy as np
import pytest
import torch

from stemformer.data.examples.batch import Example, collate
from stemformer.data.shards.reader import open_shards
from stemformer.errors import DataError
from stemformer.evaluation import held_out as evaluate
from stemformer.evaluation.held_out import (
    baselines,
    evaluate_held_out,
    held_out_batches,
    held_out_masks,
    make_held_out_evaluation,
)
from stemformer.models.bert import BertConfig
from stemformer.models.model import make_model
from stemformer.objectives.masked_lm import MaskedLmConfig, SpecialIds
from stemformer.objectives.objective import LossModule, make_objective

CPU = torch.device("cpu")
SPECIAL = SpecialIds(cls=2, sep=3, mask=4)


@pytest.fixture(scope="module")
def shards(tiny):
    return open_shards(tiny / "data")  # the larger split: what is measured on it does not matter here


def objective(shards, **config):
    return make_objective(held_out_masks(MaskedLmConfig(**config)), special=SPECIAL, vocab_size=shards.vocab_size)


def batches_of(shards, *, num_examples=50, **config):
    asked = objective(shards, **config)
    return held_out_batches(asked.make_examples(shards, 32), asked, num_examples=num_examples, batch_tokens=512)


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.example_numbers == other.example_numbers
        for name in ("input_ids", "label_positions", "labels", "cu_seqlens", "token_type_ids"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def module_of(shards, **config):
    asked = objective(shards, **config)
    sizes = BertConfig(
        vocab_size=shards.vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.3,  # so that some answers are right
    )
    return LossModule(make_model(sizes, asked.heads, generator=torch.Generator().manual_seed(0)), asked)


# Which text, and what is hidden in it


@pytest.mark.parametrize("sentences", ["none", "next", "order"])
def test_held_out_masks_are_the_same_at_each_call(shards, sentences):
    first = batches_of(shards, sentences=sentences)
    np.random.seed(1)
    torch.manual_seed(1)
    assert_same(first, batches_of(shards, sentences=sentences))


def test_held_out_masks_do_not_depend_on_what_training_hides(shards):
    training = {"rate": 0.4, "unit": "span", "mask_share": 1.0, "random_share": 0.0}
    assert_same(batches_of(shards), batches_of(shards, **training))


def test_held_out_share_of_scored_places_is_that_of_2018(shards):
    batch = batches_of(shards, rate=0.5)[0]
    special = sum(int((batch.input_ids == number).sum()) for number in (SPECIAL.cls, SPECIAL.sep))
    # each of 16 examples rounds to whole places: half a place of some 25 tokens at most
    assert len(batch.labels) / (len(batch.input_ids) - special) == pytest.approx(0.15, abs=0.02)


def test_examples_are_different_ones_and_no_more_than_asked(shards):
    numbers = [i for batch in batches_of(shards, num_examples=50) for i in batch.example_numbers]
    assert len(set(numbers)) == len(numbers) == 50
    assert max(numbers) > 60  # drawn from all, not the first ones


def test_split_with_fewer_examples_than_asked_is_used_whole(shards):
    asked = objective(shards)
    rows = asked.make_examples(shards, 32)
    batches = held_out_batches(rows, asked, num_examples=10**6)
    assert sorted(i for batch in batches for i in batch.example_numbers) == list(range(len(rows)))


def test_split_without_an_example_is_refused(shards):
    asked = objective(shards)
    rows = asked.make_examples(shards, 32)
    none = type(rows)(shards, rows.starts[:0], rows.stops[:0], rows.offsets[:1], 32, 2)
    with pytest.raises(DataError, match="prepare the data again with a larger --held-out"):
        held_out_batches(none, asked, num_examples=4)


# Ranks


def on_ranks(world_size, rows, asked, module):
    """Returns the figures of each rank, whose sums are exchanged as `all_reduce` would."""

    def on(rank, add):
        return make_held_out_evaluation(
            rows, asked, num_examples=26, device=CPU, rank=rank, world_size=world_size, add=add
        )(module)

    told = []
    for rank in range(world_size):
        on(rank, lambda values: told.append(list(values)) or list(values))
    assert len({len(values) for values in told}) == 1  # else the exchange would hang
    whole = np.sum(told, 0).tolist()
    return [on(rank, lambda values: whole) for rank in range(world_size)]


@pytest.mark.parametrize("sentences", ["none", "next"])
@pytest.mark.parametrize("world_size", [2, 3, 5])  # of four batches: two each, two and one, and a rank with none
def test_figures_of_several_ranks_are_those_of_one(shards, sentences, world_size, monkeypatch):
    monkeypatch.setattr(evaluate, "held_out_batches", partial(held_out_batches, batch_tokens=256))
    asked, module = objective(shards, sentences=sentences), module_of(shards, sentences=sentences)
    rows = asked.make_examples(shards, 32)
    alone = make_held_out_evaluation(rows, asked, num_examples=26, device=CPU)(module)
    for figures in on_ranks(world_size, rows, asked, module):
        assert figures == pytest.approx(alone, rel=1e-12)  # the same numbers, added in float64 in another order


def test_each_rank_goes_through_as_many_batches(shards, monkeypatch):
    monkeypatch.setattr(evaluate, "held_out_batches", partial(held_out_batches, batch_tokens=256))
    asked, module = objective(shards), module_of(shards)
    passes = []
    module.register_forward_hook(lambda *_: passes.append(1))
    for rank in range(3):
        make_held_out_evaluation(
            asked.make_examples(shards, 32), asked, num_examples=26, device=CPU, rank=rank, world_size=3
        )(module)
    assert len(passes) == 6  # two each, though the last two ranks have one batch of four


# Figures


def test_figures_are_named_by_what_was_asked(shards):
    asked, module = objective(shards, sentences="order"), module_of(shards, sentences="order")
    figures = make_held_out_evaluation(asked.make_examples(shards, 32), asked, num_examples=8, device=CPU)(module)
    assert list(figures) == [
        "held_out_masked_lm_loss",
        "held_out_masked_lm_accuracy",
        "held_out_sentence_order_loss",
        "held_out_sentence_order_accuracy",
        "held_out_unigram_loss",
        "held_out_unigram_accuracy",
        "held_out_majority_accuracy",
    ]


def test_scores_are_means_over_places_not_over_batches(shards):
    batches, module = batches_of(shards), module_of(shards)
    figures = evaluate_held_out(module, batches, device=CPU)
    with torch.no_grad():
        logits = torch.cat([module(batch, return_logits=True) for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    expected = torch.nn.functional.cross_entropy(logits, labels).item()
    assert figures["masked_lm_loss"] == pytest.approx(expected, rel=1e-6)  # float32
    assert figures["masked_lm_accuracy"] == (logits.argmax(-1) == labels).double().mean().item()
    sizes = {len(batch.labels) for batch in batches}
    assert len(sizes) > 1  # else the two means would be one


def example(labels, answer=None):
    n = len(labels)
    asked = None if answer is None else np.array([answer])
    return Example(np.arange(n), np.array([n]), np.arange(n), np.array(labels), None, asked)


def test_unigram_baselines_are_as_by_hand():
    batches = [collate([example([1, 1])], [0]), collate([example([2, 0])], [0])]
    told = baselines(np.array([0, 5, 2, 1], np.uint64), batches)  # one more each: 1, 6, 3, 2 of 12
    assert told == {
        "unigram_loss": pytest.approx(-(2 * np.log(6 / 12) + np.log(3 / 12) + np.log(1 / 12)) / 4),
        "unigram_accuracy": 0.5,
    }


@pytest.mark.parametrize(("answers", "expected"), [([1, 1, 1, 0], 0.75), ([0, 0, 1], 2 / 3), ([1, 1], 1.0)])
def test_majority_is_the_more_frequent_answer(answers, expected):
    batches = [collate([example([1], answer)], [0]) for answer in answers]
    assert baselines(np.ones(3, np.uint64), batches)["majority_accuracy"] == pytest.approx(expected)
