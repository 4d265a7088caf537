"""Which of several options goes with a text.

Each option is a pair with the text; the state of its `[CLS]` gets one score, and the scores of a question's options compete.

Source: Devlin et al. 2019, section 4.4.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stemformer.data.examples.batch import Batch, Example
from stemformer.data.labelled.multiple_choice import ChoiceQuestion
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.models.model import Model
from stemformer.objectives.losses import LossSum
from stemformer.tasks.examples import TaskExamples, make_example, truncate_pair
from stemformer.tasks.task import TaskConfig


@dataclass(frozen=True)
class ChoicePrediction:
    """Which option a model takes.

    Attributes:
        choice: Its number, from 0.
        probabilities: Of each option.
    """

    choice: int
    probabilities: tuple[float, ...]


class Choice:
    """The task of multiple choice.

    Args:
        config: Settings.
        labels: None: the options are the record's own.
    """

    head = "choice"
    heads: tuple[str, ...] = ("choice",)
    problem_type = None

    def __init__(self, config: TaskConfig, labels: Sequence[str] = ()) -> None:
        self.config = config
        self.labels: tuple[str, ...] = ()
        self.num_labels = 1

    def corrupt(self, passage: Example, rng: np.random.Generator) -> Example:
        """Returns the example as it is."""
        return passage

    def counts(self, batch: Batch) -> dict[str, int]:
        """Returns how many questions of a batch are scored."""
        return {self.config.name: len(batch.example_numbers)}

    def places(self, batch: Batch) -> Int[Tensor, "R"]:
        """Returns the tokens of a batch whose states are needed: each `[CLS]`."""
        return batch.cu_seqlens[:-1].long()

    def scores(self, model: Model, states: Tensor, batch: Batch) -> Float[Tensor, "S 1"]:
        """Returns a score for each option."""
        scores: Tensor = model.heads["choice"](states)
        return scores

    def num_scores(self, example: Example) -> int:
        """Returns how many rows of scores an example has: one an option."""
        return len(example.lengths)

    def loss(self, model: Model, states: Tensor, batch: Batch) -> dict[str, LossSum]:
        """Returns the summed loss of a batch from the states of its places."""
        return {self.config.name: self.loss_of(self.scores(model, states, batch), batch)}

    def loss_of(self, scores: Float[Tensor, "S 1"], batch: Batch) -> LossSum:
        """Returns the summed cross-entropy of the right option among those of its question."""
        assert batch.sequence_labels is not None
        scores = scores[:, 0].float()
        place, is_right = batch.sequence_labels.unbind(
            1
        )  # (S,) number of the option in its question; whether it is the answer
        question = (place == 0).cumsum(0) - 1
        number, width = len(batch.example_numbers), int(place.max()) + 1
        block = scores.new_full((number, width), -torch.inf).index_put((question, place), scores)
        answers = place[is_right == 1]
        total = torch.nn.functional.cross_entropy(block, answers, reduction="sum")
        return LossSum(total, number, (block.argmax(-1) == answers).sum())

    def encode(self, records: Sequence[ChoiceQuestion], tokenizer: Tokenizer, *, max_length: int) -> TaskExamples:
        """Returns an example for each question, with a sequence for each option.

        Args:
            records: Questions with their answers, or without.
            tokenizer: Of the model.
            max_length: Tokens of a sequence, special ones included.
        """
        counted: Counter[str] = Counter()
        prompts = tokenizer.encode_ids([r.prompt for r in records])
        options = iter(tokenizer.encode_ids([f"{r.second} {c}".strip() for r in records for c in r.choices]))
        examples = []
        for record, prompt in zip(records, prompts, strict=True):
            sequences = []
            for number in range(len(record.choices)):
                option = next(options)
                kept = truncate_pair(len(prompt), len(option), max_length - 3)
                counted["options cut to fit"] += kept != (len(prompt), len(option))
                answer = None if record.answer is None else np.array([number, int(number == record.answer)])
                sequences.append(make_example([prompt[: kept[0]], option[: kept[1]]], tokenizer, answer=answer))
            examples.append(_joined(sequences))
        return TaskExamples(examples, np.arange(len(records)), (), {k: n for k, n in counted.items() if n})

    def decode(
        self, scores: Sequence[Float[np.ndarray, "_ c"]], examples: TaskExamples, records: Sequence[ChoiceQuestion]
    ) -> list[ChoicePrediction]:
        """Returns the option taken for each question.

        Args:
            scores: Of each example.
            examples: What they are of.
            records: What the examples are of.
        """
        predictions = []
        for rows in scores:
            x = np.exp(rows[:, 0].astype(np.float64) - rows.max())
            predictions.append(ChoicePrediction(int(x.argmax()), tuple((x / x.sum()).tolist())))
        return predictions


def _joined(sequences: Sequence[Example]) -> Example:
    none = np.empty(0, np.int64)
    answers = [s.sequence_labels for s in sequences if s.sequence_labels is not None]
    return Example(
        np.concatenate([s.input_ids for s in sequences]),
        lengths=np.concatenate([s.lengths for s in sequences]),
        label_positions=none,
        labels=none,
        token_type_ids=np.concatenate([s.token_type_ids for s in sequences if s.token_type_ids is not None]),
        sequence_labels=np.concatenate(answers) if answers else None,
    )
