"""Runs of one recipe at several tiny sizes: which there are, what is told of them, and going on."""

import json
import re

import pytest

import stemformer
from stemformer.cli.app import main
from stemformer.errors import CheckpointError, ConfigError, DataError
from stemformer.experiments import scaling
from stemformer.experiments import scaling_trials as sizes
from stemformer.huggingface.load import load_model
from stemformer.io import read_jsonl
from stemformer.progress import Silent
from stemformer.reports import scaling as scale_report

pytestmark = pytest.mark.usefixtures("no_timing")

SMALL = [
    *["model.max_position_embeddings=32", "batch.size=4", "batch.sequence_length=32", "log_every=1"],
    *["evaluation.num_examples=8", "evaluation.every=1", "evaluation.num_cloze_examples=0"],
]
NAMES = ["1x8", "2x8", "1x24"]


def small(tiny, out, recipe="gpt_tiny", **options):
    """Runs some sizes for a few steps, and returns what was told."""
    usual = {"sizes": NAMES, "steps": 4, "settings": SMALL, "precision": "fp32"}
    return stemformer.scaling_laws(recipe, data=str(tiny / "data"), out=str(out), **{**usual, **options})


@pytest.fixture(scope="module", autouse=True)
def not_drawn():
    """Does not draw, which takes longer than the runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "write_scale_report", lambda *args, **kwargs: None)
        yield


@pytest.fixture(scope="module")
def whole(tiny, not_drawn, no_timing, tmp_path_factory):
    """Folder of sizes that were never interrupted, and what was told; not to be changed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, small(tiny, out)


@pytest.fixture
def scale(tiny, tmp_path):
    """The function `small` in tmp_path/out."""
    return lambda *words, **options: small(tiny, tmp_path / "out", *words, **options)


@pytest.fixture
def lines(tmp_path):
    """A function to the lines of sizes.jsonl in tmp_path/out, by name."""
    return lambda: {line["size"]: line for line in read_jsonl(tmp_path / "out" / "sizes.jsonl")}


class Stopping(Silent):
    """A progress at which a person presses Ctrl-C when so many sizes are done."""

    def __init__(self, after):
        self.left = after

    def say(self, line):
        if line.startswith("size "):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt


class Bar(Silent):
    """A progress that adds up what it is told."""

    done = total = 0.0

    def start(self, what, *, total=None, unit=""):
        if what.endswith("sizes"):
            self.total = total

    def advance(self, amount, note=""):
        self.done += amount


# the runs


def test_each_size_is_a_run_with_the_parameters_that_are_told(whole):
    folder, _ = whole
    told = json.loads((folder / "scale.json").read_text())
    assert [line["size"] for line in told["sizes"]] == NAMES
    for line in told["sizes"]:
        model = load_model(folder / "sizes" / line["size"] / "final")
        assert line["parameters"] == model.num_parameters()
        assert line["parameters_in_layers"] == model.num_parameters(embeddings=False)
        assert (line["layers"], line["width"]) == (model.config.num_hidden_layers, model.config.hidden_size)
        assert model.config.intermediate_size == 4 * line["width"]


def test_figures_are_those_of_the_last_step_of_the_log(whole):
    folder, _ = whole
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


def test_law_is_told_with_the_points_it_was_fitted_to(whole):
    folder, told = whole
    written = json.loads((folder / "scale.json").read_text())
    assert written["law"]["has_floor"] is False  # three sizes
    assert written["joint"]["num_points"] == len(written["points"]) == 12  # four evaluations each
    assert told["what size does"] == written["sentences"]
    assert len(told["table"]) == 3


def test_sizes_that_learned_nothing_are_told(whole):
    _, told = whole
    losses = {row["size"]: row["loss"] for row in told["table"]}
    frequency = json.loads((whole[0] / "scale.json").read_text())["sizes"][0]["unigram_loss"]
    [note] = [note for note in told["notes"] if "word frequency alone" in note]
    assert note.endswith(", ".join(name for name in NAMES if losses[name] >= frequency))


def test_rate_falls_with_width_by_the_rule(scale, lines):
    scale(lr_width_exponent=1.0, steps=1)
    rates = {name: line["learning_rate"] for name, line in lines().items()}
    assert rates == pytest.approx({"1x8": 2e-3 * 16, "2x8": 2e-3 * 16, "1x24": 2e-3 * 128 / 24})


