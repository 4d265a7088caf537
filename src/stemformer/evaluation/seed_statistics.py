"""What pre-training was worth: differences over paired seeds, and how many labels from scratch it takes to make up for it.

Figures come as `{start: {number of records: {seed: figure}}}`, where larger is better. All sentences are computed from them; where they
do not suffice, a sentence says so and claims nothing.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from stemformer.tasks.metrics import mean_std

Figures = Mapping[str, Mapping[int, Mapping[int, float]]]
"""Start -> number of records -> seed -> figure, in points."""


def means(of_start: Mapping[int, Mapping[int, float]]) -> dict[int, tuple[float, float]]:
    """Returns mean and standard deviation over seeds for each size, ascending.

    Example:
        >>> means({100: {0: 70.0, 1: 72.0}})
        {100: (71.0, 1.4142135623730951)}
    """
    return {size: mean_std(list(of_start[size].values())) for size in sorted(of_start)}


def difference(figures: Figures, one: str, other: str, size: int) -> tuple[float, float, int]:
    """Returns mean and standard deviation of `one` less `other` over the seeds that both have, and how many these are.

    A seed draws the same records for both, so what is easy or hard about these does not count as spread.

    Args:
        figures: With at least one seed in common.
        one: Name of a start.
        other: Of another.
        size: Number of records.

    Example:
        >>> difference({"a": {10: {0: 80.0, 1: 90.0}}, "b": {10: {0: 70.0, 1: 80.0}}}, "a", "b", 10)
        (10.0, 0.0, 2)
    """
    first, second = (figures.get(name, {}).get(size, {}) for name in (one, other))
    seeds = sorted(set(first) & set(second))
    return *mean_std([first[seed] - second[seed] for seed in seeds]), len(seeds)


def labels_to_match(curve: Mapping[int, float], target: float) -> float | None:
    """Returns with how many records a curve reaches `target`, on straight lines between sizes over the logarithm of these.

    Args:
        curve: Number of records -> figure.
        target: To be reached.

    Returns:
        At least the smallest size, since nothing is known below it; None where the curve never reaches the target.

    Example:
        >>> round(records_needed({100: 60.0, 10_000: 80.0}, 70.0))
        1000
        >>> records_needed({100: 60.0, 10_000: 80.0}, 81.0) is None
        True
    """
    sizes = sorted(curve)
    if curve[sizes[0]] >= target:
        return float(sizes[0])
    for size, larger in pairwise(sizes):
        if curve[larger] >= target:
            share = (target - curve[size]) / (curve[larger] - curve[size])
            return math.exp(math.log(size) + share * (math.log(larger) - math.log(size)))
    return None


def differences_from_random(figures: Figures) -> list[dict[str, Any]]:
    """Returns for each start and size what it has more than the random start: `mean`, `mean_std`, `seeds`; [] without that start.

    `records_from_scratch` is how many records the random start needs to reach it: None where it never does, or where one size is all.
    """
    if "random" not in figures:
        return []
    scratch = {size: mean for size, (mean, _) in means(figures["random"]).items()}
    rows = []
    for start in (start for start in figures if start != "random"):
        for size, (mean, _) in means(figures[start]).items():
            more, deviation, number = difference(figures, start, "random", size)
            needed = labels_to_match(scratch, mean) if len(scratch) > 1 else None
            row = {"start": start, "records": size, "mean": more, "spread": deviation, "seeds": number}
            rows.append({**row, "records_from_scratch": needed})
    return rows


def table_row(figures: Figures, size: int) -> dict[str, Any]:
    """Returns a line of the table: each start, and each one's difference from the random one, with spreads.

    Example:
        >>> table_row({"pretrained": {10: {0: 80.0}}, "random": {10: {0: 70.0}}}, 10)
        {'records': 10, 'pretrained': '80.0', 'random': '70.0', 'pretrained - random': '10.0'}
    """

    def shown(mean: float, deviation: float, number: int) -> str:
        return f"{mean:.1f} ± {deviation:.1f}" if number > 1 else f"{mean:.1f}"

    row: dict[str, Any] = {"records": size}
    for start, of_start in figures.items():
        row[start] = shown(*means(of_start)[size], len(of_start[size]))
    for start in (start for start in figures if start != "random" and "random" in figures):
        row[f"{start} - random"] = shown(*difference(figures, start, "random", size))
    return row


def sentences(figures: Figures, *, metric: str, baseline: float | None = None) -> list[str]:
    """Returns what a reader wants to know, in sentences.

    Args:
        figures: Of the starts `pretrained`, `random` and `reembedded`, as far as they were run.
        metric: Name of the figure.
        baseline: What can be had without reading; a start that is not above it has not been trained enough to be judged, and that is said.

    Example:
        >>> runs = {"pretrained": {100: {0: 80.0, 1: 82.0}}, "random": {100: {0: 70.0, 1: 71.0}}}
        >>> sentences(runs, metric="accuracy")[0]
        'pre-training was worth 10.5 ± 0.7 points of accuracy at 100 records (2 seeds)'
    """
    if "random" not in figures or len(figures) < 2:
        return ["nothing is claimed: it takes the start 'random' and another one (--starts)"]
    sizes = sorted(set.intersection(*(set(by_size) for by_size in figures.values())))
    others = [start for start in ("pretrained", "reembedded") if start in figures]
    if not sizes or min(difference(figures, other, "random", size)[2] for other in others for size in sizes) < 2:
        return ["nothing is claimed: with one seed a difference may be chance (--seeds 3)"]
    told = []
    if "pretrained" in figures:
        told.append(_gain(figures, "pretrained", "pre-training", sizes, metric))
        told.append(_labels(figures, sizes, metric))
    if "reembedded" in figures:
        body = "the pre-trained body alone, with word embeddings drawn anew,"
        told.append(_gain(figures, "reembedded", body, sizes, metric))
    return told + ([] if baseline is None else _not_learned(figures, sizes[-1], baseline))


def _not_learned(figures: Figures, size: int, baseline: float) -> list[str]:
    """Returns a caution where a start has learned nothing: what is said of it is then about the number of steps."""
    ends = {start: means(of_start)[size] for start, of_start in figures.items()}
    flat = [start for start, (mean, deviation) in ends.items() if mean - deviation <= baseline]
    if not flat:
        return []
    return [
        f"with {size:,} records {' and '.join(flat)} did not get beyond the most frequent label ({baseline:.1f}) in so many steps: "
        "more of them (--steps) or another rate (--rate) may change what is said here"
    ]


def _gain(figures: Figures, start: str, what: str, sizes: Sequence[int], metric: str) -> str:
    largest, smallest = sizes[-1], sizes[0]
    mean, deviation, number = difference(figures, start, "random", largest)
    verb, value = _verb(mean, deviation)
    told = f"{what} {verb} {value} points of {metric} at {largest:,} records ({number} seeds)"
    if len(sizes) == 1:
        return told
    verb_there, value = _verb(*difference(figures, start, "random", smallest)[:2])
    return (
        f"{told}, and {value} at {smallest:,}"
        if verb_there == verb
        else f"{told}; at {smallest:,} it {verb_there} {value}"
    )


def _verb(mean: float, deviation: float) -> tuple[str, str]:
    """Returns what a difference means, and its size; with its sign where it means nothing."""
    if abs(mean) <= deviation:
        return "made no difference beyond the spread of the seeds:", f"{mean:.1f} ± {deviation:.1f}"
    return "was worth" if mean > 0 else "cost", f"{abs(mean):.1f} ± {deviation:.1f}"


def _labels(figures: Figures, sizes: Sequence[int], metric: str) -> str:
    """Returns how many labels from scratch the smallest size is worth."""
    if len(sizes) < 2:
        return "nothing is claimed about labels: it takes two sizes (--sizes)"
    smallest, largest = sizes[0], sizes[-1]
    mean, deviation, _ = difference(figures, "pretrained", "random", smallest)
    if mean <= deviation:
        return f"nothing is claimed about labels: at {smallest:,} records pre-training is not better beyond the spread of the seeds"
    scratch, trained = (
        {size: mean for size, (mean, _) in means(figures[start]).items()} for start in ("random", "pretrained")
    )
    target = trained[smallest]
    has = f"what the pre-trained model has with {smallest:,} ({target:.1f})"
    needed = labels_to_match(scratch, target)
    if needed is None:
        return (
            f"from scratch needs more than all {largest:,} records, more than {_times(largest / smallest)} the labels, to reach {has}: "
            f"with all of them it has {scratch[largest]:.1f}"
        )
    each = [
        labels_to_match({size: figures["random"][size][seed] for size in sizes}, figures["pretrained"][smallest][seed])
        for seed in sorted(set(figures["random"][smallest]) & set(figures["pretrained"][smallest]))
    ]
    ratios = sorted(n / smallest for n in each if n is not None)
    among = f" ({_number(ratios[0])} to {_number(ratios[-1])} over the seeds)" if len(ratios) == len(each) else ""
    among = among or " (more than all in some seeds)"
    return f"from scratch needs {_times(needed / smallest)} the labels{among} to reach {has}"


def _number(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 9.95 else f"{ratio:.1f}"


def _times(ratio: float) -> str:
    return f"{_number(ratio)} times"
