"""Pre-training gain: paired differences over seeds, and the labels that it saves."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from stemformer.tasks.metrics import mean_std

SeedScores = Mapping[str, Mapping[Any, Mapping[Any, float]]]
"""Scores in points (higher is better) by initialization, number of records, and what repeats a run, such as its seed.

In an ablation, by variant, column of the table (a task or a mean over tasks), and seed.
"""

MIN_INTERVAL_SEEDS = 3
"""Least number of seeds for an interval: Student's t of two is 12.7, which bounds nothing."""

_NAMES = {"pretrained": "pre-training", "reembedded": "pre-trained body with new word embeddings:"}


def means(scores: Mapping[Any, Mapping[Any, float]]) -> dict[Any, tuple[float, float]]:
    """Return the mean and standard deviation over seeds for each size, ascending."""
    return {size: mean_std(list(scores[size].values())) for size in sorted(scores)}


def paired_difference(scores: SeedScores, first: str, second: str, size: Any) -> tuple[float, float, int]:
    """Return mean, standard deviation and number of the differences over common seeds."""
    # A seed samples the same records for both, so their difficulty does not add to the deviation.
    a, b = (scores.get(name, {}).get(size, {}) for name in (first, second))
    differences = [a[seed] - b[seed] for seed in sorted(set(a) & set(b))]
    return *mean_std(differences), len(differences)


