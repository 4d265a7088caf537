"""Ablations of tiny models: variants and tasks as words, runs, results, failures, resuming, and bad input."""

import json
import math
import re
import shutil
import signal
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from report_page import Page, assert_loads_nothing_and_runs_nothing

import stemformer
from stemformer.cli.app import main
from stemformer.commands import finetune as finetuning
from stemformer.config import with_settings
from stemformer.data.shards.reader import open_shards
from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.errors import CheckpointError, ConfigError, StemformerError, TrainingError
from stemformer.evaluation.seed_statistics import find_best
from stemformer.experiments import ablation, ablation_plan, ablation_results, ablation_runs
from stemformer.io import read_jsonl, write_jsonl
from stemformer.objectives.denoising import NOISES
from stemformer.progress import Silent
from stemformer.recipes import find_recipe
from stemformer.reports.ablation import write_ablation_report
from stemformer.training.config import BudgetConfig, FinetuneConfig

pytestmark = pytest.mark.usefixtures("no_timing")

SMALL = [
    *["model.hidden_size=16", "model.num_hidden_layers=1", "model.num_attention_heads=2", "model.intermediate_size=32"],
    *["model.max_position_embeddings=64", "batch.size=4", "batch.sequence_length=32", "log_every=1"],
    *["evaluation.num_examples=8", "evaluation.every=2"],
]
SMALL_BART = [*SMALL, "model.num_decoder_layers=1"]
SHORT = ["budget.steps=3", "batch.size=8", "log_every=1", "task.num_beams=1"]


@pytest.fixture(scope="module")
def files(labelled, tmp_path_factory):
    """Directory with reviews.csv, tags.conll, pairs.tsv and reviews.toml; not to be changed."""
    root = tmp_path_factory.mktemp("tasks")
    for name in ("reviews.csv", "tags.conll"):
        shutil.copy(labelled / "train" / name, root / name)
    lines = [line.split(",")[1] for line in (root / "reviews.csv").read_text().splitlines()[1:]]
    (root / "pairs.tsv").write_text("source\ttarget\n" + "".join(f"{line}\t{line.lower()}\n" for line in lines))
    shutil.copytree(labelled / "dev", root / "dev")
    config = f'train = ["{root}/reviews.csv"]\ndev = ["{root}/dev/reviews.csv"]\n[task]\nname = "classify"\n'
    (root / "reviews.toml").write_text(config)
    return root


def small(tiny, files, out, recipe="bart_tiny", **options):
    """Ablate in a directory, by default with few short runs, and return the result."""
    usual = {"tasks": [f"reviews=classify:{files}/reviews.csv", f"lower=seq2seq:{files}/pairs.tsv"], "steps": 4}
    usual |= {"variants": ["infilling", "rotation"], "num_seeds": 2, "settings": SMALL_BART, "precision": "fp32"}
    usual |= {"finetune_settings": SHORT, "device": "cpu"}
    return stemformer.ablate(recipe, data=str(tiny / "data"), out=str(out), **{**usual, **options})


@pytest.fixture(scope="module", autouse=True)
def no_plots():
    """Skip the reports, which take longer than the runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "write_ablation_report", lambda *args, **kwargs: None)
        patch.setattr(finetuning, "write_task_report", lambda *args, **kwargs: None)
        yield


@pytest.fixture(scope="module")
def finished(tiny, files, no_plots, no_timing, tmp_path_factory):
    """Directory and result of an ablation that was never interrupted; not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "out"
    return out, small(tiny, files, out)


@pytest.fixture
def ablate(tiny, files, tmp_path):
    """Function `small` with the directory tmp_path/out."""
    return lambda *words, **options: small(tiny, files, tmp_path / "out", *words, **options)


@pytest.fixture
def command(tiny, files, tmp_path):
    """Words of the command line of the finished ablation in tmp_path/out."""
    tasks = ["--task", f"reviews=classify:{files}/reviews.csv", "--task", f"lower=seq2seq:{files}/pairs.tsv"]
    words = ["ablate", "--recipe", "bart_tiny", "--data", tiny / "data", "--out", tmp_path / "out", *tasks]
    words += ["--steps", "4", "--variant", "infilling", "--variant", "rotation", "--num-seeds", "2"]
    words += [word for setting in SMALL_BART for word in ("--set", setting)]
    words += [word for setting in SHORT for word in ("--finetune-set", setting)]
    return [*map(str, words), "--precision", "fp32", "--device", "cpu"]


def content_of(folder):
    return json.loads((folder / "ablate.json").read_text())


def without_seconds(value):
    """Return JSON without times."""
    if isinstance(value, dict):
        return {key: without_seconds(inner) for key, inner in value.items() if key != "seconds"}
    return [without_seconds(inner) for inner in value] if isinstance(value, list) else value


