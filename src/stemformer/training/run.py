"""A run as data: what `config.toml` holds."""

import math
from dataclasses import dataclass, field
from typing import Literal

from stemformer.errors import ConfigError
from stemformer.models.bert import BertConfig
from stemformer.objectives.masked import MaskedLmConfig
from stemformer.training.optim import OptimizerConfig, ScheduleConfig

__all__ = [
    "MAY_CHANGE",
    "BatchConfig",
    "BudgetConfig",
    "CheckpointConfig",
    "ComputeConfig",
    "EvaluationConfig",
    "RunConfig",
    "num_steps_of",
]

MAY_CHANGE = ("budget.", "evaluation.", "checkpoints.", "log_every", "compute.")
"""Keys that a resumed run may change; anything else is refused. What changes in `compute` is told, as bits may then differ."""


@dataclass(frozen=True)
class BatchConfig:
    """What one optimizer step sees.

    Attributes:
        rows: Examples a step, over all ranks and micro-batches.
        micro_rows: Examples a forward on one rank; None takes all of a rank's at once. A smaller number needs less memory and gives
            the same gradient.
        row_length: Tokens a row holds at most, special tokens included.
    """

    rows: int = 32
    micro_rows: int | None = None
    row_length: int = 128

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ConfigError(f"batch.rows is {self.rows}: expected at least 1")
        if self.micro_rows is not None and (self.micro_rows < 1 or self.rows % self.micro_rows):
            raise ConfigError(f"batch.micro_rows is {self.micro_rows}: expected a divisor of batch.rows ({self.rows})")


@dataclass(frozen=True)
class BudgetConfig:
    """How long a run is: one of steps, tokens, epochs.

    Attributes:
        steps: Optimizer steps.
        tokens: Tokens seen, special tokens included; rounded up to whole steps of the mean size.
        epochs: Passes over the rows, rounded up to whole steps.
    """

    steps: int | None = None
    tokens: int | None = None
    epochs: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "tokens", "epochs"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"budget.{name} is {value}: expected a positive number")
        if sum(value is not None for value in (self.steps, self.tokens, self.epochs)) > 1:
            raise ConfigError("budget: more than one of steps, tokens and epochs is set; set the others to none")


@dataclass(frozen=True)
class ComputeConfig:
    """What the run computes on.

    Attributes:
        device: `auto`, `cpu`, `cuda`, `cuda:1` ...
        precision: `fp32`, `bf16` (weights stay in fp32), or `auto`: bf16 where the device has matrix units for it.
        compile: Compile the blocks; None does so on CUDA alone, since on a CPU it was not faster (docs/benchmarks.md).
        threads: Processor threads; None leaves PyTorch's choice.
    """

    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        _at_least_one("compute", threads=self.threads)


@dataclass(frozen=True)
class EvaluationConfig:
    """The held-out loss, on masks that never change.

    Attributes:
        every: Steps between two evaluations; None does twenty in a run. There is always one at the end.
        rows: Held-out rows that are scored, at most.
    """

    every: int | None = None
    rows: int = 512

    def __post_init__(self) -> None:
        _at_least_one("evaluation", every=self.every, rows=self.rows)


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept on the way.

    Attributes:
        every: Steps between two checkpoints; None does ten in a run. There is always one at the end.
        keep: How many of the newest stay on disk.
    """

    every: int | None = None
    keep: int = 2

    def __post_init__(self) -> None:
        _at_least_one("checkpoints", every=self.every, keep=self.keep)


@dataclass(frozen=True)
class RunConfig:
    """A complete pre-training run.

    Attributes:
        recipe: Where the values came from, for people.
        seed: Of everything that is random, from 0.
        init: The model that training started from, if not from fresh weights.
        log_every: Steps between two lines of `log.jsonl`.
    """

    recipe: str = "bert_mini"
    seed: int = 0
    init: str | None = None
    log_every: int = 10
    model: BertConfig = field(default_factory=BertConfig)
    objective: MaskedLmConfig = field(default_factory=MaskedLmConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}: expected a number from 0 to 2**63 - 1")
        if self.log_every < 1:
            raise ConfigError(f"log_every is {self.log_every}: expected at least 1")
        if self.batch.row_length > self.model.max_position_embeddings:
            raise ConfigError(
                f"batch.row_length is {self.batch.row_length}, the model has {self.model.max_position_embeddings} positions: "
                "lower batch.row_length or raise model.max_position_embeddings"
            )


def _at_least_one(table: str, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise ConfigError(f"{table}.{name} is {value}: expected at least 1")


def num_steps_of(config: RunConfig, *, num_examples: int, num_tokens: int) -> int:
    """Returns how many optimizer steps a run has.

    Args:
        config: Its budget and batch.
        num_examples: Rows of an epoch.
        num_tokens: Tokens of an epoch, special tokens included.

    Raises:
        ConfigError: No budget is set.
    """
    budget = config.budget
    if budget.steps is not None:
        return budget.steps
    if budget.tokens is not None:
        return -(-budget.tokens * num_examples // (num_tokens * config.batch.rows))
    if budget.epochs is not None:
        return max(1, math.ceil(budget.epochs * num_examples / config.batch.rows - 1e-9))
    raise ConfigError("how long to train is not said: give --steps, --tokens or --epochs")
