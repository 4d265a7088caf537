"""Labelled files as tables: CSV, TSV, JSON, parquet, FASTA, plain text and hub data sets, read whole.

What is not written in a file is decided by rules, each in one function here: whether the quotes of a TSV are those of CSV
(`_has_csv_quotes`), whether the first line names the columns (`_has_header`), and whether plain text is a table
(`_delimiter_of_text`).
"""

import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemformer.data.labelled.fasta import read_fasta
from stemformer.data.labelled.symbol_map import FASTA_SUFFIXES
from stemformer.data.text.files import (
    HUB_PREFIX,
    STANDARD_INPUT,
    decompress,
    find_sources,
    open_file,
    read_text,
    split_suffixes,
)
from stemformer.data.text.readers import csv_rows, hub_rows, json_values, parquet_rows, without_surrogates
from stemformer.errors import DataError

TEXT_NAMES = (
    *("text", "sentence", "review", "content", "comment", "tweet", "sequence", "utterance", "question", "query"),
    *("body", "headline", "title", "review_body", "review_text", "comment_text", "description", "abstract", "article"),
    *("document", "message", "summary", "prompt", "dna", "dna_sequence", "seq"),
)
PAIR_NAMES = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text_a", "text_b"),
    ("text1", "text2"),
    ("text_1", "text_2"),
    ("#1_string", "#2_string"),
    ("string1", "string2"),
    ("sentence_a", "sentence_b"),
    ("sentence_1", "sentence_2"),
    ("query", "passage"),
    ("query", "document"),
    ("question", "passage"),
    ("question", "context"),
    ("question", "answer"),
    ("text", "text_pair"),
    ("s1", "s2"),
    ("q1", "q2"),
)
LABEL_NAMES = (
    ("label", "gold_label", "labels"),
    (
        *("class", "category", "target", "sentiment", "polarity", "score", "quality", "is_duplicate", "similarity"),
        *("relatedness_score", "similarity_score", "entailment_judgment", "entailment_label", "rating", "stars"),
        *("emotion", "emotions", "intent", "topic", "tags", "answer_label", "y"),
    ),
)
"""Usual names of the column of labels: of the first group the first that is there, of the second the only one."""

_OTHER_NAMES = (
    *("id", "idx", "index", "name", "pair_id", "tokens", "words", "ner_tags", "pos_tags", "context", "answers"),
    *("choice1", "choice_1", "sent1", "ending0", "startphrase", "url", "date", "author", "genre", "lang", "language"),
)
_USUAL_NAMES = frozenset((*TEXT_NAMES, *_OTHER_NAMES, *(n for names in (*PAIR_NAMES, *LABEL_NAMES) for n in names)))
_LONGEST_NAME = 40
_MOST_WORDS_OF_NAME = 3
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_SENTENCE_END = re.compile(r"[.?!,;:。？！，；：]$")
_QUOTED_FIELD = re.compile(r'(?m)(?:^|(?<=\t))"(?:[^"]++|"")*+"(?=\t|$)')
_HALF_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class Table:
    """Rows of named columns, and where they are from.

    Args:
        source: The files, for messages.
        columns: Names, in the order of the first file; `column1`, `column2`, ... where the file names none.
        rows: Each with a value for every column. Those of CSV, TSV and text are strings, as written.
        places: Where each row begins, as `file.csv:12`.
    """

    source: str
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    places: list[str]


def usual_name(column: str) -> str:
    """Returns a column's name in the spelling of the lists of usual names.

    Example:
        >>> usual_name("Sentence A")
        'sentence_a'
    """
    return column.strip().lower().replace(" ", "_").replace("-", "_")


