"""Pictures and `report.html` of prompting: accuracy against the number of examples, and against the size of the model."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from stemformer.reports.page import write_page
from stemformer.reports.plots import as_svg, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#c9861a", "#6a4c93", "#6c757d")
_MARKERS = "os^Dvx"
_COLUMNS = 4
"""Of panels."""

Row = Mapping[str, Any]


def write_prompt_report(
    folder: Path, rows: Sequence[Row], notes: Sequence[str], shown: Sequence[Row], *, config: str
) -> Path:
    """Writes `shots.svg`, `sizes.svg`, the same as PNG, and `report.html` into a folder, and returns where the last is.

    Args:
        folder: Where they go.
        rows: A figure for each task, model and number of examples; see `prompting.prompt`.
        notes: What should be known beside.
        shown: Prompts as the models saw them; see `prompting.show_prompts`.
        config: TOML text.
    """
    from matplotlib import rc_context

    plots = []
    with rc_context({"svg.hashsalt": "stemformer", "svg.fonttype": "path"}):
        pictures = []
        if rows:
            pictures.append(("Accuracy against the number of examples in the prompt", "shots", _draw_shots(rows)))
        if len({row["parameters"] for row in rows}) > 1:
            pictures.append(("Accuracy against parameters, mean over tasks", "sizes", _draw_sizes(rows)))
        for title, name, figure in pictures:
            plots.append((title, as_svg(figure)))
            (folder / f"{name}.svg").write_text(plots[-1][1], encoding="utf-8")
            figure.savefig(folder / f"{name}.png", dpi=150)
    return write_page(
        folder,
        "prompt.html",
        name="/".join(folder.resolve().parts[-2:]),
        tiles=_tiles(rows),
        plots=plots,
        table=_table(rows),
        shots=_shots(rows),
        notes=notes,
        shown=shown,
        config=config,
    )


def _models(rows: Sequence[Row]) -> list[str]:
    """Returns the models, the smallest first."""
    sizes = {row["model"]: row["parameters"] for row in rows}
    return sorted(sizes, key=lambda model: (sizes[model], model))


def _tasks(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["task"] for row in rows))


def _shots(rows: Sequence[Row]) -> list[int]:
    return sorted({row["num_shots"] for row in rows})


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Returns short names: the last part of each path that tells them apart."""
    for depth in range(1, 5):
        short = {model: "/".join(Path(model).parts[-depth:]) for model in models}
        if len(set(short.values())) == len(models):
            return short
    return {model: model for model in models}


