"""The training loop of pre-training and fine-tuning."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stemformer.config import to_toml
from stemformer.data.examples.batch import Batch, collate
from stemformer.data.examples.sampling import example_generator, examples_of_step, prefetch
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.device import autocast
from stemformer.errors import TrainingError
from stemformer.models.model import Model
from stemformer.objectives.objective import Examples, LossModule, Objective, num_scored_positions
from stemformer.progress import Progress
from stemformer.tasks.examples import TaskExamples
from stemformer.training.budget import DecayDecision, TrainingBudget
from stemformer.training.checkpoint import Checkpoint, save_checkpoint
from stemformer.training.config import BatchConfig, FinetuneConfig, RunConfig
from stemformer.training.cuda_graphs import CudaGraphStep
from stemformer.training.distributed import SINGLE_PROCESS, DistributedContext, gradient_sync, slices, warm_up_ddp
from stemformer.training.interrupts import GracefulInterrupt
from stemformer.training.log import MetricAccumulator, RunLog
from stemformer.training.optimizer import clip_grad_norm
from stemformer.training.throughput import step_flops


@dataclass(frozen=True)
class Phase:
    """Part of a run with one sequence length and batch size; `first_step` counts from 0."""

    first_step: int
    batch: BatchConfig
    examples: Examples | TaskExamples


@dataclass(frozen=True)
class TrainingContext:
    """Everything a run needs besides model and optimizer."""

    config: RunConfig | FinetuneConfig
    budget: TrainingBudget
    objective: Objective
    phases: Sequence[Phase]
    # Maps the module to validation metrics; None if there is no held-out data.
    evaluate: Callable[[nn.Module], dict[str, float]] | None
    # Maps the module to qualitative samples (filled masks or generated text) and further metrics;
    # each list of samples becomes a line of the log.
    sample_fn: Callable[[nn.Module], dict[str, Any]] | None
    tokenizer: Tokenizer
    device: torch.device
    precision: str
    # Conditions of bit-for-bit resumption, stored with each checkpoint.
    environment: dict[str, Any]
    # Peak floating-point operations per second of all devices together, for MFU.
    peak_flops: float
    folder: Path
    ranks: DistributedContext = SINGLE_PROCESS
    # Formats validation metrics for the progress display.
    describe: Callable[[dict[str, float]], str] = lambda metrics: _describe_held_out(metrics)
    # Maps validation metrics to the value to minimize; None disables model selection.
    monitor: Callable[[dict[str, float]], float | None] = lambda metrics: _held_out_loss(metrics)
    # Description of the task in a saved model; see `huggingface.save.save_model`.
    task: dict[str, Any] | None = None
    # If False, an interrupted run starts again from the beginning.
    saves_checkpoints: bool = True

    def phase(self, step: int) -> tuple[int, Phase]:
        """Return number and phase of a step."""
        return [(i, phase) for i, phase in enumerate(self.phases) if phase.first_step <= step][-1]


@dataclass
class TrainState:
    """Mutable state of a run after `step` optimizer steps."""

    step: int = 0
    tokens: int = 0
    # Training time, interruptions excluded.
    seconds: float = 0.0
    # Sums since the last line of the log.
    metrics: MetricAccumulator = field(default_factory=MetricAccumulator)
    # Duration of the last evaluation.
    eval_seconds: float = 0.0
    # Lowest monitored value so far, and evaluations since then, for early stopping.
    best: float = math.inf
    evals_since_best: int = 0

    def update_best(self, value: float) -> None:
        is_better = value < self.best
        self.best = value if is_better else self.best
        self.evals_since_best = 0 if is_better else self.evals_since_best + 1

    def log_fields(self) -> dict[str, float]:
        """Return the fields that every line of the log has."""
        return {"step": self.step, "tokens": self.tokens, "seconds": round(self.seconds, 3)}


def train(
    model: Model,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    context: TrainingContext,
    state: TrainState,
    *,
    progress: Progress,
) -> dict[str, float]:
    """Train from `state`, updated in place, to the end of the budget; return the last validation metrics.

    `module` is model and loss, distributed over the ranks. Ctrl-C or SIGTERM on any rank raises
    KeyboardInterrupt on all, after the current step is saved.
    """
    config, ranks, budget = context.config, context.ranks, context.budget
    log_path = context.folder / "log.jsonl" if ranks.is_main else None
    log = RunLog(log_path, after_step=state.step, tensorboard=config.tensorboard)
    start_time = time.perf_counter() - state.seconds
    patience = getattr(config.evaluation, "patience", None) or math.inf
    val_metrics: dict[str, float] = {}
    last_saved, last_evaluated = state.step, -1

    def evaluate(*, is_logged: bool = True) -> None:
        nonlocal val_metrics, last_evaluated
        started = time.perf_counter()
        val_metrics = dict(context.evaluate(module)) if context.evaluate is not None else {}
        samples = context.sample_fn(module) if context.sample_fn is not None else {}
        lists = {name: value for name, value in samples.items() if isinstance(value, list)}
        val_metrics |= {name: value for name, value in samples.items() if name not in lists}
        last_evaluated, state.seconds = state.step, time.perf_counter() - start_time
        if not all(map(math.isfinite, val_metrics.values())):
            raise TrainingError(_not_finite("validation loss", state.step, last_saved, context))
        if val_metrics and is_logged:
            log.write(kind="evaluation", **state.log_fields(), **val_metrics)
            for name, rows in lists.items():
                log.write(kind=name, **state.log_fields(), **{name: rows})
            progress.say(f"step {state.step} | {context.describe(val_metrics)}")
        if is_logged and (value := context.monitor(val_metrics)) is not None:
            state.update_best(value)
        module.train()
        state.eval_seconds = time.perf_counter() - started
        state.metrics.exclude_time(state.eval_seconds)

    def save() -> None:
        nonlocal last_saved
        started = time.perf_counter()
        state.seconds = started - start_time
        # Never replace a good checkpoint by weights that are not finite on some rank.
        shards = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
        is_finite = all(bool(shard.isfinite().all()) for shard in shards)
        if ranks.all_reduce_max([float(not is_finite)])[0]:
            raise TrainingError(_not_finite("weights", state.step, last_saved, context))
        checkpoint = Checkpoint(
            step=state.step,
            tokens=state.tokens,
            seconds=state.seconds,
            config_toml=to_toml(config),
            data_fingerprint=context.phases[0].examples.fingerprint,
            environment=context.environment,
            sums=state.metrics.state(),
            held_out_loss=context.monitor(val_metrics) if last_evaluated == state.step else None,
        )
        save_checkpoint(
            context.folder / "checkpoints",
            model,
            optimizer,
            checkpoint,
            tokenizer=context.tokenizer,
            keep=config.checkpoints.keep,
            ranks=ranks,
            task=context.task,
        )
        last_saved = state.step
        state.metrics.exclude_time(time.perf_counter() - started)

    # Pre-training logs the metrics of the initial model; a completed run is only evaluated again.
    is_complete = budget.is_last(state.step) or state.evals_since_best >= patience
    if is_complete or (state.step == 0 and isinstance(config, RunConfig)):
        evaluate(is_logged=state.step == 0)
    end = budget.num_steps if budget.num_steps is not None else 2**62
    steps = range(0) if is_complete else range(state.step, end)

    # The progress bar shows steps, or seconds for a wall-clock budget.
    is_timed = budget.seconds is not None
    progress.start("training", total=budget.seconds or budget.num_steps, unit="seconds" if is_timed else "steps")
    progress.advance(state.seconds if is_timed else state.step)
    note, shown_seconds = "", state.seconds

    module.train()
    if ranks.world_size > 1:
        warm_up_ddp(module, batches_of_step(state.step, context)[0].to(context.device))
    cuda_graph_step = make_cuda_graph_step(module, context)
    try:
        with GracefulInterrupt() as interrupt:
            for batches in prefetch(lambda step: batches_of_step(step, context), steps):
                # Global label counts first: each micro-batch is divided by the totals of all ranks.
                counts_of_batches = [context.objective.counts(batch) for batch in batches]
                names = list(counts_of_batches[0])
                local_counts = [sum(counts[name] for counts in counts_of_batches) for name in names]
                local_sizes = _batch_sizes(batches, model, context)
                *totals, tokens, num_dropped, flops = ranks.all_reduce_sum([*local_counts, *local_sizes])
                counts = dict(zip(names, totals, strict=True))

                # Forward, backward, gradient accumulation.
                add_gradients(module, batches, context, state.step, state.metrics, counts, cuda_graph_step)

                # Clip, set the learning rate, step.
                grad_norm = clip_grad_norm(optimizer, module.parameters(), config.optimizer.max_grad_norm)
                if not torch.isfinite(grad_norm):
                    raise TrainingError(_not_finite("gradient", state.step, last_saved, context))
                learning_rate = config.optimizer.learning_rate * budget.lr_factor(state.step)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * group.get("scale", 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                model.body.embeddings.word.clear_gradient([batch.input_ids for batch in batches])

                # Count the step, its tokens and its time.
                batch_config = context.phase(state.step)[1].batch
                capacity = batch_config.size * batch_config.sequence_length if isinstance(config, RunConfig) else 0
                state.step += 1
                state.tokens += int(tokens)
                state.metrics.add_step(tokens=int(tokens), capacity=capacity, num_dropped=int(num_dropped), flops=flops)
                previous_seconds, state.seconds = state.seconds, time.perf_counter() - start_time
                progress.advance(state.seconds - shown_seconds if is_timed else 1, note)
                shown_seconds = state.seconds

                # Agree on what is due now; a wall-clock budget may fix the last step here.
                actions = _agree_on_actions(context, state, previous_seconds, interrupt.is_requested)
                must_stop, is_eval_due, is_save_due = actions
                is_last = budget.is_last(state.step)

                # Log training metrics.
                if state.step % config.log_every == 0 or is_last:
                    line = state.metrics.flush(peak_flops=context.peak_flops)
                    rates = {"learning_rate": learning_rate, "gradient_norm": float(grad_norm)}
                    log.write(kind="train", **state.log_fields(), **line, **rates)
                    note = (f"step {state.step} | " if is_timed else "") + _describe_training(line)

                # Evaluate on held-out data; stop early.
                if is_eval_due or is_last:
                    evaluate()
                    is_last = is_last or state.evals_since_best >= patience

                # Save a checkpoint; with early stopping also each new best model, which is kept.
                is_best = patience < math.inf and last_evaluated == state.step and state.evals_since_best == 0
                if context.saves_checkpoints and (is_save_due or is_best or is_last or must_stop):
                    save()

                # Stop at the end of the budget, or on Ctrl-C or SIGTERM.
                if is_last:
                    break
                if must_stop:
                    total = f" of {budget.num_steps}" if budget.num_steps else ""
                    saved = " Checkpoint saved; continue with --resume." if context.saves_checkpoints else ""
                    progress.say(f"Stopped after step {state.step}{total}.{saved}")
                    interrupt.raise_interrupt()
    finally:
        log.close()
    return val_metrics


def batches_of_step(step: int, context: TrainingContext) -> list[Batch]:
    """Return this rank's micro-batches, a function of data, seed, step and rank alone."""
    seed, ranks = context.config.seed, context.ranks
    phase = context.phase(step)[1]
    numbers = _example_numbers(step, context)
    examples = []
    for epoch, i in ranks.shard(numbers):
        rng = example_generator(seed, epoch, i)
        examples.append((i, context.objective.corrupt(phase.examples.get_example(i, rng), rng)))

    # From global sizes: every rank must run the same number of forward passes (collectives).
    fewest = phase.batch.size // ranks.world_size
    most = math.ceil(phase.batch.size / ranks.world_size)
    number = math.ceil(most / (phase.batch.micro_size or most))
    if phase.batch.micro_tokens and isinstance(phase.examples, TaskExamples):
        num_tokens = sum(int(phase.examples.sizes[i]) for _, i in numbers)
        number = max(number, math.ceil(num_tokens / ranks.world_size / phase.batch.micro_tokens))
    parts = slices(examples, min(fewest, number))
    return [collate([example for _, example in part], [i for i, _ in part]) for part in parts]


