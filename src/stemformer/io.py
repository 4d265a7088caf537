"""Atomic files and directories, JSON lines, hashes."""

import ctypes
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemformer.errors import CheckpointError, ConfigError, DataError

# Files of a checkpoint: metadata with the SHA-256 of each other file, and the state of the optimizer.
CHECKSUMS, OPTIMIZER_FILE = "checkpoint.json", "optimizer.safetensors"


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of one file."""

    bytes: int
    sha256: str


def write_file(path: Path, parts: Iterable[Any]) -> FileRecord:
    """Write bytes or contiguous arrays to a file atomically: temporary name, fsync, rename."""
    temporary = path.with_name(path.name + ".tmp")
    digest = hashlib.sha256()
    try:
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
                digest.update(part)
            size = file.tell()
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        # The operating system does not name the file when a write hits a full disk.
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise
    fsync(path.parent)
    return FileRecord(size, digest.hexdigest())


def write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Write a directory atomically: let `write` fill a temporary one, fsync it, and rename it.

    An old directory stays until the new one takes its name. Where the system cannot swap them, and the process is
    killed between two renames, the old one is called `.old`, and `restore_folder` renames it back. A symbolic link
    stays, and the directory that it names is replaced.
    """
    target = target.resolve()
    restore_folder(target)
    temporary, old = (target.with_name(target.name + suffix) for suffix in (".tmp", ".old"))
    _remove(temporary)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        for file in [*temporary.iterdir(), temporary]:
            fsync(file)
    except BaseException:
        _remove(temporary)
        raise
    if target.is_dir() and _swap(temporary, target):
        old = temporary
    else:
        _remove(old)
        if target.exists():
            target.rename(old)
        temporary.rename(target)
    fsync(target.parent)
    _remove(old)


def _remove(path: Path) -> None:
    """Remove a directory, file or symbolic link, if there is one, as far as possible."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def restore_folder(target: Path) -> None:
    """Rename the old content of a directory back if a killed `write_folder` left the directory without any."""
    target = target.resolve()
    old = target.with_name(target.name + ".old")
    if old.is_dir() and not target.exists():
        old.rename(target)


def _swap(a: Path, b: Path) -> bool:
    """Swap the names of two directories in one step; return False if the system cannot (Linux can)."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    # Constants of renameat2(2).
    at_fdcwd, rename_exchange = -100, 2
    return bool(rename(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange) == 0)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Write `checkpoint.json`: metadata, and the SHA-256 of each file of a folder and of itself."""
    files = {file.name: hash_file(file) for file in sorted(folder.iterdir()) if file.name != CHECKSUMS}
    content = {**metadata, "files": files}
    content["sha256"] = _hash_metadata(content)
    (folder / CHECKSUMS).write_text(json.dumps(content, indent=2), encoding="utf-8")


def find_damage(folder: Path, *, ignore: str | None = None) -> str | None:
    """Return what is wrong with a folder with `checkpoint.json`, by its checksums; None if nothing is.

    The file `ignore` is not checked.
    """
    try:
        content = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        if content.pop("sha256") != _hash_metadata(content):
            return f"{CHECKSUMS} is damaged"
        for name, expected_hash in content["files"].items():
            if name == ignore:
                continue
            if not (folder / name).is_file():
                return f"{name} is missing"
            if hash_file(folder / name) != expected_hash:
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{CHECKSUMS} cannot be read ({error})"
    return None


def _hash_metadata(metadata: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def fsync(path: Path) -> None:
    """Flush a file or directory to disk."""
    # Windows cannot open directories.
    if os.name != "posix" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines, without an incomplete last line; an absent file has no lines."""
    texts = path.read_bytes().splitlines() if path.is_file() else []
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            if number < len(texts):
                problem = f"{path}, line {number}, cannot be read. Repair or remove that line."
                raise CheckpointError(problem, damaged=True) from error
    return lines


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Return a value as JSON: null for NaN and infinity, numbers for scalars of NumPy and torch, else text."""
    how: dict[str, Any] = {"ensure_ascii": False, "indent": indent}
    how["default"] = lambda x: x.item() if hasattr(x, "item") else str(x)
    try:
        return json.dumps(value, allow_nan=False, **how)
    except ValueError:
        return json.dumps(_without_nan(value), **how)


def _without_nan(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, Mapping):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines, atomically."""
    write_file(path, (f"{to_json(row)}\n".encode() for row in rows))


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Append a JSON line and fsync it; an incomplete last line is dropped."""
    old = path.read_bytes() if path.is_file() else b""
    write_file(path, [old[: old.rfind(b"\n") + 1], f"{to_json(row)}\n".encode()])


class PartialJsonl:
    """JSON lines that grow in `<name>.partial` until `finish` gives them their own name.

    What was written stays there if the process ends before. As a context, no file without rows is left.

    Args:
        header: What the rows depend on, the first line of the partial file.
        resume: Continue a partial file, if there is one.

    Attributes:
        rows: Number of rows so far.

    Raises:
        ConfigError: The partial file has another header.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], *, resume: bool) -> None:
        self._path, self._partial = path, partial_path(path)
        lines = read_jsonl(self._partial) if resume else []
        current = json.loads(to_json(header))
        if lines and lines[0] != current:
            known = {**lines[0], **current}
            names = [name for name in known if lines[0].get(name) != current.get(name)]
            problem = f"{self._partial} was written with another value of {', '.join(names)}"
            raise ConfigError(f"{problem}. Pass the same ones, or --overwrite in the place of --resume to start again.")
        write_jsonl(self._partial, lines or [current])
        self.rows = max(0, len(lines) - 1)

    def __enter__(self) -> "PartialJsonl":
        return self

    def __exit__(self, *error: object) -> None:
        if not self.rows:
            self._partial.unlink(missing_ok=True)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the rows so far."""
        with self._partial.open(encoding="utf-8") as lines:
            next(lines)
            yield from map(json.loads, lines)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        with self._partial.open("a", encoding="utf-8") as file:
            file.write("".join(f"{to_json(row)}\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())
        self.rows += len(rows)

    def finish(self) -> None:
        """Write all rows under the name of the file, and remove the partial one."""
        write_jsonl(self._path, self)
        self._partial.unlink()


def partial_path(path: Path) -> Path:
    """Return the path of the rows that an interrupted `PartialJsonl` leaves."""
    return path.with_name(f"{path.name}.partial")


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON, atomically."""
    write_file(path, [f"{to_json(content, indent=2)}\n".encode()])


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}). Run the command that wrote it again.", damaged=True) from error
