"""Rewriting texts: translation, summaries, simplification, correction; an encoder-decoder writes the target.

Source: Lewis et al. 2020, section 3.4 (sequence generation); Szegedy et al. 2016, section 7 (label smoothing).
"""

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stemformer.data.examples.batch import Batch, Example
from stemformer.data.examples.encoder_decoder import (
    NUM_START_TOKENS,
    SPARE_TOKENS,
    make_encoder_decoder_example,
    max_target_tokens,
    source_pieces,
)
from stemformer.data.labelled.sequence_pairs import SourceTarget
from stemformer.data.labelled.splits import connected_groups
from stemformer.data.text.sentences import sentence_ends
from stemformer.data.tokenization.tokenizer import Tokenizer, plain_code
from stemformer.data.tokenization.trainers import check_language
from stemformer.errors import ConfigError, DataError, TokenizerError
from stemformer.models.model import Model
from stemformer.objectives.losses import LossSum, linear_cross_entropy_sum
from stemformer.tasks.dataset_notes import plain_text
from stemformer.tasks.examples import TaskExamples
from stemformer.tasks.metrics import format_metric
from stemformer.tasks.rewriting_metrics import rewriting_metrics, sentence_chrf
from stemformer.tasks.task import ReportExample, Task, TaskConfig

# Quantile of the ratio of lengths of training pairs that a written text may have, and of their sources' sentences.
_LENGTH_QUANTILE, _SENTENCE_QUANTILE = 0.999, 0.95

# Attributes that a saved model has.
_STORED = ("max_length_ratio", "max_source_sentences", "most_frequent_target")
_SIDES = ("source", "target")
# What the baselines do, for notes.
_BASELINES = {
    "copy": "returning the source",
    "truncate": "truncating the source",
    "constant": "writing the most frequent target of the training data",
}


@dataclass(frozen=True)
class RewritePrediction:
    """A written text, the mean log probability of its tokens in nats, and whether it ended by itself."""

    text: str
    score: float
    is_complete: bool


@dataclass(frozen=True)
class WrittenPiece:
    """Piece of a text to write: the tokenizer of its tokens, and the white space after it."""

    tokenizer: Tokenizer
    space: str
    # Token before those that are written, of the target's language; None for `<s>`.
    first_token: int | None = None


def join_pieces(pieces: Sequence[tuple[Any, WrittenPiece]]) -> RewritePrediction:
    """Return the text of one hypothesis for each piece of a source, with the mean of their scores by token."""
    texts = [_text_of(found.ids, piece.tokenizer) + piece.space for found, piece in pieces]
    sizes = [max(1, len(found.ids)) for found, _ in pieces]
    total = sum(size * found.score for size, (found, _) in zip(sizes, pieces, strict=True))
    return RewritePrediction("".join(texts).strip(), total / sum(sizes), all(found.is_complete for found, _ in pieces))


