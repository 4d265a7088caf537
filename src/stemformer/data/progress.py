"""`progress.jsonl`: how far the writing of a data folder has come, so that an interrupted run can go on.

Its first line is the plan, each further line a block whose files are on the disk. It is there only until the manifest
is written.
"""

import os
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path

import msgspec

from stemformer.data.manifest import Counts, FileRecord, InputRecord, Settings, write_file
from stemformer.errors import DataError

__all__ = ["Block", "Plan", "append_block", "begin_progress", "check_same", "read_progress"]


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
