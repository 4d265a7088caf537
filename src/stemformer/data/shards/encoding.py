"""Parallel tokenization of documents, in corpus order: any number of workers gives the same bytes."""

import functools
import hashlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, UInt

from stemformer.data.shards.manifest import Counts
from stemformer.data.shards.splits import HeldOut, is_held_out
from stemformer.data.text.sentences import sentence_ends
from stemformer.data.tokenization.tokenizer import EncodedDocument, Tokenizer, load_tokenizer
from stemformer.data.tokenization.word_segmentation import Segmenter, join_words, load_segmenter
from stemformer.errors import ConfigError, DataError, TokenizerError

BATCH_CHARACTERS = 1_000_000
# For less text, starting processes takes longer than encoding.
POOL_CHARACTERS = 4_000_000
BATCHES_PER_WORKER = 3


@dataclass(frozen=True)
class DocumentBatch:
    """Consecutive documents of one block."""

    texts: list[str]
    block: int
    # In the block.
    is_last: bool
    # Of the block up to the end of this batch.
    num_documents: int
    # Of all documents of the corpus up to the end of this batch.
    text_sha256: str


@dataclass(frozen=True)
class EncodedSplit:
    """Encoded documents of a batch in one split; starts are relative to the first token."""

    # The type uint16 or uint32.
    ids: UInt[np.ndarray, " N"]
    word_starts: Bool[np.ndarray, " N"]
    document_starts: Int64[np.ndarray, " documents"]
    sentence_starts: Int64[np.ndarray, " sentences"]
    counts: Counts


EncodedBatch = dict[str, EncodedSplit]
"""Encoded batch: its non-empty splits by name, without documents that have no token."""


