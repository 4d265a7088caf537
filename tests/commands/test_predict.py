"""Predictions of fine-tuned models: output formats, metrics equal to those of training, parity with transformers."""

import csv
import io
import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from labelled_files import FILES

import stemformer
from stemformer.cli.app import main
from stemformer.data.labelled.multiple_choice import read_choices
from stemformer.data.labelled.question_answering import read_questions
from stemformer.data.labelled.table import read_table
from stemformer.data.labelled.token_classification import read_tagged
from stemformer.errors import CheckpointError, ConfigError, DataError

pytestmark = pytest.mark.usefixtures("no_timing")


@pytest.fixture
def dev(labelled):
    return {kind: str(labelled / "dev" / name) for kind, name in FILES.items()}


def predict(finetuned, dev, kind, **options):
    return stemformer.predict([dev[kind]], model=str(finetuned(kind)), precision="fp32", **options)


def test_predict_and_evaluate_note_unknown_words(finetuned, tmp_path):
    (tmp_path / "reviews.csv").write_text("review,sentiment\nкороль,good\nсад и река,bad\n", encoding="utf-8")
    for command in (stemformer.predict, stemformer.evaluate):
        result = command([str(tmp_path / "reviews.csv")], model=str(finetuned("class")), precision="fp32")
        assert any(note.startswith("100% of the words are [UNK], such as 'король'") for note in result["notes"])


# Forms


def test_rows_hold_the_input_columns_and_the_prediction(finetuned, dev):
    rows = predict(finetuned, dev, "class")["predictions"]
    table = read_table(dev["class"])
    assert [{name: row[name] for name in table.columns} for row in rows] == table.rows
    for row in rows:
        assert row["probabilities"].keys() == {"bad", "good"}
        assert row["prediction"] == max(row["probabilities"], key=row["probabilities"].get)
        assert row["probability"] == row["probabilities"][row["prediction"]]


@pytest.mark.parametrize("kind", FILES)
def test_json_lines_are_the_rows(finetuned, dev, tmp_path, kind):
    out = tmp_path / "deep" / "found.jsonl"
    result = predict(finetuned, dev, kind, out=str(out))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert result["records"] == len(rows) == 15
    assert rows == json.loads(json.dumps(predict(finetuned, dev, kind)["predictions"]))


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t")])
@pytest.mark.parametrize("kind", ["class", "labels", "score", "pair"])
def test_tables_have_the_columns_and_the_prediction(finetuned, dev, tmp_path, kind, suffix, delimiter):
    predict(finetuned, dev, kind, out=str(tmp_path / f"found{suffix}"))
    text = (tmp_path / f"found{suffix}").read_text()
    rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
    expected = predict(finetuned, dev, kind)["predictions"]
    columns = list(read_table(dev[kind]).columns)
    assert list(rows[0])[: len(columns)] == columns
    inputs = [",".join(row["prediction"]) if kind == "labels" else str(row["prediction"]) for row in expected]
    assert [row["prediction"] for row in rows] == inputs
    assert ("probability" in rows[0]) == (kind in ("class", "pair"))
    assert ("probability_river" in rows[0]) == (kind == "labels")


def test_tags_are_written_as_conll_behind_those_of_the_file(finetuned, dev, tmp_path):
    predict(finetuned, dev, "tag", out=str(tmp_path / "found.conll"))
    found = read_tagged(str(tmp_path / "found.conll"), counts=Counter())
    gold = read_tagged(dev["tag"], counts=Counter())
    again = read_tagged(str(tmp_path / "found.conll"), column="2", counts=Counter())
    rows = predict(finetuned, dev, "tag")["predictions"]
    assert [s.words for s in found] == [s.words for s in gold]
    assert [s.tags for s in again] == [s.tags for s in gold]
    assert [list(s.tags) for s in found] == [row["tags"] for row in rows]


