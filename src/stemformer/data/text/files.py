"""Input files: expansion of names and patterns, decompression, decoding."""

import atexit
import bz2
import codecs
import glob
import gzip
import io
import lzma
import os
import shutil
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from stemformer.config import SIMILAR, nearest_first
from stemformer.errors import DataError
from stemformer.progress import format_list

Inputs = str | Path | Sequence[str | Path]
HUB_PREFIX = "hub:"
STANDARD_INPUT, STANDARD_INPUT_NAME = "-", "standard input"
BLOCK_BYTES = 1 << 18
SNIFFED_BYTES = 1 << 13
COMPRESSIONS = (".gz", ".xz", ".zst", ".bz2")
_OPENERS: dict[str, Callable[[IO[bytes]], io.BufferedIOBase]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
SHORT_SUFFIXES = {".tgz": ".tar.gz", ".txz": ".tar.xz", ".tzst": ".tar.zst", ".tbz2": ".tar.bz2", ".ndjson": ".jsonl"}
SHORT_SUFFIXES |= {".tab": ".tsv"}
FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".tar")
# First bytes of other files, what they are, and what to do with them.
MAGIC = (
    ((b"\xff\xfe", b"\xfe\xff"), "UTF-16 text", "Convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    (b"\x1f\x8b", "gzip data", "Name it .gz"),
    (b"\xfd7zXZ\0", "xz data", "Name it .xz"),
    (b"\x28\xb5\x2f\xfd", "zstd data", "Name it .zst"),
    (b"PAR1", "a parquet file", "Name it .parquet"),
    (b"PK\x03\x04", "a zip file (as .docx, .xlsx, .epub and .zip are)", "Unpack it or save it as plain text"),
    (b"%PDF-", "a PDF file", "Save it as plain text"),
    (b"\x89PNG", "a PNG image", "Remove it"),
    (b"\xff\xd8\xff", "a JPEG image", "Remove it"),
    (b"GIF8", "a GIF image", "Remove it"),
)
CONVERT = "iconv -f ENCODING -t UTF-8, with the encoding"
# Reason under which replaced bytes are counted, and the share of the characters from which they are noted.
_REPLACED, _MIN_NOTED_SHARE = "invalid UTF-8 bytes replaced", 0.01


def find_files(inputs: Inputs) -> list[Path]:
    """Return the files that `inputs` name, without duplicates, in a deterministic order.

    Inputs are files, folders (searched recursively, hidden entries skipped) and patterns with `*`,
    `**`, `?` or `[...]`, each with at least one file; hub data sets (`hub:...`) and standard input
    (`-`) are ignored.
    """
    sources = (source for source, _ in expand_inputs(inputs))
    return [Path(source) for source in sources if source != STANDARD_INPUT and not source.startswith(HUB_PREFIX)]


def find_sources(inputs: Inputs, skipped: Counter[str] | None = None) -> list[str]:
    """Return files as `find_files` does, plus hub data sets and standard input (`-`)."""
    return [source for source, _ in expand_inputs(inputs, skipped)]


def expand_inputs(inputs: Inputs, skipped: Counter[str] | None = None) -> list[tuple[str, bool]]:
    """Return (source, is_named) of files, hub data sets and `-`; False: from a folder or pattern.

    `skipped` receives what folders and patterns hold and what is not read, by reason.
    """
    if isinstance(inputs, str | Path):
        inputs = [inputs]
    if not inputs:
        raise DataError("No input. Name at least one file, folder, pattern or hub data set, or - for standard input.")
    found: dict[str, bool] = {}
    for name in map(str, inputs):
        if name == STANDARD_INPUT or name.startswith(HUB_PREFIX):
            found.setdefault(name, True)
            continue
        path = Path(name).expanduser()
        try:
            is_named = path.exists() and not path.is_dir()
            for file in [path] if is_named else _files_of(path, Counter() if skipped is None else skipped):
                found.setdefault(str(file), is_named)
        except OSError as error:
            raise _cannot_open(error.filename or name, error) from error
    return list(found.items())


def _files_of(path: Path, skipped: Counter[str]) -> list[Path]:
    if path.is_dir():
        matches, problem = [path], f"Folder '{path}' holds no file (hidden files are skipped). Put text files into it."
    elif glob.has_magic(str(path)):
        _check_readable(path)
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        problem = f"Pattern '{path}' matches no file. Check it, and that the shell has not expanded it."
    elif path.is_symlink():
        target = os.readlink(path)
        raise DataError(f"'{path}' is a link to '{target}', which does not exist. Repair the link, or pass the file.")
    else:
        matches, problem = [], f"File or folder '{path}' does not exist{_nearest_existing(path)}"
    files = [
        file
        for match in matches
        for file in (files_below(match, skipped) if match.is_dir() else _regular_files([match], skipped))
    ]
    if not files:
        raise DataError(problem)
    return files


def _check_readable(pattern: Path) -> None:
    """Raise for a folder that `glob` would pass over because it may not be read."""
    for parent in pattern.parents:
        for match in glob.glob(str(parent), recursive=True):
            if os.path.isdir(match) and not os.access(match, os.R_OK | os.X_OK):
                raise DataError(f"{match}: Cannot be opened (permission denied). Check its permissions.")


def files_below(folder: Path, skipped: Counter[str]) -> list[Path]:
    """Return the visible files below a folder, sorted by path; follows links, without loops."""
    files: list[Path] = []
    seen: set[str] = set()

    def stop(error: OSError) -> None:
        raise error

    for current, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        real = os.path.realpath(current)
        if real in seen:
            skipped["links to folders that are read already"] += 1
            folders.clear()
            continue
        seen.add(real)
        for what, entries in (("hidden folders", folders), ("hidden files", names)):
            skipped.update(what for name in entries if name.startswith("."))
            entries[:] = [name for name in entries if not name.startswith(".")]
        files += _regular_files((Path(current, name) for name in names), skipped)
    return sorted(files, key=lambda file: file.parts)


def _regular_files(paths: Iterable[Path], skipped: Counter[str]) -> Iterator[Path]:
    for path in paths:
        if path.is_file():
            yield path
        else:
            skipped["pipes, sockets and devices" if path.exists() else "links to missing files"] += 1


def _nearest_existing(path: Path) -> str:
    missing = path
    while not missing.parent.exists() and missing.parent != missing:
        missing = missing.parent
    try:
        names = os.listdir(missing.parent)
    except OSError:
        names = []
    part = "" if missing == path else f" (no '{missing}')"
    close = nearest_first(missing.name, names, cutoff=SIMILAR)
    return f"{part}. " + (f"Did you mean '{missing.parent / close[0]}'?" if close else "Check the path.")


def _cannot_open(name: str, error: OSError) -> DataError:
    return DataError(f"{name}: Cannot be opened ({error.strerror}). Check its permissions.")


_copies: dict[Any, Path] = {}


def local_path(source: str) -> Path:
    """Return the path of a file; of standard input or a pipe, that of a copy which can be read again."""
    path = Path(source)
    if source != STANDARD_INPUT and not path.is_fifo() and not path.is_char_device():
        return path
    try:
        if _copy_key(source) not in _copies:
            handle, name = tempfile.mkstemp(prefix="stemformer-")
            atexit.register(Path(name).unlink, missing_ok=True)
            with open(handle, "wb") as copy:
                if source == STANDARD_INPUT:
                    shutil.copyfileobj(sys.stdin.buffer, copy)
                else:
                    with path.open("rb") as stream:
                        shutil.copyfileobj(stream, copy)
            _copies[_copy_key(source)] = Path(name)
        return _copies[_copy_key(source)]
    except OSError as error:
        raise _cannot_open(source, error) from error


def _copy_key(source: str) -> Any:
    # A pipe that is written to again has another time.
    status = None if source == STANDARD_INPUT else Path(source).stat()
    return sys.stdin if status is None else (source, status.st_ino, status.st_mtime_ns)


def file_states(sources: Iterable[str]) -> dict[str, list[tuple[str, int, int]]]:
    """Return name, size and time of each file, or of the files of a folder; none of a missing one."""
    states = {}
    for source in sources:
        path = local_path(source)
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        found = [(str(file), file.stat()) for file in files if file.exists()]
        states[source] = [(name, status.st_size, status.st_mtime_ns) for name, status in found]
    return states


def check_files_unchanged(states: Mapping[str, list[tuple[str, int, int]]]) -> None:
    """Raise DataError if a file has changed since `file_states`."""
    for source, state in file_states(states).items():
        if state != states[source]:
            problem = f"{source}: The file changed while it was read"
            raise DataError(f"{problem}. Wait until it is complete, and run the command again.")


def open_file(source: str) -> io.BufferedIOBase:
    """Open a file, or what standard input (`-`) or a pipe holds, in binary mode."""
    path = local_path(source)
    try:
        return path.open("rb")
    except OSError as error:
        raise _cannot_open(source, error) from error


def read_text(source: str, *, allow_blank: bool = False) -> str:
    r"""Return the text of a file or standard input, with `\n` for CR LF and CR."""
    return "".join(stream_text(source, allow_blank=allow_blank))


def stream_text(source: str, *, allow_blank: bool = False, newline: str | None = None) -> Iterator[str]:
    """Yield blocks of what `read_text` returns; with `newline=""` newlines stay as they are."""
    name = STANDARD_INPUT_NAME if source == STANDARD_INPUT else source
    with open_file(source) as file:
        stream = decompress(file, name, compression=split_suffixes(source)[2])
        blocks = text_blocks(stream, name, errors=None, skipped=Counter(), newline=newline)
        head, blocks = read_ahead(blocks, lambda text: not text.isspace())
        if not allow_blank and not head.strip():
            raise DataError(f"{name}: The file is blank. Expected at least one record.")
        yield from blocks


def quoted(names: Iterable[str], most: int = 30) -> str:
    """Return names in quotes, separated by commas; of more than `most`, the first ones and their number."""
    return format_list(map(repr, names), most)


def split_suffixes(name: str) -> tuple[str, str, str]:
    """Return a name without compression suffix, its format ("" for text), its compression."""
    lowered = name.lower()
    for short, full in SHORT_SUFFIXES.items():
        if lowered.endswith(short):
            lowered, name = lowered.removesuffix(short) + full, name[: -len(short)] + full
    compression = next((suffix for suffix in COMPRESSIONS if lowered.endswith(suffix)), "")
    lowered = lowered.removesuffix(compression)
    kind = next((suffix for suffix in FORMATS if lowered.endswith(suffix)), "")
    return name[: len(lowered)], kind, compression


class _Stream(io.RawIOBase):
    """Readable stream over blocks of bytes."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._rest = blocks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        # An empty block is not the end.
        while not self._rest and (block := next(self._blocks, None)) is not None:
            self._rest = memoryview(block)
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def open_counted(file: io.BufferedIOBase, on_bytes: Callable[[int], None]) -> io.BufferedReader:
    """Wrap an open file in a stream that reports the number of bytes of each read."""

    def blocks() -> Iterator[bytes]:
        while data := file.read(BLOCK_BYTES):
            on_bytes(len(data))
            yield data

    return io.BufferedReader(_Stream(blocks()), BLOCK_BYTES)


def decompress(stream: io.BufferedIOBase, name: str, *, compression: str) -> io.BufferedIOBase:
    """Return a stream of decompressed bytes; concatenated compressed files are read as one."""
    if not compression:
        return stream
    return io.BufferedReader(_Stream(_decompressed_blocks(stream, name, compression)), BLOCK_BYTES)


def _decompressed_blocks(stream: io.BufferedIOBase, name: str, compression: str) -> Iterator[bytes]:
    try:
        if compression == ".zst":
            yield from _zstd_blocks(stream)
        else:
            file = _OPENERS[compression](cast(IO[bytes], stream))
            while data := file.read(BLOCK_BYTES):
                yield data
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise damaged_file(name, f"{compression} data", error) from error


def damaged_file(name: str, kind: str, error: Exception) -> DataError:
    """Return the error for a file that its library cannot read."""
    reason = str(error).partition("\n")[0]
    return DataError(f"{name}: Truncated, corrupt or not {kind} ({reason}). Get the file again.", damaged=True)


def _zstd_blocks(stream: io.BufferedIOBase) -> Iterator[bytes]:
    """Decompress zstd frames and detect truncation, which the library's own stream does not."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = decompressor.decompressobj()
    is_inside, pending = False, b""
    while data := pending or stream.read(SNIFFED_BYTES):
        yield frame.decompress(data)
        is_inside, pending = not frame.eof, frame.unused_data
        if frame.eof:
            frame = decompressor.decompressobj()
    if is_inside:
        raise EOFError("the last frame is truncated")


def text_blocks(
    stream: io.BufferedIOBase, name: str, *, errors: str | None, skipped: Counter[str], newline: str | None = None
) -> Iterator[str]:
    r"""Yield blocks of a UTF-8 stream as text, without BOM, with `\n` for CR LF and CR.

    `errors` is the option --errors, or None for a reader without that option. With `newline=""`, newlines stay as
    they are; none is divided over two blocks.
    """
    newlines = io.IncrementalNewlineDecoder(None, translate=newline is None)
    data = stream.read(BLOCK_BYTES)
    _check_is_text(data, name)
    offset = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    block = data[offset:]
    while True:
        text, used = _decode(block, name, offset=offset, final=not data, errors=errors, skipped=skipped)
        if text := newlines.decode(text, final=not data):
            yield text
        if not data:
            return
        data = stream.read(BLOCK_BYTES)
        offset, block = offset + used, block[used:] + data


def _check_is_text(head: bytes, name: str) -> None:
    for magic, what, advice in MAGIC:
        if head.startswith(magic):
            if name == STANDARD_INPUT_NAME:
                advice = advice.replace("Name it", "Write it to a file whose name ends in")
            raise DataError(f"{name}: Expected UTF-8 text, found {what}. {advice}.")
    if head[257:262] == b"ustar":
        raise DataError(f"{name}: Expected UTF-8 text, found a tar archive. Name it .tar.")
    nul = head.find(b"\0", 0, SNIFFED_BYTES)
    if nul >= 0:
        raise DataError(f"{name}: Expected UTF-8 text, found a binary file (NUL byte at offset {nul}). Remove it.")


def _decode(
    block: bytes, name: str, *, offset: int, final: bool, errors: str | None, skipped: Counter[str]
) -> tuple[str, int]:
    """Return the text of a block at `offset` of its file, and the number of bytes decoded."""
    try:
        return codecs.utf_8_decode(block, "strict", final)
    except UnicodeDecodeError as error:
        if errors != "replace":
            where = f"byte 0x{block[error.start]:02x} at offset {offset + error.start}"
            advice = f"Convert it to UTF-8 ({CONVERT} of the file)"
            advice += "" if errors is None else ", or pass --errors replace"
            raise DataError(f"{name}: Not UTF-8: {where}. {advice}.") from error
    text, used = codecs.utf_8_decode(block, "replace", final)
    num_replaced = text.count("\ufffd") - block[:used].count("\ufffd".encode())
    skipped[_REPLACED] += used - (len(text.encode()) - 3 * num_replaced)
    return text, used


def note_replaced(skipped: Mapping[str, int], num_characters: int) -> str | None:
    """Return a note if many characters of a text are replaced bytes, as where a file has another encoding."""
    share = min(1.0, skipped.get(_REPLACED, 0) / max(1, num_characters))
    if share < _MIN_NOTED_SHARE:
        return None
    problem = f"{share:.1%} of the characters are replaced bytes that are not UTF-8"
    return f"{problem}: the files probably have another encoding. Convert them to UTF-8 ({CONVERT} of the files)"


def read_ahead(blocks: Iterator[str], is_enough: Callable[[str], bool]) -> tuple[str, Iterator[str]]:
    """Return the first blocks as one text, up to where it is enough, and all blocks."""
    head = ""
    for block in blocks:
        head += block
        if is_enough(head):
            break
    return head, chain([head], blocks)


def text_lines(blocks: Iterator[str]) -> Iterator[str]:
    r"""Yield the lines of a text in blocks, without newlines; only `\n` ends a line."""
    # Lines may span many blocks: joining their pieces once keeps the time linear.
    pieces: list[str] = []
    for block in blocks:
        first, *lines = block.split("\n")
        pieces.append(first)
        if lines:
            yield "".join(pieces)
            pieces = [lines.pop()]
            yield from lines
    if last := "".join(pieces):
        yield last
