"""Token classification: a tag for each word, aligned to tokens by character offsets.

A word is represented by its first token; in causal models, by its last token, the only one that has
seen the entire word.

Source: Devlin et al. 2019, section 5.3 (first token; no conditional random field on top).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import softmax
from torch import Tensor

from stemformer.data.examples.batch import IGNORE_INDEX, Batch, Example
from stemformer.data.labelled.token_classification import TaggedSentence, as_bioes, is_bio, join_tokens, repair_bio
from stemformer.data.tokenization.tokenizer import Encoding, Tokenizer
from stemformer.objectives.losses import LossSum, cross_entropy_sum
from stemformer.tasks.examples import TaskExamples, make_example, num_special_tokens, sliding_windows
from stemformer.tasks.metrics import tagging_metrics
from stemformer.tasks.task import Task, TaskConfig


@dataclass(frozen=True)
class TagPrediction:
    """Prediction for a sentence.

    Attributes:
        tags: One per word; `TokenClassification.filler` for a word without a token.
        probabilities: Of each tag; 0 for a word without a token.
    """

    tags: tuple[str, ...]
    probabilities: tuple[float, ...]


class TokenClassification(Task):
    """The task `tag`.

    Attributes:
        filler: Tag for words without a token: `O`, or the first label.
    """

    head = "token"
    input_format = "a text or a list of words"
    formats = (".jsonl", ".conll")

    def __init__(self, config: TaskConfig, labels: Sequence[str], frequencies: Sequence[int] | None = None) -> None:
        super().__init__(config, labels, frequencies)
        self.has_entities = is_bio(self.labels)
        self.main_metric = "f1" if self.has_entities else "accuracy"
        self.filler = "O" if "O" in self.labels else self.labels[0]

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return the number of words of a batch that have a known tag."""
        return {self.config.name: int((batch.labels != IGNORE_INDEX).sum())}

    def scored_positions(self, batch: Batch) -> Int[Tensor, "M"]:
        """Return the positions of the tokens that represent words."""
        return batch.label_positions

    def num_scores(self, example: Example) -> int:
        return len(example.label_positions)

    def loss_from_scores(self, scores: Float[Tensor, "M C"], batch: Batch) -> LossSum:
        """Return the summed cross-entropy over words."""
        smoothing = self.config.label_smoothing
        return cross_entropy_sum(scores, batch.labels, weights=self._class_weights, label_smoothing=smoothing)

    def _parse_input(self, value: Any, parts: tuple[Any, ...], location: str) -> TaggedSentence | None:
        words = tuple(value.split()) if isinstance(value, str) else parts
        if not words or not all(isinstance(word, str) and word for word in words):
            return None
        text, offsets = join_tokens(words)
        return TaggedSentence(words=words, tags=None, location=location, text=text, offsets=offsets)

    def encode(self, records: Sequence[TaggedSentence], tokenizer: Tokenizer, *, max_length: int) -> TaskExamples:
        """Encode each sentence as one example, or a long one as windows that score each word once."""
        find_tokens = first_tokens if tokenizer.bos_token_id is None else last_tokens
        room = max_length - num_special_tokens(tokenizer, num_texts=1)
        counts: Counter[str] = Counter()
        examples: list[Example] = []
        owners: list[int] = []
        scored: list[np.ndarray] = []
        encodings = tokenizer.encode_batch([r.text for r in records])
        for number, (record, encoding) in enumerate(zip(records, encodings, strict=True)):
            tokens = find_tokens(record, encoding)
            counts["words without a token (default tag)"] += int((tokens < 0).sum())
            windows = sliding_windows(len(encoding.ids), room, self.config.stride)
            counts["sentences split into windows"] += len(windows) > 1
            label_ids = self._to_label_ids(record)
            best_window = _best_window(tokens, windows)
            for window, (start, end) in enumerate(windows):
                words = np.flatnonzero((tokens >= 0) & (best_window == window))
                positions = tokens[words] - start + 1
                ids = encoding.ids[start:end]
                examples.append(make_example([ids], tokenizer, label_positions=positions, labels=label_ids[words]))
                owners.append(number)
                scored.append(words)
        return TaskExamples(examples, np.array(owners, np.int64), scored, {k: n for k, n in counts.items() if n})

    def _to_label_ids(self, record: TaggedSentence) -> Int[np.ndarray, "w"]:
        if record.tags is None:
            return np.full(len(record.words), IGNORE_INDEX)
        return np.array([self._label_ids.get(tag, IGNORE_INDEX) for tag in record.tags], np.int64)

    def decode(
        self, scores: Sequence[Float[np.ndarray, "_ c"]], examples: TaskExamples, records: Sequence[TaggedSentence]
    ) -> list[TagPrediction]:
        tags = [[self.filler] * len(record.words) for record in records]
        probabilities = [[0.0] * len(record.words) for record in records]
        for rows, owner, words in zip(scores, examples.records.tolist(), examples.scored, strict=True):
            best = rows.argmax(-1).tolist()
            p = softmax(rows.astype(np.float64), axis=-1).max(-1).tolist()
            for word, label_id, probability in zip(words.tolist(), best, p, strict=True):
                tags[owner][word], probabilities[owner][word] = self.labels[label_id], probability
        return [TagPrediction(tuple(t), tuple(p)) for t, p in zip(tags, probabilities, strict=True)]

    def _compute_metrics(
        self, predictions: Sequence[TagPrediction], records: Sequence[TaggedSentence]
    ) -> dict[str, Any]:
        known = [(r.tags, p.tags) for p, r in zip(predictions, records, strict=True) if r.tags is not None]
        return tagging_metrics([gold for gold, _ in known], [tags for _, tags in known], entities=self.has_entities)

    def to_row(self, record: TaggedSentence, prediction: TagPrediction) -> dict[str, Any]:
        row: dict[str, Any] = {
            "words": list(record.words),
            "tags": list(prediction.tags),
            "probabilities": list(prediction.probabilities),
        }
        if record.tags is not None:
            row["gold"] = list(record.tags)
        if self.has_entities:
            row["entities"] = _find_entities(record, prediction.tags)
        return row

    def to_report_example(
        self, record: TaggedSentence, prediction: TagPrediction
    ) -> tuple[float, bool, dict[str, Any]]:
        assert record.tags is not None
        num_wrong = sum(a != b for a, b in zip(record.tags, prediction.tags, strict=True))
        entry = {"words": list(record.words), "gold": list(record.tags), "predicted": list(prediction.tags)}
        return float(num_wrong), num_wrong > 0, entry


