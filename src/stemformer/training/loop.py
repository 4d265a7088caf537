"""The training loop: one function, in which the order of a step is visible."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stemformer.config import to_toml
from stemformer.data.batches import Batch, collate, example_generator, examples_of_step, prefetch
from stemformer.data.tokenizer import Tokenizer
from stemformer.data.windows import Rows
from stemformer.errors import TrainingError
from stemformer.models.model import Model
from stemformer.objectives.masked import MaskedLm
from stemformer.progress import Progress
from stemformer.training.checkpoint import Checkpoint, save_checkpoint
from stemformer.training.compute import autocast, step_flops
from stemformer.training.log import RunLog, StepSums
from stemformer.training.optim import learning_rate_factor
from stemformer.training.run import RunConfig
from stemformer.training.stopping import StopBetweenSteps

__all__ = ["Position", "Setup", "add_gradients", "batches_of_step", "train"]


@dataclass(frozen=True)
class Setup:
    """All that a run needs beside its model and optimizer.

    Attributes:
        config: The resolved configuration.
        num_steps: Steps of the whole run.
        objective: What is hidden, and how it is scored.
        rows: The examples.
        evaluate: From the model to held-out figures.
        tokenizer: Saved with each checkpoint.
        device: Where the model is.
        precision: `fp32` or `bf16`.
        environment: Stored with each checkpoint.
        peak: Floating-point operations a second that the device can do, for MFU.
        folder: The run folder.
    """

    config: RunConfig
    num_steps: int
    objective: MaskedLm
    rows: Rows
    evaluate: Callable[[Model], dict[str, float]]
    tokenizer: Tokenizer
    device: torch.device
    precision: str
    environment: dict[str, Any]
    peak: float
    folder: Path


@dataclass
class Position:
    """How far a run is.

    Attributes:
        step: Steps done.
        tokens: Tokens seen.
        seconds: Time spent, interruptions not counted.
        sums: What is summed for the next line of the log.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    sums: StepSums = field(default_factory=StepSums)


def batches_of_step(step: int, setup: Setup) -> list[Batch]:
    """Returns the micro-batches of a step: a function of data, seed and step alone."""
    config = setup.config
    numbers = examples_of_step(step, batch_size=config.batch.rows, num_examples=len(setup.rows), seed=config.seed)
    examples = [setup.objective.corrupt(*setup.rows.read(i), example_generator(config.seed, e, i)) for e, i in numbers]
    size = config.batch.micro_rows or config.batch.rows
    starts = range(0, len(numbers), size)
    return [collate(examples[a : a + size], [i for _, i in numbers[a : a + size]]) for a in starts]


def add_gradients(model: Model, batches: Sequence[Batch], setup: Setup, step: int, sums: StepSums) -> None:
    """Adds the gradient of a step's loss, micro-batch by micro-batch, each divided by the count of the whole step.

    Args:
        model: Its gradients are added to.
        batches: The step's micro-batches.
        setup: Objective, device and precision.
        step: From 0; dropout is seeded from (seed, step, number of the micro-batch).
        sums: Losses are added to it.
    """
    objective = setup.objective
    counts = [objective.counts(batch) for batch in batches]
    step_counts = {name: max(1, sum(c[name] for c in counts)) for name in counts[0]}
    for number, batch in enumerate(batches):
        torch.manual_seed(_dropout_seed(setup.config.seed, step, number))
        batch = batch.to(setup.device)
        with autocast(setup.device, setup.precision):
            states = model.body(
                batch.input_ids, batch.position_ids, batch.token_type_ids, batch.cu_seqlens, batch.max_seqlen
            )
            losses = objective.loss(model, states, batch)
        torch.stack([loss.total / step_counts[name] for name, loss in losses.items()]).sum().backward()  # type: ignore[no-untyped-call]
        for name, loss in losses.items():
            sums.add_loss(name, loss.total, loss.correct, loss.count)


