"""Rewrite texts with an encoder-decoder."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.errors import DataError
from stemformer.generation.beam_search import BeamConfig, Hypothesis, search_beams
from stemformer.models.inference.cached_bart import BartTextDecoder
from stemformer.models.model import Model
from stemformer.progress import format_count

# Tokens of the cache before the first new one: `</s> <s>`.
NUM_START_TOKENS = 2
# Sources are as if of a multiple of this length where the maximum length of their results depends on it.
_LENGTH_STEP = 16
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
    on_batch: Callable[[int], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield what the decoder writes for each text, in order; texts are read and rewritten in blocks.

    Args:
        texts: A sequence is checked before the first of it is rewritten, any other iterable block by block.
        limit_of: As for `decode_sources`.
        parse_special_tokens: Whether the name of a special token in a text, such as that of a mask, is this token.
        on_batch: Called with the number of texts of each batch that is done.

    Raises:
        DataError: A text has no token, or more than the model was trained on.
    """
    room = model.max_length - NUM_START_TOKENS

    def encode(number: int, text: str) -> list[int]:
        return _encode(text, number, tokenizer, room, parse_special_tokens)

    if isinstance(texts, Sequence):
        for number, text in enumerate(texts, start=1):
            encode(number, text)
    numbered = enumerate(texts, start=1)
    decoder = BartTextDecoder(model, rows=batch_size * config.num_beams)
    while block := list(islice(numbered, max(_BLOCK_SIZE, batch_size))):
        sources = [encode(*item) for item in block]
        found = decode_sources(sources, decoder, config, batch_size=batch_size, limit_of=limit_of, on_batch=on_batch)
        for (_, text), hypotheses in zip(block, found, strict=True):
            yield _to_result(text, hypotheses, tokenizer)


def repair_limit(length: int, max_length: int) -> int:
    """Return the maximum number of tokens to write for a source that is to be repaired: twice its own, rounded up."""
    return min(max_length - NUM_START_TOKENS, 2 * -(-length // _LENGTH_STEP) * _LENGTH_STEP)


def decode_sources(
    sources: Sequence[Sequence[int]],
    model: Model | BartTextDecoder,
    config: BeamConfig,
    *,
    batch_size: int,
    limit_of: Callable[[int], int],
    on_batch: Callable[[int], None] | None = None,
) -> list[list[Hypothesis]]:
    """Return the best hypotheses of each source, which has its special tokens.

    Sources of similar length are decoded together; what is written for one does not depend on the others, but for
    rounding.

    Args:
        model: An encoder-decoder, or its `BartTextDecoder`, to prepare the weights once for several calls.
        limit_of: Maximum number of tokens to write by the length of a source, special tokens included.
        on_batch: Called with the number of sources of each batch that is done.
    """
    if isinstance(model, BartTextDecoder):
        decoder = model
    else:
        decoder = BartTextDecoder(model, rows=min(batch_size, len(sources)) * config.num_beams)
    results: list[list[Hypothesis]] = [[] for _ in sources]
    order = np.argsort([-len(source) for source in sources], kind="stable").tolist()
    for start in range(0, len(order), batch_size):
        batch = [sources[i] for i in order[start : start + batch_size]]
        found = search_beams(decoder, batch, config, limits=[limit_of(len(source)) for source in batch])
        for i, hypotheses in zip(order[start : start + batch_size], found, strict=True):
            results[i] = hypotheses
        if on_batch is not None:
            on_batch(len(batch))
    return results


def _encode(text: str, number: int, tokenizer: Tokenizer, room: int, parse_special_tokens: bool) -> list[int]:
    if not isinstance(text, str):
        raise DataError(f"Text {number} is {text!r:.60}. Expected text.")
    ids = tokenizer.encode(text, parse_special_tokens=parse_special_tokens).ids
    if not 0 < len(ids) <= room:
        size = format_count(len(ids), "token")
        raise DataError(f"Text {number} ({text!r:.60}) has {size}. Expected 1 to {room}: shorten or split it.")
    return [tokenizer.cls_token_id, *map(int, ids), tokenizer.sep_token_id]


def _to_result(text: str, hypotheses: Sequence[Hypothesis], tokenizer: Tokenizer) -> dict[str, Any]:
    candidates = [{"rewritten": tokenizer.decode(found.ids), "score": found.score} for found in hypotheses]
    result = {"text": text, **candidates[0], "is_complete": hypotheses[0].is_complete}
    return result if len(candidates) == 1 else {**result, "candidates": candidates}
