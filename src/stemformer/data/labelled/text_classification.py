"""Labelled texts: which columns of a table are the texts and the label, examples made of them, and a part set aside for dev."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stemformer.data.labelled.table import LABEL_NAMES, PAIR_NAMES, TEXT_NAMES, Table, usual_name
from stemformer.data.text.files import nearest_first
from stemformer.errors import DataError

LabelKind = Literal["class", "labels", "score"]


NO_GOLD_LABEL = "-"


MOST_CLASSES = 200


LONGEST_LABEL = 40


SHORTEST_MEAN_TEXT = 12


_DECIMAL = re.compile(r"[-+]?\d+(\.\d+)?")


@dataclass(frozen=True)
class TextColumns:
    """Which columns hold the texts of an example, in order, and its label; None where labels are not wanted."""

    texts: tuple[str, ...]
    label: str | None


@dataclass(frozen=True)
class TextExample:
    """One text or several, and what is said of them.

    Args:
        texts: None is empty, unless empty ones were to be kept.
        label: A class, a score, a set of labels (maybe empty), or None.
        row: The row of the table that it was made of.
        place: Where that begins.
    """

    texts: tuple[str, ...]
    label: str | float | tuple[str, ...] | None
    row: dict[str, Any]
    place: str


def choose_columns(
    table: Table,
    *,
    num_texts: int,
    texts: Sequence[str] = (),
    label: str | None = None,
    needs_label: bool,
    kind: LabelKind | None = None,
) -> TextColumns:
    """Returns the columns that are given, and for those that are not the ones that must be meant.

    They are known by their names (`TEXT_NAMES`, `PAIR_NAMES`, `LABEL_NAMES`), else by what they hold: the label is the
    column with few distinct values, or of numbers with decimals (of several such columns, the one that counts classes 0,
    1, ...); the texts are the longest on average. A label that is not needed is known by its name alone. Where names leave
    several columns, `kind` decides between classes and scores.

    Args:
        table: The rows.
        num_texts: How many texts make an example.
        texts: Names of all the text columns, or of none.
        label: Name of the label's column.
        needs_label: It is an error if no column can be the label.
        kind: What the label is, if that is known.

    Raises:
        DataError: A name that is not there, another number of `texts`, or columns that cannot be told.

    Example:
        >>> table = Table("a.csv", ("id", "review", "sentiment"), [{"id": "1", "review": "Bad.", "sentiment": "no"}], [])
        >>> choose_columns(table, num_texts=1, needs_label=True)
        TextColumns(texts=('review',), label='sentiment')
    """
    given = [*texts, *([] if label is None else [label])]
    for name in given:
        if name not in table.columns:
            there = ", ".join(repr(other) for other in nearest_first(name, table.columns))
            raise DataError(f"{table.source}: no column '{name}'; there are (nearest first): {there}")
    if len(set(given)) < len(given):
        raise DataError(f"{table.source}: column '{Counter(given).most_common(1)[0][0]}' is given twice")
    if texts and len(texts) != num_texts:
        raise DataError(
            f"{table.source}: {len(texts)} text columns are given, expected {num_texts}: {_options(num_texts)}"
        )
    named = tuple(texts) or _named_texts(table, num_texts, label)
    if label is None:
        label = _guess_label(table, named, needs_label=needs_label, kind=kind)
    return TextColumns(named or _longest_texts(table, num_texts, label), label)


def _named_texts(table: Table, num_texts: int, label: str | None) -> tuple[str, ...]:
    """Returns the text columns by their names, or nothing if none has a usual one."""
    there = {usual_name(column): column for column in reversed(table.columns) if column != label}
    pairs = [(there[a], there[b]) for a, b in PAIR_NAMES if a in there and b in there]
    if num_texts == 2:
        return pairs[0] if pairs else ()
    single = next((there[name] for name in TEXT_NAMES if name in there), None)
    if num_texts == 1 and pairs and (single is None or single in pairs[0]):
        first, second = pairs[0]
        raise DataError(
            f"{table.source}: '{first}' and '{second}' look like the two texts of a pair, but one text is expected:"
            " use the task for pairs, or say which text is meant with --text"
        )
    return (single,) if num_texts == 1 and single is not None else ()


def _guess_label(table: Table, texts: tuple[str, ...], *, needs_label: bool, kind: LabelKind | None) -> str | None:
    """Returns the label's column by its name or, where it is needed, by what it holds."""
    columns = [column for column in table.columns if column not in texts]
    best, others = ([c for name in names for c in columns if usual_name(c) == name] for names in LABEL_NAMES)
    found = best[:1] or others
    if len(found) > 1 and kind is not None:
        found = [column for column in found if _is_score(table, column) == (kind == "score")] or found
    numbers = [
        column for column in columns if kind == "class" and _is_score(table, column) and not _is_few(table, column)
    ]
    found = [column for column in found if column not in numbers]
    if not found and needs_label:
        found = [column for column in columns if _may_be_label(table, column) and column not in numbers]
        if len(found) > 1:
            found = [column for column in found if _counts_classes(table, column)] or found
    if len(found) == 1:
        return found[0]
    if not needs_label:
        return None
    why = f"it may be {_listed(found)}" if found else "none holds a few distinct values"
    if numbers and not found:
        why = f"{_listed(numbers)} holds many different numbers (--regression predicts a number)"
    raise DataError(
        f"{table.source}: cannot tell which column is the label, {why}; {_there(table)}: name it with --label"
    )


