"""Pictures and `report.html` of runs at several sizes: loss against parameters and against tokens, with the laws that were fitted."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stemformer.evaluation.scaling_laws import LEAST_FLOOR, JointLaw, PowerLaw
from stemformer.reports.page import write_page
from stemformer.reports.plots import as_svg, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_LAW = "#444444"
_POINTS = "#1b6ca8"
_PANEL = (5.2, 3.6)
"""Inches of one picture."""


def write_scale_report(
    folder: Path, told: Mapping[str, Any], law: PowerLaw | None, joint: JointLaw | None, *, config: str
) -> Path:
    """Writes `scale.svg`, `scale.png` and `report.html` into a folder, and returns where the last is.

    Args:
        folder: Where they go.
        told: `title`, `recipe`, `sizes` (the smallest first: `size`, `parameters_in_layers`, `loss`, `curve`, and `in_context` where that
            was measured), `points` that were fitted, `sentences`, `notes`, and the rows of the `table`.
        law: Over size.
        joint: Over size and tokens.
        config: TOML text.
    """
    from matplotlib import rc_context

    panels: list[tuple[str, Callable[[Axes], None]]] = [
        ("Loss against parameters", lambda axes: _draw_sizes(axes, told, law)),
        ("Loss against tokens", lambda axes: _draw_tokens(axes, told, joint)),
    ]
    if all("in_context" in line for line in told["sizes"]):
        panels.append(("Accuracy against parameters, by examples in the prompt", lambda axes: _draw_shots(axes, told)))
    with rc_context({"svg.fonttype": "path"}):
        whole = new_figure(_PANEL[0] * len(panels), _PANEL[1])
        for axes, (_, draw) in zip(whole.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            draw(axes)
        (folder / "scale.svg").write_text(as_svg(whole), encoding="utf-8")
        whole.savefig(folder / "scale.png", dpi=150)
        plots = [(title, _one(draw)) for title, draw in panels]
    return write_page(
        folder,
        "scale.html",
        name=told["title"],
        recipe=told["recipe"],
        tiles=_tiles(told["sizes"]),
        plots=plots,
        sentences=told["sentences"],
        table=told["table"],
        notes=told["notes"],
        config=config,
    )


def _one(draw: Callable[["Axes"], None]) -> str:
    figure = new_figure(*_PANEL)
    draw(figure.subplots())
    return as_svg(figure)


def _tiles(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    ends = {id(line): line for line in (lines[0], lines[-1])}.values()
    tiles = [
        (f"{line['size']}", f"{line['loss']:.3f}", f"held-out loss, {line['parameters']:,} parameters") for line in ends
    ]
    hours = sum(line["seconds"] for line in lines) / 3600
    return [*tiles, ("all sizes", f"{len(lines)}", f"trained in {hours:.2g} hours")]


# ----------------------------------------------------------------------------------------------------------------------------- pictures


def _draw_sizes(axes: "Axes", told: Mapping[str, Any], law: PowerLaw | None) -> None:
    lines = told["sizes"]
    x = [line["parameters_in_layers"] for line in lines]
    axes.plot(x, [line["loss"] for line in lines], "o", color=_POINTS, markersize=6)
    for line in lines:
        at = (line["parameters_in_layers"], line["loss"])
        axes.annotate(line["size"], at, xytext=(6, 5), textcoords="offset points", fontsize=8)
    if law is not None:
        between = np.geomspace(min(x), max(x), 100)
        floor = f"{law.floor:.3g} + " if law.has_floor and law.floor >= LEAST_FLOOR else ""
        label = f"{floor}{law.factor:.3g} / N^{law.exponent:.3g}"
        axes.plot(between, [law.loss(n) for n in between.tolist()], "--", color=_LAW, linewidth=1.2, label=label)
        axes.legend(frameon=False, fontsize=8)
    _finish(axes, x="parameters in the layers (log scale)", y="held-out loss at the end")


def _draw_tokens(axes: "Axes", told: Mapping[str, Any], joint: JointLaw | None) -> None:
    for line, colour in zip(told["sizes"], _shades(len(told["sizes"])), strict=True):
        curve = line["curve"]
        x, y = ([point[key] for point in curve] for key in ("tokens", "loss"))
        axes.plot(x, y, color=colour, marker=".", linewidth=1.6, label=line["size"])
        n = line["parameters_in_layers"]
        fitted = [point["tokens"] for point in told["points"] if point["parameters_in_layers"] == n]
        if joint is not None and fitted:
            axes.plot(fitted, [joint.loss(n, d) for d in fitted], "--", color=_LAW, linewidth=1)
    if joint is not None:
        axes.plot([], [], "--", color=_LAW, linewidth=1, label="fit over size and tokens")
    axes.legend(frameon=False, fontsize=8)
    _finish(axes, x="tokens read (log scale)", y="held-out loss")


def _draw_shots(axes: "Axes", told: Mapping[str, Any]) -> None:
    lines = told["sizes"]
    shots = list(lines[0]["in_context"])
    chance = lines[0].get("in_context_chance")
    if chance is not None:
        axes.axhline(chance, color="#444444", linestyle="--", linewidth=1, label="chance")
    x = [line["parameters_in_layers"] for line in lines]
    for place, (number, colour) in enumerate(zip(shots, _shades(len(shots)), strict=True)):
        y = [line["in_context"][number] for line in lines]
        label = f"{number} example{'' if number == '1' else 's'}"
        marker, line_style = "osD^v"[place % 5], ("-", "--", "-.", ":")[place % 4]  # equal lines lie on each other
        axes.plot(x, y, color=colour, marker=marker, linestyle=line_style, markersize=4, linewidth=1.6, label=label)
    axes.legend(frameon=False, fontsize=8)
    _finish(axes, x="parameters in the layers (log scale)", y="accuracy (%)")
    low, high = axes.get_ylim()
    spare = max(0.0, _LEAST_POINTS - (high - low)) / 2  # or else noise fills the picture
    axes.set_ylim(low - spare, high + spare)


_LEAST_POINTS = 10
"""Percentage points from the bottom of the picture to its top, at least."""


def _shades(number: int) -> list[Any]:
    """Returns colours from dark to light, which order what they stand for."""
    from matplotlib import colormaps

    return [colormaps["viridis"](x) for x in np.linspace(0, 0.85, number).tolist()]


def _finish(axes: "Axes", *, x: str, y: str) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.12)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 30 * low else (1, 3)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    tidy(axes)
