"""Configuration of pre-training and fine-tuning runs, as stored in `config.toml`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Any, Literal

from stemformer.config import check_at_least, check_fields, check_seed, from_toml, parse_toml
from stemformer.errors import ConfigError
from stemformer.models.bart import BartConfig, MBartConfig
from stemformer.models.bert import BertConfig
from stemformer.models.gpt import GptConfig
from stemformer.models.llama import ArceeConfig, EuroBertConfig, LlamaConfig, Qwen3Config
from stemformer.models.modernbert import ModernBertConfig
from stemformer.objectives.causal_lm import CausalLmConfig
from stemformer.objectives.denoising import DenoisingConfig
from stemformer.objectives.masked_lm import MaskedLmConfig
from stemformer.tasks.task import TaskConfig
from stemformer.training.lr_schedule import ScheduleConfig
from stemformer.training.optimizer import OptimizerConfig

MAY_CHANGE = ("budget.", "evaluation.", "checkpoints.", "log_every", "tensorboard", "compute.")
"""Prefixes of the keys that may change on resume; changes of the environment are reported."""

RENAMED_SETTINGS = {
    "batch.rows": "batch.size",
    "batch.micro_rows": "batch.micro_size",
    "batch.row_length": "batch.sequence_length",
    "phases.from_share": "phases.start_ratio",
    "phases.rows": "phases.size",
    "phases.micro_rows": "phases.micro_size",
    "phases.row_length": "phases.sequence_length",
    "objective.rate": "objective.mask_rate",
    "objective.mask_share": "objective.mask_replace_prob",
    "objective.random_share": "objective.random_replace_prob",
    "objective.short_share": "objective.short_seq_prob",
    "optimizer.clip_norm": "optimizer.max_grad_norm",
    "optimizer.matrix_rate": "optimizer.muon_lr_multiplier",
    "schedule.warmup_share": "schedule.warmup_ratio",
    "schedule.decay_share": "schedule.decay_ratio",
    "schedule.final_share": "schedule.min_lr_ratio",
    "evaluation.rows": "evaluation.num_examples",
    "evaluation.blanks": "evaluation.num_cloze_examples",
    "dev_share": "dev_fraction",
    "fresh": "reinitialize",
}
"""Old key -> current key of a run's configuration; old keys are still read."""


@dataclass(frozen=True)
class BatchConfig:
    """Batch of one optimizer step."""

    # Sequences per step, over all ranks and micro-batches.
    size: int = 32
    # Sequences per forward pass on one rank; None takes all. The gradient is the same.
    micro_size: int | None = None
    # Maximum tokens per sequence, special tokens included.
    sequence_length: int = 128
    # Approximate tokens per forward pass, for examples of unequal length.
    micro_tokens: int | None = None

    def __post_init__(self) -> None:
        check_at_least(1, self, "batch.", "size")
        expected = f"a divisor of batch.size ({self.size})"
        check_fields(self, "batch.", expected, lambda n: n >= 1 and self.size % n == 0, "micro_size")


@dataclass(frozen=True)
class PhaseConfig:
    """A later phase of a run, such as the last 10 % with 512 tokens (Devlin et al. 2019, appendix A.2)."""

    # Start, as a fraction of the run's steps or seconds, in (0, 1).
    start_ratio: float
    size: int
    sequence_length: int
    micro_size: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, "phases: ", "a fraction between 0 and 1", lambda x: 0 < x < 1, "start_ratio")
        self.batch()

    def batch(self) -> BatchConfig:
        return BatchConfig(self.size, self.micro_size, self.sequence_length)


@dataclass(frozen=True)
class BudgetConfig:
    """Length of a run: one of steps, tokens, epochs or seconds."""

    steps: int | None = None
    # Special tokens included; rounded up to full steps (of pairs, before some are shortened).
    tokens: int | None = None
    # Passes over the training examples, rounded up to full steps.
    epochs: float | None = None
    # Wall-clock time without interruptions and the evaluation after the last step; the schedule is always `wsd`.
    seconds: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, "budget.", "a positive number", lambda x: 0 < x < math.inf, *vars(self))
        if sum(value is not None for value in vars(self).values()) > 1:
            raise ConfigError("budget: more than one of steps, tokens, epochs and seconds is set; set others to none")


