"""What the training loop works with: phases and context of a run, and its state."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.objectives.objective import Examples, Objective
from stemformer.tasks.examples import TaskExamples
from stemformer.training.budget import TrainingBudget
from stemformer.training.config import BatchConfig, FinetuneConfig, RunConfig
from stemformer.training.distributed import SINGLE_PROCESS, DistributedContext
from stemformer.training.log import MetricAccumulator, format_held_out, held_out_loss


@dataclass(frozen=True)
class Phase:
    """Part of a run with one sequence length and batch size."""

    batch: BatchConfig
    examples: Examples | TaskExamples
    # Whether a masked LM trains as a causal LM.
    is_causal: bool = False
    # 2 for an encoder-decoder: both halves have as many tokens.
    num_runs: int = 1

    @property
    def capacity(self) -> int:
        """Tokens of a full batch; 0 in fine-tuning, whose batches are not packed."""
        return (
            0
            if isinstance(self.examples, TaskExamples)
            else self.num_runs * self.batch.size * self.batch.sequence_length
        )


@dataclass(frozen=True)
class TrainingContext:
    """Everything a run needs besides model and optimizer."""

    config: RunConfig | FinetuneConfig
    budget: TrainingBudget
    objective: Objective
    phases: Sequence[Phase]
    # Maps the module to validation metrics; None if there is no held-out data.
    evaluate: Callable[[nn.Module], dict[str, float]] | None
    # Maps the module to samples (lists, each a line of the log) and further metrics.
    sample_fn: Callable[[nn.Module], dict[str, Any]] | None
    tokenizer: Tokenizer
    device: torch.device
    precision: str
    # Conditions of bit-for-bit resumption, stored with each checkpoint.
    environment: dict[str, Any]
    # Peak floating-point operations per second of all devices together, for MFU.
    peak_flops: float
    folder: Path
    ranks: DistributedContext = SINGLE_PROCESS
    # Formats validation metrics for the progress display.
    describe: Callable[[dict[str, float]], str] = format_held_out
    # Maps validation metrics to the value to minimize; None disables model selection.
    monitor: Callable[[dict[str, float]], float | None] = held_out_loss
    # Formats that value with its name.
    describe_monitored: Callable[[float], str] = "val_loss {:.3f}".format
    # Description of the task in a saved model; see `huggingface.save.save_model`.
    task: dict[str, Any] | None = None
    # If False, an interrupted run starts again from the beginning.
    saves_checkpoints: bool = True

    def phase_number(self, step: int) -> int:
        """Return the index of the phase of a step; phases ascend."""
        return sum(first_step <= step for first_step in self.budget.phase_starts()) - 1


@dataclass
class TrainState:
    """Mutable state of a run after `step` optimizer steps; `start` begins to measure its time."""

    step: int = 0
    tokens: int = 0
    # Training time with its evaluations, but without interruptions and the evaluation after the last step.
    seconds: float = 0.0
    metrics: MetricAccumulator = field(default_factory=MetricAccumulator)
    # Last validation metrics, their step, and the duration of that evaluation.
    val_metrics: dict[str, float] = field(default_factory=dict)
    evaluated_step: int = -1
    eval_seconds: float = 0.0
    # Duration of the evaluation after the last step.
    final_eval_seconds: float = 0.0
    # Lowest monitored value so far, and evaluations since then, for early stopping.
    best: float = math.inf
    evals_since_best: int = 0
    saved_step: int = 0

    def start(self) -> None:
        """Start the clock; a resumed run starts at the time and step of its checkpoint."""
        self._start_time, self.saved_step = time.perf_counter() - self.seconds, self.step

    def update_seconds(self) -> None:
        self.seconds = time.perf_counter() - self._start_time

    def exclude_time(self, seconds: float) -> None:
        """Exclude time that the budget does not contain."""
        self._start_time += seconds

    def update_best(self, value: float) -> None:
        is_better = value < self.best
        self.best = value if is_better else self.best
        self.evals_since_best = 0 if is_better else self.evals_since_best + 1

    def log_fields(self) -> dict[str, float]:
        """Return the fields that every line of the log has."""
        return {"step": self.step, "tokens": self.tokens, "seconds": round(self.seconds, 3)}
