"""A loss is a sum and a count, so that what is divided by is known before the first forward."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

_SCORES_AT_ONCE, _SCORES_AT_ONCE_ON_GPU = 2**25, 2**27
"""How many scores a chunk of `linear_cross_entropy_sum` holds: 64 MiB in bfloat16, a thousand places of BERT's vocabulary."""

_PLACES_STEP = 16
"""Chunks hold a multiple of this many places; what is missing in the last one is filled with zeros, at most 1 in 32 beyond these, so that
few shapes occur (see `models.layers.with_spare_rows`, and `docs/log.md` for what a new one costs)."""

_SOFTMAX_AT_ONCE = 2**20
"""How many of these a softmax on the CPU sees: 4 MiB in float32, which stay in the cache from one operation to the next."""


@dataclass(frozen=True)
class LossSum:
    """The sum of a loss over some places, and how many.

    Attributes:
        total: () sum in nats.
        count: Places summed over; may be 0.
        correct: () how many of them the model got right; None where that is no question, as for a number.
    """

    total: Float[Tensor, ""]
    count: int
    correct: Int[Tensor, ""] | None


def cross_entropy_sum(
    logits: Float[Tensor, "M V"],
    labels: Int[Tensor, "M"],
    *,
    weights: Float[Tensor, "V"] | None = None,
    label_smoothing: float = 0.0,
) -> LossSum:
    """Returns the summed cross-entropy of some places, computed in float32.

    Args:
        logits: Scores.
        labels: What should stand there.
        weights: What a place counts, by its label.
        label_smoothing: Share of the probability that is spread evenly over all labels.

    Example:
        >>> import torch
        >>> cross_entropy_sum(torch.zeros(3, 4), torch.tensor([0, 1, 2])).total
        tensor(4.1589)
    """
    weights = None if weights is None else weights.to(logits.device)
    total = F.cross_entropy(logits.float(), labels, weights, reduction="sum", label_smoothing=label_smoothing)
    return LossSum(total=total, count=len(labels), correct=(logits.argmax(-1) == labels).sum())


