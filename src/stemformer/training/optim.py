"""The optimizer, and how the learning rate moves."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from stemformer.errors import ConfigError

__all__ = ["OptimizerConfig", "ScheduleConfig", "learning_rate_factor", "make_optimizer"]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with clipping.

    Attributes:
        learning_rate: Peak, reached after the warm-up.
        beta1: Decay of the mean of gradients.
        beta2: Decay of the mean of their squares.
        eps: Added to the root of the latter.
        weight_decay: Taken off matrices and embeddings each step, times the learning rate; biases and norms have none.
        clip_norm: Longest gradient, over all parameters; 0 turns clipping off.

    Source: Loshchilov and Hutter 2019, algorithm 2; BERT's values from Devlin et al. 2019, appendix A.2. The 2018 code leaves out the
    bias correction of the first steps; here it is in.
    """

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.01
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "eps", "weight_decay", "clip_norm"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"optimizer.{name} is {getattr(self, name)}: expected a finite number")
        if not self.learning_rate > 0:
            raise ConfigError(f"optimizer.learning_rate is {self.learning_rate}: expected a positive number")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ConfigError(f"optimizer.beta1, beta2 are {self.beta1}, {self.beta2}: expected numbers in [0, 1)")
        if min(self.eps, self.weight_decay, self.clip_norm) < 0:
            raise ConfigError("optimizer.eps, weight_decay and clip_norm: expected numbers that are not negative")


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


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Returns AdamW over two groups: matrices and embeddings, which decay, and biases and norms, which do not.

    Args:
        model: Parameters that need no gradient are left out.
        config: Rates.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
