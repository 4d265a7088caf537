"""The same hour for us and for transformers: whose held-out loss falls faster, on the same text, ids and held-out masks.

    python benchmarks/time_to_quality.py
    python benchmarks/time_to_quality.py train --side ours --data PREPARED_FOLDER --out FOLDER --minutes 60
    python benchmarks/time_to_quality.py train --side tuned --data PREPARED_FOLDER --out FOLDER --minutes 60
    python benchmarks/time_to_quality.py train --side shipped --data PREPARED_FOLDER --out FOLDER --minutes 60
    python benchmarks/time_to_quality.py show FOLDER --picture docs/time_to_quality.png

Without arguments, a minute a side on the embedded samples. Sides:

    ours      `stemformer pretrain` with the recipe as it is; its evaluations and checkpoints are on its own clock
    tuned     transformers' BertForMaskedLM by hand: bf16 where the processor has it, fused AdamW, torch.compile (which is on its clock),
              batches prefetched, freed memory kept; rate, betas, warm-up and fall of the learning rate, rows of 128 a step, share of
              hidden words and no dropout, all as our recipe has them
    shipped   the defaults of transformers' run_mlm example: float32, eager, 8 rows, 5e-5 falling linearly, 15 % hidden, dropout 0.1

Text of the peer: documents joined end to end and cut into rows of 128 (run_mlm's group_texts), shuffled each epoch. Its clock runs
while it trains and stands still while it is evaluated, by our evaluation, on weights brought over by `models.hf_names`. All see the
same held-out rows under the same masks, 15 % of the tokens; each of their sequences begins at position 0 with [CLS].

What ours has and tuned has not: Muon, an output bias that begins at word frequency, positions that begin as sinusoids, pieces of
documents that do not see each other.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pretrain_vs_transformers import prepared_samples

import stemformer
from stemformer.data.examples.packing import pack_documents
from stemformer.data.examples.sampling import permuted, prefetch
from stemformer.data.shards.reader import Shards, open_shards
from stemformer.data.tokenization.tokenizer import load_tokenizer
from stemformer.device import autocast, choose_precision, configure_allocator
from stemformer.evaluation.held_out import held_out_masks, make_held_out_evaluation
from stemformer.io import read_jsonl
from stemformer.models.hf_names import from_hugging_face
from stemformer.models.model import make_model
from stemformer.objectives.masked_lm import MaskedLm, MaskedLmConfig, SpecialIds
from stemformer.objectives.objective import LossModule
from stemformer.recipes import find_recipe
from stemformer.training.budget import TIMED_WARMUP_STEPS
from stemformer.training.optimizer import make_optimizer

CPU = torch.device("cpu")
LENGTH = 128
SIDES = ("ours", "tuned", "shipped")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command")
    train = commands.add_parser("train")
    train.add_argument("--side", choices=SIDES, required=True)
    train.add_argument("--data", required=True, help="a folder that `stemformer prepare` wrote")
    train.add_argument("--out", required=True, help="each side writes a log of its own there")
    train.add_argument("--minutes", type=float, default=60)
    train.add_argument("--recipe", default="bert_mini")
    train.add_argument("--threads", type=int, default=2)
    train.add_argument("--optimizer", default="muon", choices=["muon", "adamw"], help="of ours")
    train.add_argument("--held-out-rows", type=int, default=256)
    train.add_argument("--seed", type=int, default=0)
    show = commands.add_parser("show")
    show.add_argument("out")
    show.add_argument("--picture")
    args = parser.parse_args()
    if args.command is None:
        return try_out()
    if args.command == "show":
        return tell(read_logs(Path(args.out)), args.picture)
    torch.set_num_threads(args.threads)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    (train_ours if args.side == "ours" else train_peer)(args)


def try_out() -> None:
    """A minute a side on the embedded samples, to see it work: what it shows is no result."""
    with tempfile.TemporaryDirectory(prefix="stemformer-bench-") as out:
        data = prepared_samples()
        for side in SIDES:
            options = [f"--side={side}", f"--data={data}", f"--out={out}", "--minutes=1"]
            subprocess.run([sys.executable, __file__, "train", *options], check=True)
        tell(read_logs(Path(out)), None)


# ------------------------------------------------------------------------------------------------------------------------ training


def train_ours(args: argparse.Namespace) -> None:
    stemformer.pretrain(
        args.recipe,
        data=args.data,
        out=str(Path(args.out) / "ours"),
        time=f"{args.minutes}m",
        threads=args.threads,
        seed=args.seed,
        settings=[
            f"evaluation.num_examples={args.held_out_rows}",
            "evaluation.num_cloze_examples=0",
            f"optimizer.kind={args.optimizer}",
        ],
    )


def train_peer(args: argparse.Namespace) -> None:
    import transformers

    is_tuned = args.side == "tuned"
    recipe = find_recipe(args.recipe)
    shards, held_out = open_shards(args.data), open_shards(args.data, "held_out")
    tokenizer = load_tokenizer(Path(args.data) / "tokenizer")
    evaluate = evaluation_of_peer(held_out, args, tokenizer)
    seconds = 60 * args.minutes
    sizes = {
        k: getattr(recipe.model, k)
        for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    }
    sizes |= {"max_position_embeddings": recipe.model.max_position_embeddings, "vocab_size": tokenizer.vocab_size}
    if is_tuned:
        sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(args.seed)
    model = transformers.BertForMaskedLM(transformers.BertConfig(**sizes, attn_implementation="sdpa")).train()
    if is_tuned:
        configure_allocator(torch.device("cpu"))
        rows, rate, peak, clip = (
            recipe.batch.size,
            recipe.objective.mask_rate,
            recipe.optimizer.learning_rate,
            recipe.optimizer.max_grad_norm,
        )
        optimizer = make_optimizer(model, replace(recipe.optimizer, kind="adamw"))
        precision, forward = choose_precision("auto", CPU), torch.compile(model)
    else:
        rows, rate, peak, clip = 8, 0.15, 5e-5, 1.0
        optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.0, fused=True)
        precision, forward = "fp32", model
    collate = transformers.DataCollatorForLanguageModeling(
        transformers.AutoTokenizer.from_pretrained(Path(args.data) / "tokenizer"), mlm_probability=rate
    )
    batches = peer_batches(shards, collate, tokenizer, rows, args.seed)
    log = (Path(args.out) / f"{args.side}.jsonl").open("w", encoding="utf-8", buffering=1)
    spent, step, evaluated, train_loss = 0.0, 0, -1, float("nan")
    log.write(json.dumps({"step": 0, "tokens": 0, "seconds": 0.0, **evaluate(model)}) + "\n")
    while spent < seconds:
        began = time.perf_counter()
        batch = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = peak * (timed_factor(step, spent / seconds) if is_tuned else 1 - spent / seconds)
        with autocast(CPU, precision):
            loss = forward(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        train_loss = loss.item()
        spent += time.perf_counter() - began
        step += 1
        if int(spent / seconds * 60) > evaluated or spent >= seconds:
            evaluated = int(spent / seconds * 60)
            figures = {
                "step": step,
                "tokens": step * rows * LENGTH,
                "seconds": round(spent, 2),
                "loss": train_loss,
                **evaluate(model),
            }
            log.write(json.dumps(figures) + "\n")


def timed_factor(step: int, share: float) -> float:
    """Returns the share of the peak learning rate, as `training.timetable` has it: rising, staying, falling over the last fifth."""
    return min((step + 1) / TIMED_WARMUP_STEPS, 1.0, (1 - share) / 0.2)


def peer_batches(shards: Shards, collate: Any, tokenizer: Any, rows: int, seed: int) -> Iterator[Any]:
    """Yields masked batches of rows cut from documents joined end to end, in another order each epoch."""
    line = []
    for number in range(shards.num_documents):
        line += [
            [tokenizer.cls_token_id],
            shards.tokens(*shards.document_starts[number : number + 2]),
            [tokenizer.sep_token_id],
        ]
    joined = np.concatenate(line)
    table = joined[: len(joined) // LENGTH * LENGTH].reshape(-1, LENGTH)

    def make(step: int) -> Any:
        epoch, first = divmod(step * rows, len(table) // rows * rows)
        chosen = permuted(np.arange(first, first + rows), len(table), seed=seed, epoch=epoch)
        ids = table[chosen].astype(np.int64)
        special = (ids == tokenizer.cls_token_id) | (ids == tokenizer.sep_token_id)
        batch = collate(
            [{"input_ids": a, "special_tokens_mask": b} for a, b in zip(ids, special.astype(int), strict=True)]
        )
        batch.pop("attention_mask", None)  # nothing is padded: the faster way
        return dict(batch)

    return prefetch(make, range(2**40))


def evaluation_of_peer(held_out: Shards, args: argparse.Namespace, tokenizer: Any) -> Any:
    config = find_recipe(args.recipe)
    special = SpecialIds(cls=tokenizer.cls_token_id, sep=tokenizer.sep_token_id, mask=tokenizer.mask_token_id)
    objective = MaskedLm(held_out_masks(MaskedLmConfig()), special=special, vocab_size=tokenizer.vocab_size)
    rows = pack_documents(held_out, sequence_length=config.batch.sequence_length)
    score = make_held_out_evaluation(rows, objective, num_examples=args.held_out_rows, device=CPU)
    ours = make_model(replace(config.model, vocab_size=tokenizer.vocab_size), ["masked_lm"])

    def evaluate(model: Any) -> dict[str, float]:
        ours.load_state_dict(from_hugging_face(model.state_dict(), list(ours.state_dict()))[0])
        return dict(score(LossModule(ours, objective)))

    return evaluate


# ------------------------------------------------------------------------------------------------------------------------ the result


def read_logs(folder: Path) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for side in SIDES:
        file = folder / "ours" / "log.jsonl" if side == "ours" else folder / f"{side}.jsonl"
        lines = [line for line in read_jsonl(file) if "held_out_masked_lm_loss" in line]
        if lines:
            found[side] = lines
    return found


def tell(found: dict[str, list[dict[str, Any]]], picture: str | None) -> None:
    print(
        "| side | steps | tokens | minutes | held-out loss | hidden words right | ours passed it after | share of its time |"
    )
    print("|---" * 8 + "|")
    for side, lines in found.items():
        last = lines[-1]
        passed = None if side == "ours" else seconds_to(found.get("ours", []), last["held_out_masked_lm_loss"])
        cells = "" if passed is None else f"{passed / 60:.1f} min | {passed / last['seconds']:.2f}"
        print(
            f"| {side} | {last['step']:,} | {last['tokens'] / 1e6:.2f} M | {last['seconds'] / 60:.1f} "
            f"| {last['held_out_masked_lm_loss']:.3f} | {last['held_out_masked_lm_accuracy']:.1%} | {cells or '|'} |"
        )
    first = next(iter(found.values()))[0]
    print(
        f"\nWord frequency alone: {first['held_out_unigram_loss']:.3f} nats, {first['held_out_unigram_accuracy']:.1%} right."
    )
    if picture:
        draw(found, first["held_out_unigram_loss"], picture)


def seconds_to(lines: list[dict[str, Any]], loss: float) -> float | None:
    """Returns the time of the first evaluation at or below a loss."""
    return next((line["seconds"] for line in lines if line["held_out_masked_lm_loss"] <= loss), None)


def draw(found: dict[str, list[dict[str, Any]]], unigram: float, picture: str) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    names = {
        "ours": "stemformer",
        "tuned": "transformers by hand, same rate and batch",
        "shipped": "transformers, run_mlm's defaults",
    }
    for side, lines in found.items():
        minutes = [line["seconds"] / 60 for line in lines]
        axes.plot(minutes, [line["held_out_masked_lm_loss"] for line in lines], label=names[side], linewidth=2)
    axes.axhline(unigram, color="gray", linestyle=":", label="word frequency alone")
    if {"ours", "tuned"} <= set(found):
        last = found["tuned"][-1]["held_out_masked_lm_loss"]
        passed = seconds_to(found["ours"], last)
        axes.axhline(last, color="gray", linewidth=0.8)
        if passed is not None:
            axes.plot([passed / 60], [last], "ko")
            axes.annotate(f"{passed / 60:.0f} min", (passed / 60, last), xytext=(6, 6), textcoords="offset points")
    axes.set(
        xlabel="minutes of training",
        ylabel="held-out loss (nats a hidden word)",
        ylim=(None, unigram + 1),
        xlim=(0, None),
    )
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    main()
