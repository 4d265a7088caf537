"""Streaming readers of JSON, parquet and hub data sets.

A source is the file and the line (parquet and hub: the row) where a record begins.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

from stemformer.config import nearest_first
from stemformer.data.text.files import HUB_PREFIX, damaged_file, quoted, read_ahead, text_lines
from stemformer.errors import DataError

_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACE = re.compile(r"\s*")
_JSON_START = re.compile(r'\s*(\[\s*)?\{\s*"')
_HUB_SPLITS = re.compile(r"(train|validation|valid|dev|test|unsupervised)\b.*")


def column_texts(
    records: Iterable[tuple[str, Any]], column: str, *, errors: str | None = None, skipped: Counter[str] | None = None
) -> Iterator[tuple[str, str | None]]:
    """Yield sources and texts of a column, None for null; lists are joined by newlines.

    `errors` decides about lone surrogates, which only JSON can hold; None does not look for them.
    """
    for source, record in records:
        if not isinstance(record, dict):
            raise DataError(f"{source}: Expected a JSON object with key '{column}', found {type(record).__name__}.")
        if column not in record:
            raise unknown_column(source, column, list(record))
        text = record[column]
        if isinstance(text, list) and all(isinstance(item, str) for item in text):
            text = "\n".join(text)
        if text is not None and not isinstance(text, str):
            found = type(text).__name__
            raise DataError(f"{source}: Column '{column}' holds {found}, expected text. Pass --text-column.")
        if text and errors is not None:
            text = replace_lone_surrogates(text, source, errors=errors, skipped=skipped)
        if text and "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        yield source, text


def check_decoded(text: str, name: str) -> None:
    """Raise DataError if a text was decoded from invalid bytes, which Python keeps as surrogates."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"{name} is not UTF-8. Convert it first.")


def replace_lone_surrogates(text: str, source: str, *, errors: str | None, skipped: Counter[str] | None = None) -> str:
    r"""Replace lone surrogates (JSON's `\ud83d`) by U+FFFD; raise unless `errors` is "replace"."""
    if text.isascii() or not (num_lone := len(_SURROGATE.findall(text))):
        return text
    if errors != "replace":
        advice = "Repair it" if errors is None else "Repair it, or pass --errors replace"
        raise DataError(f"{source}: A \\u escape is half of a character. {advice}.")
    if skipped is not None:
        skipped["lone surrogates replaced"] += num_lone
    return _SURROGATE.sub("\ufffd", text)


def starts_as_json(text: str) -> bool:
    """Return whether a text without a name is JSON: it begins with an object or a list of objects."""
    return bool(_JSON_START.match(text))


def json_records(blocks: Iterator[str], name: str) -> Iterator[tuple[str, Any]]:
    """Yield what `json_values` does; of a single object with a list "data", the items of that list."""
    values = json_values(blocks, name)
    first = list(islice(values, 2))
    if len(first) == 1 and isinstance(first[0][1], dict) and isinstance(first[0][1].get("data"), list):
        first = [(f"{name}: data[{number}]", item) for number, item in enumerate(first[0][1]["data"])]
    yield from chain(first, values)


def json_values(blocks: Iterator[str], name: str) -> Iterator[tuple[str, Any]]:
    """Yield sources and values: items of one JSON list, one object, or the value of each non-blank line."""
    first, blocks = read_ahead(blocks, lambda text: not text.isspace())
    if first.lstrip().startswith("["):
        yield from ((f"{name}:{line}", value) for line, value in _json_list(blocks, name))
        return
    is_first = True
    lines = enumerate(text_lines(blocks), 1)
    for number, line in lines:
        if not line.strip():
            continue
        source, start = f"{name}:{number}", number
        try:
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                if not is_first or not line.lstrip().startswith("{") or error.msg == "Extra data":
                    raise
                # One object that spans lines.
                value = json.loads("\n".join([line, *(rest for _, rest in lines)]))
        except (ValueError, RecursionError) as error:
            expected = "Expected one object, one list of objects or one object per line."
            source = f"{name}:{start + getattr(error, 'lineno', 1) - 1}"
            raise DataError(f"{source}: Bad JSON ({error}). {expected}") from error
        yield source, value
        is_first = False


