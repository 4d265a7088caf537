"""Predictions as people and programs want them: rows of a file, and examples for a report, the worst first."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from stemformer.data.labelled.token_classification import TaggedSentence, as_bioes, repair_bio
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.errors import ConfigError
from stemformer.tasks.dataset import LabelledTask
from stemformer.tasks.examples import TaskExamples
from stemformer.tasks.metrics import squad_metrics
from stemformer.tasks.multiple_choice import ChoicePrediction
from stemformer.tasks.question_answering import AnswerPrediction
from stemformer.tasks.sequence_classification import TextPrediction
from stemformer.tasks.token_classification import TagPrediction


def to_row(problem: LabelledTask, record: Any, prediction: Any) -> dict[str, Any]:
    """Returns a prediction as a row, beside the columns of the input."""
    if isinstance(prediction, TextPrediction):
        row: dict[str, Any] = dict(record.row) or {f"text{i + 1}": t for i, t in enumerate(record.texts)}
        row = {f"input_{name}" if name in _OURS else name: value for name, value in row.items()}
        if not all(record.texts):
            nothing = {"prediction": None} if problem.task.config.kind == "score" else dict.fromkeys(_OURS)
            return {**row, **nothing}
        if problem.task.config.kind == "score":
            return {**row, "prediction": prediction.score}
        named = dict(zip(problem.task.labels, prediction.probabilities, strict=True))
        answer: Any = prediction.label
        if problem.task.config.kind == "labels":
            answer = list(prediction.labels)
        return {**row, "prediction": answer, "probability": prediction.score, "probabilities": named}
    if isinstance(prediction, TagPrediction):
        row = {
            "words": list(record.words),
            "tags": list(prediction.tags),
            "probabilities": list(prediction.probabilities),
        }
        if record.tags is not None:
            row["gold"] = list(record.tags)
        return {**row, "entities": _entities(record, prediction)} if problem.entities else row
    if isinstance(prediction, AnswerPrediction):
        told = asdict(prediction)
        if not math.isfinite(prediction.no_answer):  # of a passage without a token; JSON has no infinity
            told["no_answer"] = None
        return {"id": record.id, "question": record.question, **told}
    assert isinstance(prediction, ChoicePrediction)
    told = {"id": record.id, "prompt": record.prompt, "second": record.second, "choices": list(record.choices)}
    told |= {"prediction": record.choices[prediction.choice], **asdict(prediction)}
    return told if record.answer is None else {**told, "gold": record.choices[record.answer]}


_OURS = ("prediction", "probability", "probabilities")
"""Columns that predictions are written in; of the input, such a one is kept under another name."""


def _entities(record: TaggedSentence, prediction: TagPrediction) -> list[dict[str, Any]]:
    """Returns the entities of a sentence with their places in its text."""
    found: list[dict[str, Any]] = []
    for (begin, end), tag in zip(record.offsets, as_bioes(repair_bio(prediction.tags)[0]), strict=True):
        kind = tag.partition("-")[2]
        if tag.startswith(("I-", "E-")) and found and found[-1]["type"] == kind:
            found[-1]["end"] = end
        elif kind:
            found.append({"type": kind, "begin": begin, "end": end})
    return [{**entity, "text": record.text[entity["begin"] : entity["end"]]} for entity in found]


def output_format(out: str | None, problem: LabelledTask) -> str:
    """Returns the form that predictions are written in: the suffix of a file's name.

    Raises:
        ConfigError: It does not suit the task.
    """
    form = Path(out).suffix if out else ".jsonl"
    head = problem.task.head
    allowed = {
        "sequence": (".jsonl", ".csv", ".tsv"),
        "token": (".jsonl", ".conll"),
        "span": (".jsonl", ".json"),
        "choice": (".jsonl",),
    }
    if form not in allowed[head]:
        raise ConfigError(
            f"--out {out}: predictions of {problem.task.config.name} are written as {', '.join(allowed[head])}"
        )
    return form


def serialize(
    form: str, problem: LabelledTask, records: Sequence[Any], predictions: Sequence[Any], rows: Sequence[dict[str, Any]]
) -> str:
    """Returns the text of a file of predictions.

    Args:
        form: Its suffix.
        problem: That was solved.
        records: What was asked.
        predictions: One for each record.
        rows: The same beside what was asked; see `to_row`.
    """
    if form == ".json":
        return json.dumps({r.id: p.text for r, p in zip(records, predictions, strict=True)}, ensure_ascii=False) + "\n"
    if form == ".conll":
        blocks = []
        for record, prediction in zip(records, predictions, strict=True):
            columns = [record.words, *([record.tags] if record.tags is not None else []), prediction.tags]
            blocks.append("".join("\t".join(line) + "\n" for line in zip(*columns, strict=True)))
        return "\n".join(blocks)
    if form == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    text = io.StringIO()
    names = [name for name in rows[0] if name != "probabilities"]
    writer = csv.DictWriter(
        text, names, extrasaction="ignore", lineterminator="\n", delimiter="\t" if form == ".tsv" else ","
    )
    writer.writeheader()
    writer.writerows({k: ",".join(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    return text.getvalue()


def examples_to_show(
    problem: LabelledTask,
    records: Sequence[Any],
    predictions: Sequence[Any],
    *,
    number: int,
    only_wrong: bool = False,
    looked_into: tuple[TaskExamples, Sequence[Float[np.ndarray, "_ c"]], Tokenizer] | None = None,
) -> list[dict[str, Any]]:
    """Returns records with what was predicted, as `report.task_report` shows them: those first that are most wrong.

    Args:
        problem: That was solved.
        records: With their answers.
        predictions: One for each record.
        number: How many, at most.
        only_wrong: Leave out what is right.
        looked_into: Examples, their scores, and the tokenizer: for the scores of the tokens of a passage.
    """
    shown = []
    for i, (record, prediction) in enumerate(zip(records, predictions, strict=True)):
        monitor, is_wrong, example = _example(problem, record, prediction)
        if is_wrong or not only_wrong:
            shown.append((monitor + _WRONG * is_wrong, i, example))
    shown = sorted(shown, key=lambda item: (-item[0], item[1]))[:number]
    if looked_into is not None and problem.task.head == "span":
        for _, i, example in shown:
            example |= _tokens_of(records[i], predictions[i], i, *looked_into)
    return [example for *_, example in shown]


_WRONG = 1e6
"""What is wrong comes before all that is right."""


def _example(problem: LabelledTask, record: Any, prediction: Any) -> tuple[float, bool, dict[str, Any]]:
    """Returns how bad a prediction is, whether it is wrong, and what is shown of it."""
    task = problem.task
    if isinstance(prediction, TextPrediction):
        shown: dict[str, Any] = {"texts": list(record.texts), "gold": record.label, "predicted": prediction.label}
        if task.config.kind == "score":
            return abs(prediction.score - record.label), True, {**shown, "predicted": prediction.score}
        if task.config.kind == "labels":
            missed = set(prediction.labels) ^ set(record.label)
            both = {"gold": list(record.label), "predicted": list(prediction.labels)}
            return float(len(missed)), bool(missed), {**shown, **both}
        p = prediction.probabilities[task.labels.index(record.label)] if record.label in task.labels else 0.0
        loss = -float(np.log(max(p, 1e-30)))
        return loss, prediction.label != record.label, {**shown, "probability": prediction.score, "loss": loss}
    if isinstance(prediction, TagPrediction):
        missed_tags = sum(a != b for a, b in zip(record.tags, prediction.tags, strict=True))
        shown = {"words": list(record.words), "gold": list(record.tags), "predicted": list(prediction.tags)}
        return float(missed_tags), missed_tags > 0, shown
    if isinstance(prediction, AnswerPrediction):
        gold = list(dict.fromkeys(record.gold))
        shown = {"id": record.id, "question": record.question, "gold": gold, "predicted": prediction.text}
        shown |= {"language": problem.language}
        is_wrong = squad_metrics({"": gold}, {"": prediction.text}, language=problem.language)["exact_match"] < 100
        return prediction.probability, is_wrong, {**shown, "probability": prediction.probability}
    assert isinstance(prediction, ChoicePrediction)
    loss = -float(np.log(max(prediction.probabilities[record.answer], 1e-30)))
    shown = {"id": record.id, "prompt": " ".join(x for x in (record.prompt, record.second) if x)}
    shown |= {"choices": list(record.choices), "probabilities": list(prediction.probabilities)}
    shown |= {"gold": record.choices[record.answer], "predicted": record.choices[prediction.choice], "loss": loss}
    return loss, prediction.choice != record.answer, shown


def _tokens_of(
    record: Any,
    prediction: AnswerPrediction,
    number: int,
    examples: TaskExamples,
    scores: Sequence[Float[np.ndarray, "_ c"]],
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """Returns the passage of a question, and the two softmaxes over the tokens of the window that holds the answer."""
    mine = np.flatnonzero(examples.records == number).tolist()
    bounds = {i: examples.scored[i].offsets for i in mine if len(examples.scored[i].offsets)}
    holds = [i for i, x in bounds.items() if x[0, 0] <= prediction.begin and prediction.end <= x[-1, 1]]
    chosen = (holds or mine)[0]
    window, rows = examples.scored[chosen], scores[chosen].astype(np.float64)
    p = np.exp(rows - rows.max(0))
    p = (p / p.sum(0))[window.first : window.first + len(window.offsets)]
    ids = examples.examples[chosen].input_ids[window.first : window.first + len(window.offsets)]
    return {
        "passage": record.context,
        "begin": prediction.begin,
        "end": prediction.end,
        "tokens": [tokenizer.tokens[i] for i in ids.tolist()],
        "offsets": window.offsets.tolist(),
        "start": p[:, 0].tolist(),
        "end_p": p[:, 1].tolist(),
    }
