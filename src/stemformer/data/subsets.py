"""Smaller parts of labelled data: how large, and which records, so that a smaller part lies within the larger ones."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from stemformer.data.batches import example_generator
from stemformer.errors import ConfigError

__all__ = ["draw_order", "read_sizes"]

_STREAM = 2**62
"""Of the draw: a number that no example has."""


def read_sizes(sizes: Sequence[str | float], num_records: int) -> tuple[int, ...]:
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


def draw_order(keys: Sequence[Hashable], seed: int) -> list[int]:
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
