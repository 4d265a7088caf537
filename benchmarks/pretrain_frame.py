"""Shared parts of the pre-training comparisons: training contexts, steps of each side, and their table.

No comparison by itself: see `pretrain_vs_transformers.py` and `pretrain_gpt_vs_peers.py`. A side yields, for each step,
when it ended, its tokens, its positions (padding included), the floating-point operations it computed, and its loss.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import frame
import numpy as np
import torch
import transformers

import stemformer
from stemformer.data.examples.sampling import permuted, prefetch
from stemformer.data.shards.reader import Shards
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.device import autocast, choose_compile, configure_allocator
from stemformer.models.model import ARCHITECTURES, make_model
from stemformer.objectives.objective import Examples, Objective
from stemformer.recipes import find_recipe
from stemformer.training.budget import TrainingBudget
from stemformer.training.config import BudgetConfig, RunConfig
from stemformer.training.context import Phase, TrainingContext
from stemformer.training.initialization import prepare_training
from stemformer.training.log import MetricAccumulator
from stemformer.training.loop import add_gradients, batches_of_step, make_cuda_graph_step
from stemformer.training.optimizer import OptimizerConfig, clip_grad_norm, make_optimizer
from stemformer.training.throughput import compile_blocks, matmul_rate, step_flops

CPU = torch.device("cpu")
AHEAD = 8
"""Steps prepared beyond the last timed one, so that the timed steps pay for as many preparations as they use."""

Step = tuple[float, float, float, float, float]


def make_parser(doc: str, sides: Sequence[str], default: str, recipe: str) -> argparse.ArgumentParser:
    """Return a parser with the options of both pre-training comparisons."""
    parser = frame.make_parser(doc, sides, rounds=5, default=default)
    add = parser.add_argument
    add("--data", help="directory of tokenized data (output of `stemformer prepare`)")
    add("--recipe", default=recipe)
    add("--steps", type=int, default=12, help="timed steps of a measurement")
    add("--warmup", type=int, default=3, help="steps before the timed ones, at least 1")
    add("--rows", type=int, help="sequences in a step; default: those of the recipe")
    add(
        "--hidden-dropout",
        type=float,
        help="dropout of all sides but default_shipped_dropout; default: that of the recipe",
    )
    add("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="the default sides always use fp32")
    add("--profile", action="store_true", help="print a profile of one step of ours instead")
    return parser


def run(
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace], dict[str, Any]],
    conditions: Callable[[dict[str, Any], argparse.Namespace], str],
    steps_of_ours: Callable[[argparse.Namespace], Iterator[Step]],
    *,
    prepare: Callable[[argparse.Namespace, Path], None] = lambda args, folder: None,
    requires: str = "",
) -> None:
    """Run a pre-training comparison, or profile a step of ours.

    Args:
        conditions: Text below the table: what is equal and what differs.
        steps_of_ours: Steps for `--profile`.
    """

    def prepare_or_profile(args: argparse.Namespace, folder: Path) -> None:
        if args.warmup < 1:
            parser.error("--warmup: expected at least 1")
        prepare(args, folder)
        if args.profile:
            torch.set_num_threads(args.threads)
            print_profile(steps_of_ours(args), warmup=args.warmup)
            parser.exit()

    def report(found: frame.Measurements, args: argparse.Namespace) -> None:
        print_table(found)
        print(
            f"\nMedians of {args.rounds} rounds, each the median of {args.steps} steps after {args.warmup}, "
            f"{args.threads} threads; memory is the peak less that after imports, on a GPU that of its tensors.\n"
            + conditions(next(iter(found.values()))[0], args)
        )

    frame.run(
        parser,
        measure,
        report,
        describe=lambda result: f"{result['tokens_per_second']:,.0f} tokens/s",
        prepare=prepare_or_profile,
        environment={"TOKENIZERS_PARALLELISM": "false"},
        requires=requires,
    )


def prepare_samples(folder: Path) -> str:
    """Tokenize the embedded English samples, and return the directory of the data."""
    texts = [str(Path(stemformer.__file__).parent / "samples" / "english")]
    stemformer.train_tokenizer(texts, out=str(folder / "tokenizer"), vocab_size=8000, lowercase=True)
    stemformer.prepare(texts, tokenizer=str(folder / "tokenizer"), out=str(folder / "data"), documents="blank")
    return str(folder / "data")


def print_table(found: frame.Measurements) -> None:
    first = next(iter(found))
    header = ("side", "precision", "tokens/s", "range", f"{first} is faster by", "MFU", "peak MB", "padding", "loss")
    rows = [
        (
            side,
            runs[0]["precision"],
            f"{frame.median(runs, 'tokens_per_second'):,.0f}",
            frame.spread(runs, "tokens_per_second", ",.0f"),
            f"{frame.speedup(found[first], runs, 'tokens_per_second', is_rate=True):.2f}",
            f"{frame.median(runs, 'mfu'):.0%}",
            f"{frame.median(runs, 'peak_megabytes'):,.0f}",
            f"{frame.median(runs, 'padding'):.1%}",
            f"{frame.median(runs, 'loss'):.2f}",
        )
        for side, runs in found.items()
    ]
    frame.print_table(header, rows)


def measure_steps(
    steps: Iterator[Step], context: TrainingContext, *, warmup: int, after_imports: float
) -> dict[str, Any]:
    """Run the steps of a side and return its measurement, without the first `warmup` steps.

    Memory is the peak of the process less that after imports; on a GPU, that of its tensors.
    """
    device, precision = context.device, context.precision
    ends = list(steps)
    seconds = np.diff([step[0] for step in ends[warmup - 1 :]])
    if device.type == "cpu":
        peak = resident_megabytes("VmHWM") - after_imports
    else:
        peak = torch.cuda.max_memory_allocated(device) / 2**20
    tokens, positions, flops = (np.array([step[n] for step in ends[warmup:]]) for n in (1, 2, 3))
    assert isinstance(context.config, RunConfig)
    return {
        "precision": precision,
        "tokens_per_second": float(np.median(tokens / seconds)),
        "mfu": float(np.median(flops / seconds)) / matmul_rate(device, precision),
        "peak_megabytes": peak,
        "padding": 1 - float(tokens.sum() / positions.sum()),
        "loss": statistics.mean(step[4] for step in ends),
        "step_seconds": seconds.round(4).tolist(),
        "vocab_size": context.config.model.vocab_size,
        "rows": context.config.batch.size,
        "sequence_length": context.config.batch.sequence_length,
        "hidden_dropout": context.config.model.hidden_dropout_prob,
    }


def resident_megabytes(which: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{which}:")[1].split()[0]) / 1024


# ------------------------------------------------------------------------------------------- Ours


def make_config(side: str, args: argparse.Namespace, vocab_size: int, length: int | None = None) -> RunConfig:
    """Return the config of a side: the recipe with its optimizer, Muon or AdamW; micro-batches for `ours_in_N`."""
    config = find_recipe(args.recipe)
    dropout = config.model.hidden_dropout_prob if args.hidden_dropout is None else args.hidden_dropout
    size, num_parts = args.rows or config.batch.size, int(side[-1]) if side.startswith("ours_in_") else 1
    batch = replace(
        config.batch,
        size=size,
        micro_size=None if num_parts == 1 else size // num_parts,
        sequence_length=length or config.batch.sequence_length,
    )
    optimizer = config.optimizer
    if side == "ours_muon":
        optimizer = replace(optimizer, kind="muon")
    elif side != "ours_recipe":
        names = ("muon_lr_multiplier", "muon_interval", "momentum")
        optimizer = replace(optimizer, kind="adamw", **{name: getattr(OptimizerConfig, name) for name in names})
    return replace(
        config,
        model=replace(config.model, vocab_size=vocab_size, hidden_dropout_prob=dropout),
        batch=batch,
        optimizer=optimizer,
        budget=BudgetConfig(steps=args.warmup + args.steps),
    )


def make_context(
    config: RunConfig,
    objective: Objective,
    examples: Examples,
    tokenizer: Tokenizer,
    precision: str,
    folder: Path,
    device: torch.device = CPU,
) -> TrainingContext:
    """Return a training context as `stemformer.commands.pretrain` makes it, for a budget in steps."""
    return TrainingContext(
        config=config,
        budget=TrainingBudget(config, config.budget.steps, folder),
        objective=objective,
        phases=[Phase(config.batch, examples)],
        evaluate=None,
        sample_fn=None,
        tokenizer=tokenizer,
        device=device,
        precision=precision,
        environment={},
        peak_flops=0.0,
        folder=folder,
    )


def our_steps(context: Any, *, compiled: bool | None = None, loss_name: str | None = None) -> Iterator[Step]:
    """Yield the steps of ours; `compiled` None compiles the layers if the package does so on this device.

    Args:
        loss_name: Name of the loss; default: that of the head.
    """
    configure_allocator(context.device)
    compiled = choose_compile(compiled, context.device)
    context = replace(context, environment={"compile": compiled})
    heads = list(context.objective.heads)
    generator = torch.Generator().manual_seed(0)
    tied = context.config.ties_embeddings
    model = make_model(context.config.model, heads, tied=tied, generator=generator).train()
    if compiled:
        compile_blocks(model)
    module, optimizer = prepare_training(model, context)
    metrics, graph_step = MetricAccumulator(), make_cuda_graph_step(module, context)
    name = loss_name or heads[0]
    prepared = prefetch(lambda s: batches_of_step(s, context), range(context.budget.num_steps + AHEAD))
    for step, batches in zip(range(context.budget.num_steps), prepared, strict=False):
        counts = {name: float(sum(len(batch.labels) for batch in batches))}
        add_gradients(module, batches, context, step, metrics, counts, graph_step)
        norm = clip_grad_norm(optimizer, model.parameters(), context.config.optimizer.max_grad_norm)
        assert torch.isfinite(norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.kept_gradients.clear()
        tokens = sum(batch.num_tokens for batch in batches)
        flops = sum(step_flops(model, batch, context.objective) for batch in batches)
        metrics.add_step(tokens=tokens, capacity=tokens, num_dropped=0, flops=flops)
        loss = metrics.flush(peak_flops=1.0)[f"{name}_loss"]
        yield time.perf_counter(), tokens, tokens, flops, loss


def print_profile(steps: Iterator[Step], *, warmup: int) -> None:
    """Print where a step spends its time."""
    for _ in range(warmup):
        next(steps)
    with torch.profiler.profile() as profile:
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(profile.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=25))


# ------------------------------------------------------------------------------------------- Peers


def join_documents(shards: Shards, number: int, *, before: Sequence[int] = (), after: Sequence[int] = ()) -> list[int]:
    """Return a number of token ids: documents in random order, joined end to end with special ids around each."""
    ids: list[int] = []
    epoch = 0
    while len(ids) < number:
        for document in permuted(np.arange(shards.num_documents), shards.num_documents, seed=0, epoch=epoch).tolist():
            span = shards.document_starts[document : document + 2]
            ids += [*before, *shards.tokens(*span).tolist(), *after]
            if len(ids) >= number:
                break
        epoch += 1
    return ids[:number]


def trainer_steps(
    model: Any,
    context: Any,
    examples: Sequence[dict[str, list[int]]],
    collate: Callable[[list[Any]], Any],
    flops: Callable[[Any, int, int], float],
    **options: Any,
) -> Iterator[Step]:
    """Yield the steps of transformers' Trainer with our learning rate, betas, decay and clipping, all else at its defaults.

    Args:
        options: Further arguments of `TrainingArguments`.
    """
    shapes: list[tuple[int, int, int]] = []  # tokens, rows, length of each batch
    ends: list[float] = []

    def count_and_collate(features: list[dict[str, Any]]) -> Any:
        batch = collate(features)
        shapes.append((num_tokens(batch), *batch["input_ids"].shape))
        return batch

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    adam = context.config.optimizer
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            per_device_train_batch_size=context.config.batch.size,
            use_cpu=context.device.type == "cpu",
            learning_rate=adam.learning_rate,
            weight_decay=adam.weight_decay,
            max_grad_norm=adam.max_grad_norm,
            adam_beta1=adam.beta1,
            adam_beta2=adam.beta2,
            adam_epsilon=adam.eps,
            max_steps=context.budget.num_steps,
            logging_steps=context.budget.num_steps,
            lr_scheduler_type="constant",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **options,
        )
        data = datasets.Dataset.from_list(list(examples))
        trainer = transformers.Trainer(model, arguments, count_and_collate, data, callbacks=[Clock()])
        loss = trainer.train().training_loss
    for end, (tokens, rows, length) in zip(ends, shapes, strict=False):
        yield end, tokens, rows * length, flops(model, rows, length), loss


def num_tokens(batch: Any) -> int:
    """Return the tokens of a peer's batch that are no padding, labels of an encoder-decoder included."""
    number = int(batch["attention_mask"].sum())
    return number + (int((batch["labels"] != -100).sum()) if "decoder_input_ids" in batch else 0)


