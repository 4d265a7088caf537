"""What all pictures share: a figure without a window, plain axes, and SVG text that is the same for the same curves."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["as_svg", "new_figure", "tidy"]


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
