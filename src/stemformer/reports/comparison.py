"""Report of a comparison of initializations: pre-training gain, learning curves, and the table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stemformer.reports.page import Report, ReportTable, Tile, metric_title
from stemformer.reports.plots import BASELINE_STYLE, COLORS, new_figure, save_figure, style_axes, to_svg
from stemformer.tasks.metrics import points_per_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INITIALIZATIONS = {
    "pretrained": ("pre-trained", COLORS[0], "o"),
    "reembedded": ("pre-trained body, random word embeddings", COLORS[3], "^"),
    "random": ("random", COLORS[1], "s"),
}
_MAX_PANELS = 4
_MAX_POINTS = 60
"""Longer curves are averaged to this number of points, which keeps the SVG small."""
_MAX_MARKED_POINTS = 15
_OFFSET = 1.04
"""Factor between the x positions of the error bars of two initializations, so that none hides another."""

Logs = Mapping[tuple[str, int, int, int], Sequence[Mapping[str, Any]]]
"""Initialization, number of records, seed and map of symbols -> lines of the log."""


def write_comparison_report(folder: Path, content: Mapping[str, Any], logs: Logs) -> Path:
    """Write `compare.svg`, `compare.png` and `report.html`, and return the path of the report.

    `content` is that of `compare.json`, with `title` and `table`.
    """
    save_figure(_plot_all(content, logs), folder, "compare")
    metric = metric_title(content["metric"])
    title = f"{metric[0].upper()}{metric[1:]}"
    sizes = new_figure(8.2, 3.8)
    _draw_sizes(sizes.subplots(), content)
    plots = {
        "Loss on training data": _plot_curves(content, logs, is_dev=False),
        f"{title} on dev data": _plot_curves(content, logs, is_dev=True),
        f"{title} against the number of labelled records": sizes,
    }
    unit = {"pearson": "times 100", "bleu": "from 0 to 100"}.get(content["metric"], "in percent")
    baseline = "" if content["baseline"] is None else f"; majority baseline: {content['baseline']}"
    caption = f"{title} on dev data, {unit}; differences are over paired seeds{baseline}."
    headings = {key: name for key, (name, _, _) in _INITIALIZATIONS.items()}
    return Report(
        title=content["title"],
        kind="pre-training gain",
        lead="One task with several initializations, over the number of labelled records and over seeds. "
        f"Bands and ± are one standard deviation over {content['repetitions']}.",
        tiles=_tiles(content),
        summary=content["summary"],
        plots={name: to_svg(_with_legend(figure, content)) for name, figure in plots.items()},
        plots_per_row=1,
        tables=[ReportTable("Table", content["table"], headings, caption)],
        notes={"Method": content["notes"]},
    ).write(folder)


def _dev_label(content: Mapping[str, Any]) -> str:
    unit = {"pearson": " (x 100)", "bleu": ""}.get(content["metric"], " (%)")
    return f"dev {metric_title(content['metric'])}{unit}"


def _tiles(content: Mapping[str, Any]) -> list[Tile]:
    """Return the score of each initialization with the most records."""
    remark = f"{metric_title(content['metric'])} with {content['sizes'][-1]:,} records"
    tiles = []
    for key, (name, _, _) in _shown(content).items():
        row = content["scores"][key][-1]
        spread = f" ± {row['spread']:.1f}" if len(row["each"]) > 1 else ""
        tiles.append(Tile(name, f"{row['mean']:.1f}{spread}", remark))
    if content["baseline"] is not None:
        tiles.append(Tile("majority baseline", f"{content['baseline']:.1f}", "always the most frequent label"))
    return tiles


def _shown(content: Mapping[str, Any]) -> dict[str, tuple[str, str, str]]:
    return {key: style for key, style in _INITIALIZATIONS.items() if key in content["scores"]}


def _plot_all(content: Mapping[str, Any], logs: Logs) -> "Figure":
    """Return all plots in one figure: loss above dev scores, by size; on the right, dev scores against size."""
    num_panels = len(_shown_sizes(content))
    figure = new_figure(3.1 + 2.3 * num_panels + 1.0, 5.0)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[0.5 + 2.3 * num_panels, 4.0])[0]
    grid = left.subplots(2, num_panels, sharex="col", sharey="row", squeeze=False)
    _draw_curves(grid[0], content, logs, is_dev=False)
    _draw_curves(grid[1], content, logs, is_dev=True)
    for upper, lower in grid.T:
        upper.set_xlabel("")
        lower.set_title("")
    _draw_sizes(right.subplots(), content)
    return _with_legend(figure, content)


def _plot_curves(content: Mapping[str, Any], logs: Logs, *, is_dev: bool) -> "Figure":
    num_panels = len(_shown_sizes(content))
    figure = new_figure(1.0 + 3.0 * num_panels, 3.3)
    _draw_curves(figure.subplots(1, num_panels, sharey=True, squeeze=False)[0], content, logs, is_dev=is_dev)
    return figure


def _shown_sizes(content: Mapping[str, Any]) -> list[int]:
    """Return the sizes that get a panel: the smallest, the largest, and some between."""
    sizes = content["sizes"]
    indices = np.linspace(0, len(sizes) - 1, min(len(sizes), _MAX_PANELS)).round().astype(int)
    return [sizes[i] for i in indices]


def _draw_curves(panels: Sequence["Axes"], content: Mapping[str, Any], logs: Logs, *, is_dev: bool) -> None:
    """Draw a panel for each size: mean over seeds of each initialization, in a band of one standard deviation."""
    label = _dev_label(content) if is_dev else "training loss"
    scale = points_per_unit(content["task"], content["metric"]) if is_dev else 1.0
    for axes, size in zip(panels, _shown_sizes(content), strict=True):
        for key, (_, color, marker) in _shown(content).items():
            runs = [lines for (name, records, *_), lines in logs.items() if (name, records) == (key, size)]
            curves = [_curve(lines, content, is_dev=is_dev) for lines in runs]
            # Runs of other lengths are interpolated at the steps of the first.
            x = curves[0][0]
            values = np.stack([np.interp(x, *curve) for curve in curves])
            mean = scale * values.mean(0)
            shown_marker = marker if len(x) <= _MAX_MARKED_POINTS else None
            axes.plot(x, mean, color=color, linewidth=1.8, marker=shown_marker, markersize=3.5)
            if len(curves) > 1:
                deviation = scale * values.std(0, ddof=1)
                axes.fill_between(x, mean - deviation, mean + deviation, color=color, alpha=0.18, linewidth=0)
        if is_dev:
            _draw_baseline(axes, content)
        axes.set_title(f"{size:,} records", fontsize=10)
        style_axes(axes, x="steps", y=label if axes is panels[0] else "")


def _curve(lines: Sequence[Mapping[str, Any]], content: Mapping[str, Any], *, is_dev: bool) -> tuple[Any, Any]:
    """Return steps and values of one run, averaged if there are many."""
    kind, key = ("evaluation", f"dev_{content['metric']}") if is_dev else ("train", f"{content['task']}_loss")
    x, y = np.array([(line["step"], line[key]) for line in lines if line["kind"] == kind], np.float64).T
    parts = np.array_split(np.arange(len(x)), min(len(x), _MAX_POINTS))
    return np.array([x[part[-1]] for part in parts]), np.array([y[part].mean() for part in parts])


def _draw_sizes(axes: "Axes", content: Mapping[str, Any]) -> None:
    """Draw the score against the number of records, with bars of one standard deviation."""
    for number, (key, (_, color, marker)) in enumerate(_shown(content).items()):
        rows = content["scores"][key]
        x = [row["records"] * _OFFSET ** (number - 1) for row in rows]
        y = [row["mean"] for row in rows]
        spread = [row["spread"] for row in rows] if len(rows[0]["each"]) > 1 else None
        style: dict[str, Any] = {"color": color, "marker": marker, "markersize": 6, "linewidth": 1.8}
        axes.errorbar(x, y, yerr=spread, capsize=4, **style)
    _draw_baseline(axes, content)
    axes.set_xscale("log")
    axes.set_xticks(content["sizes"], [f"{size:,}" for size in content["sizes"]])
    axes.minorticks_off()
    axes.margins(x=0.08)
    style_axes(axes, x="labelled records (log scale)", y=f"final {_dev_label(content)}")


def _draw_baseline(axes: "Axes", content: Mapping[str, Any]) -> None:
    if content["baseline"] is not None:
        axes.axhline(content["baseline"], **BASELINE_STYLE)


def _with_legend(figure: "Figure", content: Mapping[str, Any]) -> "Figure":
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=color, marker=marker, markersize=5, linewidth=1.8, label=name)
        for name, color, marker in _shown(content).values()
    ]
    if content["baseline"] is not None:
        handles.append(Line2D([], [], label="majority baseline", **BASELINE_STYLE))
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False, fontsize=9)
    return figure
