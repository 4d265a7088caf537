"""The prompting command: tasks with zero, one or a few examples in the prompt, over models, numbers of examples and draws of them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from stemformer.config import differences, from_toml, to_toml
from stemformer.data.batches import example_generator
from stemformer.data.manifest import write_file
from stemformer.data.synthetic import SYNTHETIC_TASKS
from stemformer.data.tokenizer import Tokenizer
from stemformer.errors import CheckpointError, ConfigError
from stemformer.evaluation.asking import ask, notes_on_answers, summarise
from stemformer.folders import free_folder, refuse_inside
from stemformer.generation.prompts import Item, PromptData, PromptTask, built_in_tasks, open_task, read_items
from stemformer.models.model import Model
from stemformer.pretrained import find_folder, load_with_tokenizer
from stemformer.progress import Progress, Silent
from stemformer.report.prompt_report import write_prompt_report
from stemformer.training.compute import autocast, choose_device, choose_precision
from stemformer.training.log import read_log

__all__ = ["PromptConfig", "list_tasks", "prompt", "show_prompts"]

_STREAM = 2**61
"""Of the draw of questions: a number that no question has."""


@dataclass(frozen=True)
class PromptConfig:
    """What is asked of which models: what the `config.toml` of its folder holds.

    Attributes:
        models: Folders or hub ids.
        tasks: What is asked.
        num_shots: Numbers of examples in the prompt, ascending.
        num_questions: Of a task at most; drawn by the seed.
        seed: Of the questions and the first draw of examples.
        draws: So many draws of examples, with seeds that follow each other.
        calibrate: See `evaluation.asking.ask`.
        precision: `fp32` or `bf16`.
    """

    models: tuple[str, ...]
    tasks: tuple[PromptTask, ...]
    num_shots: tuple[int, ...]
    num_questions: int
    seed: int
    draws: int
    calibrate: bool
    precision: str


_MAY_CHANGE = ("models", "num_shots", "tasks")
"""Keys of a table that goes on: what is new is added to what is there."""


def list_tasks() -> list[dict[str, str]]:
    """Returns the tasks that can be named: `task`, `about`, `source`."""
    read = {name: from_toml(PromptTask, text, source=name) for name, text in built_in_tasks().items()}
    told = [{"task": name, "about": task.about, "source": task.source} for name, task in read.items()]
    return told + [
        {"task": f"synthetic:{name}", "about": task.description, "source": "drawn by the seed"}
        for name, task in SYNTHETIC_TASKS.items()
    ]


def show_prompts(
    tasks: Sequence[str], *, num_shots: Sequence[int] = (0, 1, 4), examples: Sequence[str] = (), seed: int = 0
) -> list[dict[str, Any]]:
    """Returns the very prompt of the first question of each task, for each number of examples: no model is asked.

    Args:
        tasks: As for `prompt`, like the others.
        num_shots: Numbers of examples.
        examples: Data of examples.
        seed: Of their draw.
    """
    told = []
    for task in _open_tasks(tasks, examples):
        data = _read(task, max(num_shots), 1, seed)
        number = _choose_questions(len(data.items), 1, seed)[0]
        item = data.items[number]
        for shots in num_shots:
            before = task.before(data.draw(number, shots, seed=seed), item)
            _, space, after = task.parts(item)
            told.append(
                {
                    "task": task.name,
                    "num_shots": shots,
                    "prompt": before,
                    "answers": [space + answer + after for answer in item.answers],
                    "right": space + item.answers[item.gold] + after,
                }
            )
    return told


def prompt(
    tasks: Sequence[str],
    *,
    models: Sequence[str],
    out: str | None = None,
    num_shots: Sequence[int] = (0, 1, 4),
    examples: Sequence[str] = (),
    num_questions: int = 200,
    draws: int = 1,
    calibrate: bool = False,
    seed: int = 0,
    device: str = "auto",
    precision: str = "fp32",
    threads: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Asks models in context, without training them, and returns a table of how often they are right.

    Args:
        tasks: Built-in names or TOML files, with `=FILE` where the data is not said there, or `synthetic:NAME`; see
            `generation.prompts.open_task`.
        models: GPTs, and masked models for tasks with choices: Hugging Face folders, run folders, or hub ids.
        out: Folder of the table: `prompt.json`, `report.html`, `shots.svg`, `sizes.svg`, a line for each figure in `figures.jsonl` and for
            each answer in `answers/`.
        num_shots: Numbers of examples in the prompt.
        examples: `TASK=FILE` where examples are not to be drawn from the questions.
        num_questions: Of a task at most.
        draws: Draws of the examples; the figure is the mean over them.
        calibrate: Also compare answers with how likely they are without a question.
        seed: Of questions and examples.
        device: `auto`, `cpu`, `cuda` ...
        precision: `fp32` or `bf16`.
        threads: Processor threads.
        resume: Keep the figures that are in `out`, and add what is missing.
        overwrite: Replace what `out` holds.
        progress: Told how far it is.

    Returns:
        `table` (percent right, a line for each task and model), `figures` (all there is to know, a row for each number of examples too; see
        `evaluation.asking.summarise`), `notes`.

    Raises:
        StemformerError: Tasks, data or models that do not fit.
    """
    progress = progress or Silent()
    shots = tuple(sorted(set(num_shots)))
    _check(shots, models, num_questions, draws)
    if threads:
        torch.set_num_threads(threads)
    where = choose_device(device)
    opened = _open_tasks(tasks, examples)
    config = PromptConfig(
        tuple(models), tuple(opened), shots, num_questions, seed, draws, calibrate, choose_precision(precision, where)
    )
    folder = None if out is None else Path(out) if resume else free_folder(out, overwrite=overwrite)
    if folder is not None:
        refuse_inside(folder, [path for path in (*models, *(t.data for t in opened)) if path and Path(path).exists()])
    sources = [find_folder(model) for model in models]
    data = {task.name: _read(task, max(shots), num_questions, seed) for task in opened}
    done = _begin(folder, config, progress) if folder is not None else []
    known = {_key(row) for row in done}
    todo = [(m, t, k) for m in models for t in opened for k in shots if (m, t.name, k) not in known]
    per_task = {name: min(num_questions, len(of_task.items)) for name, of_task in data.items()}
    progress.start("asking", total=draws * sum(per_task[t.name] for _, t, _ in todo), unit="questions")
    notes: list[str] = []
    for model, source in zip(models, sources, strict=True):
        mine = [(task, k) for m, task, k in todo if m == model]
        if not mine:
            continue
        body, tokenizer = load_with_tokenizer(source)
        _refuse_headless(body, model)
        body.to(where)
        notes += _told_of(model, body, tokenizer, [task for task, k in mine if k == mine[0][1]])
        for task, k in mine:
            if "causal_lm" not in body.heads and task.how != "choose":
                note = f"{model}: a masked model writes no text, so it takes no part in {task.name}"
                notes += [] if note in notes else [note]
                continue
            with autocast(where, config.precision):
                row = _figure(model, body, tokenizer, task, data[task.name], k, config, folder, progress)
            done.append(row)
            progress.say(
                f"{model}: {task.name}, {k} examples: {row['accuracy']:.1%} ({row['low']:.1%} to {row['high']:.1%})"
            )
            if folder is not None:
                lines = [(json.dumps(line, ensure_ascii=False) + "\n").encode() for line in done]
                write_file(folder / "figures.jsonl", lines)
    progress.finish()
    order = {(m, t.name, k): n for n, (m, t, k) in enumerate((m, t, k) for t in opened for m in models for k in shots)}
    rows = sorted((row for row in done if _key(row) in order), key=lambda row: order[_key(row)])
    told: dict[str, Any] = {"table": _table(rows), "figures": rows, "notes": notes}
    if folder is not None:
        write_file(folder / "prompt.json", [json.dumps(told, ensure_ascii=False, indent=2).encode()])
        shown = show_prompts(
            tasks, num_shots=shots[: max(1, sum(k <= _SHOWN for k in shots))], examples=examples, seed=seed
        )
        write_prompt_report(folder, rows, notes, shown, config=to_toml(config))
        told |= {"report": str(folder / "report.html")}
    return told


