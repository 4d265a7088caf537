"""The `fewshot` command: evaluate models zero-, one- and few-shot over tasks and numbers of demonstrations.

A result is identified by a fingerprint of all that it depends on (model, data, settings, number of demonstrations), so
that a directory can be extended by models, tasks and numbers of demonstrations.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from stemformer.config import check_seed, from_toml
from stemformer.data.examples.sampling import example_generator
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.device import autocast, choose_device, choose_precision, configure_allocator, set_threads
from stemformer.errors import CheckpointError, ConfigError
from stemformer.evaluation.few_shot.dataset import FewShotDataset, read_few_shot_examples
from stemformer.evaluation.few_shot.evaluate import RENAMED_RESULTS, aggregate, evaluate_few_shot, notes_on_answers
from stemformer.evaluation.few_shot.synthetic import SYNTHETIC_TASKS
from stemformer.evaluation.few_shot.task import FewShotExample, PromptTask, built_in_tasks, open_task
from stemformer.experiments.run_grid import PlannedRun, Record, RunGrid, prepare_experiment_dir
from stemformer.huggingface.load import find_model_folder, load_model_and_tokenizer
from stemformer.io import write_json, write_jsonl
from stemformer.models.model import Model
from stemformer.options import FewShotOptions, ShowPromptsOptions, accepts
from stemformer.output_dir import exclusive_output_dir
from stemformer.progress import Progress, Silent, format_count
from stemformer.reports.few_shot import few_shot_table, percent, short_names, write_few_shot_report

_MAX_SHOWN_SHOTS = 4
# Maximum number of prompts that are searched for unknown words.
_MAX_CHECKED = 200
# Minimum number of questions for a note that all get the same answer.
_MIN_QUESTIONS = 10
# Number of pairs to sample for a synthetic question, so that more demonstrations extend fewer ones.
_MIN_EPISODE = 64
# Random stream of the sample of questions: an index that no question has.
_QUESTION_STREAM = 2**61


@dataclass(frozen=True)
class PromptConfig:
    """Config of a few-shot evaluation; `digest` identifies the settings that change results."""

    models: tuple[str, ...]
    tasks: tuple[PromptTask, ...]
    # Ascending; empty for those of each task.
    num_shots: tuple[int, ...]
    num_questions: int
    seed: int
    # Number of samples of demonstrations, with consecutive seeds.
    num_draws: int
    calibrate: bool
    precision: str

    def digest(self) -> str:
        return _digest((self.num_draws, self.calibrate, self.num_questions, self.seed, self.precision))


@dataclass(frozen=True)
class EvaluationTask:
    """Task with its data, numbers of demonstrations (ascending), and indices of the evaluated questions (ascending)."""

    task: PromptTask
    data: FewShotDataset
    num_shots: tuple[int, ...]
    questions: list[int]

    @cached_property
    def digest(self) -> str:
        """Hash of the task and its data."""
        demonstrations = self.data.demonstrations if self.data.demonstrations is not self.data.items else ()
        per_item = list(self.data.demonstrations_per_item)
        return _digest((self.task, list(self.data.items), list(demonstrations), per_item))


@dataclass(frozen=True)
class EvaluatedModel:
    """Model to evaluate, and the hash of its config, vocabulary and weights."""

    path: str
    name: str
    body: Model
    tokenizer: Tokenizer
    digest: str
    device: torch.device

    @property
    def is_masked(self) -> bool:
        """Whether the model is a masked language model, which generates no text."""
        return "causal_lm" not in self.body.heads


def list_tasks() -> list[dict[str, str]]:
    """Return the built-in tasks: `task`, `about`, `source`."""
    tasks = {name: from_toml(PromptTask, text, source=name) for name, text in built_in_tasks().items()}
    rows = [(name, task.about, task.source) for name, task in tasks.items()]
    rows += [(f"synthetic:{name}", t.description, "generated from the seed") for name, t in SYNTHETIC_TASKS.items()]
    return [{"task": name, "about": about, "source": source} for name, about, source in rows]


@accepts(ShowPromptsOptions)
def show_prompts(options: ShowPromptsOptions) -> list[dict[str, Any]]:
    """Return the prompt of the first example of each few-shot task; no model is needed."""
    tasks = [_prepare_task(task, options.num_shots, 1, options.seed) for task in _open_tasks(options)]
    return [prompt for task in tasks for prompt in _first_prompts(task, task.num_shots, options.seed)]


@exclusive_output_dir
@accepts(FewShotOptions)
def fewshot(options: FewShotOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Evaluate models zero-, one- and few-shot, without fine-tuning.

    Returns:
        `table` (accuracy in percent, or the task's own metric, for each task and model), `results` (a row for
        each task, model and number of shots; see `evaluation.few_shot.evaluate.aggregate`), `notes`. The output
        directory holds `prompt.json`, `report.html`, `shots.svg`, `sizes.svg`, a line for each result in
        `finished.jsonl` and for each prediction in `answers/`.

    Raises:
        StemformerError: Tasks, data or models do not fit together.
    """
    progress = progress or Silent()

    # Check the options and read the data.
    if not options.model or len({Path(model).resolve() for model in options.model}) < len(options.model):
        raise ConfigError("--model: expected at least one model, each of them once")
    for name, value in (("num-questions", options.num_questions), ("num-draws", options.num_draws)):
        if value < 1:
            raise ConfigError(f"--{name} {value}: expected at least 1")
    set_threads(options.threads)
    device = choose_device(options.device)
    configure_allocator(device)
    opened = _open_tasks(options)
    config = PromptConfig(
        models=tuple(map(str, options.model)),
        tasks=tuple(opened),
        num_shots=tuple(sorted(set(options.num_shots))),
        precision=choose_precision(options.precision, device),
        **{name: getattr(options, name) for name in ("num_questions", "seed", "num_draws", "calibrate")},
    )
    model_folders = {model: find_model_folder(model) for model in config.models}
    folder = None
    if options.out is not None:
        data_files = [file for task in opened for file in (task.data, task.demonstrations)]
        task_files = [task.partition("=")[0] for task in options.tasks]
        folder = prepare_experiment_dir(options, [*config.models, *task_files, *data_files])
    tasks = [_prepare_task(task, config.num_shots, config.num_questions, config.seed) for task in opened]

    # Evaluate one model after the other.
    grid: RunGrid[str] = RunGrid(
        folder,
        config,
        key=lambda record: record["fingerprint"],
        what="few-shot evaluation",
        resume=options.resume,
        former=("figure?.jsonl",),
        renamed=RENAMED_RESULTS,
    )
    names = short_names(config.models)
    results: list[Record] = []
    notes: list[str] = []
    digests: dict[str, str] = {}
    for path, model_folder in model_folders.items():
        model = load_evaluated_model(path, names[path], model_folder, device)
        digests[str(Path(path).resolve())] = model.digest
        found, model_notes = _evaluate_model(grid, model, tasks, config, progress)
        results += found
        notes += model_notes
    if not results:
        raise ConfigError(f"No task could be evaluated: {'; '.join(notes)}")

    # Results of other models and tasks that are still valid stay in the table.
    kept, num_other = _earlier_results(grid, results, {task.task.name: task.digest for task in tasks}, digests, config)
    if num_other:
        other = f"{format_count(num_other, 'result')} in the directory with other settings (questions, seed ...)"
        notes.append(f"{other} are not in the table")
    order = list(dict.fromkeys([*(task.task.name for task in tasks), *(row["task"] for row in [*results, *kept])]))
    results = sorted([*results, *kept], key=lambda row: order.index(row["task"]))
    content: dict[str, Any] = {"table": few_shot_table(results), "results": results, "notes": notes}
    if folder is None:
        return content
    write_json(folder / "prompt.json", content)
    prompts = []
    for task in tasks:
        shown = task.num_shots[: max(1, sum(k <= _MAX_SHOWN_SHOTS for k in task.num_shots))]
        prompts += _first_prompts(task, shown, config.seed)
    return content | {"report": str(write_few_shot_report(folder, results, notes, prompts))}