def add_gradients(
    module: nn.Module,
    batches: Sequence[Batch],
    context: TrainingContext,
    step: int,
    metrics: MetricAccumulator,
    counts: dict[str, float],
    cuda_graph_step: CudaGraphStep | None = None,
) -> None:
    """Accumulate gradients over this rank's micro-batches of a step, and losses in `metrics`.

    `counts` is the denominator of each loss: scored positions of the step on all ranks.
    """
    for number, batch in enumerate(batches):
        torch.manual_seed(_dropout_seed(context.config.seed, step, context.ranks.rank, number))
        if cuda_graph_step is not None:
            losses = cuda_graph_step.add(batch, {name: 1 / max(1.0, count) for name, count in counts.items()})
        else:
            batch = batch.to(context.device)
            with gradient_sync(module, number == len(batches) - 1):
                with autocast(context.device, context.precision):
                    losses = module(batch)
                means = [loss.total / max(1.0, counts[name]) for name, loss in losses.items()]
                # DDP and FSDP average gradients over ranks; the counts are global, so undo it.
                (context.ranks.world_size * torch.stack(means).sum()).backward()  # type: ignore[no-untyped-call]
        for name, loss in losses.items():
            metrics.add_loss(name, loss.total, loss.correct, loss.count)


def make_cuda_graph_step(module: nn.Module, context: TrainingContext) -> CudaGraphStep | None:
    """Return CUDA graphs for compiled pre-training on one GPU; None otherwise."""
    if context.device.type != "cuda" or context.ranks.world_size > 1 or not isinstance(module, LossModule):
        return None
    is_wanted = context.environment.get("compile") and isinstance(context.config, RunConfig)
    return CudaGraphStep(module, context.precision) if is_wanted else None


