"""A tag for each word, aligned to word pieces by character offsets.

A word is represented by its first piece, and by its last one where the model reads from left to right: there the first has not seen
the rest of the word.

Source: Devlin et al. 2019, section 5.3 (the first piece; no conditional random field on top).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stemformer.data.examples.batch import Batch, Example
from stemformer.data.labelled.token_classification import TaggedSentence
from stemformer.data.tokenization.tokenizer import Encoding, Tokenizer
from stemformer.models.model import Model
from stemformer.objectives.losses import LossSum, cross_entropy_sum
from stemformer.tasks.examples import TaskExamples, make_example, num_special, sliding_windows
from stemformer.tasks.task import TaskConfig

IGNORE_INDEX = -100
"""In the place of a tag that was not trained: PyTorch's losses leave it out."""


@dataclass(frozen=True)
class TagPrediction:
    """The tags of a sentence.

    Attributes:
        tags: One a word. A word that the tokenizer has no piece for gets `Tag.filler`.
        probabilities: Of each tag; 0 for such a word.
    """

    tags: tuple[str, ...]
    probabilities: tuple[float, ...]


class Tag:
    """The task of tagging words.

    Args:
        config: Settings.
        labels: Tags, in the order of the scores.
        frequencies: How often each tag stands in the training data, for `config.balance` and for the filler.
    """

    head = "token"
    heads: tuple[str, ...] = ("token",)
    problem_type = None

    def __init__(self, config: TaskConfig, labels: Sequence[str], frequencies: Sequence[int] | None = None) -> None:
        self.config = config
        self.labels = tuple(labels)
        self.num_labels = len(self.labels)
        self.filler = "O" if "O" in self.labels else self.labels[0]
        self._number = {label: i for i, label in enumerate(self.labels)}
        self._weights: Tensor | None = None
        if config.balance and frequencies is not None:
            counts = torch.tensor(frequencies, dtype=torch.float32).clamp(min=1)
            self._weights = counts.sum() / (len(counts) * counts)

    def corrupt(self, passage: Example, rng: np.random.Generator) -> Example:
        """Returns the example as it is."""
        return passage

    def counts(self, batch: Batch) -> dict[str, int]:
        """Returns how many words of a batch are scored."""
        return {self.config.name: int((batch.labels != IGNORE_INDEX).sum())}

    def places(self, batch: Batch) -> Int[Tensor, "R"]:
        """Returns the tokens of a batch whose states are needed: the scored words."""
        return batch.label_positions

    def scores(self, model: Model, states: Tensor, batch: Batch) -> Float[Tensor, "M C"]:
        """Returns a row of scores for each word that is scored."""
        scores: Tensor = model.heads["token"](states)
        return scores

    def num_scores(self, example: Example) -> int:
        """Returns how many rows of scores an example has: one a word that it scores."""
        return len(example.label_positions)

    def loss(self, model: Model, states: Tensor, batch: Batch) -> dict[str, LossSum]:
        """Returns the summed loss of a batch from the states of its places."""
        return {self.config.name: self.loss_of(self.scores(model, states, batch), batch)}

    def loss_of(self, scores: Float[Tensor, "M C"], batch: Batch) -> LossSum:
        """Returns the summed cross-entropy over words."""
        smoothing = self.config.label_smoothing
        return cross_entropy_sum(scores, batch.labels, weights=self._weights, label_smoothing=smoothing)

    def encode(self, records: Sequence[TaggedSentence], tokenizer: Tokenizer, *, max_length: int) -> TaskExamples:
        """Returns an example for each sentence, several for one that is longer; each word is scored once.

        Args:
            records: With tags that the task knows, or without.
            tokenizer: Of the model.
            max_length: Tokens of an example, special ones included.
        """
        find_pieces = first_pieces if tokenizer.bos_token_id is None else last_pieces
        room = max_length - num_special(tokenizer, num_texts=1)
        counted: Counter[str] = Counter()
        examples: list[Example] = []
        owners: list[int] = []
        scored: list[np.ndarray] = []
        for number, (record, encoded) in enumerate(
            zip(records, tokenizer.encode_batch([r.text for r in records]), strict=True)
        ):
            pieces = find_pieces(record, encoded)
            if lost := int((pieces < 0).sum()):
                counted["words without a piece (filled in)"] += lost
            spans = sliding_windows(len(encoded.ids), room, self.config.stride)
            counted["sentences read in windows"] += len(spans) > 1
            tags = self._numbers(record)
            for span, (begin, end) in enumerate(spans):
                words = np.flatnonzero((pieces >= 0) & (_best_window(pieces, spans) == span))
                at = pieces[words] - begin + 1
                ids = encoded.ids[begin:end]
                examples.append(make_example([ids], tokenizer, label_positions=at, labels=tags[words]))
                owners.append(number)
                scored.append(words)
        return TaskExamples(examples, np.array(owners, np.int64), scored, {k: n for k, n in counted.items() if n})

    def _numbers(self, record: TaggedSentence) -> Int[np.ndarray, "w"]:
        if record.tags is None:
            return np.full(len(record.words), IGNORE_INDEX)
        return np.array([self._number.get(tag, IGNORE_INDEX) for tag in record.tags], np.int64)

    def decode(
        self, scores: Sequence[Float[np.ndarray, "_ c"]], examples: TaskExamples, records: Sequence[TaggedSentence]
    ) -> list[TagPrediction]:
        """Returns the tags of each sentence.

        Args:
            scores: Of each example.
            examples: What they are of.
            records: What the examples are of.
        """
        tags = [[self.filler] * len(record.words) for record in records]
        probabilities = [[0.0] * len(record.words) for record in records]
        for rows, owner, words in zip(scores, examples.records.tolist(), examples.scored, strict=True):
            x = np.exp(rows.astype(np.float64) - rows.max(-1, keepdims=True))
            best, p = rows.argmax(-1), x.max(-1) / x.sum(-1)
            for word, number, probability in zip(words.tolist(), best.tolist(), p.tolist(), strict=True):
                tags[owner][word], probabilities[owner][word] = self.labels[number], probability
        return [TagPrediction(tuple(t), tuple(p)) for t, p in zip(tags, probabilities, strict=True)]


