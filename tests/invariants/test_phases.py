"""Runs with phases of different sequence lengths: the batches of each step, and interruption in any phase."""

import shutil
import tomllib
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from fake_clock import FakeClock
from interrupts import StopAt
from safetensors.torch import load_file

import stemformer
from stemformer.config import with_settings
from stemformer.errors import CheckpointError, ConfigError
from stemformer.io import read_jsonl
from stemformer.models.model import make_model
from stemformer.progress import Silent
from stemformer.recipes import find_recipe
from stemformer.training import context as training_context
from stemformer.training import loop

SETTINGS = [
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.hidden_dropout_prob=0.1",
    "batch.size=6",
    "batch.sequence_length=16",
    "phases=[{start_ratio=0.5, size=4, sequence_length=48, micro_size=2}]",
    "objective.sentences=next",
    "evaluation.num_examples=4",
    "evaluation.every=100",
    "evaluation.num_cloze_examples=0",
    "checkpoints.every=100",
    "log_every=1",
]
TIMING_KEYS = ("seconds", "tokens_per_second", "mfu")

pytestmark = pytest.mark.usefixtures("no_timing")


def train(tiny, out, **options):
    settings = {"settings": SETTINGS} if not options.get("resume") else {}
    recipe = None if options.get("resume") else "bert_tiny"
    steps = {} if options.get("resume") else {"steps": 6}
    return stemformer.pretrain(
        recipe, data=str(tiny / "data"), out=str(out), precision="fp32", device="cpu", **settings, **steps, **options
    )


def batches_seen(train, tiny, out):
    """Train, and return the context and the batches of each step."""
    seen = {}
    with pytest.MonkeyPatch.context() as patch:

        def record(step, context, original=loop.batches_of_step):
            seen["context"], seen[step] = context, original(step, context)
            return seen[step]

        patch.setattr(loop, "batches_of_step", record)
        train(tiny, out)
    return seen


@pytest.fixture(scope="module")
def full_run(tiny, no_timing, tmp_path_factory):
    """A run of 6 steps, the last three with longer sequences, and the batches of each step."""
    out = tmp_path_factory.mktemp("phases") / "run"
    return out, batches_seen(train, tiny, out)


def log_of(out):
    return [{k: v for k, v in line.items() if k not in TIMING_KEYS} for line in read_jsonl(out / "log.jsonl")]


def test_each_phase_has_its_own_batch_size_and_sequence_length(full_run):
    _, seen = full_run
    assert [[len(batch.cu_seqlens) - 1 for batch in seen[step]] for step in range(6)] == [[6]] * 3 + [[2, 2]] * 3
    longest = [max(batch.max_seqlen for batch in seen[step]) for step in range(6)]
    assert max(longest[:3]) <= 16 < max(longest[3:]) <= 48


def test_packing_efficiency_is_relative_to_the_capacity_of_the_phase(full_run):
    out, seen = full_run
    lines = [line for line in log_of(out) if line["kind"] == "train"]
    for step, line in enumerate(lines):
        capacity = 6 * 16 if step < 3 else 4 * 48
        assert line["fill"] == pytest.approx(sum(len(batch.input_ids) for batch in seen[step]) / capacity)


def test_phases_count_epochs_of_their_own(full_run):
    _, seen = full_run
    first, second = (loop._example_numbers(step, seen["context"]) for step in (0, 3))
    assert {epoch for epoch, _ in first} == {0}
    assert {epoch for epoch, _ in second} == {1 << 32}  # so an example of the same number draws other random numbers


@pytest.mark.parametrize("at", [2, 3, 5])  # in the first phase, between the two, in the second
def test_run_interrupted_in_any_phase_equals_an_uninterrupted_one_bit_for_bit(tiny, full_run, tmp_path, at):
    out = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        train(tiny, out, progress=StopAt(at))
    assert (out / f"checkpoints/step-{at:08d}").is_dir()
    train(tiny, out, resume=True)
    for name in ("model.safetensors", "optimizer.safetensors"):
        first, second = (load_file(run / "checkpoints/step-00000006" / name) for run in (full_run[0], out))
        assert first.keys() == second.keys()
        assert [key for key in first if not torch.equal(first[key], second[key])] == []
    assert log_of(full_run[0]) == log_of(out)


