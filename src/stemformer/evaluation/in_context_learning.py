"""In-context learning of causal models: loss reduction by context, and induction heads.

Source: Olsson et al. 2022: loss of the 500th token of a row of 512 minus that of the 50th;
prefix-matching score of each head on repeated random tokens. Here an eighth of a row replaces a
single position, and scales with its length.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stemformer.data.examples.batch import Batch, Example, collate
from stemformer.data.examples.sampling import example_generator
from stemformer.evaluation.held_out import held_out_batches
from stemformer.evaluation.inference import even_batches, hidden_states
from stemformer.models.layers import repeat_heads
from stemformer.models.model import Model
from stemformer.models.rotary import Rotation
from stemformer.objectives.causal_lm import CausalLm
from stemformer.objectives.losses import linear_cross_entropy_sum
from stemformer.objectives.objective import Examples

_SEED = 2**40 + 3
# At most, in long sequences.
_HELD_OUT_TOKENS = 8192
# Long sequences are searched in this many times as many tokens.
_SEARCH_FACTOR = 4
# Random tokens of a sequence.
_MAX_REPEATED = 50
_NUM_REPEATED_SEQUENCES = 16


def make_in_context_evaluation(examples: Examples, objective: CausalLm) -> Callable[[Model], dict[str, Any]]:
    """Return a function that measures the in-context learning of a model on fixed text.

    Its results are `held_out_late_minus_early` (nats; negative if context helps; absent if no
    held-out sequence fills seven eighths of a row), `repeat_gain` (nats), `induction_score`
    (maximum over heads) and `heads` (score of each head of each layer).
    """
    length = examples.sequence_length
    num_sequences = max(1, _HELD_OUT_TOKENS // length)
    rows = held_out_batches(examples, objective, num_examples=_SEARCH_FACTOR * num_sequences)
    chosen = early_and_late(rows, length, most=num_sequences)
    number = min(_MAX_REPEATED, (length - 1) // 2)
    repeated = None
    if number > 1:
        vocab_size, texts = examples.shards.vocab_size, _NUM_REPEATED_SEQUENCES
        repeated = repeated_tokens(vocab_size, end=objective.eos, number=number, texts=texts)

    def measure(model: Model) -> dict[str, Any]:
        model.eval()
        metrics: dict[str, Any] = {"held_out_late_minus_early": late_minus_early(model, chosen)} if chosen else {}
        if repeated is not None:
            scores = induction_scores(model, repeated)
            # The loss reduction of repeated tokens: 0 without copying, at most log V.
            metrics |= {"repeat_gain": -late_minus_early(model, [repeated]), "induction_score": float(scores.max())}
            metrics["heads"] = [[round(score, 4) for score in layer] for layer in scores.tolist()]
        return metrics

    return measure


def early_and_late(batches: Sequence[Batch], sequence_length: int, *, most: int) -> list[tuple[Batch, int]]:
    """Select scored positions of long sequences: early ones first, with their number, then late.

    A long sequence reaches into the last eighth of a row, which has `sequence_length` tokens. Its
    positions there are late, those of the second sixteenth early, so both come from the same texts.
    At most `most` sequences are selected.
    """
    eighth = sequence_length // 8
    long: list[Example] = []
    for batch in batches if eighth else []:
        scored = batch.label_positions
        position = batch.position_ids[scored]
        is_chosen = ((position >= eighth // 2) & (position < eighth)) | (position >= sequence_length - eighth)
        for start, stop in pairwise(batch.cu_seqlens.tolist()):
            inside = is_chosen & (scored >= start) & (scored < stop)
            if stop - start > sequence_length - eighth and position[inside][-1] >= eighth:
                ids, labels = batch.input_ids[start:stop].numpy(), batch.labels[inside].numpy()
                long.append(Example(ids, np.array([stop - start]), position[inside].numpy(), labels))
    out = []
    for batch in even_batches(long[:most], length=sequence_length):
        is_early = batch.position_ids[batch.label_positions] < eighth
        order = torch.argsort(is_early, descending=True, stable=True)
        batch = replace(batch, label_positions=batch.label_positions[order], labels=batch.labels[order])
        out.append((batch, int(is_early.sum())))
    return out


@torch.inference_mode()
def late_minus_early(model: Model, chosen: Sequence[tuple[Batch, int]]) -> float:
    """Return the mean loss (nats) at late positions minus that at early ones."""
    totals, counts = [0.0, 0.0], [0, 0]
    for batch, num_early in chosen:
        batch = batch.to(next(model.parameters()).device)
        states = hidden_states(model, batch, rows=batch.label_positions)
        for i, part in enumerate((slice(num_early), slice(num_early, None))):
            loss = linear_cross_entropy_sum(*model.lm_projection(states[part]), batch.labels[part])
            totals[i] += float(loss.total)
            counts[i] += loss.count
    return totals[1] / counts[1] - totals[0] / counts[0]


def repeated_tokens(vocab_size: int, *, end: int, number: int, texts: int) -> tuple[Batch, int]:
    """Make sequences of `number` random tokens that occur twice, scored as in `early_and_late`.

    Each of the `texts` sequences starts with the end-of-document token `end`; other tokens are
    sampled uniformly. The first is not scored, as nothing indicates that the repetition starts.
    """
    ids = example_generator(_SEED, 0, 0).integers(vocab_size - 1, size=(texts, number))
    ids += ids >= end
    first = np.arange(1, number)
    size = 2 * number + 1
    none = np.empty(0, np.int64)
    examples = [Example(np.concatenate([[end], row, row]), np.array([size]), none, none) for row in ids]
    batch = collate(examples, range(texts))
    early = (np.arange(texts)[:, None] * size + first).ravel()
    positions = torch.from_numpy(np.concatenate([early, early + number]))
    return replace(batch, label_positions=positions, labels=batch.input_ids[positions + 1]), len(early)


@torch.inference_mode()
def induction_scores(model: Model, repeated: tuple[Batch, int]) -> Float[Tensor, "L H"]:
    """Return the mean attention from repeated tokens to those after their first occurrence."""
    batch = repeated[0].to(next(model.parameters()).device)
    size = batch.max_seqlen
    states = hidden_states(model, batch, return_layers=tuple(range(len(model.body.layers) + 1)))
    rotations: dict[Any, Rotation] = model.body.rotations(batch.position_ids)
    scores = []
    layer: Any
    for number, layer in enumerate(model.body.layers):
        q, k, _ = layer.attention.split_heads(
            layer.attention.qkv(layer.attention_norm(states[number])), rotations.get(layer.theta)
        )
        probabilities = _attention(q, k, size, size // 2 + 1)
        # From the repeated token j to the first token j + 1.
        scores.append(probabilities.diagonal(2, -2, -1).mean((0, 2)))
    return torch.stack(scores).cpu()


def _attention(
    q: Float[Tensor, "N H K"], k: Float[Tensor, "N G K"], length: int, first: int
) -> Float[Tensor, "S H Q T"]:
    """Return the attention probabilities of the queries from `first` on, in sequences of one length."""
    k = repeat_heads(k, q.shape[1] // k.shape[1])
    q, k = (part.view(-1, length, *part.shape[1:]) for part in (q, k))  # (S, T, H, K)
    scores = torch.einsum("sqhk,sthk->shqt", q[:, first:], k) / math.sqrt(q.shape[-1])  # (S, H, Q, T)
    positions = torch.arange(length, device=q.device)
    is_future = positions > positions[first:, None]
    return scores.float().masked_fill(is_future, -math.inf).softmax(-1)
