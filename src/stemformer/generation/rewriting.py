"""Rewrite texts with an encoder-decoder."""

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from stemformer.data.examples.encoder_decoder import NUM_START_TOKENS, SourcePiece, source_pieces
from stemformer.data.text.readers import check_decoded
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.errors import DataError
from stemformer.generation.beam_search import BeamConfig, Hypothesis, search_beams
from stemformer.models.inference.cached_bart import BartTextDecoder
from stemformer.models.model import Model
from stemformer.progress import format_count
from stemformer.tasks.seq2seq import RewritePrediction, WrittenPiece, join_pieces


@dataclass
class Rewriter:
    """An encoder-decoder and how it rewrites texts, block by block.

    Args:
        limit_of: As for `decode_sources`.
        parse_special_tokens: Whether the name of a special token in a text, such as that of a mask, is this token.
        long_sources: Cut texts of more tokens than the model was trained on, or split them at sentence ends; None
            refuses them.
        max_sentences: Sentences of a piece of a text that is split.
        languages: Tokens of the languages of the texts and of what is written, in the place of `<s>`.
        counts: Number of texts that were blank, split or cut, and that ran into their maximum length.
    """

    model: Model
    tokenizer: Tokenizer
    config: BeamConfig
    batch_size: int
    limit_of: Callable[[int], int]
    parse_special_tokens: bool = True
    long_sources: Literal["cut", "split"] | None = None
    max_sentences: int | None = None
    languages: tuple[int | None, int | None] = (None, None)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._room = self.model.max_length - NUM_START_TOKENS
        self._decoder = BartTextDecoder(self.model, rows=self.batch_size * self.config.num_beams)

    def split(self, number: int, text: str) -> list[SourcePiece]:
        """Return the pieces of text `number`; of a blank text none.

        Raises:
            DataError: It is not a text, has no token, or more than the model was trained on.
        """
        if not isinstance(text, str):
            raise DataError(f"Text {number} is {text!r:.60}. Expected text.")
        check_decoded(text, f"Text {number}")
        if not (text := text.strip()):
            return []
        ids = self._encode(text)
        if not len(ids) or (len(ids) > self._room and self.long_sources is None):
            advice = ", or pass --long-sources split or cut" if len(ids) else ""
            problem = f"Text {number} ({text!r:.60}) has {format_count(len(ids), 'token')}"
            raise DataError(f"{problem}. Expected 1 to {self._room}: shorten it{advice}.")
        how: dict[str, Any] = {"long_sources": self.long_sources or "cut", "max_sentences": self.max_sentences}
        return source_pieces(text, self._encode, max_tokens=self._room, ids=ids, **how)

    def _encode(self, text: str) -> np.ndarray:
        return np.asarray(self.tokenizer.encode(text, parse_special_tokens=self.parse_special_tokens).ids, np.int64)

    def rewrite(
        self, texts: Sequence[str], *, first_number: int = 1, on_batch: Callable[[float], None] | None = None
    ) -> list[dict[str, Any]]:
        """Return a result for each text of a block, whose texts are sorted by length and decoded in batches.

        Args:
            first_number: Number of the first text, for errors.
            on_batch: Called with the number of texts of each batch that is done, pieces as parts of one.

        Raises:
            DataError: As for `split`.
        """
        pieces = [self.split(number, text) for number, text in enumerate(texts, start=first_number)]
        self.counts["blank texts, for which nothing is written"] += sum(not parts for parts in pieces)
        self.counts["texts split at sentence ends"] += sum(len(parts) > 1 for parts in pieces)
        self.counts["texts truncated"] += sum(any(piece.is_cut for piece in parts) for parts in pieces)
        source_language, target_language = self.languages
        first = self.tokenizer.cls_token_id if source_language is None else source_language
        last = self.tokenizer.sep_token_id
        sources = [[first, *piece.ids.tolist(), last] for parts in pieces for piece in parts]
        advance = None if on_batch is None or not sources else partial(_advance, on_batch, len(texts) / len(sources))
        how: dict[str, Any] = {"batch_size": self.batch_size, "limit_of": self.limit_of, "on_batch": advance}
        how["first_tokens"] = None if target_language is None else [target_language] * len(sources)
        found = iter(decode_sources(sources, self._decoder, self.config, **how))
        results = []
        for text, parts in zip(texts, pieces, strict=True):
            written = [(next(found), WrittenPiece(self.tokenizer, piece.space)) for piece in parts]
            results.append(self._to_result(text, join_candidates(written, self.config.num_return_sequences)))
        return results

    def _to_result(self, text: str, found: Sequence[RewritePrediction]) -> dict[str, Any]:
        if not found:
            return {"text": text, "rewritten": None, "score": None, "is_complete": None}
        self.counts["texts that ran into the maximum length and may lack an end"] += not found[0].is_complete
        candidates = [{"rewritten": candidate.text, "score": candidate.score} for candidate in found]
        result = {"text": text, **candidates[0], "is_complete": found[0].is_complete}
        return result if self.config.num_return_sequences == 1 else {**result, "candidates": candidates}


def _advance(on_batch: Callable[[float], None], share: float, number: int) -> None:
    on_batch(share * number)


def decode_sources(
    sources: Sequence[Sequence[int]],
    model: Model | BartTextDecoder,
    config: BeamConfig,
    *,
    batch_size: int,
    limit_of: Callable[[int], int],
    first_tokens: Sequence[int] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> list[list[Hypothesis]]:
    """Return the best hypotheses of each source, which has its special tokens.

    Sources of similar length are decoded together; what is written for one does not depend on the others, but for
    rounding.

    Args:
        model: An encoder-decoder, or its `BartTextDecoder`, to prepare the weights once for several calls.
        limit_of: Maximum number of tokens to write by the length of a source, special tokens included.
        first_tokens: First token of the text of each source, that of its language; None for `<s>`.
        on_batch: Called with the number of sources of each batch that is done.
    """
    if isinstance(model, BartTextDecoder):
        decoder = model
    else:
        decoder = BartTextDecoder(model, rows=min(batch_size, len(sources)) * config.num_beams)
    results: list[list[Hypothesis]] = [[] for _ in sources]
    order = np.argsort([-len(source) for source in sources], kind="stable").tolist()
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        batch = [sources[i] for i in numbers]
        decoder.first_tokens = None if first_tokens is None else [first_tokens[i] for i in numbers]
        how: dict[str, Any] = {"num_forced": 0 if first_tokens is None else 1}
        found = search_beams(decoder, batch, config, limits=[limit_of(len(source)) for source in batch], **how)
        for i, hypotheses in zip(numbers, found, strict=True):
            results[i] = hypotheses
        if on_batch is not None:
            on_batch(len(batch))
    return results


def join_candidates(
    pieces: Sequence[tuple[Sequence[Hypothesis], WrittenPiece]], number: int
) -> list[RewritePrediction]:
    """Return the best texts, the best first, that join one hypothesis of each piece of a source.

    Piece by piece, the best beginnings are extended by each hypothesis of the next piece.
    """
    best: list[list[tuple[Hypothesis, WrittenPiece]]] = [[]] if pieces else []
    for hypotheses, piece in pieces:
        extended = [[*beginning, (hypothesis, piece)] for beginning in best for hypothesis in hypotheses]
        best = heapq.nlargest(number, extended, key=lambda parts: join_pieces(parts).score)
    return [join_pieces(parts) for parts in best]
