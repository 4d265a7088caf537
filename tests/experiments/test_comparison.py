"""Comparisons of initializations on a tiny random BERT: runs, results, resuming, and bad input."""

import json
import re
import signal
import subprocess
import sys
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
from stemformer.experiments import comparison
from stemformer.huggingface.load import load_model
from stemformer.huggingface.save import save_model
from stemformer.io import read_jsonl
from stemformer.models.bert import BertConfig
from stemformer.models.model import make_model
from stemformer.progress import Silent
from stemformer.reports.comparison import write_comparison_report

INITIALIZATIONS = ("pretrained", "random", "reembedded")


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    """Directory with model/, train.tsv (90 texts, one in three of class b), dev.tsv and tags.conll; not to be changed."""
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
    """Compare in a directory, by default with few short runs, and return the result."""
    usual = {"sizes": [9, 30], "num_seeds": 2, "steps": 4, "batch_size": 3, "precision": "fp32", "learning_rate": 1e-3}
    paths = {"model": str(files / "model"), "train": [str(files / train)], "dev": [str(files / dev)], "out": str(out)}
    return stemformer.compare(task, **paths, **{**usual, **options})


def read_records(folder):
    """Return the records of finished.jsonl by (initialization, size, seed)."""
    return {
        (line["initialization"], line["size"], line["seed"]): line for line in read_jsonl(folder / "finished.jsonl")
    }


def metrics_of(folder):
    return {trial: line["metrics"] for trial, line in read_records(folder).items()}


@pytest.fixture(scope="module")
def no_plots():
    """Skip the measurement of the machine and the plots, which take longer than the runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning, "matmul_rate", lambda *args, **kwargs: 1e11)
        patch.setattr(comparison, "write_comparison_report", lambda *args, **kwargs: None)
        yield


@pytest.fixture(scope="module")
def finished(files, no_plots, tmp_path_factory):
    """Directory and result of a comparison that was never interrupted; not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "out"
    return out, small(files, out)


@pytest.fixture
def compare(files, no_plots, tmp_path):
    """Function `small` with the directory tmp_path/out."""
    return lambda *words, **options: small(files, tmp_path / "out", *words, **options)


@pytest.fixture
def records(tmp_path):
    """Function that returns the records of finished.jsonl in tmp_path/out."""
    return lambda: read_records(tmp_path / "out")


class Stopping(Silent):
    """Progress that raises KeyboardInterrupt after some runs."""

    def __init__(self, after):
        self.left = after

    def say(self, line):
        if line.startswith("run "):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt


# Runs


def test_each_initialization_size_and_seed_is_run_once(finished):
    folder, result = finished
    assert set(read_records(folder)) == set(product(INITIALIZATIONS, (9, 30), (0, 1)))
    assert result["runs"] == 12
    assert [row["records"] for row in result["table"]] == [9, 30]
    assert result["summary"]


def test_nothing_of_a_run_is_kept_but_its_log(compare, tmp_path):
    compare(num_seeds=1, sizes=[9], initializations=["random"])
    kept = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert kept == {"finished.jsonl", "trials/random-9-seed0/log.jsonl", "compare.json", "config.toml"}


def test_each_size_has_the_same_number_of_steps(compare, records):
    compare(num_seeds=1, steps=None, sizes=[3, 9], initializations=["random"])
    assert {line["steps"] for line in records().values()} == {9}  # three passes over 9 records in steps of 3


def test_with_epochs_each_size_has_its_own_number_of_steps(compare, records):
    compare(num_seeds=1, steps=None, epochs=2, sizes=[3, 9], initializations=["random"])
    assert {size: line["steps"] for (_, size, _), line in records().items()} == {3: 2, 9: 6}


def test_random_has_a_higher_learning_rate_unless_one_is_set(compare, tmp_path):
    def learning_rates():
        return from_toml(comparison.CompareConfig, (tmp_path / "out" / "config.toml").read_text()).learning_rates

    compare(num_seeds=1, sizes=[9], steps=1)
    assert learning_rates() == pytest.approx({"pretrained": 1e-3, "random": 1e-2, "reembedded": 1e-3})
    compare(num_seeds=1, sizes=[9], steps=1, learning_rates=["random=2e-3"], overwrite=True)
    assert learning_rates() == pytest.approx({"pretrained": 1e-3, "random": 2e-3, "reembedded": 1e-3})