_SHOWN = 4
"""Examples in prompts that the report shows, at most."""


def _table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns percent right with the bounds, a line for each task and model."""
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        line = lines.setdefault((row["task"], row["model"]), {"task": row["task"], "model": _short(row["model"])})
        line[f"{row['num_shots']} shots"] = (
            f"{100 * row['accuracy']:.1f} ({100 * row['low']:.0f}-{100 * row['high']:.0f})"
        )
    for row in rows:
        for name in ("chance", "majority"):
            share = row[name]
            lines[row["task"], row["model"]][name] = "" if share is None else f"{100 * share:.1f}"
    return list(lines.values())


def _check(shots: Sequence[int], models: Sequence[str], num_questions: int, draws: int) -> None:
    if not shots or shots[0] < 0:
        raise ConfigError(f"--num-shots {','.join(map(str, shots)) or '(none)'}: expected numbers from 0 on")
    if not models or len(set(models)) < len(models):
        raise ConfigError("--model: expected at least one model, each of them once")
    for name, value in (("num-questions", num_questions), ("draws", draws)):
        if value < 1:
            raise ConfigError(f"--{name} {value}: expected at least 1")


def _open_tasks(tasks: Sequence[str], examples: Sequence[str]) -> list[PromptTask]:
    given = {name: file for name, _, file in (entry.partition("=") for entry in examples)}
    names = [task.partition("=")[0] for task in tasks]
    if unknown := set(given) - set(names):
        raise ConfigError(f"--examples {sorted(unknown)[0]}=...: expected one of the tasks, {', '.join(names)}")
    opened = [open_task(task, examples=given.get(name, "")) for task, name in zip(tasks, names, strict=True)]
    if not opened:
        raise ConfigError("no task was given: name some; `stemformer prompt --list` tells which there are")
    called = [task.name for task in opened]
    if len(set(called)) < len(called):
        raise ConfigError(f"two tasks are called alike ({', '.join(called)}): give each a name of its own in its file")
    return opened


def _read(task: PromptTask, num_shots: int, num_questions: int, seed: int) -> PromptData:
    """Returns the questions of a task and where their examples come from."""
    if task.synthetic:
        return _synthetic(task.synthetic, num_shots, num_questions, seed)
    items = read_items(task.data, task)
    return PromptData(items, read_items(task.examples, task) if task.examples else items)


def _synthetic(name: str, num_shots: int, number: int, seed: int) -> PromptData:
    """Returns questions each of which has a rule and examples of its own."""
    items, own = [], []
    for i in range(number):
        episode = SYNTHETIC_TASKS[name].episode(num_shots + 1, example_generator(seed, 1, i))
        *before, last = [Item({"input": given}, (wanted,), 0) for given, wanted in episode.pairs]
        gold = last.answers[0]
        answers = tuple(episode.candidates)
        items.append(Item(last.fields, answers, answers.index(gold)) if answers else last)
        own.append(before)
    return PromptData(items, (), own)


def _choose_questions(number: int, wanted: int, seed: int) -> list[int]:
    order = example_generator(seed, 0, _STREAM).permutation(number)
    return sorted(order[: min(number, wanted)].tolist())


def _figure(
    model: str,
    opened: Model,
    tokenizer: Tokenizer,
    task: PromptTask,
    data: PromptData,
    num_shots: int,
    config: PromptConfig,
    folder: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Returns a row of the table, and writes the answers behind it."""
    numbers = _choose_questions(len(data.items), config.num_questions, config.seed)
    told = [
        ask(
            opened,
            tokenizer,
            task,
            data,
            numbers,
            num_shots=num_shots,
            seed=config.seed + draw,
            calibrate=config.calibrate,
            on_questions=progress.advance,
        )
        for draw in range(config.draws)
    ]
    if folder is not None:
        name = f"{_short(model)}-{task.name}-{num_shots}.jsonl"
        lines = [{"draw": draw, **asdict(answer)} for draw, answers in enumerate(told) for answer in answers]
        (folder / "answers").mkdir(exist_ok=True)
        write_file(
            folder / "answers" / name, [(json.dumps(line, ensure_ascii=False) + "\n").encode() for line in lines]
        )
    return {
        "task": task.name,
        "model": model,
        "parameters": opened.num_parameters(),
        "num_shots": num_shots,
        **summarise(told, task, data.items),
    }


