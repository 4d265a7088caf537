"""Questions with choices, in the forms of a dozen data sets."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from stemformer.data.labelled.table import needed_text, read_json_records, read_table
from stemformer.data.labelled.text_classification import label_text
from stemformer.data.text.files import HUB_PREFIX, STANDARD_INPUT, find_sources, read_text, split_suffixes
from stemformer.errors import DataError

COPA_QUESTIONS = {"cause": "What was the cause?", "effect": "What happened as a result?"}
_NUMBERED_CHOICE = re.compile(r"(?:choice|option|ending|answer)_?(\d)")


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question with choices; what a model reads for one of them is the pair `prompt`, `second + " " + choice`.

    Args:
        id: As the file has it, or its place.
        prompt: The passage, dialogue or sentence.
        second: The question, or the beginning that the choices continue; maybe nothing.
        choices: Two or more.
        answer: The number of the right one, from 0; None if the file does not tell.
    """

    id: str
    prompt: str
    second: str
    choices: tuple[str, ...]
    answer: int | None


@dataclass(frozen=True)
class _Form:
    """The columns of a data set with choices.

    Args:
        prompt: Column of the prompt.
        second: Column of the second part, or nothing.
        choices: Columns of the choices, or the one that holds their list.
        answers: Columns that may hold the answer.
        first: What number the first choice has; None if that must be told from the file.
    """

    prompt: str
    second: str
    choices: tuple[str, ...]
    answers: tuple[str, ...]
    first: int | None


_FORMS = (
    _Form("sent1", "sent2", ("ending0", "ending1", "ending2", "ending3"), ("label",), 0),  # SWAG
    _Form("ctx_a", "ctx_b", ("endings",), ("label",), 0),  # HellaSwag
    _Form("premise", "question", ("choice1", "choice2"), ("label",), 0),  # COPA, XCOPA
    _Form("goal", "", ("sol1", "sol2"), ("label",), 0),  # PIQA
    _Form(
        "context", "question", ("answerA", "answerB", "answerC"), ("correct", "label", "label_letter"), 1
    ),  # Social IQa
    _Form("article", "question", ("options",), ("answer",), None),  # RACE, a row a question
)
_PIQA = _FORMS[3]


def read_choices(files: str | Path | Sequence[str | Path], *, counted: Counter[str]) -> list[ChoiceQuestion]:
    """Returns the questions of files with choices.

    Known by their columns: SWAG, HellaSwag, COPA (also its XML), XCOPA, PIQA (with `NAME-labels.lst` beside `NAME.jsonl`),
    Social IQa, RACE; by their form: DREAM and C3. Any other table has the columns `prompt`, maybe `second`, `choice1`,
    `choice2`, ... (or a list `choices`) and `label`: a letter, the text of the choice, or a number. Whether numbers begin at
    0 or 1 is told from all of them: 0 is only there if they begin at 0, the number of choices only if they begin at 1.

    Args:
        files: Files, folders, patterns, hub data sets.
        counted: Receives how many answers were counted from 0 or 1 where that had to be told, and how many are not known.

    Raises:
        DataError: A file of another form, or an answer that is none of the choices.

    Example:
        >>> read_choices("copa/train.jsonl", counted=Counter())[0].choices  # doctest: +SKIP
        ('The sun was rising.', 'The grass was cut.')
    """
    questions: list[ChoiceQuestion] = []
    for source in find_sources(files):
        kind = "hub" if source.startswith(HUB_PREFIX) else split_suffixes(source)[1]
        start = read_text(source).lstrip()[0] if kind == "" and source != STANDARD_INPUT else ""
        if start == "<":
            questions.extend(_copa_items(source))
            continue
        records = read_json_records(source) if kind in (".json", ".jsonl") or start in ("{", "[") else []
        if records and isinstance(records[0][1], list):
            for place, record in records:
                questions.extend(_dialogue_questions(record, place))
        elif records and isinstance(records[0][1], dict) and isinstance(records[0][1].get("questions"), list):
            for place, record in records:
                questions.extend(_race_questions(record, place))
        else:
            questions.extend(_choices_of_table(source, counted))
    counted.update(["answers not known"] * sum(question.answer is None for question in questions))
    return questions


