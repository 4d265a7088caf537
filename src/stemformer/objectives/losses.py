"""A loss is a sum and a count, so that what is divided by is known before the first forward."""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["LossSum", "cross_entropy_sum"]


@dataclass(frozen=True)
class LossSum:
    """The sum of a loss over some places, and how many.

    Attributes:
        total: () sum in nats.
        count: Places summed over; may be 0.
        correct: () how many of them the model got right.
    """

    total: Float[Tensor, ""]
    count: int
    correct: Int[Tensor, ""]


def cross_entropy_sum(logits: Float[Tensor, "M V"], labels: Int[Tensor, "M"]) -> LossSum:
    """Returns the summed cross-entropy of some places, computed in float32.

    Example:
        >>> import torch
        >>> cross_entropy_sum(torch.zeros(3, 4), torch.tensor([0, 1, 2])).total
        tensor(4.1589)
    """
    total = F.cross_entropy(logits.float(), labels, reduction="sum")
    return LossSum(total=total, count=len(labels), correct=(logits.argmax(-1) == labels).sum())