def test_answers_are_written_as_squad_wants_them(finetuned, dev, tmp_path):
    predict(finetuned, dev, "qa", out=str(tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())
    questions = read_questions(dev["qa"], counts=Counter())
    assert list(found) == [q.id for q in questions]
    assert all(found[q.id] in q.context for q in questions)


def test_entities_have_offsets(finetuned, tmp_path):
    text = "The old king sees the wise teacher near the river"
    (tmp_path / "text.txt").write_text(text + "\n")
    (row,) = stemformer.predict([str(tmp_path / "text.txt")], model=str(finetuned("tag")))["predictions"]
    assert len(row["entities"]) == sum(tag != "O" for tag in row["tags"]) > 0
    for entity in row["entities"]:
        assert text[entity["begin"] : entity["end"]] == entity["text"]


@pytest.mark.parametrize(
    ("kind", "out", "result"),
    [("class", "a.conll", ".jsonl, .csv, .tsv"), ("tag", "a.csv", ".conll"), ("qa", "a.tsv", ".json")],
)
def test_form_that_does_not_suit_the_task_is_refused(finetuned, dev, tmp_path, kind, out, result):
    with pytest.raises(ConfigError, match=result):
        predict(finetuned, dev, kind, out=str(tmp_path / out))


def test_file_is_replaced_only_with_overwrite(finetuned, dev, tmp_path):
    out = tmp_path / "found.jsonl"
    out.write_text("mine")
    with pytest.raises(ConfigError, match="--overwrite"):
        predict(finetuned, dev, "class", out=str(out))
    assert out.read_text() == "mine"
    predict(finetuned, dev, "class", out=str(out), overwrite=True)
    assert len(out.read_text().splitlines()) == 15


def test_answers_need_not_be_there(finetuned, dev, tmp_path):
    expected = predict(finetuned, dev, "class")["predictions"]
    rows = read_table(dev["class"]).rows
    bare = [{"id": row["id"], "review": row["review"], "sentiment": "?"} for row in rows]
    for name, column in (("unknown", "sentiment"), ("without", None)):
        kept = bare if column else [{k: v for k, v in row.items() if k != "sentiment"} for row in bare]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
        found = stemformer.predict([str(tmp_path / f"{name}.jsonl")], model=str(finetuned("class")), precision="fp32")
        assert [row["prediction"] for row in found["predictions"]] == [row["prediction"] for row in expected]


# Standard input


@pytest.fixture
def piped(capsys, monkeypatch):
    """Runs `predict` of the command line on a text from standard input, and returns the rows that it prints."""

    def run(text, model, *more):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))
        assert main(["predict", "-", "--model", str(model), "-q", *more]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def test_lines_of_standard_input_are_texts(piped, finetuned):
    rows = piped("The old king.\n\nThe river.\n", finetuned("class"))
    assert [row["text"] for row in rows] == ["The old king.", "", "The river."]
    assert [row["prediction"] is None for row in rows] == [False, True, False]


def test_objects_of_standard_input_are_records(piped, finetuned):
    rows = piped('{"review": "The old king.", "id": 7}\n{"review": "The river.", "id": 8}\n', finetuned("class"))
    assert [(row["id"], row["prediction"] in ("good", "bad")) for row in rows] == [(7, True), (8, True)]
    rows = piped('{"premise": "The old king.", "hypothesis": "The river."}\n', finetuned("pair"))
    assert rows[0]["prediction"] in ("0", "1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The old king sees\nThe river\n", [4, 2]),
        ("The old king sees the river.\n", [6]),
        ("The\nold\n\nking\n", [2, 1]),
        ("The\tO\nking\tB-NOUN\n", [2]),
        ('{"tokens": ["The", "king"]}\n', [2]),
    ],
    ids=["sentences", "one sentence", "words", "conll", "json"],
)
def test_standard_input_may_hold_sentences_words_or_objects(piped, finetuned, text, words):
    assert [len(row["tags"]) for row in piped(text, finetuned("tag"))] == words


def test_standard_input_can_be_combined_with_files(piped, finetuned, dev):
    assert len(piped("The old king sees.\nThe river.\n", finetuned("tag"), dev["tag"])) == 17


def test_standard_input_is_evaluated(capsys, monkeypatch, finetuned, dev):
    text = "".join(json.dumps(row) + "\n" for row in read_table(dev["class"]).rows)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))
    arguments = ["--model", str(finetuned("class")), "--json", "-q", "--precision", "fp32"]
    assert main(["evaluate", "-", *arguments]) == 0
    piped = json.loads(capsys.readouterr().out)
    assert main(["evaluate", dev["class"], *arguments]) == 0
    assert piped["accuracy"] == json.loads(capsys.readouterr().out)["accuracy"]


def test_nothing_to_predict_is_an_error(finetuned, capsys):
    assert main(["predict", "--model", str(finetuned("class")), "-q"]) == 2
    assert "No input" in capsys.readouterr().err


# Evaluating


