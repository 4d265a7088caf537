"""A run that was begun goes on: found, checked against what is asked now, and its folder made ready."""

import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from stemformer.config import differences, from_toml, to_toml
from stemformer.errors import CheckpointError, ConfigError
from stemformer.io import write_file
from stemformer.models.model import Model
from stemformer.progress import Progress
from stemformer.training.checkpoint import Checkpoint, load_optimizer, newest_checkpoint, read_checkpoint
from stemformer.training.config import MAY_CHANGE, FinetuneConfig, RunConfig, config_class
from stemformer.training.distributed import mark_started
from stemformer.training.log import MetricAccumulator
from stemformer.training.loop import TrainingContext, TrainState

Config = TypeVar("Config", RunConfig, FinetuneConfig)
"""Of pre-training or of fine-tuning."""


@dataclass(frozen=True)
class ResumePoint(Generic[Config]):
    """A run that goes on: its newest whole checkpoint and what that says, newer ones that are damaged, and its configuration."""

    newest: Path
    told: Checkpoint
    damaged: list[Path]
    config: Config


def find_checkpoint(
    folder: Path, kind: type[Config], recipe: str | None, progress: Progress
) -> ResumePoint[Config] | None:
    """Returns the run of a folder; None where it has no checkpoint yet, so that nothing is lost by beginning again.

    Args:
        folder: Of the run; it need not be there.
        kind: Its configuration's class.
        recipe: That was asked for, of pre-training.
        progress: Told what was passed over.

    Raises:
        CheckpointError: The folder holds something else, or a run of another recipe.
        ConfigError: It holds a run of another kind.
    """
    checkpoints = folder / "checkpoints"
    if not any(checkpoints.glob("step-????????")):
        there = folder.iterdir() if folder.is_dir() else ()
        holds = sorted(path.name for path in there if path.name != "config.toml.tmp")
        if "final" in holds and "config.toml" in holds:
            raise CheckpointError(
                f"{folder} holds a finished model without checkpoints to go on from: train it further with --init {folder}/final "
                "and another --out, or give --overwrite"
            )
        strange = [name for name in holds if not name.startswith(_OF_A_RUN)]
        if strange or (holds and "config.toml" not in holds):
            shown = ", ".join((strange or holds)[:3])
            raise CheckpointError(f"{folder} holds {shown}, but no run to resume: give another --out")
        if holds:
            file = folder / "config.toml"
            _read_config(kind, file)  # a run of another kind is not replaced
        if recipe is not None or kind is FinetuneConfig:
            progress.say(f"{folder} has no checkpoint yet: the run begins")
        return None
    newest, faults = newest_checkpoint(checkpoints)
    for fault in faults:
        progress.say(f"passed over {fault}")
    file = newest / "config.toml"  # its bytes are vouched for by the checkpoint
    stored = _read_config(kind, file)
    of = getattr(stored, "recipe", recipe)
    if recipe not in (None, of):
        raise CheckpointError(f"the run in {folder} is a {of}, not a {recipe}: resume it without --recipe")
    return ResumePoint(
        newest, read_checkpoint(newest), [checkpoints / fault.partition(":")[0] for fault in faults], stored
    )


def _read_config(kind: type[Config], file: Path) -> Config:
    text = file.read_text(encoding="utf-8")
    return from_toml(config_class(text, str(file)) if kind is RunConfig else kind, text, source=str(file))  # type: ignore[return-value]


_OF_A_RUN = (
    "config.toml",
    "checkpoints",
    "log.jsonl",
    "schedule.json",
    "report.html",
    "torchrun.txt",
    "events.out.",
    "final.",
)
"""How the names begin of what a run without a checkpoint may have written."""


def check_config_unchanged(
    stored: Any,
    now: Any,
    *,
    may_change: tuple[str, ...] = MAY_CHANGE,
    more: Iterable[tuple[str, Any, Any]] = (),
    what: str = "this run",
) -> None:
    """Refuses settings that something cannot go on with.

    Args:
        stored: Its configuration.
        now: The one that was asked for.
        may_change: How keys begin that may differ.
        more: Further differences: key, before, now.
        what: That goes on.

    Raises:
        CheckpointError: Which settings differ, with both values.
    """
    changed = [(k, a, b) for k, a, b in differences(stored, now) if not k.startswith(may_change)]
    if changed := [*changed, *more]:
        told = "; ".join(f"{key} was {before}, is now {after}" for key, before, after in changed)
        raise CheckpointError(
            f"{what} cannot go on with other settings ({told}): leave them as they were, or give another --out"
        )


def prepare_run_dir(
    folder: Path, found: ResumePoint[Any] | None, config: RunConfig | FinetuneConfig, progress: Progress
) -> None:
    """Writes the configuration, empties the folder of a new run, and puts aside what is damaged in one that goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(
        folder / "config.toml", [to_toml(config).encode()]
    )  # first of all: by it, a run that is killed here is known as one
    for path in sorted(folder.iterdir()) if found is None else []:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != "config.toml":
            path.unlink()
    for damaged in found.damaged if found else []:  # out of the way of the steps that come again
        aside = damaged.with_name(damaged.name + ".damaged")
        shutil.rmtree(aside, ignore_errors=True)
        damaged.rename(aside)
    for pattern in ("final.tmp", "final.old", "checkpoints/step-????????.tmp", "checkpoints/step-????????.old"):
        for left_over in folder.glob(pattern):
            shutil.rmtree(left_over, ignore_errors=True)
    mark_started(folder)


def validate_resume(found: ResumePoint[Any], setup: TrainingContext) -> None:
    """Refuses data or a budget that the run cannot go on with, before anything is changed; follows what its clock decided."""
    told = found.told
    fingerprint = setup.phases[0].examples.fingerprint
    if told.data_fingerprint != fingerprint:
        raise CheckpointError(
            f"{found.newest} was trained on other data (fingerprint {told.data_fingerprint[:12]}, now "
            f"{fingerprint[:12]}): give the same --data, or start a new run"
        )
    setup.timetable.replay()
    num_steps, seconds = setup.timetable.num_steps, setup.timetable.seconds
    if num_steps is not None and told.step > num_steps:
        raise ConfigError(
            f"{found.newest} stands at step {told.step}, the budget ends at {num_steps}: give a larger budget"
        )
    if num_steps is None and told.seconds >= (seconds or math.inf):
        raise ConfigError(
            f"{found.newest} has taken {told.seconds:,.0f} seconds, the budget is {seconds:,.0f}: give a larger --time"
        )


def restore(
    found: ResumePoint[Any], model: Model, optimizer: torch.optim.Optimizer, setup: TrainingContext, progress: Progress
) -> TrainState:
    """Fills the optimizer from a checkpoint, and returns where it stands."""
    told = found.told
    for key, value in setup.environment.items():
        if told.environment.get(key) != value:
            progress.say(f"{key} was {told.environment.get(key)}, is now {value}: the run goes on, but not bit for bit")
    num_steps = setup.timetable.num_steps
    progress.say(f"goes on from {found.newest}, step {told.step}" + (f" of {num_steps}" if num_steps else ""))
    load_optimizer(found.newest, model, optimizer)
    return TrainState(told.step, told.tokens, told.seconds, MetricAccumulator(told.sums, setup.ranks))
