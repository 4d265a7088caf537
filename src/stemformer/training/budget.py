"""Training budget: steps, tokens, epochs or wall-clock time.

A wall-clock budget leaves the number of steps open, and with it the end of the warm-up, the first step
of each later phase, of the decay, and the last step. The clock of rank 0 decides each in time. What it
decides is on disk (`schedule.json`) before it is used, so a resumed run follows the same schedule.
"""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from stemformer.data.examples.sampling import NUM_PREFETCHED
from stemformer.errors import CheckpointError
from stemformer.io import write_file
from stemformer.progress import format_count
from stemformer.training.config import FinetuneConfig, RunConfig
from stemformer.training.lr_schedule import learning_rate_factor, warmup_and_decay

# Steps whose time decides the warm-up of a wall-clock budget, and the warm-up until then.
_NUM_MEASURED_STEPS, _FIRST_WARMUP_STEPS = 10, 200
_MAX_EVENTS = 20
# Of the time under a wall-clock budget, evaluations take at most 1 part in this many.
_EVENT_SHARE = 30


@dataclass(frozen=True)
class ClockSchedule:
    """What the clock has decided in a run with a budget of `seconds`; None: nothing yet."""

    seconds: float
    warmup_steps: int | None = None
    # First step of each later phase that has been decided.
    phase_steps: tuple[int, ...] = ()
    # First step of the decay, and the last step.
    decay_step: int | None = None
    last_step: int | None = None