@pytest.mark.parametrize("kind", FILES)
def test_metrics_equal_those_of_training(finetuned, dev, kind, tmp_path):
    folder = finetuned(kind)
    result = json.loads((folder / "result.json").read_text())
    out, report = tmp_path / "all.json", tmp_path / "page"
    found = stemformer.evaluate([dev[kind]], model=str(folder), precision="fp32", out=str(out), report=str(report))
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    metrics.pop("loss")
    assert metrics
    for name, value in metrics.items():
        assert found[name] == pytest.approx(value, rel=1e-6)
        assert result[name] == value
    assert found["main_metric"] in metrics
    assert found["records"] == 15
    written = json.loads(out.read_text())
    assert written == {k: v for k, v in json.loads(json.dumps(found)).items() if k != "report"}
    assert "<html" in (report / "report.html").read_text()


def test_label_of_f1_is_named_in_results_and_report(finetuned, dev, tmp_path):
    folder, page = finetuned("class"), tmp_path / "page"
    assert json.loads((folder / "result.json").read_text())["positive_label"] == "good"
    found = stemformer.evaluate([dev["class"]], model=str(folder), report=str(page))
    assert found["positive_label"] == "good"
    assert "of label &#39;good&#39;" in (page / "report.html").read_text()


def test_evaluate_overwrites_nothing_without_overwrite(finetuned, dev, tmp_path):
    folder, data, own = str(finetuned("class")), tmp_path / "dev.csv", tmp_path / "texts"
    shutil.copy(dev["class"], data)
    before = data.read_bytes()
    own.mkdir()
    (own / "mine.txt").write_text("mine")
    for options, result in (
        ({"out": str(data)}, "exists. Pass another --out"),
        ({"out": str(data), "overwrite": True}, "is an input file"),
        ({"report": str(own)}, "holds something else than the report"),
        ({"report": str(own), "overwrite": True}, "holds something else than the report"),
        ({"report": folder, "overwrite": True}, "holds something else than the report"),
        ({"num_worst": -1}, "--num-worst is -1"),
    ):
        with pytest.raises(ConfigError, match=result):
            stemformer.evaluate([str(data)], model=folder, **options)
    assert data.read_bytes() == before and [path.name for path in own.iterdir()] == ["mine.txt"]
    page = {"report": str(tmp_path / "page")}
    stemformer.evaluate([str(data)], model=folder, **page)
    with pytest.raises(ConfigError, match=r"holds a report\. Pass another --report, or --overwrite"):
        stemformer.evaluate([str(data)], model=folder, **page)
    stemformer.evaluate([str(data)], model=folder, **page, overwrite=True)


def test_wrong_answers_are_listed_the_worst_first(finetuned, dev):
    found = stemformer.evaluate([dev["class"]], model=str(finetuned("class")), num_worst=100)
    wrong = found["wrong"]
    assert len(wrong) == round((1 - found["accuracy"]) * 15)
    assert all(row["gold"] != row["predicted"] for row in wrong)
    assert [row["loss"] for row in wrong] == sorted((row["loss"] for row in wrong), reverse=True)
    assert len(stemformer.evaluate([dev["class"]], model=str(finetuned("class")), num_worst=1)["wrong"]) == min(
        1, len(wrong)
    )


def test_answer_that_the_metric_takes_as_right_is_not_listed_as_wrong(finetuned, labelled, tmp_path):
    data = json.loads((labelled / "dev" / "squad.json").read_text())
    model = str(finetuned("qa"))
    answers = {
        row["id"]: row["text"]
        for row in stemformer.predict([str(labelled / "dev" / "squad.json")], model=model)["predictions"]
    }
    for paragraph in data["data"][0]["paragraphs"]:
        for question in paragraph["qas"]:  # in other letters, with a full stop more or less
            text = answers[question["id"]]
            question["answers"] = [{"text": text.upper().strip(".") + ".", "answer_start": 0}]
    (tmp_path / "same.json").write_text(json.dumps(data))
    found = stemformer.evaluate([str(tmp_path / "same.json")], model=model)
    assert (found["exact_match"], found["wrong"]) == (100.0, [])


def test_questions_without_answers_are_not_scored(finetuned, tmp_path):
    rows = [{"question": "Who?", "context": "The old king sees the river."}] * 3
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="no record with an answer is left"):
        stemformer.evaluate([str(tmp_path / "questions.jsonl")], model=str(finetuned("qa")))


