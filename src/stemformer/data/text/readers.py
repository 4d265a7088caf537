"""JSON, CSV, TSV and parquet files and hub data sets, a record at a time: whole records, or one column of them.

Each reader of a column yields `(source, text)`, where `source` names the file and the line (of parquet and hub data, the
row) that the record begins at, and `text` is None where the column is null. A column that holds a list of strings, as
collections of poems and of paragraphs do, is read as their lines. What they stand on, `json_values`, `csv_rows`,
`parquet_rows` and `hub_rows`, yields sources with whole records.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Literal

from stemformer.data.text.files import HUB_PREFIX, nearest_first, text_lines
from stemformer.errors import DataError

LARGEST_FIELD = 1 << 27
PARQUET_ROWS = 1024
_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACE = re.compile(r"\s*")
_HUB_SPLITS = re.compile(r"(train|validation|valid|dev|test|unsupervised)\b.*")


def read_json(
    blocks: Iterator[str], name: str, *, column: str, errors: str, skipped: Counter[str]
) -> Iterator[tuple[str, str | None]]:
    """Yields a column of JSON objects: one object a line, or a single list of objects.

    Args:
        blocks: The text of the file.
        name: What messages and sources call it.
        column: The key of the text.
        errors: "replace" to put U+FFFD for escapes that are half of a character, and count them in `skipped`.
        skipped: Receives "lone surrogates replaced".

    Raises:
        DataError: A line is not JSON or not an object, has no such key, or (if `errors` is "strict") such an escape.
    """
    for source, record in json_values(blocks, name):
        if not isinstance(record, dict):
            raise DataError(f"{source}: expected a JSON object with a key '{column}', found {type(record).__name__}")
        if column not in record:
            raise _no_column(source, column, list(record))
        text = _as_text(record[column], source, column)
        yield source, without_surrogates(text, source, errors=errors, skipped=skipped) if text else text


def without_surrogates(text: str, source: str, *, errors: str, skipped: Counter[str]) -> str:
    """Returns a text whose halves of characters, which escapes of JSON can make, are U+FFFD, and counts them.

    Raises:
        DataError: There are such halves, and `errors` is "strict".
    """
    num_halves = len(_SURROGATE.findall(text))
    if not num_halves:
        return text
    if errors == "strict":
        raise DataError(f"{source}: a \\u escape is half of a character: repair it, or pass --errors replace")
    skipped["lone surrogates replaced"] += num_halves
    return _SURROGATE.sub("\ufffd", text)


def json_values(blocks: Iterator[str], name: str) -> Iterator[tuple[str, Any]]:
    """Yields sources and the items of a single JSON list, or else what each line holds.

    Raises:
        DataError: Bad JSON, with its line.
    """
    first = ""
    for block in blocks:
        first += block
        if not first.isspace():
            break
    blocks = chain([first], blocks)
    records = _json_list(blocks, name) if first.lstrip().startswith("[") else _json_lines(blocks, name)
    yield from ((f"{name}:{line}", record) for line, record in records)


def _json_lines(blocks: Iterator[str], name: str) -> Iterator[tuple[int, Any]]:
    """Yields line numbers and what the lines hold; empty lines are passed over."""
    for number, line in enumerate(text_lines(blocks), 1):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{name}:{number}: bad JSON ({error}): expected one object a line, or one list of objects"
                ) from error
            yield number, record


def _json_list(blocks: Iterator[str], name: str) -> Iterator[tuple[int, Any]]:
    """Yields the items of one JSON list, with the lines they begin at, holding little more than an item in memory."""
    decoder = json.JSONDecoder()
    buffer, at, line = "", 0, 1

    def fill() -> bool:
        """Drop what is used up and at least double what is left; return whether there was more."""
        nonlocal buffer, at
        parts, wanted = [buffer[at:]], len(buffer) - at
        for block in blocks:
            parts.append(block)
            wanted -= len(block)
            if wanted <= 0:
                break
        buffer, at = "".join(parts), 0
        return len(parts) > 1

    def next_character() -> str:
        """Pass over white space; return the character there, or nothing at the end."""
        nonlocal at, line
        while True:
            space = _SPACE.match(buffer, at)
            end = space.end() if space else at
            line, at = line + buffer.count("\n", at, end), end
            if at < len(buffer):
                return buffer[at]
            if not fill():
                return ""

    def bad(what: str) -> DataError:
        return DataError(f"{name}:{line}: bad JSON ({what}): expected one list of objects")

    separator = next_character()
    while separator != "]":
        at += 1
        character = next_character()
        if character == "]" and separator == "[":
            break
        while True:
            try:
                record, end = decoder.raw_decode(buffer, at)
                break
            except json.JSONDecodeError as error:
                is_cut = error.pos > len(buffer) - 16 or error.msg.startswith("Unterminated")
                if not (is_cut and fill()):
                    raise bad(error.msg) from error
            except RecursionError as error:
                raise bad("nested too deeply") from error
        yield line, record
        line, at = line + buffer.count("\n", at, end), end
        separator = next_character()
        if separator not in ("]", ","):
            raise bad("the list is not closed" if not separator else f"',' or ']' is missing before {separator!r}")
    at += 1
    if next_character():
        raise bad("more text behind the end of the list")


def read_csv(blocks: Iterator[str], name: str, *, column: str, delimiter: str) -> Iterator[tuple[str, str | None]]:
    """Yields a column of a table whose first line names the columns.

    In CSV a field may be quoted, and then hold commas and newlines; in TSV (`delimiter` a tab) quotes are ordinary
    characters, as the format is defined.

    Raises:
        DataError: No such column, a row of another length than the header, or a quote that is never closed.
    """
    header: list[str] = []
    at = 0
    for source, row in csv_rows(blocks, name, delimiter=delimiter, has_quotes=delimiter != "\t"):
        if header:
            yield source, row[at]
            continue
        header = [field.strip() for field in row]
        if column not in header:
            raise _no_column(source, column, header)
        at = header.index(column)


def csv_rows(blocks: Iterator[str], name: str, *, delimiter: str, has_quotes: bool) -> Iterator[tuple[str, list[str]]]:
    """Yields sources and fields of the rows of a table, its header among them; empty lines are passed over.

    Args:
        blocks: The text of the file.
        name: What messages and sources call it.
        delimiter: What parts fields.
        has_quotes: Fields may be quoted, and then hold delimiters and newlines; else quotes are ordinary characters.

    Raises:
        DataError: A row of another length than the first, or a quote that is never closed.
    """
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST_FIELD))  # the library's limit is one for the process
    lines = (line + "\n" for line in text_lines(blocks))
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if has_quotes else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    begin, num_fields = 1, 0
    try:
        for row in reader:
            source, begin = f"{name}:{begin}", reader.line_num + 1
            if not row:
                continue
            num_fields = num_fields or len(row)
            if len(row) != num_fields:
                raise DataError(
                    f"{source}: {len(row)} fields, but the header has {num_fields}: quote text that holds"
                    " separators or newlines"
                )
            yield source, row
    except csv.Error as error:
        raise DataError(f"{name}:{begin}: bad CSV ({error}): is a quote opened here and not closed?") from error


def read_parquet(
    file: io.BufferedIOBase, name: str, *, column: str, on_bytes: Callable[[int], None]
) -> Iterator[tuple[str, str | None]]:
    """Yields a column of a parquet file, a row group at a time.

    Args:
        file: A seekable file.
        name: What messages and sources call it.
        column: The column.
        on_bytes: Called behind each row group with its compressed size, all columns together.

    Raises:
        DataError: No such column; or, with `damaged`, the file cannot be read.
    """
    for source, row in parquet_rows(file, name, column=column, on_bytes=on_bytes):
        yield source, _as_text(row[column], source, column)


def parquet_rows(
    file: io.BufferedIOBase, name: str, *, column: str | None = None, on_bytes: Callable[[int], None] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields sources and rows of a parquet file, with one of their columns if it is given.

    Args:
        file: A seekable file.
        name: What messages and sources call it.
        column: The only column to read.
        on_bytes: Called behind each row group with its compressed size, all columns together.

    Raises:
        DataError: No such column; or, with `damaged`, the file cannot be read.
    """
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        table = parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        names = table.schema_arrow.names
        if column is not None and column not in names:
            raise _no_column(name, column, names)
        columns = None if column is None else [column]
        for group_number in range(table.num_row_groups):
            for batch in table.iter_batches(batch_size=PARQUET_ROWS, row_groups=[group_number], columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{name}:{number}", row
            if on_bytes is not None:
                group = table.metadata.row_group(group_number)
                on_bytes(sum(group.column(i).total_compressed_size for i in range(group.num_columns)))
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{name}: truncated, corrupt or not parquet ({reason}): get the file again", damaged=True
        ) from error


