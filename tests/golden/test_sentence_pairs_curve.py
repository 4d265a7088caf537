"""The first twenty losses of a run with masked words and next sentence. Changing these numbers is a reviewed act: say before and after."""

import numpy as np
import pytest

from stemformer import api
from stemformer.training.log import read_log

GOLDEN = {
    "masked_lm": [
        *[4.936924, 4.784374, 4.734034, 4.62447, 4.587814, 4.550827, 4.468581, 4.438398, 4.377471, 4.320162],
        *[4.252406, 4.254535, 4.184955, 4.15972, 4.142325, 4.146901, 4.191468, 4.059001, 4.075761, 4.016618],
    ],
    "next_sentence": [
        *[0.693149, 0.687263, 0.694399, 0.664503, 0.696543, 0.69776, 0.672906, 0.755804, 0.698757, 0.722613],
        *[0.653089, 0.717806, 0.715834, 0.731398, 0.647502, 0.679757, 0.665046, 0.67995, 0.664586, 0.695011],
    ],
}
"""Losses (nats) of each step, on 2 threads in fp32. Another processor sums in another order, which 20 steps amplify: 1e-3 relative."""
SETTINGS = ["model.hidden_size=32", "model.intermediate_size=64", "batch.rows=8", "batch.row_length=32", "log_every=1"]


@pytest.fixture(scope="module")
def curve(tiny, no_timing, tmp_path_factory):
    out = tmp_path_factory.mktemp("golden") / "run"
    api.pretrain(
        "bert_tiny",
        data=str(tiny / "data"),
        out=str(out),
        settings=[
            *SETTINGS,
            "objective.sentences=next",
            "evaluation.rows=32",
            "evaluation.every=20",
            "checkpoints.every=20",
        ],
        steps=20,
        precision="fp32",
        device="cpu",
        compile=False,
    )
    return read_log(out / "log.jsonl")


@pytest.mark.parametrize("name", GOLDEN)
def test_losses_are_those_that_were_stored(curve, name):
    losses = [line[f"{name}_loss"] for line in curve if line["kind"] == "train"]
    np.testing.assert_allclose(losses, GOLDEN[name], rtol=1e-3)


def test_training_loss_of_masked_words_goes_down(curve):
    losses = [line["masked_lm_loss"] for line in curve if line["kind"] == "train"]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5


def test_held_out_loss_of_masked_words_goes_down(curve):
    first, *_, last = (line["held_out_masked_lm_loss"] for line in curve if line["kind"] == "evaluation")
    assert last < first - 0.5


def test_next_sentence_begins_at_chance(curve):
    first = next(line["held_out_next_sentence_loss"] for line in curve if line["kind"] == "evaluation")
    assert first == pytest.approx(np.log(2), abs=0.05)  # fresh weights of 0.02 say next to nothing


def test_displaced_tokens_are_told(curve):
    shares = [line.get("displaced", 0.0) for line in curve if line["kind"] == "train"]
    assert 0.1 < np.mean(shares) < 0.4  # half of the pairs lose B, which is half of the pair
