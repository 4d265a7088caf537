"""Manifest of a folder of tokenized data: content, origin, and checksums.

```
OUT/manifest.json     this record; written last, so a folder that has it is complete
OUT/progress.jsonl    only while the folder is being written (see `writer.py`)
OUT/tokenizer/        the tokenizer that produced the ids
OUT/unigram.npy       (V,) uint64: count of each id in the train split
OUT/train/            shard-00000.bin .doc .sent .word, per block of the corpus with such documents
OUT/held_out/         the same for documents excluded from training
```

The same corpus, tokenizer and settings give the same bytes: it has no time and no absolute path.
"""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import msgspec

from stemformer.data.shards.duplicates import DuplicateExample
from stemformer.data.text.files import STANDARD_INPUT, find_files, local_path
from stemformer.data.tokenization.tokenizer import Tokenizer
from stemformer.errors import DataError, TokenizerError
from stemformer.io import FileRecord, hash_file

FORMAT_VERSION = 1
SPLITS = ("train", "held_out")


@dataclass(frozen=True)
class InputRecord:
    """Name (without parent folders) and size of an input; None if it is not a local file."""

    name: str
    bytes: int | None

    def __str__(self) -> str:
        return f"{self.name} of {self.bytes} bytes"


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
    # The default is not part of the fingerprint, which earlier data do not have.
    dedup: str = "none"


@dataclass(frozen=True)
class Manifest:
    """Content of `manifest.json`; the order of fields enters the fingerprint."""

    format_version: int
    # SHA-256 of all that training depends on: text, tokenizer, settings and files.
    fingerprint: str
    # SHA-256 of the documents, in order, with their lengths.
    text_fingerprint: str
    tokenizer_fingerprint: str
    vocab_size: int
    settings: Settings
    inputs: tuple[InputRecord, ...]
    # Number of documents by reason.
    skipped: dict[str, int]
    # Without `held_out` if its fraction is 0.
    splits: dict[str, Counts]
    # By path relative to the folder; shards in corpus order.
    files: dict[str, FileRecord]
    duplicates: tuple[DuplicateExample, ...] = ()


def describe_inputs(inputs: str | Path | Iterable[str | Path], out: Path) -> tuple[InputRecord, ...]:
    """Return the record of each input file; refuse an `out` inside an input folder."""
    records: list[InputRecord] = []
    for source in [inputs] if isinstance(inputs, str | Path) else inputs:
        if str(source).startswith("hub:"):
            records.append(InputRecord(str(source), None))
            continue
        if str(source) == STANDARD_INPUT:
            records.append(InputRecord(STANDARD_INPUT, local_path(STANDARD_INPUT).stat().st_size))
            continue
        folder = Path(source).expanduser()
        if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{out} is inside the input folder {folder}. Choose another --out, or list the files.")
        for file in find_files([source]):
            name = f"{folder.resolve().name}/{file.relative_to(folder).as_posix()}" if folder.is_dir() else file.name
            records.append(InputRecord(name, local_path(str(file)).stat().st_size))
    return tuple(records)


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check the manifest of a folder written by `write_shards`."""
    folder = Path(folder)
    path = folder / "manifest.json"
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if (folder / "progress.jsonl").exists():
            problem = "is incomplete: its preparation was interrupted. Continue with stemformer prepare --resume."
        elif not folder.exists():
            problem = "does not exist. Pass the folder that stemformer prepare wrote."
        else:
            problem = "is not a folder of prepared data (it has no manifest.json). Run stemformer prepare."
        raise DataError(f"{folder} {problem}") from None
    advice = "Prepare the data again."
    try:
        version: Any = msgspec.json.decode(text)["format_version"]
        if version != FORMAT_VERSION:
            raise DataError(f"{path} has format {version}, this release reads {FORMAT_VERSION}. {advice}")
        manifest = msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}). {advice}", damaged=True) from error
    if manifest_fingerprint(manifest) != manifest.fingerprint:
        raise DataError(f"{path} was changed since it was written (its fingerprint differs). {advice}", damaged=True)
    return manifest


def manifest_fingerprint(manifest: Manifest) -> str:
    """Hash a manifest without inputs and what was skipped: names of files do not affect training."""
    excluded = ("fingerprint", "inputs", "skipped", "duplicates")
    body = {key: value for key, value in asdict(manifest).items() if key not in excluded}
    if manifest.settings.dedup == "none":
        del body["settings"]["dedup"]
    # Hash the JSON text, so that a number read back (0 for 0.0) hashes like the one written.
    return hashlib.sha256(msgspec.json.encode(body)).hexdigest()


def check_tokenizer(manifest: Manifest, tokenizer: Tokenizer) -> None:
    """Raise `TokenizerError` if a tokenizer is not the one that produced the data."""
    if tokenizer.fingerprint != manifest.tokenizer_fingerprint:
        found = f"is {tokenizer.fingerprint[:12]} with {tokenizer.vocab_size:,} ids"
        expected = f"was prepared with {manifest.tokenizer_fingerprint[:12]} with {manifest.vocab_size:,} ids"
        advice = "Use the tokenizer in the data folder, or prepare the data again."
        raise TokenizerError(f"The tokenizer {found}, but the data {expected}. {advice}")


def check_files(folder: Path, files: dict[str, FileRecord], *, verify: bool) -> None:
    """Check existence and size of files and, with `verify`, their SHA-256."""

    def damaged(name: str, found: str, expected: str) -> DataError:
        advice = "Copy it again, or prepare the data again."
        return DataError(f"{folder / name} {found}, the manifest says {expected}. {advice}", damaged=True)

    for name, record in files.items():
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if size != record.bytes:
            raise damaged(name, "is missing" if size is None else f"has {size:,} bytes", f"{record.bytes:,} bytes")
    if not verify:
        return
    with ThreadPoolExecutor(4) as pool:
        hashes = pool.map(hash_file, map(folder.joinpath, files))
        for (name, record), sha256 in zip(files.items(), hashes, strict=True):
            if sha256 != record.sha256:
                found = f"was changed since it was written: its SHA-256 is {sha256[:12]}..."
                raise damaged(name, found, f"{record.sha256[:12]}...")
