"""Masked-LM pre-training: tokens a second of ours beside transformers', as shipped and tuned by hand, on the same text.

    python benchmarks/pretrain_vs_transformers.py --data PREPARED_FOLDER --recipe bert_mini

Each measurement is a process of its own (the script calls itself with `--side`); sides take turns, round by round, so that a slow
minute of the machine falls on all of them. Sides:

    ours                     the package's loop: prefetched batches, gradients, clipping, fused AdamW
    ours_compiled            the same with the layers compiled
    ours_muon                the same with the optimizer of our small recipes, which costs a step more and takes fewer (time_to_quality.py)
    ours_in_4, ours_in_8     the same with a step's rows in four or eight micro-batches, which takes less memory
    default                  what transformers' run_mlm example does: Trainer, float32, eager; its own collator and data loader
    default_shipped_dropout  the same with BertConfig's own dropout (0.1, also on attention probabilities)
    best                     BertForMaskedLM by hand: scaled_dot_product_attention, fused AdamW, torch.compile of the model, bf16 autocast
                             where the processor has bf16 matrix units, batches prefetched in a thread as ours are
    best_kept_memory         the same in a process that keeps freed memory, as ours does (training.compute.keep_freed_memory)
    best_attention_dropout   the same with dropout 0.1 on attention probabilities

A token counts if it is not padding; special tokens count, on all sides. MFU counts what a side computes, padding and unscored places
included, over the rate of a 4096 x 4096 matrix product in the same precision and process. Runs on the CPU.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers

import stemformer
from stemformer.data.batches import examples_of_step, permuted, prefetch
from stemformer.data.shards import open_shards
from stemformer.data.tokenizer import load_tokenizer
from stemformer.data.windows import Rows, make_rows
from stemformer.models.model import make_model
from stemformer.objectives.masked import MaskedLm, MaskedLmConfig, SpecialIds
from stemformer.objectives.sentence_pairs import WithLoss
from stemformer.recipes import find_recipe
from stemformer.training.compute import (
    autocast,
    choose_precision,
    compile_blocks,
    keep_freed_memory,
    matmul_rate,
    step_flops,
)
from stemformer.training.log import StepSums
from stemformer.training.loop import Phase, Setup, add_gradients, batches_of_step
from stemformer.training.optim import clip, make_optimizer
from stemformer.training.run import BudgetConfig
from stemformer.training.timetable import Timetable

CPU = torch.device("cpu")
AHEAD = 8  # steps prepared beyond the last timed one, so that the timed steps pay for preparing as many as they use
SIDES = (
    "ours",
    "ours_compiled",
    "ours_muon",
    "ours_in_4",
    "ours_in_8",
    "default",
    "default_shipped_dropout",
    "best",
    "best_kept_memory",
    "best_attention_dropout",
)
STANDARD = "ours,ours_muon,ours_compiled,default,best,best_kept_memory,best_attention_dropout"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", help="a folder that `stemformer prepare` wrote; else the embedded English samples")
    add("--recipe", default="bert_mini")
    add("--rounds", type=int, default=5)
    add("--steps", type=int, default=12, help="timed steps of a measurement")
    add("--warmup", type=int, default=3, help="steps before them")
    add("--rows", type=int, help="rows of 128 tokens a step; the recipe's by default")
    add("--hidden-dropout", type=float, help="of all sides but the shipped one; the recipe's by default")
    add("--rate", type=float, default=0.15, help="share of tokens hidden, all sides")
    add("--lengths", choices=["rows", "sentences"], default="rows", help="sentences: each is a sequence of its own")
    add("--threads", type=int, default=2)
    add("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="the default sides are always fp32")
    add("--sides", default=STANDARD, help=f"of {', '.join(SIDES)}")
    add("--json", help="file for all measurements")
    add("--profile", action="store_true", help="where a step of ours spends its time, and nothing else")
    add("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.warmup < 1 or not set(args.sides.split(",")) <= set(SIDES):
        parser.error(f"--warmup is at least 1, --sides are some of {', '.join(SIDES)}")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    args.data = args.data or prepared_samples()
    if args.side:
        print(json.dumps(measure(args.side, args)))
    else:
        (profile if args.profile else compare)(args)


def prepared_samples() -> str:
    folder = Path(tempfile.mkdtemp(prefix="stemformer-bench-"))
    texts = [str(Path(stemformer.__file__).parent / "samples" / "english")]
    stemformer.train_tokenizer(texts, out=str(folder / "tokenizer"), vocab_size=8000, lowercase=True)
    stemformer.prepare(texts, tokenizer=str(folder / "tokenizer"), out=str(folder / "data"), documents="blank")
    return str(folder / "data")


def compare(args: argparse.Namespace) -> None:
    sides = args.sides.split(",")
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    same = ["data", "recipe", "steps", "warmup", "rows", "rate", "hidden_dropout", "lengths", "threads", "precision"]
    options = [f"--{n.replace('_', '-')}={getattr(args, n)}" for n in same if getattr(args, n) is not None]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "PYTHONWARNINGS": "ignore"}
    for number in range(args.rounds):
        for side in sides:
            command = [sys.executable, __file__, f"--side={side}", *options]
            ran = subprocess.run(command, env=environment, capture_output=True, text=True)
            if ran.returncode:
                sys.exit(f"{side} failed:\n{ran.stderr[-3000:]}")
            told = json.loads(ran.stdout.splitlines()[-1])
            found[side].append(told)
            print(f"round {number + 1}, {side}: {told['tokens_per_second']:,.0f} tokens/s", file=sys.stderr, flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps({"arguments": vars(args), "measurements": found}, indent=1) + "\n")
    report(found, args)


def report(found: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> None:
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
    told = found[first][0]
    how = {
        "rows": "ours packs pieces of documents that do not see each other into rows of 128; transformers' rows are cut from\n"
        "documents joined end to end (run_mlm's group_texts), and a token sees all of its row.",
        "sentences": "the same sentences on all sides, each a sequence of its own; transformers pads to the longest of the batch.",
    }[args.lengths]
    print(f"""
