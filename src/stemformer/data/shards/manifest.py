"""The manifest of a prepared data folder: what it holds, out of what it was made, and whether it is still whole.

```
OUT/manifest.json     this record; written last, so a folder that has it is complete
OUT/progress.jsonl    only while a folder is being written (see `shard_writer`)
OUT/tokenizer/        the tokenizer that made the ids
OUT/unigram.npy       (V,) uint64: how often each id occurs in the train split
OUT/train/            shard-00000.bin .doc .sent .word, one group for each block of the corpus that has train documents
OUT/held_out/         the same, of the documents that training never sees
```

It holds no time and no absolute path: the same corpus, tokenizer and settings give the same bytes.
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
    """Name, without the folders above it, and size of one input; no size where it is not a local file."""

    name: str
    bytes: int | None


@dataclass(frozen=True)
class Counts:
    """How much a split holds; `characters` and UTF-8 `bytes` are those of its documents before tokenization."""

    documents: int = 0
    sentences: int = 0
    tokens: int = 0
    words: int = 0
    characters: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Settings:
    """The arguments of `write_shards` that change what is written."""

    held_out: float
    documents: str
    column: str
    errors: str
    block_characters: int
    words: str = "tokenizer"


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says.

    Args:
        format_version: Layout of the folder; another one is refused.
        fingerprint: SHA-256 over all that decides what training sees: text, tokenizer, settings, and each file's hash.
        text_fingerprint: SHA-256 over the documents, in order, with their lengths.
        tokenizer_fingerprint: `Tokenizer.fingerprint` of the tokenizer that made the ids.
        vocab_size: Each id is below it.
        settings: The arguments that change what is written.
        inputs: The files that were read.
        skipped: How many documents were left out, by reason.
        splits: What each split holds; `held_out` is missing where none was asked for.
        files: Each file of the folder by its path in it; shards in the order of the corpus.
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


def add_counts(first: Counts, second: Counts) -> Counts:
    """Returns the sum, field by field."""
    return Counts(**{field.name: getattr(first, field.name) + getattr(second, field.name) for field in fields(Counts)})


def describe_inputs(inputs: str | Path | Iterable[str | Path], out: Path) -> tuple[InputRecord, ...]:
    """Returns name and size of each input file, in the order in which they are read; those of a folder under its name.

    Raises:
        DataError: A file is not there, or `out` lies in an input folder and would be read as text.
    """
    records: list[InputRecord] = []
    for given in [inputs] if isinstance(inputs, str | Path) else inputs:
        if str(given).startswith("hub:"):
            records.append(InputRecord(str(given), None))
            continue
        folder = Path(given).expanduser()
        if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{out} lies in the input folder {folder}: choose another --out, or name the files")
        for file in find_files([given]):
            name = f"{folder.resolve().name}/{file.relative_to(folder).as_posix()}" if folder.is_dir() else file.name
            records.append(InputRecord(name, file.stat().st_size))
    return tuple(records)


def with_fingerprint(manifest: Manifest) -> Manifest:
    """Returns the manifest with `fingerprint` computed from its other fields.

    The names and sizes of the inputs and the skipped counts stay out: renaming a text file changes nothing in training.
    """
    # By way of JSON, so that a number read back (0 for 0.0) hashes as the number written.
    body = {key: value for key, value in asdict(manifest).items() if key not in ("fingerprint", "inputs", "skipped")}
    return replace(manifest, fingerprint=hashlib.sha256(msgspec.json.encode(body)).hexdigest())


def read_manifest(folder: str | Path) -> Manifest:
    """Returns the manifest of a prepared data folder.

    Args:
        folder: What `write_shards` wrote.

    Raises:
        DataError: The folder has no manifest, one of another format, or one that was changed since it was written.

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
            message = f"{folder} is not complete: preparing it was interrupted; go on with stemformer prepare --resume"
            raise DataError(message) from None
        message = f"{folder} is no prepared data folder (it has no manifest.json): run stemformer prepare"
        raise DataError(message) from None
    try:
        version: Any = msgspec.json.decode(text)["format_version"]
        if version == FORMAT_VERSION:
            manifest = msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}): prepare the folder again", damaged=True) from error
    if version != FORMAT_VERSION:
        message = f"{path} has format {version}, this release reads {FORMAT_VERSION}: prepare the folder again"
        raise DataError(message)
    if with_fingerprint(manifest).fingerprint != manifest.fingerprint:
        message = f"{path} was changed since it was written (its fingerprint does not fit): prepare the folder again"
        raise DataError(message, damaged=True)
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json`, whole or not at all."""
    write_file(folder / "manifest.json", [msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"])


def check_tokenizer(manifest: Manifest, tokenizer: Tokenizer) -> None:
    """Refuses a tokenizer that did not make the ids of this data.

    Args:
        manifest: Of the prepared data.
        tokenizer: The one that is about to be used with it.

    Raises:
        TokenizerError: It is another one.
    """
    if tokenizer.fingerprint != manifest.tokenizer_fingerprint:
        raise TokenizerError(
            f"the tokenizer given is {tokenizer.fingerprint[:12]} with {tokenizer.vocab_size:,} ids, the data was "
            f"prepared with {manifest.tokenizer_fingerprint[:12]} with {manifest.vocab_size:,} ids: "
            "use the tokenizer in the data folder, or prepare the data again"
        )


def check_files(folder: Path, files: dict[str, FileRecord], *, verify: bool) -> None:
    """Refuses a folder with a file that is missing, cut short or, if asked, changed.

    Args:
        folder: The prepared data folder.
        files: What its files should be.
        verify: Read each file and compare its SHA-256, in a few threads.

    Raises:
        DataError: Names the first such file, and both sizes or hashes.
    """
    for name, record in files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != record.bytes:
            found = "is missing" if size is None else f"has {size:,} bytes"
            message = f"{path} {found}, the manifest says {record.bytes:,} bytes: copy it again, or prepare again"
            raise DataError(message, damaged=True)
    if not verify:
        return
    with ThreadPoolExecutor(4) as pool:
        hashes = pool.map(hash_file, (folder / name for name in files))
        for (name, record), found in zip(files.items(), hashes, strict=True):
            if found != record.sha256:
                raise DataError(
                    f"{folder / name} was changed since it was written: its SHA-256 is {found[:12]}..., the manifest "
                    f"says {record.sha256[:12]}...: copy it again, or prepare again",
                    damaged=True,
                )
