"""Report of BLiMP: accuracy by field, phenomenon and set, next to published results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from stemformer.reports.page import Report, ReportTable, Tile
from stemformer.reports.plots import BASELINE_STYLE, COLORS, new_figure, style_axes, to_svg

_TITLES = {
    "causal": "log-likelihood",
    "within_word_l2r": "pseudo-log-likelihood, words from left to right",
    "original": "pseudo-log-likelihood, each token alone",
}
_ALL = "all"

Record = Mapping[str, Any]
"""Counts of a set: `set`, `field`, `phenomenon`, `pairs`, and `correct` and `ties` by scoring."""


def accuracy_rows(records: Sequence[Record]) -> dict[str, list[dict[str, Any]]]:
    """Return accuracy in percent, a mean over sets: the `table` of all, fields and phenomena, and of the `sets`."""
    groups: dict[tuple[str, str], list[Record]] = {(_ALL, _ALL): list(records)}
    for record in sorted(records, key=lambda record: (record["field"], record["phenomenon"])):
        # Other sets than BLiMP's may have neither.
        for phenomenon in filter(None, (record["field"] and _ALL, record["phenomenon"])):
            groups.setdefault((record["field"], phenomenon), []).append(record)
    table = [
        {"field": field, "phenomenon": phenomenon, "sets": len(group), **_accuracies(group)}
        for (field, phenomenon), group in groups.items()
    ]
    names = ("field", "phenomenon", "set")
    return {"table": table, "sets": [{name: r[name] for name in names} | _accuracies([r]) for r in records]}


def _accuracies(group: Sequence[Record]) -> dict[str, Any]:
    row: dict[str, Any] = {"pairs": sum(record["pairs"] for record in group)}
    for scoring in group[0]["correct"]:
        row[scoring] = f"{100 * fmean(r['correct'][scoring] / r['pairs'] for r in group):.1f}"
        row[f"{scoring}_ties"] = sum(record["ties"][scoring] for record in group)
    return row


def write_blimp_report(folder: Path, title: str, content: Mapping[str, Any]) -> Path:
    """Write `report.html` and return its path; `content` is that of `blimp.json`."""
    scorings = list(content["accuracy"])
    tiles = [
        Tile(_TITLES[name], f"{value:.1%}", "mean over sets, 95 %: {:.1%} to {:.1%}".format(*content["interval"][name]))
        for name, value in content["accuracy"].items()
    ]
    tiles += [
        Tile("ties, counted as wrong", f"{max(content['ties'].values()):,}", f"of {content['pairs']:,} pairs"),
        Tile("minutes", f"{content['minutes']:.1f}", f"{content['parameters'] / 1e6:.1f} M parameters"),
    ]
    headings = {name: _TITLES[name] for name in scorings} | {f"{name}_ties": "ties" for name in scorings}
    published = [{**row, "accuracy": f"{row['accuracy']:.1f}"} for row in content["published"]]
    caption = "BabyLM baselines on filtered sets, by the number of words of their training text."
    return Report(
        title=title,
        kind="benchmark",
        lead="A pair is correct if its acceptable sentence has the higher score; chance is 50 %.",
        tiles=tiles,
        plots={"Accuracy by phenomenon": _plot(content["table"], content["sets"], scorings)},
        plots_per_row=1,
        tables=[
            ReportTable("Accuracy", content["table"], headings, "Percent, a mean over sets.", num_text_columns=2),
            ReportTable("Published results", published, caption=caption, num_text_columns=3),
            ReportTable("Sets", content["sets"], headings, num_text_columns=3),
        ],
        notes={"Notes": content["notes"]},
    ).write(folder)


def _plot(table: Sequence[Mapping[str, Any]], sets: Sequence[Mapping[str, Any]], scorings: Sequence[str]) -> str:
    """Return bars of the fields and phenomena, with a dot for each set."""
    rows = list(reversed(table))
    figure = new_figure(7.5, 0.27 * len(rows) * len(scorings) ** 0.5 + 0.9)
    axes = figure.add_subplot()
    height = 0.8 / len(scorings)
    for number, scoring in enumerate(scorings):
        color = COLORS[number]
        for y, row in enumerate(rows):
            center = y + 0.4 - height * (number + 0.5)
            group = (row["field"], row["phenomenon"])
            values = [float(x[scoring]) for x in sets if (x["field"], x["phenomenon"]) == group]
            alpha = 0.85 if group[1] == _ALL else 0.45
            label = _TITLES[scoring] if y == len(rows) - 1 else None
            axes.barh(center, float(row[scoring]), height, color=color, alpha=alpha, label=label)
            axes.plot(values, [center] * len(values), ".", color=color, markersize=4)
    axes.axvline(50, label="chance", **BASELINE_STYLE)
    names = [row["field"] if row["phenomenon"] == _ALL else f"  {row['phenomenon']}" for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_xlim(0, 100)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    style_axes(axes, x="correct (%); dots: sets")
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=8)
    return to_svg(figure)
