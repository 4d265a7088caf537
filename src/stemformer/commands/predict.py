"""Predict with a fine-tuned model on files."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from stemformer.commands.load import open_pipeline
from stemformer.io import write_file
from stemformer.options import PredictOptions, accepts
from stemformer.output_dir import check_output_file
from stemformer.progress import Progress, Silent
from stemformer.tasks.dataset import read_records
from stemformer.tasks.predictions import output_format, serialize
from stemformer.tasks.task import Task


@accepts(PredictOptions)
def predict(options: PredictOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Predict with a fine-tuned model on files.

    Raises:
        ConfigError: The output file exists, or its format does not suit the task.
        StemformerError: Data or model do not fit together.
    """
    progress = progress or Silent()
    check_output_file(options.out, overwrite=options.overwrite, inputs=options.files)
    model = open_pipeline(options.model, options)
    task = model.require_task()
    file_format = output_format(options.out, task)
    records, counts = read_task_records(task, options, progress)
    predictions, _, examples = model.score_records(records, progress)
    rows = [task.to_row(record, prediction) for record, prediction in zip(records, predictions, strict=True)]
    counts.update(examples.counts)
    for name, number in counts.items():
        progress.say(f"{name}: {number:,}")
    if options.out is None:
        return {"predictions": rows, "counts": dict(counts)}
    content = serialize(file_format, records, predictions, rows)
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    write_file(Path(options.out), [content.encode()])
    return {"out": options.out, "records": len(rows), "counts": dict(counts)}


def read_task_records(
    task: Task,
    options: PredictOptions,
    progress: Progress,
    *,
    label_column: str | None = None,
    needs_answer: bool = False,
) -> tuple[list[Any], Counter[str]]:
    """Read the records of labelled files, and counts of what was skipped.

    Columns that are not named are those of the training data if the files have them, else guessed.
    """
    counts, config = Counter[str](), task.config
    requested = replace(config, text=options.text_column, label=label_column)
    records, found = read_records(requested, options.files, counts=counts, needs_answer=needs_answer, like=config)
    is_same = found.text == config.text and (not needs_answer or found.label == config.label)
    if task.head == "sequence" and not is_same:
        label = f", label column {found.label!r}" if needs_answer else ""
        names = " and ".join(map(repr, found.text))
        progress.say(f"Using text column {names}{label}. Change it with --text-column.")
    return records, counts
