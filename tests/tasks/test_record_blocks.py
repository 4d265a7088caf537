"""Labelled files in blocks: read twice at most, with the columns of the training data, and not if they change."""

import json
from collections import Counter

import pytest

from stemformer.data.labelled import table
from stemformer.errors import DataError
from stemformer.progress import Silent
from stemformer.tasks import record_blocks
from stemformer.tasks.dataset import read_labelled
from stemformer.tasks.record_blocks import open_records
from stemformer.tasks.task import TaskConfig

FLAGS = TaskConfig("classify", text=("text",), label=("toxic", "rude", "threat"))


def write(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [str(path)]


def opened(files, like, *, name="classify", counts=None, **options):
    config = TaskConfig(name, kind=like.kind)
    how = {"needs_answer": True} | options
    return open_records(config, files, counts=Counter() if counts is None else counts, like=like, **how)


@pytest.fixture
def reads(monkeypatch):
    """The names of the files that were read, each time one was."""
    names, read = [], table._read_source
    monkeypatch.setattr(table, "_read_source", lambda source, *args: names.append(source) or read(source, *args))
    return names


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(record_blocks, "BLOCK_SIZE", 2)


def test_file_is_read_once_to_check_it_and_once_for_use(tmp_path, reads):
    files = write(tmp_path / "a.csv", ["text,label", *(f"text {i},{i % 2}" for i in range(7))])
    checked = []
    blocks, _ = opened(files, TaskConfig(text=("text",), label="label"), check=checked.extend)
    assert len(reads) == 1
    assert [r for block in blocks for r in block] == checked
    assert len(reads) == 2
    assert (blocks.num_records, blocks.labels) == (7, {"0": 4, "1": 3})


def test_columns_and_plus_of_later_rows_count(tmp_path, reads):
    rows = [{"text": "a", "label": "-"}] * 5 + [{"text": "b", "label": "+", "late": 1}]
    counts = Counter()
    files = write(tmp_path / "a.jsonl", map(json.dumps, rows))
    blocks, config = opened(files, TaskConfig(text=("text",), label="label"), counts=counts)
    assert (config.text, config.label) == (("text",), "label")
    assert (blocks.num_records, blocks.labels, counts) == (6, {"-": 5, "+": 1}, {})
    assert [tuple(r.row) for block in blocks for r in block] == [("text", "label", "late")] * 6


def test_minus_without_a_plus_is_no_label(tmp_path, reads):
    counts = Counter()
    files = write(tmp_path / "a.csv", ["text,label", "a,-", "b,yes", "c,-", "d,no"])
    blocks, _ = opened(files, TaskConfig(text=("text",), label="label"), counts=counts)
    assert (blocks.num_records, counts, len(reads)) == (2, {"no gold label": 2}, 1)


@pytest.mark.parametrize("change", ["longer", "other"])
def test_file_that_changes_after_its_check_is_refused(tmp_path, change):
    files = write(tmp_path / "a.csv", ["text,label", "a,0", "b,1"])
    blocks, _ = opened(files, TaskConfig(text=("text",), label="label"))
    if change == "longer":
        write(tmp_path / "a.csv", ["text,label", "a,0", "b,1", "c,1"])
    else:
        (tmp_path / "b.csv").write_text("text,label\na,1\nb,0\n")
        (tmp_path / "b.csv").replace(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"a\.csv: The file changed while it was read"):
        list(blocks)


def test_file_that_changes_while_it_is_used_is_refused(tmp_path):
    files = write(tmp_path / "a.csv", ["text,label", *["a,0", "b,1"] * 4])
    blocks, _ = opened(files, TaskConfig(text=("text",), label="label"))
    with pytest.raises(DataError, match=r"a\.csv: The file changed while it was read"):
        for _ in blocks:
            write(tmp_path / "a.csv", ["text,label", *["a,0", "b,1"] * 5])


def test_label_columns_in_another_order_stay_as_they_are(tmp_path):
    files = write(tmp_path / "a.csv", ["threat,Rude,text,id,toxic", "0,1,you,1,1", "1,0,me,2,0"])
    blocks, config = opened(files, FLAGS)
    assert config.label == ("toxic", "Rude", "threat")
    assert [r.label for block in blocks for r in block] == [("toxic", "Rude"), ("threat",)]


def test_label_column_that_is_missing_is_named_and_not_guessed(tmp_path):
    lines = ["text,toxic,rude,label", "you,1,1,x", "me,0,1,y", "us,1,0,x", "it,0,0,y"]
    files = write(tmp_path / "a.csv", lines)
    with pytest.raises(DataError, match="Expected the label columns 'toxic', 'rude', 'threat' of the training data"):
        opened(files, FLAGS)
    blocks, _ = opened(files, FLAGS, needs_answer=False)
    assert blocks.num_records == 4


def test_dev_data_has_the_label_columns_of_the_training_data(tmp_path):
    train = write(tmp_path / "a.csv", ["text,toxic,rude", "you,1,1", "me,0,1", "us,1,0", "it,0,0"])
    dev = write(tmp_path / "b.csv", ["rude,toxic,text", "1,0,they", "0,1,she"])
    config = TaskConfig("classify", text=("text",), label=("toxic", "rude"))
    data = read_labelled(config, Silent(), train=train, dev=dev, dev_fraction=0.1, seed=0)
    assert [r.label for r in data.dev] == [("rude",), ("toxic",)]
