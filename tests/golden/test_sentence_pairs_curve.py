"""The first twenty losses of a run with masked words and next sentence. Changing these numbers is a reviewed act: say before and after."""

import numpy as np
import pytest

GOLDEN = {
    "masked_lm": [
        *[4.926486, 4.800041, 4.737809, 4.614134, 4.590752, 4.548559, 4.451189, 4.446488, 4.359294, 4.302921],
        *[4.232835, 4.245633, 4.171285, 4.143435, 4.130264, 4.139911, 4.174659, 4.05622, 4.068994, 4.021151],
    ],
    "next_sentence": [
        *[0.693156, 0.687196, 0.694398, 0.664451, 0.696536, 0.697791, 0.672715, 0.756644, 0.698955, 0.723363],
        *[0.652192, 0.718519, 0.716541, 0.732542, 0.646214, 0.679419, 0.664334, 0.679655, 0.663948, 0.695117],
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
