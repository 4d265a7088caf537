"""Training an encoder-decoder: tokens per second and memory of ours, of transformers, and of Marian.

    python benchmarks/pretrain_bart_vs_peers.py --data TOKENIZED_DATA                  # denoising, rows of 256 tokens
    python benchmarks/pretrain_bart_vs_peers.py --data TOKENIZED_DATA --pairs a.en,a.fr   # sentence pairs

`--data` is the output of `stemformer prepare` with a vocabulary that has BART's special tokens. Sides:

    ours         the package's loop, flat batches without padding, fused AdamW
    ours_recipe  with the optimizer of the recipe
    default      transformers' Seq2SeqTrainer as its example run_translation sets it up: float32, eager, random batches padded
                 to the longest text of each side
    best         its class in a loop by hand: pairs of similar length in a batch, scaled_dot_product_attention, fused AdamW,
                 torch.compile, bf16 autocast if the processor has bf16 units, batches prefetched in a thread
    marian       Marian's own training, `--marian COMMAND` (PyPI's `pymarian train`), float32; pairs only

Tokens are those of sources and of targets, special ones included, without padding. Equal: ids, sizes, pairs in a step,
learning rate, dropout of hidden states 0.1, label smoothing 0.1 with pairs (0 in denoising).
"""

import argparse
import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pretrain_frame as shared
import torch
from pretrain_frame import AHEAD, Step

from stemformer.data.examples.sampling import example_generator, permuted
from stemformer.data.shards.reader import open_shards
from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.device import choose_precision
from stemformer.objectives.objective import make_objective
from stemformer.tasks.dataset import make_labelled_task, read_records
from stemformer.tasks.task import TaskConfig
from stemformer.training.initialization import special_ids

SIDES = ("ours", "ours_recipe", "default", "best", "marian")
DROPOUT, SMOOTHING = 0.1, 0.1
# Id of padding of the peers, whose masks exclude it.
PADDING = 1
# Steps whose pairs are sorted by length together, for `best`.
GROUP = 20

Pair = dict[str, list[int]]
"""Ids of the encoder (`input_ids`), inputs of the decoder (`decoder_input_ids`) and `labels`."""


def main() -> None:
    parser = shared.make_parser(__doc__, SIDES, "ours,ours_recipe,default,best", "bart_mini")
    parser.add_argument("--pairs", help="two text files whose lines belong together: a.en,a.fr; default: denoising")
    parser.add_argument("--vocab-size", type=int, help="size of the models' vocabulary; default: that of the data")
    parser.add_argument("--marian", default="pymarian train", help="command of Marian's training")
    shared.run(parser, measure, conditions, our_steps, requires="--data")


def conditions(result: dict[str, Any], args: argparse.Namespace) -> str:
    rows = f"{result['rows']} rows of {result['sequence_length']}" if args.pairs is None else f"{result['rows']} pairs"
    return (
        f"Equal: ids of {result['vocab_size']:,}, shape ({args.recipe}), {rows} in a step, learning rate (constant), "
        "AdamW (except for ours_recipe), clipping, dropout of hidden states, fp32 weights. Tokens are those of both "
        "sides. MFU of the peers is not counted."
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    after_imports = shared.resident_megabytes("VmRSS")
    if args.side == "marian":
        return marian(args)
    context = our_context(args)
    make = our_steps if args.side.startswith("ours") else default_steps if args.side == "default" else best_steps
    return shared.measure_steps(make(args), context, warmup=args.warmup, after_imports=after_imports)


def our_context(args: argparse.Namespace) -> Any:
    """Return the context of ours, of which the peers take sizes, pairs and optimizer."""
    tokenizer = load_tokenizer(Path(args.data) / "tokenizer")
    config = shared.make_config(args.side or "ours", args, args.vocab_size or tokenizer.vocab_size)
    ids = {
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "decoder_start_token_id": tokenizer.sep_token_id,
    }
    dropout = DROPOUT if args.pairs and args.hidden_dropout is None else config.model.hidden_dropout_prob
    config = replace(config, model=replace(config.model, hidden_dropout_prob=dropout, **ids))
    if args.pairs is None:
        shards, special = open_shards(args.data), special_ids(config, tokenizer)
        objective: Any = make_objective(config.objective, special=special, vocab_size=tokenizer.vocab_size)
        examples = objective.make_examples(shards, config.batch.sequence_length)
    else:
        task = replace(TaskConfig("seq2seq"), label_smoothing=SMOOTHING)
        records, task = read_records(task, [args.pairs], counts=Counter())
        objective = make_labelled_task(task, records)
        examples = objective.encode(records, tokenizer, max_length=config.model.max_position_embeddings)
    precision = "fp32" if args.side == "default" else choose_precision(args.precision, torch.device("cpu"))
    return shared.make_context(config, objective, examples, tokenizer, precision, Path(args.data))


def our_steps(args: argparse.Namespace) -> Iterator[Step]:
    return shared.our_steps(our_context(args), loss_name="denoising" if args.pairs is None else "seq2seq")


# ------------------------------------------------------------------------------------------- Peers


def pairs_of(context: Any) -> list[Pair]:
    """Return the pairs of as many steps as are run, one for each example; texts of a row are joined."""
    number = context.config.batch.size * (context.budget.num_steps + AHEAD)
    examples = context.phases[0].examples.for_epoch(0, 0)
    order = permuted(np.arange(len(examples)), number, seed=0, epoch=0).tolist()
    pairs = []
    for i in order:
        rng = example_generator(0, 0, i)
        found = context.objective.corrupt(examples.get_example(i, rng), rng)
        sides = found.input_ids, found.decoder_input_ids, found.labels
        names = ("input_ids", "decoder_input_ids", "labels")
        pairs.append({name: ids.tolist() for name, ids in zip(names, sides, strict=True)})
    return pairs


def collate_padded(pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
    """Pad each side to its longest text, as `DataCollatorForSeq2Seq` does."""

    def pad(name: str, value: int) -> torch.Tensor:
        width = max(len(pair[name]) for pair in pairs)
        return torch.tensor([pair[name] + [value] * (width - len(pair[name])) for pair in pairs])

    masks = {"attention_mask": [[1] * len(pair["input_ids"]) for pair in pairs]}
    width = max(map(len, masks["attention_mask"]))
    return {
        "input_ids": pad("input_ids", PADDING),
        "attention_mask": torch.tensor([mask + [0] * (width - len(mask)) for mask in masks["attention_mask"]]),
        "decoder_input_ids": pad("decoder_input_ids", PADDING),
        "labels": pad("labels", -100),
    }


def their_model(context: Any) -> Any:
    rate = context.config.model.hidden_dropout_prob
    return shared.transformers_model(context.config.model, dropout=rate, attention_dropout=0.0, activation_dropout=0.0)


def default_steps(args: argparse.Namespace) -> Iterator[Step]:
    context = our_context(args)
    smoothing = {"label_smoothing_factor": SMOOTHING} if args.pairs else {}
    # Its label smoother needs all logits.
    yield from shared.trainer_steps(
        their_model(context),
        context,
        pairs_of(context),
        collate_padded,
        no_flops,
        remove_unused_columns=False,
        **smoothing,
    )


def best_steps(args: argparse.Namespace) -> Iterator[Step]:
    context = our_context(args)
    model, size, pairs = their_model(context), context.config.batch.size, pairs_of(context)
    # Pairs of similar length together, the batches in a random order.
    batches: list[list[Pair]] = []
    for start in range(0, len(pairs), GROUP * size):
        group = sorted(
            pairs[start : start + GROUP * size], key=lambda pair: (len(pair["input_ids"]), len(pair["labels"]))
        )
        parts = [group[i : i + size] for i in range(0, len(group), size)]
        batches += [parts[i] for i in np.random.default_rng(0).permutation(len(parts))]
    smoothing = SMOOTHING if args.pairs else 0.0

    def loss_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits = model(**inputs, use_cache=False).logits
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), batch["labels"].flatten(), label_smoothing=smoothing
        )

    def prepare(step: int) -> tuple[int, dict[str, torch.Tensor]]:
        batch = collate_padded(batches[step])
        return shared.num_tokens(batch), batch

    # Lengths differ from batch to batch.
    compiled = torch.compile(loss_of, dynamic=True if args.pairs else None)
    yield from shared.hand_steps(model, context, prepare, compiled, no_flops)