def read_table(files: str | Path | Sequence[str | Path], *, errors: str = "strict") -> Table:
    """Returns the rows of labelled files.

    By suffix, each also compressed: `.csv`, `.tsv`, `.jsonl`, `.json` (one list of objects, such a list under the key
    "data", or an object a line), `.parquet`, `.fasta` and `.fa` (columns `name`, `sequence` and, where the headers have
    one, `label`); hub data sets by `hub:owner/name[:config][:split]`. Anything else is a text a line in the column
    `text`, unless every line has the same number of tabs, which makes it TSV. `-` is standard input: an object a line if
    the first begins with `{`, else a text a line.

    Args:
        files: Files, folders, patterns, hub data sets; they must have the same columns.
        errors: "strict", or "replace" to go on where bytes are not UTF-8.

    Raises:
        DataError: A file cannot be read as its name says, has no rows, or has other columns than the first.

    Example:
        >>> table = read_table("reviews.csv")  # doctest: +SKIP
        >>> table.columns, table.places[0]  # doctest: +SKIP
        (('review', 'sentiment'), 'reviews.csv:2')
    """
    sources = find_sources(files)
    columns: tuple[str, ...] = ()
    rows: list[dict[str, Any]] = []
    places: list[str] = []
    for source in sources:
        pairs = _read_source(source, errors)
        if not pairs:
            raise DataError(f"{source}: there are no rows in it: expected one at least")
        names = tuple(dict.fromkeys(name for _, row in pairs for name in row))
        if columns and set(names) != set(columns):
            raise DataError(
                f"{source}: its columns are {_listed(names)}, but those of {sources[0]} are {_listed(columns)}:"
                " give files of one form"
            )
        columns = columns or names
        places.extend(place for place, _ in pairs)
        rows.extend({name: row.get(name) for name in columns} for _, row in pairs)
    return Table(", ".join(sources), columns, rows, places)


def table_of_stream(text: str) -> Table:
    """Returns the rows that standard input held, as JSON: an object a line."""
    pairs = _json_rows(list(json_values(iter([text]), STANDARD_INPUT)), STANDARD_INPUT)
    columns = tuple(dict.fromkeys(name for _, row in pairs for name in row))
    rows = [{name: row.get(name) for name in columns} for _, row in pairs]
    return Table(STANDARD_INPUT, columns, rows, [place for place, _ in pairs])


def read_json_records(source: str, *, errors: str = "strict") -> list[tuple[str, Any]]:
    """Returns places and values of a JSON file: the items of one list, a single object, or what each line holds.

    Raises:
        DataError: Bad JSON, with its line.
    """
    text = read_text(source, errors=errors)
    start = text.lstrip()
    if start.startswith("{"):
        try:
            values = [(f"{source}:{1 + text[: len(text) - len(start)].count(chr(10))}", json.loads(text))]
        except (ValueError, RecursionError) as error:
            if not _is_json(start.partition("\n")[0]):
                line = getattr(error, "lineno", 1)
                raise DataError(
                    f"{source}:{line}: bad JSON ({error}): expected one object, one list of objects or an object a line"
                ) from error
            values = list(json_values(iter([text]), source))
    else:
        values = list(json_values(iter([text]), source))
    if _HALF_ESCAPE.search(text):
        values = [(place, _whole(value, place, errors)) for place, value in values]
    return values


def needed_text(record: Mapping[str, Any], names: Sequence[str], place: str) -> str:
    """Returns the text under the first of the keys that is there.

    Raises:
        DataError: None of them is there, or what is there is no text.
    """
    for name in names:
        if isinstance(record.get(name), str):
            return str(record[name])
    raise DataError(f"{place}: no text under '{names[0]}'; there are {_listed(list(record)) or 'none'}: add it")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _whole(value: Any, place: str, errors: str) -> Any:
    """Returns a value of JSON in which no text has half of a character."""
    if isinstance(value, str):
        return without_surrogates(value, place, errors=errors, skipped=Counter())
    if isinstance(value, list):
        return [_whole(item, place, errors) for item in value]
    if isinstance(value, dict):
        return {_whole(key, place, errors): _whole(item, place, errors) for key, item in value.items()}
    return value


def _read_source(source: str, errors: str) -> list[tuple[str, dict[str, Any]]]:
    """Returns places and rows of one file, data set, or standard input."""
    stem, kind, compression = split_suffixes(source)
    if source.startswith(HUB_PREFIX):
        return list(hub_rows(source))
    if kind == ".tar":
        raise DataError(f"{source}: an archive cannot be read as a table: unpack it and give its files")
    if kind == ".parquet":
        with open_file(source) as file:
            seekable = io.BytesIO(decompress(file, source, compression=compression).read()) if compression else file
            return list(parquet_rows(seekable, source))
    if kind in (".json", ".jsonl"):
        return _json_rows(read_json_records(source, errors=errors), source)
    text = read_text(source, errors=errors)
    if stem.lower().endswith(FASTA_SUFFIXES):
        return read_fasta(text, source)
    if source == STANDARD_INPUT and text.lstrip().startswith("{"):
        table = table_of_stream(text)
        return list(zip(table.places, table.rows, strict=True))
    if kind in (".csv", ".tsv"):
        delimiter: str | None = _delimiter_of_csv(text) if kind == ".csv" else "\t"
    else:
        delimiter = None if source == STANDARD_INPUT else _delimiter_of_text(text, stem)
    if delimiter:
        return _delimited_rows(text, source, delimiter)
    lines = text.split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return [(f"{source}:{number}", {"text": line}) for number, line in enumerate(lines, 1)]


