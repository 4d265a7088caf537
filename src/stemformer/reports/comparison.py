"""Pictures and `report.html` of a comparison of starts: what pre-training was worth, curves, and the table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stemformer.reports.page import write_page
from stemformer.reports.plots import as_svg, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_LOOKS = {
    "pretrained": ("pre-trained", "#1b6ca8", "o"),
    "reembedded": ("pre-trained body, fresh word embeddings", "#c9861a", "^"),
    "random": ("random", "#d1495b", "s"),
}
"""Name, colour and marker of each start."""

_BASELINE = "#444444"
_MOST_PANELS = 4
_MOST_POINTS = 60
"""Of a curve: more are averaged, so that a picture stays small."""
_FEW_POINTS = 15
"""Of a curve: each has a marker."""
_ASIDE = 1.04
"""Bars of starts that meet would hide each other: each is drawn that much beside the one before."""

Logs = Mapping[tuple[str, int, int], Sequence[Mapping[str, Any]]]
"""Start, number of records and seed -> lines of the log."""


def write_compare_report(folder: Path, told: Mapping[str, Any], logs: Logs, *, config: str) -> Path:
    """Writes `compare.svg`, `compare.png` and `report.html` into a folder, and returns where the last is.

    Args:
        folder: Where they go.
        told: `title`, `task`, `metric`, `sizes`, `figures` (see `evaluation.worth`, in points), `summary` (by start, rows of `records`,
            `mean` and `spread`), `baseline` (percent or None), `sentences`, `notes`, and the rows of the `table`.
        logs: Of the runs.
        config: TOML text.
    """
    from matplotlib import rc_context

    with rc_context({"svg.fonttype": "path", "path.simplify_threshold": 0.5}):
        whole = _draw_whole(told, logs)
        (folder / "compare.svg").write_text(as_svg(whole), encoding="utf-8")
        whole.savefig(folder / "compare.png", dpi=150)
        plots = [
            ("Loss on training data", as_svg(_draw_curves(told, logs, is_dev=False))),
            (f"{_spoken(told)} on dev data".capitalize(), as_svg(_draw_curves(told, logs, is_dev=True))),
            (f"{_spoken(told)} over the number of labelled records".capitalize(), as_svg(_draw_sizes(told))),
        ]
    return write_page(
        folder,
        "compare.html",
        name=told["title"],
        tiles=_tiles(told),
        plots=plots,
        sentences=told["sentences"],
        names={start: look[0] for start, look in _LOOKS.items()},
        table=told["table"],
        metric=_spoken(told),
        baseline=told["baseline"],
        notes=told["notes"],
        config=config,
    )


def _spoken(told: Mapping[str, Any]) -> str:
    return str(told["metric"]).replace("_", " ").replace("f1", "F1")


def _dev_name(told: Mapping[str, Any]) -> str:
    return f"dev {_spoken(told)} ({'x 100' if told['metric'] == 'pearson' else '%'})"


def _tiles(told: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Returns what each start has with most records."""
    largest, seeds = told["sizes"][-1], len(told["seeds"])
    tiles = []
    for start, (name, _, _) in _LOOKS.items():
        if start in told["summary"]:
            row = told["summary"][start][-1]
            spread = f" ± {row['spread']:.1f}" if seeds > 1 else ""
            tiles.append((name, f"{row['mean']:.1f}{spread}", f"{_spoken(told)} at {largest:,} records"))
    if told["baseline"] is not None:
        tiles.append(("without reading", f"{told['baseline']:.1f}", "by always giving the most frequent label"))
    return tiles


# ----------------------------------------------------------------------------------------------------------------------------- pictures


def _draw_whole(told: Mapping[str, Any], logs: Logs) -> "Figure":
    """Returns all three pictures in one: curves by size, loss above and dev figure below, and the figure over sizes beside them."""
    sizes = _shown_sizes(told)
    figure = new_figure(3.1 + 2.3 * len(sizes) + 1.0, 5.0)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[0.5 + 2.3 * len(sizes), 4.0])[0]
    grid = left.subplots(2, len(sizes), sharex="col", sharey="row", squeeze=False)
    _fill_row(grid[0], told, logs, is_dev=False)
    _fill_row(grid[1], told, logs, is_dev=True)
    for axes in grid[0]:
        axes.set_xlabel("")
    for axes in grid[1]:
        axes.set_title("")
    _fill_sizes(right.subplots(), told)
    _add_legend(figure, told)
    return figure


def _draw_curves(told: Mapping[str, Any], logs: Logs, *, is_dev: bool) -> "Figure":
    sizes = _shown_sizes(told)
    figure = new_figure(1.0 + 3.0 * len(sizes), 3.3)
    _fill_row(figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0], told, logs, is_dev=is_dev)
    _add_legend(figure, told)
    return figure


