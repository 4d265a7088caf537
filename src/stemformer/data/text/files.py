"""Files on disk as streams: found by name, folder or pattern, decompressed, and decoded to text.

Everything here is read in blocks of bounded size, and every failure names the file it is in (and the archive member).
What is truncated or corrupt raises with `damaged=True`; text that is something else than its name says does not.
"""

import bz2
import codecs
import difflib
import glob
import gzip
import io
import lzma
import os
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, cast

from stemformer.errors import DataError

HUB_PREFIX = "hub:"
STANDARD_INPUT = "-"
BLOCK_BYTES = 1 << 18
SNIFFED_BYTES = 1 << 13
COMPRESSIONS = (".gz", ".xz", ".zst", ".bz2")
SHORT_SUFFIXES = {".tgz": ".tar.gz", ".txz": ".tar.xz", ".tzst": ".tar.zst", ".tbz2": ".tar.bz2", ".ndjson": ".jsonl"}
FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".tar")
MAGIC = (
    (b"\xff\xfe", "UTF-16 text", "convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    (b"\xfe\xff", "UTF-16 text", "convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    (b"\x1f\x8b", "gzip data", "name it .gz"),
    (b"\xfd7zXZ\0", "xz data", "name it .xz"),
    (b"\x28\xb5\x2f\xfd", "zstd data", "name it .zst"),
    (b"PAR1", "a parquet file", "name it .parquet"),
    (b"PK\x03\x04", "a zip file (as .docx, .xlsx, .epub and .zip are)", "unpack it or save it as plain text"),
    (b"%PDF-", "a PDF file", "save it as plain text"),
    (b"\x89PNG", "a PNG image", "leave it out"),
    (b"\xff\xd8\xff", "a JPEG image", "leave it out"),
    (b"GIF8", "a GIF image", "leave it out"),
)


def find_files(inputs: Sequence[str | Path]) -> list[Path]:
    """Returns the files that `inputs` stand for, each once, in an order that is the same on every machine.

    Args:
        inputs: Files, folders (searched recursively, sorted by name; hidden files and folders are skipped) and patterns
            with `*`, `**`, `?` or `[...]`. Hub data sets (`hub:...`) are passed over: they are not files.

    Returns:
        Paths, in the order of `inputs`. A file found twice is listed where it is found first.

    Raises:
        DataError: A name does not exist (the nearest that does is named), a pattern or folder holds no file, or
            `inputs` is empty.

    Example:
        >>> find_files(["books/", "news/*.txt", "extra.jsonl.gz"])  # doctest: +SKIP
        [PosixPath('books/a.txt'), PosixPath('books/b.txt'), PosixPath('news/1.txt'), PosixPath('extra.jsonl.gz')]
    """
    return [path for path, _ in find_named_files(inputs)]


def find_named_files(inputs: Sequence[str | Path]) -> list[tuple[Path, bool]]:
    """Returns the paths of `find_files`, each with whether the user named the file itself, not a folder or pattern."""
    if isinstance(inputs, str | Path):
        inputs = [inputs]
    if not inputs:
        raise DataError("no input was given: name at least one file, folder, pattern or hub data set")
    found: dict[Path, bool] = {}
    for given in inputs:
        if str(given).startswith(HUB_PREFIX):
            continue
        path = Path(given).expanduser()
        if path.is_dir():
            files = _files_below(path)
            if not files:
                raise DataError(f"no file in folder '{path}' (hidden ones are skipped): put text files into it")
        elif path.exists():
            found.setdefault(path, True)
            continue
        elif glob.has_magic(str(path)):
            matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
            files = [file for match in matches for file in (_files_below(match) if match.is_dir() else [match])]
            if not files:
                raise DataError(f"no file matches '{path}': check the pattern, and that the shell has left it as it is")
        else:
            raise DataError(f"no such file or folder: '{path}'{_nearest_existing(path)}")
        for file in files:
            found.setdefault(file, False)
    return list(found.items())


def find_sources(inputs: str | Path | Sequence[str | Path]) -> list[str]:
    """Returns the files that `inputs` stand for, hub data sets and standard input (`-`) as given, each once, in order.

    Args:
        inputs: What `find_files` takes, hub data sets and `-`; one of them may stand alone.

    Raises:
        DataError: As `find_files`.
    """
    sources: dict[str, None] = {}
    for given in [inputs] if isinstance(inputs, str | Path) else inputs or find_files([]):
        is_stream = str(given) == STANDARD_INPUT or str(given).startswith(HUB_PREFIX)
        sources |= dict.fromkeys([str(given)] if is_stream else map(str, find_files([given])))
    return list(sources)


def open_file(source: str) -> io.BufferedIOBase:
    """Returns an open file, or what standard input holds for `-`, as its bytes are.

    Raises:
        DataError: It cannot be opened.
    """
    if source == STANDARD_INPUT:
        return io.BytesIO(sys.stdin.buffer.read())
    try:
        return open(source, "rb")
    except OSError as error:
        raise DataError(f"{source}: cannot be opened ({error.strerror}): check its permissions") from error


def read_text(source: str, *, errors: str = "strict", skipped: Counter[str] | None = None) -> str:
    """Returns the whole text of a file, decompressed as its name says, with newlines for CR LF and CR.

    Args:
        source: The file, or `-` for standard input.
        errors: "strict", or "replace" to go on where bytes are not UTF-8.
        skipped: Receives "invalid UTF-8 bytes replaced".

    Raises:
        DataError: It cannot be opened, is not UTF-8 text, or holds nothing; `damaged` if truncated or corrupt.
    """
    skipped = Counter() if skipped is None else skipped
    with open_file(source) as file:
        stream = decompress(file, source, compression=split_suffixes(source)[2])
        text = "".join(text_blocks(stream, source, errors=errors, skipped=skipped))
    if not text.strip():
        raise DataError(f"{source}: there is no text in it: expected one record at least")
    return text


def nearest_first(name: str, names: Sequence[str]) -> list[str]:
    """Returns `names` ordered by their likeness to `name`, as suggestions in messages."""
    return sorted(names, key=lambda other: (-difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio(), other))


def _files_below(folder: Path) -> list[Path]:
    """Returns the visible files below a folder, following links (each folder once), sorted by their paths' parts."""
    files: list[Path] = []
    seen: set[str] = set()
    for current, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(current)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            files.extend(Path(current, name) for name in names if not name.startswith("."))
        seen.add(real)
    return sorted((file for file in files if file.is_file()), key=lambda file: file.parts)


def _nearest_existing(path: Path) -> str:
    """Returns a hint for a path that does not exist: which part is missing, and the name most like it."""
    missing = path
    while not missing.parent.exists() and missing.parent != missing:
        missing = missing.parent
    try:
        names = os.listdir(missing.parent)
    except OSError:
        names = []
    close = nearest_first(missing.name, names)[:1]
    where = "" if missing == path else f" ('{missing}' does not exist)"
    return where + (f"; did you mean '{missing.parent / close[0]}'?" if close else ": check the path")


def split_suffixes(name: str) -> tuple[str, str, str]:
    """Returns a file's name without its compression, its format (one of `FORMATS`, or "" for text) and its compression.

    Example:
        >>> split_suffixes("data/Part.JSONL.gz")
        ('data/Part.JSONL', '.jsonl', '.gz')
    """
    lowered = name.lower()
    for short, full in SHORT_SUFFIXES.items():
        if lowered.endswith(short):
            lowered, name = lowered.removesuffix(short) + full, name[: -len(short)] + full
    compression = next((suffix for suffix in COMPRESSIONS if lowered.endswith(suffix)), "")
    lowered = lowered.removesuffix(compression)
    kind = next((suffix for suffix in FORMATS if lowered.endswith(suffix)), "")
    return name[: len(lowered)], kind, compression


class _Stream(io.RawIOBase):
    """A readable stream made of one function that returns at most so many bytes, and none at the end."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def open_counted(file: io.BufferedIOBase, on_bytes: Callable[[int], None]) -> io.BufferedReader:
    """Returns a stream over an open file that reports each number of bytes read from it."""

    def read(size: int) -> bytes:
        data = file.read(size)
        if data:
            on_bytes(len(data))
        return data

    return io.BufferedReader(_Stream(read), BLOCK_BYTES)


def decompress(stream: io.BufferedIOBase, name: str, *, compression: str) -> io.BufferedIOBase:
    """Returns a stream of the decompressed bytes of `stream`; what is truncated or corrupt raises where it is read.

    Args:
        stream: Compressed bytes; several compressed parts in a row are read as one.
        name: What messages call it.
        compression: One of `COMPRESSIONS`, or "" to get `stream` itself.

    Raises:
        DataError: With `damaged`, on reading.
    """
    if not compression:
        return stream
    failures: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error, lzma.LZMAError)
    read: Callable[[int], bytes]
    if compression == ".zst":
        import zstandard

        failures += (zstandard.ZstdError,)
        read = _zstd_reader(stream)
    elif compression == ".gz":
        read = gzip.GzipFile(fileobj=stream).read
    else:
        read = (lzma.LZMAFile if compression == ".xz" else bz2.BZ2File)(cast(IO[bytes], stream)).read

    def guarded(size: int) -> bytes:
        try:
            return read(size)
        except failures as error:
            raise DataError(
                f"{name}: truncated, corrupt or not {compression} data ({error}): get the file again", damaged=True
            ) from error

    return io.BufferedReader(_Stream(guarded), BLOCK_BYTES)


def _zstd_reader(stream: io.BufferedIOBase) -> Callable[[int], bytes]:
    """Returns a reader of zstd frames that, unlike the library's own stream, notices when the last one is cut short."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = decompressor.decompressobj()
    is_inside, pending, ready = False, b"", memoryview(b"")

    def read(size: int) -> bytes:
        nonlocal frame, is_inside, pending, ready
        while not ready:
            data = pending or stream.read(SNIFFED_BYTES)
            if not data:
                if is_inside:
                    raise EOFError("the last frame is cut short")
                return b""
            ready = memoryview(frame.decompress(data))
            is_inside = not frame.eof
            pending = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame = decompressor.decompressobj()
        taken, ready = bytes(ready[:size]), ready[size:]
        return taken

    return read


def text_blocks(stream: io.BufferedIOBase, name: str, *, errors: str, skipped: Counter[str]) -> Iterator[str]:
    """Yields the text of a UTF-8 stream in blocks, without a byte order mark and with newlines for CR LF and CR.

    Args:
        stream: The bytes.
        name: What messages call it.
        errors: "strict", or "replace" to put U+FFFD for what is not UTF-8 and count it in `skipped`.
        skipped: Receives "invalid UTF-8 bytes replaced".

    Raises:
        DataError: The bytes are not text, or not UTF-8 (with the offset of the first such byte).
    """
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset, pending, is_first = 0, b"", True
    while True:
        data = stream.read(BLOCK_BYTES)
        if is_first:
            _refuse_binary(data, name)
        block = pending + data
        text, used = _decode(block, name, offset=offset, final=not data, errors=errors, skipped=skipped)
        offset, pending = offset + used, block[used:]
        if is_first:
            text, is_first = text.removeprefix("\ufeff"), False
        text = newlines.decode(text, final=not data)
        if text:
            yield text
        if not data:
            return


def _refuse_binary(head: bytes, name: str) -> None:
    """Raise if the first bytes of what should be text are of something else."""
    for magic, what, advice in MAGIC:
        if head.startswith(magic):
            raise DataError(f"{name}: expected UTF-8 text, found {what}: {advice}")
    if head[257:262] == b"ustar":
        raise DataError(f"{name}: expected UTF-8 text, found a tar archive: name it .tar")
    at = head.find(b"\0", 0, SNIFFED_BYTES)
    if at >= 0:
        raise DataError(f"{name}: expected UTF-8 text, found a binary file (a NUL byte at offset {at}): leave it out")


def _decode(
    block: bytes, name: str, *, offset: int, final: bool, errors: str, skipped: Counter[str]
) -> tuple[str, int]:
    """Returns the text of a block that begins at `offset` of its file, and how many of its bytes that is."""
    try:
        return codecs.utf_8_decode(block, "strict", final)
    except UnicodeDecodeError as error:
        if errors == "strict":
            raise DataError(
                f"{name}: not UTF-8: byte 0x{block[error.start]:02x} at offset {offset + error.start}:"
                " convert the file to UTF-8, or, where the command has that option, pass --errors replace to go on"
            ) from error
    text, used = codecs.utf_8_decode(block, "replace", final)
    num_replaced = text.count("\ufffd") - block[:used].count("\ufffd".encode())
    skipped["invalid UTF-8 bytes replaced"] += used - (len(text.encode()) - 3 * num_replaced)
    return text, used


def text_lines(blocks: Iterator[str]) -> Iterator[str]:
    """Yields the lines of a text given in blocks, without their newlines; nothing else ends a line."""
    pieces: list[str] = []
    for block in blocks:
        first, newline, rest = block.partition("\n")
        pieces.append(first)
        if newline:
            yield "".join(pieces)
            *lines, last = rest.split("\n")
            yield from lines
            pieces = [last]
    last = "".join(pieces)
    if last:
        yield last
