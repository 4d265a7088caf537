"""Models that were fine-tuned, put to use: predictions for files and texts, and how good they are."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from stemformer.data.labelled.multiple_choice import ChoiceQuestion
from stemformer.data.labelled.question_answering import Question
from stemformer.data.labelled.text_classification import TextExample
from stemformer.data.labelled.token_classification import TaggedSentence, join_tokens
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.device import autocast, choose_device, choose_precision, configure_allocator, set_threads
from stemformer.errors import CheckpointError, ConfigError, DataError
from stemformer.evaluation.inference import pooled_states, predict_scores
from stemformer.huggingface.load import load_with_tokenizer, read_task
from stemformer.io import write_file
from stemformer.models.model import Model
from stemformer.objectives.objective import LossModule
from stemformer.options import EvaluateOptions, LoadOptions, PredictOptions, accepts
from stemformer.output_dir import check_not_existing
from stemformer.progress import Progress, Silent
from stemformer.reports.finetuning import write_task_report
from stemformer.tasks.dataset import check_labels, load_labelled_task, read_records
from stemformer.tasks.examples import TaskExamples, make_example, num_special_tokens
from stemformer.tasks.predictions import examples_to_show, output_format, serialize
from stemformer.tasks.task import Task


class Pipeline:
    """A model with its tokenizer, and what it was fine-tuned for.

    Args:
        path: A Hugging Face folder, a run folder, or a hub id.
        device: `auto`, `cpu`, `cuda` ...
        precision: `fp32`, `bf16` or `auto`.

    Attributes:
        model: Body and heads, in evaluation mode.
        tokenizer: Of the model.
        task: What it was fine-tuned for; None for a model that was only pre-trained.
    """

    def __init__(self, path: str, *, device: str = "auto", precision: str = "fp32") -> None:
        self.path = path
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.model: Model
        self.tokenizer: Tokenizer
        self.model, self.tokenizer = load_with_tokenizer(path)
        self.model.to(self.device)
        self.task: Task | None = load_labelled_task(path) if read_task(path) else None
        if self.task is not None and self.task.head not in self.model.heads:
            raise CheckpointError(
                f"{path}: config.json tells of a head for {self.task.config.name}, but the weights hold none: "
                "give the folder that `stemformer finetune` made"
            )
        configure_allocator(self.device)

    def predict(self, inputs: Sequence[Any]) -> list[Any]:
        """Returns a prediction for each input, in their order; the batches are made by length.

        Args:
            inputs: `classify`: texts. `pair`: (text, text). `tag`: sentences, as text whose words are parted by spaces or as lists of
                words. `qa`: (question, passage). `choice`: (text, options).

        Returns:
            `TextPrediction`, `TagPrediction`, `AnswerPrediction` or `ChoicePrediction` of `stemformer.tasks`.

        Raises:
            CheckpointError: The model was only pre-trained.
            DataError: An input is not of that form, or empty.

        Example:
            >>> load("runs/sst2").predict(["a fine film"])[0].label  # doctest: +SKIP
            'positive'
        """
        task = self._task()
        _refuse_single(inputs)
        records = [_record(task, x, i) for i, x in enumerate(inputs)]
        return self.predict_records(records)

    def predict_records(self, records: Sequence[Any], progress: Progress | None = None) -> list[Any]:
        """Returns a prediction for each record that `problems.read_records` gave."""
        return self.score_records(records, progress)[0]

    def score_records(
        self, records: Sequence[Any], progress: Progress | None = None
    ) -> tuple[list[Any], list[Float[np.ndarray, "_ c"]], TaskExamples]:
        """Returns predictions, and the scores and examples that they were made from."""
        progress = progress or Silent()
        task = self._task()
        progress.start("encoding")
        examples = task.encode(records, self.tokenizer, max_length=self._longest(task.config.max_length))
        progress.start("predicting", total=len(examples), unit="examples")
        with autocast(self.device, self.precision):
            scores, _ = predict_scores(
                LossModule(self.model, task), task, examples, device=self.device, on_examples=progress.advance
            )
        progress.finish()
        return task.decode(scores, examples, records), scores, examples

    def embed(
        self,
        texts: Sequence[str],
        *,
        pooling: Literal["mean", "cls"] = "mean",
        normalize: bool = True,
        max_length: int | None = None,
        progress: Progress | None = None,
    ) -> Float[np.ndarray, "n D"]:
        """Returns one vector for each text, in their order.

        Args:
            texts: Any.
            pooling: The mean of all last states, or the state of `[CLS]` (of the last token, where the model reads from left to right).
            normalize: Bring each vector to length 1, so that dot products are cosines.
            max_length: Tokens of a text, special ones included, behind which it is cut; the model's positions by default.
            progress: Told how far it is.

        Example:
            >>> load("sentence-transformers/all-MiniLM-L6-v2").embed(["a fine film"]).shape  # doctest: +SKIP
            (1, 384)
        """
        progress = progress or Silent()
        _refuse_single(texts)
        longest = self._longest(max_length)
        room = longest - num_special_tokens(self.tokenizer, num_texts=1)
        ids = self.tokenizer.encode_ids(texts)
        examples = [make_example([row[:room]], self.tokenizer) for row in ids]
        num_cut = sum(len(row) > room for row in ids)
        counts = {"texts cut to fit": num_cut} if num_cut else {}
        progress.start("embedding", total=len(texts), unit="texts")
        with autocast(self.device, self.precision):
            vectors = pooled_states(
                self.model,
                TaskExamples(examples, np.arange(len(texts)), (), counts),
                pooling=pooling,
                device=self.device,
                on_examples=progress.advance,
            )
        progress.finish()
        if num_cut:
            progress.say(f"texts cut to fit into {longest} tokens: {num_cut:,}")
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12) if normalize else vectors

    def _longest(self, asked: int | None) -> int:
        """Returns how many tokens an example may have: what is asked for, if the model has as many positions."""
        positions = self.model.config.max_position_embeddings
        return min(asked or positions, positions)

    def _task(self) -> Task:
        if self.task is None:
            raise CheckpointError(
                f"{self.path} was only pre-trained, so it cannot predict: fine-tune it first with `stemformer finetune`"
            )
        return self.task


@accepts(LoadOptions)
def load(options: LoadOptions) -> Pipeline:
    """Load a model with its tokenizer and task, ready to predict.

    Raises:
        CheckpointError: The files do not hold a model.
    """
    set_threads(options.threads)
    return Pipeline(options.path, device=options.device, precision=options.precision)


@accepts(PredictOptions)
def predict(options: PredictOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Predict with a fine-tuned model on files.

    Raises:
        ConfigError: The output file exists, or its format does not suit the task.
        StemformerError: Data or model do not fit together.
    """
    data, model, out, text = options.files, options.model, options.out, options.text_column
    device, precision, threads, overwrite = options.device, options.precision, options.threads, options.overwrite
    progress = progress or Silent()
    if out is not None:
        _check_free(out, data, overwrite=overwrite)
    loaded = load(model, device=device, precision=precision, threads=threads)
    task = loaded._task()
    form = output_format(out, task)
    records, counts = _read(task, data, text, needs_answer=False, progress=progress)
    predictions, _, examples = loaded.score_records(records, progress)
    rows = [task.to_row(r, p) for r, p in zip(records, predictions, strict=True)]
    counts.update(examples.counts)
    for what, number in counts.items():
        progress.say(f"{what}: {number:,}")
    if out is None:
        return {"predictions": rows, "counted": dict(counts)}
    content = serialize(form, records, predictions, rows)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_file(Path(out), [content.encode()])
    return {"out": out, "records": len(rows), "counted": dict(counts)}


