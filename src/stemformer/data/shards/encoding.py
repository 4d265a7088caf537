"""Documents to token ids on every core, in order, in constant memory.

The main process reads and cuts the corpus into batches of about a megabyte of text; worker processes turn a batch into
compact arrays; the results come back in the order of the corpus, with a bounded number under way. What becomes of a
document does not depend on its batch, so any number of workers gives the same bytes.

Workers are started fresh ("spawn") and load the tokenizer from its folder: a forked copy of a process whose Rust or
OpenMP threads have already run can hang. A worker leaves when its parent is gone, however that ended.
"""

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
from stemformer.data.text.sentences import sentence_ends
from stemformer.data.tokenization.tokenizer import EncodedDocument, Tokenizer, load_tokenizer
from stemformer.data.tokenization.word_segmentation import Segmenter, join_words, load_segmenter
from stemformer.errors import ConfigError, DataError, TokenizerError

BATCH_CHARACTERS = 1_000_000
POOL_CHARACTERS = 4_000_000  # below it, starting processes takes longer than the work
IN_FLIGHT = 3  # batches under way for each worker


@dataclass(frozen=True)
class DocumentBatch:
    """A run of consecutive documents of one block.

    Args:
        texts: The documents, at least one.
        block: Number of its block.
        is_last: No other batch of this block follows.
        num_documents: Documents of the block up to the end of this batch.
        text_sha256: Over all documents of the corpus up to the end of this batch.
    """

    texts: list[str]
    block: int
    is_last: bool
    num_documents: int
    text_sha256: str


@dataclass(frozen=True)
class EncodedSplit:
    """The documents of a batch that fall in one split; the starts count from the first token here."""

    ids: UInt[np.ndarray, " N"]  # uint16 or uint32
    word_starts: Bool[np.ndarray, " N"]
    document_starts: Int64[np.ndarray, " documents"]
    sentence_starts: Int64[np.ndarray, " sentences"]
    counts: Counts


@dataclass(frozen=True)
class EncodedBatch:
    """What a batch became: its splits, without those that have no document, and how many documents had no token."""

    splits: dict[str, EncodedSplit]
    num_empty: int


def is_held_out(text: bytes, fraction: float) -> bool:
    """Returns whether a document belongs to the held-out split, by a hash of its UTF-8 bytes.

    Equal documents fall in the same split, wherever they stand in the corpus.

    Example:
        >>> [is_held_out(word.encode(), 0.5) for word in ("a", "b", "a")]
        [True, False, True]
    """
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    return number < fraction * 2**64


