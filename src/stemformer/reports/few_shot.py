"""Report of a few-shot evaluation: accuracy against the number of demonstrations, and against model size."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from stemformer.reports.page import Cell, Plot, Report, ReportExample, ReportTable, Tile, run_name
from stemformer.reports.plots import BASELINE_STYLE, COLORS, MARKERS, new_figure, save_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_COLUMNS = 4

Result = Mapping[str, Any]
"""Result of one model on one task with one number of demonstrations."""


def write_few_shot_report(
    folder: Path, results: Sequence[Result], notes: Sequence[str], prompts: Sequence[Mapping[str, Any]], *, config: str
) -> Path:
    """Write `shots.svg`, `sizes.svg`, both also as PNG, and `report.html`, and return the path of the report.

    Args:
        results: As returned by `fewshot`.
        prompts: As returned by `show_prompts`.
        config: TOML text.
    """
    plots = []
    if results:
        svg = save_figure(_plot_shots(results), folder, "shots")
        plots.append(Plot("Accuracy against the number of demonstrations", svg))
    if len({row["parameters"] for row in results}) > 1:
        plots.append(
            Plot("Accuracy against parameters, mean over tasks", save_figure(_plot_sizes(results), folder, "sizes"))
        )
    return Report(
        title=run_name(folder),
        kind="few-shot evaluation",
        lead="Zero-, one- and few-shot results without fine-tuning. Ranges are 95 % intervals over questions.",
        tiles=_tiles(results),
        plots=plots,
        plots_per_row=1,
        tables=[
            ReportTable(
                "Table",
                _table(results),
                caption="Percent correct, or the metric next to the task, by number of demonstrations; green: the "
                "lower bound is above both chance and the most frequent answer.",
                num_text_columns=2,
            )
        ],
        notes={"Notes": notes},
        examples=[
            ReportExample(f"{prompt['task']}, {prompt['num_shots']}-shot", prompt["prompt"], prompt["right"])
            for prompt in prompts
        ],
        config=config,
    ).write(folder)


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Return a short name for each model: the last parts of its path that are unique."""
    for depth in range(1, 5):
        short = {model: "/".join(Path(model).parts[-depth:]) for model in models}
        if len(set(short.values())) == len(models):
            return short
    return {model: model for model in models}


def _models(results: Sequence[Result]) -> list[str]:
    """Return the models by ascending size."""
    sizes = {row["model"]: row["parameters"] for row in results}
    return sorted(sizes, key=lambda model: (sizes[model], model))


def _tasks(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(row["task"] for row in results))


def _shots(results: Sequence[Result]) -> list[int]:
    return sorted({row["num_shots"] for row in results})


def _comparable(results: Sequence[Result]) -> list[Result]:
    """Return the results that a mean may be taken over: accuracies, if there are any."""
    return [row for row in results if row["metric"] == "accuracy"] or list(results)


def _tiles(results: Sequence[Result]) -> list[Tile]:
    """Return the mean over tasks of the largest model for each number of demonstrations."""
    if not results:
        return []
    largest = _models(results)[-1]
    name = short_names(_models(results))[largest]
    tiles = []
    for shots in _shots(results):
        values = [r["value"] for r in _comparable(results) if (r["model"], r["num_shots"]) == (largest, shots)]
        if values:
            tiles.append(Tile(f"{shots}-shot", f"{fmean(values):.1%}", f"mean over {len(values)} tasks, {name}"))
    return tiles