@pytest.fixture
def copied(finished, tmp_path):
    """Function that copies the finished ablation into tmp_path/out, without the runs that a function chooses."""

    def copy(is_removed):
        out = tmp_path / "out"
        shutil.copytree(finished[0], out)
        lines = read_jsonl(out / "finished.jsonl")
        for line in filter(is_removed, lines):
            shutil.rmtree(out / "variants" / line["variant"] / f"{line['task'] or 'pretraining'}-seed{line['seed']}")
        write_jsonl(out / "finished.jsonl", [line for line in lines if not is_removed(line)])

    return copy


class StopAfter(Silent):
    """Progress that raises KeyboardInterrupt after some runs."""

    def __init__(self, number):
        self.left = number

    def say(self, line):
        if re.match(r"run \d+ of", line):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt


class StopDuring(Silent):
    """Progress that presses Ctrl-C after the first step of a run."""

    def __init__(self, label):
        self.label = label

    def advance(self, amount, note=""):
        if self.label and amount and note.startswith(self.label):
            self.label = None
            signal.raise_signal(signal.SIGINT)


# Variants and tasks as words


BART = find_recipe("bart_tiny")


def test_variants_are_the_presets_of_denoising_by_default(monkeypatch):
    assert list(ablation_plan.parse_variants([], BART)) == list(NOISES)
    # A new noise joins by itself.
    monkeypatch.setitem(NOISES, "shuffle", NOISES["masking"])
    assert ablation_plan.parse_variants([], BART)["shuffle"] == ("objective.preset=shuffle",)


@pytest.mark.parametrize(
    ("text", "name", "settings"),
    [
        ("deletion", "deletion", ("objective.preset=deletion",)),
        ("plain:", "plain", ()),
        ("low:objective.noise_rate=0.1", "low", ("objective.noise_rate=0.1",)),
        (
            "two: objective.preset=masking , objective.noise_rate=0.3",
            "two",
            ("objective.preset=masking", "objective.noise_rate=0.3"),
        ),
        # The name of a preset chooses it, and other settings change it.
        ("mass:objective.noise_rate=0.3", "mass", ("objective.preset=mass", "objective.noise_rate=0.3")),
        ("mass:", "mass", ("objective.preset=mass",)),
        ("mass:objective.preset=t5", "mass", ("objective.preset=t5",)),
        ("nested:phases=[[1,2],[3,4]],batch.size=8", "nested", ("phases=[[1,2],[3,4]]", "batch.size=8")),
        ('quoted:a="x,\\"]",b=\'[\',c=1', "quoted", ('a="x,\\"]"', "b='['", "c=1")),
        ("copied:embedding_init=cooccurrence", "copied", ("embedding_init=cooccurrence",)),
        (
            "late:phases=[{start_ratio=0.5, size=8, sequence_length=32}],batch.size=8",
            "late",
            ("phases=[{start_ratio=0.5, size=8, sequence_length=32}]", "batch.size=8"),
        ),
    ],
)
def test_variant_has_a_name_and_settings(text, name, settings):
    assert ablation_plan.parse_variants([text], BART) == {name: settings}


@pytest.mark.parametrize("key", ["seed", "budget.steps", "evaluation.every", "evaluation.rows", "log_every", "init"])
def test_setting_that_variants_share_is_refused(key):
    with pytest.raises(ConfigError, match=rf"{key} is the same for all variants\. Set it with --set\."):
        ablation_plan.parse_variants([f"a:objective.noise_rate=0.1,{key}=1"], BART)


@pytest.mark.parametrize("key", ["seedling", "initx", "recipes.a", "evaluations"])
def test_setting_that_only_begins_like_a_shared_one_is_checked_as_any_other(key):
    assert ablation_plan.parse_variants([f"a:{key}=1"], BART) == {"a": (f"{key}=1",)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("reviews.csv", ("reviews", "classify", "reviews.csv")),
        ("tags.conll", ("tags", "tag", "tags.conll")),
        ("mood=reviews.csv", ("mood", "classify", "reviews.csv")),
        ("seq2seq:pairs.tsv", ("pairs", "seq2seq", "pairs.tsv")),
        ("fr=seq2seq:a.en,a.fr", ("fr", "seq2seq", "a.en,a.fr")),
        ("a.en,a.fr", ("a", "seq2seq", "a.en,a.fr")),
        ("classify:SST-2/train.tsv", ("SST-2", "classify", "SST-2/train.tsv")),
        ("classify:hub:stanfordnlp/sst2", ("sst2", "classify", "hub:stanfordnlp/sst2")),
        ("reviews.toml", ("reviews", None, "reviews.toml")),
    ],
)
def test_task_has_a_name_a_kind_and_files(files, monkeypatch, text, expected):
    monkeypatch.chdir(files)
    assert ablation_plan._parse_task(text) == expected