def no_flops(model: Any, rows: int, length: int) -> float:
    return 0.0


def marian(args: argparse.Namespace) -> dict[str, Any]:
    """Train with Marian's command line and read the words per second of its log."""
    if args.pairs is None:
        raise SystemExit("marian trains on --pairs only")
    context = our_context(args)
    config, folder = context.config.model, Path(args.folder)
    pairs = pairs_of(context)
    for name, suffix in (("input_ids", "source"), ("labels", "target")):
        # Without special tokens: Marian adds its own end.
        lines = (" ".join(map(str, pair[name][1:-1])) + "\n" for pair in pairs)
        (folder / suffix).write_text("".join(lines), "utf-8")
    vocabulary = ["</s>", "<unk>", *map(str, range(config.vocab_size))]
    (folder / "vocab.yml").write_text("".join(f'"{name}": {i}\n' for i, name in enumerate(vocabulary)), "utf-8")
    steps = context.budget.num_steps
    options = {
        "type": "transformer",
        "train-sets": f"{folder}/source {folder}/target",
        "vocabs": f"{folder}/vocab.yml {folder}/vocab.yml",
        "model": folder / "model.npz",
        "dim-emb": config.hidden_size,
        "enc-depth": config.num_hidden_layers,
        "dec-depth": config.num_decoder_layers,
        "transformer-heads": config.num_attention_heads,
        "transformer-dim-ffn": config.intermediate_size,
        "transformer-dropout": config.hidden_dropout_prob,
        "label-smoothing": SMOOTHING,
        "learn-rate": context.config.optimizer.learning_rate,
        "clip-norm": context.config.optimizer.max_grad_norm,
        "mini-batch": context.config.batch.size,
        "maxi-batch": GROUP,
        "cpu-threads": args.threads,
        "workspace": 2000,
        "disp-freq": "1u",
        "after": f"{steps}u",
    }
    words = [*shlex.split(args.marian), "--tied-embeddings-all"]
    words += [word for name, value in options.items() for word in (f"--{name}", *str(value).split())]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    rates = [float(rate.replace(",", "")) for rate in re.findall(r"Time [\d.]+s : ([\d.,]+) words/s", found.stderr)]
    if len(rates) < steps:
        raise SystemExit(f"marian failed:\n{found.stderr[-2000:]}")
    # Its words are those of targets with their ends; ours are those of both sides.
    ratio = sum(len(pair["input_ids"]) + len(pair["labels"]) for pair in pairs)
    ratio /= sum(len(pair["labels"]) - 1 for pair in pairs)
    return {
        "precision": "fp32",
        "tokens_per_second": float(np.median(rates[args.warmup :])) * ratio,
        "mfu": 0.0,
        "peak_megabytes": float("nan"),
        "padding": float("nan"),
        "loss": float("nan"),
        "vocab_size": config.vocab_size,
        "rows": context.config.batch.size,
        "sequence_length": context.config.batch.sequence_length,
        "hidden_dropout": config.hidden_dropout_prob,
    }


if __name__ == "__main__":
    main()
