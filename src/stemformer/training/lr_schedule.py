"""The optimizer, and how the learning rate moves."""

import math
from dataclasses import dataclass
from typing import Literal

from stemformer.errors import ConfigError


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
