"""Random subsets and train/dev splits of labelled data, stratified by class or by group."""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from stemformer.data.examples.sampling import example_generator
from stemformer.errors import ConfigError

# Random stream of subsets; no example has this number.
_STREAM = 2**62


def parse_sizes(sizes: Sequence[str | float], num_records: int) -> tuple[int, ...]:
    """Convert sizes to ascending numbers of records; values up to 1 are shares."""
    found: dict[int, str | float] = {}
    for size in sizes:
        try:
            value = float(size)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf or (value > 1 and value != math.floor(value)):
            raise ConfigError(f"--sizes {size}: Expected a share up to 1, or an integer number of records.")
        number = round(value * num_records) if value <= 1 else int(value)
        if number > num_records:
            raise ConfigError(f"--sizes {size}: The training data has {num_records:,} records. Use at most as many.")
        if number < 1:
            raise ConfigError(f"--sizes {size}: The share is none of {num_records:,} records. Use a larger share.")
        if number in found:
            raise ConfigError(f"--sizes: {found[number]} and {size} are both {number:,} records. Remove one.")
        found[number] = size
    if not found:
        raise ConfigError("--sizes: Expected at least one.")
    return tuple(sorted(found))


def subset_order(keys: Sequence[Hashable], seed: int) -> list[int]:
    """Return a random order of records in which every prefix has the class shares of the data."""
    rng = example_generator(seed, 0, _STREAM)
    sizes = Counter(keys)
    seen: Counter[Hashable] = Counter()
    # Quantile of each record within its class; ties between classes are broken at random.
    quantiles = np.empty(len(keys))
    for number in rng.permutation(len(keys)).tolist():
        quantiles[number] = (seen[keys[number]] + 0.5) / sizes[keys[number]]
        seen[keys[number]] += 1
    return [int(i) for i in np.lexsort((rng.random(len(keys)), quantiles))]


def train_dev_split(keys: Sequence[Hashable], *, share: float = 0.1, seed: int = 0) -> tuple[list[int], list[int]]:
    """Return ascending indices for training and dev, stratified by class.

    A class with at least two examples has one or more in each part, a single one is for training.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        members[key].append(number)
    rng = np.random.Generator(np.random.Philox(seed))
    dev: set[int] = set()
    for numbers in members.values():
        wanted = min(max(1, round(share * len(numbers))), len(numbers) - 1)
        dev.update(numbers[i] for i in rng.permutation(len(numbers))[:wanted])
    return [number for number in range(len(keys)) if number not in dev], sorted(dev)


def grouped_split(groups: Sequence[Hashable], *, share: float = 0.1, seed: int = 0) -> tuple[list[int], list[int]]:
    """Return ascending indices for training and dev without dividing groups.

    Groups are visited in random order; one joins dev if that brings its size nearer to the share.
    With at least two groups, both parts have at least one.
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
    dev = [number for number, name in enumerate(groups) if name in chosen]
    return [number for number, name in enumerate(groups) if name not in chosen], dev


def connected_groups(members: Sequence[Sequence[Hashable]]) -> list[int]:
    """Return the number of the group of each record: records with a common member are in one group."""
    parents = list(range(len(members)))

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    firsts: dict[Hashable, int] = {}
    for number, names in enumerate(members):
        for name in names:
            parents[root(number)] = root(firsts.setdefault(name, number))
    return [root(number) for number in range(len(members))]