def id_dtype(vocab_size: int) -> "np.dtype[Any]":
    """Returns the little-endian type that holds the ids of a vocabulary: two bytes where they fit, else four."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def cut_batches(texts: Iterable[str], block_characters: int) -> Iterator[DocumentBatch]:
    """Yields the corpus in batches; the cuts depend on the texts alone.

    Args:
        texts: Documents, in the order of the corpus.
        block_characters: A block ends before the document that would make it longer; it holds at least one.
    """
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
    texts: list[str], tokenizer: Tokenizer, held_out: float, *, segment: Segmenter | None = None
) -> EncodedBatch:
    """Returns the tokens of some documents, by split.

    Args:
        texts: The documents.
        tokenizer: Its ids must be below its `vocab_size`.
        held_out: Fraction of the documents to hold out, 0 to 1.
        segment: Finds words where the tokenizer sees single characters.

    Raises:
        TokenizerError: An id lies outside the vocabulary.
    """
    encoded = tokenizer.encode_documents(texts, [sentence_ends(text) for text in texts])
    if segment is not None:
        encoded = [
            _with_words(text, document, tokenizer, segment) for text, document in zip(texts, encoded, strict=True)
        ]
    chosen: dict[str, list[tuple[EncodedDocument, int, int]]] = {"train": [], "held_out": []}
    num_empty = 0
    for text, document in zip(texts, encoded, strict=True):
        if len(document.ids) == 0:
            num_empty += 1
            continue
        raw = text.encode("utf-8", "surrogatepass")
        split = "held_out" if is_held_out(raw, held_out) else "train"
        chosen[split].append((document, len(text), len(raw)))
    splits = {split: _join(documents, tokenizer.vocab_size) for split, documents in chosen.items() if documents}
    return EncodedBatch(splits, num_empty)


def encode_in_order(
    batches: Iterable[DocumentBatch],
    tokenizer: Tokenizer,
    *,
    tokenizer_folder: Path,
    held_out: float,
    words: str,
    num_workers: int | None,
) -> Generator[tuple[DocumentBatch, EncodedBatch], None, None]:
    """Yields each batch with its tokens, in order. Close it (`contextlib.closing`) to stop the workers.

    Args:
        batches: Taken as needed; at most a few for each worker are under way.
        tokenizer: Encodes here, where there is little text or one worker.
        tokenizer_folder: Where the same tokenizer is saved, for the workers.
        held_out: Fraction of the documents to hold out.
        words: A name of `words.SEGMENTERS`.
        num_workers: Processes; by default as many as this process may use cores. 1 starts none.

    Raises:
        DataError: A worker was killed.
    """
    if num_workers is not None and num_workers < 1:
        raise ConfigError(f"num_workers is {num_workers}, expected 1 or more: leave it out to use every core")
    workers = num_workers or _num_cores()
    stream = iter(batches)
    first: list[DocumentBatch] = []
    if workers > 1:
        characters = 0
        while characters < POOL_CHARACTERS and (batch := next(stream, None)) is not None:
            first.append(batch)
            characters += sum(map(len, batch.texts))
        if characters < POOL_CHARACTERS:
            workers = 1
    stream = itertools.chain(first, stream)
    if workers == 1:
        segment = load_segmenter(words)
        for batch in stream:
            yield batch, encode_batch(batch.texts, tokenizer, held_out, segment=segment)
    else:
        job = functools.partial(_encode_in_worker, str(tokenizer_folder), tokenizer.fingerprint, held_out, words)
        yield from _encode_in_pool(stream, job, workers)


def _with_words(text: str, document: EncodedDocument, tokenizer: Tokenizer, segment: Segmenter) -> EncodedDocument:
    """Returns a document with the word starts of a segmenter. Its text is encoded again, for where each token stands."""
    encoded = tokenizer.encode(text)
    return replace(document, word_starts=join_words(text, document.word_starts, encoded.offsets, segment))


def _join(documents: list[tuple[EncodedDocument, int, int]], vocab_size: int) -> EncodedSplit:
    ids = np.concatenate([document.ids for document, _, _ in documents])
    if (largest := int(ids.max())) >= vocab_size:
        message = (
            f"the tokenizer gave the id {largest}, its vocabulary has {vocab_size:,}: save it again, or retrain it"
        )
        raise TokenizerError(message)
    lengths = np.array([len(document.ids) for document, _, _ in documents], np.int64)
    starts = np.cumsum(lengths) - lengths
    word_starts = np.concatenate([document.word_starts for document, _, _ in documents])
    sentences = np.concatenate(
        [document.sentence_starts + start for (document, _, _), start in zip(documents, starts, strict=True)]
    )
    assert len(word_starts) == len(ids), "one bit a token"
    assert np.all(np.diff(sentences) > 0), "sentences hold at least one token and are in order"
    assert np.isin(starts, sentences).all() and sentences[-1] < len(ids), "a document starts a sentence"
    counts = Counts(
        documents=len(documents),
        sentences=len(sentences),
        tokens=len(ids),
        words=int(np.count_nonzero(word_starts)),
        characters=sum(characters for _, characters, _ in documents),
        bytes=sum(size for _, _, size in documents),
    )
    return EncodedSplit(ids.astype(id_dtype(vocab_size)), word_starts.astype(bool), starts, sentences, counts)


def _encode_in_pool(
    batches: Iterable[DocumentBatch], job: "functools.partial[EncodedBatch]", workers: int
) -> Generator[tuple[DocumentBatch, EncodedBatch], None, None]:
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)
    pending: deque[tuple[DocumentBatch, Future[EncodedBatch]]] = deque()
    try:
        for batch in batches:
            with _interrupts_held():
                future = pool.submit(job, batch.texts)
            pending.append((replace(batch, texts=[]), future))
            if len(pending) >= IN_FLIGHT * workers:
                waiting, future = pending.popleft()
                yield waiting, future.result()
        while pending:
            waiting, future = pending.popleft()
            yield waiting, future.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process was killed, perhaps for lack of memory: go on with --resume and fewer workers "
            '(a script of your own needs `if __name__ == "__main__":` around its calls)'
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Lets a worker that starts meanwhile inherit that Ctrl-C is not for it; here, it arrives a moment later."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process hears it and stops the pool
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in a worker"
    parent.join()
    os._exit(1)


def _encode_in_worker(folder: str, fingerprint: str, held_out: float, words: str, texts: list[str]) -> EncodedBatch:
    return encode_batch(texts, _load(folder, fingerprint), held_out, segment=_segmenter(words))


_segmenter = functools.cache(load_segmenter)


@functools.cache
def _load(folder: str, fingerprint: str) -> Tokenizer:
    tokenizer = load_tokenizer(folder)
    if tokenizer.fingerprint != fingerprint:
        raise TokenizerError(
            f"the tokenizer saved in {folder} reads back as {tokenizer.fingerprint[:12]}, {fingerprint[:12]} was "
            "expected: prepare again into an empty folder"
        )
    return tokenizer


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