def first_pieces(record: TaggedSentence, encoded: Encoding) -> Int[np.ndarray, "w"]:
    """Returns the number of the first piece that begins in each word; -1 for a word that has none."""
    begins = encoded.offsets[:, 0]
    bounds = np.array(record.offsets, np.int64).reshape(-1, 2)
    firsts = np.searchsorted(begins, bounds[:, 0])
    found = np.minimum(firsts, max(0, len(begins) - 1))
    is_inside = (firsts < len(begins)) & (begins[found] < bounds[:, 1]) if len(begins) else np.zeros(len(bounds), bool)
    return np.where(is_inside, firsts, -1)


def last_pieces(record: TaggedSentence, encoded: Encoding) -> Int[np.ndarray, "w"]:
    """Returns the number of the last piece that begins before each word ends; -1 for a word of which it holds nothing.

    A byte-level piece begins with the space before its word.
    """
    begins, ends = encoded.offsets.T
    bounds = np.array(record.offsets, np.int64).reshape(-1, 2)
    lasts = np.searchsorted(begins, bounds[:, 1]) - 1
    is_inside = (lasts >= 0) & (ends[lasts] > bounds[:, 0]) if len(ends) else np.zeros(len(bounds), bool)
    return np.where(is_inside, lasts, -1)


def _best_window(places: Int[np.ndarray, "w"], spans: Sequence[tuple[int, int]]) -> Int[np.ndarray, "w"]:
    """Returns the window in which each place has most context on its poorer side."""
    begins, ends = (np.array(x)[:, None] for x in zip(*spans, strict=True))
    context = np.minimum(places - begins, ends - 1 - places)
    best: np.ndarray = context.argmax(0)
    return best