def _draw_sizes(told: Mapping[str, Any]) -> "Figure":
    figure = new_figure(8.2, 3.8)
    _fill_sizes(figure.subplots(), told)
    _add_legend(figure, told)
    return figure


def _shown_sizes(told: Mapping[str, Any]) -> list[int]:
    """Returns the sizes of which curves are drawn: the smallest, the largest, and some between."""
    sizes = told["sizes"]
    at = np.linspace(0, len(sizes) - 1, min(len(sizes), _MOST_PANELS)).round().astype(int)
    return [sizes[i] for i in at]


def _starts(told: Mapping[str, Any]) -> list[str]:
    return [start for start in _LOOKS if start in told["figures"]]


def _fill_row(row: Sequence["Axes"], told: Mapping[str, Any], logs: Logs, *, is_dev: bool) -> None:
    """Draws a panel for each size: the mean over seeds of each start, in a band of one standard deviation."""
    in_percent = told["task"] == "qa"
    for axes, size in zip(row, _shown_sizes(told), strict=True):
        for start in _starts(told):
            _, colour, marker = _LOOKS[start]
            curves = [
                _curve(lines, told, is_dev=is_dev)
                for (of_start, of_size, _), lines in logs.items()
                if (of_start, of_size) == (start, size)
            ]
            x, mean, deviation = _over_seeds(curves)
            if is_dev and not in_percent:
                mean, deviation = 100 * mean, 100 * deviation
            axes.plot(
                x, mean, color=colour, linewidth=1.8, marker=marker if len(x) <= _FEW_POINTS else None, markersize=3.5
            )
            if len(curves) > 1:
                axes.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.18, linewidth=0)
        if is_dev:
            _add_baseline(axes, told)
        axes.set_title(f"{size:,} records", fontsize=10)
        axes.set_xlabel("steps")
        tidy(axes)
    row[0].set_ylabel(_dev_name(told) if is_dev else "training loss")


def _curve(lines: Sequence[Mapping[str, Any]], told: Mapping[str, Any], *, is_dev: bool) -> tuple[Any, Any]:
    """Returns steps and values of one run, averaged where there are many."""
    kind, key = ("evaluation", f"dev_{told['metric']}") if is_dev else ("train", f"{told['task']}_loss")
    found = [line for line in lines if line["kind"] == kind]
    x, y = (np.array([line[name] for line in found], np.float64) for name in ("step", key))
    parts = np.array_split(np.arange(len(x)), min(len(x), _MOST_POINTS))
    return np.array([x[part[-1]] for part in parts]), np.array([y[part].mean() for part in parts])


def _over_seeds(curves: Sequence[tuple[Any, Any]]) -> tuple[Any, Any, Any]:
    """Returns steps, mean and standard deviation; runs of another length are brought to the steps of the first."""
    x = curves[0][0]
    values = np.stack([np.interp(x, *curve) for curve in curves])
    return x, values.mean(0), values.std(0, ddof=1) if len(curves) > 1 else np.zeros(len(x))


def _fill_sizes(axes: "Axes", told: Mapping[str, Any]) -> None:
    """Draws the figure over the number of records, with a bar of one standard deviation."""
    from matplotlib.ticker import FixedLocator, NullLocator

    for number, start in enumerate(_starts(told)):
        _, colour, marker = _LOOKS[start]
        rows = told["summary"][start]
        x, y, deviation = ([row[name] for row in rows] for name in ("records", "mean", "spread"))
        axes.errorbar(
            [size * _ASIDE ** (number - 1) for size in x],
            y,
            yerr=deviation if len(told["seeds"]) > 1 else None,
            color=colour,
            marker=marker,
            markersize=6,
            linewidth=1.8,
            capsize=4,
        )
    _add_baseline(axes, told)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(told["sizes"]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{size:,}" for size in told["sizes"]])
    axes.margins(x=0.08)
    axes.set_xlabel("labelled records (log scale)")
    axes.set_ylabel(f"{_dev_name(told)} at the end")
    tidy(axes)


def _add_baseline(axes: "Axes", told: Mapping[str, Any]) -> None:
    if told["baseline"] is not None:
        axes.axhline(told["baseline"], color=_BASELINE, linestyle="--", linewidth=1.1)


def _add_legend(figure: "Figure", told: Mapping[str, Any]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=5, linewidth=1.8, label=name)
        for start, (name, colour, marker) in _LOOKS.items()
        if start in told["figures"]
    ]
    if told["baseline"] is not None:
        handles.append(Line2D([], [], color=_BASELINE, linestyle="--", linewidth=1.1, label="most frequent label"))
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False, fontsize=9)
