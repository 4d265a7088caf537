"""Plots for reports: one style for all, written as SVG text that depends on the data only."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stemformer.io import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[str, Sequence[float], Sequence[float], str]
"""Name, x, y, and style: `line`, `faint` (training data), or `baseline` (no model needed)."""

COLORS = ("#1b6ca8", "#d1495b", "#2e8b57", "#c9861a", "#6a4c93", "#6c757d")
MARKERS = "os^Dvx"
BASELINE_STYLE: dict[str, Any] = {"color": "#444444", "linestyle": "--", "linewidth": 1.2}

_MIN_PRINTED_SCORE = 0.05


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure without a window; sizes in inches."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def style_axes(axes: "Axes", *, x: str = "", y: str = "", legend: bool = False) -> None:
    """Label the axes, remove the top and right border, add a faint grid and a legend."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if legend:
        axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def to_svg(figure: "Figure") -> str:
    """Return a figure as an SVG element for a page."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.hashsalt": "stemformer", "svg.fonttype": "path", "path.simplify_threshold": 0.5}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def save_figure(figure: "Figure", folder: Path, name: str) -> str:
    """Write `name.svg` and `name.png` into a directory, and return the SVG element."""
    svg = to_svg(figure)
    write_file(folder / f"{name}.svg", [svg.encode()])
    figure.savefig(folder / f"{name}.png", dpi=150)
    return svg


def plot_curves(curves: Sequence[Curve], *, unit: str, x_name: str = "tokens (millions)") -> str:
    """Return a plot of curves as SVG; `unit` and `x_name` are the labels of the axes."""
    figure = new_figure(5.2, 3.1)
    axes = figure.add_subplot()
    for number, (name, x, y, style) in enumerate(curves):
        # A line through a single point is invisible.
        line: dict[str, Any] = {"color": COLORS[number % len(COLORS)], "marker": "o" if len(x) == 1 else None}
        line |= {"linewidth": 1, "alpha": 0.45} if style == "faint" else {"linewidth": 2, "alpha": 1}
        axes.plot(x, y, label=name, **(BASELINE_STYLE if style == "baseline" else line))
    style_axes(axes, x=x_name, y=unit, legend=len(curves) > 1)
    return to_svg(figure)


def plot_head_scores(maps: Sequence[tuple[str, Sequence[Sequence[float]]]]) -> str:
    """Return maps as SVG: title, and a row for each layer with the scores (0 to 1) of its heads."""
    num_layers, num_heads = len(maps[0][1]), len(maps[0][1][0])
    side = max(0.16, min(0.42, 2.1 / num_heads))
    figure = new_figure(len(maps) * (side * num_heads + 0.35) + 0.6, side * num_layers + 0.9)
    panels = figure.subplots(1, len(maps), squeeze=False, sharey=True)[0]
    for axes, (name, scores) in zip(panels, maps, strict=True):
        axes.pcolormesh(scores, cmap="Blues", vmin=0, vmax=1, edgecolors="#d8dde2", linewidth=0.5)
        axes.set_title(name, fontsize=8)
        axes.set_aspect("equal")
        axes.set_xticks([0.5, num_heads - 0.5], ["1", str(num_heads)], fontsize=7)
        axes.set_yticks([0.5, num_layers - 0.5], ["1", str(num_layers)], fontsize=7)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for layer, row in enumerate(scores):
            for head, score in enumerate(row):
                if score >= _MIN_PRINTED_SCORE and side > 0.25:
                    color = "white" if score > 0.6 else "#222222"
                    text = f"{score:.2f}"[1:] if score < 0.995 else "1"
                    axes.text(head + 0.5, layer + 0.5, text, ha="center", va="center", fontsize=6.5, color=color)
    panels[0].set_xlabel("head", fontsize=8)
    panels[0].set_ylabel("layer", fontsize=8)
    return to_svg(figure)
