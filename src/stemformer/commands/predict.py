"""Predict with a fine-tuned model on files."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stemformer.commands.load import open_pipeline
from stemformer.errors import ConfigError
from stemformer.io import write_file
from stemformer.options import PredictOptions, accepts
from stemformer.output_dir import check_output_file
from stemformer.progress import Progress, Silent
from stemformer.tasks.predictions import PredictionFile
from stemformer.tasks.record_blocks import RecordBlocks, open_records
from stemformer.tasks.task import Task


@accepts(PredictOptions)
def predict(
    options: PredictOptions,
    *,
    on_row: Callable[[dict[str, Any]], None] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Predict with a fine-tuned model on files.

    Records are read, predicted and written in blocks, of which one is in memory.

    Args:
        on_row: Called with each row in the place of keeping them for the result; without `out`.

    Returns:
        `predictions`, the rows, or `out` and the number of `records`; `counts` of what was skipped or cut, and `notes`.

    Raises:
        ConfigError: The output file exists, or its format does not suit the task.
        StemformerError: Data or model do not fit together, or the format cannot hold the answers.
    """
    progress = progress or Silent()
    check_output_file(options.out, overwrite=options.overwrite, inputs=options.files)
    model = open_pipeline(options.model, options).with_long_sources(options.long_sources)
    model = model.with_languages(**options.languages())
    model = model.with_labels(options.label_map) if options.label_map else model
    task = model.require_task()
    file = PredictionFile(options.out, task)
    blocks, counts = open_task_records(task, options, progress, check=file.check)
    model.tokenizer.unknown.clear()

    def predicted() -> Iterator[tuple[Sequence[Any], Sequence[Any]]]:
        for block in model.predict_blocks(blocks, total=blocks.num_records, progress=progress):
            counts.update(block.examples.counts)
            yield block.records, block.predictions

    rows: list[dict[str, Any]] = []
    if options.out is None:
        keep = on_row or rows.append
        for pairs in predicted():
            for record, prediction in zip(*pairs, strict=True):
                keep(task.to_row(record, prediction))
    else:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        write_file(Path(options.out), file.contents(predicted()))

    notes = [note] if (note := model.tokenizer.unknown.note()) else []
    for line in (*notes, *(f"{name}: {number:,}" for name, number in counts.items())):
        progress.say(line)
    found = {"predictions": rows} if options.out is None else {"out": options.out, "records": blocks.num_records}
    return {**found, "counts": dict(counts), "notes": notes}


def open_task_records(
    task: Task,
    options: PredictOptions,
    progress: Progress,
    *,
    label_column: tuple[str, ...] = (),
    needs_answer: bool = False,
    check: Callable[[Sequence[Any]], None] = lambda records: None,
    advice: str = "--text-column",
) -> tuple[RecordBlocks, Counter[str]]:
    """Return the records of labelled files in blocks, and counts of what was skipped.

    Columns that are not named are those of the training data if the files have them, else guessed.
    """
    counts, config = Counter[str](), task.config
    # A model from elsewhere does not say whether it reads pairs: two columns do.
    is_pair = config.name == "pair" or (config.name == "classify" and not config.text and len(options.text_column) == 2)
    name = "pair" if is_pair else config.name
    requested = replace(config, name=name, text=options.text_column, label=label_column)
    if requested.kind != config.kind:
        raise ConfigError(
            f"--label-column names {len(label_column)} columns, but the model predicts one label (kind "
            f"{config.kind!r}). Name one column."
        )
    progress.start("reading records")
    how: dict[str, Any] = {"counts": counts, "needs_answer": needs_answer, "like": config, "check": check}
    blocks, found = open_records(requested, options.files, **how)
    is_same = found.text == config.text and (not needs_answer or found.label == config.label)
    if task.column_titles is not None and not is_same and found.text:
        label = f", label column {found.label!r}" if needs_answer else ""
        names = " and ".join(map(repr, found.text))
        progress.say(f"Using text column {names}{label}. Change it with {advice}.")
    return blocks, counts
