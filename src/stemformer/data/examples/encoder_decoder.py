"""Examples of an encoder-decoder, the length of what it writes, and long sources in pieces."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from stemformer.data.examples.batch import Example
from stemformer.data.text.sentences import sentence_ends

# Tokens of the decoder before those of a text: `</s> <s>`.
NUM_START_TOKENS = 2
# Tokens that a written text may have beyond the ratio to its source.
SPARE_TOKENS = 8
# The maximum length of a written text is as if of a source of a multiple of this, so that few batches differ in it.
_LENGTH_STEP = 8


@dataclass(frozen=True)
class SourcePiece:
    """Piece of a source: its tokens without special ones, the white space after it, and whether it was cut."""

    ids: Int[np.ndarray, "_"]
    space: str = ""
    is_cut: bool = False


def max_target_tokens(source_length: int, max_length: int, ratio: float = 2.0) -> int:
    """Return the maximum number of tokens, the end included, to write for a source.

    Args:
        source_length: Tokens of the source, special ones included; rounded up.
        max_length: Positions of the decoder.
        ratio: Tokens to write for each one of the source, in addition to a few.
    """
    rounded = -(-source_length // _LENGTH_STEP) * _LENGTH_STEP
    return max(1, min(max_length - NUM_START_TOKENS, math.ceil(ratio * rounded) + SPARE_TOKENS))


def split_source(
    text: str,
    encode: Callable[[str], Int[np.ndarray, "_"]],
    *,
    max_tokens: int,
    max_sentences: int | None = None,
) -> list[SourcePiece]:
    """Split a text at sentence ends into as long pieces as fit; a longer sentence is cut.

    Args:
        encode: Returns the tokens of a text without special ones.
        max_tokens: Maximum number of tokens of a piece.
        max_sentences: Maximum number of sentences of a piece.
    """
    ends = sentence_ends(text)
    pieces, start, first = [], 0, 0
    while first < len(ends):
        last, ids = first, encode(text[start : ends[first]].strip())
        most = len(ends) if max_sentences is None else min(len(ends), first + max_sentences)
        while last + 1 < most and len(more := encode(text[start : ends[last + 1]].strip())) <= max_tokens:
            last, ids = last + 1, more
        part = text[start : ends[last]]
        pieces.append(SourcePiece(ids[:max_tokens], part[len(part.rstrip()) :], len(ids) > max_tokens))
        start, first = ends[last], last + 1
    return pieces


def source_pieces(
    text: str,
    encode: Callable[[str], Int[np.ndarray, "_"]],
    *,
    max_tokens: int,
    long_sources: Literal["cut", "split"],
    ids: Int[np.ndarray, "_"],
    max_sentences: int | None = None,
) -> list[SourcePiece]:
    """Return a source as one piece, cut if it is too long, or split if it has more tokens or sentences than a piece.

    Args:
        encode: As for `split_source`.
        ids: The tokens of the text.
    """
    if long_sources == "split":
        is_long = len(ids) > max_tokens
        if is_long or (max_sentences is not None and len(sentence_ends(text)) > max_sentences):
            return split_source(text, encode, max_tokens=max_tokens, max_sentences=max_sentences)
    return [SourcePiece(ids[:max_tokens], is_cut=len(ids) > max_tokens)]


def make_encoder_decoder_example(
    sources: Sequence[Int[np.ndarray, "_"]],
    targets: Sequence[Int[np.ndarray, "_"]],
    *,
    cls: int,
    sep: int,
    target_cls: int | None = None,
    is_copied: Sequence[Bool[np.ndarray, "_"]] | None = None,
    num_dropped_tokens: int = 0,
) -> Example:
    """Return an example of pairs of texts, without targets that of sources alone.

    Source `<s> source </s>`, decoder inputs `</s> <s> target`, labels `<s> target </s>`, as in BART. With tokens of
    languages in the place of `<s>`, this is the layout of mBART-50 (Tang et al. 2020).

    Args:
        cls: First token of a source.
        target_cls: First token of a target; None for that of a source.
        is_copied: Of each target, whether each token is one that the source has; the special tokens around it always are.
    """
    inputs = [np.concatenate([[cls], source, [sep]]) for source in sources]
    ids, lengths = _joined(inputs)
    if not targets:
        return Example(ids, lengths, np.empty(0, np.int64), np.empty(0, np.int64))
    first = cls if target_cls is None else target_cls
    labels, _ = _joined([np.concatenate([[first], target, [sep]]) for target in targets])
    decoder_ids, decoder_lengths = _joined([np.concatenate([[sep, first], target]) for target in targets])
    copied = None if is_copied is None else np.concatenate([[True, *part, True] for part in is_copied])
    return Example(
        ids,
        lengths=lengths,
        label_positions=np.arange(len(labels)),
        labels=labels,
        num_dropped_tokens=num_dropped_tokens,
        decoder_input_ids=decoder_ids,
        decoder_lengths=decoder_lengths,
        is_copied=copied,
    )


def _joined(texts: Sequence[np.ndarray]) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "s"]]:
    return np.concatenate(texts).astype(np.int64), np.array([len(text) for text in texts], np.int64)
