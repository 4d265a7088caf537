"""Labelled texts: find text and label columns of a table, and make examples of its rows."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stemformer.data.labelled.table import Table, parse_cell
from stemformer.data.text.delimited import LABEL_NAMES, PAIR_NAMES, TEXT_NAMES, longest_texts, usual_name
from stemformer.data.text.files import quoted
from stemformer.data.text.readers import unknown_column
from stemformer.errors import DataError
from stemformer.progress import format_count

LabelKind = Literal["class", "labels", "score"]
MOST_CLASSES = 200
LONGEST_LABEL = 40
NO_GOLD_LABEL = "no gold label"
_YES, _NO = ("1", "1.0", "true"), ("0", "0.0", "false")
_DECIMAL = re.compile(r"[-+]?\d+([.,]\d+)?")
_WITH_COMMAS = re.compile(r"[-+]?[\d.]*(,\d+)+(\.\d+)?")


@dataclass(frozen=True)
class TextColumns:
    """Columns of the texts of an example, in order, and of its label.

    Several label columns hold 0 or 1 each, and their names are the labels; None: without label.
    """

    texts: tuple[str, ...]
    label: str | tuple[str, ...] | None


@dataclass(frozen=True)
class TextExample:
    """One or more texts with their label: a class, a score, a set of labels, or None."""

    texts: tuple[str, ...]
    label: str | float | tuple[str, ...] | None
    row: dict[str, Any]
    location: str


def choose_columns(
    table: Table,
    *,
    num_texts: int,
    texts: Sequence[str] = (),
    label: str | tuple[str, ...] | None = None,
    needs_label: bool,
    kind: LabelKind | None = None,
) -> TextColumns:
    """Check the columns that `texts` and `label` name, and find those that are missing.

    Columns are recognized by their names (`table.py`), else by content: the label has few distinct
    values or numbers with decimals; the texts are the longest on average. `kind` decides between
    several named labels. A label that is not needed is only found by its name.
    """
    source, columns = table.source, table.columns
    labels = _label_columns(label)
    for name in [*texts, *labels]:
        if name not in columns:
            raise unknown_column(source, name, columns, option="--text-column" if name in texts else "--label-column")
    if repeated := next((name for name, number in Counter([*texts, *labels]).items() if number > 1), None):
        raise DataError(f"{source}: Column '{repeated}' is set twice. Set each of text and label to another column.")
    if texts and len(texts) != num_texts:
        found = format_count(len(texts), "text column")
        raise DataError(f"{source}: Found {found}, expected {num_texts}. {_text_advice(num_texts)}")
    if needs_label and label is None and len(columns) <= num_texts:
        advice = "Pass a table (.csv, .tsv, .jsonl, .parquet), or a folder with a sub-folder for each class"
        if any("\t" in str(value) for value in table.rows[0].values()):
            advice = "Name the file .tsv if tabs separate its columns"
        others = [column for column in columns if not any(usual_name(column) in names for names in LABEL_NAMES)]
        if num_texts > 1 and len(others) == 1 < len(columns):
            found = f"Pairs need two text columns and a label column, found one text column ({quoted(others)})"
            raise DataError(f"{source}: {found}.")
        if num_texts > 1 and len(columns) > 1:
            advice = "Expected two text columns and a label column"
        raise DataError(f"{source}: There is no label column, only {quoted(columns)}. {advice}.")
    named = tuple(texts) or _named_texts(table, num_texts, labels)
    if label is None:
        # Short texts may look like labels.
        texts = named or _longest_texts(table, num_texts, ()) or ()
        label = _find_label(table, named, texts, needs_label=needs_label, kind=kind)
    chosen = named or _longest_texts(table, num_texts, _label_columns(label))
    if chosen is None:
        which = "which column is the text" if num_texts == 1 else f"which {num_texts} of the columns are the text"
        raise _ambiguous(table, which, _text_advice(num_texts))
    return TextColumns(chosen, label)


def _label_columns(label: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if label is None else (label,) if isinstance(label, str) else label


def has_usual_names(table: Table, *, num_texts: int, needs_label: bool) -> bool:
    """Return whether columns have the usual names of texts and, if it is needed, of a label."""
    is_labelled = any(usual_name(column) in name for column in table.columns for name in LABEL_NAMES)
    return bool(_named_texts(table, num_texts, ())) and (is_labelled or not needs_label)


def _named_texts(table: Table, num_texts: int, labels: Sequence[str]) -> tuple[str, ...]:
    usual = {usual_name(column): column for column in reversed(table.columns) if column not in labels}
    pairs = [(usual[a], usual[b]) for a, b in PAIR_NAMES if a in usual and b in usual]
    if num_texts == 2:
        return pairs[0] if pairs else ()
    single = next((usual[name] for name in TEXT_NAMES if name in usual), None)
    if num_texts == 1 and pairs and (single is None or single in pairs[0]):
        pair = f"'{pairs[0][0]}' and '{pairs[0][1]}' look like the two texts of a pair, but one text is expected"
        advice = "Choose one with --text-column, or use the task pair (a model from elsewhere: pass both columns)."
        raise DataError(f"{table.source}: {pair}. {advice}")
    return (single,) if num_texts == 1 and single is not None else ()


def _find_label(
    table: Table, named: Sequence[str], texts: Sequence[str], *, needs_label: bool, kind: LabelKind | None
) -> str | None:
    """Return the label column by its name or, if it is needed, by its content.

    It is none of the columns `named`, and rather none of `texts`.
    """
    columns = [column for column in table.columns if column not in named]
    # Labels may be separated by commas, scores have decimal commas, which is said when they are read.
    marks = "." if kind == "labels" else ".,"
    traits = {column: _label_traits(table, column, marks) for column in columns}
    best, others = ([c for name in names for c in columns if usual_name(c) == name] for names in LABEL_NAMES)
    found = best[:1] or others
    if len(found) > 1 and kind is not None:
        found = [column for column in found if ("scores" in traits[column]) == (kind == "score")] or found
    # Many different numbers are no classes.
    numbers = [column for column in columns if kind == "class" and traits[column] & {"scores", "few"} == {"scores"}]
    found = [column for column in found if column not in numbers]
    if not found and needs_label:
        found = [c for c in columns if "short" in traits[c] and traits[c] & {"scores", "few"} and c not in numbers]
        if len(found) > 1:
            found = [column for column in found if "numbered" in traits[column]] or found
            found = [column for column in found if column not in texts] or found
    if len(found) == 1:
        return found[0]
    if not needs_label:
        return None
    reason = f"it may be {quoted(found)}" if found else "none holds a few distinct values"
    if numbers and not found:
        reason = f"{quoted(numbers)} holds many different numbers (--kind score predicts a number)"
    advice = "Set it with --label-column."
    if len(flags := [c for c in found if all(label_text(row[c]) in (*_YES, *_NO) for row in table.rows)]) > 1:
        advice += f" If {quoted(flags)} are labels of which a text has any number, set each with --label-column."
    raise _ambiguous(table, f"which column is the label: {reason}", advice)


def _label_traits(table: Table, column: str, marks: str) -> set[str]:
    """Return how values resemble labels: "short", "few", "scores" (with decimal `marks`), "numbered"."""
    values = [row[column] for row in table.rows]
    if any(isinstance(value, list | dict | bytes) for value in values):
        return set()
    labels = [text for value in values if (text := label_text(value))]
    distinct = set(labels)
    traits = {
        "short": 2 * len(labels) >= len(values) and max(map(len, labels), default=0) <= LONGEST_LABEL,
        "few": 2 <= len(distinct) <= max(2, min(MOST_CLASSES, len(labels) // 2)),
        # Numbers, some with decimals.
        "scores": all(map(_DECIMAL.fullmatch, labels)) and any(mark in label for label in labels for mark in marks),
        # Numbers of classes: 0, 1, ..., n or 1, ..., n.
        "numbered": any(distinct == {str(start + i) for i in range(len(distinct))} for start in (0, 1)),
    }
    return {trait for trait, holds in traits.items() if holds}


def _longest_texts(table: Table, num_texts: int, labels: Sequence[str]) -> tuple[str, ...] | None:
    """Return the columns with clearly the longest texts on average, in the order of the table."""
    candidates: dict[str, list[str]] = {}
    for column in table.columns:
        values = [row[column] for row in table.rows if row[column] is not None]
        if column not in labels and values and all(isinstance(value, str) for value in values):
            candidates[column] = values
    return longest_texts(candidates, num_texts)


def _ambiguous(table: Table, what: str, advice: str) -> DataError:
    note = " (the first line is not a header)" if table.columns[0] == "column1" else ""
    return DataError(f"{table.source}: Cannot tell {what}. Columns: {quoted(table.columns)}{note}. {advice}")


def _text_advice(num_texts: int) -> str:
    return "Set it with --text-column." if num_texts == 1 else "Set both, each with --text-column."


def make_text_examples(
    table: Table,
    columns: TextColumns,
    *,
    kind: LabelKind,
    counts: Counter[str],
    keep_empty: bool = False,
    has_plus: bool | None = None,
) -> list[TextExample]:
    """Return the examples of a table and count the rows that give none, by reason.

    `kind` is "class" for one label as written, "labels" for any number of labels, from a list (also
    in JSON or Python) or split at commas, or "score" for a number. `keep_empty` keeps rows with an empty text.
    `has_plus` says whether the label is `+` somewhere, also outside these rows; None: look for it.
    """
    examples = []
    # `-` is no label where annotators disagreed; it is one where `+` is.
    is_sign = has_plus
    if has_plus is None:
        is_sign = any(row[column] == "+" for row in table.rows for column in _label_columns(columns.label))
    for row, location in zip(table.rows, table.locations, strict=True):
        texts = tuple(_text(row[column], location, column) for column in columns.texts)
        if not all(texts):
            counts["empty text"] += 1
            if not keep_empty:
                continue
        label: str | float | tuple[str, ...] | None = None
        if isinstance(columns.label, tuple):
            label = _flagged_labels(row, columns.label, location)
        elif columns.label is not None:
            label = _label(row[columns.label], f"{location}: Column '{columns.label}'", kind)
        if columns.label is not None and (label is None or (label == "-" and not is_sign)):
            counts["no label" if label is None else NO_GOLD_LABEL] += 1
            continue
        examples.append(TextExample(texts, label, row, location))
    if kind == "labels" and isinstance(columns.label, str):
        _check_not_joined(examples, columns.label)
    return examples


def _check_not_joined(examples: Iterable[TextExample], column: str) -> None:
    """Raise DataError if a label is made of others, joined by another character than a comma; lists stay as they are."""
    locations: dict[str, str] = {}
    for example in examples:
        if isinstance(example.label, tuple) and isinstance(parse_cell(example.row[column]), str):
            for label in example.label:
                locations.setdefault(label, f"{example.location}: Column '{column}'")
    for separator in "|;":
        parts = {label: {part.strip() for part in label.split(separator)} for label in locations if separator in label}
        # Number of labels in which each part is.
        uses = Counter(part for label in locations for part in parts.get(label, {label}))
        for label, own in parts.items():
            if all(part and uses[part] > 1 for part in own):
                problem = f"the label {label!r}, which is made of other labels joined by '{separator}'"
                advice = f"Replace '{separator}' by ',', or write labels as a list in JSON"
                raise DataError(f'{locations[label]} holds {problem}. {advice}, such as ["a", "b"].')


def _text(value: object, location: str, column: str) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = "\n".join(value)
    if isinstance(value, list | dict | bytes):
        found = f"Column '{column}' holds {type(value).__name__}, expected text"
        raise DataError(f"{location}: {found}. Choose another with --text-column.")
    # A cell may hold the newlines of another system.
    return "" if value is None else str(value).replace("\r\n", "\n").replace("\r", "\n").strip()


def _label(value: object, location: str, kind: LabelKind) -> str | float | tuple[str, ...] | None:
    value = parse_cell(value)
    if kind == "labels":
        if value is None:
            return None
        items = value if isinstance(value, list) else _split_labels(str(value), location)
        return tuple(dict.fromkeys(text for item in items if (text := label_text(item, location))))
    text = label_text(value, location)
    if kind == "class" or not text:
        return text or None
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        expected, advice = "a number", "Repair it, or choose another with --label-column."
        if _WITH_COMMAS.fullmatch(text):
            expected, advice = "a number with a decimal point and without commas, such as 3.5", "Replace the commas."
        raise DataError(f"{location} holds {text!r}, expected {expected}. {advice}")
    return score


def _flagged_labels(row: dict[str, Any], columns: Sequence[str], location: str) -> tuple[str, ...] | None:
    """Return the columns that hold 1; None if one holds -1 or nothing, as where no annotator decided."""
    values = {column: label_text(row[column], f"{location}: Column '{column}'").lower() for column in columns}
    if any(value in ("", "-1", "-1.0") for value in values.values()):
        return None
    for column, value in values.items():
        if value not in (*_YES, *_NO):
            expected = "of several label columns each holds 1 or 0"
            raise DataError(
                f"{location}: Column '{column}' holds {value!r:.40}, but {expected}. Set one --label-column."
            )
    return tuple(column for column, value in values.items() if value in _YES)


def _split_labels(text: str, location: str) -> list[str]:
    """Split labels at commas; raise if they are pieces of a list or of something in brackets."""
    items = [item.strip() for item in text.split(",")]
    pairs = ("[]", "{}", "()") if len(items) > 1 else ("[]", "{}")
    is_cut = any(item.count(left) != item.count(right) for item in items for left, right in map(tuple, pairs))
    if is_cut or text.strip()[:1] in ("[", "'", '"') or any(item.count('"') % 2 for item in items):
        pieces = f"cut at its commas it gives {quoted(items[:4])}"
        advice = 'Write labels with commas between them, or as a list in JSON, such as ["a", "b"]'
        raise DataError(f"{location} holds {text!r:.80}, and {pieces}. {advice}.")
    return items


def label_text(value: object, location: str = "label") -> str:
    """Return a label as text: "1" for 1.0, "true" for True, "" for null and NaN."""
    if isinstance(value, list | dict | bytes):
        found = type(value).__name__
        advice = "Choose another with --label-column" + (", or pass --kind labels" if found == "list" else "")
        raise DataError(f"{location} holds {found}, expected text or number. {advice}.")
    if isinstance(value, float):
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    text = "" if value is None else str(value).strip()
    return text.lower() if isinstance(value, bool) else text
