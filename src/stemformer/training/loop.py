"""The training loop of pre-training and fine-tuning."""

import math
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import torch
from torch import nn

from stemformer.config import to_toml
from stemformer.data.examples.batch import Batch, collate
from stemformer.data.examples.sampling import example_generator, examples_of_step, prefetch
from stemformer.device import autocast
from stemformer.errors import TrainingError
from stemformer.models.model import Model
from stemformer.objectives.denoising import Denoising
from stemformer.objectives.masked_lm import MaskedLm, is_causal_step
from stemformer.objectives.objective import LossModule
from stemformer.progress import Progress
from stemformer.tasks.examples import TaskExamples
from stemformer.training.checkpoint import Checkpoint, save_checkpoint
from stemformer.training.config import RunConfig
from stemformer.training.context import TrainingContext, TrainState
from stemformer.training.cuda_graphs import CudaGraphStep
from stemformer.training.distributed import gradient_sync, slices, warm_up_ddp
from stemformer.training.interrupts import GracefulInterrupt
from stemformer.training.log import MetricAccumulator, RunLog, format_training
from stemformer.training.optimizer import clip_grad_norm
from stemformer.training.throughput import step_flops


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
    peak_learning_rate = config.optimizer.learning_rate
    assert peak_learning_rate is not None
    log_path = context.folder / "log.jsonl" if ranks.is_main else None
    log = RunLog(log_path, after_step=state.step, tensorboard=config.tensorboard)
    patience = getattr(config.evaluation, "patience", None) or math.inf
    state.start()

    # Pre-training logs the metrics of the initial model; a completed run is evaluated again, not logged.
    is_complete = budget.is_last(state.step) or state.evals_since_best >= patience
    if is_complete or (state.step == 0 and isinstance(config, RunConfig)):
        seconds = state.seconds
        _evaluate(module, context, state, log if state.step == 0 else None, progress)
        state.seconds = seconds if is_complete else state.seconds
    end = budget.num_steps if budget.num_steps is not None else 2**62
    steps = range(0) if is_complete else range(state.step, end)

    # The progress bar shows steps, or seconds for a wall-clock budget.
    is_timed = budget.seconds is not None
    budget.started = state.seconds if state.step == 0 else 0.0
    progress.start("training", total=budget.seconds or budget.num_steps, unit="seconds" if is_timed else "steps")
    shown, note = budget.position(state.step, state.seconds), ""
    progress.advance(shown)

    module.train()
    if ranks.world_size > 1:
        warm_up_ddp(module, batches_of_step(state.step, context)[0].to(context.device))
    cuda_graph_step = make_cuda_graph_step(module, context)
    # Seconds of the evaluations between the steps of this process.
    evaluating = 0.0
    with closing(log), GracefulInterrupt() as interrupt:
        # The next batches are made in a thread while the model computes.
        for batches in prefetch(lambda step: batches_of_step(step, context), steps):
            # Sum label counts over micro-batches and ranks: each loss is divided by its global count.
            counts, tokens, num_dropped, flops = _global_counts(batches, model, context)

            # Forward and backward of each micro-batch; gradients accumulate.
            add_gradients(module, batches, context, state.step, state.metrics, counts, cuda_graph_step)

            # Clip the gradient norm; a gradient that is not finite ends the run.
            grad_norm = clip_grad_norm(optimizer, module.parameters(), config.optimizer.max_grad_norm)
            if not torch.isfinite(grad_norm):
                raise _not_finite("gradient", context, state)

            # Set the learning rate of each parameter group, update the weights, reset the gradients.
            learning_rate = peak_learning_rate * budget.lr_factor(state.step)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group.get("scale", 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            model.kept_gradients.clear()

            # Count the step, its tokens and its time.
            phase = context.phases[context.phase_number(state.step)]
            model.max_length = max(model.max_length, phase.batch.sequence_length)
            state.metrics.add_step(tokens=tokens, capacity=phase.capacity, num_dropped=num_dropped, flops=flops)
            state.step += 1
            state.tokens += tokens
            previous_seconds = state.seconds
            state.update_seconds()
            position = max(shown, budget.position(state.step, state.seconds))
            progress.advance(position - shown, note)
            shown = position

            # Agree with the other ranks on what is due; a wall-clock budget may set the last step here.
            actions = _agree_on_actions(context, state, previous_seconds, evaluating, interrupt.is_requested)
            must_stop, is_eval_due, is_save_due = actions
            is_last = budget.is_last(state.step)

            # Log training loss, learning rate, gradient norm and throughput.
            if state.step % config.log_every == 0 or is_last:
                line = state.metrics.flush(peak_flops=context.peak_flops)
                rates = {"learning_rate": learning_rate, "gradient_norm": float(grad_norm)}
                log.write(kind="train", **state.log_fields(), **line, **rates)
                note = (f"step {state.step} | " if is_timed else "") + format_training(line)

            # Evaluate on held-out data; stop early if the monitored value no longer improves.
            if is_eval_due or is_last:
                _evaluate(module, context, state, log, progress)
                evaluating += state.eval_seconds
                is_last = is_last or state.evals_since_best >= patience

            # Save a checkpoint; with early stopping also each new best model, which is kept.
            is_best = patience < math.inf and state.evaluated_step == state.step and state.evals_since_best == 0
            if context.saves_checkpoints and (is_save_due or is_best or is_last or must_stop):
                _save(model, optimizer, context, state)

            # Stop at the end of the budget, or on Ctrl-C or SIGTERM.
            if is_last:
                if overrun := budget.describe_overrun(state.seconds):
                    progress.say(overrun)
                break
            if must_stop:
                total = f" of {budget.num_steps}" if budget.num_steps else ""
                saved = " Checkpoint saved; continue with --resume." if context.saves_checkpoints else ""
                progress.say(f"Stopped after step {state.step}{total}.{saved}")
                interrupt.raise_interrupt()
    return state.val_metrics


def batches_of_step(step: int, context: TrainingContext) -> list[Batch]:
    """Return this rank's micro-batches, a function of data, seed, step and rank alone."""
    seed, ranks = context.config.seed, context.ranks
    phase = context.phases[context.phase_number(step)]
    numbers = _example_numbers(step, context)
    share = getattr(context.config, "causal_share", 0.0)
    is_causal = phase.is_causal or is_causal_step(step, share)

    # Read and corrupt this rank's examples, each with a random generator of its own.
    examples = []
    for epoch, i in ranks.shard(numbers):
        rng = example_generator(seed, epoch, i)
        raw: Any = phase.examples.for_epoch(seed, epoch).get_example(i, rng)
        if is_causal:
            assert isinstance(context.objective, MaskedLm), "only a masked LM has causal steps"
            examples.append((i, context.objective.shift(raw)))
        else:
            examples.append((i, context.objective.corrupt(raw, rng)))

    # Split into micro-batches; from global sizes, since every rank must run as many forward passes (collectives).
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
    """Add the gradients of a step's micro-batches, each loss divided by its global count."""
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
    """Return CUDA graphs for compiled pre-training of one run of tokens on one GPU; None otherwise."""
    if context.device.type != "cuda" or context.ranks.world_size > 1 or not isinstance(module, LossModule):
        return None
    if isinstance(context.objective, Denoising):
        return None
    is_wanted = context.environment.get("compile") and isinstance(context.config, RunConfig)
    return CudaGraphStep(module, context.precision) if is_wanted else None


def _global_counts(
    batches: Sequence[Batch], model: Model, context: TrainingContext
) -> tuple[dict[str, float], int, int, float]:
    """Return label counts by loss, tokens, dropped tokens and FLOPs of a step, over all ranks."""
    objective = context.objective
    batch_counts = [objective.counts(batch) for batch in batches]
    local_counts = {name: sum(counts[name] for counts in batch_counts) for name in batch_counts[0]}
    local_sizes = (
        sum(batch.num_tokens for batch in batches),
        sum(batch.num_dropped_tokens for batch in batches),
        sum(step_flops(model, batch, objective) for batch in batches),
    )
    *totals, tokens, num_dropped, flops = context.ranks.all_reduce_sum([*local_counts.values(), *local_sizes])
    return dict(zip(local_counts, totals, strict=True)), int(tokens), int(num_dropped), flops


def _evaluate(
    module: nn.Module, context: TrainingContext, state: TrainState, log: RunLog | None, progress: Progress
) -> None:
    """Evaluate on held-out data; without a log, the evaluation does not count for early stopping."""
    started = time.perf_counter()
    metrics = dict(context.evaluate(module)) if context.evaluate is not None else {}
    samples = context.sample_fn(module) if context.sample_fn is not None else {}
    lists = {name: value for name, value in samples.items() if isinstance(value, list)}
    metrics |= {name: value for name, value in samples.items() if name not in lists}
    state.val_metrics, state.evaluated_step = metrics, state.step
    if context.budget.is_last(state.step):
        # The evaluation after the last step is no part of the budget.
        state.final_eval_seconds = time.perf_counter() - started
        state.exclude_time(state.final_eval_seconds)
    state.update_seconds()
    if not all(map(math.isfinite, metrics.values())):
        raise _not_finite("validation loss", context, state)

    # Log metrics and samples; is this the best evaluation so far?
    if log is not None and metrics:
        log.write(kind="evaluation", **state.log_fields(), **metrics)
        for name, rows in lists.items():
            log.write(kind=name, **state.log_fields(), **{name: rows})
        progress.say(f"step {state.step} | {context.describe(metrics)}")
    if log is not None and (value := context.monitor(metrics)) is not None:
        state.update_best(value)

    # Back to training; the log's throughput is that of training steps only.
    module.train()
    state.eval_seconds = time.perf_counter() - started
    state.metrics.exclude_time(state.eval_seconds)


def _save(model: Model, optimizer: torch.optim.Optimizer, context: TrainingContext, state: TrainState) -> None:
    """Save a checkpoint, unless weights are not finite on some rank."""
    started = time.perf_counter()
    state.update_seconds()
    shards = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
    is_finite = all(bool(shard.isfinite().all()) for shard in shards)
    if context.ranks.all_reduce_max([float(not is_finite)])[0]:
        raise _not_finite("weights", context, state)
    checkpoint = Checkpoint(
        step=state.step,
        tokens=state.tokens,
        seconds=state.seconds,
        config_toml=to_toml(context.config),
        data_fingerprint=context.phases[0].examples.fingerprint,
        environment=context.environment,
        sums=state.metrics.state(),
        held_out_loss=context.monitor(state.val_metrics) if state.evaluated_step == state.step else None,
        is_causal=context.phases[context.phase_number(state.step)].is_causal,
    )
    save_checkpoint(
        context.folder / "checkpoints",
        model,
        optimizer,
        checkpoint,
        tokenizer=context.tokenizer,
        keep=context.config.checkpoints.keep,
        ranks=context.ranks,
        task=context.task,
    )
    state.saved_step = state.step
    state.metrics.exclude_time(time.perf_counter() - started)


def _agree_on_actions(
    context: TrainingContext, state: TrainState, previous_seconds: float, evaluating: float, is_interrupted: bool
) -> tuple[bool, bool, bool]:
    """Return whether all ranks stop (if any was interrupted), evaluate and save (rank 0 decides)."""
    config, budget, ranks = context.config, context.budget, context.ranks
    values = [float(is_interrupted), 0.0, 0.0, *(0.0,) * 4]
    if ranks.is_main:
        now: dict[str, Any] = {"step": state.step, "seconds": state.seconds, "previous_seconds": previous_seconds}
        cost = state.eval_seconds
        is_due = budget.is_due(every=config.evaluation.every, times=20, cost=cost, **now)
        values[3:] = budget.decide(state.step, state.seconds, evaluating=evaluating, cost=cost, is_eval_due=is_due)
        values[1] = is_due
        values[2] = budget.is_due(every=config.checkpoints.every, times=10, **now)
    must_stop, is_eval_due, is_save_due, *decided = ranks.all_reduce_max(values)
    budget.record(*map(int, decided))
    return bool(must_stop), bool(is_eval_due), bool(is_save_due)


def _example_numbers(step: int, context: TrainingContext) -> list[tuple[int, int]]:
    """Return (epoch, number) of a step's examples over all ranks."""
    number = context.phase_number(step)
    phase = context.phases[number]
    # Phases with the same batches share their epochs.
    while number and context.phases[number - 1].batch == phase.batch:
        number -= 1
    sizes = {"batch_size": phase.batch.size, "num_examples": len(phase.examples)}
    numbers = examples_of_step(step - context.budget.phase_starts()[number], **sizes, seed=context.config.seed)
    return [(epoch + (number << 32), i) for epoch, i in numbers]


def _dropout_seed(seed: int, step: int, rank: int, micro_batch: int) -> int:
    # The high bit separates its stream from those of the examples.
    return int(example_generator(seed, step, 2**63 + (rank << 32) + micro_batch).integers(2**63))


def _not_finite(what: str, context: TrainingContext, state: TrainState) -> TrainingError:
    numbers = [i for _, i in _example_numbers(state.step, context)]
    shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    saved = f"{context.folder}/checkpoints/step-{state.saved_step:08d}" if state.saved_step else "none"
    advice = "Lower optimizer.learning_rate or lengthen the warm-up, and start again with --overwrite or another --out."
    problem = f"{what} not finite (examples {shown}; last good checkpoint: {saved})."
    return TrainingError(f"Step {state.step}: {problem}", advice=advice)
