"""Memory-mapped reading of tokenized data: a split as one sequence of tokens, numbered from its start."""

from bisect import bisect_right
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, UInt, UInt64

from stemformer.data.shards.encoding import id_dtype
from stemformer.data.shards.manifest import SPLITS, Manifest, check_files, read_manifest
from stemformer.errors import DataError


def open_shards(folder: str | Path, split: str = "train", *, verify: bool = True) -> "Shards":
    """Open the split "train" or "held_out" of a folder; without `verify`, only sizes are checked."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    if split not in SPLITS:
        raise DataError(f"There is no split {split!r}, expected one of {', '.join(SPLITS)}.")
    if split not in manifest.splits:
        raise DataError(f"{folder} has no held-out text (--held-out 0). Prepare it again with --held-out 0.01.")
    check_files(folder, manifest.files, verify=False)
    if verify:
        others = tuple(f"{other}/" for other in SPLITS if other != split)
        files = {name: record for name, record in manifest.files.items() if not name.startswith(others)}
        check_files(folder, files, verify=True)
    return Shards(folder, manifest, split, verify=verify)


class Shards:
    """One split of tokenized data, memory-mapped; opened by `open_shards`."""

    def __init__(self, folder: Path, manifest: Manifest, split: str, *, verify: bool) -> None:
        self.manifest = manifest
        self.split = split
        self.fingerprint = manifest.fingerprint
        self.vocab_size = manifest.vocab_size
        counts = manifest.splits[split]
        self.num_tokens, self.num_documents, self.num_sentences = counts.tokens, counts.documents, counts.sentences
        self.folder = folder
        files = (folder / name for name in manifest.files if name.startswith(f"{split}/"))
        self._files = [file for file in files if file.suffix == ".bin"]
        self._ids = [_map(file, id_dtype(self.vocab_size)) for file in self._files]
        self._words = [_map(file.with_suffix(".word"), np.dtype("u1")) for file in self._files]
        self._ends = np.cumsum([len(ids) for ids in self._ids]).tolist()
        if (found := self._ends[-1]) != self.num_tokens:
            raise _damaged(folder / split, f"holds {found:,} tokens, its manifest says {self.num_tokens:,}")
        for file, ids in zip(self._files, self._ids, strict=True):
            if verify and (largest := int(ids.max())) >= self.vocab_size:
                raise _damaged(file, f"has the id {largest}, the vocabulary has {self.vocab_size:,}")

    def tokens(self, start: int, stop: int) -> UInt[np.ndarray, " n"]:
        """Return the ids from `start` to `stop` (exclusive) as a read-only view of the file."""
        shard, first, last = self._locate(start, stop)
        return self._ids[shard][first:last]

    def tokens_across(self, start: int, stop: int) -> UInt[np.ndarray, " n"]:
        """Return a copy of the ids from `start` to `stop` (exclusive), which may lie in several shards."""
        bounds = [min(max(end, start), stop) for end in (0, *self._ends)]
        return np.concatenate([self.tokens(a, b) for a, b in pairwise(bounds) if a < b or (a, b) == (start, stop)])

    def word_starts(self, start: int, stop: int) -> Bool[np.ndarray, " n"]:
        """Return whether each token of a span starts a word."""
        shard, first, last = self._locate(start, stop)
        bits = np.unpackbits(self._words[shard][first // 8 : (last + 7) // 8], bitorder="little")
        return bits[first % 8 : first % 8 + last - first].view(bool)

    @cached_property
    def document_starts(self) -> Int64[np.ndarray, " {self.num_documents}+1"]:
        """Start of each document, then the end of the split."""
        return self._starts("doc", self.num_documents)

    @cached_property
    def sentence_starts(self) -> Int64[np.ndarray, " {self.num_sentences}+1"]:
        """Start of each sentence, then the end of the split."""
        return self._starts("sent", self.num_sentences)

    @cached_property
    def unigram_counts(self) -> UInt64[np.ndarray, " V"]:
        """Count of each id in the train split, also if this is the held-out split."""
        return np.load(self.folder / "unigram.npy", allow_pickle=False)

    def _locate(self, start: int, stop: int) -> tuple[int, int, int]:
        """Return the shard of a span, and the span within it."""
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"Span {start}:{stop} is outside the {self.num_tokens:,} tokens of the split.")
        shard = min(bisect_right(self._ends, start), len(self._ends) - 1)
        if stop > self._ends[shard]:
            problem = f"Span {start}:{stop} crosses the end of a shard at {self._ends[shard]}"
            raise IndexError(f"{problem}. Read one document at a time.")
        base = self._ends[shard - 1] if shard else 0
        return shard, start - base, stop - base

    def _starts(self, suffix: str, number: int) -> np.ndarray:
        starts = np.empty(number + 1, np.int64)
        filled = 0
        for file, base, end in zip(self._files, [0, *self._ends], self._ends, strict=False):
            path = file.with_suffix(f".{suffix}")
            local = _map(path, np.dtype("<u8"))
            if local[-1] != end - base or filled + len(local) - 1 > number:
                raise _damaged(path, "does not match its shard")
            np.add(local[:-1], base, out=starts[filled : filled + len(local) - 1], casting="unsafe")
            filled += len(local) - 1
        if filled != number:
            files = f"The .{suffix} files of {self.folder}/{self.split}"
            raise _damaged(files, f"hold {filled:,} starts, the manifest says {number:,}")
        starts[-1] = self.num_tokens
        return starts


def _map(path: Path, dtype: "np.dtype[Any]") -> np.ndarray:
    return np.memmap(path, dtype, mode="r").view(np.ndarray)


def _damaged(path: str | Path, problem: str) -> DataError:
    return DataError(f"{path} {problem}. Prepare the data again.", damaged=True)
