"""`report.html` of a pre-training run: one file that needs nothing else, made from `config.toml` and `log.jsonl` alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stemformer.errors import DataError
from stemformer.io import read_jsonl
from stemformer.reports.page import write_page
from stemformer.reports.plots import Curve, draw, draw_heads

_LOSSES = {
    "masked_lm": "masked words",
    "causal_lm": "next words",
    "next_sentence": "next sentence",
    "sentence_order": "sentence order",
}


_IN_CONTEXT = (
    ("Loss late in a row less that early in it", "nats", "held_out_late_minus_early"),
    ("Random words easier the second time", "nats", "repeat_gain"),
    ("Best head at finding what came next before", "attention", "induction_score"),
)


_NUM_SENTENCES = 12


_NUM_MOMENTS = 5


def write_report(folder: Path) -> Path:
    """Writes `report.html` into a run folder, and returns where it is.

    Args:
        folder: With `config.toml` and `log.jsonl`; the run may still be going on.

    Raises:
        DataError: It holds no run.
    """
    if not (folder / "log.jsonl").is_file() or not (folder / "config.toml").is_file():
        raise DataError(f"{folder} holds no run: expected config.toml and log.jsonl")
    lines = read_jsonl(folder / "log.jsonl")
    heads = [line for line in lines if line["kind"] == "heads"]
    config = (folder / "config.toml").read_text(encoding="utf-8")
    return write_page(
        folder,
        "run.html",
        name="/".join(folder.resolve().parts[-2:]),
        tiles=_tiles(lines),
        plots=[(title, draw(curves, unit=unit)) for title, unit, curves in _plots(lines)],
        fills=_fills([line for line in lines if line["kind"] == "fills" and line["fills"]]),
        samples=_samples([line for line in lines if line["kind"] == "samples" and line["samples"]]),
        heads=draw_heads([(_moment(line), line["heads"]) for line in _moments(heads)]) if heads else "",
        config=config,
    )


def _tiles(lines: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Returns title, figure and remark of what one wants to know first."""
    train = [line for line in lines if line["kind"] == "train"]
    held_out = [line for line in lines if line["kind"] == "evaluation"]
    tiles = []
    if held_out:
        last = held_out[-1]
        name, words = ("causal_lm", "next") if "held_out_causal_lm_loss" in last else ("masked_lm", "hidden")
        loss, unigram = last[f"held_out_{name}_loss"], last["held_out_unigram_loss"]
        tiles += [
            (
                "held-out loss",
                f"{loss:.2f} nats",
                f"{unigram - loss:.2f} below word frequency ({unigram:.2f})"
                if loss < unigram
                else f"not below word frequency yet ({unigram:.2f})",
            ),
            (
                f"{words} words right",
                f"{last[f'held_out_{name}_accuracy']:.1%}",
                f"{last['held_out_unigram_accuracy']:.1%} by always guessing the most frequent",
            ),
        ]
        if "held_out_bits_per_byte" in last:
            tiles.append(("bits per byte", f"{last['held_out_bits_per_byte']:.3f}", "of held-out text"))
        if "held_out_late_minus_early" in last:
            late = f"{last['held_out_late_minus_early']:+.2f} nats"
            tiles.append(("late words of a row", late, "beside early ones: what reading on is worth"))
        for task in ("next_sentence", "sentence_order"):
            if f"held_out_{task}_accuracy" in last:
                chance = f"{last['held_out_majority_accuracy']:.1%} by always giving the same answer"
                tiles.append((f"{_LOSSES[task]} right", f"{last[f'held_out_{task}_accuracy']:.1%}", chance))
        if "held_out_blank_accuracy" in last:
            chance = f"{last['held_out_blank_constant_accuracy']:.1%} by one word for all"
            tiles.append(("blanks right", f"{last['held_out_blank_accuracy']:.1%}", chance))
    if train:
        speeds = sorted(line["tokens_per_second"] for line in train)
        minutes = max(line["seconds"] for line in lines) / 60
        tiles += [
            (
                "trained on",
                f"{train[-1]['tokens'] / 1e6:,.2f} M tokens",
                f"{train[-1]['step']:,} steps in {minutes:,.1f} minutes",
            ),
            (
                "throughput",
                f"{speeds[len(speeds) // 2]:,.0f} tokens/s",
                f"MFU {train[-1]['mfu']:.0%}, rows {train[-1]['fill']:.0%} full",
            ),
        ]
    return tiles


