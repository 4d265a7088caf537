"""Learning-rate schedules: linear, cosine, constant, and WSD (warm-up, stable, decay)."""

import math
from dataclasses import dataclass
from typing import Literal

from stemformer.config import check_at_least, check_fields


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning-rate schedule: warm-up, then decay."""

    # After warm-up, `linear` and `cosine` decay to `min_lr_ratio`, `constant` stays at the peak, `wsd`
    # (warm-up, stable, decay) decays linearly over the last `decay_ratio` of the run.
    kind: Literal["linear", "cosine", "constant", "wsd"] = "linear"
    # Fraction of the run over which the rate rises linearly from 0 to the peak.
    warmup_ratio: float = 0.05
    # Warm-up steps instead of `warmup_ratio`.
    warmup_steps: int | None = None
    # Fraction of the run over which `wsd` decays.
    decay_ratio: float = 0.2
    # End of the decay as a fraction of the peak, reached one step after the last.
    min_lr_ratio: float = 0.0

    def __post_init__(self) -> None:
        ratios = ("warmup_ratio", "decay_ratio", "min_lr_ratio")
        check_fields(self, "schedule.", "a fraction from 0 to 1", lambda x: 0 <= x <= 1, *ratios)
        check_at_least(0, self, "schedule.", "warmup_steps")


def learning_rate_factor(step: int, num_steps: int, config: ScheduleConfig) -> float:
    """Return the learning rate at a step, from 0, as a fraction of its peak."""
    num_warmup = config.warmup_steps if config.warmup_steps is not None else round(config.warmup_ratio * num_steps)
    num_decay = 0 if config.kind == "constant" else max(0, num_steps - num_warmup)
    if config.kind == "wsd":
        num_decay = min(num_decay, max(1, round(config.decay_ratio * num_steps)))
    return warmup_and_decay(step, num_warmup, range(num_steps - num_decay, num_steps), config)


def warmup_and_decay(step: int, num_warmup: int, decay: range, config: ScheduleConfig) -> float:
    """Return the learning rate at a step: warm-up, peak, then a decay over some steps (none if empty)."""
    warmup = min(1.0, (step + 1) / num_warmup) if num_warmup else 1.0
    if not decay or step < decay.start:
        return warmup
    # From 1 at the first step of the decay to 1 / len(decay) at the last.
    left = max(0.0, (decay.stop - step) / len(decay))
    if config.kind == "cosine":
        left = 0.5 - 0.5 * math.cos(math.pi * left)
    return min(warmup, config.min_lr_ratio + (1 - config.min_lr_ratio) * left)
