from collections import Counter

import pytest

from stemformer.data.labelled.splits import parse_sizes, subset_order
from stemformer.errors import ConfigError

# sizes


def test_sizes_up_to_one_are_shares_and_larger_ones_numbers():
    assert parse_sizes(["1", 0.01, "500"], 2000) == (20, 500, 2000)


def test_all_records_may_be_asked_for_by_number():
    assert parse_sizes([7], 7) == (7,)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        (["2001"], "--sizes 2001: the training data has 2,000 records"),
        (["0.0001"], "is none of 2,000 records"),
        (["0.1", "200"], "0.1 and 200 are both 200 records"),
        (["many"], "--sizes many: expected a share up to 1"),
        (["2.5"], "--sizes 2.5: expected a share"),
        (["0"], "--sizes 0: expected a share"),
        (["-3"], "--sizes -3: expected a share"),
        (["nan"], "--sizes nan: expected a share"),
        (["inf"], "--sizes inf: expected a share"),
        ([], "expected at least one"),
    ],
)
def test_sizes_that_make_no_sense_are_told(sizes, told):
    with pytest.raises(ConfigError, match=told):
        parse_sizes(sizes, 2000)


# the draw


@pytest.mark.parametrize("num_labels", [1, 2, 7])
def test_order_has_each_record_once(num_labels):
    keys = [i % num_labels for i in range(101)]
    assert sorted(subset_order(keys, 3)) == list(range(101))


def test_each_beginning_has_the_classes_in_their_shares():
    keys = ["rare"] * 10 + ["usual"] * 90
    order = subset_order(keys, 0)
    for size in range(1, 101):
        rare = Counter(keys[i] for i in order[:size])["rare"]
        assert abs(rare - size / 10) <= 1  # rounding of one class moves the other by as much


def test_each_seed_draws_other_records_and_one_seed_the_same():
    keys = ["a", "b"] * 100
    assert subset_order(keys, 1) == subset_order(keys, 1)
    assert set(subset_order(keys, 1)[:20]) != set(subset_order(keys, 2)[:20])


def test_order_within_a_class_is_not_that_of_the_file():
    order = subset_order([0] * 50, 0)
    assert order != sorted(order)
