import threading
import time

import numpy as np
import pytest
import torch
from scipy import stats

from stemformer.data.examples.batch import Example, collate, pad_to_bucket_sizes
from stemformer.data.examples.sampling import example_generator, examples_of_step, permuted, prefetch
from stemformer.errors import DataError


def permutation(size, *, seed=0, epoch=0):
    return permuted(np.arange(size), size, seed=seed, epoch=epoch)


# The keyed permutation


@pytest.mark.parametrize("size", [*range(1, 71), 1000, 4097])
def test_permuted_is_a_permutation(size):
    np.testing.assert_array_equal(np.sort(permutation(size, seed=3, epoch=2)), np.arange(size))


@pytest.mark.parametrize("size", [1, 5, 70, 1000])
def test_permuted_of_some_indices_equals_the_full_permutation_there(size):
    indices = np.random.default_rng(0).integers(size, size=17)
    np.testing.assert_array_equal(permuted(indices, size, seed=1, epoch=4), permutation(size, seed=1, epoch=4)[indices])


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}, {"seed": 2**63}, {"epoch": 10**6}])
def test_permuted_differs_by_seed_and_epoch(other):
    assert (
        permutation(1000) == permutation(1000, **other)
    ).sum() < 10  # two random permutations agree in about one position


def test_permuted_accepts_the_largest_seed():
    np.testing.assert_array_equal(np.sort(permutation(50, seed=2**64 - 1)), np.arange(50))


def test_permuted_is_uniform():
    size, epochs = 11, 3000
    counts = np.zeros((size, size), np.int64)
    for epoch in range(epochs):
        counts[np.arange(size), permutation(size, seed=5, epoch=epoch)] += 1
    # Row and column sums are fixed: (size - 1)**2 degrees of freedom. With a fixed seed the result is deterministic.
    statistic = ((counts - epochs / size) ** 2 / (epochs / size)).sum() * (size - 1) / size
    assert stats.chi2.sf(statistic, (size - 1) ** 2) > 1e-3


def test_permuted_separates_neighbors():
    steps = np.diff(permutation(4097, seed=6))
    assert (np.abs(steps) == 1).sum() < 12  # 2 expected; probability 1e-5 above 11


# Examples of a step


@pytest.mark.parametrize(("batch_size", "num_examples"), [(4, 12), (5, 12), (7, 7), (12, 5), (1, 3)])
def test_every_example_occurs_once_per_epoch(batch_size, num_examples):
    num_steps = -(-3 * num_examples // batch_size)
    seen = [
        pair
        for step in range(num_steps)
        for pair in examples_of_step(step, batch_size=batch_size, num_examples=num_examples, seed=4)
    ]
    first_three = seen[: 3 * num_examples]
    assert sorted(first_three) == [(epoch, i) for epoch in range(3) for i in range(num_examples)]


def test_partial_last_batch_wraps_into_the_next_epoch():
    epochs = [epoch for epoch, _ in examples_of_step(2, batch_size=5, num_examples=12, seed=0)]
    assert epochs == [0, 0, 1, 1, 1]


def test_every_step_has_a_full_batch():
    assert all(len(examples_of_step(s, batch_size=5, num_examples=3, seed=0)) == 5 for s in range(20))


def test_epochs_differ_in_order():
    first, second = (examples_of_step(s, batch_size=50, num_examples=50, seed=0) for s in (0, 1))
    assert [i for _, i in first] != [i for _, i in second]


def test_examples_of_a_late_step_do_not_depend_on_earlier_steps():
    # Counting up to the step would not end, and numbers of all examples would not fit in memory.
    assert len(examples_of_step(10**15, batch_size=256, num_examples=10**15, seed=0)) == 256


# Generator of an example


def test_example_generator_is_a_function_of_its_key():
    assert (example_generator(1, 2, 3).random(5) == example_generator(1, 2, 3).random(5)).all()


def test_example_generators_of_different_keys_share_no_number():
    keys = [(s, e, n) for s in (0, 1, 2**64 - 1) for e in (0, 1, 7) for n in (0, 1, 2, 2**63, 2**63 + 1)]
    draws = np.concatenate([example_generator(*key).integers(2**63, size=1000) for key in keys])
    assert len(np.unique(draws)) == len(draws)  # a collision has probability 1e-10


def test_example_generators_of_neighbors_are_uncorrelated():
    draws = np.array([example_generator(0, 0, number).random(4000) for number in range(12)])
    correlations = np.corrcoef(draws)[~np.eye(12, dtype=bool)]
    assert np.abs(correlations).max() < 5 / np.sqrt(4000)  # five standard deviations


# Collation


def example(lengths, positions, seed=0, segments=None):
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    return Example(
        input_ids=rng.integers(50, size=n),
        lengths=np.array(lengths),
        label_positions=np.array(positions),
        labels=rng.integers(50, size=len(positions)),
        token_type_ids=segments,
    )


def test_collate_restarts_positions_in_each_sequence():
    batch = collate([example([3, 2], [1]), example([4], [0])], [7, 9])
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3]


