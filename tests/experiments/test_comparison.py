"""Comparisons of starts on a tiny random BERT: which runs there are, what is kept of them, and going on after a kill."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import product

import numpy as np
import pytest
import torch

import stemformer
from stemformer.cli.app import main
from stemformer.commands import finetune as finetuning
from stemformer.config import from_toml
from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.errors import CheckpointError, ConfigError
from stemformer.experiments import comparison as comparing
from stemformer.experiments import comparison_trials as cells
from stemformer.huggingface.load import load_model
from stemformer.huggingface.save import save_model
from stemformer.io import read_jsonl
from stemformer.models.bert import BertConfig
from stemformer.models.model import make_model
from stemformer.progress import Silent
from stemformer.reports import comparison as compare_report

STARTS = ("pretrained", "random", "reembedded")


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    """A folder with model/, train.tsv (90 texts, one in three of class b), dev.tsv and tags.conll; not to be changed."""
    root = tmp_path_factory.mktemp("compare")
    tokenizer = load_tokenizer(tiny / "tok")
    sizes = BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    save_model(make_model(sizes, ["masked_lm"], generator=torch.Generator().manual_seed(5)), root / "model", tokenizer)
    rng = np.random.default_rng(0)
    words = {"a": ["old", "king", "bridge"], "b": ["green", "river", "winter"]}
    for name, number in (("train", 90), ("dev", 30)):
        labels = ["aab"[i % 3] for i in range(number)]
        texts = [" ".join(rng.choice(words[label], 4)) + f" {i}" for i, label in enumerate(labels)]
        rows = "".join(f"{text}\t{label}\n" for text, label in zip(texts, labels, strict=True))
        (root / f"{name}.tsv").write_text("text\tlabel\n" + rows)
    (root / "tags.conll").write_text("".join(f"the DET\n{w} NOUN\nsees VERB\n\n" for w in words["a"] * 8))
    return root


def small(files, out, task="classify", train="train.tsv", dev="dev.tsv", **options):
    """Compares in a folder, with few and short runs where nothing else is asked, and returns what was told."""
    usual = {"sizes": [9, 30], "num_seeds": 2, "steps": 4, "batch_size": 3, "precision": "fp32", "learning_rate": 1e-3}
    paths = {"model": str(files / "model"), "train": [str(files / train)], "dev": [str(files / dev)], "out": str(out)}
    return stemformer.compare(task, **paths, **{**usual, **options})


def cells_of(folder):
    """The lines of cells.jsonl by (start, size, seed)."""
    return {(line["start"], line["size"], line["seed"]): line for line in read_jsonl(folder / "cells.jsonl")}


def metrics_of(folder):
    return {cell: line["metrics"] for cell, line in cells_of(folder).items()}


@pytest.fixture(scope="module")
def not_drawn():
    """Neither measures the machine nor draws, which takes longer than the runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning, "matmul_rate", lambda *args, **kwargs: 1e11)
        patch.setattr(comparing, "write_compare_report", lambda *args, **kwargs: None)
        yield


