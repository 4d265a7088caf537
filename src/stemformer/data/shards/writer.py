"""`progress.jsonl`: how far the writing of a data folder has come, so that an interrupted run can go on.

Its first line is the plan, each further line a block whose files are on the disk. It is there only until the manifest
is written.
"""

import io
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path

import msgspec
import numpy as np

from stemformer.data.shards.encoding import (
    DocumentBatch,
    EncodedBatch,
    EncodedSplit,
    cut_batches,
    encode_in_order,
    id_dtype,
)
from stemformer.data.shards.manifest import (
    FORMAT_VERSION,
    SPLITS,
    Counts,
    InputRecord,
    Manifest,
    Settings,
    add_counts,
    check_files,
    describe_inputs,
    read_manifest,
    with_fingerprint,
    write_manifest,
)
from stemformer.data.text.documents import read_documents
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.data.tokenization.word_segmentation import load_segmenter
from stemformer.errors import ConfigError, DataError
from stemformer.io import FileRecord, write_file


@dataclass(frozen=True)
class Plan:
    """What must be the same to go on; the fields are those of `Manifest`."""

    format_version: int
    tokenizer_fingerprint: str
    vocab_size: int
    settings: Settings
    inputs: tuple[InputRecord, ...]


@dataclass(frozen=True)
class Block:
    """A run of documents that is finished.

    Args:
        documents: How many, those without a token included.
        num_empty: How many had no token.
        text_sha256: Over all documents of the corpus up to the end of this block.
        splits: What each split got.
        files: What was written.
    """

    documents: int
    num_empty: int
    text_sha256: str
    splits: dict[str, Counts]
    files: dict[str, FileRecord]


def begin_progress(out: Path, plan: Plan) -> None:
    """Writes the file with its first line."""
    write_file(out / "progress.jsonl", [msgspec.json.encode(plan) + b"\n"])