def test_row_without_a_text_has_a_row_without_a_prediction(finetuned, tmp_path):
    (tmp_path / "some.txt").write_text("The old king.\n\nA green river.\n\n")
    result = stemformer.predict([str(tmp_path / "some.txt")], model=str(finetuned("class")))
    assert [row["prediction"] is None for row in result["predictions"]] == [False, True, False]
    assert result["counts"] == {"empty text": 1}


@pytest.mark.parametrize("call", ["predict", "embed"])
def test_single_text_in_the_place_of_a_list_is_refused(finetuned, call):
    with pytest.raises(DataError, match=r"Expected a list of texts, got the single text .* Pass \[text\]"):
        getattr(stemformer.load(str(finetuned("class"))), call)("a fine book")


@pytest.mark.parametrize(("label", "number"), [("fine", 1), ("good", 0)])
def test_note_is_printed_once_and_no_empty_notes(finetuned, tmp_path, capsys, label, number):
    (tmp_path / "a.csv").write_text(f"review,sentiment\nThe old king.,bad\nThe river.,{label}\n")
    assert main(["evaluate", str(tmp_path / "a.csv"), "--model", str(finetuned("class"))]) == 0
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("does not occur in the training data") == number
    assert "notes" not in captured.out


@pytest.mark.parametrize("number", [0, 1])
def test_count_is_printed_once_and_no_empty_counts(finetuned, tmp_path, capsys, number):
    (tmp_path / "a.csv").write_text("review\n" + ("The old king sees " * 200 if number else "The old king.") + "\n")
    arguments = ["predict", tmp_path / "a.csv", "--model", finetuned("class"), "--out", tmp_path / "p.csv"]
    assert main(list(map(str, arguments))) == 0
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("texts split into windows") == number
    assert "counts" not in captured.out


def test_unknown_labels_are_noted(finetuned, tmp_path):
    lines = ["review,sentiment", "The old king.,good", "The river.,fine"]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    found = stemformer.evaluate([str(tmp_path / "a.csv")], model=str(finetuned("class")))
    assert found["notes"] == ["1 label does not occur in the training data and is counted as wrong: 'fine' (1)"]
    (tmp_path / "b.csv").write_text("\n".join([lines[0], lines[2]]) + "\n")
    with pytest.raises(
        DataError, match=r"None of the labels occur in the training data: found 'fine'.*trained on 'bad', 'good'"
    ):
        stemformer.evaluate([str(tmp_path / "b.csv")], model=str(finetuned("class")))


def test_row_with_an_unknown_label_has_no_loss_and_comes_after_the_other_wrong_ones(finetuned, dev, tmp_path):
    lines = Path(dev["class"]).read_text().splitlines()
    other = [line.rpartition(",")[0] + (",bad" if line.endswith(",good") else ",good") for line in lines[1:4]]
    (tmp_path / "a.csv").write_text("\n".join([lines[0], "99,The old king.,mixed", *other, *lines[1:4]]) + "\n")
    wrong = stemformer.evaluate([str(tmp_path / "a.csv")], model=str(finetuned("class")))["wrong"]
    assert [row["gold"] for row in wrong].index("mixed") == len(wrong) - 1 >= 1
    assert [row["loss"] is None for row in wrong] == [False] * (len(wrong) - 1) + [True]


def test_evaluate_takes_no_other_column_for_that_of_the_label(finetuned, dev, tmp_path):
    lines = Path(dev["class"]).read_text().splitlines()
    file = tmp_path / "new.csv"
    file.write_text(
        "\n".join(["id,review", *(f"{('bad', 'good')[i % 2]},{x.split(',')[1]}" for i, x in enumerate(lines[1:]))])
        + "\n"
    )
    with pytest.raises(DataError, match=r"new.csv has no label column 'sentiment'.*predict needs none"):
        stemformer.evaluate([str(file)], model=str(finetuned("class")))
    assert stemformer.evaluate([str(file)], model=str(finetuned("class")), label_column="id")["records"] == 15


def test_language_of_answers_is_no_column_of_wrong_ones(finetuned, dev):
    wrong = stemformer.evaluate([dev["qa"]], model=str(finetuned("qa")))["wrong"]
    assert all("language" not in row for row in wrong)


def test_table_is_not_read_as_sentences_to_tag(finetuned, tmp_path):
    (tmp_path / "a.csv").write_text("id,review\n1,The old king\n2,A river\n")
    with pytest.raises(DataError, match=r"Found a table\. Expected one word per line"):
        stemformer.predict([str(tmp_path / "a.csv")], model=str(finetuned("tag")))


