"""Tables of labelled data: CSV, TSV, JSON, parquet, FASTA, plain text and hub data sets."""

import ast
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from stemformer.data.labelled.class_folders import TAGGED_SUFFIXES, find_class_folders, read_class_folder
from stemformer.data.labelled.fasta import FASTA_SUFFIXES, read_fasta
from stemformer.data.text.delimited import read_delimited
from stemformer.data.text.files import (
    HUB_PREFIX,
    STANDARD_INPUT,
    Inputs,
    check_files_unchanged,
    decompress,
    file_states,
    find_sources,
    open_file,
    quoted,
    read_ahead,
    read_text,
    split_suffixes,
    stream_text,
    text_lines,
)
from stemformer.data.text.readers import (
    hub_rows,
    json_records,
    json_values,
    parquet_rows,
    replace_lone_surrogates,
    starts_as_json,
)
from stemformer.errors import DataError

_NEIGHBORS = re.compile(r"""['"]\s+['"]""")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class Table:
    """Rows of named columns (`column1`, ... without header), and where each begins (`file.csv:12`)."""

    source: str
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    locations: list[str]


def read_table(files: Inputs, *, names: Collection[str] = (), counts: Counter[str] | None = None) -> Table:
    """Read labelled files with the same columns into one table.

    Formats by suffix, each also compressed: `.csv` and `.tsv` (see `read_delimited`), `.jsonl`,
    `.json` (a list of objects, such a list under the key "data", or one object per line),
    `.parquet`, `.fasta` and `.fa` (see `read_fasta`); `hub:owner/name[:config][:split]`. A `.data`
    file is a table if every line has the same number of commas or tabs. Anything else is one text
    per line in the column `text`. `-` is standard input: JSON, else one text per line. Of folders
    of text files, at least two, each file is a text with the folder's name as its label.

    Args:
        names: Column names that prove a header.
        counts: Receives what was skipped or assumed, by description.
    """
    counts = Counter() if counts is None else counts
    sources = _find_tables(files, counts)
    pairs = {source: list(_read_source(source, names, counts)) for source in sources}
    columns = _common_columns({source: dict.fromkeys(x for _, row in pairs[source] for x in row) for source in sources})
    return _make_table(sources, columns, chain.from_iterable(pairs.values()))


