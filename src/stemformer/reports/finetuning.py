"""`report.html` of a fine-tuning run or an evaluation: its figures, and what the model got wrong, in a form that one can read."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from stemformer.config import parse_toml
from stemformer.data.labelled.token_classification import as_bioes, is_bio
from stemformer.io import read_jsonl
from stemformer.reports.page import write_page
from stemformer.reports.plots import draw
from stemformer.tasks.metrics import squad_metrics

_KINDS = {
    "classify": "Classification of texts",
    "pair": "Classification of pairs of texts",
    "tag": "Tags of words",
    "qa": "Answers in passages",
    "choice": "Choices among answers",
}
_SHARES = ("accuracy", "f1", "precision", "recall", "exact", "exact_match")
_MOST_EXAMPLES = {"classify": 40, "pair": 40, "tag": 40, "qa": 20, "choice": 40}
_MOST_CHARACTERS = 600
_GOLDEN_ANGLE = 137.508
"""Degrees on the colour wheel from one label to the next: neighbours differ, however many there are."""
_WIDTH, _MIDDLE = 1000, 75
"""Of the picture of an answer's probabilities."""
_TALLEST, _FLATTEST = 55, 0.1
"""Heights of a bar: of probability 1, and of the smallest one that is drawn."""
_NAMED = 0.15
"""A token with at least this probability is named in the picture."""


def write_task_report(folder: Path, told: Mapping[str, Any]) -> Path:
    """Writes `report.html` into a folder, one file that needs nothing else, and returns where it is.

    Args:
        folder: Where it goes.
        told: `task` (`classify`, `pair`, `tag`, `qa` or `choice`), `title`, `metrics` (by name, fractions but for those of `qa`, which are
            in percent), and as far as there are any:
            `baseline`: the same figures of what needs no model.
            `curves`: `title`, `unit`, `x_name` and `curves` (of `draw`) of each plot.
            `labels`, `confusion`: names, and how often each right label (row) was predicted as each (column).
            `per_label`: `label`, `precision`, `recall`, `f1` and `count` of each label.
            `notes`: what was cut, windowed or skipped.
            `config`: TOML text.
            `examples`: those that the model got wrong come first.
            Of `classify` and `pair`: `texts`, `gold` and `predicted` (a label, a list of labels, or a number), `probability` and `loss`.
            Of `tag`: `words`, `gold` and `predicted`.
            Of `qa`: `question`, `passage`, `gold`, `predicted`, `begin` and `end` (characters in the passage; None without an answer),
            `tokens`, `offsets`, and each token's probabilities `start` and `end_p`.
            Of `choice`: `prompt`, `choices`, `gold` and `predicted` (numbers of choices or their texts), and `probabilities`.

    Example:
        >>> import tempfile
        >>> told = {"task": "classify", "title": "reviews", "metrics": {"accuracy": 0.9}, "baseline": {"accuracy": 0.5}}
        >>> write_task_report(Path(tempfile.mkdtemp()), told).name
        'report.html'
    """
    task = told["task"]
    assert task in _KINDS, f"no report for {task}"
    prepare: Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]] = {
        "classify": _texts, "pair": _texts, "tag": _tagged, "qa": _answered, "choice": _chosen
    }[task]  # fmt: skip
    examples = prepare(told.get("examples") or [])
    return write_page(
        folder,
        "task.html",
        name=told["title"],
        task=task,
        kind_name=_KINDS[task],
        tiles=_tiles(told["metrics"], told.get("baseline") or {}, in_percent=task == "qa"),
        has_baseline=bool(told.get("baseline")),
        plots=[
            (plot["title"], draw(plot["curves"], unit=plot["unit"], x_name=plot["x_name"]))
            for plot in told.get("curves") or []
        ],
        labels=told.get("labels") or [],
        confusion=_shaded(told.get("confusion") or []),
        per_label=told.get("per_label") or [],
        notes=told.get("notes") or [],
        examples=examples[: _MOST_EXAMPLES[task]],
        num_examples=len(examples),
        is_score="pearson" in told["metrics"],  # numbers are hardly ever equal
        num_wrong=sum(not example["is_right"] for example in examples),
        config=told.get("config") or "",
    )


