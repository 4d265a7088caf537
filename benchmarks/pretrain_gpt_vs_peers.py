"""Pre-training of a GPT: tokens a second and memory of ours beside transformers' causal example and a nanoGPT-style loop, on one text.

    python benchmarks/pretrain_gpt_vs_peers.py --data PREPARED_FOLDER --recipe gpt_mini
    python benchmarks/pretrain_gpt_vs_peers.py --data PREPARED_FOLDER --recipe gpt2_small --rows 4 --sides ours,ours_in_4,default,best

Each measurement is a process of its own (the script calls itself with `--side`); sides take turns, round by round. Sides:

    ours                     the package's loop: prefetched batches, gradients, clipping, fused AdamW; pieces of documents in rows
    ours_stream              the same on rows of the stream of all documents, as the peers have it
    ours_compiled            the same as ours with the layers compiled, which the package does by itself on a GPU
    ours_eager               the same as ours with none compiled
    ours_muon                the same with the optimizer of our small recipes, which costs a step more and takes fewer
    ours_in_2, ours_in_4     the same with a step's rows in two or four micro-batches, which takes less memory
    default                  what transformers' run_clm example does: Trainer, float32, eager, blocks of all documents joined (group_texts)
    default_shipped_dropout  the same with GPT2Config's own dropout (0.1, also on attention probabilities)
    best                     GPT2LMHeadModel by hand: scaled_dot_product_attention, fused AdamW, torch.compile of the model, bf16 autocast
                             where the processor has bf16 matrix units, batches prefetched in a thread as ours are
    best_kept_memory         the same in a process that keeps freed memory, as ours does (training.compute.keep_freed_memory)
    nanogpt                  a loop and model in nanoGPT's style (nano_gpt.py), by hand as best, eager; bf16 autocast
    nanogpt_compiled         the same compiled

A token counts if it is not padding; the ends of documents count, on all sides. MFU counts what a side computes over the rate of a 4096 x
4096 matrix product in the same precision and process. On a GPU, memory is that of its tensors.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from nano_gpt import NanoGpt, draw_batch
from side_by_side import (
    AHEAD,
    Found,
    Step,
    figures_of,
    gpt2_config,
    hand_steps,
    joined_ids,
    make_setup,
    our_steps,
    print_profile,
    print_table,
    resident_megabytes,
    take_turns,
    trainer_steps,
)

from stemformer.data.shards.reader import open_shards
from stemformer.data.tokenization.tokenizer import END_OF_TEXT, load_tokenizer
from stemformer.device import choose_device, choose_precision, configure_allocator
from stemformer.objectives.causal_lm import CausalLm, CausalLmConfig
from stemformer.recipes import find_recipe
from stemformer.training.config import BudgetConfig

SIDES = (
    "ours",
    "ours_stream",
    "ours_compiled",
    "ours_eager",
    "ours_muon",
    "ours_in_2",
    "ours_in_4",
    "default",
    "default_shipped_dropout",
    "best",
    "best_kept_memory",
    "nanogpt",
    "nanogpt_compiled",
)
STANDARD = "ours,ours_stream,ours_muon,default,best,best_kept_memory,nanogpt,nanogpt_compiled"


def main() -> None:
    if len(sys.argv) == 1:  # as `make bench` calls it: there is nothing that could be taken by default
        return print("not run: give --data", file=sys.stderr)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", required=True, help="a folder that `stemformer prepare` wrote with a byte-level BPE")
    add("--recipe", default="gpt_mini")
    add("--rounds", type=int, default=5)
    add("--steps", type=int, default=12, help="timed steps of a measurement")
    add("--warmup", type=int, default=3, help="steps before them")
    add("--rows", type=int, help="rows a step; the recipe's by default")
    add("--row-length", type=int, help="tokens of a row; the recipe's by default")
    add("--hidden-dropout", type=float, help="of all sides but the shipped one; the recipe's by default")
    add("--threads", type=int, default=2)
    add("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="the default sides are always fp32")
    add("--device", default="cpu", help="cpu or cuda")
    add("--sides", default=STANDARD, help=f"of {', '.join(SIDES)}")
    add("--json", help="file for all measurements")
    add("--profile", action="store_true", help="where a step of ours spends its time, and nothing else")
    add("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.warmup < 1 or not set(args.sides.split(",")) <= set(SIDES):
        parser.error(f"--warmup is at least 1, --sides are some of {', '.join(SIDES)}")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if args.side:
        print(json.dumps(measure(args.side, args)))
    elif args.profile:
        torch.set_num_threads(args.threads)
        print_profile(our_steps(our_setup("ours", args)), warmup=args.warmup)
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    same = [
        "data",
        "recipe",
        "steps",
        "warmup",
        "rows",
        "row_length",
        "hidden_dropout",
        "threads",
        "precision",
        "device",
    ]
    options = [f"--{n.replace('_', '-')}={getattr(args, n)}" for n in same if getattr(args, n) is not None]
    found = take_turns(__file__, args.sides.split(","), options, rounds=args.rounds, threads=args.threads)
    if args.json:
        Path(args.json).write_text(json.dumps({"arguments": vars(args), "measurements": found}, indent=1) + "\n")
    report(found, args)


def report(found: Found, args: argparse.Namespace) -> None:
    print_table(found)
    told = next(iter(found.values()))[0]
    print(f"""
