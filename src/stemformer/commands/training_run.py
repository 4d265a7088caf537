"""What pre-training and fine-tuning share: config, run directory, and start or resumption."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stemformer.config import merge_toml, with_settings
from stemformer.errors import ConfigError
from stemformer.models.model import Model
from stemformer.options import ResumableOptions, TrainSettings, read_duration
from stemformer.output_dir import prepare_output_dir
from stemformer.progress import Progress
from stemformer.training.checkpoint import read_checkpoint
from stemformer.training.config import RENAMED_SETTINGS
from stemformer.training.context import TrainingContext, TrainState
from stemformer.training.distributed import is_restarted
from stemformer.training.initialization import prepare_training
from stemformer.training.log import MetricAccumulator
from stemformer.training.resume import Config, ResumePoint, prepare_run_dir, restore, validate_resume
from stemformer.training.throughput import compile_blocks


def resolve(config: Config, options: TrainSettings) -> Config:
    """Return a config with the options of a command applied: file, then settings, then single options.

    Raises:
        ConfigError: The file does not exist, a setting is wrong, or there are several budgets.
    """
    chosen: dict[str, Any] = {name: value for name, value in vars(options).items() if value is not None}
    default_kind = config.schedule.kind
    if (file := chosen.get("config")) is not None:
        if not Path(file).is_file():
            raise ConfigError(f"Config file {file!r} does not exist.")
        text = Path(file).read_text(encoding="utf-8")
        config = merge_toml(config, text, source=file, renamed=RENAMED_SETTINGS)
    shortcuts = {
        "batch_size": "batch.size",
        "learning_rate": "optimizer.learning_rate",
        "best_metric": "evaluation.best_metric",
    }
    shortcut_settings: list[str] = [f"{key}={chosen[name]!r}" for name, key in shortcuts.items() if name in chosen]
    config = with_settings(config, [*options.settings, *shortcut_settings], renamed=RENAMED_SETTINGS)
    budget = {name: chosen[name] for name in ("steps", "tokens", "epochs", "time") if name in chosen}
    if len(budget) > 1:
        raise ConfigError(f"Several training budgets: {', '.join(f'--{name}' for name in budget)}. Pass only one.")
    if "time" in budget:
        budget = {"seconds": read_duration(budget["time"])}
    if budget:
        config = replace(config, budget=type(config.budget)(**budget))
    if config.schedule.kind != default_kind or sets_schedule_kind(options.settings):
        warn_of_schedule_without_effect(config)
    compute = {name: value for name, value in options.compute().items() if value is not None}
    return replace(config, seed=chosen.get("seed", config.seed), compute=replace(config.compute, **compute))


def sets_schedule_kind(settings: Sequence[str]) -> bool:
    """Return whether one of the settings is the kind of the schedule."""
    return any(setting.partition("=")[0].strip() == "schedule.kind" for setting in settings)


def warn_of_schedule_without_effect(config: Config) -> None:
    """Warn that the kind of a schedule, which is set, has no effect with the budget."""
    if config.budget.seconds is None or config.schedule.kind == "wsd":
        return
    problem = f"schedule.kind = {config.schedule.kind} has no effect with a budget of time, which is always wsd"
    warnings.warn(f"{problem}: the number of steps is not known. Remove it, or set a budget of steps.", stacklevel=4)


def open_run_dir(options: ResumableOptions) -> tuple[Path, bool]:
    """Return the output directory, which may be written to, and whether its run is resumed."""
    is_restart = is_restarted(Path(options.out))
    resume = options.resume or is_restart
    return prepare_output_dir(options.out, resume=resume, overwrite=options.overwrite and not is_restart), resume


def note_on_best(context: TrainingContext, state: TrainState) -> str | None:
    """Return a note if the model of an earlier checkpoint was better than that of the last step."""
    path, last = context.folder / "checkpoints" / "best", context.monitor(state.val_metrics)
    if last is None or not path.is_dir() or (best := read_checkpoint(path)).held_out_loss is None:
        return None
    if best.held_out_loss >= last or best.step == state.step:
        return None
    before, now = map(context.describe_monitored, (best.held_out_loss, last))
    return f"step {best.step} was better ({before}; the last step, which is the result: {now}): its model is in {path}"


def start_run(
    model: Model, context: TrainingContext, found: ResumePoint[Any] | None, progress: Progress
) -> tuple[nn.Module, torch.optim.Optimizer, TrainState]:
    """Prepare the run directory; return loss module, optimizer and state, restored if the run is resumed."""
    if found is not None:
        validate_resume(found, context)

    # Every rank has read the directory before the first one changes it.
    context.ranks.barrier()
    if context.ranks.is_main:
        prepare_run_dir(context.folder, found, context.config, progress)
    context.ranks.barrier()

    # Model, optimizer and state on the device.
    module, optimizer = prepare_training(model, context)
    if found is not None:
        state = restore(found, model, optimizer, context, progress)
    else:
        state = TrainState(metrics=MetricAccumulator(None, context.ranks))
    if context.environment["compile"]:
        compile_blocks(model)
    return module, optimizer, state
