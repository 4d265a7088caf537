"""Preparing text for pre-training: `stemformer prepare` beside Hugging Face datasets, with the same tokenizer, text and cores.

    python benchmarks/prepare_vs_datasets.py --text FILES... --tokenizer FOLDER

Each measurement is a process of its own, from reading the text to ids that lie on disk; sides take turns. The text is brought into one
JSON Lines file first, a document a line, which all sides read. Sides:

    ours            `stemformer prepare`: documents, sentences, words and ids to shards, with held-out documents set aside
    map             load_dataset and map(tokenizer, batched), a process a core: the first half of transformers' run_mlm example
    map_threads     the same in one process, whose tokenizer has a thread a core
    map_and_group   `map`, then run_mlm's second map, which joins ids and cuts rows of 128: what ours does at training time

Memory is the highest sum of the proportional set sizes of a side's processes, files that they have mapped included. `--grow` shows that
of ours at ten times the text too.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import stemformer

SIDES = ("ours", "map", "map_threads", "map_and_group")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--text", nargs="+", help="whatever `stemformer prepare` reads; else the embedded English samples")
    add("--tokenizer", help="its folder; else one of 8,000 ids, learned from the samples")
    add("--cores", type=int, default=2)
    add("--rounds", type=int, default=3)
    add("--sides", default=",".join(SIDES))
    add("--grow", action="store_true", help="memory of ours on ten times the text as well")
    add("--side", help=argparse.SUPPRESS)
    add("--json-lines", help=argparse.SUPPRESS)
    add("--out", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return run(args)
    if not (args.text and args.tokenizer):
        from pretrain_vs_transformers import prepared_samples

        args.text = args.text or [str(Path(stemformer.__file__).parent / "samples" / "english")]
        args.tokenizer = args.tokenizer or f"{prepared_samples()}/tokenizer"
    with tempfile.TemporaryDirectory(prefix="stemformer-bench-") as folder:
        compare(args, Path(folder))


def compare(args: argparse.Namespace, folder: Path) -> None:
    whole, tenfold = folder / "whole.jsonl", folder / "tenfold.jsonl"
    megabytes, num_documents = write_json_lines(args.text, whole)
    sides = ["ours", *(side for side in args.sides.split(",") if side != "ours")]
    found: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for number in range(args.rounds):
        for side in sides:
            found[side].append(measure(side, whole, args, folder))
            print(f"round {number + 1}, {side}: {found[side][-1][0]:.1f} s", file=sys.stderr, flush=True)
    grown = None
    if args.grow:
        with tenfold.open("wb") as file:
            for _ in range(10):
                file.write(whole.read_bytes())
        grown = measure("ours", tenfold, args, folder)[1]
    print(
        f"{megabytes:.0f} MB of text in {num_documents:,} documents, {args.cores} cores, medians of {args.rounds} rounds\n"
    )
    print("| side | seconds | lowest to highest | MB/s | ours is faster by | memory, MB | on ten times the text |")
    print("|---" * 7 + "|")
    for side, measured in found.items():
        seconds = [m[0] for m in measured]
        ratio = statistics.median(m[0] / o[0] for m, o in zip(measured, found["ours"], strict=True))
        middle = statistics.median(seconds)
        memory = statistics.median(m[1] for m in measured)
        of_more = f"{grown:,.0f}" if side == "ours" and grown is not None else ""
        print(
            f"| {side} | {middle:.1f} | {min(seconds):.1f} to {max(seconds):.1f} | {megabytes / middle:.1f} | {ratio:.2f} "
            f"| {memory:,.0f} | {of_more} |"
        )


def write_json_lines(texts: list[str], file: Path) -> tuple[float, int]:
    from stemformer.data.text.documents import read_documents

    size = number = 0
    with file.open("w", encoding="utf-8") as lines:
        for document in read_documents(texts):
            if document.text.strip():
                lines.write(json.dumps({"text": document.text}, ensure_ascii=False) + "\n")
                size += len(document.text.encode())
                number += 1
    return size / 1e6, number


def measure(side: str, file: Path, args: argparse.Namespace, folder: Path) -> tuple[float, float]:
    """Returns seconds and the highest memory in MB of one run in a process of its own."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    options = [
        f"--side={side}",
        f"--json-lines={file}",
        f"--out={out}",
        f"--tokenizer={args.tokenizer}",
        f"--cores={args.cores}",
    ]
    environment = {
        **os.environ,
        "HF_HOME": str(out / "cache"),
        "RAYON_NUM_THREADS": str(args.cores),
        "HF_HUB_OFFLINE": "1",
    }
    environment["TOKENIZERS_PARALLELISM"] = "true" if side == "map_threads" else "false"
    process = subprocess.Popen(
        [sys.executable, __file__, "--text=none", *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    highest = [0.0]
    watcher = threading.Thread(target=watch, args=(process, highest), daemon=True)
    watcher.start()
    stdout, stderr = process.communicate()
    if process.returncode:
        sys.exit(f"{side} failed:\n{stderr[-3000:]}")
    watcher.join()
    return float(stdout.splitlines()[-1]), highest[0]


def watch(process: subprocess.Popen[str], highest: list[float]) -> None:
    while process.poll() is None:
        highest[0] = max(highest[0], sum(proportional_megabytes(pid) for pid in family(process.pid)))
        time.sleep(0.2)


def family(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def proportional_megabytes(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/smaps_rollup").read_text().split("Pss:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        return 0.0


def run(args: argparse.Namespace) -> None:
    if args.side == "ours":
        began = time.perf_counter()
        stemformer.prepare([args.json_lines], tokenizer=args.tokenizer, out=args.out, num_workers=args.cores)
    else:
        from datasets import load_dataset
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
        processes = None if args.side == "map_threads" else args.cores
        began = time.perf_counter()
        texts = load_dataset("json", data_files=args.json_lines, split="train")
        ids = texts.map(
            lambda batch: tokenizer(batch["text"], return_special_tokens_mask=True),
            batched=True,
            num_proc=processes,
            remove_columns=["text"],
        )
        if args.side == "map_and_group":
            ids.map(group, batched=True, num_proc=processes)
    print(time.perf_counter() - began)


def group(batch: dict[str, list[list[int]]], length: int = 128) -> dict[str, list[list[int]]]:
    joined = {name: [value for row in rows for value in row] for name, rows in batch.items()}
    end = len(joined["input_ids"]) // length * length
    return {name: [values[a : a + length] for a in range(0, end, length)] for name, values in joined.items()}


if __name__ == "__main__":
    main()
