"""Report of a pre-training run, made from its `config.toml` and `log.jsonl` alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stemformer.errors import DataError
from stemformer.io import read_jsonl
from stemformer.reports.page import Plot, Report, Tile, run_name
from stemformer.reports.plots import Curve, plot_curves, plot_head_scores

_TASKS = {
    "masked_lm": "masked words",
    "causal_lm": "next words",
    "next_sentence": "next sentence",
    "sentence_order": "sentence order",
}
_IN_CONTEXT_PLOTS = (
    ("Loss late in a sequence minus loss early in it", "nats", "held_out_late_minus_early"),
    ("Gain in loss on repeated random words", "nats", "repeat_gain"),
    ("Best induction-head score", "attention", "induction_score"),
)
_MAX_SENTENCES = 12
_NUM_STEPS = 5
"""Number of evaluations whose predictions and completions are shown."""


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run directory, also while it is running, and return its path.

    Raises:
        DataError: The directory holds no run.
    """
    if not (folder / "log.jsonl").is_file() or not (folder / "config.toml").is_file():
        raise DataError(f"{folder} holds no run: expected config.toml and log.jsonl.")
    lines = read_jsonl(folder / "log.jsonl")
    by_kind = {kind: [line for line in lines if line["kind"] == kind] for kind in ("heads", "fills", "samples")}
    heads = [(_tokens(line), line["heads"]) for line in _spread(by_kind["heads"])]
    return Report(
        title=run_name(folder),
        kind="pre-training report",
        lead="Pre-training report. Held-out text was never used for training; dashed lines are baselines that do not read the text.",
        tiles=_tiles(lines),
        plots=[Plot(title, plot_curves(curves, unit=unit)) for title, unit, curves in _plots(lines)],
        config=(folder / "config.toml").read_text(encoding="utf-8"),
        template="pretraining.html",
        content={
            "cloze": _cloze([line for line in by_kind["fills"] if line["fills"]]),
            "samples": _samples([line for line in by_kind["samples"] if line["samples"]]),
            "heads": plot_head_scores(heads) if heads else "",
        },
    ).write(folder)


def _tiles(lines: Sequence[dict[str, Any]]) -> list[Tile]:
    train = [line for line in lines if line["kind"] == "train"]
    held_out = [line for line in lines if line["kind"] == "evaluation"]
    return [*(_held_out_tiles(held_out[-1]) if held_out else []), *(_training_tiles(lines, train) if train else [])]


def _held_out_tiles(last: dict[str, Any]) -> list[Tile]:
    name, words = ("causal_lm", "next") if "held_out_causal_lm_loss" in last else ("masked_lm", "masked")
    loss, unigram = last[f"held_out_{name}_loss"], last["held_out_unigram_loss"]
    gain = f"{unigram - loss:.2f} below" if loss < unigram else "not below"
    tiles = [
        Tile("held-out loss", f"{loss:.2f} nats", f"{gain} the unigram baseline ({unigram:.2f})"),
        Tile(
            f"accuracy on {words} words",
            f"{last[f'held_out_{name}_accuracy']:.1%}",
            f"most frequent word: {last['held_out_unigram_accuracy']:.1%}",
        ),
    ]
    if "held_out_bits_per_byte" in last:
        tiles.append(Tile("bits per byte", f"{last['held_out_bits_per_byte']:.3f}", "held-out text"))
    if "held_out_late_minus_early" in last:
        late = f"{last['held_out_late_minus_early']:+.2f} nats"
        tiles.append(Tile("late words of a sequence", late, "loss minus that of early words: the gain from context"))
    for task in ("next_sentence", "sentence_order"):
        if f"held_out_{task}_accuracy" in last:
            baseline = f"majority baseline: {last['held_out_majority_accuracy']:.1%}"
            tiles.append(Tile(f"{_TASKS[task]} accuracy", f"{last[f'held_out_{task}_accuracy']:.1%}", baseline))
    if "held_out_blank_accuracy" in last:
        baseline = f"one word for all: {last['held_out_blank_constant_accuracy']:.1%}"
        tiles.append(Tile("cloze accuracy", f"{last['held_out_blank_accuracy']:.1%}", baseline))
    return tiles


