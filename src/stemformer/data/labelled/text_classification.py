"""Labelled texts: find text and label columns of a table, and make examples of its rows."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stemformer.data.labelled.table import LABEL_NAMES, PAIR_NAMES, TEXT_NAMES, Table, usual_name
from stemformer.data.text.files import quoted
from stemformer.data.text.readers import unknown_column
from stemformer.errors import DataError

LabelKind = Literal["class", "labels", "score"]
NO_GOLD_LABEL = "-"
MOST_CLASSES = 200
LONGEST_LABEL = 40
SHORTEST_MEAN_TEXT = 12
_DECIMAL = re.compile(r"[-+]?\d+(\.\d+)?")


@dataclass(frozen=True)
class TextColumns:
    """Columns of the texts of an example, in order, and of its label (None: without label)."""

    texts: tuple[str, ...]
    label: str | None


@dataclass(frozen=True)
class TextExample:
    """One or more texts with their label.

    Args:
        texts: Not empty unless made with `keep_empty`.
        label: A class, a score, a set of labels (may be empty), or None.
        row: Row of the table.
        location: Where the row begins.
    """

    texts: tuple[str, ...]
    label: str | float | tuple[str, ...] | None
    row: dict[str, Any]
    location: str


def choose_columns(
    table: Table,
    *,
    num_texts: int,
    texts: Sequence[str] = (),
    label: str | None = None,
    needs_label: bool,
    kind: LabelKind | None = None,
) -> TextColumns:
    """Return the given columns, and find those that are not given.

    Columns are recognized by their names (`TEXT_NAMES`, `PAIR_NAMES`, `LABEL_NAMES`), else by
    content: the label has few distinct values or numbers with decimals (of several such columns,
    the one that numbers classes 0, 1, ...); the texts are the longest on average.

    Args:
        num_texts: Texts per example.
        texts: All text columns, or none.
        needs_label: Raise if no label is found; if not needed, only its name is considered.
        kind: Kind of label, which decides between several named columns.

    Raises:
        DataError: No such column, another number of `texts`, or ambiguous columns.

    Example:
        >>> table = Table("a.csv", ("id", "review", "sentiment"), [{"id": "1", "review": "Bad.", "sentiment": "no"}], [])
        >>> choose_columns(table, num_texts=1, needs_label=True)
        TextColumns(texts=('review',), label='sentiment')
    """
    labels = () if label is None else (label,)
    for names, option in ((texts, "--text-column"), (labels, "--label-column")):
        for name in names:
            if name not in table.columns:
                raise unknown_column(table.source, name, table.columns, option=option)
    repeated, number = Counter([*texts, label]).most_common(1)[0]
    if number > 1:
        raise DataError(
            f"{table.source}: Column '{repeated}' is set twice. Set each of text and label to another column."
        )
    if texts and len(texts) != num_texts:
        raise DataError(
            f"{table.source}: Found {len(texts)} text columns, expected {num_texts}. {_text_advice(num_texts)}"
        )
    named = tuple(texts) or _named_texts(table, num_texts, label)
    if label is None:
        label = _find_label(table, named, needs_label=needs_label, kind=kind)
    return TextColumns(named or _longest_texts(table, num_texts, label), label)


def _named_texts(table: Table, num_texts: int, label: str | None) -> tuple[str, ...]:
    """Return the text columns with usual names, or nothing."""
    usual = {usual_name(column): column for column in reversed(table.columns) if column != label}
    pairs = [(usual[a], usual[b]) for a, b in PAIR_NAMES if a in usual and b in usual]
    if num_texts == 2:
        return pairs[0] if pairs else ()
    single = next((usual[name] for name in TEXT_NAMES if name in usual), None)
    if num_texts == 1 and pairs and (single is None or single in pairs[0]):
        first, second = pairs[0]
        raise DataError(
            f"{table.source}: '{first}' and '{second}' look like the two texts of a pair, but one text is expected."
            " Use the task for pairs, or choose one with --text-column."
        )
    return (single,) if num_texts == 1 and single is not None else ()


def _find_label(table: Table, texts: tuple[str, ...], *, needs_label: bool, kind: LabelKind | None) -> str | None:
    """Return the label column by its name or, if it is needed, by its content."""
    columns = [column for column in table.columns if column not in texts]
    best, others = ([c for name in names for c in columns if usual_name(c) == name] for names in LABEL_NAMES)
    found = best[:1] or others
    if len(found) > 1 and kind is not None:
        found = [column for column in found if _is_score(table, column) == (kind == "score")] or found
    # Many different numbers are no classes.
    numbers = [c for c in columns if kind == "class" and _is_score(table, c) and not _has_few_values(table, c)]
    found = [column for column in found if column not in numbers]
    if not found and needs_label:
        found = [column for column in columns if _may_be_label(table, column) and column not in numbers]
        if len(found) > 1:
            found = [column for column in found if _numbers_classes(table, column)] or found
    if len(found) == 1:
        return found[0]
    if not needs_label:
        return None
    reason = f"it may be {quoted(found)}" if found else "none holds a few distinct values"
    if numbers and not found:
        reason = f"{quoted(numbers)} holds many different numbers (--kind score predicts a number)"
    raise DataError(
        f"{table.source}: Cannot tell which column is the label: {reason}. {_describe_columns(table)} Set it with --label-column."
    )


def _label_texts(table: Table, column: str) -> list[str]:
    """Return the non-empty labels of a column; none at all if a value cannot be a label."""
    values = [row[column] for row in table.rows]
    if any(isinstance(value, list | dict | bytes) for value in values):
        return []
    return [text for value in values if (text := label_text(value))]


def _may_be_label(table: Table, column: str) -> bool:
    """Return whether half of the rows have short labels, which are few or scores."""
    labels = _label_texts(table, column)
    if not labels or 2 * len(labels) < len(table.rows) or max(map(len, labels)) > LONGEST_LABEL:
        return False
    return _has_few_values(table, column) or _is_score(table, column)


def _has_few_values(table: Table, column: str) -> bool:
    """Return whether a column has at least two, but few distinct values for its length."""
    labels = _label_texts(table, column)
    return 2 <= len(set(labels)) <= max(2, min(MOST_CLASSES, len(labels) // 2))


def _is_score(table: Table, column: str) -> bool:
    """Return whether a column holds numbers, some with decimals."""
    labels = _label_texts(table, column)
    return bool(labels) and all(map(_DECIMAL.fullmatch, labels)) and any("." in label for label in labels)


def _numbers_classes(table: Table, column: str) -> bool:
    """Return whether the distinct values of a column are 0, 1, ..., n or 1, ..., n."""
    labels = set(_label_texts(table, column))
    return any(labels == set(map(str, range(start, start + len(labels)))) for start in (0, 1))


def _longest_texts(table: Table, num_texts: int, label: str | None) -> tuple[str, ...]:
    """Return the columns with clearly the longest texts on average, in the order of the table."""
    lengths: dict[str, float] = {}
    for column in table.columns:
        values = [row[column] for row in table.rows if row[column] is not None]
        if column != label and values and all(isinstance(value, str) for value in values):
            lengths[column] = sum(map(len, values)) / len(values)
    ordered = sorted(lengths, key=lambda column: -lengths[column])
    chosen, rest = ordered[:num_texts], ordered[num_texts:]
    is_short = num_texts > 1 and chosen and lengths[chosen[-1]] < SHORTEST_MEAN_TEXT
    is_close = chosen and rest and lengths[rest[0]] >= max(SHORTEST_MEAN_TEXT, lengths[chosen[-1]] / 3)
    if len(chosen) < num_texts or is_short or is_close:
        raise DataError(
            f"{table.source}: Cannot tell which {num_texts} of the columns {'is' if num_texts == 1 else 'are'} the text."
            f" {_describe_columns(table)} {_text_advice(num_texts)}"
        )
    return tuple(column for column in table.columns if column in chosen)


def _describe_columns(table: Table) -> str:
    note = " (the first line is no header)" if table.columns[0] == "column1" else ""
    return f"Columns: {quoted(table.columns)}{note}."


def _text_advice(num_texts: int) -> str:
    return "Set it with --text-column." if num_texts == 1 else "Set both, each with --text-column."


def make_text_examples(
    table: Table,
    columns: TextColumns,
    *,
    kind: LabelKind,
    separator: str = ",",
    counts: Counter[str],
    keep_empty: bool = False,
) -> list[TextExample]:
    """Return the examples of a table and count the rows that give none, by reason.

    Args:
        kind: "class" for one label as written (an int or float of JSON or parquet without its
            `.0`); "labels" for any number of labels, from a list or split at `separator`; "score"
            for a number.
        keep_empty: Keep (and count) rows with an empty text, so that there is one example per row.
        counts: Receives "empty text", "no label" and "no gold label" (`-`, where annotators
            disagreed; it is a label if `+` is one).

    Raises:
        DataError: A score is no number, or a value cannot be a label or a text.

    Example:
        >>> table = Table("a.jsonl", ("text", "label"), [{"text": "Good.", "label": 1.0}, {"text": "", "label": 0}], ["1", "2"])
        >>> counts = Counter()
        >>> [e.label for e in make_text_examples(table, TextColumns(("text",), "label"), kind="class", counts=counts)]
        ['1']
        >>> counts
        Counter({'empty text': 1})
    """
    examples = []
    is_sign = columns.label is not None and any(row[columns.label] == "+" for row in table.rows)
    for row, location in zip(table.rows, table.locations, strict=True):
        texts = tuple(_text(row[column], location, column) for column in columns.texts)
        if not all(texts):
            counts["empty text"] += 1
            if not keep_empty:
                continue
        label: str | float | tuple[str, ...] | None = None
        if columns.label is not None:
            label = _label(row[columns.label], f"{location}: Column '{columns.label}'", kind, separator)
            if label is None or (label == NO_GOLD_LABEL and not is_sign):
                counts["no label" if label is None else "no gold label"] += 1
                continue
        examples.append(TextExample(texts, label, row, location))
    return examples


def _text(value: object, location: str, column: str) -> str:
    """Return a cell as text: of a list its lines, for null nothing."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = "\n".join(value)
    if isinstance(value, list | dict | bytes):
        raise DataError(
            f"{location}: Column '{column}' holds {type(value).__name__}, expected text. Choose another with --text-column."
        )
    return "" if value is None else str(value).strip()


def _label(value: object, location: str, kind: LabelKind, separator: str) -> str | float | tuple[str, ...] | None:
    """Return a cell as a label of a kind, or None if it is empty."""
    if kind == "labels":
        if value is None:
            return None
        items = value if isinstance(value, list) else str(value).split(separator)
        return tuple(dict.fromkeys(text for item in items if (text := label_text(item, location))))
    text = label_text(value, location)
    if kind == "class" or not text:
        return text or None
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise DataError(
            f"{location} holds {text!r}, expected a number. Repair it, or choose another with --label-column."
        )
    return score


def label_text(value: object, location: str = "label") -> str:
    """Return a label as text, "" for null and NaN.

    Raises:
        DataError: The value is a list, an object or bytes.

    Example:
        >>> [label_text(value) for value in ("good", 1, 1.0, 0.5, True, None)]
        ['good', '1', '1', '0.5', 'true', '']
    """
    if isinstance(value, list | dict | bytes):
        raise DataError(
            f"{location} holds {type(value).__name__}, expected text or number. Choose another with --label-column."
        )
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()
