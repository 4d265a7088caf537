"""AdamW and Muon: configuration, parameter groups, gradient clipping."""

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
    """AdamW, or Muon for the matrices of the layers and AdamW for the rest; gradient clipping.

    Attributes:
        kind: `muon` takes fewer, slightly slower steps to the same loss (`docs/log.md`).
        learning_rate: Peak, reached after warm-up.
        beta1: Decay of the mean of gradients.
        beta2: Decay of the mean of squared gradients.
        eps: Added to the square root of the latter.
        weight_decay: Decoupled weight decay of matrices and embeddings; biases and norms have none.
        max_grad_norm: Maximum global gradient norm; 0 disables clipping.
        muon_lr_multiplier: Learning rate of the matrices under `muon`, relative to `learning_rate`.
        momentum: Decay of the mean of gradients under `muon`.

    Source: Loshchilov and Hutter 2019, algorithm 2; BERT's values from Devlin et al. 2019, appendix
    A.2. The 2018 code omits the bias correction of the first steps; it is included here.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    muon_lr_multiplier: float = 2.0
    momentum: float = 0.95

    def __post_init__(self) -> None:
        for name in ("learning_rate", "eps", "weight_decay", "max_grad_norm", "muon_lr_multiplier"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"optimizer.{name} is {getattr(self, name)}: expected a finite number")
        if not self.learning_rate > 0:
            raise ConfigError(f"optimizer.learning_rate is {self.learning_rate}: expected a positive number")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ConfigError(f"optimizer.beta1, beta2 are {self.beta1}, {self.beta2}: expected numbers in [0, 1)")
        if min(self.eps, self.weight_decay, self.max_grad_norm, self.muon_lr_multiplier) < 0:
            raise ConfigError(
                "optimizer.eps, weight_decay, max_grad_norm and muon_lr_multiplier: expected numbers that are not negative"
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
    """Return the optimizer of a model's trainable parameters.

    Parameter groups: matrices and embeddings, with weight decay; biases and norms, without; for
    `muon`, the matrices of the layers.

    Args:
        precision: Number format of Muon's matrix products, `fp32` or `bf16`.
        scale: Maps a parameter's name to a factor on its learning rate.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    is_muon = config.kind == "muon"
    matrices = [(name, p) for name, p in named if is_muon and "layers" in name.split(".") and p.ndim == 2]
    matrix_ids = {id(p) for _, p in matrices}
    others: dict[float, list[nn.Parameter]] = {}
    for name, p in named:
        if id(p) not in matrix_ids:
            others.setdefault(scale(name) if scale else 1.0, []).append(p)
    groups: list[dict[str, Any]] = []
    for factor, params in others.items():
        extra = {"scale": factor} if scale else {}
        groups.append({"params": [p for p in params if p.ndim >= 2], "weight_decay": config.weight_decay, **extra})
        groups.append({"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0, **extra})
    options: dict[str, Any] = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2), "eps": config.eps}
    muon_options = {"lr_multiplier": config.muon_lr_multiplier, "momentum": config.momentum}
    if not is_muon:
        if muon_options != {"lr_multiplier": _DEFAULTS.muon_lr_multiplier, "momentum": _DEFAULTS.momentum}:
            message = "optimizer.muon_lr_multiplier and momentum have no effect with optimizer.kind = 'adamw'"
            warnings.warn(message, stacklevel=2)
        return torch.optim.AdamW([g for g in groups if g["params"]], **options, fused=True)
    # Query, key and value are one parameter, but three matrices.
    for number in (1, 3):
        params = [p for name, p in matrices if (3 if name.endswith("qkv.weight") else 1) == number]
        groups.append({"params": params, "weight_decay": config.weight_decay, "matrices": number})
    return Muon([g for g in groups if g["params"]], **muon_options, precision=precision, **options)


def clip_grad_norm(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Clip gradients to a maximum global norm and return the norm before clipping.

    Fused AdamW applies the factor inside its kernel, without an extra pass over the gradients;
    sharded parameters and those of Muon are scaled in place.

    Args:
        max_norm: 0 disables clipping.
    """
    with_grad = [p for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in with_grad if p.grad is not None])
    full_norm = gather_full_tensor(norm)
    is_sharded = norm is not full_norm
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    if max_norm and full_norm > max_norm:
        if isinstance(optimizer, Muon) or is_sharded:
            torch.nn.utils.clip_grads_with_norm_(with_grad, max_norm, norm)
        else:
            optimizer.grad_scale = (full_norm + 1e-6) / max_norm  # type: ignore[attr-defined]
    return full_norm


def state_names(group: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the optimizer's state tensors for the parameters of a group."""
    return ("momentum",) if "matrices" in group else ("step", "exp_avg", "exp_avg_sq")