def append_block(out: Path, block: Block) -> None:
    """Adds a line, and waits until it is on the disk; the files it tells of must be there already."""
    with (out / "progress.jsonl").open("ab") as file:
        file.write(msgspec.json.encode(block) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_progress(out: Path) -> tuple[Plan, list[Block]]:
    """Returns the plan and the finished blocks; takes away a last line that was being written.

    Raises:
        DataError: The file is damaged.
    """
    path = out / "progress.jsonl"
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    lines = whole.splitlines()
    try:
        plan = msgspec.json.decode(lines[0], type=Plan)
        blocks = [msgspec.json.decode(line, type=Block) for line in lines[1:]]
    except (IndexError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): prepare again with --overwrite", damaged=True) from error
    if whole != text:
        write_file(path, [whole])
    return plan, blocks


def check_same(out: Path, before: Plan, now: Plan) -> None:
    """Refuses to go on with other arguments.

    Args:
        out: The folder, for the message.
        before: With what it was begun.
        now: What is given.

    Raises:
        DataError: Names the first that differs, and both values.
    """
    settings = asdict(now.settings)
    compared = [
        ("format", before.format_version, now.format_version),
        ("tokenizer", *(f"{plan.tokenizer_fingerprint[:12]} ({plan.vocab_size:,} ids)" for plan in (before, now))),
        *((name, old, settings[name]) for name, old in asdict(before.settings).items()),
        *(("input", _name(old), _name(new)) for old, new in zip_longest(before.inputs, now.inputs)),
    ]
    for name, old, new in compared:
        if old != new:
            message = f"{out} was begun with {name} {old}, now {new} is given"
            raise DataError(f"{message}: resume with the same, or prepare again with --overwrite")


def _name(record: InputRecord | None) -> str:
    return "none" if record is None else f"{record.name} of {record.bytes} bytes"


def write_shards(
    inputs: Sequence[str | Path],
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    held_out: float = 0.01,
    documents: str = "auto",
    column: str = "text",
    errors: str = "strict",
    words: str = "tokenizer",
    num_workers: int | None = None,
    block_characters: int = 64_000_000,
    resume: bool = False,
    on_bytes: Callable[[int], None] | None = None,
) -> Manifest:
    """Writes a prepared data folder and returns its manifest.

    Args:
        inputs: Files, folders or hub data sets, as `read_documents` takes them.
        tokenizer: Saved beside the shards.
        out: A folder that is empty or not there yet.
        held_out: Fraction of the documents to keep from training, 0 to below 1; chosen by a hash of their bytes.
        documents: What separates documents in a text file, as for `read_documents`.
        column: Where the text is in a table, as for `read_documents`.
        errors: What to do with bytes that are no text, as for `read_documents`.
        words: What finds words, a name of `words.SEGMENTERS`.
        num_workers: Processes; by default one for each core this process may use. 1 starts none.
        block_characters: Length of a block. Larger ones need more memory, a few bytes for each of their tokens.
        resume: Go on with what an interrupted run with the same arguments left in `out`.
        on_bytes: Told how many bytes of the inputs were read since the last call, for a progress bar.

    Raises:
        ConfigError: A number outside its range.
        DataError: `out` is not empty; with `resume`, the inputs or settings are others; a split would be empty.
        OSError: The disk is full, say. With `resume` a later run goes on behind the last whole block.

    Example:
        >>> manifest = write_shards(["books.txt"], tokenizer, "data", held_out=0.05)  # doctest: +SKIP
        >>> manifest.splits["train"].tokens  # doctest: +SKIP
        1843200
    """
    if not 0 <= held_out < 1:
        raise ConfigError(f"held_out is {held_out}, expected a fraction from 0 to below 1, such as 0.01")
    if block_characters < 1:
        raise ConfigError(f"block_characters is {block_characters}, expected at least 1, such as 64000000")
    load_segmenter(words)
    settings = Settings(float(held_out), documents, column, errors, block_characters, words)
    vocab_size = tokenizer.vocab_size
    out = Path(out)
    plan = Plan(FORMAT_VERSION, tokenizer.fingerprint, vocab_size, settings, describe_inputs(inputs, out))
    if resume and (out / "manifest.json").exists():
        return _check_complete(out, plan)
    blocks = _go_on(out, plan) if resume and (out / "progress.jsonl").exists() else _begin(out, plan, resume=resume)
    try:
        _save_tokenizer(tokenizer, out / "tokenizer")
        skipped: Counter[str] = Counter()
        stream = read_documents(
            inputs, documents=documents, column=column, errors=errors, on_bytes=on_bytes, skipped=skipped
        )
        batches = _behind(cut_batches((document.text for document in stream), block_characters), blocks)
        encoded = encode_in_order(
            batches,
            tokenizer,
            tokenizer_folder=out / "tokenizer",
            held_out=held_out,
            words=words,
            num_workers=num_workers,
        )
        with closing(encoded):
            parts: list[EncodedBatch] = []
            for batch, part in encoded:
                parts.append(part)
                if batch.is_last:
                    blocks.append(_write_block(out, batch, parts))
                    parts = []
        return _finish(out, plan, blocks, skipped)
    except BaseException:
        if not blocks:  # nothing was gained yet: leave no folder that is in the way of the next try
            _remove(out)
        raise


def _begin(out: Path, plan: Plan, *, resume: bool) -> list[Block]:
    """Makes the folder with the first line of its progress."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file, expected an empty folder: choose another --out")
    found = sorted(path.name for path in out.iterdir()) if out.exists() else []
    if resume:
        found = [name for name in found if name != "progress.jsonl.tmp"]  # of a run that was killed at its very start
    if found:
        what, do = f"is not empty (it has {found[0]})", "choose another --out, or --overwrite"
        if "manifest.json" in found:
            what = "holds prepared data already"
        elif "progress.jsonl" in found:
            what, do = "holds data whose preparing was interrupted", "go on with --resume, or --overwrite"
        elif resume:
            what = f"holds nothing to resume (it has {found[0]}, no progress.jsonl)"
        raise DataError(f"{out} {what}: {do}")
    out.mkdir(parents=True, exist_ok=True)
    begin_progress(out, plan)
    return []


def _go_on(out: Path, plan: Plan) -> list[Block]:
    """Returns the finished blocks of an interrupted run, and removes what it left half-done."""
    before, blocks = read_progress(out)
    check_same(out, before, plan)
    files = {name: record for block in blocks for name, record in block.files.items()}
    check_files(out, files, verify=False)
    for split in SPLITS:
        for file in (out / split).glob("*"):
            if f"{split}/{file.name}" not in files:
                file.unlink()
    for temporary in out.glob("*.tmp"):
        temporary.unlink()
    return blocks


def _check_complete(out: Path, plan: Plan) -> Manifest:
    """Returns the manifest of a run that came to its end, perhaps just before it could tidy up."""
    manifest = read_manifest(out)
    before = Plan(
        manifest.format_version,
        manifest.tokenizer_fingerprint,
        manifest.vocab_size,
        manifest.settings,
        manifest.inputs,
    )
    check_same(out, before, plan)
    (out / "progress.jsonl").unlink(missing_ok=True)
    return manifest


def _behind(batches: Iterable[DocumentBatch], finished: Sequence[Block]) -> Iterator[DocumentBatch]:
    """Yields the batches behind the finished blocks, once those turn out to be of the same text."""
    finished = tuple(finished)
    num_same = 0
    for batch in batches:
        if batch.block >= len(finished):
            yield batch
        elif batch.is_last:
            block = finished[batch.block]
            if (batch.num_documents, batch.text_sha256) != (block.documents, block.text_sha256):
                break
            num_same += 1
    if num_same < len(finished):
        raise DataError(
            f"the text of the inputs has changed since this folder was begun (in documents "
            f"{sum(block.documents for block in finished[:num_same]) + 1:,} and on): prepare again with --overwrite"
        )


def _save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    if folder.exists():  # perhaps half-written
        shutil.rmtree(folder)
    tokenizer.save(folder)


def _write_block(out: Path, last: DocumentBatch, parts: list[EncodedBatch]) -> Block:
    """Writes the shards of one block, then its line of progress."""
    counts: dict[str, Counts] = {}
    files: dict[str, FileRecord] = {}
    for split in SPLITS:
        pieces = [part.splits[split] for part in parts if split in part.splits]
        if not pieces:
            continue
        counts[split] = Counts()
        for piece in pieces:
            counts[split] = add_counts(counts[split], piece.counts)
        (out / split).mkdir(exist_ok=True)
        for suffix, content in _shard_files(pieces).items():
            name = f"{split}/shard-{last.block:05d}.{suffix}"
            files[name] = write_file(out / name, content)
    block = Block(last.num_documents, sum(part.num_empty for part in parts), last.text_sha256, counts, files)
    append_block(out, block)
    return block


def _shard_files(pieces: list[EncodedSplit]) -> dict[str, list[np.ndarray]]:
    """Returns the content of each file of a shard, as arrays to be written one after the other."""
    lengths = np.array([len(piece.ids) for piece in pieces], np.int64)
    end = np.array([lengths.sum()], "<u8")
    bases = np.cumsum(lengths) - lengths
    placed = list(zip(pieces, bases, strict=True))
    words = np.concatenate([piece.word_starts for piece in pieces])
    return {
        "bin": [piece.ids for piece in pieces],
        "doc": [*((piece.document_starts + base).astype("<u8") for piece, base in placed), end],
        "sent": [*((piece.sentence_starts + base).astype("<u8") for piece, base in placed), end],
        "word": [np.packbits(words, bitorder="little")],
    }


def _finish(out: Path, plan: Plan, blocks: Sequence[Block], skipped: Counter[str]) -> Manifest:
    """Writes the unigram counts and the manifest, and removes the progress."""
    expected = SPLITS if plan.settings.held_out > 0 else SPLITS[:1]
    totals = {split: Counts() for split in expected}
    files: dict[str, FileRecord] = {}
    reasons = Counter(skipped)
    for block in blocks:
        for split, counts in block.splits.items():
            totals[split] = add_counts(totals[split], counts)
        files |= block.files
        reasons["no token"] += block.num_empty
    _check_totals(out, totals, plan.settings.held_out, +reasons)
    for path in sorted((out / "tokenizer").rglob("*")):
        if path.is_file():
            files[path.relative_to(out).as_posix()] = write_file(path, [path.read_bytes()])
    files["unigram.npy"] = _write_unigrams(out, [name for name in files if name.startswith("train/")], plan.vocab_size)
    manifest = with_fingerprint(
        Manifest(
            format_version=FORMAT_VERSION,
            fingerprint="",
            text_fingerprint=blocks[-1].text_sha256,
            tokenizer_fingerprint=plan.tokenizer_fingerprint,
            vocab_size=plan.vocab_size,
            settings=plan.settings,
            inputs=plan.inputs,
            skipped=dict(sorted((+reasons).items())),
            splits=totals,
            files=files,
        )
    )
    write_manifest(out, manifest)
    (out / "progress.jsonl").unlink()
    return manifest


def _check_totals(out: Path, totals: dict[str, Counts], held_out: float, reasons: Counter[str]) -> None:
    """Refuses a corpus too small for its splits, and leaves nothing of it."""
    number = sum(counts.documents for counts in totals.values())
    empty = [split for split, counts in totals.items() if counts.documents == 0]
    if not empty:
        return
    _remove(out)
    if number == 0:
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items())) or "none was read"
        raise DataError(f"the inputs hold no document with a token ({left_out}): give at least one file with text")
    raise DataError(
        f"of {number:,} document{'s' if number > 1 else ''} none fell in the {empty[0].replace('_', '-')} split with "
        f"held_out {held_out}: {'raise' if empty[0] == 'held_out' else 'lower'} --held-out, cut the text into more "
        "documents with --documents line or blank, or give --held-out 0"
    )


def _write_unigrams(out: Path, names: Iterable[str], vocab_size: int) -> FileRecord:
    """Writes how often each id occurs in the train split, read back from its shards."""
    counts = np.zeros(vocab_size, "<u8")
    for name in names:
        if name.endswith(".bin"):
            ids = np.memmap(out / name, id_dtype(vocab_size), mode="r")
            for start in range(0, len(ids), 1 << 22):
                counts += np.bincount(ids[start : start + (1 << 22)], minlength=vocab_size).astype("<u8")
    buffer = io.BytesIO()
    np.save(buffer, counts)
    return write_file(out / "unigram.npy", [buffer.getvalue()])


def _remove(out: Path) -> None:
    """Removes what this module writes; a folder that holds nothing else goes too."""
    for name in ("tokenizer", *SPLITS):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("progress.jsonl", "unigram.npy"):
        (out / name).unlink(missing_ok=True)
    with suppress(OSError):
        out.rmdir()
