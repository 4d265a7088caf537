"""What the command line and Python users call: joins the parts, holds no mathematics."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import torch

from stemformer.benchmarking import glue, squad
from stemformer.comparing import compare
from stemformer.config import check_seed, nearest
from stemformer.contents import inspect, is_finetuned, told_of_data
from stemformer.data.corpus import read_documents, total_bytes
from stemformer.data.shards import write_shards
from stemformer.data.synthetic import find_synthetic, write_synthetic
from stemformer.data.tokenizer import extend_wordpiece, load_tokenizer, train_byte_bpe, train_wordpiece
from stemformer.errors import CheckpointError, ConfigError, DataError
from stemformer.evaluation.fill import fill_masks, pseudo_log_likelihood
from stemformer.finetuning import finetune
from stemformer.folders import alone, empty, free_folder, refuse_existing, refuse_inside
from stemformer.generation.decode import DecodingConfig
from stemformer.generation.texts import continue_texts
from stemformer.models.cached import CachedGpt
from stemformer.planning import plan
from stemformer.predicting import evaluate, load, predict
from stemformer.pretrained import find_folder, load_with_tokenizer
from stemformer.pretraining import pretrain
from stemformer.progress import Progress, Silent
from stemformer.prompting import list_tasks, prompt, show_prompts
from stemformer.report.run_report import write_report
from stemformer.report.task_report import report_of_run
from stemformer.scaling import scale
from stemformer.training.checkpoint import write_folder
from stemformer.training.compute import autocast, choose_device, choose_precision, keep_freed_memory, use_threads
from stemformer.training.log import read_log

__all__ = [
    "compare",
    "evaluate",
    "fill",
    "finetune",
    "generate",
    "generate_each",
    "glue",
    "inspect",
    "list_tasks",
    "load",
    "plan",
    "predict",
    "prepare",
    "pretrain",
    "prompt",
    "quickstart",
    "report",
    "scale",
    "show_prompts",
    "squad",
    "synthetic",
    "train_tokenizer",
]

_FEW_HELD_OUT_TOKENS = 1000
"""Fewer are remarked upon: their mean loss has a standard error of 3 % of a token's own deviation, or more."""


