"""The prompting command: tasks with zero, one or a few examples in the prompt, over models, numbers of examples and draws of them."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stemformer.config import check_seed, from_toml, to_toml
from stemformer.device import choose_device, choose_precision, configure_allocator, set_threads
from stemformer.errors import CheckpointError, ConfigError
from stemformer.evaluation.few_shot.dataset import PromptData
from stemformer.evaluation.few_shot.synthetic import SYNTHETIC_TASKS
from stemformer.evaluation.few_shot.task import PromptTask, built_in_tasks, open_task
from stemformer.experiments.few_shot_trials import (
    EvaluatedModel,
    PromptConfig,
    choose_questions,
    digest_of_model,
    evaluate_model,
    from_before,
    make_evaluation_task,
    read_data,
    settings_of,
    shots_of,
)
from stemformer.huggingface.load import find_folder, load_with_tokenizer
from stemformer.io import read_jsonl, write_file, write_jsonl
from stemformer.models.model import Model
from stemformer.options import FewShotOptions, ShowPromptsOptions, accepts
from stemformer.output_dir import check_not_inside_inputs, clear_dir, exclusive_output_dir, prepare_output_dir
from stemformer.progress import Progress, Silent
from stemformer.reports.few_shot import short_names, write_prompt_report


def list_tasks() -> list[dict[str, str]]:
    """Returns the tasks that can be named: `task`, `about`, `source`."""
    read = {name: from_toml(PromptTask, text, source=name) for name, text in built_in_tasks().items()}
    told = [{"task": name, "about": task.about, "source": task.source} for name, task in read.items()]
    return told + [
        {"task": f"synthetic:{name}", "about": task.description, "source": "drawn by the seed"}
        for name, task in SYNTHETIC_TASKS.items()
    ]


@accepts(ShowPromptsOptions)
def show_prompts(options: ShowPromptsOptions) -> list[dict[str, Any]]:
    """Return the prompt of the first example of each few-shot task; no model is needed."""
    tasks, num_shots, examples, seed = options.tasks, options.num_shots, options.demonstrations, options.seed
    _check_numbers(num_shots, seed=seed)
    told = []
    for task in _open_tasks(tasks, examples):
        shots = shots_of(task, num_shots)
        told += _shown(task, read_data(task, max(shots), 1, seed), shots, 1, seed)
    return told


def _shown(
    task: PromptTask, data: PromptData, num_shots: Sequence[int], num_questions: int, seed: int
) -> list[dict[str, Any]]:
    """Returns the prompt of the first question that is asked, for each number of examples."""
    told = []
    number = choose_questions(len(data.items), num_questions, seed)[0]
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


@exclusive_output_dir
@accepts(FewShotOptions)
def fewshot(options: FewShotOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Evaluate models zero-, one- and few-shot, without fine-tuning.

    Returns:
        `table` (accuracy in percent, or the task's own metric, for each task and model), `figures` (all
        results, a row for each number of shots; see `evaluation.few_shot.evaluate.aggregate`), `notes`.
        The output directory holds `prompt.json`, `report.html`, `shots.svg`, `sizes.svg`, a line for each
        result in `figures.jsonl` and for each prediction in `answers/`.

    Raises:
        StemformerError: Tasks, data or models do not fit together.
    """
    progress = progress or Silent()
    tasks, models, num_shots, examples = options.tasks, options.model, options.num_shots, options.demonstrations
    num_questions, draws, calibrate, seed = options.num_questions, options.num_draws, options.calibrate, options.seed
    device, precision, threads = options.device, options.precision, options.threads
    out, resume, overwrite = options.out, options.resume, options.overwrite
    shots = tuple(sorted(set(num_shots)))
    _check(shots, models, num_questions, draws, seed)
    set_threads(threads)
    where = choose_device(device)
    configure_allocator(where)
    opened = _open_tasks(tasks, examples)
    config = PromptConfig(
        tuple(models), tuple(opened), shots, num_questions, seed, draws, calibrate, choose_precision(precision, where)
    )
    sources = [find_folder(model) for model in models]
    folder = None if out is None else prepare_output_dir(out, resume=resume, overwrite=overwrite)
    if folder is not None:
        read = [
            *models,
            *(task.partition("=")[0] for task in tasks),
            *(f for t in opened for f in (t.data, t.examples)),
        ]
        check_not_inside_inputs(folder, [path for path in read if path and Path(path).exists()])
    parts = [make_evaluation_task(task, config) for task in opened]
    rows = _begin(folder, config, progress, resume=resume) if folder is not None else []
    total = len(models) * sum(len(part.num_shots) * part.num_asked for part in parts)
    progress.start("asking", total=total, unit="questions")
    done: list[dict[str, Any]] = []
    notes: list[str] = []
    names = short_names(models)
    weights: dict[str, str] = {}
    for model, source in zip(models, sources, strict=True):
        body, tokenizer = load_with_tokenizer(source)
        _refuse_headless(body, model)
        weights[str(Path(model).resolve())] = digest = digest_of_model(body, tokenizer)
        asked = EvaluatedModel(model, names[model], body.to(where), tokenizer, digest, where)
        for part in parts:
            figures, told_of = evaluate_model(asked, part, config, rows, folder, progress)
            done += figures
            notes += [f"{names[model]}, {part.task.name}: {note}" for note in told_of]
    progress.finish()
    if not done:
        raise ConfigError(f"nothing was asked: {'; '.join(notes)}")
    kept, told_of_kept = from_before(
        rows, done, {part.task.name: part.digest for part in parts}, weights, settings_of(config)
    )
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
    for name, value in (("num-questions", num_questions), ("num-draws", draws)):
        if value < 1:
            raise ConfigError(f"--{name} {value}: expected at least 1")


