"""Figures of models that are asked in context, for each number of examples: kept where they still hold, named by all they depend on.

The command that joins them is in `prompting.py`.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from stemformer.data.examples.sampling import example_generator
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.device import autocast
from stemformer.evaluation.few_shot.dataset import PromptData, read_few_shot_examples
from stemformer.evaluation.few_shot.evaluate import aggregate, evaluate_few_shot, notes_on_answers
from stemformer.evaluation.few_shot.synthetic import SYNTHETIC_TASKS
from stemformer.evaluation.few_shot.task import FewShotExample, PromptTask
from stemformer.io import write_jsonl
from stemformer.models.model import Model
from stemformer.progress import Progress


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


@dataclass(frozen=True)
class EvaluationTask:
    """A task with its data, and with how many examples and how often it is asked."""

    task: PromptTask
    data: PromptData
    num_shots: tuple[int, ...]
    digest: str
    num_asked: int


@dataclass(frozen=True)
class EvaluatedModel:
    """A model that is asked, and what tells it apart from any other."""

    path: str
    name: str
    body: Model
    tokenizer: Tokenizer
    digest: str
    where: torch.device


def make_evaluation_task(task: PromptTask, config: PromptConfig) -> EvaluationTask:
    """Returns a task with its data, as it is asked."""
    num_shots = shots_of(task, config.num_shots)
    data = read_data(task, max(num_shots), config.num_questions, config.seed)
    digest = _digest([repr((task, *map(list, _parts(data)))).encode()])
    return EvaluationTask(
        task, data, num_shots, digest, _draws(task, config.draws) * min(config.num_questions, len(data.items))
    )


def evaluate_model(
    model: EvaluatedModel,
    part: EvaluationTask,
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
    of_row = {"task": task.name, "model": model.path, "data": part.digest, "settings": settings_of(config)}
    of_row["weights"] = model.digest
    found = []
    for k in sorted({*part.num_shots, *(row["num_shots"] for row in rows)}):
        key = _digest([repr((model.digest, of_row["data"], of_row["settings"], k)).encode()])[:16]
        row = there.get(key)
        if row is None and k not in part.num_shots:
            continue  # of another model or task
        if row is None:
            row, answers = _figure(model, part, k, config, progress)
            row = {**of_row, "fingerprint": key, **row}
            if folder is not None:  # named by all that the figure depends on, so that none replaces another's
                row["answers"] = f"answers/{f'{model.name}-{task.name}-{k}-{key}'.replace('/', '_')}.jsonl"
                write_jsonl(folder / row["answers"], answers)
            rows.append(row)
            if folder is not None:
                write_jsonl(folder / "figures.jsonl", rows)
            progress.say(_told_of_figure(model.name, row))
        elif k in part.num_shots:
            progress.advance(part.num_asked)
        notes += _remarks(row)
        found.append({**row, "model": model.path})
    return found, notes


def _figure(
    model: EvaluatedModel, part: EvaluationTask, num_shots: int, config: PromptConfig, progress: Progress
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns a figure of the table, and the answers behind it."""
    numbers = choose_questions(len(part.data.items), config.num_questions, config.seed)
    with autocast(model.where, config.precision):
        told = [
            evaluate_few_shot(
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
    return figures | aggregate(told, part.task, part.data.items), answers


def from_before(
    rows: Sequence[dict[str, Any]],
    done: Sequence[Mapping[str, Any]],
    digests: Mapping[str, str],
    weights: Mapping[str, str],
    settings: str,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns figures of models and tasks that were not named this time but asked in the same way, and a note on those asked otherwise.

    Args:
        rows: All that the folder holds.
        done: What was named this time.
        digests: Of the data of each task that was named: figures of other data are out of date.
        weights: Digests of the models that were named, by their resolved paths: figures of other weights are, too.
        settings: As in each row.
    """
    seen = {row["fingerprint"] for row in done}
    others = [row for row in rows if row["fingerprint"] not in seen]
    found = {}
    for row in others:
        model = str(Path(row["model"]).resolve())
        is_of_data = digests.get(row["task"], row.get("data")) == row.get("data")
        is_of_weights = weights.get(model, row.get("weights")) == row.get("weights")
        if is_of_data and is_of_weights and row.get("settings") == settings:
            found[row["task"], model, row["num_shots"]] = {**row, "is_from_before": True}
    number = sum(row.get("settings") != settings for row in others)
    note = f"{_counted(number, 'figure')} in the folder asked with other settings (questions, seed ...) stay out of the table"
    return list(found.values()), [note] if number else []


def _told_of_figure(name: str, row: Mapping[str, Any]) -> str:
    unit = "% right" if row["metric"] == "accuracy" else row["metric"]
    line = f"{name}: {row['task']}, {_counted(row['num_shots'], 'example')}: {100 * row['figure']:.1f} {unit}"
    line += f" ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
    return line + (f", calibrated {100 * row['calibrated']:.1f}" if "calibrated" in row else "")


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


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def shots_of(task: PromptTask, asked: Sequence[int]) -> tuple[int, ...]:
    """Returns the numbers of examples that were asked for, or else those that the task says."""
    return tuple(sorted(set(asked or task.num_shots)))


def read_data(task: PromptTask, num_shots: int, num_questions: int, seed: int) -> PromptData:
    """Returns the questions of a task and where their examples come from."""
    if task.synthetic:
        return _synthetic(task.synthetic, num_shots, num_questions, seed)
    items = read_few_shot_examples(task.data, task)
    is_same = not task.examples or Path(task.examples).resolve() == Path(task.data).resolve()
    return PromptData(items, items if is_same else read_few_shot_examples(task.examples, task), how=task.draw)


def _synthetic(name: str, num_shots: int, number: int, seed: int) -> PromptData:
    """Returns questions each of which has a rule and examples of its own, the same ones for most numbers of examples."""
    items, own = [], []
    size = max(_EPISODE, num_shots + 1)
    for i in range(number):
        episode = SYNTHETIC_TASKS[name].episode(size, example_generator(seed, 1, i))
        *before, last = [FewShotExample({"input": given}, (wanted,), 0) for given, wanted in episode.pairs]
        gold = last.answers[0]
        answers = tuple(episode.candidates)
        items.append(FewShotExample(last.fields, answers, answers.index(gold)) if answers else last)
        own.append(before)
    return PromptData(items, (), own)


_EPISODE = 64
"""Pairs that are drawn for a synthetic question, of which an example in the prompt may be one."""


def choose_questions(number: int, wanted: int, seed: int) -> list[int]:
    """Returns which of so many questions are asked, in their order."""
    order = example_generator(seed, 0, _STREAM).permutation(number)
    return sorted(order[: min(number, wanted)].tolist())


_STREAM = 2**61
"""Of the draw of questions: a number that no question has."""


def _draws(task: PromptTask, draws: int) -> int:
    """Returns how often examples are drawn: those of a synthetic question are its own."""
    return 1 if task.synthetic else draws


def _parts(data: PromptData) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    return data.items, data.pool if data.pool is not data.items else (), data.own


def settings_of(config: PromptConfig) -> str:
    """Returns what tells figures apart that were asked in another way, whatever the model and the task."""
    rest = (config.draws, config.calibrate, config.num_questions, config.seed, config.precision)
    return _digest([repr(rest).encode()])


def digest_of_model(body: Model, tokenizer: Tokenizer) -> str:
    """Returns what tells a model apart from any other: how it is built, its vocabulary, its weights."""
    built = repr((body.config, sorted(body.heads), tokenizer.fingerprint)).encode()
    return _digest([built, *(p.detach().cpu().view(torch.uint8).numpy().tobytes() for p in body.parameters())])


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