def is_choice_row(columns: Sequence[str]) -> bool:
    """Returns whether a table with these columns holds questions with choices."""
    try:
        _find_form(columns, "")
    except DataError:
        return False
    return True


def _dialogue_questions(record: Any, place: str) -> Iterator[ChoiceQuestion]:
    """Yields the questions of DREAM and C3 about one dialogue or text: `[lines, questions, id]`."""
    if not isinstance(record, list) or len(record) != 3 or not all(isinstance(part, list) for part in record[:2]):
        raise DataError(f"{place}: expected [lines, questions, id], as DREAM and C3 have them")
    lines, questions, name = record
    for number, item in enumerate(questions):
        if not isinstance(item, dict) or not isinstance(item.get("choice"), list):
            raise DataError(f"{place}: expected questions with 'question' and 'choice', found {item!r}")
        choices, answer = tuple(map(str, item["choice"])), item.get("answer")
        if answer is not None and answer not in choices:
            raise DataError(f"{place}: the answer {answer!r} is none of the choices {choices}: repair it")
        yield ChoiceQuestion(
            f"{name}-{number}",
            "\n".join(map(str, lines)),
            needed_text(item, ("question",), place),
            choices,
            None if answer is None else choices.index(answer),
        )


def _race_questions(record: dict[str, Any], place: str) -> Iterator[ChoiceQuestion]:
    """Yields the questions of RACE about one article; answers are letters."""
    questions, options = record["questions"], record.get("options")
    answers = record.get("answers") or [None] * len(questions)
    if not isinstance(options, list) or not len(options) == len(questions) == len(answers):
        raise DataError(f"{place}: expected as many lists of 'options' and 'answers' as 'questions', as RACE has them")
    article = needed_text(record, ("article",), place)
    for number, (question, choices, answer) in enumerate(zip(questions, options, answers, strict=True)):
        name = f"{record.get('id', place)}-{number}"
        yield ChoiceQuestion(
            name, article, question, tuple(choices), _answer(answer, choices, None, f"{place}: question {number}")
        )


def _copa_items(source: str) -> Iterator[ChoiceQuestion]:
    """Yields the items of COPA's XML."""
    try:
        root = ElementTree.fromstring(read_text(source))
    except ElementTree.ParseError as error:
        raise DataError(f"{source}: bad XML ({error}): expected the items of COPA") from error
    for item in root.iter("item"):
        choices = tuple((item.findtext(name) or "").strip() for name in ("a1", "a2"))
        place = f"{source}: item {item.get('id')}"
        second = COPA_QUESTIONS.get(item.get("asks-for", ""), "")
        answer = _answer(item.get("most-plausible-alternative"), choices, 1, place)
        yield ChoiceQuestion(item.get("id") or place, (item.findtext("p") or "").strip(), second, choices, answer)


def _choices_of_table(source: str, counted: Counter[str]) -> Iterator[ChoiceQuestion]:
    """Yields the questions of a table, a row each."""
    table = read_table([source])
    form = _find_form(table.columns, table.source)
    choices = [_choices(row, form, place) for row, place in zip(table.rows, table.places, strict=True)]
    column = next((name for name in form.answers if name in table.columns), None)
    raw: list[object] = [row[column] if column else None for row in table.rows]
    if form is _PIQA and column is None:
        raw = _labels_beside(source, len(raw), counted)
    first = form.first
    if first is None:
        first = _first_number(raw, choices, table.source)
        num_numbers = sum(label_text(value).isdecimal() for value in raw)
        counted.update([f"answers counted from {first}"] * num_numbers)
    for row, place, options, value in zip(table.rows, table.places, choices, raw, strict=True):
        second = label_text(row.get(form.second)) if form.second else ""
        if form.prompt == "premise":
            second = COPA_QUESTIONS.get(second, second)
        name = label_text(row.get("id", row.get("idx", row.get("ind")))) or place
        yield ChoiceQuestion(
            name, needed_text(row, (form.prompt,), place), second, options, _answer(value, options, first, place)
        )


