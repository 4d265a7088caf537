"""Removal of duplicate documents from a corpus, before it is tokenized.

One pass finds the duplicates, a second yields the rest. Of a group, the first document is kept, in
the split that its own hash chooses, so that duplicates do not change the share that is held out.
Where held-out documents are chosen as a set, of few documents, they are kept before others. No two
kept documents are duplicates that were found, so no training document repeats a held-out one but
for near duplicates that are missed. The result depends on the texts alone.

Exact duplicates have the same 64-bit hash once runs of ASCII whitespace are one space. Near
duplicates have an estimated Jaccard similarity of their lower-case word 5-grams of at least 0.8, to
a document that is kept. A text of fewer words is one n-gram. The estimate is the share of equal
values among 128 MinHash values, with a standard deviation of 0.035. Pairs are compared if one of 16
bands of 8 values is equal: 95 % of those with a similarity of 0.8, 99.9 % with 0.88. Of the kept
documents with an equal band, only the first 64 are compared, or time would be quadratic for text
from a template. Memory is 50 bytes per document for exact duplicates, 400 to 500 for near ones.

Source: Broder 1997 (MinHash); Lee et al. 2022, section 4.2 (5-grams, threshold 0.8); Penedo et al.
2024 (FineWeb: bands of 8 values). Where we differ: an equal band is verified with all values. The
bands are searched by sorting, because the library's index needs several times the memory, and the
comparisons of a band are limited.
"""

import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, UInt16, UInt64

from stemformer.config import nearest
from stemformer.data.shards.splits import HeldOut, hash_text, is_held_out
from stemformer.errors import ConfigError, DataError

DEDUP = ("none", "exact", "near")
THRESHOLD = 0.8
# Values are 16 bits wide: a band of 8 is two 64-bit integers.
_NGRAM, _NUM_VALUES, _BAND = 5, 128, 8
_MINHASH_SEED = 1
# Most documents with one value of a band that others are compared with.
_MAX_CANDIDATES = 64
_NUM_EXAMPLES, _NUM_CHARACTERS = 10, 100
_MIN_NOTED_SHARE = 0.01
_SPACES = bytes.maketrans(b"\t\n\v\f\r", b"     ")
# Scripts without spaces between words, in which each character counts as a word: kana, Han, Thai, Lao, Khmer, Burmese.
_UNSPACED = re.compile(
    "[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u0e00-\u0eff\u1780-\u17ff\u1000-\u109f]"
)


@dataclass(frozen=True)
class DuplicateExample:
    """Beginnings of a removed document and of the one that was kept, and the Jaccard similarity of their n-grams."""

    kept: str
    removed: str
    similarity: float