def _table(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return a row for each task and model, with the score and its interval for each number of demonstrations."""
    names = short_names(_models(results))
    table = []
    for task in _tasks(results):
        for model in _models(results):
            by_shots = {r["num_shots"]: r for r in results if (r["task"], r["model"]) == (task, model)}
            if not by_shots:
                continue
            first = next(iter(by_shots.values()))
            row: dict[str, Any] = {"task": _title(first), "model": names[model]}
            for shots in _shots(results):
                row[f"{shots}-shot"] = _cell(by_shots[shots]) if shots in by_shots else ""
            row |= {"chance": _percent(first["chance"]), "most frequent": _percent(first["majority"])}
            table.append(row | {"questions": first["questions"]})
    return table


def _cell(result: Result) -> Cell:
    detail = f"{100 * result['low']:.0f} to {100 * result['high']:.0f}"
    if "acc_calibrated" in result:
        detail += f", calibrated {100 * result['acc_calibrated']:.1f}"
    is_above = result["low"] > max(result["chance"] or 0, result["majority"] or 0)
    return Cell(f"{100 * result['value']:.1f}", detail, "good" if is_above else "")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _title(result: Result) -> str:
    return result["task"] if result["metric"] == "accuracy" else f"{result['task']} ({result['metric']})"


# ------------------------------------------------------------------------------------------- Plots


def _plot_shots(results: Sequence[Result]) -> "Figure":
    """Return a panel for each task: a line for each model with its interval, and the baselines."""
    tasks, models, shots = _tasks(results), _models(results), _shots(results)
    num_columns = min(_MAX_COLUMNS, max(1, len(tasks)))
    num_rows = math.ceil(len(tasks) / num_columns)
    figure = new_figure(2.9 * num_columns + 0.4, 2.4 * num_rows + 0.6)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    for axes in panels[len(tasks) :]:
        axes.set_visible(False)
    names = short_names(models)
    for panel, (axes, task) in enumerate(zip(panels, tasks, strict=False)):
        rows = [row for row in results if row["task"] == task]
        for number, model in enumerate(models):
            line = sorted((r for r in rows if r["model"] == model), key=lambda r: r["num_shots"])
            if not line:
                continue
            x = [shots.index(r["num_shots"]) for r in line]
            value, low, high = ([100 * r[key] for r in line] for key in ("value", "low", "high"))
            color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
            axes.plot(x, value, color=color, marker=marker, markersize=4, label=names[model])
            axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
        _draw_baselines(axes, rows[0])
        axes.set_title(_title(rows[0]), fontsize=10)
        axes.set_xticks(range(len(shots)), [str(k) for k in shots])
        x_name = "demonstrations in the prompt" if panel >= len(tasks) - num_columns else ""
        style_axes(axes, x=x_name, y="correct (%)" if panel % num_columns == 0 else "")
    # One legend entry for each label of all panels.
    handles = {label: h for axes in panels for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    return figure


def _draw_baselines(axes: "Axes", result: Result) -> None:
    if result["chance"] is not None:
        axes.axhline(100 * result["chance"], label="chance", **BASELINE_STYLE)
    if result["majority"] is not None:
        style: dict[str, Any] = {"color": "#999999", "linestyle": ":", "linewidth": 1.2}
        axes.axhline(100 * result["majority"], label="most frequent answer", **style)


def _plot_sizes(results: Sequence[Result]) -> "Figure":
    """Return the mean over the tasks of all models against parameters: zero-shot, one-shot, and most demonstrations.

    Masked and causal models have separate lines.
    """
    results = _comparable(results)
    models, shots = _models(results), _shots(results)
    sizes = {row["model"]: row["parameters"] for row in results}
    shared = [t for t in _tasks(results) if len({r["model"] for r in results if r["task"] == t}) == len(models)]
    shown_shots = [k for k in shots if k in (0, 1)] + [k for k in shots[-1:] if k > 1]
    kinds = sorted({row["kind"] for row in results})
    figure = new_figure(6.2, 3.8)
    axes = figure.subplots()
    for kind in kinds:
        rows = [r for r in results if r["kind"] == kind and r["task"] in shared]
        for number, k in enumerate(shown_shots):
            values = {m: [r["value"] for r in rows if (r["model"], r["num_shots"]) == (m, k)] for m in models}
            points = [(sizes[model] / 1e6, 100 * fmean(found)) for model, found in values.items() if found]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    color=COLORS[number],
                    marker=MARKERS[number],
                    linestyle="--" if kind == "masked" else "-",
                    fillstyle="none" if kind == "masked" else "full",
                    label=f"{k}-shot" + (f" ({kind})" if len(kinds) > 1 else ""),
                )
    axes.set_xscale("log")
    # Ticks closer than 15 % would overlap.
    ticks: list[float] = []
    for size in sorted({size / 1e6 for size in sizes.values()}):
        ticks += [size] if not ticks or size > 1.15 * ticks[-1] else []
    axes.set_xticks(ticks, [f"{size:.3g}" for size in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)
    style_axes(axes, x="parameters (millions, log scale)", y=f"correct (%), mean over {len(shared)} tasks")
    return figure
