"""Runs with phases of different sequence lengths: the batches of each step, and interruption in any phase."""

import pytest
import torch
from interrupts import StopAt
from safetensors.torch import load_file

import stemformer
from stemformer.errors import CheckpointError
from stemformer.io import read_jsonl
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


@pytest.fixture(scope="module")
def full_run(tiny, no_timing, tmp_path_factory):
    """A run of 6 steps, the last three with longer sequences, and the batches of each step."""
    out = tmp_path_factory.mktemp("phases") / "run"
    seen = {}
    with pytest.MonkeyPatch.context() as patch:

        def record(step, context, original=loop.batches_of_step):
            seen["context"], seen[step] = context, original(step, context)
            return seen[step]

        patch.setattr(loop, "batches_of_step", record)
        train(tiny, out)
    return out, seen


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
