"""Fine-tuning runs, through `stemformer.finetune` on small files: what they leave, repeat, stop at and freeze."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from fake_clock import FakeClock
from safetensors.torch import load_file

import stemformer
from stemformer.commands import finetune as finetuning
from stemformer.data.labelled.symbol_map import SymbolMap
from stemformer.errors import CheckpointError, ConfigError, DataError
from stemformer.huggingface.load import load_model, read_task_info
from stemformer.io import read_jsonl
from stemformer.progress import Silent
from stemformer.tasks.dataset import load_labelled_task
from stemformer.tasks.metrics import metric_names
from stemformer.tasks.sequence_classification import SequenceClassification
from stemformer.training import context as training_context
from stemformer.training import loop

KINDS = {
    "class": ("classify", "reviews.csv", {}),
    "labels": ("classify", "labels.jsonl", {"kind": "labels"}),
    "score": ("classify", "scores.tsv", {"kind": "score"}),
    "pair": ("pair", "pairs.jsonl", {}),
    "tag": ("tag", "tags.conll", {}),
    "qa": ("qa", "squad.json", {}),
    "choice": ("choice", "choices.jsonl", {}),
}
OF_THE_CLOCK = ("seconds", "tokens_per_second", "mfu")

pytestmark = pytest.mark.usefixtures("no_timing")


class Lines(Silent):
    """Keeps what a run says, and presses Ctrl-C while a step is under way."""

    def __init__(self, stop_at=0):
        self.left, self.lines, self.is_training = stop_at, [], False

    def say(self, line):
        self.lines.append(line)

    def start(self, what, total=None, unit=""):
        self.is_training = what == "training"

    def advance(self, amount, note=""):
        if self.is_training:
            self.left -= amount
            if amount and self.left == 0:
                signal.raise_signal(signal.SIGINT)


@pytest.fixture
def run(tiny_bert, labelled, tmp_path):
    """Fine-tunes the tiny model on one of the small files; other options lie over the usual ones."""

    def finetune(kind, out="run", **options):
        task, name, more = KINDS[kind]
        settings = ["log_every=1", "evaluation.every=2", "task.stride=8", *options.pop("settings", ())]
        usual = {"steps": 4, "batch_size": 8, "learning_rate": 3e-3, "precision": "fp32", "model": str(tiny_bert)}
        files = {split: [str(labelled / split / name)] for split in ("train", "dev")}
        return stemformer.finetune(task, out=str(tmp_path / out), settings=settings, **(usual | files | more | options))

    return finetune


def log_of(folder):
    return [{k: v for k, v in line.items() if k not in OF_THE_CLOCK} for line in read_jsonl(folder / "log.jsonl")]


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def assert_same_weights(a, b):
    first, second = weights_of(a), weights_of(b)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


# What a run leaves


@pytest.mark.parametrize("kind", KINDS)
def test_run_folder_holds_all_that_is_promised(finetuned, kind):
    folder = finetuned(kind)
    result = json.loads((folder / "result.json").read_text())
    assert {"config.toml", "log.jsonl", "metrics.json", "report.html", "final", "checkpoints"} <= {
        path.name for path in folder.iterdir()
    }
    lines = read_jsonl(folder / "log.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "train"] == [4, 8, 12]
    assert [line["step"] for line in lines if line["kind"] == "evaluation"] == [6, 12]
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert all(result[name] == value for name, value in metrics.items() if name != "loss")
    assert {f"dev_{name}": value for name, value in metrics.items()} == {
        name: value for name, value in lines[-1].items() if name.startswith("dev_")
    }
    assert "<html" in (folder / "report.html").read_text()
    task = load_labelled_task(str(folder))
    assert task.config.name == KINDS[kind][0]
    assert (result["train"], result["dev"], result["steps"]) == (40, 15, 12)


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss(finetuned, kind):
    name = KINDS[kind][0]
    lines = [line for line in read_jsonl(finetuned(kind) / "log.jsonl") if line["kind"] == "train"]
    assert lines[-1][f"{name}_loss"] < lines[0][f"{name}_loss"]


def test_saved_model_tells_its_labels_and_columns(finetuned):
    result = read_task_info(finetuned("class"))
    assert (result["head"], result["labels"], result["text"], result["label"]) == (
        "sequence",
        ["bad", "good"],
        ["review"],
        "sentiment",
    )
    assert read_task_info(finetuned("tag"))["labels"] == ["O", "B-NOUN", "B-PLACE"]
    assert read_task_info(finetuned("tag"))["entities"] is True
    assert read_task_info(finetuned("score"))["problem_type"] == "regression"


def test_dev_data_is_cut_off_by_seed_and_said(run):
    result = run("class", dev=[])
    assert (result["train"], result["dev"]) == (36, 4)
    assert any("4 training records (10%) split off by seed" in note for note in result["notes"])


def test_chosen_columns_and_labels_are_said(run):
    said = Lines()
    run("class", steps=1, progress=said)
    assert "text: column 'review'; answer: column 'sentiment' (--text-column, --label-column to change)" in said.lines
    assert "40 records, 2 labels: bad, good" in said.lines


def test_default_learning_rate_is_that_of_the_models_size_and_is_said(run, tmp_path):
    said = Lines()
    run("class", learning_rate=None, progress=said)
    shown = "learning_rate 0.001 (default for 32 hidden units)"
    assert shown in said.lines
    assert shown in (tmp_path / "run" / "report.html").read_text()
    assert "learning_rate = 0.001\n" in (tmp_path / "run" / "config.toml").read_text()
    run("class", "chosen", learning_rate=2e-4, progress=said)
    assert "learning_rate 0.0002" in said.lines


def test_resumed_run_keeps_a_default_learning_rate_of_before(run, tmp_path):
    run("class", steps=2, learning_rate=3e-5)
    run("class", steps=4, learning_rate=None, resume=True)
    assert "learning_rate = 3e-05\n" in (tmp_path / "run" / "config.toml").read_text()


def test_dev_data_may_have_columns_of_other_names(run, labelled, tmp_path):
    text = (labelled / "dev" / "reviews.csv").read_text().replace("id,review,sentiment", "id,Comment,verdict")
    (tmp_path / "dev.csv").write_text(text)
    result = run("class", dev=[str(tmp_path / "dev.csv")], steps=1)
    assert result["dev"] == 15
    assert "dev data: text: column 'Comment'; answer: column 'verdict'" in result["notes"]


def test_long_texts_are_counted_in_the_notes(run):
    result = run("class", steps=1, max_length=16)
    assert any(note.startswith("training data: texts split into windows: ") for note in result["notes"])
    assert any(note.startswith("dev data: texts split into windows: ") for note in result["notes"])


def test_inspect_describes_task_and_metrics_of_a_run(finetuned):
    found = stemformer.inspect(str(finetuned("tag")))
    assert (found["task"], found["is_finished"], found["step"]) == ("tag", True, 12)
    assert found["dev_f1"] == json.loads((finetuned("tag") / "result.json").read_text())["f1"]
    model = stemformer.inspect(str(finetuned("tag") / "final"))
    assert (model["task"], model["labels"], model["heads"]) == ("tag", ["O", "B-NOUN", "B-PLACE"], ["token"])


def test_report_of_a_finished_run_stays_and_of_another_is_written(finetuned, tmp_path):
    folder = finetuned("class")
    before = (folder / "report.html").read_text()
    assert stemformer.report(str(folder))["report"] == str(folder / "report.html")
    assert (folder / "report.html").read_text() == before
    for name in ("log.jsonl", "config.toml"):
        (tmp_path / name).write_text((folder / name).read_text())
    stemformer.report(str(tmp_path))
    assert "Loss" in (tmp_path / "report.html").read_text()


def test_metrics_look_the_same_in_lines_notes_and_report(run, tmp_path):
    said = Lines()
    result = run("qa", steps=4, progress=said)
    value = f"{result['f1']:.1f}%"
    assert any(f"dev f1 {value}" in line for line in said.lines)
    assert value in (tmp_path / "run" / "report.html").read_text()


# Repeating a run


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_run_equals_uninterrupted_run_bit_for_bit(run, tmp_path, kind):
    often = ["checkpoints.every=4", "evaluation.every=5"]
    full = run(kind, "full", steps=10, settings=often)
    with pytest.raises(KeyboardInterrupt):
        run(kind, "parts", steps=10, settings=often, progress=Lines(stop_at=4))
    assert not (tmp_path / "parts" / "final").exists()
    resumed = run(kind, "parts", steps=10, settings=often, resume=True)
    assert_same_weights(tmp_path / "full" / "final", tmp_path / "parts" / "final")
    assert log_of(tmp_path / "full") == log_of(tmp_path / "parts")
    for result in (full, resumed):
        for name in ("run", "model", "report", "seconds", "evaluation_seconds"):
            result.pop(name)
    assert full == resumed


def test_run_that_was_killed_goes_on_from_its_last_checkpoint(run, tmp_path):
    run("tag", "full", steps=10, settings=["checkpoints.every=4"])
    with pytest.raises(RuntimeError, match="killed"), pytest.MonkeyPatch.context() as patch:

        def die(step, *args, original=loop.batches_of_step):
            if step == 6:
                raise RuntimeError("killed")
            return original(step, *args)

        patch.setattr(loop, "batches_of_step", die)
        run("tag", "parts", steps=10, settings=["checkpoints.every=4"])
    run("tag", "parts", steps=10, settings=["checkpoints.every=4"], resume=True)
    assert_same_weights(tmp_path / "full" / "final", tmp_path / "parts" / "final")
    assert log_of(tmp_path / "full") == log_of(tmp_path / "parts")


def test_runs_that_were_stopped_are_listed_with_the_step_of_their_checkpoint(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run("class", progress=Lines(stop_at=1), settings=["log_every=4"])
    (tmp_path / "early").mkdir()
    shutil.copy(tmp_path / "run" / "config.toml", tmp_path / "early")
    (tmp_path / "grid").mkdir()
    shutil.copy(tmp_path / "run" / "config.toml", tmp_path / "grid")
    (tmp_path / "grid" / "finished.jsonl").touch()
    rows = {Path(row["run"]).name: (row["kind"], row["state"]) for row in stemformer.list_runs(str(tmp_path))}
    early, grid = ("finetuning", "at step 0"), ("experiment", "unfinished")
    assert rows == {"early": early, "grid": grid, "run": ("finetuning", "at step 1")}


@pytest.mark.parametrize(
    ("kind", "name"), [("tag", "f1"), ("qa", "f1"), ("class", "accuracy"), ("score", "pearson"), ("labels", "micro_f1")]
)
def test_runs_show_the_main_metric_with_its_final_value(finetuned, kind, name, tmp_path):
    shutil.copytree(finetuned(kind), tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    # As if a threshold had been tuned after the last evaluation.
    metrics["metrics"][name] = 0.123
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics))
    [row] = stemformer.list_runs(str(tmp_path))
    assert (row["metric"], row["best"]) == (f"dev_{name}", 0.123)


def test_resuming_a_finished_run_returns_the_same_result(run):
    first = run("qa")
    again = run("qa", resume=True)
    assert {k: v for k, v in first.items() if "seconds" not in k} == {
        k: v for k, v in again.items() if "seconds" not in k
    }


@pytest.mark.parametrize(
    ("options", "result"),
    [
        ({"learning_rate": 1e-3}, "optimizer.learning_rate was 0.003"),
        ({"settings": ["task.label_smoothing=0.1"]}, "task.label_smoothing was 0.0"),
        ({"seed": 5}, "seed was 0, is now 5"),
    ],
)
def test_run_goes_on_with_the_same_settings_alone(run, options, result):
    run("class", steps=2)
    with pytest.raises(CheckpointError, match=result):
        run("class", **({"steps": 4} | options), resume=True)


def test_run_goes_on_with_the_same_data_alone(run, labelled):
    run("class", steps=2)
    with pytest.raises(CheckpointError, match="train was"):
        run("class", resume=True, train=[str(labelled / "dev" / "reviews.csv")])


def test_seed_decides_everything(run, tmp_path):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("class", out, steps=2, seed=seed)
    assert_same_weights(tmp_path / "a" / "final", tmp_path / "b" / "final")
    first, other = (weights_of(tmp_path / out / "final") for out in "ac")
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


# Stopping early


@pytest.mark.parametrize("saved", [2, 5, 100])
def test_patience_ends_a_run_at_its_best_model(run, tmp_path, saved):
    settings = ["evaluation.patience=2", f"checkpoints.every={saved}"]
    said = Lines()
    result = run("class", steps=20, learning_rate=1e-12, settings=settings, progress=said)
    assert result["steps"] == 6  # the metrics stay as they are: best at 2, not better at 4 and 6
    assert any(line.startswith("the result is the best model, of step 2 (dev ") for line in said.lines)
    best = tmp_path / "run" / "checkpoints" / "best"
    assert best.resolve().name == "step-00000002"
    assert_same_weights(best, tmp_path / "run" / "final")


@pytest.fixture
def clock(monkeypatch):
    made = FakeClock()
    for module in (finetuning, loop, training_context):
        monkeypatch.setattr(module, "time", made)
    return made


def test_time_limits_a_run_that_ends_at_its_last_step_when_resumed(run, clock, tmp_path):
    first = run("class", steps=None, time=1.5)
    times = [line["seconds"] for line in read_jsonl(tmp_path / "run" / "log.jsonl")]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(1.5, abs=0.2)
    again = run("class", steps=None, time=1.5, resume=True)
    assert again["steps"] == first["steps"] > 20
    assert again["seconds"] == first["seconds"]
    with pytest.raises(ConfigError, match="Several training budgets: --steps, --time"):
        run("class", out="other", time=1.5)


def test_evaluation_after_the_last_step_is_not_in_the_budget_but_in_the_result(run, clock, monkeypatch):
    predict = finetuning.predict_scores

    def slow(*args, **options):
        clock.now += 5.0
        return predict(*args, **options)

    monkeypatch.setattr(finetuning, "predict_scores", slow)
    result = run("class", steps=None, time=1.5, settings=["evaluation.every=1000"])
    # The clock is also read a few times while the model is saved.
    assert result["seconds"] == pytest.approx(1.5, abs=0.2)
    assert 5 <= result["evaluation_seconds"] < 5.5


def test_early_stopping_follows_the_metric(run, tmp_path):
    result = run("tag", steps=60, learning_rate=1e-2, settings=["evaluation.patience=2"])
    metrics = [line["dev_f1"] for line in log_of(tmp_path / "run") if line["kind"] == "evaluation"]
    assert result["f1"] == max(metrics)
    assert len(metrics) - 1 - metrics.index(max(metrics)) == 2


@pytest.mark.parametrize("metric", [None, "macro_f1", "mean_squared_error"])
def test_best_model_that_is_not_the_result_is_named(run, tmp_path, monkeypatch, metric):
    name = metric or "accuracy"
    checked = [0.0] if metric else []  # the names of the metrics are looked up before training
    values = iter([*checked, 0.5, 0.1, 0.4, 0.3, 0.3] if "error" in name else [*checked, 0.5, 0.9, 0.7, 0.6, 0.6])
    monkeypatch.setattr(SequenceClassification, "compute_metrics", lambda *_: ({name: next(values)}, {}))
    monkeypatch.setattr(finetuning, "metric_names", lambda *_: [name])
    settings = ["evaluation.every=1", "checkpoints.every=1"]
    result = run("class", settings=settings, best_metric=metric)
    [note] = [note for note in result["notes"] if "was better" in note]
    best, last = ("0.100", "0.300") if "error" in name else ("90.0%", "60.0%")
    assert note.startswith(f"step 2 was better (dev {name.replace('_', ' ')} {best}; ") and last in note
    assert (tmp_path / "run" / "checkpoints" / "best").resolve().name == "step-00000002"
    assert f"{tmp_path}/run/checkpoints/best" in note


def test_nothing_is_said_about_the_best_model_if_it_is_the_last(run):
    result = run("class", learning_rate=1e-12)
    assert not any("better (" in note for note in result["notes"])


def test_metric_that_does_not_exist_is_refused_before_training(run, tmp_path):
    with pytest.raises(ConfigError, match=r"Metric 'macro_f2' does not exist .did you mean 'macro_f1'.*loss, accuracy"):
        run("class", best_metric="macro_f2")
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_misspelled_metric_is_refused_before_the_data_is_read(tiny_bert, tmp_path):
    with pytest.raises(ConfigError, match="Metric 'acuracy' does not exist"):
        stemformer.finetune(
            "classify", model=str(tiny_bert), train=["no_such.csv"], out=str(tmp_path / "run"), best_metric="acuracy"
        )


@pytest.mark.parametrize("kind", ["class", "labels", "score", "pair", "tag", "qa", "choice"])
def test_metrics_of_a_task_are_known_by_name(finetuned, kind):
    metrics = json.loads((finetuned(kind) / "metrics.json").read_text())["metrics"].keys() - {"loss"}
    task = load_labelled_task(str(finetuned(kind) / "final")).config
    known = set(metric_names(task.name, task.kind))
    assert metrics <= known and (task.name == "qa" or metrics == known)


def test_metric_of_the_best_model_cannot_change_on_resume(run):
    run("class", best_metric="loss")
    with pytest.raises(CheckpointError, match=r"evaluation.best_metric was loss, is now macro_f1"):
        run("class", best_metric="macro_f1", steps=6, resume=True)


def test_run_that_was_stopped_early_is_over(run):
    options = {"steps": 20, "learning_rate": 1e-12, "settings": ["evaluation.patience=2"]}
    first = run("class", **options)
    again = run("class", **options, resume=True)
    assert {k: v for k, v in first.items() if "seconds" not in k} == {
        k: v for k, v in again.items() if "seconds" not in k
    }


def test_patience_is_remembered_over_an_interruption(run, tmp_path):
    options = {"steps": 20, "learning_rate": 1e-12, "settings": ["evaluation.patience=2"]}
    run("class", "full", **options)
    with pytest.raises(KeyboardInterrupt):
        run("class", "parts", **options, progress=Lines(stop_at=5))
    assert run("class", "parts", **options, resume=True)["steps"] == 6
    assert_same_weights(tmp_path / "full" / "final", tmp_path / "parts" / "final")


# What moves, and how far


def moved(before, after, name):
    return (after[name] - before[name]).abs().max().item()


def body(folder):
    return {k: v for k, v in load_model(folder).state_dict().items() if k.startswith("body.")}


def test_frozen_parts_do_not_move(run, tiny_bert, tmp_path):
    run("class", steps=2, settings=["frozen_layers=1", "frozen_embeddings=true"])
    before, after = body(tiny_bert), body(tmp_path / "run" / "final")
    for name in before:
        is_frozen = "embeddings" in name or "layers.0." in name
        assert torch.equal(before[name], after[name]) == is_frozen, name


def test_layer_decay_scales_the_rates(run, tiny_bert, tmp_path):
    settings = ["layer_decay=0.5", "optimizer.weight_decay=0.0", "optimizer.eps=1e-30"]
    run("class", steps=1, learning_rate=1e-3, settings=[*settings, "schedule.warmup_ratio=0.0"])
    before, after = body(tiny_bert), body(tmp_path / "run" / "final")
    # Adam's first step is the rate, whatever the gradient
    for name, times in (("layers.1", 1 / 2), ("layers.0", 1 / 4), ("embeddings.word", 1 / 8)):
        (matrix,) = (n for n in before if n.endswith("weight") and f"{name}." in n and ("qkv" in n or "word" in n))
        assert moved(before, after, matrix) == pytest.approx(1e-3 * times, rel=1e-3)


def test_layer_decay_does_not_go_with_muon(run):
    with pytest.raises(ConfigError, match="Use adamw"):
        run("class", settings=["layer_decay=0.9", "optimizer.kind=muon"])


def test_fresh_draws_what_it_names_anew(run, tiny_bert, tmp_path):
    before = body(tiny_bert)
    for fresh in ("nothing", "embeddings", "all"):
        run("class", fresh, steps=1, learning_rate=1e-12, settings=[f"reinitialize={fresh}"])
        after = body(tmp_path / fresh / "final")
        changed = {name for name in before if moved(before, after, name) > 1e-4}
        assert ("body.embeddings.word.weight" in changed) == (fresh != "nothing")
        assert any("qkv.weight" in name for name in changed) == (fresh == "all")


def test_balance_changes_the_loss_of_unequal_classes(run, tmp_path):
    for balance in ("true", "false"):
        run("tag", balance, steps=1, settings=[f"task.balance={balance}"])
    a, b = (log_of(tmp_path / balance)[0]["tag_loss"] for balance in ("true", "false"))
    assert a != pytest.approx(b, rel=1e-2)


# Several runs


def test_trials_tell_mean_and_spread(run, tmp_path):
    result = run("class", "trials", steps=2, seed=5, num_seeds=2)
    each = [run("class", f"one-{seed}", steps=2, seed=seed)["accuracy"] for seed in (5, 6)]
    assert result["seeds"] == [5, 6]
    assert result["accuracy"]["each"] == pytest.approx(each, rel=1e-5)
    assert result["accuracy"]["mean"] == pytest.approx(sum(each) / 2, rel=1e-5)
    assert result["accuracy"]["spread"] == pytest.approx(abs(each[0] - each[1]) / 2**0.5, rel=1e-5)
    for seed in (5, 6):
        assert_same_weights(tmp_path / "trials" / f"seed-{seed}" / "final", tmp_path / f"one-{seed}" / "final")
    assert json.loads((tmp_path / "trials" / "trials.json").read_text()) == result
    assert stemformer.inspect(str(tmp_path / "trials")) == result
    lines = [line for line in log_of(tmp_path / "trials" / "seed-5") if line["kind"] == "train"]
    assert lines and not any("fill" in line for line in lines)  # texts of any length have no rows to fill


def test_trial_does_not_see_the_threshold_of_the_one_before(run, labelled, tmp_path):
    result = json.loads((labelled / "train" / "squad.json").read_text())
    for paragraph in result["data"][0]["paragraphs"][::2]:
        paragraph["qas"][0] |= {"answers": [], "is_impossible": True}
    (tmp_path / "v2.json").write_text(json.dumps(result))
    files = {"train": [str(tmp_path / "v2.json")], "dev": [str(tmp_path / "v2.json")]}
    run("qa", "trials", steps=2, seed=5, num_seeds=2, **files)
    run("qa", "one", steps=2, seed=6, **files)
    assert log_of(tmp_path / "trials" / "seed-6") == log_of(tmp_path / "one")
    assert load_labelled_task(str(tmp_path / "one")).config.no_answer is True
    both = [load_labelled_task(str(tmp_path / f)).threshold for f in ("one", "trials/seed-6")]
    assert both[0] == both[1] != 0


def test_trials_that_were_cut_off_can_be_replaced(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run("class", num_seeds=2, progress=Lines(stop_at=1))
    with pytest.raises(ConfigError, match="is not empty"):
        run("class", num_seeds=2)
    assert run("class", steps=1, num_seeds=2, overwrite=True)["seeds"] == [0, 1]


def test_no_trial_is_refused(run):
    with pytest.raises(ConfigError, match="--num-seeds is 0"):
        run("class", num_seeds=0)


# Symbols


@pytest.fixture
def dna(tmp_path):
    """A FASTA file in which the second letter is the class."""
    lines = [f">s{i} label={'AC'[i % 2]}\nG{'AC'[i % 2]}{'TG'[i % 3 > 0]}TTN" for i in range(24)]
    (tmp_path / "dna.fa").write_text("\n".join(lines) + "\n")
    return [str(tmp_path / "dna.fa")]


def test_symbols_are_mapped_by_seed_and_saved_with_the_model(run, dna, tmp_path):
    options = {"train": dna, "dev": dna, "symbols": "draw", "kmer": 2, "steps": 2}
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        said = Lines()
        run("class", out, seed=seed, progress=said, **options)
    a, b, c = (load_labelled_task(str(tmp_path / out)).symbols for out in "abc")
    assert a == b != c
    assert (a.size, len(a.words)) == (2, 5**2 + 1)  # A C G N T, and one for all others
    assert any("26 words represent symbols: AA '" in line for line in said.lines)
    assert_same_weights(tmp_path / "a" / "final", tmp_path / "b" / "final")


def test_each_of_several_seeds_draws_its_own_map(run, dna, tmp_path):
    run("class", train=dna, dev=dna, symbols="draw", steps=1, num_seeds=2)
    first, second = (load_labelled_task(str(tmp_path / "run" / f"seed-{seed}")).symbols for seed in (0, 1))
    assert first != second


def test_rare_symbols_share_a_word(run, tmp_path):
    lines = [f"{'ACGT' * 20}{'N' * (i == 0)},{i % 2}" for i in range(20)]
    (tmp_path / "dna.csv").write_text("sequence,label\n" + "\n".join(lines) + "\n")
    files = [str(tmp_path / "dna.csv")]
    result = run("class", train=files, dev=files, symbols="draw", steps=1, max_length=64)
    assert set(load_labelled_task(str(tmp_path / "run")).symbols.words) == set("ACGT*")
    assert "training data: unknown symbols: 1" in result["notes"]


def test_symbols_of_a_file_are_used_and_go_on_after_a_stop(run, dna, tmp_path):
    (tmp_path / "map.tsv").write_text("A\tking\nC\triver\nG\tchild\nT\tgarden\n*\twise\n")
    options = {"train": dna, "dev": dna, "symbols": str(tmp_path / "map.tsv")}
    run("class", "full", **options)
    with pytest.raises(KeyboardInterrupt):
        run("class", "parts", **options, progress=Lines(stop_at=2))
    run("class", "parts", **options, resume=True)
    assert_same_weights(tmp_path / "full" / "final", tmp_path / "parts" / "final")
    assert load_labelled_task(str(tmp_path / "parts")).symbols == SymbolMap.load(tmp_path / "map.tsv")


def test_loaded_model_reads_symbols(run, dna, tmp_path):
    run("class", train=dna, dev=dna, symbols="draw", steps=40, learning_rate=1e-2, settings=["evaluation.every=40"])
    loaded = stemformer.load(str(tmp_path / "run"))
    assert [p.label for p in loaded.predict(["GATTTN", "gctttn"])] == ["A", "C"]
    rows = stemformer.predict(dna, model=str(tmp_path / "run"))["predictions"]
    assert [row["prediction"] for row in rows[:2]] == ["A", "C"]
    assert stemformer.evaluate(dna, model=str(tmp_path / "run"))["accuracy"] == 1.0


# Folders of other commands, heads of other labels


@pytest.mark.parametrize("lies_there", ["cells/x/log.jsonl", "tasks.jsonl", "seed-0/config.toml", "mine.txt"])
def test_resume_leaves_what_is_no_run_alone(run, tmp_path, lies_there):
    for name in ("config.toml", lies_there):
        file = tmp_path / "run" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("starts = []\n")
    with pytest.raises(CheckpointError, match=r"no run to resume. Pass another --out"):
        run("class", resume=True)
    assert (tmp_path / "run" / lies_there).read_text() == "starts = []\n"


def test_resume_leaves_a_run_of_another_kind_alone(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text('recipe = "bert_tiny"\n')
    with pytest.raises(ConfigError, match="recipe"):
        run("class", resume=True)
    assert (tmp_path / "run" / "config.toml").read_text() == 'recipe = "bert_tiny"\n'


def test_single_run_is_not_resumed_as_trials(run, tmp_path):
    run("class", steps=1)
    with pytest.raises(CheckpointError, match="holds a single run"):
        run("class", steps=1, resume=True, num_seeds=2)
    assert not (tmp_path / "run" / "seed-0").exists()


def test_ranks_without_metrics_return_the_directory(tmp_path):
    result = [{"run": "x", "seed": seed, "steps": 2, "seconds": 0.1} for seed in (0, 1)]
    assert finetuning._summarize_seeds(tmp_path, result) == {"run": str(tmp_path), "trials": 2}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "weight"), [("class", "classifier.weight"), ("tag", "classifier.weight")])
def test_head_is_kept_for_the_same_labels_and_initialized_for_others(run, finetuned, labelled, tmp_path, kind, weight):
    model = finetuned(kind)
    name = KINDS[kind][1]
    before = weights_of(model / "final")[weight]
    result = Lines()
    options = {"model": str(model), "steps": 1, "learning_rate": 1e-12}
    run(kind, "same", progress=result, **options)
    assert torch.allclose(weights_of(tmp_path / "same" / "final")[weight], before, atol=1e-6)
    assert any("training continues with the head" in line for line in result.lines)
    files = {}
    for split in ("train", "dev"):
        text = (labelled / split / name).read_text()
        files[split] = [str(tmp_path / f"{split}-{name}")]
        (tmp_path / f"{split}-{name}").write_text(text.replace("good", "fine").replace("B-NOUN", "B-NAME"))
    result = Lines()
    run(kind, "other", progress=result, **options, **files)
    after = weights_of(tmp_path / "other" / "final")[weight]
    assert after.shape == before.shape and not torch.allclose(after, before, atol=1e-3)
    assert not any("training continues with the head" in line for line in result.lines)


@pytest.fixture
def years(labelled, tmp_path):
    """A file of texts with scores far from zero."""
    lines = (labelled / "train" / "scores.tsv").read_text().splitlines()[1:]
    rows = (line.split("\t") for line in lines)
    text = "".join(f"{text}\t{2000 + 30 * float(score)}\n" for text, score in rows)
    (tmp_path / "years.tsv").write_text("sentence\tscore\n" + text)
    return [str(tmp_path / "years.tsv")]


def test_scores_far_from_zero_are_learned_and_compared_with_their_mean(run, years, tmp_path):
    said = Lines()
    result = run("score", train=years, dev=years, steps=30, progress=said)
    assert result["root_mean_squared_error"] < result["baseline"]["root_mean_squared_error"]
    assert any("standard deviation" in line and "mean 20" in line for line in said.lines)
    again = stemformer.evaluate(years, model=str(tmp_path / "run"))
    assert again["baseline"] == result["baseline"]
    assert again["root_mean_squared_error"] == pytest.approx(result["root_mean_squared_error"], rel=1e-3)


def test_model_no_better_than_the_mean_score_is_noted(run, years):
    result = run("score", train=years, dev=years, steps=1, learning_rate=1e-12)
    assert any("not better than predicting the mean of the training scores" in note for note in result["notes"])


def test_training_continues_from_scores_in_their_unit(run, years, finetuned, tmp_path):
    run("score", out="first", train=years, dev=years)
    options = {"model": str(tmp_path / "first"), "steps": 1, "learning_rate": 1e-12, "dev": years}
    before = stemformer.load(str(tmp_path / "first")).predict(["The old king", "a river"])
    # Another mean and standard deviation.
    other = tmp_path / "other.tsv"
    other.write_text("sentence\tscore\n" + "The king\t10\na river\t30\n" * 5)
    run("score", out="second", train=[str(other)], **options)
    after = stemformer.load(str(tmp_path / "second")).predict(["The old king", "a river"])
    assert [x.score for x in after] == pytest.approx([x.score for x in before], abs=1e-2)


def test_early_stopping_keeps_scores_in_their_unit(run, years, tmp_path):
    result = run("score", train=years, dev=years, steps=8, settings=["evaluation.patience=1"])
    again = stemformer.evaluate(years, model=str(tmp_path / "run"))
    assert again["mean_absolute_error"] == pytest.approx(result["mean_absolute_error"], rel=1e-3)
    assert result["mean_absolute_error"] < 2 * result["baseline"]["mean_absolute_error"]


def test_scores_that_are_all_equal_are_refused(run, tmp_path):
    (tmp_path / "same.tsv").write_text("sentence\tscore\n" + "a river\t0.5\n" * 20)
    with pytest.raises(DataError, match=r"only the score 0\.5 in 20 records: expected different ones"):
        run("score", train=[str(tmp_path / "same.tsv")], dev=[str(tmp_path / "same.tsv")])


def test_passage_without_a_token_has_a_report(run, labelled, tmp_path):
    found = json.loads((labelled / "dev" / "squad.json").read_text())
    found["data"][0]["paragraphs"][0] = {
        "context": "\u200b",
        "qas": [{"id": "a", "question": "Who?", "answers": [], "is_impossible": True}],
    }
    dev = tmp_path / "dev.json"
    dev.write_text(json.dumps(found))
    run("qa", dev=[str(dev)], steps=1)
    assert "<html" in (tmp_path / "run" / "report.html").read_text()


def test_threshold_lies_between_the_questions_that_it_parts(run, labelled, tmp_path):
    found = json.loads((labelled / "train" / "squad.json").read_text())
    for paragraph in found["data"][0]["paragraphs"][::2]:
        paragraph["qas"][0] |= {"question": "How many?", "answers": [], "is_impossible": True}
    (tmp_path / "train.json").write_text(json.dumps(found))
    result = run("qa", train=[str(tmp_path / "train.json")], dev=[str(tmp_path / "train.json")], steps=8)
    threshold = load_labelled_task(str(tmp_path / "run")).threshold
    assert threshold > result["best_threshold"]
    assert (result["f1"], result["exact_match"]) == (result["best_f1"], result["best_exact"])
    assert any(f"{threshold:+.2f}" in note for note in result["notes"])


def test_mistyped_tag_is_noted(run, labelled, tmp_path):
    text = (labelled / "train" / "tags.conll").read_text().replace("B-PLACE", "B_PLACE", 1)
    (tmp_path / "odd.conll").write_text(text)
    result = run("tag", train=[str(tmp_path / "odd.conll")], steps=1)
    assert any("tag 'B_PLACE' (sentence at" in note for note in result["notes"])


def test_model_no_better_than_the_majority_baseline_is_noted(run, tmp_path):
    rows = "".join(f"a small river {i}\t{'good' if i % 4 else 'bad'}\n" for i in range(40))
    (tmp_path / "uneven.tsv").write_text("text\tlabel\n" + rows)
    files = {"train": [str(tmp_path / "uneven.tsv")], "dev": [str(tmp_path / "uneven.tsv")]}
    result = run("class", steps=1, learning_rate=1e-9, **files)
    assert result["accuracy"] in (0.25, 0.75)  # without training, one answer to all that are nearly alike
    assert any("majority baseline: 'good' is right for 75.0%" in note for note in result["notes"])


def test_text_that_the_vocabulary_cannot_write_is_noted_and_no_reason_to_train_longer(run, tmp_path):
    rows = [f"{text},{'bad' if i % 4 else 'good'}" for i, text in enumerate(["король", "сад", "река", "дом"] * 5)]
    (tmp_path / "reviews.csv").write_text("\n".join(["review,sentiment", *rows]) + "\n", encoding="utf-8")
    file = [str(tmp_path / "reviews.csv")]
    notes = " ".join(run("class", steps=1, learning_rate=1e-9, train=file, dev=file)["notes"])
    assert "training data: 100% of the words are [UNK], such as 'король'" in notes
    assert "dev data: 100% of the words are [UNK]" in notes
    assert "majority baseline" in notes and "train longer" not in notes


def test_dev_data_without_a_label_or_with_one_alone_is_no_reason_to_train_longer(run, tmp_path):
    rows = [json.dumps({"text": "a river", "labels": labels}) + "\n" for labels in (["a"], ["b"], [])]
    (tmp_path / "many.jsonl").write_text("".join(rows * 4))
    (tmp_path / "none.jsonl").write_text(rows[2] * 4)
    result = run("labels", train=[str(tmp_path / "many.jsonl")], dev=[str(tmp_path / "none.jsonl")], steps=1)
    assert not any("majority baseline" in note for note in result["notes"])
    (tmp_path / "one.tsv").write_text("text\tlabel\n" + "a river\tgood\na king\tbad\n" * 5)
    (tmp_path / "dev.tsv").write_text("text\tlabel\n" + "a river\tgood\n" * 5)
    files = {"train": [str(tmp_path / "one.tsv")], "dev": [str(tmp_path / "dev.tsv")]}
    assert not any("majority baseline" in note for note in run("class", out="one", steps=1, **files)["notes"])


def test_column_of_free_text_is_remarked_upon_as_an_answer(run, tmp_path):
    rows = "".join(f"a small river\tremark {i}\n" for i in range(30))
    (tmp_path / "free.tsv").write_text("text\tlabel\n" + rows)
    result = run("class", train=[str(tmp_path / "free.tsv")], dev=[str(tmp_path / "free.tsv")], steps=1)
    assert any("30 different answers in 30 records" in note for note in result["notes"])
    assert not any("different answers" in note for note in run("class", out="usual", steps=1)["notes"])


def test_unanswered_questions_are_not_taken_as_impossible(run, labelled, tmp_path):
    found = json.loads((labelled / "train" / "squad.json").read_text())
    found["data"][0]["paragraphs"][0]["qas"][0]["answers"] = []
    train = tmp_path / "train.json"
    train.write_text(json.dumps(found))
    result = Lines()
    assert run("qa", train=[str(train)], steps=1, progress=result)["train"] == 39
    assert any("not marked is_impossible (skipped): 1" in line for line in result.lines)
    assert load_labelled_task(str(tmp_path / "run")).config.no_answer is False
