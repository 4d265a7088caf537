"""A run as data: what `config.toml` holds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Literal

from stemformer.config import check_seed, parse_toml
from stemformer.errors import ConfigError
from stemformer.models.bert import BertConfig
from stemformer.models.gpt import GptConfig
from stemformer.objectives.causal_lm import CausalLmConfig
from stemformer.objectives.masked_lm import MaskedLmConfig
from stemformer.tasks.task import TaskConfig
from stemformer.training.lr_schedule import ScheduleConfig
from stemformer.training.optimizer import OptimizerConfig

MAY_CHANGE = ("budget.", "evaluation.", "checkpoints.", "log_every", "tensorboard", "compute.")
"""Keys that a resumed run may change; anything else is refused. What changes in `compute` is told, as bits may then differ."""


@dataclass(frozen=True)
class BatchConfig:
    """What one optimizer step sees.

    Attributes:
        rows: Examples a step, over all ranks and micro-batches.
        micro_rows: Examples a forward on one rank; None takes all of a rank's at once. A smaller number needs less memory and gives
            the same gradient.
        row_length: Tokens a row holds at most, special tokens included.
        micro_tokens: Tokens a forward, about, where examples are of unequal length; None sets no limit.
    """

    rows: int = 32
    micro_rows: int | None = None
    row_length: int = 128
    micro_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ConfigError(f"batch.rows is {self.rows}: expected at least 1")
        if self.micro_rows is not None and (self.micro_rows < 1 or self.rows % self.micro_rows):
            raise ConfigError(f"batch.micro_rows is {self.micro_rows}: expected a divisor of batch.rows ({self.rows})")


@dataclass(frozen=True)
class PhaseConfig:
    """A later part of a run, with rows of another length; its optimizer and learning rate go on.

    Attributes:
        from_share: Where it begins, as a share of the run's steps, in (0, 1).
        rows: As in `BatchConfig`, like the next two.
        row_length: Tokens a row holds at most.
        micro_rows: Examples a forward.

    Source: Devlin et al. 2019, appendix A.2: nine tenths of the steps with rows of 128, the rest with 512.
    """

    from_share: float
    rows: int
    row_length: int
    micro_rows: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.from_share < 1:
            raise ConfigError(f"phases: from_share is {self.from_share}: expected a share between 0 and 1")
        self.batch()

    def batch(self) -> BatchConfig:
        """Returns what a step of the phase sees."""
        return BatchConfig(self.rows, self.micro_rows, self.row_length)


@dataclass(frozen=True)
class BudgetConfig:
    """How long a run is: one of steps, tokens, epochs, seconds.

    Attributes:
        steps: Optimizer steps.
        tokens: Tokens seen, special tokens included; rounded up to whole steps of the mean size (of pairs before some are cut short).
        epochs: Passes over the rows, rounded up to whole steps.
        seconds: Time on the clock, interruptions not counted; the learning rate then rises, stays, and falls at the end (`wsd`).
    """

    steps: int | None = None
    tokens: int | None = None
    epochs: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        names = ("steps", "tokens", "epochs", "seconds")
        for name in names:
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"budget.{name} is {value}: expected a positive number")
        if sum(getattr(self, name) is not None for name in names) > 1:
            raise ConfigError(
                "budget: more than one of steps, tokens, epochs and seconds is set; set the others to none"
            )


@dataclass(frozen=True)
class ComputeConfig:
    """What the run computes on.

    Attributes:
        device: `auto`, `cpu`, `cuda`, `cuda:1` ...
        precision: `fp32`, `bf16` (weights stay in fp32), or `auto`: bf16 where the device has matrix units for it.
        compile: Compile the blocks, and in pre-training on one GPU replay both passes as CUDA graphs (see `training.graphs`); None does
            so on CUDA alone, since on a CPU it was not faster (docs/benchmarks.md).
        threads: Processor threads; None leaves PyTorch's choice.
        shard: With several ranks, each holds a part of weights and optimizer only (FSDP2): less memory, more traffic.
    """

    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool | None = None
    threads: int | None = None
    shard: bool = False

    def __post_init__(self) -> None:
        _at_least_one("compute", threads=self.threads)


@dataclass(frozen=True)
class EvaluationConfig:
    """The held-out loss, on masks that never change.

    Attributes:
        every: Steps between two evaluations; None does twenty in a run. There is always one at the end.
        rows: Held-out examples that are scored, at most.
        blanks: Words of held-out sentences that are hidden and guessed, to see what the model has learned; 0 for none.
    """

    every: int | None = None
    rows: int = 512
    blanks: int = 200

    def __post_init__(self) -> None:
        _at_least_one("evaluation", every=self.every, rows=self.rows)
        if self.blanks < 0:
            raise ConfigError(f"evaluation.blanks is {self.blanks}: expected 0 or more")


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept on the way.

    Attributes:
        every: Steps between two checkpoints; None does ten in a run. There is always one at the end.
        keep: How many of the newest stay on disk, and beside them the one with the lowest held-out loss.
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
        frozen_layers: The lowest layers that stay as they are, of a model given by `init`.
        frozen_embeddings: Word, position and segment vectors stay as they are too.
        tensorboard: Write TensorBoard's files beside `log.jsonl`.
        phases: Later parts of the run with rows of another length; `batch` is the first.
    """

    recipe: str = "bert_mini"
    seed: int = 0
    init: str | None = None
    log_every: int = 10
    frozen_layers: int = 0
    frozen_embeddings: bool = False
    tensorboard: bool = False
    model: BertConfig = field(default_factory=BertConfig)
    objective: MaskedLmConfig = field(default_factory=MaskedLmConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    phases: tuple[PhaseConfig, ...] = ()
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.log_every < 1:
            raise ConfigError(f"log_every is {self.log_every}: expected at least 1")
        longest = max(batch.row_length for _, batch in self.parts())
        if longest > self.model.max_position_embeddings:
            raise ConfigError(
                f"batch.row_length is {longest}, the model has {self.model.max_position_embeddings} positions: "
                "lower batch.row_length or raise model.max_position_embeddings"
            )
        shares = [share for share, _ in self.parts()]
        if shares != sorted(set(shares)):
            raise ConfigError(f"phases begin at {shares}: expected shares of the run that ascend")
        if self.phases and self.budget.seconds is not None:
            raise ConfigError(
                "phases are shares of a run's steps, which a budget on the clock does not know: give steps, or phases=[]"
            )
        if self.frozen_layers < 0:  # how many there can be, the model given by init says
            raise ConfigError(f"frozen_layers is {self.frozen_layers}: expected 0 or more")
        if (self.frozen_layers or self.frozen_embeddings) and self.init is None:
            raise ConfigError(
                "frozen_layers and frozen_embeddings are for a model that was trained before: give --init"
            )

    def parts(self) -> list[tuple[float, BatchConfig]]:
        """Returns each phase, the first among them: where it begins as a share of the run, and what its steps see."""
        return [(0.0, self.batch), *((phase.from_share, phase.batch()) for phase in self.phases)]


@dataclass(frozen=True)
class GptRunConfig(RunConfig):
    """A complete pre-training run of a GPT: the same, with another body and another objective."""

    recipe: str = "gpt_mini"
    model: GptConfig = field(default_factory=GptConfig)  # type: ignore[assignment]
    objective: CausalLmConfig = field(default_factory=CausalLmConfig)  # type: ignore[assignment]


def config_class(text: str, source: str) -> type[RunConfig]:
    """Returns which class the configuration of a pre-training run is of, by its TOML text, which is of `source`."""
    return GptRunConfig if "eos_token_id" in parse_toml(text, source).get("model", {}) else RunConfig


@dataclass(frozen=True)
class TaskBatchConfig:
    """What one optimizer step of fine-tuning sees.

    Attributes:
        rows: Examples a step, drawn at random whatever their length. Nothing is padded.
        micro_tokens: Tokens a forward, about: a step with more of them is done in parts, with the same gradient.
    """

    rows: int = 32
    micro_tokens: int = 16384

    def __post_init__(self) -> None:
        _at_least_one("batch", rows=self.rows, micro_tokens=self.micro_tokens)


@dataclass(frozen=True)
class TaskEvaluationConfig:
    """The figures on the dev data.

    Attributes:
        every: Steps between two evaluations; None does one each pass over the training data.
        patience: The run ends when so many evaluations in a row were not better than the best, and its result is the model of the best;
            None trains to the end, and its result is the last model.
    """

    every: int | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        _at_least_one("evaluation", every=self.every, patience=self.patience)


@dataclass(frozen=True)
class FinetuneConfig:
    """A complete fine-tuning run. The defaults are the BERT paper's.

    Attributes:
        model: That training started from.
        train: Files of labelled data.
        dev: The same, for evaluation; empty cuts a part off the training data.
        dev_share: How large that part is.
        seed: Of everything that is random, from 0.
        log_every: Steps between two lines of `log.jsonl`.
        tensorboard: Write TensorBoard's files beside `log.jsonl`.
        frozen_layers: The lowest layers that stay as they are.
        frozen_embeddings: Word, position and segment vectors stay as they are too.
        layer_decay: The learning rate of each layer is that of the layer above times this; the embeddings are the lowest.
        fresh: What is drawn at random instead of taken from the model: `nothing`, its `embeddings` of words, or `all` of it.

    Source: Devlin et al. 2019, appendix A.3; layer-wise decay: Howard and Ruder 2018, section 3.2.
    """

    model: str
    train: tuple[str, ...]
    dev: tuple[str, ...] = ()
    dev_share: float = 0.1
    seed: int = 0
    log_every: int = 10
    tensorboard: bool = False
    frozen_layers: int = 0
    frozen_embeddings: bool = False
    layer_decay: float = 1.0
    fresh: Literal["nothing", "embeddings", "all"] = "nothing"
    task: TaskConfig = field(default_factory=TaskConfig)
    batch: TaskBatchConfig = field(default_factory=TaskBatchConfig)
    budget: BudgetConfig = field(default_factory=lambda: BudgetConfig(epochs=3))
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=3e-5))
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(warmup_share=0.1))
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    evaluation: TaskEvaluationConfig = field(default_factory=TaskEvaluationConfig)
    checkpoints: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(keep=1))

    def __post_init__(self) -> None:
        check_seed(self.seed)
        _at_least_one("config", log_every=self.log_every)
        if not 0 < self.dev_share < 1:
            raise ConfigError(f"dev_share is {self.dev_share}: expected a share between 0 and 1")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"layer_decay is {self.layer_decay}: expected a factor above 0, at most 1")
        if self.frozen_layers < 0:
            raise ConfigError(f"frozen_layers is {self.frozen_layers}: expected 0 or more")