def _find_form(columns: Sequence[str], source: str) -> _Form:
    """Returns the form that columns are of: a known one, or the plain one of this project."""
    for form in _FORMS:
        if {form.prompt, *form.choices, *([form.second] if form.second else [])} <= set(columns):
            return form
    numbered = tuple(sorted(name for name in columns if _NUMBERED_CHOICE.fullmatch(name.lower())))
    lists = tuple(name for name in ("choices", "options", "endings") if name in columns)[:1]
    prompt = next((name for name in ("prompt", "context", "passage", "article", "question") if name in columns), None)
    if prompt is None or not (len(numbered) > 1 or lists):
        raise DataError(
            f"{source}: no form of questions with choices; there are the columns {', '.join(columns)}: expected 'prompt',"
            " 'choice1', 'choice2', ... and 'label', or one of SWAG, HellaSwag, COPA, PIQA, Social IQa, RACE, DREAM, C3"
        )
    second = next((name for name in ("second", "question") if name in columns and name != prompt), "")
    return _Form(prompt, second, numbered if len(numbered) > 1 else lists, ("label", "answer", "correct"), None)


def _choices(row: Mapping[str, Any], form: _Form, place: str) -> tuple[str, ...]:
    """Returns the choices of a row; a row may have fewer than its table has columns."""
    value = row[form.choices[0]]
    values = value if isinstance(value, list) else [row[name] for name in form.choices]
    choices = [label_text(item, place) for item in values]
    while choices and not choices[-1]:
        choices.pop()
    if len(choices) < 2 or not all(choices):
        raise DataError(f"{place}: its choices are {choices}: expected two at least, none of them empty")
    return tuple(choices)


def _labels_beside(source: str, num_rows: int, counted: Counter[str]) -> list[object]:
    """Returns the answers of PIQA from the file that comes beside its questions, if it is there."""
    path = Path(split_suffixes(source)[0].removesuffix(".jsonl") + "-labels.lst")
    if source.startswith(HUB_PREFIX) or not path.is_file():
        return [None] * num_rows
    labels: list[object] = list(read_text(str(path)).split())
    if len(labels) != num_rows:
        raise DataError(f"{path}: {len(labels)} labels, but {source} has {num_rows} questions: expected as many")
    counted[f"answers from {path.name}"] += num_rows
    return labels


def _first_number(raw: Sequence[object], choices: Sequence[Sequence[str]], source: str) -> int:
    """Returns with which number a table's choices begin."""
    pairs = [
        (int(text), len(options))
        for value, options in zip(raw, choices, strict=True)
        if (text := label_text(value)).isdecimal()
    ]
    has_zero = any(number == 0 for number, _ in pairs)
    has_last = any(number == num_choices for number, num_choices in pairs)
    if pairs and has_zero == has_last:
        raise DataError(
            f"{source}: cannot tell whether its labels count choices from 0 or from 1 ({'both 0 and' if has_zero else 'neither 0 nor'}"
            " the number of choices is there): write letters (A, B, ...) or the choice itself"
        )
    return 0 if has_zero else 1


def _answer(raw: object, choices: Sequence[str], first: int | None, place: str) -> int | None:
    """Returns the number of the choice, from 0, that an answer means: a number, a letter, or the choice itself."""
    text = label_text(raw, place)
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
        raise DataError(f"{place}: the answer is {text!r}, expected one of {len(choices)} choices: repair it")
    return number