# Runs


def test_each_variant_is_pretrained_once_and_fine_tuned_on_each_task_with_each_seed(finished):
    folder, result = finished
    records = {(line["variant"], line["task"], line["seed"]): line for line in read_jsonl(folder / "finished.jsonl")}
    tuned = {(v, t, s) for v in ("random", "infilling", "rotation") for t in ("reviews", "lower") for s in (0, 1)}
    assert set(records) == tuned | {("infilling", "", 0), ("rotation", "", 0)}
    assert {line["steps"] for key, line in records.items() if key[1]} == {3}
    assert {line["steps"] for key, line in records.items() if not key[1]} == {4}
    assert result["runs"] == 14 and "failed" not in result
    assert [row["variant"] for row in result["table"]] == ["infilling", "rotation", "random"]
    assert result["metrics"] == {"reviews": "accuracy", "lower": "bleu"}


def test_logs_and_pretrained_models_are_kept_but_no_checkpoints(finished):
    folder, _ = finished
    content = content_of(folder)
    assert all(read_jsonl(folder / run["log"]) for run in content["runs"])
    models = {str(path.parent.relative_to(folder / "variants")) for path in folder.rglob("model.safetensors")}
    assert models == {"random/model", "infilling/pretraining-seed0/final", "rotation/pretraining-seed0/final"}
    assert not list(folder.rglob("checkpoints"))


def test_fine_tuning_starts_from_the_variant_and_the_baseline_from_random_weights(ablate, files, monkeypatch):
    seen = []
    run_finetuning = ablation_runs.run_finetuning

    def record(config, data, folder, **options):
        seen.append((config.model.split("variants/")[1], config.seed, config.reinitialize))
        return run_finetuning(config, data, folder, **options)

    monkeypatch.setattr(ablation_runs, "run_finetuning", record)
    ablate(variants=["infilling"], tasks=[f"classify:{files}/reviews.csv"])
    pretrained = "infilling/pretraining-seed0/final"
    assert seen == [
        *[("random/model", seed, "all") for seed in (0, 1)],
        *[(pretrained, seed, "nothing") for seed in (0, 1)],
    ]


def test_fine_tunings_take_turns_with_several_pretrainings():
    task = FinetuneConfig(model="m", train=("t.csv",))
    config = ablation_plan.AblationConfig({"a": ()}, {"t": task}, 3, 2, run=BART)
    assert [config.pretraining_seed(seed) for seed in config.seeds()] == [0, 1, 0]
    assert config.cells() == [
        ("random", "t", 0),
        ("random", "t", 2),
        ("a", "", 0),
        ("a", "t", 0),
        ("a", "t", 2),
        ("random", "t", 1),
        ("a", "", 1),
        ("a", "t", 1),
    ]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((3, 1), (6, 2), (0, 0, 0, 1, 1, 1)),
        ((3, 1), (5, 3), (0, 0, 0, 1, 2)),
        ((4, 2), (5, 2), (0, 1, 0, 1, 0)),
        ((2, 2), (4, 4), (0, 1, 2, 3)),
        ((4, 2), (3, 2), (0, 1, 0, 1)),
    ],
)
def test_more_seeds_leave_the_pretraining_of_finished_fine_tunings_as_it_was(before, after, expected):
    stored = made_up(before[0], num_pretraining_seeds=before[1])
    now = made_up(after[0], num_pretraining_seeds=after[1]).with_seeds_of(stored)
    assert now.pretraining_seeds == expected
    assert {cell.seed for cell in now.cells() if not cell.task} == set(range(after[1]))
    # Once more, with fewer fine-tunings for a while.
    fewer = replace(now, num_seeds=after[1], pretraining_seeds=()).with_seeds_of(now)
    assert replace(now, pretraining_seeds=()).with_seeds_of(fewer).pretraining_seeds == expected


def test_pretrainings_may_be_added_with_fine_tunings_of_their_own(ablate, copied, finished, tmp_path):
    copied(lambda line: False)
    lines = read_jsonl(tmp_path / "out" / "finished.jsonl")
    with pytest.raises(ConfigError, match=r"was 1, is now 2: the fine-tunings of 2 seeds keep .* Pass --num-seeds 3 "):
        ablate(resume=True, num_pretraining_seeds=2)
    assert read_jsonl(tmp_path / "out" / "finished.jsonl") == lines
    result = ablate(resume=True, num_pretraining_seeds=2, num_seeds=3)
    added = read_jsonl(tmp_path / "out" / "finished.jsonl")[len(lines) :]
    assert {(line["variant"], line["task"], line["seed"]) for line in added} == {
        *[(variant, "", 1) for variant in ("infilling", "rotation")],
        *[(v, task, 2) for v in ("infilling", "rotation", "random") for task in ("reviews", "lower")],
    }
    assert result["runs"] == 22
    with pytest.raises(CheckpointError, match="num_pretraining_seeds was 2, is now 1"):
        ablate(resume=True, num_pretraining_seeds=1, num_seeds=3)