def train(
    model: Model, optimizer: torch.optim.Optimizer, setup: Setup, at: Position, *, progress: Progress
) -> dict[str, float]:
    """Trains from where `at` stands to the last step, and returns the last held-out figures.

    Raises:
        TrainingError: The loss or the gradient is not finite.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the step under way is done and saved.
    """
    config = setup.config
    evaluate_every = config.evaluation.every or max(1, setup.num_steps // 20)
    save_every = config.checkpoints.every or max(1, setup.num_steps // 10)
    log = RunLog(setup.folder / "log.jsonl", after_step=at.step)
    sums = at.sums
    began = time.perf_counter() - at.seconds
    last_saved = at.step

    def evaluate() -> dict[str, float]:
        started = time.perf_counter()
        figures = setup.evaluate(model)
        at.seconds = time.perf_counter() - began
        if not all(map(math.isfinite, figures.values())):
            raise TrainingError(_not_finite("held-out loss is", at.step, [], last_saved, setup.folder))
        if figures:
            log.write(kind="evaluation", step=at.step, tokens=at.tokens, seconds=round(at.seconds, 3), **figures)
            progress.say(f"step {at.step}: " + _line(figures))
        model.train()
        sums.leave_out(time.perf_counter() - started)
        return figures

    def save() -> None:
        started = time.perf_counter()
        at.seconds = started - began
        if not all(bool(p.isfinite().all()) for p in model.parameters()):
            raise TrainingError(_not_finite("weights are", at.step, [], last_saved, setup.folder))
        checkpoint = Checkpoint(
            at.step,
            at.tokens,
            at.seconds,
            to_toml(config),
            setup.rows.shards.fingerprint,
            setup.environment,
            sums.state(),
        )
        folder = setup.folder / "checkpoints"
        save_checkpoint(folder, model, optimizer, checkpoint, tokenizer=setup.tokenizer, keep=config.checkpoints.keep)
        sums.leave_out(time.perf_counter() - started)

    figures: dict[str, float] = {}
    if at.step == 0:
        figures = evaluate()
    elif at.step == setup.num_steps:  # a finished run, asked again
        figures = setup.evaluate(model)
    progress.start("training", total=setup.num_steps, unit="steps")
    progress.advance(at.step)
    model.train()
    try:
        with StopBetweenSteps() as stop:
            for batches in prefetch(lambda step: batches_of_step(step, setup), range(at.step, setup.num_steps)):
                add_gradients(model, batches, setup, at.step, sums)
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm or math.inf)
                if not torch.isfinite(norm):
                    raise TrainingError(_not_finite("gradient is", at.step, batches, last_saved, setup.folder))
                factor = learning_rate_factor(at.step, setup.num_steps, config.schedule)
                for group in optimizer.param_groups:
                    group["lr"] = config.optimizer.learning_rate * factor
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

                at.step += 1
                tokens = sum(len(batch.input_ids) for batch in batches)
                at.tokens += tokens
                sums.add_step(tokens, sum(step_flops(model, batch) for batch in batches))
                is_last = at.step == setup.num_steps
                if at.step % config.log_every == 0 or is_last:
                    at.seconds = time.perf_counter() - began
                    line = sums.take(places=config.batch.rows * config.batch.row_length, peak=setup.peak)
                    log.write(
                        kind="train",
                        step=at.step,
                        tokens=at.tokens,
                        seconds=round(at.seconds, 3),
                        **line,
                        learning_rate=config.optimizer.learning_rate * factor,
                        gradient_norm=float(norm),
                    )
                    progress.advance(0, _line(line))
                progress.advance(1)
                is_stopping = stop.is_requested  # asked once, so that nothing stops before it is saved
                if at.step % evaluate_every == 0 or is_last:
                    figures = evaluate()
                if at.step % save_every == 0 or is_last or is_stopping:
                    save()
                    last_saved = at.step
                if is_stopping and not is_last:
                    progress.say(f"stopped after step {at.step} of {setup.num_steps} and saved: go on with --resume")
                    stop.act()
    finally:
        log.close()
    return figures


def _dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """Returns the seed of a forward's dropout. The high bit keeps its stream apart from those of the examples."""
    return int(example_generator(seed, step, 2**63 + micro_batch).integers(2**63))


def _line(figures: dict[str, float]) -> str:
    """Returns the figures a person wants to see while training."""
    shown = {
        name: value
        for name, value in figures.items()
        if name.endswith(("loss", "accuracy")) or name == "tokens_per_second"
    }
    return "  ".join(f"{name.replace('_', ' ')} {value:,.{0 if value > 100 else 3}f}" for name, value in shown.items())


def _not_finite(what: str, step: int, batches: Sequence[Batch], last_saved: int, folder: Path) -> str:
    numbers = [n for batch in batches for n in batch.example_numbers]
    shown = (
        " (examples " + ", ".join(map(str, numbers[:8])) + (", ...)" if len(numbers) > 8 else ")") if numbers else ""
    )
    way_back = f"{folder}/checkpoints/step-{last_saved:08d}" if last_saved else "none yet"
    return (
        f"step {step}: the {what} not finite{shown}; last good checkpoint: {way_back}. "
        "Lower optimizer.learning_rate or lengthen the warm-up, and resume or start again"
    )
