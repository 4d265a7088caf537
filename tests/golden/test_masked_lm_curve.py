"""The first twenty losses of the bert_tiny recipe family. Changing these numbers is a reviewed act: say before and after."""

import numpy as np
import pytest

GOLDEN = [
    *[3.035458, 2.989192, 2.999231, 3.009283, 3.031327, 2.899778, 2.841378, 2.888466, 3.073233, 2.704866],
    *[2.885486, 2.834198, 2.891635, 2.680084, 2.880526, 2.687784, 2.840079, 2.787015, 2.594014, 2.654811],
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
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2


def test_held_out_loss_begins_at_word_frequency_and_goes_down(curve):
    first, *_, last = (line for line in curve if line["kind"] == "evaluation")
    assert first["held_out_masked_lm_loss"] == pytest.approx(first["held_out_unigram_loss"], abs=0.05)
    assert last["held_out_masked_lm_loss"] < first["held_out_masked_lm_loss"] - 0.25


def test_unigram_baseline_does_not_move(curve):
    assert len({line["held_out_unigram_loss"] for line in curve if line["kind"] == "evaluation"}) == 1
