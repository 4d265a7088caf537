"""Benchmark tables, reading of task files, and submission files."""

import hashlib
import json
import lzma
from collections import Counter
from dataclasses import astuple

import pytest

from stemformer.errors import DataError
from stemformer.evaluation import benchmarks
from stemformer.evaluation.benchmarks import (
    BENCHMARKS,
    GLUE,
    PUBLISHED,
    find_split,
    make_records,
    published_results,
    read_rows,
    submission_text,
)


def write(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.tsv").write_text(text, encoding="utf-8")
    return str(folder / "train.tsv")


def test_tables_are_unchanged():
    tasks = [[name, *astuple(task)] for name, task in BENCHMARKS.items()]
    text = json.dumps([list(GLUE), tasks, [astuple(published) for published in PUBLISHED]])
    digest = "b15272f0b2a526c757dc9a9f8a25b2d902f5a8942ccf9f8f3494357d672935c1"  # of the tables when they were Python
    assert hashlib.sha256(text.encode()).hexdigest() == digest


def test_tasks_have_the_official_metrics():
    assert {name: task.metrics for name, task in BENCHMARKS.items()} == {
        "CoLA": ("matthews",),
        "SST-2": ("accuracy",),
        "MRPC": ("accuracy", "f1"),
        "QQP": ("accuracy", "f1"),
        "STS-B": ("pearson", "spearman"),
        "MNLI": ("accuracy", "accuracy_mismatched"),
        "QNLI": ("accuracy",),
        "RTE": ("accuracy",),
        "WNLI": ("accuracy",),
        "SQuAD 1.1": ("exact_match", "f1"),
        "SQuAD 2.0": ("exact_match", "f1"),
        "SWAG": ("accuracy",),
    }


@pytest.mark.parametrize(
    ("name", "batch_size", "epochs", "rates"),
    [
        ("RTE", 32, 3, (5e-5, 4e-5, 3e-5, 2e-5)),
        ("SQuAD 1.1", 32, 3, (5e-5,)),
        ("SQuAD 2.0", 48, 2, (5e-5,)),
        ("SWAG", 16, 3, (2e-5,)),
    ],
)
def test_hyper_parameters_are_those_of_the_bert_paper(name, batch_size, epochs, rates):
    task = BENCHMARKS[name]
    assert (task.batch_size, task.epochs, task.learning_rates) == (batch_size, epochs, rates)


def test_published_results_use_official_metrics():
    for published in PUBLISHED:
        for name, values in published.metrics.items():
            assert set(values) <= set(BENCHMARKS[name].metrics), (published.system, name)
            assert all(0 <= value <= 100 for value in values.values())


@pytest.mark.parametrize(
    ("system", "name", "expected"),
    [
        ("BERT-Tiny", "MRPC", {"f1": 81.1, "accuracy": 71.1}),
        ("BERT-Medium", "MNLI", {"accuracy": 80.0, "accuracy_mismatched": 79.1}),
        ("BERT-Small", "WNLI", {"accuracy": 62.3}),
        ("BERT-Base", "MNLI", {"accuracy": 84.6, "accuracy_mismatched": 83.4}),
        ("BERT-Base", "QQP", {"f1": 71.2}),
        ("BERT-Large", "CoLA", {"matthews": 60.5}),
        ("BERT-Large", "STS-B", {"spearman": 86.5}),
    ],
)
def test_published_row_has_its_values_in_the_right_columns(system, name, expected):
    assert [p.metrics[name] for p in published_results(name) if p.system == system] == [expected]


def test_bert_paper_has_no_result_for_wnli():
    assert not {"BERT-Base", "BERT-Large"} & {p.system for p in published_results("WNLI")}


def test_find_split_accepts_a_compressed_file(tmp_path):
    (tmp_path / "RTE").mkdir()
    (tmp_path / "RTE" / "train.tsv.xz").write_bytes(lzma.compress(b"index\tsentence1\tsentence2\tlabel\n"))
    assert find_split(GLUE["RTE"], str(tmp_path), "train.tsv") == str(tmp_path / "RTE" / "train.tsv.xz")
    assert find_split(GLUE["RTE"], str(tmp_path), "dev.tsv") is None


@pytest.mark.parametrize(
    ("name", "file", "expected"),
    [
        ("CoLA", "train.tsv", "hub:nyu-mll/glue:cola:train"),
        ("STS-B", "dev.tsv", "hub:nyu-mll/glue:stsb:validation"),
        ("MNLI", "dev_mismatched.tsv", "hub:nyu-mll/glue:mnli:validation_mismatched"),
        ("MNLI", "test_matched.tsv", "hub:nyu-mll/glue:mnli:test_matched"),
        ("MNLI", "../diagnostic/diagnostic.tsv", "hub:nyu-mll/glue:ax:test"),
    ],
)
def test_find_split_returns_hub_ids(name, file, expected):
    assert find_split(GLUE[name], "hub:nyu-mll/glue", file) == expected


def test_cola_has_no_header(tmp_path):
    source = write(tmp_path, "gj04\t1\t\tThe cat sat.\ngj04\t0\t*\tCat the sat.\n")
    rows = read_rows(GLUE["CoLA"], source, counts=Counter())
    assert rows == [{"sentence": "The cat sat.", "label": "1"}, {"sentence": "Cat the sat.", "label": "0"}]


def test_mrpc_accepts_a_byte_order_mark_and_keeps_quotes(tmp_path):
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    source = write(tmp_path, header + '1\t7\t8\t"He left ," she said .\tHe left .\r\n')
    (row,) = read_rows(GLUE["MRPC"], source, counts=Counter())
    assert row == {"#1 String": '"He left ," she said .', "#2 String": "He left .", "Quality": "1"}


def test_broken_rows_are_counted_and_skipped(tmp_path):
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    source = write(tmp_path, header + "1\t2\t3\tWhy?\tHow?\t0\n2\t3\t4\tWhat is\n it?\tWhat?\t1\n")
    counts = Counter()
    assert len(read_rows(GLUE["QQP"], source, counts=counts)) == 1
    assert counts == {"damaged rows left out": 2}


def test_broken_test_row_is_refused(tmp_path):
    source = write(tmp_path, "index\tsentence\n0\tA cat.\n1\n")
    with pytest.raises(DataError, match=r"train.tsv:3: Expected 2 fields, got 1"):
        read_rows(GLUE["SST-2"], source, counts=Counter(), is_test=True)


def test_test_rows_with_an_empty_text_are_kept(tmp_path):
    source = write(tmp_path, "id\tquestion1\tquestion2\n0\t\tWhy?\n1\tHow?\tWhy?\n")
    task = GLUE["QQP"]
    records = make_records(task, read_rows(task, source, counts=Counter(), is_test=True))
    assert [(r.texts, r.label) for r in records] == [(("", "Why?"), None), (("How?", "Why?"), None)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index\tsentence1\tlabel\n0\tA\tentailment\n", "RTE needs column 'sentence2'"),
        (
            "index\tsentence1\tsentence2\tlabel\n0\tA\tB\tneutral\n",
            "Unknown label 'neutral' for RTE. Expected one of entailment, not_ent",
        ),
        ("", "The file is blank"),
    ],
)
def test_wrong_file_is_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_rows(GLUE["RTE"], write(tmp_path, text), counts=Counter())


