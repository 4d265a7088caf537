"""Losses as a sum and a count, so that a step's divisor is known before its forward."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits in a chunk: 64 MiB in bfloat16, a thousand tokens of BERT's vocabulary.
_CHUNK_LOGITS, _CHUNK_LOGITS_GPU = 2**25, 2**27
# Columns of a product in float32 on the CPU, if there are many: 1.4 to 1.5 times as fast as all at once
# without bf16 units (`docs/log.md`, 2026-11-30).
_SPLIT, _MIN_SPLIT_VOCAB = 512, 2**14
# Chunk sizes are padded to multiples of this, or of 1 in 32 of their rows (see `models.layers.pad_to_bucket`).
_CHUNK_MULTIPLE = 16
# Logits in a block of the CPU's softmax: 1 MiB in float32, which stays in the cache.
_SOFTMAX_LOGITS = 2**18


@dataclass(frozen=True)
class LossSum:
    """Loss in nats, summed over `count` items, which may be 0."""

    total: Float[Tensor, ""]
    count: int
    # Number of correct predictions; None if undefined, as in regression.
    correct: Int[Tensor, ""] | None


def cross_entropy_sum(
    logits: Float[Tensor, "M V"],
    labels: Int[Tensor, "M"],
    *,
    weights: Float[Tensor, "V"] | None = None,
    label_smoothing: float = 0.0,
) -> LossSum:
    """Return the summed cross-entropy, computed in float32; `weights` are class weights."""
    weights = None if weights is None else weights.to(logits.device)
    total = F.cross_entropy(logits.float(), labels, weights, reduction="sum", label_smoothing=label_smoothing)
    return LossSum(total=total, count=len(labels), correct=(logits.argmax(-1) == labels).sum())


def linear_cross_entropy_sum(
    states: Float[Tensor, "M D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, "V"] | None,
    labels: Int[Tensor, "M"],
    *,
    label_smoothing: float = 0.0,
) -> LossSum:
    """Return the summed cross-entropy of `states @ weight.T + bias`, computed in chunks.

    Gradients are computed in the same pass over a chunk (Hsu et al. 2024, section 3.2). Logits have the
    dtype of autocast; softmax and loss are float32. A negative label is not scored, but counted.
    `label_smoothing` is the share of the target's probability that is spread evenly over all V ids.
    """
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
    with torch.autocast(device, enabled=False):
        total, correct = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
            states, weight, bias, labels, dtype, torch.is_grad_enabled(), label_smoothing
        )
    return LossSum(total=total, count=len(labels), correct=correct)


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes gradients in the forward pass and scales them in the backward pass."""

    @staticmethod
    def forward(ctx, states, weight, bias, labels, dtype, needs_grad, smoothing):  # type: ignore[no-untyped-def]
        x, w = states.to(dtype), weight.to(dtype)  # (M, D), (V, D)
        b = None if bias is None else bias.to(dtype)
        total, correct = states.new_zeros((), dtype=torch.float32), labels.new_zeros(())

        # Zero the states of tokens that are not scored. Checking for them would synchronize a GPU.
        is_scored = labels >= 0
        all_scored = x.device.type == "cpu" and bool(is_scored.all())
        if not all_scored:
            x, labels = x * is_scored[:, None], labels.clamp(min=0)

        # Pad the vocabulary: a GPU's products of other sizes take several times as long.
        padding = -len(w) % _vocab_multiple(x.device)
        if padding:
            w, b = F.pad(w, (0, 0, 0, padding)), None if b is None else F.pad(b, (0, padding))

        options: dict[str, Any] = {"smoothing": smoothing, "vocab_size": len(weight), "needs_grad": needs_grad}
        dx, dw, db = torch.empty_like(x), None, None
        # A CPU's product with a bias first copies it to all rows; added to a block in the cache it is cheap.
        adds_bias = x.device.type == "cpu"
        if bias is not None:
            db = torch.zeros_like(bias, dtype=torch.float32)
        max_logits = _CHUNK_LOGITS if x.device.type == "cpu" else _CHUNK_LOGITS_GPU
        size = max(_CHUNK_MULTIPLE, max_logits // len(w) // _CHUNK_MULTIPLE * _CHUNK_MULTIPLE)
        for start in range(0, max(1, len(x)), size):
            # Logits of a chunk; padded rows and vocabulary columns must not contribute.
            part, targets, mask = (values[start : start + size] for values in (x, labels, is_scored))
            multiple = max(_CHUNK_MULTIPLE, 1 << max(0, len(part).bit_length() - 6))
            padded = F.pad(part, (0, 0, 0, -len(part) % multiple))  # (m, D)
            logits = _project(padded, w, None if adds_bias else b)  # (m, V)
            if len(padded) > len(part):
                logits[len(part) :] = 0
            if padding:
                logits[: len(part), len(weight) :] = -torch.inf

            # Loss, and gradients of the logits in their place.
            for z, target, keep in _blocks(logits[: len(part)], targets[:, None], mask[:, None]):
                block_bias = b if adds_bias else None
                block_loss, block_correct = _loss_in_place(z, target, keep, block_bias, db, **options)
                total += block_loss
                correct += block_correct

            # Gradients of states and weight; those of several chunks are summed in float32.
            if needs_grad:
                dx[start : start + size] = (logits @ w)[: len(part)]
                if ctx.needs_input_grad[1]:
                    chunk_dw = logits.t() @ padded
                    dw = chunk_dw if dw is None else dw.float().add_(chunk_dw)
        if needs_grad:
            if not all_scored:
                dx *= is_scored[:, None]
            ctx.save_for_backward(dx, None if dw is None else dw[: len(weight)], db)
            ctx.dtypes = states.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):  # type: ignore[no-untyped-def]
        # Convert first: a product of two dtypes also converts, but takes three times as long.
        scaled = (None if x is None else x.to(torch.float32, copy=True).mul_(grad) for x in ctx.saved_tensors)
        pairs = zip(scaled, ctx.dtypes, strict=True)
        return *(None if x is None else x.to(dtype) for x, dtype in pairs), None, None, None, None


