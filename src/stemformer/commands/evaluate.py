"""Evaluate a fine-tuned model on labelled files."""

from pathlib import Path
from typing import Any

from stemformer.commands.load import open_pipeline
from stemformer.commands.predict import read_task_records
from stemformer.errors import ConfigError
from stemformer.io import write_json
from stemformer.options import EvaluateOptions, accepts
from stemformer.output_dir import check_output_file
from stemformer.progress import Progress, Silent
from stemformer.reports.finetuning import write_task_report
from stemformer.tasks.dataset import check_labels
from stemformer.tasks.predictions import examples_to_show

# Files of a run, whose report is not that of an evaluation.
_RUN_FILES = {"config.toml", "log.jsonl", "trials.json"}


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
    records, counts = read_task_records(task, options, progress, label_column=options.label_column, needs_answer=True)
    notes = check_labels(task, records)
    for note in notes:
        progress.say(note)
    predictions, scores, examples = model.score_records(records, progress)
    counts.update(examples.counts)

    # Score.
    metrics, details = task.compute_metrics(predictions, records)
    result: dict[str, Any] = {
        "model": model.path,
        "task": task.config.name,
        "records": len(records),
        "main_metric": task.main_metric,
        **metrics,
        "counts": dict(counts),
        "notes": notes,
        **details,
        "wrong": examples_to_show(task, records, predictions, number=options.num_worst, only_wrong=True),
    }
    if options.out is not None:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(options.out), result)
    if options.report is not None:
        outputs = (examples, scores, model.tokenizer)
        page = {
            "task": task.config.name,
            "title": f"{Path(model.path).name} on {', '.join(Path(file).name for file in options.files)}",
            "metrics": metrics,
            **details,
            "notes": [*(f"{name}: {number:,}" for name, number in counts.items()), *notes],
            "examples": examples_to_show(task, records, predictions, number=len(records), outputs=outputs),
        }
        Path(options.report).mkdir(parents=True, exist_ok=True)
        result["report"] = str(write_task_report(Path(options.report), page))
    return result


def _check_report_dir(folder: Path, *, overwrite: bool) -> None:
    """Refuse a directory that holds anything but the report of an evaluation."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    is_report = "report.html" in names and not names & _RUN_FILES
    if folder.is_file() or (names and not is_report):
        raise ConfigError(f"{folder} holds something else than the report of an evaluation. Pass another --report.")
    if is_report and not overwrite:
        raise ConfigError(f"{folder} holds a report. Pass another --report, or --overwrite to replace it.")
