"""Prediction next to peers: classification by transformers' pipeline, embeddings by sentence-transformers, mixed lengths.

    python benchmarks/predict_vs_peers.py --model CLASSIFIER --texts FILE --task classify
    python benchmarks/predict_vs_peers.py --model BERT --texts FILE --task embed

`FILE` has a text on each line. The clock runs from the list of texts to the list of results: tokenization, batches, model;
not imports and loading. A short warm-up on some of the texts comes first. Sides:

    ours            `stemformer.load(model).predict` or `.embed`, fp32
    ours_bf16       the same in bf16
    pipeline        transformers' pipeline with its default (one text at a time), fp32
    pipeline_N      the same with batch_size N: N texts padded together, in their order
    pipeline_bf16_N the same with the model in bf16
    encode          sentence-transformers' encode with its default (batches of 32, sorted by length), fp32
    encode_N        the same with batch_size N
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import frame
import numpy as np
import torch

import stemformer

SIDES = {
    "classify": ("ours", "ours_bf16", "pipeline", "pipeline_8", "pipeline_32", "pipeline_128", "pipeline_bf16_32"),
    "embed": ("ours", "ours_bf16", "encode", "encode_8", "encode_128"),
}


def main() -> None:
    parser = frame.make_parser(__doc__, ["those listed in this file"], rounds=3, default=None)
    add = parser.add_argument
    add("--model", required=True)
    add("--texts", required=True, help="file with a text on each line")
    add("--task", choices=list(SIDES), default="classify")
    add("--number", type=int, default=2000, help="number of texts")
    add("--max-length", type=int, default=256, help="tokens at which all sides truncate")
    frame.run(
        parser,
        measure,
        report,
        describe=lambda result: f"{result['rate']:.0f} texts/s",
        prepare=prepare,
        environment={"TOKENIZERS_PARALLELISM": "true"},
        requires="--model and --texts",
    )


def prepare(args: argparse.Namespace, folder: Path) -> None:
    args.sides = args.sides or ",".join(SIDES[args.task])


def report(found: frame.Measurements, args: argparse.Namespace) -> None:
    first = next(iter(found.values()))
    rows = [
        (
            side,
            f"{frame.median(runs, 'rate'):,.0f}",
            frame.spread(runs, "rate", ",.0f"),
            f"{frame.speedup(first, runs, 'rate', is_rate=True):.2f}",
            f"{max(abs(a - b) for a, b in zip(first[0]['results'], runs[0]['results'], strict=True)):.1e}",
        )
        for side, runs in found.items()
    ]
    frame.print_table(("side", "texts/s", "range", "ours is faster by", "largest difference"), rows)
    shortest, median, longest = first[0]["lengths"]
    print(
        f"\n{args.number:,} texts of {shortest} to {longest} characters (median {median}), truncated at "
        f"{args.max_length} tokens on all sides; {args.threads} threads; medians of {args.rounds} rounds."
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    lines = [line for line in Path(args.texts).read_text(encoding="utf-8").splitlines() if line.strip()]
    order = np.random.default_rng(0).permutation(max(args.number, len(lines)))[: args.number]
    texts = [lines[i % len(lines)] for i in order]
    run = make_side(args)
    run(texts[:16])
    start = time.perf_counter()
    results = run(texts)
    seconds = time.perf_counter() - start
    lengths = sorted(map(len, texts))
    return {
        "rate": len(texts) / seconds,
        "results": [float(x) for x in results[:200]],
        "lengths": [lengths[0], lengths[len(lengths) // 2], lengths[-1]],
    }


def make_side(args: argparse.Namespace) -> Any:
    """Return a function from texts to a number each: probability of the predicted class, or first dimension of the vector."""
    name, _, rest = args.side.partition("_")
    last = rest.split("_")[-1]
    batch_size = {"batch_size": int(last)} if last.isdecimal() else {}
    is_bf16 = "bf16" in rest
    if name == "ours":
        pipeline = stemformer.load(args.model, precision="bf16" if is_bf16 else "fp32")
        if args.task == "embed":
            return lambda texts: pipeline.embed(texts, max_length=args.max_length)[:, 0]
        assert pipeline.task is not None
        pipeline.task.config = replace(pipeline.task.config, max_length=args.max_length, long_texts="cut")
        return lambda texts: [prediction.score for prediction in pipeline.predict(texts)]
    if name == "encode":
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(args.model, device="cpu")
        model.max_seq_length = args.max_length
        options: dict[str, Any] = {"show_progress_bar": False, "normalize_embeddings": True, **batch_size}
        return lambda texts: model.encode(texts, **options)[:, 0]
    import transformers

    dtype = torch.bfloat16 if is_bf16 else torch.float32
    peer = transformers.pipeline("text-classification", model=args.model, device="cpu", dtype=dtype)
    options = {"truncation": True, "max_length": args.max_length, **batch_size}
    return lambda texts: [result["score"] for result in peer(texts, **options)]


if __name__ == "__main__":
    main()
