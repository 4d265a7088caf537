"""The first twenty losses of the bert_tiny recipe family. Changing these numbers is a reviewed act: say before and after."""

import numpy as np
import pytest

from stemformer import api
from stemformer.training.log import read_log

GOLDEN = [
    *[4.920322, 4.819769, 4.754571, 4.684561, 4.57514, 4.451481, 4.505012, 4.404678, 4.387664, 4.320851],
    *[4.280899, 4.289645, 4.288549, 4.266378, 4.195388, 4.231653, 4.176139, 4.109774, 4.138217, 4.131991],
]
"""Loss (nats) of each step, on 2 threads in fp32. Another processor sums in another order, which 20 steps amplify: 1e-3 relative."""
SETTINGS = ["model.hidden_size=32", "model.intermediate_size=64", "batch.rows=8", "batch.row_length=32", "log_every=1"]


@pytest.fixture(scope="module")
def curve(tiny, no_timing, tmp_path_factory):
    out = tmp_path_factory.mktemp("golden") / "run"
    api.pretrain(
        "bert_tiny",
        data=str(tiny / "data"),
        out=str(out),
        settings=[*SETTINGS, "evaluation.rows=32", "evaluation.every=20", "checkpoints.every=20"],
        steps=20,
        precision="fp32",
        device="cpu",
        compile=False,
    )
    return read_log(out / "log.jsonl")


def test_losses_are_those_that_were_stored(curve):
    losses = [line["masked_lm_loss"] for line in curve if line["kind"] == "train"]
    np.testing.assert_allclose(losses, GOLDEN, rtol=1e-3)


def test_training_loss_goes_down(curve):
    losses = [line["masked_lm_loss"] for line in curve if line["kind"] == "train"]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5


def test_held_out_loss_goes_down(curve):
    first, *_, last = (line["held_out_masked_lm_loss"] for line in curve if line["kind"] == "evaluation")
    assert last < first - 0.5


def test_unigram_baseline_does_not_move(curve):
    assert len({line["held_out_unigram_loss"] for line in curve if line["kind"] == "evaluation"}) == 1
