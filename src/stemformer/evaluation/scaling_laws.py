"""Loss as a function of size and of text read: power laws with a floor, fitted to few points, with how far one point moves them.

Source: Kaplan et al. 2020, section 3 (power laws in parameters and tokens); Hoffmann et al. 2022, equation 2 and section D.2 (both at
once with a floor, Huber loss on logarithms). We differ in the search: least squares from a grid of first guesses on centred logarithms.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float

FEWEST_FOR_FLOOR = 4
"""Sizes below which a floor is not fitted: three numbers go through three points, whatever these are."""
FEWEST_SIZES, FEWEST_POINTS = 3, 8
"""Of the fit over sizes and tokens, which has five numbers."""
HUBER = 1e-3
"""Where the Huber loss on logarithms turns from squares to distances."""
FLATTEST, STEEPEST = 1e-3, 3.0
"""Smallest exponent that is called a fall, and the largest that is searched."""
LEAST_FLOOR = 5e-4
"""Nats below which a fitted floor is none."""

_CONTINUED = 2
"""Ends of the search by squares from which that with the Huber loss goes on."""

Span = tuple[float, float]
"""Smallest and largest of the exponents found where one size is left out."""


@dataclass(frozen=True)
class PowerLaw:
    """loss = floor + factor / size ** exponent.

    Attributes:
        floor: What no size goes below; 0 where it was not fitted.
        factor: Above 0.
        exponent: How steep it is.
        has_floor: Whether the floor was fitted; without, it is a straight line in logarithms.
        span: Of the exponent; None where too few sizes are left.
    """

    floor: float
    factor: float
    exponent: float
    has_floor: bool
    span: Span | None = None

    def loss(self, size: float) -> float:
        """Returns the loss that a size would have."""
        return float(self.floor + self.factor * size**-self.exponent)


@dataclass(frozen=True)
class JointLaw:
    """loss = floor + size_factor / parameters ** size_exponent + token_factor / tokens ** token_exponent.

    Attributes:
        floor: E in the paper.
        size_factor: A.
        size_exponent: alpha.
        token_factor: B.
        token_exponent: beta.
        num_points: Points that it was fitted to.
        size_span: Of the exponents, where one size is left out; None where too few sizes are left.
        token_span: Likewise.
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
        """Returns the loss that a size would have after so many tokens."""
        of_size = self.size_factor * parameters**-self.size_exponent
        return float(self.floor + of_size + self.token_factor * tokens**-self.token_exponent)


def fit_power_law(sizes: Sequence[float], losses: Sequence[float]) -> PowerLaw | None:
    """Returns the law that is nearest to some points in logarithms of the loss; None for fewer than two sizes.

    Args:
        sizes: Above 0, each once.
        losses: Above 0, one for each.

    Example:
        >>> law = fit_power_law([1e5, 1e6], [4.0, 2.0])
        >>> round(law.exponent, 3), law.has_floor
        (0.301, False)
    """
    law = _power_law(np.array(sizes, np.float64), np.array(losses, np.float64))
    if law is None or len(sizes) < 3:
        return law
    without = [_power_law(*_left_out(i, sizes, losses), has_floor=law.has_floor) for i in range(len(sizes))]
    exponents = [other.exponent for other in without if other is not None]
    return PowerLaw(law.floor, law.factor, law.exponent, law.has_floor, (min(exponents), max(exponents)))


def fit_joint_law(parameters: Sequence[float], tokens: Sequence[float], losses: Sequence[float]) -> JointLaw | None:
    """Returns the law in parameters and tokens that is nearest to some points; None where they are too few to say.

    Args:
        parameters: Above 0, of each point; points of one run have the same.
        tokens: Above 0, read up to each point.
        losses: Above 0, one for each.

    Raises:
        ValueError: A loss is not above 0.
    """
    n, d, values = (np.array(given, np.float64) for given in (parameters, tokens, losses))
    whole = _joint_law(n, d, values)
    if whole is None:
        return None
    others = [_joint_law(n[n != size], d[n != size], values[n != size]) for size in np.unique(n)]
    found = [law for law in others if law is not None]
    if len(found) < FEWEST_SIZES + 1:
        return whole
    spans = [
        (min(exponents), max(exponents))
        for exponents in ([law.size_exponent for law in found], [law.token_exponent for law in found])
    ]
    return JointLaw(**{**vars(whole), "size_span": spans[0], "token_span": spans[1]})


def size_sentences(parameters: Sequence[int], losses: Sequence[float], law: PowerLaw | None) -> list[str]:
    """Returns what the losses at the end say about size, and no more.

    Args:
        parameters: Of each size, ascending.
        losses: Of each size.
        law: That was fitted to them.
    """
    if law is None:
        return ["nothing is claimed: the sizes have the same number of parameters in their layers"]
    told = (
        f"from {parameters[0]:,} to {parameters[-1]:,} parameters in the layers the held-out loss goes from {losses[0]:.3f} to "
        f"{losses[-1]:.3f}"
    )
    if law.exponent < FLATTEST or losses[-1] >= losses[0]:
        return [f"{told}: it does not fall with size on this budget, and no law is claimed"]
    exponent = f"is nearest, with the exponent {law.exponent:.3f}{_spoken(law.span)}"
    if law.has_floor and law.floor < LEAST_FLOOR:
        form = f"{law.factor:.4g} / N^{law.exponent:.3f}, of which no floor is to be seen yet, {exponent}"
    elif law.has_floor:
        form = f"{law.floor:.3f} + {law.factor:.4g} / N^{law.exponent:.3f} {exponent}"
    else:
        few = f"{len(parameters)} sizes do not suffice to fit a floor"
        form = f"{law.factor:.4g} / N^{law.exponent:.3f}, a straight line in logarithms, {exponent}; {few}"
    return [told, f"of these sizes, {form}; nothing is claimed beyond them or for another budget"]


