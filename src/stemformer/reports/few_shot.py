"""Report of a few-shot evaluation: accuracy against the number of demonstrations, and against model size."""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from stemformer.reports.page import Cell, Report, ReportTable, Tile
from stemformer.reports.plots import BASELINE_STYLE, COLORS, MARKERS, new_figure, save_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_COLUMNS = 4
_CAPTION = (
    "Percent correct, or the metric next to the task, by number of demonstrations; green: the lower bound is above "
    "both chance and the most frequent answer."
)
_BASELINES: dict[str, tuple[str, dict[str, Any]]] = {
    "chance": ("chance", BASELINE_STYLE),
    "majority": ("most frequent answer", {"color": "#999999", "linestyle": ":", "linewidth": 1.2}),
}

Result = Mapping[str, Any]
"""Result of one model on one task with one number of demonstrations."""


def write_few_shot_report(
    folder: Path, results: Sequence[Result], notes: Sequence[str], prompts: Sequence[Mapping[str, Any]]
) -> Path:
    """Write `shots.svg`, `sizes.svg`, both also as PNG, and `report.html`, and return the path of the report."""
    plots = {"Accuracy against the number of demonstrations": save_figure(_plot_shots(results), folder, "shots")}
    if len({row["parameters"] for row in results}) > 1:
        plots["Accuracy against parameters, mean over tasks"] = save_figure(_plot_sizes(results), folder, "sizes")
    return Report(
        kind="few-shot evaluation",
        lead="Zero-, one- and few-shot results without fine-tuning. Ranges are 95 % intervals over questions.",
        tiles=_tiles(results),
        plots=plots,
        plots_per_row=1,
        tables=[ReportTable("Table", _table(results), caption=_CAPTION, num_text_columns=2)],
        notes={"Notes": notes},
        examples=[(f"{p['task']}, {p['num_shots']}-shot", p["prompt"], p["right"]) for p in prompts],
    ).write(folder)


def short_names(models: Collection[str]) -> dict[str, str]:
    """Return a short name for each model: the last parts of its path that are unique."""
    for depth in range(1, 5):
        short = {model: "/".join(Path(model).parts[-depth:]) for model in models}
        if len(set(short.values())) == len(models):
            return short
    return {model: model for model in models}


