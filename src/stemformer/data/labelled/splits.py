"""Smaller parts of labelled data: how large, and which records, so that a smaller part lies within the larger ones."""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from stemformer.data.examples.sampling import example_generator
from stemformer.errors import ConfigError

_STREAM = 2**62
"""Of the draw: a number that no example has."""


def parse_sizes(sizes: Sequence[str | float], num_records: int) -> tuple[int, ...]:
    """Returns sizes as numbers of records, ascending.

    Args:
        sizes: Up to 1 a share of all records, above it a number of records.
        num_records: All there are.

    Raises:
        ConfigError: One is no number, is larger than the data, is nothing of it, or is there twice.

    Example:
        >>> read_sizes(["0.1", "500", "1"], 2000)
        (200, 500, 2000)
    """
    found: dict[int, str | float] = {}
    for size in sizes:
        try:
            value = float(size)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf or (value > 1 and value != math.floor(value)):
            raise ConfigError(f"--sizes {size}: expected a share up to 1, or a whole number of records")
        number = round(value * num_records) if value <= 1 else int(value)
        if number > num_records:
            raise ConfigError(f"--sizes {size}: the training data has {num_records:,} records: give at most as many")
        if number < 1:
            raise ConfigError(f"--sizes {size}: that is none of {num_records:,} records: give a larger share")
        if number in found:
            raise ConfigError(f"--sizes: {found[number]} and {size} are both {number:,} records: leave one out")
        found[number] = size
    if not found:
        raise ConfigError("--sizes: expected at least one")
    return tuple(sorted(found))


def subset_order(keys: Sequence[Hashable], seed: int) -> list[int]:
    """Returns all numbers of records in an order of which every beginning has the classes in their shares, but for rounding.

    Args:
        keys: The class of each record.
        seed: Of the draw.

    Example:
        >>> keys = ["a", "b", "b", "b"] * 50
        >>> Counter(keys[i] for i in draw_order(keys, 0)[:20])
        Counter({'b': 15, 'a': 5})
    """
    rng = example_generator(seed, 0, _STREAM)
    sizes = Counter(keys)
    seen: Counter[Hashable] = Counter()
    places = np.empty(len(keys))
    for number in rng.permutation(len(keys)).tolist():
        places[number] = (seen[keys[number]] + 0.5) / sizes[keys[number]]
        seen[keys[number]] += 1
    return [int(i) for i in np.lexsort((rng.random(len(keys)), places))]


def train_dev_split(keys: Sequence[Hashable], *, share: float = 0.1, seed: int = 0) -> tuple[list[int], list[int]]:
    """Returns the numbers of the examples for training and for dev, ascending: the same share of each class.

    Args:
        keys: The class of each example. One with two examples or more has at least one in each part; one with a single
            example has it in training.
        share: Of each class for dev, between 0 and 1.
        seed: Of the draw.

    Example:
        >>> train, dev = cut_dev(["a"] * 8 + ["b"] * 2, share=0.25)
        >>> len(train), len(dev), 8 in dev or 9 in dev
        (7, 3, True)
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        members[key].append(number)
    rng = np.random.Generator(np.random.Philox(seed))
    dev: list[int] = []
    for numbers in members.values():
        order = rng.permutation(len(numbers)).tolist()
        wanted = min(max(1, round(share * len(numbers))), len(numbers) - 1)
        dev.extend(numbers[i] for i in order[:wanted])
    is_dev = set(dev)
    return [number for number in range(len(keys)) if number not in is_dev], sorted(dev)


def grouped_split(groups: Sequence[Hashable], *, share: float = 0.1, seed: int = 0) -> tuple[list[int], list[int]]:
    """Returns the numbers of the examples for training and for dev, ascending, with each group whole in one of them.

    Groups are drawn in random order; one joins dev if that brings its size nearer to the share. With two groups or more
    both parts have one at least.

    Args:
        groups: What must not be divided, as the article that a question is about.
        share: Of the examples for dev, between 0 and 1.
        seed: Of the draw.

    Example:
        >>> train, dev = cut_groups(["x", "x", "y", "y", "z", "z"], share=0.3)
        >>> len(train), len(dev)
        (4, 2)
    """
    sizes = Counter(groups)
    names = list(sizes)
    rng = np.random.Generator(np.random.Philox(seed))
    order = [names[i] for i in rng.permutation(len(names)).tolist()]
    wanted, num_dev = share * len(groups), 0
    chosen: set[Hashable] = set()
    for name in order[: len(order) - 1]:
        if abs(num_dev + sizes[name] - wanted) < abs(num_dev - wanted):
            chosen.add(name)
            num_dev += sizes[name]
    if not chosen and len(order) > 1:
        chosen.add(min(order, key=lambda name: sizes[name]))
    parts: tuple[list[int], list[int]] = ([], [])
    for number, name in enumerate(groups):
        parts[name in chosen].append(number)
    return parts