def _open_tasks(options: ShowPromptsOptions) -> list[PromptTask]:
    """Check the options and open their tasks, which get different names."""
    if options.num_shots and min(options.num_shots) < 0:
        raise ConfigError(f"--num-shots {','.join(map(str, options.num_shots))}: expected numbers of at least 0")
    check_seed(options.seed, called="--seed")
    files: dict[str, str] = {}
    for entry in options.demonstrations:
        name, equals, file = entry.rpartition("=")
        if not equals or name in files:
            raise ConfigError(f"--demonstrations {entry}: expected TASK=FILE, each task once")
        files[name] = file
    names = [task if task.endswith(".toml") else task.rpartition("=")[0] or task for task in options.tasks]
    # A task of a .toml file may be called by the stem of the file.
    by_stem = {Path(name).stem: name for name in names if name.endswith(".toml")}
    files = {by_stem.get(name, name): file for name, file in files.items()}
    if unknown := set(files) - set(names):
        raise ConfigError(f"--demonstrations {sorted(unknown)[0]}=...: expected one of the tasks, {', '.join(names)}")
    named = zip(options.tasks, names, strict=True)
    opened = [open_task(task, demonstrations=files.get(name, "")) for task, name in named]
    if not opened:
        raise ConfigError("No task. Pass at least one; `stemformer fewshot --list` lists the built-in tasks.")
    # One task on several files: add the name of the file.
    counts = Counter(task.name for task in opened)
    opened = [replace(t, name=f"{t.name}_{Path(t.data).stem}") if counts[t.name] > 1 else t for t in opened]
    if len({task.name for task in opened}) < len(opened):
        raise ConfigError(f"Several tasks have the same name ({', '.join(sorted(counts))}). Set `name` in their files.")
    return opened