Medians of {args.rounds} rounds, each the median of {args.steps} steps after {args.warmup}, {args.device},
{args.threads} threads; peak memory is less that after imports, on a GPU that of its tensors.
Equal: text, vocabulary ({told["vocab_size"]:,} ids), shape ({args.recipe}), rows a step ({told["rows"]} of {told["row_length"]}), learning
rate (constant), AdamW (but for ours_muon) and clipping, hidden dropout ({told["hidden_dropout"]}; except where shipped dropout is
named), no dropout on attention probabilities (except there), fp32 weights.
Not equal: but for ours_stream, ours packs pieces of documents that do not see each other into rows, which are not quite full; on the
other sides a token sees all of its row. nanogpt draws its rows at random places and has the exact GELU. Ours keeps freed memory in the
process, of the peers best_kept_memory alone does. Precision as the table says.""")


# ------------------------------------------------------------------------------------------------------------- one measurement


def measure(side: str, args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    after_imports = resident_megabytes("VmRSS")
    setup = our_setup(side, args)
    if side.startswith("ours"):
        steps = our_steps(setup, compiled={"ours_compiled": True, "ours_eager": False}.get(side))
    elif side.startswith("nanogpt"):
        steps = nano_steps(setup, compiled=side == "nanogpt_compiled")
    else:
        steps = transformers_steps(side, setup)
    return {
        "side": side,
        **figures_of(
            steps, warmup=args.warmup, precision=setup.precision, after_imports=after_imports, device=setup.device
        ),
        "vocab_size": setup.config.model.vocab_size,
        "rows": setup.config.batch.rows,
        "row_length": setup.config.batch.row_length,
        "hidden_dropout": setup.config.model.hidden_dropout_prob,
    }


def our_setup(side: str, args: argparse.Namespace) -> Any:
    config = find_recipe(args.recipe)
    device = choose_device(args.device)
    precision = "fp32" if side.startswith("default") else choose_precision(args.precision, device)
    tokenizer = load_tokenizer(Path(args.data) / "tokenizer")
    end = tokenizer.id_of(END_OF_TEXT)
    assert end is not None, "a byte-level BPE"
    dropout = config.model.hidden_dropout_prob if args.hidden_dropout is None else args.hidden_dropout
    rows, parts = args.rows or config.batch.rows, int(side[-1]) if side.startswith("ours_in_") else 1
    length = args.row_length or config.batch.row_length
    model = replace(config.model, vocab_size=tokenizer.vocab_size, hidden_dropout_prob=dropout, eos_token_id=end)
    batch = replace(config.batch, rows=rows, micro_rows=None if parts == 1 else rows // parts, row_length=length)
    causal = CausalLmConfig(documents="stream" if side == "ours_stream" else "apart")
    optimizer = replace(config.optimizer, kind="muon" if side == "ours_muon" else "adamw")
    budget = BudgetConfig(steps=args.warmup + args.steps)
    config = replace(config, model=model, batch=batch, objective=causal, optimizer=optimizer, budget=budget)
    objective = CausalLm(causal, end=end)
    examples = objective.make_examples(open_shards(args.data), length)
    return make_setup(config, objective, examples, tokenizer, precision, Path(args.data), device)


def gpt_flops(model: Any, rows: int, length: int) -> float:
    """Returns what a peer computes for a block: the layers and the head at all places (see `training.compute.step_flops`)."""
    layers = model.transformer["h"] if isinstance(model, NanoGpt) else model.transformer.h
    d, body = layers[0].ln_1.normalized_shape[0], sum(p.numel() for p in layers.parameters())
    return 6.0 * rows * length * (body + 2 * d * len(layers) * length + d * model.config.vocab_size)


def line_of(setup: Any, *, more: int = 0) -> torch.Tensor:
    """Returns as many ids as the steps need, all documents joined with an end behind each."""
    batch = setup.config.batch
    number = batch.rows * batch.row_length * (setup.timetable.num_steps + AHEAD) + more
    return torch.tensor(joined_ids(setup.phases[0].examples.shards, number, after=[setup.objective.end]))


def transformers_steps(side: str, setup: Any) -> Iterator[Step]:
    sizes, batch = setup.config.model, setup.config.batch
    dropout = 0.1 if side == "default_shipped_dropout" else sizes.hidden_dropout_prob
    config = gpt2_config(
        sizes,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=0.1 if side == "default_shipped_dropout" else 0.0,
        attn_implementation="sdpa",
    )
    model = transformers.GPT2LMHeadModel(config).train()
    blocks = line_of(setup).view(-1, batch.row_length)
    if side.startswith("default"):
        examples = [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids} for ids in blocks.tolist()]
        yield from trainer_steps(model, setup, examples, transformers.default_data_collator, gpt_flops)
        return
    if side == "best_kept_memory":
        configure_allocator(torch.device("cpu"))
    compiled = torch.compile(model)

    def make(step: int) -> tuple[int, dict[str, torch.Tensor]]:
        ids = blocks[step * batch.rows : (step + 1) * batch.rows]
        return ids.numel(), {"input_ids": ids, "labels": ids}

    yield from hand_steps(model, setup, make, lambda block: compiled(**block, use_cache=False).loss, gpt_flops)


def nano_steps(setup: Any, *, compiled: bool) -> Iterator[Step]:
    model, batch = NanoGpt(setup.config.model).train(), setup.config.batch
    line, forward = line_of(setup, more=1), torch.compile(model) if compiled else model

    def make(step: int) -> tuple[int, dict[str, torch.Tensor]]:
        ids, labels = draw_batch(line, rows=batch.rows, length=batch.row_length, seed=0, step=step)
        return ids.numel(), {"input_ids": ids, "labels": labels}

    return hand_steps(model, setup, make, lambda block: forward(block["input_ids"], block["labels"]), gpt_flops)


if __name__ == "__main__":
    main()