def test_mask_rates_of_a_bert_are_ablated_on_understanding_tasks(ablate, files):
    tasks = [f"{files}/reviews.toml", f"tag:{files}/tags.conll"]
    variants = ["low:objective.mask_rate=0.1", "high:objective.mask_rate=0.6"]
    short = ["budget.epochs=none", *SHORT]
    result = ablate("bert_tiny", tasks=tasks, variants=variants, settings=SMALL, finetune_settings=short, num_seeds=1)
    assert list(result["table"][0]) == ["variant", "reviews", "tags", "understanding_mean"]
    assert [row["variant"] for row in result["table"]] == ["low", "high", "random"]


def test_budget_in_operations_gives_each_variant_as_many(ablate, tmp_path, files):
    budget = 1.5e8
    tasks = [f"classify:{files}/reviews.csv"]
    variants = ["masking", "long:objective.preset=masking,batch.size=8"]
    settings = [*SMALL_BART, "evaluation.every=1000"]
    ablate(steps=None, flops=budget, tasks=tasks, variants=variants, settings=settings, num_seeds=1)
    masking, long = content_of(tmp_path / "out")["pretraining"]
    assert masking["flops"] == pytest.approx(budget, rel=0.05)
    assert long["flops"] == pytest.approx(budget, rel=0.05)
    assert masking["steps"] == pytest.approx(2 * long["steps"], rel=0.1)


def planned(tiny, flops):
    run = with_settings(BART, [*SMALL_BART, *(["budget.steps=4"] if flops is None else [])])
    data = tiny / "data"
    return ablation_plan.plan_variant("a", run, open_shards(str(data)), load_tokenizer(data / "tokenizer"), flops)


def test_budget_in_operations_far_from_full_steps_is_noted(tiny):
    many = planned(tiny, 1e9)
    assert many.flops_ratio == pytest.approx(1, abs=0.05)
    step = 1e9 * many.flops_ratio / many.steps
    few = planned(tiny, 0.3 * step)
    assert (few.steps, few.flops_ratio) == (1, pytest.approx(1 / 0.3))
    assert ablation_plan.rounding_notes({"many": many, "counted": planned(tiny, None)}) == []
    [note] = ablation_plan.rounding_notes({"many": many, "few": few})
    assert note == "full steps differ from the budget in FLOPs: few 1 step (333%)"


def test_batches_of_a_plan_are_made_one_after_the_other(tiny, monkeypatch):
    calls = []
    make, count = ablation_plan.batches_of_step, ablation_plan.step_flops
    monkeypatch.setattr(ablation_plan, "batches_of_step", lambda *args: calls.append("make") or make(*args))
    monkeypatch.setattr(ablation_plan, "step_flops", lambda *args: calls.append("count") or count(*args))
    planned(tiny, 1e9)
    assert calls == ["make", "count"] * 16


# Results


def test_scores_are_those_of_the_runs(finished):
    folder, result = finished
    content = content_of(folder)
    records = {(r["variant"], r["task"], r["seed"]): r for r in read_jsonl(folder / "finished.jsonl") if r["task"]}
    for variant in ("infilling", "rotation", "random"):
        each = [100 * records[variant, "reviews", seed]["metrics"]["accuracy"] for seed in (0, 1)]
        row = content["scores"][variant]["reviews"]
        assert list(row["each"].values()) == pytest.approx(each)
        assert (row["mean"], row["spread"]) == pytest.approx((sum(each) / 2, abs(each[0] - each[1]) / math.sqrt(2)))
        # Two seeds bound nothing.
        assert row["interval"] is None
        # BLEU is in points already.
        bleu = [records[variant, "lower", seed]["metrics"]["bleu"] for seed in (0, 1)]
        assert content["scores"][variant]["lower"]["mean"] == pytest.approx(np.mean(bleu))
        logged = read_jsonl(folder / "variants" / variant / "reviews-seed0" / "log.jsonl")
        final = [line for line in logged if line["kind"] == "evaluation"][-1]
        assert final["dev_accuracy"] == records[variant, "reviews", 0]["metrics"]["accuracy"]
    assert any("no difference is established" in sentence for sentence in result["summary"])