def _tiles(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Returns the mean over tasks of the largest model at few and at many examples."""
    if not rows:
        return []
    largest = _models(rows)[-1]
    tiles = []
    for shots in _shots(rows):
        mine = [row["figure"] for row in _counted(rows) if row["model"] == largest and row["num_shots"] == shots]
        if mine:
            tiles.append(
                (
                    _spoken(shots),
                    f"{fmean(mine):.1%}",
                    f"mean over {len(mine)} tasks, {short_names(_models(rows))[largest]}",
                )
            )
    return tiles


def _counted(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows of which a mean may be taken: those that say how often a model is right, if any does."""
    return [row for row in rows if row["metric"] == "accuracy"] or list(rows)


def _spoken(shots: int) -> str:
    return {0: "no example", 1: "one example"}.get(shots, f"{shots} examples")


def _table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns a line for each task and model: a figure with its bounds for each number of examples."""
    lines = []
    names = short_names(_models(rows))
    for task in _tasks(rows):
        for model in _models(rows):
            mine = {row["num_shots"]: row for row in rows if row["task"] == task and row["model"] == model}
            if mine:
                first = next(iter(mine.values()))
                cells = {
                    shots: {
                        "figure": f"{100 * row['figure']:.1f}",
                        "bounds": f"{100 * row['low']:.0f} to {100 * row['high']:.0f}",
                        "calibrated": f"{100 * row['calibrated']:.1f}" if "calibrated" in row else "",
                        "is_above": row["low"] > max(row["chance"] or 0, row["majority"] or 0),
                    }
                    for shots, row in mine.items()
                }
                lines.append(
                    {
                        "task": task if first["metric"] == "accuracy" else f"{task} ({first['metric']})",
                        "model": names[model],
                        "cells": cells,
                        "chance": _percent(first["chance"]),
                        "majority": _percent(first["majority"]),
                        "questions": first["questions"],
                        "dropped": max(row["dropped_examples"] for row in mine.values()),
                    }
                )
    return lines


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _draw_shots(rows: Sequence[Row]) -> "Figure":
    """Returns a panel for each task: a line for each model, with bounds, and what chance gives."""
    tasks, models, shots = _tasks(rows), _models(rows), _shots(rows)
    columns = min(_COLUMNS, max(1, len(tasks)))
    lines = math.ceil(len(tasks) / columns)
    figure = new_figure(2.9 * columns + 0.4, 2.4 * lines + 0.6)
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in grid[len(tasks) :]:
        axes.set_visible(False)
    names = short_names(models)
    for panel, (axes, task) in enumerate(zip(grid, tasks, strict=False)):
        for number, model in enumerate(models):
            mine = sorted((r for r in rows if (r["task"], r["model"]) == (task, model)), key=lambda r: r["num_shots"])
            if mine:
                x = [shots.index(r["num_shots"]) for r in mine]
                colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
                label = names[model] if panel == 0 else None
                axes.plot(x, [100 * r["figure"] for r in mine], color=colour, marker=marker, markersize=4, label=label)
                axes.fill_between(
                    x,
                    [100 * r["low"] for r in mine],
                    [100 * r["high"] for r in mine],
                    color=colour,
                    alpha=0.12,
                    linewidth=0,
                )
        _baselines(axes, [row for row in rows if row["task"] == task])
        metric = next(row["metric"] for row in rows if row["task"] == task)
        axes.set_title(task if metric == "accuracy" else f"{task} ({metric})", fontsize=10)
        axes.set_xticks(range(len(shots)), [str(k) for k in shots])
        if panel % columns == 0:
            axes.set_ylabel("right (%)")
        if panel >= len(tasks) - columns:
            axes.set_xlabel("examples in the prompt")
        tidy(axes)
    handles, labels = _legend(grid)
    figure.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    return figure


def _legend(grid: Any) -> tuple[list[Any], list[str]]:
    """Returns one handle for each label of all panels."""
    found: dict[str, Any] = {}
    for axes in grid:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


def _baselines(axes: "Axes", rows: Sequence[Row]) -> None:
    if rows[0]["chance"] is not None:
        axes.axhline(100 * rows[0]["chance"], color="#444444", linestyle="--", linewidth=1, label="chance")
    if rows[0]["majority"] is not None:
        axes.axhline(
            100 * rows[0]["majority"], color="#999999", linestyle=":", linewidth=1.2, label="most frequent answer"
        )


def _draw_sizes(rows: Sequence[Row]) -> "Figure":
    """Returns the mean over the tasks that all models took part in, against parameters: a line each for zero, one and most examples.

    Masked models, which fill blanks, have lines of their own.
    """
    rows = _counted(rows)
    models = _models(rows)
    sizes = {row["model"]: row["parameters"] for row in rows}
    shared = [t for t in _tasks(rows) if len({r["model"] for r in rows if r["task"] == t}) == len(models)]
    shots = _shots(rows)
    chosen = [k for k in shots if k in (0, 1)] + [k for k in shots[-1:] if k > 1]
    kinds = sorted({row["kind"] for row in rows})
    figure = new_figure(6.2, 3.8)
    axes = figure.subplots()
    for kind in kinds:
        mine = [r for r in rows if r["kind"] == kind and r["task"] in shared]
        for number, k in enumerate(chosen):
            points = [
                (
                    sizes[model] / 1e6,
                    100 * fmean(r["figure"] for r in mine if (r["model"], r["num_shots"]) == (model, k)),
                )
                for model in models
                if any((r["model"], r["num_shots"]) == (model, k) for r in mine)
            ]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    color=_COLOURS[number],
                    marker=_MARKERS[number],
                    linestyle="--" if kind == "masked" else "-",
                    fillstyle="none" if kind == "masked" else "full",
                    label=_spoken(k) + (f" ({kind})" if len(kinds) > 1 else ""),
                )
    axes.set_xscale("log")
    ticks: list[float] = []
    for size in sorted({size / 1e6 for size in sizes.values()}):
        ticks += [size] if not ticks or size > 1.15 * ticks[-1] else []  # their names would overlap
    axes.set_xticks(ticks, [f"{size:.3g}" for size in ticks])
    axes.minorticks_off()
    axes.set_xlabel("parameters (millions, log scale)")
    axes.set_ylabel(f"right (%), mean over {len(shared)} tasks")
    axes.legend(frameon=False, fontsize=8)
    tidy(axes)
    return figure
