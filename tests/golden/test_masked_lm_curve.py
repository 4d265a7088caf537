"""The first twenty losses of the bert_tiny recipe family. Changing these numbers is a reviewed act: say before and after."""

import numpy as np
import pytest

GOLDEN = [
    *[3.105934, 3.027148, 2.960876, 2.882877, 2.892198, 2.824526, 2.834825, 2.877637, 2.904073, 2.737641],
    *[2.656313, 2.835424, 2.661943, 2.599698, 2.72908, 2.524718, 2.623575, 2.522922, 2.481565, 2.45518],
]
"""Loss (nats) of each step, on 2 threads in fp32. Another processor sums in another order, which 20 steps amplify: 1e-3 relative."""


@pytest.fixture(scope="module")
def curve(log_of_twenty_steps):
    return log_of_twenty_steps()


def test_losses_are_those_that_were_stored(curve):
    losses = [line["masked_lm_loss"] for line in curve if line["kind"] == "train"]
    np.testing.assert_allclose(losses, GOLDEN, rtol=1e-3)


def test_training_loss_goes_down(curve):
    losses = [line["masked_lm_loss"] for line in curve if line["kind"] == "train"]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.4


def test_held_out_loss_begins_at_word_frequency_and_goes_down(curve):
    first, *_, last = (line for line in curve if line["kind"] == "evaluation")
    assert first["held_out_masked_lm_loss"] == pytest.approx(first["held_out_unigram_loss"], abs=0.05)
    assert last["held_out_masked_lm_loss"] < first["held_out_masked_lm_loss"] - 0.4


def test_unigram_baseline_does_not_move(curve):
    assert len({line["held_out_unigram_loss"] for line in curve if line["kind"] == "evaluation"}) == 1
