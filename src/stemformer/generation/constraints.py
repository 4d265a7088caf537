"""Constraints of what may be written next: no repeated n-grams, and a minimum length.

Source: Paulus et al. 2017, section 2.5 (no repeated n-grams).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stemformer.config import check_at_least
from stemformer.errors import ConfigError


def check_constraints(config: Any) -> None:
    """Check the fields `min_new_tokens` and `no_repeat_ngram_size` of a config."""
    check_at_least(0, config, "", "min_new_tokens", "no_repeat_ngram_size")
    if config.min_new_tokens > config.max_new_tokens:
        expected = f"expected at most {config.max_new_tokens}, max_new_tokens"
        raise ConfigError(f"min_new_tokens is {config.min_new_tokens}: {expected}")


def constrain(
    scores: Float[Tensor, "R V"], texts: Int[np.ndarray, "R P"] | None, config: Any, *, step: int, eos: int
) -> None:
    """Set the scores of tokens that the constraints exclude to -inf.

    A text may end at any step after its minimum length, even if its prompt has the end (in `generate` an n-gram of one
    token forbids it then), and before if there is nothing else that it may continue with.

    Args:
        texts: As for `forbid_repeats`; None if n-grams may be repeated.
        config: With the fields `min_new_tokens` and `no_repeat_ngram_size`.
        step: Number of new tokens so far.
    """
    end = scores[:, eos].clone()
    if texts is not None:
        forbid_repeats(scores, texts, config.no_repeat_ngram_size)
    scores[:, eos] = end if step >= config.min_new_tokens else -torch.inf
    is_stuck = (scores == -torch.inf).all(1)
    scores[is_stuck, eos] = end[is_stuck]


def forbid_repeats(scores: Float[Tensor, "R V"], texts: Int[np.ndarray, "R P"], size: int) -> None:
    """Set the scores of tokens to -inf that would complete an n-gram of `size` tokens which a text already has.

    Args:
        texts: All tokens of each text so far, those of its prompt included, padded with -1 on the left.
    """
    if texts.shape[1] < size:
        return
    windows = np.lib.stride_tricks.sliding_window_view(texts, size, 1)  # (R, P - size + 1, size)
    last = texts[:, texts.shape[1] - size + 1 :]
    is_repeat = (windows[..., :-1] == last[:, None]).all(-1) & (windows[..., 0] >= 0)
    rows, columns = np.nonzero(is_repeat)
    tokens = windows[rows, columns, -1]
    scores[torch.from_numpy(rows), torch.from_numpy(tokens)] = -torch.inf


def pad_left(texts: Sequence[Sequence[int]]) -> Int[np.ndarray, "S P"]:
    """Return texts as rows, padded with -1 on the left."""
    longest = max(map(len, texts))
    return np.array([[*[-1] * (longest - len(text)), *text] for text in texts], np.int64)