def test_choice_is_written_as_text_with_the_correct_one(finetuned, dev):
    for row in predict(finetuned, dev, "choice")["predictions"]:
        assert row["prediction"] == row["choices"][row["choice"]]
        assert row["gold"] == "the king"


def test_probabilities_in_bfloat16_are_not_rounded_to_it(finetuned, dev):
    rows = stemformer.predict([dev["class"]], model=str(finetuned("class")), precision="bf16")["predictions"]
    assert len({row["probability"] for row in rows}) == len({row["review"] for row in rows})


def test_columns_named_as_ours_are_kept(finetuned, tmp_path):
    (tmp_path / "new.csv").write_text('review,prediction\n"The old king.",mine\n')
    out = tmp_path / "found.csv"
    stemformer.predict([str(tmp_path / "new.csv")], model=str(finetuned("class")), text_column=["review"], out=str(out))
    (row,) = csv.DictReader(io.StringIO(out.read_text()))
    assert row["input_prediction"] == "mine" and row["prediction"] in ("good", "bad")
    assert "\r" not in out.read_bytes().decode()


def test_other_columns_can_be_named(finetuned, dev, tmp_path):
    rows = [{"a": r["review"], "b": r["sentiment"]} for r in read_table(dev["class"]).rows]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = stemformer.evaluate(
        [str(tmp_path / "other.jsonl")], model=str(finetuned("class")), text_column=["a"], label_column="b"
    )
    assert named["accuracy"] == stemformer.evaluate([dev["class"]], model=str(finetuned("class")))["accuracy"]


# From Python


@pytest.mark.filterwarnings("ignore:.*words are .UNK.")
def test_loaded_model_predicts_what_the_command_does(finetuned, dev):
    def loaded(kind):
        return stemformer.load(str(finetuned(kind)))

    def of(kind, name):
        return [row[name] for row in predict(finetuned, dev, kind)["predictions"]]

    rows = read_table(dev["class"]).rows
    assert [p.label for p in loaded("class").predict([r["review"] for r in rows])] == of("class", "prediction")
    pairs = [(r["premise"], r["hypothesis"]) for r in read_table(dev["pair"]).rows]
    assert [p.label for p in loaded("pair").predict(pairs)] == of("pair", "prediction")
    sentences = read_tagged(dev["tag"], counts=Counter())
    for inputs in ([s.text for s in sentences], [s.words for s in sentences]):
        assert [list(p.tags) for p in loaded("tag").predict(inputs)] == of("tag", "tags")
    questions = read_questions(dev["qa"], counts=Counter())
    assert [p.text for p in loaded("qa").predict([(q.question, q.context) for q in questions])] == of("qa", "text")
    choices = [(c.prompt, c.choices) for c in read_choices(dev["choice"], counts=Counter())]
    assert [p.choice for p in loaded("choice").predict(choices)] == of("choice", "choice")


@pytest.mark.parametrize(
    ("kind", "inputs", "result"),
    [
        ("class", "", "Expected a text"),
        ("class", ("a", "b"), "Expected a text"),
        ("pair", "a", r"\(text, text\)"),
        ("pair", ("a", " "), "not empty"),
        ("tag", [], "a list of words"),
        ("tag", 3, "a list of words"),
        ("qa", "who?", r"\(question, passage\)"),
        ("choice", ("a", "b"), r"\(text, options\)"),
        ("choice", ("a", []), r"\(text, options\)"),
    ],
)
def test_input_of_another_form_is_refused(finetuned, kind, inputs, result):
    good = {"class": "a", "pair": ("a", "b"), "tag": "a", "qa": ("a", "b"), "choice": ("a", ["b", "c"])}[kind]
    with pytest.raises(DataError, match=f"Input 1 is .*{result}"):
        stemformer.load(str(finetuned(kind))).predict([good, inputs])


def test_model_that_was_only_pretrained_cannot_predict(tiny_bert):
    with pytest.raises(CheckpointError, match="Fine-tune it first"):
        stemformer.load(str(tiny_bert)).predict(["a"])