def train_tokenizer(
    files: Sequence[str],
    *,
    out: str,
    init: str | None = None,
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
        init: A model or tokenizer whose vocabulary is kept, and whole words of the texts added to it up to `vocab_size`.
        kind: `wordpiece`, as in BERT, or `bpe`, of bytes, as in GPT-2.
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
    if kind not in ("wordpiece", "bpe"):
        raise ConfigError(f"--kind {kind}: expected wordpiece or bpe")
    if max_characters < 1:
        raise ConfigError(f"--max-characters {max_characters}: expected at least 1")
    check_seed(seed)
    if kind == "bpe" and (lowercase or init is not None):
        raise ConfigError("--kind bpe keeps every byte as it is and starts anew: leave --lowercase and --init out")
    if init is not None and lowercase:
        raise ConfigError("--lowercase has no effect beside --init: the given vocabulary says whether case is folded")
    folder = free_folder(out, overwrite=overwrite)
    old = (
        None if init is None else load_tokenizer(init if Path(init, "tokenizer.json").is_file() else find_folder(init))
    )
    refuse_inside(folder, [*files, *([init] if init and Path(init).exists() else [])])
    progress.start("reading text", total=total_bytes(files), unit="bytes")
    skipped: Counter[str] = Counter()
    texts = (
        document.text
        for document in read_documents(
            files, documents=documents, column=column, errors=errors, on_bytes=progress.advance, skipped=skipped
        )
    )
    sample: dict[str, Any] = {"vocab_size": vocab_size, "seed": seed, "max_characters": max_characters}
    if kind == "bpe":
        tokenizer = train_byte_bpe(texts, **sample)
    elif old is None:
        tokenizer = train_wordpiece(texts, lowercase=lowercase, **sample)
    else:
        tokenizer = extend_wordpiece(old, texts, **sample)
    write_folder(folder, tokenizer.save)
    progress.finish()
    if tokenizer.vocab_size < vocab_size:
        progress.say(f"the text gives {tokenizer.vocab_size:,} ids, fewer than the {vocab_size:,} asked for")
    return {
        "tokenizer": str(folder),
        "kind": kind,
        "vocab_size": tokenizer.vocab_size,
        **({} if old is None else {"added": tokenizer.vocab_size - old.vocab_size}),
        "lowercase": tokenizer.lowercase,
        "fingerprint": tokenizer.fingerprint[:16],
        "skipped": dict(skipped),
    }


def synthetic(
    *,
    out: str,
    documents: int = 20_000,
    tasks: Sequence[str] = (),
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes synthetic in-context tasks as JSON lines, to be mixed into the texts of pre-training, and returns what they are.

    Args:
        out: The file, .jsonl: a line a document, with `text` and `task`.
        documents: How many; each is an episode of 8 to 40 pairs that follow one rule.
        tasks: Names in `data.synthetic.SYNTHETIC_TASKS`, which take turns; all by default.
        seed: Of everything that is drawn.
        overwrite: Replace the file.
        progress: Told how far it is.

    Raises:
        ConfigError: The file exists or is not named .jsonl, a task that does not exist, or no document is asked for.
    """
    progress = progress or Silent()
    path = Path(out)
    if path.suffix != ".jsonl":
        raise ConfigError(f"--out {out}: the documents are JSON lines: give a name that ends with .jsonl")
    check_seed(seed)
    refuse_existing(out, overwrite=overwrite)
    chosen = find_synthetic(tasks)
    path.parent.mkdir(parents=True, exist_ok=True)
    progress.start("drawing", total=documents, unit="documents")
    counted = write_synthetic(path, documents, seed=seed, tasks=tasks, on_document=progress.advance)
    progress.finish()
    rows = [
        {"task": t.name, "documents": counted.get(t.name, 0), "chance": round(t.chance, 3), "what": t.description}
        for t in chosen
    ]
    return {"file": out, "documents": documents, "bytes": path.stat().st_size, "tasks": rows}


_LEAST_SHARE, _LARGEST_SHARE, _HELD_OUT_BYTES = 0.01, 0.1, 100_000


def _usual_share(num_bytes: int | None) -> float:
    """Returns which share of the documents is held out of so much text, where nobody says."""
    if not num_bytes:
        return _LEAST_SHARE
    return min(_LARGEST_SHARE, max(_LEAST_SHARE, round(_HELD_OUT_BYTES / num_bytes, 3)))


@alone
def prepare(
    files: Sequence[str],
    *,
    tokenizer: str,
    out: str,
    held_out: float | None = None,
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
        held_out: Share of documents set aside, chosen by a hash of their bytes; by default a hundredth, of short text as much as makes
            100 kB, a tenth at most.
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
    folder = free_folder(out, resume=resume, overwrite=overwrite)
    refuse_inside(folder, [tokenizer, *files])
    if overwrite:
        empty(folder)
    if resume and not any((folder / name).exists() for name in ("progress.jsonl", "manifest.json")):
        progress.say(f"{folder} holds nothing to go on from: the work begins")
    share = _usual_share(total) if held_out is None else held_out
    if held_out is None and share > _LEAST_SHARE:
        progress.say(f"the text is short, so {share:.1%} of the documents are held out (--held-out to change)")
    progress.start("preparing", total=total, unit="bytes")
    manifest = write_shards(
        files,
        opened,
        folder,
        held_out=share,
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
    kept = manifest.splits.get("held_out")
    if kept is not None and kept.tokens < _FEW_HELD_OUT_TOKENS:
        progress.say(
            f"the held-out part has only {kept.tokens:,} tokens (documents: {kept.documents:,}), on which a loss says little: raise "
            "--held-out, or part the text into more documents (--documents line or blank)"
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
    use_threads(threads)
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


def generate(
    prompts: Sequence[str],
    *,
    model: str,
    stop: Sequence[str] = (),
    device: str = "auto",
    precision: str = "fp32",
    threads: int | None = None,
    batch_size: int = 32,
    on_text: Callable[[int, str], None] | None = None,
    on_result: Callable[[dict[str, Any]], None] | None = None,
    progress: Progress | None = None,
    **decoding: Any,
) -> list[dict[str, Any]]:
    """Returns how a model goes on with each prompt.

    Args:
        prompts: Texts; an empty one begins a document.
        model: A GPT-2 folder or hub id.
        stop: Strings before which a text ends.
        device: `auto`, `cpu`, `cuda` ...
        precision: `fp32` or `bf16`; weights are converted.
        threads: Processor threads.
        batch_size: Texts that are written at the same time; what becomes of each does not depend on it, but for rounding.
        on_text: Told the number of a prompt and what was just written.
        on_result: Told each result as soon as it is there, in the prompts' order.
        progress: Told how far it is.
        decoding: Fields of `generation.decode.DecodingConfig`, such as `max_new_tokens`, `temperature`, `top_p`, `num_beams`, `seed`.

    Raises:
        ConfigError: Settings out of range, or a model that does not generate.
        DataError: No prompt, one that is no text, or one that is too long for the new tokens.
    """
    if isinstance(prompts, str) or not prompts:
        raise DataError("no list of prompts was given: give [text]")
    for number, text in enumerate(prompts, start=1):
        if not isinstance(text, str):
            raise DataError(f"prompt {number} is {text!r}: expected a text")
        if any("\ud800" <= character <= "\udfff" for character in text):  # what Python makes of bytes that are no text
            raise DataError(f"prompt {number} is no UTF-8: convert it first")
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}: expected at least 1")
    progress = progress or Silent()
    go_on = _generator(model, decoding, stop=stop, device=device, precision=precision, threads=threads, on_text=on_text)
    progress.start("writing", total=len(prompts), unit="texts")
    results = []
    for result in go_on(prompts, batch_size):
        results.append(result)
        progress.advance(1)
        if on_result is not None:
            on_result(result)
    progress.finish()
    return results


def generate_each(
    prompts: Iterable[str],
    *,
    model: str,
    stop: Sequence[str] = (),
    device: str = "auto",
    precision: str = "fp32",
    threads: int | None = None,
    on_text: Callable[[int, str], None] | None = None,
    on_error: Callable[[DataError], None] | None = None,
    **decoding: Any,
) -> Iterator[dict[str, Any]]:
    """Yields how a model goes on with each prompt as it comes, so that a person can type them; the arguments are those of `generate`.

    Args:
        prompts: Asked for one by one.
        model: A GPT-2 folder or hub id.
        stop: Strings before which a text ends.
        device: `auto`, `cpu`, `cuda` ...
        precision: `fp32` or `bf16`.
        threads: Processor threads.
        on_text: Told 0 and what was just written.
        on_error: Told of a prompt that cannot be gone on with, such as one that is too long, and the next one is asked for.
        decoding: Fields of `generation.decode.DecodingConfig`.
    """
    go_on = _generator(
        model, decoding, stop=stop, device=device, precision=precision, threads=threads, on_text=on_text, is_kept=True
    )
    for text in prompts:
        try:
            yield from go_on([text], 1)
        except DataError as error:
            if on_error is None:
                raise
            on_error(error)


def _generator(
    model: str,
    decoding: dict[str, Any],
    *,
    stop: Sequence[str],
    device: str,
    precision: str,
    threads: int | None,
    on_text: Callable[[int, str], None] | None,
    is_kept: bool = False,
) -> Callable[[Sequence[str], int], Iterator[dict[str, Any]]]:
    """Returns what goes on with prompts, so many at a time; the model is loaded once, and if it is kept, laid out once."""
    for name in decoding:
        if name not in (known := DecodingConfig.__dataclass_fields__):
            raise ConfigError(
                f"generate has no option {name!r}{nearest(name, known)}: expected one of {', '.join(known)}"
            )
    config = DecodingConfig(**decoding)
    use_threads(threads)
    torch_device = choose_device(device)
    opened, tokenizer = load_with_tokenizer(model)
    if "causal_lm" not in opened.heads:
        raise ConfigError(f"{model} was not trained on the next word, so it cannot generate: give a GPT")
    keep_freed_memory(torch_device)
    opened.to(torch_device, torch.bfloat16 if choose_precision(precision, torch_device) == "bf16" else torch.float32)
    reader = CachedGpt(opened, rows=config.num_beams) if is_kept else opened
    return lambda prompts, batch_size: map(
        asdict,
        continue_texts(prompts, reader, tokenizer, config, batch_size=batch_size, stop=stop, on_text=on_text),
    )


@alone
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
    """Takes the embedded English and Chinese texts all the way: tokenizer, shards, a very small BERT, blanks filled, a report.

    Args:
        out: Folder of everything that is made.
        overwrite: Replace what it holds.
        seed: Of everything that is random.
        device: As for `pretrain`, like the next two.
        precision: Number format.
        threads: Processor threads.
        progress: Told how far it is.

    Returns:
        How training ended, `blanks` (held-out sentences, the hidden word, and what was put there before and after), and what to do `next`.
    """
    progress = progress or Silent()
    folder = free_folder(out, overwrite=overwrite)
    empty(folder)
    samples = package_files("stemformer") / "samples"
    texts = [str(samples / language) for language in ("english", "chinese")]
    tokenizer, data, run = (str(folder / name) for name in ("tokenizer", "data", "run"))
    train_tokenizer(texts, out=tokenizer, vocab_size=6000, lowercase=True, documents="blank", progress=progress)
    prepare(texts, tokenizer=tokenizer, out=data, held_out=0.05, documents="blank", progress=progress)
    ended = pretrain(
        "bert_tiny",
        data=data,
        out=run,
        time=_QUICKSTART_SECONDS,
        settings=_QUICKSTART_SETTINGS,
        seed=seed,
        device=device,
        precision=precision,
        threads=threads,
        progress=progress,
    )
    first, last = (fills["fills"] for fills in _first_and_last(read_log(Path(run) / "log.jsonl"), "fills"))
    blanks = [
        {"sentence": a["text"], "hidden": a["answer"], "before": a["guess"], "after": b["guess"]}
        for a, b in zip(first[:_QUICKSTART_BLANKS], last, strict=False)
    ]
    steps = [
        f"open {ended['report']} in a browser",
        f'stemformer fill "He [MASK] the door and went out." --model {run}',
        f"stemformer pretrain --data {data} --out {run} --resume --time 10m   (goes on, and learns more)",
        "stemformer tokenizer my_texts/ --out tokenizer   (the same with your own text: see the README)",
    ]
    return {**ended, "blanks": blanks, "next": steps}


_QUICKSTART_SECONDS = 200
_QUICKSTART_SETTINGS = [  # short rows: the model finds out soonest that neighbours matter (docs/log.md)
    *["batch.row_length=32", "batch.rows=64", "schedule.warmup_steps=50"],
    *["evaluation.rows=128", "evaluation.blanks=200"],
]
_QUICKSTART_BLANKS = 12


def _first_and_last(lines: list[dict[str, Any]], kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    found = [line for line in lines if line["kind"] == kind]
    return found[0], found[-1]


def report(path: str) -> dict[str, Any]:
    """Writes the report of a run anew, also while it is going on, and returns where it is; that of a fine-tuned model stays as it is.

    Args:
        path: The run folder.

    Raises:
        DataError: It holds no run.
    """
    folder = Path(path)
    if (folder / "report.html").is_file() and not (
        folder / "log.jsonl"
    ).is_file():  # of a comparison, a benchmark, several sizes
        return {"report": str(folder / "report.html")}
    return {"report": str(report_of_run(folder) if is_finetuned(folder) else write_report(folder))}
