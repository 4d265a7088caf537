"""A task of a benchmark: its data read, what a constant answer gives, and its runs over learning rates and seeds."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from stemformer.commands.finetune import finetune
from stemformer.commands.predict import Pipeline, load
from stemformer.data.labelled.multiple_choice import read_choices
from stemformer.errors import ConfigError
from stemformer.evaluation.benchmarks import BenchmarkTask, find_split, make_records, read_rows
from stemformer.io import write_file
from stemformer.progress import Progress
from stemformer.tasks.metrics import classification_metrics, mean_std, regression_metrics


@dataclass(frozen=True)
class BenchmarkConfig:
    """What `config.toml` of a benchmark's folder holds.

    When the benchmark goes on, `tasks` may change, and `trials` where no task starts from another one's model.

    Attributes:
        model: That training starts from.
        data: Folder of the tasks; of SQuAD the training files.
        dev: Of SQuAD.
        tasks: That were asked for.
        trials: Runs of each task, with seeds that follow each other.
        learning_rates: Each is tried with the first seed, the best on dev is taken; empty for those of the BERT paper.
        epochs: Passes; None for the paper's, like `batch_size`.
        batch_size: Examples a step.
        max_length: Tokens of an example.
        seed: The first.
        from_task: A task, or a fine-tuned model, that the small tasks start from.
        settings: Laid over each run's configuration.
    """

    model: str
    data: tuple[str, ...]
    dev: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    trials: int = 1
    learning_rates: tuple[float, ...] = ()
    epochs: float | None = None
    batch_size: int | None = None
    max_length: int | None = None
    seed: int = 0
    from_task: str | None = None
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ConfigError(f"--num-seeds {self.trials}: expected at least 1")
        if any(rate <= 0 for rate in self.learning_rates):
            raise ConfigError(f"--learning-rates {min(self.learning_rates)}: expected a number above 0")


@dataclass(frozen=True)
class TaskData:
    """What a task is trained and judged on.

    Attributes:
        train: Files as `finetune` reads them, like `dev`.
        dev: Of these the figures are.
        num_train: Records, like `num_dev`.
        num_dev: In all files together.
        baseline: Official figures of a constant answer, by metric.
        mismatched: Records of the second dev set of MNLI.
        notes: What was left out, in sentences.
    """

    train: tuple[str, ...]
    dev: tuple[str, ...]
    num_train: int
    num_dev: int
    baseline: dict[str, float]
    mismatched: tuple[Any, ...] = ()
    notes: tuple[str, ...] = ()


def read_task_data(task: BenchmarkTask, folder: str, target: Path) -> TaskData:
    """Returns a task's data; its texts and answers are written as lines of JSON, since GLUE's files have each their own form.

    Args:
        task: Of GLUE, or SWAG.
        folder: As for `tasks.glue.find_split`.
        target: Folder of the benchmark.

    Raises:
        DataError: Files of another form.
    """
    parts = {part: find_split(task, folder, getattr(task, part)) for part in ("train", "dev")}
    if task.task == "choice":
        read = {part: read_choices([str(file)], counts=Counter()) for part, file in parts.items()}
        (frequent, _), *_ = Counter(q.answer for q in read["train"]).most_common(1)
        right = fmean(q.answer == frequent for q in read["dev"])
        return TaskData(
            (str(parts["train"]),), (str(parts["dev"]),), len(read["train"]), len(read["dev"]), {"accuracy": right}
        )
    counts: Counter[str] = Counter()
    rows = {part: read_rows(task, str(source), counts=counts) for part, source in parts.items()}
    files = {}
    for part, found in rows.items():
        files[part] = target / "data" / task.name / f"{part}.jsonl"
        files[part].parent.mkdir(parents=True, exist_ok=True)
        write_file(files[part], [(json.dumps(row, ensure_ascii=False) + "\n").encode() for row in found])
    baseline = _constant(task, rows["train"], rows["dev"])
    mismatched: list[Any] = []
    if task.mismatched is not None:
        others = read_rows(task, str(find_split(task, folder, task.mismatched)), counts=counts)
        baseline["accuracy_mismatched"] = _constant(task, rows["train"], others)["accuracy"]
        mismatched = [record for record in make_records(task, others) if record.label != "-"]
    notes = tuple(f"{task.name}: {what}: {number:,}" for what, number in counts.items())
    return TaskData(
        (str(files["train"]),),
        (str(files["dev"]),),
        len(rows["train"]),
        len(rows["dev"]),
        baseline,
        tuple(mismatched),
        notes,
    )


def _constant(task: BenchmarkTask, train: Sequence[dict[str, Any]], dev: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Returns the official figures of always saying the most frequent class of the training data, or their mean score."""
    gold = [row[task.label] for row in dev if row[task.label] != "-"]
    if task.kind == "score":
        mean = fmean(row[task.label] for row in train)
        told: dict[str, Any] = regression_metrics(np.array(gold), np.full(len(gold), mean))
    else:
        ((frequent, _),) = Counter(row[task.label] for row in train if row[task.label] != "-").most_common(1)
        number = {label: i for i, label in enumerate(task.labels)}
        right = np.array([number[label] for label in gold])
        told = classification_metrics(right, np.full(len(gold), number[frequent]), task.labels)
    return {name: told[name] for name in task.metrics if name in told}


