"""The prompting command: tasks with zero, one or a few examples in the prompt, over models, numbers of examples and draws of them."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from stemformer.config import check_seed, from_toml, to_toml
from stemformer.data.batches import example_generator
from stemformer.data.manifest import write_file
from stemformer.data.synthetic import SYNTHETIC_TASKS
from stemformer.data.tokenizer import Tokenizer
from stemformer.errors import CheckpointError, ConfigError
from stemformer.evaluation.asking import ask, notes_on_answers, summarise
from stemformer.folders import alone, empty, free_folder, refuse_inside
from stemformer.generation.prompts import Item, PromptData, PromptTask, built_in_tasks, open_task, read_items
from stemformer.models.model import Model
from stemformer.pretrained import find_folder, load_with_tokenizer
from stemformer.progress import Progress, Silent
from stemformer.report.prompt_report import short_names, write_prompt_report
from stemformer.training.compute import autocast, choose_device, choose_precision, keep_freed_memory, use_threads
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
        num_shots: Numbers of examples in the prompt, ascending; none: those that each task says.
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


def list_tasks() -> list[dict[str, str]]:
    """Returns the tasks that can be named: `task`, `about`, `source`."""
    read = {name: from_toml(PromptTask, text, source=name) for name, text in built_in_tasks().items()}
    told = [{"task": name, "about": task.about, "source": task.source} for name, task in read.items()]
    return told + [
        {"task": f"synthetic:{name}", "about": task.description, "source": "drawn by the seed"}
        for name, task in SYNTHETIC_TASKS.items()
    ]


def show_prompts(
    tasks: Sequence[str], *, num_shots: Sequence[int] = (), examples: Sequence[str] = (), seed: int = 0
) -> list[dict[str, Any]]:
    """Returns the very prompt of the first question of each task, for each number of examples: no model is asked.

    Args:
        tasks: As for `prompt`, like the others.
        num_shots: Numbers of examples; by default those that each task says.
        examples: Data of examples.
        seed: Of their draw.
    """
    _check_numbers(num_shots, seed=seed)
    told = []
    for task in _open_tasks(tasks, examples):
        shots = _shots_of(task, num_shots)
        told += _shown(task, _read(task, max(shots), 1, seed), shots, 1, seed)
    return told


def _shown(
    task: PromptTask, data: PromptData, num_shots: Sequence[int], num_questions: int, seed: int
) -> list[dict[str, Any]]:
    """Returns the prompt of the first question that is asked, for each number of examples."""
    told = []
    number = _choose_questions(len(data.items), num_questions, seed)[0]
    item = data.items[number]
    _, space, after = task.parts(item)
    for shots in num_shots:
        told.append(
            {
                "task": task.name,
                "num_shots": shots,
                "prompt": task.before(data.draw(number, shots, seed=seed), item),
                "answers": [space + answer + after for answer in item.answers],
                "right": space + item.answers[item.gold] + after,
            }
        )
    return told


@alone
def prompt(
    tasks: Sequence[str],
    *,
    models: Sequence[str],
    out: str | None = None,
    num_shots: Sequence[int] = (),
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
        num_shots: Numbers of examples in the prompt; by default those that each task says.
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
        `table` (percent right, or the task's own metric; a line for each task and model), `figures` (all there is to know, a row for each
        number of examples too; see `evaluation.asking.summarise`), `notes`.

    Raises:
        StemformerError: Tasks, data or models that do not fit.
    """
    progress = progress or Silent()
    shots = tuple(sorted(set(num_shots)))
    _check(shots, models, num_questions, draws, seed)
    use_threads(threads)
    where = choose_device(device)
    keep_freed_memory(where)
    opened = _open_tasks(tasks, examples)
    config = PromptConfig(
        tuple(models), tuple(opened), shots, num_questions, seed, draws, calibrate, choose_precision(precision, where)
    )
    sources = [find_folder(model) for model in models]
    folder = None if out is None else free_folder(out, resume=resume, overwrite=overwrite)
    if folder is not None:
        read = [
            *models,
            *(task.partition("=")[0] for task in tasks),
            *(f for t in opened for f in (t.data, t.examples)),
        ]
        refuse_inside(folder, [path for path in read if path and Path(path).exists()])
    parts = [_make_part(task, config) for task in opened]
    rows = _begin(folder, config, progress, resume=resume) if folder is not None else []
    total = len(models) * sum(len(part.num_shots) * part.num_asked for part in parts)
    progress.start("asking", total=total, unit="questions")
    done: list[dict[str, Any]] = []
    notes: list[str] = []
    names = short_names(models)
    for model, source in zip(models, sources, strict=True):
        body, tokenizer = load_with_tokenizer(source)
        _refuse_headless(body, model)
        asked = _Asked(model, names[model], body.to(where), tokenizer, _digest_of_model(body, tokenizer), where)
        for part in parts:
            figures, told_of = _ask(asked, part, config, rows, folder, progress)
            done += figures
            notes += [f"{names[model]}, {part.task.name}: {note}" for note in told_of]
    progress.finish()
    if not done:
        raise ConfigError(f"nothing was asked: {'; '.join(notes)}")
    kept, told_of_kept = _from_before(rows, done, {part.task.name: part.digest for part in parts}, _settings(config))
    done, notes = [*done, *kept], [*notes, *told_of_kept]
    order = list(dict.fromkeys([*(part.task.name for part in parts), *(row["task"] for row in done)]))
    done.sort(key=lambda row: order.index(row["task"]))
    told: dict[str, Any] = {"table": _table(done), "figures": done, "notes": notes}
    if folder is not None:
        write_file(folder / "prompt.json", [json.dumps(told, ensure_ascii=False, indent=2).encode()])
        shown = []
        for part in parts:
            few = part.num_shots[: max(1, sum(k <= _SHOWN for k in part.num_shots))]
            shown += _shown(part.task, part.data, few, num_questions, seed)
        write_prompt_report(folder, done, notes, shown, config=to_toml(config))
        told |= {"report": str(folder / "report.html")}
    return told