class TrainingBudget:
    """Length of a run (`num_steps`; None until the clock decides) and learning rate.

    Attributes:
        started: Seconds before the first step, such as those of an evaluation, which no phase contains.
    """

    def __init__(self, config: RunConfig | FinetuneConfig, num_steps: int | None, folder: Path) -> None:
        self.config = config
        self.num_steps = num_steps
        self.seconds = config.budget.seconds
        self.clock = ClockSchedule(self.seconds or 0.0)
        # Start of each later phase, as a fraction of the run.
        phases = config.all_phases() if isinstance(config, RunConfig) else []
        self._phase_ratios = [start for start, _ in phases[1:]]
        self._file = folder / "schedule.json"
        self.started = 0.0
        # Step and seconds, without evaluations, after the first step of this process, or of its current phase.
        self._measured_from: tuple[int, float] | None = None

    def replay(self) -> None:
        """Apply what the clock decided before an interruption: the warm-up, and for the same budget all."""
        if self.num_steps is not None:
            return
        stored = self.clock
        if self._file.is_file():
            try:
                table = json.loads(self._file.read_text(encoding="utf-8"))
                stored = ClockSchedule(**{**table, "phase_steps": tuple(table.get("phase_steps", ()))})
            except (ValueError, TypeError) as error:
                problem = f"{self._file} cannot be read ({error}). Remove it; the clock will decide again."
                raise CheckpointError(problem, damaged=True) from error
        # A warm-up continues: without a decision, as in earlier versions.
        warmup_steps = _FIRST_WARMUP_STEPS if stored.warmup_steps is None else stored.warmup_steps
        if stored.seconds != self.seconds:
            stored = self.clock
        self.clock, self.num_steps = replace(stored, warmup_steps=warmup_steps), stored.last_step

    def record(self, warmup_steps: int, phase_step: int, decay_step: int, last_step: int) -> None:
        """Apply what `decide` returned, on each rank."""
        clock = self.clock
        if warmup_steps:
            clock = replace(clock, warmup_steps=warmup_steps)
        if phase_step:
            clock = replace(clock, phase_steps=(*clock.phase_steps, phase_step))
        if last_step:
            clock = replace(clock, decay_step=decay_step, last_step=last_step)
            self.num_steps = last_step
        self.clock = clock

    def phase_starts(self) -> list[int]:
        """Return the first step of each phase, as far as it is known."""
        if self.seconds is None:
            return [0, *(round(ratio * (self.num_steps or 0)) for ratio in self._phase_ratios)]
        return [0, *self.clock.phase_steps]

    def is_last(self, step: int) -> bool:
        return step == self.num_steps

    def position(self, step: int, seconds: float) -> float:
        """Return how much of the budget is used, in steps or seconds; in a decay by its steps."""
        if self.seconds is None:
            return step
        if self.clock.last_step is None or self.clock.decay_step is None:
            return min(seconds, self.seconds)
        share_left = (self.clock.last_step - step) / (self.clock.last_step - self.clock.decay_step)
        return self.seconds * (1 - share_left * self.config.schedule.decay_ratio)

    def describe_overrun(self, seconds: float) -> str:
        """Return why a run took longer than its wall-clock budget; "" if it did not."""
        if self.seconds is None or self.clock.last_step is None or seconds <= 1.01 * self.seconds:
            return ""
        length = format_count(self.clock.last_step - (self.clock.decay_step or 0), "step")
        return (
            f"The run took {seconds:,.0f} seconds of {self.seconds:,.0f}: the length of the decay ({length}) was fixed "
            "when it started, by the mean time of the steps before, and it took longer."
        )

    def decide(
        self, step: int, seconds: float, *, evaluating: float = 0.0, cost: float = 0.0, is_eval_due: bool = False
    ) -> tuple[int, int, int, int]:
        """Return and store what the clock decides after a step, as `record` takes it; 0: nothing.

        Called by rank 0 only, after each step, before the evaluation that may be due. Of the seconds since the first
        step of this process, those of `evaluating` were evaluations, the last of which took `cost`.
        """
        if self.seconds is None:
            return 0, 0, 0, 0
        schedule, clock = self.config.schedule, self.clock
        warmup_steps = phase_step = decay_step = last_step = 0
        if self._measured_from is None or step == self.phase_starts()[-1] + 1:
            self._measured_from = step, seconds - evaluating
        # Seconds of a step: without the first one, if there are enough others, and without evaluations, which are as
        # frequent neither at the start nor in the decay as they were until now.
        first_step, first_seconds = self._measured_from
        trained = seconds - evaluating
        is_measured = step >= first_step + _NUM_MEASURED_STEPS
        per_step = (trained - first_seconds) / (step - first_step) if is_measured else (trained - self.started) / step

        # Decay: when the remaining time is what it should take.
        if clock.last_step is None and seconds >= self.seconds - schedule.decay_ratio * self.seconds:
            left = self.seconds - seconds - (cost if is_eval_due else 0.0)
            decay_step, last_step = step, step + self._num_steps_within(left, step, per_step, cost)

        # Warm-up: as soon as a step is measured.
        if schedule.warmup_steps is None and clock.warmup_steps is None and (is_measured or last_step):
            with_evaluation = per_step + cost / (self.config.evaluation.every or math.inf)
            warmup_steps = max(1, round(schedule.warmup_ratio * (self.seconds - self.started) / with_evaluation))

        # Next phase: as early as its first batch is not being made yet.
        number, ahead = len(clock.phase_steps), NUM_PREFETCHED + 1
        if number < len(self._phase_ratios):
            start = self.started + self._phase_ratios[number] * (self.seconds - self.started)
            if self.position(step, seconds) + ahead * per_step >= start:
                phase_step = step + ahead

        decided = warmup_steps, phase_step, decay_step, last_step
        if any(decided):
            before = self.clock, self.num_steps
            self.record(*decided)
            write_file(self._file, [json.dumps(asdict(self.clock)).encode()])
            # Used when all ranks know it.
            self.clock, self.num_steps = before
        return decided

    def _num_steps_within(self, left: float, step: int, per_step: float, cost: float) -> int:
        """Return how many of the next steps fit into the `left` seconds, with the evaluations between them."""
        assert self.seconds is not None
        if every := self.config.evaluation.every:
            last = step + round(max(0.0, left) / (per_step + cost / every))
            # That of the last step comes after the run.
            num_evaluations = max(0, (last - 1) // every - step // every)
        else:
            period = self._period(_MAX_EVENTS, cost)
            num_evaluations = max(0, math.ceil(self.seconds / period) - 1 - int((self.seconds - left) / period))
        return max(1, round((left - num_evaluations * cost) / per_step))

    def _period(self, times: int, cost: float) -> float:
        """Return the seconds between events of `cost` seconds that are due `times` per run."""
        return max((self.seconds or 0.0) / times, _EVENT_SHARE * cost)

    def lr_factor(self, step: int) -> float:
        """Return the learning rate at a step, from 0, as a fraction of its peak."""
        schedule, clock = self.config.schedule, self.clock
        if self.seconds is None:
            assert self.num_steps is not None
            return learning_rate_factor(step, self.num_steps, schedule)
        first = _FIRST_WARMUP_STEPS if schedule.warmup_ratio else 0
        decided = first if clock.warmup_steps is None else clock.warmup_steps
        num_warmup = decided if schedule.warmup_steps is None else schedule.warmup_steps
        decay = range(0) if clock.last_step is None else range(clock.decay_step or 0, clock.last_step)
        return warmup_and_decay(step, num_warmup, decay, replace(schedule, kind="wsd"))

    def is_due(
        self, *, every: int | None, times: int, step: int, seconds: float, previous_seconds: float, cost: float = 0.0
    ) -> bool:
        """Return whether an event is due after a step: each `every` steps, or `times` per run.

        `times` is 20 or a divisor of it, so that rare events coincide with frequent ones: by steps,
        at least `log_every` apart, if their number is known beforehand, otherwise by the clock.
        Events of `cost` seconds take at most 1 part in `_EVENT_SHARE` of the time.
        """
        if every is not None or self.seconds is None:
            frequent = max(self.config.log_every, (self.num_steps or 1) // _MAX_EVENTS)
            interval = every or _MAX_EVENTS // times * frequent
            return step % interval == 0
        period = self._period(times, cost)
        return int(seconds / period) > int(previous_seconds / period)
