"""Development records that are also in the training data are counted, for every task."""

import json
from collections import Counter

import pytest

from stemformer.data.labelled.splits import train_dev_split
from stemformer.data.labelled.text_classification import TextExample
from stemformer.progress import Silent
from stemformer.tasks.dataset import _split_dev, read_labelled
from stemformer.tasks.dataset_notes import text_keys
from stemformer.tasks.task import TaskConfig

TEXTS = ["the old king", "a green river", "the quiet garden", "who sees a king", "where is the river", "a café"]


def squad(texts):
    questions = [{"id": str(i), "question": "Who?", "answers": [{"text": t[:3], "answer_start": 0}]} for i, t in texts]
    paragraphs = [{"context": t, "qas": [q]} for (_, t), q in zip(texts, questions, strict=True)]
    return json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]})


FILES = {
    "classify": ("csv", lambda texts: "text,label\n" + "".join(f"{t},{'ab'[i % 2]}\n" for i, t in texts)),
    "pair": (
        "jsonl",
        lambda texts: "\n".join(
            json.dumps({"sentence1": t, "sentence2": "same", "label": "ab"[i % 2]}) for i, t in texts
        ),
    ),
    "tag": (
        "conll",
        lambda texts: "\n\n".join("\n".join(f"{w}\t{'O' if i % 2 else 'B-X'}" for w in t.split()) for i, t in texts),
    ),
    "qa": ("json", squad),
    "choice": (
        "jsonl",
        lambda texts: "\n".join(
            json.dumps({"prompt": t, "choice1": "yes", "choice2": "no", "label": "AB"[i % 2]}) for i, t in texts
        ),
    ),
}


def notes_on_overlap(folder, task, train, dev):
    suffix, write = FILES[task]
    for name, texts in (("train", train), ("dev", dev)):
        (folder / f"{name}.{suffix}").write_text(write(list(enumerate(texts))) + "\n", encoding="utf-8")
    files = {name: [str(folder / f"{name}.{suffix}")] for name in ("train", "dev")}
    data = read_labelled(TaskConfig(task), Silent(), **files, dev_fraction=0.1, seed=0)
    return [note for note in data.notes if "also in the training data" in note]


@pytest.mark.parametrize("task", FILES)
def test_dev_records_in_the_training_data_are_counted(tmp_path, task):
    spaced = [TEXTS[0], TEXTS[5].replace("é", "e\u0301"), "the king is new", "another river"]
    if task in ("classify", "pair"):
        spaced[0] = "the  old king "
    [note] = notes_on_overlap(tmp_path, task, TEXTS, spaced)
    assert note.startswith("dev data: 2 of 4 records (50.0%) are also in the training data")


@pytest.mark.parametrize("task", FILES)
def test_nothing_is_said_without_an_overlap(tmp_path, task):
    assert notes_on_overlap(tmp_path, task, TEXTS[:3], [text.upper() for text in TEXTS]) == []


def test_question_about_another_passage_is_another_record(tmp_path):
    assert notes_on_overlap(tmp_path, "qa", TEXTS[:3], TEXTS[3:]) == []


@pytest.mark.parametrize("task", FILES)
def test_split_of_our_own_keeps_equal_texts_together(tmp_path, task):
    suffix, write = FILES[task]
    file = tmp_path / f"train.{suffix}"
    # Each of 30 texts three times, with the same label.
    texts = [(i % 10, f"the king number {i % 30} sees") for i in range(90)]
    file.write_text(write(texts) + "\n", encoding="utf-8")
    for seed in range(3):
        data = read_labelled(TaskConfig(task), Silent(), train=[str(file)], dev_fraction=0.2, seed=seed)
        sides = [Counter(text_keys(data.task, records)) for records in (data.train, data.dev)]
        assert sides[0] and sides[1] and not sides[0].keys() & sides[1].keys()
        assert sum(side.total() for side in sides) == 90 and {*sides[0].values(), *sides[1].values()} == {3}
        assert not any("Remove them" in note for note in data.notes)


def test_split_without_equal_texts_is_that_of_the_records():
    records = [TextExample((f"text {i}",), "ab"[i % 2], {}, "here") for i in range(40)]
    train, dev, _ = _split_dev(TaskConfig("classify"), records, share=0.1, seed=1)
    expected = train_dev_split([record.label for record in records], share=0.1, seed=1)
    assert ([records.index(r) for r in train], [records.index(r) for r in dev]) == expected