Medians of {args.rounds} rounds, each the median of {args.steps} steps after {args.warmup}, {args.threads} threads; peak memory
is less that after imports.
Equal: text, vocabulary ({told["vocab_size"]:,} ids), model ({args.recipe}), sequences a step ({told["rows"]}), learning rate
(constant), share of hidden words ({args.rate:.0%}), AdamW (but for ours_muon) and clipping, hidden dropout
({told["hidden_dropout"]}; except where shipped dropout is named), fp32 weights.
Not equal: {how}
Ours masks exactly the rate of each example, transformers each token with that probability. transformers' head scores all places,
ours the masked ones. Ours keeps freed memory in the process, of transformers' sides best_kept_memory alone does.
Precision and attention dropout as the table and the side's name say.""")


# ------------------------------------------------------------------------------------------------------------- one measurement


def measure(side: str, args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    after_imports = resident_megabytes("VmRSS")
    precision = "fp32" if side.startswith("default") else choose_precision(args.precision, CPU)
    setup = our_setup(
        args,
        precision,
        optimizer="muon" if side == "ours_muon" else "adamw",
        parts=int(side.removeprefix("ours_in_")) if side.startswith("ours_in_") else 1,
    )
    if side.startswith("ours"):
        steps = our_steps(setup, args, compiled=side == "ours_compiled")
    else:
        model = peer_model(side, setup)
        steps = by_trainer(model, setup, args) if side.startswith("default") else by_hand(model, setup, args, side)
    ends = list(steps)  # (time, tokens, places, operations, loss) of each step
    timed = ends[args.warmup :]
    seconds = np.diff([step[0] for step in ends[args.warmup - 1 :]])
    peak = resident_megabytes("VmHWM")
    tokens, places, flops = (np.array([step[n] for step in timed]) for n in (1, 2, 3))
    return {
        "side": side,
        "precision": precision,
        "tokens_per_second": float(np.median(tokens / seconds)),
        "mfu": float(np.median(flops / seconds)) / matmul_rate(CPU, precision),
        "peak_megabytes": peak - after_imports,
        "padding": 1 - float(tokens.sum() / places.sum()),
        "loss": statistics.mean(step[4] for step in ends),
        "step_seconds": seconds.round(4).tolist(),
        "vocab_size": setup.config.model.vocab_size,
        "rows": setup.config.batch.rows,
        "hidden_dropout": setup.config.model.hidden_dropout_prob,
    }


def resident_megabytes(which: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{which}:")[1].split()[0]) / 1024


def our_setup(args: argparse.Namespace, precision: str, *, optimizer: str = "adamw", parts: int = 1) -> Any:
    """Returns what the loop needs, put together as `stemformer.pretraining` does."""
    config = find_recipe(args.recipe)
    tokenizer = load_tokenizer(Path(args.data) / "tokenizer")
    dropout = config.model.hidden_dropout_prob if args.hidden_dropout is None else args.hidden_dropout
    num_rows, length = args.rows or config.batch.rows, 128
    shards = open_shards(args.data)
    if args.lengths == "rows":
        rows = make_rows(shards, row_length=length)
    else:
        starts, stops = shards.sentence_starts[:-1], shards.sentence_starts[1:]
        stops = np.minimum(stops, starts + length - 2)
        rows = Rows(shards, starts, stops, np.arange(len(starts) + 1), length, 2)
        num_rows = round(num_rows * length * len(rows) / rows.num_tokens)
    model_config = replace(config.model, vocab_size=tokenizer.vocab_size, hidden_dropout_prob=dropout)
    batch = replace(
        config.batch, rows=num_rows, micro_rows=None if parts == 1 else num_rows // parts, row_length=length
    )
    config = replace(config, model=model_config, batch=batch, objective=MaskedLmConfig(rate=args.rate))
    config = replace(config, optimizer=replace(config.optimizer, kind=optimizer))
    special = SpecialIds(cls=tokenizer.cls_id, sep=tokenizer.sep_id, mask=tokenizer.mask_id)
    objective = MaskedLm(config.objective, special=special, vocab_size=tokenizer.vocab_size)
    steps, folder = args.warmup + args.steps, Path(args.data)
    config = replace(config, budget=BudgetConfig(steps=steps))
    return Setup(
        config=config,
        timetable=Timetable(config, steps, folder),
        objective=objective,
        phases=[Phase(0, batch, rows)],
        evaluate=None,
        fill=None,
        tokenizer=tokenizer,
        device=CPU,
        precision=precision,
        environment={},
        peak=0.0,
        folder=folder,
    )


def our_steps(setup: Any, args: argparse.Namespace, *, compiled: bool) -> Iterator[tuple[float, ...]]:
    keep_freed_memory()
    model = make_model(setup.config.model, ["masked_lm"], generator=torch.Generator().manual_seed(0)).train()
    if compiled:
        compile_blocks(model)
    module = WithLoss(model, setup.objective)
    optimizer = make_optimizer(model, setup.config.optimizer, precision=setup.precision)
    sums = StepSums()
    made = prefetch(lambda s: batches_of_step(s, setup), range(setup.timetable.num_steps + AHEAD))
    for step, batches in zip(range(setup.timetable.num_steps), made, strict=False):
        counts = {"masked_lm": float(sum(len(batch.labels) for batch in batches))}
        add_gradients(module, batches, setup, step, sums, counts)
        norm = clip(optimizer, model.parameters(), setup.config.optimizer.clip_norm)
        assert torch.isfinite(norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens = sum(len(batch.input_ids) for batch in batches)
        flops = sum(step_flops(model, batch, num_rows=len(batch.labels)) for batch in batches)
        sums.add_step(tokens=tokens, places=tokens, displaced=0, flops=flops)
        figures = sums.take(peak=1.0)
        yield time.perf_counter(), tokens, tokens, flops, figures["masked_lm_loss"]


def peer_model(side: str, setup: Any) -> Any:
    sizes = asdict(setup.config.model)
    attention = 0.1 if side in ("best_attention_dropout", "default_shipped_dropout") else 0.0
    if side == "default_shipped_dropout":
        sizes["hidden_dropout_prob"] = 0.1
    config = transformers.BertConfig(**sizes, attention_probs_dropout_prob=attention, attn_implementation="sdpa")
    return transformers.BertForMaskedLM(config).train()


def peer_flops(model: Any, rows: int, length: int) -> float:
    """Returns what transformers computes for a padded block: the layers and the head at all places (see `step_flops`)."""
    d, layers, vocab_size = model.config.hidden_size, model.config.num_hidden_layers, model.config.vocab_size
    body = sum(p.numel() for p in model.bert.encoder.parameters())
    return 6.0 * rows * length * (body + 2 * d * layers * length + d * (d + vocab_size))


def peer_examples(setup: Any, args: argparse.Namespace) -> list[list[int]]:
    """Returns enough sequences of ids, special tokens included: run_mlm's rows, or the very sentences that ours sees."""
    rows, special, length = setup.phases[0].examples, setup.objective.special, setup.config.batch.row_length
    shards, per_step = rows.shards, setup.config.batch.rows
    num_steps = setup.timetable.num_steps + AHEAD
    if args.lengths == "sentences":
        step = {"batch_size": per_step, "num_examples": len(rows), "seed": setup.config.seed}
        rng = np.random.default_rng(0)  # nothing about a row is random
        numbers = [i for s in range(num_steps) for _, i in examples_of_step(s, **step)]
        return [[special.cls, *rows.draw(i, rng).tokens.tolist(), special.sep] for i in numbers]
    line: list[int] = []
    epoch = 0
    while len(line) < per_step * num_steps * length:
        for number in permuted(np.arange(shards.num_documents), shards.num_documents, seed=0, epoch=epoch).tolist():
            span = shards.document_starts[number : number + 2]
            line += [special.cls, *shards.tokens(*span).tolist(), special.sep]
            if len(line) >= per_step * num_steps * length:
                break
        epoch += 1
    return [line[a : a + length] for a in range(0, per_step * num_steps * length, length)]


def peer_collator(setup: Any, args: argparse.Namespace) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(Path(args.data) / "tokenizer")
    return transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=setup.config.objective.rate)


def with_masks(ids: list[int], setup: Any) -> dict[str, list[int]]:
    special = (setup.objective.special.cls, setup.objective.special.sep)
    return {
        "input_ids": ids,
        "token_type_ids": [0] * len(ids),
        "attention_mask": [1] * len(ids),
        "special_tokens_mask": [int(token in special) for token in ids],
    }


def by_trainer(model: Any, setup: Any, args: argparse.Namespace) -> Iterator[tuple[float, ...]]:
    examples = datasets.Dataset.from_list([with_masks(ids, setup) for ids in peer_examples(setup, args)])
    collate = peer_collator(setup, args)
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
        quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True}
        arguments = transformers.TrainingArguments(
            folder, per_device_train_batch_size=setup.config.batch.rows, **rates, **steps, **quiet
        )
        trainer = transformers.Trainer(model, arguments, counting, examples, callbacks=[Clock()])
        loss = trainer.train().training_loss
    for end, (tokens, rows, length) in zip(ends, shapes, strict=False):
        yield end, tokens, rows * length, peer_flops(model, rows, length), loss


def by_hand(model: Any, setup: Any, args: argparse.Namespace, side: str) -> Iterator[tuple[float, ...]]:
    if side == "best_kept_memory":
        keep_freed_memory()
    examples = [with_masks(ids, setup) for ids in peer_examples(setup, args)]
    collate = peer_collator(setup, args)
    rows = setup.config.batch.rows
    optimizer = make_optimizer(model, setup.config.optimizer)
    compiled = torch.compile(model, dynamic=args.lengths == "sentences")
    made = prefetch(lambda s: collate(examples[s * rows : (s + 1) * rows]), range(setup.timetable.num_steps + AHEAD))
    for _, batch in zip(range(setup.timetable.num_steps), made, strict=False):
        tokens = int(batch["attention_mask"].sum())
        if args.lengths == "rows":
            del batch["attention_mask"]  # nothing is padded: the faster way
        with autocast(setup.device, setup.precision):
            loss = compiled(**batch).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), setup.config.optimizer.clip_norm)
        assert torch.isfinite(norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        n, length = batch["input_ids"].shape
        yield time.perf_counter(), tokens, n * length, peer_flops(model, n, length), loss.item()


def profile(args: argparse.Namespace) -> None:
    """Prints where one step of ours spends its time."""
    torch.set_num_threads(args.threads)
    setup = our_setup(args, choose_precision(args.precision, CPU))
    steps = our_steps(setup, args, compiled=False)
    for _ in range(args.warmup):
        next(steps)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        next(steps)
    steps.close()
    print(profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))


if __name__ == "__main__":
    main()
