"""Output files of predictions: what comes out reads back as what went in, and no answer is lost."""

import csv
import json
from collections import Counter

import pytest

from stemformer.data.labelled.question_answering import Question
from stemformer.data.labelled.table import read_table
from stemformer.data.labelled.text_classification import TextColumns, TextExample, make_text_examples
from stemformer.data.labelled.token_classification import TaggedSentence, join_tokens, read_tagged
from stemformer.errors import DataError
from stemformer.tasks.predictions import PredictionFile
from stemformer.tasks.question_answering import AnswerPrediction, QuestionAnswering
from stemformer.tasks.sequence_classification import SequenceClassification, TextPrediction
from stemformer.tasks.task import TaskConfig
from stemformer.tasks.token_classification import TagPrediction, TokenClassification

ODD = [
    *("one\r\ntwo", "a\tb", 'He said "no"', '"quoted"', "two\n\nlines\n", "a,b;c", "", " spaces ", "u\u2028v\x85w\x0c"),
    *("=1+2", "tab\tand\nnew\tline\ttoo", "one\rtwo", "\r\n", "[1, 2]", "None", "#", "\\n\\", "'", "\u202eabc\u0301"),
]


def write(task, out, records, predictions, *, block=3):
    """Write a file of predictions in blocks of three records."""
    file = PredictionFile(str(out), task)
    file.check(records)
    blocks = [(records[i : i + block], predictions[i : i + block]) for i in range(0, len(records), block)]
    out.write_bytes(b"".join(file.contents(blocks)))


def classified(rows, name="text"):
    return [TextExample((row[name],), None, row, f"a:{i}") for i, row in enumerate(rows)]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
@pytest.mark.parametrize("kind", ["class", "labels", "score"])
def test_odd_cells_of_texts_read_back(tmp_path, suffix, kind):
    task = SequenceClassification(TaskConfig(kind=kind), () if kind == "score" else ("x", "y"))
    rows = [{"text": text, "other, name": text, "prediction": text, "input_prediction": "i"} for text in ODD]
    prediction = TextPrediction("x", 0.75, () if kind == "score" else (0.75, 0.25), ("x",))
    write(task, tmp_path / f"a{suffix}", classified(rows), [prediction] * len(ODD))
    found = read_table(str(tmp_path / f"a{suffix}")).rows
    names = {"text": "text", "other, name": "other, name", "prediction": "input_input_prediction"}
    assert [{name: row[new] for name, new in names.items()} for row in found] == [
        {name: row[name] for name in names} for row in rows
    ]
    expected = {"score": 0.75, "class": "x", "labels": ["x"]}[kind]
    values = {row["prediction"] for row in found} if suffix != ".jsonl" else set()
    assert values <= {"", "0.75" if kind == "score" else "x"}
    assert found[0]["prediction"] in (expected, str(expected), "x")
    assert {row["input_prediction"] for row in found} == {"i"}


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_odd_cell_reads_back_alone(tmp_path, suffix, text):
    task = SequenceClassification(TaskConfig(kind="class"), ("x", "y"))
    write(
        task, tmp_path / f"a{suffix}", classified([{"text": text, "b": text}]), [TextPrediction("x", 1.0, (1.0, 0.0))]
    )
    (row,) = read_table(str(tmp_path / f"a{suffix}")).rows
    assert (row["text"], row["b"]) == (text, text)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_newlines_within_cells_stay_as_they_are_whatever_ends_the_rows(tmp_path, newline, delimiter):
    path = tmp_path / {",": "a.csv", "\t": "a.tsv"}[delimiter]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator=newline, quoting=csv.QUOTE_ALL)
        writer.writerows([["text", "label"], *([text, "x"] for text in ODD if text.strip())])
    assert [row["text"] for row in read_table(str(path)).rows] == [text for text in ODD if text.strip()]


def test_model_reads_one_kind_of_newline(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'text,label\r\n"one\r\ntwo",x\r\n')
    table = read_table(str(tmp_path / "a.csv"))
    (example,) = make_text_examples(table, TextColumns(("text",), "label"), kind="class", counts=Counter())
    assert example.texts == ("one\ntwo",)
    assert example.row["text"] == "one\r\ntwo"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
