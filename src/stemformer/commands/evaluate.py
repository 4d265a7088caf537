"""Evaluate a fine-tuned model on labelled files."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from stemformer.commands.load import open_pipeline
from stemformer.commands.predict import open_task_records
from stemformer.errors import ConfigError
from stemformer.huggingface.load import find_model_folder
from stemformer.io import write_json
from stemformer.options import EvaluateOptions, accepts
from stemformer.output_dir import check_output_file
from stemformer.progress import Progress, Silent
from stemformer.reports.finetuning import write_task_report
from stemformer.tasks.dataset_notes import REMOVE_ADVICE, TrainingOverlap, load_training_texts
from stemformer.tasks.labels import check_labels, match_labels, respell_labels
from stemformer.tasks.predictions import WorstExamples

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
    model = open_pipeline(options.model, options).with_long_sources(options.long_sources)
    model = model.with_languages(**options.languages())
    task = model.require_task()
    how: dict[str, Any] = {"label_column": options.label_column, "needs_answer": True}
    blocks, counts = open_task_records(task, options, progress, **how, advice="--text-column or --label-column")
    if options.label_map:
        model = model.with_labels(options.label_map, blocks.labels)
        task = model.require_task()
    names, notes = match_labels(task, blocks.labels)
    found = Counter[str]()
    for label, number in blocks.labels.items() if task.labels else ():
        found[names.get(label, label)] += number
    advice = "Check the column (--label-column), or name the labels with --label-map."
    notes += check_labels(task, found, advice=advice)
    matched = (respell_labels(task, records, names) for records in blocks)
    model.tokenizer.unknown.clear()
    folder = Path(model.path)
    known = load_training_texts(find_model_folder(folder)) if folder.is_dir() else np.empty(0, np.uint64)
    overlap = TrainingOverlap(task, known)
    outcomes: list[Any] = []
    wrong = WorstExamples(task, options.num_worst, only_wrong=True)
    shown = WorstExamples(task, _NUM_SHOWN)
    for block in model.predict_blocks(matched, total=blocks.num_records, progress=progress):
        overlap.add(block.records)
        outcomes += map(task.outcome, block.records, block.predictions)
        wrong.add(block.records, block.predictions)
        if options.report is not None:
            shown.add(block.records, block.predictions, (block.examples, block.scores, model.tokenizer))
        counts.update(block.examples.counts)
    notes += overlap.note("evaluated data", blocks.num_records, REMOVE_ADVICE)
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


def _check_report_dir(folder: Path, *, overwrite: bool) -> None:
    """Refuse a directory that holds anything but the report of an evaluation."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    is_report = "report.html" in names and not names & _RUN_FILES
    if folder.is_file() or (names and not is_report):
        raise ConfigError(f"{folder} holds something else than the report of an evaluation. Pass another --report.")
    if is_report and not overwrite:
        raise ConfigError(f"{folder} holds a report. Pass another --report, or --overwrite to replace it.")
