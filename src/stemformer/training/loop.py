"""The training loop: one function, in which the order of a step is visible."""

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
from stemformer.training.distributed import (
    SINGLE_PROCESS,
    DistributedContext,
    gradient_sync,
    slices,
    warm_up_ddp_buckets,
)
from stemformer.training.interrupts import GracefulInterrupt
from stemformer.training.log import MetricAccumulator, RunLog
from stemformer.training.optimizer import clip_grad_norm
from stemformer.training.throughput import step_flops


@dataclass(frozen=True)
class Phase:
    """A part of a run whose steps see examples of one length.

    Attributes:
        first_step: From 0.
        batch: What a step sees.
        examples: All there are.
    """

    first_step: int
    batch: BatchConfig
    examples: Examples | TaskExamples


@dataclass(frozen=True)
class TrainingContext:
    """All that a run needs beside its model and optimizer.

    Attributes:
        config: The resolved configuration.
        timetable: How long the run is, and its learning rate.
        objective: What is hidden, and how it is scored.
        phases: The examples of each part of the run, in order.
        evaluate: From the module with the loss to held-out figures.
        fill: From it to what a person sees it do, lists that are each a line of the log, such as words put in held-out blanks (`fills`) or
            texts gone on with (`samples`), and further figures; None where there is nothing of the kind.
        tokenizer: Saved with each checkpoint.
        device: Where the model is.
        precision: `fp32` or `bf16`.
        environment: Stored with each checkpoint.
        peak: Floating-point operations a second that all devices together can do, for MFU.
        folder: The run folder.
        ranks: This process among all that train.
        describe: From held-out figures to the line that a person reads.
        monitor: From held-out figures to the number by which checkpoints are compared, lower being better; None where there is none.
        task: What a saved model says about its task; see `pretrained.save_model`.
        is_saved: The run keeps checkpoints. One without them begins anew when it was stopped.
    """

    config: RunConfig | FinetuneConfig
    timetable: TrainingBudget
    objective: Objective
    phases: Sequence[Phase]
    evaluate: Callable[[nn.Module], dict[str, float]] | None
    fill: Callable[[nn.Module], dict[str, Any]] | None
    tokenizer: Tokenizer
    device: torch.device
    precision: str
    environment: dict[str, Any]
    peak: float
    folder: Path
    ranks: DistributedContext = SINGLE_PROCESS
    describe: Callable[[dict[str, float]], str] = lambda figures: _held_out_line(figures)
    monitor: Callable[[dict[str, float]], float | None] = lambda figures: _held_out_loss(figures)
    task: dict[str, Any] | None = None
    is_saved: bool = True

    def phase(self, step: int) -> tuple[int, Phase]:
        """Returns number and phase of a step."""
        return [(i, phase) for i, phase in enumerate(self.phases) if phase.first_step <= step][-1]


