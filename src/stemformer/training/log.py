"""What a run writes down while it goes: `log.jsonl`, a JSON object a line."""

import json
import time
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["RunLog", "StepSums", "read_log"]


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
    """Returns the lines of a log, without a last one that was cut off; [] if there is no file."""
    lines: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
    return lines


class StepSums:
    """What has been summed since the last log line. Losses stay on the device until the line is written."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begins again."""
        self._losses: dict[str, list[tuple[Tensor, Tensor, int]]] = {}
        self._tokens = self._steps = 0
        self._flops = 0.0
        self._start = time.perf_counter()

    def leave_out(self, seconds: float) -> None:
        """Takes time off that no step spent: an evaluation, a save."""
        self._start += seconds

    def add_loss(self, name: str, total: Tensor, correct: Tensor, count: int) -> None:
        """Adds the loss of a micro-batch: its sum, how many places were right, and how many there were."""
        self._losses.setdefault(name, []).append((total.detach(), correct, count))

    def add_step(self, tokens: int, flops: float) -> None:
        """Adds a step's tokens and floating-point operations."""
        self._tokens += tokens
        self._flops += flops
        self._steps += 1

    def take(self, *, places: int, peak: float) -> dict[str, float]:
        """Returns means and rates since the last line, and begins again.

        Args:
            places: Tokens that fit into a step's rows, for the fill.
            peak: Floating-point operations a second of the device, for MFU.
        """
        line: dict[str, float] = {}
        for name, parts in self._losses.items():
            count = max(1, sum(count for _, _, count in parts))
            line[f"{name}_loss"] = sum(float(total) for total, _, _ in parts) / count
            line[f"{name}_accuracy"] = sum(int(correct) for _, correct, _ in parts) / count
        seconds = max(time.perf_counter() - self._start, 1e-9)
        line["tokens_per_second"] = self._tokens / seconds
        line["fill"] = self._tokens / max(1, self._steps * places)
        line["mfu"] = self._flops / seconds / peak
        self.restart()
        return line
