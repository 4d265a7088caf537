"""What the command line and Python users call: joins the parts, holds no mathematics."""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import torch

from stemformer.contents import inspect, told_of_data
from stemformer.data.corpus import read_documents, total_bytes
from stemformer.data.shards import write_shards
from stemformer.data.tokenizer import Tokenizer, load_tokenizer, train_wordpiece
from stemformer.errors import CheckpointError, ConfigError, DataError
from stemformer.evaluation.fill import fill_masks, pseudo_log_likelihood
from stemformer.folders import free_folder, refuse_inside
from stemformer.models.model import Model
from stemformer.pretrained import load_with_tokenizer
from stemformer.pretraining import pretrain
from stemformer.progress import Progress, Silent
from stemformer.report.run_report import write_report
from stemformer.training.checkpoint import write_folder
from stemformer.training.compute import autocast, choose_device, choose_precision

__all__ = ["fill", "inspect", "load", "prepare", "pretrain", "quickstart", "report", "train_tokenizer"]


def load(path: str) -> tuple[Model, Tokenizer]:
    """Returns a model, in evaluation mode, and its tokenizer.

    Args:
        path: A Hugging Face folder, a run folder, or a hub id.

    Raises:
        CheckpointError: See `pretrained.load_model`.
    """
    return load_with_tokenizer(path)


def train_tokenizer(
    files: Sequence[str],
    *,
    out: str,
    kind: str = "wordpiece",
    vocab_size: int = 30522,
    lowercase: bool = False,
    documents: str = "auto",
    column: str = "text",
    errors: str = "strict",
    max_characters: int = 100_000_000,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains a tokenizer on text files, saves it, and returns what came of it.

    Args:
        files: Text files, folders, globs or `hub:` data sets.
        out: Folder of the tokenizer.
        kind: `wordpiece`.
        vocab_size: Ids, special ones included.
        lowercase: Fold case and strip accents.
        documents: Where a document of plain text ends; see `data.corpus.read_documents`.
        column: The text column of tables.
        errors: `strict` or `replace`, for bytes that are not UTF-8.
        max_characters: Text to learn from; more is sampled down, so memory stays bounded.
        seed: Of the sample.
        overwrite: Replace what the folder holds.
        progress: Told how far it is.

    Raises:
        ConfigError: A kind that does not exist, or a folder that is not empty.
        DataError: Files that cannot be read.
        TokenizerError: Too little text, or too small a vocabulary.
    """
    progress = progress or Silent()
    if vocab_size < 10:
        raise ConfigError(
            f"--vocab-size {vocab_size}: expected at least 10, for five special tokens and some characters"
        )
    if kind != "wordpiece":
        raise ConfigError(f"--kind {kind}: only wordpiece can be trained; a byte-level BPE can be loaded")
    folder = free_folder(out, overwrite=overwrite)
    refuse_inside(folder, files)
    progress.start("reading text", total=total_bytes(files), unit="bytes")
    skipped: Counter[str] = Counter()
    texts = (
        document.text
        for document in read_documents(
            files, documents=documents, column=column, errors=errors, on_bytes=progress.advance, skipped=skipped
        )
    )
    tokenizer = train_wordpiece(
        texts, vocab_size=vocab_size, lowercase=lowercase, seed=seed, max_characters=max_characters
    )
    write_folder(folder, tokenizer.save)
    progress.finish()
    if tokenizer.vocab_size < vocab_size:
        progress.say(f"the text gives {tokenizer.vocab_size:,} ids, fewer than the {vocab_size:,} asked for")
    return {
        "tokenizer": str(folder),
        "kind": kind,
        "vocab_size": tokenizer.vocab_size,
        "lowercase": lowercase,
        "fingerprint": tokenizer.fingerprint[:16],
        "skipped": dict(skipped),
    }


def prepare(
    files: Sequence[str],
    *,
    tokenizer: str,
    out: str,
    held_out: float = 0.01,
    documents: str = "auto",
    column: str = "text",
    errors: str = "strict",
    words: str = "tokenizer",
    num_workers: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Turns text files into shards, and returns counts of what is in them and of what was skipped.

    Args:
        files: Text files, folders, globs or `hub:` data sets.
        tokenizer: Its folder.
        out: Folder of the shards.
        held_out: Share of documents set aside, chosen by a hash of their bytes.
        documents: As for `train_tokenizer`.
        column: As for `train_tokenizer`.
        errors: As for `train_tokenizer`.
        words: `jieba` finds the words of Chinese, for whole-word and span masking; `tokenizer` takes its characters.
        num_workers: Processes; None takes one a core. The bytes written do not depend on it.
        overwrite: Replace what the folder holds.
        resume: Go on where an interrupted run stopped.
        progress: Told how far it is.

    Raises:
        DataError: Files that cannot be read, or too little text for a held-out split.
        TokenizerError: The tokenizer cannot be read.
    """
    progress = progress or Silent()
    opened = load_tokenizer(tokenizer)
    total = total_bytes(files)
    folder = Path(out) if resume else free_folder(out, overwrite=overwrite)
    refuse_inside(folder, [tokenizer, *files])
    if overwrite and not resume:
        shutil.rmtree(folder, ignore_errors=True)
    progress.start("preparing", total=total, unit="bytes")
    manifest = write_shards(
        files,
        opened,
        folder,
        held_out=held_out,
        documents=documents,
        column=column,
        errors=errors,
        words=words,
        num_workers=num_workers,
        resume=resume,
        on_bytes=progress.advance,
    )
    progress.finish()
    told = told_of_data(out, manifest)
    if told["unknown"] > 0.05:
        progress.say(
            f"{told['unknown']:.0%} of the tokens are [UNK]: this tokenizer was not made for such text (or its words are not parted by "
            "spaces); train one on these files"
        )
    return told


def fill(
    text: Sequence[str],
    *,
    model: str,
    top_k: int = 5,
    among: Sequence[str] | None = None,
    score: bool = False,
    device: str = "auto",
    precision: str = "fp32",
    threads: int | None = None,
) -> list[dict[str, Any]]:
    """Returns the likeliest words for each `[MASK]`, or with `score` how likely each text is as a whole.

    Args:
        text: Texts.
        model: A Hugging Face folder, a run folder, or a hub id.
        top_k: Words a blank.
        among: Words to choose from.
        score: Pseudo-log-likelihoods instead.
        device: `auto`, `cpu`, `cuda` ...
        precision: `fp32` or `bf16`.
        threads: Processor threads.
    """
    if not text:
        raise DataError("no text was given: give sentences with [MASK] in them")
    if score and (among is not None or any("[MASK]" in t for t in text)):
        raise ConfigError(
            "--score rates whole sentences: leave out --among, and put a word in the place of each [MASK]"
        )
    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}: expected at least 1")
    if threads:
        torch.set_num_threads(threads)
    torch_device = choose_device(device)
    opened, tokenizer = load_with_tokenizer(model)
    if "masked_lm" not in opened.heads:
        raise CheckpointError(
            f"{model} has no masked-LM head, so it cannot fill blanks: give a model pre-trained with masked words"
        )
    opened.to(torch_device)
    with autocast(torch_device, choose_precision(precision, torch_device)):
        if score:
            return [asdict(result) for result in pseudo_log_likelihood(text, opened, tokenizer)]
        found = fill_masks(text, opened, tokenizer, top_k=top_k, among=among)
    return [
        {"text": f.text, "masks": [{"candidates": [asdict(c) for c in mask]} for mask in f.masks], "filled": f.filled}
        for f in found
    ]


