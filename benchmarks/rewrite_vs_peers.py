"""Rewriting texts by beam search next to transformers' `generate` and CTranslate2.

    python benchmarks/rewrite_vs_peers.py --model runs/french --file test.en --batch 16

`--model` is a fine-tuned BART or mBART, `--file` has a source on each line. The clock runs over all of them, from ids to
ids, in batches of `--batch` sources of similar length, the same on all sides; one batch comes first. Sides, in float32:

    ours         `generation.rewriting.decode_sources`, the making of its decoder included
    generate     transformers' `generate`
    ctranslate2  the folder converted by CTranslate2

Equal: weights, sources, batches, beams, maximum length, threads. The length penalty is 0, so that all rules of stopping
choose the same text. Texts are compared with ours.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctranslate2
import frame
import torch
import transformers

from stemformer.generation.beam_search import BeamConfig
from stemformer.generation.rewriting import decode_sources
from stemformer.huggingface.load import find_model_folder, load_model_and_tokenizer

SIDES = ("ours", "generate", "ctranslate2")

Texts = list[list[int]]


def main() -> None:
    parser = frame.make_parser(__doc__, SIDES, rounds=3)
    add = parser.add_argument
    add("--model", help="folder of a fine-tuned model")
    add("--file", help="a source on each line")
    add("--batch", type=int, default=16)
    add("--beams", type=int, default=4)
    add("--limit", type=int, default=256, help="sources to rewrite")
    add("--longest", type=int, default=60, help="maximum tokens of a text")
    options: dict[str, Any] = {"prepare": prepare, "requires": "--model and --file"}
    frame.run(parser, measure, report, describe=lambda result: f"{result['rate']:.1f} texts/s", **options)


def prepare(args: argparse.Namespace, folder: Path) -> None:
    source = str(find_model_folder(args.model))
    ctranslate2.converters.TransformersConverter(source).convert(str(folder / "ctranslate2"))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    folder = find_model_folder(args.model)
    model, tokenizer = load_model_and_tokenizer(folder)
    lines = Path(args.file).read_text(encoding="utf-8").splitlines()[: args.limit]
    ids = [[tokenizer.cls_token_id, *row.tolist(), tokenizer.sep_token_id] for row in tokenizer.encode_ids(lines)]
    ids = sorted(ids, key=len, reverse=True)
    batches = [ids[start : start + args.batch] for start in range(0, len(ids), args.batch)]
    make = {"ours": make_ours, "generate": make_generate, "ctranslate2": make_ctranslate2}[args.side]
    rewrite = make(args, model, tokenizer, folder)
    rewrite(batches[:1])
    start = time.perf_counter()
    texts = rewrite(batches)
    seconds = time.perf_counter() - start
    return {"rate": len(texts) / seconds, "texts": texts}


def make_ours(args: argparse.Namespace, model: Any, tokenizer: Any, folder: Path) -> Callable[[list[Texts]], Texts]:
    config = BeamConfig(num_beams=args.beams, length_penalty=0.0)
    options: dict[str, Any] = {"batch_size": args.batch, "limit_of": lambda length: args.longest}

    def rewrite(batches: list[Texts]) -> Texts:
        # All at once, as it makes the batches itself, and a decoder for all of them.
        sources = [ids for batch in batches for ids in batch]
        return [found[0].ids for found in decode_sources(sources, model, config, **options)]

    return rewrite


def make_generate(args: argparse.Namespace, model: Any, tokenizer: Any, folder: Path) -> Callable[[list[Texts]], Texts]:
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    pad = tokenizer.pad_token_id
    options = {"num_beams": args.beams, "max_new_tokens": args.longest, "length_penalty": 0.0, "do_sample": False}

    @torch.inference_mode()
    def rewrite_batch(batch: Texts) -> Texts:
        longest = max(map(len, batch))
        padded = torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in batch])
        start = torch.tensor([[tokenizer.sep_token_id, tokenizer.cls_token_id]]).expand(len(batch), 2)
        mask = (padded != pad).long()
        found = theirs.generate(padded, attention_mask=mask, decoder_input_ids=start, **options)
        return [_before_end(row[2:].tolist(), tokenizer.sep_token_id) for row in found]

    return lambda batches: [text for batch in batches for text in rewrite_batch(batch)]


def make_ctranslate2(
    args: argparse.Namespace, model: Any, tokenizer: Any, folder: Path
) -> Callable[[list[Texts]], Texts]:
    options = {"device": "cpu", "compute_type": "float32", "inter_threads": 1, "intra_threads": args.threads}
    translator = ctranslate2.Translator(f"{args.folder}/ctranslate2", **options)
    # Their maximum length counts the first token.
    settings = {"beam_size": args.beams, "length_penalty": 0.0, "max_decoding_length": args.longest + 1}
    start = tokenizer.tokens[tokenizer.cls_token_id]

    def rewrite_batch(batch: Texts) -> Texts:
        tokens = [[tokenizer.tokens[i] for i in ids] for ids in batch]
        results = translator.translate_batch(tokens, target_prefix=[[start]] * len(batch), **settings)
        return [[tokenizer.token_to_id(token) for token in result.hypotheses[0][1:]] for result in results]

    return lambda batches: [text for batch in batches for text in rewrite_batch(batch)]


def _before_end(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


def report(found: frame.Measurements, args: argparse.Namespace) -> None:
    ours = found["ours"]
    rows = []
    for side, runs in found.items():
        same = statistics.mean(a == b for a, b in zip(ours[0]["texts"], runs[0]["texts"], strict=True))
        rate, speedup = frame.median(runs, "rate"), frame.speedup(ours, runs, "rate", is_rate=True)
        rows.append((side, f"{rate:.1f}", frame.spread(runs, "rate", ".1f"), f"{speedup:.2f}", f"{same:.1%}"))
    frame.print_table(("side", "texts/s", "range", "ours is faster by", "same texts"), rows)
    number = len(ours[0]["texts"])
    print(f"\n{number} texts, batch {args.batch}, {args.beams} beams, {args.threads} threads, {args.rounds} rounds.")


if __name__ == "__main__":
    main()