def test_score_that_is_not_a_number_is_refused(tmp_path):
    source = write(tmp_path, "index\tsentence1\tsentence2\tscore\n0\tA\tB\t\n")
    with pytest.raises(DataError, match=r"train.tsv:2: Label '' is not a number"):
        read_rows(GLUE["STS-B"], source, counts=Counter())


def test_hub_class_indices_become_leaderboard_labels(monkeypatch):
    row = {"premise": "It rains.", "hypothesis": "It is wet.", "label": 0, "idx": 5}
    monkeypatch.setattr(benchmarks, "hub_rows", lambda source: iter([(f"{source}:1", row)]))
    rows = read_rows(GLUE["MNLI"], "hub:nyu-mll/glue:mnli:train", counts=Counter())
    assert rows == [{"sentence1": "It rains.", "sentence2": "It is wet.", "gold_label": "entailment"}]
    tests = read_rows(GLUE["MNLI"], "hub:nyu-mll/glue:ax:test", counts=Counter(), is_test=True)
    assert tests == [{"sentence1": "It rains.", "sentence2": "It is wet."}]


def test_submission_indices_start_at_zero():
    assert submission_text(GLUE["RTE"], ["not_entailment", "entailment"]) == (
        "index\tprediction\n0\tnot_entailment\n1\tentailment\n"
    )


def test_submission_clips_scores_to_their_range():
    assert submission_text(GLUE["STS-B"], [-0.2, 2.34567, 5.1]) == "index\tprediction\n0\t0.000\n1\t2.346\n2\t5.000\n"
