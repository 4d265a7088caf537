"""Report of a scaling study: loss against parameters and against tokens, with the fitted laws."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stemformer.evaluation.scaling_laws import MIN_FLOOR, JointLaw, PowerLaw
from stemformer.reports.page import Report, ReportTable, Tile
from stemformer.reports.plots import BASELINE_STYLE, COLORS, new_figure, save_figure, style_axes, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANEL_INCHES = (5.2, 3.6)
_MIN_RANGE = 10
"""Minimum range of the accuracy axis in percentage points; otherwise noise fills the plot."""
_HEADINGS = {"parameters_in_layers": "in layers", "flops": "operations", "bits_per_byte": "bits per byte"}


def write_scaling_report(folder: Path, content: dict[str, Any], law: PowerLaw | None, joint: JointLaw | None) -> Path:
    """Write `scale.svg`, `scale.png` and `report.html`, and return the path of the report.

    `content` is that of `scale.json`, with `title` and `table`; the laws are fits over size, and over size and tokens.
    """
    panels: dict[str, Callable[[Axes], None]] = {
        "Loss against parameters": lambda axes: _plot_sizes(axes, content, law),
        "Loss against tokens": lambda axes: _plot_tokens(axes, content, joint),
    }
    if all("in_context" in line for line in content["sizes"]):
        panels["Few-shot accuracy against parameters"] = lambda axes: _plot_shots(axes, content)
    width, height = _PANEL_INCHES
    combined = new_figure(width * len(panels), height)
    plots = {}
    for axes, (title, plot) in zip(combined.subplots(1, len(panels)), panels.items(), strict=True):
        plot(axes)
        single = new_figure(width, height)
        plot(single.subplots())
        plots[title] = to_svg(single)
    save_figure(combined, folder, "scale")
    shots = {key: f"{key.removeprefix('shots_')}-shot" for key in content["table"][0] if key.startswith("shots_")}
    return Report(
        title=content["title"],
        kind="loss against size",
        lead=f"The recipe {content['recipe']} at several model sizes under one budget rule, evaluated on the same "
        "held-out text.",
        tiles=_tiles(content["sizes"]),
        summary=content["summary"],
        plots=plots,
        tables=[ReportTable("Table", content["table"], _HEADINGS | shots)],
        notes={"Method": content["notes"]},
    ).write(folder)


def _tiles(lines: Sequence[Mapping[str, Any]]) -> list[Tile]:
    tiles = [
        Tile(line["size"], f"{line['loss']:.3f}", f"held-out loss, {line['parameters']:,} parameters")
        for line in (lines[0], lines[-1])
    ]
    hours = sum(line["seconds"] for line in lines) / 3600
    return [*tiles, Tile("all sizes", f"{len(lines)}", f"trained in {hours:.2g} hours")]


def _plot_sizes(axes: "Axes", content: Mapping[str, Any], law: PowerLaw | None) -> None:
    x, y = ([line[key] for line in content["sizes"]] for key in ("parameters_in_layers", "loss"))
    axes.plot(x, y, "o", color=COLORS[0], markersize=6)
    for line, point in zip(content["sizes"], zip(x, y, strict=True), strict=True):
        axes.annotate(line["size"], point, xytext=(6, 5), textcoords="offset points", fontsize=8)
    if law is not None:
        grid = np.geomspace(min(x), max(x), 100)
        floor = f"{law.floor:.3g} + " if law.has_floor and law.floor >= MIN_FLOOR else ""
        label = f"{floor}{law.factor:.3g} / N^{law.exponent:.3g}"
        axes.plot(grid, [law.loss(n) for n in grid.tolist()], label=label, **BASELINE_STYLE)
    _use_log_scale(axes)
    style_axes(axes, x="parameters in the layers (log scale)", y="final held-out loss", legend=law is not None)


def _plot_tokens(axes: "Axes", content: Mapping[str, Any], joint: JointLaw | None) -> None:
    for line, color in zip(content["sizes"], _shades(len(content["sizes"])), strict=True):
        x, y = ([point[key] for point in line["curve"]] for key in ("tokens", "loss"))
        axes.plot(x, y, color=color, marker=".", linewidth=1.6, label=line["size"])
        n = line["parameters_in_layers"]
        fitted = [point["tokens"] for point in content["points"] if point["parameters_in_layers"] == n]
        if joint is not None and fitted:
            axes.plot(fitted, [joint.loss(n, d) for d in fitted], **BASELINE_STYLE)
    if joint is not None:
        axes.plot([], [], label="fit over size and tokens", **BASELINE_STYLE)
    _use_log_scale(axes)
    style_axes(axes, x="training tokens (log scale)", y="held-out loss", legend=True)


def _plot_shots(axes: "Axes", content: Mapping[str, Any]) -> None:
    lines = content["sizes"]
    if (chance := lines[0].get("in_context_chance")) is not None:
        axes.axhline(chance, label="chance", **BASELINE_STYLE)
    x = [line["parameters_in_layers"] for line in lines]
    shots = list(lines[0]["in_context"])
    for index, (number, color) in enumerate(zip(shots, _shades(len(shots)), strict=True)):
        y = [line["in_context"][number] for line in lines]
        # Different line styles and markers keep equal curves visible.
        style: dict[str, Any] = {"marker": "osD^v"[index % 5], "linestyle": ("-", "--", "-.", ":")[index % 4]}
        axes.plot(x, y, color=color, markersize=4, linewidth=1.6, label=f"{number}-shot", **style)
    _use_log_scale(axes)
    style_axes(axes, x="parameters in the layers (log scale)", y="accuracy (%)", legend=True)
    low, high = axes.get_ylim()
    margin = max(0.0, _MIN_RANGE - (high - low)) / 2
    axes.set_ylim(low - margin, high + margin)


def _shades(number: int) -> list[Any]:
    """Return ordered colors from dark to light."""
    from matplotlib import colormaps

    return [colormaps["viridis"](x) for x in np.linspace(0, 0.85, number).tolist()]


def _use_log_scale(axes: "Axes") -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.12)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 30 * low else (1, 3)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