@pytest.fixture(scope="module")
def whole(files, not_drawn, tmp_path_factory):
    """Folder of a comparison that was never interrupted, and what it told; not to be changed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, small(files, out)


@pytest.fixture
def compare(files, not_drawn, tmp_path):
    """The function `small` in tmp_path/out."""
    return lambda *words, **options: small(files, tmp_path / "out", *words, **options)


@pytest.fixture
def lines_of_cells(tmp_path):
    """A function to the lines of cells.jsonl in tmp_path/out."""
    return lambda: cells_of(tmp_path / "out")


class Stopping(Silent):
    """A progress at which a person presses Ctrl-C when so many runs are done."""

    def __init__(self, after):
        self.left = after

    def say(self, line):
        if line.startswith("run "):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt


# cells


def test_each_start_size_and_seed_is_run_once(whole):
    folder, told = whole
    assert set(cells_of(folder)) == set(product(STARTS, (9, 30), (0, 1)))
    assert told["runs"] == 12
    assert [row["records"] for row in told["table"]] == [9, 30]
    assert told["what pre-training is worth"]


def test_nothing_of_a_run_is_kept_but_its_log(compare, tmp_path):
    compare(num_seeds=1, sizes=[9], initializations=["random"])
    kept = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert kept == {"cells.jsonl", "cells/random-9-seed0/log.jsonl", "compare.json", "config.toml"}


def test_each_size_has_the_same_number_of_steps(compare, lines_of_cells):
    compare(num_seeds=1, steps=None, sizes=[3, 9], initializations=["random"])
    assert {line["steps"] for line in lines_of_cells().values()} == {9}  # three passes over 9 records in steps of 3


def test_with_epochs_each_size_has_its_own_number_of_steps(compare, lines_of_cells):
    compare(num_seeds=1, steps=None, epochs=2, sizes=[3, 9], initializations=["random"])
    assert {size: line["steps"] for (_, size, _), line in lines_of_cells().items()} == {3: 2, 9: 6}


def test_random_starts_with_a_higher_rate_unless_one_is_given(compare, tmp_path):
    def peaks():
        return from_toml(cells.CompareConfig, (tmp_path / "out" / "config.toml").read_text()).rates

    compare(num_seeds=1, sizes=[9], steps=1)
    assert peaks() == pytest.approx({"pretrained": 1e-3, "random": 1e-2, "reembedded": 1e-3})
    compare(num_seeds=1, sizes=[9], steps=1, learning_rates=["random=2e-3"], overwrite=True)
    assert peaks() == pytest.approx({"pretrained": 1e-3, "random": 2e-3, "reembedded": 1e-3})


def test_starts_differ_in_what_is_drawn(compare, files, monkeypatch):
    seen = {}
    before = cells.open_model

    def open_model(config, task, source, **options):
        model, *rest = before(config, task, source, **options)
        seen[config.reinitialize] = {name: tensor.clone() for name, tensor in model.body.state_dict().items()}
        return model, *rest

    monkeypatch.setattr(cells, "open_model", open_model)
    compare(num_seeds=1, sizes=[9], steps=1)
    own = load_model(files / "model", []).body.state_dict()
    word = [name for name in own if "word" in name]
    assert word and all(torch.equal(own[name], seen["nothing"][name]) for name in own)
    assert all(torch.equal(own[name], seen["embeddings"][name]) == (name not in word) for name in own)
    matrices = [name for name in own if own[name].ndim == 2 and "position" not in name]  # sinusoids are not drawn
    assert not any(torch.equal(own[name], seen["all"][name]) for name in matrices)


@pytest.mark.parametrize("seed", [0, 1])
def test_starts_of_a_seed_see_the_same_records_and_smaller_parts_lie_in_larger(compare, monkeypatch, seed):
    seen = {}
    before = cells._run_cell

    def run_cell(cell, asked, table, examples, *rest):
        seen[cell.start, cell.size] = set(examples.records.tolist())
        assert len(examples) == cell.size
        return before(cell, asked, table, examples, *rest)

    monkeypatch.setattr(cells, "_run_cell", run_cell)
    compare(num_seeds=1, seed=seed, sizes=[9, 30, 1], initializations=["pretrained", "random"], steps=1)
    for size in (9, 30, 90):
        assert seen["pretrained", size] == seen["random", size]
    assert seen["random", 9] < seen["random", 30] < seen["random", 90]
    assert sum(i % 3 == 2 for i in seen["random", 9]) == 3  # the share of class b


def test_tags_are_compared_too(compare):
    told = compare("tag", train="tags.conll", dev="tags.conll", sizes=[6, 1], steps=2)
    assert told["metric"] == "accuracy"
    assert told["without reading"] == pytest.approx(33.33)


# what is told


def test_json_holds_all_runs_with_mean_and_spread(whole):
    folder, _ = whole
    told = json.loads((folder / "compare.json").read_text())
    assert len(told["cells"]) == 12
    assert all((folder / cell["log"]).is_file() for cell in told["cells"])
    row = told["summary"]["random"][1]
    each = [100 * c["metrics"]["accuracy"] for c in told["cells"] if c["start"] == "random" and c["size"] == 30]
    assert row["each"] == pytest.approx(each)
    assert row["mean"] == pytest.approx(np.mean(each))
    assert row["spread"] == pytest.approx(np.std(each, ddof=1))
    assert told["baseline"] == pytest.approx(66.67)


def test_one_seed_claims_nothing(compare):
    (sentence,) = compare(num_seeds=1)["what pre-training is worth"]
    assert sentence.startswith("nothing is claimed")


def test_command_prints_table_and_sentences_and_draws_a_page(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(comparing, "write_compare_report", compare_report.write_compare_report)
    monkeypatch.setattr(finetuning, "matmul_rate", lambda *args, **kwargs: 1e11)
    words = ["classify", "--model", files / "model", "--train", files / "train.tsv", "--dev", files / "dev.tsv"]
    asked = ["--num-seeds", "2", "--sizes", "0.1, 30", "--initializations", "pretrained,random", "--steps", "4", "--batch-size", "3"]
    assert main(["compare", *map(str, words), *asked, "--out", str(tmp_path / "out"), "-q"]) == 0
    printed = capsys.readouterr().out
    assert "pretrained - random" in printed and "±" in printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") == 3
    assert not re.findall(r'(?:src|href)="(?!#)', page)  # needs nothing but itself
    for sentence in json.loads((tmp_path / "out" / "compare.json").read_text())["sentences"]:
        assert sentence in printed and sentence[1:] in page
    for name in ("compare.svg", "compare.png"):
        assert (tmp_path / "out" / name).stat().st_size > 1000


# going on


def test_finished_runs_are_kept_and_the_others_done(compare, lines_of_cells, whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        compare(progress=Stopping(after=5))
    before = lines_of_cells()
    assert len(before) == 5
    compare(resume=True)
    assert {key: lines_of_cells()[key] for key in before} == before  # their seconds too: they were not run again
    assert metrics_of(tmp_path / "out") == metrics_of(whole[0])


@pytest.mark.slow
def test_a_killed_comparison_goes_on(compare, lines_of_cells, whole, files, tmp_path):
    words = [
        "compare",
        "classify",
        "--model",
        files / "model",
        "--train",
        files / "train.tsv",
        "--dev",
        files / "dev.tsv",
    ]
    asked = ["--num-seeds", "2", "--sizes", "9,30", "--steps", "4", "--batch-size", "3", "--learning-rate", "1e-3"]
    asked += ["--precision", "fp32", "--threads", "2"]
    code = "import sys; from stemformer.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *map(str, words), *asked, "--out", str(tmp_path / "out"), "-q"]
    process = subprocess.Popen(command)
    while len(read_jsonl(tmp_path / "out" / "cells.jsonl")) < 2 and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = lines_of_cells()
    compare(resume=True)
    assert len(lines_of_cells()) == 12
    assert {key: lines_of_cells()[key] for key in before} == before
    assert metrics_of(tmp_path / "out") == metrics_of(whole[0])


def test_seeds_sizes_and_starts_may_be_added(compare, lines_of_cells):
    compare(num_seeds=1, sizes=[9], initializations=["random"])
    first = lines_of_cells()
    told = compare(num_seeds=2, sizes=[9, 30], resume=True)
    assert told["runs"] == 12
    assert lines_of_cells()["random", 9, 0] == first["random", 9, 0]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"steps": 5}, "budget.steps was 4, is now 5"),
        ({"learning_rates": ["random=5e-3"]}, "rate of random was 0.01, is now 0.005"),
        ({"dev": "train.tsv"}, "finetune.dev was"),
        ({"batch_size": 4}, "batch.size was 3, is now 4"),
    ],
)
def test_a_comparison_does_not_go_on_with_other_settings(compare, options, told):
    compare(num_seeds=1, sizes=[9], initializations=["random"])
    with pytest.raises(CheckpointError, match=told):
        compare(**{"num_seeds": 1, "sizes": [9], "initializations": ["random"], "resume": True, **options})


def test_a_comparison_does_not_go_on_with_other_data(compare, files, tmp_path):
    other = tmp_path / "train.tsv"
    other.write_text((files / "train.tsv").read_text())
    options = {"num_seeds": 1, "sizes": [9], "initializations": ["random"], "train": other}
    compare(**options)
    other.write_text(other.read_text().replace("king", "bridge", 1))
    with pytest.raises(CheckpointError, match="data was"):
        compare(**options, resume=True)


def test_another_folder_is_not_taken_for_a_comparison(compare, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds no comparison to resume"):
        compare(resume=True)
    with pytest.raises(ConfigError, match="is not empty"):
        compare()
    with pytest.raises(ConfigError, match="holds nothing that stemformer made"):
        compare(overwrite=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


# bad input


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"initializations": ["pretrained", "randm"]}, r"--initializations randm: expected some of .* \(did you mean 'random'\?\)"),
        ({"initializations": ["random", "random"]}, "expected each of them once"),
        ({"initializations": []}, "at least one"),
        ({"sizes": [9, 91]}, "--sizes 91: The training data has 90 records"),
        ({"num_seeds": 0}, "--num-seeds 0: expected at least 1"),
        ({"learning_rates": ["random"]}, "--learning-rates random: expected START=NUMBER"),
        ({"learning_rates": ["random=fast"]}, "--learning-rates random=fast: expected START=NUMBER"),
        ({"learning_rates": ["other=1e-3"]}, "the start one of pretrained, random, reembedded"),
        ({"settings": ["reinitialize=all"]}, "said with --initializations"),
        ({"settings": ["evaluation.patience=2"]}, "keep no checkpoint"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(compare, tmp_path, options, told):
    with pytest.raises(ConfigError, match=told):
        compare(**options)
    assert not (tmp_path / "out").exists()
