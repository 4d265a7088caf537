"""The held-out loss of a masked model, on rows and masks that never change, beside what word counts alone would give."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Integer

from stemformer.data.batches import Batch, collate, example_generator, permuted
from stemformer.data.windows import Rows
from stemformer.errors import DataError
from stemformer.models.model import Model
from stemformer.objectives.masked import MaskedLm

__all__ = ["held_out_batches", "make_evaluation", "score", "unigram_scores"]

_SEED = 2**40 + 1
"""Of the choice of rows and of their masks: the same in every run, so that figures of two runs compare."""


def held_out_batches(rows: Rows, objective: MaskedLm, *, num_rows: int, batch_rows: int = 32) -> list[Batch]:
    """Returns the same masked rows each time.

    Args:
        rows: Of the held-out split.
        objective: What is hidden.
        num_rows: How many rows, at most; they are drawn from all.
        batch_rows: Rows a batch.

    Raises:
        DataError: The split has no row.
    """
    if len(rows) == 0:
        raise DataError("the held-out split has no row: prepare the data again with a larger --held-out")
    chosen = permuted(np.arange(min(num_rows, len(rows))), len(rows), seed=_SEED, epoch=0).tolist()
    examples = [objective.corrupt(*rows.read(i), example_generator(_SEED, 0, i)) for i in chosen]
    starts = range(0, len(chosen), batch_rows)
    return [collate(examples[a : a + batch_rows], chosen[a : a + batch_rows]) for a in starts]


def unigram_scores(counts: Integer[np.ndarray, "V"], batches: list[Batch]) -> dict[str, float]:
    """Returns loss (nats) and accuracy of guessing by frequency alone, at the places that the batches score.

    Args:
        counts: How often each id stands in the training text; one is added to each, so that none is impossible.
        batches: Scored batches.
    """
    labels = torch.cat([batch.labels for batch in batches]).numpy()
    smoothed = counts.astype(np.float64) + 1
    log_p = np.log(smoothed / smoothed.sum())
    return {
        "unigram_loss": float(-log_p[labels].mean()),
        "unigram_accuracy": float((labels == smoothed.argmax()).mean()),
    }


@torch.inference_mode()
def score(model: Model, objective: MaskedLm, batches: list[Batch]) -> dict[str, float]:
    """Returns mean loss (nats) and accuracy over all scored places of the batches, by the objective's names of losses."""
    device = next(model.parameters()).device
    model.eval()
    totals: dict[str, list[float]] = {}
    for batch in _on(device, batches):
        states = model.body(
            batch.input_ids, batch.position_ids, batch.token_type_ids, batch.cu_seqlens, batch.max_seqlen
        )
        for name, loss in objective.loss(model, states, batch).items():
            sums = totals.setdefault(name, [0.0, 0.0, 0.0])
            sums[0] += float(loss.total)
            sums[1] += float(loss.correct)
            sums[2] += loss.count
    out: dict[str, float] = {}
    for name, (total, correct, count) in totals.items():
        out |= {f"{name}_loss": total / max(1.0, count), f"{name}_accuracy": correct / max(1.0, count)}
    return out


def make_evaluation(
    rows: Rows, objective: MaskedLm, *, num_rows: int, batch_rows: int = 32
) -> Callable[[Model], dict[str, float]]:
    """Returns a function from a model to its held-out figures, the unigram baseline among them.

    Args:
        rows: Of the held-out split.
        objective: What is hidden.
        num_rows: How many rows, at most.
        batch_rows: Rows a batch.
    """
    batches = held_out_batches(rows, objective, num_rows=num_rows, batch_rows=batch_rows)
    baseline = unigram_scores(rows.shards.unigram_counts, batches)
    return lambda model: {f"held_out_{n}": v for n, v in {**score(model, objective, batches), **baseline}.items()}


def _on(device: torch.device, batches: list[Batch]) -> Iterator[Batch]:
    return (batch.to(device) for batch in batches)
