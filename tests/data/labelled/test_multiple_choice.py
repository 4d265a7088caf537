"""Multiple-choice questions in the formats of known data sets, and as plain tables."""

import json
from collections import Counter
from pathlib import Path

import pytest

from stemformer.data.labelled.multiple_choice import ChoiceQuestion, read_choices
from stemformer.errors import DataError


def read(path: Path, value: object, counts: Counter[str] | None = None) -> list[ChoiceQuestion]:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return read_choices(str(path), counts=Counter() if counts is None else counts)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        # SWAG
        ("a.csv", ",sent1,sent2,ending0,ending1,ending2,ending3,label\n0,He sits.,He,runs,eats,sings,flies,2\n",
         ("He sits.", "He", ("runs", "eats", "sings", "flies"), 2)),
        # HellaSwag, with and without its label
        ("a.jsonl", {"ind": 4, "ctx_a": "He sits.", "ctx_b": "", "endings": ["He runs", "He eats"], "label": "1"},
         ("He sits.", "", ("He runs", "He eats"), 1)),
        ("a.jsonl", {"ind": 4, "ctx_a": "He sits.", "ctx_b": "he", "endings": ["runs", "eats"], "label": ""},
         ("He sits.", "he", ("runs", "eats"), None)),
        # lists as the text of cells
        ("a.csv", "prompt,choices,label\nHe sits.,\"['He runs', 'He eats']\",B\n",
         ("He sits.", "", ("He runs", "He eats"), 1)),
        # COPA
        ("a.jsonl", {"premise": "It rained.", "choice1": "Wet.", "choice2": "Dry.", "question": "effect", "label": 0},
         ("It rained.", "What happened as a result?", ("Wet.", "Dry."), 0)),
        ("a.xml", '<copa-corpus version="1.0"><item id="1" asks-for="cause" most-plausible-alternative="2"><p>It is wet.</p>'
                  "<a1>Sun.</a1><a2>Rain.</a2></item></copa-corpus>",
         ("It is wet.", "What was the cause?", ("Sun.", "Rain."), 1)),
        # PIQA
        ("a.jsonl", {"goal": "Open it.", "sol1": "Pull.", "sol2": "Sing.", "label": 0}, ("Open it.", "", ("Pull.", "Sing."), 0)),
        # Social IQa, from its site and from the hub
        ("a.jsonl", {"context": "A met B.", "question": "Why?", "answerA": "x", "answerB": "y", "answerC": "z", "correct": "C"},
         ("A met B.", "Why?", ("x", "y", "z"), 2)),
        ("a.jsonl", {"context": "A met B.", "question": "Why?", "answerA": "x", "answerB": "y", "answerC": "z", "label": "3"},
         ("A met B.", "Why?", ("x", "y", "z"), 2)),
        # RACE, from its site and from the hub
        ("a.txt", {"article": "Long.", "questions": ["Why?"], "options": [["x", "y"]], "answers": ["B"], "id": "h1"},
         ("Long.", "Why?", ("x", "y"), 1)),
        ("a.jsonl", {"article": "Long.", "question": "Why?", "options": ["x", "y"], "answer": "A"}, ("Long.", "Why?", ("x", "y"), 0)),
        # DREAM, C3
        ("a.json", [[["M: Hi.", "W: Hi."], [{"question": "Who?", "choice": ["x", "y"], "answer": "y"}], "5-1"]],
         ("M: Hi.\nW: Hi.", "Who?", ("x", "y"), 1)),
        ("a.json", [[["M: Hi."], [{"question": "Who?", "choice": ["x", "y"]}], "5-1"]], ("M: Hi.", "Who?", ("x", "y"), None)),
        # plain tables
        ("a.csv", "prompt,choice1,choice2,choice3,label\nSky?,blue,green,,A\n", ("Sky?", "", ("blue", "green"), 0)),
        ("a.csv", "prompt,second,choice1,choice2,label\nSky.,It is,blue,green,green\n", ("Sky.", "It is", ("blue", "green"), 1)),
        ("a.jsonl", {"question": "Sky?", "choices": ["blue", "green"], "answer": "B"}, ("Sky?", "", ("blue", "green"), 1)),
        ("a.csv", "prompt,choice1,choice2\nSky?,blue,green\n", ("Sky?", "", ("blue", "green"), None)),
    ],
)  # fmt: skip
def test_formats_are_recognized(tmp_path: Path, name: str, value: object, expected: tuple[object, ...]) -> None:
    (question,) = read(tmp_path / name, value)
    assert (question.prompt, question.second, question.choices, question.answer) == expected


