"""Multiple-choice questions, in the formats of a dozen data sets."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from stemformer.data.labelled.table import parse_cell, read_json_records, read_table, required_text
from stemformer.data.labelled.text_classification import label_text
from stemformer.data.text.files import HUB_PREFIX, Inputs, find_sources, read_text, split_suffixes
from stemformer.errors import DataError

COPA_QUESTIONS = {"cause": "What was the cause?", "effect": "What happened as a result?"}
_NUMBERED_CHOICE = re.compile(r"(?:choice|option|ending|answer)_?(\d)")


@dataclass(frozen=True)
class ChoiceQuestion:
    """Question whose input for a choice is the pair `prompt`, `second + " " + choice`."""

    id: str
    # Passage, dialogue or sentence.
    prompt: str
    # Question or unfinished text.
    second: str
    choices: tuple[str, ...]
    # Index of the right choice; None if unknown.
    answer: int | None


class ChoiceColumns(NamedTuple):
    """Columns of prompts, questions (or ""), choices (one each, or of lists) and answers."""

    prompt: str
    second: str
    choices: tuple[str, ...]
    # The first that exists holds the answer.
    answers: tuple[str, ...]
    # Number of the first choice, 0 or 1; None: inferred from all answers.
    first: int | None


_IQA_ANSWERS = ("correct", "label", "label_letter")
_DATASETS = {
    "SWAG": ChoiceColumns("sent1", "sent2", ("ending0", "ending1", "ending2", "ending3"), ("label",), 0),
    "HellaSwag": ChoiceColumns("ctx_a", "ctx_b", ("endings",), ("label",), 0),
    "COPA": ChoiceColumns("premise", "question", ("choice1", "choice2"), ("label",), 0),
    "PIQA": ChoiceColumns("goal", "", ("sol1", "sol2"), ("label",), 0),
    "Social IQa": ChoiceColumns("context", "question", ("answerA", "answerB", "answerC"), _IQA_ANSWERS, 1),
    # One row per question.
    "RACE": ChoiceColumns("article", "question", ("options",), ("answer",), None),
}


def read_choices(files: Inputs, *, counts: Counter[str]) -> list[ChoiceQuestion]:
    """Read multiple-choice questions.

    Recognized by their columns: SWAG, HellaSwag, COPA (also XML), XCOPA, PIQA (labels also in
    `NAME-labels.lst` next to `NAME.jsonl`), Social IQa, RACE; by their structure: DREAM and C3.
    Other tables have the columns `prompt`, optionally `second`, `choice1`, `choice2`, ... (or a
    list `choices`) and `label`: a letter, the text of the choice, or a number (from 0 if one is 0,
    from 1 if one is the number of choices). `counts` receives unknown answers and such numbers.
    """
    questions: list[ChoiceQuestion] = []
    for source in find_sources(files, counts):
        kind = "hub" if source.startswith(HUB_PREFIX) else split_suffixes(source)[1]
        start = read_text(source).lstrip()[0] if kind == "" else ""
        records = read_json_records(source) if kind in (".json", ".jsonl") or start in ("{", "[") else []
        first = records[0][1] if records else None
        if start == "<":
            questions.extend(_copa_questions(source))
        elif isinstance(first, list):
            questions.extend(q for location, record in records for q in _dialogue_questions(record, location))
        elif isinstance(first, dict) and isinstance(first.get("questions"), list):
            questions.extend(q for location, record in records for q in _race_questions(record, location))
        else:
            questions.extend(_table_questions(source, counts))
    if num_unknown := sum(question.answer is None for question in questions):
        counts["answers not known"] += num_unknown
    return questions


def _dialogue_questions(record: Any, location: str) -> Iterator[ChoiceQuestion]:
    if not isinstance(record, list) or len(record) != 3 or not all(isinstance(part, list) for part in record[:2]):
        raise DataError(f"{location}: Expected [lines, questions, id] as in DREAM and C3.")
    lines, questions, name = record
    for number, item in enumerate(questions):
        if not isinstance(item, dict) or not isinstance(item.get("choice"), list):
            raise DataError(f"{location}: Expected questions with 'question' and 'choice', found {item!r}.")
        choices, answer = tuple(map(str, item["choice"])), item.get("answer")
        if answer is not None and answer not in choices:
            raise DataError(f"{location}: The answer {answer!r} is none of the choices {choices}. Repair it.")
        question = required_text(item, ("question",), location)
        index = None if answer is None else choices.index(answer)
        yield ChoiceQuestion(f"{name}-{number}", "\n".join(map(str, lines)), question, choices, index)


def _race_questions(record: dict[str, Any], location: str) -> Iterator[ChoiceQuestion]:
    questions, options = record["questions"], record.get("options")
    answers = record.get("answers") or [None] * len(questions)
    if not isinstance(options, list) or not len(options) == len(questions) == len(answers):
        raise DataError(f"{location}: Expected as many lists of 'options' and 'answers' as 'questions', as in RACE.")
    article = required_text(record, ("article",), location)
    for number, (question, choices, answer) in enumerate(zip(questions, options, answers, strict=True)):
        index = _answer_index(answer, choices, None, f"{location}: Question {number}")
        yield ChoiceQuestion(f"{record.get('id', location)}-{number}", article, question, tuple(choices), index)


def _copa_questions(source: str) -> Iterator[ChoiceQuestion]:
    try:
        root = ElementTree.fromstring(read_text(source))
    except ElementTree.ParseError as error:
        raise DataError(f"{source}: Bad XML ({error}). Expected the items of COPA.") from error
    for item in root.iter("item"):
        choices = tuple((item.findtext(name) or "").strip() for name in ("a1", "a2"))
        location = f"{source}: item {item.get('id')}"
        second = COPA_QUESTIONS.get(item.get("asks-for", ""), "")
        answer = _answer_index(item.get("most-plausible-alternative"), choices, 1, location)
        yield ChoiceQuestion(item.get("id") or location, (item.findtext("p") or "").strip(), second, choices, answer)


def _table_questions(source: str, counts: Counter[str]) -> Iterator[ChoiceQuestion]:
    table = read_table([source], counts=counts)
    columns = find_choice_columns(table.columns)
    if columns is None:
        expected = f"'prompt', 'choice1', 'choice2', ... and 'label', or one of {', '.join(_DATASETS)}, DREAM, C3"
        found = f"No multiple-choice questions found. Columns: {', '.join(table.columns)}"
        raise DataError(f"{table.source}: {found}. Expected {expected}.")
    choices = [_choices(row, columns, location) for row, location in zip(table.rows, table.locations, strict=True)]
    answer = next((name for name in columns.answers if name in table.columns), None)
    raw: list[object] = [row[answer] if answer else None for row in table.rows]
    if columns is _DATASETS["PIQA"] and answer is None:
        raw = _piqa_labels(source, len(raw), counts)
    first = columns.first
    if first is None:
        first = _first_number(raw, choices, table.source)
        if num_numbers := sum(label_text(value).isdecimal() for value in raw):
            counts[f"answers counted from {first}"] += num_numbers
    for row, location, options, value in zip(table.rows, table.locations, choices, raw, strict=True):
        second = label_text(row.get(columns.second)) if columns.second else ""
        if columns.prompt == "premise":
            second = COPA_QUESTIONS.get(second, second)
        name = label_text(row.get("id", row.get("idx", row.get("ind")))) or location
        prompt = required_text(row, (columns.prompt,), location)
        yield ChoiceQuestion(name, prompt, second, options, _answer_index(value, options, first, location))


def find_choice_columns(names: Sequence[str]) -> ChoiceColumns | None:
    """Return the columns of a known data set, else those with usual names, else None."""
    for columns in _DATASETS.values():
        if {columns.prompt, columns.second, *columns.choices} <= {*names, ""}:
            return columns
    numbered = tuple(sorted(name for name in names if _NUMBERED_CHOICE.fullmatch(name.lower())))
    lists = tuple(name for name in ("choices", "options", "endings") if name in names)[:1]
    prompt = next((name for name in ("prompt", "context", "passage", "article", "question") if name in names), None)
    if prompt is None or not (len(numbered) > 1 or lists):
        return None
    second = next((name for name in ("second", "question") if name in names and name != prompt), "")
    return ChoiceColumns(prompt, second, numbered if len(numbered) > 1 else lists, ("label", "answer", "correct"), None)


def _choices(row: Mapping[str, Any], columns: ChoiceColumns, location: str) -> tuple[str, ...]:
    """Return the choices of a row, which may have fewer than its table has columns."""
    value = parse_cell(row[columns.choices[0]])
    values = value if isinstance(value, list) else [row[name] for name in columns.choices]
    choices = [label_text(item, location) for item in values]
    while choices and not choices[-1]:
        choices.pop()
    if len(choices) < 2 or not all(choices):
        raise DataError(f"{location}: The choices are {choices}. Expected at least two, none of them empty.")
    return tuple(choices)


def _piqa_labels(source: str, num_rows: int, counts: Counter[str]) -> list[object]:
    path = Path(split_suffixes(source)[0].removesuffix(".jsonl") + "-labels.lst")
    if source.startswith(HUB_PREFIX) or not path.is_file():
        return [None] * num_rows
    labels: list[object] = list(read_text(str(path)).split())
    if len(labels) != num_rows:
        raise DataError(f"{path}: {len(labels)} labels, but {source} has {num_rows} questions. Expected as many.")
    counts[f"answers from {path.name}"] += num_rows
    return labels


def _first_number(raw: Sequence[object], choices: Sequence[Sequence[str]], source: str) -> int:
    texts = map(label_text, raw)
    pairs = [(int(text), len(options)) for text, options in zip(texts, choices, strict=True) if text.isdecimal()]
    has_zero = any(number == 0 for number, _ in pairs)
    has_last = any(number == num_choices for number, num_choices in pairs)
    if pairs and has_zero == has_last:
        problem = f"{'both 0 and' if has_zero else 'neither 0 nor'} the number of choices occurs"
        what = f"Cannot tell whether labels number choices from 0 or from 1 ({problem})"
        raise DataError(f"{source}: {what}. Use letters (A, B, ...) or the choices themselves.")
    return 0 if has_zero else 1


def _answer_index(raw: object, choices: Sequence[str], first: int | None, location: str) -> int | None:
    """Return the index of the choice that a number, a letter or the text of the choice means."""
    text = label_text(raw, location)
    if text in ("", "-1", "-"):
        return None
    if text in choices and not text.isdecimal():
        return list(choices).index(text)
    if text.isdecimal() and first is not None:
        number = int(text) - first
    elif len(text) == 1 and text.isascii() and text.isalpha():
        number = ord(text.upper()) - ord("A")
    else:
        number = -1
    if not 0 <= number < len(choices):
        raise DataError(f"{location}: The answer is {text!r}, expected one of {len(choices)} choices. Repair it.")
    return number
