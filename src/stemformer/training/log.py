"""What a run writes down while it goes: `log.jsonl`, a JSON object a line."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from stemformer.errors import CheckpointError

__all__ = ["RunLog", "StepSums", "read_log"]

_NOTHING: dict[str, Any] = {"losses": {}, "tokens": 0, "steps": 0, "flops": 0.0, "seconds": 0.0}


class RunLog:
    """Appends lines to `log.jsonl`.

    Args:
        path: The file.
        after_step: Lines of later steps, left by a run that was cut off, are removed first.
    """

    def __init__(self, path: Path, *, after_step: int) -> None:
        kept = [line for line in read_log(path) if line["step"] <= after_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.replace(path)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, **values: Any) -> None:
        """Appends a line; `kind` ("train" or "evaluation") and `step` are always there."""
        self._file.write(json.dumps(values) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a log, without a last one that was cut off; [] if there is no file.

    Raises:
        CheckpointError: A line before the last cannot be read.
    """
    texts = path.read_bytes().splitlines() if path.is_file() else []
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            if number < len(texts):
                raise CheckpointError(
                    f"{path}, line {number}, cannot be read: repair or remove it", damaged=True
                ) from error
    return lines


class StepSums:
    """What has been summed since the last log line. Losses stay on the device until they are asked for.

    Args:
        state: Of an earlier `state()`, so that a resumed run goes on in the middle of a line.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self._begin(state or _NOTHING)

    def _begin(self, state: Mapping[str, Any]) -> None:
        self._waiting: list[tuple[str, Tensor, Tensor, int]] = []
        self._losses: dict[str, list[float]] = {name: list(parts) for name, parts in state["losses"].items()}
        self._tokens, self._steps, self._flops = state["tokens"], state["steps"], state["flops"]
        self._start = time.perf_counter() - state["seconds"]

    def leave_out(self, seconds: float) -> None:
        """Takes time off that no step spent: an evaluation, a save."""
        self._start += seconds

    def add_loss(self, name: str, total: Tensor, correct: Tensor, count: int) -> None:
        """Adds the loss of a micro-batch: its sum, how many places were right, and how many there were."""
        self._waiting.append((name, total.detach(), correct, count))

    def add_step(self, tokens: int, flops: float) -> None:
        """Adds a step's tokens and floating-point operations."""
        self._tokens += tokens
        self._flops += flops
        self._steps += 1

    def state(self) -> dict[str, Any]:
        """Returns all sums as plain numbers."""
        for name, total, correct, count in self._waiting:
            before = self._losses.get(name, [0.0, 0, 0])
            self._losses[name] = [before[0] + total.item(), before[1] + correct.item(), before[2] + count]
        self._waiting = []
        seconds = time.perf_counter() - self._start
        return {
            "losses": self._losses,
            "tokens": self._tokens,
            "steps": self._steps,
            "flops": self._flops,
            "seconds": seconds,
        }

    def take(self, *, places: int, peak: float) -> dict[str, float]:
        """Returns means and rates since the last line, and begins again.

        Args:
            places: Tokens that fit into a step's rows, for the fill.
            peak: Floating-point operations a second of the device, for MFU.
        """
        state = self.state()
        line: dict[str, float] = {}
        for name, (total, correct, count) in state["losses"].items():
            line |= {f"{name}_loss": total / max(1, count), f"{name}_accuracy": correct / max(1, count)}
        seconds = max(state["seconds"], 1e-9)
        line["tokens_per_second"] = state["tokens"] / seconds
        line["fill"] = state["tokens"] / max(1, state["steps"] * places)
        line["mfu"] = state["flops"] / seconds / peak
        self._begin(_NOTHING)
        return line