def interval(mean: float, deviation: float, number: int) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean over seeds (Student's t); None of fewer than `MIN_INTERVAL_SEEDS`.

    `deviation` is the sample standard deviation.

    Example:
        >>> interval(80.0, 1.0, 2)
        >>> [round(bound, 2) for bound in interval(80.0, 1.0, 4)]
        [78.41, 81.59]
    """
    if number < MIN_INTERVAL_SEEDS:
        return None
    from scipy.stats import t

    half = float(t.ppf(0.975, number - 1)) * deviation / math.sqrt(number)
    return mean - half, mean + half


def add_mean(scores: SeedScores, columns: Sequence[Any], name: str) -> dict[str, dict[Any, dict[Any, float]]]:
    """Return scores with a further column: the mean over `columns` by seed, of seeds that all of them have."""
    result = {
        row: {column: dict(by_seed) for column, by_seed in by_column.items()} for row, by_column in scores.items()
    }
    for by_column in result.values():
        found = [by_column.get(column, {}) for column in columns]
        common = [seed for seed in found[0] if all(seed in by_seed for by_seed in found)]
        by_column[name] = {seed: math.fsum(by_seed[seed] for by_seed in found) / len(found) for seed in common}
    return result


def find_best(scores: SeedScores, column: Any) -> tuple[list[str], list[str]]:
    """Return the rows with the highest mean in a column, which tie, and the other rows that may be as good.

    Those are the rows whose paired difference from any of the best ones has a 95 % interval with 0, or too few common seeds
    for one, so the order of rows that tie changes nothing. The intervals are not corrected for the number of rows.
    """
    found = {row: by_column[column] for row, by_column in scores.items() if by_column.get(column)}
    mean = {row: math.fsum(by_seed.values()) / len(by_seed) for row, by_seed in found.items()}
    # Equal but for rounding.
    best = [row for row in mean if math.isclose(mean[row], max(mean.values()), rel_tol=1e-9)]
    others = [row for row in found if row not in best]
    return best, [row for row in others if not all(_is_ahead(scores, first, row, column) for first in best)]


def _is_ahead(scores: SeedScores, first: str, second: str, column: Any) -> bool:
    """Return whether the 95 % interval of the paired difference is above 0."""
    if not set(scores[first][column]) & set(scores[second][column]):
        return False
    bounds = interval(*paired_difference(scores, first, second, column))
    return bounds is not None and bounds[0] > 0


def labels_to_match(curve: Mapping[int, float], target: float) -> float | None:
    """Return the number of records at which a curve reaches `target`; None if it never does.

    `curve` (score by number of records) is interpolated over the logarithm, but not extrapolated.
    """
    sizes = sorted(curve)
    if curve[sizes[0]] >= target:
        return float(sizes[0])
    for size, larger in pairwise(sizes):
        if curve[larger] >= target:
            share = (target - curve[size]) / (curve[larger] - curve[size])
            return math.exp(math.log(size) + share * (math.log(larger) - math.log(size)))
    return None


def differences_from_random(scores: SeedScores) -> list[dict[str, Any]]:
    """Return the paired difference from random initialization, by start and size.

    `records_from_scratch` is the result of `labels_to_match`; None with a single size.
    """
    if "random" not in scores:
        return []
    scratch = {size: mean for size, (mean, _) in means(scores["random"]).items()}
    rows = []
    for start in (start for start in scores if start != "random"):
        for size, (mean, _) in means(scores[start]).items():
            gain, deviation, number = paired_difference(scores, start, "random", size)
            row = {"start": start, "records": size, "mean": gain, "spread": deviation, "seeds": number}
            rows.append(row | {"records_from_scratch": labels_to_match(scratch, mean) if len(scratch) > 1 else None})
    return rows


def table_row(scores: SeedScores, size: int) -> dict[str, Any]:
    """Return a row of the result table: each start, and its difference from random."""
    cells = {start: (*means(by_size)[size], len(by_size[size])) for start, by_size in scores.items()}
    if "random" in scores:
        others = [start for start in scores if start != "random"]
        cells |= {f"{start} - random": paired_difference(scores, start, "random", size) for start in others}
    return {"records": size} | {
        name: f"{mean:.1f} ± {deviation:.1f}" if number > 1 else f"{mean:.1f}"
        for name, (mean, deviation, number) in cells.items()
    }


def gain_sentences(
    scores: SeedScores, *, metric: str, baseline: float | None = None, repetitions: str | None = None
) -> list[str]:
    """Summarize the gain of pre-training, and its data efficiency.

    Statements claim nothing that the scores do not support; an initialization that does not exceed
    the majority `baseline` adds a warning. `repetitions` names what scores are repeated over; default: seeds.

    Example:
        >>> runs = {"pretrained": {100: {0: 80.0, 1: 82.0}}, "random": {100: {0: 70.0, 1: 71.0}}}
        >>> gain_sentences(runs, metric="accuracy")[0]
        'pre-training gain in accuracy over 2 seeds: +10.5 ± 0.7 points at 100 records'
    """
    if "random" not in scores or len(scores) < 2:
        return ["no gain computed: it needs the initialization 'random' and another one (--initializations)"]
    sizes = sorted(set.intersection(*map(set, scores.values())))
    others = [start for start in _NAMES if start in scores]
    if not sizes or min(paired_difference(scores, other, "random", size)[2] for other in others for size in sizes) < 2:
        return ["no gain computed: with one seed, a difference may be chance (--num-seeds 3)"]
    repetitions = repetitions or f"{paired_difference(scores, others[0], 'random', sizes[0])[2]} seeds"
    out = [f"{_NAMES[start]} gain in {metric} over {repetitions}: {_gains(scores, start, sizes)}" for start in others]
    if "pretrained" in others:
        out.insert(1, _data_efficiency(scores, sizes))
    ends = {start: means(by_size)[sizes[-1]] for start, by_size in scores.items()}
    flat = [start for start, (mean, std) in ends.items() if baseline is not None and mean - std <= baseline]
    if flat:
        out.append(
            f"with {sizes[-1]:,} records, {' and '.join(flat)} did not exceed the majority baseline ({baseline:.1f}): "
            "more steps (--steps) or another learning rate (--learning-rates) may change these results"
        )
    return out


def _gains(scores: SeedScores, start: str, sizes: Sequence[int]) -> str:
    """Describe the paired gain at the largest and smallest size."""
    parts = []
    for size in dict.fromkeys((sizes[-1], sizes[0])):
        mean, deviation, _ = paired_difference(scores, start, "random", size)
        within = " (within the deviation over seeds)" if abs(mean) <= deviation else ""
        parts.append(f"{mean:+.1f} ± {deviation:.1f} points at {size:,} records{within}")
    return ", ".join(parts)


def _data_efficiency(scores: SeedScores, sizes: Sequence[int]) -> str:
    """Describe the labels from scratch that match pre-training with the smallest size."""
    if len(sizes) < 2:
        return "no data efficiency computed: it needs two sizes (--sizes)"
    smallest, largest = sizes[0], sizes[-1]
    trained, random = scores["pretrained"], scores["random"]
    gain, deviation, _ = paired_difference(scores, "pretrained", "random", smallest)
    if gain <= deviation:
        return f"no data efficiency computed: no gain beyond the deviation over seeds at {smallest:,} records"
    scratch = {size: mean for size, (mean, _) in means(random).items()}
    target = means(trained)[smallest][0]
    match = f"to match pre-training with {smallest:,} records ({target:.1f})"
    needed = labels_to_match(scratch, target)
    if needed is None:
        ratio = f"{largest / smallest:,.1f} times the labels"
        return f"from scratch needs more than {ratio} {match}: all {largest:,} records give {scratch[largest]:.1f}"
    seeds = sorted(set(random[smallest]) & set(trained[smallest]))
    by_seed = [labels_to_match({size: random[size][seed] for size in sizes}, trained[smallest][seed]) for seed in seeds]
    ratios = [math.inf if number is None else number / smallest for number in by_seed]
    bounds = f"{min(ratios):,.1f} to {max(ratios):,.1f} by seed"
    bounds = "more than all in some seeds" if math.inf in ratios else bounds
    return f"from scratch needs {needed / smallest:,.1f} times the labels {match}, {bounds}"
