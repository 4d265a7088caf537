"""When a run ends, and the learning rate on the way there; under a budget in hours, by the clock.

A budget in steps fixes everything beforehand. A budget on the clock leaves two things open, the step at which the rate begins to fall
and the last step. The clock of the first rank decides both at once, when so much time is left as the fall should take; what it
decides is on the disk in `schedule.json` before it is used, so that a run that is killed and resumed falls at the same steps.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from stemformer.errors import CheckpointError
from stemformer.training.config import FinetuneConfig, RunConfig
from stemformer.training.lr_schedule import learning_rate_factor

_FILE = "schedule.json"
_OFTEN = 20
TIMED_WARMUP_STEPS = 200
"""Steps of warm-up under a budget on the clock, where a share of the run is not known in steps."""


@dataclass(frozen=True)
class DecayDecision:
    """What the clock has decided.

    Attributes:
        seconds: The budget that it was decided for.
        decay_step: The first step at a falling rate, from 0.
        last_step: How many steps the run has.
    """

    seconds: float
    decay_step: int
    last_step: int


class TrainingBudget:
    """Says how long a run is and how fast it learns at each step.

    Args:
        config: Of the run.
        num_steps: Steps of the run; None under a budget on the clock.
        folder: The run folder, for `schedule.json`.
    """

    def __init__(self, config: RunConfig | FinetuneConfig, num_steps: int | None, folder: Path) -> None:
        self.config = config
        self.num_steps = num_steps
        self.seconds = config.budget.seconds
        self.decision: DecayDecision | None = None
        self._folder = folder

    def replay(self) -> None:
        """Follows what was decided before an interruption, if it was for the same budget."""
        if self.num_steps is None and (found := _read(self._folder)) is not None and found.seconds == self.seconds:
            self.take(found)

    def take(self, decision: DecayDecision) -> None:
        """Follows a decision from now on."""
        self.decision, self.num_steps = decision, decision.last_step

    def is_last(self, step: int) -> bool:
        """Says whether the run ends after so many steps."""
        return step == self.num_steps

    def decide(self, step: int, seconds: float) -> DecayDecision | None:
        """Returns what the clock decides after a step, if it is time; it is on the disk then. For the first rank.

        Args:
            step: Steps done.
            seconds: Time spent, interruptions not counted.
        """
        if self.num_steps is not None or self.seconds is None:
            return None
        fall = self.config.schedule.decay_share * self.seconds
        if seconds < self.seconds - fall:
            return None
        left = max(1, round((self.seconds - seconds) * step / seconds))
        decision = DecayDecision(self.seconds, decay_step=step, last_step=step + left)
        _write(self._folder, decision)
        return decision

    def factor(self, step: int) -> float:
        """Returns the share of the peak learning rate at a step, from 0."""
        schedule = self.config.schedule
        if self.seconds is None:
            assert self.num_steps is not None
            return learning_rate_factor(step, self.num_steps, schedule)
        warmup = schedule.warmup_steps if schedule.warmup_steps is not None else TIMED_WARMUP_STEPS
        rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
        decision = self.decision
        if decision is None or step < decision.decay_step:
            return rising
        left = (decision.last_step - step) / (decision.last_step - decision.decay_step)
        return min(rising, schedule.final_share + (1 - schedule.final_share) * left)

    def is_due(
        self,
        *,
        every: int | None,
        times: int,
        at_least: int,
        step: int,
        seconds: float,
        before: float,
        cost: float = 0.0,
    ) -> bool:
        """Says whether something that comes back is due after a step.

        Args:
            every: Steps between two times, if that was set.
            times: How often it happens in a run otherwise, 20 or a part of that, so that what is seldom meets what is often: by steps
                where their number was known beforehand, else by the clock.
            at_least: Steps between two times where they are counted, so that a short run does not do it all the time.
            step: Steps done.
            seconds: Time spent.
            before: Time spent one step earlier.
            cost: Seconds that it takes; by the clock it may take a tenth of the time.
        """
        if every is not None or self.seconds is None:
            return step % (every or _OFTEN // times * max(at_least, (self.num_steps or 1) // _OFTEN)) == 0
        interval = max(self.seconds / times, 10 * cost)
        return int(seconds / interval) > int(before / interval)


def _read(folder: Path) -> DecayDecision | None:
    file = folder / _FILE
    if not file.is_file():
        return None
    try:
        return DecayDecision(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}): remove it, and the clock decides anew", damaged=True
        ) from error


def _write(folder: Path, decision: DecayDecision) -> None:
    temporary = folder / (_FILE + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(asdict(decision)))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / _FILE)
