"""Denoising from start to end: each preset trains, resumes bit for bit, is evaluated, shown, and rewrites."""

import math
from pathlib import Path

import pytest
from interrupts import StopAt

import stemformer
from stemformer.commands import pretrain as pretraining
from stemformer.errors import CheckpointError, ConfigError
from stemformer.io import read_jsonl
from stemformer.objectives.denoising import NOISES
from stemformer.progress import Silent
from stemformer.reports.pretraining import write_report

SETTINGS = [
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.num_attention_heads=2",
    "batch.size=4",
    "batch.sequence_length=48",
    "evaluation.num_examples=8",
    "evaluation.every=3",
    "checkpoints.every=4",
]
NEW = ["mass", "t5", "prefix", "left_to_right"]
TIMING = ("seconds", "tokens_per_second", "mfu")


class Lines(Silent):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def prepare(root, text, *, documents="line", **options):
    (root / "text.txt").write_text(text)
    files = [str(root / "text.txt")]
    special = {"kind": "bpe", "special_tokens": "bart", "vocab_size": 350} | options
    stemformer.train_tokenizer(files, out=str(root / "tok"), documents=documents, **special)
    data = str(root / "data")
    stemformer.prepare(files, tokenizer=str(root / "tok"), out=data, held_out=0.1, documents=documents, num_workers=1)
    return data


@pytest.fixture(scope="module")
def data(make_text, tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("denoising"), make_text(), num_sentinels=10)


def train(data, out, preset, *settings, **options):
    options = {"steps": 6, "precision": "fp32", "device": "cpu"} | options
    settings = [*SETTINGS, f"objective.preset={preset}", *settings]
    return stemformer.pretrain("bart_tiny", data=data, out=str(out), settings=settings, **options)


