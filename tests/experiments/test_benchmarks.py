"""Benchmark commands on a tiny random BERT with small files in the formats of GLUE and SQuAD."""

import json
import shutil

import numpy as np
import pytest
import torch

from stemformer.cli.app import main
from stemformer.commands import finetune as finetuning
from stemformer.commands.load import load
from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.errors import CheckpointError, ConfigError, DataError, TrainingError
from stemformer.evaluation.benchmarks import GLUE
from stemformer.experiments import benchmark_runs, benchmarks
from stemformer.huggingface.load import load_model
from stemformer.huggingface.save import save_model
from stemformer.models.bert import BertConfig
from stemformer.models.model import make_model
from stemformer.tasks.metrics import squad_metrics

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
NUM_TRAIN, NUM_DEV, NUM_TEST = 24, 10, 6
TESTS = [name for task in GLUE.values() for name in task.tests]

COLUMNS = {
    "CoLA": (None, "gj04\t{label}\t\t{a}", "index\tsentence", "{i}\t{a}"),
    "SST-2": ("sentence\tlabel", "{a}\t{label}", "index\tsentence", "{i}\t{a}"),
    "MRPC": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "{label}\t1\t2\t{a}\t{b}",
        None,
        "{i}\t1\t2\t{a}\t{b}",
    ),
    "QQP": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "{i}\t1\t2\t{a}\t{b}\t{label}",
        None,
        "{i}\t{a}\t{b}",
    ),
    "STS-B": ("index\tgenre\tsentence1\tsentence2\tscore", "{i}\tx\t{a}\t{b}\t{score}", None, "{i}\tx\t{a}\t{b}"),
    "MNLI": ("index\tsentence1\tsentence2\tlabel1\tgold_label", "{i}\t{a}\t{b}\tx\t{label}", None, "{i}\t{a}\t{b}"),
    "QNLI": ("index\tquestion\tsentence\tlabel", "{i}\t{a}\t{b}\t{label}", None, "{i}\t{a}\t{b}"),
    "RTE": ("index\tsentence1\tsentence2\tlabel", "{i}\t{a}\t{b}\t{label}", None, "{i}\t{a}\t{b}"),
    "WNLI": ("index\tsentence1\tsentence2\tlabel", "{i}\t{a}\t{b}\t{label}", None, "{i}\t{a}\t{b}"),
}
"""Header and line of the training and dev files, then of the test files."""

TEST_HEADERS = {
    "MRPC": "index\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "QQP": "id\tquestion1\tquestion2",
    "STS-B": "index\tgenre\tsentence1\tsentence2",
    "QNLI": "index\tquestion\tsentence",
}


def write_glue(folder):
    rng = np.random.default_rng(0)
    words = ["the old king", "a green river", "the small child", "a wise teacher", "the quiet garden"]

    def line(form, task, i):
        a, b = (f"{words[k]} sees {words[j]}" for k, j in rng.integers(5, size=(2, 2)))
        label = task.labels[i % 3 % len(task.labels)] if task.labels else ""
        return form.format(i=i, a=a, b=b, label=label, score=f"{rng.random() * 5:.3f}")

    for name, (header, form, test_header, test_form) in COLUMNS.items():
        task = GLUE[name]
        test_header = test_header or TEST_HEADERS.get(name, "index\tsentence1\tsentence2")
        parts = [
            (task.train, NUM_TRAIN),
            (task.dev, NUM_DEV),
            *([(task.mismatched, NUM_DEV)] if task.mismatched else []),
        ]
        for file, number in parts:
            write(folder / name / file, [*([header] if header else []), *(line(form, task, i) for i in range(number))])
        for file in task.tests.values():
            write(folder / name / file, [test_header, *(line(test_form, task, i) for i in range(NUM_TEST))])
    return folder