def _text_of(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """Return the text of written tokens; those around a text, which a poor model repeats, are no part of it."""
    around = {tokenizer.cls_token_id, tokenizer.sep_token_id, *tokenizer.language_ids.values()}
    return tokenizer.decode([number for number in ids if number not in around]).strip()


def find_languages(config: TaskConfig, pairs: Sequence[SourceTarget]) -> list[str]:
    """Return the languages of the config and of all pairs, each in one spelling, for a new vocabulary.

    Raises:
        DataError: A column has a language that is no code.
    """
    # Where a language of a column occurs first.
    found: dict[str, str] = {}
    for pair in pairs:
        for column, code in zip(config.language_columns, pair.languages, strict=True):
            if code is not None:
                found.setdefault(code.strip("_"), f"{pair.location}: Column '{column}'")
    for code, location in found.items():
        try:
            check_language(code)
        except TokenizerError as error:
            raise DataError(f"{location}: {error}") from error
    fixed = (code.strip("_") for code in (config.source_language, config.target_language) if code is not None)
    # Of several spellings the last in this order, which is that of lower case.
    return sorted({plain_code(code): code for code in sorted({*found, *fixed})}.values())


class LanguageTokens:
    """Tokens of the languages of sources and targets, those of the config or of each record."""

    def __init__(self, config: TaskConfig, tokenizer: Tokenizer) -> None:
        self._config, self._tokenizer = config, tokenizer
        self._ids: dict[str, int] = {}
        # Known before the first record.
        self._fixed = self._find(config.source_language), self._find(config.target_language)

    def find(self, record: SourceTarget) -> tuple[int | None, int | None]:
        """Return the tokens of a record's languages, each None if there is none; raise DataError of unknown ones."""
        if self._config.language_columns == (None, None):
            return self._fixed
        found = []
        sides = zip(_SIDES, self._config.language_columns, record.languages, self._fixed, strict=True)
        for side, column, code, fixed in sides:
            if column is not None and code is None:
                problem = f"{record.location}: The {side} language is missing, which the model was trained with"
                raise DataError(f"{problem}. Set it, in Python with `with_languages`.")
            try:
                found.append(fixed if column is None else self._find(code))
            except TokenizerError as error:
                raise DataError(f"{record.location}: {error}") from error
        return found[0], found[1]

    def _find(self, code: str | None) -> int | None:
        if code is None:
            return None
        if code not in self._ids:
            self._ids[code] = self._tokenizer.language_id(code)
        return self._ids[code]


class Seq2Seq(Task):
    """The task `seq2seq`: to write a target for each source."""

    head = "seq2seq_lm"
    answer_field = "targets"
    input_fields = ("source",)
    formats = (".jsonl", ".csv", ".tsv")
    input_format = "a text"
    column_titles = ("source", "target")
    writes_texts = True
    main_metric = "bleu"
    shown_metrics = ("loss", "source_gain", "bleu", "chrf", "cut")

    # Tokens of targets for each token of a source, of nearly all training pairs.
    max_length_ratio: float | None = None
    # Sentences of a source, of nearly all training pairs.
    max_source_sentences: int | None = None
    # The most frequent target of the training pairs, a baseline.
    most_frequent_target: str | None = None
    # Number of examples that are written in an evaluation, without baselines; None: all.
    num_written: int | None = None

    @classmethod
    def from_records(cls, config: TaskConfig, records: Sequence[SourceTarget]) -> "Seq2Seq":
        task = cls(config)
        targets = Counter(record.targets[0] for record in records if record.targets)
        task.most_frequent_target = targets.most_common(1)[0][0]
        return task

    @classmethod
    def split_groups(cls, records: Sequence[SourceTarget]) -> tuple[Sequence[Hashable], str]:
        # No text is on both sides, neither as source nor as target.
        texts = [[plain_text(text) for text in (r.source, *(r.targets or ()))] for r in records]
        return connected_groups(texts), "equal sources or targets kept together"

    def with_languages(
        self,
        source_language: str | None = None,
        target_language: str | None = None,
        *,
        source_language_column: str | None = None,
        target_language_column: str | None = None,
    ) -> "Seq2Seq":
        """Return the task with other languages, or columns of them; raise ConfigError if it was trained without."""
        task, config = copy(self), self.config
        sides = {
            "source": (source_language, source_language_column),
            "target": (target_language, target_language_column),
        }
        for side, found in sides.items():
            names = (f"{side}_language", f"{side}_language_column")
            if found == (None, None):
                continue
            if None not in found:
                options = " and ".join(f"--{name.replace('_', '-')}" for name in names)
                raise ConfigError(f"{options} are both there. Pass one of them.")
            if all(getattr(config, name) is None for name in names):
                raise ConfigError(f"The model was fine-tuned without a {side} language. Remove --{side}-language.")
            changes: dict[str, Any] = dict(zip(names, found, strict=True))
            config = replace(config, **changes)
        task.config = config
        return task

    def during_training(self) -> "Seq2Seq":
        """Return the task as evaluations during training score it: a part of the texts, written greedily."""
        task = copy(self)
        task.config = replace(self.config, num_beams=1)
        task.num_written = self.config.num_written
        return task

    def max_new_tokens(self, source_length: int, positions: int) -> int:
        """Return the maximum number of tokens, the end included, to write for a source of some tokens."""
        ratio = {} if self.max_length_ratio is None else {"ratio": self.max_length_ratio}
        return max_target_tokens(source_length, positions, **ratio)

    def counts(self, batch: Batch) -> dict[str, int]:
        return {self.config.name: len(batch.labels)}

    def scored_positions(self, batch: Batch) -> Int[Tensor, "M"]:
        return batch.label_positions

    def num_scores(self, example: Example) -> int:
        return 0

    def scores(self, model: Model, states: Float[Tensor, "M D"], batch: Batch) -> Float[Tensor, "M V"]:
        return model.lm_logits(states)

    def loss(self, model: Model, states: Float[Tensor, "M D"], batch: Batch) -> dict[str, LossSum]:
        # Smoothing is for training.
        smoothing = self.config.label_smoothing if torch.is_grad_enabled() else 0.0
        projection = model.lm_projection(states)
        return {self.config.name: linear_cross_entropy_sum(*projection, batch.labels, label_smoothing=smoothing)}

    def loss_from_scores(self, scores: Float[Tensor, "R C"], batch: Batch) -> LossSum:
        raise NotImplementedError("Texts are written, not scored.")

    def _parse_input(self, value: Any, parts: tuple[Any, ...], location: str) -> SourceTarget | None:
        is_text = isinstance(value, str) and bool(value.strip())
        return SourceTarget(value, None, location) if is_text else None

    def _encode(
        self,
        records: Sequence[SourceTarget],
        tokenizer: Tokenizer,
        max_length: int,
        counts: Counter[str],
        lengths: list[int],
    ) -> Iterator[tuple[int, Example, WrittenPiece]]:
        sources = tokenizer.encode_ids([record.source for record in records])
        targets = tokenizer.encode_ids([record.targets[0] if record.targets else "" for record in records])
        room, cls, sep = max_length - NUM_START_TOKENS, tokenizer.cls_token_id, tokenizer.sep_token_id
        if self.max_length_ratio is None and records and records[0].targets is not None:
            self._measure(records, sources, targets)

        def encode(part: str) -> np.ndarray:
            return tokenizer.encode_ids([part])[0]

        split: dict[str, Any] = {"long_sources": self.long_sources, "max_sentences": self.max_source_sentences}
        languages = LanguageTokens(self.config, tokenizer)
        for number, (record, source, target) in enumerate(zip(records, sources, targets, strict=True)):
            source_id, target_id = languages.find(record)
            source_id = cls if source_id is None else source_id
            lengths.append(max(len(source), len(target)))
            pieces = source_pieces(record.source, encode, max_tokens=room, ids=source, **split)
            counts["sources split at sentence ends"] += len(pieces) > 1
            counts["sources truncated"] += any(piece.is_cut for piece in pieces)
            counts["targets truncated"] += len(target) > room
            # A target has no pieces.
            kept = [] if record.targets is None or len(pieces) > 1 else [target[:room]]
            for piece in pieces:
                first = cls if target_id is None else target_id
                example = make_encoder_decoder_example([piece.ids], kept, cls=source_id, sep=sep, target_cls=first)
                yield number, example, WrittenPiece(tokenizer, piece.space, target_id)

    def _measure(
        self, records: Sequence[SourceTarget], sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]
    ) -> None:
        """Measure training pairs: how long a text to write may be, and how many sentences a source has."""
        pairs = zip(sources, targets, strict=True)
        ratios = [max(0, len(target) - SPARE_TOKENS) / max(1, len(source)) for source, target in pairs]
        self.max_length_ratio = round(max(1.0, float(np.quantile(ratios, _LENGTH_QUANTILE))), 3)
        sentences = [len(sentence_ends(record.source)) for record in records]
        self.max_source_sentences = max(1, int(np.quantile(sentences, _SENTENCE_QUANTILE, method="higher")))

    def decode(
        self, scores: Sequence[Any], examples: TaskExamples, records: Sequence[SourceTarget]
    ) -> list[RewritePrediction | None]:
        """Return the text of the best hypothesis of each record (`generation.beam_search`); None if none was written.

        The texts of the pieces of a source are joined by the white space between these; the score is the mean by token.
        """
        pieces: list[list[tuple[Any, WrittenPiece]]] = [[] for _ in records]
        for owner, found, piece in zip(examples.records.tolist(), scores, examples.scored, strict=True):
            if found is not None and not isinstance(found, np.ndarray):
                pieces[owner].append((found, piece))
        return [join_pieces(written) if written else None for written in pieces]

    def compute_metrics(
        self, predictions: Sequence[Any], records: Sequence[Any]
    ) -> tuple[dict[str, float], dict[str, Any]]:
        written = [(p, r) for p, r in zip(predictions, records, strict=True) if p is not None]
        if not written:
            return rewriting_metrics([])
        return super().compute_metrics(*zip(*written, strict=True))

    def outcome(
        self, record: SourceTarget, prediction: RewritePrediction
    ) -> tuple[str, tuple[str, ...] | None, str, bool]:
        return record.source, record.targets, prediction.text, prediction.is_complete

    def weak_results(
        self,
        records: Sequence[Any],
        predictions: Sequence[Any],
        metrics: Mapping[str, float],
        details: Mapping[str, Any],
    ) -> Iterator[str]:
        for row in details.get("baselines", ()):
            if metrics["bleu"] <= row["bleu"] < 100:
                bleu = format_metric("bleu", row["bleu"])
                yield f"not better than {_BASELINES[row['baseline']]} (bleu {bleu})"
                return

    def _evaluate(self, outcomes: Sequence[Any]) -> dict[str, Any]:
        constant, with_baselines = self.most_frequent_target, self.num_written is None
        metrics, details = rewriting_metrics(outcomes, constant=constant, with_baselines=with_baselines)
        return {**metrics, **details}

    def to_row(self, record: SourceTarget, prediction: RewritePrediction) -> dict[str, Any]:
        found = (prediction.text, prediction.score, prediction.is_complete)
        # Empty texts have no prediction.
        values = found if record.source else (None,) * 3
        row = {"source": record.source, **dict(zip(("prediction", "score", "is_complete"), values, strict=True))}
        return row if record.targets is None else {**row, "targets": list(record.targets)}

    def to_report_example(self, record: SourceTarget, prediction: RewritePrediction) -> ReportExample:
        assert record.targets is not None
        chrf = sentence_chrf(prediction.text, record.targets)
        is_right = prediction.text in record.targets
        entry: dict[str, Any] = {"texts": [record.source], "gold": record.targets[0], "predicted": prediction.text}
        return 100 - chrf, not is_right, {**entry, "chrf": round(chrf, 1)}

    def metadata(self) -> dict[str, Any]:
        stored = {name: getattr(self, name) for name in _STORED}
        return {**super().metadata(), **stored, "long_sources": self.long_sources}

    def load_metadata(self, metadata: dict[str, Any]) -> None:
        super().load_metadata(metadata)
        for name in _STORED:
            setattr(self, name, metadata.get(name))
        # Earlier versions did not store it.
        self.long_sources = metadata.get("long_sources", "cut")
