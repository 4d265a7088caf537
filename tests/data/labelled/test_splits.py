from collections import Counter

import pytest

from stemformer.data.labelled.splits import parse_sizes, subset_order
from stemformer.errors import ConfigError

# sizes


def test_sizes_up_to_one_are_shares_and_larger_ones_numbers():
    assert parse_sizes(["1", 0.01, "500"], 2000) == (20, 500, 2000)


def test_size_may_be_the_number_of_all_records():
    assert parse_sizes([7], 7) == (7,)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (["2001"], "--sizes 2001: The training data has 2,000 records"),
        (["0.0001"], "is none of 2,000 records"),
        (["0.1", "200"], "0.1 and 200 are both 200 records"),
        (["many"], "--sizes many: Expected a share up to 1"),
        (["2.5"], "--sizes 2.5: Expected a share"),
        (["0"], "--sizes 0: Expected a share"),
        (["-3"], "--sizes -3: Expected a share"),
        (["nan"], "--sizes nan: Expected a share"),
        (["inf"], "--sizes inf: Expected a share"),
        ([], "Expected at least one"),
    ],
)
def test_bad_sizes_raise(sizes, message):
    with pytest.raises(ConfigError, match=message):
        parse_sizes(sizes, 2000)


# random order


@pytest.mark.parametrize("num_labels", [1, 2, 7])
def test_order_has_each_record_once(num_labels):
    keys = [i % num_labels for i in range(101)]
    assert sorted(subset_order(keys, 3)) == list(range(101))


def test_each_prefix_has_the_class_shares():
    keys = ["rare"] * 10 + ["usual"] * 90
    order = subset_order(keys, 0)
    for size in range(1, 101):
        rare = Counter(keys[i] for i in order[:size])["rare"]
        assert abs(rare - size / 10) <= 1  # rounding of one class moves the other by as much


def test_order_depends_on_the_seed_only():
    keys = ["a", "b"] * 100
    assert subset_order(keys, 1) == subset_order(keys, 1)
    assert set(subset_order(keys, 1)[:20]) != set(subset_order(keys, 2)[:20])


def test_order_within_a_class_is_not_that_of_the_file():
    order = subset_order([0] * 50, 0)
    assert order != sorted(order)