def write(file, lines):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def no_timing():
    """Skip the measurement of the machine and the report of each run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning, "matmul_rate", lambda *args, **kwargs: 1e11)
        patch.setattr(finetuning, "write_task_report", lambda *args, **kwargs: None)
        yield


@pytest.fixture(scope="module")
def root(tiny, tmp_path_factory):
    """Directory with model/ and glue/; not to be changed."""
    root = tmp_path_factory.mktemp("benchmarks")
    tokenizer = load_tokenizer(str(tiny / "tok"))
    config = BertConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=64, **SIZES)
    model = make_model(config, ("masked_lm",), generator=torch.Generator().manual_seed(0))
    save_model(model, root / "model", tokenizer)
    write_glue(root / "glue")
    return root


def run(root, out, **options):
    options = {"learning_rates": [1e-3], "epochs": 1, "batch_size": 8, "precision": "fp32"} | options
    return benchmarks.benchmark_glue(str(root / "glue"), **{"model": str(root / "model"), "out": str(out)} | options)


@pytest.fixture(scope="module")
def finished(root):
    """Directory and result of all nine tasks, with a warm start and a submission."""
    out = root / "finished"
    return out, run(root, out, from_task="MNLI", submission=True)


def tasks_of(out):
    return {record["task"]: record for record in json.loads((out / "glue.json").read_text())["tasks"]}


def test_every_task_has_its_official_metrics(finished):
    out, result = finished
    for name, task in tasks_of(out).items():
        assert tuple(task["metrics"]) == GLUE[name].metrics
        assert set(task["baseline"]) == set(GLUE[name].metrics)
        assert (task["train"], task["dev"]) == (NUM_TRAIN, NUM_DEV)
    metrics = [(row["task"], row["metric"]) for row in result["table"]]
    assert len(metrics) == sum(len(task.metrics) for task in GLUE.values())
    assert ("MNLI", "accuracy, other genres") in metrics and ("CoLA", "Matthews") in metrics


def test_metrics_are_those_of_the_saved_model(finished):
    out, _ = finished
    result = tasks_of(out)["MNLI"]
    loaded = load(result["model"])
    rows = [json.loads(line) for line in (out / "data" / "MNLI" / "dev.jsonl").read_text().splitlines()]
    predictions = loaded.predict([(row["sentence1"], row["sentence2"]) for row in rows])
    right = [p.label == row["gold_label"] for p, row in zip(predictions, rows, strict=True)]
    assert result["metrics"]["accuracy"]["mean"] == pytest.approx(np.mean(right))


def test_baseline_is_the_most_frequent_class(finished):
    baseline = {name: result["baseline"] for name, result in tasks_of(finished[0]).items()}
    # of ten dev records with classes 0 1 0 | 0 1 0 | 0 1 0 | 0, seven are of the most frequent one
    assert baseline["WNLI"] == baseline["SST-2"] == {"accuracy": 0.7}
    assert baseline["MRPC"] == {"accuracy": 0.7, "f1": 0.0}
    assert baseline["CoLA"] == {"matthews": 0.0} and baseline["STS-B"] == {"pearson": 0.0, "spearman": 0.0}
    assert baseline["MNLI"] == {"accuracy": 0.4, "accuracy_mismatched": 0.4}


def test_published_results_are_listed_with_their_split(finished):
    _, result = finished
    rows = {(row["task"], row["metric"]): row for row in result["table"]}
    assert rows["RTE", "accuracy"]["bert_base_test"] == "66.4"
    assert rows["QQP", "F1"]["bert_tiny_test"] == "62.2"
    assert rows["WNLI", "accuracy"]["bert_base_test"] == ""
    assert any("not the same data" in note for note in result["notes"])
    assert any(
        note.startswith("BERT-Base test, BERT-Large test: Devlin et al. 2019, table 1") for note in result["notes"]
    )
    assert any(note.startswith("WNLI") for note in result["notes"])


def test_warm_start_is_used_and_noted(finished, root):
    out, result = finished
    starts = {row["task"]: row["start"] for row in result["table"]}
    assert {name for name, start in starts.items() if start == "MNLI"} == {"RTE", "MRPC", "STS-B"}
    assert result["table"][0]["task"] == "MNLI"  # it goes first
    assert any(
        note.startswith("MRPC, STS-B, RTE: warm start from the model fine-tuned on MNLI") for note in result["notes"]
    )
    config = (out / "RTE" / "rate-0.001" / "seed-0" / "config.toml").read_text()
    assert f'model = "{out}/MNLI/rate-0.001/seed-0/final"' in config


def test_submission_has_a_line_for_each_test_row_in_the_format_of_the_leaderboard(finished):
    out, result = finished
    assert sorted(path.name for path in (out / "submission").iterdir()) == sorted(TESTS)
    assert "not_submitted" not in result
    for name, task in GLUE.items():
        for file in task.tests:
            header, *lines = (out / "submission" / file).read_text().splitlines()
            assert header == "index\tprediction"
            numbers, answers = zip(*(line.split("\t") for line in lines), strict=True)
            assert list(numbers) == [str(i) for i in range(NUM_TEST)]
            if name == "STS-B":
                assert all(0 <= float(answer) <= 5 for answer in answers)
            else:
                assert set(answers) <= set(task.labels)


def test_report_loads_nothing(finished):
    page = (finished[0] / "report.html").read_text()
    assert page.count("<tr>") == 1 + len(finished[1]["table"])
    assert "BERT-Large test" in page and "src=" not in page and "http" not in page


def test_finished_runs_keep_the_model_but_no_checkpoints(finished):
    out, _ = finished
    assert not list(out.glob("*/rate-*/seed-*/checkpoints"))
    assert load_model(out / "RTE" / "rate-0.001" / "seed-0" / "final").heads.keys() == {"sequence"}


def test_other_seeds_use_the_best_learning_rate(root, tmp_path, monkeypatch):
    calls = []

    def fake(data, config, folder, compute, progress):
        [rate], seed = config.learning_rates, config.seed
        calls.append((rate, seed))
        accuracy = {1e-3: 0.5, 1e-4: 0.7, 1e-5: 0.6}[rate] + 0.1 * seed
        result = {"seed": seed, "metrics": {"accuracy": accuracy}, "mean_metric": accuracy, "seconds": 1.0}
        return result | {"model": str(folder / "final")}

    monkeypatch.setattr(benchmark_runs, "_run", fake)
    result = run(root, tmp_path / "out", tasks=["RTE"], num_seeds=3, learning_rates=[1e-3, 1e-4, 1e-5])
    assert calls == [(1e-3, 0), (1e-4, 0), (1e-5, 0), (1e-4, 1), (1e-4, 2)]
    task = tasks_of(tmp_path / "out")["RTE"]
    assert task["metrics"]["accuracy"] == {
        "mean": pytest.approx(0.8),
        "spread": pytest.approx(0.1),
        "each": pytest.approx([0.7, 0.8, 0.9]),
    }
    assert (task["learning_rate"], task["seconds"]) == (1e-4, 5.0)
    assert task["model"].endswith("rate-0.0001/seed-2/final")
    assert result["table"][0]["ours_dev"] == "80.0 ± 10.0"
    assert any("chosen on the same dev set" in note for note in result["notes"])


def test_learning_rates_of_the_paper_are_tried_by_default(root, tmp_path, monkeypatch):
    seen = []

    def fake(data, config, folder, compute, progress):
        task, [rate] = data.task, config.learning_rates
        seen.append((rate, config.epochs or task.epochs, config.batch_size or task.batch_size))
        return {"seed": 0, "metrics": {"accuracy": 0.5}, "mean_metric": 0.5, "seconds": 1.0, "model": str(folder)}

    monkeypatch.setattr(benchmark_runs, "_run", fake)
    run(root, tmp_path / "out", tasks=["WNLI"], learning_rates=[], epochs=None, batch_size=None)
    assert seen == [(rate, 3, 32) for rate in (5e-5, 4e-5, 3e-5, 2e-5)]


def test_tasks_without_files_are_named(root, tmp_path):
    shutil.copytree(root / "glue" / "RTE", tmp_path / "glue" / "RTE")
    shutil.copytree(root / "glue" / "QNLI", tmp_path / "glue" / "QNLI")
    (tmp_path / "glue" / "QNLI" / "train.tsv").unlink()
    (tmp_path / "model").symlink_to(root / "model")
    result = run(tmp_path, tmp_path / "out", submission=True)
    assert {row["task"] for row in result["table"]} == {"RTE"}
    assert len(result["missing"]) == 8
    assert any(line.startswith("QNLI is skipped") and "QNLI/train.tsv" in line for line in result["missing"])
    assert "QNLI: no QNLI.tsv (required by the leaderboard)" in result["not_submitted"]
    assert [path.name for path in (tmp_path / "out" / "submission").iterdir()] == ["RTE.tsv"]


def test_resume_continues_with_the_first_unfinished_run(root, tmp_path, monkeypatch):
    real, started = benchmark_runs.finetune, []

    def stopping(task, **options):
        started.append(options["out"].split("/")[-3])
        if len(started) == 4:
            raise KeyboardInterrupt
        return real(task, **options)

    monkeypatch.setattr(benchmark_runs, "finetune", stopping)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(root, out, tasks=["RTE", "WNLI"], num_seeds=2)
    assert [json.loads(line)["task"] for line in (out / "finished.jsonl").read_text().splitlines()] == ["RTE"]
    with (out / "finished.jsonl").open("a") as stream:
        stream.write('{"task": "WN')  # killed while writing
    result = run(root, out, tasks=["RTE", "WNLI"], num_seeds=2, resume=True)
    assert started == ["RTE", "RTE", "WNLI", "WNLI", "WNLI"]  # the first run of WNLI was finished
    assert [row["task"] for row in result["table"]] == ["RTE", "WNLI"]
    assert [json.loads(line)["task"] for line in (out / "finished.jsonl").read_text().splitlines()] == ["RTE", "WNLI"]


def test_resumed_run_has_the_same_metrics(root, tmp_path, monkeypatch):
    options = {"tasks": ["SST-2"], "settings": ["checkpoints.every=1", "evaluation.every=1"]}
    expected = run(root, tmp_path / "a", **options)
    real = finetuning.predict_scores
    calls = []

    def stopping(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(finetuning, "predict_scores", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(root, tmp_path / "b", **options)
    assert list((tmp_path / "b").glob("SST-2/rate-*/seed-0/checkpoints/step-*"))
    result = run(root, tmp_path / "b", **options, resume=True)
    assert result["table"] == expected["table"]
    assert (
        len(calls) == 4
    )  # three steps in all: the third evaluation, which had been stopped, and none of the first two


def test_resume_with_other_settings_is_refused(root, tmp_path):
    run(root, tmp_path / "out", tasks=["RTE"])
    with pytest.raises(CheckpointError, match="batch_size was 8, is now 4"):
        run(root, tmp_path / "out", tasks=["RTE"], batch_size=4, resume=True)


def test_directory_of_an_earlier_version_is_resumed(root, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(root, out, tasks=["RTE"])
    old_key = '"figure' + 's"'
    (out / "tasks.jsonl").write_text((out / "finished.jsonl").read_text().replace('"metrics"', old_key))
    (out / "finished.jsonl").unlink()
    official = out / "RTE" / "rate-0.001" / "seed-0" / "official.json"
    text = official.read_text().replace('"metrics"', old_key).replace('"mean_metric"', '"goodness"')
    official.write_text(text)
    (out / "config.toml").write_text((out / "config.toml").read_text().replace("num_seeds", "trials"))
    run(root, out, tasks=["RTE"], num_seeds=2, resume=True)
    assert len(tasks_of(out)["RTE"]["metrics"]["accuracy"]["each"]) == 2
    monkeypatch.setattr(benchmark_runs, "finetune", None)  # nothing is left to run
    run(root, out, tasks=["RTE"], num_seeds=2, resume=True)


def test_more_tasks_may_be_added(root, tmp_path):
    run(root, tmp_path / "out", tasks=["RTE"])
    result = run(root, tmp_path / "out", tasks=["RTE", "WNLI"], resume=True)
    assert [row["task"] for row in result["table"]] == ["RTE", "WNLI"]


def test_more_seeds_may_be_added(root, tmp_path):
    (first,) = run(root, tmp_path / "out", tasks=["RTE"])["table"]
    (row,) = run(root, tmp_path / "out", tasks=["RTE"], num_seeds=3, resume=True)["table"]
    result = tasks_of(tmp_path / "out")["RTE"]
    assert result["seeds"] == [0, 1, 2]
    assert f"{100 * result['metrics']['accuracy']['each'][0]:.1f}" == first["ours_dev"]
    assert (first["runs"], row["runs"]) == ("1 at 0.001", "3 at 0.001")
    assert [str(path) for path in (tmp_path / "out").glob("RTE/rate-*/seed-*/final")] == [result["model"]]


def test_seeds_cannot_be_added_if_a_task_starts_from_another(root, tmp_path, monkeypatch):
    def fake(data, config, folder, compute, progress):
        result = {"metrics": {"accuracy": 0.5}, "mean_metric": 0.5, "seconds": 1.0, "model": str(folder)}
        return result | {"seed": config.seed}

    monkeypatch.setattr(benchmark_runs, "_run", fake)
    run(root, tmp_path / "out", tasks=["QNLI", "RTE"], from_task="QNLI")
    with pytest.raises(CheckpointError, match="num_seeds was 1, is now 2"):
        run(root, tmp_path / "out", tasks=["QNLI", "RTE"], from_task="QNLI", num_seeds=2, resume=True)


def test_other_directory_is_not_resumed_or_overwritten(root, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds no benchmark to resume"):
        run(root, tmp_path, tasks=["RTE"], resume=True)
    with pytest.raises(ConfigError, match="holds nothing that stemformer made"):
        run(root, tmp_path, tasks=["RTE"], overwrite=True)
    with pytest.raises(ConfigError, match="lies in the output folder"):
        run(root, root, tasks=["RTE"], resume=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_warm_start_from_a_model_made_elsewhere(root, finished, tmp_path):
    start = str(finished[0] / "QNLI" / "rate-0.001" / "seed-0" / "final")
    result = run(root, tmp_path / "out", tasks=["RTE", "WNLI"], from_task=start)
    assert {row["task"]: row["start"] for row in result["table"]} == {"RTE": start, "WNLI": "the model"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tasks": ["RTW"]}, ConfigError, r"'RTW' does not exist \(did you mean 'RTE'"),
        ({"tasks": ["RTE"], "from_task": "MNLI"}, ConfigError, "--from-task MNLI: Its files are missing"),
        ({"tasks": ["RTE"], "num_seeds": 0}, ConfigError, "--num-seeds 0"),
        ({"tasks": ["RTE"], "learning_rates": [0.0]}, ConfigError, "--learning-rates 0.0"),
        ({"tasks": ["SWAG"]}, DataError, "has no task with training and dev files"),
        ({"model": "./nowhere"}, CheckpointError, "nowhere does not exist"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(root, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        run(root, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_warm_start_from_a_model_that_is_not_fine_tuned_is_refused(root, tmp_path):
    with pytest.raises(ConfigError, match="is not a fine-tuned model"):
        run(root, tmp_path / "out", tasks=["RTE"], from_task=str(root / "model"))


def test_failed_run_is_not_finished(root, tmp_path):
    with pytest.raises(TrainingError):
        run(root, tmp_path / "out", tasks=["RTE"], learning_rates=[1e30], settings=["log_every=1"], epochs=20)
    assert (tmp_path / "out" / "finished.jsonl").read_text() == ""


def test_swag_runs_if_named(root, tmp_path):
    names = ["video-id", "sent1", "sent2", *(f"ending{i}" for i in range(4)), "label"]
    rows = [",".join(names), *(f"v,the king,he,sees,follows,paints,forgets,{i % 3 % 2}" for i in range(12))]
    for file in ("train.csv", "val.csv"):
        write(tmp_path / "glue" / "SWAG" / file, rows)
    (tmp_path / "model").symlink_to(root / "model")
    result = run(tmp_path, tmp_path / "out", tasks=["SWAG"])
    (row,) = result["table"]
    assert (row["constant_dev"], row["bert_large_test"], row["bert_base_dev"]) == ("66.7", "86.3", "81.6")


# ------------------------------------------------------------------------------------------------------------------------------ SQuAD


def write_squad(file, number, *, has_unanswerable):
    paragraphs = []
    for i in range(number):
        context = f"the old king sees the river and the small child paints the garden {i}"
        answer = {"text": "the small child", "answer_start": context.index("the small child")}
        qas = [{"id": f"{file.stem}-{i}", "question": "who paints the garden?", "answers": [answer]}]
        if has_unanswerable:
            qas.append(
                {"id": f"{file.stem}-{i}-none", "question": "who forgets?", "answers": [], "is_impossible": True}
            )
        paragraphs.append({"context": context, "qas": qas})
    file.write_text(json.dumps({"version": "x", "data": [{"title": "t", "paragraphs": paragraphs}]}))
    return str(file)


def answer(root, tmp_path, **options):
    return benchmarks.benchmark_squad(
        options.pop("train"),
        model=str(root / "model"),
        out=str(tmp_path / "out"),
        epochs=1,
        batch_size=4,
        precision="fp32",
        **options,
    )


def test_squad_1_writes_what_the_official_script_reads(root, tmp_path):
    train = write_squad(tmp_path / "train.json", 8, has_unanswerable=False)
    dev = write_squad(tmp_path / "dev.json", 4, has_unanswerable=False)
    result = answer(root, tmp_path, train=[train], dev=[dev])
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    gold = {f"dev-{i}": ["the small child"] for i in range(4)}
    metrics = squad_metrics(gold, predictions)
    rows = {row["metric"]: row for row in result["table"]}
    assert set(predictions) == set(gold)
    assert rows["F1"]["ours_dev"] == f"{metrics['f1']:.1f}"
    assert rows["exact match"]["ours_dev"] == f"{metrics['exact_match']:.1f}"
    assert (rows["F1"]["task"], rows["F1"]["bert_base_dev"], rows["F1"]["constant_dev"]) == (
        "SQuAD 1.1",
        "88.5",
        "0.0",
    )
    assert "null_odds" not in result and not (tmp_path / "out" / "null_odds.json").exists()


def test_squad_2_tunes_its_threshold_and_writes_null_odds(root, tmp_path):
    train = write_squad(tmp_path / "train.json", 8, has_unanswerable=True)
    dev = write_squad(tmp_path / "dev.json", 4, has_unanswerable=True)
    result = answer(root, tmp_path, train=[train], dev=[dev], num_seeds=2)
    odds = json.loads((tmp_path / "out" / "null_odds.json").read_text())
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert odds.keys() == predictions.keys() and len(odds) == 8
    rows = {row["metric"]: row for row in result["table"]}
    assert (rows["F1"]["task"], rows["F1"]["bert_large_test"], rows["F1"]["constant_dev"]) == (
        "SQuAD 2.0",
        "83.1",
        "50.0",
    )
    gold = {name: [] if name.endswith("none") else ["the small child"] for name in predictions}
    best = max(json.loads((tmp_path / "out" / "squad.json").read_text())["tasks"][0]["metrics"]["f1"]["each"])
    assert squad_metrics(gold, predictions)["f1"] == pytest.approx(best)
    assert any("threshold" in note for note in result["notes"])


def test_squad_with_repeated_ids_is_refused_before_training(root, tmp_path):
    train = write_squad(tmp_path / "train.json", 8, has_unanswerable=False)
    (tmp_path / "copy.json").write_text((tmp_path / "train.json").read_text())
    with pytest.raises(DataError, match=r"the id 'train-0' occurs 2 times, and predictions\.json holds one answer"):
        answer(root, tmp_path, train=[train], dev=[train, str(tmp_path / "copy.json")])


def test_squad_is_resumed_without_training_again(root, tmp_path, monkeypatch):
    train = write_squad(tmp_path / "train.json", 8, has_unanswerable=False)
    dev = write_squad(tmp_path / "dev.json", 4, has_unanswerable=False)
    first = answer(root, tmp_path, train=[train], dev=[dev])
    monkeypatch.setattr(benchmark_runs, "finetune", None)
    assert answer(root, tmp_path, train=[train], dev=[dev], resume=True) == first


# ------------------------------------------------------------------------------------------------------------------------ command line


def test_commands_print_the_table(root, tmp_path, capsys):
    options = [
        "--model",
        str(root / "model"),
        "--out",
        str(tmp_path / "out"),
        "--tasks",
        "WNLI",
        "--learning-rates",
        "1e-3",
    ]
    options += ["--epochs", "1", "--precision", "fp32", "--quiet"]
    assert main(["benchmark", "glue", str(root / "glue"), *options, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["table"]
    assert (row["task"], row["runs"]) == ("WNLI", "1 at 0.001")
    assert main(["benchmark", "glue", str(root / "glue"), *options]) == 2  # not empty
    assert "--overwrite" in capsys.readouterr().err


def test_squad_command(root, tmp_path, capsys):
    train = write_squad(tmp_path / "train.json", 8, has_unanswerable=False)
    options = ["--model", str(root / "model"), "--out", str(tmp_path / "out"), "--train", train, "--dev", train]
    assert main(["benchmark", "squad", *options, "--epochs", "1", "--precision", "fp32", "--quiet"]) == 0
    assert "SQuAD 1.1" in capsys.readouterr().out
