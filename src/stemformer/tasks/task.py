"""What the tasks share: their settings, and examples made from labelled records."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from stemformer.data.examples.batch import Batch, Example
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.errors import ConfigError
from stemformer.models.model import Model
from stemformer.objectives.losses import LossSum
from stemformer.tasks.examples import TaskExamples


@dataclass(frozen=True)
class TaskConfig:
    """A labelled problem, but for its data.

    Attributes:
        name: `classify`, `pair`, `tag`, `qa` or `choice`.
        kind: Of `classify` and `pair`: one `class` a text, any number of `labels`, or a `score`.
        text: Columns that hold the texts; found by name and content where none is given.
        label: Column of the answer; found likewise.
        max_length: Tokens of an example, special ones included; the model's positions if None. Nothing is padded, so shorter texts
            cost no more for a longer limit.
        long_texts: What `classify` does with a text that is longer. `windows` reads it in parts and takes the mean of their
            probabilities; `head_tail` keeps 1/4 of the room for its beginning and 3/4 for its end (Sun et al. 2019); `cut` its beginning.
        stride: Tokens that a window of `tag` and `qa` shares with the one before.
        label_smoothing: Share of the probability that is spread evenly over all labels.
        balance: Classes weigh as if they were equally frequent.
        positive: Of `labels`: from which probability a label is given.
        max_answer_tokens: Of `qa`: longest answer.
        no_answer: Of `qa`: questions may have no answer; None looks whether some in the training data have none.
        symbols: Texts of `classify` and `pair` are sequences of symbols, such as DNA, each read as a word of the model's vocabulary:
            `draw` draws the words by the seed, else a file with a symbol, a tab and its word a line.
        symbol_size: How many symbols a drawn word stands for.
        symbol_stride: How many symbols on the next word begins.
        alphabet: Symbols for which words are drawn, all others sharing one; by default those that are frequent in the training data.

    Source of `symbols`: Kao and Lee 2021 (a BERT pre-trained on text learns other sequences by a random map).
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
        if self.max_length is not None and self.max_length < 8:
            raise ConfigError(f"task.max_length is {self.max_length}: expected at least 8")
        if self.stride < 0:
            raise ConfigError(f"task.stride is {self.stride}: expected 0 or more")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"task.label_smoothing is {self.label_smoothing}: expected a number in [0, 1)")
        if not 0 < self.positive < 1:
            raise ConfigError(f"task.positive is {self.positive}: expected a probability between 0 and 1")
        if self.max_answer_tokens < 1:
            raise ConfigError(f"task.max_answer_tokens is {self.max_answer_tokens}: expected at least 1")
        if self.symbols is not None and self.name not in ("classify", "pair"):
            raise ConfigError(f"task.symbols: sequences of symbols are for classify and pair, not for {self.name}")
        if self.symbols != "draw" and (self.symbol_size, self.symbol_stride, self.alphabet) != (1, 1, None):
            raise ConfigError(
                "task.symbol_size, symbol_stride and alphabet say how words are drawn: add symbols=draw; in a file, the symbols "
                "themselves say it"
            )
        if not 1 <= self.symbol_stride <= max(1, self.symbol_size):
            raise ConfigError(
                f"task.symbol_size is {self.symbol_size}, symbol_stride {self.symbol_stride}: expected 1 or more, and a stride that "
                "leaves no symbol out"
            )
        if self.kind != "class" and self.name not in ("classify", "pair"):
            raise ConfigError(f"task.kind is {self.kind!r}: {self.name} has no kinds")
        if self.kind != "class" and (self.balance or self.label_smoothing):
            raise ConfigError(f"task.balance and label_smoothing are for classes, not for {self.kind}: leave them out")


@runtime_checkable
class Task(Protocol):
    """A labelled problem: it is to `training.loop` what an objective of pre-training is, and knows how to encode and decode beside.

    Attributes:
        config: Its settings.
        labels: What its head tells apart, in the order of the scores; empty for numbers and spans.
        head: Name of its head.
        heads: The same in a tuple.
        num_labels: Scores that the head gives.
    """

    config: TaskConfig
    labels: tuple[str, ...]
    head: str
    heads: tuple[str, ...]
    num_labels: int

    def corrupt(self, passage: Example, rng: np.random.Generator) -> Example:
        """Returns the example as it is: nothing is hidden."""

    def counts(self, batch: Batch) -> dict[str, int]:
        """Returns how many answers of a batch are scored, by the name of the loss."""

    def places(self, batch: Batch) -> Tensor | None:
        """Returns the tokens of a batch whose last states are needed; None for all."""

    def loss(self, model: Model, states: Tensor, batch: Batch) -> dict[str, LossSum]:
        """Returns the summed loss of a batch from the states (R, D) of its places."""

    def loss_of(self, scores: Tensor, batch: Batch) -> LossSum:
        """Returns the same from the scores."""

    def scores(self, model: Model, states: Tensor, batch: Batch) -> Tensor:
        """Returns the scores of a batch, `num_scores` rows an example, in their order."""

    def num_scores(self, example: Example) -> int:
        """Returns how many rows of scores an example has."""

    def encode(self, records: Sequence[Any], tokenizer: Tokenizer, *, max_length: int) -> TaskExamples:
        """Returns examples of records; those without an answer can be predicted, not trained on."""

    def decode(
        self, scores: Sequence[Float[np.ndarray, "_ c"]], examples: TaskExamples, records: Sequence[Any]
    ) -> list[Any]:
        """Returns a prediction for each record from the scores of its examples."""
