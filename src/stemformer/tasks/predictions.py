"""Output files of predictions, and the selection of examples for reports."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stemformer.errors import ConfigError
from stemformer.tasks.task import Task, TaskOutputs


def output_format(out: str | None, task: Task) -> str:
    """Return the file format of predictions: the suffix of the file name, or `.jsonl` without a file."""
    suffix = Path(out).suffix if out else ".jsonl"
    if suffix not in task.formats:
        formats = f"{', '.join(task.formats)}, not as '{suffix}'"
        raise ConfigError(f"--out {out}: predictions of {task.config.name} are written as {formats}. Change the name.")
    return suffix


def serialize(suffix: str, records: Sequence[Any], predictions: Sequence[Any], rows: Sequence[dict[str, Any]]) -> str:
    """Return the content of a file of predictions, in the format `suffix`; `rows` are from `Task.to_row`."""
    if suffix == ".json":
        return json.dumps({r.id: p.text for r, p in zip(records, predictions, strict=True)}, ensure_ascii=False) + "\n"
    if suffix == ".conll":
        sentences = [(r.words, r.tags, p.tags) for r, p in zip(records, predictions, strict=True)]
        tables = [[column for column in columns if column is not None] for columns in sentences]
        return "\n".join("".join("\t".join(line) + "\n" for line in zip(*x, strict=True)) for x in tables)
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    text = io.StringIO()
    names = [name for name in rows[0] if name != "probabilities"]
    delimiter = "\t" if suffix == ".tsv" else ","
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n", delimiter=delimiter)
    writer.writeheader()
    writer.writerows({k: ",".join(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    return text.getvalue()


def examples_to_show(
    task: Task,
    records: Sequence[Any],
    predictions: Sequence[Any],
    *,
    number: int,
    only_wrong: bool = False,
    outputs: TaskOutputs | None = None,
) -> list[dict[str, Any]]:
    """Return predicted records for a report, wrong ones first, by error; `outputs` adds details."""
    examples = [task.to_report_example(record, p) for record, p in zip(records, predictions, strict=True)]
    ranked = [
        (not is_wrong, -error, i) for i, (error, is_wrong, _) in enumerate(examples) if is_wrong or not only_wrong
    ]
    entries = []
    for *_, i in sorted(ranked)[:number]:
        details = {} if outputs is None else task.report_details(records[i], predictions[i], i, outputs)
        entries.append(examples[i][2] | details)
    return entries
