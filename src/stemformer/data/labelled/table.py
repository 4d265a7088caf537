"""Tables of labelled data: CSV, TSV, JSON, parquet, FASTA, plain text and hub data sets."""

import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stemformer.data.labelled.fasta import FASTA_SUFFIXES, read_fasta
from stemformer.data.text.files import (
    HUB_PREFIX,
    STANDARD_INPUT,
    Inputs,
    decompress,
    find_sources,
    open_file,
    quoted,
    read_text,
    split_suffixes,
)
from stemformer.data.text.readers import (
    csv_rows,
    hub_rows,
    json_values,
    parquet_rows,
    replace_lone_surrogates,
    starts_as_json,
)
from stemformer.errors import DataError

TEXT_NAMES = (
    *("text", "sentence", "review", "content", "comment", "tweet", "sequence", "utterance", "question", "query"),
    *("body", "headline", "title", "review_body", "review_text", "comment_text", "description", "abstract", "article"),
    *("document", "message", "summary", "prompt", "dna", "dna_sequence", "seq"),
)
PAIR_NAMES = (
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence")),
    *(("text_a", "text_b"), ("text1", "text2"), ("text_1", "text_2"), ("#1_string", "#2_string")),
    *(("string1", "string2"), ("sentence_a", "sentence_b"), ("sentence_1", "sentence_2"), ("query", "passage")),
    *(("query", "document"), ("question", "passage"), ("question", "context"), ("question", "answer")),
    *(("text", "text_pair"), ("s1", "s2"), ("q1", "q2")),
)
# The label column is the first match in the first group, else the only match in the second.
LABEL_NAMES = (
    ("label", "gold_label", "labels"),
    (
        *("class", "category", "target", "sentiment", "polarity", "score", "quality", "is_duplicate", "similarity"),
        *("relatedness_score", "similarity_score", "entailment_judgment", "entailment_label", "rating", "stars"),
        *("emotion", "emotions", "intent", "topic", "tags", "answer_label", "y"),
    ),
)
_OTHER_NAMES = (
    *("id", "idx", "index", "name", "pair_id", "tokens", "words", "ner_tags", "pos_tags", "context", "answers"),
    *("choice1", "choice_1", "sent1", "ending0", "startphrase", "url", "date", "author", "genre", "lang", "language"),
)
_USUAL_NAMES = frozenset((*TEXT_NAMES, *_OTHER_NAMES, *(n for names in (*PAIR_NAMES, *LABEL_NAMES) for n in names)))
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_SENTENCE_END = re.compile(r"[.?!,;:。？！，；：]$")
_QUOTED_FIELD = re.compile(r'(?m)(?:^|(?<=\t))"(?:[^"]++|"")*+"(?=\t|$)')
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class Table:
    """Rows of named columns (`column1`, ... without header), and where each begins (`file.csv:12`)."""

    source: str
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    locations: list[str]


def usual_name(column: str) -> str:
    """Normalize a column name: "Sentence A" to "sentence_a"."""
    return column.strip().lower().replace(" ", "_").replace("-", "_")


def read_table(files: Inputs) -> Table:
    """Read labelled files with the same columns into one table.

    Formats by suffix, each also compressed: `.csv`, `.tsv`, `.jsonl`, `.json` (a list of objects,
    such a list under the key "data", or one object per line), `.parquet`, `.fasta` and `.fa` (see
    `read_fasta`); `hub:owner/name[:config][:split]`. Anything else is one text per line in the
    column `text`, or TSV if every line has the same number of tabs. `-` is standard input: one
    object per line if it begins with `{`, else one text per line.
    """
    sources = find_sources(files)
    tables = [_make_table(source, _read_source(source)) for source in sources]
    columns = tables[0].columns
    for table in tables:
        if not table.rows:
            raise DataError(f"{table.source}: The file has no rows. Expected at least one.")
        if set(table.columns) != set(columns):
            others = f"those of {sources[0]} are {quoted(columns)}. Pass files with the same columns."
            raise DataError(f"{table.source}: The columns are {quoted(table.columns)}, but {others}")
    rows = [{name: row[name] for name in columns} for table in tables for row in table.rows]
    return Table(", ".join(sources), columns, rows, [location for table in tables for location in table.locations])


def _make_table(source: str, pairs: list[tuple[str, dict[str, Any]]]) -> Table:
    columns = tuple(dict.fromkeys(name for _, row in pairs for name in row))
    rows = [{name: row.get(name) for name in columns} for _, row in pairs]
    return Table(source, columns, rows, [location for location, _ in pairs])


def read_json_records(source: str) -> list[tuple[str, Any]]:
    """Return locations and values of JSON: items of a list, an object, or values per line."""
    text = read_text(source)
    values = list(json_values(iter([text]), source))
    for location, value in values if _SURROGATE_ESCAPE.search(text) else []:
        replace_lone_surrogates(json.dumps(value, ensure_ascii=False), location, errors=None)
    return values


