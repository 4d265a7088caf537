"""What all pictures share: a figure without a window, plain axes, and SVG text that is the same for the same curves."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Curve = tuple[str, Sequence[float], Sequence[float], str]
"""Name, x, y, and style: `line`, `faint` for what was measured on training text, `baseline` for what can be had without learning."""


def new_figure(width: float, height: float) -> "Figure":
    """Returns an empty figure.

    Args:
        width: In inches.
        height: Likewise.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def tidy(axes: "Axes") -> None:
    """Takes the upper and right border away and draws a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def as_svg(figure: "Figure") -> str:
    """Returns a figure as an SVG element, to be put into a page."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.hashsalt": "stemformer"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


_COLOURS = ("#1b6ca8", "#d1495b", "#6c757d", "#2e8b57")


def draw(curves: Sequence[Curve], *, unit: str, x_name: str = "tokens (millions)") -> str:
    """Returns a plot as SVG text, to be put into a page.

    Args:
        curves: All in the same unit, over the same kind of x.
        unit: Of the y axis.
        x_name: Of the x axis.
    """
    figure = new_figure(5.2, 3.1)
    axes = figure.add_subplot()
    for number, (name, x, y, style) in enumerate(curves):
        if style == "baseline":
            axes.plot(x, y, color="#444444", linestyle="--", linewidth=1.2, label=name)
        else:
            colour = _COLOURS[number % len(_COLOURS)]
            faint = style == "faint"
            marker = "o" if len(x) == 1 else None  # of which a line shows nothing
            width, alpha = (1, 0.45) if faint else (2, 1)
            axes.plot(x, y, color=colour, marker=marker, linewidth=width, alpha=alpha, label=name)
    axes.set_xlabel(x_name)
    axes.set_ylabel(unit)
    tidy(axes)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8)
    return as_svg(figure)


def draw_heads(moments: Sequence[tuple[str, Sequence[Sequence[float]]]]) -> str:
    """Returns maps of a score of each head, as SVG text: a square a head, a row a layer, a map a moment.

    Args:
        moments: Name of each, and the scores (from 0 to 1) of the heads of each layer; as many of both at each moment.
    """
    num_layers, num_heads = len(moments[0][1]), len(moments[0][1][0])
    side = max(0.16, min(0.42, 2.1 / num_heads))
    size = (len(moments) * (side * num_heads + 0.35) + 0.6, side * num_layers + 0.9)
    figure = new_figure(*size)
    panels = figure.subplots(1, len(moments), squeeze=False, sharey=True)[0]
    for axes, (name, scores) in zip(panels, moments, strict=True):
        axes.pcolormesh(scores, cmap="Blues", vmin=0, vmax=1, edgecolors="#d8dde2", linewidth=0.5)
        axes.set_title(name, fontsize=8)
        axes.set_aspect("equal")
        axes.set_xticks([0.5, num_heads - 0.5], ["1", str(num_heads)], fontsize=7)
        axes.set_yticks([0.5, num_layers - 0.5], ["1", str(num_layers)], fontsize=7)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for layer, row in enumerate(scores):
            for head, score in enumerate(row):
                if score >= _TOLD_SCORE and side > 0.25:
                    colour = "white" if score > 0.6 else "#222222"
                    axes.text(head + 0.5, layer + 0.5, f"{score:.2f}"[1:] if score < 0.995 else "1", ha="center",
                              va="center", fontsize=6.5, color=colour)  # fmt: skip
    panels[0].set_xlabel("head", fontsize=8)
    panels[0].set_ylabel("layer", fontsize=8)
    return as_svg(figure)


_TOLD_SCORE = 0.05
"""From which on a map says the score of a head in digits."""
