"""Report of a fine-tuning run or an evaluation: metrics, errors by label, and examples, wrong ones first."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stemformer.config import parse_toml
from stemformer.data.labelled.token_classification import as_bioes, has_entity_tags
from stemformer.io import read_jsonl
from stemformer.reports.page import Report, ReportTable, Tile, metric_title
from stemformer.reports.plots import plot_curves
from stemformer.tasks.metrics import format_metric, squad_metrics

_MAX_CHARACTERS = 600
_GOLDEN_ANGLE = 137.508
"""Degrees on the color wheel from one label to the next: neighbors differ, for any number of labels."""

# Chart of the answer probabilities, in SVG units.
_WIDTH, _MIDDLE = 1000, 75
_MAX_HEIGHT, _MIN_HEIGHT = 55, 0.1
_MIN_NAMED_PROBABILITY = 0.15

Example = Mapping[str, Any]
"""Example of a report, see `Task.to_report_example`."""


def write_task_report(folder: Path, content: Mapping[str, Any]) -> Path:
    """Write `report.html` into a directory and return its path.

    Args:
        folder: Run directory, or directory of the report.
        content: `task`, `title`, `metrics` (fractions; percent for `qa`), and optionally

            - `baseline`: the same metrics without a model;
            - `baselines`: of several, each as a row with its name in `baseline`, the first one also next to the metrics;
            - `positive_label`: the label that `f1` is of, if there are two;
            - `curves`: `title`, `unit`, `x_name` and `curves` of each plot, see `plot_curves`;
            - `labels`, `confusion`: names, and counts by label (row) and prediction (column);
            - `per_label`: `label`, `precision`, `recall`, `f1`, `count` of each label;
            - `notes`: truncated, split or skipped data;
            - `config`: TOML text;
            - `examples`: see `Task.to_report_example` and `Task.report_details`; the worst ones of `num_examples`, of
              which `num_wrong` are wrong (default: of the examples).
    """
    task, metrics, baselines = content["task"], content["metrics"], content.get("baselines") or []
    baseline = content.get("baseline") or _without_name(baselines[0] if baselines else {})
    lists = ("labels", "confusion", "per_label", "notes", "curves", "examples")
    found = {key: content.get(key) or [] for key in lists}
    title, max_examples, prepare = _TASKS[task]
    examples = prepare(found["examples"])
    return Report(
        title=content["title"],
        kind=title.lower(),
        lead=f"{title}.{' The baseline needs no model.' if baseline else ''}",
        tiles=_tiles(metrics, baseline, is_percent=task == "qa", positive_label=content.get("positive_label")),
        plots={c["title"]: plot_curves(c["curves"], unit=c["unit"], x_name=c["x_name"]) for c in found["curves"]},
        notes={"Data": found["notes"]},
        config=content.get("config") or "",
        template="finetuning.html",
        tables=[_baseline_table(metrics, baselines)] if baselines else (),
        content={
            **found,
            "task": task,
            "examples": examples[:max_examples],
            "num_examples": content.get("num_examples", len(examples)),
            "num_wrong": content.get("num_wrong", sum(not example["is_right"] for example in examples)),
            # A predicted number is rarely equal to the label.
            "is_regression": "pearson" in metrics,
        },
    ).write(folder)


def report_of_run(folder: Path) -> Path:
    """Return the report of a fine-tuning run; the report of an unfinished run is written from its log."""
    if (folder / "metrics.json").is_file() and (folder / "report.html").is_file():
        return folder / "report.html"
    config = (folder / "config.toml").read_text(encoding="utf-8")
    task = parse_toml(config, str(folder / "config.toml"))["task"]["name"]
    lines = read_jsonl(folder / "log.jsonl")
    last: dict[str, Any] = next((line for line in reversed(lines) if line["kind"] == "evaluation"), {})
    metrics = {key.removeprefix("dev_"): value for key, value in last.items() if key.startswith("dev_")}
    content = {"task": task, "title": "", "metrics": metrics, "config": config}
    return write_task_report(folder, {**content, "curves": curves_of_log(lines, task)})


def curves_of_log(lines: Sequence[dict[str, Any]], task: str) -> list[dict[str, Any]]:
    """Return the plots of a fine-tuning log: losses, and each dev metric."""
    train = [line for line in lines if line["kind"] == "train"]
    dev = [line for line in lines if line["kind"] == "evaluation"]

    def curve(name: str, rows: Sequence[dict[str, Any]], key: str, style: str = "line") -> tuple[Any, ...]:
        return name, [row["step"] for row in rows], [row[key] for row in rows], style

    losses = [curve("training", train, f"{task}_loss", "faint")]
    if dev and "dev_loss" in dev[0]:
        losses.append(curve("dev", dev, "dev_loss"))
    plots = [("Loss", "nats", losses)]
    for key in dev[0] if len(dev) > 1 else ():
        if key.startswith("dev_") and key != "dev_loss":
            name = key.removeprefix("dev_").replace("_", " ")
            plots.append((name, name, [curve("dev", dev, key)]))
    return [{"title": title, "unit": unit, "x_name": "steps", "curves": curves} for title, unit, curves in plots]


def _tiles(
    metrics: Mapping[str, float], baseline: Mapping[str, float], *, is_percent: bool, positive_label: str | None
) -> list[Tile]:
    """Return a tile for each metric with its baseline, and for each baseline without such a metric."""
    show = partial(format_metric, is_percent=is_percent)
    remarks = {name: f"baseline {show(name, value)}" for name, value in baseline.items()}
    if positive_label is not None:
        remarks["f1"] = ", ".join(filter(None, (f"of label {positive_label!r}", remarks.get("f1"))))
    tiles = [Tile(metric_title(name), show(name, value), remarks.get(name, "")) for name, value in metrics.items()]
    others = {name: value for name, value in baseline.items() if name not in metrics}
    return tiles + [Tile(metric_title(name), show(name, value), "baseline") for name, value in others.items()]


def _baseline_table(metrics: Mapping[str, float], baselines: Sequence[Mapping[str, Any]]) -> ReportTable:
    """Return a table of the model and of baselines that need none."""
    names = [name for name in metrics if name in baselines[0]]
    named = [("model", metrics), *((f"baseline: {row['baseline']}", row) for row in baselines)]
    rows = [{"": title, **{name: format_metric(name, row[name]) for name in names}} for title, row in named]
    return ReportTable("Baselines", rows, {name: metric_title(name) for name in names}, num_text_columns=1)


def _without_name(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "baseline"}


def _text_examples(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Return examples of `classify` and `pair`: wrong ones first, by decreasing loss."""

    def comparable(label: Any) -> Any:
        return frozenset(label) if isinstance(label, list) else label

    def show(label: Any) -> str:
        return ", ".join(label) or "–" if isinstance(label, (list, tuple)) else str(label)

    shown = [
        {
            "texts": [_shorten(text) for text in example["texts"]],
            "gold": show(example["gold"]),
            "predicted": show(example["predicted"]),
            "probability": _percent(example.get("probability")),
            "loss": example.get("loss"),
            "chrf": example.get("chrf"),
            "is_right": comparable(example["gold"]) == comparable(example["predicted"]),
        }
        for example in examples
    ]
    return sorted(shown, key=lambda example: (example["is_right"], -(example["loss"] or 0.0)))