def _agree_on_actions(
    context: TrainingContext, state: TrainState, previous_seconds: float, is_interrupted: bool
) -> tuple[bool, bool, bool]:
    """Return whether all ranks stop (if any was interrupted), evaluate and save (rank 0 decides)."""
    config, budget, ranks = context.config, context.budget, context.ranks
    values = [float(is_interrupted), 0.0, 0.0, 0.0, 0.0]
    if ranks.is_main:
        if decision := budget.decide(state.step, state.seconds):
            values[3:] = decision.decay_step, decision.last_step
        now: dict[str, Any] = {"step": state.step, "seconds": state.seconds, "previous_seconds": previous_seconds}
        now["min_steps"] = config.log_every
        values[1] = budget.is_due(every=config.evaluation.every, times=20, cost=state.eval_seconds, **now)
        values[2] = budget.is_due(every=config.checkpoints.every, times=10, **now)
    must_stop, is_eval_due, is_save_due, decay_step, last_step = ranks.all_reduce_max(values)
    if last_step:
        budget.record(DecayDecision(budget.seconds or 0.0, int(decay_step), int(last_step)))
    return bool(must_stop), bool(is_eval_due), bool(is_save_due)


def _example_numbers(step: int, context: TrainingContext) -> list[tuple[int, int]]:
    """Return (epoch, number) of a step's examples over all ranks."""
    number, phase = context.phase(step)
    sizes = {"batch_size": phase.batch.size, "num_examples": len(phase.examples)}
    numbers = examples_of_step(step - phase.first_step, **sizes, seed=context.config.seed)
    return [(epoch + (number << 32), i) for epoch, i in numbers]


