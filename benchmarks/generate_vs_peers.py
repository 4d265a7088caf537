"""Generation beside transformers' `generate` and a loop that reads the whole text again for each token.

    python benchmarks/generate_vs_peers.py --shape mini --batch 1 --json out.json

Each measurement is a process of its own (the script calls itself with `--side`); sides take turns, round by round, and another one begins
each round. The clock runs over calls that add `--new` tokens to each prompt of `--prompt` random tokens, always the likeliest token; none
ends early. A call for a few tokens comes first; the median of `--calls` counts. Sides, each in float32 and, with `_bf16` behind its name,
in bfloat16:

    ours      `generation.decode.decode` with a model laid out beforehand, as who decodes more than once has it
    once      the same with the model as it was opened: the clock runs over laying it out, too
    theirs    transformers' `generate` with its cache, sdpa
    hand      transformers' model and cache in a loop by hand, which does nothing but take the likeliest token
    again     transformers' model reading the whole text for each token, as a plain nanoGPT loop does

Equal: weights (drawn at random by ours, saved, and opened by both), prompts, number of tokens, precision, threads. Of memory's rate: the
bytes of the weights that each step reads (all but the positions), over the time of a step (the call over its tokens), as a share of the
rate at which a large block is read right behind each call; the median of the calls. Tokens are compared with those of ours in the same
precision.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from stemformer.device import choose_device
from stemformer.generation.decoding import DecodingConfig, decode
from stemformer.huggingface.load import load_model
from stemformer.huggingface.save import save_model
from stemformer.models.gpt import GptConfig
from stemformer.models.inference.cached_gpt import GptDecoder
from stemformer.models.model import make_model

MINI = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
SMALL = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
SHAPES = {
    "mini": {"vocab_size": 8000, **MINI},
    "mini_50k": {"vocab_size": 50257, **MINI},
    "small": {"vocab_size": 50257, **SMALL},
}
SIDES = tuple(side + precision for precision in ("", "_bf16") for side in ("ours", "once", "theirs", "hand", "again"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--shape", choices=list(SHAPES), default="mini")
    add("--batch", type=int, default=1)
    add("--prompt", type=int, default=32)
    add("--new", type=int, default=128)
    add("--rounds", type=int, default=3)
    add("--calls", type=int, default=5, help="in one process")
    add("--threads", type=int, default=2)
    add("--device", default="cpu", help="cpu or cuda")
    add("--sides", default=",".join(SIDES))
    add("--json", help="file that receives every measurement")
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
    names = ("shape", "batch", "prompt", "new", "calls", "threads", "device")
    with tempfile.TemporaryDirectory() as folder:
        config = GptConfig(**SHAPES[args.shape], eos_token_id=0, max_position_embeddings=args.prompt + args.new)
        model = make_model(config, ["causal_lm"], generator=torch.Generator().manual_seed(0))
        save_model(model, folder)
        for number in range(args.rounds):
            for side in sides[number % len(sides) :] + sides[: number % len(sides)]:
                options = [f"--{name}={getattr(args, name)}" for name in names]
                command = [sys.executable, __file__, f"--side={side}", f"--folder={folder}", *options]
                ran = subprocess.run(command, env=environment, capture_output=True, text=True)
                if ran.returncode:
                    sys.exit(f"{side} failed:\n{ran.stderr[-3000:]}")
                found[side].append(json.loads(ran.stdout.splitlines()[-1]))
                print(
                    f"round {number + 1}, {side}: {found[side][-1]['rate']:.0f} tokens/s", file=sys.stderr, flush=True
                )
    print(
        "| side | tokens/s | lowest to highest | ours is faster by | ms a step | of memory's rate | same tokens | laid out in |"
    )
    print("|---" * 8 + "|")
    for side, runs in found.items():
        ours = found.get("ours_bf16" if side.endswith("bf16") else "ours", runs)
        rates = [run["rate"] for run in runs]
        ratio = statistics.median(a["rate"] / b["rate"] for a, b in zip(ours, runs, strict=True))
        same = statistics.mean(a == b for a, b in zip(ours[0]["tokens"], runs[0]["tokens"], strict=True))
        rate, share, lay_out = (statistics.median(run[key] for run in runs) for key in ("rate", "share", "lay_out"))
        print(
            f"| {side} | {rate:,.0f} | {min(rates):,.0f} to {max(rates):,.0f} | {ratio:.2f} | {1000 * args.batch / rate:.2f} "
            f"| {share:.0%} | {same:.0%} | {f'{lay_out:.2f} s' if lay_out else ''} |"
        )
    read = [run["read"] / 1e9 for runs in found.values() for run in runs]
    print(
        f"\n{args.shape}, batch {args.batch}, prompts of {args.prompt}, {args.new} new tokens each, {args.device}, {args.threads} threads; "
        f"medians of {args.rounds} rounds; memory was read at {min(read):.1f} to {max(read):.1f} GB/s."
    )
    if args.json:
        Path(args.json).write_text(json.dumps({"options": vars(args), "runs": found}), encoding="utf-8")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    prompts = torch.randint(
        1, SHAPES[args.shape]["vocab_size"], (args.batch, args.prompt), generator=torch.Generator().manual_seed(1)
    )
    dtype = torch.bfloat16 if args.side.endswith("bf16") else torch.float32
    device, lay_out = choose_device(args.device), 0.0
    if args.side.startswith(("ours", "once")):
        model = load_model(args.folder).to(device, dtype)
        if args.side.startswith("ours"):
            start = time.perf_counter()
            model = GptDecoder(model, rows=args.batch)
            lay_out = time.perf_counter() - start

        def run(new: int) -> list[list[int]]:
            config = DecodingConfig(max_new_tokens=new, temperature=0)
            return [told.ids for told in decode(model, list(prompts), config)]
    else:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(args.folder, dtype=dtype).eval().to(device)
        theirs.generation_config.eos_token_id = None  # no text ends, and nothing has to keep it from ending
        prompts = prompts.to(device)

        @torch.inference_mode()
        def run(new: int) -> list[list[int]]:
            if args.side.startswith("theirs"):
                options = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
                ids = theirs.generate(prompts, attention_mask=torch.ones_like(prompts), **options)
                return ids[:, args.prompt :].tolist()
            is_kept = args.side.startswith("hand")
            seen, ids = transformers.DynamicCache() if is_kept else None, prompts
            for _ in range(new):
                given = ids if seen is None or not seen.get_seq_length() else ids[:, -1:]
                out = theirs(given, past_key_values=seen, use_cache=is_kept, logits_to_keep=1)
                ids = torch.cat([ids, out.logits[:, -1:].argmax(-1)], 1)
            return ids[:, args.prompt :].tolist()

    run(4)
    times, reads = [], []
    for _ in range(args.calls):
        start = time.perf_counter()
        tokens = run(args.new)
        times.append(time.perf_counter() - start)
        reads.append(read_rate(device))
    if any(len(text) < args.new for text in tokens):
        sys.exit("a text ended before its length, so the sides cannot be compared")
    weights = weight_bytes(args.shape, dtype)
    return {
        "rate": sum(map(len, tokens)) / statistics.median(times),
        "tokens": [token for text in tokens for token in text],
        "share": statistics.median(weights / (t / args.new) / read for t, read in zip(times, reads, strict=True)),
        "read": statistics.median(reads),
        "lay_out": lay_out,
    }


def weight_bytes(shape: str, dtype: torch.dtype) -> int:
    with torch.device("meta"):
        model = make_model(GptConfig(**SHAPES[shape]), ["causal_lm"])
    return (model.num_parameters() - model.body.embeddings.position.weight.numel()) * dtype.itemsize


def read_rate(device: torch.device) -> float:
    """Returns the bytes a second at which a block that fits in no cache is read."""
    block = torch.ones((64 if device.type == "cpu" else 1024) * 2**20, device=device)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        block.sum().item()
        best = min(best, time.perf_counter() - start)
    return block.numel() * 4 / best


if __name__ == "__main__":
    main()