def test_differences_are_paired_and_baselines_need_no_model(finished):
    folder, _ = finished
    content = content_of(folder)
    scores, found = content["scores"], {(row["variant"], row["column"]): row for row in content["differences"]}
    assert set(found) == {(v, c) for v in ("infilling", "rotation") for c in ("reviews", "lower")}
    for (variant, column), row in found.items():
        pairs = zip(scores[variant][column]["each"].values(), scores["random"][column]["each"].values(), strict=True)
        differences = [a - b for a, b in pairs]
        assert row["mean"] == pytest.approx(np.mean(differences))
        assert row["spread"] == pytest.approx(np.std(differences, ddof=1))
        assert row["seeds"] == 2
    assert 50 <= content["tasks"]["reviews"]["baseline"] < 100
    # Copying gives all words but the first in lower case, which differ.
    assert 50 < content["tasks"]["lower"]["baseline"] < 100


def test_with_three_seeds_there_are_intervals(ablate, files, tmp_path):
    ablate(variants=["masking"], tasks=[f"classify:{files}/reviews.csv"], num_seeds=3, steps=1)
    content = content_of(tmp_path / "out")
    row = content["scores"]["random"]["reviews"]
    half = 4.302653 * row["spread"] / math.sqrt(3)
    assert row["interval"] == pytest.approx([row["mean"] - half, row["mean"] + half], rel=1e-6)
    assert not any("no difference is established" in sentence for sentence in content["summary"])


def made_up(num_seeds, num_pretraining_seeds=1):
    """Config of an ablation that is never run."""
    run = replace(BART, budget=BudgetConfig(steps=4))
    task = FinetuneConfig(model="m", train=("t.csv",))
    return ablation_plan.AblationConfig({"a": (), "b": ()}, {"t": task}, num_seeds, num_pretraining_seeds, run=run)


def test_rows_that_tie_are_all_starred_and_named():
    scores = {"a": {"t": {0: 50.0, 1: 50.0}}, "b": {"t": {0: 49.0, 1: 51.0}}, "random": {"t": {0: 10.0, 1: 10.0}}}
    best = {"t": find_best(scores, "t")}
    sentence = ablation_results._sentences(scores, ["t"], best, {}, made_up(2))[0]
    assert sentence.startswith("best on t, tied: a (50.0 ± 0.0), b (50.0 ± 1.4); with 2 seeds ")
    rows = {name: {"t": ablation_results._statistics(by_column["t"])} for name, by_column in scores.items()}
    content = {"scores": rows, "best": {"t": {"variants": best["t"][0]}}}
    texts = [ablation_results.score_text(content, name, "t") for name in scores]
    assert texts == ["50.0 ± 0.0*", "50.0 ± 1.4*", "10.0 ± 0.0"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            {"a": [60.0, 61.0, 62.0], "b": [50.0, 51.0, 52.0]},
            "best on t: a (61.0 ± 1.0); ahead of all others by paired 95 % intervals",
        ),
        ({"a": [60.0, 61.0, 62.0], "b": [50.0, 61.0, 66.0]}, "best on t: a (61.0 ± 1.0); not distinguishable: b"),
        # Behind a by intervals, not behind b, which ties with a.
        (
            {"a": [50.0, 50.0, 50.0], "b": [40.0, 50.0, 60.0], "random": [45.0, 45.0, 45.0]},
            "best on t, tied: a (50.0 ± 0.0), b (50.0 ± 10.0); not distinguishable: random weights",
        ),
        # No other row to be ahead of.
        ({"a": [50.0, 50.0, 50.0], "b": [49.0, 50.0, 51.0]}, "best on t, tied: a (50.0 ± 0.0), b (50.0 ± 1.0)"),
        ({"a": [50.0, 50.0, 50.0], "b": []}, "best on t: a (50.0 ± 0.0)"),
    ],
)
def test_best_row_is_ahead_only_of_rows_with_scores_that_are_tested(rows, expected):
    scores = {row: {"t": dict(enumerate(each))} for row, each in ({"random": []} | rows).items()}
    assert ablation_results._sentences(scores, ["t"], {"t": find_best(scores, "t")}, {}, made_up(3))[0] == expected


def test_single_row_with_scores_of_few_seeds_is_compared_with_none():
    scores = {"random": {"t": {}}, "a": {"t": {0: 50.0}}}
    sentences = ablation_results._sentences(scores, ["t"], {"t": find_best(scores, "t")}, {}, made_up(1))
    assert sentences == ["best on t: a (50.0)"]


