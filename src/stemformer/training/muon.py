"""Muon: orthogonalized momentum for matrices, AdamW for all other parameters."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stemformer.training.distributed import distribute_like, gather_full_tensor

# Polynomials a x + b x^3 + c x^5 whose composition brings singular values from 0.003 to 1 closest to 1, with
# 1 % to spare for rounding above 1.
_POLYNOMIALS = (
    (8.3007, -24.0375, 17.4661),
    (4.0034, -2.9228, 0.5419),
    (3.4709, -2.5494, 0.5002),
    (2.4655, -1.7803, 0.4156),
)


def newton_schulz(matrices: Float[Tensor, "B R C"]) -> Float[Tensor, "B R C"]:
    """Return, for each matrix, one with the same singular vectors and singular values near 1.

    Values from 0.003 of the Frobenius norm end between 0.8 and 1.2, smaller ones lower. Source: Jordan et al. 2024;
    polynomials: Amsel et al. 2025, section 3 (Polar Express).
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if is_tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for a, b, c in _POLYNOMIALS:
        gram = torch.bmm(x, x.transpose(1, 2))
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if is_tall else x


class Muon(torch.optim.AdamW):
    """Muon for matrices, AdamW for all other parameters.

    A matrix is updated by the nearest orthogonal matrix to its momentum: all directions of a matrix
    move equally far, including those with a small gradient. At the same learning rate, the update
    has about the root mean square of AdamW's. If matrices are sharded, each rank computes the full
    update. The key `matrices` marks a parameter group for Muon: each parameter stacks that many
    matrices, or matrices of these numbers of rows, with a learning rate of `lr_multiplier` times that
    of the other parameters. Matrices are updated only every `interval` steps, at `interval` times the
    rate, since orthogonalizing takes time; the momentum is that of every step.

    Source: Jordan et al. 2024 (Muon: an optimizer for hidden layers); update scale and weight
    decay: Liu et al. 2025, section 2.2.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        *,
        momentum: float,
        lr_multiplier: float,
        interval: int,
        precision: str,
        **options: Any,
    ) -> None:
        super().__init__(groups, fused=True, **options)
        self._momentum = momentum
        self._lr_multiplier = lr_multiplier
        self._interval = interval
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        groups = self.param_groups
        self.param_groups = others = [group for group in groups if "matrices" not in group]
        try:
            super().step()
        finally:
            self.param_groups = groups
        # AdamW counts steps, which a checkpoint has.
        counts = (self.state[p]["step"] for group in others for p in group["params"] if "step" in self.state[p])
        is_due = self._interval == 1 or int(next(counts, 0)) % self._interval == 0
        for group in groups:
            if "matrices" in group:
                self._step_matrices(group, is_due=is_due)

    def _step_matrices(self, group: dict[str, Any], *, is_due: bool) -> None:
        learning_rate = group["lr"] * self._lr_multiplier * self._interval
        matrices, stacks = group["matrices"], []
        for p in group["params"]:
            if p.grad is None:
                continue
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
            momentum = self.state[p]["momentum"]
            momentum.lerp_(p.grad, 1 - self._momentum)
            if not is_due:
                continue
            # Nesterov momentum.
            update = gather_full_tensor(p.grad.lerp(momentum, self._momentum))
            split = update.chunk(matrices) if isinstance(matrices, int) else update.split_with_sizes(tuple(matrices))
            stacks.append((p, list(split)))
        # Matrices of one shape are orthogonalized together.
        for shape in dict.fromkeys(part.shape for _, stack in stacks for part in stack):
            slots = [(stack, i) for _, stack in stacks for i, part in enumerate(stack) if part.shape == shape]
            updates = newton_schulz(torch.stack([stack[i].to(self._dtype) for stack, i in slots]))  # (B, R, C)
            for (stack, i), orthogonal in zip(slots, updates, strict=True):
                stack[i] = orthogonal
        for p, stack in stacks:
            # Root mean square of the update, relative to that of the first matrix.
            scale, *_ = scales = [0.2 * math.sqrt(max(part.shape)) for part in stack]
            parts = [part if s == scale else part * (s / scale) for part, s in zip(stack, scales, strict=True)]
            update = distribute_like(p, torch.cat(parts).to(p.dtype))
            p.mul_(1 - learning_rate * group["weight_decay"]).add_(update, alpha=-learning_rate * scale)
