"""Tables with delimiters (CSV, TSV): delimiter, quotes and header are found in their first lines."""

import csv
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal

from stemformer.data.text.files import quoted, read_ahead, text_lines
from stemformer.data.text.readers import unknown_column
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
SHORTEST_MEAN_TEXT = 12
_HEAD_CHARACTERS, _HEAD_ROWS = 1 << 16, 2000
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_SENTENCE_END = re.compile(r"[.?!,;:。？！，；：]$")
_CARRIAGE_RETURN = re.compile(r"(?<=\r)(?!\n)")
_QUOTED_FIELD = re.compile(r'(?m)(?:^|(?<=\t))"(?:[^"]++|"")*+"(?=\t|$)')


@dataclass(frozen=True)
class Delimited:
    """Columns of a table, and sources (`file.csv:12`) and fields of its rows, read once."""

    columns: tuple[str, ...]
    rows: Iterator[tuple[str, list[str]]]
    first_rows: list[list[str]]
    has_header: bool


def usual_name(column: str) -> str:
    """Normalize a column name: "Sentence A" to "sentence_a"."""
    return column.strip().lower().replace(" ", "_").replace("-", "_")


def read_delimited(
    blocks: Iterator[str], name: str, delimiter: str | None, *, names: Collection[str] = (), counts: Counter[str]
) -> Delimited:
    """Read a table; its first line is the header if it has usual names or differs from the other lines.

    Without header, columns are `column1`, `column2`, ..., or `text` if there is one.

    Args:
        delimiter: None for the comma, or the semicolon or tab that the first line has instead.
        names: Column names that prove a header.
        counts: Receives what was assumed about the first line.
    """
    head, blocks = read_ahead(blocks, lambda text: len(text) >= _HEAD_CHARACTERS)
    next(blocks, None)
    following = list(islice(blocks, 1))
    blocks = chain([head], following, blocks)
    head = head.replace("\r\n", "\n").replace("\r", "\n")
    if following:
        head = head.rpartition("\n")[0] or head
    if delimiter is None:
        first_line = next((line for line in head.split("\n") if line.strip()), "")
        delimiter = next((mark for mark in ";\t" if mark in first_line and "," not in first_line), ",")
    has_quotes = delimiter in ",;" or _has_csv_quotes(head)
    first_rows = []
    try:
        for _, row in islice(csv_rows(iter([head]), name, delimiter=delimiter, has_quotes=has_quotes), _HEAD_ROWS):
            first_rows.append(row)
    except DataError:
        # A quoted field may be cut off.
        if not following:
            raise
    rows = csv_rows(blocks, name, delimiter=delimiter, has_quotes=has_quotes)
    if not first_rows:
        return Delimited((), rows, [], False)
    columns = [f"column{number}" for number in range(1, len(first_rows[0]) + 1)]
    found = _find_header(first_rows, names)
    if found is None:
        columns = columns if len(columns) > 1 else ["text"]
        counts[f"files without a header (columns: {quoted(columns)})"] += 1
        return Delimited(tuple(columns), rows, first_rows, False)
    source, header = next(rows)
    columns = [field.strip() or column for field, column in zip(header, columns, strict=True)]
    if repeated := [column for column, number in Counter(columns).items() if number > 1]:
        raise DataError(f"{source}: The header repeats {quoted(repeated)}. Give each column its own name.")
    if found == "content":
        counts[f"first lines taken for a header ({quoted(columns)})"] += 1
    return Delimited(tuple(columns), rows, first_rows[1:], True)


def delimited_column(
    blocks: Iterator[str], name: str, *, column: str, delimiter: str | None, counts: Counter[str]
) -> Iterator[tuple[str, str]]:
    """Yield a column of a table; without header, that of the longest texts."""
    table = read_delimited(blocks, name, delimiter, names=[column], counts=counts)
    if column not in table.columns and not table.has_header and table.columns:
        values = dict(zip(table.columns, zip(*table.first_rows, strict=True), strict=True))
        if chosen := longest_texts(values, 1):
            [column] = chosen
    if table.columns and column not in table.columns:
        raise unknown_column(name, column, table.columns)
    for source, row in table.rows:
        yield source, row[table.columns.index(column)]


def longest_texts(values: Mapping[str, Sequence[str]], number: int) -> tuple[str, ...] | None:
    """Return the names of columns with clearly the longest texts on average, in their order; None if there are none."""
    lengths = {name: sum(map(len, texts)) / len(texts) for name, texts in values.items()}
    ordered = sorted(lengths, key=lambda name: -lengths[name])
    chosen, rest = ordered[:number], ordered[number:]
    is_short = number > 1 and chosen and lengths[chosen[-1]] < SHORTEST_MEAN_TEXT
    is_close = chosen and rest and lengths[rest[0]] >= max(SHORTEST_MEAN_TEXT, lengths[chosen[-1]] / 3)
    if len(chosen) < number or is_short or is_close:
        return None
    return tuple(name for name in lengths if name in chosen)


def csv_rows(blocks: Iterator[str], name: str, *, delimiter: str, has_quotes: bool) -> Iterator[tuple[str, list[str]]]:
    """Yield sources and fields of all rows of a table, header included, without empty lines.

    With `has_quotes`, quoted fields may hold delimiters and newlines, which stay as they are; else quotes are text.
    """
    # The csv module has one limit for the process.
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 27))
    # A carriage return ends a line too, inside of quotes without ending a row.
    lines = (part for line in text_lines(blocks) for part in _CARRIAGE_RETURN.split(line + "\n"))
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if has_quotes else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    first_line, num_fields = 1, 0
    try:
        for row in reader:
            source, first_line = f"{name}:{first_line}", reader.line_num + 1
            num_fields = num_fields or len(row)
            if row and len(row) != num_fields:
                advice = "Quote text that contains separators or newlines."
                raise DataError(f"{source}: {len(row)} fields, but the first line has {num_fields}. {advice}")
            if row:
                yield source, row
    except csv.Error as error:
        raise DataError(f"{name}:{first_line}: Bad CSV ({error}). Is a quote opened here and not closed?") from error


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


def _find_header(rows: Sequence[Sequence[str]], names: Collection[str]) -> Literal["names", "content"] | None:
    """Return what proves that the first row is a header, or None."""
    first = [field.strip() for field in rows[0]]
    if any(usual_name(field) in _USUAL_NAMES or field in names for field in first):
        return "names"
    if len(set(first)) < len(first) or not all(map(_may_be_name, first)):
        return None
    columns = [[row[i].strip() for row in rows[1:] if row[i].strip()] for i in range(len(first))]
    # Labels occur in their column again, names do not.
    if any(name in values for name, values in zip(first, columns, strict=True)):
        return None
    return "content" if any(map(_differs, first, columns)) else None


def _differs(name: str, values: Sequence[str]) -> bool:
    """Return whether a field looks like the name of a column with these values, and not like one of them."""
    are_numbers = all(map(_NUMBER.fullmatch, values))
    are_texts = " " not in name and all(" " in value or len(value) > 2 * len(name) for value in values)
    are_classes = len(values) >= 4 and 2 * len(set(values)) <= len(values)
    return "_" in name or (bool(values) and (are_numbers or are_texts or are_classes))


def _may_be_name(field: str) -> bool:
    is_short = 0 < len(field) <= 40 and len(field.split()) <= 3
    has_letters = any(character.isalpha() for character in field)
    return is_short and has_letters and not _NUMBER.fullmatch(field) and not _SENTENCE_END.search(field)
