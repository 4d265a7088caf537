"""Removal of duplicate documents from a corpus, before it is tokenized.

One pass finds the duplicates, so that a held-out document is kept wherever it is in the corpus, and
its duplicates do not train. Of others, the first is kept. The result depends on the texts alone.

Exact duplicates have the same 64-bit hash once runs of ASCII whitespace are one space. Near
duplicates have an estimated Jaccard similarity of their lower-case word 5-grams of at least 0.8, to
a document that is kept. The estimate is the share of equal values among 128 MinHash values, with a
standard deviation of 0.035. Pairs are compared if one of 16 bands of 8 values is equal: 95 % of
those with a similarity of 0.8, 99.9 % with 0.88. A text of fewer words is one n-gram. Memory is 50
bytes per document for exact duplicates, 400 for near ones, of any length.

Source: Broder 1997 (MinHash); Lee et al. 2022, section 4.2 (5-grams, threshold 0.8); Penedo et al.
2024 (FineWeb: bands of 8 values). Where we differ: an equal band is verified with all values. The
bands are searched by sorting, because the library's index needs several times the memory.
"""

import re
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, UInt16, UInt64

from stemformer.config import nearest
from stemformer.data.shards.splits import HeldOut, hash_text, is_held_out
from stemformer.errors import ConfigError

DEDUP = ("none", "exact", "near")
THRESHOLD = 0.8
# Values are 16 bits wide: a band of 8 is two 64-bit integers.
_NGRAM, _NUM_VALUES, _BAND = 5, 128, 8
_MINHASH_SEED = 1
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
        leaks = self.is_held_out[self.kept[self.removed]] & ~self.is_held_out[self.removed]
        reason, num_leaks = f"{self.kind} duplicates", int(leaks.sum())
        return {reason: len(leaks) - num_leaks, f"{reason} of held-out documents": num_leaks}

    def remove(self, texts: Iterable[str]) -> Iterator[str]:
        """Yield the kept documents of the corpus."""
        shown = {number for pair in self._shown() for number in pair}
        for number, (text, kept) in enumerate(zip(texts, self.kept, strict=False)):
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


def _first_equal(keys: UInt64[np.ndarray, "n"], order: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
    """Return the number of the first document, in that order, with the key of each."""
    by_key = order[np.argsort(keys[order], kind="stable")]
    is_first = np.append(True, np.diff(keys[by_key]) != 0)[: len(keys)]
    first = np.empty(len(keys), np.int64)
    first[by_key] = by_key[is_first][np.cumsum(is_first) - 1]
    return first


def _first_similar(values: UInt16[np.ndarray, "n v"], order: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
    """Return the number of the most similar kept document of each, its own if there is none, in that order."""
    kept = np.arange(len(values))

    # Bucket of each document in each band: its first document; -1 if it has no other.
    halves = values.view(np.uint64).reshape(len(values), values.shape[1] // _BAND, 2)
    buckets = np.full(halves.shape[:2], -1, np.int32)
    for band in range(halves.shape[1]):
        keys = halves[:, band, 0] * np.uint64(0x9E3779B97F4A7C15) + halves[:, band, 1]
        first = _first_equal(keys, order)
        is_shared = first != kept
        is_shared[first[is_shared]] = True
        buckets[is_shared, band] = first[is_shared]

    # Compare each document with the kept ones in its buckets.
    members: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for document in order[buckets.max(axis=1)[order] >= 0].tolist():
        own = [(band, bucket) for band, bucket in enumerate(buckets[document].tolist()) if bucket >= 0]
        if candidates := sorted({other for bucket in own for other in members.get(bucket, ())}):
            similarities = (values[candidates] == values[document]).mean(1)
            if similarities.max() >= THRESHOLD:
                kept[document] = candidates[int(similarities.argmax())]
                continue
        for bucket in own:
            members[bucket].append(document)
    return kept