def _json_rows(records: list[tuple[str, Any]], source: str) -> list[tuple[str, dict[str, Any]]]:
    """Returns places and objects of JSON, those of a list under the key "data" among them."""
    if len(records) == 1 and isinstance(records[0][1], dict) and isinstance(records[0][1].get("data"), list):
        records = [(f"{source}: data[{number}]", row) for number, row in enumerate(records[0][1]["data"])]
    for place, row in records:
        if not isinstance(row, dict):
            raise DataError(f"{place}: expected a JSON object with a key for each column, found {type(row).__name__}")
    return records


def _delimited_rows(text: str, source: str, delimiter: str) -> list[tuple[str, dict[str, Any]]]:
    """Returns places and rows of CSV or TSV; columns have numbers where the first line does not name them."""
    has_quotes = delimiter in ",;" or _has_csv_quotes(text)
    pairs = list(csv_rows(iter([text]), source, delimiter=delimiter, has_quotes=has_quotes))
    if not pairs:
        return []
    rows = [row for _, row in pairs]
    names = [f"column{number}" for number in range(1, len(rows[0]) + 1)]
    if _has_header(rows):
        names = [field.strip() or name for field, name in zip(rows[0], names, strict=True)]
        twice = [name for name, number in Counter(names).items() if number > 1]
        if twice:
            raise DataError(f"{pairs[0][0]}: the header names {_listed(twice)} twice: give each column its own name")
        pairs = pairs[1:]
    return [(place, dict(zip(names, row, strict=True))) for place, row in pairs]


def _has_csv_quotes(text: str) -> bool:
    """Returns whether quotes of TSV enclose fields, as in CSV, and are not characters of the text.

    They do if each stands at an end of a field or is doubled inside one, and, since a text may be a quotation, if also
    something shows that they were needed: a doubled quote; every field of the first line quoted; or rows that have the
    same number of fields only if read so.
    """
    if '"' not in text or '"' in _QUOTED_FIELD.sub("", text):
        return False
    lines = [line for line in text.split("\n") if line]
    return (
        len({line.count("\t") for line in lines}) > 1
        or all(len(field) > 1 and field[0] == field[-1] == '"' for field in lines[0].split("\t"))
        or any('""' in found[0][1:-1] for found in _QUOTED_FIELD.finditer(text))
    )


def _has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Returns whether the first row names the columns.

    It does if one of its fields is a usual name of a column. Else it does not if a field has no letter, is a number or
    longer than a name, ends as a sentence does, is there twice, or stands in the same column again, as labels do.
    """
    first = [field.strip() for field in rows[0]]
    if any(usual_name(field) in _USUAL_NAMES for field in first):
        return True
    if len(set(first)) < len(first) or not all(map(_may_be_name, first)):
        return False
    return not any(row[at].strip() == name for row in rows[1:] for at, name in enumerate(first))


def _may_be_name(field: str) -> bool:
    is_short = 0 < len(field) <= _LONGEST_NAME and len(field.split()) <= _MOST_WORDS_OF_NAME
    has_letters = any(character.isalpha() for character in field)
    return is_short and has_letters and not _NUMBER.fullmatch(field) and not _SENTENCE_END.search(field)


def _delimiter_of_csv(text: str) -> str:
    """Returns what parts the columns of CSV: semicolons or tabs where the first line has those and no comma."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    return next((mark for mark in ";\t" if mark in first and "," not in first), ",")


def _delimiter_of_text(text: str, stem: str) -> str | None:
    """Returns what parts the columns of a file whose name does not say that it is a table, or None if it is none.

    Tabs do if every line has the same number of them; commas, likewise, in files named `.data` alone.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    for delimiter in ",\t" if stem.lower().endswith(".data") else "\t":
        numbers = {line.count(delimiter) for line in lines}
        if len(numbers) == 1 and numbers != {0}:
            return delimiter
    return None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
