"""Detection of the task that labelled data fits, for messages about data of another task."""

import re
from pathlib import Path
from typing import Any

from stemformer.data.labelled.class_folders import TAGGED_SUFFIXES
from stemformer.data.labelled.multiple_choice import find_choice_columns
from stemformer.data.labelled.table import read_json_records, read_table
from stemformer.data.labelled.token_classification import CONLLU_LINE, WORD_COLUMNS
from stemformer.data.text.delimited import PAIR_NAMES, usual_name
from stemformer.data.text.files import STANDARD_INPUT, read_text, split_suffixes
from stemformer.errors import DataError

TASK_FORMATS = {
    "classify": "a text and a label in each row (--text-column and --label-column choose them)",
    "pair": "two texts and a label in each row (--text-column, twice, and --label-column choose them)",
    "tag": "a word and its tag on each line, or lists in columns 'tokens' and 'tags' (--label-column chooses the tags)",
    "qa": "the format of SQuAD, or columns 'question', 'context' and 'answers'",
    "choice": "columns 'prompt', 'choice1', 'choice2', ... and 'label'",
    "seq2seq": "a source and a target in each row (--text-column, --label-column choose them), or two parallel files",
}
"""What files of a task hold, for errors."""


def find_columns(source: str) -> tuple[str, ...]:
    """Return the columns of a table; none of a file that is no table."""
    is_table = source != STANDARD_INPUT and split_suffixes(source)[1] in (".csv", ".tsv", ".parquet", ".jsonl")
    try:
        return read_table([source]).columns if is_table and Path(source).is_file() else ()
    except DataError:
        return ()


def detect_task(source: str) -> str | None:
    """Return the task that a file fits, a key of `TASK_FORMATS`, else None."""
    if source == STANDARD_INPUT or not Path(source).is_file():
        return None
    stem, kind, _ = split_suffixes(source)
    try:
        if stem.lower().endswith(TAGGED_SUFFIXES):
            return "tag"
        if kind in (".json", ".jsonl"):
            return next((detect_row_task(record) for _, record in read_json_records(source)), None)
        if kind in (".csv", ".tsv", ".parquet"):
            return detect_row_task(read_table([source]).rows[0])
        return "tag" if kind == "" and _is_conll(read_text(source)) else None
    except DataError:
        return None


def detect_row_task(record: Any) -> str | None:
    """Return the task that the first record of a file, or the first row of a table, fits."""
    # DREAM and C3.
    if isinstance(record, list):
        return "choice"
    if not isinstance(record, dict):
        return None
    items = record.get("data")
    if isinstance(items, list) and items and isinstance(items[0], dict):
        record = items[0]
    if "paragraphs" in record or "qas" in record:
        return "qa"
    if isinstance(record.get("questions"), list):
        return "choice"
    if any(isinstance(value, list) and usual_name(name) in WORD_COLUMNS for name, value in record.items()):
        return "tag"
    if find_choice_columns(tuple(record)):
        return "choice"
    names = set(map(usual_name, record))
    if {"question", "context", "answers"} <= names:
        return "qa"
    return "pair" if any(names.issuperset(pair) for pair in PAIR_NAMES) else "classify"


def _is_conll(text: str) -> bool:
    """Return whether text is CoNLL-U, or several blocks of lines with equally many columns."""
    blocks = [[line for line in block.split("\n") if line.strip()] for block in re.split(r"\n[ \t]*\n", text)]
    lines = [line for block in blocks for line in block if not line.startswith(("#", "-DOCSTART-"))]
    if lines and CONLLU_LINE.fullmatch(lines[0]):
        return True
    widths = {len(line.split()) for line in lines}
    return sum(len(block) > 1 for block in blocks) > 1 and len(widths) == 1 and widths != {1}