def run_task(
    task: BenchmarkTask,
    source: TaskData,
    config: BenchmarkConfig,
    folder: Path,
    machine: dict[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """Tries the rates with the first seed, then the best one with the other seeds.

    Args:
        task: What is learned.
        source: Its data.
        config: Model, rates, trials and so on.
        folder: Of the task; its runs that are whole are not done again, and one that was interrupted goes on.
        machine: `device`, `precision` and `threads`, as `finetune` takes them.
        progress: Told how far it is.

    Returns:
        A line of `tasks.jsonl`: sizes, `figures` and `baseline` by metric, the rate that was chosen and the figures of each `tried`,
        seeds, hyper-parameters, seconds of training, the best run's `model`, and notes.
    """
    rates = config.learning_rates or task.learning_rates

    def run(rate: float, seed: int) -> dict[str, Any]:
        progress.say(f"{task.name}: learning rate {rate:g}, seed {seed}")
        return _run(task, source, config, folder / f"rate-{rate:g}" / f"seed-{seed}", rate, seed, machine, progress)

    tried = {rate: run(rate, config.seed) for rate in dict.fromkeys(rates)}
    rate = max(tried, key=lambda r: tried[r]["goodness"])
    runs = [tried[rate], *(run(rate, config.seed + i) for i in range(1, config.trials))]
    figures = {}
    for name in task.metrics:
        each = [told["figures"][name] for told in runs]
        mean, deviation = mean_std(each)
        figures[name] = {"mean": mean, "spread": deviation, "each": each}
    best = max(runs, key=lambda told: told["goodness"])
    progress.say(f"{task.name}: " + ", ".join(f"{name} {of['mean']:.4g}" for name, of in figures.items()))
    return {
        "task": task.name,
        "train": source.num_train,
        "dev": source.num_dev,
        "figures": figures,
        "baseline": source.baseline,
        "learning_rate": rate,
        "tried": {f"{r:g}": told["figures"] for r, told in tried.items()},
        "seeds": [told["seed"] for told in runs],
        "epochs": config.epochs or task.epochs,
        "batch_size": config.batch_size or task.batch_size,
        "seconds": round(sum(told["seconds"] for told in {id(t): t for t in (*tried.values(), *runs)}.values()), 1),
        "model": best["model"],
        "notes": list(source.notes),
    }


def _run(
    task: BenchmarkTask,
    source: TaskData,
    config: BenchmarkConfig,
    folder: Path,
    rate: float,
    seed: int,
    machine: dict[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """Returns the official figures of one run, which is done unless they are there already."""
    file = folder / "official.json"
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    is_begun = any(folder.glob("checkpoints/step-????????"))
    ended = finetune(
        task.task,
        model=config.model,
        train=source.train,
        dev=source.dev,
        out=str(folder),
        text_column=task.texts if task.task in ("classify", "pair") else (),
        label_column=task.label if task.task in ("classify", "pair") else None,
        kind=task.kind,
        max_length=config.max_length,
        epochs=config.epochs or task.epochs,
        batch_size=config.batch_size or task.batch_size,
        learning_rate=rate,
        settings=config.settings,
        seed=seed,
        resume=is_begun,
        overwrite=not is_begun,
        progress=progress,
        **machine,
    )
    told = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["metrics"]
    figures = {name: told[name] for name in task.metrics if name in told}
    if source.mismatched:
        loaded = open_benchmark_model(str(folder), machine)
        predictions = loaded.predict_records(source.mismatched, progress)
        assert loaded.task is not None
        others, _ = loaded.task.compute_metrics(predictions, source.mismatched)
        figures["accuracy_mismatched"] = others["accuracy"]
    result = {
        "seed": seed,
        "figures": figures,
        "goodness": fmean(figures[name] for name in task.metrics),
        "seconds": ended["seconds"],
        "model": str(folder / "final"),
    }
    write_file(file, [(json.dumps(result, indent=2) + "\n").encode()])
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result


def open_benchmark_model(path: str, machine: dict[str, Any]) -> Pipeline:
    """Returns a fine-tuned model that predicts in the precision that it was evaluated in.

    Args:
        path: Its folder.
        machine: `device`, `precision` and `threads`, as `finetune` was given them.
    """
    return load(
        path,
        device=machine["device"] or "auto",
        precision=machine["precision"] or "auto",
        threads=machine["threads"],
    )


def keep_one_model(folder: Path, kept: Path) -> None:
    """Deletes the models of all runs of a task but one; their figures, logs and reports stay.

    Args:
        folder: Of the task.
        kept: The model that stays.
    """
    for final in folder.glob("rate-*/seed-*/final"):
        if final.resolve() != kept.resolve():
            shutil.rmtree(final)