def few_shot_table(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return a row for each task and model: percent correct or the task's own metric, with the interval."""
    names = short_names(_models(results))
    table = []
    for (_, model), rows in _by_task_and_model(results).items():
        line = {"task": _task_title(rows[0]), "model": names[model]}
        for row in rows:
            key = f"shots_{row['num_shots']}"
            line[key] = f"{percent(row['value'])} ({100 * row['low']:.0f}-{100 * row['high']:.0f})"
            if "acc_calibrated" in row:
                line[f"{key}_calibrated"] = percent(row["acc_calibrated"])
        table.append(line | {name: percent(rows[-1][name]) for name in ("chance", "majority")})
    return table


def _task_title(result: Result) -> str:
    """Return the name of a task with its metric, unless that is the accuracy."""
    return result["task"] if result["metric"] == "accuracy" else f"{result['task']} ({result['metric']})"


def percent(value: float | None) -> str:
    """Return a fraction in percent; no text if there is none."""
    return "" if value is None else f"{100 * value:.1f}"


def _models(results: Sequence[Result]) -> dict[str, int]:
    """Return the number of parameters of each model, ascending."""
    sizes = {row["model"]: row["parameters"] for row in results}
    return dict(sorted(sizes.items(), key=lambda item: (item[1], item[0])))


def _by_task_and_model(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    groups: dict[tuple[str, str], list[Result]] = {}
    for row in results:
        groups.setdefault((row["task"], row["model"]), []).append(row)
    return groups


def _tasks(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(row["task"] for row in results))


def _shots(results: Sequence[Result]) -> list[int]:
    return sorted({row["num_shots"] for row in results})


def _comparable(results: Sequence[Result]) -> list[Result]:
    """Return the results that a mean may be taken over: accuracies, if there are any."""
    return [row for row in results if row["metric"] == "accuracy"] or list(results)


def _values(results: Sequence[Result], model: str, num_shots: int) -> list[float]:
    return [r["value"] for r in results if (r["model"], r["num_shots"]) == (model, num_shots)]


def _tiles(results: Sequence[Result]) -> list[Tile]:
    """Return the mean over tasks of the largest model for each number of demonstrations."""
    *_, largest = _models(results)
    name = short_names(_models(results))[largest]
    by_shots = {shots: _values(_comparable(results), largest, shots) for shots in _shots(results)}
    return [
        Tile(f"{shots}-shot", f"{fmean(values):.1%}", f"mean over {len(values)} tasks, {name}")
        for shots, values in by_shots.items()
        if values
    ]


def _table(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return the table of the page, with smaller models above larger ones."""
    groups = _by_task_and_model(results)
    models = _models(results)
    names = short_names(models)
    table = []
    for task, model in ((task, model) for task in _tasks(results) for model in models if (task, model) in groups):
        first, *_ = rows = groups[task, model]
        cells = {row["num_shots"]: _cell(row) for row in rows}
        table.append(
            {"task": _task_title(first), "model": names[model]}
            | {f"{k}-shot": cells.get(k, "") for k in _shots(results)}
            | {"chance": percent(first["chance"]), "most frequent": percent(first["majority"])}
            | {"questions": first["questions"]}
        )
    return table


def _cell(result: Result) -> Cell:
    detail = f"{100 * result['low']:.0f} to {100 * result['high']:.0f}"
    if "acc_calibrated" in result:
        detail += f", calibrated {100 * result['acc_calibrated']:.1f}"
    is_above = result["low"] > max(result["chance"] or 0, result["majority"] or 0)
    return Cell(percent(result["value"]), detail, "good" if is_above else "")


def _plot_shots(results: Sequence[Result]) -> "Figure":
    """Return a panel for each task: a line for each model with its interval, and the baselines."""
    tasks, models, shots = _tasks(results), list(_models(results)), _shots(results)
    num_columns = min(_MAX_COLUMNS, len(tasks))
    num_rows = math.ceil(len(tasks) / num_columns)
    figure = new_figure(2.9 * num_columns + 0.4, 2.4 * num_rows + 0.6)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    for axes in panels[len(tasks) :]:
        axes.set_visible(False)
    names = short_names(models)
    for panel, (axes, task) in enumerate(zip(panels, tasks, strict=False)):
        rows = sorted((row for row in results if row["task"] == task), key=lambda row: row["num_shots"])
        for number, model in enumerate(models):
            line = [row for row in rows if row["model"] == model]
            if not line:
                continue
            x = [shots.index(r["num_shots"]) for r in line]
            value, low, high = ([100 * r[key] for r in line] for key in ("value", "low", "high"))
            color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
            axes.plot(x, value, color=color, marker=marker, markersize=4, label=names[model])
            axes.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
        for key, (label, style) in _BASELINES.items():
            if rows[0][key] is not None:
                axes.axhline(100 * rows[0][key], label=label, **style)
        axes.set_title(_task_title(rows[0]), fontsize=10)
        axes.set_xticks(range(len(shots)), [str(k) for k in shots])
        x_name = "demonstrations in the prompt" if panel >= len(tasks) - num_columns else ""
        style_axes(axes, x=x_name, y="correct (%)" if panel % num_columns == 0 else "")
    # One legend entry for each label of all panels.
    handles = {label: h for axes in panels for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    return figure


def _plot_sizes(results: Sequence[Result]) -> "Figure":
    """Return the mean over the tasks of all models against parameters; masked and causal models have separate lines."""
    results = _comparable(results)
    models, shots = _models(results), _shots(results)
    shared = [t for t in _tasks(results) if len({r["model"] for r in results if r["task"] == t}) == len(models)]
    kinds = sorted({row["kind"] for row in results})
    figure = new_figure(6.2, 3.8)
    axes = figure.subplots()
    for kind in kinds:
        rows = [r for r in results if r["kind"] == kind and r["task"] in shared]
        line: dict[str, Any] = {"linestyle": "--", "fillstyle": "none"} if kind == "masked" else {}
        # Zero-shot, one-shot, and most demonstrations.
        for number, k in enumerate(sorted({*shots[-1:], *(k for k in shots if k <= 1)})):
            values = {model: _values(rows, model, k) for model in models}
            points = [(models[model] / 1e6, 100 * fmean(found)) for model, found in values.items() if found]
            if points:
                label = f"{k}-shot" + (f" ({kind})" if len(kinds) > 1 else "")
                x, y = zip(*points, strict=True)
                axes.plot(x, y, color=COLORS[number], marker=MARKERS[number], label=label, **line)
    axes.set_xscale("log")
    # Ticks closer than 15 % would overlap.
    ticks: list[float] = []
    for size in (number / 1e6 for number in models.values()):
        ticks += [size] if not ticks or size > 1.15 * ticks[-1] else []
    axes.set_xticks(ticks, [f"{size:.3g}" for size in ticks])
    axes.minorticks_off()
    y_name = f"correct (%), mean over {len(shared)} tasks"
    style_axes(axes, x="parameters (millions, log scale)", y=y_name, legend=True)
    return figure
