"""The first twenty losses of a run with masked words and next sentence. Changing these numbers is a reviewed act: say before and after."""

import numpy as np
import pytest

GOLDEN = {
    "masked_lm": [
        *[2.892639, 3.03624, 3.00798, 2.930888, 2.929413, 3.039109, 2.860553, 2.996703, 2.952027, 2.935115],
        *[2.720591, 2.783776, 2.946119, 2.73292, 2.690645, 2.756997, 2.960132, 2.547995, 2.679182, 2.625617],
    ],
    "next_sentence": [
        *[0.693156, 0.687019, 0.694507, 0.662454, 0.697065, 0.698536, 0.671407, 0.762235, 0.700141, 0.727632],
        *[0.646726, 0.723065, 0.721154, 0.741012, 0.635928, 0.676675, 0.657693, 0.67687, 0.657495, 0.696195],
    ],
}
"""Losses (nats) of each step, on 2 threads in fp32. Another processor sums in another order, which 20 steps amplify: 1e-3 relative."""


@pytest.fixture(scope="module")
def curve(log_of_twenty_steps):
    return log_of_twenty_steps("objective.sentences=next")


@pytest.mark.parametrize("name", GOLDEN)
def test_losses_are_those_that_were_stored(curve, name):
    losses = [line[f"{name}_loss"] for line in curve if line["kind"] == "train"]
    np.testing.assert_allclose(losses, GOLDEN[name], rtol=1e-3)


def test_training_loss_of_masked_words_goes_down(curve):
    losses = [line["masked_lm_loss"] for line in curve if line["kind"] == "train"]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2


def test_held_out_loss_of_masked_words_begins_at_word_frequency_and_goes_down(curve):
    first, *_, last = (line for line in curve if line["kind"] == "evaluation")
    assert first["held_out_masked_lm_loss"] == pytest.approx(first["held_out_unigram_loss"], abs=0.05)
    assert last["held_out_masked_lm_loss"] < first["held_out_masked_lm_loss"] - 0.2


def test_next_sentence_begins_at_chance(curve):
    first = next(line["held_out_next_sentence_loss"] for line in curve if line["kind"] == "evaluation")
    assert first == pytest.approx(np.log(2), abs=0.05)  # fresh weights of 0.02 say next to nothing


def test_dropped_tokens_are_logged(curve):
    shares = [line.get("displaced", 0.0) for line in curve if line["kind"] == "train"]
    assert 0.1 < np.mean(shares) < 0.4  # half of the pairs lose B, which is half of the pair