@pytest.mark.parametrize(("num_seeds", "number"), [(1, 0), (2, 3), (3, 4)])
def test_notes_explain_deviations_and_intervals_only_if_there_are_some(num_seeds, number):
    notes = ablation_results._notes(made_up(num_seeds), ablation_plan.AblationData({}, {}, {"t": 1e-3}, {}), {})
    found = [note for note in notes if "±" in note or "interval" in note]
    assert len(found) == number, found


@pytest.mark.parametrize(
    ("recipe", "settings", "expected"),
    [
        ("bart_tiny", ["objective.preset=masking"], True),
        ("bart_tiny", ["objective.preset=t5"], True),
        ("bart_tiny", ["objective.preset=t5", "objective.unit=word"], False),
        ("bart_tiny", ["batch.size=8"], False),
        ("bart_tiny", ["phases=[{start_ratio=0.5, size=8, sequence_length=32}]"], False),
        ("bert_tiny", ["objective.mask_rate=0.3"], True),
        ("bert_tiny", ["objective.sentences=next", "objective.causal_start_ratio=0"], False),
        ("gpt_tiny", ["objective.direction=backward"], False),
    ],
)
def test_note_says_that_variants_read_the_same_text_only_if_they_do(recipe, settings, expected):
    run = replace(find_recipe(recipe), budget=BudgetConfig(steps=4))
    runs = {"a": run, "b": with_settings(run, settings)}
    plans = {name: ablation_plan.VariantPlan(each, None, 0, 0) for name, each in runs.items()}
    notes = ablation_results._notes(made_up(1), ablation_plan.AblationData({}, plans, {"t": 1e-3}, {}), {})
    assert notes[0] == "training budget of each variant: 4 steps" + "; the same text in the same order" * expected


def test_command_prints_the_table_and_writes_a_report(finished, command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ablation, "write_ablation_report", write_ablation_report)
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    (out / "ablate.json").unlink()
    assert main([*command, "--resume", "-q"]) == 0
    printed = capsys.readouterr().out
    assert "rotation" in printed and "±" in printed and "*" in printed
    page = Page((out / "report.html").read_text())
    assert_loads_nothing_and_runs_nothing(page)
    assert page.source.count("<svg") == 1
    for text in (
        "random weights",
        "baseline (no model)",
        "FLOPs",
        "reviews, accuracy",
        "lower, BLEU",
        "Gain over random weights",
    ):
        assert text in page.text
    for name in ("ablate.svg", "ablate.png"):
        assert (out / name).stat().st_size > 1000
    assert main(["inspect", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ablation"] == str(out)
    assert stemformer.list_runs(str(out))[0]["kind"] == "ablation"


# Failures


def test_failed_run_is_kept_as_failed_and_made_again_on_resume(ablate, copied, finished, monkeypatch, tmp_path):
    def fail(config, data, folder, **options):
        raise TrainingError("Step 2: loss not finite.", advice="Pass --overwrite.")

    copied(lambda line: (line["variant"], line["task"], line["seed"]) == ("rotation", "reviews", 1))
    with monkeypatch.context() as patch:
        patch.setattr(ablation_runs, "run_finetuning", fail)
        result = ablate(resume=True)
    [error] = result["failed"]
    assert error.startswith("rotation, reviews, seed 1: Step 2: loss not finite. Lower it with --finetune-set ")
    assert "--overwrite" not in error and "--resume" in error
    assert result["exit_code"] == 4
    assert result["runs"] == 13
    assert result["summary"][0] == "1 run failed: missing here, made again by --resume"
    assert list(content_of(tmp_path / "out")["scores"]["rotation"]["reviews"]["each"]) == ["0"]
    assert read_jsonl(tmp_path / "out" / "finished.jsonl")[-1]["failed"] == error.partition("seed 1: ")[2]
    again = ablate(resume=True)
    assert "failed" not in again and "exit_code" not in again
    assert again["table"] == finished[1]["table"]


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (
            TrainingError("Step 2: loss not finite.", advice="Pass --overwrite."),
            "Step 2: loss not finite. Instead of it, pass a variant of another name with a lower "
            "optimizer.learning_rate, and --resume.",
            4,
        ),
        (torch.OutOfMemoryError("no room"), "Out of memory: no room. Free memory and pass --resume.", 2),
        (MemoryError(), "Out of memory: MemoryError. Free memory and pass --resume.", 2),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "Out of memory: DefaultCPUAllocator: can't allocate memory. Free memory and pass --resume.",
            2,
        ),
    ],
)
def test_variant_whose_pretraining_fails_is_missing_from_the_table(ablate, copied, monkeypatch, error, message, code):
    def fail(recipe, **options):
        raise error

    copied(lambda line: line["variant"] == "rotation")
    monkeypatch.setattr(ablation_runs, "pretrain", fail)
    result = ablate(resume=True)
    assert result["failed"] == [
        f"rotation, pre-training, seed 0: {message}",
        *[
            f"rotation, {task}, seed {seed}: Its pre-training failed: {message}"
            for seed in (0, 1)
            for task in ("reviews", "lower")
        ],
    ]
    assert result["exit_code"] == code
    assert {row["variant"]: row["reviews"] for row in result["table"]}["rotation"] == "-"


