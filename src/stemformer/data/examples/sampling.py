"""From a step's number to its batch.

What is in step `s` is a function of (data, seed, s) alone: example numbers come from a permutation computed by index, and whatever
is random about example `i` in epoch `e` from a generator keyed by (seed, e, i). Resuming needs no state of a loader.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int

T = TypeVar("T")


_ROUNDS = 6
"""Rounds of the permutation's Feistel network."""


def example_generator(seed: int, epoch: int, number: int) -> np.random.Generator:
    """Returns the random numbers of example `number` in epoch `epoch`.

    Args:
        seed: Of the run, from 0 to 2**64 - 1.
        epoch: From 0.
        number: Of the example, from 0.

    Source: Salmon et al. 2011 (Philox: the key and the counter say where in the stream one stands, so streams never meet).
    """
    return np.random.Generator(_philox(seed, stream=0, counter=[0, 0, number, epoch]))


def _philox(seed: int, *, stream: int, counter: list[int]) -> np.random.Philox:
    """Returns the bits of a key and a counter; as uint64, since a list with large numbers would pass through floating point."""
    return np.random.Philox(key=np.array([seed, stream], np.uint64), counter=np.array(counter, np.uint64))


def permuted(indices: Int[np.ndarray, "n"], size: int, *, seed: int, epoch: int) -> Int[np.ndarray, "n"]:
    """Returns where a keyed random permutation of `size` numbers sends the given ones, in memory for these alone.

    A Feistel network permutes the next power of four; numbers that fall outside `size` walk on until they are inside.

    Args:
        indices: Numbers from 0 to `size - 1`.
        size: How many numbers are permuted.
        seed: Of the run.
        epoch: Each epoch has a permutation of its own.

    Example:
        >>> sorted(permuted(np.arange(5), 5, seed=0, epoch=0).tolist())
        [0, 1, 2, 3, 4]

    Source: Black and Rogaway 2002, sections 3 and 4 (cycle walking; generalised Feistel).
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    keys = _philox(seed, stream=1, counter=[0, 0, 0, epoch]).random_raw(_ROUNDS)
    values = np.asarray(indices).astype(np.uint64)
    walking = np.ones(len(values), bool)
    while walking.any():
        left, right = values[walking] >> np.uint64(half), values[walking] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        values[walking] = (left << np.uint64(half)) | right
        walking = values >= np.uint64(size)
    return values.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """Returns well-mixed 64 bits (the finaliser of SplitMix64; Steele et al. 2014, figure 15)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def examples_of_step(step: int, *, batch_size: int, num_examples: int, seed: int) -> list[tuple[int, int]]:
    """Returns (epoch, example number) of each example of a step; a partial last batch wraps into the next epoch.

    Args:
        step: From 0.
        batch_size: Examples a step, over all ranks and micro-batches.
        num_examples: Examples an epoch.
        seed: Of the run.
    """
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, within = np.divmod(places, num_examples)
    out: list[tuple[int, int]] = []
    for epoch in np.unique(epochs).tolist():
        numbers = permuted(within[epochs == epoch], num_examples, seed=seed, epoch=epoch)
        out.extend((epoch, number) for number in numbers.tolist())
    return out


def prefetch(make: Callable[[int], T], steps: range, *, ahead: int = 4) -> Iterator[T]:
    """Yields `make(step)` for each step, made in a thread a few steps ahead.

    Args:
        make: From a step's number to what it needs.
        steps: Which steps.
        ahead: How many results may wait.

    Raises:
        Whatever `make` raises, at the step that it belongs to.
    """
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def offer(item: tuple[bool, Any]) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        for step in steps:
            if stopped.is_set():
                return
            try:
                offer((True, make(step)))
            except BaseException as error:
                return offer((False, error))

    thread = threading.Thread(target=work, daemon=True, name="prefetch")
    thread.start()
    try:
        for _ in steps:
            fine, item = ready.get()
            if not fine:
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