def _at_least_one(table: str, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise ConfigError(f"{table}.{name} is {value}: expected at least 1")


def num_steps_for(config: RunConfig, *, num_examples: Sequence[int], num_tokens: Sequence[int]) -> int | None:
    """Returns how many optimizer steps a run has; None where the clock decides.

    Args:
        config: Its budget and batch.
        num_examples: Rows of an epoch, for each phase.
        num_tokens: Tokens of an epoch, special tokens included, for each phase.

    Raises:
        ConfigError: No budget is set.
    """
    budget, parts = config.budget, config.parts()
    shares = [Fraction(str(share)) for share, _ in parts] + [Fraction(1)]  # 0.9 is nine tenths, not the nearest float
    # of the mean step, how many rows belong to each phase
    rows = [(end - begin) * batch.rows for (_, batch), (begin, end) in zip(parts, pairwise(shares), strict=True)]
    if budget.steps is not None:
        return budget.steps
    if budget.tokens is not None:  # in fractions, where floats would be off by a step
        a_step = sum(r * t / n for r, t, n in zip(rows, num_tokens, num_examples, strict=True))
        return math.ceil(budget.tokens / a_step)
    if budget.epochs is not None:
        a_step = sum(r / n for r, n in zip(rows, num_examples, strict=True))
        return max(1, math.ceil(budget.epochs / float(a_step) - 1e-9))
    if budget.seconds is not None:
        return None
    raise ConfigError("how long to train is not said: give --steps, --tokens, --epochs or --time")