def _check_numbers(shots: Sequence[int], *, seed: int) -> None:
    if shots and min(shots) < 0:
        raise ConfigError(f"--num-shots {','.join(map(str, shots))}: expected numbers from 0 on")
    check_seed(seed, called="--seed")


def _open_tasks(tasks: Sequence[str], examples: Sequence[str]) -> list[PromptTask]:
    given: dict[str, str] = {}
    for entry in examples:
        name, is_told, file = entry.rpartition("=")
        if not is_told or name in given:
            raise ConfigError(f"--demonstrations {entry}: expected TASK=FILE, each task once")
        given[name] = file
    names = [task if task.endswith(".toml") else task.rpartition("=")[0] or task for task in tasks]
    by_stem = {Path(name).stem: name for name in names if name.endswith(".toml")}
    given = {by_stem.get(name, name): file for name, file in given.items()}
    if unknown := set(given) - set(names):
        raise ConfigError(f"--demonstrations {sorted(unknown)[0]}=...: expected one of the tasks, {', '.join(names)}")
    opened = [open_task(task, examples=given.get(name, "")) for task, name in zip(tasks, names, strict=True)]
    if not opened:
        raise ConfigError("no task was given: name some; `stemformer fewshot --list` tells which there are")
    called = Counter(task.name for task in opened)
    opened = [  # one task on several files is told apart by them
        replace(task, name=f"{task.name}_{Path(task.data).stem}") if called[task.name] > 1 else task for task in opened
    ]
    if len({task.name for task in opened}) < len(opened):
        raise ConfigError(f"two tasks are called alike ({', '.join(sorted(called))}): give each a name in its file")
    return opened


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
        rows = read_jsonl(folder / "figures.jsonl")
        progress.say(f"{len(rows)} figures are there already; those of the same model, task and data stay")
    else:
        clear_dir(folder)  # that it may be replaced was asked before
    (folder / "answers").mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "figures.jsonl", rows)  # first of all: by it, a table that is stopped here is known as one
    write_file(folder / "config.toml", [to_toml(config).encode()])
    return rows
