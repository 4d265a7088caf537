"""Training budget: steps, tokens, epochs or wall-clock time.

A wall-clock budget leaves two things open: the first step of the decay and the last step. The clock
of rank 0 decides both at once, when the remaining time is what the decay should take. The decision
is on disk (`schedule.json`) before it is used, so a resumed run decays at the same steps.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from stemformer.errors import CheckpointError
from stemformer.io import write_file
from stemformer.training.config import FinetuneConfig, RunConfig
from stemformer.training.lr_schedule import learning_rate_factor, warmup_and_decay

# Default warm-up of a wall-clock budget, whose number of steps is not known beforehand.
TIMED_WARMUP_STEPS = 200
_MAX_EVENTS = 20


@dataclass(frozen=True)
class DecayDecision:
    """Steps at which a run with a budget of `seconds` starts to decay, and ends."""

    seconds: float
    decay_step: int
    last_step: int


class TrainingBudget:
    """Length of a run (`num_steps`; None for a wall-clock budget) and learning rate at each step."""

    def __init__(self, config: RunConfig | FinetuneConfig, num_steps: int | None, folder: Path) -> None:
        self.config = config
        self.num_steps = num_steps
        self.seconds = config.budget.seconds
        self.decision: DecayDecision | None = None
        self._file = folder / "schedule.json"

    def replay(self) -> None:
        """Apply the decision stored before an interruption, if it was made for the same budget."""
        if self.num_steps is not None or not self._file.is_file():
            return
        try:
            stored = DecayDecision(**json.loads(self._file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            problem = f"{self._file} cannot be read ({error}). Remove it; the clock will decide again."
            raise CheckpointError(problem, damaged=True) from error
        if stored.seconds == self.seconds:
            self.record(stored)

    def record(self, decision: DecayDecision) -> None:
        self.decision, self.num_steps = decision, decision.last_step

    def is_last(self, step: int) -> bool:
        return step == self.num_steps

    def position(self, step: int, seconds: float) -> float:
        """Return how much of the budget is used, in steps or seconds; of a decay whose end is decided, by its steps."""
        if self.seconds is None:
            return step
        if self.decision is None:
            return min(seconds, self.seconds)
        share_left = (self.decision.last_step - step) / (self.decision.last_step - self.decision.decay_step)
        return self.seconds * (1 - share_left * self.config.schedule.decay_ratio)

    def describe_overrun(self, seconds: float) -> str:
        """Return why a run took longer than its wall-clock budget; "" if it did not."""
        if self.decision is None or seconds <= 1.01 * self.decision.seconds:
            return ""
        num_steps = self.decision.last_step - self.decision.decay_step
        return (
            f"The run took {seconds:,.0f} seconds of {self.seconds:,.0f}: the {num_steps:,} steps of the decay were "
            "fixed when it started, by the mean time of the steps before, and took longer."
        )

    def decide(self, step: int, seconds: float) -> DecayDecision | None:
        """Return the decision of the clock if it is due now, and store it; called by rank 0 only."""
        if self.num_steps is not None or self.seconds is None:
            return None
        decay_seconds = self.config.schedule.decay_ratio * self.seconds
        if seconds < self.seconds - decay_seconds:
            return None
        num_left = max(1, round((self.seconds - seconds) * step / seconds))
        decision = DecayDecision(self.seconds, decay_step=step, last_step=step + num_left)
        write_file(self._file, [json.dumps(asdict(decision)).encode()])
        return decision

    def lr_factor(self, step: int) -> float:
        """Return the learning rate at a step, from 0, as a fraction of its peak."""
        schedule = self.config.schedule
        if self.seconds is None:
            assert self.num_steps is not None
            return learning_rate_factor(step, self.num_steps, schedule)
        num_warmup = schedule.warmup_steps if schedule.warmup_steps is not None else TIMED_WARMUP_STEPS
        decay = range(self.decision.decay_step, self.decision.last_step) if self.decision else range(0)
        return warmup_and_decay(step, num_warmup, decay, replace(schedule, kind="wsd"))

    def is_due(
        self, *, every: int | None, times: int, step: int, seconds: float, previous_seconds: float, cost: float = 0.0
    ) -> bool:
        """Return whether an event is due after a step: each `every` steps, or `times` per run.

        `times` is 20 or a divisor of it, so that rare events coincide with frequent ones: by steps,
        at least `log_every` apart, if their number is known beforehand, otherwise by the clock.
        Events of `cost` seconds take at most a tenth of the time.
        """
        if every is not None or self.seconds is None:
            frequent = max(self.config.log_every, (self.num_steps or 1) // _MAX_EVENTS)
            interval = every or _MAX_EVENTS // times * frequent
            return step % interval == 0
        period = max(self.seconds / times, 10 * cost)
        return int(seconds / period) > int(previous_seconds / period)