def _plots(lines: Sequence[dict[str, Any]]) -> list[tuple[str, str, list[Curve]]]:
    """Returns title, unit and curves of each plot."""
    train = [line for line in lines if line["kind"] == "train"]
    held_out = [line for line in lines if line["kind"] == "evaluation"]

    def curve(
        name: str, of: Sequence[dict[str, Any]], key: str, style: str = "line", factor: float = 1.0
    ) -> list[Curve]:
        points = [(line["tokens"] / 1e6, factor * line[key]) for line in of if key in line]
        return [(name, *map(list, zip(*points, strict=True)), style)] if points else []  # type: ignore[list-item]

    plots: list[tuple[str, str, list[Curve]]] = []
    for task, name in _LOSSES.items():
        words = task in ("masked_lm", "causal_lm")
        floor = curve("word frequency", held_out, "held_out_unigram_loss", "baseline") if words else []
        losses = [
            *curve("held out", held_out, f"held_out_{task}_loss"),
            *curve("training", train, f"{task}_loss", "faint"),
        ]
        chance = "held_out_unigram_accuracy" if words else "held_out_majority_accuracy"
        accuracies = [
            *curve("held out", held_out, f"held_out_{task}_accuracy", factor=100),
            *curve("training", train, f"{task}_accuracy", "faint", factor=100),
        ]
        if losses:
            plots.append((f"Loss on {name}", "nats", losses + floor))
            plots.append(
                (
                    f"{name.capitalize()} right",
                    "%",
                    accuracies + curve("without reading", held_out, chance, "baseline", 100),
                )
            )
    blanks = curve("held-out blanks", held_out, "held_out_blank_accuracy", factor=100)
    if blanks:
        one_word = curve("one word for all", held_out, "held_out_blank_constant_accuracy", "baseline", 100)
        plots.append(("Blanks right", "%", blanks + one_word))
    for title, unit, key in _IN_CONTEXT:
        plots.append((title, unit, curve("held out", held_out, key)))
    plots.append(("Learning rate", "", curve("learning rate", train, "learning_rate")))
    plots.append(("Throughput", "tokens/s", curve("throughput", train, "tokens_per_second")))
    return [plot for plot in plots if plot[2]]


def _moments(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the lines of a few moments, evenly spread from the first to the last."""
    last = len(lines) - 1
    return [lines[i] for i in sorted({round(last * i / (_NUM_MOMENTS - 1)) for i in range(_NUM_MOMENTS)})]


def _moment(line: dict[str, Any]) -> str:
    return f"{line['tokens'] / 1e6:.2f} M"


def _samples(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns, for each beginning, how the model went on with it at a few moments: `prompt` and `texts` of moment (tokens) and text.

    `is_backward` says that a text stands before its prompt, which is an ending then.
    """
    if not lines:
        return []
    chosen = _moments(lines)
    fewest = min(len(line["samples"]) for line in chosen)
    return [
        {
            "prompt": chosen[0]["samples"][number]["prompt"],
            "is_backward": chosen[0]["samples"][number].get("direction") == "backward",
            "texts": [(_moment(line), line["samples"][number]["text"]) for line in chosen],
        }
        for number in range(fewest)
    ]


def _fills(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns what was put into the blanks at a few moments: `moments` (tokens) and `rows` of sentence, answer and guesses."""
    if not lines:
        return {"moments": [], "rows": []}
    chosen = _moments(lines)
    rows = []
    fewest = min(len(line["fills"]) for line in chosen)  # a resumed run may have asked for fewer
    for number, blank in enumerate(chosen[0]["fills"][: min(fewest, _NUM_SENTENCES)]):
        guesses = [
            {"word": line["fills"][number]["guess"], "percent": f"{line['fills'][number]['probability']:.0%}",
             "is_right": line["fills"][number]["guess"] == blank["answer"]}
            for line in chosen
        ]  # fmt: skip
        before, _, after = blank["text"].partition("[MASK]")
        rows.append({"before": before, "after": after, "answer": blank["answer"], "guesses": guesses})
    return {"moments": [_moment(line) for line in chosen], "rows": rows}
