"""Settings and base class of the labelled tasks."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stemformer.config import check_at_least, check_fields
from stemformer.data.examples.batch import Batch, Example
from stemformer.data.labelled.symbol_map import SymbolMap
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.errors import ConfigError, DataError
from stemformer.models.model import Model
from stemformer.objectives.losses import LossSum
from stemformer.tasks.examples import TaskExamples
from stemformer.tasks.metrics import Language

# Logits of each example, `Task.num_scores` rows.
Logits = Sequence[Float[np.ndarray, "_ c"]]
TaskOutputs = tuple[TaskExamples, Sequence[Any], Tokenizer]
# How wrong a prediction is, whether it is wrong, and its entry in a report.
ReportExample = tuple[float, bool, dict[str, Any]]


@dataclass(frozen=True)
class TaskConfig:
    """Settings of a labelled task, apart from its data.

    Attributes:
        name: `classify` (a text), `pair` (two texts), `tag` (words), `qa` (answers), `choice` (options) or
            `seq2seq` (a text to write).
        kind: Of `classify` and `pair`: one `class` per text, any number of `labels`, or a `score`.
        text: Columns with the texts; detected by name and content if empty.
        label: Column with the answer, or columns of 0 and 1, one for each label; detected by name and content if None.
        max_length: Maximum tokens per example, special tokens included; None for those that the model was trained on.
        long_texts: Of `classify`, for texts over `max_length`: `windows` averages over parts, `head_tail`
            keeps 1/4 from the beginning and 3/4 from the end (Sun et al. 2019), `cut` truncates.
        stride: Tokens shared by neighboring windows in `tag` and `qa`.
        label_smoothing: Share of the target probability spread evenly over all labels, in [0, 1).
        balance: Weight classes inversely to their frequency in the training data; of `labels`, weight the
            presence of a label by records without it / records with it.
        positive: Of `labels`: predict a label if its probability is at least this.
        max_answer_tokens: Of `qa`: maximum answer length in tokens.
        no_answer: Of `qa`: allow questions without an answer; None: if the training data has some.
        symbols: Treat texts of `classify` and `pair` as symbol sequences such as DNA, each symbol a word
            of the vocabulary (Kao and Lee 2021): `draw` for random words, or a file `symbol<TAB>word`.
        symbol_size: Of `symbols=draw`: number of symbols per word (k-mer size).
        symbol_stride: Of `symbols=draw`: distance between the starts of neighboring k-mers.
        alphabet: Of `symbols=draw`: symbols with their own words; None for the data's frequent ones.
        num_beams: Of `seq2seq`: beams when a text is written; evaluations during training have one.
        length_penalty: Of `seq2seq`: as in `BeamConfig`.
        num_written: Of `seq2seq`: dev texts that are written in an evaluation during training; all at its end.
        source_language: Of `seq2seq`: language of all sources, whose token precedes them; None for `<s>`.
        target_language: Of `seq2seq`: language of all targets, whose token precedes them; None for `<s>`.
        source_language_column: Of `seq2seq`: column with the language of each source.
        target_language_column: Of `seq2seq`: column with the language of each target.
        vocab_size: Of `seq2seq` without a model: tokens of the vocabulary that is trained on the pairs.
    """

    name: str = "classify"
    kind: Literal["class", "labels", "score"] = "class"
    text: tuple[str, ...] = ()
    label: str | tuple[str, ...] | None = None
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
    num_beams: int = 4
    length_penalty: float = 1.0
    num_written: int = 500
    source_language: str | None = None
    target_language: str | None = None
    source_language_column: str | None = None
    target_language_column: str | None = None
    vocab_size: int = 8000

    @property
    def label_columns(self) -> tuple[str, ...]:
        """All columns with labels."""
        return () if self.label is None else (self.label,) if isinstance(self.label, str) else self.label

    @property
    def language_columns(self) -> tuple[str | None, str | None]:
        """Columns with the languages of source and target."""
        return self.source_language_column, self.target_language_column

    @property
    def has_languages(self) -> bool:
        """Whether sources or targets have languages."""
        return any((self.source_language, self.target_language, *self.language_columns))

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are named."""
        return (*self.text, *self.label_columns, *(name for name in self.language_columns if name is not None))

    @property
    def has_labels(self) -> bool:
        """Whether answers are labels or numbers, not texts or options."""
        return self.name in ("classify", "pair", "tag")

    @property
    def has_classes(self) -> bool:
        """Whether a record has one label."""
        return self.name in ("classify", "pair") and self.kind == "class"

    def __post_init__(self) -> None:
        if isinstance(self.label, tuple) and len(self.label) < 2:
            object.__setattr__(self, "label", self.label[0] if self.label else None)
        if isinstance(self.label, tuple) and self.kind == "class" and self.name != "seq2seq":
            object.__setattr__(self, "kind", "labels")
        check_at_least(8, self, "task.", "max_length")
        check_at_least(0, self, "task.", "stride")
        check_at_least(1, self, "task.", "max_answer_tokens", "num_beams", "num_written")
        check_at_least(300, self, "task.", "vocab_size")
        check_fields(self, "task.", "a number from -10 to 10", lambda x: -10 <= x <= 10, "length_penalty")
        check_fields(self, "task.", "a number in [0, 1)", lambda x: 0 <= x < 1, "label_smoothing")
        check_fields(self, "task.", "a probability between 0 and 1", lambda x: 0 < x < 1, "positive")
        has_texts, is_class = self.name in ("classify", "pair"), self.kind == "class"
        draw_settings = (self.symbol_size, self.symbol_stride, self.alphabet)
        rules = {
            f"label names {len(self.label or ())} columns: only classify and pair take several. Pass one "
            "--label-column.": (
                not isinstance(self.label, tuple) or self.name == "seq2seq" or (has_texts and self.kind == "labels")
            ),
            f"text names {len(self.text)} columns: seq2seq has one source. Name one --text-column.": (
                self.name != "seq2seq" or len(self.text) < 2
            ),
            f"source_language and target_language apply to seq2seq, not to {self.name}. Remove them.": (
                self.name == "seq2seq" or not self.has_languages
            ),
            "source_language is the language of all sources, source_language_column that of each. Pass one of them.": (
                self.source_language is None or self.source_language_column is None
            ),
            "target_language is the language of all targets, target_language_column that of each. Pass one of them.": (
                self.target_language is None or self.target_language_column is None
            ),
            f"kind is {self.kind!r}: only classify and pair have kinds, not {self.name}": has_texts or is_class,
            "balance applies to classes, labels and tags. Remove it.": (
                not self.balance or (self.kind != "score" and self.has_labels)
            ),
            f"label_smoothing applies to kind 'class', not to {self.kind!r}. Remove it.": (
                is_class or not self.label_smoothing
            ),
            f"symbols applies to classify and pair, not to {self.name}. Remove it.": has_texts or self.symbols is None,
            "symbol_size, symbol_stride and alphabet apply to randomly chosen words only: add symbols=draw. "
            "A symbol file defines its own symbols.": self.symbols == "draw" or draw_settings == (1, 1, None),
            f"symbol_size is {self.symbol_size} and symbol_stride is {self.symbol_stride}: expected 1 or more, and a "
            "stride of at most the size, which skips no symbol": 1 <= self.symbol_stride <= max(1, self.symbol_size),
        }
        for problem, is_valid in rules.items():
            if not is_valid:
                raise ConfigError(f"task.{problem}")


