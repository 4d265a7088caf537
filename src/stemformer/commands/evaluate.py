"""Evaluate a fine-tuned model on labelled files."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from stemformer.commands.load import open_pipeline
from stemformer.commands.predict import open_task_records
from stemformer.errors import ConfigError
from stemformer.io import write_json
from stemformer.options import EvaluateOptions, accepts
from stemformer.output_dir import check_output_file
from stemformer.progress import Progress, Silent
from stemformer.reports.finetuning import write_task_report
from stemformer.tasks.dataset import RecordBlocks
from stemformer.tasks.labels import check_labels, count_labels, match_labels
from stemformer.tasks.predictions import WorstExamples
from stemformer.tasks.task import Task

# Files of a run, whose report is not that of an evaluation.
_RUN_FILES = {"config.toml", "log.jsonl", "trials.json"}
# Examples of a report, which shows fewer.
_NUM_SHOWN = 50


@accepts(EvaluateOptions)
def evaluate(options: EvaluateOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Evaluate a fine-tuned model on labelled files.

    Raises:
        StemformerError: Data or model do not fit together.
    """
    progress = progress or Silent()
    if options.num_worst < 0:
        raise ConfigError(f"--num-worst is {options.num_worst}. Expected 0 or more.")
    check_output_file(options.out, overwrite=options.overwrite, inputs=options.files)
    if options.report is not None:
        _check_report_dir(Path(options.report), overwrite=options.overwrite)

    # Predict.
    model = open_pipeline(options.model, options)
    task = model.require_task()
    labels: set[str] = set()
    # Records of the blocks with new labels.
    labelled: list[Any] = []

    def find_labels(records: Sequence[Any]) -> None:
        if task.labels and not (found := count_labels(task.config, records)).keys() <= labels:
            labels.update(found)
            labelled.extend(records)

    how: dict[str, Any] = {"label_column": options.label_column, "needs_answer": True, "check": find_labels}
    how |= {"advice": "--text-column or --label-column"}
    blocks, counts = open_task_records(task, options, progress, **how)
    if options.label_map:
        model = model.with_labels(options.label_map, labelled)
        task = model.require_task()
    _, notes = match_labels(task, labelled)
    advice = "Check the column (--label-column), or name the labels with --label-map."
    notes += check_labels(task, chain.from_iterable(_matched(task, blocks)), advice=advice)
    model.tokenizer.unknown.clear()
    outcomes: list[Any] = []
    wrong = WorstExamples(task, options.num_worst, only_wrong=True)
    shown = WorstExamples(task, _NUM_SHOWN)
    for block in model.predict_blocks(_matched(task, blocks), total=blocks.num_records, progress=progress):
        outcomes += map(task.outcome, block.records, block.predictions)
        wrong.add(block.records, block.predictions)
        if options.report is not None:
            shown.add(block.records, block.predictions, (block.examples, block.scores, model.tokenizer))
        counts.update(block.examples.counts)
    notes += [note] if (note := model.tokenizer.unknown.note()) else []
    for note in notes:
        progress.say(note)

    # Score.
    metrics, details = task.metrics_of(outcomes)
    result: dict[str, Any] = {
        "model": model.path,
        "task": task.config.name,
        "records": blocks.num_records,
        "main_metric": task.main_metric,
        **metrics,
        "counts": dict(counts),
        "notes": notes,
        **details,
        "wrong": wrong.entries,
    }
    if options.out is not None:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(options.out), result)
    if options.report is not None:
        page = {
            "task": task.config.name,
            "title": f"{Path(model.path).name} on {', '.join(Path(file).name for file in options.files)}",
            "metrics": metrics,
            **details,
            "notes": [*(f"{name}: {number:,}" for name, number in counts.items()), *notes],
            "examples": shown.entries,
            "num_examples": shown.num_examples,
            "num_wrong": shown.num_wrong,
        }
        Path(options.report).mkdir(parents=True, exist_ok=True)
        result["report"] = str(write_task_report(Path(options.report), page))
    return result


def _matched(task: Task, blocks: RecordBlocks) -> Iterator[list[Any]]:
    """Yield blocks of records with the task's spelling of labels."""
    for records in blocks:
        yield match_labels(task, list(records))[0]


def _check_report_dir(folder: Path, *, overwrite: bool) -> None:
    """Refuse a directory that holds anything but the report of an evaluation."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    is_report = "report.html" in names and not names & _RUN_FILES
    if folder.is_file() or (names and not is_report):
        raise ConfigError(f"{folder} holds something else than the report of an evaluation. Pass another --report.")
    if is_report and not overwrite:
        raise ConfigError(f"{folder} holds a report. Pass another --report, or --overwrite to replace it.")
