"""Text corpora: files, folders, archives and hub data sets, read as a stream of documents."""

import html
import io
import re
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import cast

from stemformer.data.text import files
from stemformer.data.text.delimited import delimited_column
from stemformer.data.text.readers import column_texts, hub_rows, json_records, parquet_rows, starts_as_json
from stemformer.errors import ConfigError, DataError

DOCUMENTS = ("auto", "line", "blank", "file")
ERRORS = ("strict", "replace")
HEAD_CHARACTERS = 1 << 16
_BLANK_LINE = re.compile(r"\S[^\S\n]*\n[^\S\n]*\n\s*\S")
_DOC_OPEN = re.compile(r"<doc\s[^\n]*>\s*")
_DOC_TITLE = re.compile(r'\btitle="(.*?)"(?=\s+\w+=|\s*>\s*$)')


@dataclass(frozen=True)
class Document:
    """Non-blank text, and its source: `path`, `path:member` or `path:line`."""

    text: str
    source: str


@dataclass(frozen=True)
class _Options:
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
    """Return an iterator over the documents of `inputs`, in order.

    Files are streamed: memory holds one block and one document. The suffix decides the format:
    `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet` (a document is a record), or `.tar` of such files,
    each also compressed (`.gz`, `.xz`, `.zst`, `.bz2`); anything else is plain text, or articles of
    WikiExtractor if it begins with `<doc `.

    Args:
        inputs: Files, folders, patterns (see `find_files`), hub data sets (see `hub_rows`) and `-`
            for standard input: JSON (see `starts_as_json`), else plain text.
        documents: Unit of plain text: "line", "blank" (blocks separated by blank lines) or "file".
            "auto" means "file" for archive members and files found in a folder or pattern; for
            other files "blank" if the first 64 K characters contain a blank line, else "line".
        errors: "strict", or "replace" to decode invalid UTF-8 as U+FFFD.
        on_bytes: Called with numbers of raw (compressed) bytes; their sum is `total_bytes(inputs)`.
        skipped: Receives the number of skipped items by reason.
    """
    for option, value, choices in (("documents", documents, DOCUMENTS), ("errors", errors, ERRORS)):
        if value not in choices:
            raise ConfigError(f"{option} is '{value}', expected one of {', '.join(choices)}.")
    skipped = Counter() if skipped is None else skipped
    options = _Options(documents, column, errors, on_bytes or (lambda _: None), skipped)
    # Expanded here, not in the iterator, so that missing files raise at the call.
    return _read_inputs(files.expand_inputs(inputs, skipped), options)


def total_bytes(inputs: Sequence[str | Path]) -> int | None:
    """Return the size on disk of all inputs; None if one is a hub data set (size unknown)."""
    sources = files.find_sources(inputs)
    if any(source.startswith(files.HUB_PREFIX) for source in sources):
        return None
    return sum(files.local_path(source).stat().st_size for source in sources)


def _read_inputs(sources: Sequence[tuple[str, bool]], options: _Options) -> Iterator[Document]:
    for source, is_named in sources:
        if source.startswith(files.HUB_PREFIX):
            texts = column_texts(hub_rows(source), options.column)
        else:
            texts = _read_file(source, options, is_named=is_named)
        for location, text in texts:
            if not text or text.isspace():
                options.skipped["empty documents"] += 1
            else:
                yield Document(text.strip("\n"), location)


def _read_file(name: str, options: _Options, *, is_named: bool) -> Iterator[tuple[str, str | None]]:
    """Yield sources and texts of one file, and report all of its bytes, read or not."""
    num_bytes = 0

    def count(number: int) -> None:
        nonlocal num_bytes
        num_bytes += number
        options.on_bytes(number)

    with files.open_file(name) as file:
        size = files.local_path(name).stat().st_size
        # Parquet needs a seekable file; its row groups report their bytes.
        is_parquet = files.split_suffixes(name)[1:] == (".parquet", "")
        stream = cast(io.BufferedReader, file) if is_parquet else files.open_counted(file, count)
        if not stream.peek(1):
            if is_named:
                raise DataError(f"{name}: The file is empty (0 bytes). Expected text.")
            options.skipped["empty files"] += 1
            return
        if is_parquet:
            rows = parquet_rows(stream, name, column=options.column, on_bytes=count)
            yield from column_texts(rows, options.column)
        else:
            shown = files.STANDARD_INPUT_NAME if name == files.STANDARD_INPUT else name
            yield from _read_stream(stream, shown, name, options, is_named=is_named)
        if num_bytes < size:
            options.on_bytes(size - num_bytes)


