"""Masked-LM pre-training: tokens per second of ours and of transformers, as shipped and tuned by hand, on the same text.

    python benchmarks/pretrain_vs_transformers.py --data TOKENIZED_DATA --recipe bert_mini

Without `--data`, on the embedded English samples. Sides:

    ours                     the package's loop: prefetched batches, gradients, clipping, fused AdamW
    ours_compiled            with compiled layers
    ours_muon                with the optimizer of our small recipes; a step costs more, fewer are needed (time_to_quality.py)
    ours_recipe              optimizer, fraction of masked tokens and sampled softmax of the recipe; no sentence pairs, one phase
    ours_in_4, ours_in_8     with four or eight micro-batches in a step, which takes less memory
    default                  transformers' run_mlm example: Trainer, float32, eager; its own collator and data loader
    default_shipped_dropout  the same with BertConfig's own dropout (0.1, also on attention probabilities); BERT only
    best                     its class in a loop by hand: scaled_dot_product_attention, fused AdamW, torch.compile, bf16
                             autocast if the processor has bf16 units, batches prefetched in a thread as ours are
    best_kept_memory         the same in a process that keeps freed memory, as ours does (`device.configure_allocator`)
    best_attention_dropout   the same with dropout 0.1 on attention probabilities; BERT only

Tokens are counted without padding and with special tokens, on all sides. MFU is what a side computes, padding and
positions that are not scored included, over the rate of a 4096 x 4096 matrix product in the same precision and process.
Runs on the CPU.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pretrain_frame as shared
import torch
import transformers
from pretrain_frame import AHEAD, CPU, Step

from stemformer.data.examples.packing import PackedDataset, pack_documents
from stemformer.data.examples.sampling import examples_of_step
from stemformer.data.shards.reader import open_shards
from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.device import choose_precision, configure_allocator
from stemformer.objectives.masked_lm import MaskedLmConfig, SpecialIds
from stemformer.objectives.objective import make_objective

SIDES = (
    *(
        "ours",
        "ours_compiled",
        "ours_muon",
        "ours_recipe",
        "ours_in_4",
        "ours_in_8",
        "default",
        "default_shipped_dropout",
    ),
    *("best", "best_kept_memory", "best_attention_dropout"),
)
STANDARD = "ours,ours_muon,ours_recipe,ours_compiled,default,best,best_kept_memory,best_attention_dropout"
LENGTH = 128


def main() -> None:
    parser = shared.make_parser(__doc__, SIDES, STANDARD, "bert_mini")
    parser.add_argument("--rate", type=float, default=0.15, help="fraction of masked tokens, all sides")
    parser.add_argument(
        "--lengths", choices=["rows", "sentences"], default="rows", help="sentences: each is a sequence of its own"
    )
    shared.run(parser, measure, conditions, lambda args: shared.our_steps(our_context("ours", args)), prepare=prepare)


def prepare(args: argparse.Namespace, folder: Path) -> None:
    args.data = args.data or shared.prepare_samples(folder)


def conditions(result: dict[str, Any], args: argparse.Namespace) -> str:
    difference = {
        "rows": "ours packs chunks of documents that do not see each other into rows of 128; transformers' rows are "
        "cut from documents joined end to end (run_mlm's group_texts), and a token sees all of its row.",
        "sentences": "the same sentences on all sides, each a sequence of its own; transformers pads to the longest of "
        "the batch.",
    }[args.lengths]
    return (
        f"Equal: text, vocabulary ({result['vocab_size']:,} ids), model ({args.recipe}), sequences in a step "
        f"({result['rows']}), learning rate (constant), fraction of masked words ({args.rate:.0%}; except for "
        "ours_recipe), AdamW (except for ours_muon and ours_recipe) and clipping, hidden dropout "
        f"({result['hidden_dropout']}; except for shipped dropout), fp32 weights.\n"
        f"Not equal: {difference} Ours masks exactly the rate of each example, transformers each token with that "
        "probability. transformers' head scores all positions, ours the masked ones, and ours_recipe a sample of the "
        "ids if the recipe says so. Ours keeps freed memory in the process, of transformers' sides only "
        "best_kept_memory does. Precision and attention dropout as the table says."
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    after_imports = shared.resident_megabytes("VmRSS")
    context = our_context(args.side, args)
    if args.side.startswith("ours"):
        steps = shared.our_steps(context, compiled=args.side == "ours_compiled")
    else:
        model = peer_model(args.side, context)
        steps = (trainer_steps if args.side.startswith("default") else hand_steps)(model, context, args)
    return shared.measure_steps(steps, context, warmup=args.warmup, after_imports=after_imports)


def our_context(side: str, args: argparse.Namespace) -> Any:
    tokenizer = load_tokenizer(Path(args.data) / "tokenizer")
    shards = open_shards(args.data)
    config = shared.make_config(side, args, tokenizer.vocab_size, LENGTH)
    if args.lengths == "rows":
        examples = pack_documents(shards, sequence_length=LENGTH)
    else:
        starts, stops = shards.sentence_starts[:-1], shards.sentence_starts[1:]
        stops = np.minimum(stops, starts + LENGTH - 2)
        num_tokens = int((stops - starts + 2).sum())
        examples = PackedDataset(shards, LENGTH, num_tokens, starts, stops, np.arange(len(starts) + 1))
        # As many tokens in a step as with full rows.
        size = round(config.batch.size * LENGTH * len(examples) / examples.num_tokens)
        parts = config.batch.size // (config.batch.micro_size or config.batch.size)
        config = replace(
            config, batch=replace(config.batch, size=size, micro_size=None if parts == 1 else size // parts)
        )
    objective_config = MaskedLmConfig(mask_rate=args.rate)
    if side == "ours_recipe":
        objective_config = replace(config.objective, sentences="none")
    special = SpecialIds(cls=tokenizer.cls_token_id, sep=tokenizer.sep_token_id, mask=tokenizer.mask_token_id)
    objective = make_objective(
        objective_config, special=special, vocab_size=tokenizer.vocab_size, unigram_counts=shards.unigram_counts
    )
    precision = "fp32" if side.startswith("default") else choose_precision(args.precision, CPU)
    config = replace(config, objective=objective_config)
    return shared.make_context(config, objective, examples, tokenizer, precision, Path(args.data))


# ------------------------------------------------------------------------------------- transformers


def peer_model(side: str, context: Any) -> Any:
    sizes, shipped = context.config.model, {}
    if sizes.model_type == "bert":
        attention = 0.1 if side in ("best_attention_dropout", "default_shipped_dropout") else 0.0
        shipped = {"attention_probs_dropout_prob": attention}
        if side == "default_shipped_dropout":
            shipped["hidden_dropout_prob"] = 0.1
    return shared.transformers_model(sizes, **shipped)


def peer_examples(context: Any, args: argparse.Namespace) -> list[dict[str, list[int]]]:
    """Return the sequences of a peer with special tokens: rows as run_mlm makes them, or the sentences of ours."""
    dataset, special, length = (
        context.phases[0].examples,
        context.objective.special,
        context.config.batch.sequence_length,
    )
    size, num_steps = context.config.batch.size, context.budget.num_steps + AHEAD
    if args.lengths == "sentences":
        step = {"batch_size": size, "num_examples": len(dataset), "seed": context.config.seed}
        rng = np.random.default_rng(0)  # unused: a row is not random
        numbers = [i for s in range(num_steps) for _, i in examples_of_step(s, **step)]
        sequences = [[special.cls, *dataset.get_example(i, rng).tokens.tolist(), special.sep] for i in numbers]
    else:
        ids = shared.join_documents(
            dataset.shards, size * num_steps * length, before=[special.cls], after=[special.sep]
        )
        sequences = [ids[a : a + length] for a in range(0, len(ids), length)]
    return [
        {
            "input_ids": ids,
            "token_type_ids": [0] * len(ids),
            "attention_mask": [1] * len(ids),
            "special_tokens_mask": [int(token in (special.cls, special.sep)) for token in ids],
        }
        for ids in sequences
    ]


def peer_collator(context: Any, args: argparse.Namespace) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(Path(args.data) / "tokenizer")
    return transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=context.config.objective.mask_rate)


def trainer_steps(model: Any, context: Any, args: argparse.Namespace) -> Iterator[Step]:
    return shared.trainer_steps(
        model, context, peer_examples(context, args), peer_collator(context, args), shared.peer_flops
    )


def hand_steps(model: Any, context: Any, args: argparse.Namespace) -> Iterator[Step]:
    if args.side == "best_kept_memory":
        configure_allocator(CPU)
    examples, collate = peer_examples(context, args), peer_collator(context, args)
    size = context.config.batch.size
    compiled = torch.compile(model, dynamic=args.lengths == "sentences")

    def prepare_batch(step: int) -> tuple[int, dict[str, torch.Tensor]]:
        batch = collate(examples[step * size : (step + 1) * size])
        tokens = int(batch["attention_mask"].sum())
        if args.lengths == "rows":
            del batch["attention_mask"]  # nothing is padded: the faster way
        return tokens, batch

    return shared.hand_steps(model, context, prepare_batch, lambda batch: compiled(**batch).loss, shared.peer_flops)


if __name__ == "__main__":
    main()
