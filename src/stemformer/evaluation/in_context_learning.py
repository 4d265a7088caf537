"""What a GPT makes of what it has read already: is a token late in a row easier than an early one, and does it find what it has seen?

Source: Olsson et al. 2022: the loss of the 500th token of a row of 512 less that of the 50th; prefix matching of each head on random
tokens that come twice. Here an eighth of a row stands for one place, and scales with its length.
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
from stemformer.models.gpt import GptLayer
from stemformer.models.model import Model
from stemformer.objectives.causal_lm import CausalLm
from stemformer.objectives.losses import linear_cross_entropy_sum
from stemformer.objectives.objective import Examples

_SEED = 2**40 + 3
_HELD_OUT_TOKENS = 8192
"""Of long sequences, at most."""
_SEARCHED = 4
"""Times as many tokens of rows are looked through for them."""
_TOKENS_AT_ONCE = 4096
_REPEATED = 50
"""Random tokens that come twice, at most."""
_TEXTS = 16
"""Sequences of them."""


def make_in_context(examples: Examples, objective: CausalLm) -> Callable[[Model], dict[str, Any]]:
    """Returns a function from a model to what it makes of what it has read, always asked on the same text.

    It gives `held_out_late_minus_early` (nats, below 0 where reading helps; missing where no held-out sequence fills seven eighths of a
    row), `repeat_gain` (nats), `induction_score` (the largest of all heads) and `heads` (the score of each head of each layer).

    Args:
        examples: Of the held-out split.
        objective: What is asked.
    """
    length = examples.row_length
    most = max(1, _HELD_OUT_TOKENS // length)
    rows = held_out_batches(examples, objective, num_examples=_SEARCHED * most)
    chosen = early_and_late(rows, length, most=most)
    number = min(_REPEATED, (length - 1) // 2)
    repeated = (
        repeated_tokens(examples.shards.vocab_size, end=objective.end, number=number, texts=_TEXTS)
        if number > 1
        else None
    )

    def measure(model: Model) -> dict[str, Any]:
        model.eval()
        told: dict[str, Any] = {"held_out_late_minus_early": late_minus_early(model, chosen)} if chosen else {}
        if repeated is not None:
            scores = induction_scores(model, repeated)
            told |= {"repeat_gain": repeat_gain(model, repeated), "induction_score": float(scores.max())}
            told["heads"] = [[round(score, 4) for score in layer] for layer in scores.tolist()]
        return told

    return measure


def early_and_late(batches: Sequence[Batch], row_length: int, *, most: int) -> list[tuple[Batch, int]]:
    """Returns batches of long sequences in which some places are scored, the early ones first, and how many these are.

    Long is a sequence that reaches into the last eighth of a row; its places there are late, those of the second sixteenth early. So
    both are of the same texts.

    Args:
        batches: Scored at all places, about.
        row_length: Tokens of a row.
        most: Sequences, at most.
    """
    eighth = row_length // 8
    long: list[Example] = []
    for batch in batches if eighth else []:
        places = batch.label_positions
        position = batch.position_ids[places]
        is_asked = ((position >= eighth // 2) & (position < eighth)) | (position >= row_length - eighth)
        for start, stop in pairwise(batch.cu_seqlens.tolist()):
            inside = is_asked & (places >= start) & (places < stop)
            if stop - start > row_length - eighth and position[inside][-1] >= eighth:
                ids, labels = batch.input_ids[start:stop].numpy(), batch.labels[inside].numpy()
                long.append(Example(ids, np.array([stop - start]), position[inside].numpy(), labels))
    long = long[:most]
    size = max(1, _TOKENS_AT_ONCE // row_length)
    parts = [long[a : a + size] for a in range(0, len(long), size)]
    return [_early_first(collate(part, range(len(part))), eighth) for part in parts]


def _early_first(batch: Batch, eighth: int) -> tuple[Batch, int]:
    is_early = batch.position_ids[batch.label_positions] < eighth
    order = torch.argsort(is_early, descending=True, stable=True)
    batch = replace(batch, label_positions=batch.label_positions[order], labels=batch.labels[order])
    return batch, int(is_early.sum())


@torch.inference_mode()
def late_minus_early(model: Model, chosen: Sequence[tuple[Batch, int]]) -> float:
    """Returns the mean loss (nats) of late places less that of early ones.

    Args:
        model: A GPT with its head.
        chosen: What `early_and_late` gave, at least one.
    """
    totals, counts = [0.0, 0.0], [0, 0]
    for batch, num_early in chosen:
        batch = batch.to(_device(model))
        states = _body(model, batch, rows=batch.label_positions)
        for i, part in enumerate((slice(num_early), slice(num_early, None))):
            loss = linear_cross_entropy_sum(*model.before_causal_lm_scores(states[part]), batch.labels[part])
            totals[i] += float(loss.total)
            counts[i] += loss.count
    return totals[1] / counts[1] - totals[0] / counts[0]


def repeated_tokens(vocab_size: int, *, end: int, number: int, texts: int) -> tuple[Batch, int]:
    """Returns texts of an end, random tokens, and the same tokens again, scored as `early_and_late` does it: first time, second time.

    The first of the tokens is left out, since nothing tells that they begin again.

    Args:
        vocab_size: Tokens are drawn from all of it but the end, uniformly.
        end: Id of the token that ends a document.
        number: Tokens that come twice, at least 2.
        texts: How many.
    """
    ids = example_generator(_SEED, 0, 0).integers(vocab_size - 1, size=(texts, number))
    ids += ids >= end
    first = np.arange(1, number)
    size = 2 * number + 1
    examples = [
        Example(np.concatenate([[end], row, row]), np.array([size]), np.empty(0, np.int64), np.empty(0, np.int64))
        for row in ids
    ]
    batch = collate(examples, range(texts))
    starts = np.arange(texts)[:, None] * size
    places = torch.from_numpy(np.concatenate([(starts + first).ravel(), (starts + number + first).ravel()]))
    return replace(batch, label_positions=places, labels=batch.input_ids[places + 1]), len(first) * texts


def repeat_gain(model: Model, repeated: tuple[Batch, int]) -> float:
    """Returns by how many nats a random token is easier the second time: 0 without any copying, at most about the log of V.

    Args:
        model: A GPT with its head.
        repeated: What `repeated_tokens` gave.
    """
    return -late_minus_early(model, [repeated])


@torch.inference_mode()
def induction_scores(model: Model, repeated: tuple[Batch, int]) -> Float[Tensor, "L H"]:
    """Returns, for each head, the mean attention from the second time of a token to what came behind its first time.

    Args:
        model: A GPT.
        repeated: What `repeated_tokens` gave.
    """
    batch = repeated[0].to(_device(model))
    size = batch.max_seqlen
    states = _body(model, batch, return_layers=tuple(range(len(model.body.layers) + 1)))
    scores = []
    for number, layer in enumerate(model.body.layers):
        assert isinstance(layer, GptLayer)
        probabilities = _attention(layer, states[number].view(-1, size, states[number].shape[-1]), size // 2 + 1)
        scores.append(
            probabilities.diagonal(2, -2, -1).mean((0, 2))
        )  # from the j-th token again to the (j+1)-th before
    return torch.stack(scores).cpu()


def _attention(layer: GptLayer, states: Float[Tensor, "S T D"], first: int) -> Float[Tensor, "S H Q T"]:
    """Returns how much each token from `first` on attends to each; the kernels of `attend` do not give that."""
    s, t, d = states.shape
    heads = layer.attention.num_heads
    q, k, _ = layer.attention.qkv(layer.attention_norm(states)).view(s, t, 3, heads, d // heads).unbind(2)
    scores = torch.einsum("sqhk,sthk->shqt", q[:, first:], k) / math.sqrt(d // heads)
    places = torch.arange(t, device=states.device)
    is_behind = places > places[first:, None]
    return scores.float().masked_fill(is_behind, -math.inf).softmax(-1)


def _body(model: Model, batch: Batch, **wanted: Any) -> Any:
    return model.body(
        batch.input_ids, batch.position_ids, batch.token_type_ids, batch.cu_seqlens, batch.max_seqlen, **wanted
    )


def _device(model: Model) -> torch.device:
    return model.body.embeddings.word.weight.device
