"""The first twenty losses of a run on next words. Changing these numbers is a reviewed act: say before and after."""

import numpy as np
import pytest

import stemformer
from stemformer.io import read_jsonl

GOLDEN = [
    *[4.911237, 4.545409, 4.15825, 3.879328, 3.63824, 3.415381, 3.230044, 3.112367, 2.951771, 2.842046],
    *[2.763176, 2.63534, 2.546464, 2.460512, 2.382394, 2.302945, 2.312216, 2.279058, 2.202083, 2.188288],
]
"""Losses (nats) of each step, on 2 threads in fp32. Another processor sums in another order, which 20 steps amplify: 1e-3 relative."""


@pytest.fixture(scope="module")
def curve(tiny, no_timing, tmp_path_factory):
    out = tmp_path_factory.mktemp("golden") / "run"
    sizes = [
        "model.hidden_size=32",
        "model.intermediate_size=64",
        "batch.size=8",
        "batch.sequence_length=32",
        "log_every=1",
    ]
    seldom = [
        "evaluation.num_examples=32",
        "evaluation.every=20",
        "checkpoints.every=20",
        "optimizer.learning_rate=1e-2",
    ]
    stemformer.pretrain(
        "gpt_tiny",
        data=str(tiny / "data"),
        out=str(out),
        settings=[*sizes, *seldom],
        steps=20,
        precision="fp32",
        device="cpu",
        compile=False,
    )
    return read_jsonl(out / "log.jsonl")


def test_losses_are_those_that_were_stored(curve):
    losses = [line["causal_lm_loss"] for line in curve if line["kind"] == "train"]
    np.testing.assert_allclose(losses, GOLDEN, rtol=1e-3)


def test_held_out_loss_begins_at_uniform_and_goes_down(curve):
    first, *_, last = (line for line in curve if line["kind"] == "evaluation")
    assert first["held_out_causal_lm_loss"] == pytest.approx(np.log(141), abs=0.1)
    assert last["held_out_causal_lm_loss"] < first["held_out_causal_lm_loss"] - 1.5
