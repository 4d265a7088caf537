"""Report of a pre-training run, made from its `config.toml` and `log.jsonl` alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stemformer.errors import DataError
from stemformer.io import read_jsonl
from stemformer.progress import format_count
from stemformer.reports.page import Report, Tile
from stemformer.reports.plots import Curve, plot_curves, plot_head_scores

_TASKS = {
    "masked_lm": "masked words",
    "causal_lm": "next words",
    "denoising": "repaired words",
    "next_sentence": "next sentence",
    "sentence_order": "sentence order",
}
_IN_CONTEXT_PLOTS = (
    ("Loss late in a sequence minus loss early in it", "nats", "held_out_late_minus_early"),
    ("Gain in loss on repeated random words", "nats", "repeat_gain"),
    ("Best induction-head score", "attention", "induction_score"),
)
_MAX_SENTENCES = 12
_NUM_SHOWN_EVALUATIONS = 5

LogLine = Mapping[str, Any]


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run directory, also while it is running, and return its path.

    Raises:
        DataError: The directory holds no run.
    """
    if not (folder / "log.jsonl").is_file() or not (folder / "config.toml").is_file():
        raise DataError(f"{folder} holds no run: expected config.toml and log.jsonl.")
    lines = read_jsonl(folder / "log.jsonl")
    kinds = ("train", "evaluation", "heads", "fills", "samples", "repairs")
    by_kind = {kind: [line for line in lines if line["kind"] == kind] for kind in kinds}
    train, held_out = by_kind["train"], by_kind["evaluation"]
    heads = [(_tokens(line), line["heads"]) for line in _spread(by_kind["heads"])]
    tiles = _held_out_tiles(held_out[-1]) if held_out else []
    if train:
        tiles += _training_tiles(train, max(line["seconds"] for line in lines) / 60)
    return Report(
        kind="pre-training report",
        lead="Pre-training report. Held-out text was never used for training; dashed lines are baselines that do not "
        "read the text.",
        tiles=tiles,
        plots={title: plot_curves(curves, unit=unit) for title, unit, curves in _plots(train, held_out)},
        template="pretraining.html",
        content={
            "cloze": _cloze([line for line in by_kind["fills"] if line["fills"]]),
            "samples": _samples([line for line in by_kind["samples"] if line["samples"]]),
            "repairs": _repairs([line for line in by_kind["repairs"] if line["repairs"]]),
            "heads": plot_head_scores(heads) if heads else "",
        },
    ).write(folder)


def _held_out_tiles(last: LogLine) -> list[Tile]:
    """Return the tiles of the last evaluation; those of a key that it lacks are left out."""
    names = {"causal_lm": "next", "denoising": "repaired", "masked_lm": "masked"}
    name, words = next((name, words) for name, words in names.items() if f"held_out_{name}_loss" in last)
    loss, unigram = last[f"held_out_{name}_loss"], last["held_out_unigram_loss"]
    gain = f"{unigram - loss:.2f} below" if loss < unigram else "not below"
    tiles = [Tile("held-out loss", f"{loss:.2f} nats", f"{gain} the unigram baseline ({unigram:.2f})")]

    def add(title: str, key: str, form: str, remark: str, baseline: str = "") -> None:
        if f"held_out_{key}" in last:
            remark += f": {last[f'held_out_{baseline}']:.1%}" if baseline else ""
            tiles.append(Tile(title, form.format(last[f"held_out_{key}"]), remark))

    add(f"accuracy on {words} words", f"{name}_accuracy", "{:.1%}", "most frequent word", "unigram_accuracy")
    add("bits per byte", "bits_per_byte", "{:.3f}", "held-out text")
    late = "loss minus that of early words: the gain from context"
    add("late words of a sequence", "late_minus_early", "{:+.2f} nats", late)
    add("accuracy on lost words", "lost_accuracy", "{:.1%}", "words that the source lacks")
    add("gain from the source", "source_gain", "{:+.2f} nats", "a token, against the source of another text")
    for task in ("next_sentence", "sentence_order"):
        add(f"{_TASKS[task]} accuracy", f"{task}_accuracy", "{:.1%}", "majority baseline", "majority_accuracy")
    add("cloze accuracy", "blank_accuracy", "{:.1%}", "one word for all", "blank_constant_accuracy")
    return tiles


def _training_tiles(train: Sequence[LogLine], minutes: float) -> list[Tile]:
    last, speeds = train[-1], sorted(line["tokens_per_second"] for line in train)
    steps = f"{format_count(last['step'], 'step')} in {minutes:,.1f} minutes"
    efficiency = f"MFU {last['mfu']:.0%}, packing efficiency {last['fill']:.0%}"
    return [
        Tile("trained on", f"{last['tokens'] / 1e6:,.2f} M tokens", steps),
        Tile("throughput", f"{speeds[len(speeds) // 2]:,.0f} tokens/s", efficiency),
    ]


