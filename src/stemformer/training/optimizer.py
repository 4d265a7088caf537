"""The optimizer, and how the learning rate moves."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stemformer.errors import ConfigError
from stemformer.training.distributed import gather_full_tensor
from stemformer.training.muon import Muon


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


_DEFAULTS = OptimizerConfig()


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


def clip_grad_norm(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], longest: float) -> Tensor:
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
    whole = gather_full_tensor(norm)
    if longest and whole > longest:
        if isinstance(optimizer, Muon) or norm is not whole:
            torch.nn.utils.clip_grads_with_norm_(given, longest, norm)
        else:
            optimizer.grad_scale = (whole + 1e-6) / longest  # type: ignore[attr-defined]
    return whole


def state_names(group: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns what the optimizer keeps for each parameter of a group."""
    return ("momentum",) if "matrices" in group else ("step", "exp_avg", "exp_avg_sq")