def linear_cross_entropy_sum(
    states: Float[Tensor, "M D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, "V"] | None,
    labels: Int[Tensor, "M"],
) -> LossSum:
    """Returns the summed cross-entropy of the scores `states @ weight.T + bias`, without ever holding all of them.

    Places are taken in chunks; where a gradient will be asked for, it is computed in the same pass over a chunk, so its scores are made
    once and dropped. Scores are made in the dtype of autocast, their softmax and the loss in float32.

    Args:
        states: Of the scored places.
        weight: Output matrix.
        bias: Added to the scores; None adds nothing.
        labels: What should stand there; a place with a negative one is not scored, though counted.

    Example:
        >>> import torch
        >>> linear_cross_entropy_sum(torch.ones(3, 2), torch.zeros(4, 2), torch.zeros(4), torch.tensor([0, 1, 2])).total
        tensor(4.1589)

    Source: Hsu et al. 2024, section 3.2 (gradients of a linear layer and its cross-entropy in one pass, in chunks).
    """
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
    with torch.autocast(device, enabled=False):
        total, correct = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
            states, weight, bias, labels, dtype, torch.is_grad_enabled()
        )
    return LossSum(total=total, count=len(labels), correct=correct)


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are those of the sum, kept by the forward and scaled in the backward."""

    @staticmethod
    def forward(ctx, states, weight, bias, labels, dtype, is_trained):  # type: ignore[no-untyped-def]
        x, w = states.to(dtype), weight.to(dtype)
        b = None if bias is None else bias.to(dtype)
        total, correct = states.new_zeros((), dtype=torch.float32), labels.new_zeros(())
        is_scored = labels >= 0
        is_whole = x.device.type == "cpu" and bool(is_scored.all())  # elsewhere a look at it would wait for the device
        if not is_whole:
            x, labels = x * is_scored[:, None], labels.clamp(min=0)
        spare = -len(w) % _columns_step(x.device)
        if spare:
            w, b = F.pad(w, (0, 0, 0, spare)), None if b is None else F.pad(b, (0, spare))
        dx, dw, db = torch.empty_like(x), None, None
        if bias is not None:
            db = torch.zeros_like(bias, dtype=torch.float32)
        at_once = _SCORES_AT_ONCE if x.device.type == "cpu" else _SCORES_AT_ONCE_ON_GPU
        size = max(_PLACES_STEP, at_once // len(w) // _PLACES_STEP * _PLACES_STEP)
        for start in range(0, max(1, len(x)), size):
            part, targets, counted = (whole[start : start + size] for whole in (x, labels, is_scored))
            step = max(_PLACES_STEP, 1 << max(0, len(part).bit_length() - 6))
            padded = F.pad(part, (0, 0, 0, -len(part) % step))
            scores = padded @ w.t() if b is None else torch.addmm(b, padded, w.t())  # (m, V)
            if len(padded) > len(part):
                scores[len(part) :] = 0
            if spare:
                scores[: len(part), len(weight) :] = -torch.inf
            for z, target, is_counted in _cached(scores[: len(part)], targets, counted):
                of_rows, right = _score_in_place(z, target[:, None], is_counted[:, None], db, is_trained=is_trained)
                total += of_rows
                correct += right
            if is_trained:
                dx[start : start + size] = (scores @ w)[: len(part)]
                if ctx.needs_input_grad[1]:
                    of_part = scores.t() @ padded
                    dw = of_part if dw is None else dw.float().add_(of_part)  # more than one chunk adds up in float32
        if is_trained:
            if not is_whole:
                dx *= is_scored[:, None]
            ctx.save_for_backward(dx, None if dw is None else dw[: len(weight)], db)
            ctx.dtypes = states.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):  # type: ignore[no-untyped-def]
        # Converted first: a product of two dtypes converts as well, and takes three times as long.
        scaled = (None if x is None else x.to(torch.float32, copy=True).mul_(grad) for x in ctx.saved_tensors)
        kinds = zip(scaled, ctx.dtypes, strict=True)
        return *(None if x is None else x.to(dtype) for x, dtype in kinds), None, None, None


def _columns_step(device: torch.device) -> int:
    """Returns what the number of columns should be a multiple of: on a GPU, products of other sizes take several times as long."""
    return 1 if device.type == "cpu" else 64


def _cached(scores: Tensor, *of_rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yields rows of the scores, and what else there is of them, that stay in the processor's cache from one operation to the next."""
    rows = max(1, _SOFTMAX_AT_ONCE // scores.shape[1]) if scores.device.type == "cpu" else max(1, len(scores))
    return zip(*(torch.split(x, rows) for x in (scores, *of_rows)), strict=True)


def _score_in_place(
    scores: Tensor, labels: Tensor, is_scored: Tensor, bias_gradient: Tensor | None, *, is_trained: bool
) -> tuple[Tensor, Tensor]:
    """Returns summed loss and number of right answers of some rows; for a gradient, the scores become that of the sum.

    That of a bias, where there is one, is added to what is given. Rows that are not scored get a gradient all the same, which whoever
    multiplies it leaves out.
    """
    if scores.device.type != "cpu":
        return _score_on_gpu(scores, labels, is_scored, bias_gradient, is_trained=is_trained)
    z = scores.float()
    p = torch.softmax(z, -1)
    best, of_labels = z.amax(-1, keepdim=True), z.gather(1, labels)
    log_sum = best - p.amax(-1, keepdim=True).log()  # exact also where a probability is 0 in float32
    total = ((log_sum - of_labels) * is_scored).sum()
    right = _num_right(scores, labels, (of_labels == best) & is_scored)
    if is_trained:
        p.scatter_add_(1, labels, p.new_full((), -1.0).expand(labels.shape))
        if bias_gradient is not None:
            bias_gradient += (p if is_scored.all() else p * is_scored).sum(0)[: len(bias_gradient)]
        scores.copy_(p)
    return total, right


def _num_right(scores: Tensor, labels: Tensor, is_best: Tensor) -> Tensor:
    """Returns how many labels are the first of the best scores, looking closer only at rows where the label's score is the best."""
    candidates = is_best[:, 0].nonzero()[:, 0]
    return (scores.index_select(0, candidates).argmax(-1, keepdim=True) == labels.index_select(0, candidates)).sum()


def _score_on_gpu(
    scores: Tensor, labels: Tensor, is_scored: Tensor, bias_gradient: Tensor | None, *, is_trained: bool
) -> tuple[Tensor, Tensor]:
    """Does the same in few passes over the scores, since it is memory that they wait for; waits for nothing itself."""
    best, first = scores.max(-1, keepdim=True)
    p = torch.softmax(scores, -1, dtype=torch.float32)
    log_sum = best.float() - p.gather(1, first).log()
    total = ((log_sum - scores.gather(1, labels).float()) * is_scored).sum()
    right = ((first == labels) & is_scored).sum()
    if is_trained:
        p.scatter_add_(1, labels, p.new_full((), -1.0).expand(labels.shape))
        if bias_gradient is not None:
            bias_gradient += (is_scored.float().t() @ p)[0, : len(bias_gradient)]
        scores.copy_(p)
    return total, right
