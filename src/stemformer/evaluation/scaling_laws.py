"""Scaling laws: loss as a power law of model size and training tokens.

Source: Kaplan et al. 2020, section 3 (power laws in parameters and tokens); Hoffmann et al. 2022,
equation 2 and section D.2 (joint law with a floor, Huber loss on logarithms). We differ in the
search: least squares from a grid of starting points on centered logarithms.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float

MIN_FLOOR = 5e-4
"""A fitted floor below this (nats) counts as none."""

# Three parameters fit any three points.
_MIN_SIZES_FOR_FLOOR = 4
# Of the joint fit, which has five parameters.
_MIN_SIZES, _MIN_POINTS = 3, 8
# Threshold of the Huber loss on logarithms.
_HUBER = 1e-3
# Least-squares solutions that are refined with the Huber loss.
_HUBER_STARTS = 2
# Smallest that counts as a decrease, and bound of the search.
_MIN_EXPONENT, _MAX_EXPONENT = 1e-3, 3.0

# Of an exponent when one size is left out (jackknife).
Span = tuple[float, float]


@dataclass(frozen=True)
class PowerLaw:
    """loss = floor + factor / size ** exponent.

    Without a fitted floor, it is 0 and the law is a line in logarithms. `span` is that of the
    exponent; None with too few sizes.
    """

    floor: float
    factor: float
    exponent: float
    has_floor: bool
    span: Span | None = None

    def loss(self, size: float) -> float:
        return float(self.floor + self.factor * size**-self.exponent)


@dataclass(frozen=True)
class JointLaw:
    """loss = E + A / parameters ** alpha + B / tokens ** beta.

    The fields are E, A, alpha, B, beta in this order; spans are None with too few sizes.
    """

    floor: float
    size_factor: float
    size_exponent: float
    token_factor: float
    token_exponent: float
    num_points: int
    size_span: Span | None = None
    token_span: Span | None = None

    def loss(self, parameters: float, tokens: float) -> float:
        size_term = self.size_factor * parameters**-self.size_exponent
        return float(self.floor + size_term + self.token_factor * tokens**-self.token_exponent)


def fit_power_law(sizes: Sequence[float], losses: Sequence[float]) -> PowerLaw | None:
    """Fit a power law to the logarithm of the loss; None for fewer than two distinct sizes."""
    x, y = np.array(sizes, np.float64), np.array(losses, np.float64)
    law = _power_law(x, y, has_floor=len(x) >= _MIN_SIZES_FOR_FLOOR)
    if law is None or len(x) < 3:
        return law
    jackknife = [_power_law(np.delete(x, i), np.delete(y, i), has_floor=law.has_floor) for i in range(len(x))]
    return replace(law, span=_span([other.exponent for other in jackknife if other]))


def fit_joint_law(parameters: Sequence[float], tokens: Sequence[float], losses: Sequence[float]) -> JointLaw | None:
    """Fit a joint law to points of model size, training tokens and loss; None with too few points."""
    n, d, values = (np.array(column, np.float64) for column in (parameters, tokens, losses))
    law = _joint_law(n, d, values)
    jackknife = [_joint_law(n[n != size], d[n != size], values[n != size]) for size in np.unique(n)] if law else []
    fits = [fit for fit in jackknife if fit]
    if law is None or len(fits) < _MIN_SIZES + 1:
        return law
    size_span, token_span = _span([fit.size_exponent for fit in fits]), _span([fit.token_exponent for fit in fits])
    return replace(law, size_span=size_span, token_span=token_span)


def _span(exponents: Sequence[float]) -> Span:
    return min(exponents), max(exponents)


def size_sentences(parameters: Sequence[int], losses: Sequence[float], law: PowerLaw | None) -> list[str]:
    """Summarize the final loss as a function of the parameters in the layers, ascending."""
    if law is None:
        return ["No scaling law: all sizes have the same number of parameters in the layers"]
    span = f"from {parameters[0]:,} to {parameters[-1]:,} parameters in the layers"
    change = f"Held-out loss: {losses[0]:.3f} to {losses[-1]:.3f} {span}"
    if law.exponent < _MIN_EXPONENT or losses[-1] >= losses[0]:
        return [f"{change}. It does not decrease with size on this budget, so no law is fitted"]
    floor, remark = f"{law.floor:.3f} + ", ""
    if law.floor < MIN_FLOOR:
        unfitted = f"{len(parameters)} sizes are too few to fit a floor"
        floor, remark = "", "; no floor visible" if law.has_floor else f"; {unfitted}"
    formula = f"{floor}{law.factor:.4g} / N^{law.exponent:.3f}{_describe(law.span)}{remark}"
    return [change, f"Fit over these sizes and this budget only: loss = {formula}"]


def joint_sentences(law: JointLaw | None) -> list[str]:
    """Summarize the loss as a function of model size and training tokens."""
    if law is None:
        return [f"No law of size and tokens: at least {_MIN_SIZES} sizes and {_MIN_POINTS} evaluations are needed"]
    remark = " (no floor visible)" if law.floor < MIN_FLOOR else ""
    return [
        f"Fit over {law.num_points} evaluations: loss = E + A / N^alpha + B / D^beta with E {law.floor:.3f}{remark}, "
        f"A {law.size_factor:.4g}, alpha {law.size_exponent:.3f}{_describe(law.size_span)}, "
        f"B {law.token_factor:.4g}, beta {law.token_exponent:.3f}{_describe(law.token_span)}"
    ]


def _describe(span: Span | None) -> str:
    return f" ({span[0]:.3f} to {span[1]:.3f} leaving one size out)" if span else ""


def _power_law(sizes: Float[np.ndarray, "n"], losses: Float[np.ndarray, "n"], *, has_floor: bool) -> PowerLaw | None:
    if len(np.unique(sizes)) < 2:
        return None
    center = float(np.log(sizes).mean())
    x, y = np.log(sizes) - center, np.log(losses)
    if not has_floor:
        slope, intercept = np.polyfit(x, y, 1)
        return PowerLaw(0.0, float(np.exp(intercept - slope * center)), -float(slope), has_floor=False)

    def residuals(p: Float[np.ndarray, "3"]) -> Any:
        floor, log_factor, exponent = p
        return np.log(floor + np.exp(log_factor - exponent * x)) - y

    lowest = float(losses.min())
    starts = [
        [share * lowest, np.log(losses.mean() - share * lowest), exponent]
        for share, exponent in product((0.0, 0.5, 0.9), (0.05, 0.2, 0.5, 1.0))
    ]
    bounds = [0.0, -25.0, 0.0], [lowest, float(y.max()) + 5, _MAX_EXPONENT]
    floor, log_factor, exponent = _minimize(residuals, starts, bounds)
    return PowerLaw(floor, float(np.exp(log_factor + exponent * center)), exponent, has_floor=True)


def _joint_law(
    parameters: Float[np.ndarray, "n"], tokens: Float[np.ndarray, "n"], losses: Float[np.ndarray, "n"]
) -> JointLaw | None:
    if len(np.unique(parameters)) < _MIN_SIZES or len(losses) < _MIN_POINTS:
        return None
    centers = float(np.log(parameters).mean()), float(np.log(tokens).mean())
    x, z, y = np.log(parameters) - centers[0], np.log(tokens) - centers[1], np.log(losses)

    def residuals(p: Float[np.ndarray, "5"]) -> Any:
        a, alpha, b, beta, e = p
        return np.logaddexp(np.logaddexp(a - alpha * x, b - beta * z), e) - y

    lowest, highest = float(y.min()), float(y.max()) + 5
    half = lowest - np.log(2)
    starts = [
        [half + balance, alpha, half - balance, beta, lowest - below]
        for balance, alpha, beta, below in product((-1.0, 1.0), (0.2, 0.6), (0.2, 0.6), (0.2, 2.0))
    ]
    bounds = [-25.0, 0.0, -25.0, 0.0, -25.0], [highest, _MAX_EXPONENT, highest, _MAX_EXPONENT, lowest]
    a, alpha, b, beta, e = _minimize(residuals, starts, bounds, huber=_HUBER)
    size_factor, token_factor = np.exp(a + alpha * centers[0]), np.exp(b + beta * centers[1])
    return JointLaw(float(np.exp(e)), float(size_factor), alpha, float(token_factor), beta, num_points=len(losses))


def _minimize(residuals: Callable[[Any], Any], starts: Any, bounds: Any, *, huber: float | None = None) -> list[float]:
    """Minimize squares from all starts, then optionally the Huber loss from the best."""
    from scipy.optimize import least_squares

    low, high = map(np.array, bounds)
    # The solver cannot leave a bound.
    margin = 1e-6 * (high - low)
    options: dict[str, Any] = {"bounds": (low, high), "xtol": 1e-14, "ftol": 1e-14, "gtol": 1e-14, "max_nfev": 1000}
    found = [least_squares(residuals, np.clip(start, low + margin, high - margin), **options) for start in starts]
    found.sort(key=lambda solution: float(solution.cost))
    if huber is not None:
        found = found[:_HUBER_STARTS]
        # Narrow the threshold step by step: at once, the solver would creep along the kinks of the loss.
        for factor in (100, 10, 1):
            points = [np.clip(solution.x, low + margin, high - margin) for solution in found]
            found = [least_squares(residuals, x, loss="huber", f_scale=factor * huber, **options) for x in points]
    return min(found, key=lambda solution: float(solution.cost)).x.tolist()
