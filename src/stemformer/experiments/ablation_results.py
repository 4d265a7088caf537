"""The results of an ablation: scores of variants by task, their bounds and differences, and sentences about them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from stemformer.evaluation.seed_statistics import (
    MIN_INTERVAL_SEEDS,
    SeedScores,
    add_mean,
    find_best,
    interval,
    means,
    paired_difference,
)
from stemformer.experiments.ablation_plan import (
    MEAN,
    RANDOM,
    AblationConfig,
    AblationData,
    AblationRun,
    read_same_text,
    rounding_notes,
    row_title,
)
from stemformer.experiments.run_grid import FAILED, Record
from stemformer.progress import format_count, format_list
from stemformer.tasks.dataset import LabelledData, majority_baseline
from stemformer.tasks.metrics import points_per_unit


def summarize(records: Mapping[AblationRun, Record], config: AblationConfig, shared: AblationData) -> dict[str, Any]:
    """Return the content of `ablate.json` from the records of all runs."""
    failed = {cell: record[FAILED] for cell, record in records.items() if FAILED in record}
    done = {cell: record for cell, record in records.items() if cell not in failed}
    tasks = {name: data.task for name, data in shared.labelled.items()}
    understanding = [name for name, task in tasks.items() if not task.writes_texts]
    points = {name: points_per_unit(task.config.name, task.main_metric) for name, task in tasks.items()}
    scores: SeedScores = {
        variant: {
            task: {
                cell.seed: points[task] * record["metrics"][record["metric"]]
                for cell, record in done.items()
                if cell[:2] == (variant, task)
            }
            for task in tasks
        }
        for variant in (RANDOM, *config.variants)
    }
    columns = list(tasks)
    if len(understanding) > 1:
        scores = add_mean(scores, understanding, MEAN)
        columns = [*understanding, MEAN, *(name for name in tasks if name not in understanding)]
    best = {column: find_best(scores, column) for column in columns}
    pretraining = [{**record} for cell, record in done.items() if not cell.task]
    return {
        "recipe": config.run.recipe,
        "columns": columns,
        "tasks": {
            name: {
                "task": task.config.name,
                "metric": task.main_metric,
                "train": len(shared.labelled[name].train),
                "dev": len(shared.labelled[name].dev),
                "baseline": _baseline(shared.labelled[name], name, done, points[name]),
            }
            for name, task in tasks.items()
        },
        "variants": {name: list(settings) for name, settings in config.variants.items()},
        "seeds": list(config.seeds()),
        "summary": _sentences(scores, columns, best, failed, config),
        "scores": {variant: {column: _statistics(scores[variant][column]) for column in columns} for variant in scores},
        "differences": _differences(scores, columns),
        "best": {column: {"variants": first, "close": close} for column, (first, close) in best.items()},
        "pretraining": pretraining,
        "notes": _notes(config, shared, done),
        "failed": [{**cell._asdict(), "error": error} for cell, error in failed.items()],
        "runs": [{**record, "log": cell.log} for cell, record in done.items() if cell.task],
    }


def score_text(content: Mapping[str, Any], variant: str, column: str) -> str:
    """Return mean and deviation, with a star for the best of the column, or for all that tie."""
    row = content["scores"][variant][column]
    if row["mean"] is None:
        return "-"
    spread = f" ± {row['spread']:.1f}" if len(row["each"]) > 1 else ""
    return f"{row['mean']:.1f}{spread}" + ("*" if variant in content["best"][column]["variants"] else "")


def _baseline(data: LabelledData, name: str, done: Mapping[AblationRun, Record], scale: float) -> float | None:
    """Return the score in points that needs no model: the most frequent label, or the best such text; None if unknown."""
    if data.task.main_metric == "accuracy":
        majority = majority_baseline(data)
        return None if majority is None else scale * majority[1]
    found = (record["baseline"] for cell, record in done.items() if cell.task == name and "baseline" in record)
    value = next(found, None)
    return None if value is None else scale * value


def _statistics(by_seed: Mapping[int, float]) -> dict[str, Any]:
    """Return mean, deviation, 95 % interval and single scores of a cell of the table."""
    if not by_seed:
        return {"mean": None, "spread": None, "interval": None, "each": {}}
    mean, deviation = means({0: by_seed})[0]
    bounds = interval(mean, deviation, len(by_seed))
    each = {str(seed): score for seed, score in by_seed.items()}
    return {"mean": mean, "spread": deviation, "interval": bounds, "each": each}


def _differences(scores: SeedScores, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the paired difference of each variant from random weights, in each column with common seeds."""
    rows = []
    for variant in (name for name in scores if name != RANDOM):
        for column in columns:
            if not set(scores[variant][column]) & set(scores[RANDOM][column]):
                continue
            mean, deviation, number = paired_difference(scores, variant, RANDOM, column)
            row = {"variant": variant, "column": column, "mean": mean, "spread": deviation, "seeds": number}
            rows.append(row | {"interval": interval(mean, deviation, number)})
    return rows