def report_of_run(folder: Path) -> Path:
    """Returns where the report of a fine-tuning run is; that of a run which is going on is written anew, with what its log tells.

    Args:
        folder: With `config.toml` and `log.jsonl`.
    """
    if (folder / "metrics.json").is_file() and (folder / "report.html").is_file():
        return folder / "report.html"  # complete, with what the model says about the dev data
    config = (folder / "config.toml").read_text(encoding="utf-8")
    lines = read_jsonl(folder / "log.jsonl")
    name = parse_toml(config, str(folder / "config.toml"))["task"]["name"]
    last: dict[str, Any] = next((line for line in reversed(lines) if line["kind"] == "evaluation"), {})
    figures = {key.removeprefix("dev_"): value for key, value in last.items() if key.startswith("dev_")}
    told = {"task": name, "title": "/".join(folder.resolve().parts[-2:]), "metrics": figures, "config": config}
    return write_task_report(folder, {**told, "curves": curves_of_log(lines, name)})


def curves_of_log(lines: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Returns the plots of a run: losses, and each figure on the dev data.

    Args:
        lines: Of its log.
        name: Of its task.
    """
    train = [line for line in lines if line["kind"] == "train"]
    dev = [line for line in lines if line["kind"] == "evaluation"]
    losses = [("training", [x["step"] for x in train], [x[f"{name}_loss"] for x in train], "faint")]
    if dev and "dev_loss" in dev[0]:
        losses.append(("dev", [x["step"] for x in dev], [x["dev_loss"] for x in dev], "line"))
    plots: list[dict[str, Any]] = [{"title": "Loss", "unit": "nats", "x_name": "steps", "curves": losses}]
    for key in dev[0] if len(dev) > 1 else ():
        if key.startswith("dev_") and key != "dev_loss":
            title = key.removeprefix("dev_").replace("_", " ")
            curve = ("dev", [x["step"] for x in dev], [x[key] for x in dev], "line")
            plots.append({"title": title, "unit": title, "x_name": "steps", "curves": [curve]})
    return plots


def _tiles(
    metrics: Mapping[str, float], baseline: Mapping[str, float], *, in_percent: bool
) -> list[tuple[str, str, str]]:
    """Returns title, figure and remark of each metric, and of each baseline that has another name than they."""

    def figure(name: str, value: float) -> str:
        if name.endswith(_SHARES):
            return f"{value:.1f}%" if in_percent else f"{value:.1%}"
        return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"

    tiles = []
    for name, value in metrics.items():
        remark = f"baseline {figure(name, baseline[name])}" if name in baseline else ""
        tiles.append((_spoken(name), figure(name, value), remark))
    others = {name: value for name, value in baseline.items() if name not in metrics}
    return tiles + [(_spoken(name), figure(name, value), "a baseline") for name, value in others.items()]


def _spoken(name: str) -> str:
    return name.replace("_", " ").replace("f1", "F1")


def _shaded(confusion: Sequence[Sequence[int]]) -> list[list[dict[str, Any]]]:
    """Returns each cell's count and its share of its row, which it is coloured by."""
    return [[{"count": count, "share": round(count / max(1, sum(row)), 2)} for count in row] for row in confusion]


def _texts(examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns examples of `classify` and `pair`, wrong ones first, and of these those with the largest loss."""
    shown = [
        {
            "texts": [_short(text) for text in example["texts"]],
            "gold": _said(example["gold"]),
            "predicted": _said(example["predicted"]),
            "probability": _percent(example.get("probability")),
            "loss": example.get("loss"),
            "is_right": _as_set(example["gold"]) == _as_set(example["predicted"]),
        }
        for example in examples
    ]
    return sorted(shown, key=lambda example: (example["is_right"], -(example["loss"] or 0.0)))


def _as_set(answer: Any) -> Any:
    """Returns the labels of a text without their order; anything else as it is."""
    return frozenset(answer) if isinstance(answer, list) else answer


def _tagged(examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns examples of `tag` as pieces of running text with their labels, those with the most mistakes first."""
    tags = sorted({tag for example in examples for side in ("gold", "predicted") for tag in example[side]})
    has_entities = is_bio(tags)
    names = sorted({tag[2:] for tag in tags if tag[1:2] == "-"}) if has_entities else tags
    hues = {name: round(_GOLDEN_ANGLE * number) % 360 for number, name in enumerate(names)}
    shown = []
    for example in examples:
        words = example["words"]
        right, given = (_entity_of_word(example[side], has_entities) for side in ("gold", "predicted"))
        pieces = []
        for (gold, predicted), run in groupby(range(len(words)), key=lambda i: (right[i], given[i])):
            places = list(run)
            piece = _piece(gold, predicted)
            piece["text"] = _joined(words[places[0] : places[-1] + 1])
            piece["space"] = _space(words[places[0] - 1], words[places[0]]) if places[0] else ""
            piece["hue"] = hues.get(piece["gold"] or piece["predicted"], 0)
            pieces.append(piece)
        num_wrong = sum(piece["state"] in ("wrong", "bounds") for piece in pieces)
        shown.append({"pieces": pieces, "num_wrong": num_wrong, "is_right": num_wrong == 0})
    return sorted(shown, key=lambda example: -example["num_wrong"])


_Entity = tuple[str, int, int] | None
"""Type, first and last word; or a single word with its tag."""


def _entity_of_word(tags: Sequence[str], has_entities: bool) -> list[_Entity]:
    """Returns for each word the entity that it belongs to, read as the metrics read it."""
    if not has_entities:
        return [(tag, i, i) for i, tag in enumerate(tags)]
    from seqeval.metrics.sequence_labeling import get_entities

    out: list[_Entity] = [None] * len(tags)
    for kind, first, last in get_entities(as_bioes(tags)):
        out[first : last + 1] = [(kind, first, last)] * (last + 1 - first)
    return out


def _piece(gold: _Entity, predicted: _Entity) -> dict[str, Any]:
    """Returns how a piece of text is marked: `plain`, `right`, `wrong`, or `bounds` where the type is right and the extent is not."""
    names = {"gold": gold[0] if gold else "", "predicted": predicted[0] if predicted else ""}
    if gold == predicted:
        return {**names, "state": "right" if gold else "plain"}
    return {**names, "state": "bounds" if names["gold"] == names["predicted"] else "wrong"}


def _joined(words: Sequence[str]) -> str:
    text = words[0]
    for word in words[1:]:
        text += _space(text, word) + word
    return text


def _space(before: str, word: str) -> str:
    """Returns what stands between two words: nothing beside a Chinese, Japanese or full-width character."""
    is_wide = any(unicodedata.east_asian_width(character) in "WF" for character in before[-1:] + word[:1])
    return "" if is_wide else " "


def _answered(examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns examples of `qa` with the passage in three parts and the picture of their probabilities, wrong ones first."""
    shown = []
    for example in examples:
        begin, end = example["begin"] or 0, example["end"] or 0
        passage = example["passage"]
        score = squad_metrics(
            {"": list(example["gold"])}, {"": example["predicted"]}, language=example.get("language", "en")
        )
        shown.append(
            {
                "question": example["question"],
                "before": passage[:begin],
                "answer": passage[begin:end],
                "after": passage[max(begin, end) :],
                "gold": list(dict.fromkeys(example["gold"])),
                "predicted": example["predicted"],
                "is_right": score["exact_match"] == 100,
                "picture": _picture(example, begin, end),
            }
        )
    return sorted(shown, key=lambda example: example["is_right"])


def _picture(example: Mapping[str, Any], begin: int, end: int) -> dict[str, Any]:
    """Returns bars, names of the likeliest tokens, and the span of the answer, in the units of the picture."""
    tokens = example["tokens"]
    step = _WIDTH / max(1, len(tokens))
    bars, names = [], []
    for kind, probabilities, grows_up in (("start", example["start"], True), ("end", example["end_p"], False)):
        named: list[float] = []
        for i in sorted(range(len(tokens)), key=lambda i: -probabilities[i]):
            p, x = probabilities[i], step * i
            tall = _TALLEST * p
            if tall < _FLATTEST:
                break
            y = _MIDDLE - tall if grows_up else _MIDDLE
            told = f"{tokens[i]}: {kind} {p:.1%}"
            width = max(1.0, 0.9 * step)
            bars.append({"kind": kind, "x": x, "y": y, "width": width, "height": tall, "told": told})
            if (not named or p >= _NAMED) and all(abs(x - other) > _WIDTH / 8 for other in named):
                named.append(x)
                anchor = "start" if x < _WIDTH / 16 else "end" if x > _WIDTH * 15 / 16 else "middle"
                y = y - 5 if grows_up else y + tall + 15
                names.append({"x": x + step / 2, "y": y, "anchor": anchor, "text": f"{tokens[i]} {p:.0%}"})
    inside = [i for i, (first, last) in enumerate(example["offsets"]) if first < end and last > begin]
    span = {"x": step * inside[0], "width": step * len(inside)} if inside else None
    return {"bars": bars, "names": names, "span": span, "width": _WIDTH, "middle": _MIDDLE}


def _chosen(examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns examples of `choice` with each choice's probability and marks, wrong ones first."""
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
        shown.append({"prompt": _short(example["prompt"]), "choices": choices, "is_right": is_right})
    return sorted(shown, key=lambda example: example["is_right"])


def _said(answer: Any) -> str:
    """Returns a label, a list of labels or a number as text."""
    return ", ".join(answer) or "–" if isinstance(answer, (list, tuple)) else str(answer)


def _percent(p: float | None) -> str:
    return "" if p is None else f"{p:.1%}"


def _short(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "…"