def joint_sentences(law: JointLaw | None) -> list[str]:
    """Returns what the evaluations along all runs say about size and tokens, and no more."""
    if law is None:
        return [
            f"over size and tokens at once nothing is fitted: it takes {FEWEST_SIZES} sizes and {FEWEST_POINTS} evaluations"
        ]
    unseen = " (no floor can be seen)" if law.floor < LEAST_FLOOR else ""
    return [
        f"over {law.num_points} evaluations along the runs, E + A / N^alpha + B / D^beta is nearest with E {law.floor:.3f}{unseen}, "
        f"A {law.size_factor:.4g}, alpha {law.size_exponent:.3f}{_spoken(law.size_span)}, B {law.token_factor:.4g}, "
        f"beta {law.token_exponent:.3f}{_spoken(law.token_span)}"
    ]


def _spoken(span: Span | None) -> str:
    return f" ({span[0]:.3f} to {span[1]:.3f} where one size is left out)" if span else ""


def _left_out(place: int, *columns: Sequence[float]) -> Iterable[Float[np.ndarray, "n"]]:
    return (np.delete(np.array(column, np.float64), place) for column in columns)


def _power_law(
    sizes: Float[np.ndarray, "n"], losses: Float[np.ndarray, "n"], *, has_floor: bool | None = None
) -> PowerLaw | None:
    if len(np.unique(sizes)) < 2:
        return None
    has_floor = len(sizes) >= FEWEST_FOR_FLOOR if has_floor is None else has_floor
    middle = float(np.log(sizes).mean())
    x, y = np.log(sizes) - middle, np.log(losses)
    if not has_floor:
        slope, at_middle = np.polyfit(x, y, 1)
        return PowerLaw(0.0, float(np.exp(at_middle - slope * middle)), -float(slope), has_floor=False)
    least = float(losses.min())

    def residuals(p: Float[np.ndarray, "3"]) -> Float[np.ndarray, "n"]:
        floor, log_factor, exponent = p
        off: np.ndarray = np.log(floor + np.exp(log_factor - exponent * x)) - y
        return off

    starts = [
        [share * least, np.log(losses.mean() - share * least), exponent]
        for share, exponent in product((0.0, 0.5, 0.9), (0.05, 0.2, 0.5, 1.0))
    ]
    floor, log_factor, exponent = _search(residuals, starts, [0.0, -25.0, 0.0], [least, float(y.max()) + 5, STEEPEST])
    return PowerLaw(floor, float(np.exp(log_factor + exponent * middle)), exponent, has_floor=True)


def _joint_law(
    parameters: Float[np.ndarray, "n"], tokens: Float[np.ndarray, "n"], losses: Float[np.ndarray, "n"]
) -> JointLaw | None:
    if len(np.unique(parameters)) < FEWEST_SIZES or len(losses) < FEWEST_POINTS:
        return None
    middles = float(np.log(parameters).mean()), float(np.log(tokens).mean())
    x, z, y = np.log(parameters) - middles[0], np.log(tokens) - middles[1], np.log(losses)
    least = float(y.min())

    def residuals(p: Float[np.ndarray, "5"]) -> Float[np.ndarray, "n"]:
        a, alpha, b, beta, e = p
        off: np.ndarray = np.logaddexp(np.logaddexp(a - alpha * x, b - beta * z), e) - y
        return off

    half = least - np.log(2)
    starts = [
        [half + of_size, alpha, half - of_size, beta, least - below]
        for of_size, alpha, beta, below in product((-1.0, 1.0), (0.2, 0.6), (0.2, 0.6), (0.2, 2.0))
    ]
    most = float(y.max()) + 5
    limits = [-25.0, 0.0, -25.0, 0.0, -25.0], [most, STEEPEST, most, STEEPEST, least]
    a, alpha, b, beta, e = _search(residuals, starts, *limits, huber=HUBER)
    return JointLaw(
        floor=float(np.exp(e)),
        size_factor=float(np.exp(a + alpha * middles[0])),
        size_exponent=alpha,
        token_factor=float(np.exp(b + beta * middles[1])),
        token_exponent=beta,
        num_points=len(losses),
    )


def _search(
    residuals: Callable[[Any], Any],
    starts: Sequence[Sequence[float]],
    lowest: Sequence[float],
    highest: Sequence[float],
    *,
    huber: float | None = None,
) -> list[float]:
    """Returns the best end of searches from several starts: by squares, and from the best of those ends with the Huber loss."""
    from scipy.optimize import least_squares

    low, high = np.array(lowest), np.array(highest)
    room = 1e-6 * (high - low)  # a start on a bound cannot leave it
    options: dict[str, Any] = {"bounds": (low, high), "xtol": 1e-14, "ftol": 1e-14, "gtol": 1e-14, "max_nfev": 1000}
    found = [least_squares(residuals, np.clip(start, low + room, high - room), **options) for start in starts]
    found.sort(key=lambda end: float(end.cost))
    if huber is not None:
        found = found[:_CONTINUED]
        for factor in (100, 10, 1):  # by degrees: straight on, it would creep along the kinks of so narrow a Huber loss
            begins = [np.clip(end.x, low + room, high - room) for end in found]
            found = [least_squares(residuals, x, loss="huber", f_scale=factor * huber, **options) for x in begins]
    best: list[float] = min(found, key=lambda end: float(end.cost)).x.tolist()
    return best
