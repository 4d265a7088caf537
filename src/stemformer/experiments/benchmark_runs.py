"""Runs of one benchmark task: data, constant answer, fine-tuning over learning rates and seeds, predicted answers."""

import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from stemformer.commands.finetune import finetune
from stemformer.commands.load import Pipeline, load
from stemformer.data.labelled.multiple_choice import read_choices
from stemformer.data.labelled.question_answering import Question
from stemformer.errors import ConfigError
from stemformer.evaluation.benchmarks import GLUE, BenchmarkTask, find_split, make_records, read_rows, submission_text
from stemformer.experiments.run_grid import Record, rename_keys
from stemformer.io import read_json_object, write_file, write_json, write_jsonl
from stemformer.options import GlueOptions
from stemformer.progress import Progress, SubProgress
from stemformer.tasks.metrics import classification_metrics, mean_std, regression_metrics

# Keys that earlier versions wrote into the record of a task or of a run.
RENAMED_KEYS = {"figure" + "s": "metrics", "goodness": "mean_metric"}


@dataclass(frozen=True)
class BenchmarkConfig:
    """Config of a benchmark; see `BenchmarkOptions`, `GlueOptions` and `SquadOptions`."""

    model: str
    # Directory of the tasks; training files of SQuAD.
    data: tuple[str, ...]
    dev: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    num_seeds: int = 1
    learning_rates: tuple[float, ...] = ()
    epochs: float | None = None
    batch_size: int | None = None
    max_length: int | None = None
    seed: int = 0
    from_task: str | None = None
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.num_seeds < 1:
            raise ConfigError(f"--num-seeds {self.num_seeds}: expected at least 1")
        if any(rate <= 0 for rate in self.learning_rates):
            raise ConfigError(f"--learning-rates {min(self.learning_rates)}: expected numbers above 0")


@dataclass(frozen=True)
class TaskData:
    """A task and its data: files as `finetune` reads them, and their numbers of records."""

    task: BenchmarkTask
    train: tuple[str, ...]
    dev: tuple[str, ...]
    num_train: int
    num_dev: int
    # Official metrics of a constant answer.
    baseline: dict[str, float]
    # Records of the second dev set of MNLI.
    mismatched: Sequence[Any] = ()
    # What was left out, in sentences.
    notes: Sequence[str] = ()


def read_task_data(task: BenchmarkTask, source: str, folder: Path) -> TaskData:
    """Read a task of GLUE, or SWAG, from `source` (see `find_split`).

    Every file of GLUE has its own format, so texts and labels are written as JSON lines below `folder`.
    """
    splits = {split: str(find_split(task, source, getattr(task, split))) for split in ("train", "dev")}
    if task.task == "choice":
        train, dev = (read_choices([file], counts=Counter()) for file in splits.values())
        (frequent, _), *_ = Counter(question.answer for question in train).most_common(1)
        baseline = {"accuracy": fmean(question.answer == frequent for question in dev)}
        return TaskData(task, (splits["train"],), (splits["dev"],), len(train), len(dev), baseline)
    counts: Counter[str] = Counter()
    rows = {split: read_rows(task, file, counts=counts) for split, file in splits.items()}
    directory = folder / "data" / task.name
    directory.mkdir(parents=True, exist_ok=True)
    for split in splits:
        write_jsonl(directory / f"{split}.jsonl", rows[split])
    baseline = _baseline_metrics(task, rows["train"], rows["dev"])
    mismatched: list[Any] = []
    if task.mismatched is not None:
        others = read_rows(task, str(find_split(task, source, task.mismatched)), counts=counts)
        baseline["accuracy_mismatched"] = _baseline_metrics(task, rows["train"], others)["accuracy"]
        mismatched = [record for record in make_records(task, others) if record.label != "-"]
    train_file, dev_file = (str(directory / f"{split}.jsonl") for split in splits)
    notes = [f"{task.name}: {what}: {number:,}" for what, number in counts.items()]
    sizes = (len(rows["train"]), len(rows["dev"]))
    return TaskData(task, (train_file,), (dev_file,), *sizes, baseline, mismatched, notes)


def _baseline_metrics(task: BenchmarkTask, train: list[dict[str, Any]], dev: list[dict[str, Any]]) -> dict[str, float]:
    """Return the official metrics of always predicting the most frequent training label, or the mean training score."""
    gold = [row[task.label] for row in dev if row[task.label] != "-"]
    metrics: dict[str, Any]
    if task.kind == "score":
        mean = fmean(row[task.label] for row in train)
        metrics = regression_metrics(np.array(gold), np.full(len(gold), mean))
    else:
        ((frequent, _),) = Counter(row[task.label] for row in train if row[task.label] != "-").most_common(1)
        index = {label: i for i, label in enumerate(task.labels)}
        labels = np.array([index[label] for label in gold])
        metrics = classification_metrics(labels, np.full(len(gold), index[frequent]), task.labels)
    return {name: metrics[name] for name in task.metrics if name in metrics}