@dataclass(frozen=True)
class ComputeConfig:
    """Device (`auto`, `cpu`, `cuda`, `cuda:1` ...), number format, compilation, threads."""

    device: str = "auto"
    # `auto` is bf16 if the device has matrix units for it; weights stay in fp32.
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    # Compile the blocks and, on one GPU, replay CUDA graphs; None: on CUDA only (docs/benchmarks.md).
    compile: bool | None = None
    threads: int | None = None
    # Shard weights and optimizer over the ranks (FSDP2): less memory, more traffic.
    shard: bool = False

    def __post_init__(self) -> None:
        check_at_least(1, self, "compute.", "threads")


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation on held-out text, with the same masks at every evaluation."""

    # Steps between evaluations, besides the last step; None evaluates about 20 times.
    every: int | None = None
    num_examples: int = 512
    # Held-out sentences in which a masked word is predicted; 0 for none.
    num_cloze_examples: int = 200

    def __post_init__(self) -> None:
        check_at_least(1, self, "evaluation.", "every", "num_examples")
        check_at_least(0, self, "evaluation.", "num_cloze_examples")


@dataclass(frozen=True)
class CheckpointConfig:
    """How often checkpoints are saved, and how many are kept."""

    # Steps between checkpoints, besides the last step; None saves about 10 times.
    every: int | None = None
    # Number of newest checkpoints to keep, in addition to the best one.
    keep: int = 2

    def __post_init__(self) -> None:
        check_at_least(1, self, "checkpoints.", "every", "keep")


@dataclass(frozen=True)
class RunConfig:
    """A pre-training run of a BERT."""

    recipe: str = "bert_mini"
    model_type: Literal["bert"] = "bert"
    seed: int = 0
    # Model to continue training from, whose embeddings are kept; None: a new model.
    init: str | None = None
    log_every: int = 10
    # Number of lowest layers of the `init` model that are not trained.
    frozen_layers: int = 0
    # Freeze word, position and token type embeddings.
    frozen_embeddings: bool = False
    # Word embeddings of a new model: random, or from counts of tokens that occur together
    # (`training.cooccurrence`); those of a causal LM then have an output matrix of their own.
    embedding_init: Literal["random", "cooccurrence"] = "random"
    tensorboard: bool = False
    model: BertConfig = field(default_factory=BertConfig)
    objective: MaskedLmConfig = field(default_factory=MaskedLmConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    # Later phases with another sequence length; `batch` is the first phase.
    phases: tuple[PhaseConfig, ...] = ()
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_at_least(1, self, "", "log_every")
        check_at_least(0, self, "", "frozen_layers")
        if self.optimizer.learning_rate is None:
            raise ConfigError("optimizer.learning_rate is none: expected a number, except in fine-tuning")
        starts, batches = zip(*self.all_phases(), strict=True)
        longest = max(batch.sequence_length for batch in batches)
        if longest > (limit := self.model.max_position_embeddings):
            problem = f"batch.sequence_length is {longest}, the model has {limit} positions"
            raise ConfigError(f"{problem}: lower batch.sequence_length or raise model.max_position_embeddings")
        if list(starts) != sorted(set(starts)):
            raise ConfigError(f"phases start at {list(starts)}: expected ascending fractions of the run")
        late = [start for start in starts if start > 1 - self.schedule.decay_ratio]
        if late and self.budget.seconds is not None:
            problem = f"a phase starts at {late[0]} of a budget in seconds, within the learning rate decay"
            advice = f"start it by {1 - self.schedule.decay_ratio:g}, lower schedule.decay_ratio, or use --steps"
            raise ConfigError(f"{problem}, whose steps are fixed when it begins: {advice}")
        if self.causal_share and str(self.model_type) != "eurobert":
            problem = (
                f"objective.causal_share is {self.causal_share}, but a {self.model_type} has no causal counterpart"
            )
            raise ConfigError(f"{problem}. Use eurobert_mini, which is also saved as a Llama, or set it to 0.")
        if (self.frozen_layers or self.frozen_embeddings) and self.init is None:
            raise ConfigError("frozen_layers and frozen_embeddings need a pre-trained model: add --init")

    def all_phases(self) -> list[tuple[float, BatchConfig]]:
        """Return start (fraction of the run) and batch of each phase, the first phase included."""
        phases = [(0.0, self.batch), *((phase.start_ratio, phase.batch()) for phase in self.phases)]
        # The end of a causal start begins a phase with the batch that is in use.
        end = self.causal_start_ratio
        if end not in (starts := [start for start, _ in phases]):
            number = sum(start < end for start in starts)
            phases.insert(number, (end, phases[number - 1][1]))
        return phases

    @property
    def ties_embeddings(self) -> bool:
        """Whether the word embeddings of a new model are its output matrix."""
        return self.embedding_init == "random" or self.objective.name != "causal"

    @property
    def causal_start_ratio(self) -> float:
        """Fraction of the run, at its start, that trains a masked LM as a causal LM."""
        return getattr(self.objective, "causal_start_ratio", 0.0)

    @property
    def causal_share(self) -> float:
        """Share of all steps that train a masked LM as a causal LM."""
        return getattr(self.objective, "causal_share", 0.0)


@dataclass(frozen=True)
class GptRunConfig(RunConfig):
    """A pre-training run of a GPT."""

    recipe: str = "gpt_mini"
    model_type: Literal["gpt2"] = "gpt2"  # type: ignore[assignment]
    model: GptConfig = field(default_factory=GptConfig)  # type: ignore[assignment]
    objective: CausalLmConfig = field(default_factory=CausalLmConfig)  # type: ignore[assignment]


@dataclass(frozen=True)
class ModernBertRunConfig(RunConfig):
    """A pre-training run of a ModernBERT."""

    recipe: str = "modernbert_mini"
    model_type: Literal["modernbert"] = "modernbert"  # type: ignore[assignment]
    model: ModernBertConfig = field(default_factory=ModernBertConfig)  # type: ignore[assignment]


@dataclass(frozen=True)
class LlamaRunConfig(RunConfig):
    """A pre-training run of a Llama."""

    recipe: str = "llama_mini"
    model_type: Literal["llama"] = "llama"  # type: ignore[assignment]
    model: LlamaConfig = field(default_factory=LlamaConfig)  # type: ignore[assignment]
    objective: CausalLmConfig = field(default_factory=CausalLmConfig)  # type: ignore[assignment]


@dataclass(frozen=True)
class Qwen3RunConfig(LlamaRunConfig):
    """A pre-training run of a Qwen3."""

    recipe: str = "qwen3_mini"
    model_type: Literal["qwen3"] = "qwen3"  # type: ignore[assignment]
    model: Qwen3Config = field(default_factory=Qwen3Config)


@dataclass(frozen=True)
class ArceeRunConfig(LlamaRunConfig):
    """A pre-training run of an Arcee."""

    recipe: str = "arcee_mini"
    model_type: Literal["arcee"] = "arcee"  # type: ignore[assignment]
    model: ArceeConfig = field(default_factory=ArceeConfig)


@dataclass(frozen=True)
class EuroBertRunConfig(RunConfig):
    """A pre-training run of a EuroBERT."""

    recipe: str = "eurobert_mini"
    model_type: Literal["eurobert"] = "eurobert"  # type: ignore[assignment]
    model: EuroBertConfig = field(default_factory=EuroBertConfig)  # type: ignore[assignment]


@dataclass(frozen=True)
class BartRunConfig(RunConfig):
    """A pre-training run of a BART."""

    recipe: str = "bart_mini"
    model_type: Literal["bart"] = "bart"  # type: ignore[assignment]
    model: BartConfig = field(default_factory=BartConfig)  # type: ignore[assignment]
    objective: DenoisingConfig = field(default_factory=DenoisingConfig)  # type: ignore[assignment]


@dataclass(frozen=True)
class MBartRunConfig(BartRunConfig):
    """A pre-training run of an mBART."""

    recipe: str = "mbart_mini"
    model_type: Literal["mbart"] = "mbart"  # type: ignore[assignment]
    model: MBartConfig = field(default_factory=MBartConfig)


RUN_CONFIGS: dict[str, type[RunConfig]] = {
    "bert": RunConfig,
    "modernbert": ModernBertRunConfig,
    "gpt2": GptRunConfig,
    "llama": LlamaRunConfig,
    "qwen3": Qwen3RunConfig,
    "arcee": ArceeRunConfig,
    "eurobert": EuroBertRunConfig,
    "bart": BartRunConfig,
    "mbart": MBartRunConfig,
}
"""Architecture -> configuration of its pre-training runs."""


def run_config_class(table: Mapping[str, Any], source: str) -> type[RunConfig]:
    """Return the class of a pre-training configuration, from its TOML table."""
    # Runs of earlier versions have no model_type.
    default = "gpt2" if "eos_token_id" in table.get("model", {}) else "bert"
    model_type = table.get("model_type", default)
    if model_type not in RUN_CONFIGS:
        raise ConfigError(f"{source}: model_type is {model_type!r}: expected one of {', '.join(RUN_CONFIGS)}")
    return RUN_CONFIGS[model_type]


def read_run_config(text: str, *, source: str) -> RunConfig:
    """Read a pre-training configuration of any architecture, with current or old keys."""
    cls = run_config_class(parse_toml(text, source), source)
    return from_toml(cls, text, source=source, renamed=RENAMED_SETTINGS)


@dataclass(frozen=True)
class TaskBatchConfig:
    """Batch of one optimizer step in fine-tuning."""

    # Examples per step, sampled regardless of their length. Nothing is padded.
    size: int = 32
    # Approximate tokens per forward pass; larger batches are split.
    micro_tokens: int = 16384

    def __post_init__(self) -> None:
        check_at_least(1, self, "batch.", "size", "micro_tokens")


@dataclass(frozen=True)
class TaskEvaluationConfig:
    """Evaluation on the dev data."""

    # Steps between evaluations; None evaluates once per epoch.
    every: int | None = None
    # Evaluations without improvement until the run stops with its best model; None keeps the last model.
    patience: int | None = None
    # Metric that selects the best model, such as `macro_f1` or `loss`; None for the task's main metric.
    best_metric: str | None = None

    def __post_init__(self) -> None:
        check_at_least(1, self, "evaluation.", "every", "patience")


@dataclass(frozen=True)
class FinetuneConfig:
    """A fine-tuning run. The defaults are the BERT paper's, but for the learning rate of smaller models.

    Source: Devlin et al. 2019, appendix A.3; layer-wise decay: Howard and Ruder 2018, section 3.2.
    """

    model: str
    train: tuple[str, ...]
    # Files of dev data; if empty, a part of the training data is held out.
    dev: tuple[str, ...] = ()
    # Fraction of the training data that is held out then, in (0, 1).
    dev_fraction: float = 0.1
    seed: int = 0
    log_every: int = 10
    tensorboard: bool = False
    # Number of lowest layers that are not trained.
    frozen_layers: int = 0
    frozen_embeddings: bool = False
    # Learning rate relative to the next higher layer, in (0, 1]; embeddings are the lowest layer.
    layer_decay: float = 1.0
    # Dropout of hidden states in training; None: that of the model's config.
    dropout: float | None = None
    # Weights to replace by random ones: `nothing`, the word `embeddings`, or `all`.
    reinitialize: Literal["nothing", "embeddings", "all"] = "nothing"
    task: TaskConfig = field(default_factory=TaskConfig)
    batch: TaskBatchConfig = field(default_factory=TaskBatchConfig)
    budget: BudgetConfig = field(default_factory=lambda: BudgetConfig(epochs=3))
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=None))
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(warmup_ratio=0.1))
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    evaluation: TaskEvaluationConfig = field(default_factory=TaskEvaluationConfig)
    checkpoints: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(keep=1))

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_at_least(1, self, "", "log_every")
        check_at_least(0, self, "", "frozen_layers")
        check_fields(self, "", "a fraction between 0 and 1", lambda x: 0 < x < 1, "dev_fraction")
        check_fields(self, "", "a factor above 0, at most 1", lambda x: 0 < x <= 1, "layer_decay")
        check_fields(self, "", "a share in [0, 1)", lambda x: 0 <= x < 1, "dropout")


def num_steps_for(config: RunConfig, *, num_examples: Sequence[int], num_tokens: Sequence[int]) -> int | None:
    """Return the number of optimizer steps by the size of each phase's epoch; None if in seconds."""
    budget, phases = config.budget, config.all_phases()
    if budget.steps is not None:
        return budget.steps
    # Fractions, because floats would be off by a step; 0.9 is 9/10, not the nearest float.
    starts = [Fraction(str(start)) for start, _ in phases] + [Fraction(1)]
    # Mean number of examples per step that belong to each phase.
    sizes = [(end - start) * batch.size for (_, batch), (start, end) in zip(phases, pairwise(starts), strict=True)]
    if budget.tokens is not None:
        per_step = sum(size * t / n for size, t, n in zip(sizes, num_tokens, num_examples, strict=True))
        return math.ceil(budget.tokens / per_step)
    if budget.epochs is not None:
        per_step = sum(size / n for size, n in zip(sizes, num_examples, strict=True))
        return max(1, math.ceil(budget.epochs / float(per_step) - 1e-9))
    if budget.seconds is not None:
        return None
    raise ConfigError("No training budget. Pass --steps, --tokens, --epochs or --time.")
