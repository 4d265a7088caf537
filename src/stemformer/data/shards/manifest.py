"""Manifest of a folder of tokenized data: content, origin, and checksums.

```
OUT/manifest.json     this record; written last, so a folder that has it is complete
OUT/progress.jsonl    only while the folder is being written (see `writer.py`)
OUT/tokenizer/        the tokenizer that produced the ids
OUT/unigram.npy       (V,) uint64: count of each id in the train split
OUT/train/            shard-00000.bin .doc .sent .word, per block of the corpus with such documents
OUT/held_out/         the same for documents excluded from training
```

It has no time and no absolute path: the same corpus, tokenizer and settings give the same bytes.
"""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from stemformer.data.text.files import find_files
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.errors import DataError, TokenizerError
from stemformer.io import FileRecord, hash_file, write_file

FORMAT_VERSION = 1
SPLITS = ("train", "held_out")


@dataclass(frozen=True)
class InputRecord:
    """Name (without parent folders) and size of an input; None if it is not a local file."""

    name: str
    bytes: int | None


@dataclass(frozen=True)
class Counts:
    """Size of a split; `characters` and UTF-8 `bytes` count its documents before tokenization."""

    documents: int = 0
    sentences: int = 0
    tokens: int = 0
    words: int = 0
    characters: int = 0
    bytes: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Counts)))


@dataclass(frozen=True)
class Settings:
    """Arguments of `write_shards` that affect the written data."""

    held_out: float
    documents: str
    column: str
    errors: str
    block_characters: int
    words: str = "tokenizer"


@dataclass(frozen=True)
class Manifest:
    """Content of `manifest.json`.

    Attributes:
        format_version: Layout of the folder.
        fingerprint: SHA-256 of text, tokenizer, settings and files, on which training depends.
        text_fingerprint: SHA-256 of the documents, in order, with their lengths.
        tokenizer_fingerprint: `Tokenizer.fingerprint` of the tokenizer that produced the ids.
        vocab_size: Exclusive upper bound of the ids.
        skipped: Number of skipped documents by reason.
        splits: Size of each split; there is no `held_out` if its fraction is 0.
        files: Files by path relative to the folder; shards in corpus order.
    """

    format_version: int
    fingerprint: str
    text_fingerprint: str
    tokenizer_fingerprint: str
    vocab_size: int
    settings: Settings
    inputs: tuple[InputRecord, ...]
    skipped: dict[str, int]
    splits: dict[str, Counts]
    files: dict[str, FileRecord]


def describe_inputs(inputs: str | Path | Iterable[str | Path], out: Path) -> tuple[InputRecord, ...]:
    """Return the record of each input file; refuse an `out` inside an input folder."""
    records: list[InputRecord] = []
    for source in [inputs] if isinstance(inputs, str | Path) else inputs:
        if str(source).startswith("hub:"):
            records.append(InputRecord(str(source), None))
            continue
        folder = Path(source).expanduser()
        if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
            raise DataError(
                f"{out} is inside the input folder {folder}. Choose another --out, or list the input files."
            )
        for file in find_files([source]):
            name = f"{folder.resolve().name}/{file.relative_to(folder).as_posix()}" if folder.is_dir() else file.name
            records.append(InputRecord(name, file.stat().st_size))
    return tuple(records)


def with_fingerprint(manifest: Manifest) -> Manifest:
    """Return the manifest with its `fingerprint` computed.

    Inputs and skipped counts do not enter: renaming a text file does not affect training.
    """
    # Hash the JSON text, so that a number read back (0 for 0.0) hashes like the one written.
    body = {key: value for key, value in asdict(manifest).items() if key not in ("fingerprint", "inputs", "skipped")}
    return replace(manifest, fingerprint=hashlib.sha256(msgspec.json.encode(body)).hexdigest())


def read_manifest(folder: str | Path) -> Manifest:
    """Read the manifest of a folder written by `write_shards`.

    Raises:
        DataError: There is no manifest, it has another format version, or it was modified.

    Example:
        >>> read_manifest("data").splits["train"].tokens  # doctest: +SKIP
        1843200
    """
    folder = Path(folder)
    path = folder / "manifest.json"
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if (folder / "progress.jsonl").exists():
            raise DataError(
                f"{folder} is incomplete: its preparation was interrupted. Continue with stemformer prepare --resume."
            ) from None
        raise DataError(
            f"{folder} is not a folder of prepared data (it has no manifest.json). Run stemformer prepare."
        ) from None
    try:
        version: Any = msgspec.json.decode(text)["format_version"]
        if version == FORMAT_VERSION:
            manifest = msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}). Prepare the data again.", damaged=True) from error
    if version != FORMAT_VERSION:
        raise DataError(f"{path} has format {version}, this release reads {FORMAT_VERSION}. Prepare the data again.")
    if with_fingerprint(manifest).fingerprint != manifest.fingerprint:
        raise DataError(
            f"{path} was changed since it was written (its fingerprint does not match). Prepare the data again.",
            damaged=True,
        )
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` atomically."""
    write_file(folder / "manifest.json", [msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"])


def check_tokenizer(manifest: Manifest, tokenizer: Tokenizer) -> None:
    """Check that a tokenizer is the one that produced the data.

    Raises:
        TokenizerError: It is a different one.
    """
    if tokenizer.fingerprint != manifest.tokenizer_fingerprint:
        raise TokenizerError(
            f"The tokenizer is {tokenizer.fingerprint[:12]} with {tokenizer.vocab_size:,} ids, but the data was "
            f"prepared with {manifest.tokenizer_fingerprint[:12]} with {manifest.vocab_size:,} ids. "
            "Use the tokenizer in the data folder, or prepare the data again."
        )


def check_files(folder: Path, files: dict[str, FileRecord], *, verify: bool) -> None:
    """Check existence and size of files and, with `verify`, their SHA-256."""
    for name, record in files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != record.bytes:
            found = "is missing" if size is None else f"has {size:,} bytes"
            raise DataError(
                f"{path} {found}, the manifest says {record.bytes:,} bytes. Copy it again, or prepare the data again.",
                damaged=True,
            )
    if not verify:
        return
    with ThreadPoolExecutor(4) as pool:
        hashes = pool.map(hash_file, (folder / name for name in files))
        for (name, record), found in zip(files.items(), hashes, strict=True):
            if found != record.sha256:
                raise DataError(
                    f"{folder / name} was changed since it was written: its SHA-256 is {found[:12]}..., the manifest "
                    f"says {record.sha256[:12]}.... Copy it again, or prepare the data again.",
                    damaged=True,
                )
