"""What a run writes down while it goes: `log.jsonl`, a JSON object a line."""

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

_NOTHING: dict[str, Any] = {"losses": {}, "tokens": 0, "places": 0, "displaced": 0, "flops": 0.0, "seconds": 0.0}


class RunLog:
    """Appends lines to `log.jsonl`, and to TensorBoard's files where they are wanted.

    Args:
        path: The file; None writes nothing, for all ranks but the first.
        after_step: Lines of later steps, left by a run that was cut off, are removed first.
        tensorboard: Write the numbers into the folder `tensorboard` beside it too.

    Raises:
        ConfigError: TensorBoard is asked for and not installed.
    """

    def __init__(self, path: Path | None, *, after_step: int, tensorboard: bool = False) -> None:
        self._file: TextIO | None = None
        self._board: Any = None
        if path is None:
            return
        if tensorboard:
            self._board = _tensorboard(path.with_name("tensorboard"), after_step)
        kept = [line for line in read_jsonl(path) if line["step"] <= after_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.replace(path)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, **values: Any) -> None:
        """Appends a line; `kind` ("train", "evaluation" or "fills") and `step` are always there."""
        if self._file is not None:
            self._file.write(json.dumps(values, ensure_ascii=False) + "\n")
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{values['kind']}/{name}", value, values["step"])

    def close(self) -> None:
        """Closes the files."""
        for file in (self._file, self._board):
            if file is not None:
                file.close()


def _tensorboard(folder: Path, after_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            'tensorboard = true needs the package tensorboard: pip install "stemformer[tensorboard]", or leave it out'
        ) from error
    return SummaryWriter(str(folder), purge_step=after_step + 1)


class MetricAccumulator:
    """What has been summed since the last log line. Losses stay on the device until they are asked for.

    Args:
        state: Of an earlier `state()`, so that a resumed run goes on in the middle of a line.
        ranks: Over which losses are summed.
    """

    def __init__(self, state: Mapping[str, Any] | None = None, ranks: DistributedContext = SINGLE_PROCESS) -> None:
        self._sum = ranks.sum
        self._begin({**_NOTHING, **(state or {})})
        if not ranks.is_first:  # the sums of the checkpoint are those of all ranks, and the first has them
            self._losses.update((name, [0.0, 0, 0]) for name in self._losses)

    def _begin(self, state: Mapping[str, Any]) -> None:
        self._waiting: list[tuple[str, Tensor, Tensor | None, int]] = []
        self._losses: dict[str, list[float]] = {name: list(parts) for name, parts in state["losses"].items()}
        self._tokens, self._places, self._displaced = state["tokens"], state["places"], state["displaced"]
        self._flops = state["flops"]
        self._start = time.perf_counter() - state["seconds"]

    def leave_out(self, seconds: float) -> None:
        """Takes time off that no step spent: an evaluation, a save."""
        self._start += seconds

    def add_loss(self, name: str, total: Tensor, correct: Tensor | None, count: int) -> None:
        """Adds the loss of a micro-batch: its sum, how many places were right (None: no question), and how many there were."""
        self._waiting.append((name, total.detach(), correct, count))

    def add_step(self, *, tokens: int, places: int, displaced: int, flops: float) -> None:
        """Adds a step, over all ranks: its tokens, how many its rows hold (0: no rows), those displaced, and its operations."""
        self._tokens += tokens
        self._places += places
        self._displaced += displaced
        self._flops += flops

    def state(self) -> dict[str, Any]:
        """Returns all sums as plain numbers; the losses are those of all ranks, each of which must call it."""
        for name, total, correct, count in self._waiting:
            before = self._losses.get(name, [0.0, 0, 0])
            self._losses[name] = [
                before[0] + total.item(),
                before[1] + (math.nan if correct is None else correct.item()),
                before[2] + count,
            ]
        self._waiting = []
        names = sorted(self._losses)
        whole = self._sum([value for name in names for value in self._losses[name]]) if names else []
        return {
            "losses": {name: [whole[3 * i], whole[3 * i + 1], int(whole[3 * i + 2])] for i, name in enumerate(names)},
            "tokens": self._tokens,
            "places": self._places,
            "displaced": self._displaced,
            "flops": self._flops,
            "seconds": time.perf_counter() - self._start,
        }

    def take(self, *, peak: float) -> dict[str, float]:
        """Returns means and rates since the last line, and begins again.

        Args:
            peak: Floating-point operations a second of the device, for MFU.
        """
        state = self.state()
        line: dict[str, float] = {}
        for name, (total, correct, count) in state["losses"].items():
            line[f"{name}_loss"] = total / max(1, count)
            if not math.isnan(correct):
                line[f"{name}_accuracy"] = correct / max(1, count)
        seconds = max(state["seconds"], 1e-9)
        line["tokens_per_second"] = state["tokens"] / seconds
        if state["places"]:
            line["fill"] = state["tokens"] / state["places"]
        if state["displaced"]:
            line["displaced"] = state["displaced"] / state["tokens"]
        line["flops"] = state["flops"]
        line["mfu"] = state["flops"] / seconds / peak
        self._begin(_NOTHING)
        return line
