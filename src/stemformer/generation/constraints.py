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