def quickstart(
    *,
    out: str = "runs/quickstart",
    overwrite: bool = False,
    seed: int = 0,
    device: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Takes the embedded English texts all the way: tokenizer, shards, a very small BERT, and blanks filled with it.

    Args:
        out: Folder of everything that is made.
        overwrite: Replace what it holds.
        seed: Of everything that is random.
        device: As for `pretrain`, like the next two.
        precision: Number format.
        threads: Processor threads.
        progress: Told how far it is.
    """
    progress = progress or Silent()
    folder = free_folder(out, overwrite=overwrite)
    shutil.rmtree(folder, ignore_errors=True)
    texts = [str(package_files("stemformer") / "samples" / "english")]
    tokenizer, data, run = (str(folder / name) for name in ("tokenizer", "data", "run"))
    train_tokenizer(texts, out=tokenizer, vocab_size=4000, lowercase=True, documents="blank", progress=progress)
    prepare(texts, tokenizer=tokenizer, out=data, held_out=0.05, documents="blank", progress=progress)
    ended = pretrain(
        "bert_tiny",
        data=data,
        out=run,
        steps=800,
        seed=seed,
        device=device,
        precision=precision,
        threads=threads,
        progress=progress,
    )
    blanks = ["He looked at the [MASK] and said nothing.", "I have [MASK] seen him before."]
    filled = fill(blanks, model=run, top_k=3)
    return {**ended, "fills": [f"{f['text']} -> {f['filled']}" for f in filled]}


def report(path: str) -> dict[str, Any]:
    """Writes the report of a run anew, also while it is going on, and returns where it is.

    Args:
        path: The run folder.

    Raises:
        DataError: It holds no run.
    """
    return {"report": str(write_report(Path(path)))}