def test_resuming_with_other_phases_is_refused(tiny, full_run):
    with pytest.raises(CheckpointError, match=r"phases was .* is now"):
        stemformer.pretrain(data=str(tiny / "data"), out=str(full_run[0]), resume=True, settings=["phases=[]"])


# A causal start

CAUSAL = [setting for setting in SETTINGS if "sentences" not in setting and "phases" not in setting]
CAUSAL += ["objective.causal_start_ratio=0.5"]


def train_causal(tiny, out, *settings, recipe="modernbert_tiny", **options):
    options = {"steps": 6, "precision": "fp32", "device": "cpu", "settings": [*CAUSAL, *settings], **options}
    return stemformer.pretrain(recipe, data=str(tiny / "data"), out=str(out), **options)


@pytest.fixture(scope="module")
def causal_run(tiny, no_timing, tmp_path_factory):
    """A run of 6 steps, three of them causal, and its batches."""
    out = tmp_path_factory.mktemp("causal") / "run"
    return out, batches_seen(train_causal, tiny, out)


def test_causal_start_scores_each_next_token(causal_run):
    _, seen = causal_run
    for step in range(3):
        [batch] = seen[step]
        starts, stops = batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist()
        positions = [i for start, stop in zip(starts, stops, strict=True) for i in range(start, stop - 1)]
        assert batch.is_causal and batch.label_positions.tolist() == positions
        assert torch.equal(batch.labels, batch.input_ids[batch.label_positions + 1])
        special = seen["context"].objective.special
        assert set(batch.input_ids[batch.cu_seqlens[:-1].long()].tolist()) == {special.cls}
        assert set(batch.input_ids[batch.cu_seqlens[1:].long() - 1].tolist()) == {special.sep}
        assert special.mask not in batch.input_ids
    assert not any(batch.is_causal for step in range(3, 6) for batch in seen[step])


def test_masked_phase_continues_the_epoch_of_the_causal_start(causal_run):
    _, seen = causal_run
    numbers = [loop._example_numbers(step, seen["context"]) for step in range(6)]
    assert len({pair for pairs in numbers for pair in pairs}) == 36


def test_log_has_the_loss_of_each_phase(causal_run):
    lines = [line for line in log_of(causal_run[0]) if line["kind"] == "train"]
    names = [{name for name in line if name.endswith("_loss")} for line in lines]
    assert names == [{"causal_lm_loss"}] * 3 + [{"masked_lm_loss"}] * 3
    assert "held_out_masked_lm_loss" in log_of(causal_run[0])[-1]


@pytest.mark.parametrize("recipe", ["bert_tiny", "modernbert_tiny"])
def test_no_token_of_a_causal_start_sees_a_later_one(causal_run, recipe):
    batch = causal_run[1][0][0]
    vocab_size = causal_run[1]["context"].tokenizer.vocab_size
    config = replace(find_recipe(recipe).model, vocab_size=vocab_size, hidden_dropout_prob=0.0)
    body = make_model(config, generator=torch.Generator().manual_seed(0)).body
    changed = batch.input_ids.clone()
    at = int(batch.cu_seqlens[1]) - 2
    changed[at] = (changed[at] + 7) % vocab_size
    sizes = batch.cu_seqlens, batch.max_seqlen
    tokens = batch.position_ids, batch.token_type_ids
    with torch.no_grad():
        before, after = (body(ids, *tokens, *sizes, causal=True) for ids in (batch.input_ids, changed))
        full = body(batch.input_ids, *tokens, *sizes)
    assert torch.equal(before[:at], after[:at]) and not torch.equal(before[at:], after[at:])
    assert not torch.allclose(before[:at], full[:at])


@pytest.mark.parametrize("at", [2, 3, 4])
def test_run_interrupted_around_a_causal_start_equals_an_uninterrupted_one(tiny, causal_run, tmp_path, at):
    out = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        train_causal(tiny, out, progress=StopAt(at))
    stemformer.pretrain(data=str(tiny / "data"), out=str(out), precision="fp32", device="cpu", resume=True)
    first, second = (load_file(run / "checkpoints/step-00000006/model.safetensors") for run in (causal_run[0], out))
    assert [key for key in first if not torch.equal(first[key], second[key])] == []
    assert log_of(causal_run[0]) == log_of(out)