def read_hub(given: str, *, column: str) -> Iterator[tuple[str, str | None]]:
    """Yields a column of a data set of the Hugging Face hub, or of a local folder that the `datasets` library can load.

    Args:
        given: `hub:owner/name`, `hub:owner/name:config`, `hub:owner/name:split` (where it is a usual name of a split)
            or `hub:owner/name:config:split`; the config may be empty. The split is `train` unless given.
        column: The column.

    Raises:
        DataError: The data set cannot be loaded, or has no such column.
    """
    for source, record in hub_rows(given):
        if column not in record:
            raise _no_column(source, column, list(record))
        yield source, _as_text(record[column], source, column)


def hub_rows(given: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields sources and rows of a data set of the hub, named as `read_hub` tells.

    Raises:
        DataError: The data set cannot be loaded.
    """
    import datasets

    path, *rest = given.removeprefix(HUB_PREFIX).split(":")
    if len(rest) > 2 or not path:
        raise DataError(f"'{given}' is not a hub data set: expected hub:owner/name[:config][:split]")
    if len(rest) == 1 and _HUB_SPLITS.fullmatch(rest[0]):
        rest.insert(0, "")
    config, split = [*rest, "", ""][:2]
    try:
        stream = datasets.load_dataset(path, config or None, split=split or "train", streaming=True)
        records = iter(stream)
        record = next(records, None)
    except Exception as error:  # the library raises dozens of kinds, its own and those of what it stands on
        raise _hub_failure(given, error) from error
    row = 0
    while record is not None:
        row += 1
        source = f"{given}:{row}"
        yield source, record
        try:
            record = next(records, None)
        except Exception as error:
            raise _hub_failure(source, error) from error


def _hub_failure(given: str, error: Exception) -> DataError:
    reason = (str(error).splitlines() or [""])[0]
    return DataError(f"{given}: cannot be read ({type(error).__name__}: {reason}): check name, split and network")


def _no_column(source: str, column: str, names: Sequence[str]) -> DataError:
    there = ", ".join(repr(name) for name in nearest_first(column, names)) or "none"
    return DataError(f"{source}: no column '{column}'; there are (nearest first): {there}: pass --column")


def _as_text(value: object, source: str, column: str) -> str | None:
    """Returns what a column holds as text with newlines for CR LF and CR; None for null."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = "\n".join(value)
    if value is None:
        return None
    if not isinstance(value, str):
        raise DataError(f"{source}: column '{column}' holds {type(value).__name__}, expected text: pass --column")
    return value.replace("\r\n", "\n").replace("\r", "\n") if "\r" in value else value