def test_collate_returns_int32_boundaries_and_the_longest_length():
    batch = collate([example([3, 2], [1]), example([4], [0])], [7, 9])
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 9]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.max_seqlen == 4


def test_collate_shifts_label_positions_by_the_preceding_examples():
    examples = [example([3, 2], [1, 4], seed=1), example([4], [0, 2], seed=2), example([2], [1], seed=3)]
    batch = collate(examples, [0, 1, 2])
    assert batch.label_positions.tolist() == [1, 4, 5, 7, 10]
    expected = np.concatenate([e.input_ids[e.label_positions] for e in examples])
    np.testing.assert_array_equal(batch.input_ids[batch.label_positions], expected)
    np.testing.assert_array_equal(batch.labels, np.concatenate([e.labels for e in examples]))


def test_collate_defaults_to_segment_zero():
    segments = np.array([0, 0, 1])
    batch = collate([example([2], [0]), example([3], [0], segments=segments)], [0, 1])
    assert batch.token_type_ids.tolist() == [0, 0, 0, 0, 1]


def test_collate_keeps_the_example_numbers():
    assert collate([example([2], [0]), example([3], [0])], [41, 7]).example_numbers == (41, 7)


def test_collate_refuses_an_empty_sequence():
    with pytest.raises(DataError, match=r"\[3, 8\] has a sequence without a token"):
        collate([example([2], [0]), example([3, 0], [0])], [3, 8])


def test_padding_rounds_each_size_up_to_its_bucket():
    batch = collate([Example(np.array([5, 6, 7]), np.array([3]), np.array([1]), np.array([9]))], [0])
    padded = pad_to_bucket_sizes(batch)
    assert [len(x) for x in (padded.input_ids, padded.cu_seqlens, padded.labels)] == [16, 9, 16]


# Prefetch


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("steps", [range(0), range(1), range(3, 40)])
def test_prefetch_yields_in_order(steps):
    assert list(prefetch(lambda step: step * step, steps)) == [step * step for step in steps]


def test_prefetch_raises_at_the_step_that_failed():
    def make(step):
        if step == 5:
            raise ValueError("at five")
        return step

    seen = []
    with pytest.raises(ValueError, match="at five"):
        for item in prefetch(make, range(10)):
            seen.append(item)
    assert seen == [0, 1, 2, 3, 4]
    assert prefetch_threads() == []


def test_prefetch_runs_only_a_few_steps_ahead():
    made = []
    items = prefetch(lambda step: made.append(step), range(100), ahead=3)
    next(items)
    # One consumed, three queued, one held by the thread.
    expected = 1 + 3 + 1
    while len(made) < expected:
        time.sleep(0.01)
    time.sleep(0.3)
    assert len(made) == expected
    items.close()


@pytest.mark.parametrize("taken", [1, 5])
def test_prefetch_closed_early_leaves_no_thread(taken):
    items = prefetch(lambda step: step, range(1000), ahead=2)
    for _ in range(taken):
        next(items)
    assert len(prefetch_threads()) == 1
    items.close()
    assert prefetch_threads() == []


def test_prefetch_equals_a_plain_loop():
    def make(step):
        return example_generator(0, 0, step).random(100)

    for got, expected in zip(prefetch(make, range(30)), map(make, range(30)), strict=True):
        np.testing.assert_array_equal(got, expected)