@pytest.mark.parametrize("error", [KeyError("steps"), RuntimeError("shapes 3 and 4 cannot be multiplied")])
def test_our_own_bugs_are_not_taken_for_failed_runs(ablate, copied, finished, monkeypatch, error):
    def fail(recipe, **options):
        raise error

    copied(lambda line: line["variant"] == "rotation")
    with monkeypatch.context() as patch:
        patch.setattr(ablation_runs, "pretrain", fail)
        with pytest.raises(type(error)):
            ablate(resume=True)
    assert ablate(resume=True)["table"] == finished[1]["table"]


def test_command_with_failed_runs_prints_the_table_and_ends_with_their_exit_code(command, copied, capsys, monkeypatch):
    def fail(config, data, folder, **options):
        raise TrainingError("Step 2: loss not finite.")

    copied(lambda line: (line["variant"], line["task"], line["seed"]) == ("rotation", "reviews", 1))
    monkeypatch.setattr(ablation_runs, "run_finetuning", fail)
    assert main([*command, "--resume", "-q"]) == 4
    out, err = capsys.readouterr()
    assert "infilling" in out and "Step 2: loss not finite." in out
    [line] = err.splitlines()
    assert line.startswith("error: 1 of 14 runs failed") and "--resume to make it again" in line


# Resuming


def test_interrupted_ablation_gives_the_same_table_bit_for_bit(ablate, finished, tmp_path):
    out = tmp_path / "out"
    stops = [StopAfter(2), StopDuring("random weights, lower, seed 1"), StopDuring("rotation, pre-training")]
    for progress in (*stops, StopAfter(1)):
        with pytest.raises(KeyboardInterrupt):
            ablate(progress=progress, resume=out.exists())
    # The interrupted pre-training continued from its checkpoint.
    log = read_jsonl(out / "variants" / "rotation" / "pretraining-seed0" / "log.jsonl")
    assert [line["step"] for line in log if line["kind"] == "train"] == [1, 2, 3, 4]
    result = ablate(resume=True)
    assert result["table"] == finished[1]["table"]
    assert without_seconds(content_of(out)) == without_seconds(content_of(finished[0]))


def test_run_that_was_killed_before_its_record_was_written_is_not_made_again(ablate, finished, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    write_jsonl(out / "finished.jsonl", read_jsonl(out / "finished.jsonl")[:-2])
    monkeypatch.setattr(ablation_runs, "run_finetuning", None)
    assert ablate(resume=True)["table"] == finished[1]["table"]


def test_variants_may_be_added(ablate, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "out")
    lines = read_jsonl(tmp_path / "out" / "finished.jsonl")
    result = ablate(variants=["infilling", "masking", "rotation"], resume=True)
    assert result["runs"] == 19
    assert [row["variant"] for row in result["table"]] == ["infilling", "masking", "rotation", "random"]
    assert read_jsonl(tmp_path / "out" / "finished.jsonl")[:14] == lines


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 5}, "run.budget.steps was 4, is now 5"),
        ({"seed": 1}, "seed was 0, is now 1"),
        ({"finetune_settings": ["budget.steps=4"]}, "Cannot resume task 'reviews' with other settings"),
        ({"variants": ["infilling:objective.preset=infilling,objective.noise_rate=0.2"]}, "variants was"),
        ({"recipe": "bert_tiny", "settings": SMALL}, "was bart_tiny, is now bert_tiny"),
    ],
)
def test_resume_with_other_settings_is_refused(ablate, files, finished, tiny, options, message):
    usual = {"tasks": [f"reviews=classify:{files}/reviews.csv"], "num_seeds": 1, "variants": ["infilling"]}
    if "recipe" in options:
        options = {**options, "variants": ["infilling:objective.mask_rate=0.2"]}
    with pytest.raises(CheckpointError, match=re.escape(message)):
        small(tiny, files, finished[0], **{**usual, "resume": True, **options})


# Warnings