@dataclass(frozen=True)
class _Part:
    """A task with its data, and with how many examples and how often it is asked."""

    task: PromptTask
    data: PromptData
    num_shots: tuple[int, ...]
    digest: str
    num_asked: int


@dataclass(frozen=True)
class _Asked:
    """A model that is asked, and what tells it apart from any other."""

    path: str
    name: str
    body: Model
    tokenizer: Tokenizer
    digest: str
    where: torch.device


def _make_part(task: PromptTask, config: PromptConfig) -> _Part:
    num_shots = _shots_of(task, config.num_shots)
    data = _read(task, max(num_shots), config.num_questions, config.seed)
    digest = _digest([repr((task, *map(list, _parts(data)))).encode()])
    return _Part(task, data, num_shots, digest, _draws(task, config.draws) * min(config.num_questions, len(data.items)))


def _ask(
    model: _Asked,
    part: _Part,
    config: PromptConfig,
    rows: list[dict[str, Any]],
    folder: Path | None,
    progress: Progress,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns a model's figures of a task, for each number of examples, and what should be known of them.

    Args:
        model: With its tokenizer.
        part: The task.
        config: How it is asked.
        rows: Figures that are there already, and stay; new ones are added.
        folder: Where figures and answers are written, if anywhere.
        progress: Told how far it is.
    """
    task, is_masked = part.task, "causal_lm" not in model.body.heads
    if is_masked and task.how != "choose":
        progress.advance(len(part.num_shots) * part.num_asked)
        return [], ["a masked model writes no text, so it takes no part"]
    notes = notes_on_answers(task, model.tokenizer, for_masked=is_masked)
    there = {row["fingerprint"]: row for row in rows}
    found = []
    for k in sorted({*part.num_shots, *(row["num_shots"] for row in rows)}):
        of_row = {"task": task.name, "model": model.path, "data": part.digest, "settings": _settings(config)}
        key = _digest([repr((model.digest, of_row["data"], of_row["settings"], k)).encode()])[:16]
        row = there.get(key)
        if row is None and k not in part.num_shots:
            continue  # of another model or task
        if row is None:
            row, answers = _figure(model, part, k, config, progress)
            row = {**of_row, "fingerprint": key, **row}
            if folder is not None:  # named by all that the figure depends on, so that none replaces another's
                row["answers"] = f"answers/{f'{model.name}-{task.name}-{k}-{key}'.replace('/', '_')}.jsonl"
                _write_lines(folder / row["answers"], answers)
            rows.append(row)
            if folder is not None:
                _write_lines(folder / "figures.jsonl", rows)
            progress.say(_told_of_figure(model.name, row))
        elif k in part.num_shots:
            progress.advance(part.num_asked)
        notes += _remarks(row)
        found.append({**row, "model": model.path})
    return found, notes


def _from_before(
    rows: Sequence[dict[str, Any]], done: Sequence[Mapping[str, Any]], digests: Mapping[str, str], settings: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns figures of models and tasks that were not named this time but asked in the same way, and a note on those asked otherwise.

    Args:
        rows: All that the folder holds.
        done: What was named this time.
        digests: Of the data of each task that was named: figures of other data are out of date.
        settings: As in each row.
    """
    named = {row["model"] for row in done}
    found, seen = {}, {row["fingerprint"] for row in done}
    for row in rows:
        is_of_others = row["model"] not in named or row["task"] not in digests
        if (
            is_of_others
            and row["fingerprint"] not in seen
            and digests.get(row["task"], row.get("data")) == row.get("data")
        ):
            found[row["task"], row["model"], row["num_shots"]] = row
    kept = [{**row, "is_from_before": True} for row in found.values() if row.get("settings") == settings]
    others = len(found) - len(kept)
    note = (
        f"{others} figures in the folder were asked with other settings (questions, seed ...) and are not in the table"
    )
    return kept, [note] if others else []


def _told_of_figure(name: str, row: Mapping[str, Any]) -> str:
    unit = "% right" if row["metric"] == "accuracy" else row["metric"]
    line = f"{name}: {row['task']}, {_counted(row['num_shots'], 'example')}: {100 * row['figure']:.1f} {unit}"
    line += f" ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
    return line + (f", calibrated {100 * row['calibrated']:.1f}" if "calibrated" in row else "")


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _remarks(row: Mapping[str, Any]) -> Iterator[str]:
    """Yields what of prompts did not fit into a model, and whether it looks at the question at all."""
    if row["dropped_examples"]:
        dropped = f"{row['dropped_examples']:.1f}" if row["dropped_examples"] >= 0.05 else "less than 0.1"
        yield f"of {_counted(row['num_shots'], 'example')} {dropped} did not fit, on average, and were left out whole"
    if row["cut_questions"]:
        of = f"{row['cut_questions']} of {row['questions']} questions"
        yield f"with {row['num_shots']} examples, {of} were too long, and lack their beginning"
    if row.get("same_answer") == 1.0 and row["questions"] >= _MANY and (row["majority"] or 0) < 1:
        yield f"with {row['num_shots']} examples, it gives one and the same answer to all {row['questions']} questions"


_MANY = 10
"""Questions from which on it says something that all get the same answer."""


_SHOWN = 4
"""Examples in prompts that the report shows, at most."""


def _table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns percent right, or what the task's own metric says, with the bounds; a line for each task and model."""
    names = short_names(list(dict.fromkeys(row["model"] for row in rows)))
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        task = row["task"] if row["metric"] == "accuracy" else f"{row['task']} ({row['metric']})"
        line = lines.setdefault((row["task"], row["model"]), {"task": task, "model": names[row["model"]]})
        line[f"{row['num_shots']} shots"] = (
            f"{100 * row['figure']:.1f} ({100 * row['low']:.0f}-{100 * row['high']:.0f})"
        )
        if "calibrated" in row:
            line[f"{row['num_shots']} calibrated"] = f"{100 * row['calibrated']:.1f}"
    for row in rows:
        for name in ("chance", "majority"):
            share = row[name]
            lines[row["task"], row["model"]][name] = "" if share is None else f"{100 * share:.1f}"
    return list(lines.values())


def _check(shots: Sequence[int], models: Sequence[str], num_questions: int, draws: int, seed: int) -> None:
    _check_numbers(shots, seed=seed)
    if not models or len({Path(model).resolve() for model in models}) < len(models):
        raise ConfigError("--model: expected at least one model, each of them once")
    for name, value in (("num-questions", num_questions), ("draws", draws)):
        if value < 1:
            raise ConfigError(f"--{name} {value}: expected at least 1")


def _shots_of(task: PromptTask, asked: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(set(asked or task.num_shots)))


def _check_numbers(shots: Sequence[int], *, seed: int) -> None:
    if shots and min(shots) < 0:
        raise ConfigError(f"--num-shots {','.join(map(str, shots))}: expected numbers from 0 on")
    check_seed(seed, called="--seed")


def _open_tasks(tasks: Sequence[str], examples: Sequence[str]) -> list[PromptTask]:
    given: dict[str, str] = {}
    for entry in examples:
        name, is_told, file = entry.rpartition("=")
        if not is_told or name in given:
            raise ConfigError(f"--examples {entry}: expected TASK=FILE, each task once")
        given[name] = file
    names = [task if task.endswith(".toml") else task.rpartition("=")[0] or task for task in tasks]
    by_stem = {Path(name).stem: name for name in names if name.endswith(".toml")}
    given = {by_stem.get(name, name): file for name, file in given.items()}
    if unknown := set(given) - set(names):
        raise ConfigError(f"--examples {sorted(unknown)[0]}=...: expected one of the tasks, {', '.join(names)}")
    opened = [open_task(task, examples=given.get(name, "")) for task, name in zip(tasks, names, strict=True)]
    if not opened:
        raise ConfigError("no task was given: name some; `stemformer prompt --list` tells which there are")
    called = Counter(task.name for task in opened)
    opened = [  # one task on several files is told apart by them
        replace(task, name=f"{task.name}_{Path(task.data).stem}") if called[task.name] > 1 else task for task in opened
    ]
    if len({task.name for task in opened}) < len(opened):
        raise ConfigError(f"two tasks are called alike ({', '.join(sorted(called))}): give each a name in its file")
    return opened


def _read(task: PromptTask, num_shots: int, num_questions: int, seed: int) -> PromptData:
    """Returns the questions of a task and where their examples come from."""
    if task.synthetic:
        return _synthetic(task.synthetic, num_shots, num_questions, seed)
    items = read_items(task.data, task)
    is_same = not task.examples or Path(task.examples).resolve() == Path(task.data).resolve()
    return PromptData(items, items if is_same else read_items(task.examples, task), how=task.draw)


def _synthetic(name: str, num_shots: int, number: int, seed: int) -> PromptData:
    """Returns questions each of which has a rule and examples of its own, the same ones for most numbers of examples."""
    items, own = [], []
    size = max(_EPISODE, num_shots + 1)
    for i in range(number):
        episode = SYNTHETIC_TASKS[name].episode(size, example_generator(seed, 1, i))
        *before, last = [Item({"input": given}, (wanted,), 0) for given, wanted in episode.pairs]
        gold = last.answers[0]
        answers = tuple(episode.candidates)
        items.append(Item(last.fields, answers, answers.index(gold)) if answers else last)
        own.append(before)
    return PromptData(items, (), own)


_EPISODE = 64
"""Pairs that are drawn for a synthetic question, of which an example in the prompt may be one."""


def _choose_questions(number: int, wanted: int, seed: int) -> list[int]:
    order = example_generator(seed, 0, _STREAM).permutation(number)
    return sorted(order[: min(number, wanted)].tolist())


def _draws(task: PromptTask, draws: int) -> int:
    """Returns how often examples are drawn: those of a synthetic question are its own."""
    return 1 if task.synthetic else draws


def _parts(data: PromptData) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    return data.items, data.pool if data.pool is not data.items else (), data.own


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _digest_of_model(body: Model, tokenizer: Tokenizer) -> str:
    """Returns what tells a model apart from any other: how it is built, its vocabulary, its weights."""
    built = repr((body.config, sorted(body.heads), tokenizer.fingerprint)).encode()
    return _digest([built, *(p.detach().view(torch.uint8).numpy().tobytes() for p in body.parameters())])


def _settings(config: PromptConfig) -> str:
    """Returns what tells figures apart that were asked in another way, whatever the model and the task."""
    rest = (config.draws, config.calibrate, config.num_questions, config.seed, config.precision)
    return _digest([repr(rest).encode()])


def _figure(
    model: _Asked, part: _Part, num_shots: int, config: PromptConfig, progress: Progress
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns a figure of the table, and the answers behind it."""
    numbers = _choose_questions(len(part.data.items), config.num_questions, config.seed)
    with autocast(model.where, config.precision):
        told = [
            ask(
                model.body,
                model.tokenizer,
                part.task,
                part.data,
                numbers,
                num_shots=num_shots,
                seed=config.seed + draw,
                calibrate=config.calibrate,
                on_questions=progress.advance,
            )
            for draw in range(_draws(part.task, config.draws))
        ]
    kind = "left to right" if "causal_lm" in model.body.heads else "masked"
    figures = {"kind": kind, "parameters": model.body.num_parameters(), "num_shots": num_shots}
    answers = [{"draw": draw, **asdict(answer)} for draw, answers in enumerate(told) for answer in answers]
    return figures | summarise(told, part.task, part.data.items), answers


def _refuse_headless(opened: Model, model: str) -> None:
    if not {"causal_lm", "masked_lm"} & set(opened.heads):
        raise CheckpointError(
            f"{model} has no head for words, so it cannot be prompted: give a GPT, or a BERT as pre-training left it"
        )


def _begin(folder: Path, config: PromptConfig, progress: Progress, *, resume: bool) -> list[dict[str, Any]]:
    """Makes the folder ready, and returns the figures that are there."""
    rows: list[dict[str, Any]] = []
    if resume and folder.is_dir() and any(folder.iterdir()):
        if not (folder / "figures.jsonl").is_file():
            raise CheckpointError(f"{folder} holds no table of prompting to go on with: give another --out")
        rows = read_log(folder / "figures.jsonl")
        progress.say(f"{len(rows)} figures are there already; those of the same model, task and data stay")
    elif folder.is_dir():
        empty(folder)  # that it may be replaced was asked before
    (folder / "answers").mkdir(parents=True, exist_ok=True)
    _write_lines(folder / "figures.jsonl", rows)  # first of all: by it, a table that is stopped here is known as one
    write_file(folder / "config.toml", [to_toml(config).encode()])
    return rows


def _write_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_file(file, [(json.dumps(row, ensure_ascii=False) + "\n").encode() for row in rows])