@accepts(EvaluateOptions)
def evaluate(options: EvaluateOptions, *, progress: Progress | None = None) -> dict[str, Any]:
    """Evaluate a fine-tuned model on labelled files.

    Raises:
        StemformerError: Data or model do not fit together.
    """
    data, model, out, text, label = (
        options.files,
        options.model,
        options.out,
        options.text_column,
        options.label_column,
    )
    report, worst, overwrite = options.report, options.num_worst, options.overwrite
    device, precision, threads = options.device, options.precision, options.threads
    progress = progress or Silent()
    if worst < 0:
        raise ConfigError(f"--num-worst is {worst}: expected 0 or more.")
    if out is not None:
        _check_free(out, data, overwrite=overwrite)
    if report is not None:
        _check_folder(report, overwrite=overwrite)
    loaded = load(model, device=device, precision=precision, threads=threads)
    task = loaded._task()
    records, counts = _read(task, data, text, label=label, needs_answer=True, progress=progress)
    unknown = check_labels(task, records)
    for note in unknown:
        progress.say(note)
    predictions, scores, examples = loaded.score_records(records, progress)
    counts.update(examples.counts)
    figures, details = task.compute_metrics(predictions, records)
    mistakes = examples_to_show(task, records, predictions, number=worst, only_wrong=True)
    result = {
        "model": model,
        "task": task.config.name,
        "records": len(records),
        "main": task.main_metric,
        **figures,
        "counted": dict(counts),
        "notes": unknown,
        **details,
        "wrong": mistakes,
    }
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        write_file(Path(out), [(json.dumps(result, ensure_ascii=False, indent=2) + "\n").encode()])
    if report is not None:
        outputs = (examples, scores, loaded.tokenizer)
        shown = examples_to_show(task, records, predictions, number=len(records), outputs=outputs)
        told_of: dict[str, Any] = {
            "task": task.config.name,
            "title": f"{Path(model).name} on {', '.join(map(_name, data))}",
        }
        told_of |= {"metrics": figures, **details, "notes": [*_notes(counts), *unknown], "examples": shown}
        Path(report).mkdir(parents=True, exist_ok=True)
        result["report"] = str(write_task_report(Path(report), told_of))
    return result