@pytest.mark.parametrize(("hidden_size", "rates"), [(16, (1e-3, 1e-3, 1e-3)), (768, (3e-5, 3e-4, 3e-5))])
def test_default_learning_rates_are_those_of_the_models_size(compare, tmp_path, monkeypatch, hidden_size, rates):
    found = {size: comparison.finetuning_learning_rate(size) for size in (hidden_size, 768)}
    # The model has 16 hidden units.
    monkeypatch.setattr(comparison, "finetuning_learning_rate", lambda size: found[max(size, hidden_size)])
    compare(num_seeds=1, sizes=[9], steps=1, learning_rate=None)
    config = from_toml(comparison.CompareConfig, (tmp_path / "out" / "config.toml").read_text())
    assert config.learning_rates == pytest.approx(dict(zip(INITIALIZATIONS, rates, strict=True)))


def test_initializations_differ_in_their_random_weights(compare, files, monkeypatch):
    seen = {}
    before = comparison.load_initial_model

    def load_initial_model(config, task, source, **options):
        model, *rest = before(config, task, source, **options)
        seen[config.reinitialize] = {name: tensor.clone() for name, tensor in model.body.state_dict().items()}
        return model, *rest

    monkeypatch.setattr(comparison, "load_initial_model", load_initial_model)
    compare(num_seeds=1, sizes=[9], steps=1)
    own = load_model(files / "model", []).body.state_dict()
    word = [name for name in own if "word" in name]
    assert word and all(torch.equal(own[name], seen["nothing"][name]) for name in own)
    assert all(torch.equal(own[name], seen["embeddings"][name]) == (name not in word) for name in own)
    matrices = [name for name in own if own[name].ndim == 2 and "position" not in name]  # sinusoids are not random
    assert not any(torch.equal(own[name], seen["all"][name]) for name in matrices)


@pytest.mark.parametrize("seed", [0, 1])
def test_initializations_of_a_seed_see_the_same_records_and_subsets_are_nested(compare, monkeypatch, seed):
    seen = {}
    before = comparison._run_trial

    def run_trial(trial, config, shared, examples, *rest):
        seen[trial.initialization, trial.size] = set(examples.records.tolist())
        assert len(examples) == trial.size
        return before(trial, config, shared, examples, *rest)

    monkeypatch.setattr(comparison, "_run_trial", run_trial)
    compare(num_seeds=1, seed=seed, sizes=[9, 30, 1], initializations=["pretrained", "random"], steps=1)
    for size in (9, 30, 90):
        assert seen["pretrained", size] == seen["random", size]
    assert seen["random", 9] < seen["random", 30] < seen["random", 90]
    assert sum(i % 3 == 2 for i in seen["random", 9]) == 3  # the share of class b


def test_tagging_is_compared(compare):
    result = compare("tag", train="tags.conll", dev="tags.conll", sizes=[6, 1], steps=2)
    assert result["metric"] == "accuracy"
    assert result["majority_baseline"] == pytest.approx(33.33)


# Results


def test_json_holds_all_runs_with_mean_and_spread(finished):
    folder, _ = finished
    result = json.loads((folder / "compare.json").read_text())
    assert len(result["trials"]) == 12
    assert all((folder / trial["log"]).is_file() for trial in result["trials"])
    row = result["scores"]["random"][1]
    each = [
        100 * c["metrics"]["accuracy"] for c in result["trials"] if c["initialization"] == "random" and c["size"] == 30
    ]
    assert row["each"] == pytest.approx(each)
    assert row["mean"] == pytest.approx(np.mean(each))
    assert row["spread"] == pytest.approx(np.std(each, ddof=1))
    assert result["baseline"] == pytest.approx(66.67)


def test_one_seed_reports_no_gain(compare):
    (sentence,) = compare(num_seeds=1)["summary"]
    assert sentence.startswith("no gain computed: with one seed")


