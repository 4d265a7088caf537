"""Prediction beside peers: classes beside transformers' pipeline, vectors beside sentence-transformers' encode, texts of mixed length.

    python benchmarks/predict_vs_peers.py --model CLASSIFIER --texts FILE --task classify
    python benchmarks/predict_vs_peers.py --model BERT --texts FILE --task embed

`FILE` has a text a line. Each measurement is a process of its own (the script calls itself with `--side`); sides take turns, round by
round. The clock runs from the list of texts to the list of results: encoding, batches, model; not imports and loading. A short warm-up on
other texts comes first. Sides:

    ours            `stemformer.load(model).predict` or `.embed`, fp32
    ours_bf16       the same in bf16 (for embeddings, where the processor has it)
    pipeline        transformers' pipeline at its default (a text at a time), fp32
    pipeline_N      the same with batch_size N: the padded block of N texts in the order given
    pipeline_bf16_N the same with the model in bf16
    encode          sentence-transformers' encode at its default (32 a batch, sorted by length), fp32
    encode_N        the same with batch_size N

"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import stemformer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", required=True)
    add("--texts", required=True, help="a text a line")
    add("--task", choices=["classify", "embed"], default="classify")
    add("--number", type=int, default=2000, help="of texts")
    add("--max-length", type=int, default=256, help="tokens behind which all sides cut")
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=2)
    add("--sides", help="by default all that are named at the head of the script, with 8, 32 and 128 for N")
    add("--side", help=argparse.SUPPRESS)
    if (
        len(sys.argv) == 1
    ):  # as `make bench` calls it: there is no labelled text or model that could be taken by default
        return print("not run: give " + "--model and --texts", file=sys.stderr)
    args = parser.parse_args()
    of_task = {
        "classify": "ours,ours_bf16,pipeline,pipeline_8,pipeline_32,pipeline_128,pipeline_bf16_32",
        "embed": "ours,ours_bf16,encode,encode_8,encode_128",
    }
    args.sides = args.sides or of_task[args.task]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if args.side:
        print(json.dumps(measure(args)))
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    sides = args.sides.split(",")
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "PYTHONWARNINGS": "ignore"}
    names = ("model", "texts", "task", "number", "max_length", "threads")
    options = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in names]
    for number in range(args.rounds):
        for side in sides:
            command = [sys.executable, __file__, f"--side={side}", *options]
            ran = subprocess.run(command, env=environment, capture_output=True, text=True)
            if ran.returncode:
                sys.exit(f"{side} failed:\n{ran.stderr[-3000:]}")
            found[side].append(json.loads(ran.stdout.splitlines()[-1]))
            print(f"round {number + 1}, {side}: {found[side][-1]['rate']:.0f} texts/s", file=sys.stderr, flush=True)
    print("| side | texts/s | lowest to highest | ours is faster by | largest difference |\n|---|---|---|---|---|")
    for side, runs in found.items():
        rates = [run["rate"] for run in runs]
        ratios = [a["rate"] / b["rate"] for a, b in zip(found[sides[0]], runs, strict=True)]
        apart = max(abs(a - b) for a, b in zip(found[sides[0]][0]["results"], runs[0]["results"], strict=True))
        print(
            f"| {side} | {statistics.median(rates):,.0f} | {min(rates):,.0f} to {max(rates):,.0f} "
            f"| {statistics.median(ratios):.2f} | {apart:.1e} |"
        )
    told = found[sides[0]][0]
    print(
        f"\n{args.number:,} texts of {told['shortest']} to {told['longest']} characters (median {told['median']}), cut at "
        f"{args.max_length} tokens on all sides; {args.threads} threads; medians of {args.rounds} rounds."
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    lines = Path(args.texts).read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line.strip()]
    texts = [
        lines[i % len(lines)] for i in np.random.default_rng(0).permutation(max(args.number, len(lines)))[: args.number]
    ]
    run = make_side(args)
    run(texts[:16])
    start = time.perf_counter()
    results = run(texts)
    seconds = time.perf_counter() - start
    lengths = sorted(map(len, texts))
    return {
        "rate": len(texts) / seconds,
        "results": [float(x) for x in results[:200]],
        "shortest": lengths[0],
        "median": lengths[len(lengths) // 2],
        "longest": lengths[-1],
    }


def make_side(args: argparse.Namespace) -> Any:
    """Returns a function from texts to a number each: the probability of the predicted class, or the first place of the vector."""
    name, _, rest = args.side.partition("_")
    size = int(rest.split("_")[-1]) if rest and rest.split("_")[-1].isdecimal() else None
    is_bf16 = "bf16" in rest
    if name == "ours":
        loaded = stemformer.load(args.model, precision="bf16" if is_bf16 else "fp32")
        if args.task == "embed":
            return lambda texts: loaded.embed(texts, max_length=args.max_length)[:, 0]
        assert loaded.problem is not None
        task = loaded.problem.task
        task.config = replace(task.config, max_length=args.max_length, long_texts="cut")
        return lambda texts: [p.score for p in loaded.predict(texts)]
    if name == "encode":
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(args.model, device="cpu")
        model.max_seq_length = args.max_length
        options = {} if size is None else {"batch_size": size}
        return lambda texts: model.encode(texts, show_progress_bar=False, normalize_embeddings=True, **options)[:, 0]
    import transformers

    more = {"dtype": torch.bfloat16} if is_bf16 else {"dtype": torch.float32}
    pipe = transformers.pipeline("text-classification", model=args.model, device="cpu", **more)
    options = {"truncation": True, "max_length": args.max_length, **({} if size is None else {"batch_size": size})}
    return lambda texts: [told["score"] for told in pipe(texts, **options)]


if __name__ == "__main__":
    main()