def _batch_sizes(batches: Sequence[Batch], model: Model, context: TrainingContext) -> tuple[float, float, float]:
    """Return tokens, dropped tokens and floating-point operations of some batches."""
    tokens = sum(len(batch.input_ids) for batch in batches)
    num_dropped = sum(batch.num_dropped_tokens for batch in batches)
    flops = sum(step_flops(model, batch, num_rows=num_scored_positions(context.objective, batch)) for batch in batches)
    return tokens, num_dropped, flops


def _held_out_loss(metrics: dict[str, float]) -> float | None:
    """Return the sum of the validation losses; the baseline is not one of them."""
    losses = [v for name, v in metrics.items() if name.endswith("_loss") and name != "held_out_unigram_loss"]
    return sum(losses) if losses else None


def _dropout_seed(seed: int, step: int, rank: int, micro_batch: int) -> int:
    # The high bit separates its stream from those of the examples.
    return int(example_generator(seed, step, 2**63 + (rank << 32) + micro_batch).integers(2**63))


def _describe_training(metrics: dict[str, float]) -> str:
    short_names = {"masked_lm_loss": "loss", "causal_lm_loss": "loss"}
    losses = {name: value for name, value in metrics.items() if name.endswith("_loss")}
    parts = [f"{short_names.get(name, name)} {value:.3f}" for name, value in losses.items()]
    return " | ".join([*parts, f"{metrics['tokens_per_second']:,.0f} tok/s"])


def _describe_held_out(metrics: dict[str, float]) -> str:
    """Format validation metrics, each next to its baseline."""
    values = {name.removeprefix("held_out_"): value for name, value in metrics.items()}
    name = "causal_lm" if "causal_lm_loss" in values else "masked_lm"
    parts = [
        f"val_loss {values[f'{name}_loss']:.3f} | unigram {values['unigram_loss']:.3f}",
        f"accuracy {values[f'{name}_accuracy']:.1%} | unigram {values['unigram_accuracy']:.1%}",
    ]
    if "bits_per_byte" in values:
        parts.append(f"bits_per_byte {values['bits_per_byte']:.3f}")
    for head in ("next_sentence", "sentence_order"):
        if f"{head}_accuracy" in values:
            parts.append(f"{head} {values[f'{head}_accuracy']:.1%} | majority {values['majority_accuracy']:.1%}")
    if "blank_accuracy" in values:
        parts.append(f"cloze {values['blank_accuracy']:.1%} | constant {values['blank_constant_accuracy']:.1%}")
    return " | ".join(parts)


def _not_finite(what: str, step: int, last_saved: int, context: TrainingContext) -> str:
    numbers = [i for _, i in _example_numbers(step, context)]
    shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    checkpoint = f"{context.folder}/checkpoints/step-{last_saved:08d}" if last_saved else "none"
    return (
        f"Step {step}: {what} not finite (examples {shown}; last good checkpoint: {checkpoint}). "
        "Lower optimizer.learning_rate or lengthen the warm-up, and start again with --overwrite or another --out."
    )
