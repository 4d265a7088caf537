"""Report of an ablation: the table of variants and tasks, a plot of the scores, and how the variants were trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from stemformer.progress import format_count, format_list
from stemformer.reports.page import Cell, Report, ReportTable, Tile, metric_title
from stemformer.reports.plots import BASELINE_STYLE, COLORS, new_figure, save_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMES = {"random": "random weights", "understanding_mean": "mean, understanding"}
_PRETRAINING = {
    "variant": "variant",
    "seed": "seed",
    "steps": "steps",
    "tokens": "tokens",
    "flops": "FLOPs",
    "seconds": "seconds",
    "loss": "held-out loss",
    "source_gain": "source gain",
}
_BASELINE = "Baseline: the most frequent label, or the best of the source itself, its start and a constant text."
_PANEL_INCHES, _ROW_INCHES = 2.5, 0.32
_MAX_PANELS = 3
"""Panels in a row of the plot."""


def write_ablation_report(folder: Path, content: dict[str, Any]) -> Path:
    """Write `ablate.svg`, `ablate.png` and `report.html`, and return the path of the report.

    `content` is that of `ablate.json`, with `title` and `table`.
    """
    variants = [row["variant"] for row in content["table"]]
    svg = save_figure(_plot(content, variants), folder, "ablate")
    seeds = len(content["seeds"])
    has_intervals = any(row["interval"] for row in content["differences"])
    bars = ""
    if seeds > 1:
        bars = f": single runs, mean, {'95 % interval' if has_intervals else 'standard deviation'}"
    headings = {"variant": "variant"} | {column: _heading(content, column) for column in content["columns"]}
    rows: list[dict[str, Any]] = [
        {"variant": _name(v)} | {column: _cell(content, v, column) for column in content["columns"]} for v in variants
    ]
    rows.append({"variant": "baseline (no model)"} | {c: _baseline_text(content, c) for c in content["columns"]})
    caption = (
        "In points from 0 to 100. Green: the best of a column; bold: those that cannot be distinguished from it (the "
        "95 % interval of the paired difference contains 0). " + _BASELINE
    )
    if not has_intervals:
        caption = "In points from 0 to 100. Green: the best of a column, which may be chance with so few seeds. "
        caption += _BASELINE
    return Report(
        title=content["title"],
        kind="ablation",
        lead=f"Variants of the pre-training of {content['recipe']} with one budget, each fine-tuned on "
        f"{format_count(len(content['tasks']), 'task')} with {format_count(seeds, 'seed')}.",
        tiles=_tiles(content),
        summary=content["summary"],
        plots={f"Scores on dev data{bars}; dashed line: baseline, solid line: random weights": svg},
        plots_per_row=1,
        tables=[
            ReportTable("Scores", rows, headings, caption, num_text_columns=1),
            ReportTable("Gain over random weights", _gain_rows(content, variants), headings, num_text_columns=1),
            ReportTable("Pre-training", _pretraining_rows(content), _PRETRAINING, num_text_columns=1),
        ],
        notes={
            "Failed": [
                f"{_name(x['variant'])}, {x['task'] or 'pre-training'}, seed {x['seed']}: {x['error']}"
                for x in content["failed"]
            ],
            "Variants": [
                f"{name}: {', '.join(values) or 'the recipe'}" for name, values in content["variants"].items()
            ],
            "Method": content["notes"],
        },
    ).write(folder)


def _name(name: str) -> str:
    return _NAMES.get(name, name)


def _heading(content: Mapping[str, Any], column: str) -> str:
    task = content["tasks"].get(column)
    return _name(column) if task is None else f"{column}, {metric_title(task['metric'])}"


def _cell(content: Mapping[str, Any], variant: str, column: str) -> Cell:
    row, best = content["scores"][variant][column], content["best"][column]
    if row["mean"] is None:
        return Cell("failed")
    style = "good" if variant in best["variants"] else ""
    if variant in best["close"] and any(x["interval"] for x in content["differences"] if x["column"] == column):
        style = "strong"
    return Cell(f"{row['mean']:.1f}", f"± {row['spread']:.1f}" if len(row["each"]) > 1 else "", style)


def _baseline_text(content: Mapping[str, Any], column: str) -> str:
    value = content["tasks"].get(column, {}).get("baseline")
    return "" if value is None else f"{value:.1f}"


def _gain_rows(content: Mapping[str, Any], variants: Sequence[str]) -> list[dict[str, Any]]:
    found = {(row["variant"], row["column"]): row for row in content["differences"]}
    rows = []
    for variant in (name for name in variants if name != "random"):
        cells: dict[str, Any] = {}
        for column in content["columns"]:
            row = found.get((variant, column))
            bounds = row and row["interval"]
            detail = f"{bounds[0]:+.1f} to {bounds[1]:+.1f}" if bounds else ""
            detail = detail or (f"± {row['spread']:.1f}" if row and row["seeds"] > 1 else "")
            cells[column] = Cell(f"{row['mean']:+.1f}", detail) if row else Cell("failed")
        rows.append({"variant": variant, **cells})
    return rows


def _pretraining_rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    shown = [key for key in _PRETRAINING if any(row.get(key) is not None for row in content["pretraining"])]
    several = len({row["seed"] for row in content["pretraining"]}) > 1
    formats = {"flops": "{:.3g}", "seconds": "{:,.0f}", "loss": "{:.3f}", "source_gain": "{:.2f}"}
    return [
        {
            key: "" if row.get(key) is None else formats.get(key, "{}").format(row[key]) if key in formats else row[key]
            for key in shown
            if key != "seed" or several
        }
        for row in content["pretraining"]
    ]


def _tiles(content: Mapping[str, Any]) -> list[Tile]:
    tiles = []
    for column in content["columns"]:
        best = content["best"][column]["variants"]
        if best:
            row = content["scores"][best[0]][column]
            # Rows that tie have deviations of their own.
            spread = f" ± {row['spread']:.1f}" if len(row["each"]) > 1 and len(best) == 1 else ""
            names = format_list(map(_name, best), 3)
            tiles.append(Tile(_heading(content, column), f"{row['mean']:.1f}{spread}", f"best: {names}"))
    return tiles[:5]


def _plot(content: Mapping[str, Any], variants: Sequence[str]) -> "Figure":
    """Return a panel for each column: scores of single seeds, their mean, and the interval or deviation."""
    columns = content["columns"]
    width = min(len(columns), _MAX_PANELS)
    height = -(-len(columns) // width)
    figure = new_figure(1.8 + _PANEL_INCHES * width, (1.3 + _ROW_INCHES * len(variants)) * height)
    panels = figure.subplots(height, width, sharey=True, squeeze=False)
    for axes in panels.flat[len(columns) :]:
        axes.set_visible(False)
    for axes, column in zip(panels.flat, columns, strict=False):
        _draw_column(axes, content, variants, column)
    return figure


def _draw_column(axes: "Axes", content: Mapping[str, Any], variants: Sequence[str], column: str) -> None:
    best = content["best"][column]["variants"]
    shown: list[float] = []
    for y, variant in enumerate(variants):
        row = content["scores"][variant][column]
        if row["mean"] is None:
            continue
        color = COLORS[5] if variant == "random" else COLORS[2] if variant in best else COLORS[0]
        bounds = row["interval"] or (row["mean"] - row["spread"], row["mean"] + row["spread"])
        shown += [*bounds, *row["each"].values()]
        axes.plot(bounds, [y, y], color=color, linewidth=2, alpha=0.6, solid_capstyle="butt")
        axes.plot(list(row["each"].values()), [y] * len(row["each"]), "o", color=color, markersize=3, alpha=0.45)
        axes.plot([row["mean"]], [y], "D", color=color, markersize=6)
    if (random := content["scores"]["random"][column]["mean"]) is not None:
        axes.axvline(random, color=COLORS[5], linewidth=1, alpha=0.7)
    value = content["tasks"].get(column, {}).get("baseline")
    # A score far from all others would leave no room for their differences.
    if value is not None and shown and abs(value - fmean(shown)) < 2 * (max(shown) - min(shown)):
        axes.axvline(value, **BASELINE_STYLE)
    axes.set_yticks(range(len(variants)), [_name(variant) for variant in variants])
    axes.set_ylim(len(variants) - 0.5, -0.5)
    axes.set_title(_heading(content, column), fontsize=10)
    style_axes(axes)
