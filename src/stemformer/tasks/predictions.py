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
        blocks = []
        for record, prediction in zip(records, predictions, strict=True):
            columns = [record.words, *([record.tags] if record.tags is not None else []), prediction.tags]
            blocks.append("".join("\t".join(line) + "\n" for line in zip(*columns, strict=True)))
        return "\n".join(blocks)
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
    """Return records with their predictions for a report: wrong ones first, by decreasing error.

    With `outputs`, entries have the `report_details` of the task, such as token probabilities.
    """
    ranked = []
    for i, (record, prediction) in enumerate(zip(records, predictions, strict=True)):
        error, is_wrong, entry = task.to_report_example(record, prediction)
        if is_wrong or not only_wrong:
            ranked.append((not is_wrong, -error, i, entry))
    ranked = sorted(ranked, key=lambda item: item[:3])[:number]
    if outputs is not None:
        for *_, i, entry in ranked:
            entry |= task.report_details(records[i], predictions[i], i, outputs)
    return [entry for *_, entry in ranked]
