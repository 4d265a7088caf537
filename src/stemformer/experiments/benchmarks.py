"""The benchmark commands: fine-tune for each task of GLUE, or on SQuAD, and set the figures beside those that others published."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stemformer.commands.predict import Pipeline
from stemformer.config import differences, from_toml, nearest, to_toml
from stemformer.data.labelled.question_answering import Question, read_questions
from stemformer.data.text.files import HUB_PREFIX
from stemformer.errors import CheckpointError, ConfigError, DataError
from stemformer.evaluation.benchmarks import (
    BENCHMARKS,
    GLUE,
    BenchmarkTask,
    find_split,
    make_records,
    published_results,
    read_rows,
    submission_text,
)
from stemformer.experiments.benchmark_runs import (
    BenchmarkConfig,
    TaskData,
    keep_one_model,
    open_benchmark_model,
    read_task_data,
    run_task,
)
from stemformer.huggingface.load import find_folder, read_task
from stemformer.io import append_jsonl, write_file
from stemformer.options import GlueOptions, SquadOptions, accepts
from stemformer.output_dir import check_not_inside_inputs, clear_dir, exclusive_output_dir, prepare_output_dir
from stemformer.progress import Progress, Silent
from stemformer.reports.benchmark import table_of, write_benchmark_report
from stemformer.tasks.metrics import squad_metrics as squad_figures

_WHERE = "of ours on the dev set, of others on the part that stands behind their name: the two are not the same data"


_CHOSEN = "the learning rate was chosen by the same dev set that the figures are of, as in the BERT paper"


_WINOGRAD = (
    "WNLI: some sentences of the dev set stand in the training set with the other answer, so what is learned by heart is wrong there; "
    "the BERT paper leaves the task out, and the most frequent class is the figure to beat"
)


@exclusive_output_dir
@accepts(GlueOptions)
def benchmark_glue(options: GlueOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Fine-tune a model on each task of GLUE and list the results next to published ones.

    Each learning rate is tried with the first seed, and the best on dev is used for the others. Of the
    runs of a task, the model of the best one on dev is kept. A finished task is a line of `tasks.jsonl`.

    Returns:
        Table of the metrics of each task next to published ones.

    Raises:
        StemformerError: No task has its files; data, settings or model do not fit together.

    Example:
        >>> benchmark_glue("glue_data", model="google/bert_uncased_L-4_H-256_A-4", out="runs/glue")  # doctest: +SKIP
    """
    progress = progress or Silent()
    folder, out, trials = options.folder, options.out, options.num_seeds
    submission, resume, overwrite = options.submission, options.resume, options.overwrite
    config = BenchmarkConfig(
        model=options.model,
        data=(folder,),
        tasks=options.tasks or tuple(GLUE),
        trials=trials,
        learning_rates=options.learning_rates,
        epochs=options.epochs,
        batch_size=options.batch_size,
        max_length=options.max_length,
        seed=options.seed,
        from_task=options.from_task,
        settings=options.settings,
    )
    chosen, missing = _find_tasks(config)
    for line in missing:
        progress.say(line)
    target = _begin(config, out, resume=resume, overwrite=overwrite)
    machine = options.compute()
    done = _finished(target)
    for number, task in enumerate(chosen, 1):
        if task.name in done and len(done[task.name]["seeds"]) >= trials:
            progress.say(f"{task.name} ({number} of {len(chosen)}): finished before")
            continue
        progress.say(f"{task.name} ({number} of {len(chosen)})")
        source = read_task_data(task, folder, target)
        start, of_start = _start(task, config, done)
        told = run_task(task, source, replace(config, model=start), target / task.name, machine, progress)
        done[task.name] = {**told, "start": of_start}
        append_jsonl(target / "tasks.jsonl", done[task.name])
        keep_one_model(target / task.name, Path(told["model"]))
    results = [done[task.name] for task in chosen]
    notes = _notes(results)
    written: dict[str, Any] = {}
    if submission:
        absent = [line for task in chosen for line in _submit(task, folder, target, done[task.name], machine, progress)]
        absent += [f"{name}: no {file}, which the leaderboard wants too" for name, file in _unsubmitted(chosen)]
        written = {"submission": str(target / "submission"), "not_submitted": absent}
    return _tell(target, "GLUE", config, results, missing, notes, written)


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
    train, dev, out, trials = options.train, options.dev, options.out, options.num_seeds
    resume, overwrite = options.resume, options.overwrite
    if not train or not dev:
        raise ConfigError("squad needs files to train on (--train) and files to be judged by (--dev)")
    config = BenchmarkConfig(
        model=options.model,
        data=train,
        dev=dev,
        trials=trials,
        learning_rates=options.learning_rates,
        epochs=options.epochs,
        batch_size=options.batch_size,
        max_length=options.max_length,
        seed=options.seed,
        settings=options.settings,
    )
    progress.start("reading questions")
    questions, asked = (read_questions(files, counts=Counter()) for files in (train, dev))
    version = "2.0" if any(not q.gold for q in questions) else "1.1"
    if version == "1.1" and any(not q.gold for q in asked):
        progress.say("some dev questions have no answer, no training question is so: the model always answers")
    task = BENCHMARKS[f"SQuAD {version}"]
    target = _begin(config, out, resume=resume, overwrite=overwrite)
    machine = options.compute()
    done = _finished(target)
    if task.name not in done or len(done[task.name]["seeds"]) < trials:
        source = TaskData(tuple(train), tuple(dev), len(questions), len(asked), _no_answers(asked))
        told = run_task(task, source, config, target / "runs", machine, progress)
        _write_answers(target, open_benchmark_model(told["model"], machine), asked, progress)
        done[task.name] = {**told, "start": "the model"}
        append_jsonl(target / "tasks.jsonl", done[task.name])
        keep_one_model(target / "runs", Path(told["model"]))
    notes = _notes([done[task.name]])
    if version == "2.0":
        notes.append(
            "the threshold of 'no answer' was tuned on the same dev set, as the official script's best figures are"
        )
    files = {"predictions": str(target / "predictions.json")}
    if version == "2.0":
        files["null_odds"] = str(target / "null_odds.json")
    return _tell(target, task.name, config, [done[task.name]], [], notes, files)


