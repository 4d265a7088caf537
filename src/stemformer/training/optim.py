"""The optimizer, and how the learning rate moves."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stemformer.errors import ConfigError
from stemformer.training.distributed import placed_as, whole_tensor

__all__ = [
    "Muon",
    "OptimizerConfig",
    "ScheduleConfig",
    "clip",
    "learning_rate_factor",
    "make_optimizer",
    "orthogonalise",
    "state_names",
]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with clipping, or Muon for the matrices of the layers and AdamW for the rest.

    Attributes:
        kind: `muon` takes fewer steps than `adamw` to the same loss, and a little longer for each (`docs/log.md`).
        learning_rate: Peak, reached after the warm-up.
        beta1: Decay of the mean of gradients.
        beta2: Decay of the mean of their squares.
        eps: Added to the root of the latter.
        weight_decay: Taken off matrices and embeddings each step, times the rate that they learn at; biases and norms have none.
        clip_norm: Longest gradient, over all parameters; 0 turns clipping off.
        matrix_rate: Of `muon`: how many times `learning_rate` the matrices learn at.
        momentum: Of `muon`: decay of the mean of gradients.

    Source: Loshchilov and Hutter 2019, algorithm 2; BERT's values from Devlin et al. 2019, appendix A.2. The 2018 code leaves out the
    bias correction of the first steps; here it is in.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    matrix_rate: float = 2.0
    momentum: float = 0.95

    def __post_init__(self) -> None:
        for name in ("learning_rate", "eps", "weight_decay", "clip_norm", "matrix_rate"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"optimizer.{name} is {getattr(self, name)}: expected a finite number")
        if not self.learning_rate > 0:
            raise ConfigError(f"optimizer.learning_rate is {self.learning_rate}: expected a positive number")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ConfigError(f"optimizer.beta1, beta2 are {self.beta1}, {self.beta2}: expected numbers in [0, 1)")
        if min(self.eps, self.weight_decay, self.clip_norm, self.matrix_rate) < 0:
            raise ConfigError(
                "optimizer.eps, weight_decay, clip_norm and matrix_rate: expected numbers that are not negative"
            )
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"optimizer.momentum is {self.momentum}: expected a number in [0, 1)")


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate as a share of its peak.

    Attributes:
        kind: After the warm-up: `linear` falls to `final_share`, `cosine` too along half a wave, `constant` stays, `wsd` (warm-up,
            stable, decay) stays and falls linearly over the last `decay_share` of the run.
        warmup_share: Share of the run over which the rate rises from 0 to the peak.
        warmup_steps: The same in steps, if set. A budget on the clock has no share to go by: 200 steps, if this is not set.
        decay_share: Of `wsd`.
        final_share: Share of the peak that the fall ends at, one step after the last.
    """

    kind: Literal["linear", "cosine", "constant", "wsd"] = "linear"
    warmup_share: float = 0.05
    warmup_steps: int | None = None
    decay_share: float = 0.2
    final_share: float = 0.0

    def __post_init__(self) -> None:
        for name in ("warmup_share", "decay_share", "final_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"schedule.{name} is {getattr(self, name)}: expected a share from 0 to 1")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ConfigError(f"schedule.warmup_steps is {self.warmup_steps}: expected 0 or more")


_DEFAULTS = OptimizerConfig()


def learning_rate_factor(step: int, num_steps: int, config: ScheduleConfig) -> float:
    """Returns the share of the peak learning rate at a step.

    Args:
        step: From 0; the first step already moves.
        num_steps: Steps of the whole run.
        config: Kind and shares.

    Example:
        >>> [learning_rate_factor(s, 4, ScheduleConfig(warmup_steps=2)) for s in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    warmup = config.warmup_steps if config.warmup_steps is not None else round(config.warmup_share * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    falling = num_steps - warmup
    if config.kind == "wsd":
        falling = min(falling, max(1, round(config.decay_share * num_steps)))
    if config.kind == "constant" or falling <= 0:
        return 1.0
    left = min(1.0, max(0.0, (num_steps - step) / falling))  # 1 where the fall begins, 1/falling at the last step
    if config.kind == "cosine":
        left = 0.5 - 0.5 * math.cos(math.pi * left)
    return config.final_share + (1 - config.final_share) * left


def make_optimizer(
    model: nn.Module,
    config: OptimizerConfig,
    *,
    precision: str = "fp32",
    scale: Callable[[str], float] | None = None,
) -> torch.optim.AdamW:
    """Returns the optimizer of a model.

    Its groups are matrices and embeddings, which decay; biases and norms, which do not; with `muon` also the matrices of the layers.

    Args:
        model: Parameters that need no gradient are left out.
        config: Kind and rates.
        precision: In which Muon multiplies matrices, `fp32` or `bf16`.
        scale: From a parameter's name to the factor on its learning rate, kept as `scale` in its group.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    is_muon = config.kind == "muon"
    hidden = [(name, p) for name, p in named if is_muon and "layers" in name.split(".") and p.ndim == 2]
    chosen = {id(p) for _, p in hidden}
    groups: list[dict[str, Any]] = []
    others: dict[float, list[nn.Parameter]] = {}
    for name, p in named:
        if id(p) not in chosen:
            others.setdefault(scale(name) if scale else 1.0, []).append(p)
    for factor, params in others.items():
        told = {"scale": factor} if scale else {}
        groups.append({"params": [p for p in params if p.ndim >= 2], "weight_decay": config.weight_decay, **told})
        groups.append({"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0, **told})
    if not is_muon and (config.matrix_rate, config.momentum) != (_DEFAULTS.matrix_rate, _DEFAULTS.momentum):
        warnings.warn("optimizer.matrix_rate and momentum are Muon's: no effect with kind = adamw", stacklevel=2)
    rates: dict[str, Any] = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2), "eps": config.eps}
    if not is_muon:
        return torch.optim.AdamW([g for g in groups if g["params"]], **rates, fused=True)
    for parts in (1, 3):  # query, key and value are one parameter, but three matrices
        params = [p for name, p in hidden if (3 if name.endswith("qkv.weight") else 1) == parts]
        groups.append({"params": params, "weight_decay": config.weight_decay, "matrices": parts})
    return Muon([g for g in groups if g["params"]], config, precision=precision, **rates)


def clip(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], longest: float) -> Tensor:
    """Returns the length of the whole gradient, and lets the optimizer's next step see it no longer than it may be.

    AdamW's kernel divides by the factor as it reads, so that no gradient is read and written for this alone; what is sharded or moved by
    Muon is scaled in place. A gradient that is short enough is left alone.

    Args:
        optimizer: About to step.
        parameters: Those with a gradient count.
        longest: Length that the gradient is shortened to; 0 for any.
    """
    given = [p for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in given if p.grad is not None])
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    whole = whole_tensor(norm)
    if longest and whole > longest:
        if isinstance(optimizer, Muon) or norm is not whole:
            torch.nn.utils.clip_grads_with_norm_(given, longest, norm)
        else:
            optimizer.grad_scale = (whole + 1e-6) / longest  # type: ignore[attr-defined]
    return whole


def state_names(group: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns what the optimizer keeps for each parameter of a group."""
    return ("momentum",) if "matrices" in group else ("step", "exp_avg", "exp_avg_sq")


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
        self, groups: Sequence[dict[str, Any]], config: OptimizerConfig, *, precision: str, **rates: Any
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
            update = whole_tensor(p.grad.lerp(momentum, self._config.momentum))  # Nesterov's
            same_size.setdefault(p.shape, []).append((p, update.view(group["matrices"], -1, update.shape[1])))
        for found in same_size.values():
            moves = orthogonalise(torch.cat([update.to(self._dtype) for _, update in found]))
            size = 0.2 * math.sqrt(max(moves.shape[1:]))
            for (p, _), move in zip(found, torch.split(moves, group["matrices"]), strict=True):
                move = placed_as(p, move.reshape(p.shape).to(p.dtype))
                p.mul_(1 - rate * group["weight_decay"]).add_(move, alpha=-rate * size)


def orthogonalise(matrices: Float[Tensor, "B R C"]) -> Float[Tensor, "B R C"]:
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
