"""Data order as a function of the step, without loader state: permutation, generators, prefetching."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from jaxtyping import Int

T = TypeVar("T")

_FEISTEL_ROUNDS = 6
# Results of `prefetch` that wait.
NUM_PREFETCHED = 4


def example_generator(seed: int, epoch: int, number: int) -> np.random.Generator:
    """Return the random generator of example `number` in epoch `epoch`; seeds are below 2**64.

    Source: Salmon et al. 2011 (Philox: streams of different keys or counters do not overlap).
    """
    return np.random.Generator(_philox(seed, stream=0, counter=[0, 0, number, epoch]))


def _philox(seed: int, *, stream: int, counter: list[int]) -> np.random.Philox:
    # Explicit uint64: a list with large numbers would be converted through floating point.
    return np.random.Philox(key=np.array([seed, stream], np.uint64), counter=np.array(counter, np.uint64))


def permuted(indices: Int[np.ndarray, "n"], size: int, *, seed: int, epoch: int) -> Int[np.ndarray, "n"]:
    """Apply a keyed random permutation of `range(size)` to some indices, in O(n) memory.

    A Feistel network permutes the next power of four, again until results are below `size`.
    Source: Black and Rogaway 2002, sections 3 and 4 (cycle walking; generalized Feistel).
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    keys = _philox(seed, stream=1, counter=[0, 0, 0, epoch]).random_raw(_FEISTEL_ROUNDS)
    values = np.asarray(indices).astype(np.uint64)
    outside = np.ones(len(values), bool)
    while outside.any():
        left, right = values[outside] >> np.uint64(half), values[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        values[outside] = (left << np.uint64(half)) | right
        outside = values >= np.uint64(size)
    return values.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """Mix 64 bits by the finalizer of SplitMix64 (Steele et al. 2014, figure 15)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def examples_of_step(step: int, *, batch_size: int, num_examples: int, seed: int) -> list[tuple[int, int]]:
    """Return (epoch, example number) of each example of a step, of all ranks and micro-batches."""
    epochs, indices = np.divmod(np.arange(step * batch_size, (step + 1) * batch_size), num_examples)
    return [
        (epoch, number)
        for epoch in np.unique(epochs).tolist()
        for number in permuted(indices[epochs == epoch], num_examples, seed=seed, epoch=epoch).tolist()
    ]


def prefetch(make: Callable[[int], T], steps: range, *, ahead: int = NUM_PREFETCHED) -> Iterator[T]:
    """Yield `make(step)` for each step, made in a thread with up to `ahead` results waiting.

    While a step is used, those up to `ahead + 1` steps later have been submitted.
    """
    # Written by hand: a library's loader keeps state.
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    pending: deque[Future[T]] = deque()
    try:
        for step in steps:
            pending.append(pool.submit(make, step))
            # `ahead` results wait, one is being computed.
            if len(pending) > ahead + 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
