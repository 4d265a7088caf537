"""Embeddings, and gradients of a matrix of which a training step uses few rows."""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class WordEmbedding(nn.Embedding):
    """Word embedding, whose gradient may hold only the rows looked up on the CPU."""

    # To be added to the dense gradient of a tied LM head, unless gradients are kept.
    has_sparse_gradient = False

    def forward(self, input_ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        # On a GPU, sparse gradients are not reproducible and synchronize with the CPU.
        return look_up(self.weight, input_ids, sparse=self.has_sparse_gradient and input_ids.device.type == "cpu")


class PositionEmbedding(nn.Embedding):
    """Learned position embedding, initialized with sinusoids (see `models.bert.Bert`)."""


def sinusoids(length: int, size: int) -> Float[Tensor, "T D"]:
    """Return interleaved sines and cosines (Vaswani et al. 2017, section 3.5)."""
    angles = torch.arange(length)[:, None] * 10_000.0 ** (-torch.arange(0, size, 2) / size)  # (T, D / 2)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :size]


def look_up(
    weight: Float[Tensor, "V D"], ids: Int[Tensor, "*shape"], *, sparse: bool = False
) -> Float[Tensor, "*shape D"]:
    """Return rows of a matrix; its gradient is sparse if `sparse`, or if it is kept (`KeptGradients`)."""
    ids_used = getattr(weight, "ids_used", None)
    if ids_used is not None and torch.is_grad_enabled():
        ids_used.append(ids.reshape(-1))
    return nn.functional.embedding(ids, weight, sparse=sparse or ids_used is not None)


class KeptGradients:
    """Dense gradients on the CPU, kept over the steps, of matrices that steps only `look_up`.

    Otherwise each step allocates and zeroes gradients of the size of the vocabulary, and adds them up; here only the
    rows used are written. `clear` must follow each optimizer step. A copy of a model has ordinary gradients.
    """

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        self._weights = list(weights)
        self._gradients = [torch.zeros_like(weight) for weight in self._weights]
        for weight, gradient in zip(self._weights, self._gradients, strict=True):
            weight.grad, weight.ids_used = gradient, []  # type: ignore[attr-defined]

    def clear(self) -> None:
        """Zero the gradients."""
        for weight, gradient in zip(self._weights, self._gradients, strict=True):
            for ids in weight.ids_used:  # type: ignore[attr-defined]
                gradient.index_fill_(0, ids, 0)
            weight.ids_used.clear()  # type: ignore[attr-defined]
            weight.grad = gradient

    def release(self) -> None:
        """Give the matrices ordinary gradients again."""
        for weight in self._weights:
            weight.grad = None
            del weight.ids_used  # type: ignore[attr-defined]
        self._weights, self._gradients = [], []
