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
from stemformer.output_dir import check_not_existing
from stemformer.progress import Progress, Silent
from stemformer.reports.finetuning import write_task_report
from stemformer.tasks.dataset import LabelledTask, load_labelled_task, read_records, unknown_labels
from stemformer.tasks.examples import TaskExamples, make_example, num_special
from stemformer.tasks.predictions import examples_to_show, output_format, serialize, to_row


class Pipeline:
    """A model with its tokenizer, and what it was fine-tuned for.

    Args:
        path: A Hugging Face folder, a run folder, or a hub id.
        device: `auto`, `cpu`, `cuda` ...
        precision: `fp32`, `bf16` or `auto`.

    Attributes:
        model: Body and heads, in evaluation mode.
        tokenizer: Of the model.
        problem: What it was fine-tuned for; None for a model that was only pre-trained.
    """

    def __init__(self, path: str, *, device: str = "auto", precision: str = "fp32") -> None:
        self.path = path
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.model: Model
        self.tokenizer: Tokenizer
        self.model, self.tokenizer = load_with_tokenizer(path)
        self.model.to(self.device)
        self.problem: LabelledTask | None = load_labelled_task(path) if read_task(path) else None
        if self.problem is not None and self.problem.task.head not in self.model.heads:
            raise CheckpointError(
                f"{path}: config.json tells of a head for {self.problem.task.config.name}, but the weights hold none: "
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
        problem = self._problem()
        _refuse_single(inputs)
        records = [_record(problem, x, i) for i, x in enumerate(inputs)]
        return self.predict_records(records)

    def predict_records(self, records: Sequence[Any], progress: Progress | None = None) -> list[Any]:
        """Returns a prediction for each record that `problems.read_records` gave."""
        return self.score_records(records, progress)[0]

    def score_records(
        self, records: Sequence[Any], progress: Progress | None = None
    ) -> tuple[list[Any], list[Float[np.ndarray, "_ c"]], TaskExamples]:
        """Returns predictions, and the scores and examples that they were made from."""
        progress = progress or Silent()
        task = self._problem().task
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
        room = longest - num_special(self.tokenizer, num_texts=1)
        ids = self.tokenizer.encode_ids(texts)
        examples = [make_example([row[:room]], self.tokenizer) for row in ids]
        num_cut = sum(len(row) > room for row in ids)
        counted = {"texts cut to fit": num_cut} if num_cut else {}
        progress.start("embedding", total=len(texts), unit="texts")
        with autocast(self.device, self.precision):
            vectors = pooled_states(
                self.model,
                TaskExamples(examples, np.arange(len(texts)), (), counted),
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

    def _problem(self) -> LabelledTask:
        if self.problem is None:
            raise CheckpointError(
                f"{self.path} was only pre-trained, so it cannot predict: fine-tune it first with `stemformer finetune`"
            )
        return self.problem


def load(path: str, *, device: str = "auto", precision: str = "fp32", threads: int | None = None) -> Pipeline:
    """Returns a model that is ready to predict, with its tokenizer.

    Args:
        path: A Hugging Face folder, a run folder, or a hub id.
        device: `auto`, `cpu`, `cuda` ...
        precision: `fp32`, `bf16` or `auto`.
        threads: Processor threads.

    Raises:
        CheckpointError: See `pretrained.load_model`.
    """
    set_threads(threads)
    return Pipeline(path, device=device, precision=precision)


def predict(
    data: Sequence[str],
    *,
    model: str,
    out: str | None = None,
    text: Sequence[str] = (),
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes what a model says about each record of some files, beside what the files say.

    Args:
        data: Files in the forms that `finetune` reads; answers need not be there. `-` is standard input.
        model: A fine-tuned model.
        out: File for the predictions: .jsonl, .csv, .tsv; .conll for tags; .json for answers in SQuAD's form. None returns them.
        text: Columns of the texts; by default those that the model was trained on, if they are there.
        device: As for `load`, like the next two.
        precision: Number format.
        threads: Processor threads.
        overwrite: Replace the file.
        progress: Told how far it is.

    Raises:
        ConfigError: The file exists, or its form does not suit the task.
        StemformerError: Data or a model that do not fit.
    """
    progress = progress or Silent()
    if out is not None:
        _check_free(out, data, overwrite=overwrite)
    loaded = load(model, device=device, precision=precision, threads=threads)
    problem = loaded._problem()
    form = output_format(out, problem)
    records, counted = _read(problem, data, text, needs_answer=False, progress=progress)
    predictions, _, examples = loaded.score_records(records, progress)
    rows = [to_row(problem, r, p) for r, p in zip(records, predictions, strict=True)]
    counted.update(examples.counted)
    for what, number in counted.items():
        progress.say(f"{what}: {number:,}")
    if out is None:
        return {"predictions": rows, "counted": dict(counted)}
    content = serialize(form, problem, records, predictions, rows)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_file(Path(out), [content.encode()])
    return {"out": out, "records": len(rows), "counted": dict(counted)}


def evaluate(
    data: Sequence[str],
    *,
    model: str,
    out: str | None = None,
    text: Sequence[str] = (),
    label: str | None = None,
    report: str | None = None,
    worst: int = 20,
    overwrite: bool = False,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Returns how good a model is on labelled files, and which records it is most wrong about.

    Args:
        data: Files in the forms that `finetune` reads, with answers.
        model: A fine-tuned model.
        out: File for all of it as JSON.
        text: Columns of the texts; by default those that the model was trained on, if they are there.
        label: Column of the answer; likewise.
        report: Folder for the same as a page, with confusion matrix and examples.
        worst: How many of the wrong answers are listed, those first to which the model gave the least probability.
        overwrite: Replace the file, and what an evaluation wrote into the folder.
        device: As for `load`, like the next two.
        precision: Number format.
        threads: Processor threads.
        progress: Told how far it is.

    Raises:
        StemformerError: Data or a model that do not fit.
    """
    progress = progress or Silent()
    if worst < 0:
        raise ConfigError(f"--worst {worst}: expected a number from 0 on")
    if out is not None:
        _check_free(out, data, overwrite=overwrite)
    if report is not None:
        _check_folder(report, overwrite=overwrite)
    loaded = load(model, device=device, precision=precision, threads=threads)
    problem = loaded._problem()
    records, counted = _read(problem, data, text, label=label, needs_answer=True, progress=progress)
    unknown = unknown_labels(problem, records)
    for note in unknown:
        progress.say(note)
    predictions, scores, examples = loaded.score_records(records, progress)
    counted.update(examples.counted)
    figures, details = problem.score(predictions, records)
    mistakes = examples_to_show(problem, records, predictions, number=worst, only_wrong=True)
    result = {
        "model": model,
        "task": problem.task.config.name,
        "records": len(records),
        "main": problem.main_metric,
        **figures,
        "counted": dict(counted),
        "notes": unknown,
        **details,
        "wrong": mistakes,
    }
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        write_file(Path(out), [(json.dumps(result, ensure_ascii=False, indent=2) + "\n").encode()])
    if report is not None:
        looked_into = (examples, scores, loaded.tokenizer)
        shown = examples_to_show(problem, records, predictions, number=len(records), looked_into=looked_into)
        told_of: dict[str, Any] = {
            "task": problem.task.config.name,
            "title": f"{Path(model).name} on {', '.join(map(_name, data))}",
        }
        told_of |= {"metrics": figures, **details, "notes": [*_notes(counted), *unknown], "examples": shown}
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
    problem: LabelledTask,
    data: Sequence[str],
    text: Sequence[str],
    *,
    label: str | None = None,
    needs_answer: bool,
    progress: Progress,
) -> tuple[list[Any], Counter[str]]:
    """Returns the records of some files; the columns are those given, else those of the training data, else guessed."""
    counted: Counter[str] = Counter()
    config = problem.task.config
    asked = replace(config, text=tuple(text), label=label)
    records, chosen = read_records(asked, data, counted=counted, needs_answer=needs_answer, like=config)
    is_same = chosen.text == config.text and (not needs_answer or chosen.label == config.label)
    if problem.task.head == "sequence" and not is_same:
        answer = f"; answer: column {chosen.label!r}" if needs_answer else ""
        progress.say(f"text: column {' and '.join(map(repr, chosen.text))}{answer} (--text to change)")
    return records, counted


def _record(problem: LabelledTask, given: Any, number: int) -> Any:
    """Returns the record of one input of `Loaded.predict`."""
    place, name, head = f"input {number}", problem.task.config.name, problem.task.head
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
    return TaggedSentence(words=words, tags=None, place=place, text=text, offsets=offsets)


def _name(file: str) -> str:
    return Path(file).name


def _notes(counted: Counter[str]) -> list[str]:
    return [f"{what}: {number:,}" for what, number in counted.items()]
