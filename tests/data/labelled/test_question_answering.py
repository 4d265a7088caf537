"""Questions in the format of SQuAD and of the hub, and answers at wrong offsets."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stemformer.data.labelled.question_answering import Question, read_questions
from stemformer.errors import DataError

PASSAGE = "Anna saw Bob. Bob saw Anna and Eve."


def read(path: Path, value: object, counts: Counter[str] | None = None) -> list[Question]:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return read_questions(str(path), counts=Counter() if counts is None else counts)


def squad(*qas: dict[str, Any], **article: Any) -> dict[str, Any]:
    return {"version": "x", "data": [{"paragraphs": [{"context": PASSAGE, "qas": list(qas)}], **article}]}


def answered(*answers: tuple[str, int], **more: Any) -> dict[str, Any]:
    items = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": "q1", "question": "Who?", "answers": items, **more}


def test_squad_is_read(tmp_path: Path) -> None:
    value = squad(answered(("Bob", 9), ("Eve", 31)), answered(id=7, is_impossible=True), title="People")
    assert read(tmp_path / "a.json", value) == [
        Question("q1", "Who?", PASSAGE, (("Bob", 9), ("Eve", 31)), "People", False, ("Bob", "Eve")),
        Question("7", "Who?", PASSAGE, (), "People", True, ()),
    ]


def test_questions_without_answers_are_not_impossible(tmp_path: Path) -> None:
    (question,) = read(tmp_path / "a.json", squad({"id": "q", "question": "Who?"}))
    assert (question.answers, question.gold, question.is_impossible, question.title) == ((), (), False, "")


def test_passages_of_cmrc_are_read(tmp_path: Path) -> None:
    qas = [{"query_id": "1", "query_text": "Who?", "answers": ["Bob", "Eve"]}]
    (question,) = read(tmp_path / "a.json", [{"context_id": "c", "context_text": PASSAGE, "qas": qas, "title": "t"}])
    assert (question.id, question.answers, question.title) == ("1", (("Bob", 9), ("Eve", 31)), "t")


@pytest.mark.parametrize(
    ("answer", "at", "expected_counts"),
    [
        (("Bob", 14), 14, {}),
        (("Bob", 12), 14, {"answer offset corrected": 1}),
        (("Bob", 10), 9, {"answer offset corrected": 1}),
        (("Bob", -1), 9, {"answer offset corrected": 1}),
        (("Anna", 90), 22, {"answer offset corrected": 1}),
    ],
)
def test_answers_are_moved_to_the_nearest_occurrence(
    tmp_path: Path, answer: tuple[str, int], at: int, expected_counts: dict[str, int]
) -> None:
    counts: Counter[str] = Counter()
    (question,) = read(tmp_path / "a.json", squad(answered(answer)), counts)
    assert question.answers == ((answer[0], at),)
    assert counts == expected_counts


def test_answers_that_are_not_in_the_passage_stay_gold(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    questions = read(tmp_path / "a.json", squad(answered(("Carl", 3)), answered(("Bob", 9), id="q2")), counts)
    assert (questions[0].answers, questions[0].gold, questions[0].is_impossible) == ((), ("Carl",), False)
    assert [q.id for q in questions if len(q.answers) < len(q.gold)] == ["q1"]
    assert counts == {"answer not in its passage": 1}


@pytest.mark.parametrize(
    ("answers", "expected", "is_impossible"),
    [
        ({"text": ["Bob"], "answer_start": [9]}, (("Bob", 9),), False),
        ({"text": [], "answer_start": []}, (), True),
        ([{"text": "Bob", "answer_start": 9}], (("Bob", 9),), False),
        (["Eve"], (("Eve", 31),), False),
        (None, (), False),
    ],
)
def test_rows_are_read(tmp_path: Path, answers: object, expected: object, is_impossible: bool) -> None:
    row = {"id": 3, "question": "Who?", "context": PASSAGE, "answers": answers, "title": "t"}
    for name, value in (("a.jsonl", json.dumps(row)), ("b.json", [row])):
        (question,) = read(tmp_path / name, value)
        assert (question.id, question.answers, question.is_impossible) == ("3", expected, is_impossible)


def test_rows_of_tables_may_have_one_answer_or_none(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    first, second = read(path, f"question,context,answer,answer_start\nWho?,{PASSAGE},Bob,14\nWho?,{PASSAGE},,\n")
    assert (first.id, first.answers) == (f"{path}:2", (("Bob", 14),))
    assert (second.answers, second.is_impossible) == ((), False)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (squad({"id": "q"}), r"data\[0\]\.paragraphs\[0\]\.qas\[0\]: No text under 'question'\. Keys: 'id'"),
        ({"data": [{"paragraphs": [{"context": "x"}]}]}, r"data\[0\]\.paragraphs\[0\]: Expected .* 'qas'"),
        (squad({"id": "q", "question": "Who?", "answers": [{"text": "Bob", "answer_start": "9"}]}), r"expected a list of objects"),
        ([{"question": "Who?", "context": "x", "answers": {"text": ["a"], "answer_start": [1, 2]}}], r"expected a list of objects"),
        ([{"question": "Who?", "text": "x"}], r"a\.json:1: No text under 'context'\. Keys: 'question', 'text'"),
    ],
)  # fmt: skip
def test_other_formats_raise(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.json", value)


def test_answers_of_tables_may_be_objects_as_text(tmp_path: Path) -> None:
    cell = "{'text': ['Bob'], 'answer_start': [9]}"
    (question,) = read(tmp_path / "a.csv", f'question,context,answers\nWho?,{PASSAGE},"{cell}"\n')
    assert question.answers == (("Bob", 9),)
    with pytest.raises(DataError, match="expected a list of objects"):
        read(tmp_path / "a.csv", f'question,context,answers\nWho?,{PASSAGE},"{cell.replace("[9]", "array([9])")}"\n')


def test_repeated_ids_are_counted(tmp_path: Path) -> None:
    counts = Counter[str]()
    rows = [{"id": name, "question": "Who?", "context": "Ann.", "answers": []} for name in ("a", "b", "a", "a")]
    assert len(read(tmp_path / "a.json", rows, counts)) == 4
    assert counts == {"questions with the id of an earlier question (kept)": 2}