class TableBlocks:
    """What `read_table` reads, in blocks of rows of which one is in memory; each iteration reads the files again.

    The first iteration finds columns and checks the files. Later ones raise DataError if a file has changed since.

    Attributes:
        with_plus: Columns that hold the cell `+` in the rows read so far.
    """

    def __init__(self, files: Inputs, *, names: Sequence[str], counts: Counter[str], block_size: int) -> None:
        self._sources = _find_tables(files, counts)
        self._names, self._counts, self._block_size = names, counts, block_size
        self._columns: dict[str, dict[str, None]] = {source: {} for source in self._sources}
        self.with_plus: set[str] = set()
        self._states = file_states(self._sources)
        self.is_checked = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the rows read so far, in the order of the files."""
        return tuple(dict.fromkeys(chain.from_iterable(self._columns.values())))

    def __iter__(self) -> Iterator[Table]:
        check_files_unchanged(self._states)
        pairs = chain.from_iterable(map(self._rows, self._sources))
        while block := list(islice(pairs, self._block_size)):
            yield _make_table(self._sources, self.columns, block)
        _common_columns(self._columns)
        check_files_unchanged(self._states)
        self.is_checked = True

    def _rows(self, source: str) -> Iterator[tuple[str, dict[str, Any]]]:
        columns = self._columns[source]
        for location, row in _read_source(source, self._names, Counter() if self.is_checked else self._counts):
            if not self.is_checked:
                columns.update(dict.fromkeys(row))
                self.with_plus.update(name for name, value in row.items() if value == "+")
            yield location, row


def _common_columns(columns: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """Return the columns of files, in the order of the first; raise if they differ."""
    first, *_ = columns
    for source, found in columns.items():
        if not found:
            raise DataError(f"{source}: The file has no rows. Expected at least one.")
        if set(found) != set(columns[first]):
            others = f"those of {first} are {quoted(columns[first])}. Pass files with the same columns."
            raise DataError(f"{source}: The columns are {quoted(found)}, but {others}")
    return tuple(columns[first])


def _make_table(sources: Sequence[str], columns: tuple[str, ...], pairs: Iterable[tuple[str, dict[str, Any]]]) -> Table:
    locations, rows = [], []
    for location, row in pairs:
        locations.append(location)
        rows.append({name: row.get(name) for name in columns})
    return Table(", ".join(sources), columns, rows, locations)


def read_json_records(source: str) -> list[tuple[str, Any]]:
    """Return locations and values of JSON: items of a list, an object, or values per line."""
    return list(_checked(json_values, source))


def _checked(read: Callable[[Iterator[str], str], Iterator[tuple[str, Any]]], source: str) -> Iterator[tuple[str, Any]]:
    """Yield what `read` makes of a file of JSON; raise for half of a character, which only an escape can spell."""
    has_escape, end = False, ""

    def blocks() -> Iterator[str]:
        nonlocal has_escape, end
        for block in stream_text(source):
            has_escape = has_escape or bool(_SURROGATE_ESCAPE.search(end + block))
            end = block[-5:]
            yield block

    for location, value in read(blocks(), source):
        if has_escape:
            replace_lone_surrogates(json.dumps(value, ensure_ascii=False), location, errors=None)
        yield location, value


def required_text(record: Mapping[str, Any], names: Sequence[str], location: str) -> str:
    """Return the first text under one of the keys; raise if there is none."""
    for name in names:
        if isinstance(text := record.get(name), str):
            return text
    raise DataError(f"{location}: No text under '{names[0]}'. Keys: {quoted(list(record)) or 'none'}. Add it.")


def parse_cell(value: Any) -> Any:
    """Return the list or object that the text of a cell spells in JSON or Python, else the value."""
    text = value.strip() if isinstance(value, str) else ""
    if text[:1] + text[-1:] not in ("[]", "{}", "()"):
        return value
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value
    # Python would join the items of a NumPy array, which has no commas.
    if not isinstance(found, list | tuple | set | dict) or _NEIGHBORS.search(text):
        return value
    return found if isinstance(found, dict) else sorted(found, key=str) if isinstance(found, set) else list(found)


def _find_tables(files: Inputs, counts: Counter[str]) -> list[str]:
    """Return the sources of tables: files, and folders of text files where each folder is a class."""
    inputs = [files] if isinstance(files, str | Path) else list(files)
    folders = [path for path in map(Path, map(str, inputs)) if path.expanduser().is_dir()]
    classes = find_class_folders([path.expanduser() for path in folders], counts)
    others = [name for name in inputs if not classes or Path(name) not in folders]
    return [*map(str, classes), *(find_sources(others, counts) if others or not classes else [])]


def _read_source(source: str, names: Collection[str], counts: Counter[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield locations and rows of a file; memory holds a block of it, but for FASTA and `.data`."""
    stem, kind, compression = split_suffixes(source)
    if Path(source).is_dir():
        yield from read_class_folder(Path(source), counts)
        return
    if source.startswith(HUB_PREFIX):
        yield from hub_rows(source)
        return
    if kind == ".tar":
        raise DataError(f"{source}: An archive cannot be read as a table. Unpack it and pass its files.")
    if kind == ".parquet":
        with open_file(source) as file:
            seekable = io.BytesIO(decompress(file, source, compression=compression).read()) if compression else file
            yield from parquet_rows(seekable, source)
        return
    if kind in (".json", ".jsonl"):
        yield from _json_rows(source)
        return
    if stem.lower().endswith(TAGGED_SUFFIXES):
        raise DataError(f"{source}: Words and tags in CoNLL cannot be read as a table. Pass .csv, .tsv or .jsonl.")
    if stem.lower().endswith(FASTA_SUFFIXES):
        yield from read_fasta(read_text(source), source)
        return
    if source == STANDARD_INPUT and starts_as_json(read_ahead(stream_text(source), lambda x: bool(x.strip()))[0]):
        yield from _json_rows(source)
        return
    delimiters = _same_in_each_line(source) if stem.lower().endswith(".data") else ""
    if kind in (".csv", ".tsv") or delimiters:
        delimiter = {".csv": None, ".tsv": "\t", "": delimiters[:1]}[kind]
        table = read_delimited(stream_text(source, newline=""), source, delimiter, names=names, counts=counts)
        yield from ((location, dict(zip(table.columns, row, strict=True))) for location, row in table.rows)
        return
    # Blank lines at the end are none.
    blank: list[tuple[str, dict[str, Any]]] = []
    numbers_of_tabs = set()
    for number, line in enumerate(text_lines(stream_text(source)), 1):
        blank.append((f"{source}:{number}", {"text": line}))
        if line.strip():
            numbers_of_tabs.add(line.count("\t"))
            yield from blank
            blank.clear()
    if len(numbers_of_tabs) == 1 and numbers_of_tabs != {0}:
        counts["files with tabs in each line, read as one text per line (name a table .tsv)"] += 1


def _same_in_each_line(source: str) -> str:
    """Return those of comma and tab that each non-blank line of a file has equally often."""
    marks = ",\t"
    numbers = {tuple(map(line.count, marks)) for line in text_lines(stream_text(source)) if line.strip()}
    found = zip(marks, map(set, zip(*numbers, strict=True)), strict=True)
    return "".join(mark for mark, values in found if len(values) == 1 and values != {0})


def _json_rows(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield locations and objects; of one object with a list "data" the items of the list."""
    for location, row in _checked(json_records, source):
        if not isinstance(row, dict):
            raise DataError(f"{location}: Expected a JSON object with a key per column, found {type(row).__name__}.")
        yield location, row
