"""Questions about passages, in the form of SQuAD; those with choices are in `choices`."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemformer.data.labelled.table import needed_text, read_json_records, read_table
from stemformer.data.labelled.text_classification import label_text
from stemformer.data.text.files import HUB_PREFIX, find_sources, split_suffixes
from stemformer.errors import DataError

ANSWER_MOVED = "answer moved to where it stands"
ANSWER_LOST = "answer not in its passage"


@dataclass(frozen=True)
class Question:
    """A question about a passage.

    Args:
        id: As the file has it, or its place.
        question: The question.
        context: The passage.
        answers: Texts and the offsets they begin at; `context[offset : offset + len(text)] == text`.
        title: Of the article that the passage is from, or nothing.
        is_impossible: The passage holds no answer, and the file says so.
        gold: The texts of all answers that the file gives, whether the passage holds them or not.
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]
    title: str
    is_impossible: bool
    gold: tuple[str, ...]


def read_questions(files: str | Path | Sequence[str | Path], *, counted: Counter[str]) -> list[Question]:
    """Returns the questions of files in the form of SQuAD 1.1 or 2.0, or of rows with a question and its passage.

    XQuAD, DRCD, CMRC 2018, JaQuAD and SQuADShifts have that form. Rows have the columns `question`, `context` and, if they
    are answered, `answers` (with `text` and `answer_start`), as on the hub. An answer that does not stand at its offset is
    looked for in the passage, nearest to the offset; one that is not in it stays in `gold` alone (`unplaced_answers` tells
    which questions have such).

    Args:
        files: Files, folders, patterns, hub data sets.
        counted: Receives "answer moved to where it stands" and "answer not in its passage".

    Raises:
        DataError: A file of another form.

    Example:
        >>> read_questions("dev-v1.1.json", counted=Counter())[0].answers[0]  # doctest: +SKIP
        ('Denver Broncos', 177)
    """
    questions: list[Question] = []
    for source in find_sources(files):
        is_json = not source.startswith(HUB_PREFIX) and split_suffixes(source)[1] in (".json", ".jsonl")
        articles = list(_articles(read_json_records(source), source)) if is_json else []
        if articles:
            for place, article in articles:
                questions.extend(_questions_of_article(article, place, counted))
        else:
            table = read_table([source])
            rows = zip(table.rows, table.places, strict=True)
            questions.extend(_question_of_row(row, place, counted) for row, place in rows)
    return questions


def unplaced_answers(questions: Sequence[Question]) -> list[str]:
    """Returns the ids of the questions with an answer that their passage does not hold."""
    return [question.id for question in questions if len(question.answers) < len(question.gold)]


def _articles(records: list[tuple[str, Any]], source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields places and articles (of CMRC's own form passages) of JSON in the form of SQuAD; nothing of another form."""
    for place, record in records:
        if isinstance(record, dict) and isinstance(record.get("data"), list):
            yield from _articles([(f"{source}: data[{i}]", item) for i, item in enumerate(record["data"])], source)
        elif isinstance(record, dict) and ("paragraphs" in record or "qas" in record):
            yield place, record


def _questions_of_article(article: dict[str, Any], place: str, counted: Counter[str]) -> Iterator[Question]:
    for number, paragraph in enumerate(article.get("paragraphs", [article])):
        where = f"{place}.paragraphs[{number}]"
        if not isinstance(paragraph, dict) or not isinstance(paragraph.get("qas"), list):
            raise DataError(f"{where}: expected an object with 'context' and a list 'qas', as SQuAD has them")
        context = needed_text(paragraph, ("context", "context_text"), where)
        for at, qa in enumerate(paragraph["qas"]):
            place_of_question = f"{where}.qas[{at}]"
            yield _make_question(
                id=label_text(qa.get("id", qa.get("query_id"))) or place_of_question,
                question=needed_text(qa, ("question", "query_text"), place_of_question),
                context=context,
                title=str(article.get("title") or ""),
                is_impossible=bool(qa.get("is_impossible", False)),
                given=_given_answers(qa.get("answers"), None, place_of_question),
                counted=counted,
            )


def _given_answers(value: Any, start: Any, place: str) -> list[tuple[str, int | None]]:
    """Returns texts and offsets of answers: a list of objects or texts, an object of two lists, or one text and its offset."""
    pairs: list[tuple[Any, Any]]
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        texts, starts = value["text"], value.get("answer_start") or [None] * len(value["text"])
        pairs = list(zip(texts, starts, strict=True)) if len(texts) == len(starts) else [(None, None)]
    elif isinstance(value, list):
        pairs = [(a.get("text"), a.get("answer_start")) if isinstance(a, dict) else (a, None) for a in value]
    else:
        pairs = [(value, int(start) if label_text(start).removeprefix("-").isdecimal() else None)] if value else []
    for text, offset in pairs:
        if not isinstance(text, str) or not isinstance(offset, int | None):
            raise DataError(
                f"{place}: its answers are {value!r}, expected a list of objects with 'text' and 'answer_start' (a number),"
                " as SQuAD has them"
            )
    return pairs


def _question_of_row(row: Mapping[str, Any], place: str, counted: Counter[str]) -> Question:
    """Returns a question that a row holds; without a column that says so, it is impossible if its answers are no one."""
    answers = row.get("answers", row.get("answer"))
    given = _given_answers(answers, row.get("answer_start"), place)
    is_impossible = row.get("is_impossible")
    if is_impossible is None:
        is_impossible = answers is not None and not isinstance(answers, str) and not given
    return _make_question(
        id=label_text(row.get("id")) or place,
        question=needed_text(row, ("question",), place),
        context=needed_text(row, ("context", "passage", "paragraph"), place),
        title=str(row.get("title") or ""),
        is_impossible=label_text(is_impossible).lower() in ("true", "1"),
        given=given,
        counted=counted,
    )


def _make_question(
    *,
    id: str,
    question: str,
    context: str,
    title: str,
    is_impossible: bool,
    given: Sequence[tuple[str, int | None]],
    counted: Counter[str],
) -> Question:
    """Returns a question whose answers stand at their offsets."""
    answers = []
    for text, start in given if not is_impossible else ():
        at = _find_nearest(text, context, 0 if start is None else start)
        if at is None:
            counted[ANSWER_LOST] += 1
        else:
            counted.update([ANSWER_MOVED] * (start is not None and at != start))
            answers.append((text, at))
    gold = tuple(text for text, _ in given) if not is_impossible else ()
    return Question(id, question, context, tuple(answers), title, is_impossible, gold)


def _find_nearest(text: str, context: str, start: int) -> int | None:
    """Returns the offset nearest to `start` at which a text stands in a passage."""
    if not text.strip():
        return None
    if start >= 0 and context.startswith(text, start):
        return start
    places = [match.start() for match in re.finditer(f"(?={re.escape(text)})", context)]
    return min(places, key=lambda at: (abs(at - start), at), default=None)
