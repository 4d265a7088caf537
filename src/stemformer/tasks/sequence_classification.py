"""Classification, multi-label classification and regression of texts and pairs (Devlin et al. 2019, section 4.1)."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from sys import intern
from typing import Any

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.special import softmax
from torch import Tensor

from stemformer.data.examples.batch import Batch, Example
from stemformer.data.labelled.text_classification import TextExample
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.objectives.losses import LossSum, cross_entropy_sum
from stemformer.tasks.examples import TaskExamples, make_example, num_special_tokens, sliding_windows, truncate_pair
from stemformer.tasks.metrics import classification_metrics, format_metric, multi_label_metrics, regression_metrics
from stemformer.tasks.task import Logits, ReportExample, Task, TaskConfig

# Columns of predictions in output files; input columns of these names get the prefix `input_`.
_PREDICTION_COLUMNS = ("prediction", "probability", "probabilities")
# Before the name of a label: its column of probabilities in tables of multi-label classification.
_LABEL_COLUMN = "probability_"


@dataclass(frozen=True)
class TextPrediction:
    """Prediction for a text or a pair of texts."""

    # The most probable class, or the predicted labels joined by commas; "" for regression.
    label: str
    # The number of regression, otherwise the probability of the (most probable) label.
    score: float
    # Of each label, in the task's order; empty for regression.
    probabilities: tuple[float, ...]
    # Predicted labels of multi-label classification.
    labels: tuple[str, ...] = ()


class SequenceClassification(Task):
    """The tasks `classify` (one text) and `pair` (two texts), of any `kind`."""

    head = "sequence"
    answer_field = "label"
    input_fields = ("texts",)
    formats = (".jsonl", ".csv", ".tsv")
    column_titles = ("text", "answer")

    def __init__(
        self, config: TaskConfig, labels: Sequence[str] = (), frequencies: Sequence[int] = (), num_records: int = 0
    ) -> None:
        super().__init__(config, labels, frequencies, num_records)
        self.input_format = "(text, text)" if config.name == "pair" else "a text"
        self.problem_type, self.main_metric = {
            "class": ("single_label_classification", "accuracy"),
            "labels": ("multi_label_classification", "micro_f1"),
            "score": ("regression", "pearson"),
        }[config.kind]
        if config.kind == "score":
            self.num_labels = 1

    def scored_positions(self, batch: Batch) -> Int[Tensor, "S"]:
        return batch.summary_positions

    def num_scores(self, example: Example) -> int:
        return 1

    def loss_from_scores(self, scores: Float[Tensor, "S C"], batch: Batch) -> LossSum:
        targets = batch.sequence_labels
        assert targets is not None
        if self.config.kind == "class":
            smoothing = self.config.label_smoothing
            return cross_entropy_sum(scores, targets, weights=self._class_weights, label_smoothing=smoothing)
        if self.config.kind == "labels":
            # Mean over labels.
            weights = None if self._class_weights is None else self._class_weights.to(scores.device)
            losses = F.binary_cross_entropy_with_logits(scores.float(), targets, pos_weight=weights, reduction="sum")
            total = losses / len(self.labels)
            is_correct = ((scores.sigmoid() >= self.config.positive) == (targets > 0.5)).all(-1)
            return LossSum(total, len(targets), is_correct.sum())
        # In standard deviations of the training targets.
        mean, std = self.targets or (0.0, 1.0)
        predicted = scores[:, 0].float()
        offset = 0.0 if self.target_offset is None else (self.target_offset - mean) / std
        predicted = predicted + offset if self.is_standardized else (predicted - mean) / std
        return LossSum(F.mse_loss(predicted, (targets - mean) / std, reduction="sum"), len(targets), None)

    def weak_results(
        self,
        records: Sequence[Any],
        predictions: Sequence[Any],
        metrics: Mapping[str, float],
        details: Mapping[str, Any],
    ) -> Iterator[str]:
        error = "root_mean_squared_error"
        constant: Mapping[str, float] = details.get("baseline", {})
        if error in constant and metrics[error] >= constant[error]:
            measured = f"{error} {format_metric(error, constant[error])}"
            yield f"not better than predicting the mean of the training scores ({measured})"
        if self.config.kind == "labels" and not metrics["micro_f1"]:
            yield "no label of the dev data is found (micro_f1 0)"

    def _parse_input(self, value: Any, parts: tuple[Any, ...], location: str) -> TextExample | None:
        is_right = all(isinstance(part, str) and part.strip() for part in parts)
        # A model from elsewhere may read pairs.
        is_right &= len(parts) in ((2,) if self.config.name == "pair" else (1,) if self.config.text else (1, 2))
        return TextExample(parts, None, {}, location) if is_right else None

    def _encode(
        self,
        records: Sequence[TextExample],
        tokenizer: Tokenizer,
        max_length: int,
        counts: Counter[str],
        lengths: list[int],
    ) -> Iterator[tuple[int, Example, None]]:
        texts = [record.texts for record in records]
        if self.symbols is not None:
            texts = [tuple(self.symbols.apply(x, location=r.location, counts=counts) for x in r.texts) for r in records]
        room = max_length - num_special_tokens(tokenizer, num_texts=len(texts[0]) if texts else 1)
        columns = [tokenizer.encode_ids(column) for column in zip(*texts, strict=True)]
        for number, record in enumerate(records):
            lengths.append(sum(len(column[number]) for column in columns))
            for parts in self._fit([column[number] for column in columns], room, counts):
                yield number, make_example(parts, tokenizer, answer=self._target(record)), None

    def _fit(self, parts: list[np.ndarray], room: int, counts: Counter[str]) -> list[list[np.ndarray]]:
        """Return the parts that fit into `room` tokens, for each window."""
        if sum(map(len, parts)) <= room:
            return [parts]
        if len(parts) > 1:
            counts["pairs truncated"] += 1
            lengths = truncate_pair(len(parts[0]), len(parts[1]), room)
            return [[part[:n] for part, n in zip(parts, lengths, strict=True)]]
        ids = parts[0]
        if self.config.long_texts == "cut":
            counts["texts truncated"] += 1
            return [[ids[:room]]]
        if self.config.long_texts == "head_tail":
            counts["texts truncated in the middle"] += 1
            head = round(room / 4)
            return [[np.concatenate([ids[:head], ids[len(ids) - (room - head) :]])]]
        counts["texts split into windows"] += 1
        return [[ids[a:b]] for a, b in sliding_windows(len(ids), room, 0)]

    def _target(self, record: TextExample) -> object:
        if record.label is None:
            return None
        if self.config.kind == "score":
            return np.float32(record.label)  # type: ignore[arg-type]
        if self.config.kind == "labels":
            return np.array([label in record.label for label in self.labels], np.float32)  # type: ignore[operator]
        # None for a label that the training data lacks.
        return self._label_ids.get(str(record.label))

    def decode(self, scores: Logits, examples: TaskExamples, records: Sequence[TextExample]) -> list[TextPrediction]:
        x = np.concatenate(list(scores)).astype(np.float64) if len(scores) else np.zeros((0, self.num_labels))
        if self.config.kind == "class":
            x = softmax(x, axis=-1)
        elif self.config.kind == "labels":
            x = 1 / (1 + np.exp(-x))
        elif self.is_standardized and self.targets is not None:
            mean, std = self.targets
            x = x * std + (mean if self.target_offset is None else self.target_offset)
        # Mean over the windows of each record.
        means = np.zeros((len(records), x.shape[1]))
        np.add.at(means, examples.records, x)
        means /= np.maximum(1, np.bincount(examples.records, minlength=len(records)))[:, None]
        return [self._to_prediction(row) for row in means]

    def _to_prediction(self, row: Float[np.ndarray, "C"]) -> TextPrediction:
        if self.config.kind == "score":
            return TextPrediction("", float(row[0]), ())
        if self.config.kind == "class":
            best = int(row.argmax())
            return TextPrediction(self.labels[best], float(row[best]), tuple(row.tolist()))
        labels = tuple(label for label, p in zip(self.labels, row, strict=True) if p >= self.config.positive)
        return TextPrediction(",".join(labels), float(row.max()), tuple(row.tolist()), labels)

    def outcome(self, record: TextExample, prediction: TextPrediction) -> tuple[Any, Any]:
        """Return the right and the predicted class (each text once in memory), score or labels."""
        if self.config.kind == "class":
            return intern(str(record.label)), prediction.label
        return record.label, prediction.score if self.config.kind == "score" else prediction.labels

    def _evaluate(self, outcomes: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
        if self.config.kind == "score":
            right, predicted = np.array(outcomes, float).reshape(-1, 2).T
            metrics = regression_metrics(right, predicted)
            if self.targets is None:
                return dict(metrics)
            constant = regression_metrics(right, np.full(len(right), self.targets[0]))
            # A constant has no correlation.
            return {**metrics, "baseline": {name: value for name, value in constant.items() if name.endswith("error")}}
        if self.config.kind == "labels":
            table = np.array([[[label in side for label in self.labels] for side in pair] for pair in outcomes], bool)
            return multi_label_metrics(table[:, 0], table[:, 1], self.labels)
        # Labels that the training data lacks are never predicted.
        names = [*self.labels, *sorted({label for label, _ in outcomes} - set(self.labels))]
        ids = {label: i for i, label in enumerate(names)}
        right, predicted = np.array([(ids[a], ids[b]) for a, b in outcomes], int).reshape(-1, 2).T
        return {**classification_metrics(right, predicted, names), "labels": names}

    def to_row(self, record: TextExample, prediction: TextPrediction) -> dict[str, Any]:
        row: dict[str, Any] = dict(record.row) or {f"text{i + 1}": text for i, text in enumerate(record.texts)}
        row = {self._input_column(name, row): value for name, value in row.items()}
        if self.config.kind == "score":
            values: list[Any] = [prediction.score]
        else:
            by_label = dict(zip(self.labels, prediction.probabilities, strict=True))
            answer = list(prediction.labels) if self.config.kind == "labels" else prediction.label
            values = [answer, prediction.score, by_label]
        # Empty texts have no prediction.
        values = values if all(record.texts) else [None] * len(values)
        return row | dict(zip(_PREDICTION_COLUMNS, values, strict=False))

    def table_columns(self, row: Mapping[str, Any]) -> dict[str, Any]:
        if self.config.kind != "labels":
            return super().table_columns(row)
        # One probability says little: that of each label.
        by_label = row["probabilities"] or {}
        each = {f"{_LABEL_COLUMN}{label}": by_label.get(label) for label in self.labels}
        return {name: value for name, value in row.items() if name not in _PREDICTION_COLUMNS[1:]} | each

    def _input_column(self, name: str, row: Mapping[str, Any]) -> str:
        own = {*_PREDICTION_COLUMNS, *(f"{_LABEL_COLUMN}{x}" for x in self.labels if self.config.kind == "labels")}
        new = name
        while new in own or (new != name and new in row):
            new = f"input_{new}"
        return new

    def to_report_example(self, record: TextExample, prediction: TextPrediction) -> ReportExample:
        entry: dict[str, Any] = {"texts": list(record.texts), "gold": record.label, "predicted": prediction.label}
        if self.config.kind == "score":
            error = abs(prediction.score - record.label)  # type: ignore[operator]
            return error, True, {**entry, "predicted": prediction.score}
        if self.config.kind == "labels":
            assert isinstance(record.label, tuple)
            wrong = set(prediction.labels) ^ set(record.label)
            entry |= {"gold": list(record.label), "predicted": list(prediction.labels)}
            return float(len(wrong)), bool(wrong), entry
        label_id = self._label_ids.get(str(record.label))
        entry |= {"probability": prediction.score}
        if label_id is None:
            # A label that the training data lacks has no loss: after the other wrong ones.
            return -np.inf, True, {**entry, "loss": None}
        loss = -float(np.log(max(prediction.probabilities[label_id], 1e-30)))
        return loss, prediction.label != record.label, {**entry, "loss": loss}
