"""The log of a run: `log.jsonl`, one JSON object per line, and TensorBoard files."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from stemformer.errors import ConfigError
from stemformer.io import read_jsonl, to_json, write_jsonl
from stemformer.training.distributed import SINGLE_PROCESS, DistributedContext


class RunLog:
    """Log of a run; removes lines after `after_step` first, and writes nothing without a path."""

    def __init__(self, path: Path | None, *, after_step: int, tensorboard: bool = False) -> None:
        self._file: TextIO | None = None
        self._writer: Any = None
        if path is None:
            return
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                advice = 'Run pip install "stemformer[tensorboard]", or remove the setting.'
                raise ConfigError(f"tensorboard = true needs the package tensorboard. {advice}") from error
            self._writer = SummaryWriter(str(path.with_name("tensorboard")), purge_step=after_step + 1)
        write_jsonl(path, [line for line in read_jsonl(path) if line["step"] <= after_step])
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, **values: Any) -> None:
        """Append a line, with at least `kind` (train, evaluation, fills, samples, repairs) and `step`."""
        if self._file is not None:
            self._file.write(to_json(values) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                if isinstance(value, float):
                    self._writer.add_scalar(f"{values['kind']}/{name}", value, values["step"])

    def close(self) -> None:
        for file in (self._file, self._writer):
            if file is not None:
                file.close()


_EMPTY: dict[str, Any] = {"losses": {}, "tokens": 0, "capacity": 0, "num_dropped": 0, "flops": 0.0, "seconds": 0.0}


class MetricAccumulator:
    """Sums of losses (on the device until needed), tokens and time since the last log line."""

    def __init__(self, state: Mapping[str, Any] | None = None, ranks: DistributedContext = SINGLE_PROCESS) -> None:
        self._all_reduce_sum = ranks.all_reduce_sum
        self._peak_flops = 0.0
        state = state or _EMPTY
        if "capacity" not in state and len(state) == len(_EMPTY):
            # Earlier versions stored the same values in the same order, under other names.
            state = dict(zip(_EMPTY, state.values(), strict=True))
        self._reset({**_EMPTY, **state})
        # Stored sums are over all ranks; count them once.
        if not ranks.is_main:
            self._losses.update((name, [0.0, 0, 0]) for name in self._losses)

    def _reset(self, state: Mapping[str, Any]) -> None:
        self._pending: list[tuple[str, Tensor, Tensor | None, int]] = []
        self._losses: dict[str, list[float]] = {name: list(sums) for name, sums in state["losses"].items()}
        self._sums = {name: state[name] for name in ("tokens", "capacity", "num_dropped", "flops")}
        self._start = time.perf_counter() - state["seconds"]

    def exclude_time(self, seconds: float) -> None:
        """Exclude time that was not spent on training steps, such as an evaluation."""
        self._start += seconds

    def add_loss(self, name: str, total: Tensor, correct: Tensor | None, count: int) -> None:
        """Add the loss of a micro-batch; `correct` is None for losses without accuracy."""
        self._pending.append((name, total.detach(), correct, count))

    def add_step(self, *, tokens: int, capacity: int, num_dropped: int, flops: float) -> None:
        """Add a step, summed over all ranks; `capacity` in tokens is 0 if batches are not packed."""
        step = {"tokens": tokens, "capacity": capacity, "num_dropped": num_dropped, "flops": flops}
        self._sums = {name: total + step[name] for name, total in self._sums.items()}

    def state(self) -> dict[str, Any]:
        """Return all sums, to resume in the middle of a line; collective: losses are over all ranks."""
        for name, total, correct, count in self._pending:
            sums = self._losses.get(name, [0.0, 0, 0])
            num_correct = math.nan if correct is None else correct.item()
            self._losses[name] = [sums[0] + total.item(), sums[1] + num_correct, sums[2] + count]
        self._pending = []
        names = sorted(self._losses)
        reduced = self._all_reduce_sum([value for name in names for value in self._losses[name]]) if names else []
        losses = {name: [*reduced[3 * i : 3 * i + 2], int(reduced[3 * i + 2])] for i, name in enumerate(names)}
        return {"losses": losses, **self._sums, "seconds": time.perf_counter() - self._start}

    def flush(self, *, peak_flops: float) -> dict[str, float]:
        """Return means and rates since the last call, and reset.

        `mfu` is the rate of the floating-point operations as a fraction of `peak_flops`, the rate of a matrix
        product measured when the run started, or of the highest rate since then: the start may have been measured
        while other programs used the device.
        """
        state = self.state()
        line: dict[str, float] = {}
        for name, (total, correct, count) in state["losses"].items():
            line[f"{name}_loss"] = total / max(1, count)
            if not math.isnan(correct):
                line[f"{name}_accuracy"] = correct / max(1, count)
        seconds = max(state["seconds"], 1e-9)
        line["tokens_per_second"] = state["tokens"] / seconds
        if state["capacity"]:
            line["fill"] = state["tokens"] / state["capacity"]
        if state["num_dropped"]:
            line["displaced"] = state["num_dropped"] / state["tokens"]
        line["flops"] = state["flops"]
        self._peak_flops = max(self._peak_flops, peak_flops, state["flops"] / seconds)
        line["mfu"] = state["flops"] / seconds / self._peak_flops
        self._reset(_EMPTY)
        return line


def held_out_loss(metrics: Mapping[str, float]) -> float | None:
    """Return the sum of the validation losses, without the baseline and parts of one loss."""
    parts = ("held_out_unigram_loss", "held_out_lost_loss", "held_out_copied_loss")
    losses = [v for name, v in metrics.items() if name.endswith("_loss") and name not in parts]
    return sum(losses) if losses else None


def format_training(metrics: Mapping[str, float]) -> str:
    """Format training losses and throughput for the progress display."""
    short_names = {"masked_lm_loss": "loss", "causal_lm_loss": "loss", "denoising_loss": "loss"}
    losses = {name: value for name, value in metrics.items() if name.endswith("_loss")}
    parts = [f"{short_names.get(name, name)} {value:.3f}" for name, value in losses.items()]
    return " | ".join([*parts, f"{metrics['tokens_per_second']:,.0f} tok/s"])


def format_held_out(metrics: Mapping[str, float]) -> str:
    """Format validation metrics, each next to its baseline."""
    values = {name.removeprefix("held_out_"): value for name, value in metrics.items()}
    name = next(name for name in ("causal_lm", "denoising", "masked_lm") if f"{name}_loss" in values)
    parts = [
        f"val_loss {values[f'{name}_loss']:.3f} | unigram_loss {values['unigram_loss']:.3f}",
        f"accuracy {values[f'{name}_accuracy']:.1%} | unigram_accuracy {values['unigram_accuracy']:.1%}",
    ]
    for name, form in (("lost_loss", ".3f"), ("copied_loss", ".3f"), ("source_gain", "z.2f")):
        if name in values:
            parts.append(f"{name} {values[name]:{form}}")
    if "bits_per_byte" in values:
        parts.append(f"bits_per_byte {values['bits_per_byte']:.3f}")
    for head in ("next_sentence", "sentence_order"):
        if f"{head}_accuracy" in values:
            parts.append(f"{head} {values[f'{head}_accuracy']:.1%} | majority {values['majority_accuracy']:.1%}")
    if "blank_accuracy" in values:
        parts.append(f"cloze {values['blank_accuracy']:.1%} | constant {values['blank_constant_accuracy']:.1%}")
    return " | ".join(parts)