def test_command_prints_table_and_summary_and_writes_a_report(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(comparison, "write_comparison_report", write_comparison_report)
    monkeypatch.setattr(finetuning, "matmul_rate", lambda *args, **kwargs: 1e11)
    words = ["classify", "--model", files / "model", "--train", files / "train.tsv", "--dev", files / "dev.tsv"]
    options = [
        "--num-seeds",
        "2",
        "--sizes",
        "0.1, 30",
        "--initializations",
        "pretrained,random",
        "--steps",
        "4",
        "--batch-size",
        "3",
    ]
    assert main(["compare", *map(str, words), *options, "--out", str(tmp_path / "out"), "-q"]) == 0
    printed = capsys.readouterr().out
    assert "pretrained - random" in printed and "±" in printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") == 3
    assert not re.findall(r'(?:src|href)="(?!#)', page)  # loads nothing
    for sentence in json.loads((tmp_path / "out" / "compare.json").read_text())["summary"]:
        assert sentence in printed and sentence[1:] in page
    for name in ("compare.svg", "compare.png"):
        assert (tmp_path / "out" / name).stat().st_size > 1000


# Resuming


def test_resume_keeps_finished_runs_and_makes_the_others(compare, records, finished, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        compare(progress=Stopping(after=5))
    before = records()
    assert len(before) == 5
    compare(resume=True)
    assert {key: records()[key] for key in before} == before  # also their seconds: they were not run again
    assert metrics_of(tmp_path / "out") == metrics_of(finished[0])


KILLED = """
import os, signal, sys
from stemformer.cli.app import main
from stemformer.experiments import run_grid

append_jsonl, left = run_grid.append_jsonl, [2]

def append_or_die(*args):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    append_jsonl(*args)

run_grid.append_jsonl = append_or_die
sys.exit(main(sys.argv[1:]))
"""
"""Command line that is killed before the record of the third run is written."""


@pytest.mark.slow
def test_killed_comparison_is_resumed(compare, records, finished, files, tmp_path):
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
    options = ["--num-seeds", "2", "--sizes", "9,30", "--steps", "4", "--batch-size", "3", "--learning-rate", "1e-3"]
    options += ["--precision", "fp32", "--threads", "2"]
    command = [sys.executable, "-c", KILLED, *map(str, words), *options, "--out", str(tmp_path / "out"), "-q"]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    before = records()
    assert len(before) == 2
    compare(resume=True)
    assert len(records()) == 12
    assert {key: records()[key] for key in before} == before
    assert metrics_of(tmp_path / "out") == metrics_of(finished[0])


def test_directory_of_an_earlier_version_is_resumed(compare, records, tmp_path):
    compare(num_seeds=1, sizes=[9], initializations=["random"])
    out, first = tmp_path / "out", records()
    (out / "trials").rename(out / "cells")
    text = (out / "finished.jsonl").read_text().replace('"initialization"', '"start"')
    (out / "cells.jsonl").write_text(text)
    (out / "finished.jsonl").unlink()
    config = (out / "config.toml").read_text()
    config = config.replace("initializations =", "starts =").replace("[learning_rates]", "[rates]")
    (out / "config.toml").write_text(config)
    result = compare(num_seeds=2, sizes=[9], initializations=["random"], resume=True)
    assert result["runs"] == 2
    assert records()["random", 9, 0] == first["random", 9, 0]
    trials = json.loads((out / "compare.json").read_text())["trials"]
    assert [trial["log"] for trial in trials] == ["cells/random-9-seed0/log.jsonl", "trials/random-9-seed1/log.jsonl"]


def test_seeds_sizes_and_initializations_may_be_added(compare, records):
    compare(num_seeds=1, sizes=[9], initializations=["random"])
    first = records()
    result = compare(num_seeds=2, sizes=[9, 30], resume=True)
    assert result["runs"] == 12
    assert records()["random", 9, 0] == first["random", 9, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 5}, "budget.steps was 4, is now 5"),
        ({"learning_rates": ["random=5e-3"]}, r"learning_rates was \{'random': 0.01\}, is now \{'random': 0.005\}"),
        ({"dev": "train.tsv"}, "finetune.dev was"),
        ({"batch_size": 4}, "batch.size was 3, is now 4"),
    ],
)
def test_resume_with_other_settings_is_refused(compare, options, message):
    compare(num_seeds=1, sizes=[9], initializations=["random"])
    with pytest.raises(CheckpointError, match=message):
        compare(**{"num_seeds": 1, "sizes": [9], "initializations": ["random"], "resume": True, **options})


def test_resume_with_other_data_is_refused(compare, files, tmp_path):
    other = tmp_path / "train.tsv"
    other.write_text((files / "train.tsv").read_text())
    options = {"num_seeds": 1, "sizes": [9], "initializations": ["random"], "train": other}
    compare(**options)
    other.write_text(other.read_text().replace("king", "bridge", 1))
    with pytest.raises(CheckpointError, match="data was"):
        compare(**options, resume=True)


