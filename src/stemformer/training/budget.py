"""Training budget (steps, tokens, epochs or wall-clock time), and its learning rate.

A budget in steps fixes everything beforehand. A wall-clock budget leaves two things open: the first
step of the decay and the last step. The clock of rank 0 decides both at once, when the remaining
time is what the decay should take. The decision is on disk (`schedule.json`) before it is used, so
a run that is killed and resumed decays at the same steps.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from stemformer.errors import CheckpointError
from stemformer.io import write_file
from stemformer.training.config import FinetuneConfig, RunConfig
from stemformer.training.lr_schedule import learning_rate_factor

SCHEDULE_FILE = "schedule.json"

TIMED_WARMUP_STEPS = 200
"""Default warm-up of a wall-clock budget, whose number of steps is not known beforehand."""

_MAX_EVENTS = 20


@dataclass(frozen=True)
class DecayDecision:
    """Steps at which a run with a budget of `seconds` starts to decay, and ends."""

    seconds: float
    decay_step: int
    last_step: int


class TrainingBudget:
    """Length of a run and learning rate at each step.

    Args:
        num_steps: Steps of the run; None for a wall-clock budget.
        folder: Run directory, for `schedule.json`.
    """

    def __init__(self, config: RunConfig | FinetuneConfig, num_steps: int | None, folder: Path) -> None:
        self.config = config
        self.num_steps = num_steps
        self.seconds = config.budget.seconds
        self.decision: DecayDecision | None = None
        self._file = folder / SCHEDULE_FILE

    def replay(self) -> None:
        """Apply the decision stored before an interruption, if it was made for the same budget."""
        if self.num_steps is None and (stored := _read(self._file)) is not None and stored.seconds == self.seconds:
            self.record(stored)

    def record(self, decision: DecayDecision) -> None:
        """Apply a decision from now on."""
        self.decision, self.num_steps = decision, decision.last_step

    def is_last(self, step: int) -> bool:
        """Return whether the run ends after `step` steps."""
        return step == self.num_steps

    def decide(self, step: int, seconds: float) -> DecayDecision | None:
        """Return the decision of the clock if it is due now, and store it; called by rank 0 only.

        Args:
            step: Completed steps.
            seconds: Training time, interruptions excluded.
        """
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
        warmup = min(1.0, (step + 1) / num_warmup) if num_warmup else 1.0
        decision = self.decision
        if decision is None or step < decision.decay_step:
            return warmup
        left = (decision.last_step - step) / (decision.last_step - decision.decay_step)
        return min(warmup, schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * left)

    def is_due(
        self,
        *,
        every: int | None,
        times: int,
        min_steps: int,
        step: int,
        seconds: float,
        previous_seconds: float,
        cost: float = 0.0,
    ) -> bool:
        """Return whether a periodic event is due after a step.

        Args:
            every: Steps between events, if configured.
            times: Otherwise, events per run: 20 or a divisor of it, so that rare events coincide
                with frequent ones. By steps if their number is known beforehand, else by the clock.
            min_steps: Minimum steps between events counted in steps, for short runs.
            step: Completed steps.
            seconds: Training time.
            previous_seconds: Training time one step earlier.
            cost: Duration of the event in seconds, limited to a tenth of the time.
        """
        if every is not None or self.seconds is None:
            interval = every or _MAX_EVENTS // times * max(min_steps, (self.num_steps or 1) // _MAX_EVENTS)
            return step % interval == 0
        period = max(self.seconds / times, 10 * cost)
        return int(seconds / period) > int(previous_seconds / period)


def _read(file: Path) -> DecayDecision | None:
    if not file.is_file():
        return None
    try:
        return DecayDecision(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}). Remove it; the clock will decide again.", damaged=True
        ) from error