def test_sets_of_labels_read_back_whatever_is_in_a_label(tmp_path, suffix):
    labels = ("a,b", "a", "b", 'c "d"', "[e]", "it's", "f (g, h)", "tab\tbed", " i", "plain label")
    sets = [(), *((label,) for label in labels), ("a", "b"), ("a,b", "a"), labels]
    task = SequenceClassification(TaskConfig(kind="labels"), labels)
    predictions = [TextPrediction(",".join(found), 0.5, (0.5,) * len(labels), found) for found in sets]
    write(task, tmp_path / f"a{suffix}", classified([{"text": "t"}] * len(sets)), predictions)
    table = read_table(str(tmp_path / f"a{suffix}"))
    examples = make_text_examples(table, TextColumns(("text",), "prediction"), kind="labels", counts=Counter())
    assert [example.label for example in examples] == [tuple(label.strip() for label in found) for found in sets]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_tables_hold_the_probability_of_each_label(tmp_path, suffix):
    task = SequenceClassification(TaskConfig(kind="labels"), ("a", "b c"))
    rows = [{"text": "t", "probability_a": "mine"}, {"text": "", "probability_a": "mine"}]
    found = TextPrediction("", 0.25, (0.25, 0.125), ())
    write(task, tmp_path / f"a{suffix}", classified(rows), [found, found])
    first, empty = read_table(str(tmp_path / f"a{suffix}")).rows
    assert first == {
        **{"text": "t", "input_probability_a": "mine", "prediction": ""},
        **{"probability_a": "0.25", "probability_b c": "0.125"},
    }
    assert (empty["probability_a"], empty["probability_b c"]) == ("", "")


def test_lists_dates_and_nan_of_other_columns_are_written(tmp_path):
    rows = [{"text": "t", "list": ["a,b", "c"], "nan": float("nan"), "none": None, "bool": True, "object": {"a": 1}}]
    task = SequenceClassification(TaskConfig(kind="class"), ("x", "y"))
    for suffix in (".jsonl", ".csv"):
        write(task, tmp_path / f"a{suffix}", classified(rows), [TextPrediction("x", 1.0, (1.0, 0.0))])
    row = json.loads((tmp_path / "a.jsonl").read_text())
    assert (row["list"], row["nan"], row["object"]) == (["a,b", "c"], None, {"a": 1})
    (cells,) = read_table(str(tmp_path / "a.csv")).rows
    assert [cells[name] for name in ("list", "nan", "none", "bool")] == ['["a,b", "c"]', "", "", "true"]


def tagged(words, tags=None, location="a:1"):
    text, offsets = join_tokens(words)
    return TaggedSentence(tuple(words), tags, location, text, offsets)


@pytest.mark.parametrize("suffix", [".jsonl", ".conll"])
def test_odd_words_read_back(tmp_path, suffix):
    words = ["New York", "u\u2028v", '"', "#", "=", ",", "# x = y", "'", "\u00a0", "\x85", "10"]
    task = TokenClassification(TaskConfig("tag"), ["O", "B-X"])
    records = [tagged(words), tagged(words[:2], ("O", "B-X")), tagged(words[::-1]), tagged(["a"])]
    predictions = [TagPrediction(("B-X",) * len(r.words), (1.0,) * len(r.words)) for r in records]
    write(task, tmp_path / f"a{suffix}", records, predictions)
    found = read_tagged(str(tmp_path / f"a{suffix}"), counts=Counter())
    assert [s.words for s in found] == [r.words for r in records]
    assert [s.tags for s in found] == [p.tags for p in predictions]


@pytest.mark.parametrize("words", [["a", ""], ["tab\tbed"], ["a\nb"], ["-DOCSTART-"], ["a\r"], []])
def test_words_that_conll_cannot_hold_are_refused_before_anything_is_computed(words):
    task = TokenClassification(TaskConfig("tag"), ["O", "B-X"])
    with pytest.raises(DataError, match=r"b\.jsonl:7: CoNLL cannot hold the word .* Write \.jsonl instead of a\.conll"):
        PredictionFile("a.conll", task).check([tagged(["good"]), tagged(words, location="b.jsonl:7")])
    PredictionFile("a.jsonl", task).check([tagged(words)])


def question(name):
    return Question(name, "Who?", "The king.", (), "", is_impossible=False, gold=())


def test_answers_are_one_object_of_all_blocks(tmp_path):
    answers = [AnswerPrediction(text, 0, 0, 1.0, 0.0) for text in ODD]
    questions = [question(f"id {text}") for text in ODD]
    write(QuestionAnswering(TaskConfig("qa")), tmp_path / "a.json", questions, answers)
    assert json.loads((tmp_path / "a.json").read_text()) == {f"id {text}": text for text in ODD}


def test_repeated_ids_are_refused_where_they_are_keys():
    file = PredictionFile("p.json", QuestionAnswering(TaskConfig("qa")))
    file.check([question("1"), question("2")])
    with pytest.raises(DataError, match=r"The id '1' occurs more than once.*Write \.jsonl instead of p\.json"):
        file.check([question("1")])
    rows = PredictionFile("p.jsonl", QuestionAnswering(TaskConfig("qa")))
    rows.check([question("1"), question("1")])