def test_columns_of_the_training_data_are_found_in_any_case(finetuned, dev, tmp_path):
    rows = read_table(dev["class"]).rows
    lines = [f"{row['sentiment']},a title {i},{row['review']}" for i, row in enumerate(rows)]
    (tmp_path / "upper.csv").write_text("Sentiment,title,REVIEW \n" + "\n".join(lines) + "\n")
    found = stemformer.evaluate([str(tmp_path / "upper.csv")], model=str(finetuned("class")), precision="fp32")
    expected = stemformer.evaluate([dev["class"]], model=str(finetuned("class")), precision="fp32")
    assert found["accuracy"] == expected["accuracy"]
    assert [row["texts"] for row in found["wrong"]] == [row["texts"] for row in expected["wrong"]]


# Labels of other names


def test_labels_of_another_form_are_scored_as_the_same(finetuned, dev, tmp_path):
    text = read_table(dev["class"])
    rows = [f"{i},{row['review']},{row['sentiment'].upper()}" for i, row in enumerate(text.rows)]
    (tmp_path / "upper.csv").write_text("id,review,sentiment\n" + "\n".join(rows) + "\n")
    found = stemformer.evaluate([str(tmp_path / "upper.csv")], model=str(finetuned("class")), precision="fp32")
    expected = stemformer.evaluate([dev["class"]], model=str(finetuned("class")), precision="fp32")
    assert found["accuracy"] == expected["accuracy"]
    assert any("'BAD' as 'bad', 'GOOD' as 'good'" in note for note in found["notes"])


