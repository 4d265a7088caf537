"""Inference over task examples: scores of a task, and pooled hidden states."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from stemformer.data.examples.batch import Batch, collate
from stemformer.models.model import Model
from stemformer.objectives.losses import LossSum
from stemformer.tasks.examples import TaskExamples
from stemformer.tasks.task import Task

BATCH_TOKENS = 4096
"""Approximate number of tokens in an inference batch."""


def hidden_states(model: Model, batch: Batch, **options: Any) -> Any:
    """Return the hidden states of the body; `options` are those of its forward."""
    return model.body(
        batch.input_ids, batch.position_ids, batch.token_type_ids, batch.cu_seqlens, batch.max_seqlen, **options
    )


@torch.inference_mode()
def predict_scores(
    module: nn.Module,
    task: Task,
    examples: TaskExamples,
    *,
    device: torch.device,
    batch_tokens: int = BATCH_TOKENS,
    on_examples: Callable[[int], None] | None = None,
) -> tuple[list[Float[np.ndarray, "_ c"]], float | None]:
    """Return the scores of each example, and the mean loss (None without labels).

    Batches hold examples of similar length, without padding.

    Args:
        module: Has the task as its objective (`objectives.objective.LossModule`).
        on_examples: Called with the number of examples of each finished batch.
    """
    module.eval()
    scores: list[Any] = [None] * len(examples)
    losses: list[tuple[LossSum, int]] = []
    for numbers, batch in _batches(examples, batch_tokens):
        moved = batch.to(device)
        logits = module(moved, return_logits=True)
        if batch.sequence_labels is not None or len(batch.labels):
            losses.append((task.loss_from_scores(logits, moved), sum(task.counts(batch).values())))
        sizes = [task.num_scores(examples.examples[i]) for i in numbers]
        for number, part in zip(numbers, torch.split(logits.float().cpu(), sizes), strict=True):
            scores[number] = part.numpy()
        if on_examples is not None:
            on_examples(len(numbers))
    count = sum(number for _, number in losses)
    return scores, float(sum(float(loss.total) for loss, _ in losses) / count) if count else None


@torch.inference_mode()
def pooled_states(
    model: Model,
    examples: TaskExamples,
    *,
    pooling: Literal["mean", "cls"],
    device: torch.device,
    batch_tokens: int = BATCH_TOKENS,
    on_examples: Callable[[int], None] | None = None,
) -> Float[np.ndarray, "n D"]:
    """Return one vector per example, pooled from its last hidden states.

    Args:
        examples: One sequence each.
        pooling: Mean over all tokens, special tokens included, or the state of the summary token.
        on_examples: Called with the number of examples of each finished batch.

    Source: Reimers and Gurevych 2019, section 3.
    """
    model.eval()
    out = np.empty((len(examples), model.config.hidden_size), np.float32)
    for numbers, batch in _batches(examples, batch_tokens):
        batch = batch.to(device)
        states = hidden_states(model, batch).float()  # (N, D)
        if pooling == "cls":
            pooled = states.index_select(0, batch.summary_positions)  # (S, D)
        else:
            lengths = (batch.cu_seqlens[1:] - batch.cu_seqlens[:-1]).long()
            owner = torch.repeat_interleave(torch.arange(len(numbers), device=device), lengths)
            sums = states.new_zeros(len(numbers), states.shape[1]).index_add_(0, owner, states)
            pooled = sums / lengths[:, None]  # (S, D)
        out[numbers] = pooled.cpu().numpy()
        if on_examples is not None:
            on_examples(len(numbers))
    return out


def _batches(examples: TaskExamples, batch_tokens: int) -> Iterator[tuple[list[int], Batch]]:
    # Longest first: running out of memory shows at once.
    order = np.argsort(-examples.sizes, kind="stable")
    numbers: list[int] = []
    tokens = 0
    has_labels: bool | None = None
    for number in order.tolist():
        size, is_labelled = int(examples.sizes[number]), examples.examples[number].sequence_labels is not None
        if numbers and (tokens + size > batch_tokens or is_labelled != has_labels):
            yield numbers, collate([examples.examples[i] for i in numbers], numbers)
            numbers, tokens = [], 0
        numbers.append(number)
        tokens, has_labels = tokens + size, is_labelled
    if numbers:
        yield numbers, collate([examples.examples[i] for i in numbers], numbers)