def _check_free(out: str, inputs: Sequence[str], *, overwrite: bool) -> None:
    """Refuses to write over a file that was not said to be replaced, and over what is read."""
    check_not_existing(out, overwrite=overwrite)
    if any(Path(out).resolve() == Path(given).resolve() for given in inputs):
        raise ConfigError(f"{out} is what is read: give another --out")


def _check_folder(report: str, *, overwrite: bool) -> None:
    """Refuses a folder for a page that holds anything else than such a page."""
    held = {path.name for path in Path(report).iterdir()} if Path(report).is_dir() else set()
    is_page = "report.html" in held and not held & _OF_RUNS
    if Path(report).is_file() or (held and not is_page):
        raise ConfigError(f"{report} holds something else than the report of an evaluation: give another --report")
    if is_page and not overwrite:
        raise ConfigError(f"{report} holds a report: give another --report, or --overwrite to replace it")


_OF_RUNS = {"config.toml", "log.jsonl", "trials.json"}


# --------------------------------------------------------------------------------------------------------------------------- records


def _read(
    task: Task,
    data: Sequence[str],
    text: Sequence[str],
    *,
    label: str | None = None,
    needs_answer: bool,
    progress: Progress,
) -> tuple[list[Any], Counter[str]]:
    """Returns the records of some files; the columns are those given, else those of the training data, else guessed."""
    counts: Counter[str] = Counter()
    config = task.config
    asked = replace(config, text=tuple(text), label=label)
    records, chosen = read_records(asked, data, counts=counts, needs_answer=needs_answer, like=config)
    is_same = chosen.text == config.text and (not needs_answer or chosen.label == config.label)
    if task.head == "sequence" and not is_same:
        answer = f"; answer: column {chosen.label!r}" if needs_answer else ""
        progress.say(f"text: column {' and '.join(map(repr, chosen.text))}{answer} (--text-column to change)")
    return records, counts


def _record(task: Task, given: Any, number: int) -> Any:
    """Returns the record of one input of `Loaded.predict`."""
    place, name, head = f"input {number}", task.config.name, task.head
    expected = {
        "sequence": "a text",
        "token": "a text or a list of words",
        "span": "(question, passage)",
        "choice": "(text, options)",
    }
    wanted = "(text, text)" if name == "pair" else expected[head]
    parts = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Sequence) else ()
    if head == "token":
        words = tuple(given.split()) if isinstance(given, str) else parts
        if words and all(isinstance(word, str) and word for word in words):
            return _sentence(words, place)
    elif head == "choice":
        if len(parts) == 2 and isinstance(parts[0], str) and not isinstance(parts[1], str) and len(parts[1]) > 0:
            return ChoiceQuestion(place, parts[0], "", tuple(parts[1]), None)
    elif all(isinstance(part, str) and part.strip() for part in parts):
        if head == "span" and len(parts) == 2:
            return Question(
                id=place, question=parts[0], context=parts[1], answers=(), title="", is_impossible=False, gold=()
            )
        if head == "sequence" and len(parts) == (2 if name == "pair" else 1):
            return TextExample(parts, None, {}, place)
    raise DataError(
        f"{place} is {given!r:.80}: expected {wanted}"
        + ("" if parts and all(str(part).strip() for part in parts) else ", not empty")
    )


def _refuse_single(inputs: Sequence[Any]) -> None:
    if isinstance(inputs, str):
        raise DataError(f"the text {inputs!r:.60} was given in the place of a list: give [text]")


def _sentence(words: tuple[str, ...], place: str) -> TaggedSentence:
    text, offsets = join_tokens(words)
    return TaggedSentence(words=words, tags=None, location=place, text=text, offsets=offsets)


def _name(file: str) -> str:
    return Path(file).name


def _notes(counts: Counter[str]) -> list[str]:
    return [f"{what}: {number:,}" for what, number in counts.items()]
