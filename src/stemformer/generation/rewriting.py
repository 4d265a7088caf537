"""Rewrite texts with an encoder-decoder."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, Literal

import numpy as np

from stemformer.data.examples.encoder_decoder import NUM_START_TOKENS, SourcePiece, split_source
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.errors import DataError
from stemformer.generation.beam_search import BeamConfig, Hypothesis, search_beams
from stemformer.models.inference.cached_bart import BartTextDecoder
from stemformer.models.model import Model
from stemformer.progress import format_count
from stemformer.tasks.seq2seq import WrittenPiece, join_pieces

# Texts that are read, sorted by length and rewritten together, of which one block is in memory.
_BLOCK_SIZE = 512


def rewrite_texts(
    texts: Iterable[str],
    model: Model,
    tokenizer: Tokenizer,
    config: BeamConfig,
    *,
    batch_size: int,
    limit_of: Callable[[int], int],
    parse_special_tokens: bool = True,
    long_sources: Literal["cut", "split"] | None = None,
    max_sentences: int | None = None,
    languages: tuple[int | None, int | None] = (None, None),
    counts: Counter[str] | None = None,
    on_batch: Callable[[float], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield what the decoder writes for each text, in order; texts are read and rewritten in blocks.

    Args:
        texts: A sequence is checked before the first of it is rewritten, any other iterable block by block.
        limit_of: As for `decode_sources`.
        parse_special_tokens: Whether the name of a special token in a text, such as that of a mask, is this token.
        long_sources: Cut texts of more tokens than the model was trained on, or split them at sentence ends; None
            refuses them.
        max_sentences: Sentences of a piece of a text that is split.
        languages: Tokens of the languages of the texts and of what is written, in the place of `<s>`.
        counts: Receives the number of texts that were split or cut.
        on_batch: Called with the number of texts of each batch that is done, pieces as parts of one.

    Raises:
        DataError: A text has no token, or more than the model was trained on.
    """
    room = model.max_length - NUM_START_TOKENS

    def split(number: int, text: str) -> list[SourcePiece]:
        options: dict[str, Any] = {"long_sources": long_sources, "max_sentences": max_sentences}
        return _pieces(text, number, tokenizer, room, parse_special_tokens, **options)

    if isinstance(texts, Sequence):
        for number, text in enumerate(texts, start=1):
            split(number, text)
    source_language, target_language = languages
    first = tokenizer.cls_token_id if source_language is None else source_language
    numbered = enumerate(texts, start=1)
    decoder = BartTextDecoder(model, rows=batch_size * config.num_beams)
    while block := list(islice(numbered, max(_BLOCK_SIZE, batch_size))):
        pieces = [split(*item) for item in block]
        if counts is not None:
            counts["texts split at sentence ends"] += sum(len(parts) > 1 for parts in pieces)
            counts["texts truncated"] += sum(any(piece.is_cut for piece in parts) for parts in pieces)
        ids = [piece.ids for parts in pieces for piece in parts]
        sources = [[first, *map(int, part), tokenizer.sep_token_id] for part in ids]
        advance = None if on_batch is None else partial(_advance, on_batch, len(block) / len(sources))
        how: dict[str, Any] = {"batch_size": batch_size, "limit_of": limit_of, "on_batch": advance}
        how["first_tokens"] = None if target_language is None else [target_language] * len(sources)
        found = iter(decode_sources(sources, decoder, config, **how))
        for (_, text), parts in zip(block, pieces, strict=True):
            yield _to_result(text, [(next(found), WrittenPiece(tokenizer, piece.space)) for piece in parts])


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


def _pieces(
    text: str,
    number: int,
    tokenizer: Tokenizer,
    room: int,
    parse_special_tokens: bool,
    *,
    long_sources: Literal["cut", "split"] | None,
    max_sentences: int | None,
) -> list[SourcePiece]:
    if not isinstance(text, str):
        raise DataError(f"Text {number} is {text!r:.60}. Expected text.")

    def encode(part: str) -> np.ndarray:
        return np.asarray(tokenizer.encode(part, parse_special_tokens=parse_special_tokens).ids)

    ids = encode(text)
    if not len(ids) or (len(ids) > room and long_sources is None):
        expected = f"Expected 1 to {room}: shorten it" + (", or pass --long-sources split or cut" if len(ids) else "")
        raise DataError(f"Text {number} ({text!r:.60}) has {format_count(len(ids), 'token')}. {expected}.")
    if long_sources == "split":
        return split_source(text, encode, max_tokens=room, max_sentences=max_sentences)
    return [SourcePiece(ids[:room], is_cut=len(ids) > room)]


def _to_result(text: str, pieces: Sequence[tuple[Sequence[Hypothesis], WrittenPiece]]) -> dict[str, Any]:
    # The best hypotheses of all pieces make the best text, the second best ones the second.
    written = [
        join_pieces(list(zip(found, [piece for _, piece in pieces], strict=True)))
        for found in zip(*(f for f, _ in pieces), strict=True)
    ]
    candidates = [{"rewritten": candidate.text, "score": candidate.score} for candidate in written]
    result = {"text": text, **candidates[0], "is_complete": written[0].is_complete}
    return result if len(candidates) == 1 else {**result, "candidates": candidates}