def _project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `x @ weight.T + bias`, (M, V)."""
    if bias is not None:
        return torch.addmm(bias, x, weight.t())
    if x.device.type != "cpu" or x.dtype != torch.float32 or len(weight) < _MIN_SPLIT_VOCAB:
        return x @ weight.t()
    logits = x.new_empty(len(x), len(weight))
    for start in range(0, len(weight), _SPLIT):
        columns = slice(start, start + _SPLIT)
        torch.mm(x, weight[columns].t(), out=logits[:, columns])
    return logits


def _vocab_multiple(device: torch.device) -> int:
    return 1 if device.type == "cpu" else 64


def _blocks(logits: Tensor, *per_row: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split tensors by rows into blocks that fit in the CPU's cache; one block on a GPU."""
    rows = max(1, _SOFTMAX_LOGITS // logits.shape[1]) if logits.device.type == "cpu" else max(1, len(logits))
    return zip(*(torch.split(x, rows) for x in (logits, *per_row)), strict=True)


def _loss_in_place(
    logits: Tensor,
    labels: Tensor,
    is_scored: Tensor,
    bias: Tensor | None,
    bias_grad: Tensor | None,
    *,
    smoothing: float,
    vocab_size: int,
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Return loss and number correct of logits plus `bias`; with `needs_grad`, logits become the gradient."""
    if logits.device.type != "cpu":
        options: dict[str, Any] = {"smoothing": smoothing, "vocab_size": vocab_size, "needs_grad": needs_grad}
        return _loss_in_place_gpu(logits, labels, is_scored, bias, bias_grad, **options)
    z = logits.float()
    if bias is not None:
        z.add_(bias)
    best, label_logits = z.amax(-1, keepdim=True), z.gather(1, labels)
    target_logits = label_logits
    if smoothing:
        target_logits = (1 - smoothing) * label_logits + smoothing * z.mean(-1, keepdim=True)
    # The label is the first of the largest logits: argmax only where it is one of them.
    rows = ((label_logits == best) & is_scored)[:, 0].nonzero()[:, 0]
    correct = (z.index_select(0, rows).argmax(-1, keepdim=True) == labels.index_select(0, rows)).sum()
    p = torch.softmax(z, -1, out=z)
    # From the largest probability: exact also where the label's probability underflows to 0.
    log_sum = best - p.amax(-1, keepdim=True).log()
    total = ((log_sum - target_logits) * is_scored).sum()
    if needs_grad:
        _subtract_target(p, labels, smoothing, vocab_size)
        if bias_grad is not None:
            bias_grad += (p if is_scored.all() else p * is_scored).sum(0)[: len(bias_grad)]
        if p is not logits:
            logits.copy_(p)
    return total, correct


def _loss_in_place_gpu(
    logits: Tensor,
    labels: Tensor,
    is_scored: Tensor,
    bias: Tensor | None,
    bias_grad: Tensor | None,
    *,
    smoothing: float,
    vocab_size: int,
    needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the same in few passes over the logits and without synchronization."""
    if bias is not None:
        logits.add_(bias)
    best, first = logits.max(-1, keepdim=True)
    p = torch.softmax(logits, -1, dtype=torch.float32)
    log_sum = best.float() - p.gather(1, first).log()
    target_logits = logits.gather(1, labels).float()
    if smoothing:
        mean = logits[:, :vocab_size].mean(-1, keepdim=True, dtype=torch.float32)
        target_logits = (1 - smoothing) * target_logits + smoothing * mean
    total = ((log_sum - target_logits) * is_scored).sum()
    correct = ((first == labels) & is_scored).sum()
    if needs_grad:
        _subtract_target(p, labels, smoothing, vocab_size)
        if bias_grad is not None:
            bias_grad += (is_scored.float().t() @ p)[0, : len(bias_grad)]
        logits.copy_(p)
    return total, correct


def _subtract_target(p: Tensor, labels: Tensor, smoothing: float, vocab_size: int) -> None:
    """Subtract the target's probabilities in place; columns from `vocab_size` on are padding."""
    p.scatter_add_(1, labels, p.new_full((), smoothing - 1.0).expand(labels.shape))
    if smoothing:
        p[:, :vocab_size] -= smoothing / vocab_size