def first_tokens(record: TaggedSentence, encoding: Encoding) -> Int[np.ndarray, "w"]:
    """Return the index of the first token that starts in each word; -1 for a word without one."""
    starts = encoding.offsets[:, 0]
    bounds = np.array(record.offsets, np.int64).reshape(-1, 2)
    firsts = np.searchsorted(starts, bounds[:, 0])
    found = np.minimum(firsts, max(0, len(starts) - 1))
    is_inside = (firsts < len(starts)) & (starts[found] < bounds[:, 1]) if len(starts) else np.zeros(len(bounds), bool)
    return np.where(is_inside, firsts, -1)


def last_tokens(record: TaggedSentence, encoding: Encoding) -> Int[np.ndarray, "w"]:
    """Return the index of the last token that starts before each word ends; -1 for a word without one.

    A byte-level token starts at the space before its word.
    """
    starts, ends = encoding.offsets.T
    bounds = np.array(record.offsets, np.int64).reshape(-1, 2)
    lasts = np.searchsorted(starts, bounds[:, 1]) - 1
    is_inside = (lasts >= 0) & (ends[lasts] > bounds[:, 0]) if len(ends) else np.zeros(len(bounds), bool)
    return np.where(is_inside, lasts, -1)


def _best_window(positions: Int[np.ndarray, "w"], windows: Sequence[tuple[int, int]]) -> Int[np.ndarray, "w"]:
    """Return the window in which each position has most context on its shorter side."""
    starts, ends = (np.array(x)[:, None] for x in zip(*windows, strict=True))
    context = np.minimum(positions - starts, ends - 1 - positions)  # (windows, w)
    best: np.ndarray = context.argmax(0)
    return best


def _find_entities(record: TaggedSentence, tags: Sequence[str]) -> list[dict[str, Any]]:
    """Return the entities of a sentence with their character offsets."""
    entities: list[dict[str, Any]] = []
    for (begin, end), tag in zip(record.offsets, as_bioes(repair_bio(tags)[0]), strict=True):
        kind = tag.partition("-")[2]
        if tag.startswith(("I-", "E-")) and entities and entities[-1]["type"] == kind:
            entities[-1]["end"] = end
        elif kind:
            entities.append({"type": kind, "begin": begin, "end": end})
    return [{**entity, "text": record.text[entity["begin"] : entity["end"]]} for entity in entities]
