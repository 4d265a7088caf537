"""One text, or a pair of texts, to a class, to any number of labels, or to a number.

Source: Devlin et al. 2019, sections 4.1 (pairs and single texts) and appendix B.1.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stemformer.data.examples.batch import Batch, Example
from stemformer.data.labelled.symbol_map import SymbolMap
from stemformer.data.labelled.text_classification import TextExample
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.models.model import Model
from stemformer.objectives.losses import LossSum, cross_entropy_sum
from stemformer.tasks.examples import TaskExamples, make_example, num_special, sliding_windows, truncate_pair
from stemformer.tasks.task import TaskConfig

_HEAD_SHARE = 0.25
"""Of `head_tail`: the share of the room that the beginning of a text gets."""


@dataclass(frozen=True)
class TextPrediction:
    """What a model says about a text or a pair.

    Attributes:
        label: The likeliest class, or the labels joined by commas; "" for a number.
        labels: The labels of a text that may have any number of them; empty for other kinds.
        score: The number; for classes the probability of the label.
        probabilities: Of each class or label, in the task's order; empty for a number.
    """

    label: str
    score: float
    probabilities: tuple[float, ...]
    labels: tuple[str, ...] = ()


class Classify:
    """The task of one text (`classify`) or two (`pair`).

    Args:
        config: Settings; its kind says what is asked.
        labels: Classes or labels, in the order of the scores.
        frequencies: How often each class stands in the training data, for `config.balance`.

    Attributes:
        symbols: Which words texts are read as, where they are sequences of symbols.
    """

    head = "sequence"
    heads: tuple[str, ...] = ("sequence",)

    def __init__(
        self, config: TaskConfig, labels: Sequence[str] = (), frequencies: Sequence[int] | None = None
    ) -> None:
        self.config = config
        self.labels = tuple(labels)
        self.num_labels = 1 if config.kind == "score" else len(self.labels)
        self.symbols: SymbolMap | None = None
        self._number = {label: i for i, label in enumerate(self.labels)}
        self._weights: Tensor | None = None
        if config.balance and frequencies is not None:
            counts = torch.tensor(frequencies, dtype=torch.float32).clamp(min=1)
            self._weights = counts.sum() / (len(counts) * counts)  # mean 1 over the training data

    @property
    def problem_type(self) -> str:
        """Transformers' name for the kind."""
        return {"class": "single_label_classification", "labels": "multi_label_classification", "score": "regression"}[
            self.config.kind
        ]

    def corrupt(self, passage: Example, rng: np.random.Generator) -> Example:
        """Returns the example as it is."""
        return passage

    def counts(self, batch: Batch) -> dict[str, int]:
        """Returns how many texts of a batch are scored."""
        return {self.config.name: len(batch.cu_seqlens) - 1}

    def places(self, batch: Batch) -> Int[Tensor, "R"]:
        """Returns the tokens of a batch whose states are needed: each `[CLS]`, or where none is, each last token."""
        return batch.summary_positions

    def scores(self, model: Model, states: Tensor, batch: Batch) -> Float[Tensor, "S C"]:
        """Returns a row of scores for each sequence."""
        scores: Tensor = model.heads["sequence"](states)
        return scores

    def num_scores(self, example: Example) -> int:
        """Returns how many rows of scores an example has: one."""
        return 1

    def loss(self, model: Model, states: Tensor, batch: Batch) -> dict[str, LossSum]:
        """Returns the summed loss of a batch from the states of its places."""
        return {self.config.name: self.loss_of(self.scores(model, states, batch), batch)}

    def loss_of(self, scores: Float[Tensor, "S C"], batch: Batch) -> LossSum:
        """Returns the summed loss: cross-entropy, binary cross-entropy (mean over the labels), or squared error."""
        answers = batch.sequence_labels
        assert answers is not None
        if self.config.kind == "class":
            return cross_entropy_sum(
                scores, answers, weights=self._weights, label_smoothing=self.config.label_smoothing
            )
        if self.config.kind == "labels":
            total = F.binary_cross_entropy_with_logits(scores.float(), answers, reduction="sum") / len(self.labels)
            return LossSum(
                total, len(answers), ((scores.sigmoid() >= self.config.positive) == (answers > 0.5)).all(-1).sum()
            )
        return LossSum(F.mse_loss(scores[:, 0].float(), answers, reduction="sum"), len(answers), None)

    def encode(self, records: Sequence[TextExample], tokenizer: Tokenizer, *, max_length: int) -> TaskExamples:
        """Returns an example for each text or pair, several for a text that is read in windows.

        Args:
            records: With labels that the task knows, or without.
            tokenizer: Of the model.
            max_length: Tokens of an example, special ones included.
        """
        counted: Counter[str] = Counter()
        examples: list[Example] = []
        owners: list[int] = []
        given = [self._words(record, counted) for record in records]
        room = max_length - num_special(tokenizer, num_texts=len(given[0]) if given else 1)
        columns = [tokenizer.encode_ids(texts) for texts in zip(*given, strict=True)]
        for number, record in enumerate(records):
            parts = [column[number] for column in columns]
            for fitting in self._fit(parts, room, counted):
                examples.append(make_example(fitting, tokenizer, answer=self._answer(record)))
                owners.append(number)
        return TaskExamples(examples, np.array(owners, np.int64), (), {k: n for k, n in counted.items() if n})

    def _words(self, record: TextExample, counted: Counter[str]) -> tuple[str, ...]:
        if self.symbols is None:
            return record.texts
        return tuple(self.symbols.apply(text, place=record.place, counted=counted) for text in record.texts)

    def _fit(self, parts: list[np.ndarray], room: int, counted: Counter[str]) -> list[list[np.ndarray]]:
        if sum(map(len, parts)) <= room:
            return [parts]
        if len(parts) > 1:
            kept = truncate_pair(len(parts[0]), len(parts[1]), room)
            counted["pairs cut to fit"] += 1
            return [[part[:n] for part, n in zip(parts, kept, strict=True)]]
        ids = parts[0]
        if self.config.long_texts == "cut":
            counted["texts cut to fit"] += 1
            return [[ids[:room]]]
        if self.config.long_texts == "head_tail":
            counted["texts of which the middle was cut"] += 1
            head = round(room * _HEAD_SHARE)
            return [[np.concatenate([ids[:head], ids[len(ids) - (room - head) :]])]]
        counted["texts read in windows"] += 1
        return [[ids[a:b]] for a, b in sliding_windows(len(ids), room, 0)]

    def _answer(self, record: TextExample) -> object:
        if record.label is None:
            return None
        if self.config.kind == "score":
            return np.float32(record.label)  # type: ignore[arg-type]
        if self.config.kind == "labels":
            return np.array([label in record.label for label in self.labels], np.float32)  # type: ignore[operator]
        return self._number.get(str(record.label))  # one that was not trained: not scored

    def decode(
        self, scores: Sequence[Float[np.ndarray, "_ c"]], examples: TaskExamples, records: Sequence[TextExample]
    ) -> list[TextPrediction]:
        """Returns a prediction for each record; of one that was read in windows, by the mean of their probabilities.

        Args:
            scores: Of each example.
            examples: What they are of.
            records: What the examples are of.
        """
        x = np.concatenate(list(scores)).astype(np.float64) if len(scores) else np.zeros((0, self.num_labels))
        if self.config.kind == "class":
            x = np.exp(x - x.max(-1, keepdims=True))
            x /= x.sum(-1, keepdims=True)
        elif self.config.kind == "labels":
            x = 1 / (1 + np.exp(-x))
        owners = examples.records
        means = np.zeros((len(records), x.shape[1]))
        np.add.at(means, owners, x)
        means /= np.maximum(1, np.bincount(owners, minlength=len(records)))[:, None]
        return [self._prediction(row) for row in means]

    def _prediction(self, row: np.ndarray) -> TextPrediction:
        if self.config.kind == "score":
            return TextPrediction("", float(row[0]), ())
        if self.config.kind == "class":
            best = int(row.argmax())
            return TextPrediction(self.labels[best], float(row[best]), tuple(row.tolist()))
        given = tuple(label for label, p in zip(self.labels, row, strict=True) if p >= self.config.positive)
        return TextPrediction(",".join(given), float(row.max()), tuple(row.tolist()), given)