def _written(table: Table, column: str) -> list[str] | None:
    """Returns the values of a column that are there, as text; None if one of them is a list or an object."""
    values = [row[column] for row in table.rows]
    if any(isinstance(value, list | dict | bytes) for value in values):
        return None
    return [text for value in values if (text := label_text(value))]


def _may_be_label(table: Table, column: str) -> bool:
    """Returns whether a column holds few distinct values, or numbers with decimals; the smaller part may hold none."""
    written = _written(table, column)
    if not written or 2 * len(written) < len(table.rows) or max(map(len, written)) > LONGEST_LABEL:
        return False
    return _is_few(table, column) or _is_score(table, column)


def _is_few(table: Table, column: str) -> bool:
    """Returns whether a column holds two distinct values at least, but few for so many rows."""
    written = _written(table, column) or []
    return 2 <= len(set(written)) <= max(2, min(MOST_CLASSES, len(written) // 2))


def _is_score(table: Table, column: str) -> bool:
    """Returns whether a column holds numbers, some of them with decimals."""
    written = _written(table, column)
    return bool(written and all(map(_DECIMAL.fullmatch, written)) and any("." in value for value in written))


def _counts_classes(table: Table, column: str) -> bool:
    """Returns whether a column holds all whole numbers from 0 or 1 to some number, and no other values."""
    values = set(_written(table, column) or ())
    return any(values == {str(number) for number in range(begin, begin + len(values))} for begin in (0, 1))


def _longest_texts(table: Table, num_texts: int, label: str | None) -> tuple[str, ...]:
    """Returns the columns with the longest texts on average, in the order of the table, if they stand out."""
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
            f"{table.source}: cannot tell which {num_texts} of the columns {'is' if num_texts == 1 else 'are'} the"
            f" text; {_there(table)}: {_options(num_texts)}"
        )
    return tuple(column for column in table.columns if column in chosen)


def _there(table: Table) -> str:
    is_numbered = table.columns[0] == "column1"
    return f"there are {_listed(table.columns)}" + (" (the first line names none)" if is_numbered else "")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _options(num_texts: int) -> str:
    return "name it with --text" if num_texts == 1 else "name both, each with --text"


def make_text_examples(
    table: Table,
    columns: TextColumns,
    *,
    kind: LabelKind,
    separator: str = ",",
    counted: Counter[str],
    keep_empty: bool = False,
) -> list[TextExample]:
    """Returns the examples that a table holds; what makes none is counted by reason.

    Args:
        table: The rows.
        columns: Which hold the texts and, if labels are wanted, the label.
        kind: "class" for one label as written (an int or float of JSON or parquet without its `.0`); "labels" for any
            number of them, from a list or divided at `separator`; "score" for a number.
        separator: What parts labels in text.
        keep_empty: Rows with an empty text are examples too (and counted), so that there is one for each row.
        counted: Receives "empty text", "no label" and "no gold label" (`-`, where annotators did not agree; it
            is a label where `+` is one).

    Raises:
        DataError: A score that is no number, or a value that can be no label or text.

    Example:
        >>> table = Table("a.jsonl", ("text", "label"), [{"text": "Good.", "label": 1.0}, {"text": "", "label": 0}], ["1", "2"])
        >>> counted = Counter()
        >>> [e.label for e in make_text_examples(table, TextColumns(("text",), "label"), kind="class", counted=counted)]
        ['1']
        >>> counted
        Counter({'empty text': 1})
    """
    examples = []
    is_sign = columns.label is not None and any(row[columns.label] == "+" for row in table.rows)
    for row, place in zip(table.rows, table.places, strict=True):
        texts = tuple(_text(row[column], place, column) for column in columns.texts)
        if not all(texts):
            counted["empty text"] += 1
            if not keep_empty:
                continue
        label: str | float | tuple[str, ...] | None = None
        if columns.label is not None:
            label = _label(row[columns.label], f"{place}: column '{columns.label}'", kind, separator)
            if label is None or (label == NO_GOLD_LABEL and not is_sign):
                counted["no label" if label is None else "no gold label"] += 1
                continue
        examples.append(TextExample(texts, label, row, place))
    return examples


def _text(value: object, place: str, column: str) -> str:
    """Returns a cell as text, of a list of texts its lines; nothing for null."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = "\n".join(value)
    if isinstance(value, list | dict | bytes):
        raise DataError(
            f"{place}: column '{column}' holds {type(value).__name__}, expected text: name another with --text"
        )
    return "" if value is None else str(value).strip()


def _label(value: object, place: str, kind: LabelKind, separator: str) -> str | float | tuple[str, ...] | None:
    """Returns a cell as a label of a kind, or None where there is none."""
    if kind == "labels":
        if value is None:
            return None
        items = value if isinstance(value, list) else str(value).split(separator)
        return tuple(dict.fromkeys(text for item in items if (text := label_text(item, place))))
    text = label_text(value, place)
    if kind == "class" or not text:
        return text or None
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise DataError(f"{place} holds {text!r}, expected a number: repair it, or name another column with --label")
    return score


def label_text(value: object, place: str = "label") -> str:
    """Returns a label as text; nothing for null and NaN.

    Raises:
        DataError: It is a list, an object or bytes.

    Example:
        >>> [label_text(value) for value in ("good", 1, 1.0, 0.5, True, None)]
        ['good', '1', '1', '0.5', 'true', '']
    """
    if isinstance(value, list | dict | bytes):
        raise DataError(f"{place} holds {type(value).__name__}, expected a text or a number: name another with --label")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()