def test_label_map_names_predictions_and_is_not_kept(finetuned, dev, capsys):
    model = stemformer.load(str(finetuned("class")), precision="fp32")
    plain = stemformer.predict([dev["class"]], model=model)["predictions"]
    named = stemformer.predict([dev["class"]], model=model, label_map={"bad": "neg", "good": "pos"})["predictions"]
    assert [row["probabilities"] for row in named] == [
        {"neg": row["probabilities"]["bad"], "pos": row["probabilities"]["good"]} for row in plain
    ]
    assert model.task.labels == ("bad", "good")
    arguments = ["evaluate", dev["class"], "--model", str(finetuned("class")), "--label-map", "bad=x,fine=good"]
    assert main(arguments) == 2
    assert "names 'fine', which the model does not have" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({"num_labels": 2}, ["LABEL_0", "LABEL_1"]),
        ({"id2label": {"0": 0, "1": 1}}, ["0", "1"]),
    ],
)
def test_model_from_elsewhere_has_labels(finetuned, dev, tmp_path, changes, labels):
    shutil.copytree(finetuned("class") / "final", tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    for key in ("stemformer_task", "id2label", "label2id", "problem_type"):
        del config[key]
    (tmp_path / "model/config.json").write_text(json.dumps(config | changes))
    rows = stemformer.predict([dev["class"]], model=str(tmp_path / "model"), label_map={labels[0]: "bad"})
    assert rows["predictions"][0]["probabilities"].keys() == {"bad", labels[1]}


def test_model_from_elsewhere_reads_pairs_of_two_columns(finetuned, dev, tmp_path):
    shutil.copytree(finetuned("pair") / "final", tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    del config["stemformer_task"]
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="pass both columns"):
        stemformer.predict([dev["pair"]], model=str(tmp_path / "model"))
    model = stemformer.load(str(tmp_path / "model"), precision="fp32")
    found = stemformer.predict([dev["pair"]], model=model, text_column=["premise", "hypothesis"])["predictions"]
    assert found == predict(finetuned, dev, "pair")["predictions"]
    assert model.predict([(found[0]["premise"], found[0]["hypothesis"])])[0].label == found[0]["prediction"]


def test_model_from_elsewhere_with_one_output_is_a_regression(finetuned, dev, tmp_path):
    shutil.copytree(finetuned("score") / "final", tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    for key in ("stemformer_task", "problem_type"):
        del config[key]
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    rows = stemformer.predict([dev["score"]], model=str(tmp_path / "model"), precision="fp32")["predictions"]
    assert [row["prediction"] for row in rows] == [
        row["prediction"] for row in predict(finetuned, dev, "score")["predictions"]
    ]


# The same in transformers, from the saved folder


def close(a, b):
    """Within 1e-5, as the order of sums differs (fp32)."""
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("kind", ["class", "labels", "pair"])
def test_pipeline_gives_the_same_probabilities(finetuned, dev, kind):
    pipeline = transformers.pipeline("text-classification", model=str(finetuned(kind) / "final"), top_k=None)
    for row in predict(finetuned, dev, kind)["predictions"]:
        if kind == "pair" and len(pipeline.tokenizer(row["premise"], row["hypothesis"])["input_ids"]) > 64:
            continue  # it cuts the pair at another place
        column = {"class": "review", "labels": "text"}.get(kind)
        inputs = row[column] if column else {"text": row["premise"], "text_pair": row["hypothesis"]}
        theirs = {item["label"]: item["score"] for item in pipeline([inputs])[0]}
        assert theirs.keys() == row["probabilities"].keys()
        close([theirs[name] for name in theirs], [row["probabilities"][name] for name in theirs])


@pytest.mark.parametrize("part", ["final", "checkpoints/step-00000012"])
def test_pipeline_gives_the_same_number(finetuned, dev, part):
    folder = str(finetuned("score") / part)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert (model.config.problem_type, model.config.num_labels) == ("regression", 1)
    for row in stemformer.predict([dev["score"]], model=folder, precision="fp32")["predictions"]:
        with torch.inference_mode():
            theirs = model(**tokenizer(row["sentence"], truncation=True, return_tensors="pt")).logits.item()
        close(theirs, row["prediction"])


def test_token_pipeline_gives_the_same_tags(finetuned, dev):
    pipeline = transformers.pipeline("token-classification", model=str(finetuned("tag") / "final"), ignore_labels=[])
    sentences = read_tagged(dev["tag"], counts=Counter())
    rows = predict(finetuned, dev, "tag")["predictions"]
    compared = 0
    for sentence, row in zip(sentences, rows, strict=True):
        theirs = {item["start"]: item for item in pipeline(sentence.text)}
        if len(theirs) + 2 > 64:
            continue  # we read it in windows
        for (begin, _), tag, probability in zip(sentence.offsets, row["tags"], row["probabilities"], strict=True):
            assert theirs[begin]["entity"] == tag
            close(theirs[begin]["score"], probability)
            compared += 1
    assert compared > 50


def test_question_answering_gives_the_same_span(finetuned, dev):
    folder = str(finetuned("qa") / "final")
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    compared = 0
    questions = read_questions(dev["qa"], counts=Counter())
    for question, row in zip(questions, predict(finetuned, dev, "qa")["predictions"], strict=True):
        inputs = tokenizer(question.question, question.context, return_tensors="pt", return_offsets_mapping=True)
        offsets = inputs.pop("offset_mapping")[0].tolist()
        if len(offsets) > 64:
            continue
        with torch.inference_mode():
            out = model(**inputs)
        start, end = out.start_logits[0].numpy(), out.end_logits[0].numpy()
        inside = [i for i, part in enumerate(inputs.sequence_ids(0)) if part == 1]
        score, i, j = max((start[i] + end[j], i, j) for i in inside for j in inside if 0 <= j - i < 30)
        assert question.context[offsets[i][0] : offsets[j][1]] == row["text"]
        close(score, row["candidates"][0]["score"])
        compared += 1
    assert compared > 5


def test_multiple_choice_gives_the_same_probabilities(finetuned, dev):
    folder = str(finetuned("choice") / "final")
    model = transformers.AutoModelForMultipleChoice.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for row in predict(finetuned, dev, "choice")["predictions"]:
        if len(tokenizer(row["prompt"], row["choices"][0])["input_ids"]) > 64:
            continue
        pairs = tokenizer([row["prompt"]] * 2, row["choices"], padding=True, return_tensors="pt")
        with torch.inference_mode():
            theirs = model(**{k: v[None] for k, v in pairs.items()}).logits.softmax(-1)[0]
        close(theirs.numpy(), row["probabilities"])


@pytest.mark.parametrize("labels", [("no", "yes"), ("LABEL_0", "LABEL_1")], ids=["named", "default"])
def test_model_that_transformers_trained_predicts_here(tiny_bert, tmp_path, labels):
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    config = transformers.AutoConfig.from_pretrained(str(tiny_bert), num_labels=2, **names)
    torch.manual_seed(0)
    theirs = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tiny_bert))
    tokenizer.save_pretrained(tmp_path)
    text = "The old king sees the river."
    with torch.inference_mode():
        expected = theirs(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].numpy()
    assert ("id2label" in json.loads((tmp_path / "config.json").read_text())) == (labels[0] == "no")
    (found,) = stemformer.load(str(tmp_path)).predict([text])
    close(found.probabilities, expected)
    assert found.label == labels[expected.argmax()]
