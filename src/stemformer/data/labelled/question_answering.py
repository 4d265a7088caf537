"""Extractive question answering in the format of SQuAD."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stemformer.data.labelled.table import parse_cell, read_json_records, read_table, required_text
from stemformer.data.labelled.text_classification import label_text
from stemformer.data.text.files import HUB_PREFIX, STANDARD_INPUT, Inputs, find_sources, split_suffixes
from stemformer.errors import DataError

REPEATED_ID = "questions with the id of an earlier question (kept)"
# Texts and offsets, if the file has them.
_Answers = Sequence[tuple[str, int | None]]


@dataclass(frozen=True)
class Question:
    """Question about a passage; `gold` also has the answers that do not occur in it."""

    id: str
    question: str
    context: str
    # Text and offset: context[offset : offset + len(text)] == text.
    answers: tuple[tuple[str, int], ...]
    title: str
    is_impossible: bool
    gold: tuple[str, ...]


def read_questions(files: Inputs, *, counts: Counter[str]) -> list[Question]:
    """Read questions in the format of SQuAD 1.1 or 2.0, or tables with a question per row.

    XQuAD, DRCD, CMRC 2018, JaQuAD and SQuADShifts have that format. Tables have the columns
    `question`, `context` and, if answered, `answers` (with `text` and `answer_start`), as on the
    hub. An answer that is not at its offset is moved to the nearest occurrence; one that does not
    occur in the passage is kept only in `gold`; `counts` receives both.
    """
    questions: list[Question] = []
    for source in find_sources(files, counts):
        is_file = not source.startswith(HUB_PREFIX)
        is_json = source == STANDARD_INPUT or (is_file and split_suffixes(source)[1] in (".json", ".jsonl"))
        articles = list(_articles(read_json_records(source), source)) if is_json else []
        questions.extend(q for location, article in articles for q in _article_questions(article, location, counts))
        if not articles:
            table = read_table([source], counts=counts)
            rows = zip(table.rows, table.locations, strict=True)
            questions.extend(_row_question(row, location, counts) for row, location in rows)
    # Unary plus drops a count of zero.
    counts.update(+Counter({REPEATED_ID: len(questions) - len({question.id for question in questions})}))
    return questions


def _articles(records: list[tuple[str, Any]], source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield locations and articles (in CMRC's format passages); nothing from another format."""
    for location, record in records:
        if isinstance(record, dict) and isinstance(record.get("data"), list):
            yield from _articles([(f"{source}: data[{i}]", item) for i, item in enumerate(record["data"])], source)
        elif isinstance(record, dict) and ("paragraphs" in record or "qas" in record):
            yield location, record


def _article_questions(article: dict[str, Any], location: str, counts: Counter[str]) -> Iterator[Question]:
    for number, paragraph in enumerate(article.get("paragraphs", [article])):
        paragraph_location = f"{location}.paragraphs[{number}]"
        if not isinstance(paragraph, dict) or not isinstance(paragraph.get("qas"), list):
            raise DataError(f"{paragraph_location}: Expected an object with 'context' and a list 'qas', as in SQuAD.")
        context = required_text(paragraph, ("context", "context_text"), paragraph_location)
        for i, qa in enumerate(paragraph["qas"]):
            qa_location = f"{paragraph_location}.qas[{i}]"
            name = label_text(qa.get("id", qa.get("query_id"))) or qa_location
            question = required_text(qa, ("question", "query_text"), qa_location)
            found = _parse_answers(qa.get("answers"), None, qa_location)
            answers = None if qa.get("is_impossible") else found
            yield _make_question(name, question, context, article.get("title"), answers, counts)


def _parse_answers(value: Any, start: Any, location: str) -> _Answers:
    # A list, an object of two lists, or one text; an object that cannot be parsed is not a text.
    pairs: list[tuple[Any, Any]]
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        texts, starts = value["text"], value.get("answer_start") or [None] * len(value["text"])
        pairs = list(zip(texts, starts, strict=True)) if len(texts) == len(starts) else [(None, None)]
    elif isinstance(value, list):
        pairs = [(a.get("text"), a.get("answer_start")) if isinstance(a, dict) else (a, None) for a in value]
    elif isinstance(value, str) and value.lstrip().startswith("{"):
        pairs = [(None, None)]
    else:
        pairs = [(value, int(start) if label_text(start).removeprefix("-").isdecimal() else None)] if value else []
    if not all(isinstance(text, str) and isinstance(offset, int | None) for text, offset in pairs):
        expected = "a list of objects with 'text' and 'answer_start' (a number), as in SQuAD"
        raise DataError(f"{location}: The answers are {value!r}, expected {expected}.")
    return pairs


def _row_question(row: Mapping[str, Any], location: str, counts: Counter[str]) -> Question:
    raw = parse_cell(row.get("answers", row.get("answer")))
    answers = _parse_answers(raw, row.get("answer_start"), location)
    flag = row.get("is_impossible")
    if flag is None:
        flag = raw is not None and not isinstance(raw, str) and not answers
    is_impossible = label_text(flag).lower() in ("true", "1")
    name = label_text(row.get("id")) or location
    question = required_text(row, ("question",), location)
    context = required_text(row, ("context", "passage", "paragraph"), location)
    return _make_question(name, question, context, row.get("title"), None if is_impossible else answers, counts)


def _make_question(
    name: str, question: str, context: str, title: object, answers: _Answers | None, counts: Counter[str]
) -> Question:
    """Return a question with corrected answer offsets; without answers, it is impossible."""
    found = []
    for text, start in answers or ():
        if (offset := _find_nearest(text, context, start or 0)) is None:
            counts["answer not in its passage"] += 1
            continue
        if start is not None and offset != start:
            counts["answer offset corrected"] += 1
        found.append((text, offset))
    gold = tuple(text for text, _ in answers or ())
    return Question(name, question, context, tuple(found), str(title or ""), answers is None, gold)


def _find_nearest(text: str, context: str, start: int) -> int | None:
    if not text.strip():
        return None
    if start >= 0 and context.startswith(text, start):
        return start
    offsets = [match.start() for match in re.finditer(f"(?={re.escape(text)})", context)]
    return min(offsets, key=lambda offset: (abs(offset - start), offset), default=None)
