"""Resumable writing of tokenized data: `progress.jsonl` holds the plan, then a line per block on disk."""

import io
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from stemformer.data.shards import manifest as manifests
from stemformer.data.shards.duplicates import DuplicateExample, check_dedup, find_duplicates, note_duplicates
from stemformer.data.shards.encoding import DocumentBatch, EncodedBatch, batch_documents, encode_batches, id_dtype
from stemformer.data.shards.manifest import FORMAT_VERSION, SPLITS, Counts, InputRecord, Manifest, Settings
from stemformer.data.shards.splits import SplitChoice, choose_split
from stemformer.data.text.documents import read_documents
from stemformer.data.text.files import check_files_unchanged, file_states, find_sources
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.data.tokenization.word_segmentation import load_segmenter
from stemformer.errors import ConfigError, DataError
from stemformer.io import FileRecord, write_file


@dataclass(frozen=True)
class WritePlan:
    """What must be unchanged to resume; the fields are those of `Manifest`."""

    format_version: int
    tokenizer_fingerprint: str
    vocab_size: int
    settings: Settings
    inputs: tuple[InputRecord, ...]


@dataclass(frozen=True)
class WrittenBlock:
    """Completed block of consecutive documents."""

    # Including those without a token.
    documents: int
    # Of all documents of the corpus up to the end of this block.
    text_sha256: str
    splits: dict[str, Counts]
    files: dict[str, FileRecord]


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
    dedup: str = "none",
    num_workers: int | None = None,
    block_characters: int = 64_000_000,
    resume: bool = False,
    on_bytes: Callable[[int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Manifest:
    """Tokenize a corpus into a folder and return its manifest; options as in `PrepareOptions`.

    Args:
        out: Empty or new folder, or with `resume` that of an interrupted run with equal arguments.
        block_characters: Size of a block. Larger blocks need more memory, a few bytes per token.
        on_bytes: Called with the number of input bytes read since the last call.
        on_note: Called with notes: documents too few to be chosen by hash, or many duplicates.
    """
    if not 0 <= held_out < 1:
        raise ConfigError(f"held_out is {held_out}, expected a fraction of at least 0 and below 1, such as 0.01.")
    if block_characters < 1:
        raise ConfigError(f"block_characters is {block_characters}, expected at least 1, such as 64000000.")
    load_segmenter(words)
    check_dedup(dedup)
    on_note = on_note or (lambda _: None)
    out = Path(out)
    settings = Settings(float(held_out), documents, column, errors, block_characters, words, dedup)
    records = manifests.describe_inputs(inputs, out)
    plan = WritePlan(FORMAT_VERSION, tokenizer.fingerprint, tokenizer.vocab_size, settings, records)
    if resume and (out / "manifest.json").exists():
        # If the previous run was killed at its last step, its progress remains.
        manifest = manifests.read_manifest(out)
        _check_unchanged(out, msgspec.convert(manifest, WritePlan, from_attributes=True), plan)
        (out / "progress.jsonl").unlink(missing_ok=True)
        return manifest
    can_resume = resume and (out / "progress.jsonl").exists()
    blocks = _resume(out, plan) if can_resume else _start(out, plan, resume=resume)
    skipped: Counter[str] = Counter()
    folder = out / "tokenizer"
    try:
        # The tokenizer may be half-written by an interrupted run.
        if folder.exists():
            shutil.rmtree(folder)
        tokenizer.save(folder)
        # Removal reads the corpus twice.
        states = file_states(find_sources(inputs) if dedup != "none" else [])
        how: dict[str, Any] = {"documents": documents, "column": column, "errors": errors}
        split = SplitChoice(held_out)
        if held_out > 0:
            split = choose_split((document.text for document in read_documents(inputs, **how)), held_out)
        if split.note:
            on_note(split.note)

        def read_texts(skipped: Counter[str]) -> Iterator[str]:
            check_files_unchanged(states)
            stream = read_documents(inputs, **how, on_bytes=on_bytes, skipped=skipped)
            yield from split.texts(document.text for document in stream)
            check_files_unchanged(states)

        duplicates = None
        if dedup == "none":
            texts = note_duplicates(read_texts(skipped), on_note)
        else:
            duplicates = find_duplicates(read_texts(Counter()), split.held_out, dedup)
            skipped.update(duplicates.counts)
            texts = duplicates.remove(read_texts(skipped))
            if len(duplicates.kept) == (1 if split.cut is None else 2):
                on_note(f"--dedup {dedup} has no effect: the text is one document (split it with --documents)")
        batches = _skip_written(batch_documents(texts, block_characters), blocks)
        encoded = encode_batches(
            batches, tokenizer, tokenizer_folder=folder, held_out=split.held_out, words=words, num_workers=num_workers
        )
        with closing(encoded):
            parts: list[EncodedBatch] = []
            for batch, part in encoded:
                parts.append(part)
                if batch.is_last:
                    blocks.append(_write_block(out, batch, parts))
                    parts = []
        examples = duplicates.examples() if duplicates else ()
        return _finish(out, plan, blocks, skipped, examples, is_one_text=split.is_one_text)
    except BaseException:
        # Without a complete block, leave nothing that would block the next attempt.
        if not blocks:
            _remove(out)
        raise


def _start(out: Path, plan: WritePlan, *, resume: bool) -> list[WrittenBlock]:
    """Create the folder with its plan."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file, expected an empty folder. Choose another --out.")
    # The temporary file is left by a run that was killed at its very start.
    found = sorted(path.name for path in out.glob("*") if not (resume and path.name == "progress.jsonl.tmp"))
    if "manifest.json" in found:
        raise DataError(f"{out} already holds prepared data. Choose another --out, or --overwrite.")
    if "progress.jsonl" in found:
        raise DataError(f"{out} holds data whose preparation was interrupted. Continue with --resume, or --overwrite.")
    if found:
        problem = "holds nothing to resume" if resume else "is not empty"
        raise DataError(f"{out} {problem} (it has {found[0]}). Choose another --out, or --overwrite.")
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / "progress.jsonl", [msgspec.json.encode(plan) + b"\n"])
    return []


def _resume(out: Path, plan: WritePlan) -> list[WrittenBlock]:
    """Return the complete blocks of an interrupted run, and remove what is incomplete."""
    path = out / "progress.jsonl"
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    lines = complete.splitlines()
    try:
        previous = msgspec.json.decode(lines[0], type=WritePlan)
        blocks = [msgspec.json.decode(line, type=WrittenBlock) for line in lines[1:]]
    except (IndexError, msgspec.DecodeError, UnicodeDecodeError) as error:
        problem = f"{path} cannot be read ({error}). Prepare the data again with --overwrite."
        raise DataError(problem, damaged=True) from error
    if complete != content:
        write_file(path, [complete])
    _check_unchanged(out, previous, plan)
    files = {name: record for block in blocks for name, record in block.files.items()}
    manifests.check_files(out, files, verify=False)
    for path in [*out.glob("*.tmp"), *(path for split in SPLITS for path in (out / split).glob("*"))]:
        if path.relative_to(out).as_posix() not in files:
            path.unlink()
    return blocks


def _check_unchanged(out: Path, previous: WritePlan, plan: WritePlan) -> None:
    """Refuse to resume with other arguments; name the first that differs, and both values."""
    settings = asdict(plan.settings)
    compared = [
        ("format", previous.format_version, plan.format_version),
        ("tokenizer", *(f"{p.tokenizer_fingerprint[:12]} ({p.vocab_size:,} ids)" for p in (previous, plan))),
        *((name, old, settings[name]) for name, old in asdict(previous.settings).items()),
        *(("input", old, new) for old, new in zip_longest(previous.inputs, plan.inputs, fillvalue="none")),
    ]
    for name, old, new in compared:
        if old != new:
            advice = "Resume with the same arguments, or prepare the data again with --overwrite."
            raise DataError(f"{out} was started with {name} {old}, now it is {new}. {advice}")


def _skip_written(batches: Iterable[DocumentBatch], written: Iterable[WrittenBlock]) -> Iterator[DocumentBatch]:
    """Skip the batches of complete blocks, after checking that they have the same text."""
    # A copy: blocks are added while this runs.
    written = tuple(written)
    num_same = 0
    for batch in batches:
        if batch.block >= len(written):
            yield batch
        elif batch.is_last:
            block = written[batch.block]
            if (batch.num_documents, batch.text_sha256) != (block.documents, block.text_sha256):
                break
            num_same += 1
    if num_same < len(written):
        first = sum(block.documents for block in written[:num_same]) + 1
        problem = f"The text of the inputs has changed since the interrupted run (from document {first:,} on)"
        raise DataError(f"{problem}. Prepare the data again with --overwrite.")


def _write_block(out: Path, last: DocumentBatch, parts: list[EncodedBatch]) -> WrittenBlock:
    """Write the shards of a block, then its line of progress."""
    counts: dict[str, Counts] = {}
    files: dict[str, FileRecord] = {}
    for split in SPLITS:
        pieces = [part[split] for part in parts if split in part]
        if not pieces:
            continue
        counts[split] = sum((piece.counts for piece in pieces), Counts())
        # Starts within a batch become starts within the shard; the last entry is its end.
        lengths = [len(piece.ids) for piece in pieces]
        shifted = list(zip(pieces, np.cumsum(lengths) - lengths, strict=True))
        end = np.array([sum(lengths)], "<u8")
        words = np.concatenate([piece.word_starts for piece in pieces])
        content = {
            "bin": [piece.ids for piece in pieces],
            "doc": [*((piece.document_starts + offset).astype("<u8") for piece, offset in shifted), end],
            "sent": [*((piece.sentence_starts + offset).astype("<u8") for piece, offset in shifted), end],
            "word": [np.packbits(words, bitorder="little")],
        }
        (out / split).mkdir(exist_ok=True)
        for suffix, arrays in content.items():
            name = f"{split}/shard-{last.block:05d}.{suffix}"
            files[name] = write_file(out / name, arrays)
    block = WrittenBlock(last.num_documents, last.text_sha256, counts, files)
    with (out / "progress.jsonl").open("ab") as file:
        file.write(msgspec.json.encode(block) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return block


def _finish(
    out: Path,
    plan: WritePlan,
    blocks: Sequence[WrittenBlock],
    skipped: Counter[str],
    duplicates: tuple[DuplicateExample, ...],
    *,
    is_one_text: bool,
) -> Manifest:
    """Write the unigram counts and the manifest, and remove the progress."""
    splits = SPLITS if plan.settings.held_out > 0 else SPLITS[:1]
    totals = {split: sum((b.splits[split] for b in blocks if split in b.splits), Counts()) for split in splits}
    skipped["no token"] += sum(b.documents for b in blocks) - sum(counts.documents for counts in totals.values())
    # Unary plus drops reasons that did not occur.
    reasons = dict(sorted((+skipped).items()))
    if empty := [split for split, counts in totals.items() if counts.documents == 0]:
        _remove(out)
        raise _empty_split_error(empty[0], totals, plan.settings, reasons, is_one_text=is_one_text)
    files = {name: record for block in blocks for name, record in block.files.items()}
    shards = [out / name for name in files if name.startswith("train/") and name.endswith(".bin")]
    # Write the tokenizer again, which fsyncs and hashes its files.
    for path in sorted((out / "tokenizer").rglob("*")):
        if path.is_file():
            files[path.relative_to(out).as_posix()] = write_file(path, [path.read_bytes()])
    files["unigram.npy"] = _write_unigrams(out, shards, plan.vocab_size)
    text_sha256 = blocks[-1].text_sha256
    content: dict[str, Any] = {"skipped": reasons, "splits": totals, "files": files, "duplicates": duplicates}
    manifest = Manifest(**vars(plan), fingerprint="", text_fingerprint=text_sha256, **content)
    manifest = replace(manifest, fingerprint=manifests.manifest_fingerprint(manifest))
    write_file(out / "manifest.json", [msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"])
    (out / "progress.jsonl").unlink()
    return manifest


def _empty_split_error(
    split: str, totals: dict[str, Counts], settings: Settings, reasons: dict[str, int], *, is_one_text: bool
) -> DataError:
    num_documents = sum(counts.documents for counts in totals.values())
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
    if num_documents == 0:
        problem = f"The inputs hold no document with a token ({skipped or 'none was read'})"
        return DataError(f"{problem}. Pass at least one file with text.")
    documents = f"{num_documents:,} document{'s' if num_documents > 1 else ''}" + (skipped and f" (skipped: {skipped})")
    problem = f"Of {documents}, none is in the {split.replace('_', '-')} split with held_out {settings.held_out}"
    if is_one_text and num_documents > 1:
        return DataError(f"{problem}: all have the same text (see --dedup exact). Pass more text, or use --held-out 0.")
    finer = {"line": "", "blank": " --documents line"}.get(settings.documents, " --documents line or blank")
    advice = finer and f"split the text into more documents with{finer}, "
    direction = "Raise" if split == "held_out" else "Lower"
    return DataError(f"{problem}. {direction} --held-out, {advice}or use --held-out 0.")


def _write_unigrams(out: Path, shards: Iterable[Path], vocab_size: int) -> FileRecord:
    counts = np.zeros(vocab_size, "<u8")
    for path in shards:
        ids = np.memmap(path, id_dtype(vocab_size), mode="r")
        for start in range(0, len(ids), 1 << 22):
            counts += np.bincount(ids[start : start + (1 << 22)], minlength=vocab_size).astype("<u8")
    buffer = io.BytesIO()
    np.save(buffer, counts)
    return write_file(out / "unigram.npy", [buffer.getvalue()])


def _remove(out: Path) -> None:
    """Remove what this module writes, and the folder if nothing else is in it."""
    for name in ("tokenizer", *SPLITS):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("progress.jsonl", "unigram.npy"):
        (out / name).unlink(missing_ok=True)
    with suppress(OSError):
        out.rmdir()