class Task(ABC):
    """Labelled task: encoding, loss, decoding and metrics; an `Objective` of the training loop.

    Args:
        labels: In the order of the logits; ignored by tasks whose answers are spans or options.
        frequencies: Count of each label in the training data, for `config.balance`.
        num_records: Number of training records, of which each has any number of labels if `kind` is `labels`.
    """

    head: ClassVar[str]
    # File formats of predictions, the default first.
    formats: ClassVar[tuple[str, ...]] = (".jsonl",)
    # Logits per row of a task without labels.
    num_logits: ClassVar[int | None] = None
    # Field of a record with the answer; None there if it is unknown.
    answer_field: ClassVar[str]
    # Fields with the texts of a record, or tuples of them.
    input_fields: ClassVar[tuple[str, ...]]
    # Names of the columns of a table with texts and answers in notes; None for files of another form.
    column_titles: ClassVar[tuple[str, str] | None] = None
    # Whether predictions are texts that a decoder writes.
    writes_texts: ClassVar[bool] = False
    # Form of an input of `Pipeline.predict`, for errors.
    input_format: str
    # Metric for model selection; higher is better.
    main_metric: str = "accuracy"
    # Metrics that are shown during training, loss included; none: all.
    shown_metrics: tuple[str, ...] = ()
    # Of a task that writes texts: sources over the maximum length are cut or split at sentence ends.
    long_sources: Literal["cut", "split"] = "cut"
    # In transformers' config.
    problem_type: str | None = None
    # The labels are entity tags (BIO or a variant), which are scored as entities.
    has_entities: bool = False
    # Rules for comparing answers in passages.
    language: Language = "en"
    # Words for the symbols of `config.symbols`, once chosen.
    symbols: SymbolMap | None = None
    # Of regression: mean and standard deviation of the training targets, and whether scores are standardized by them,
    # as in training; a saved model gives the original unit.
    targets: tuple[float, float] | None = None
    is_standardized: bool = False
    # Score of a standardized output of 0: None for the mean, 0 for a model without any bias before the score.
    target_offset: float | None = None

    def __init__(
        self, config: TaskConfig, labels: Sequence[str] = (), frequencies: Sequence[int] = (), num_records: int = 0
    ) -> None:
        self.config = config
        self.labels = () if self.num_logits else tuple(labels)
        self.num_labels = self.num_logits or len(self.labels)
        self.heads: tuple[str, ...] = (self.head,)
        self._label_ids = {label: i for i, label in enumerate(self.labels)}
        self._class_weights: Tensor | None = None
        if config.balance and frequencies:
            counts = torch.tensor(frequencies, dtype=torch.float32).clamp(min=1)
            if config.kind == "labels":
                self._class_weights = (num_records - counts).clamp(min=1) / counts
            else:
                # The mean over the training data is 1.
                self._class_weights = counts.sum() / (len(counts) * counts)

    def corrupt(self, example: Example, rng: np.random.Generator) -> Example:
        return example

    def counts(self, batch: Batch) -> dict[str, int]:
        return {self.config.name: len(batch.cu_seqlens) - 1}

    @classmethod
    def with_answer(cls, records: Sequence[Any]) -> list[Any]:
        """Return the records whose answer is known."""
        return [record for record in records if getattr(record, cls.answer_field) is not None]

    @classmethod
    def from_records(cls, config: TaskConfig, records: Sequence[Any]) -> "Task":
        """Return the task of training records; of a task without labels, with what `config` leaves to detection."""
        return cls(config)

    @classmethod
    def split_groups(cls, records: Sequence[Any]) -> tuple[Sequence[Hashable], str] | None:
        """Return the group of each record, none of which a split divides, and their description; None for no groups."""
        return None

    @abstractmethod
    def scored_positions(self, batch: Batch) -> Int[Tensor, "R"] | None:
        """Return the positions whose hidden states the head needs; None for all."""

    def scores(self, model: Model, states: Float[Tensor, "R D"], batch: Batch) -> Float[Tensor, "R C"]:
        """Return the logits of a batch, `num_scores` rows per example, in their order."""
        return model.heads[self.head](states)

    @abstractmethod
    def num_scores(self, example: Example) -> int:
        """Return the number of rows of logits of an example."""

    def loss(self, model: Model, states: Float[Tensor, "R D"], batch: Batch) -> dict[str, LossSum]:
        return {self.config.name: self.loss_from_scores(self.scores(model, states, batch), batch)}

    @abstractmethod
    def loss_from_scores(self, scores: Float[Tensor, "R C"], batch: Batch) -> LossSum:
        """Return the summed loss of a batch from its logits."""

    def make_record(self, value: Any, location: str) -> Any:
        """Return the record of one input of `Pipeline.predict`, named `location` in errors."""
        parts = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Sequence) else ()
        record = self._parse_input(value, parts, location)
        if record is None:
            is_empty = not parts or not all(str(part).strip() for part in parts)
            expected = self.input_format + (", not empty" if is_empty else "")
            raise DataError(f"{location.capitalize()} is {value!r:.80}. Expected {expected}.")
        return record

    @abstractmethod
    def _parse_input(self, value: Any, parts: tuple[Any, ...], location: str) -> Any | None:
        """Return the record of an input and its parts; None if the form is wrong."""

    def encode(self, records: Sequence[Any], tokenizer: Tokenizer, *, max_length: int) -> TaskExamples:
        """Encode records, with or without answers, as examples of at most `max_length` tokens."""
        counts: Counter[str] = Counter()
        lengths: list[int] = []
        encoded = list(self._encode(records, tokenizer, max_length, counts, lengths))
        owners = np.array([owner for owner, *_ in encoded], np.int64)
        # Unary plus drops counts of zero.
        return TaskExamples([x for _, x, _ in encoded], owners, [scored for *_, scored in encoded], +counts, lengths)

    @abstractmethod
    def _encode(
        self, records: Sequence[Any], tokenizer: Tokenizer, max_length: int, counts: Counter[str], lengths: list[int]
    ) -> Iterator[tuple[int, Example, Any]]:
        """Yield the index of a record, its example (or one of several), and what its logits refer to.

        `counts` and `lengths` receive what was cut, and the tokens of each record (or option) before cutting.
        """

    @abstractmethod
    def decode(self, scores: Logits, examples: TaskExamples, records: Sequence[Any]) -> list[Any]:
        """Return one prediction per record from the logits of the examples."""

    def compute_metrics(
        self, predictions: Sequence[Any], records: Sequence[Any]
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Return the metrics of the records with an answer, and details such as a confusion matrix."""
        pairs = zip(records, predictions, strict=True)
        return self.metrics_of([self.outcome(r, p) for r, p in pairs if getattr(r, self.answer_field) is not None])

    @abstractmethod
    def outcome(self, record: Any, prediction: Any) -> Any:
        """Return what the metrics need of a record and its prediction: little, as it is kept for all records."""

    def metrics_of(self, outcomes: Sequence[Any]) -> tuple[dict[str, float], dict[str, Any]]:
        """Return the metrics of outcomes, and details."""
        results = self._evaluate(outcomes)
        metrics = {key: value for key, value in results.items() if isinstance(value, float)}
        return metrics, {key: value for key, value in results.items() if key not in metrics}

    def weak_results(
        self,
        records: Sequence[Any],
        predictions: Sequence[Any],
        metrics: Mapping[str, float],
        details: Mapping[str, Any],
    ) -> Iterator[str]:
        """Yield how predictions of dev records are no better than those of a model that has learned nothing."""
        yield from ()

    @abstractmethod
    def _evaluate(self, outcomes: Sequence[Any]) -> dict[str, Any]:
        """Return the metrics (floats) and details of outcomes."""

    def during_training(self) -> "Task":
        """Return the task as evaluations during training score it."""
        return self

    def tune(self, metrics: dict[str, float], predictions: Sequence[Any]) -> list[str]:
        """Tune decision thresholds on predictions of the dev data, and return notes about them."""
        return []

    @abstractmethod
    def to_row(self, record: Any, prediction: Any) -> dict[str, Any]:
        """Return a record and its prediction as a row of an output file."""

    def table_columns(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row of `to_row` with the columns of a table, whose cells hold no objects."""
        return {name: value for name, value in row.items() if name != "probabilities"}

    @abstractmethod
    def to_report_example(self, record: Any, prediction: Any) -> ReportExample: ...

    def report_details(self, record: Any, prediction: Any, index: int, outputs: TaskOutputs) -> dict[str, Any]:
        """Return additional report entries of record number `index` that need the logits."""
        return {}

    def metadata(self) -> dict[str, Any]:
        """Return what a saved model stores about its task; `load_labelled_task` reads it."""
        metadata: dict[str, Any] = {"labels": list(self.labels), "problem_type": self.problem_type}
        metadata |= {**asdict(self.config), "entities": self.has_entities, "language": self.language}
        if self.targets is not None:
            names = ("target_mean", "target_std", "is_standardized", "target_offset")
            offset = self.targets[0] if self.target_offset is None else self.target_offset
            metadata |= zip(names, (*self.targets, self.is_standardized, offset), strict=True)
        return metadata if self.symbols is None else {**metadata, "symbol_map": asdict(self.symbols)}

    def load_metadata(self, metadata: dict[str, Any]) -> None:
        """Restore what `metadata` stores beyond settings and labels."""
        if "symbol_map" in metadata:
            self.symbols = SymbolMap(**metadata["symbol_map"])
        if "target_mean" in metadata:
            self.targets = (metadata["target_mean"], metadata["target_std"])
        self.language = metadata.get("language", "en")