def _json_list(blocks: Iterator[str], name: str) -> Iterator[tuple[int, Any]]:
    """Yield line numbers and items of one JSON list, with about one item in memory."""
    decoder = json.JSONDecoder()
    buffer, position, line = "", 0, 1

    def fill() -> bool:
        """Drop consumed text and at least double the rest; return whether the file had more."""
        nonlocal buffer, position
        parts, wanted = [buffer[position:]], len(buffer) - position
        for block in blocks:
            parts.append(block)
            wanted -= len(block)
            if wanted <= 0:
                break
        buffer, position = "".join(parts), 0
        return len(parts) > 1

    def next_character() -> str:
        """Skip white space; return the next character, or nothing at the end."""
        nonlocal position, line
        while True:
            space = _SPACE.match(buffer, position)
            end = space.end() if space else position
            line, position = line + buffer.count("\n", position, end), end
            if position < len(buffer):
                return buffer[position]
            if not fill():
                return ""

    def bad(what: str) -> DataError:
        return DataError(f"{name}:{line}: Bad JSON ({what}). Expected one list of objects.")

    separator = next_character()
    while separator != "]":
        position += 1
        character = next_character()
        if character == "]" and separator == "[":
            break
        while True:
            try:
                value, end = decoder.raw_decode(buffer, position)
                break
            except json.JSONDecodeError as error:
                is_cut = error.pos > len(buffer) - 16 or error.msg.startswith("Unterminated")
                if not (is_cut and fill()):
                    raise bad(error.msg) from error
            except RecursionError as error:
                raise bad("nested too deeply") from error
        yield line, value
        line, position = line + buffer.count("\n", position, end), end
        separator = next_character()
        if separator not in ("]", ","):
            raise bad("the list is not closed" if not separator else f"',' or ']' is missing before {separator!r}")
    position += 1
    if next_character():
        raise bad("text after the end of the list")


def parquet_rows(
    file: io.BufferedIOBase, name: str, *, column: str | None = None, on_bytes: Callable[[int], None] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield sources and rows of a seekable parquet file, with all columns or only one.

    `on_bytes` is called after each row group with its compressed size, all columns included.
    """
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        table = parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        names = table.schema_arrow.names
        if column is not None and column not in names:
            raise unknown_column(name, column, names)
        columns = None if column is None else [column]
        for group_number in range(table.num_row_groups):
            for batch in table.iter_batches(batch_size=1024, row_groups=[group_number], columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{name}:{number}", row
            if on_bytes is not None:
                group = table.metadata.row_group(group_number)
                on_bytes(sum(group.column(i).total_compressed_size for i in range(group.num_columns)))
    except (pyarrow.ArrowException, OSError) as error:
        raise damaged_file(name, "parquet", error) from error


def hub_rows(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield sources and rows of a Hugging Face data set: on the hub, or a local folder.

    `name` is `hub:owner/name[:config][:split]`: a single part is the split if it is a usual name of
    one. The config may be empty; the default split is `train`.
    """
    import datasets

    path, *rest = name.removeprefix(HUB_PREFIX).split(":")
    if len(rest) > 2 or not path:
        raise DataError(f"'{name}' is not a hub data set. Expected hub:owner/name[:config][:split].")
    if len(rest) == 1 and _HUB_SPLITS.fullmatch(rest[0]):
        rest.insert(0, "")
    config, split = [*rest, "", ""][:2]
    source = name
    # `datasets` raises dozens of exception types, its own and those of its dependencies.
    try:
        records = datasets.load_dataset(path, config or None, split=split or "train", streaming=True)
        for row, record in enumerate(records, 1):
            source = f"{name}:{row}"
            yield source, record
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise DataError(f"{source}: Cannot be read ({reason}). Check name, split and network.") from error


def unknown_column(source: str, column: str, columns: Sequence[str], *, option: str = "--text-column") -> DataError:
    """Return the error for a missing column, which the command-line option `option` sets."""
    listed = quoted(nearest_first(column, columns)) or "none"
    return DataError(f"{source}: No column '{column}'. Columns (nearest first): {listed}. Set it with {option}.")