def _find_tasks(config: BenchmarkConfig) -> tuple[list[BenchmarkTask], list[str]]:
    """Returns the tasks whose files are there, the one that others start from first, and what is said of the rest."""
    folder = config.data[0]
    if not folder.startswith(HUB_PREFIX) and not Path(folder).is_dir():
        raise DataError(f"{folder} is no folder: give one that holds CoLA/train.tsv and so on")
    known = [name for name in BENCHMARKS if not name.startswith("SQuAD")]
    for name in config.tasks:
        if name not in known:
            hint = nearest(name, known)
            raise ConfigError(f"task {name!r} does not exist{hint}: the tasks are {', '.join(known)}")
    chosen, missing = [], []
    for name in dict.fromkeys(config.tasks):
        task = BENCHMARKS[name]
        needed = [file for file in (task.train, task.dev, task.mismatched) if file is not None]
        absent = [file for file in needed if find_split(task, folder, file) is None]
        if absent:
            missing.append(f"{name} is left out: {folder} has no {', '.join(f'{name}/{file}' for file in absent)}")
        else:
            chosen.append(task)
    if not chosen:
        raise DataError(f"{folder} holds no task with files to train on and to be judged by: {'; '.join(missing)}")
    first = config.from_task
    if first in BENCHMARKS:
        source = next((task for task in chosen if task.name == first), None)
        if source is None:
            raise ConfigError(
                f"--from-task {first}: its files are not there or it is not among --tasks; give it, or a model"
            )
        chosen = [source, *(task for task in chosen if task is not source)]
    elif first is not None and not read_task(find_folder(first)):
        raise ConfigError(f"--from-task {first} was not trained on labelled data: give a task of GLUE or such a model")
    return chosen, missing