def _training_tiles(lines: Sequence[dict[str, Any]], train: Sequence[dict[str, Any]]) -> list[Tile]:
    last, speeds = train[-1], sorted(line["tokens_per_second"] for line in train)
    minutes = max(line["seconds"] for line in lines) / 60
    return [
        Tile(
            "trained on", f"{last['tokens'] / 1e6:,.2f} M tokens", f"{last['step']:,} steps in {minutes:,.1f} minutes"
        ),
        Tile(
            "throughput",
            f"{speeds[len(speeds) // 2]:,.0f} tokens/s",
            f"MFU {last['mfu']:.0%}, packing efficiency {last['fill']:.0%}",
        ),
    ]


def _curve(
    name: str, lines: Sequence[dict[str, Any]], key: str, style: str = "line", *, factor: float = 1.0
) -> list[Curve]:
    """Return the curve of a key over millions of tokens; no curve if no line has the key."""
    points = [(line["tokens"] / 1e6, factor * line[key]) for line in lines if key in line]
    return [(name, [x for x, _ in points], [y for _, y in points], style)] if points else []


def _plots(lines: Sequence[dict[str, Any]]) -> list[tuple[str, str, list[Curve]]]:
    """Return title, unit and curves of each plot."""
    train = [line for line in lines if line["kind"] == "train"]
    held_out = [line for line in lines if line["kind"] == "evaluation"]
    plots: list[tuple[str, str, list[Curve]]] = []
    for task, name in _TASKS.items():
        is_lm = task in ("masked_lm", "causal_lm")
        losses = [
            *_curve("held out", held_out, f"held_out_{task}_loss"),
            *_curve("training", train, f"{task}_loss", "faint"),
        ]
        if not losses:
            continue
        if is_lm:
            losses += _curve("unigram baseline", held_out, "held_out_unigram_loss", "baseline")
        baseline = "held_out_unigram_accuracy" if is_lm else "held_out_majority_accuracy"
        accuracies = [
            *_curve("held out", held_out, f"held_out_{task}_accuracy", factor=100),
            *_curve("training", train, f"{task}_accuracy", "faint", factor=100),
            *_curve("majority baseline", held_out, baseline, "baseline", factor=100),
        ]
        plots += [(f"Loss on {name}", "nats", losses), (f"Accuracy on {name}", "%", accuracies)]
    if cloze := _curve("held-out sentences", held_out, "held_out_blank_accuracy", factor=100):
        key = "held_out_blank_constant_accuracy"
        plots.append(("Cloze accuracy", "%", cloze + _curve("one word for all", held_out, key, "baseline", factor=100)))
    plots += [(title, unit, _curve("held out", held_out, key)) for title, unit, key in _IN_CONTEXT_PLOTS]
    plots.append(("Learning rate", "", _curve("learning rate", train, "learning_rate")))
    plots.append(("Throughput", "tokens/s", _curve("throughput", train, "tokens_per_second")))
    return [plot for plot in plots if plot[2]]


def _spread(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a few lines, evenly spaced from the first to the last."""
    last = len(lines) - 1
    return [lines[i] for i in sorted({round(last * i / (_NUM_STEPS - 1)) for i in range(_NUM_STEPS)})] if lines else []


def _tokens(line: dict[str, Any]) -> str:
    return f"{line['tokens'] / 1e6:.2f} M"


def _samples(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the completions of each prompt at a few steps; backward models complete endings."""
    shown = _spread(lines)
    return [
        {
            "prompt": shown[0]["samples"][number]["prompt"],
            "is_backward": shown[0]["samples"][number].get("direction") == "backward",
            "texts": [(_tokens(line), line["samples"][number]["text"]) for line in shown],
        }
        for number in range(min((len(line["samples"]) for line in shown), default=0))
    ]


def _cloze(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the predictions of masked words at a few steps."""
    shown = _spread(lines)
    # A resumed run may log another number of sentences.
    number = min((len(line["fills"]) for line in shown), default=0)
    rows = []
    for examples in list(zip(*(line["fills"][:number] for line in shown), strict=True))[:_MAX_SENTENCES]:
        answer = examples[0]["answer"]
        predictions = [
            {"word": e["guess"], "percent": f"{e['probability']:.0%}", "is_right": e["guess"] == answer}
            for e in examples
        ]
        before, _, after = examples[0]["text"].partition("[MASK]")
        rows.append({"before": before, "after": after, "answer": answer, "predictions": predictions})
    return {"steps": [_tokens(line) for line in shown], "rows": rows}
