"""Scaling studies of one recipe at several tiny sizes: runs, results, resuming, and bad input."""

import json
import re

import pytest

import stemformer
from stemformer.cli.app import main
from stemformer.errors import CheckpointError, ConfigError, DataError
from stemformer.experiments import scaling
from stemformer.huggingface.load import load_model
from stemformer.io import read_jsonl
from stemformer.progress import Silent
from stemformer.reports.scaling import write_scaling_report

pytestmark = pytest.mark.usefixtures("no_timing")

SMALL = [
    *["model.max_position_embeddings=32", "batch.size=4", "batch.sequence_length=32", "log_every=1"],
    *["evaluation.num_examples=8", "evaluation.every=1", "evaluation.num_cloze_examples=0"],
]
NAMES = ["1x8", "2x8", "1x24"]


def small(tiny, out, recipe="gpt_tiny", **options):
    """Train some sizes for a few steps and return the result."""
    usual = {"sizes": NAMES, "steps": 4, "settings": SMALL, "precision": "fp32"}
    return stemformer.scaling_laws(recipe, data=str(tiny / "data"), out=str(out), **{**usual, **options})


@pytest.fixture(scope="module", autouse=True)
def no_plots():
    """Skip the plots, which take longer than the runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "write_scaling_report", lambda *args, **kwargs: None)
        yield


@pytest.fixture(scope="module")
def finished(tiny, no_plots, no_timing, tmp_path_factory):
    """Directory and result of a study that was never interrupted; not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "out"
    return out, small(tiny, out)


@pytest.fixture
def scale(tiny, tmp_path):
    """Function `small` with the directory tmp_path/out."""
    return lambda *words, **options: small(tiny, tmp_path / "out", *words, **options)


@pytest.fixture
def lines(tmp_path):
    """Function that returns the lines of finished.jsonl in tmp_path/out, by size."""
    return lambda: {line["size"]: line for line in read_jsonl(tmp_path / "out" / "finished.jsonl")}


class Stopping(Silent):
    """Progress that raises KeyboardInterrupt after some sizes."""

    def __init__(self, after):
        self.left = after

    def say(self, line):
        if line.startswith("size "):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt


class Bar(Silent):
    """Progress that adds up what it receives."""

    done = total = 0.0

    def start(self, what, *, total=None, unit=""):
        if what.endswith("sizes"):
            self.total = total

    def advance(self, amount, note=""):
        self.done += amount


# Runs and results


def test_each_size_is_a_run_with_the_reported_parameters(finished):
    folder, _ = finished
    result = json.loads((folder / "scale.json").read_text())
    assert [line["size"] for line in result["sizes"]] == NAMES
    for line in result["sizes"]:
        model = load_model(folder / "sizes" / line["size"] / "final")
        assert line["parameters"] == model.num_parameters()
        assert line["parameters_in_layers"] == model.num_parameters(embeddings=False)
        assert (line["layers"], line["width"]) == (model.config.num_hidden_layers, model.config.hidden_size)
        assert model.config.intermediate_size == 4 * line["width"]


def test_losses_are_those_of_the_last_step_of_the_log(finished):
    folder, _ = finished
    for line in json.loads((folder / "scale.json").read_text())["sizes"]:
        log = read_jsonl(folder / "sizes" / line["size"] / "log.jsonl")
        last = [x for x in log if x["kind"] == "evaluation"][-1]
        assert (line["loss"], line["bits_per_byte"]) == (
            last["held_out_causal_lm_loss"],
            last["held_out_bits_per_byte"],
        )
        assert line["curve"][-1] == {"tokens": line["tokens"], "loss": line["loss"]}
        assert line["steps"] == 4
        assert line["flops"] == sum(x["flops"] for x in log if x["kind"] == "train") > 6 * line["parameters_in_layers"]


def test_law_is_reported_with_the_points_it_was_fitted_to(finished):
    folder, result = finished
    written = json.loads((folder / "scale.json").read_text())
    assert written["law"]["has_floor"] is False  # three sizes
    assert written["joint"]["num_points"] == len(written["points"]) == 12  # four evaluations each
    assert result["summary"] == written["summary"]
    assert len(result["table"]) == 3


def test_sizes_above_the_unigram_baseline_are_noted(finished):
    _, result = finished
    losses = {row["size"]: row["loss"] for row in result["table"]}
    frequency = json.loads((finished[0] / "scale.json").read_text())["sizes"][0]["unigram_loss"]
    [note] = [note for note in result["notes"] if "unigram baseline" in note]
    assert note.endswith(", ".join(name for name in NAMES if losses[name] >= frequency))


