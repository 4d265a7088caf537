"""Token classification: a tag for each word, aligned to tokens by character offsets.

Source: Devlin et al. 2019, section 5.3: a word is represented by its first token, without a conditional
random field on top. In causal models it is the last token, the only one that has seen the word. Of a BART the first token
is represented by the decoder's state (`objectives.objective.with_text_in_decoder`; Lewis et al. 2020, section 3.2).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from sys import intern
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import softmax
from torch import Tensor

from stemformer.data.examples.batch import IGNORE_INDEX, Batch, Example
from stemformer.data.labelled.token_classification import (
    TaggedSentence,
    as_bioes,
    has_entity_tags,
    join_tokens,
    repair_entity_tags,
)
from stemformer.data.tokenization.tokenizer import Encoding, Tokenizer
from stemformer.objectives.losses import LossSum, cross_entropy_sum
from stemformer.tasks.examples import TaskExamples, make_example, num_special_tokens, sliding_windows
from stemformer.tasks.metrics import tagging_metrics
from stemformer.tasks.task import Logits, ReportExample, Task, TaskConfig


@dataclass(frozen=True)
class TagPrediction:
    """Prediction for a sentence: a tag for each word and its probability, 0 for a word without a token."""

    tags: tuple[str, ...]
    probabilities: tuple[float, ...]


class TokenClassification(Task):
    """The task `tag`."""

    head = "token"
    answer_field = "tags"
    input_fields = ("words",)
    input_format = "a text or a list of words"
    formats = (".jsonl", ".conll")

    def __init__(
        self, config: TaskConfig, labels: Sequence[str], frequencies: Sequence[int] = (), num_records: int = 0
    ) -> None:
        super().__init__(config, labels, frequencies, num_records)
        self.has_entities = has_entity_tags(self.labels)
        self.main_metric = "f1" if self.has_entities else "accuracy"
        # Tag for words without a token.
        self.filler = "O" if "O" in self.labels else self.labels[0]

    def counts(self, batch: Batch) -> dict[str, int]:
        # Words with a known tag.
        return {self.config.name: int((batch.labels != IGNORE_INDEX).sum())}

    def scored_positions(self, batch: Batch) -> Int[Tensor, "M"]:
        return batch.label_positions

    def num_scores(self, example: Example) -> int:
        return len(example.label_positions)

    def loss_from_scores(self, scores: Float[Tensor, "M C"], batch: Batch) -> LossSum:
        smoothing = self.config.label_smoothing
        return cross_entropy_sum(scores, batch.labels, weights=self._class_weights, label_smoothing=smoothing)

    def weak_results(
        self,
        records: Sequence[Any],
        predictions: Sequence[Any],
        metrics: Mapping[str, float],
        details: Mapping[str, Any],
    ) -> Iterator[str]:
        if self.has_entities and not metrics["f1"]:
            yield "no entity of the dev data is found (f1 0)"

    def _parse_input(self, value: Any, parts: tuple[Any, ...], location: str) -> TaggedSentence | None:
        words = tuple(value.split()) if isinstance(value, str) else parts
        if not words or not all(isinstance(word, str) and word for word in words):
            return None
        text, offsets = join_tokens(words)
        return TaggedSentence(words=words, tags=None, location=location, text=text, offsets=offsets)

    def _encode(
        self,
        records: Sequence[TaggedSentence],
        tokenizer: Tokenizer,
        max_length: int,
        counts: Counter[str],
        lengths: list[int],
    ) -> Iterator[tuple[int, Example, Int[np.ndarray, "w"]]]:
        find_tokens = first_tokens if tokenizer.bos_token_id is None else last_tokens
        room = max_length - num_special_tokens(tokenizer, num_texts=1)
        encodings = tokenizer.encode_batch([r.text for r in records])
        for number, (record, encoding) in enumerate(zip(records, encodings, strict=True)):
            lengths.append(len(encoding.ids))
            tokens = find_tokens(record, encoding)
            counts["words without a token (default tag)"] += int((tokens < 0).sum())
            windows = sliding_windows(len(encoding.ids), room, self.config.stride)
            counts["sentences split into windows"] += len(windows) > 1
            label_ids = np.full(len(record.words), IGNORE_INDEX)
            if record.tags is not None:
                label_ids[:] = [self._label_ids.get(tag, IGNORE_INDEX) for tag in record.tags]
            # Each word is scored once, in the window with most context on its shorter side.
            starts, ends = np.array(windows).T[:, :, None]  # (windows, 1)
            best_window = np.minimum(tokens - starts, ends - 1 - tokens).argmax(0)  # (w,)
            for window, (start, end) in enumerate(windows):
                words = np.flatnonzero((tokens >= 0) & (best_window == window))
                positions, labels = tokens[words] - start + 1, label_ids[words]
                example = make_example([encoding.ids[start:end]], tokenizer, label_positions=positions, labels=labels)
                yield number, example, words

    def decode(self, scores: Logits, examples: TaskExamples, records: Sequence[TaggedSentence]) -> list[TagPrediction]:
        tags = [[self.filler] * len(record.words) for record in records]
        probabilities = [[0.0] * len(record.words) for record in records]
        for rows, owner, words in zip(scores, examples.records.tolist(), examples.scored, strict=True):
            best = rows.argmax(-1).tolist()
            p = softmax(rows.astype(np.float64), axis=-1).max(-1).tolist()
            for word, label_id, probability in zip(words.tolist(), best, p, strict=True):
                tags[owner][word], probabilities[owner][word] = self.labels[label_id], probability
        return [TagPrediction(tuple(t), tuple(p)) for t, p in zip(tags, probabilities, strict=True)]

    def outcome(self, record: TaggedSentence, prediction: TagPrediction) -> tuple[Sequence[str], ...]:
        return tuple(intern(str(tag)) for tag in record.tags or ()), prediction.tags

    def _evaluate(self, outcomes: Sequence[tuple[Sequence[str], ...]]) -> dict[str, Any]:
        gold, predicted = ([outcome[i] for outcome in outcomes] for i in range(2))
        return tagging_metrics(gold, predicted, entities=self.has_entities)

    def to_row(self, record: TaggedSentence, prediction: TagPrediction) -> dict[str, Any]:
        row: dict[str, Any] = {"words": list(record.words), "tags": list(prediction.tags)}
        row["probabilities"] = list(prediction.probabilities)
        if record.tags is not None:
            row["gold"] = list(record.tags)
        return {**row, "entities": _find_entities(record, prediction.tags)} if self.has_entities else row

    def to_report_example(self, record: TaggedSentence, prediction: TagPrediction) -> ReportExample:
        assert record.tags is not None
        num_wrong = sum(a != b for a, b in zip(record.tags, prediction.tags, strict=True))
        entry = {"words": list(record.words), "gold": list(record.tags), "predicted": list(prediction.tags)}
        return float(num_wrong), num_wrong > 0, entry


def first_tokens(record: TaggedSentence, encoding: Encoding) -> Int[np.ndarray, "w"]:
    """Return the index of the first token that has a part of each word; -1 for a word without one."""
    begins, ends = np.array(record.offsets, np.int64).reshape(-1, 2).T
    # Byte-level tokens start at the space before their word.
    firsts = np.searchsorted(encoding.offsets[:, 1], begins, side="right")
    starts = np.append(encoding.offsets[:, 0], np.iinfo(np.int64).max)
    return np.where(starts[firsts] < ends, firsts, -1)


def last_tokens(record: TaggedSentence, encoding: Encoding) -> Int[np.ndarray, "w"]:
    """Return the index of the last token that starts before each word ends; -1 for a word without one."""
    begins, ends = np.array(record.offsets, np.int64).reshape(-1, 2).T
    # Byte-level tokens start at the space before their word.
    lasts = np.searchsorted(encoding.offsets[:, 0], ends) - 1
    # Index -1, of a word before all tokens, is the appended end.
    return np.where(np.append(encoding.offsets[:, 1], -1)[lasts] > begins, lasts, -1)


def _find_entities(record: TaggedSentence, tags: Sequence[str]) -> list[dict[str, Any]]:
    """Return the entities of a sentence with their character offsets."""
    entities: list[dict[str, Any]] = []
    for (begin, end), tag in zip(record.offsets, as_bioes(repair_entity_tags(tags)[0]), strict=True):
        kind = tag.partition("-")[2]
        if tag.startswith(("I-", "E-")) and entities and entities[-1]["type"] == kind:
            entities[-1]["end"] = end
        elif kind:
            entities.append({"type": kind, "begin": begin, "end": end})
    return [{**entity, "text": record.text[entity["begin"] : entity["end"]]} for entity in entities]