def test_causal_start_that_has_ended_does_not_begin_again(tiny, causal_run, tmp_path):
    out = tmp_path / "longer"
    shutil.copytree(causal_run[0], out)
    stemformer.pretrain(data=str(tiny / "data"), out=str(out), precision="fp32", device="cpu", resume=True, steps=20)
    names = [set(line) for line in log_of(out) if line["kind"] == "train"]
    assert ["causal_lm_loss" in line for line in names] == [True] * 3 + [False] * 17
    # One that has not ended takes its share of the longer run.
    shutil.rmtree(out)
    with pytest.raises(KeyboardInterrupt):
        train_causal(tiny, out, progress=StopAt(2))
    stemformer.pretrain(data=str(tiny / "data"), out=str(out), precision="fp32", device="cpu", resume=True, steps=20)
    names = [set(line) for line in log_of(out) if line["kind"] == "train"]
    assert ["causal_lm_loss" in line for line in names] == [True] * 10 + [False] * 10


def test_recipe_with_a_causal_start_has_none_from_a_trained_model(tiny, causal_run):
    def shown(**options):
        common = {"data": str(tiny / "data"), "out": "x", "steps": 4, "show_config": True}
        config = stemformer.pretrain("eurobert_mini", **common, **options)["config"]
        return tomllib.loads(config)["objective"]["causal_start_ratio"]

    model = str(causal_run[0])
    assert (shown(), shown(init=model), shown(settings=[f"init='{model}'"])) == (0.25, 0.0, 0.0)
    assert shown(init=model, settings=["objective.causal_start_ratio=0.5"]) == 0.5


def test_causal_start_ends_within_a_phase_and_on_the_clock(tiny, tmp_path, monkeypatch):
    clock = FakeClock()
    for module in (loop, training_context):
        monkeypatch.setattr(module, "time", clock)
    phases = "phases=[{start_ratio=0.25, size=4, sequence_length=48}]"
    config = with_settings(find_recipe("modernbert_tiny"), [*CAUSAL, phases])
    assert [(start, batch.sequence_length) for start, batch in config.all_phases()] == [
        (0.0, 16),
        (0.25, 48),
        (0.5, 48),
    ]
    result = train_causal(tiny, tmp_path / "run", phases, steps=None, time=2)
    lines = [line for line in log_of(tmp_path / "run") if line["kind"] == "train"]
    kinds = ["causal" if "causal_lm_loss" in line else "masked" for line in lines]
    assert kinds == sorted(kinds) and set(kinds) == {"causal", "masked"} and len(kinds) == result["steps"]


def test_run_that_ends_in_its_causal_start_says_so(tiny, tmp_path):
    class Saying(Silent):
        lines: ClassVar[list[str]] = []

        def say(self, text):
            self.lines.append(text)

    train_causal(tiny, tmp_path / "run", steps=None, time=0.01, progress=Saying())
    assert any("ended in its causal start" in line for line in Saying.lines)


def test_init_with_a_causal_start_of_its_own_is_resumed(tiny, causal_run, tmp_path):
    options = {"init": str(causal_run[0]), "progress": StopAt(2)}
    with pytest.raises(KeyboardInterrupt):
        train_causal(tiny, tmp_path / "run", **options)
    data = str(tiny / "data")
    result = stemformer.pretrain(data=data, out=str(tmp_path / "run"), init=str(causal_run[0]), resume=True)
    assert result["steps"] == 6


def test_causal_start_of_sentence_pairs_or_a_gpt_is_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"causal_start_ratio is 0\.5, with sentence pairs"):
        train_causal(tiny, tmp_path / "a", "objective.sentences=next")
    with pytest.raises(ConfigError, match=r"objective\.causal_start_ratio"):
        train_causal(tiny, tmp_path / "b", recipe="gpt_tiny")
    with pytest.raises(ConfigError, match=r"causal_start_ratio is 1\.0: expected a fraction from 0, below 1"):
        train_causal(tiny, tmp_path / "c", "objective.causal_start_ratio=1.0")