@pytest.fixture(scope="module")
def runs(data, no_timing, tmp_path_factory):
    """A finished run of each new preset."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "write_report", lambda folder: None)
        for preset in NEW:
            train(data, root / preset, preset)
    return root


def log_of(run):
    return [{k: v for k, v in line.items() if k not in TIMING} for line in read_jsonl(Path(run) / "log.jsonl")]


@pytest.mark.parametrize("preset", NEW)
def test_an_interrupted_run_is_resumed_bit_for_bit(preset, data, runs, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "parts", preset, progress=StopAt(2))
    stemformer.pretrain(data=data, out=str(tmp_path / "parts"), resume=True, precision="fp32", device="cpu")
    full, parts = (run / "final" / "model.safetensors" for run in (runs / preset, tmp_path / "parts"))
    assert full.read_bytes() == parts.read_bytes()
    assert log_of(runs / preset) == log_of(tmp_path / "parts")


@pytest.mark.parametrize("preset", NEW)
def test_held_out_metrics_are_those_that_the_preset_has(preset, runs):
    evaluations = [line for line in log_of(runs / preset) if line["kind"] == "evaluation"]
    keys = {name for name in evaluations[-1] if name.startswith("held_out_")}
    common = {"denoising_loss", "denoising_accuracy", "unigram_loss", "unigram_accuracy", "lost_loss", "lost_accuracy"}
    # Nothing is copied; a language model has no source to gain from.
    gain = set() if preset == "left_to_right" else {"source_gain"}
    assert keys == {f"held_out_{name}" for name in common | gain}
    assert evaluations[-1]["held_out_lost_loss"] < evaluations[0]["held_out_lost_loss"]
    # Better than 350 equally frequent ids: sentinels, which the text lacks, are not scored.
    assert evaluations[-1]["held_out_unigram_loss"] < math.log(350)


@pytest.mark.parametrize("preset", ["mass", "t5"])
def test_the_log_has_texts_broken_full_and_written(preset, runs):
    lines = [line["repairs"] for line in log_of(runs / preset) if line["kind"] == "repairs"]
    assert len(lines) == 3 and [row["source"] for row in lines[0]] == [row["source"] for row in lines[-1]]
    for row in lines[-1]:
        assert ("<mask>" if preset == "mass" else "<extra_id_0>") in row["source"]
        assert row["target"].startswith("<extra_id_0>") == (preset == "t5")
        assert isinstance(row["written"], str) and "<s>" not in row["target"] + row["source"]


def test_the_report_shows_broken_texts_and_metrics_of_repair(runs):
    page = write_report(runs / "t5").read_text(encoding="utf-8")
    assert page.count("<th>source</th>") == page.count("<th>target</th>") == 3
    assert "&lt;extra_id_0&gt;" in page
    assert "accuracy on lost words" in page and "gain from the source" in page
    assert "gain from the source" not in write_report(runs / "left_to_right").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("preset", "note"),
    [
        ("mass", "writes only the fragment that masks replace"),
        ("t5", "writes the span for each of <extra_id_0>, <extra_id_1>, ... in a text, after this sentinel"),
        ("prefix", "writes what follows a text"),
        ("left_to_right", "has never read a source, and writes the same for every text"),
    ],
)
def test_rewrite_says_what_a_model_writes(preset, note, runs):
    progress = Lines()
    found = stemformer.rewrite(["the <extra_id_0> king"], model=str(runs / preset), max_new_tokens=3, progress=progress)
    assert isinstance(found[0]["rewritten"], str)
    assert progress.lines[0] == f"note: {runs / preset} {note}"


def test_fill_refuses_an_encoder_decoder(runs):
    with pytest.raises(CheckpointError, match=r"cannot fill masks\. Use rewrite\."):
        stemformer.fill(["the <mask> king"], model=str(runs / "mass"))


@pytest.mark.parametrize("command", ["plan", "pretrain"])
def test_t5_without_sentinels_is_refused_before_anything_is_written(command, tiny, tmp_path):
    out = {} if command == "plan" else {"out": str(tmp_path / "run"), "steps": 2}
    message = r"'t5' needs 4 sentinels, .* has 0\. Train one with stemformer train-tokenizer --kind bpe"
    with pytest.raises(ConfigError, match=message):
        getattr(stemformer, command)(
            "bart_tiny", data=str(tiny / "data"), settings=[*SETTINGS, "objective.preset=t5"], **out
        )
    assert not (tmp_path / "run" / "config.toml").exists()


@pytest.fixture(scope="module")
def single_sentences(make_text, tmp_path_factory):
    lines = [sentence + "." for line in make_text().splitlines() for sentence in line.removesuffix(".").split(". ")]
    return prepare(tmp_path_factory.mktemp("single"), "\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["objective.preset=permutation"], r"permutes sentences, but 100% of the texts have one sentence, whose order"),
        (["objective.noise_rate=0"], r"permutes sentences, but 100% of the texts have one sentence, whose order"),
        (
            ["objective.preset=masking", "objective.noise_rate=0.001"],
            r"'masking' changes none of \d+ texts, and repairing them would be copying\. Raise objective\.noise_rate",
        ),
        (["objective.preset=rotation", "objective.rotate_prob=0"], r"Raise objective\.rotate_prob, or set another"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "pretrain"])
def test_a_noise_that_does_nothing_is_refused(command, settings, message, single_sentences, tmp_path):
    out = {} if command == "plan" else {"out": str(tmp_path / "run"), "steps": 2}
    with pytest.raises(ConfigError, match=message):
        getattr(stemformer, command)("bart_tiny", data=single_sentences, settings=[*SETTINGS, *settings], **out)
    assert not (tmp_path / "run" / "config.toml").exists()


def test_a_part_of_a_noise_that_does_nothing_is_noted(single_sentences, no_timing, tmp_path):
    progress = Lines()
    train(single_sentences, tmp_path / "run", "infilling_permutation", steps=1, progress=progress)
    (effect,) = [line for line in progress.lines if line.startswith("noise infilling_permutation: ")]
    assert effect.endswith("0.0% of the texts unchanged, 1.0 sentences a text (100% have one)")
    note = "note: 100% of the texts have one sentence: permuting sentences does nearly nothing (objective.permute_rate)"
    assert note in progress.lines
    assert any("source_gain is" in line and "ignores its source so far" in line for line in progress.lines)


@pytest.mark.parametrize("preset", ["infilling_permutation", "t5", "prefix", "left_to_right"])
def test_plan_shows_texts_broken_and_full(preset, data, monkeypatch):
    monkeypatch.setattr("stemformer.commands.plan.matmul_rate", lambda *args: 1e11)
    found = stemformer.plan("bart_tiny", data=data, settings=[*SETTINGS, f"objective.preset={preset}"])
    assert found["noise"]["lost"] == pytest.approx(
        {"prefix": 0.5}.get(preset, NOISES[preset].noise_rate), abs=0.05 if preset == "prefix" else 0.02
    )
    assert len(found["examples"]) == 3
    for row in found["examples"]:
        assert set(row) == {"source", "target"}
        assert (row["source"] == "") == (preset == "left_to_right")
        assert row["target"] and "<s>" not in row["source"] + row["target"]
