"""The first twenty losses of the bert_tiny recipe family. Changing these numbers is a reviewed act: say before and after."""

import numpy as np
import pytest

GOLDEN = [
    *[4.951863, 4.792122, 4.692428, 4.626745, 4.564328, 4.464563, 4.429565, 4.385354, 4.331845, 4.293468],
    *[4.222583, 4.234181, 4.14458, 4.112179, 4.163824, 4.014766, 4.070042, 4.032062, 4.009792, 3.983209],
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
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5


def test_held_out_loss_goes_down(curve):
    first, *_, last = (line["held_out_masked_lm_loss"] for line in curve if line["kind"] == "evaluation")
    assert last < first - 0.5


def test_unigram_baseline_does_not_move(curve):
    assert len({line["held_out_unigram_loss"] for line in curve if line["kind"] == "evaluation"}) == 1