def test_learning_rate_follows_the_width_rule(scale, lines):
    scale(lr_width_exponent=1.0, steps=1)
    rates = {name: line["learning_rate"] for name, line in lines().items()}
    assert rates == pytest.approx({"1x8": 2e-3 * 16, "2x8": 2e-3 * 16, "1x24": 2e-3 * 128 / 24})


def test_tokens_per_parameter_sets_the_budget_of_each_size(scale, lines):
    scale(steps=None, tokens_per_parameter=0.1, sizes=["1x8", "1x24"])
    for line in lines().values():
        wanted = 0.1 * line["parameters"]
        assert wanted <= line["tokens"] + 1 < wanted + 2 * 4 * 32  # rounded up to a finished step of four rows of 32


def test_bert_is_scaled(scale, lines, tmp_path):
    result = scale("bert_tiny", sizes=["1x8", "1x16"], steps=2)
    assert "bits_per_byte" not in result["table"][0]
    last = read_jsonl(tmp_path / "out" / "sizes" / "1x8" / "log.jsonl")[-1]
    assert lines()["1x8"]["loss"] == last["held_out_masked_lm_loss"]


def test_bar_is_full_at_the_end(scale):
    bar = Bar()
    scale(progress=bar, steps=2, sizes=["1x8", "1x16"])
    assert bar.done == pytest.approx(bar.total) == pytest.approx(100)


def test_few_shot_accuracy_is_reported_by_size(scale, tmp_path):
    result = scale(sizes=["1x8", "1x16"], steps=1, fewshot_tasks=["synthetic:association"], num_shots=[0, 2])
    results = json.loads((tmp_path / "out" / "prompts" / "prompt.json").read_text())["results"]
    assert [row["shots_2"] for row in result["table"]] == [
        round(100 * r["accuracy"], 1) for r in results if r["num_shots"] == 2
    ]
    written = json.loads((tmp_path / "out" / "scale.json").read_text())
    assert [list(line["in_context"]) for line in written["sizes"]] == [["0", "2"], ["0", "2"]]


def test_sizes_are_reported_if_the_few_shot_evaluation_fails(scale, tmp_path, monkeypatch):
    def fails(*args, **options):
        raise DataError("an answer is too long")

    monkeypatch.setattr(scaling, "fewshot", fails)
    result = scale(sizes=NAMES[:2], fewshot_tasks=["synthetic:copy"])
    assert result["notes"][-1] == "no few-shot evaluation: an answer is too long"
    assert json.loads((tmp_path / "out" / "scale.json").read_text())["notes"] == result["notes"]
    (tmp_path / "out" / "prompts").mkdir()
    (tmp_path / "out" / "prompts" / "config.toml").touch()  # as after an evaluation that was stopped at once
    monkeypatch.undo()
    again = scale(sizes=NAMES[:2], fewshot_tasks=["synthetic:copy"], num_shots=[0], resume=True)
    assert "shots_0" in again["table"][0]


def test_masked_model_is_not_trained_for_a_generation_task(scale, tmp_path):
    with pytest.raises(ConfigError, match="synthetic:copy: A masked model generates no text"):
        scale(recipe="bert_tiny", fewshot_tasks=["synthetic:copy"])
    assert not (tmp_path / "out").exists()


