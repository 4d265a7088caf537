"""Pairs of a source and one or more targets, from tables, nested translations or two parallel files."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemformer.data.labelled.table import Table, parse_cell, read_table
from stemformer.data.text.delimited import usual_name
from stemformer.data.text.files import quoted, stream_text, text_lines
from stemformer.data.text.readers import unknown_column
from stemformer.errors import DataError

# Usual names of the two columns. Two columns of other names are source and target in their order.
SOURCE_TARGET_NAMES = (
    *(("source", "target"), ("src", "tgt"), ("src", "trg"), ("src", "ref"), ("input", "output"), ("input", "target")),
    *(("document", "summary"), ("text", "summary"), ("article", "summary"), ("article", "highlights")),
    *(("dialogue", "summary"), ("original", "simplification"), ("original", "simplified"), ("complex", "simple")),
    *(("incorrect", "correct"), ("sentence", "correction"), ("text", "target"), ("source", "reference")),
)
# Names of columns that prove a header.
_HEADER_NAMES = tuple(dict.fromkeys(name for pair in SOURCE_TARGET_NAMES for name in pair))
# Codes of languages (ISO 639): a first line of two of them is a header.
_LANGUAGES = {
    *("ar", "bg", "bn", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "he"),
    *("hi", "hr", "hu", "id", "it", "ja", "ko", "la", "lt", "lv", "nl", "no", "pl", "pt"),
    *("ro", "ru", "sk", "sl", "sr", "sv", "sw", "ta", "th", "tr", "uk", "ur", "vi", "zh"),
}
# Column with an object of a text for each language, as in Hugging Face's translation data.
_NESTED = "translation"
# Between the names of two parallel files.
PARALLEL_MARK = ","


@dataclass(frozen=True)
class SourceTarget:
    """A text and what it is to become: the target, then other references; None if unknown."""

    source: str
    targets: tuple[str, ...] | None
    location: str
    # Languages of source and target, of tables with columns of them.
    languages: tuple[str | None, str | None] = (None, None)


def read_pair_table(files: Sequence[str], *, names: Sequence[str], counts: Counter[str], needs_target: bool) -> Table:
    """Return tables, or pairs of parallel text files, as one table.

    Nested translations get a column for each language, parallel files the columns `source` and `target`.

    Args:
        files: Tables, or pairs of parallel text files: `train.en,train.fr`.
        names: Columns that prove a header, besides the usual ones.
        counts: Receives the number of rows left out and headers found, by reason.
        needs_target: Whether the files must have targets.

    Raises:
        DataError: Files are no pairs, or parallel files have different numbers of lines.
    """
    pairs = [split_parallel(file) for file in files]
    if not any(pairs):
        table = read_table(files, names=[*names, *_HEADER_NAMES], counts=counts)
        if needs_target and table.columns == ("text",):
            advice = "Pass a table (.csv, .tsv, .jsonl, .parquet), or two files with a comma between their names"
            raise DataError(f"{table.source}: There is one text a line, and no target. {advice}.")
        return _flattened(_with_language_header(table, counts))
    if not all(pairs):
        single = next(file for file, pair in zip(files, pairs, strict=True) if pair is None)
        raise DataError(f"{single}: Expected two files with a comma between their names, as for the others.")
    tables = [_read_parallel(*pair) for pair in pairs if pair is not None]
    rows, locations = ([x for t in tables for x in getattr(t, name)] for name in ("rows", "locations"))
    return Table(", ".join(files), ("source", "target"), rows, locations)


def choose_pair_columns(
    table: Table,
    source: str | None,
    targets: Sequence[str],
    *,
    needs_target: bool,
    languages: Sequence[str | None] = (None, None),
) -> tuple[str, tuple[str, ...]]:
    """Return the columns of source and targets: those that are named, else found by name, else the only two.

    Args:
        languages: Columns of the languages of source and target, which are neither.

    Raises:
        DataError: A column does not exist, or cannot be found.
    """
    for side, name in zip(("source", "target"), languages, strict=True):
        if name is not None and name not in table.columns:
            options = f"--{side}-language-column, or pass --{side}-language"
            raise unknown_column(table.source, name, table.columns, option=options)
        if name is not None and name in (source, *targets):
            raise DataError(f"{table.source}: '{name}' is the column of a text and of a language. Set another.")
    columns = tuple(name for name in table.columns if name not in languages)
    for name in (source, *targets):
        if name is not None and name not in columns:
            option = "--text-column" if name == source else "--label-column"
            raise unknown_column(table.source, name, columns, option=option)
    if source in targets:
        raise DataError(f"{table.source}: '{source}' is the column of both source and target. Set another.")
    usual = {usual_name(column): column for column in reversed(columns)}
    named = next(((usual[a], usual[b]) for a, b in SOURCE_TARGET_NAMES if a in usual and b in usual), None)
    others = [column for column in columns if column != source and column not in targets]
    if source is None:
        if named is not None and named[0] in others:
            source = named[0]
        elif len(others) == (1 if targets or not needs_target else 2) or (not needs_target and len(columns) == 2):
            source = others[0]
    if source is not None and not targets and needs_target:
        left = [column for column in columns if column != source]
        if named is not None and named[1] in left:
            targets = (named[1],)
        elif len(left) == 1:
            targets = (left[0],)
    if source is None or (needs_target and not targets):
        problem = f"Cannot tell source and target. Columns: {quoted(columns)}"
        raise DataError(f"{table.source}: {problem}. Set them with --text-column and --label-column.")
    return source, tuple(targets)


def make_pairs(
    table: Table,
    source: str,
    targets: Sequence[str],
    *,
    counts: Counter[str],
    needs_target: bool,
    languages: tuple[str | None, str | None] = (None, None),
) -> list[SourceTarget]:
    """Return the pairs of a table, without targets if no column is named.

    Args:
        source: Column of the source.
        targets: Columns of the target and of other references.
        counts: Receives the number of pairs left out, by reason.
        needs_target: Whether an empty source is left out; if not, it has no prediction.
        languages: Columns of the languages of source and target.
    """
    records = []
    for row, location in zip(table.rows, table.locations, strict=True):
        text = _text(row[source], location, source).strip()
        texts = tuple(x for name in targets for x in _texts(row[name], location, name))
        if not text and needs_target:
            counts["empty source (left out)"] += 1
        elif targets and not texts:
            counts["empty target (left out)"] += 1
        else:
            counts.update(["empty source (no prediction)"] * (not text))
            first, second = (None if name is None else _language(row[name], location, name) for name in languages)
            records.append(SourceTarget(text, texts if targets else None, location, (first, second)))
    return records


def split_parallel(file: str) -> tuple[str, str] | None:
    """Return the two names in `train.en,train.fr`; None for the name of one file."""
    first, mark, second = file.partition(PARALLEL_MARK)
    return (first, second) if mark and second and not Path(file).exists() else None


def expand_parallel(files: Sequence[str]) -> list[str]:
    """Return the names of files, those of parallel ones each by itself."""
    return [name for file in files for name in split_parallel(file) or (file,)]


def _read_parallel(first: str, second: str) -> Table:
    sides: list[list[str]] = []
    for name in (first, second):
        if not Path(name).is_file():
            raise DataError(f"{name} does not exist. Expected two text files with as many lines, as {first},{second}.")
        sides.append(list(text_lines(stream_text(name))))
    if len(sides[0]) != len(sides[1]):
        numbers = f"{first} has {len(sides[0]):,} lines, {second} has {len(sides[1]):,}"
        raise DataError(f"{numbers}. Line n of one file must belong to line n of the other: repair them.")
    rows = [{"source": a, "target": b} for a, b in zip(*sides, strict=True)]
    return Table(f"{first}, {second}", ("source", "target"), rows, [f"{first}:{i + 1}" for i in range(len(rows))])


def _with_language_header(table: Table, counts: Counter[str]) -> Table:
    """Return a table whose first row becomes its header if it holds nothing but codes of languages."""
    if table.columns[0] != "column1" or not _LANGUAGES.issuperset(names := tuple(map(str, table.rows[0].values()))):
        return table
    counts[f"first lines taken for a header ({quoted(names)})"] += 1
    rows = [dict(zip(names, row.values(), strict=True)) for row in table.rows[1:]]
    return Table(table.source, names, rows, table.locations[1:])


def _flattened(table: Table) -> Table:
    """Return a table with a column for each language instead of a column of objects."""
    if _NESTED not in table.columns or not isinstance(parse_cell(table.rows[0][_NESTED]), dict):
        return table
    rows = [parse_cell(row[_NESTED]) for row in table.rows]
    wrong = next(
        (location for row, location in zip(rows, table.locations, strict=True) if not isinstance(row, dict)), None
    )
    if wrong is not None:
        raise DataError(f"{wrong}: Expected an object with a text for each language under '{_NESTED}'.")
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return Table(table.source, columns, [{name: row.get(name) for name in columns} for row in rows], table.locations)


def _text(value: Any, location: str, column: str) -> str:
    if isinstance(value, dict | list | bytes):
        raise DataError(f"{location}: Column '{column}' holds {type(value).__name__}, expected text. Choose another.")
    return "" if value is None else str(value)


def _language(value: Any, location: str, column: str) -> str:
    if not (code := _text(value, location, column).strip()):
        raise DataError(f"{location}: Column '{column}' is empty, expected a language, such as en.")
    return code


def _texts(value: Any, location: str, column: str) -> list[str]:
    """Return the texts of a cell, which may be a list of references."""
    value = parse_cell(value)
    items = value if isinstance(value, list) else [value]
    return [text for item in items if (text := _text(item, location, column).strip())]
