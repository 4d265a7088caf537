"""GPT pre-training: tokens per second and memory of ours, of transformers' causal example, and of a nanoGPT-style loop.

    python benchmarks/pretrain_gpt_vs_peers.py --data TOKENIZED_DATA --recipe gpt_mini
    python benchmarks/pretrain_gpt_vs_peers.py --data TOKENIZED_DATA --recipe gpt2_small --rows 4 --sides ours,ours_in_4,default,best

Sides:

    ours                     the package's loop: prefetched batches, gradients, clipping, fused AdamW; packed chunks of documents
    ours_stream              the same on rows of the stream of all documents, as the peers
    ours_compiled            as ours with compiled layers, which is the package's default on a GPU
    ours_eager               as ours without compiled layers
    ours_muon                with the optimizer of our small recipes; a step costs more, fewer are needed
    ours_sampled             with a softmax over 2,048 of the ids (`objective.sampled_softmax`)
    ours_recipe              optimizer, documents and sampled softmax of the recipe
    ours_in_2, ours_in_4     with two or four micro-batches in a step, which takes less memory
    default                  transformers' run_clm example: Trainer, float32, eager, blocks of all documents joined (group_texts)
    default_shipped_dropout  the same with GPT2Config's own dropout (0.1, also on attention probabilities); GPT-2 only
    best                     its class in a loop by hand: scaled_dot_product_attention, fused AdamW, torch.compile, bf16
                             autocast if the processor has bf16 units, batches prefetched in a thread as ours are
    best_kept_memory         the same in a process that keeps freed memory, as ours does (`device.configure_allocator`)
    nanogpt                  loop and model in nanoGPT's style (nano_gpt.py), by hand as best, eager; bf16 autocast
    nanogpt_compiled         the same compiled

Tokens are counted without padding and with the ends of documents, on all sides. MFU is what a side computes over the rate
of a 4096 x 4096 matrix product in the same precision and process. On a GPU, memory is that of its tensors.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pretrain_frame as shared
import torch
import transformers
from nano_gpt import NanoGpt, sample_batch
from pretrain_frame import AHEAD, CPU, Step

from stemformer.data.shards.reader import open_shards
from stemformer.data.tokenization.tokenizer import END_OF_TEXT, load_tokenizer
from stemformer.device import choose_device, choose_precision, configure_allocator
from stemformer.models.gpt import GptConfig
from stemformer.objectives.causal_lm import CausalLm, CausalLmConfig
from stemformer.objectives.masked_lm import SpecialIds

SIDES = (
    *("ours", "ours_stream", "ours_compiled", "ours_eager", "ours_muon", "ours_sampled", "ours_recipe"),
    *("ours_in_2", "ours_in_4"),
    *("default", "default_shipped_dropout", "best", "best_kept_memory", "nanogpt", "nanogpt_compiled"),
)
STANDARD = "ours,ours_stream,ours_muon,ours_recipe,default,best,best_kept_memory,nanogpt,nanogpt_compiled"


def main() -> None:
    parser = shared.make_parser(__doc__, SIDES, STANDARD, "gpt_mini")
    parser.add_argument("--sequence-length", type=int, help="tokens in a row; default: that of the recipe")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    shared.run(
        parser,
        measure,
        conditions,
        lambda args: shared.our_steps(our_context("ours", args)),
        requires="--data (tokenized with a byte-level BPE)",
    )


def conditions(result: dict[str, Any], args: argparse.Namespace) -> str:
    return (
        f"Equal: text, vocabulary ({result['vocab_size']:,} ids), shape ({args.recipe}), rows in a step "
        f"({result['rows']} of {result['sequence_length']}), learning rate (constant), AdamW (except for ours_muon and "
        f"ours_recipe) and clipping, hidden dropout ({result['hidden_dropout']}; except for shipped dropout), no "
        "dropout on attention probabilities (except there), fp32 weights.\n"
        "Not equal: except for ours_stream, ours packs chunks of documents that do not see each other into rows, which "
        "are not quite full; on the other sides a token sees all of its row. nanogpt samples its rows at random "
        "positions and has the exact GELU. ours_sampled sums the softmax of a step over 2,048 ids, ours_recipe over as "
        "many as the recipe says. Ours keeps freed memory in the process, of the peers only "
        f"best_kept_memory does. Precision as the table says. Device: {args.device}."
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    after_imports = shared.resident_megabytes("VmRSS")
    context = our_context(args.side, args)
    if args.side.startswith("ours"):
        steps = shared.our_steps(context, compiled={"ours_compiled": True, "ours_eager": False}.get(args.side))
    elif args.side.startswith("nanogpt"):
        steps = nano_steps(context, compiled=args.side == "nanogpt_compiled")
    else:
        steps = transformers_steps(args.side, context)
    return shared.measure_steps(steps, context, warmup=args.warmup, after_imports=after_imports)


def our_context(side: str, args: argparse.Namespace) -> Any:
    device = choose_device(args.device)
    tokenizer = load_tokenizer(Path(args.data) / "tokenizer")
    end = tokenizer.token_to_id(END_OF_TEXT)
    assert end is not None, "a byte-level BPE"
    config = shared.make_config(side, args, tokenizer.vocab_size, args.sequence_length)
    objective_config = CausalLmConfig(documents="stream" if side == "ours_stream" else "apart")
    if side == "ours_recipe":
        objective_config = config.objective
    elif side == "ours_sampled":
        objective_config = replace(objective_config, sampled_softmax=2048)
    config = replace(config, model=replace(config.model, eos_token_id=end), objective=objective_config)
    shards, special = open_shards(args.data), SpecialIds(eos=end)
    counts = shards.unigram_counts if device.type == "cpu" else None
    objective = CausalLm(objective_config, special=special, unigram_counts=counts)
    examples = objective.make_examples(shards, config.batch.sequence_length)
    precision = "fp32" if side.startswith("default") else choose_precision(args.precision, device)
    return shared.make_context(config, objective, examples, tokenizer, precision, Path(args.data), device)


# ------------------------------------------------------------------------------------------- Peers


def token_stream(context: Any, *, extra: int = 0) -> torch.Tensor:
    """Return as many ids as the steps need: all documents joined, each with an end."""
    batch = context.config.batch
    number = batch.size * batch.sequence_length * (context.budget.num_steps + AHEAD) + extra
    shards = context.phases[0].examples.shards
    return torch.tensor(shared.join_documents(shards, number, after=[context.objective.eos]))


def transformers_steps(side: str, context: Any) -> Iterator[Step]:
    sizes, batch = context.config.model, context.config.batch
    dropout = {}
    if sizes.model_type == "gpt2":
        is_shipped = side == "default_shipped_dropout"
        rate = 0.1 if is_shipped else sizes.hidden_dropout_prob
        dropout = {"resid_pdrop": rate, "embd_pdrop": rate, "attn_pdrop": 0.1 if is_shipped else 0.0}
    tied = {"tie_word_embeddings": context.config.ties_embeddings}
    model = shared.transformers_model(sizes, **tied, **dropout)
    blocks = token_stream(context).view(-1, batch.sequence_length)
    if side.startswith("default"):
        examples = [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids} for ids in blocks.tolist()]
        yield from shared.trainer_steps(model, context, examples, transformers.default_data_collator, shared.peer_flops)
        return
    if side == "best_kept_memory":
        configure_allocator(CPU)
    compiled = torch.compile(model)

    def prepare(step: int) -> tuple[int, dict[str, torch.Tensor]]:
        ids = blocks[step * batch.size : (step + 1) * batch.size]
        return ids.numel(), {"input_ids": ids, "labels": ids}

    yield from shared.hand_steps(
        model, context, prepare, lambda block: compiled(**block, use_cache=False).loss, shared.peer_flops
    )


def as_gpt(config: Any) -> GptConfig:
    """Return the GPT of the same sizes, with feed-forward layers of as many weights."""
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    sizes = {name: getattr(config, name) for name in names}
    return config if isinstance(config, GptConfig) else GptConfig(**sizes, intermediate_size=4 * config.hidden_size)


def nano_steps(context: Any, *, compiled: bool) -> Iterator[Step]:
    model, batch = NanoGpt(as_gpt(context.config.model)).train(), context.config.batch
    stream, forward = token_stream(context, extra=1), torch.compile(model) if compiled else model

    def prepare(step: int) -> tuple[int, dict[str, torch.Tensor]]:
        ids, labels = sample_batch(stream, rows=batch.size, length=batch.sequence_length, seed=0, step=step)
        return ids.numel(), {"input_ids": ids, "labels": labels}

    return shared.hand_steps(
        model, context, prepare, lambda block: forward(block["input_ids"], block["labels"]), shared.peer_flops
    )


if __name__ == "__main__":
    main()
