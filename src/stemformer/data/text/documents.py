"""Text corpora: files, folders, archives and hub data sets, read as a stream of documents.

What a document is depends on the format. Of records (JSON lines, CSV, TSV, parquet, hub data sets) each is one. Of
Wikipedia-extractor markup, recognised where a text begins with `<doc `, each article is one. Plain text is divided by
`documents`. Nothing is dropped silently: what is passed over is counted in `skipped`, by reason.
"""

import html
import io
import re
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import cast

from stemformer.data.text.files import (
    HUB_PREFIX,
    decompress,
    find_files,
    find_named_files,
    open_counted,
    split_suffixes,
    text_blocks,
    text_lines,
)
from stemformer.data.text.readers import read_csv, read_hub, read_json, read_parquet
from stemformer.errors import ConfigError, DataError

DOCUMENTS = ("auto", "line", "blank", "file")
ERRORS = ("strict", "replace")
HEAD_CHARACTERS = 1 << 16
COPY_BYTES = 1 << 20
_BLANK_LINE = re.compile(r"\S[^\S\n]*\n[^\S\n]*\n\s*\S")
_DOC_OPEN = re.compile(r"<doc\s[^\n]*>\s*")
_DOC_TITLE = re.compile(r'\btitle="(.*?)"(?=\s+\w+=|\s*>\s*$)')


@dataclass(frozen=True)
class Document:
    """A text, and where it is from.

    Args:
        text: The text, never only white space, without newlines around it.
        source: `path`, `path:member` or `path:line`, for messages.
    """

    text: str
    source: str


@dataclass(frozen=True)
class _Reading:
    """How a file is to be read: the user's choices, and where to count."""

    documents: str
    column: str
    errors: str
    on_bytes: Callable[[int], None]
    skipped: Counter[str]


def read_documents(
    inputs: Sequence[str | Path],
    *,
    documents: str = "auto",
    column: str = "text",
    errors: str = "strict",
    on_bytes: Callable[[int], None] | None = None,
    skipped: Counter[str] | None = None,
) -> Iterator[Document]:
    """Returns a stream of the documents of `inputs`, in order.

    Memory holds a block of a file and one document, whatever the size of the files. Formats go by the suffix:
    `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`, `.tar` of such files, anything else is plain text; each may be
    compressed (`.gz`, `.xz`, `.zst`, `.bz2`).

    Args:
        inputs: Files, folders, patterns (see `find_files`) and hub data sets, `hub:owner/name[:config][:split]`.
        documents: What a document of plain text is: a "line", a block between "blank" lines, or a "file". "auto" is
            "file" in archives and for what a folder or a pattern gave; for a file named itself it is "blank" if there
            is a blank line within its first 64 K characters, else "line".
        column: Which column of records is the text.
        errors: "strict", or "replace" to go on where bytes are not UTF-8.
        on_bytes: Called with each number of raw (compressed) bytes used up; they add up to `total_bytes(inputs)`.
        skipped: Receives the numbers of what was passed over, by reason.

    Raises:
        ConfigError: An unknown value of `documents` or `errors` (at the call).
        DataError: An input does not exist (at the call), or cannot be read as its name says; `damaged` if truncated or
            corrupt.

    Example:
        >>> next(read_documents(["notes.txt.gz"])).source  # doctest: +SKIP
        'notes.txt.gz:1'
    """
    for option, value, choices in (("documents", documents, DOCUMENTS), ("errors", errors, ERRORS)):
        if value not in choices:
            raise ConfigError(f"{option} is '{value}', expected one of {', '.join(choices)}")
    if isinstance(inputs, str | Path):
        inputs = [inputs]
    find_named_files(inputs)  # so that a name that does not exist is told before hours of work
    skipped = Counter() if skipped is None else skipped
    reading = _Reading(documents, column, errors, on_bytes or _ignore, skipped)
    return _kept(_read_inputs(inputs, reading), reading.skipped)