def _read_stream(
    stream: io.BufferedIOBase, name: str, path: str, options: _Options, *, is_named: bool
) -> Iterator[tuple[str, str | None]]:
    """Yield sources and texts of a file or archive member; the format is that of `path`."""
    _, kind, compression = files.split_suffixes(path)
    stream = files.decompress(stream, name, compression=compression)
    if kind == ".tar":
        yield from _read_tar(stream, name, options)
    elif kind == ".parquet":
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(stream, copy)
            copy.seek(0)
            rows = parquet_rows(cast(io.BufferedIOBase, copy), name, column=options.column)
            yield from column_texts(rows, options.column)
    else:
        blocks = files.text_blocks(stream, name, errors=options.errors, skipped=options.skipped)
        if path == files.STANDARD_INPUT:
            head, blocks = files.read_ahead(blocks, lambda text: not text.isspace())
            kind = ".json" if starts_as_json(head) else ""
        if kind in (".json", ".jsonl"):
            values = json_records(blocks, name)
            yield from column_texts(values, options.column, errors=options.errors, skipped=options.skipped)
        elif kind in (".csv", ".tsv"):
            delimiter = "\t" if kind == ".tsv" else None
            texts = delimited_column(blocks, name, column=options.column, delimiter=delimiter, counts=options.skipped)
            yield from texts
        else:
            yield from _read_text(blocks, name, options, is_named=is_named)


class _StrictTarInfo(tarfile.TarInfo):
    """Tar header that raises where `tarfile` takes damage for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_StrictTarInfo":
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def _read_tar(stream: io.BufferedIOBase, name: str, options: _Options) -> Iterator[tuple[str, str | None]]:
    try:
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictTarInfo, errors="replace") as tar:
            while (member := tar.next()) is not None:
                # tarfile would keep every header in memory.
                tar.members.clear()  # type: ignore[attr-defined]
                file = tar.extractfile(member) if member.isreg() else None
                if file is None:
                    options.skipped["archive members that are not regular files"] += 1
                elif any(part.startswith(".") and part.strip(".") for part in Path(member.name).parts):
                    options.skipped["hidden files"] += 1
                elif member.size == 0:
                    options.skipped["empty files"] += 1
                else:
                    content, source = cast(io.BufferedReader, file), f"{name}:{member.name}"
                    yield from _read_stream(content, source, member.name, options, is_named=False)
    except tarfile.TarError as error:
        raise files.damaged_file(name, "tar", error) from error


def _read_text(blocks: Iterator[str], name: str, options: _Options, *, is_named: bool) -> Iterator[tuple[str, str]]:
    head, blocks = files.read_ahead(blocks, lambda text: len(text) >= HEAD_CHARACTERS)
    documents = options.documents
    if documents == "auto":
        documents = "file" if not is_named else "blank" if _BLANK_LINE.search(head, 0, HEAD_CHARACTERS) else "line"
    lines = files.text_lines(blocks)
    if head.lstrip().startswith("<doc "):
        yield from _read_articles(lines, name, options.skipped)
    elif documents == "file":
        yield name, "".join(blocks)
    elif documents == "line":
        yield from ((f"{name}:{number}", line) for number, line in enumerate(lines, 1) if line.strip())
    else:
        block: list[str] = []
        for number, line in enumerate(chain(lines, [""]), 1):
            if line.strip():
                block.append(line)
            elif block:
                yield f"{name}:{number - len(block)}", "\n".join(block)
                block = []


def _read_articles(lines: Iterator[str], name: str, skipped: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yield bodies of `<doc ... title="..."> ... </doc>` without the repeated title."""
    body: list[str] | None = None
    title = source = ""
    # The tag after the last line ends an article that is still open.
    for number, line in enumerate(chain(lines, ["<doc >"]), 1):
        is_open = line.startswith("<doc") and _DOC_OPEN.fullmatch(line)
        if body is not None and (is_open or line.startswith("</doc>")):
            if is_open:
                skipped["articles without </doc>"] += 1
            text = "\n".join(body).lstrip("\n")
            first, _, rest = text.partition("\n")
            is_title = first.strip() in (title.strip(), html.unescape(title).strip())
            yield source, rest if is_title else text
            body = None
        elif body is not None:
            body.append(line)
        elif line.strip() and not is_open:
            skipped["lines outside <doc>"] += 1
        if is_open:
            found = _DOC_TITLE.search(line)
            body, title, source = [], found[1] if found else "", f"{name}:{number}"
