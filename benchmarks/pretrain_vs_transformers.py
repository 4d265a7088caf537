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
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from side_by_side import (
    AHEAD,
    CPU,
    Found,
    Step,
    figures_of,
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

import stemformer
from stemformer.data.examples.packing import PackedDataset, pack_documents
from stemformer.data.examples.sampling import examples_of_step
from stemformer.data.shards.reader import open_shards
from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.device import choose_precision, configure_allocator
from stemformer.objectives.masked_lm import MaskedLm, MaskedLmConfig, SpecialIds
from stemformer.recipes import find_recipe
from stemformer.training.config import BudgetConfig

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
    same = ["data", "recipe", "steps", "warmup", "rows", "rate", "hidden_dropout", "lengths", "threads", "precision"]
    options = [f"--{n.replace('_', '-')}={getattr(args, n)}" for n in same if getattr(args, n) is not None]
    found = take_turns(__file__, args.sides.split(","), options, rounds=args.rounds, threads=args.threads)
    if args.json:
        Path(args.json).write_text(json.dumps({"arguments": vars(args), "measurements": found}, indent=1) + "\n")
    report(found, args)


def report(found: Found, args: argparse.Namespace) -> None:
    print_table(found)
    first = next(iter(found))
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
        steps = our_steps(setup, compiled=side == "ours_compiled")
    else:
        model = peer_model(side, setup)
        steps = by_trainer(model, setup, args) if side.startswith("default") else by_hand(model, setup, args, side)
    return {
        "side": side,
        **figures_of(steps, warmup=args.warmup, precision=precision, after_imports=after_imports),
        "vocab_size": setup.config.model.vocab_size,
        "rows": setup.config.batch.rows,
        "hidden_dropout": setup.config.model.hidden_dropout_prob,
    }


def our_setup(args: argparse.Namespace, precision: str, *, optimizer: str = "adamw", parts: int = 1) -> Any:
    """Returns what the loop needs, put together as `stemformer.pretraining` does."""
    config = find_recipe(args.recipe)
    tokenizer = load_tokenizer(Path(args.data) / "tokenizer")
    dropout = config.model.hidden_dropout_prob if args.hidden_dropout is None else args.hidden_dropout
    num_rows, length = args.rows or config.batch.rows, 128
    shards = open_shards(args.data)
    if args.lengths == "rows":
        rows = pack_documents(shards, row_length=length)
    else:
        starts, stops = shards.sentence_starts[:-1], shards.sentence_starts[1:]
        stops = np.minimum(stops, starts + length - 2)
        rows = PackedDataset(shards, starts, stops, np.arange(len(starts) + 1), length, 2)
        num_rows = round(num_rows * length * len(rows) / rows.num_tokens)
    model_config = replace(config.model, vocab_size=tokenizer.vocab_size, hidden_dropout_prob=dropout)
    batch = replace(
        config.batch, rows=num_rows, micro_rows=None if parts == 1 else num_rows // parts, row_length=length
    )
    config = replace(config, model=model_config, batch=batch, objective=MaskedLmConfig(rate=args.rate))
    config = replace(config, optimizer=replace(config.optimizer, kind=optimizer))
    special = SpecialIds(cls=tokenizer.cls_id, sep=tokenizer.sep_id, mask=tokenizer.mask_id)
    objective = MaskedLm(config.objective, special=special, vocab_size=tokenizer.vocab_size)
    config = replace(config, budget=BudgetConfig(steps=args.warmup + args.steps))
    return make_setup(config, objective, rows, tokenizer, precision, Path(args.data))


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
        return [[special.cls, *rows.get_example(i, rng).tokens.tolist(), special.sep] for i in numbers]
    line = joined_ids(shards, per_step * num_steps * length, before=[special.cls], after=[special.sep])
    return [line[a : a + length] for a in range(0, len(line), length)]


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


def by_trainer(model: Any, setup: Any, args: argparse.Namespace) -> Iterator[Step]:
    examples = [with_masks(ids, setup) for ids in peer_examples(setup, args)]
    return trainer_steps(model, setup, examples, peer_collator(setup, args), peer_flops)


def by_hand(model: Any, setup: Any, args: argparse.Namespace, side: str) -> Iterator[Step]:
    if side == "best_kept_memory":
        configure_allocator(torch.device("cpu"))
    examples = [with_masks(ids, setup) for ids in peer_examples(setup, args)]
    collate = peer_collator(setup, args)
    rows = setup.config.batch.rows
    compiled = torch.compile(model, dynamic=args.lengths == "sentences")

    def make(step: int) -> tuple[int, dict[str, torch.Tensor]]:
        batch = collate(examples[step * rows : (step + 1) * rows])
        tokens = int(batch["attention_mask"].sum())
        if args.lengths == "rows":
            del batch["attention_mask"]  # nothing is padded: the faster way
        return tokens, batch

    return hand_steps(model, setup, make, lambda batch: compiled(**batch).loss, peer_flops)


def profile(args: argparse.Namespace) -> None:
    """Prints where one step of ours spends its time."""
    torch.set_num_threads(args.threads)
    setup = our_setup(args, choose_precision(args.precision, CPU))
    print_profile(our_steps(setup), warmup=args.warmup)


if __name__ == "__main__":
    main()