def total_bytes(inputs: Sequence[str | Path]) -> int | None:
    """Returns the size on disk of the files that `inputs` stand for; None with hub data sets, whose size is unknown.

    Example:
        >>> total_bytes(["books/", "extra.jsonl.gz"])  # doctest: +SKIP
        80341507
    """
    if isinstance(inputs, str | Path):
        inputs = [inputs]
    if any(str(given).startswith(HUB_PREFIX) for given in inputs):
        return None
    return sum(path.stat().st_size for path in find_files(inputs))


def _kept(pairs: Iterator[tuple[str, str | None]], skipped: Counter[str]) -> Iterator[Document]:
    """Yields the documents that have a text, count the others."""
    for source, text in pairs:
        if text is None or not text or text.isspace():
            skipped["empty documents"] += 1
        else:
            yield Document(text.strip("\n"), source)


def _read_inputs(inputs: Sequence[str | Path], reading: _Reading) -> Iterator[tuple[str, str | None]]:
    """Yields sources and texts of all inputs; a file given twice is read where it comes first."""
    seen: set[Path] = set()
    for given in inputs:
        if str(given).startswith(HUB_PREFIX):
            yield from read_hub(str(given), column=reading.column)
            continue
        for path, is_named in find_named_files([given]):
            if path not in seen:
                seen.add(path)
                yield from _read_file(path, reading, is_named=is_named)


def _read_file(path: Path, reading: _Reading, *, is_named: bool) -> Iterator[tuple[str, str | None]]:
    """Yields sources and texts of one file, and report all of its bytes whether or not all were needed."""
    num_bytes = 0

    def count(number: int) -> None:
        nonlocal num_bytes
        num_bytes += number
        reading.on_bytes(number)

    name = str(path)
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb"))
        except OSError as error:
            raise DataError(f"{name}: cannot be opened ({error.strerror}): check its permissions") from error
        if split_suffixes(name)[1:] == (".parquet", ""):
            stream: io.BufferedReader = file
            is_empty = path.stat().st_size == 0
        else:
            stream = open_counted(file, count)
            is_empty = not stream.peek(1)
        if is_empty:
            if is_named:
                raise DataError(f"{name}: the file is empty (0 bytes): expected text")
            reading.skipped["empty files"] += 1
            return
        yield from _read_stream(stream, name, name, reading, is_named=is_named, on_group=count)
        if (rest := path.stat().st_size - num_bytes) > 0:
            reading.on_bytes(rest)


def _read_stream(
    stream: io.BufferedIOBase,
    name: str,
    path: str,
    reading: _Reading,
    *,
    is_named: bool,
    on_group: Callable[[int], None] | None = None,
) -> Iterator[tuple[str, str | None]]:
    """Yields sources and texts of a file or member whose format its `path` tells; messages call it `name`."""
    _, kind, compression = split_suffixes(path)
    stream = decompress(stream, name, compression=compression)
    if kind == ".tar":
        yield from _read_tar(stream, name, reading)
    elif kind == ".parquet":
        with ExitStack() as stack:
            if compression or on_group is None:
                stream, on_group = _copied(stream, stack), None  # its bytes are counted as they are copied
            yield from read_parquet(stream, name, column=reading.column, on_bytes=on_group or _ignore)
    else:
        blocks = text_blocks(stream, name, errors=reading.errors, skipped=reading.skipped)
        if kind in (".json", ".jsonl"):
            yield from read_json(blocks, name, column=reading.column, errors=reading.errors, skipped=reading.skipped)
        elif kind in (".csv", ".tsv"):
            yield from read_csv(blocks, name, column=reading.column, delimiter="," if kind == ".csv" else "\t")
        else:
            yield from _read_text(blocks, name, reading, is_named=is_named)


def _ignore(_: int) -> None:
    """Take a number of bytes that nobody asked for."""


