"""Report of a benchmark: our results next to a constant answer and published results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stemformer.evaluation.benchmarks import BENCHMARKS, published_results
from stemformer.reports.page import Cell, Report, ReportTable, Tile

PLAIN_START = "the model"
"""What a task starts from unless another task or model is named."""
_METRICS = {
    "matthews": "Matthews",
    "accuracy": "accuracy",
    "accuracy_mismatched": "accuracy, other genres",
    "f1": "F1",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "exact_match": "exact match",
}


def _published_columns(results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return key and heading of a column for each published system, such as `bert_base_test` and `BERT-Base test`."""
    headings = [f"{p.system} {p.part}" for result in results for p in published_results(result["task"])]
    return {heading.lower().replace("-", "_").replace(" ", "_"): heading for heading in headings}


def benchmark_table(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return our dev score, a constant answer and published scores for each metric of each task, in percent."""
    columns = _published_columns(results)
    is_warm = any(result["start"] != PLAIN_START for result in results)
    rows = []
    for result in results:
        task = BENCHMARKS[result["task"]]
        scale = 1 if task.task == "qa" else 100
        published = {f"{p.system} {p.part}": p.metrics[task.name] for p in published_results(task.name)}
        for metric in task.metrics:
            scores = result["metrics"][metric]
            spread = f" ± {scale * scores['spread']:.1f}" if len(scores["each"]) > 1 else ""
            row = {"task": task.name, "metric": _METRICS[metric], "ours_dev": f"{scale * scores['mean']:.1f}{spread}"}
            row["constant_dev"] = f"{scale * result['baseline'][metric]:.1f}"
            for key, name in columns.items():
                row[key] = f"{published[name][metric]:.1f}" if metric in published.get(name, {}) else ""
            row["train_dev"] = f"{result['train']:,}/{result['dev']:,}"
            row["runs"] = f"{len(result['seeds'])} at {result['learning_rate']:g}"
            rows.append(row | ({"start": result["start"]} if is_warm else {}))
    return rows


def write_benchmark_report(folder: Path, title: str, content: Mapping[str, Any]) -> Path:
    """Write `report.html` and return its path; `content` is that of `glue.json` or `squad.json`."""
    table = content["table"]
    first = {row["task"]: row for row in reversed(table)}
    tiles = [
        Tile(f"{name}, {row['metric']}", row["ours_dev"], f"constant answer {row['constant_dev']}")
        for name, row in reversed(first.items())
    ]
    headings = {"ours_dev": "ours, dev", "constant_dev": "constant, dev", "train_dev": "train/dev"}
    headings |= _published_columns(content["tasks"])
    rows = [{**row, "ours_dev": Cell(row["ours_dev"], style="strong")} for row in table]
    return Report(
        title=title,
        kind="benchmark",
        lead="Our results are on the dev set; a constant answer needs no model.",
        tiles=tiles,
        tables=[ReportTable("Comparison with published results", rows, headings, num_text_columns=2)],
        notes={"Notes": content["notes"], "Skipped": content["missing"]},
    ).write(folder)
