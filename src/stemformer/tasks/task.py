"""Settings and base class of the labelled tasks."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stemformer.data.examples.batch import Batch, Example
from stemformer.data.labelled.symbol_map import SymbolMap
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.errors import ConfigError, DataError
from stemformer.models.model import Model
from stemformer.objectives.losses import LossSum
from stemformer.tasks.examples import TaskExamples
from stemformer.tasks.metrics import Language


@dataclass(frozen=True)
class TaskConfig:
    """Settings of a labelled task, apart from its data.

    Attributes:
        name: `classify` (one text), `pair` (two texts), `tag` (words of a sentence), `qa` (answers in
            a passage) or `choice` (multiple choice).
        kind: Of `classify` and `pair`: one `class` per text, any number of `labels`, or a `score`.
        text: Columns with the texts; detected by name and content if empty.
        label: Column with the answer; detected by name and content if None.
        max_length: Maximum number of tokens per example, special tokens included; None for the
            model's maximum. Nothing is padded, so a high limit costs nothing for short texts.
        long_texts: How `classify` treats texts over `max_length`: `windows` splits them and averages
            the probabilities; `head_tail` keeps 1/4 of the length from the beginning and 3/4 from the
            end (Sun et al. 2019); `cut` truncates at the end.
        stride: Tokens shared by neighboring windows in `tag` and `qa`.
        label_smoothing: Share of the target probability spread evenly over all labels, in [0, 1).
        balance: Weight classes inversely to their frequency in the training data.
        positive: Of `labels`: predict a label if its probability is at least this.
        max_answer_tokens: Of `qa`: maximum answer length in tokens.
        no_answer: Of `qa`: allow questions without an answer; None enables it if the training data
            has such questions.
        symbols: Treat texts of `classify` and `pair` as symbol sequences such as DNA, each symbol
            read as a word of the model's vocabulary: `draw` chooses the words at random, any other
            value is a file of lines `symbol<TAB>word`.
        symbol_size: Of `symbols=draw`: number of symbols per word (k-mer size).
        symbol_stride: Of `symbols=draw`: distance between the starts of neighboring k-mers.
        alphabet: Of `symbols=draw`: symbols that get their own words, all others sharing one; None
            for the frequent symbols of the training data.

    Source of `symbols`: Kao and Lee 2021 (BERT pre-trained on text, other sequences by a random map).
    """

    name: str = "classify"
    kind: Literal["class", "labels", "score"] = "class"
    text: tuple[str, ...] = ()
    label: str | None = None
    max_length: int | None = None
    long_texts: Literal["windows", "head_tail", "cut"] = "windows"
    stride: int = 128
    label_smoothing: float = 0.0
    balance: bool = False
    positive: float = 0.5
    max_answer_tokens: int = 30
    no_answer: bool | None = None
    symbols: str | None = None
    symbol_size: int = 1
    symbol_stride: int = 1
    alphabet: str | None = None

    def __post_init__(self) -> None:
        ranges = {
            "max_length": (self.max_length is None or self.max_length >= 8, "at least 8"),
            "stride": (self.stride >= 0, "0 or more"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "a number in [0, 1)"),
            "positive": (0 < self.positive < 1, "a probability between 0 and 1"),
            "max_answer_tokens": (self.max_answer_tokens >= 1, "at least 1"),
        }
        for name, (is_valid, expected) in ranges.items():
            if not is_valid:
                raise ConfigError(f"task.{name} is {getattr(self, name)}: expected {expected}")
        if self.symbols is not None and self.name not in ("classify", "pair"):
            raise ConfigError(f"task.symbols applies to classify and pair, not to {self.name}. Remove it.")
        if self.symbols != "draw" and (self.symbol_size, self.symbol_stride, self.alphabet) != (1, 1, None):
            raise ConfigError(
                "task.symbol_size, symbol_stride and alphabet apply to randomly chosen words only: add symbols=draw. "
                "A symbol file defines its own symbols."
            )
        if not 1 <= self.symbol_stride <= max(1, self.symbol_size):
            raise ConfigError(
                f"task.symbol_size is {self.symbol_size} and symbol_stride is {self.symbol_stride}: "
                "expected 1 or more, and a stride of at most the size, which skips no symbol"
            )
        if self.kind != "class" and self.name not in ("classify", "pair"):
            raise ConfigError(f"task.kind is {self.kind!r}: only classify and pair have kinds, not {self.name}")
        if self.kind != "class" and (self.balance or self.label_smoothing):
            raise ConfigError(
                f"task.balance and label_smoothing apply to kind 'class', not to {self.kind!r}. Remove them."
            )


class Task(ABC):
    """Base class of the labelled tasks: encoding, loss, decoding and metrics.

    The training loop uses a task as its `Objective`.

    Args:
        config: Settings.
        labels: Labels in the order of the logits.
        frequencies: Count of each label in the training data, for `config.balance`.

    Attributes:
        head: Name of the model head.
        formats: File formats of predictions, the default first.
        input_format: Form of an input of `Pipeline.predict`, for errors.
        labels: Empty for tasks whose answers are numbers, spans or options.
        num_labels: Logits per row.
        main_metric: Metric for model selection; higher is better.
        problem_type: `problem_type` in transformers' config; None for none.
        has_entities: The labels are entity tags (BIO or a variant), which are scored as entities.
        language: Rules for comparing answers in passages.
        symbols: Words for the symbols of `config.symbols`, once chosen.
    """

    head: ClassVar[str]
    formats: ClassVar[tuple[str, ...]] = (".jsonl",)
    input_format: str

    def __init__(
        self, config: TaskConfig, labels: Sequence[str] = (), frequencies: Sequence[int] | None = None
    ) -> None:
        self.config = config
        self.labels = tuple(labels)
        self.num_labels = len(self.labels)
        self.heads: tuple[str, ...] = (self.head,)
        self.main_metric = "accuracy"
        self.problem_type: str | None = None
        self.has_entities = False
        self.language: Language = "en"
        self.symbols: SymbolMap | None = None
        self._label_ids = {label: i for i, label in enumerate(self.labels)}
        self._class_weights: Tensor | None = None
        if config.balance and frequencies is not None:
            counts = torch.tensor(frequencies, dtype=torch.float32).clamp(min=1)
            # The mean over the training data is 1.
            self._class_weights = counts.sum() / (len(counts) * counts)

    def corrupt(self, example: Example, rng: np.random.Generator) -> Example:
        """Return the example unchanged: labelled tasks corrupt nothing."""
        return example

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return the number of scored items in a batch, by loss name."""
        return {self.config.name: len(batch.cu_seqlens) - 1}

    @abstractmethod
    def scored_positions(self, batch: Batch) -> Int[Tensor, "R"] | None:
        """Return the positions whose hidden states the head needs; None for all."""

    def scores(self, model: Model, states: Float[Tensor, "R D"], batch: Batch) -> Float[Tensor, "R C"]:
        """Return the logits of a batch, `num_scores` rows per example, in their order."""
        logits: Tensor = model.heads[self.head](states)
        return logits

    @abstractmethod
    def num_scores(self, example: Example) -> int:
        """Return the number of rows of logits of an example."""

    def loss(self, model: Model, states: Float[Tensor, "R D"], batch: Batch) -> dict[str, LossSum]:
        """Return the summed loss of a batch from the hidden states at its scored positions."""
        return {self.config.name: self.loss_from_scores(self.scores(model, states, batch), batch)}

    @abstractmethod
    def loss_from_scores(self, scores: Float[Tensor, "R C"], batch: Batch) -> LossSum:
        """Return the summed loss of a batch from its logits."""

    def make_record(self, value: Any, location: str) -> Any:
        """Return the record of one input of `Pipeline.predict`, without an answer.

        Args:
            location: Name of the input in errors.

        Raises:
            DataError: The input is empty or of another form than `input_format`.
        """
        parts = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Sequence) else ()
        record = self._parse_input(value, parts, location)
        if record is None:
            is_empty = not parts or not all(str(part).strip() for part in parts)
            raise DataError(
                f"{location.capitalize()} is {value!r:.80}. Expected {self.input_format}{', not empty' if is_empty else ''}."
            )
        return record

    @abstractmethod
    def _parse_input(self, value: Any, parts: tuple[Any, ...], location: str) -> Any | None:
        """Return the record of an input and its parts; None if the form is wrong."""

    @abstractmethod
    def encode(self, records: Sequence[Any], tokenizer: Tokenizer, *, max_length: int) -> TaskExamples:
        """Encode records, with or without answers, as examples of at most `max_length` tokens."""

    @abstractmethod
    def decode(
        self, scores: Sequence[Float[np.ndarray, "_ c"]], examples: TaskExamples, records: Sequence[Any]
    ) -> list[Any]:
        """Return one prediction per record from the logits of the examples."""

    def compute_metrics(
        self, predictions: Sequence[Any], records: Sequence[Any]
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Return the metrics of predictions (see `tasks.metrics`), and details such as a confusion matrix.

        Records without an answer are ignored.

        Raises:
            DataError: No record has an answer.
        """
        results = self._compute_metrics(predictions, records)
        metrics = {key: value for key, value in results.items() if isinstance(value, float)}
        return metrics, {key: value for key, value in results.items() if key not in metrics}

    @abstractmethod
    def _compute_metrics(self, predictions: Sequence[Any], records: Sequence[Any]) -> dict[str, Any]: ...

    def tune(self, metrics: dict[str, float], predictions: Sequence[Any]) -> list[str]:
        """Tune decision thresholds on predictions of the dev data, and return notes about them."""
        return []

    @abstractmethod
    def to_row(self, record: Any, prediction: Any) -> dict[str, Any]:
        """Return a record and its prediction as a row of an output file."""

    @abstractmethod
    def to_report_example(self, record: Any, prediction: Any) -> tuple[float, bool, dict[str, Any]]:
        """Return how wrong a prediction is, whether it is wrong, and its entry in a report."""

    def report_details(
        self,
        record: Any,
        prediction: Any,
        index: int,
        examples: TaskExamples,
        scores: Sequence[Float[np.ndarray, "_ c"]],
        tokenizer: Tokenizer,
    ) -> dict[str, Any]:
        """Return additional report entries of record number `index` that need the logits."""
        return {}

    def metadata(self) -> dict[str, Any]:
        """Return what a saved model stores about its task; `load_labelled_task` reads it."""
        metadata: dict[str, Any] = {"labels": list(self.labels), "problem_type": self.problem_type}
        metadata |= {**asdict(self.config), "entities": self.has_entities, "language": self.language}
        if self.symbols is not None:
            metadata["symbol_map"] = asdict(self.symbols)
        return metadata

    def load_metadata(self, metadata: dict[str, Any]) -> None:
        """Restore what `metadata` stores beyond settings and labels."""
        if "symbol_map" in metadata:
            self.symbols = SymbolMap(**metadata["symbol_map"])
        self.language = metadata.get("language", "en")
