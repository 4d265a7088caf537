"""Choice of the held-out documents, also of a corpus of few documents or of one."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from stemformer.data.text.sentences import sentence_ends

# Fraction of the documents, or the hashes of those that are held out.
HeldOut = float | frozenset[int]

_BLANK_LINE = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class SplitChoice:
    """What is held out, where each document is cut in two, and a note if both are not by the fraction alone."""

    held_out: HeldOut
    cut: int | None = None
    note: str = ""
    # Whether all documents are equal and cannot be cut, so that one split is empty.
    is_one_text: bool = False

    def texts(self, texts: Iterable[str]) -> Iterator[str]:
        """Yield the documents, or the two parts of each."""
        for text in texts:
            yield from (text,) if self.cut is None else (text[: self.cut], text[self.cut :])


def is_held_out(text: bytes, held_out: HeldOut) -> bool:
    """Return whether a document is held out, by a hash: equal documents are in the same split."""
    value = hash_text(text)
    return value in held_out if isinstance(held_out, frozenset) else value < held_out * 2**64


def choose_split(texts: Iterable[str], fraction: float) -> SplitChoice:
    """Choose by hash; if that gives only one split, hold out one document, or the last part of the only one.

    Documents are read until both splits have one, so it depends on the texts alone.
    """
    sizes: dict[int, int] = {}
    splits: set[bool] = set()
    text = ""
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        sizes[hash_text(raw)] = len(raw)
        splits.add(is_held_out(raw, fraction))
        if len(splits) == 2:
            return SplitChoice(fraction)
    if len(sizes) > 1:
        wanted = fraction * sum(sizes.values())
        chosen = min(sizes, key=lambda value: (abs(sizes[value] - wanted), value))
        share = sizes[chosen] / sum(sizes.values())
        note = f"too few documents to choose by hash: holding out one of {len(sizes):,}, {share:.1%} of the text"
        return SplitChoice(frozenset([chosen]), note=note)
    if cut := _find_cut(text, fraction):
        held_out = frozenset([hash_text(text[cut:].encode("utf-8", "surrogatepass"))])
        note = f"the text is one document: holding out its last part, {1 - cut / len(text):.1%} of the text"
        return SplitChoice(held_out, cut, note)
    return SplitChoice(fraction, is_one_text=True)


def hash_text(text: bytes) -> int:
    """Return a 64-bit hash."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _find_cut(text: str, fraction: float) -> int | None:
    """Return where the last part of a text begins: at a blank line near that fraction, else at the nearest sentence."""
    wanted = (1 - fraction) * len(text)
    blank_lines = [m.end() for m in _BLANK_LINE.finditer(text) if abs(m.end() - wanted) < fraction * len(text) / 2]
    ends = blank_lines or sentence_ends(text)[:-1]
    return min(ends, key=lambda end: abs(end - wanted), default=None)