def _curve(name: str, lines: Sequence[LogLine], key: str, style: str = "line", *, factor: float = 1.0) -> list[Curve]:
    """Return the curve of a key over millions of tokens; no curve if no line has the key."""
    points = [(line["tokens"] / 1e6, factor * line[key]) for line in lines if key in line]
    return [(name, [x for x, _ in points], [y for _, y in points], style)] if points else []


def _plots(train: Sequence[LogLine], held_out: Sequence[LogLine]) -> list[tuple[str, str, list[Curve]]]:
    """Return title, unit and curves of each plot."""
    plots: list[tuple[str, str, list[Curve]]] = []
    for task, name in _TASKS.items():
        losses = _curve("held out", held_out, f"held_out_{task}_loss")
        losses += _curve("training", train, f"{task}_loss", "faint")
        if not losses:
            continue
        baseline = "held_out_majority_accuracy"
        is_scored = any(f"held_out_{task}_loss" in line for line in held_out)
        if is_scored and task in ("masked_lm", "causal_lm", "denoising"):
            losses += _curve("unigram baseline", held_out, "held_out_unigram_loss", "baseline")
            baseline = "held_out_unigram_accuracy"
        accuracies = [
            *_curve("held out", held_out, f"held_out_{task}_accuracy", factor=100),
            *_curve("training", train, f"{task}_accuracy", "faint", factor=100),
            *(_curve("majority baseline", held_out, baseline, "baseline", factor=100) if is_scored else []),
        ]
        plots += [(f"Loss on {name}", "nats", losses), (f"Accuracy on {name}", "%", accuracies)]
    if cloze := _curve("held-out sentences", held_out, "held_out_blank_accuracy", factor=100):
        cloze += _curve("one word for all", held_out, "held_out_blank_constant_accuracy", "baseline", factor=100)
    plots += [
        ("Cloze accuracy", "%", cloze),
        *((title, unit, _curve("held out", held_out, key)) for title, unit, key in _IN_CONTEXT_PLOTS),
        ("Learning rate", "", _curve("learning rate", train, "learning_rate")),
        ("Throughput", "tokens/s", _curve("throughput", train, "tokens_per_second")),
    ]
    return [plot for plot in plots if plot[2]]


def _spread(lines: Sequence[LogLine]) -> list[LogLine]:
    """Return a few lines, evenly spaced from the first to the last."""
    gap = (len(lines) - 1) / (_NUM_SHOWN_EVALUATIONS - 1)
    return [lines[i] for i in sorted({round(gap * i) for i in range(_NUM_SHOWN_EVALUATIONS)})] if lines else []


def _tokens(line: LogLine) -> str:
    return f"{line['tokens'] / 1e6:.2f} M"


def _samples(lines: Sequence[LogLine]) -> list[dict[str, Any]]:
    """Return the completions of each prompt at a few steps; backward models complete endings."""
    shown = _spread(lines)
    return [
        {
            "prompt": samples[0]["prompt"],
            "is_backward": samples[0].get("direction") == "backward",
            "texts": [(_tokens(line), sample["text"]) for line, sample in zip(shown, samples, strict=True)],
        }
        for samples in zip(*(line["samples"] for line in shown), strict=False)
    ]


def _repairs(lines: Sequence[LogLine]) -> list[dict[str, Any]]:
    """Return source and target of each broken text, and what was written at a few steps."""
    shown = _spread(lines)
    return [
        {
            "source": repairs[0]["source"],
            "target": repairs[0]["target"],
            "texts": [(_tokens(line), repair["written"]) for line, repair in zip(shown, repairs, strict=True)],
        }
        for repairs in zip(*(line["repairs"] for line in shown), strict=False)
    ]


def _cloze(lines: Sequence[LogLine]) -> dict[str, Any]:
    """Return the predictions of masked words at a few steps."""
    shown = _spread(lines)
    rows = []
    # A resumed run may log another number of sentences.
    for examples in list(zip(*(line["fills"] for line in shown), strict=False))[:_MAX_SENTENCES]:
        answer = examples[0]["answer"]
        predictions = [
            {"word": e["guess"], "percent": f"{e['probability']:.0%}", "is_right": e["guess"] == answer}
            for e in examples
        ]
        before, _, after = examples[0]["text"].partition("[MASK]")
        rows.append({"before": before, "after": after, "answer": answer, "predictions": predictions})
    return {"steps": [_tokens(line) for line in shown], "rows": rows}