def _tag_examples(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Return examples of `tag` as pieces of text with labels, those with the most errors first."""
    tags = sorted({tag for example in examples for side in ("gold", "predicted") for tag in example[side]})
    has_entities = has_entity_tags(tags)
    names = sorted({tag[2:] for tag in tags if tag[1:2] == "-"}) if has_entities else tags
    hues = {name: round(_GOLDEN_ANGLE * number) % 360 for number, name in enumerate(names)}
    shown = []
    for example in examples:
        words = example["words"]
        gold, predicted = (_entity_by_word(example[side], has_entities) for side in ("gold", "predicted"))
        pieces: list[dict[str, Any]] = []
        for i, word in enumerate(words):
            space = _space(words[i - 1], word) if i else ""
            # A piece is a run of words in the same gold and the same predicted entity.
            if i and (gold[i], predicted[i]) == (gold[i - 1], predicted[i - 1]):
                pieces[-1]["text"] += space + word
                continue
            label, guess = (entity[0] if entity else "" for entity in (gold[i], predicted[i]))
            # "bounds": right type, wrong boundaries.
            state = "bounds" if label == guess else "wrong"
            if gold[i] == predicted[i]:
                state = "right" if label else "plain"
            piece = {"gold": label, "predicted": guess, "state": state, "hue": hues.get(label or guess, 0)}
            pieces.append({**piece, "text": word, "space": space})
        num_wrong = sum(piece["state"] in ("wrong", "bounds") for piece in pieces)
        shown.append({"pieces": pieces, "num_wrong": num_wrong, "is_right": num_wrong == 0})
    return sorted(shown, key=lambda example: -example["num_wrong"])


def _entity_by_word(tags: Sequence[str], has_entities: bool) -> list[tuple[str, int, int] | None]:
    """Return type, first and last word of the entity of each word; without entities, each word with its tag."""
    if not has_entities:
        return [(tag, i, i) for i, tag in enumerate(tags)]
    from seqeval.metrics.sequence_labeling import get_entities

    entities: list[tuple[str, int, int] | None] = [None] * len(tags)
    for kind, first, last in get_entities(as_bioes(tags)):
        entities[first : last + 1] = [(kind, first, last)] * (last + 1 - first)
    return entities


def _space(text: str, word: str) -> str:
    """Return the separator of two words: none next to a Chinese, Japanese or full-width character."""
    is_wide = any(unicodedata.east_asian_width(character) in "WF" for character in text[-1:] + word[:1])
    return "" if is_wide else " "


def _answer_examples(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Return examples of `qa` with the passage in three parts and a chart of the probabilities, wrong ones first."""
    shown = []
    for example in examples:
        begin, end = example["begin"] or 0, example["end"] or 0
        passage, language = example["passage"], example.get("language", "en")
        metrics = squad_metrics({"": list(example["gold"])}, {"": example["predicted"]}, language=language)
        shown.append(
            {
                "question": example["question"],
                "before": passage[:begin],
                "answer": passage[begin:end],
                "after": passage[max(begin, end) :],
                "gold": list(dict.fromkeys(example["gold"])),
                "predicted": example["predicted"],
                "is_right": metrics["exact_match"] == 100,
                "chart": _chart(example, begin, end),
            }
        )
    return sorted(shown, key=lambda example: example["is_right"])


def _chart(example: Example, begin: int, end: int) -> dict[str, Any]:
    """Return bars, names of the most probable tokens, and the answer span, in SVG units."""
    tokens = example["tokens"]
    step = _WIDTH / max(1, len(tokens))
    bars, names = [], []
    for kind, probabilities, is_upward in (("start", example["start"], True), ("end", example["end_p"], False)):
        named: list[float] = []
        for i in sorted(range(len(tokens)), key=lambda i: -probabilities[i]):
            p, x = probabilities[i], step * i
            height = _MAX_HEIGHT * p
            if height < _MIN_HEIGHT:
                break
            y = _MIDDLE - height if is_upward else _MIDDLE
            text = f"{tokens[i]}: {kind} {p:.1%}"
            bars.append({"kind": kind, "x": x, "y": y, "width": max(1.0, 0.9 * step), "height": height, "text": text})
            if (not named or p >= _MIN_NAMED_PROBABILITY) and all(abs(x - other) > _WIDTH / 8 for other in named):
                named.append(x)
                anchor = "start" if x < _WIDTH / 16 else "end" if x > _WIDTH * 15 / 16 else "middle"
                y = y - 5 if is_upward else y + height + 15
                names.append({"x": x + step / 2, "y": y, "anchor": anchor, "text": f"{tokens[i]} {p:.0%}"})
    inside = [i for i, (first, last) in enumerate(example["offsets"]) if first < end and last > begin]
    span = {"x": step * inside[0], "width": step * len(inside)} if inside else None
    return {"bars": bars, "names": names, "span": span, "width": _WIDTH, "middle": _MIDDLE}


def _choice_examples(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Return examples of `choice` with the probability of each choice, wrong ones first."""
    shown = []
    for example in examples:
        choices = [
            {
                "text": text,
                "share": round(100 * p, 1),
                "probability": _percent(p),
                "is_gold": example["gold"] in (number, text),
                "is_predicted": example["predicted"] in (number, text),
            }
            for number, (text, p) in enumerate(zip(example["choices"], example["probabilities"], strict=True))
        ]
        is_right = any(choice["is_gold"] and choice["is_predicted"] for choice in choices)
        shown.append({"prompt": _shorten(example["prompt"]), "choices": choices, "is_right": is_right})
    return sorted(shown, key=lambda example: example["is_right"])


def _percent(p: float | None) -> str:
    return "" if p is None else f"{p:.1%}"


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else text[: _MAX_CHARACTERS - 1] + "…"


_TASKS: dict[str, tuple[str, int, Callable[[Sequence[Example]], list[dict[str, Any]]]]] = {
    "classify": ("Text classification", 40, _text_examples),
    "pair": ("Text pair classification", 40, _text_examples),
    "tag": ("Token classification", 40, _tag_examples),
    "qa": ("Question answering", 20, _answer_examples),
    "choice": ("Multiple choice", 40, _choice_examples),
    "seq2seq": ("Rewriting", 40, _text_examples),
}
"""Task -> title, maximum number of examples, and function that prepares them, wrong ones first."""