@pytest.mark.parametrize(
    ("settings", "variants", "kinds"),
    [
        (["schedule.kind=cosine"], ["infilling", "rotation"], ["cosine"]),
        ([], ["infilling", "cosine:schedule.kind=cosine"], ["cosine"]),
        # Variants that set the same kind, and one that sets another.
        (
            ["schedule.kind=cosine"],
            ["a:schedule.kind=constant", "b:schedule.kind=constant,objective.preset=mass", "rotation"],
            ["cosine", "constant"],
        ),
        ([], ["infilling", "rotation"], []),
    ],
)
def test_schedule_without_effect_is_warned_of_once(ablate, settings, variants, kinds):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        ablate(steps=None, time="1m", settings=[*SMALL_BART, *settings], variants=variants, show_config=True)
    starts = [str(warning.message).partition(" has no effect")[0] for warning in found]
    assert starts == [f"schedule.kind = {kind}" for kind in kinds]


def test_pretraining_of_a_variant_does_not_repeat_the_warning(ablate, copied, monkeypatch):
    class StopError(Exception):
        pass

    def stop(recipe, **options):
        warnings.warn("schedule.kind = cosine has no effect with a budget of time", stacklevel=1)
        raise StopError

    copied(lambda line: line["variant"] == "rotation")
    monkeypatch.setattr(ablation_runs, "pretrain", stop)
    # Warnings are errors.
    with pytest.raises(StopError):
        ablate(resume=True)


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": None}, "No training budget. Pass --steps, --tokens, --time or --flops"),
        ({"flops": 1e9}, "Two training budgets (--flops and another one)"),
        ({"steps": None, "flops": -1.0}, "--flops is -1.0: expected a number above 0"),
        ({"num_seeds": 0}, "--num-seeds is 0: expected at least 1"),
        ({"num_pretraining_seeds": 3}, "--num-pretraining-seeds is 3, more than --num-seeds 2"),
        ({"tasks": []}, "No tasks. Pass a labelled file"),
        ({"tasks": ["clasify:x.csv"]}, "--task clasify:x.csv: expected TASK:FILE"),
        ({"tasks": ["x.csv"]}, "--task x.csv: The file does not exist"),
        ({"tasks": ["a=classify:{}/reviews.csv", "a=tag:{}/tags.conll"]}, "There are two of the name 'a'"),
        ({"tasks": ["seq2seq:{}/reviews.csv"]}, "Task 'reviews': "),
        ({"tasks": ["pretraining=classify:{}/reviews.csv"]}, "'pretraining' has a meaning of its own"),
        ({"tasks": ["variant=classify:{}/reviews.csv"]}, "'variant' has a meaning of its own"),
        ({"tasks": ["classify:{}/none.csv"]}, "none.csv"),
        ({"settings": [*SMALL_BART, "init=x"]}, "init has no effect"),
        ({"finetune_settings": ["reinitialize=all"]}, "reinitialize is set for the row of random weights alone"),
        ({"finetune_settings": ["evaluation.patience=2"]}, "evaluation.patience selects a model"),
        ({"variants": ["deletoin"]}, "did you mean 'deletion'?"),
        ({"variants": ["low:noise"]}, "got 'noise'"),
        ({"variants": ["random:objective.noise_rate=0.1"]}, "'random' is the name of the row of random weights"),
        ({"variants": ["a/b:"]}, "'a/b' is not a valid name"),
        ({"variants": [":objective.x=1"]}, "--variant :objective.x=1: The name before the colon is missing"),
        ({"variants": ["a:phases=[1"]}, "--variant a:phases=[1: [ is not closed. Add ]"),
        ({"variants": ["a:", "a:"]}, "There are two of the name 'a'"),
        ({"variants": ["a:budget.steps=9"]}, "budget.steps is the same for all variants"),
        ({"variants": ["infilling_permutation", "b:"]}, "'infilling_permutation' and 'b' have the same settings"),
        ({"variants": ["a:objective.nois_rate=0.1"]}, "Variant 'a': "),
        (
            {"variants": ["rotation", "a:batch.size=4000"]},
            "Variant 'a' cannot be trained: ",
        ),
        ({"recipe": "bert_tiny", "settings": SMALL, "variants": []}, "No variants, and the objective of bert_tiny"),
        ({"recipe": "bert_tiny", "settings": SMALL, "variants": ["a:"]}, "Task 'lower': "),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(ablate, files, tmp_path, options, message):
    if "tasks" in options:
        options = {**options, "tasks": [text.replace("{}", str(files)) for text in options["tasks"]]}
    with pytest.raises(StemformerError, match=re.escape(message)):
        ablate(**options)
    assert not (tmp_path / "out").exists()


def test_disk_that_is_too_small_is_refused(ablate, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ConfigError, match=r"needs about 0\.\d GB, 0\.0 GB are free\. Make room"):
        ablate()
    assert not (tmp_path / "out").exists()


def test_config_is_shown(ablate, tmp_path):
    text = ablate(show_config=True)["config"]
    assert '[tasks.lower.task]\nname = "seq2seq"' in text and "num_seeds = 2" in text
    assert not (tmp_path / "out").exists()