def run_task(
    data: TaskData, config: BenchmarkConfig, folder: Path, compute: dict[str, Any], progress: Progress
) -> Record:
    """Try the learning rates with the first seed, then run the best one with the other seeds.

    `config.model` is what this task starts from. Finished runs in `folder` are kept, an interrupted one is resumed; of
    the models, only the best on dev is kept. `compute` holds `device`, `precision` and `threads`.
    """
    task = data.task
    rates = list(dict.fromkeys(config.learning_rates or task.learning_rates))
    progress.start("training", total=len(rates) + config.num_seeds - 1, unit="runs")

    def run(rate: float, seed: int) -> dict[str, Any]:
        inner = SubProgress(progress, f"learning rate {rate:g}, seed {seed}", share=1)
        run_config = replace(config, learning_rates=(rate,), seed=seed)
        return _run(data, run_config, folder / f"rate-{rate:g}" / f"seed-{seed}", compute, inner)

    tried = {rate: run(rate, config.seed) for rate in rates}
    rate = max(tried, key=lambda r: tried[r]["mean_metric"])
    runs = [tried[rate], *(run(rate, config.seed + i) for i in range(1, config.num_seeds))]
    metrics = {}
    for name in task.metrics:
        each = [result["metrics"][name] for result in runs]
        mean, deviation = mean_std(each)
        metrics[name] = {"mean": mean, "spread": deviation, "each": each}
    best = max(runs, key=lambda result: result["mean_metric"])["model"]
    for model in folder.glob("rate-*/seed-*/final"):
        if model.resolve() != Path(best).resolve():
            shutil.rmtree(model)
    return {
        "task": task.name,
        "train": data.num_train,
        "dev": data.num_dev,
        "metrics": metrics,
        "baseline": data.baseline,
        "learning_rate": rate,
        "tried": {f"{r:g}": result["metrics"] for r, result in tried.items()},
        "seeds": [result["seed"] for result in runs],
        "epochs": config.epochs or task.epochs,
        "batch_size": config.batch_size or task.batch_size,
        "seconds": round(sum(result["seconds"] for result in [*tried.values(), *runs[1:]]), 1),
        "model": best,
        "notes": list(data.notes),
    }


def _run(data: TaskData, config: BenchmarkConfig, folder: Path, compute: dict[str, Any], progress: Progress) -> Record:
    """Return the official metrics of a run with one learning rate, which is made unless it is finished."""
    file = folder / "official.json"
    if file.is_file():
        progress.start("training", total=1)
        progress.advance(1)
        return rename_keys(read_json_object(file), RENAMED_KEYS)
    task = data.task
    is_started = any(folder.glob("checkpoints/step-????????"))
    is_text = task.task in ("classify", "pair")
    result = finetune(
        task.task,
        model=config.model,
        train=data.train,
        dev=data.dev,
        out=str(folder),
        text_column=task.texts if is_text else (),
        label_column=(task.label,) if is_text else (),
        kind=task.kind,
        max_length=config.max_length,
        epochs=config.epochs or task.epochs,
        batch_size=config.batch_size or task.batch_size,
        learning_rate=config.learning_rates[0],
        settings=config.settings,
        seed=config.seed,
        resume=is_started,
        overwrite=not is_started,
        progress=progress,
        **compute,
    )
    found = read_json_object(folder / "metrics.json")["metrics"]
    metrics = {name: found[name] for name in task.metrics if name in found}
    if data.mismatched:
        pipeline = _open_model(str(folder), compute)
        assert pipeline.task is not None
        predictions = pipeline.predict_records(data.mismatched, progress)
        metrics["accuracy_mismatched"] = pipeline.task.compute_metrics(predictions, data.mismatched)[0]["accuracy"]
    official = {
        "seed": config.seed,
        "metrics": metrics,
        "mean_metric": fmean(metrics[name] for name in task.metrics),
        "seconds": result["seconds"],
        "model": str(folder / "final"),
    }
    write_json(file, official)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return official


def write_submission(
    tasks: Sequence[BenchmarkTask], models: Mapping[str, str], folder: Path, options: GlueOptions, progress: Progress
) -> list[str]:
    """Write the files for the leaderboard, and return a line for each that is missing."""
    source = options.folder
    missing = []
    for task in tasks:
        pipeline = None
        for name, file in task.tests.items():
            split = find_split(task, source, file)
            if split is None:
                missing.append(f"{task.name}: no {name}, because {source} has no {task.name}/{file}")
                continue
            records = make_records(task, read_rows(task, split, counts=Counter(), is_test=True))
            pipeline = pipeline or _open_model(models[task.name], options.compute())
            progress.say(f"{task.name}: predicting {name}")
            predictions = pipeline.predict_records(records, progress)
            answers = [p.score if task.kind == "score" else p.label for p in predictions]
            folder.mkdir(exist_ok=True)
            write_file(folder / name, [submission_text(task, answers).encode()])
    others = [task for task in GLUE.values() if task not in tasks]
    return missing + [f"{task.name}: no {file} (required by the leaderboard)" for task in others for file in task.tests]


def write_answers(
    folder: Path, model: str, questions: Sequence[Question], compute: Mapping[str, Any], progress: Progress
) -> None:
    """Write the answer to each question, and for SQuAD 2.0 the score of "no answer" minus that of the best span."""
    pipeline = _open_model(model, compute)
    assert pipeline.task is not None
    predictions = dict(zip((q.id for q in questions), pipeline.predict_records(questions, progress), strict=True))
    write_json(folder / "predictions.json", {name: p.text for name, p in predictions.items()})
    if pipeline.task.config.no_answer:
        # The official script compares numbers, and JSON has no infinity.
        odds = {name: min(p.no_answer, sys.float_info.max) for name, p in predictions.items()}
        write_json(folder / "null_odds.json", odds)


def _open_model(path: str, compute: Mapping[str, Any]) -> Pipeline:
    """Load a fine-tuned model, to predict with the precision of its evaluation."""
    chosen = {name: compute[name] or "auto" for name in ("device", "precision")}
    return load(path, **chosen, threads=compute["threads"])
