"""Fine-tuning on labelled files in layouts of their own: columns of 0 and 1, folders, standard input, several tasks."""

import io
import json
import sys

import pytest

import stemformer
from stemformer.errors import ConfigError, DataError

TEXTS = ["the king sees a river.", "the child finds the garden.", "a king and a child.", "the river."] * 4


@pytest.fixture
def finetune(tiny_bert, tmp_path):
    def run(train, **options):
        options = {"steps": 1, "precision": "fp32", "model": str(tiny_bert), "out": str(tmp_path / "run")} | options
        return stemformer.finetune("classify", train=[str(train)], dev=[str(train)], **options)

    return run


def test_columns_of_0_and_1_are_labels_of_training_and_evaluation(finetune, tmp_path):
    rows = [f"{text},{int('king' in text)},{int('child' in text)}" for text in TEXTS]
    (tmp_path / "a.csv").write_text("\n".join(["comment_text,has_king,has_child", *rows]) + "\n")
    result = finetune(tmp_path / "a.csv", label_column=["has_king", "has_child"])
    model = stemformer.load(result["model"])
    assert model.task.config.kind == "labels" and model.task.labels == ("has_child", "has_king")
    found = stemformer.evaluate([str(tmp_path / "a.csv")], model=model)
    assert found["records"] == 16 and found["main_metric"] == "micro_f1"


def test_several_label_columns_are_refused_for_other_kinds(finetune, tmp_path):
    with pytest.raises(ConfigError, match="label names 2 columns: only classify and pair take several"):
        finetune(tmp_path / "a.csv", label_column=["a", "b"], kind="score")


def test_folders_of_texts_are_classes(finetune, tmp_path):
    for number, text in enumerate(TEXTS):
        folder = tmp_path / "in" / ("unsup" if number < 4 else "king" if "king" in text else "other")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.txt").write_text(text)
    result = finetune(tmp_path / "in")
    assert result["train"] == 12 and stemformer.load(result["model"]).task.labels == ("king", "other")
    assert "training data: no label: 4" in result["notes"]


def test_training_and_test_folders_of_the_same_classes_are_not_mixed(finetune, tmp_path):
    for split in ("train", "test"):
        for label in ("pos", "neg"):
            (tmp_path / "imdb" / split / label).mkdir(parents=True)
            (tmp_path / "imdb" / split / label / "1.txt").write_text(f"the {label} king")
    with pytest.raises(DataError, match=r"of one name lie in several folders .*Pass the folder of one set"):
        finetune(tmp_path / "imdb")


def test_model_of_one_label_refuses_several_label_columns(finetune, tmp_path):
    rows = [f"{text},{int('king' in text)},{int('child' in text)}" for text in TEXTS]
    (tmp_path / "a.csv").write_text("\n".join(["text,has_king,has_child", *rows]) + "\n")
    model = finetune(tmp_path / "a.csv", label_column="has_king")["model"]
    with pytest.raises(ConfigError, match="names 2 columns, but the model predicts one label"):
        stemformer.evaluate([str(tmp_path / "a.csv")], model=model, label_column=["has_king", "has_child"])


def test_standard_input_is_training_data(finetune, monkeypatch):
    lines = "".join(json.dumps({"text": text, "label": "king" in text}) + "\n" for text in TEXTS)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert finetune("-")["train"] == 16


def test_a_file_with_data_of_several_tasks_is_read_for_the_one_that_is_named(finetune, tmp_path):
    rows = [{"text": text, "tokens": text.split(), "label": int("king" in text)} for text in TEXTS]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert finetune(tmp_path / "a.jsonl")["train"] == 16
    (tmp_path / "b.jsonl").write_text((tmp_path / "a.jsonl").read_text().replace('"text"', '"line"'))
    with pytest.raises(DataError, match=r"Expected a text and a label .*--text-column and --label-column.*'tag'"):
        finetune(tmp_path / "b.jsonl", out=str(tmp_path / "other"))