def test_command_prints_table_and_summary_and_writes_a_report(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scaling, "write_scaling_report", write_scaling_report)
    out = tmp_path / "out"
    words = ["scaling-laws", "--recipe", "gpt_tiny", "--data", tiny / "data", "--out", out, "--sizes", "1x8, 2x8,1x24"]
    settings = [word for setting in SMALL for word in ("--set", setting)]
    assert main([*map(str, words), *settings, "--steps", "4", "--precision", "fp32", "-q"]) == 0
    printed = capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 2
    assert not re.findall(r'(?:src|href)="(?!#)', page)  # loads nothing
    for sentence in json.loads((out / "scale.json").read_text())["summary"]:
        assert sentence in printed and sentence[1:] in page
    for name in ("scale.svg", "scale.png"):
        assert (out / name).stat().st_size > 1000
    assert main(["inspect", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["scaling"] == str(out) and len(result["sizes"]) == 3 and "curve" not in result["sizes"][0]


# Resuming


def test_resume_keeps_finished_sizes_and_trains_the_others(scale, lines, finished):
    with pytest.raises(KeyboardInterrupt):
        scale(progress=Stopping(after=2))
    before = lines()
    assert list(before) == NAMES[:2]
    scale(resume=True)
    assert {name: lines()[name] for name in before} == before  # also their seconds: they were not run again
    expected = {line["size"]: line["loss"] for line in read_jsonl(finished[0] / "finished.jsonl")}
    assert {name: line["loss"] for name, line in lines().items()} == expected


def test_interrupted_size_is_resumed_from_its_checkpoint(scale, lines, finished, monkeypatch):
    ended = scaling.read_jsonl

    def cut_off(path):
        if path.parent.name == "1x24":
            raise KeyboardInterrupt
        return ended(path)

    monkeypatch.setattr(scaling, "read_jsonl", cut_off)  # after the last step, before its record is written
    with pytest.raises(KeyboardInterrupt):
        scale()
    monkeypatch.setattr(scaling, "read_jsonl", ended)
    started = []
    monkeypatch.setattr(scaling, "pretrain", lambda *a, **o: started.append(o["out"]) or stemformer.pretrain(*a, **o))
    scale(resume=True)
    assert [out.rsplit("/", 1)[1] for out in started] == ["1x24"]
    expected = {line["size"]: line["loss"] for line in read_jsonl(finished[0] / "finished.jsonl")}
    assert {name: line["loss"] for name, line in lines().items()} == expected


def test_directory_of_an_earlier_version_is_resumed(scale, lines, tmp_path):
    scale(sizes=NAMES[:2], steps=1)
    out, first = tmp_path / "out", lines()
    (out / "finished.jsonl").rename(out / "sizes.jsonl")
    config = (out / "config.toml").read_text().replace("lr_width_exponent", "rate_power")
    (out / "config.toml").write_text(config)
    scale(sizes=NAMES, steps=1, resume=True)
    assert {name: lines()[name] for name in first} == first
    assert list(lines()) == NAMES


def test_sizes_may_be_added(scale, lines):
    scale(sizes=NAMES[:2], steps=1)
    first = lines()
    result = scale(sizes=NAMES[1:], steps=1, resume=True)  # the first one is reported as well
    assert [row["size"] for row in result["table"]] == NAMES
    assert {name: lines()[name] for name in first} == first
    assert [row["size"] for row in scale(sizes=NAMES[:1], steps=1, resume=True)["table"]] == NAMES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 2}, "run.budget.steps was 1, is now 2"),
        ({"lr_width_exponent": 1.0}, "lr_width_exponent was 0.5, is now 1.0"),
        ({"seed": 3}, "run.seed was 0, is now 3"),
        ({"recipe": "bert_tiny"}, "run.recipe was gpt_tiny, is now bert_tiny"),
    ],
)
def test_other_settings_are_refused(scale, options, message):
    usual = {"sizes": NAMES[:2], "steps": 1}
    scale(**usual)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        scale(**{**usual, "resume": True, **options})


def test_other_directory_is_not_resumed(scale, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds no scaling study to resume"):
        scale(resume=True)
    with pytest.raises(ConfigError, match="is not empty"):
        scale()


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": ["2x64", "4-256"]}, "--sizes 4-256: expected layers x width, such as 4x256"),
        ({"sizes": ["0x64", "2x64"]}, "--sizes 0x64: expected layers x width"),
        ({"sizes": ["2x64", "2X64"]}, "--sizes: 2x64 is repeated"),
        ({"sizes": ["2x64"]}, "--sizes 2x64: expected at least two"),
        ({"steps": None}, "No training budget. Pass --tokens, --tokens-per-parameter"),
        ({"tokens_per_parameter": 20}, "Two budgets (--tokens-per-parameter and another one)"),
        ({"steps": None, "tokens_per_parameter": 0}, "--tokens-per-parameter 0: expected a number above 0"),
        ({"settings": ["model.hidden_size=128"]}, "model.hidden_size is set by --sizes"),
        ({"settings": ["init=other"]}, "init has no effect: every size starts from random weights"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(scale, tmp_path, options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        scale(**options)
    assert not (tmp_path / "out").exists()


def test_data_without_a_held_out_split_is_refused(tiny, tmp_path):
    data = str(tmp_path / "data")
    stemformer.prepare([str(tiny / "text.txt")], tokenizer=str(tiny / "tok"), out=data, held_out=0.0, num_workers=1)
    with pytest.raises(DataError, match="has no held-out split for the loss"):
        stemformer.scaling_laws("gpt_tiny", data=data, out=str(tmp_path / "out"), sizes=NAMES, steps=1)


@pytest.mark.parametrize(("width", "heads"), [(32, 1), (64, 1), (128, 2), (200, 2), (256, 4), (97, 1)])
def test_heads_have_about_64_dimensions_and_divide_the_width(width, heads):
    assert scaling.Size(2, width).heads == heads
