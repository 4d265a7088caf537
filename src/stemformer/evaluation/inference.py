"""Inference over examples: batches, scores of a task, and pooled hidden states."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from stemformer.data.examples.batch import Batch, Example, collate
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.generation.beam_search import BeamConfig, Hypothesis
from stemformer.generation.rewriting import decode_sources
from stemformer.models.model import Model
from stemformer.objectives.losses import LossSum
from stemformer.tasks.examples import TaskExamples
from stemformer.tasks.task import Task

# About as many in an inference batch.
BATCH_TOKENS = 4096
# Texts and beams that are written together.
_ROWS = 128

OnExamples = Callable[[int], None] | None
"""Called with the number of examples of each finished batch."""


def batch_slices(sizes: Sequence[int], max_tokens: int) -> Iterator[slice]:
    """Yield slices of consecutive examples with at most `max_tokens` tokens (or one example)."""
    begin, total = 0, 0
    for number, size in enumerate(sizes):
        if number > begin and total + size > max_tokens:
            yield slice(begin, number)
            begin, total = number, 0
        total += size
    if begin < len(sizes):
        yield slice(begin, len(sizes))


def even_slices(sizes: Sequence[int], max_tokens: int) -> Iterator[slice]:
    """Yield as few slices of consecutive examples with about `max_tokens` tokens as possible, of about equal size."""
    ends = np.cumsum(sizes)
    number = -(-int(ends[-1]) // max_tokens)
    bounds = np.unique(np.searchsorted(ends, ends[-1] * np.arange(1, number + 1) / number) + 1)
    yield from map(slice, [0, *bounds[:-1]], bounds)


def even_batches(examples: Sequence[Example], *, length: int, numbers: Sequence[int] | None = None) -> list[Batch]:
    """Collate examples of at most `length` tokens into batches of as many examples."""
    numbers = range(len(examples)) if numbers is None else numbers
    size = max(1, BATCH_TOKENS // length)
    return [collate(examples[a : a + size], numbers[a : a + size]) for a in range(0, len(examples), size)]


def masked_example(ids: np.ndarray, positions: np.ndarray, labels: np.ndarray, tokenizer: Tokenizer) -> Example:
    """Put a text between [CLS] and [SEP]; `positions` are those of its scored masks."""
    with_special = np.concatenate([[tokenizer.cls_token_id], ids, [tokenizer.sep_token_id]])
    return Example(with_special, np.array([len(with_special)]), positions + 1, labels)


def hidden_states(model: Model, batch: Batch, **options: Any) -> Any:
    """Return the hidden states of the body; `options` are those of its forward."""
    return model.body(
        batch.input_ids, batch.position_ids, batch.token_type_ids, batch.cu_seqlens, batch.max_seqlen, **options
    )


@torch.inference_mode()
def predict_scores(
    module: nn.Module, task: Task, examples: TaskExamples, *, device: torch.device, on_examples: OnExamples = None
) -> tuple[list[Any], float | None]:
    """Return the scores of each example, (rows, C), and the mean loss (None without labels) of a `LossModule`.

    Of a task that writes texts, the best `Hypothesis` of each example, None of those that are not written
    (`Seq2Seq.num_written`).
    """
    module.eval()
    if task.writes_texts:
        loss = _mean_loss(module, examples, device)
        # Within DDP.
        model: Any = getattr(module, "module", module).model
        return _write_texts(model, task, examples, on_examples), loss
    scores: list[Any] = [None] * len(examples)
    losses: list[tuple[LossSum, int]] = []
    for numbers, batch in _batches(examples, on_examples):
        moved = batch.to(device)
        logits = module(moved, return_logits=True)
        if batch.sequence_labels is not None or len(batch.labels):
            losses.append((task.loss_from_scores(logits, moved), sum(task.counts(batch).values())))
        sizes = [task.num_scores(examples.examples[i]) for i in numbers]
        for number, part in zip(numbers, torch.split(logits.float().cpu(), sizes), strict=True):
            scores[number] = part.numpy()
    count = sum(number for _, number in losses)
    return scores, float(sum(float(loss.total) for loss, _ in losses) / count) if count else None


def _mean_loss(module: nn.Module, examples: TaskExamples, device: torch.device) -> float | None:
    """Return the mean loss of the targets' tokens; None without targets."""
    losses = [
        loss
        for _, batch in _batches(examples, None)
        if batch.decoder is not None
        for loss in module(batch.to(device)).values()
    ]
    count = sum(loss.count for loss in losses)
    return float(sum(float(loss.total) for loss in losses) / count) if count else None


def _write_texts(model: Model, task: Any, examples: TaskExamples, on_examples: OnExamples) -> list[Hypothesis | None]:
    """Return what the model writes for each example, or for `task.num_written` of them, evenly apart."""
    number = min(len(examples), task.num_written or len(examples))
    chosen = np.linspace(0, len(examples) - 1, number).round().astype(int).tolist()
    config = BeamConfig(num_beams=task.config.num_beams, length_penalty=task.config.length_penalty)
    positions = model.config.max_position_embeddings
    first_tokens = [token for i in chosen if (token := examples.scored[i].first_token) is not None]
    found = decode_sources(
        [examples.examples[i].input_ids.tolist() for i in chosen],
        model,
        config,
        batch_size=max(1, _ROWS // config.num_beams),
        limit_of=lambda length: task.max_new_tokens(length, positions),
        first_tokens=first_tokens or None,
        on_batch=on_examples,
    )
    out: list[Hypothesis | None] = [None] * len(examples)
    for i, hypotheses in zip(chosen, found, strict=True):
        out[i] = hypotheses[0]
    return out


@torch.inference_mode()
def pooled_states(
    model: Model,
    examples: TaskExamples,
    *,
    pooling: Literal["mean", "cls"],
    device: torch.device,
    on_examples: OnExamples = None,
) -> Float[np.ndarray, "n D"]:
    """Return the mean state of each example's tokens, or that of its summary token.

    Source: Reimers and Gurevych 2019, section 3.
    """
    model.eval()
    out = np.empty((len(examples), model.config.hidden_size), np.float32)
    for numbers, batch in _batches(examples, on_examples):
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
    return out


def _batches(examples: TaskExamples, on_examples: OnExamples) -> Iterator[tuple[list[int], Batch]]:
    """Yield batches of examples of similar length, either all or none of them labelled."""
    # Longest first: running out of memory shows at once.
    order = np.argsort(-examples.sizes, kind="stable").tolist()
    for _, group in groupby(order, key=lambda i: _is_labelled(examples.examples[i])):
        members = list(group)
        for part in even_slices(examples.sizes[members].tolist(), BATCH_TOKENS):
            numbers = members[part]
            yield numbers, collate([examples.examples[i] for i in numbers], numbers)
            # The batch is finished.
            if on_examples is not None:
                on_examples(len(numbers))


def _is_labelled(example: Example) -> bool:
    return example.sequence_labels is not None or example.decoder_input_ids is not None