@dataclass
class TrainState:
    """How far a run is.

    Attributes:
        step: Steps done.
        tokens: Tokens seen.
        seconds: Time spent, interruptions not counted.
        sums: What is summed for the next line of the log.
        evaluation_seconds: What the last evaluation took.
        best: Lowest badness (see `TrainingContext`) of an evaluation.
        evals_since_best: Evaluations since then.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    sums: MetricAccumulator = field(default_factory=MetricAccumulator)
    evaluation_seconds: float = 0.0
    best: float = math.inf
    evals_since_best: int = 0

    def judge(self, monitor: float) -> None:
        """Takes note of how bad an evaluation was."""
        self.best, self.evals_since_best = (
            (monitor, 0) if monitor < self.best else (self.best, self.evals_since_best + 1)
        )


def batches_of_step(step: int, setup: TrainingContext) -> list[Batch]:
    """Returns this rank's micro-batches of a step, as many as any other's: a function of data, seed, step and rank alone."""
    seed = setup.config.seed
    phase = setup.phase(step)[1]
    examples = []
    for epoch, i in setup.ranks.share(_examples(step, setup)):
        rng = example_generator(seed, epoch, i)
        examples.append((i, setup.objective.corrupt(phase.examples.get_example(i, rng), rng)))
    fewest, rest = divmod(phase.batch.rows, setup.ranks.world_size)
    most = fewest + (rest > 0)
    number = math.ceil(most / (phase.batch.micro_rows or most))
    if phase.batch.micro_tokens and isinstance(phase.examples, TaskExamples):
        whole = sum(
            int(phase.examples.sizes[i]) for _, i in _examples(step, setup)
        )  # over all ranks, as all must agree
        number = max(number, math.ceil(whole / setup.ranks.world_size / phase.batch.micro_tokens))
    number = min(fewest, number)  # ranks wait for each other at each forward
    return [collate([e for _, e in part], [i for i, _ in part]) for part in slices(examples, number)]


def add_gradients(
    module: nn.Module,
    batches: Sequence[Batch],
    setup: TrainingContext,
    step: int,
    sums: MetricAccumulator,
    counts: dict[str, float],
    recorded: CudaGraphStep | None = None,
) -> None:
    """Adds the gradient of a step's loss, micro-batch by micro-batch, each divided by the count of the whole step.

    Args:
        module: Its forward gives the summed losses; the gradients of its parameters are added to.
        batches: This rank's micro-batches of the step.
        setup: Device, precision and ranks.
        step: From 0; dropout is seeded from (seed, step, rank, number of the micro-batch).
        sums: Losses are added to it.
        counts: Scored places of the whole step, over all micro-batches and ranks, for each loss.
        recorded: Does forward and backward in the module's place; see `make_cuda_graph_step`.
    """
    for number, batch in enumerate(batches):
        torch.manual_seed(_dropout_seed(setup.config.seed, step, setup.ranks.rank, number))
        if recorded is not None:
            losses = recorded.add(batch, {name: 1 / max(1.0, count) for name, count in counts.items()})
        else:
            batch = batch.to(setup.device)
            with gradient_sync(module, number == len(batches) - 1):
                with autocast(setup.device, setup.precision):
                    losses = module(batch)
                shares = [loss.total / max(1.0, counts[name]) for name, loss in losses.items()]
                (setup.ranks.world_size * torch.stack(shares).sum()).backward()  # type: ignore[no-untyped-call]
        for name, loss in losses.items():
            sums.add_loss(name, loss.total, loss.correct, loss.count)


def make_cuda_graph_step(module: nn.Module, setup: TrainingContext) -> CudaGraphStep | None:
    """Returns what records forward and backward as CUDA graphs, for pre-training on one GPU whose blocks are compiled; else None."""
    if setup.device.type != "cuda" or setup.ranks.world_size > 1 or not isinstance(module, LossModule):
        return None
    is_wanted = setup.environment.get("compile") and isinstance(setup.config, RunConfig)
    return CudaGraphStep(module, setup.precision) if is_wanted else None


def train(
    model: Model,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    setup: TrainingContext,
    at: TrainState,
    *,
    progress: Progress,
) -> dict[str, float]:
    """Trains from where `at` stands to the last step, and returns the last held-out figures.

    Args:
        model: Body and heads.
        module: The same, with the loss, as it is distributed over the ranks.
        optimizer: Over the module's parameters.
        setup: All else.
        at: Moved on step by step.
        progress: Told how far it is.

    Raises:
        TrainingError: The loss or the gradient is not finite.
        KeyboardInterrupt: Ctrl-C or SIGTERM on any rank, after the step under way is done, and saved where the run keeps checkpoints.
    """
    config, ranks, timetable = setup.config, setup.ranks, setup.timetable
    log_path = setup.folder / "log.jsonl" if ranks.is_first else None
    log = RunLog(log_path, after_step=at.step, tensorboard=config.tensorboard)
    sums = at.sums
    began = time.perf_counter() - at.seconds
    last_saved = at.step
    evaluated_at, note, shown = -1, "", at.seconds
    figures: dict[str, float] = {}

    def evaluate(*, is_logged: bool = True) -> None:
        nonlocal figures, evaluated_at
        started = time.perf_counter()
        figures = dict(setup.evaluate(module)) if setup.evaluate is not None else {}
        fills = setup.fill(module) if setup.fill is not None else {}
        listed = {name: rows for name, rows in fills.items() if isinstance(rows, list)}
        figures |= {name: value for name, value in fills.items() if name not in listed}
        evaluated_at, at.seconds = at.step, time.perf_counter() - began
        if not all(map(math.isfinite, figures.values())):
            raise TrainingError(_not_finite("held-out loss is", at.step, last_saved, setup))
        if figures and is_logged:
            where = {"step": at.step, "tokens": at.tokens, "seconds": round(at.seconds, 3)}
            log.write(kind="evaluation", **where, **figures)
            for name, rows in listed.items():
                log.write(kind=name, **where, **{name: rows})
            progress.say(f"step {at.step}: {setup.describe(figures)}")
        if is_logged and (now := setup.monitor(figures)) is not None:
            at.judge(now)
        module.train()
        at.evaluation_seconds = time.perf_counter() - started
        sums.leave_out(at.evaluation_seconds)

    def save() -> None:
        started = time.perf_counter()
        at.seconds = started - began
        is_finite = all(bool(_local(p).isfinite().all()) for p in model.parameters())
        if ranks.largest([float(not is_finite)])[0]:
            raise TrainingError(_not_finite("weights are", at.step, last_saved, setup))
        held_out = setup.monitor(figures) if evaluated_at == at.step else None
        checkpoint = Checkpoint(
            at.step,
            at.tokens,
            at.seconds,
            to_toml(config),
            setup.phases[0].examples.fingerprint,
            setup.environment,
            sums.state(),
            held_out,
        )
        folder = setup.folder / "checkpoints"
        keep = config.checkpoints.keep
        save_checkpoint(
            folder, model, optimizer, checkpoint, tokenizer=setup.tokenizer, keep=keep, ranks=ranks, task=setup.task
        )
        sums.leave_out(time.perf_counter() - started)

    patience = getattr(config.evaluation, "patience", None) or math.inf
    is_over = timetable.is_last(at.step) or at.evals_since_best >= patience
    if (at.step == 0 and isinstance(config, RunConfig)) or is_over:
        evaluate(is_logged=at.step == 0)  # a finished run, asked again, tells its figures
    timed = timetable.seconds
    progress.start("training", total=timed or timetable.num_steps, unit="seconds" if timed else "steps")
    progress.advance(at.seconds if timed else at.step)
    module.train()
    if ranks.world_size > 1:
        warm_up_ddp_buckets(module, batches_of_step(at.step, setup)[0].to(setup.device))
    recorded = make_cuda_graph_step(module, setup)
    try:
        with GracefulInterrupt() as stop:
            steps = range(0) if is_over else _steps_left(at.step, timetable)
            for batches in prefetch(lambda step: batches_of_step(step, setup), steps):
                own = [setup.objective.counts(batch) for batch in batches]
                names = list(own[0])
                scored = [sum(count[name] for count in own) for name in names]
                *totals, tokens, displaced, flops = ranks.sum([*scored, *_sizes(batches, model, setup)])
                counts = dict(zip(names, totals, strict=True))
                add_gradients(module, batches, setup, at.step, sums, counts, recorded)
                norm = clip_grad_norm(optimizer, module.parameters(), config.optimizer.clip_norm)
                if not torch.isfinite(norm):
                    raise TrainingError(_not_finite("gradient is", at.step, last_saved, setup))
                rate = config.optimizer.learning_rate * timetable.factor(at.step)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group.get("scale", 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                model.body.embeddings.word.clear_gradient([batch.input_ids for batch in batches])

                batch_config = setup.phase(at.step)[1].batch
                at.step += 1
                at.tokens += int(tokens)
                places = batch_config.rows * batch_config.row_length if isinstance(config, RunConfig) else 0
                sums.add_step(tokens=int(tokens), places=places, displaced=int(displaced), flops=flops)
                before, at.seconds = at.seconds, time.perf_counter() - began
                progress.advance(at.seconds - shown if timed else 1, note)
                shown = at.seconds
                agreed = _agree(timetable, stop.is_requested, before, at, config, ranks)
                is_last = timetable.is_last(at.step)
                if at.step % config.log_every == 0 or is_last:
                    line = sums.take(peak=setup.peak)
                    where = {"step": at.step, "tokens": at.tokens, "seconds": round(at.seconds, 3)}
                    log.write(kind="train", **where, **line, learning_rate=rate, gradient_norm=float(norm))
                    note = (f"step {at.step}, " if timed else "") + _line(line)
                if agreed.evaluate or is_last:
                    evaluate()
                    is_last = is_last or at.evals_since_best >= patience
                is_best = (
                    patience < math.inf and evaluated_at == at.step and at.evals_since_best == 0
                )  # what the run will end with
                if setup.is_saved and (agreed.save or is_best or is_last or agreed.stop):
                    save()
                    last_saved = at.step
                if is_last:
                    break
                if agreed.stop:
                    of = f" of {timetable.num_steps}" if timetable.num_steps else ""
                    saved = " and saved: go on with --resume" if setup.is_saved else ""
                    progress.say(f"stopped after step {at.step}{of}{saved}")
                    stop.act()
    finally:
        log.close()
    return figures


@dataclass(frozen=True)
class _Agreed:
    """What all ranks do after a step."""

    stop: bool
    evaluate: bool
    save: bool


def _agree(
    timetable: TrainingBudget,
    is_stopping: bool,
    before: float,
    at: TrainState,
    config: RunConfig | FinetuneConfig,
    ranks: DistributedContext,
) -> _Agreed:
    """Returns what all ranks do after a step: stop if one was told to, and whatever else the first one's clock says."""
    now: dict[str, Any] = {"step": at.step, "seconds": at.seconds, "before": before}
    decision = timetable.decide(at.step, at.seconds) if ranks.is_first else None
    evaluates = saves = False
    if ranks.is_first:
        evaluates = timetable.is_due(
            every=config.evaluation.every, times=20, at_least=config.log_every, cost=at.evaluation_seconds, **now
        )
        saves = timetable.is_due(every=config.checkpoints.every, times=10, at_least=config.log_every, **now)
    steps = [float(decision.decay_step), float(decision.last_step)] if decision else [0.0, 0.0]
    stop, evaluate, save, decay, last = ranks.largest([float(is_stopping), float(evaluates), float(saves), *steps])
    if last:
        timetable.take(DecayDecision(timetable.seconds or 0.0, int(decay), int(last)))
    return _Agreed(bool(stop), bool(evaluate), bool(save))