def _mean_text(by_seed: Mapping[int, float]) -> str:
    mean, deviation = means({0: by_seed})[0]
    return f"{mean:.1f}" + (f" ± {deviation:.1f}" if len(by_seed) > 1 else "")


def _sentences(
    scores: SeedScores,
    columns: Sequence[str],
    best: Mapping[str, tuple[list[str], list[str]]],
    failed: Mapping[AblationRun, str],
    config: AblationConfig,
) -> list[str]:
    """Summarize which variant is best in each column, which may be as good, and which gain nothing."""
    sentences = []
    if failed:
        sentences.append(f"{format_count(len(failed), 'run')} failed: missing here, made again by --resume")
    for column in [*([MEAN] if MEAN in columns else []), *(name for name in columns if name != MEAN)]:
        first, close = best[column]
        if not first:
            continue
        name = "the mean over understanding tasks" if column == MEAN else column
        shown_rows = [f"{row_title(row)} ({_mean_text(scores[row][column])})" for row in first]
        sentence = f"best on {name}{', tied' if len(first) > 1 else ''}: {format_list(shown_rows, 8)}"
        num_rows = sum(bool(by_column[column]) for by_column in scores.values())
        if num_rows > 1 and config.num_seeds < MIN_INTERVAL_SEEDS:
            sentence += f"; with {format_count(config.num_seeds, 'seed')} no difference is established (--num-seeds 3)"
        elif close:
            sentence += f"; not distinguishable: {format_list(map(row_title, close), 8)}"
        elif num_rows > len(first):
            sentence += "; ahead of all others by paired 95 % intervals"
        sentences.append(sentence)
    column = MEAN if MEAN in columns else columns[0]
    rows = _differences(scores, [column])
    where = "the mean over understanding tasks" if column == MEAN else column
    if unsure := [row["variant"] for row in rows if row["interval"] and row["interval"][0] <= 0]:
        sentences.append(f"no gain over random weights established on {where}: {format_list(unsure, 8)}")
    if below := [row["variant"] for row in rows if row["interval"] is None and row["mean"] <= 0]:
        sentences.append(f"not above random weights on {where}: {format_list(below, 8)}")
    return sentences


def _notes(config: AblationConfig, shared: AblationData, done: Mapping[AblationRun, Record]) -> list[str]:
    """Return sentences about how the runs were made."""
    run, seeds = config.run, format_count(config.num_seeds, "seed")
    if config.flops is not None:
        length = f"{config.flops:.3g} floating-point operations, rounded to full steps"
    elif run.budget.seconds is not None:
        length = f"{run.budget.seconds:g} seconds"
    else:
        length = next(f"{value:,} {name}" for name, value in asdict(run.budget).items() if value is not None)
    number = config.num_pretraining_seeds
    pretrained, variation = f"{number} pre-trainings", ""
    if number == 1:
        pretrained = "one pre-training"
        if config.num_seeds > 1:
            variation = ", so ± and intervals do not contain the variation over pre-trainings"
    elif number < config.num_seeds:
        variation = ", so runs that share a pre-training are not independent"
    changed = [n for n, settings in config.variants.items() if any(s.startswith("model.") for s in settings)]
    rates = ", ".join(f"{rate:g} on {name}" for name, rate in shared.random_rates.items())
    steps = {
        name: sorted({record["steps"] for cell, record in done.items() if cell.task == name}) for name in config.tasks
    }
    lengths = ", ".join(f"{' or '.join(map(str, found))} on {name}" for name, found in steps.items() if found)
    same_text = "; the same text in the same order" if read_same_text(list(shared.plans.values())) else ""
    notes = [
        f"training budget of each variant: {length}{same_text}",
        *rounding_notes(shared.plans),
        f"{seeds} of fine-tuning and {pretrained} of each variant{variation}",
        "a seed sets head, order and dropout in the same way for each variant",
    ]
    if config.num_seeds > 1:
        notes.append("± is the standard deviation over seeds; differences are over paired seeds")
    if config.num_seeds >= MIN_INTERVAL_SEEDS:
        notes.append("95 % intervals are Student's t, not corrected for the number of variants")
    if config.num_seeds > 1:
        notes.append("± and intervals are those of one set of dev data, whose sampling they do not contain")
    return [
        *notes,
        f"steps of fine-tuning: {lengths}; the score of a run is that of its last step, nothing was selected on dev",
        f"random weights: the recipe without pre-training; peak learning rate {rates}",
        "held-out losses of different noises are not comparable",
        *([f"other model than that of random weights: {', '.join(changed)}"] if changed else []),
        *(f"{name}: {note}" for name, notes in shared.notes.items() for note in notes),
    ]