def _copied(stream: io.BufferedIOBase, stack: ExitStack) -> io.BufferedIOBase:
    """Returns a temporary file on disk, closed by `stack`, with what `stream` holds: parquet is read from its end."""
    copy: io.BufferedIOBase = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    shutil.copyfileobj(stream, copy, COPY_BYTES)
    copy.seek(0)
    return copy


class _StrictTarInfo(tarfile.TarInfo):
    """A header that raises where the library would take damage, or a missing end, for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_StrictTarInfo":
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def _read_tar(stream: io.BufferedIOBase, name: str, reading: _Reading) -> Iterator[tuple[str, str | None]]:
    """Yields sources and texts of the regular, visible files of an archive, as they come."""
    try:
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictTarInfo, errors="replace") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else the library keeps every header
                file = tar.extractfile(member) if member.isreg() else None
                if file is None:
                    reading.skipped["archive members that are not regular files"] += 1
                elif any(part.startswith(".") and part.strip(".") for part in Path(member.name).parts):
                    reading.skipped["hidden files"] += 1
                elif member.size == 0:
                    reading.skipped["empty files"] += 1
                else:
                    yield from _read_stream(
                        cast(io.BufferedReader, file), f"{name}:{member.name}", member.name, reading, is_named=False
                    )
    except tarfile.TarError as error:
        raise DataError(f"{name}: truncated, corrupt or not tar ({error}): get the file again", damaged=True) from error


def _read_text(blocks: Iterator[str], name: str, reading: _Reading, *, is_named: bool) -> Iterator[tuple[str, str]]:
    """Yields sources and texts of plain text."""
    head = ""
    for block in blocks:
        head += block
        if len(head) >= HEAD_CHARACTERS:
            break
    blocks = chain([head], blocks)
    documents = reading.documents
    if head.lstrip().startswith("<doc "):
        yield from _read_articles(text_lines(blocks), name, reading.skipped)
        return
    if documents == "auto":
        documents = "file" if not is_named else "blank" if _BLANK_LINE.search(head, 0, HEAD_CHARACTERS) else "line"
    if documents == "file":
        yield name, "".join(blocks)
    elif documents == "line":
        yield from ((f"{name}:{number}", line) for number, line in enumerate(text_lines(blocks), 1) if line.strip())
    else:
        yield from _read_paragraphs(text_lines(blocks), name)


def _read_paragraphs(lines: Iterator[str], name: str) -> Iterator[tuple[str, str]]:
    """Yields the blocks of lines between blank lines, with the number of their first line."""
    block: list[str] = []
    for number, line in enumerate(chain(lines, [""]), 1):
        if line.strip():
            block.append(line)
        elif block:
            yield f"{name}:{number - len(block)}", "\n".join(block)
            block = []


def _read_articles(lines: Iterator[str], name: str, skipped: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yields the bodies of `<doc ... title="..."> ... </doc>` articles, without a first line that repeats the title."""
    body: list[str] | None = None
    title, begin = "", 0
    for number, line in enumerate(lines, 1):
        if line.startswith("<doc") and _DOC_OPEN.fullmatch(line):
            if body is not None:
                skipped["articles without </doc>"] += 1
                yield f"{name}:{begin}", _without_title(body, title)
            found = _DOC_TITLE.search(line)
            body, title, begin = [], found[1] if found else "", number
        elif line.startswith("</doc>") and body is not None:
            yield f"{name}:{begin}", _without_title(body, title)
            body = None
        elif body is not None:
            body.append(line)
        elif line.strip():
            skipped["lines outside <doc>"] += 1
    if body is not None:
        skipped["articles without </doc>"] += 1
        yield f"{name}:{begin}", _without_title(body, title)


def _without_title(body: list[str], title: str) -> str:
    """Returns an article's text, less a first line that merely repeats the title."""
    text = "\n".join(body).lstrip("\n")
    first, _, rest = text.partition("\n")
    return rest if first.strip() in (title.strip(), html.unescape(title).strip()) else text
