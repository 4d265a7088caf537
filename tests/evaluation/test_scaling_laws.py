"""Fits recover the law that made the points, and summaries claim only what the points support."""

import numpy as np
import pytest

from stemformer.evaluation.scaling_laws import (
    JointLaw,
    PowerLaw,
    fit_joint_law,
    fit_power_law,
    joint_sentences,
    size_sentences,
)

SIZES = [1e5, 3e5, 8e5, 3e6, 1e7]
TOKENS = [1e6, 2e6, 4e6, 8e6, 16e6]
HOFFMANN = JointLaw(1.69, 406.4, 0.34, 410.7, 0.28, num_points=25)
"""Hoffmann et al. 2022, table A3."""
EXACT = 1e-6  # tolerance 1e-14 of the solver, amplified by a badly conditioned problem


def grid(sizes=SIZES):
    return [(n, d) for n in sizes for d in TOKENS]


def fit_grid(points, noise=0.0):
    rng = np.random.default_rng(0)
    losses = [HOFFMANN.loss(n, d) * float(np.exp(noise * rng.normal())) for n, d in points]
    return fit_joint_law([n for n, _ in points], [d for _, d in points], losses)


def test_law_with_a_floor_is_recovered():
    true = PowerLaw(1.69, 406.4, 0.34, has_floor=True)
    found = fit_power_law(SIZES, [true.loss(n) for n in SIZES])
    assert found.has_floor
    assert (found.floor, found.factor, found.exponent) == pytest.approx((1.69, 406.4, 0.34), rel=EXACT)
    assert found.span == pytest.approx((0.34, 0.34), rel=EXACT)


@pytest.mark.parametrize("number", [2, 3])
def test_few_sizes_give_a_line_without_floor(number):
    found = fit_power_law(SIZES[:number], [50 / n**0.1 for n in SIZES[:number]])
    assert (found.has_floor, found.floor) == (False, 0.0)
    assert (found.factor, found.exponent) == pytest.approx((50, 0.1), rel=EXACT)
    assert (found.span is None) == (number == 2)


def test_one_size_gives_no_law():
    assert fit_power_law([1e5], [3.0]) is None
    assert fit_power_law([1e5, 1e5], [3.0, 2.9]) is None


def test_noise_widens_the_span_of_the_exponent():
    true = PowerLaw(1.69, 406.4, 0.34, has_floor=True)
    noisy = [true.loss(n) * f for n, f in zip(SIZES, (1.0, 1.02, 0.99, 1.01, 1.0), strict=True)]
    low, high = fit_power_law(SIZES, noisy).span
    assert low < 0.34 < high
    assert high - low > 0.02


def test_joint_law_of_the_paper_is_recovered():
    found = fit_grid(grid())
    values = (found.floor, found.size_factor, found.size_exponent, found.token_factor, found.token_exponent)
    assert values == pytest.approx((1.69, 406.4, 0.34, 410.7, 0.28), rel=EXACT)
    assert found.num_points == 25
    assert found.size_span == pytest.approx((0.34, 0.34), rel=EXACT)
    assert found.token_span == pytest.approx((0.28, 0.28), rel=EXACT)


def test_joint_law_is_near_the_paper_with_a_little_noise():
    found = fit_grid(grid(), noise=2e-3)
    assert found.size_exponent == pytest.approx(0.34, abs=0.05)  # fixed seed
    assert found.token_exponent == pytest.approx(0.28, abs=0.05)
    assert found.size_span[0] < found.size_span[1]


def test_one_outlier_hardly_changes_the_joint_law():
    points = grid()
    losses = [HOFFMANN.loss(n, d) for n, d in points]
    losses[7] *= 1.5
    found = fit_joint_law([n for n, _ in points], [d for _, d in points], losses)
    assert found.size_exponent == pytest.approx(0.34, abs=0.01)  # least squares is off by more than 0.1


def test_three_sizes_give_a_joint_law_without_a_span():
    found = fit_grid(grid(SIZES[:3]))
    assert found.size_exponent == pytest.approx(0.34, rel=1e-3)
    assert (found.size_span, found.token_span) == (None, None)


def test_too_few_points_give_no_joint_law():
    assert fit_grid(grid(SIZES[:2])) is None
    assert fit_grid([(n, TOKENS[0]) for n in SIZES]) is None


# Summaries


def test_summary_has_exponent_and_span():
    law = PowerLaw(1.7, 400.0, 0.34, has_floor=True, span=(0.3, 0.4))
    first, second = size_sentences([100_000, 3_000_000], [9.6, 4.1], law)
    assert first == "Held-out loss: 9.600 to 4.100 from 100,000 to 3,000,000 parameters in the layers"
    assert second.endswith("loss = 1.700 + 400 / N^0.340 (0.300 to 0.400 leaving one size out)")
    assert second.startswith("Fit over these sizes and this budget only")


def test_negligible_floor_is_not_written():
    law = PowerLaw(1e-22, 6.59, 0.031, has_floor=True, span=(0.028, 0.035))
    _, second = size_sentences([30_000, 3_000_000], [4.8, 4.1], law)
    assert "loss = 6.59 / N^0.031 (0.028 to 0.035 leaving one size out); no floor visible" in second


def test_summary_says_that_no_floor_was_fitted():
    law = fit_power_law(SIZES[:3], [50 / n**0.1 for n in SIZES[:3]])
    _, second = size_sentences([1, 2, 3], [3.0, 2.0, 1.0], law)
    assert second.endswith("; 3 sizes are too few to fit a floor")


@pytest.mark.parametrize("losses", [[3.0, 3.1, 3.2, 3.3], [3.0, 2.8, 2.9, 3.0]])
def test_loss_that_does_not_decrease_gets_no_law(losses):
    (sentence,) = size_sentences([1, 2, 3, 4], losses, fit_power_law(SIZES[:4], losses))
    assert sentence.endswith("It does not decrease with size on this budget, so no law is fitted")


def test_joint_summary_has_both_exponents_or_the_requirements():
    (sentence,) = joint_sentences(HOFFMANN)
    assert "alpha 0.340" in sentence and "beta 0.280" in sentence and "over 25 evaluations" in sentence
    (sentence,) = joint_sentences(None)
    assert "at least 3 sizes and 8 evaluations are needed" in sentence
