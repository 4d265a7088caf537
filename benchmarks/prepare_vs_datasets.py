"""Tokenizing text for pre-training: `stemformer prepare` next to Hugging Face datasets, same tokenizer, text and cores.

    python benchmarks/prepare_vs_datasets.py --text FILES... --tokenizer DIRECTORY

Without options, on the embedded English samples. The clock runs from reading the text to ids on disk. The text is first
written to one JSON Lines file, a document on each line, which all sides read. Sides:

    ours            `stemformer prepare`: documents, sentences, words and ids to shards, with a held-out split
    map             load_dataset and map(tokenizer, batched), one process per core: the first half of the run_mlm example
    map_threads     the same in one process, whose tokenizer has a thread per core
    map_and_group   `map`, then run_mlm's second map, which joins ids and cuts rows of 128: ours does this in training

Memory is the maximum sum of the proportional set sizes of a side's processes, mapped files included. `--grow` also shows
that of ours on ten times the text.
"""

import argparse
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import frame

import stemformer

SIDES = ("ours", "map", "map_threads", "map_and_group")


def main() -> None:
    parser = frame.make_parser(__doc__, SIDES, rounds=3)
    add = parser.add_argument
    add("--text", nargs="+", help="files that `stemformer prepare` reads; default: the embedded English samples")
    add("--tokenizer", help="directory of a tokenizer; default: trained on the samples, 8,000 ids")
    add("--cores", type=int, default=2)
    add("--grow", action="store_true", help="also show the memory of ours on ten times the text")
    frame.run(
        parser,
        lambda args: measure(args.side, Path(args.folder) / "text.jsonl", args),
        report,
        describe=lambda result: f"{result['seconds']:.1f} s",
        prepare=prepare,
        environment={"HF_HUB_OFFLINE": "1"},
    )


def prepare(args: argparse.Namespace, folder: Path) -> None:
    samples = [str(Path(stemformer.__file__).parent / "samples" / "english")]
    if args.tokenizer is None:
        args.tokenizer = str(folder / "tokenizer")
        stemformer.train_tokenizer(args.text or samples, out=args.tokenizer, vocab_size=8000, lowercase=True)
    args.megabytes, args.num_documents = write_json_lines(
        args.text or samples, folder / "text.jsonl", "auto" if args.text else "blank"
    )


def report(found: frame.Measurements, args: argparse.Namespace) -> None:
    grown = ""
    if args.grow:
        text, tenfold = Path(args.folder) / "text.jsonl", Path(args.folder) / "tenfold.jsonl"
        with tenfold.open("wb") as file:
            for _ in range(10):
                file.write(text.read_bytes())
        grown = f"{measure('ours', tenfold, args)['megabytes']:,.0f}"
    print(
        f"{args.megabytes:.0f} MB of text in {args.num_documents:,} documents, {args.cores} cores, medians of "
        f"{args.rounds} rounds\n"
    )
    first = next(iter(found.values()))
    rows = [
        (
            side,
            f"{frame.median(runs, 'seconds'):.1f}",
            frame.spread(runs, "seconds", ".1f"),
            f"{args.megabytes / frame.median(runs, 'seconds'):.1f}",
            f"{frame.speedup(first, runs, 'seconds', is_rate=False):.2f}",
            f"{frame.median(runs, 'megabytes'):,.0f}",
            grown if side == "ours" else "",
        )
        for side, runs in found.items()
    ]
    header = ("side", "seconds", "range", "MB/s", "ours is faster by", "memory, MB", "on ten times the text")
    frame.print_table(header, rows)


def write_json_lines(texts: list[str], file: Path, documents: str) -> tuple[float, int]:
    """Write documents as JSON lines and return their size in MB and their number."""
    from stemformer.data.text.documents import read_documents

    size = number = 0
    with file.open("w", encoding="utf-8") as lines:
        for document in read_documents(texts, documents=documents):
            if document.text.strip():
                lines.write(json.dumps({"text": document.text}, ensure_ascii=False) + "\n")
                size += len(document.text.encode())
                number += 1
    return size / 1e6, number


def measure(side: str, file: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return seconds and maximum memory in MB of a side, which runs in a further process to be watched."""
    out = Path(args.folder) / "out"
    shutil.rmtree(out, ignore_errors=True)
    peak = [0.0]

    def watch(process: "subprocess.Popen[str]") -> None:
        while process.poll() is None:
            peak[0] = max(peak[0], sum(proportional_megabytes(pid) for pid in process_tree(process.pid)))
            time.sleep(0.2)

    environment = {
        "HF_HOME": str(out / "cache"),
        "RAYON_NUM_THREADS": str(args.cores),
        "TOKENIZERS_PARALLELISM": "true" if side == "map_threads" else "false",
    }
    call = f"script.tokenize({side!r}, {str(file)!r}, {str(out)!r}, {args.tokenizer!r}, {args.cores})"
    code = f"import prepare_vs_datasets as script; {call}"
    seconds = frame.run_python(code, threads=args.threads, environment=environment, watch=watch)
    return {"seconds": seconds, "megabytes": peak[0]}


def process_tree(pid: int) -> list[int]:
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


def tokenize(side: str, file: str, out: str, tokenizer_folder: str, cores: int) -> None:
    """Tokenize a file and print the seconds."""
    if side == "ours":
        start = time.perf_counter()
        stemformer.prepare([file], tokenizer=tokenizer_folder, out=out, num_workers=cores)
    else:
        from datasets import load_dataset
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
        num_processes = None if side == "map_threads" else cores
        start = time.perf_counter()
        texts = load_dataset("json", data_files=file, split="train")
        ids = texts.map(
            lambda batch: tokenizer(batch["text"], return_special_tokens_mask=True),
            batched=True,
            num_proc=num_processes,
            remove_columns=["text"],
        )
        if side == "map_and_group":
            ids.map(group, batched=True, num_proc=num_processes)
    print(time.perf_counter() - start)


def group(batch: dict[str, list[list[int]]], length: int = 128) -> dict[str, list[list[int]]]:
    joined = {name: [value for row in rows for value in row] for name, rows in batch.items()}
    end = len(joined["input_ids"]) // length * length
    return {name: [values[a : a + length] for a in range(0, end, length)] for name, values in joined.items()}


if __name__ == "__main__":
    main()
