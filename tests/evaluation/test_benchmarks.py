"""The benchmarks as data: what is scored, how files are read, and what the leaderboard is told."""

import lzma
from collections import Counter

import pytest

from stemformer.errors import DataError
from stemformer.evaluation import benchmarks as glue
from stemformer.evaluation.benchmarks import (
    BENCHMARKS,
    GLUE,
    PUBLISHED,
    find_split,
    make_records,
    published_figures,
    read_rows,
    submission_text,
)


def write(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.tsv").write_text(text, encoding="utf-8")
    return str(folder / "train.tsv")


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


def test_published_figures_are_of_official_metrics():
    for published in PUBLISHED:
        for name, figures in published.figures.items():
            assert set(figures) <= set(BENCHMARKS[name].metrics), (published.system, name)
            assert all(0 <= figure <= 100 for figure in figures.values())


@pytest.mark.parametrize(
    ("system", "name", "figures"),
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
def test_published_row_stands_in_the_right_columns(system, name, figures):
    assert [p.figures[name] for p in published_figures(name) if p.system == system] == [figures]


def test_bert_paper_has_no_figure_for_wnli():
    assert not {"BERT-Base", "BERT-Large"} & {p.system for p in published_figures("WNLI")}


def test_find_split_takes_a_compressed_file(tmp_path):
    (tmp_path / "RTE").mkdir()
    (tmp_path / "RTE" / "train.tsv.xz").write_bytes(lzma.compress(b"index\tsentence1\tsentence2\tlabel\n"))
    assert find_split(GLUE["RTE"], str(tmp_path), "train.tsv") == str(tmp_path / "RTE" / "train.tsv.xz")
    assert find_split(GLUE["RTE"], str(tmp_path), "dev.tsv") is None


@pytest.mark.parametrize(
    ("name", "file", "found"),
    [
        ("CoLA", "train.tsv", "hub:nyu-mll/glue:cola:train"),
        ("STS-B", "dev.tsv", "hub:nyu-mll/glue:stsb:validation"),
        ("MNLI", "dev_mismatched.tsv", "hub:nyu-mll/glue:mnli:validation_mismatched"),
        ("MNLI", "test_matched.tsv", "hub:nyu-mll/glue:mnli:test_matched"),
        ("MNLI", "../diagnostic/diagnostic.tsv", "hub:nyu-mll/glue:ax:test"),
    ],
)
def test_find_split_names_parts_of_the_hub(name, file, found):
    assert find_split(GLUE[name], "hub:nyu-mll/glue", file) == found


def test_cola_has_no_header(tmp_path):
    source = write(tmp_path, "gj04\t1\t\tThe cat sat.\ngj04\t0\t*\tCat the sat.\n")
    rows = read_rows(GLUE["CoLA"], source, counted=Counter())
    assert rows == [{"sentence": "The cat sat.", "label": "1"}, {"sentence": "Cat the sat.", "label": "0"}]


def test_mrpc_may_begin_with_a_byte_order_mark_and_quotes_are_text(tmp_path):
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    source = write(tmp_path, header + '1\t7\t8\t"He left ," she said .\tHe left .\r\n')
    (row,) = read_rows(GLUE["MRPC"], source, counted=Counter())
    assert row == {"#1 String": '"He left ," she said .', "#2 String": "He left .", "Quality": "1"}


def test_rows_cut_in_two_are_counted_and_left_out(tmp_path):
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    source = write(tmp_path, header + "1\t2\t3\tWhy?\tHow?\t0\n2\t3\t4\tWhat is\n it?\tWhat?\t1\n")
    counted = Counter()
    assert len(read_rows(GLUE["QQP"], source, counted=counted)) == 1
    assert counted == {"damaged rows left out": 2}


def test_damaged_row_of_a_test_is_refused(tmp_path):
    source = write(tmp_path, "index\tsentence\n0\tA cat.\n1\n")
    with pytest.raises(DataError, match=r"train.tsv:3: 1 fields, expected 2"):
        read_rows(GLUE["SST-2"], source, counted=Counter(), is_test=True)


def test_test_rows_keep_their_number_when_a_text_is_empty(tmp_path):
    source = write(tmp_path, "id\tquestion1\tquestion2\n0\t\tWhy?\n1\tHow?\tWhy?\n")
    task = GLUE["QQP"]
    records = make_records(task, read_rows(task, source, counted=Counter(), is_test=True))
    assert [(r.texts, r.label) for r in records] == [(("", "Why?"), None), (("How?", "Why?"), None)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("index\tsentence1\tlabel\n0\tA\tentailment\n", "no column 'sentence2' for RTE"),
        (
            "index\tsentence1\tsentence2\tlabel\n0\tA\tB\tneutral\n",
            "the answer is 'neutral'; RTE has entailment, not_ent",
        ),
        ("", "there is no text in it"),
    ],
)
def test_wrong_file_is_refused(tmp_path, text, told):
    with pytest.raises(DataError, match=told):
        read_rows(GLUE["RTE"], write(tmp_path, text), counted=Counter())


def test_score_that_is_no_number_is_refused(tmp_path):
    source = write(tmp_path, "index\tsentence1\tsentence2\tscore\n0\tA\tB\t\n")
    with pytest.raises(DataError, match=r"train.tsv:2: the answer is '', expected a number"):
        read_rows(GLUE["STS-B"], source, counted=Counter())


def test_numbers_of_the_hub_become_the_words_of_the_leaderboard(monkeypatch):
    row = {"premise": "It rains.", "hypothesis": "It is wet.", "label": 0, "idx": 5}
    monkeypatch.setattr(glue, "hub_rows", lambda source: iter([(f"{source}:1", row)]))
    rows = read_rows(GLUE["MNLI"], "hub:nyu-mll/glue:mnli:train", counted=Counter())
    assert rows == [{"sentence1": "It rains.", "sentence2": "It is wet.", "gold_label": "entailment"}]
    tests = read_rows(GLUE["MNLI"], "hub:nyu-mll/glue:ax:test", counted=Counter(), is_test=True)
    assert tests == [{"sentence1": "It rains.", "sentence2": "It is wet."}]


def test_submission_counts_from_zero_and_keeps_the_words():
    assert submission_text(GLUE["RTE"], ["not_entailment", "entailment"]) == (
        "index\tprediction\n0\tnot_entailment\n1\tentailment\n"
    )


def test_submission_keeps_scores_within_their_range():
    assert submission_text(GLUE["STS-B"], [-0.2, 2.34567, 5.1]) == "index\tprediction\n0\t0.000\n1\t2.346\n2\t5.000\n"