def test_other_directory_is_not_resumed_or_overwritten(compare, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds no comparison to resume"):
        compare(resume=True)
    with pytest.raises(ConfigError, match="is not empty"):
        compare()
    with pytest.raises(ConfigError, match="holds nothing that stemformer made"):
        compare(overwrite=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


# Symbols


def test_each_seed_draws_its_own_map_of_symbols(files, no_plots, tmp_path, monkeypatch):
    lines = [f">s{i} label={'AC'[i % 2]}\nG{'AC'[i % 2]}{'TG'[i % 3 > 0]}T" for i in range(24)]
    (tmp_path / "dna.fa").write_text("\n".join(lines) + "\n")
    seen = {}
    make_context = comparison.make_finetuning_context

    def record(config, data, examples, dev, tokenizer, *args):
        words = data.task.symbols.words
        texts = [" ".join(words[symbol] for symbol in record.texts[0]) for record in data.dev]
        inputs = [example.input_ids[1:-1].tolist() for example in dev.examples]
        assert inputs == [row.tolist() for row in tokenizer.encode_ids(texts)]
        seen.setdefault(config.seed, set()).add((*words.items(), examples.fingerprint))
        return make_context(config, data, examples, dev, tokenizer, *args)

    monkeypatch.setattr(comparison, "make_finetuning_context", record)
    dna = {"train": str(tmp_path / "dna.fa"), "dev": str(tmp_path / "dna.fa"), "symbols": "draw"}
    small(files, tmp_path / "out", **dna, sizes=[9], initializations=["pretrained", "random"])
    assert [len(maps) for maps in seen.values()] == [1, 1]  # one for both initializations
    assert seen[0] != seen[1]
    notes = json.loads((tmp_path / "out" / "compare.json").read_text())["notes"]
    assert any("2 seeds, each with its own map of symbols" in note for note in notes)


def test_maps_and_seeds_are_crossed(files, no_plots, tmp_path):
    lines = [f">s{i} label={'AC'[i % 2]}\nG{'AC'[i % 2]}{'TG'[i % 3 > 0]}T" for i in range(24)]
    (tmp_path / "dna.fa").write_text("\n".join(lines) + "\n")
    dna = {"train": str(tmp_path / "dna.fa"), "dev": str(tmp_path / "dna.fa"), "symbols": "draw", "sizes": [9]}
    dna |= {"initializations": ["pretrained", "random"], "steps": 1}
    small(files, tmp_path / "out", **dna, num_seeds=2)
    result = small(files, tmp_path / "out", **dna, num_seeds=2, num_maps=3, resume=True)
    trials = [(r["initialization"], r["seed"], r["map"]) for r in read_jsonl(tmp_path / "out" / "finished.jsonl")]
    # The first call had a map for each seed.
    assert {trial[1:] for trial in trials[:4]} == {(0, 0), (1, 1)}
    assert sorted(trials) == list(product(INITIALIZATIONS[:2], range(2), range(3)))
    assert result["runs"] == 12
    assert [row["runs"] for row in result["table"]] == ["2 seeds x 3 maps of symbols"]
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert (content["seeds"], content["maps"]) == ([0, 1], [0, 1, 2])
    assert len(content["scores"]["random"][0]["each"]) == 6
    assert content["summary"][0].startswith("pre-training gain in accuracy over 2 seeds x 3 maps of symbols: ")
    assert any("2 seeds x 3 maps of symbols, each seed with each map" in note for note in content["notes"])
    logs = {trial["log"] for trial in content["trials"]}
    assert len(logs) == 12
    assert "trials/random-9-seed1-map2/log.jsonl" in logs


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"initializations": ["pretrained", "randm"]},
            r"--initializations randm: expected some of .* \(did you mean 'random'\?\)",
        ),
        ({"initializations": ["random", "random"]}, "expected at least one, each of them once"),
        ({"initializations": []}, "at least one"),
        ({"sizes": [9, 91]}, "--sizes 91: The training data has 90 records"),
        ({"num_seeds": 0}, "--num-seeds 0: expected at least 1"),
        ({"num_maps": 0}, "--num-maps 0: expected at least 1"),
        ({"num_maps": 2}, "--num-maps has no effect without --symbols draw"),
        ({"learning_rates": ["random"]}, "--learning-rates random: expected INITIALIZATION=NUMBER"),
        ({"learning_rates": ["random=fast"]}, "--learning-rates random=fast: expected INITIALIZATION=NUMBER"),
        ({"learning_rates": ["other=1e-3"]}, "the initialization one of pretrained, random, reembedded"),
        ({"settings": ["reinitialize=all"]}, "is set by --initializations"),
        ({"settings": ["evaluation.patience=2"]}, "needs checkpoints"),
        ({"settings": ["evaluation.best_metric=loss"]}, "needs checkpoints"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(compare, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        compare(**options)
    assert not (tmp_path / "out").exists()


def test_numbers_of_steps_have_their_noun():
    assert [comparison._range(steps, "step") for steps in ([1, 1], [1, 9], [9])] == [
        "1 step",
        "1 to 9 steps",
        "9 steps",
    ]
