"""The log of a run: `log.jsonl`, one JSON object per line, and TensorBoard files."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from stemformer.errors import ConfigError
from stemformer.io import read_jsonl
from stemformer.training.distributed import SINGLE_PROCESS, DistributedContext


class RunLog:
    """Appends lines to `log.jsonl`, and optionally writes TensorBoard files.

    Args:
        path: The file; None writes nothing, for all ranks but the main one.
        after_step: Lines of later steps, left by an interrupted run, are removed first.
        tensorboard: Also write numbers to the directory `tensorboard` next to the file.

    Raises:
        ConfigError: TensorBoard is requested but not installed.
    """

    def __init__(self, path: Path | None, *, after_step: int, tensorboard: bool = False) -> None:
        self._file: TextIO | None = None
        self._writer: Any = None
        if path is None:
            return
        if tensorboard:
            self._writer = _summary_writer(path.with_name("tensorboard"), after_step)
        lines = [line for line in read_jsonl(path) if line["step"] <= after_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        temporary.replace(path)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, **values: Any) -> None:
        """Append a line, with at least `kind` (train, evaluation, fills, samples) and `step`."""
        if self._file is not None:
            self._file.write(json.dumps(values, ensure_ascii=False) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                if isinstance(value, float):
                    self._writer.add_scalar(f"{values['kind']}/{name}", value, values["step"])

    def close(self) -> None:
        """Close the files."""
        for file in (self._file, self._writer):
            if file is not None:
                file.close()


def _summary_writer(folder: Path, after_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            'tensorboard = true needs the package tensorboard. Run pip install "stemformer[tensorboard]", '
            "or remove the setting."
        ) from error
    return SummaryWriter(str(folder), purge_step=after_step + 1)


_EMPTY: dict[str, Any] = {"losses": {}, "tokens": 0, "capacity": 0, "num_dropped": 0, "flops": 0.0, "seconds": 0.0}


class MetricAccumulator:
    """Sums of losses, tokens and time since the last log line.

    Losses stay on the device until they are needed.

    Args:
        state: Result of `state()`, to resume in the middle of a line.
        ranks: Losses are summed over these.
    """

    def __init__(self, state: Mapping[str, Any] | None = None, ranks: DistributedContext = SINGLE_PROCESS) -> None:
        self._all_reduce_sum = ranks.all_reduce_sum
        state = state or _EMPTY
        if "capacity" not in state and len(state) == len(_EMPTY):
            # Earlier versions stored the same values in the same order, under other names.
            state = dict(zip(_EMPTY, state.values(), strict=True))
        self._reset({**_EMPTY, **state})
        if not ranks.is_main:  # Stored sums are over all ranks; count them once.
            self._losses.update((name, [0.0, 0, 0]) for name in self._losses)

    def _reset(self, state: Mapping[str, Any]) -> None:
        self._pending: list[tuple[str, Tensor, Tensor | None, int]] = []
        self._losses: dict[str, list[float]] = {name: list(sums) for name, sums in state["losses"].items()}
        self._tokens, self._capacity, self._num_dropped = state["tokens"], state["capacity"], state["num_dropped"]
        self._flops = state["flops"]
        self._start = time.perf_counter() - state["seconds"]

    def exclude_time(self, seconds: float) -> None:
        """Exclude time that was not spent on training steps, such as an evaluation."""
        self._start += seconds

    def add_loss(self, name: str, total: Tensor, correct: Tensor | None, count: int) -> None:
        """Add the loss of a micro-batch; `correct` is None for losses without accuracy."""
        self._pending.append((name, total.detach(), correct, count))

    def add_step(self, *, tokens: int, capacity: int, num_dropped: int, flops: float) -> None:
        """Add a step, summed over all ranks.

        Args:
            capacity: Maximum number of tokens in the batch; 0 if it is not packed.
            num_dropped: Tokens that were dropped to fit.
        """
        self._tokens += tokens
        self._capacity += capacity
        self._num_dropped += num_dropped
        self._flops += flops

    def state(self) -> dict[str, Any]:
        """Return all sums as numbers, those of losses over all ranks; collective."""
        for name, total, correct, count in self._pending:
            sums = self._losses.get(name, [0.0, 0, 0])
            num_correct = math.nan if correct is None else correct.item()
            self._losses[name] = [sums[0] + total.item(), sums[1] + num_correct, sums[2] + count]
        self._pending = []
        names = sorted(self._losses)
        reduced = self._all_reduce_sum([value for name in names for value in self._losses[name]]) if names else []
        losses = {name: [*reduced[3 * i : 3 * i + 2], int(reduced[3 * i + 2])] for i, name in enumerate(names)}
        return {
            "losses": losses,
            "tokens": self._tokens,
            "capacity": self._capacity,
            "num_dropped": self._num_dropped,
            "flops": self._flops,
            "seconds": time.perf_counter() - self._start,
        }

    def flush(self, *, peak_flops: float) -> dict[str, float]:
        """Return means and rates since the last call, and reset.

        Args:
            peak_flops: Peak floating-point operations per second, for MFU.
        """
        state = self.state()
        line: dict[str, float] = {}
        for name, (total, correct, count) in state["losses"].items():
            line[f"{name}_loss"] = total / max(1, count)
            if not math.isnan(correct):
                line[f"{name}_accuracy"] = correct / max(1, count)
        seconds = max(state["seconds"], 1e-9)
        line["tokens_per_second"] = state["tokens"] / seconds
        if self._capacity:
            line["fill"] = state["tokens"] / self._capacity
        if self._num_dropped:
            line["displaced"] = self._num_dropped / state["tokens"]
        line["flops"] = state["flops"]
        line["mfu"] = state["flops"] / seconds / peak_flops
        self._reset(_EMPTY)
        return line