def _examples(step: int, setup: TrainingContext) -> list[tuple[int, int]]:
    """Returns (epoch, number) of the examples of a step, over all ranks; each phase counts epochs of its own."""
    number, phase = setup.phase(step)
    numbers = examples_of_step(
        step - phase.first_step,
        batch_size=phase.batch.rows,
        num_examples=len(phase.examples),
        seed=setup.config.seed,
    )
    return [(epoch + (number << 32), i) for epoch, i in numbers]


def _steps_left(step: int, timetable: TrainingBudget) -> range:
    return range(step, timetable.num_steps if timetable.num_steps is not None else 2**62)


def _sizes(batches: Sequence[Batch], model: Model, setup: TrainingContext) -> tuple[float, float, float]:
    """Returns tokens, displaced tokens and floating-point operations of some batches."""
    tokens = sum(len(batch.input_ids) for batch in batches)
    flops = sum(step_flops(model, batch, num_rows=num_scored_positions(setup.objective, batch)) for batch in batches)
    return tokens, sum(batch.num_dropped_tokens for batch in batches), flops


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """Returns this rank's part of a tensor that is sharded."""
    local: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


def _held_out_loss(figures: dict[str, float]) -> float | None:
    """Returns the sum of the held-out losses that are trained, by which checkpoints are compared."""
    losses = [v for name, v in figures.items() if name.endswith("_loss") and name != "held_out_unigram_loss"]
    return sum(losses) if losses else None


