"""Rewrite texts with an encoder-decoder."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.errors import DataError
from stemformer.generation.beam_search import BeamConfig, Hypothesis, search_beams
from stemformer.models.inference.cached_bart import BartTextDecoder
from stemformer.models.model import Model
from stemformer.progress import format_count

# Tokens of the cache before the first new one: `</s> <s>`.
_PREFIX = 2
# Sources are as if of a multiple of this length where the maximum length of their results depends on it.
_LENGTH_STEP = 16


def rewrite_texts(
    texts: Sequence[str],
    model: Model,
    tokenizer: Tokenizer,
    config: BeamConfig,
    *,
    batch_size: int,
    max_length: int | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Return what the decoder writes for each text, in order.

    Texts of similar length are decoded together; what is written for one does not depend on the others, but for
    rounding.

    Args:
        max_length: Maximum number of tokens to write. Default: twice the tokens of the text, rounded up.
        on_batch: Called with the number of texts of each batch that is done.

    Raises:
        DataError: A text has no token, or more than the model was trained on.
    """
    room = model.max_length - _PREFIX
    sources = [_encode(text, number, tokenizer, room) for number, text in enumerate(texts, start=1)]
    # Texts of one limit are decoded together: it must not depend on the longest of a batch.
    by_limit: dict[int, list[int]] = {}
    for i in np.argsort([-len(source) for source in sources], kind="stable").tolist():
        rounded = -(-len(sources[i]) // _LENGTH_STEP) * _LENGTH_STEP
        by_limit.setdefault(min(room, 2 * rounded if max_length is None else max_length), []).append(i)
    decoder = BartTextDecoder(model, rows=min(batch_size, len(texts)) * config.num_beams)
    results: list[dict[str, Any]] = [{} for _ in texts]
    for limit, members in by_limit.items():
        for start in range(0, len(members), batch_size):
            batch = members[start : start + batch_size]
            settings = replace(config, max_new_tokens=limit)
            found = search_beams(decoder, [sources[i] for i in batch], settings, prompt_length=_PREFIX)
            for i, hypotheses in zip(batch, found, strict=True):
                results[i] = _to_result(texts[i], hypotheses, tokenizer)
            if on_batch is not None:
                on_batch(len(batch))
    return results


def _encode(text: str, number: int, tokenizer: Tokenizer, room: int) -> list[int]:
    if not isinstance(text, str):
        raise DataError(f"Text {number} is {text!r:.60}. Expected text.")
    ids = tokenizer.encode(text, parse_special_tokens=True).ids
    if not 0 < len(ids) <= room:
        size = format_count(len(ids), "token")
        raise DataError(f"Text {number} ({text!r:.60}) has {size}. Expected 1 to {room}: shorten or split it.")
    return [tokenizer.cls_token_id, *map(int, ids), tokenizer.sep_token_id]


def _to_result(text: str, hypotheses: Sequence[Hypothesis], tokenizer: Tokenizer) -> dict[str, Any]:
    candidates = [{"rewritten": tokenizer.decode(found.ids), "score": found.score} for found in hypotheses]
    result = {"text": text, **candidates[0], "is_complete": hypotheses[0].is_complete}
    return result if len(candidates) == 1 else {**result, "candidates": candidates}
