"""What comparisons of whole training steps share: sides that take turns, each in a process of its own, and a table of medians.

No comparison by itself: see `pretrain_vs_transformers.py` and `pretrain_gpt_vs_peers.py`. A side yields, for each step, when it ended,
its tokens, its places (padding included), the floating-point operations that it computes, and its loss.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers

from stemformer.data.examples.sampling import permuted, prefetch
from stemformer.data.shards.reader import Shards
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.device import autocast, choose_compile, configure_allocator
from stemformer.models.model import make_model
from stemformer.objectives.objective import Examples, LossModule, Objective
from stemformer.training.budget import TrainingBudget
from stemformer.training.config import RunConfig
from stemformer.training.log import MetricAccumulator
from stemformer.training.loop import Phase, TrainingContext, add_gradients, batches_of_step, make_cuda_graph_step
from stemformer.training.optimizer import clip_grad_norm, make_optimizer
from stemformer.training.throughput import compile_blocks, matmul_rate, step_flops

CPU = torch.device("cpu")
AHEAD = 8  # steps prepared beyond the last timed one, so that the timed steps pay for preparing as many as they use

Step = tuple[float, float, float, float, float]
Found = dict[str, list[dict[str, Any]]]


def take_turns(script: str, sides: Sequence[str], options: Sequence[str], *, rounds: int, threads: int) -> Found:
    """Runs a script with `--side` for each side, round by round, and returns what the last line of each run told as JSON."""
    found: Found = {side: [] for side in sides}
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    for number in range(rounds):
        for side in sides:
            command = [sys.executable, script, f"--side={side}", *options]
            ran = subprocess.run(command, env=environment, capture_output=True, text=True)
            if ran.returncode:
                sys.exit(f"{side} failed:\n{ran.stderr[-3000:]}")
            told = json.loads(ran.stdout.splitlines()[-1])
            found[side].append(told)
            print(f"round {number + 1}, {side}: {told['tokens_per_second']:,.0f} tokens/s", file=sys.stderr, flush=True)
    return found


def print_table(found: Found) -> None:
    def median(side: str, figure: str) -> float:
        return statistics.median(m[figure] for m in found[side])

    first = next(iter(found))
    print(
        f"| side | precision | tokens/s | lowest to highest | {first} is faster by | MFU | peak MB | padding | loss |"
    )
    print("|---" * 9 + "|")
    for side, measured in found.items():
        rates = [m["tokens_per_second"] for m in measured]
        ratios = [a["tokens_per_second"] / b for a, b in zip(found[first], rates, strict=True)]
        print(
            f"| {side} | {measured[0]['precision']} | {median(side, 'tokens_per_second'):,.0f} | {min(rates):,.0f} to {max(rates):,.0f} "
            f"| {statistics.median(ratios):.2f} | {median(side, 'mfu'):.0%} | {median(side, 'peak_megabytes'):,.0f} "
            f"| {median(side, 'padding'):.1%} | {median(side, 'loss'):.2f} |"
        )


def figures_of(
    steps: Iterator[Step], *, warmup: int, precision: str, after_imports: float, device: torch.device = CPU
) -> dict[str, Any]:
    """Runs a side and returns its figures, without the first `warmup` steps.

    Memory is what was resident less that after imports, or of a GPU what its tensors took.
    """
    ends = list(steps)
    seconds = np.diff([step[0] for step in ends[warmup - 1 :]])
    if device.type == "cpu":
        peak = resident_megabytes("VmHWM") - after_imports
    else:
        peak = torch.cuda.max_memory_allocated(device) / 2**20
    tokens, places, flops = (np.array([step[n] for step in ends[warmup:]]) for n in (1, 2, 3))
    return {
        "precision": precision,
        "tokens_per_second": float(np.median(tokens / seconds)),
        "mfu": float(np.median(flops / seconds)) / matmul_rate(device, precision),
        "peak_megabytes": peak,
        "padding": 1 - float(tokens.sum() / places.sum()),
        "loss": statistics.mean(step[4] for step in ends),
        "step_seconds": seconds.round(4).tolist(),
    }


def resident_megabytes(which: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{which}:")[1].split()[0]) / 1024


# ------------------------------------------------------------------------------------------------------------------------------ ours


def make_setup(
    config: RunConfig,
    objective: Objective,
    examples: Examples,
    tokenizer: Tokenizer,
    precision: str,
    folder: Path,
    device: torch.device = CPU,
) -> TrainingContext:
    """Returns what the loop needs, put together as `stemformer.pretraining` does; the budget is one in steps."""
    return TrainingContext(
        config=config,
        timetable=TrainingBudget(config, config.budget.steps, folder),
        objective=objective,
        phases=[Phase(0, config.batch, examples)],
        evaluate=None,
        fill=None,
        tokenizer=tokenizer,
        device=device,
        precision=precision,
        environment={},
        peak=0.0,
        folder=folder,
    )


def our_steps(setup: Any, *, compiled: bool | None = None) -> Iterator[Step]:
    """Yields the steps of ours; layers are compiled as asked, or as the package does by itself on the device."""
    configure_allocator(setup.device)
    compiled = choose_compile(compiled, setup.device)
    setup = replace(setup, environment={"compile": compiled})
    heads = list(setup.objective.heads)
    model = make_model(setup.config.model, heads, generator=torch.Generator().manual_seed(0)).train().to(setup.device)
    if compiled:
        compile_blocks(model)
    module = LossModule(model, setup.objective)
    optimizer = make_optimizer(model, setup.config.optimizer, precision=setup.precision)
    sums, recorded = MetricAccumulator(), make_cuda_graph_step(module, setup)
    made = prefetch(lambda s: batches_of_step(s, setup), range(setup.timetable.num_steps + AHEAD))
    for step, batches in zip(range(setup.timetable.num_steps), made, strict=False):
        counts = {heads[0]: float(sum(len(batch.labels) for batch in batches))}
        add_gradients(module, batches, setup, step, sums, counts, recorded)
        norm = clip_grad_norm(optimizer, model.parameters(), setup.config.optimizer.clip_norm)
        assert torch.isfinite(norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens = sum(len(batch.input_ids) for batch in batches)
        flops = sum(step_flops(model, batch, num_rows=len(batch.labels)) for batch in batches)
        sums.add_step(tokens=tokens, places=tokens, displaced=0, flops=flops)
        figures = sums.take(peak=1.0)
        yield time.perf_counter(), tokens, tokens, flops, figures[f"{heads[0]}_loss"]


def print_profile(steps: Iterator[Step], *, warmup: int) -> None:
    """Prints where one step of ours spends its time."""
    for _ in range(warmup):
        next(steps)
    with torch.profiler.profile() as profiled:
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    where = "cuda" if torch.cuda.is_available() else "cpu"
    print(profiled.key_averages().table(sort_by=f"self_{where}_time_total", row_limit=25))


# ----------------------------------------------------------------------------------------------------------------------------- peers


def joined_ids(shards: Shards, number: int, *, before: Sequence[int] = (), after: Sequence[int] = ()) -> list[int]:
    """Returns so many ids of whole documents in random order, joined end to end with special ids around each."""
    line: list[int] = []
    epoch = 0
    while len(line) < number:
        for document in permuted(np.arange(shards.num_documents), shards.num_documents, seed=0, epoch=epoch).tolist():
            span = shards.document_starts[document : document + 2]
            line += [*before, *shards.tokens(*span).tolist(), *after]
            if len(line) >= number:
                break
        epoch += 1
    return line[:number]


def trainer_steps(
    model: Any,
    setup: Any,
    examples: Sequence[dict[str, list[int]]],
    collate: Callable[[list[Any]], Any],
    flops: Callable[[Any, int, int], float],
) -> Iterator[Step]:
    """Yields the steps of transformers' Trainer with the learning rate, betas, decay and clipping of ours, all else as shipped."""
    shapes: list[tuple[int, int, int]] = []  # tokens, rows, length of each batch, in the order of the steps
    ends: list[float] = []

    def counting(features: list[dict[str, Any]]) -> Any:
        batch = collate(features)
        shapes.append((int(batch["attention_mask"].sum()), *batch["input_ids"].shape))
        return batch

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    adam = setup.config.optimizer
    with tempfile.TemporaryDirectory() as folder:
        rates = {
            "learning_rate": adam.learning_rate,
            "weight_decay": adam.weight_decay,
            "max_grad_norm": adam.clip_norm,
        }
        rates |= {"adam_beta1": adam.beta1, "adam_beta2": adam.beta2, "adam_epsilon": adam.eps}
        steps = {
            "max_steps": setup.timetable.num_steps,
            "logging_steps": setup.timetable.num_steps,
            "lr_scheduler_type": "constant",
        }
        quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True}
        arguments = transformers.TrainingArguments(
            folder,
            per_device_train_batch_size=setup.config.batch.rows,
            use_cpu=setup.device.type == "cpu",
            **rates,
            **steps,
            **quiet,
        )
        data = datasets.Dataset.from_list(list(examples))
        trainer = transformers.Trainer(model, arguments, counting, data, callbacks=[Clock()])
        loss = trainer.train().training_loss
    for end, (tokens, rows, length) in zip(ends, shapes, strict=False):
        yield end, tokens, rows * length, flops(model, rows, length), loss


