from dataclasses import replace

import numpy as np
import pytest
import torch

from stemformer.data.examples.batch import Example, collate
from stemformer.data.shards.reader import open_shards
from stemformer.errors import DataError
from stemformer.evaluation import inference
from stemformer.evaluation.held_out import (
    baselines,
    evaluate_held_out,
    held_out_batches,
    held_out_masks,
    make_held_out_evaluation,
)
from stemformer.models.bart import BartConfig
from stemformer.models.bert import BertConfig
from stemformer.models.model import make_model
from stemformer.objectives.denoising import DenoisingConfig
from stemformer.objectives.masked_lm import MaskedLmConfig, SpecialIds
from stemformer.objectives.objective import LossModule, make_objective

CPU = torch.device("cpu")
SPECIAL = SpecialIds(cls=2, sep=3, mask=4)


@pytest.fixture(scope="module")
def shards(tiny):
    return open_shards(tiny / "data")  # the training split, as it is larger


@pytest.fixture(autouse=True)
def several_batches(monkeypatch):
    monkeypatch.setattr(inference, "BATCH_TOKENS", 512)


def held_out_objective(shards, **config):
    return make_objective(held_out_masks(MaskedLmConfig(**config)), special=SPECIAL, vocab_size=shards.vocab_size)


def batches_of(shards, *, num_examples=50, **config):
    objective = held_out_objective(shards, **config)
    return held_out_batches(objective.make_examples(shards, 32), objective, num_examples=num_examples)


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.example_numbers == other.example_numbers
        for name in ("input_ids", "label_positions", "labels", "cu_seqlens", "token_type_ids"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def module_of(shards, **config):
    objective = held_out_objective(shards, **config)
    sizes = BertConfig(
        vocab_size=shards.vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.3,  # large, so that some predictions are correct
    )
    return LossModule(make_model(sizes, objective.heads, generator=torch.Generator().manual_seed(0)), objective)


# Examples and masks


@pytest.mark.parametrize("sentences", ["none", "next", "order"])
def test_held_out_masks_are_the_same_at_each_call(shards, sentences):
    first = batches_of(shards, sentences=sentences)
    np.random.seed(1)
    torch.manual_seed(1)
    assert_same(first, batches_of(shards, sentences=sentences))


def test_held_out_masks_do_not_depend_on_those_of_training(shards):
    training = {"mask_rate": 0.4, "unit": "span", "mask_replace_prob": 1.0, "random_replace_prob": 0.0}
    assert_same(batches_of(shards), batches_of(shards, **training))


def test_held_out_mask_rate_is_15_percent(shards):
    batch = batches_of(shards, mask_rate=0.5)[0]
    special = sum(int((batch.input_ids == number).sum()) for number in (SPECIAL.cls, SPECIAL.sep))
    # Each of 16 examples rounds to an integer number of masks: at most half a mask of some 25 tokens.
    assert len(batch.labels) / (len(batch.input_ids) - special) == pytest.approx(0.15, abs=0.02)


def test_examples_are_distinct_and_limited(shards):
    numbers = [i for batch in batches_of(shards, num_examples=50) for i in batch.example_numbers]
    assert len(set(numbers)) == len(numbers) == 50
    assert max(numbers) > 60  # sampled from all, not the first ones


def test_split_with_fewer_examples_is_used_completely(shards):
    objective = held_out_objective(shards)
    rows = objective.make_examples(shards, 32)
    batches = held_out_batches(rows, objective, num_examples=10**6)
    assert sorted(i for batch in batches for i in batch.example_numbers) == list(range(len(rows)))


def test_split_without_an_example_is_refused(shards):
    objective = held_out_objective(shards)
    rows = objective.make_examples(shards, 32)
    none = replace(rows, num_tokens=0, starts=rows.starts[:0], stops=rows.stops[:0], offsets=rows.offsets[:1])
    with pytest.raises(DataError, match="Prepare the data again with a larger --held-out"):
        held_out_batches(none, objective, num_examples=4)


# Ranks


def on_ranks(world_size, rows, objective, module):
    """Return the metrics of each rank, with sums exchanged as by `all_reduce`."""

    def on(rank, add):
        return make_held_out_evaluation(
            rows, objective, num_examples=26, device=CPU, rank=rank, world_size=world_size, add=add
        )(module)

    sums = []
    for rank in range(world_size):
        on(rank, lambda values: sums.append(list(values)) or list(values))
    assert len({len(values) for values in sums}) == 1  # otherwise all_reduce would hang
    total = np.sum(sums, 0).tolist()
    return [on(rank, lambda values: total) for rank in range(world_size)]


@pytest.mark.parametrize("sentences", ["none", "next"])
@pytest.mark.parametrize("world_size", [2, 3, 5])  # of four batches: two each, two and one, and a rank with none
def test_metrics_of_several_ranks_equal_those_of_one(shards, sentences, world_size, monkeypatch):
    monkeypatch.setattr(inference, "BATCH_TOKENS", 256)
    objective, module = held_out_objective(shards, sentences=sentences), module_of(shards, sentences=sentences)
    rows = objective.make_examples(shards, 32)
    alone = make_held_out_evaluation(rows, objective, num_examples=26, device=CPU)(module)
    for metrics in on_ranks(world_size, rows, objective, module):
        assert metrics == pytest.approx(alone, rel=1e-12)  # float64 sums in another order


def test_each_rank_processes_the_same_number_of_batches(shards, monkeypatch):
    monkeypatch.setattr(inference, "BATCH_TOKENS", 256)
    objective, module = held_out_objective(shards), module_of(shards)
    passes = []
    module.register_forward_hook(lambda *_: passes.append(1))
    for rank in range(3):
        make_held_out_evaluation(
            objective.make_examples(shards, 32), objective, num_examples=26, device=CPU, rank=rank, world_size=3
        )(module)
    assert len(passes) == 6  # two each, though the last two ranks have one batch of four


# Metrics


def test_metrics_are_named_after_the_losses(shards):
    objective, module = held_out_objective(shards, sentences="order"), module_of(shards, sentences="order")
    metrics = make_held_out_evaluation(objective.make_examples(shards, 32), objective, num_examples=8, device=CPU)(
        module
    )
    assert list(metrics) == [
        "held_out_masked_lm_loss",
        "held_out_masked_lm_accuracy",
        "held_out_sentence_order_loss",
        "held_out_sentence_order_accuracy",
        "held_out_unigram_loss",
        "held_out_unigram_accuracy",
        "held_out_majority_accuracy",
    ]


def test_metrics_are_means_over_positions_not_over_batches(shards):
    batches, module = batches_of(shards), module_of(shards)
    metrics = evaluate_held_out(module, batches, device=CPU, num_counted=len(batches))
    with torch.no_grad():
        logits = torch.cat([module(batch, return_logits=True) for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    expected = torch.nn.functional.cross_entropy(logits, labels).item()
    assert metrics["masked_lm_loss"] == pytest.approx(expected, rel=1e-6)  # float32
    assert metrics["masked_lm_accuracy"] == (logits.argmax(-1) == labels).double().mean().item()
    sizes = {len(batch.labels) for batch in batches}
    assert len(sizes) > 1  # otherwise the two means would be equal


def example(labels, answer=None):
    n = len(labels)
    sequence_labels = None if answer is None else np.array([answer])
    return Example(np.arange(n), np.array([n]), np.arange(n), np.array(labels), None, sequence_labels)


def test_unigram_baselines_equal_hand_computed_ones():
    batches = [collate([example([1, 1])], [0]), collate([example([2, 0])], [0])]
    result = baselines(np.array([0, 5, 2, 1], np.uint64), batches)  # smoothed: 1, 6, 3, 2 of 12
    assert result == {
        "unigram_loss": pytest.approx(-(2 * np.log(6 / 12) + np.log(3 / 12) + np.log(1 / 12)) / 4),
        "unigram_accuracy": 0.5,
    }


@pytest.mark.parametrize(("answers", "expected"), [([1, 1, 1, 0], 0.75), ([0, 0, 1], 2 / 3), ([1, 1], 1.0)])
def test_majority_is_the_more_frequent_answer(answers, expected):
    batches = [collate([example([1], answer)], [0]) for answer in answers]
    assert baselines(np.ones(3, np.uint64), batches)["majority_accuracy"] == pytest.approx(expected)


def test_the_start_of_a_text_is_not_scored_in_denoising(shards):
    objective = make_objective(DenoisingConfig(), special=SPECIAL, vocab_size=shards.vocab_size)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_decoder_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": 2, "pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 3}
    config = BartConfig(vocab_size=shards.vocab_size, intermediate_size=32, initializer_range=0.3, **sizes, **ids)
    module = LossModule(make_model(config, objective.heads, generator=torch.Generator().manual_seed(0)), objective)
    examples = objective.make_examples(shards, 32)
    found = make_held_out_evaluation(examples, objective, num_examples=8, device=CPU)(module)

    batches = held_out_batches(examples, objective, num_examples=8)
    with torch.no_grad():
        logits = torch.cat([module(batch, return_logits=True) for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    is_text = labels != SPECIAL.cls
    expected = torch.nn.functional.cross_entropy(logits[is_text], labels[is_text]).item()
    assert found["held_out_denoising_loss"] == pytest.approx(expected, rel=1e-5)

    # Ends are as frequent as in the batches.
    share = (labels == SPECIAL.sep).sum().item() / (labels > SPECIAL.sep).sum().item()
    counts = shards.unigram_counts.astype(np.int64)
    counts[SPECIAL.sep] += round(counts.sum() * share)
    p = (counts + 1) / (counts + 1).sum()
    assert found["held_out_unigram_loss"] == pytest.approx(-np.log(p)[labels[is_text].numpy()].mean())
