"""The `benchmark glue` and `benchmark squad` commands: fine-tune for each task, next to published results."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from stemformer.config import from_toml, nearest
from stemformer.data.labelled.question_answering import Question, read_questions
from stemformer.data.text.files import HUB_PREFIX
from stemformer.errors import ConfigError, DataError
from stemformer.evaluation.benchmarks import BENCHMARKS, GLUE, BenchmarkTask, find_split, published_results
from stemformer.experiments import benchmark_runs
from stemformer.experiments.benchmark_runs import BenchmarkConfig, TaskData, run_task
from stemformer.experiments.run_grid import PlannedRun, Record, RunGrid, prepare_experiment_dir
from stemformer.huggingface.load import find_model_folder, read_task_info
from stemformer.io import write_json
from stemformer.options import BenchmarkOptions, GlueOptions, SquadOptions, accepts
from stemformer.output_dir import exclusive_output_dir
from stemformer.progress import Progress, Silent
from stemformer.reports.benchmark import PLAIN_START, benchmark_table, write_benchmark_report
from stemformer.tasks.metrics import squad_metrics
from stemformer.training.config import RENAMED_SETTINGS

_DIFFERENT_DATA = (
    "results are in percent; ours are on the dev set, published ones on the split after their name: not the same data"
)
_CHOSEN_ON_DEV = "the learning rate was chosen on the same dev set as the results, as in the BERT paper"
_WNLI = (
    "WNLI: some sentences of the dev set are in the training set with the other label, so memorizing them is wrong; "
    "the BERT paper leaves the task out, and the most frequent class is the result to beat"
)
_TUNED_THRESHOLD = (
    "the threshold of 'no answer' was tuned on the same dev set, as the best results of the official script are"
)
_RENAMED = {**RENAMED_SETTINGS, "trials": "num_seeds"}


@exclusive_output_dir
@accepts(GlueOptions)
def benchmark_glue(options: GlueOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Fine-tune a model on each task of GLUE and list the results next to published ones.

    Each learning rate is tried with the first seed, and the best on dev is used for the others. Of the
    runs of a task, the model of the best one on dev is kept. A finished task is a line of `finished.jsonl`.

    Returns:
        `table` of the metrics of each task next to published ones, `missing` tasks, and `notes`.

    Raises:
        StemformerError: No task has its files; data, settings or model do not fit together.

    Example:
        >>> benchmark_glue("glue_data", model="google/bert_uncased_L-4_H-256_A-4", out="runs/glue")  # doctest: +SKIP
    """
    progress = progress or Silent()
    names = options.tasks or tuple(GLUE)
    config = _make_config(options, data=(options.folder,), tasks=names, from_task=options.from_task)
    tasks, missing = _find_tasks(config)
    for line in missing:
        progress.say(line)
    folder, grid = _open_grid(config, options)
    compute = options.compute()

    def run(task: BenchmarkTask, inner: Progress) -> Record:
        model, start = _start(task, config, grid.finished)
        data = benchmark_runs.read_task_data(task, options.folder, folder)
        return run_task(data, replace(config, model=model), folder / task.name, compute, inner) | {"start": start}

    results = _run_tasks(grid, {task.name: partial(run, task) for task in tasks}, progress)
    result = _conclude(folder, "GLUE", config, results, missing, _notes(results))
    if options.submission:
        models = {record["task"]: record["model"] for record in results}
        result["submission"] = str(folder / "submission")
        if not_submitted := benchmark_runs.write_submission(tasks, models, folder / "submission", options, progress):
            result["not_submitted"] = not_submitted
    return result