def hand_steps(
    model: Any,
    context: Any,
    prepare: Callable[[int], tuple[int, dict[str, torch.Tensor]]],
    compute_loss: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    flops: Callable[[Any, int, int], float],
) -> Iterator[Step]:
    """Yield the steps of a loop written by hand: autocast, prefetched batches, our fused AdamW.

    Args:
        model: Model to train.
        context: Of ours, for the number of steps, precision and optimizer.
        prepare: Returns the number of tokens of a step, and its batch.
        compute_loss: Returns the loss of a batch; may be compiled.
        flops: Returns the operations for a model, number of rows, and length.
    """
    optimizer = make_optimizer(model.to(context.device), context.config.optimizer)
    prepared = prefetch(prepare, range(context.budget.num_steps + AHEAD))
    for _, (tokens, batch) in zip(range(context.budget.num_steps), prepared, strict=False):
        if context.device.type != "cpu":
            batch = {name: value.pin_memory().to(context.device, non_blocking=True) for name, value in batch.items()}
        with autocast(context.device, context.precision):
            loss = compute_loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), context.config.optimizer.max_grad_norm)
        assert torch.isfinite(norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rows, length = batch["input_ids"].shape
        yield time.perf_counter(), tokens, rows * length, flops(model, rows, length), loss.item()


def transformers_model(config: Any, **options: Any) -> Any:
    """Return transformers' language model of the architecture and sizes of ours, in training mode.

    `options` override its config.
    """
    architecture = ARCHITECTURES[config.model_type]
    settings = {**architecture.write_config(config), **options}
    theirs = transformers.AutoConfig.for_model(config.model_type, **settings)
    name = architecture.hf_classes[frozenset({architecture.lm_head})]
    return getattr(transformers, name)._from_config(theirs, attn_implementation="sdpa").train()


def peer_flops(model: Any, rows: int, length: int) -> float:
    """Return the operations of a peer for a padded block: layers and head at all positions (see `step_flops`)."""
    body = getattr(model, "base_model", model)
    layers = next(part for part in body.modules() if isinstance(part, torch.nn.ModuleList))
    embedding = max(model.parameters(), key=lambda p: len(p))
    # Weights of an own layer of the head, whose output matrix is as large as the embedding.
    in_body = {id(p) for p in body.parameters()}
    own = [p for p in model.parameters() if id(p) not in in_body and p.ndim == 2]
    head = sum(p.numel() for p in own if len(p) < len(embedding))
    vocab_size, d = embedding.shape
    weights = sum(p.numel() for p in layers.parameters()) + head + d * vocab_size
    return 6.0 * rows * length * (weights + 2 * d * len(layers) * length)