def test_tokens_per_parameter_gives_larger_sizes_more(scale, lines):
    scale(steps=None, tokens_per_parameter=0.1, sizes=["1x8", "1x24"])
    for line in lines().values():
        wanted = 0.1 * line["parameters"]
        assert wanted <= line["tokens"] + 1 < wanted + 2 * 4 * 32  # rounded up to a whole step of four rows of 32


def test_bert_is_scaled_too(scale, lines, tmp_path):
    told = scale("bert_tiny", sizes=["1x8", "1x16"], steps=2)
    assert "bits per byte" not in told["table"][0]
    last = read_jsonl(tmp_path / "out" / "sizes" / "1x8" / "log.jsonl")[-1]
    assert lines()["1x8"]["loss"] == last["held_out_masked_lm_loss"]


def test_bar_is_full_at_the_end(scale):
    bar = Bar()
    scale(progress=bar, steps=2, sizes=["1x8", "1x16"])
    assert bar.done == pytest.approx(bar.total) == pytest.approx(100)


def test_what_is_learned_in_context_is_told_by_size(scale, tmp_path):
    told = scale(sizes=["1x8", "1x16"], steps=1, fewshot_tasks=["synthetic:association"], num_shots=[0, 2])
    figures = json.loads((tmp_path / "out" / "prompts" / "prompt.json").read_text())["figures"]
    assert [row["2-shot"] for row in told["table"]] == [
        round(100 * r["accuracy"], 1) for r in figures if r["num_shots"] == 2
    ]
    written = json.loads((tmp_path / "out" / "scale.json").read_text())
    assert [list(line["in_context"]) for line in written["sizes"]] == [["0", "2"], ["0", "2"]]


def test_sizes_are_told_even_where_nothing_can_be_asked(scale, tmp_path, monkeypatch):
    def fails(*args, **options):
        raise DataError("an answer is too long")

    monkeypatch.setattr(scaling, "fewshot", fails)
    told = scale(sizes=NAMES[:2], fewshot_tasks=["synthetic:copy"])
    assert told["notes"][-1] == "nothing was asked in context: an answer is too long"
    assert json.loads((tmp_path / "out" / "scale.json").read_text())["notes"] == told["notes"]
    (tmp_path / "out" / "prompts").mkdir()
    (tmp_path / "out" / "prompts" / "config.toml").touch()  # as of a table that was stopped at once
    monkeypatch.undo()
    again = scale(sizes=NAMES[:2], fewshot_tasks=["synthetic:copy"], num_shots=[0], resume=True)
    assert "0-shot" in again["table"][0]


def test_masked_model_is_not_trained_to_be_asked_for_texts(scale, tmp_path):
    with pytest.raises(ConfigError, match="synthetic:copy: a masked model writes no text"):
        scale(recipe="bert_tiny", fewshot_tasks=["synthetic:copy"])
    assert not (tmp_path / "out").exists()


