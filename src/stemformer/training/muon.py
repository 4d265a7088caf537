"""Muon: orthogonalized momentum for matrices, AdamW for everything else."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from stemformer.training.distributed import distribute_like, gather_full_tensor

if TYPE_CHECKING:
    from stemformer.training.optimizer import OptimizerConfig


class Muon(torch.optim.AdamW):
    """Moves matrices along the nearest orthogonal matrix to their momentum, and all other parameters as AdamW does.

    All directions of a matrix move equally far, also those of which the gradient says little. At the same learning rate the step has
    about the root mean square of AdamW's. Where matrices are shared out over ranks, each rank computes the whole move.

    Args:
        groups: Those with a key `matrices` hold matrices, each parameter so many of the same size below each other.
        config: Momentum, and how many times the learning rate matrices move at.
        precision: Of the matrix products, `fp32` or `bf16`.
        rates: Of AdamW.

    Source: Jordan et al. 2024 (Muon: an optimizer for hidden layers); the size of the step and weight decay: Liu et al. 2025, section 2.2.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], config: "OptimizerConfig", *, precision: str, **rates: Any
    ) -> None:
        super().__init__(groups, fused=True, **rates)
        self._config = config
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Takes a step, from the gradients that are there."""
        groups = self.param_groups
        for group in groups:
            if "matrices" in group:
                self._step_matrices(group)
        self.param_groups = [group for group in groups if "matrices" not in group]
        try:
            super().step()
        finally:
            self.param_groups = groups

    def _step_matrices(self, group: dict[str, Any]) -> None:
        rate = group["lr"] * self._config.matrix_rate
        same_size: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for p in group["params"]:
            if p.grad is None:
                continue
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
            momentum = self.state[p]["momentum"]
            momentum.lerp_(p.grad, 1 - self._config.momentum)
            update = gather_full_tensor(p.grad.lerp(momentum, self._config.momentum))  # Nesterov's
            same_size.setdefault(p.shape, []).append((p, update.view(group["matrices"], -1, update.shape[1])))
        for found in same_size.values():
            moves = newton_schulz(torch.cat([update.to(self._dtype) for _, update in found]))
            size = 0.2 * math.sqrt(max(moves.shape[1:]))
            for (p, _), move in zip(found, torch.split(moves, group["matrices"]), strict=True):
                move = distribute_like(p, move.reshape(p.shape).to(p.dtype))
                p.mul_(1 - rate * group["weight_decay"]).add_(move, alpha=-rate * size)


def newton_schulz(matrices: Float[Tensor, "B R C"]) -> Float[Tensor, "B R C"]:
    """Returns, for each matrix, one with the same singular vectors and singular values near 1.

    Five steps of an iteration whose polynomial is steep at zero, so that small singular values grow fast: most end between 0.7 and 1.2,
    those that were next to nothing lower. Uses nothing but matrix products. Source: Jordan et al. 2024.

    Example:
        >>> q = orthogonalise(torch.diag(torch.tensor([5.0, 1.0]))[None])[0]
        >>> bool((q.diag() - 1).abs().max() < 0.35)
        True
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if is_tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = torch.bmm(x, x.transpose(1, 2))
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.transpose(1, 2) if is_tall else x
