"""Learning-rate schedules."""

import math
from dataclasses import dataclass
from typing import Literal

from stemformer.errors import ConfigError


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning-rate schedule: warm-up, then decay.

    Attributes:
        kind: After warm-up, `linear` and `cosine` decay to `min_lr_ratio`, `constant` stays at the
            peak, `wsd` (warm-up, stable, decay) stays and decays linearly over the last
            `decay_ratio` of the run.
        warmup_ratio: Fraction of the run over which the rate rises linearly from 0 to the peak.
        warmup_steps: Number of warm-up steps, instead of `warmup_ratio`. A wall-clock budget cannot
            use the ratio; it takes 200 steps by default.
        decay_ratio: Fraction of the run over which `wsd` decays.
        min_lr_ratio: End of the decay as a fraction of the peak, reached one step after the last.
    """

    kind: Literal["linear", "cosine", "constant", "wsd"] = "linear"
    warmup_ratio: float = 0.05
    warmup_steps: int | None = None
    decay_ratio: float = 0.2
    min_lr_ratio: float = 0.0

    def __post_init__(self) -> None:
        for name in ("warmup_ratio", "decay_ratio", "min_lr_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"schedule.{name} is {getattr(self, name)}: expected a fraction from 0 to 1")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ConfigError(f"schedule.warmup_steps is {self.warmup_steps}: expected 0 or more")


def learning_rate_factor(step: int, num_steps: int, config: ScheduleConfig) -> float:
    """Return the learning rate at a step, as a fraction of its peak.

    Args:
        step: From 0; step 0 already has a positive rate.
        num_steps: Steps of the run.

    Example:
        >>> [learning_rate_factor(s, 4, ScheduleConfig(warmup_steps=2)) for s in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    num_warmup = config.warmup_steps if config.warmup_steps is not None else round(config.warmup_ratio * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    num_decay = num_steps - num_warmup
    if config.kind == "wsd":
        num_decay = min(num_decay, max(1, round(config.decay_ratio * num_steps)))
    if config.kind == "constant" or num_decay <= 0:
        return 1.0
    left = min(1.0, max(0.0, (num_steps - step) / num_decay))  # 1 at the start of the decay, 1/num_decay at the end
    if config.kind == "cosine":
        left = 0.5 - 0.5 * math.cos(math.pi * left)
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * left