def test_command_prints_table_and_sentences_and_draws_a_page(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scaling, "write_scale_report", scale_report.write_scale_report)
    out = tmp_path / "out"
    words = ["scaling-laws", "--recipe", "gpt_tiny", "--data", tiny / "data", "--out", out, "--sizes", "1x8, 2x8,1x24"]
    settings = [word for setting in SMALL for word in ("--set", setting)]
    assert main([*map(str, words), *settings, "--steps", "4", "--precision", "fp32", "-q"]) == 0
    printed = capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 2
    assert not re.findall(r'(?:src|href)="(?!#)', page)  # needs nothing but itself
    for sentence in json.loads((out / "scale.json").read_text())["sentences"]:
        assert sentence in printed and sentence[1:] in page
    for name in ("scale.svg", "scale.png"):
        assert (out / name).stat().st_size > 1000
    assert main(["inspect", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["scaling"] == str(out) and len(told["sizes"]) == 3 and "curve" not in told["sizes"][0]


# going on


def test_finished_sizes_are_kept_and_the_others_done(scale, lines, whole):
    with pytest.raises(KeyboardInterrupt):
        scale(progress=Stopping(after=2))
    before = lines()
    assert list(before) == NAMES[:2]
    scale(resume=True)
    assert {name: lines()[name] for name in before} == before  # their seconds too: they were not run again
    expected = {line["size"]: line["loss"] for line in read_jsonl(whole[0] / "sizes.jsonl")}
    assert {name: line["loss"] for name, line in lines().items()} == expected


def test_a_size_that_was_cut_off_goes_on_from_its_checkpoint(scale, lines, whole, monkeypatch):
    ended = sizes.read_jsonl

    def cut_off(path):
        if path.parent.name == "1x24":
            raise KeyboardInterrupt
        return ended(path)

    monkeypatch.setattr(sizes, "read_jsonl", cut_off)  # behind the last step, before anything is written of it
    with pytest.raises(KeyboardInterrupt):
        scale()
    monkeypatch.setattr(sizes, "read_jsonl", ended)
    began = []
    monkeypatch.setattr(sizes, "pretrain", lambda *a, **o: began.append(o["out"]) or stemformer.pretrain(*a, **o))
    scale(resume=True)
    assert [out.rsplit("/", 1)[1] for out in began] == ["1x24"]
    expected = {line["size"]: line["loss"] for line in read_jsonl(whole[0] / "sizes.jsonl")}
    assert {name: line["loss"] for name, line in lines().items()} == expected


def test_sizes_may_be_added(scale, lines):
    scale(sizes=NAMES[:2], steps=1)
    first = lines()
    told = scale(sizes=NAMES[1:], steps=1, resume=True)  # the first is told too, though nobody names it
    assert [row["size"] for row in told["table"]] == NAMES
    assert {name: lines()[name] for name in first} == first
    assert [row["size"] for row in scale(sizes=NAMES[:1], steps=1, resume=True)["table"]] == NAMES


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"steps": 2}, "run.budget.steps was 1, is now 2"),
        ({"lr_width_exponent": 1.0}, "rate_power was 0.5, is now 1.0"),
        ({"seed": 3}, "run.seed was 0, is now 3"),
        ({"recipe": "bert_tiny"}, "run.recipe was gpt_tiny, is now bert_tiny"),
    ],
)
def test_other_settings_are_refused(scale, options, told):
    usual = {"sizes": NAMES[:2], "steps": 1}
    scale(**usual)
    with pytest.raises(CheckpointError, match=re.escape(told)):
        scale(**{**usual, "resume": True, **options})


def test_another_folder_is_not_taken_for_sizes(scale, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds no runs at several sizes to resume"):
        scale(resume=True)
    with pytest.raises(ConfigError, match="is not empty"):
        scale()


# bad input


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sizes": ["2x64", "4-256"]}, "--sizes 4-256: expected layers x width, such as 4x256"),
        ({"sizes": ["0x64", "2x64"]}, "--sizes 0x64: expected layers x width"),
        ({"sizes": ["2x64", "2X64"]}, "--sizes: 2x64 is there twice"),
        ({"sizes": ["2x64"]}, "--sizes 2x64: expected at least two"),
        ({"steps": None}, "how long to train is not said: give --tokens, --tokens-per-parameter"),
        ({"tokens_per_parameter": 20}, "two budgets were given"),
        ({"steps": None, "tokens_per_parameter": 0}, "--tokens-per-parameter 0: expected a number above 0"),
        ({"settings": ["model.hidden_size=128"]}, "model.hidden_size is said with --sizes"),
        ({"settings": ["init=other"]}, "init: every size starts from fresh weights"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(scale, tmp_path, options, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        scale(**options)
    assert not (tmp_path / "out").exists()


def test_data_without_a_held_out_part_is_told(tiny, tmp_path):
    data = str(tmp_path / "data")
    stemformer.prepare([str(tiny / "text.txt")], tokenizer=str(tiny / "tok"), out=data, held_out=0.0, num_workers=1)
    with pytest.raises(DataError, match="has no held-out part to measure the loss on"):
        stemformer.scaling_laws("gpt_tiny", data=data, out=str(tmp_path / "out"), sizes=NAMES, steps=1)


@pytest.mark.parametrize(("width", "heads"), [(32, 1), (64, 1), (128, 2), (200, 2), (256, 4), (97, 1)])
def test_heads_have_about_64_numbers_and_divide_the_width(width, heads):
    assert sizes.Size(2, width).heads == heads
