"""What a model says about labelled or unlabelled records, and how good that is."""

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
"""Tokens of a batch that is only predicted."""


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
    """Returns the scores of each example, in the order given, and their mean loss (None where answers are not known).

    Examples of about one length go through the model together; nothing is padded.

    Args:
        module: With the task as its objective (`objectives.sentence_pairs.WithLoss`).
        task: Knows how many scores an example has.
        examples: Any number.
        device: Where the module is.
        batch_tokens: Tokens of a batch, about.
        on_examples: Told how many more are done.
    """
    module.eval()
    scores: list[Any] = [None] * len(examples)
    losses: list[tuple[LossSum, int]] = []
    for numbers, batch in _batches(examples, batch_tokens):
        moved = batch.to(device)
        rows = module(moved, return_logits=True)
        if batch.sequence_labels is not None or len(batch.labels):
            losses.append((task.loss_of(rows, moved), sum(task.counts(batch).values())))
        sizes = [task.num_scores(examples.examples[i]) for i in numbers]
        for number, part in zip(numbers, torch.split(rows.float().cpu(), sizes), strict=True):
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
    """Returns one vector for each example: the mean of its last hidden states, special tokens included, or the state that stands for it.

    Args:
        model: Its heads do not matter.
        examples: Of one sequence each.
        pooling: Which of the two.
        device: Where the model is.
        batch_tokens: Tokens of a batch, about.
        on_examples: Told how many more are done.

    Source: Reimers and Gurevych 2019, section 3.
    """
    model.eval()
    out = np.empty((len(examples), model.config.hidden_size), np.float32)
    for numbers, batch in _batches(examples, batch_tokens):
        batch = batch.to(device)
        places = (batch.input_ids, batch.position_ids, batch.token_type_ids)
        states = model.body(*places, batch.cu_seqlens, batch.max_seqlen).float()
        if pooling == "cls":
            rows = states.index_select(0, batch.summary_positions)
        else:
            lengths = (batch.cu_seqlens[1:] - batch.cu_seqlens[:-1]).long()
            owner = torch.repeat_interleave(torch.arange(len(numbers), device=device), lengths)
            rows = states.new_zeros(len(numbers), states.shape[1]).index_add_(0, owner, states) / lengths[:, None]
        out[numbers] = rows.cpu().numpy()
        if on_examples is not None:
            on_examples(len(numbers))
    return out


def _batches(examples: TaskExamples, batch_tokens: int) -> Iterator[tuple[list[int], Batch]]:
    order = np.argsort(-examples.sizes, kind="stable")  # the longest first: what does not fit into memory fails at once
    numbers: list[int] = []
    tokens = 0
    has_answer: bool | None = None
    for number in order.tolist():
        size, answered = int(examples.sizes[number]), examples.examples[number].sequence_labels is not None
        if numbers and (tokens + size > batch_tokens or answered != has_answer):
            yield numbers, collate([examples.examples[i] for i in numbers], numbers)
            numbers, tokens = [], 0
        numbers.append(number)
        tokens, has_answer = tokens + size, answered
    if numbers:
        yield numbers, collate([examples.examples[i] for i in numbers], numbers)
