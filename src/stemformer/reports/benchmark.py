"""`report.html` of a benchmark: its figures beside a baseline and what others published."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stemformer.evaluation.benchmarks import BENCHMARKS, published_figures
from stemformer.reports.page import write_page

_NAMES = {
    "matthews": "Matthews",
    "accuracy": "accuracy",
    "accuracy_mismatched": "accuracy, other genres",
    "f1": "F1",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "exact_match": "exact match",
}

_OURS = "ours, dev"


def table_of(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row for each official figure of each task: ours, its baseline, and published ones, in percent.

    Args:
        results: Lines of `tasks.jsonl`: `task`, `train`, `dev`, `start`, `learning_rate`, `seeds`, `figures` and `baseline`.
    """
    columns = list(dict.fromkeys(f"{p.system} {p.part}" for told in results for p in published_figures(told["task"])))
    is_warm = any(told["start"] != "the model" for told in results)
    rows = []
    for told in results:
        task = BENCHMARKS[told["task"]]
        scale = 1 if task.task == "qa" else 100
        others = {f"{p.system} {p.part}": p.figures[task.name] for p in published_figures(task.name)}
        for metric in task.metrics:
            of = told["figures"][metric]
            row = {"task": task.name, "metric": _NAMES[metric]}
            row[_OURS] = f"{scale * of['mean']:.1f}" + (f" ± {scale * of['spread']:.1f}" if len(of["each"]) > 1 else "")
            row["constant, dev"] = f"{scale * told['baseline'][metric]:.1f}"
            row |= {name: f"{others[name][metric]:.1f}" if metric in others.get(name, {}) else "" for name in columns}
            row["train/dev"] = f"{told['train']:,}/{told['dev']:,}"
            row["runs"] = f"{len(told['seeds'])} at {told['learning_rate']:g}"
            rows.append(row | ({"start": told["start"]} if is_warm else {}))
    return rows


def write_benchmark_report(
    folder: Path,
    *,
    title: str,
    results: Sequence[Mapping[str, Any]],
    missing: Sequence[str],
    notes: Sequence[str],
    config: str,
) -> Path:
    """Writes `report.html` into a folder, one file that needs nothing else, and returns where it is.

    Args:
        folder: Where it goes.
        title: Of the page.
        results: As for `table_of`.
        missing: What is said of tasks that were left out.
        notes: What must be known to compare the figures.
        config: TOML text.
    """
    table = table_of(results)
    first = {row["task"]: row for row in reversed(table)}
    tiles = [
        (f"{name}, {row['metric']}", row[_OURS], f"constant answer {row['constant, dev']}")
        for name, row in reversed(first.items())
    ]
    return write_page(
        folder,
        "benchmark.html",
        name=title,
        tiles=tiles,
        columns=list(table[0]),
        table=table,
        missing=missing,
        notes=notes,
        plots=[],
        config=config,
    )
