"""Multiple choice: options, each paired with a text, compete in a softmax. Source: Devlin et al. 2019, section 4.4."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from statistics import fmean
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import softmax
from torch import Tensor

from stemformer.data.examples.batch import Batch, Example
from stemformer.data.labelled.multiple_choice import ChoiceQuestion
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.objectives.losses import LossSum
from stemformer.tasks.examples import TaskExamples, make_example, truncate_pair
from stemformer.tasks.metrics import classification_metrics
from stemformer.tasks.task import Logits, ReportExample, Task


@dataclass(frozen=True)
class ChoicePrediction:
    """Index of the chosen option, and the probability of each."""

    choice: int
    probabilities: tuple[float, ...]


class MultipleChoice(Task):
    """The task `choice`. It has no labels: the options belong to the records."""

    head = "choice"
    answer_field = "answer"
    input_fields = ("prompt", "second", "choices")
    input_format = "(text, options)"
    num_logits = 1

    def counts(self, batch: Batch) -> dict[str, int]:
        return {self.config.name: len(batch.example_numbers)}

    def scored_positions(self, batch: Batch) -> Int[Tensor, "S"]:
        return batch.cu_seqlens[:-1].long()

    def num_scores(self, example: Example) -> int:
        return len(example.lengths)

    def loss_from_scores(self, scores: Float[Tensor, "S 1"], batch: Batch) -> LossSum:
        assert batch.sequence_labels is not None
        scores = scores[:, 0].float()
        option, is_right = batch.sequence_labels.unbind(1)  # (S,)
        question = (option == 0).cumsum(0) - 1  # (S,)
        number, width = len(batch.example_numbers), int(option.max()) + 1
        padded = scores.new_full((number, width), -torch.inf).index_put((question, option), scores)
        targets = option[is_right == 1]
        total = torch.nn.functional.cross_entropy(padded, targets, reduction="sum")
        return LossSum(total, number, (padded.argmax(-1) == targets).sum())

    def weak_results(
        self,
        records: Sequence[Any],
        predictions: Sequence[Any],
        metrics: Mapping[str, float],
        details: Mapping[str, Any],
    ) -> Iterator[str]:
        if metrics["accuracy"] <= (chance := fmean(1 / len(r.choices) for r in records)) < 1:
            yield f"not better than chance, which is right for {chance:.1%} of the dev data"

    def _parse_input(self, value: Any, parts: tuple[Any, ...], location: str) -> ChoiceQuestion | None:
        if len(parts) != 2 or not isinstance(parts[0], str) or isinstance(parts[1], str) or not parts[1]:
            return None
        return ChoiceQuestion(location, parts[0], "", tuple(parts[1]), None)

    def _encode(
        self,
        records: Sequence[ChoiceQuestion],
        tokenizer: Tokenizer,
        max_length: int,
        counts: Counter[str],
        lengths: list[int],
    ) -> Iterator[tuple[int, Example, None]]:
        prompts = tokenizer.encode_ids([r.prompt for r in records])
        options = iter(tokenizer.encode_ids([f"{r.second} {c}".strip() for r in records for c in r.choices]))
        for index, (record, prompt) in enumerate(zip(records, prompts, strict=True)):
            # One sequence per option.
            sequences = []
            for number, option in enumerate(islice(options, len(record.choices))):
                lengths.append(len(prompt) + len(option))
                kept = truncate_pair(len(prompt), len(option), max_length - 3)
                counts["options truncated"] += kept != (len(prompt), len(option))
                parts = [prompt[: kept[0]], option[: kept[1]]]
                target = None if record.answer is None else np.array([number, int(number == record.answer)])
                sequences.append(make_example(parts, tokenizer, answer=target))
            yield index, _concatenate(sequences), None

    def decode(
        self, scores: Logits, examples: TaskExamples, records: Sequence[ChoiceQuestion]
    ) -> list[ChoicePrediction]:
        probabilities = [softmax(rows[:, 0].astype(np.float64)) for rows in scores]
        return [ChoicePrediction(int(p.argmax()), tuple(p.tolist())) for p in probabilities]

    def outcome(self, record: ChoiceQuestion, prediction: ChoicePrediction) -> tuple[int | None, int]:
        return record.answer, prediction.choice

    def _evaluate(self, outcomes: Sequence[tuple[int, int]]) -> dict[str, Any]:
        gold, predicted = np.array(outcomes, int).reshape(-1, 2).T
        names = [str(i) for i in range(int(max(gold.max(initial=0), predicted.max(initial=0))) + 1)]
        return {"accuracy": classification_metrics(gold, predicted, names)["accuracy"]}

    def to_row(self, record: ChoiceQuestion, prediction: ChoicePrediction) -> dict[str, Any]:
        row = {"id": record.id, "prompt": record.prompt, "second": record.second, "choices": list(record.choices)}
        row |= {"prediction": record.choices[prediction.choice], **asdict(prediction)}
        return row if record.answer is None else {**row, "gold": record.choices[record.answer]}

    def to_report_example(self, record: ChoiceQuestion, prediction: ChoicePrediction) -> ReportExample:
        assert record.answer is not None
        loss = -float(np.log(max(prediction.probabilities[record.answer], 1e-30)))
        entry: dict[str, Any] = {"id": record.id, "prompt": " ".join(x for x in (record.prompt, record.second) if x)}
        entry |= {"choices": list(record.choices), "probabilities": list(prediction.probabilities)}
        entry |= {"gold": record.choices[record.answer], "predicted": record.choices[prediction.choice], "loss": loss}
        return loss, prediction.choice != record.answer, entry


def _concatenate(sequences: Sequence[Example]) -> Example:
    names = ["input_ids", "lengths", "label_positions", "labels", "token_type_ids"]
    names += [] if sequences[0].sequence_labels is None else ["sequence_labels"]
    columns: dict[str, Any] = {name: np.concatenate([getattr(s, name) for s in sequences]) for name in names}
    return Example(**columns)