@exclusive_output_dir
@accepts(SquadOptions)
def benchmark_squad(options: SquadOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Fine-tune a model on SQuAD 1.1 or 2.0 and list exact match and F1 next to published ones.

    The output directory holds the predictions of the best run for the official script:
    `predictions.json`, and for SQuAD 2.0 `null_odds.json`, whose threshold is tuned on the dev data as
    that script tunes it.

    Raises:
        StemformerError: Data, settings or model do not fit together.
    """
    progress = progress or Silent()
    if not options.train or not options.dev:
        raise ConfigError("No data. Pass training files (--train) and dev files (--dev).")
    config = _make_config(options, data=options.train, dev=options.dev)
    progress.start("reading questions")
    train, dev = (read_questions(files, counts=Counter()) for files in (options.train, options.dev))
    name, number = Counter(question.id for question in dev).most_common(1)[0]
    if number > 1:
        keyed = f"the id {name!r} occurs {number} times, and predictions.json holds one answer for an id"
        raise DataError(f"{', '.join(options.dev)}: {keyed}. Pass --dev files whose questions have different ids.")
    is_v2 = any(not question.gold for question in train)
    if not is_v2 and any(not question.gold for question in dev):
        progress.say("Some dev questions have no answer, but no training question: the model always answers.")
    task = BENCHMARKS[f"SQuAD {'2.0' if is_v2 else '1.1'}"]
    folder, grid = _open_grid(config, options)
    compute = options.compute()

    def run(inner: Progress) -> Record:
        data = TaskData(task, options.train, options.dev, len(train), len(dev), _no_answer_metrics(dev))
        record = run_task(data, config, folder / "runs", compute, inner)
        benchmark_runs.write_answers(folder, record["model"], dev, compute, inner)
        return record | {"start": PLAIN_START}

    results = _run_tasks(grid, {task.name: run}, progress)
    names = ("predictions", "null_odds") if is_v2 else ("predictions",)
    notes = _notes(results) + ([_TUNED_THRESHOLD] if is_v2 else [])
    result = _conclude(folder, task.name, config, results, [], notes)
    return result | {name: str(folder / f"{name}.json") for name in names}


def _make_config(options: BenchmarkOptions, **rest: Any) -> BenchmarkConfig:
    shared = ("model", "num_seeds", "learning_rates", "epochs", "batch_size", "max_length", "seed", "settings")
    return BenchmarkConfig(**{name: getattr(options, name) for name in shared}, **rest)


def _find_tasks(config: BenchmarkConfig) -> tuple[list[BenchmarkTask], list[str]]:
    """Return the tasks that have their files, the one that others start from first, and why the rest is skipped."""
    folder = config.data[0]
    if not folder.startswith(HUB_PREFIX) and not Path(folder).is_dir():
        raise DataError(f"{folder} is not a directory. Pass one that holds CoLA/train.tsv and so on.")
    known = [name for name in BENCHMARKS if not name.startswith("SQuAD")]
    for name in config.tasks:
        if name not in known:
            raise ConfigError(f"Task {name!r} does not exist{nearest(name, known)}. Tasks: {', '.join(known)}.")
    tasks, missing = [], []
    for task in (BENCHMARKS[name] for name in dict.fromkeys(config.tasks)):
        needed = [file for file in (task.train, task.dev, task.mismatched) if file is not None]
        absent = [f"{task.name}/{file}" for file in needed if find_split(task, folder, file) is None]
        if absent:
            missing.append(f"{task.name} is skipped: {folder} has no {', '.join(absent)}")
        else:
            tasks.append(task)
    if not tasks:
        raise DataError(f"{folder} has no task with training and dev files: {'; '.join(missing)}")
    first = config.from_task
    if first in BENCHMARKS:
        if BENCHMARKS[first] not in tasks:
            problem = "Its files are missing or it is not among --tasks."
            raise ConfigError(f"--from-task {first}: {problem} Add it, or pass a model.")
        tasks.sort(key=lambda task: task.name != first)
    elif first is not None and not read_task_info(find_model_folder(first)):
        raise ConfigError(f"--from-task {first} is not a fine-tuned model. Pass a task of GLUE or such a model.")
    return tasks, missing


def _open_grid(config: BenchmarkConfig, options: BenchmarkOptions) -> tuple[Path, RunGrid[str]]:
    """Prepare the directory of a benchmark, new or resumed."""
    find_model_folder(config.model)
    inputs = [*config.data, *config.dev, config.model, config.from_task]
    folder = prepare_experiment_dir(options, inputs, command="A benchmark")
    grid = RunGrid(
        folder,
        config,
        key=lambda record: str(record["task"]),
        what="benchmark",
        resume=options.resume,
        stored_config=lambda text, source: from_toml(BenchmarkConfig, text, source=source, renamed=_RENAMED),
        # More seeds may give another best model, which tasks that are finished did not start from.
        may_change=("tasks",) if config.from_task in BENCHMARKS else ("tasks", "num_seeds"),
        former=("tasks.jsonl", "config.toml"),
        renamed=benchmark_runs.RENAMED_KEYS,
    )
    # Tasks that lack seeds are run again; their finished runs are kept.
    for name in [name for name, record in grid.finished.items() if len(record["seeds"]) < config.num_seeds]:
        del grid.finished[name]
    return folder, grid


def _run_tasks(grid: RunGrid[str], runs: dict[str, Callable[[Progress], Record]], progress: Progress) -> list[Record]:
    def describe(record: Record) -> str:
        return ", ".join(f"{name} {scores['mean']:.4g}" for name, scores in record["metrics"].items())

    plans = {name: PlannedRun(name, make) for name, make in runs.items()}
    return grid.run(plans, progress, describe=describe, name="task")


def _start(task: BenchmarkTask, config: BenchmarkConfig, finished: Mapping[str, Record]) -> tuple[str, str]:
    """Return the model that a task starts from, and its name in the table."""
    first = config.from_task
    if first is None or not task.is_small or task.name == first:
        return config.model, PLAIN_START
    return (str(finished[first]["model"]), first) if first in BENCHMARKS else (first, first)


def _no_answer_metrics(questions: Sequence[Question]) -> dict[str, float]:
    """Return exact match and F1 of never answering."""
    gold = {str(i): list(question.gold) for i, question in enumerate(questions)}
    metrics = squad_metrics(gold, dict.fromkeys(gold, ""))
    return {name: metrics[name] for name in ("exact_match", "f1")}


def _notes(results: Sequence[Record]) -> list[str]:
    """Return what a reader must know to compare the results, and the sources of published ones."""
    notes = [_DIFFERENT_DATA]
    if any(len(result["tried"]) > 1 for result in results):
        notes.append(_CHOSEN_ON_DEV)
    by_start: dict[str, list[str]] = {}
    by_source: dict[str, list[str]] = {}
    for result in results:
        if result["start"] != PLAIN_START:
            by_start.setdefault(result["start"], []).append(result["task"])
        for p in published_results(result["task"]):
            by_source.setdefault(p.source, []).append(f"{p.system} {p.part}")
        notes += result["notes"]
    warm = "warm start from the model fine-tuned on {} (with its head, if the sizes agree)"
    notes += [f"{', '.join(names)}: {warm.format(start)}" for start, names in by_start.items()]
    if any(result["task"] == "WNLI" for result in results):
        notes.append(_WNLI)
    return notes + [f"{', '.join(dict.fromkeys(names))}: {source}" for source, names in by_source.items()]


def _conclude(
    folder: Path, name: str, config: BenchmarkConfig, results: list[Record], missing: list[str], notes: list[str]
) -> dict[str, Any]:
    """Write `glue.json` or `squad.json` and the report, and return the result."""
    shared: dict[str, Any] = {"table": benchmark_table(results), "missing": missing, "notes": notes}
    content = {"benchmark": name, "model": config.model, "tasks": results, **shared}
    write_json(folder / ("glue.json" if name == "GLUE" else "squad.json"), content)
    report = write_benchmark_report(folder, f"{name}: {Path(config.model).name}", content)
    result = {"run": str(folder), "report": str(report), **shared}
    return {key: value for key, value in result.items() if value != []}
