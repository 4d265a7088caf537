"""Generation beside transformers' `generate` and a loop that reads the whole text again for each token.

    python benchmarks/generate_vs_peers.py --shape mini --batch 1

Each measurement is a process of its own (the script calls itself with `--side`); sides take turns, round by round. The clock runs over
one call that adds `--new` tokens to each prompt of `--prompt` random tokens, always the likeliest token; none ends early. A call on the
same shapes comes first. Sides:

    ours, ours_bf16        `generation.decode.decode`
    theirs, theirs_bf16    transformers' `generate` with its cache, sdpa
    again                  transformers' model reading the whole text for each token, as a plain nanoGPT loop does

Equal: weights (drawn at random by ours, saved, and opened by both), prompts, number of tokens, precision by the side's name. Of memory's
rate: the bytes of all weights, which each step reads, over the time of a step, as a share of the rate at which a large block is read.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch
import transformers

from stemformer.generation.decode import DecodingConfig, decode
from stemformer.models.gpt import GptConfig
from stemformer.models.model import make_model
from stemformer.pretrained import load_model, save_model

SHAPES = {
    "mini": {
        "vocab_size": 8000,
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    },
    "small": {
        "vocab_size": 50257,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
}
SIDES = ("ours", "ours_bf16", "theirs", "theirs_bf16", "again")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--shape", choices=list(SHAPES), default="mini")
    add("--batch", type=int, default=1)
    add("--prompt", type=int, default=32)
    add("--new", type=int, default=128)
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=2)
    add("--sides", default=",".join(SIDES))
    add("--side", choices=SIDES, help=argparse.SUPPRESS)
    add("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args)))
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    sides = args.sides.split(",")
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "PYTHONWARNINGS": "ignore"}
    names = ("shape", "batch", "prompt", "new", "threads")
    with tempfile.TemporaryDirectory() as folder:
        config = GptConfig(**SHAPES[args.shape], eos_token_id=0, max_position_embeddings=args.prompt + args.new)
        model = make_model(config, ["causal_lm"], generator=torch.Generator().manual_seed(0))
        save_model(model, folder)
        for number in range(args.rounds):
            for side in sides:
                options = [f"--{name}={getattr(args, name)}" for name in names]
                command = [sys.executable, __file__, f"--side={side}", f"--folder={folder}", *options]
                ran = subprocess.run(command, env=environment, capture_output=True, text=True)
                if ran.returncode:
                    sys.exit(f"{side} failed:\n{ran.stderr[-3000:]}")
                found[side].append(json.loads(ran.stdout.splitlines()[-1]))
                print(
                    f"round {number + 1}, {side}: {found[side][-1]['rate']:.0f} tokens/s", file=sys.stderr, flush=True
                )
    print("| side | tokens/s | lowest to highest | ours is faster by | ms a step | of memory's rate | same tokens |")
    print("|---" * 7 + "|")
    for side, runs in found.items():
        rates = [run["rate"] for run in runs]
        ratios = [a["rate"] / b["rate"] for a, b in zip(found[sides[0]], runs, strict=True)]
        same = statistics.mean(a == b for a, b in zip(found[sides[0]][0]["tokens"], runs[0]["tokens"], strict=True))
        print(
            f"| {side} | {statistics.median(rates):,.0f} | {min(rates):,.0f} to {max(rates):,.0f} | {statistics.median(ratios):.2f} "
            f"| {1000 * args.batch / statistics.median(rates):.2f} | {statistics.median(run['share'] for run in runs):.0%} | {same:.0%} |"
        )
    print(
        f"\n{args.shape}, batch {args.batch}, prompts of {args.prompt}, {args.new} new tokens each, {args.threads} threads; "
        f"medians of {args.rounds} rounds."
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    prompts = torch.randint(
        1, SHAPES[args.shape]["vocab_size"], (args.batch, args.prompt), generator=torch.Generator().manual_seed(1)
    )
    dtype = torch.bfloat16 if args.side.endswith("bf16") else torch.float32
    if args.side.startswith("ours"):
        model = load_model(args.folder).to(dtype)
        config = DecodingConfig(max_new_tokens=args.new, temperature=0)
        num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())

        def run() -> list[list[int]]:
            return [told.ids for told in decode(model, list(prompts), config)]
    else:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(args.folder, dtype=dtype).eval()
        num_bytes = sum(p.numel() * p.element_size() for p in theirs.parameters())
        options = {"max_new_tokens": args.new, "min_new_tokens": args.new, "do_sample": False, "pad_token_id": 0}

        def run() -> list[list[int]]:
            with torch.inference_mode():
                if args.side != "again":
                    mask = torch.ones_like(prompts)
                    return theirs.generate(prompts, attention_mask=mask, **options)[:, args.prompt :].tolist()
                ids = prompts
                for _ in range(args.new):
                    ids = torch.cat([ids, theirs(ids, use_cache=False, logits_to_keep=1).logits[:, -1:].argmax(-1)], 1)
                return ids[:, args.prompt :].tolist()

    run()
    start = time.perf_counter()
    tokens = run()
    seconds = time.perf_counter() - start
    steps = seconds / args.new
    return {
        "rate": sum(map(len, tokens)) / seconds,
        "tokens": [token for text in tokens for token in text],
        "share": num_bytes / steps / read_rate(),
    }


def read_rate() -> float:
    """Returns the bytes a second at which a block that fits in no cache is read."""
    block = torch.ones(64 * 2**20)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        block.sum().item()
        best = min(best, time.perf_counter() - start)
    return block.numel() * 4 / best


if __name__ == "__main__":
    main()
