"""Language-model loss over a sample of a large vocabulary, for training on a CPU."""

import math
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from stemformer.models.embeddings import look_up
from stemformer.models.model import Model
from stemformer.objectives.losses import LossSum, linear_cross_entropy_sum

# Share of the ids that are the most frequent ones of the text.
_FREQUENT_SHARE = 2 / 3


class SampledSoftmax:
    """Estimates the cross-entropy over a vocabulary from `size` of its ids.

    These are the most frequent ids, the labels, and a random sample of the others, whose terms in the
    softmax's sum are weighted by the inverse of their share, so that the expected sum is that over all
    ids. The sample is as large as the number of labels that are not frequent, or larger.

    Source: Bengio and Senécal 2008, section 2 (estimated sum); Jean et al. 2015, section 3 (one sample
    for a batch).
    """

    def __init__(self, unigram_counts: Integer[np.ndarray, "V"], *, size: int) -> None:
        """Make it for a vocabulary of more than `size` ids."""
        self.size = size
        self._num_frequent = round(_FREQUENT_SHARE * size)
        # Ids from the most frequent on, and the rank of each.
        self._ids = torch.from_numpy(np.argsort(-unigram_counts.astype(np.int64), kind="stable"))
        self._ranks = torch.argsort(self._ids)

    def sample(self, labels: Int[Tensor, "M"]) -> tuple[Int[Tensor, "C"], Float[Tensor, "C"]]:
        """Return ids and the logs of their weights, by PyTorch's global generator."""
        start, number = self._num_frequent, len(self._ids) - self._num_frequent
        ranks = self._ranks[labels] - start
        is_label = torch.zeros(number, dtype=torch.bool)
        is_label[ranks[ranks >= 0]] = True
        rare_labels = is_label.nonzero()[:, 0]
        order = torch.randperm(number)
        others = order[~is_label[order]]
        sampled = others[: max(self.size - start - len(rare_labels), len(rare_labels))]
        ids = self._ids[torch.cat([torch.arange(start), start + rare_labels, start + sampled])]
        log_weights = torch.zeros(len(ids))
        if len(sampled):
            log_weights[-len(sampled) :] = math.log(len(others) / len(sampled))
        return ids, log_weights

    def loss_sum(
        self,
        states: Float[Tensor, "M D"],
        weight: Float[Tensor, "V D"],
        bias: Float[Tensor, "V"] | None,
        labels: Int[Tensor, "M"],
    ) -> LossSum:
        """Return the estimate of `linear_cross_entropy_sum`, without the number of correct predictions."""
        is_scored = labels >= 0
        ids, log_weights = self.sample(labels[is_scored])
        columns = torch.empty(len(self._ids), dtype=torch.long)
        columns[ids] = torch.arange(len(ids))
        targets = torch.where(is_scored, columns[labels.clamp(min=0)], labels)
        offsets = log_weights if bias is None else log_weights + bias.index_select(0, ids)
        return replace(linear_cross_entropy_sum(states, look_up(weight, ids), offsets, targets), correct=None)


def make_sampled_softmax(size: int, unigram_counts: Integer[np.ndarray, "V"] | None) -> SampledSoftmax | None:
    """Return a softmax over `size` ids; None if that is 0 or not below V, or without counts."""
    if unigram_counts is None or not 0 < size < len(unigram_counts):
        return None
    return SampledSoftmax(unigram_counts, size=size)


def lm_loss_sum(
    model: Model, states: Float[Tensor, "M D"], labels: Int[Tensor, "M"], sampled: SampledSoftmax | None
) -> LossSum:
    """Return the summed cross-entropy of a model's language-model head.

    If `sampled`, an estimate while gradients are computed; without gradients always exact.
    """
    loss_sum = sampled.loss_sum if sampled is not None and torch.is_grad_enabled() else linear_cross_entropy_sum
    return loss_sum(*model.lm_projection(states), labels)
