"""What kind of labelled data a file looks like, for messages about a file that was given to another task than its own."""

import re
from pathlib import Path
from typing import Any

from stemformer.data.labelled.multiple_choice import is_choice_row
from stemformer.data.labelled.table import read_json_records, read_table, usual_name
from stemformer.data.labelled.token_classification import WORD_COLUMNS
from stemformer.data.text.files import HUB_PREFIX, STANDARD_INPUT, read_text, split_suffixes
from stemformer.errors import DataError

_CONLLU_LINE = re.compile(r"\d+([-.]\d+)?(\t[^\t]*){9}")
_TAGGED_SUFFIXES = (".conll", ".conllu", ".conllup", ".iob", ".iob2", ".bio", ".bioes")


def looks_like(source: str) -> str | None:
    """Returns the task that a file seems to be for: `tag`, `qa`, `choice` or `classify`; None if that cannot be told.

    Args:
        source: A file; nothing is said about hub data sets and standard input.

    Example:
        >>> looks_like("dev-v1.1.json")  # doctest: +SKIP
        'qa'
    """
    if source.startswith(HUB_PREFIX) or source == STANDARD_INPUT or not Path(source).is_file():
        return None
    stem, kind, _ = split_suffixes(source)
    try:
        if stem.lower().endswith(_TAGGED_SUFFIXES):
            return "tag"
        if kind in (".json", ".jsonl"):
            records = read_json_records(source)
            return row_looks_like(records[0][1]) if records else None
        if kind in (".csv", ".tsv", ".parquet"):
            return row_looks_like(read_table([source]).rows[0])
        return "tag" if kind == "" and _has_words_in_lines(read_text(source)) else None
    except DataError:
        return None


def row_looks_like(record: Any) -> str | None:
    """Returns the same of the first record of a file, or of the first row of a table.

    Example:
        >>> row_looks_like({"tokens": ["a", "king"], "tags": ["O", "O"]})
        'tag'
    """
    if isinstance(record, list):
        return "choice"  # DREAM and C3
    if not isinstance(record, dict):
        return None
    items = record.get("data")
    if isinstance(items, list) and items and isinstance(items[0], dict):
        record = items[0]
    if "paragraphs" in record or "qas" in record:
        return "qa"
    return "choice" if isinstance(record.get("questions"), list) else _of_row(record)


def _of_row(row: dict[str, Any]) -> str | None:
    names = {usual_name(name) for name in row}
    if any(isinstance(row[name], list) for name in row if usual_name(name) in WORD_COLUMNS):
        return "tag"
    if is_choice_row(tuple(row)):
        return "choice"
    return "qa" if {"question", "context", "answers"} <= names else "classify"


def _has_words_in_lines(text: str) -> bool:
    """Returns whether lines are words with their tags: blocks of several lines, all with the same number of columns, two or more."""
    blocks = [[line for line in block.split("\n") if line.strip()] for block in re.split(r"\n[ \t]*\n", text)]
    lines = [line for block in blocks for line in block if not line.startswith(("#", "-DOCSTART-"))]
    if any(_CONLLU_LINE.fullmatch(line) for line in lines[:1]):
        return True
    widths = {len(line.split()) for line in lines}
    return sum(len(block) > 1 for block in blocks) > 1 and len(widths) == 1 and widths != {1}