def _dropout_seed(seed: int, step: int, rank: int, micro_batch: int) -> int:
    """Returns the seed of a forward's dropout. The high bit keeps its stream apart from those of the examples."""
    return int(example_generator(seed, step, 2**63 + (rank << 32) + micro_batch).integers(2**63))


def _line(figures: dict[str, float]) -> str:
    """Returns the figures a person wants to see while training."""
    names = [name.removesuffix("_loss") for name in figures if name.endswith("_loss")]
    losses = [f"loss {figures[f'{name}_loss']:.3f}{_LABELS.get(name, '')}" for name in names]
    return ", ".join([*losses, f"{figures['tokens_per_second']:,.0f} tokens/s"])


_LABELS = {"next_sentence": " (next sentence)", "sentence_order": " (sentence order)"}


def _held_out_line(figures: dict[str, float]) -> str:
    """Returns held-out figures, each beside what can be had without reading."""
    told = {name.removeprefix("held_out_"): value for name, value in figures.items()}
    name, words = ("causal_lm", "next") if "causal_lm_loss" in told else ("masked_lm", "hidden")
    parts = [
        f"held-out loss {told[f'{name}_loss']:.3f} (word frequency {told['unigram_loss']:.3f})",
        f"{told[f'{name}_accuracy']:.1%} of {words} words right ({told['unigram_accuracy']:.1%})",
    ]
    if "bits_per_byte" in told:
        parts.append(f"{told['bits_per_byte']:.3f} bits per byte")
    for question in ("next_sentence", "sentence_order"):
        if f"{question}_accuracy" in told:
            name = question.replace("_", " ")
            parts.append(f"{name} {told[f'{question}_accuracy']:.1%} ({told['majority_accuracy']:.1%})")
    if "blank_accuracy" in told:
        parts.append(f"blanks {told['blank_accuracy']:.1%} ({told['blank_constant_accuracy']:.1%})")
    return ", ".join(parts)


def _not_finite(what: str, step: int, last_saved: int, setup: TrainingContext) -> str:
    numbers = [i for _, i in _examples(step, setup)]
    shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    way_back = f"{setup.folder}/checkpoints/step-{last_saved:08d}" if last_saved else "none yet"
    return (
        f"step {step}: the {what} not finite (examples {shown}); last good checkpoint: {way_back}. "
        "Lower optimizer.learning_rate or lengthen the warm-up, and start again (--overwrite, or another --out)"
    )