def required_text(record: Mapping[str, Any], names: Sequence[str], location: str) -> str:
    """Return the first text under one of the keys; raise if there is none."""
    for name in names:
        if isinstance(text := record.get(name), str):
            return text
    raise DataError(f"{location}: No text under '{names[0]}'. Keys: {quoted(list(record)) or 'none'}. Add it.")


def _read_source(source: str) -> list[tuple[str, dict[str, Any]]]:
    stem, kind, compression = split_suffixes(source)
    if source.startswith(HUB_PREFIX):
        return list(hub_rows(source))
    if kind == ".tar":
        raise DataError(f"{source}: An archive cannot be read as a table. Unpack it and pass its files.")
    if kind == ".parquet":
        with open_file(source) as file:
            seekable = io.BytesIO(decompress(file, source, compression=compression).read()) if compression else file
            return list(parquet_rows(seekable, source))
    if kind in (".json", ".jsonl"):
        return _json_rows(read_json_records(source), source)
    text = read_text(source)
    if stem.lower().endswith(FASTA_SUFFIXES):
        return read_fasta(text, source)
    if source == STANDARD_INPUT and starts_as_json(text):
        return _json_rows(read_json_records(source), source)
    delimiter = None if source == STANDARD_INPUT else _find_delimiter(text, stem, kind)
    if delimiter:
        return _delimited_rows(text, source, delimiter)
    lines = text.split("\n")
    while not lines[-1].strip():
        lines.pop()
    return [(f"{source}:{number}", {"text": line}) for number, line in enumerate(lines, 1)]


def _json_rows(records: list[tuple[str, Any]], source: str) -> list[tuple[str, dict[str, Any]]]:
    """Return locations and objects; of one object with a list "data" the items of the list."""
    if len(records) == 1 and isinstance(records[0][1], dict) and isinstance(records[0][1].get("data"), list):
        records = [(f"{source}: data[{number}]", row) for number, row in enumerate(records[0][1]["data"])]
    for location, row in records:
        if not isinstance(row, dict):
            raise DataError(f"{location}: Expected a JSON object with a key per column, found {type(row).__name__}.")
    return records


def _delimited_rows(text: str, source: str, delimiter: str) -> list[tuple[str, dict[str, Any]]]:
    has_quotes = delimiter in ",;" or _has_csv_quotes(text)
    pairs = list(csv_rows(iter([text]), source, delimiter=delimiter, has_quotes=has_quotes))
    rows = [row for _, row in pairs]
    names = [f"column{number}" for number in range(1, len(rows[0]) + 1)]
    if _has_header(rows):
        location, header = pairs.pop(0)
        names = [field.strip() or name for field, name in zip(header, names, strict=True)]
        if repeated := [name for name, number in Counter(names).items() if number > 1]:
            raise DataError(f"{location}: The header repeats {quoted(repeated)}. Give each column its own name.")
    return [(location, dict(zip(names, row, strict=True))) for location, row in pairs]


def _has_csv_quotes(text: str) -> bool:
    """Return whether quotes of TSV enclose fields, as in CSV, and are not part of the text."""
    # Each must be at an end of a field or doubled inside one.
    if '"' not in text or '"' in _QUOTED_FIELD.sub("", text):
        return False
    lines = [line for line in text.split("\n") if line]
    # As a text may be a quotation, they must be needed.
    return (
        len({line.count("\t") for line in lines}) > 1
        or all(len(field) > 1 and field[0] == field[-1] == '"' for field in lines[0].split("\t"))
        or any('""' in found[0][1:-1] for found in _QUOTED_FIELD.finditer(text))
    )


def _has_header(rows: Sequence[Sequence[str]]) -> bool:
    first = [field.strip() for field in rows[0]]
    if any(usual_name(field) in _USUAL_NAMES for field in first):
        return True
    if len(set(first)) < len(first) or not all(map(_may_be_name, first)):
        return False
    # Labels occur in their column again, names do not.
    return not any(row[i].strip() == name for row in rows[1:] for i, name in enumerate(first))


def _may_be_name(field: str) -> bool:
    is_short = 0 < len(field) <= 40 and len(field.split()) <= 3
    has_letters = any(character.isalpha() for character in field)
    return is_short and has_letters and not _NUMBER.fullmatch(field) and not _SENTENCE_END.search(field)


def _find_delimiter(text: str, stem: str, kind: str) -> str | None:
    if kind == ".tsv":
        return "\t"
    lines = [line for line in text.split("\n") if line.strip()]
    if kind == ".csv":
        return next((mark for mark in ";\t" if mark in lines[0] and "," not in lines[0]), ",")
    # A table has the same number of tabs (in `.data` files also commas) in every line.
    for delimiter in ",\t" if stem.lower().endswith(".data") else "\t":
        numbers = {line.count(delimiter) for line in lines}
        if len(numbers) == 1 and numbers != {0}:
            return delimiter
    return None
