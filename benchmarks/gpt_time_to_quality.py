"""The same minutes for us, for transformers' example and for a nanoGPT-style loop: whose held-out bits per byte fall faster.

    python benchmarks/gpt_time_to_quality.py train --side ours --data PREPARED_FOLDER --out FOLDER --minutes 5
    python benchmarks/gpt_time_to_quality.py train --side example --data PREPARED_FOLDER --out FOLDER --minutes 5
    python benchmarks/gpt_time_to_quality.py train --side nanogpt --data PREPARED_FOLDER --out FOLDER --minutes 5
    python benchmarks/gpt_time_to_quality.py show FOLDER --picture FILE.svg

`PREPARED_FOLDER` was written by `stemformer prepare` with a byte-level BPE. Each side has the recipe's shape and rows of its length. Sides:

    ours      `stemformer pretrain` with the recipe as it is, and `--documents`; its evaluations and checkpoints are on its own clock
    example   the defaults of transformers' run_clm example: float32, eager, 8 blocks a step, AdamW, 5e-5 falling linearly, dropout 0.1
    nanogpt   a loop in nanoGPT's style (`nano_gpt.py`): bf16 where the processor has it, fused AdamW with betas 0.9 and 0.99 and decay
              0.1 on matrices, 1e-3 falling by a cosine to a tenth after 100 steps, as many rows as ours, no dropout

The clock of the peers stands still while they are evaluated. All are scored on the same held-out text, in rows of the same length: ours in
the form that it was trained in (`apart`: each piece of a document for itself; `stream`: rows that go on across documents), the others as a
stream. Bits per byte count every token and every document's end, over the bytes of the text.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from nano_gpt import NanoGpt, as_hugging_face, draw_batch
from side_by_side import gpt2_config, joined_ids

import stemformer
from stemformer.config import with_settings
from stemformer.data.examples.sampling import permuted
from stemformer.data.shards.reader import open_shards
from stemformer.data.tokenization.tokenizer import END_OF_TEXT, load_tokenizer
from stemformer.device import autocast, choose_precision, configure_allocator
from stemformer.evaluation.held_out import make_held_out_evaluation
from stemformer.generation.text import generate_samples, sample_prompts
from stemformer.huggingface.load import load_model_and_tokenizer
from stemformer.io import read_jsonl
from stemformer.models.hf_names import GPT, from_hugging_face
from stemformer.models.model import make_model
from stemformer.objectives.causal_lm import CausalLm, CausalLmConfig
from stemformer.objectives.objective import LossModule
from stemformer.recipes import find_recipe

CPU = torch.device("cpu")
SIDES = {"ours": "stemformer", "example": "transformers, run_clm's defaults", "nanogpt": "a loop in nanoGPT's style"}
EVALUATIONS = 12


def main() -> None:
    if len(sys.argv) == 1:  # as `make bench` calls it: there is nothing that could be taken by default
        return print("not run: give train --side SIDE --data DATA --out FOLDER", file=sys.stderr)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train")
    train.add_argument("--side", choices=list(SIDES), required=True)
    train.add_argument("--data", required=True)
    train.add_argument("--out", required=True, help="each side writes a log of its own there")
    train.add_argument("--minutes", type=float, default=5)
    train.add_argument("--recipe", default="gpt_mini")
    train.add_argument("--set", action="append", default=[], help="key=value laid over the recipe, for all sides")
    train.add_argument("--documents", choices=["apart", "stream"], default="apart", help="how ours reads them")
    train.add_argument("--threads", type=int, default=1)
    train.add_argument("--held-out-rows", type=int, default=128)
    train.add_argument("--every", type=int, default=100, help="steps between evaluations of ours")
    train.add_argument("--seed", type=int, default=0)
    show = commands.add_parser("show")
    show.add_argument("out")
    show.add_argument("--picture")
    args = parser.parse_args()
    if args.command == "show":
        return tell(Path(args.out), args.picture)
    torch.set_num_threads(args.threads)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    (train_ours if args.side == "ours" else train_peer)(args)


def train_ours(args: argparse.Namespace) -> None:
    settings = [
        f"evaluation.num_examples={args.held_out_rows}",
        "evaluation.num_cloze_examples=0",
        f"evaluation.every={args.every}",
    ]
    run = Path(args.out) / "ours"
    stemformer.pretrain(
        args.recipe,
        data=args.data,
        out=str(run),
        time=f"{args.minutes}m",
        threads=args.threads,
        seed=args.seed,
        settings=[*settings, f"objective.documents={args.documents}", *args.set],
    )
    model, tokenizer = load_model_and_tokenizer(run)
    longest = with_settings(find_recipe(args.recipe), args.set).batch.sequence_length
    write(args, "samples", generate_samples(model, tokenizer, beginnings(args, tokenizer), max_length=longest))


def train_peer(args: argparse.Namespace) -> None:
    recipe = with_settings(find_recipe(args.recipe), args.set)
    tokenizer = load_tokenizer(Path(args.data) / "tokenizer")
    end = tokenizer.token_to_id(END_OF_TEXT)
    assert end is not None, "a byte-level BPE"
    is_nano = args.side == "nanogpt"
    sizes = replace(recipe.model, vocab_size=tokenizer.vocab_size, eos_token_id=end, hidden_dropout_prob=0.0)
    torch.manual_seed(args.seed)
    if is_nano:
        configure_allocator(CPU)
        model: Any = NanoGpt(sizes).train()
        matrices = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
        precision, rows = choose_precision("auto", CPU), recipe.batch.size
    else:
        model = transformers.GPT2LMHeadModel(gpt2_config(sizes)).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0)
        precision, rows = "fp32", 8
    score = evaluation(args, recipe, replace(sizes, hidden_act="gelu" if is_nano else sizes.hidden_act), end)
    length, seconds = recipe.batch.sequence_length, 60 * args.minutes
    batches = blocks(args, rows, length, end, is_nano=is_nano)
    log = (Path(args.out) / f"{args.side}.jsonl").open("w", encoding="utf-8", buffering=1)
    spent, step, evaluated = 0.0, 0, 0
    log.write(json.dumps({"step": 0, "tokens": 0, "seconds": 0.0, **score(model)[0]}) + "\n")
    while spent < seconds:
        began = time.perf_counter()
        ids, labels = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * cosine(step, spent / seconds) if is_nano else 5e-5 * (1 - spent / seconds)
        with autocast(CPU, precision):
            loss = model(ids, labels) if is_nano else model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        spent += time.perf_counter() - began
        step += 1
        if int(spent / seconds * EVALUATIONS) > evaluated or spent >= seconds:
            evaluated = int(spent / seconds * EVALUATIONS)
            told = {"step": step, "tokens": step * rows * length, "seconds": round(spent, 2), **score(model)[0]}
            log.write(json.dumps(told) + "\n")
    found = generate_samples(score(model)[1], tokenizer, beginnings(args, tokenizer), max_length=length)
    write(args, "samples", found)


def cosine(step: int, share: float) -> float:
    """Returns the share of the peak learning rate: rising over 100 steps, then falling to a tenth with the time."""
    return min((step + 1) / 100, 1.0) * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))


def blocks(
    args: argparse.Namespace, rows: int, length: int, end: int, *, is_nano: bool
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields ids and labels: of random places for nanoGPT, of the blocks of run_clm's group_texts in another order each epoch."""
    shards = open_shards(args.data)
    line = torch.tensor(joined_ids(shards, shards.num_tokens + shards.num_documents, after=[end]))
    table = line[: len(line) // length * length].view(-1, length)
    step = 0
    while True:
        if is_nano:
            yield draw_batch(line, rows=rows, length=length, seed=args.seed, step=step)
        else:
            epoch, first = divmod(step * rows, len(table) // rows * rows)
            chosen = permuted(torch.arange(first, first + rows).numpy(), len(table), seed=args.seed, epoch=epoch)
            ids = table[torch.from_numpy(chosen.astype("int64"))]
            yield ids, ids
        step += 1


def evaluation(args: argparse.Namespace, recipe: Any, sizes: Any, end: int) -> Any:
    """Returns what gives held-out figures of a peer, and its weights as a model of ours."""
    objective = CausalLm(CausalLmConfig(documents="stream"), end=end)
    examples = objective.make_examples(open_shards(args.data, "held_out"), recipe.batch.sequence_length)
    score = make_held_out_evaluation(examples, objective, num_examples=args.held_out_rows, device=CPU)
    ours = make_model(sizes, ["causal_lm"])

    def evaluate(model: Any) -> tuple[dict[str, float], Any]:
        state = as_hugging_face(model.state_dict()) if isinstance(model, NanoGpt) else model.state_dict()
        ours.load_state_dict(from_hugging_face(state, list(ours.state_dict()), GPT)[0])
        return dict(score(LossModule(ours, objective))), ours

    return evaluate


def beginnings(args: argparse.Namespace, tokenizer: Any) -> list[str]:
    return sample_prompts(open_shards(args.data, "held_out"), tokenizer, number=2)


def write(args: argparse.Namespace, name: str, told: Any) -> None:
    text = json.dumps(told, ensure_ascii=False, indent=1)
    (Path(args.out) / f"{args.side}-{name}.json").write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------------------ the result


def tell(out: Path, picture: str | None) -> None:
    found = {}
    for side in SIDES:
        file = out / "ours" / "log.jsonl" if side == "ours" else out / f"{side}.jsonl"
        lines = [line for line in read_jsonl(file) if "held_out_bits_per_byte" in line]
        if lines:
            found[side] = lines
    print("| side | steps | tokens | minutes | loss (nats a token) | bits per byte | ours passed it after |")
    print("|---" * 7 + "|")
    for side, lines in found.items():
        last = lines[-1]
        reached = [
            x["seconds"] for x in found.get("ours", []) if x["held_out_bits_per_byte"] <= last["held_out_bits_per_byte"]
        ]
        passed = f"{reached[0] / 60:.1f} min" if reached and side != "ours" else ""
        print(
            f"| {side} | {last['step']:,} | {last['tokens'] / 1e6:.2f} M | {last['seconds'] / 60:.1f} "
            f"| {last['held_out_causal_lm_loss']:.3f} | {last['held_out_bits_per_byte']:.3f} | {passed} |"
        )
    for side in found:
        for sample in json.loads((out / f"{side}-samples.json").read_text(encoding="utf-8")):
            print(f"\n{side}: [{sample['prompt']}]{sample['text']}")
    if picture:
        draw(found, picture)


def draw(found: dict[str, list[dict[str, Any]]], picture: str) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for side, lines in found.items():
        minutes = [line["seconds"] / 60 for line in lines]
        axes.plot(
            minutes, [line["held_out_bits_per_byte"] for line in lines], label=SIDES[side], linewidth=2, marker="."
        )
    axes.set(xlabel="minutes of training", ylabel="held-out bits per byte", xlim=(0, None))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    main()