def hand_steps(
    model: Any,
    setup: Any,
    make: Callable[[int], tuple[int, dict[str, torch.Tensor]]],
    loss_of: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    flops: Callable[[Any, int, int], float],
) -> Iterator[Step]:
    """Yields the steps of a loop written by hand: autocast, prefetched batches, the fused AdamW of ours.

    Args:
        model: That is trained.
        setup: Of ours; how many steps, precision, optimizer.
        make: From a step's number to its tokens, and to what the model is given.
        loss_of: From that to the loss; may be compiled.
        flops: From model, rows and length to operations.
    """
    optimizer = make_optimizer(model.to(setup.device), setup.config.optimizer)
    made = prefetch(make, range(setup.timetable.num_steps + AHEAD))
    for _, (tokens, batch) in zip(range(setup.timetable.num_steps), made, strict=False):
        if setup.device.type != "cpu":
            batch = {name: value.pin_memory().to(setup.device, non_blocking=True) for name, value in batch.items()}
        with autocast(setup.device, setup.precision):
            loss = loss_of(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), setup.config.optimizer.clip_norm)
        assert torch.isfinite(norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        n, length = batch["input_ids"].shape
        yield time.perf_counter(), tokens, n * length, flops(model, n, length), loss.item()


def gpt2_config(sizes: Any, **more: Any) -> transformers.GPT2Config:
    """Returns transformers' configuration of our sizes; what is not said is its default."""
    return transformers.GPT2Config(
        vocab_size=sizes.vocab_size,
        n_embd=sizes.hidden_size,
        n_layer=sizes.num_hidden_layers,
        n_head=sizes.num_attention_heads,
        n_inner=sizes.intermediate_size,
        activation_function=sizes.hidden_act,
        n_positions=sizes.max_position_embeddings,
        bos_token_id=sizes.eos_token_id,
        eos_token_id=sizes.eos_token_id,
        **more,
    )