def _prepare_task(task: PromptTask, num_shots: Sequence[int], num_questions: int, seed: int) -> EvaluationTask:
    shots = tuple(sorted(set(num_shots or task.num_shots)))
    data = _read_data(task, max(shots), num_questions, seed)
    order = example_generator(seed, 0, _QUESTION_STREAM).permutation(len(data.items))
    return EvaluationTask(task, data, shots, sorted(order[:num_questions].tolist()))


def _read_data(task: PromptTask, num_shots: int, num_questions: int, seed: int) -> FewShotDataset:
    """Read the questions and demonstrations of a task; synthetic questions have their own rule and demonstrations."""
    if not task.synthetic:
        items = demonstrations = read_few_shot_examples(task.data, task)
        if task.demonstrations and Path(task.demonstrations).resolve() != Path(task.data).resolve():
            demonstrations = read_few_shot_examples(task.demonstrations, task)
        return FewShotDataset(items, demonstrations, sampler=task.sampler)
    questions, demonstrations_per_item = [], []
    size = max(_MIN_EPISODE, num_shots + 1)
    for i in range(num_questions):
        episode = SYNTHETIC_TASKS[task.synthetic].episode(size, example_generator(seed, 1, i))
        *examples, last = [FewShotExample({"input": text}, (answer,), 0) for text, answer in episode.pairs]
        if candidates := tuple(episode.candidates):
            last = FewShotExample(last.fields, candidates, candidates.index(last.answers[0]))
        questions.append(last)
        demonstrations_per_item.append(examples)
    return FewShotDataset(questions, (), demonstrations_per_item)


def _first_prompts(task: EvaluationTask, num_shots: Sequence[int], seed: int) -> list[dict[str, Any]]:
    """Return the prompt of the first evaluated question for each number of demonstrations."""
    number = task.questions[0]
    item = task.data.items[number]
    _, space, after = task.task.split_template(item)
    return [
        {
            "task": task.task.name,
            "num_shots": shots,
            "prompt": task.task.render_prompt(task.data.sample_demonstrations(number, shots, seed=seed), item),
            "answers": [space + answer + after for answer in item.answers],
            "right": space + item.answers[item.gold] + after,
        }
        for shots in num_shots
    ]


def load_evaluated_model(path: str, name: str, folder: Path, device: torch.device) -> EvaluatedModel:
    """Load a model with a language-modeling head; raise CheckpointError if it has none."""
    body, tokenizer = load_model_and_tokenizer(folder)
    if not {"causal_lm", "masked_lm"} & set(body.heads):
        raise CheckpointError(f"{path} has no language-modelling head. Pass a GPT, or a BERT as pre-training saves it.")
    weights = (p.detach().cpu().view(torch.uint8).numpy().tobytes() for p in body.parameters())
    digest = _digest((body.config, sorted(body.heads), tokenizer.fingerprint), weights)
    return EvaluatedModel(path, name, body.to(device), tokenizer, digest, device)


def _evaluate_model(
    grid: RunGrid[str], model: EvaluatedModel, tasks: Sequence[EvaluationTask], config: PromptConfig, progress: Progress
) -> tuple[list[Record], list[str]]:
    """Return all results of a model on some tasks, also for numbers of demonstrations evaluated earlier, and notes."""
    supported = [task for task in tasks if not model.is_masked or task.task.output_type == "multiple_choice"]
    plans = {
        _fingerprint(model, task, shots, config): _plan(model, task, shots, config, grid.folder)
        for task in supported
        for shots in task.num_shots
    }
    grid.run(plans, progress, describe=_describe, name="evaluation", unit="questions", phase="evaluating")
    results, notes = [], []
    for task in tasks:
        prefix = f"{model.name}, {task.task.name}: "
        if task not in supported:
            notes.append(f"{prefix}skipped, because a masked model generates no text")
            continue
        rows = [
            {**row, "model": model.path}
            for fingerprint, row in grid.finished.items()
            if fingerprint == _fingerprint(model, task, row["num_shots"], config)
        ]
        rows.sort(key=lambda row: row["num_shots"])
        model.tokenizer.unknown.clear()
        items = [task.data.items[number] for number in task.questions[:_MAX_CHECKED]]
        model.tokenizer.encode_ids([task.task.render_prompt((), x, for_masked=model.is_masked) for x in items])
        notes += [prefix + note] if (note := model.tokenizer.unknown.note()) else []
        results += rows
        notes += [prefix + note for note in notes_on_answers(task.task, model.tokenizer, for_masked=model.is_masked)]
        notes += [prefix + note for row in rows for note in _notes_on_result(row)]
    return results, notes


