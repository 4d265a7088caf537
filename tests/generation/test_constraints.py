"""Constraints: what they forbid, and that a text can always be continued or ended."""

import numpy as np
import pytest
import torch

from stemformer.generation.beam_search import BeamConfig
from stemformer.generation.constraints import constrain

EOS = 3


@pytest.mark.parametrize(
    ("texts", "size", "minimum", "expected"),
    [
        # The prompt's own end is no repetition of it.
        ([[3, 0]], 1, 0, [False, True, True, True]),
        ([[3, 0]], 1, 2, [False, True, True, False]),
        ([[1, 2, 0, 1]], 2, 0, [True, True, False, True]),
        ([[-1, -1, 0, 1]], 2, 0, [True, True, True, True]),
        # Nothing but the end is left, which is before the minimum.
        ([[0, 1, 2]], 1, 5, [False, False, False, True]),
    ],
)
def test_what_is_allowed(texts, size, minimum, expected):
    config = BeamConfig(no_repeat_ngram_size=size, min_new_tokens=minimum)
    scores = torch.tensor([[-1.0, -2.0, -3.0, -4.0]])
    constrain(scores, np.array(texts), config, step=0, eos=EOS)
    assert (scores > -torch.inf)[0].tolist() == expected


def test_damaged_scores_stay_so():
    scores = torch.full((1, 4), torch.nan)
    constrain(scores, None, BeamConfig(min_new_tokens=1), step=0, eos=EOS)
    assert scores[0, :EOS].isnan().all()