def test_ids_are_from_the_file_or_locations(tmp_path: Path) -> None:
    items = [{"question": q, "choice": ["x", "y"], "answer": "x"} for q in "ab"]
    assert [q.id for q in read(tmp_path / "a.json", [[["Hi."], items, "5-1"]])] == ["5-1-0", "5-1-1"]
    (question,) = read(tmp_path / "a.csv", "prompt,choice1,choice2,label\nSky?,blue,green,A\n")
    assert question.id == f"{tmp_path / 'a.csv'}:2"


@pytest.mark.parametrize(
    ("labels", "answers", "first"),
    [(("0", "1"), [0, 1], 0), (("1", "2"), [0, 1], 1), (("1", "0", ""), [1, 0, None], 0)],
)
def test_first_number_is_inferred_from_all_answers(
    tmp_path: Path, labels: tuple[str, ...], answers: list[int | None], first: int
) -> None:
    counts: Counter[str] = Counter()
    rows = "".join(f"Sky?,blue,green,{label}\n" for label in labels)
    questions = read(tmp_path / "a.csv", "prompt,choice1,choice2,label\n" + rows, counts)
    assert [question.answer for question in questions] == answers
    assert counts == {f"answers counted from {first}": 2} | ({"answers not known": 1} if None in answers else {})


@pytest.mark.parametrize(("lines", "expected"), [("1\n0\n", [1, 0]), (None, [None, None])])
def test_labels_of_piqa_are_in_their_own_file(tmp_path: Path, lines: str | None, expected: list[int | None]) -> None:
    if lines:
        (tmp_path / "valid-labels.lst").write_text(lines)
    row = json.dumps({"goal": "Open it.", "sol1": "Pull.", "sol2": "Sing."})
    assert [q.answer for q in read(tmp_path / "valid.jsonl", f"{row}\n{row}\n")] == expected


TABLE = "prompt,choice1,choice2,choice3,label\n"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("a.csv", TABLE + "Sky?,a,b,c,1\n", r"Cannot tell whether .* from 0 or from 1 \(neither 0 nor"),
        ("a.csv", TABLE + "Sky?,a,b,c,0\nSky?,a,b,c,3\n", r"Cannot tell whether .* \(both 0 and"),
        ("a.csv", TABLE + "Sky?,a,b,c,D\n", r"a\.csv:2: The answer is 'D', expected one of 3 choices"),
        ("a.csv", TABLE + "Sky?,a,b,c,blue\n", r"a\.csv:2: The answer is 'blue', expected one of 3 choices"),
        ("a.csv", TABLE + "Sky?,a,,,A\n", r"a\.csv:2: The choices are \['a'\]\. Expected at least two"),
        ("a.csv", TABLE + "Sky?,a,,c,A\n", r"a\.csv:2: The choices are \['a', '', 'c'\]\. .*none of them empty"),
        ("a.csv", "text,label\nSky?,a\n", r"No multiple-choice questions found\. Columns: text, label"),
        ("a.json", [[["Hi."], [{"question": "Who?", "choice": ["x", "y"], "answer": "z"}], "1"]], r"The answer 'z' is none"),
        ("a.json", [["Hi."]], r"a\.json:1: Expected \[lines, questions, id\]"),
        ("a.json", [[["Hi."], [{"question": "Who?"}], "1"]], r"a\.json:1: Expected questions with 'question' and 'choice'"),
        ("a.json", {"article": "Long.", "questions": ["a", "b"], "options": [["x", "y"]]}, r"Expected as many lists of 'options'"),
        ("a.xml", "<copa-corpus><item>", r"a\.xml: Bad XML"),
    ],
)  # fmt: skip
def test_mistakes_raise(tmp_path: Path, name: str, value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path / name, value)


def test_piqa_needs_one_label_per_question(tmp_path: Path) -> None:
    (tmp_path / "valid-labels.lst").write_text("1\n")
    row = json.dumps({"goal": "Open it.", "sol1": "Pull.", "sol2": "Sing."})
    with pytest.raises(DataError, match=r"valid-labels\.lst: 1 labels, but .*valid\.jsonl has 2 questions"):
        read(tmp_path / "valid.jsonl", f"{row}\n{row}\n")
