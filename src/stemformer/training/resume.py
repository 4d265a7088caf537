"""Resume a run: find its checkpoint, validate its configuration, prepare its directory."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch.optim import Optimizer

from stemformer.config import differences, from_toml, to_toml
from stemformer.errors import CheckpointError, ConfigError
from stemformer.io import restore_folder, write_file
from stemformer.models.model import Model
from stemformer.output_dir import clear_dir
from stemformer.progress import Progress
from stemformer.training.checkpoint import Checkpoint, load_optimizer, newest_checkpoint, read_checkpoint
from stemformer.training.config import MAY_CHANGE, RENAMED_SETTINGS, FinetuneConfig, RunConfig, read_run_config
from stemformer.training.context import TrainingContext, TrainState
from stemformer.training.distributed import mark_started
from stemformer.training.log import MetricAccumulator

Config = TypeVar("Config", RunConfig, FinetuneConfig)

# Prefixes of the names that a run without a checkpoint may have written.
_RUN_FILES = (
    *("config.toml", "checkpoints", "log.jsonl", "schedule.json"),
    *("report.html", "torchrun.txt", "events.out.", "final."),
)


@dataclass(frozen=True)
class ResumePoint(Generic[Config]):
    """Newest valid checkpoint of a run, damaged newer ones, and the stored configuration."""

    path: Path
    checkpoint: Checkpoint
    damaged: list[Path]
    config: Config


def find_checkpoint(
    folder: Path, kind: type[Config], recipe: str | None, progress: Progress
) -> ResumePoint[Config] | None:
    """Return where to resume the run in a directory, or None if it has no checkpoint yet."""
    checkpoints = folder / "checkpoints"
    if not any(checkpoints.glob("step-????????")):
        names = sorted({path.name for path in folder.glob("*")} - {"config.toml.tmp"})
        if "final" in names and "config.toml" in names:
            advice = f"Start another run from {folder}/final with another --out, or pass --overwrite."
            raise CheckpointError(f"{folder} holds a finished model without checkpoints to resume from. {advice}")
        foreign = [name for name in names if not name.startswith(_RUN_FILES)]
        if foreign or (names and "config.toml" not in names):
            found = ", ".join((foreign or names)[:3])
            raise CheckpointError(f"{folder} holds {found}, but no run to resume. Pass another --out.")
        if names:
            # Do not replace a run of another kind.
            _read_config(kind, folder / "config.toml")
        if recipe is not None or kind is FinetuneConfig:
            progress.say(f"{folder} has no checkpoint yet; starting the run from the beginning")
        return None
    path, faults = newest_checkpoint(checkpoints)
    for fault in faults:
        progress.say(f"Skipping {fault}")
    # The checkpoint's own copy of the configuration is checksummed.
    config = _read_config(kind, path / "config.toml")
    stored_recipe = getattr(config, "recipe", recipe)
    if recipe not in (None, stored_recipe):
        problem = f"The run in {folder} has recipe '{stored_recipe}', not '{recipe}'."
        raise CheckpointError(f"{problem} Resume it without --recipe.")
    damaged = [checkpoints / fault.partition(":")[0] for fault in faults]
    return ResumePoint(path, read_checkpoint(path), damaged, config)


def _read_config(kind: type[Config], file: Path) -> Config:
    text = file.read_text(encoding="utf-8")
    if kind is RunConfig:
        return read_run_config(text, source=str(file))  # type: ignore[return-value]
    return from_toml(kind, text, source=str(file), renamed=RENAMED_SETTINGS)


def check_config_unchanged(
    stored: Any, current: Any, *, may_change: tuple[str, ...] = MAY_CHANGE, what: str = "this run"
) -> None:
    """Check that a resumed run keeps its settings, but those whose keys start as in `may_change`."""
    # Checkpoints store the value of the metric that they are compared by.
    found = [d for d in differences(stored, current) if not d[0].startswith(may_change) or d[0].endswith("best_metric")]
    if found:
        changes = "; ".join(f"{key} was {before}, is now {after}" for key, before, after in found)
        problem = f"Cannot resume {what} with other settings ({changes})."
        raise CheckpointError(f"{problem} Keep them as they were, or pass another --out.")


def prepare_run_dir(
    folder: Path, resume_point: ResumePoint[Any] | None, config: RunConfig | FinetuneConfig, progress: Progress
) -> None:
    """Write the configuration; empty a new run directory, or rename damaged checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    # Write the configuration first: it identifies a run that is killed right here.
    write_file(folder / "config.toml", [to_toml(config).encode()])
    if resume_point is None:
        clear_dir(folder, keep="config.toml")
    # Their steps will be saved again under the same names.
    for damaged in resume_point.damaged if resume_point else []:
        renamed = damaged.with_name(damaged.name + ".damaged")
        shutil.rmtree(renamed, ignore_errors=True)
        damaged.rename(renamed)
    restore_folder(folder / "final")
    for pattern in ("final.tmp", "final.old", "checkpoints/step-????????.tmp", "checkpoints/step-????????.old"):
        for leftover in folder.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)
    mark_started(folder)


def validate_resume(resume_point: ResumePoint[Any], context: TrainingContext) -> None:
    """Check data and budget of a resumed run before changing anything; replay its clock."""
    path, checkpoint, budget = resume_point.path, resume_point.checkpoint, context.budget
    fingerprint = context.phases[0].examples.fingerprint
    if checkpoint.data_fingerprint != fingerprint:
        both = f"fingerprint {checkpoint.data_fingerprint[:12]}, now {fingerprint[:12]}"
        raise CheckpointError(f"{path} was trained on other data ({both}). Pass the same data, or start a new run.")
    budget.replay()
    if budget.num_steps is not None and checkpoint.step > budget.num_steps:
        problem = f"{path} is at step {checkpoint.step}, the budget ends at {budget.num_steps}."
        raise ConfigError(f"{problem} Pass a larger budget.")
    if budget.num_steps is None and checkpoint.seconds >= (budget.seconds or math.inf):
        problem = f"{path} has trained for {checkpoint.seconds:,.0f} seconds, the budget is {budget.seconds:,.0f}."
        raise ConfigError(f"{problem} Pass a larger --time.")


def restore(
    resume_point: ResumePoint[Any], model: Model, optimizer: Optimizer, context: TrainingContext, progress: Progress
) -> TrainState:
    """Load the optimizer from a checkpoint and return the state of the run."""
    path, checkpoint = resume_point.path, resume_point.checkpoint
    for key, value in context.environment.items():
        if (stored := checkpoint.environment.get(key)) != value:
            progress.say(f"{key} was {stored}, is now {value}: results will not be bit-for-bit those of a single run")
    before, now = (getattr(x.evaluation, "num_examples", None) for x in (resume_point.config, context.config))
    if before != now:
        change = f"evaluation.num_examples was {before}, is now {now}"
        progress.say(f"{change}: earlier validation losses are not comparable, the best checkpoint is a later one")
    num_steps = context.budget.num_steps
    progress.say(f"Resuming from {path} (step {checkpoint.step}" + (f" of {num_steps})" if num_steps else ")"))
    load_optimizer(path, model, optimizer)
    metrics = MetricAccumulator(checkpoint.sums, context.ranks)
    return TrainState(checkpoint.step, checkpoint.tokens, checkpoint.seconds, metrics)
