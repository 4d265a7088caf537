"""Generation next to transformers' `generate` and a loop that reads the full text again for each token.

    python benchmarks/generate_vs_peers.py --shape mini --batch 1 --json out.json

The clock runs over calls that add `--new` tokens to each prompt of `--prompt` random tokens, by greedy decoding; no text
ends early. A call for a few tokens comes first; the median of `--calls` counts. Sides, each in float32 and, with the suffix
`_bf16`, in bfloat16:

    ours      `generation.decoding.decode` with a decoder made in advance, as for more than one call
    once      the same with the loaded model: the clock includes making the decoder
    theirs    transformers' `generate` with its cache, sdpa
    hand      transformers' model and cache in a loop by hand that only takes the most probable token
    again     transformers' model on the full text for each token, as a plain nanoGPT loop does

Equal: weights (random, by ours, saved and opened by both), prompts, number of tokens, precision, threads. The share of the
memory rate is the bytes of the weights that a step reads (all but the positions) over the time of a step (call over
tokens), relative to the rate at which a large block is read right after each call; median over calls. Tokens are compared
with those of ours in the same precision.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import frame
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
    parser = frame.make_parser(__doc__, SIDES, rounds=3)
    add = parser.add_argument
    add("--shape", choices=list(SHAPES), default="mini")
    add("--batch", type=int, default=1)
    add("--prompt", type=int, default=32, help="tokens of a prompt")
    add("--new", type=int, default=128, help="tokens to generate")
    add("--calls", type=int, default=5, help="calls in one process")
    add("--device", default="cpu", help="cpu or cuda")
    frame.run(parser, measure, report, describe=lambda result: f"{result['rate']:.0f} tokens/s", prepare=prepare)


def prepare(args: argparse.Namespace, folder: Path) -> None:
    config = GptConfig(**SHAPES[args.shape], eos_token_id=0, max_position_embeddings=args.prompt + args.new)
    model = make_model(config, ["causal_lm"], generator=torch.Generator().manual_seed(0))
    save_model(model, folder / "model")


def report(found: frame.Measurements, args: argparse.Namespace) -> None:
    rows = []
    for side, runs in found.items():
        ours = found.get("ours_bf16" if side.endswith("bf16") else "ours", runs)
        same = statistics.mean(a == b for a, b in zip(ours[0]["tokens"], runs[0]["tokens"], strict=True))
        rate, making = frame.median(runs, "rate"), frame.median(runs, "decoder_seconds")
        rows.append(
            (
                side,
                f"{rate:,.0f}",
                frame.spread(runs, "rate", ",.0f"),
                f"{frame.speedup(ours, runs, 'rate', is_rate=True):.2f}",
                f"{1000 * args.batch / rate:.2f}",
                f"{frame.median(runs, 'share'):.0%}",
                f"{same:.0%}",
                f"{making:.2f} s" if making else "",
            )
        )
    header = ("side", "tokens/s", "range", "ours is faster by", "ms per step", "share of memory rate", "same tokens")
    frame.print_table((*header, "decoder made in"), rows)
    rates = [run["memory_rate"] / 1e9 for runs in found.values() for run in runs]
    print(
        f"\n{args.shape}, batch {args.batch}, prompts of {args.prompt}, {args.new} new tokens each, {args.device}, "
        f"{args.threads} threads; medians of {args.rounds} rounds; memory was read at {min(rates):.1f} to "
        f"{max(rates):.1f} GB/s."
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(1, SHAPES[args.shape]["vocab_size"], (args.batch, args.prompt), generator=generator)
    dtype = torch.bfloat16 if args.side.endswith("bf16") else torch.float32
    device, decoder_seconds = choose_device(args.device), 0.0
    model_folder = f"{args.folder}/model"
    if args.side.startswith(("ours", "once")):
        model: Any = load_model(model_folder).to(device, dtype)
        if args.side.startswith("ours"):
            start = time.perf_counter()
            model = GptDecoder(model, rows=args.batch)
            decoder_seconds = time.perf_counter() - start

        def run(new: int) -> list[list[int]]:
            config = DecodingConfig(max_new_tokens=new, temperature=0)
            return [decoded.ids for decoded in decode(model, list(prompts), config)]
    else:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype).eval().to(device)
        theirs.generation_config.eos_token_id = None  # no text ends, and nothing has to prevent it
        prompts = prompts.to(device)

        @torch.inference_mode()
        def run(new: int) -> list[list[int]]:
            if args.side.startswith("theirs"):
                options = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
                ids = theirs.generate(prompts, attention_mask=torch.ones_like(prompts), **options)
                return ids[:, args.prompt :].tolist()
            has_cache = args.side.startswith("hand")
            cache, ids = transformers.DynamicCache() if has_cache else None, prompts
            for _ in range(new):
                inputs = ids if cache is None or not cache.get_seq_length() else ids[:, -1:]
                out = theirs(inputs, past_key_values=cache, use_cache=has_cache, logits_to_keep=1)
                ids = torch.cat([ids, out.logits[:, -1:].argmax(-1)], 1)
            return ids[:, args.prompt :].tolist()

    run(4)
    times, rates = [], []
    tokens: list[list[int]] = []
    for _ in range(args.calls):
        start = time.perf_counter()
        tokens = run(args.new)
        times.append(time.perf_counter() - start)
        rates.append(memory_rate(device))
    if any(len(text) < args.new for text in tokens):
        sys.exit("A text ended early, so the sides cannot be compared.")
    weights = weight_bytes(args.shape, dtype)
    return {
        "rate": sum(map(len, tokens)) / statistics.median(times),
        "tokens": [token for text in tokens for token in text],
        "share": statistics.median(weights / (t / args.new) / rate for t, rate in zip(times, rates, strict=True)),
        "memory_rate": statistics.median(rates),
        "decoder_seconds": decoder_seconds,
    }


def weight_bytes(shape: str, dtype: torch.dtype) -> int:
    with torch.device("meta"):
        model = make_model(GptConfig(**SHAPES[shape]), ["causal_lm"])
    return (model.num_parameters() - model.body.embeddings.position.weight.numel()) * dtype.itemsize


def memory_rate(device: torch.device) -> float:
    """Return the bytes per second at which a block that fits in no cache is read."""
    block = torch.ones((64 if device.type == "cpu" else 1024) * 2**20, device=device)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        block.sum().item()
        best = min(best, time.perf_counter() - start)
    return block.numel() * 4 / best


if __name__ == "__main__":
    main()
