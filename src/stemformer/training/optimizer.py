"""Optimizer: configuration, parameter groups, gradient clipping."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stemformer.config import check_at_least, check_fields
from stemformer.models.layers import row_parts
from stemformer.training.distributed import gather_full_tensor
from stemformer.training.muon import Muon


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, or Muon for the matrices of the layers and AdamW for the rest; gradient clipping.

    Source: Loshchilov and Hutter 2019, algorithm 2; BERT's values from Devlin et al. 2019, appendix
    A.2. The 2018 code omits the bias correction of the first steps; it is included here.
    """

    # `muon` takes fewer, slightly slower steps to the same loss (`docs/log.md`).
    kind: Literal["adamw", "muon"] = "adamw"
    # Peak, reached after warm-up; none, for fine-tuning only: `finetuning_learning_rate`.
    learning_rate: float | None = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    # Decoupled weight decay of matrices and embeddings; biases and norms have none.
    weight_decay: float = 0.01
    # Maximum global gradient norm; 0 disables clipping.
    max_grad_norm: float = 1.0
    # Learning rate of the matrices under `muon`, relative to `learning_rate`.
    muon_lr_multiplier: float = 2.0
    # Steps between updates of the matrices under `muon`, each at that many times the rate.
    muon_interval: int = 1
    # Decay of the mean of gradients under `muon`.
    momentum: float = 0.95

    def __post_init__(self) -> None:
        floats = ("eps", "weight_decay", "max_grad_norm", "muon_lr_multiplier")
        check_fields(self, "optimizer.", "a finite number", math.isfinite, "learning_rate", *floats)
        check_fields(self, "optimizer.", "a positive number", lambda x: x > 0, "learning_rate")
        check_fields(self, "optimizer.", "a number in [0, 1)", lambda x: 0 <= x < 1, "beta1", "beta2", "momentum")
        check_at_least(0, self, "optimizer.", *floats)
        check_at_least(1, self, "optimizer.", "muon_interval")


def make_optimizer(
    model: nn.Module, config: OptimizerConfig, *, precision: str = "fp32", scale: Callable[[str], float] | None = None
) -> torch.optim.AdamW:
    """Return the optimizer of trainable parameters; `scale` maps names to learning-rate factors."""
    is_muon = config.kind == "muon"
    parts = row_parts(model)
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        # Biases and norms have no weight decay.
        group: dict[str, Any] = {"weight_decay": config.weight_decay if p.ndim >= 2 else 0.0}
        if is_muon and "layers" in name.split(".") and p.ndim == 2:
            # Query, key and value are one parameter, but three matrices.
            rows = parts.get(name, (len(p),))
            group["matrices"] = len(rows) if len({*rows}) == 1 else rows
        elif scale:
            group["scale"] = scale(name)
        groups.setdefault(tuple(group.items()), {"params": [], **group})["params"].append(p)
    options: dict[str, Any] = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2), "eps": config.eps}
    if is_muon:
        return Muon(
            list(groups.values()),
            momentum=config.momentum,
            lr_multiplier=config.muon_lr_multiplier,
            interval=config.muon_interval,
            precision=precision,
            **options,
        )
    names = ("muon_lr_multiplier", "muon_interval", "momentum")
    if set_names := [name for name in names if getattr(config, name) != getattr(OptimizerConfig, name)]:
        message = f"optimizer.{set_names[0]} has no effect with optimizer.kind = 'adamw'"
        warnings.warn(message, stacklevel=2)
    return torch.optim.AdamW(list(groups.values()), **options, fused=True)


def finetuning_learning_rate(hidden_size: int) -> float:
    """Return the default peak learning rate of fine-tuning: the smaller the model, the higher.

    Source: Devlin et al. 2019, appendix A.3, for 768 hidden units and more (3e-5); smaller models were
    measured (`docs/log.md`, 2026-11-29).
    """
    return float(f"{min(1e-3, 3e-5 * max(1.0, 768 / hidden_size) ** 2):.2g}")


def clip_grad_norm(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Clip gradients to a maximum global norm (0: no limit); return the norm before clipping."""
    with_grad = [p for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in with_grad if p.grad is not None])
    full_norm = gather_full_tensor(norm)
    is_sharded = norm is not full_norm
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    if max_norm and full_norm > max_norm:
        if isinstance(optimizer, Muon) or is_sharded:
            torch.nn.utils.clip_grads_with_norm_(with_grad, max_norm, norm)
        else:
            # Fused AdamW applies the factor inside its kernel, without another pass over the gradients.
            optimizer.grad_scale = (full_norm + 1e-6) / max_norm  # type: ignore[attr-defined]
    return full_norm


def state_names(group: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the optimizer's state tensors for the parameters of a group."""
    return ("momentum",) if "matrices" in group else ("step", "exp_avg", "exp_avg_sq")