def id_dtype(vocab_size: int) -> "np.dtype[Any]":
    """Return the little-endian dtype of ids: two bytes if the vocabulary fits, else four."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def batch_documents(texts: Iterable[str], block_characters: int) -> Iterator[DocumentBatch]:
    """Split the corpus into batches, and blocks of `block_characters` (or one document)."""
    sha256 = hashlib.sha256()
    batch: list[str] = []
    block, documents, in_block, in_batch = 0, 0, 0, 0
    for text in texts:
        is_last = documents > 0 and in_block + len(text) > block_characters
        if batch and (is_last or in_batch + len(text) > BATCH_CHARACTERS):
            yield DocumentBatch(batch, block, is_last, documents, sha256.hexdigest())
            batch, in_batch = [], 0
        if is_last:
            block, documents, in_block = block + 1, 0, 0
        encoded = text.encode("utf-8", "surrogatepass")
        sha256.update(len(encoded).to_bytes(8, "little"))
        sha256.update(encoded)
        batch.append(text)
        documents, in_block, in_batch = documents + 1, in_block + len(text), in_batch + len(text)
    if batch:
        yield DocumentBatch(batch, block, True, documents, sha256.hexdigest())


def encode_batch(
    texts: list[str], tokenizer: Tokenizer, held_out: HeldOut, *, segment: Segmenter | None = None
) -> EncodedBatch:
    """Encode documents and assign each to its split."""
    encoded = tokenizer.encode_documents(texts, [sentence_ends(text) for text in texts])
    if segment is not None:
        # Segmentation needs offsets, so the texts are encoded again.
        offsets = [tokenizer.encode(text).offsets for text in texts]
        encoded = [
            replace(document, word_starts=join_words(text, document.word_starts, spans, segment))
            for text, document, spans in zip(texts, encoded, offsets, strict=True)
        ]
    by_split: dict[str, list[tuple[EncodedDocument, int, int]]] = {"train": [], "held_out": []}
    for text, document in zip(texts, encoded, strict=True):
        if len(document.ids):
            raw = text.encode("utf-8", "surrogatepass")
            by_split["held_out" if is_held_out(raw, held_out) else "train"].append((document, len(text), len(raw)))
    return {split: _concatenate(kept, tokenizer.vocab_size) for split, kept in by_split.items() if kept}


def _concatenate(documents: list[tuple[EncodedDocument, int, int]], vocab_size: int) -> EncodedSplit:
    """Concatenate documents with their numbers of characters and bytes."""
    encoded, characters, sizes = zip(*documents, strict=True)
    ids = np.concatenate([document.ids for document in encoded])
    if (largest := int(ids.max())) >= vocab_size:
        problem = f"The tokenizer returned the id {largest}, its vocabulary has {vocab_size:,}"
        raise TokenizerError(f"{problem}. Save it again, or retrain it.")
    lengths = np.array([len(document.ids) for document in encoded], np.int64)
    starts = np.cumsum(lengths) - lengths
    word_starts = np.concatenate([document.word_starts for document in encoded])
    sentences = np.concatenate([d.sentence_starts + start for d, start in zip(encoded, starts, strict=True)])
    assert len(word_starts) == len(ids), "one entry per token"
    assert np.all(np.diff(sentences) > 0), "sentences have tokens and are in order"
    assert np.isin(starts, sentences).all() and sentences[-1] < len(ids), "every document starts a sentence"
    num_words = int(np.count_nonzero(word_starts))
    counts = Counts(len(documents), len(sentences), len(ids), num_words, sum(characters), sum(sizes))
    return EncodedSplit(ids.astype(id_dtype(vocab_size)), word_starts.astype(bool), starts, sentences, counts)


def encode_batches(
    batches: Iterable[DocumentBatch],
    tokenizer: Tokenizer,
    *,
    tokenizer_folder: Path,
    held_out: HeldOut,
    words: str,
    num_workers: int | None,
) -> Generator[tuple[DocumentBatch, EncodedBatch], None, None]:
    """Yield each batch with its encoding, in order; closing the generator stops the workers."""
    if num_workers is not None and num_workers < 1:
        raise ConfigError(f"num_workers is {num_workers}, expected 1 or more. Leave it out to use all cores.")
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = num_workers or num_cores
    # Read ahead to encode small inputs in this process.
    stream = iter(batches)
    first: list[DocumentBatch] = []
    characters = 0
    while workers > 1 and characters < POOL_CHARACTERS and (batch := next(stream, None)):
        first.append(batch)
        characters += sum(map(len, batch.texts))
    stream = itertools.chain(first, stream)
    if workers == 1 or characters < POOL_CHARACTERS:
        segment = load_segmenter(words)
        for batch in stream:
            yield batch, encode_batch(batch.texts, tokenizer, held_out, segment=segment)
    else:
        encode = functools.partial(_encode_in_worker, str(tokenizer_folder), tokenizer.fingerprint, held_out, words)
        yield from _encode_in_pool(stream, encode, workers)


def _encode_in_pool(
    batches: Iterable[DocumentBatch], encode: "functools.partial[EncodedBatch]", workers: int
) -> Generator[tuple[DocumentBatch, EncodedBatch], None, None]:
    # A fork of a process whose Rust or OpenMP threads have run can hang.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)
    pending: deque[tuple[DocumentBatch, Future[EncodedBatch]]] = deque()
    try:
        for batch in batches:
            with _block_interrupts():
                pending.append((replace(batch, texts=[]), pool.submit(encode, batch.texts)))
            if len(pending) >= BATCHES_PER_WORKER * workers:
                done, future = pending.popleft()
                yield done, future.result()
        for done, future in pending:
            yield done, future.result()
    except BrokenProcessPool as error:
        problem = "A worker process was killed, possibly for lack of memory"
        advice = 'fewer workers. (A Python script needs `if __name__ == "__main__":` around its calls.)'
        raise DataError(f"{problem}. Continue with --resume and {advice}") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _block_interrupts() -> Iterator[None]:
    """Delay SIGINT, where possible, so that workers started meanwhile inherit the blocked signal."""
    if set_mask := getattr(signal, "pthread_sigmask", None):
        previous = set_mask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if set_mask:
            set_mask(signal.SIG_SETMASK, previous)


def _start_worker() -> None:
    # The main process handles Ctrl-C and stops the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a worker"
    parent.join()
    os._exit(1)


def _encode_in_worker(folder: str, fingerprint: str, held_out: HeldOut, words: str, texts: list[str]) -> EncodedBatch:
    tokenizer, segment = _load(folder, fingerprint, words)
    return encode_batch(texts, tokenizer, held_out, segment=segment)


@functools.cache
def _load(folder: str, fingerprint: str, words: str) -> tuple[Tokenizer, Segmenter | None]:
    tokenizer = load_tokenizer(folder)
    if tokenizer.fingerprint != fingerprint:
        found = f"has the fingerprint {tokenizer.fingerprint[:12]} after loading, expected {fingerprint[:12]}"
        raise TokenizerError(f"The tokenizer saved in {folder} {found}. Prepare the data again in an empty folder.")
    return tokenizer, load_segmenter(words)