def _fingerprint(model: EvaluatedModel, task: EvaluationTask, num_shots: int, config: PromptConfig) -> str:
    return _digest((model.digest, task.digest, config.digest(), num_shots))[:16]


def _digest(value: Any, parts: Iterable[bytes] = ()) -> str:
    digest = hashlib.sha256(repr(value).encode())
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _plan(
    model: EvaluatedModel, task: EvaluationTask, num_shots: int, config: PromptConfig, folder: Path | None
) -> PlannedRun:
    # Questions of synthetic tasks have their own demonstrations.
    num_draws = 1 if task.task.synthetic else config.num_draws
    num_evaluated = num_draws * len(task.questions)

    def evaluate(progress: Progress) -> Record:
        progress.start("evaluating", total=num_evaluated, unit="questions")
        predict = partial(evaluate_few_shot, model.body, model.tokenizer, task.task, task.data, task.questions)
        predict = partial(predict, num_shots=num_shots, calibrate=config.calibrate, on_questions=progress.advance)
        with autocast(model.device, config.precision):
            samples = [predict(seed=config.seed + draw) for draw in range(num_draws)]
        fingerprint = _fingerprint(model, task, num_shots, config)
        record: Record = {
            "task": task.task.name,
            "model": model.path,
            "data": task.digest,
            "settings": config.digest(),
            "weights": model.digest,
            "fingerprint": fingerprint,
            "kind": "masked" if model.is_masked else "left to right",
            "parameters": model.body.num_parameters(),
            "num_shots": num_shots,
            **aggregate(samples, task.task, task.data.items),
        }
        if folder is not None:
            name = f"{model.name}-{task.task.name}-{num_shots}-{fingerprint}".replace("/", "_")
            record["answers"] = f"answers/{name}.jsonl"
            (folder / "answers").mkdir(exist_ok=True)
            answers = ({"draw": draw, **asdict(answer)} for draw, sample in enumerate(samples) for answer in sample)
            write_jsonl(folder / record["answers"], answers)
        return record

    return PlannedRun(f"{model.name}, {task.task.name}, {num_shots}-shot", evaluate, weight=num_evaluated)


def _earlier_results(
    grid: RunGrid[str], results: list[Record], data: dict[str, str], weights: dict[str, str], config: PromptConfig
) -> tuple[list[Record], int]:
    """Return valid results of models and tasks that were not named, and the number of results with other settings.

    Results on `data` (digest by task) or `weights` (digest by resolved path) other than those named are out of date.
    """
    known = {row["fingerprint"] for row in results}
    others = [row for row in grid.finished.values() if row["fingerprint"] not in known]
    same_settings = [row for row in others if row.get("settings") == config.digest()]
    valid = {}
    for row in same_settings:
        path = str(Path(row["model"]).resolve())
        current = (data.get(row["task"], row.get("data")), weights.get(path, row.get("weights")))
        if current == (row.get("data"), row.get("weights")):
            valid[row["task"], path, row["num_shots"]] = {**row, "is_from_before": True}
    return list(valid.values()), len(others) - len(same_settings)


def _describe(row: Record) -> str:
    unit = "% correct" if row["metric"] == "accuracy" else row["metric"]
    line = f"{percent(row['value'])} {unit} ({percent(row['low'])} to {percent(row['high'])})"
    return line + (f", calibrated {percent(row['acc_calibrated'])}" if "acc_calibrated" in row else "")


def _notes_on_result(row: Record) -> Iterator[str]:
    """Yield notes on prompts that did not fit into the model, and on a model that ignores the question."""
    if row["dropped_examples"]:
        dropped = f"{row['dropped_examples']:.1f}" if row["dropped_examples"] >= 0.05 else "less than 0.1"
        number = format_count(row["num_shots"], "demonstration")
        yield f"{dropped} of {number} did not fit, on average, and were left out"
    if row["cut_questions"]:
        number = f"{row['cut_questions']} of {row['questions']} questions"
        yield f"{row['num_shots']}-shot: {number} were too long and lost their beginning"
    if row.get("same_answer") == 1.0 and row["questions"] >= _MIN_QUESTIONS and (row["majority"] or 0) < 1:
        yield f"{row['num_shots']}-shot: the same answer to all {row['questions']} questions"