def _short(model: str) -> str:
    return "_".join(part for part in Path(model).parts[-2:] if part not in ("/", "."))


def _told_of(model: str, opened: Model, tokenizer: Tokenizer, tasks: Sequence[PromptTask]) -> list[str]:
    for_masked = "causal_lm" not in opened.heads
    return [
        f"{model}, {task.name}: {note}"
        for task in tasks
        for note in notes_on_answers(task, tokenizer, for_masked=for_masked)
    ]


def _refuse_headless(opened: Model, model: str) -> None:
    if not {"causal_lm", "masked_lm"} & set(opened.heads):
        raise CheckpointError(
            f"{model} has no head for words, so it cannot be prompted: give a GPT, or a BERT as pre-training left it"
        )


def _key(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["model"], row["task"], row["num_shots"]


def _begin(folder: Path, config: PromptConfig, progress: Progress) -> list[dict[str, Any]]:
    """Makes the folder ready, and returns the figures that are there."""
    file = folder / "config.toml"
    rows: list[dict[str, Any]] = []
    if file.is_file() and (folder / "figures.jsonl").is_file():
        stored = from_toml(PromptConfig, file.read_text(encoding="utf-8"), source=str(file))
        changed = [(k, a, b) for k, a, b in differences(stored, config) if not k.startswith(_MAY_CHANGE)]
        before = {task.name: task for task in stored.tasks}
        changed += [
            (f"task {task.name}", before[task.name], task)
            for task in config.tasks
            if before.get(task.name, task) != task
        ]
        if max(config.num_shots) != max(stored.num_shots) and any(task.synthetic for task in config.tasks):
            changed.append(("the largest number of examples", max(stored.num_shots), max(config.num_shots)))
        if changed:
            told = "; ".join(f"{key} was {a}, is now {b}" for key, a, b in changed)
            raise CheckpointError(
                f"this table cannot go on with other settings ({told}): leave them, or give another --out"
            )
        rows = read_log(folder / "figures.jsonl")
        progress.say(f"{len(rows)} figures are there already")
    folder.mkdir(parents=True, exist_ok=True)
    write_file(file, [to_toml(config).encode()])
    return rows