@dataclass(frozen=True)
class Duplicates:
    """Duplicates of a corpus, whose documents are numbered in its order."""

    kind: str
    # Number of the document that is kept in place of each; of a kept document, its own.
    kept: Int64[np.ndarray, "n"]
    is_held_out: Bool[np.ndarray, "n"]
    # Texts that `remove` stores for the examples, by number.
    _texts: dict[int, str] = field(default_factory=dict)

    @cached_property
    def removed(self) -> Int64[np.ndarray, "m"]:
        """Numbers of the removed documents."""
        return np.flatnonzero(self.kept != np.arange(len(self.kept)))

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of removed documents by reason."""
        leaks = self.is_held_out[self.kept[self.removed]] != self.is_held_out[self.removed]
        reason, num_leaks = f"{self.kind} duplicates", int(leaks.sum())
        return {reason: len(leaks) - num_leaks, f"{reason} in the other split": num_leaks}

    def remove(self, texts: Iterable[str]) -> Iterator[str]:
        """Yield the kept documents of the corpus; raise DataError if it has another number of documents than before."""
        shown = {number for pair in self._shown() for number in pair}
        for number, (text, kept) in enumerate(zip_longest(texts, self.kept)):
            if text is None or kept is None:
                problem = f"The inputs changed while they were read: they had {len(self.kept):,} documents, now"
                found = f"{number:,}" if text is None else "more"
                raise DataError(f"{problem} {found}. Wait until they are complete, and run the command again.")
            if number in shown:
                # Lone surrogates cannot be written.
                self._texts[number] = text.encode("utf-8", "replace").decode()
            if kept == number:
                yield text

    def examples(self) -> tuple[DuplicateExample, ...]:
        """Return examples from all parts of the corpus, after `remove`."""
        texts = self._texts
        return tuple(
            DuplicateExample(
                texts[kept][:_NUM_CHARACTERS], texts[removed][:_NUM_CHARACTERS], self._similarity(kept, removed)
            )
            for kept, removed in self._shown()
        )

    def _shown(self) -> list[tuple[int, int]]:
        """Return (kept, removed) of the examples."""
        chosen = np.linspace(0, len(self.removed) - 1, min(_NUM_EXAMPLES, len(self.removed))).astype(int)
        return [(int(self.kept[number]), number) for number in self.removed[chosen].tolist()]

    def _similarity(self, kept: int, removed: int) -> float:
        if self.kind == "exact":
            return 1.0
        first, second = (set(_ngrams(self._texts[number])) for number in (kept, removed))
        return round(len(first & second) / len(first | second), 3)


def check_dedup(kind: str) -> None:
    """Raise `ConfigError` if a kind of duplicates does not exist or cannot be found here."""
    if kind not in DEDUP:
        raise ConfigError(f"--dedup is {kind!r}, expected one of {', '.join(DEDUP)}{nearest(kind, DEDUP)}.")
    if kind == "near":
        _load_minhash()


def find_duplicates(texts: Iterable[str], held_out: HeldOut, kind: str) -> Duplicates:
    """Find the "exact" or "near" duplicates of a corpus."""
    minhash = _load_minhash() if kind == "near" else None
    hashes, values, in_held_out = array("Q"), bytearray(), bytearray()
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        in_held_out.append(is_held_out(raw, held_out))
        if minhash is None:
            hashes.append(hash_normalized(raw))
        else:
            values += minhash(_ngrams(raw.decode("utf-8", "replace"))).tobytes()
    is_held = np.frombuffer(in_held_out, bool)
    order = np.arange(len(is_held))
    if isinstance(held_out, frozenset):
        # Held-out documents first.
        order = np.argsort(~is_held, kind="stable")
    if minhash is None:
        kept = _first_equal(np.frombuffer(hashes, np.uint64), order)
    else:
        kept = _first_similar(np.frombuffer(values, np.uint16).reshape(-1, _NUM_VALUES), order)
    return Duplicates(kind, kept, is_held)


def hash_normalized(text: bytes) -> int:
    """Return a 64-bit hash that ignores differences in ASCII whitespace."""
    text = text.translate(_SPACES).strip()
    while b"  " in text:
        text = text.replace(b"  ", b" ")
    return hash_text(text)


def note_duplicates(texts: Iterable[str], on_note: Callable[[str], None]) -> Iterator[str]:
    """Yield the documents of a corpus, then note the share of exact duplicates if it is not small."""
    hashes = array("Q")
    for text in texts:
        hashes.append(hash_normalized(text.encode("utf-8", "surrogatepass")))
        yield text
    values = np.sort(np.frombuffer(hashes, np.uint64))
    share = np.count_nonzero(values[1:] == values[:-1]) / max(1, len(values))
    if share >= _MIN_NOTED_SHARE:
        on_note(f"{share:.1%} of the documents are exact duplicates; --dedup exact removes them")


def _load_minhash() -> Callable[[Iterable[str]], UInt16[np.ndarray, "128"]]:
    """Return the function from n-grams to MinHash values, of which 16 bits are enough to tell them apart."""
    try:
        from rensa import RMinHash
    except ImportError as error:
        raise ConfigError('--dedup near needs the package rensa: pip install "stemformer[dedup]"') from error

    def minhash(ngrams: Iterable[str]) -> Any:
        values = RMinHash(_NUM_VALUES, _MINHASH_SEED)
        values.update(ngrams)
        return np.array(values.digest(), np.uint32).astype(np.uint16)

    return minhash


def _ngrams(text: str) -> Iterable[str]:
    text = text.lower()
    words = (text if text.isascii() else _UNSPACED.sub(r" \g<0> ", text)).split()
    if len(words) < _NGRAM:
        return [" ".join(words)]
    return map(" ".join, zip(*(words[i:] for i in range(_NGRAM)), strict=False))


def _sort_by_key(
    keys: UInt64[np.ndarray, "n"], order: Int64[np.ndarray, "n"]
) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "k"]]:
    """Return the documents sorted by key, equal ones in that order, and the number of documents with each key."""
    by_key = order[np.argsort(keys[order], kind="stable")]
    bounds = np.flatnonzero(np.diff(keys[by_key])) + 1
    return by_key, np.diff(bounds, prepend=0, append=len(keys))


def _first_equal(keys: UInt64[np.ndarray, "n"], order: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
    """Return the number of the first document, in that order, with the key of each."""
    by_key, sizes = _sort_by_key(keys, order)
    first = np.empty(len(keys), np.int64)
    first[by_key] = np.repeat(by_key[(np.cumsum(sizes) - sizes)[sizes > 0]], sizes[sizes > 0])
    return first


def _first_similar(values: UInt16[np.ndarray, "n v"], order: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
    """Return the number of the most similar kept document of each, its own if there is none, in that order."""
    kept = np.arange(len(values))

    # Start of each document's bucket among those of its band with two or more documents; -1 if it is in none.
    halves = values.view(np.uint64).reshape(len(values), values.shape[1] // _BAND, 2)
    starts = np.full(halves.shape[:2], -1, np.int32)
    offsets = np.zeros(halves.shape[1] + 1, np.int64)
    for band in range(halves.shape[1]):
        keys = halves[:, band, 0] * np.uint64(0x9E3779B97F4A7C15) + halves[:, band, 1]
        by_key, sizes = _sort_by_key(keys, order)
        shared = by_key[np.repeat(sizes > 1, sizes)]
        sizes = sizes[sizes > 1]
        starts[shared, band] = np.repeat(np.cumsum(sizes) - sizes, sizes)
        offsets[band + 1] = offsets[band] + len(shared)

    # Compare each document with the first kept ones of its buckets.
    members = np.empty(offsets[-1], np.int32)
    num_members = np.zeros(offsets[-1], np.uint8)
    for document in order[starts.max(axis=1)[order] >= 0].tolist():
        bands = np.flatnonzero(starts[document] >= 0)
        own = offsets[bands] + starts[document, bands]
        filled = num_members[own]
        if filled.any():
            found = [members[start : start + num] for start, num in zip(own.tolist(), filled.tolist(), strict=True)]
            candidates = np.unique(np.concatenate(found))
            num_equal = np.count_nonzero(values[candidates] == values[document], axis=1)
            if num_equal.max() >= THRESHOLD * values.shape[1]:
                kept[document] = candidates[num_equal.argmax()]
                continue
        is_free = filled < _MAX_CANDIDATES
        members[own[is_free] + filled[is_free]] = document
        num_members[own[is_free]] += 1
    return kept