def _begin(config: BenchmarkConfig, out: str, *, resume: bool, overwrite: bool) -> Path:
    """Makes the folder ready: empty but for its configuration, or as it was left.

    Raises:
        CheckpointError: It cannot go on with these settings, or there is no such model.
    """
    find_folder(config.model)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("a benchmark is run by one process: start it without torchrun")
    folder = prepare_output_dir(out, resume=resume, overwrite=overwrite)
    inputs = [*config.data, *config.dev, config.model, config.from_task]
    check_not_inside_inputs(folder, [path for path in inputs if path is not None and Path(path).exists()])
    file = folder / "config.toml"
    if resume and file.is_file():
        stored = from_toml(BenchmarkConfig, file.read_text(encoding="utf-8"), source=str(file))
        # More trials may give another best model, and what started from the one before would not be of this benchmark.
        may_change = ("tasks",) if config.from_task in BENCHMARKS else ("tasks", "trials")
        changed = [f"{key} was {a}, is now {b}" for key, a, b in differences(stored, config) if key not in may_change]
        if changed:
            raise CheckpointError(
                f"{folder} cannot go on with other settings ({'; '.join(changed)}): give another --out"
            )
    elif resume and folder.is_dir() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} holds no benchmark to resume: give another --out")
    else:
        clear_dir(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(file, [to_toml(config).encode()])
    return folder


def _finished(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the results of the tasks that are finished, by name, the last one of each; a line that was cut off does not count."""
    file = folder / "tasks.jsonl"
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.is_file() else []
    return {told["task"]: told for told in map(json.loads, lines)}


def _no_answers(questions: Sequence[Question]) -> dict[str, float]:
    """Returns exact match and F1 of never answering."""
    told = squad_figures(
        {str(i): list(q.gold) for i, q in enumerate(questions)}, {str(i): "" for i in range(len(questions))}
    )
    return {name: told[name] for name in ("exact_match", "f1")}


def _start(task: BenchmarkTask, config: BenchmarkConfig, done: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """Returns the model that a task starts from, and how the table calls it."""
    first = config.from_task
    if first is None or not task.is_small or task.name == first:
        return config.model, "the model"
    if first in BENCHMARKS:
        return str(done[first]["model"]), first
    return first, first


def _submit(
    task: BenchmarkTask,
    folder: str,
    target: Path,
    told: dict[str, Any],
    machine: dict[str, Any],
    progress: Progress,
) -> list[str]:
    """Writes a task's files for the leaderboard, and returns what is said of those that could not be."""
    absent = []
    loaded: Pipeline | None = None
    for name, file in task.tests.items():
        source = find_split(task, folder, file)
        if source is None:
            absent.append(f"{task.name}: no {name}, since {folder} has no {task.name}/{file}")
            continue
        records = make_records(task, read_rows(task, source, counts=Counter(), is_test=True))
        loaded = loaded or open_benchmark_model(told["model"], machine)
        progress.say(f"{task.name}: predicting {name}")
        predictions = loaded.predict_records(records, progress)
        answers = [p.score if task.kind == "score" else p.label for p in predictions]
        (target / "submission").mkdir(exist_ok=True)
        write_file(target / "submission" / name, [submission_text(task, answers).encode()])
    return absent


def _unsubmitted(chosen: Sequence[BenchmarkTask]) -> list[tuple[str, str]]:
    return [(task.name, file) for task in GLUE.values() if task not in chosen for file in task.tests]


def _write_answers(target: Path, loaded: Pipeline, questions: Sequence[Question], progress: Progress) -> None:
    """Writes answers by question, and for SQuAD 2.0 by how much "no answer" is likelier than the best span."""
    assert loaded.task is not None
    predictions = loaded.predict_records(questions, progress)
    answers = {q.id: p.text for q, p in zip(questions, predictions, strict=True)}
    write_file(target / "predictions.json", [(json.dumps(answers, ensure_ascii=False, indent=1) + "\n").encode()])
    if loaded.task.config.no_answer:
        odds = {q.id: p.no_answer for q, p in zip(questions, predictions, strict=True)}
        write_file(target / "null_odds.json", [(json.dumps(odds, indent=1) + "\n").encode()])


def _notes(results: Sequence[dict[str, Any]]) -> list[str]:
    """Returns what must be known to compare the figures, with the sources of those that were published."""
    notes = [f"figures are in percent, {_WHERE}"]
    if any(len(told["tried"]) > 1 for told in results):
        notes.append(_CHOSEN)
    warm: dict[str, list[str]] = {}
    sources: dict[str, list[str]] = {}
    for told in results:
        if told["start"] != "the model":
            warm.setdefault(told["start"], []).append(told["task"])
        for p in published_results(told["task"]):
            sources.setdefault(p.source, []).append(f"{p.system} {p.part}")
        notes += told["notes"]
    for start, names in warm.items():
        notes.append(
            f"{', '.join(names)}: warm start, from the model fine-tuned for {start} (its head too, where the sizes agree)"
        )
    if any(told["task"] == "WNLI" for told in results):
        notes.append(_WINOGRAD)
    return notes + [f"{', '.join(dict.fromkeys(names))}: {source}" for source, names in sources.items()]


def _tell(
    target: Path,
    name: str,
    config: BenchmarkConfig,
    results: Sequence[dict[str, Any]],
    missing: Sequence[str],
    notes: Sequence[str],
    files: dict[str, Any],
) -> dict[str, Any]:
    """Writes the figures as JSON and as a page, and returns them."""
    table = table_of(results)
    told = {"benchmark": name, "model": config.model, "tasks": list(results), "table": table}
    told |= {"missing": list(missing), "notes": list(notes)}
    write_file(
        target / ("glue.json" if name == "GLUE" else "squad.json"),
        [(json.dumps(told, ensure_ascii=False, indent=2) + "\n").encode()],
    )
    report = write_benchmark_report(
        target,
        title=f"{name}: {Path(config.model).name}",
        results=results,
        missing=missing,
        notes=notes,
        config=to_toml(config),
    )
    out = {"run": str(target), "report": str(report), "table": table, "missing": list(missing), "notes": list(notes)}
    return {key: value for key, value in (out | files).items() if value not in ([], None)}
