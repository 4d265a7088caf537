"""Records of labelled files in blocks, of which one is in memory: checked first, and read again for use."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stemformer.data.labelled.table import Table, TableBlocks
from stemformer.data.labelled.text_classification import (
    NO_GOLD_LABEL,
    TextColumns,
    TextExample,
    has_usual_names,
    make_text_examples,
)
from stemformer.data.text.delimited import LABEL_NAMES, usual_name
from stemformer.data.text.files import HUB_PREFIX, quoted
from stemformer.errors import DataError
from stemformer.tasks.dataset import (
    advise_task,
    check_not_empty,
    choose_text_columns,
    column_names,
    read_records,
    with_columns_of,
)
from stemformer.tasks.labels import count_labels
from stemformer.tasks.registry import TASKS
from stemformer.tasks.task import TaskConfig

# Records that are read, predicted and written together.
BLOCK_SIZE = 4096


def blocks_of(records: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yield records in blocks, of which an empty sequence has one."""
    yield from (records[i : i + BLOCK_SIZE] for i in range(0, max(1, len(records)), BLOCK_SIZE))


@dataclass(frozen=True)
class RecordBlocks:
    """Records of labelled files in blocks, checked and counted; each iteration reads the files again."""

    read: Callable[[], Iterator[Sequence[Any]]]
    num_records: int
    # Number of records with each label.
    labels: Counter[str]

    def __iter__(self) -> Iterator[Sequence[Any]]:
        return self.read()


def open_records(
    config: TaskConfig,
    files: Sequence[str],
    *,
    counts: Counter[str],
    needs_answer: bool,
    like: TaskConfig,
    check: Callable[[Sequence[Any]], None] = lambda records: None,
) -> tuple[RecordBlocks, TaskConfig]:
    """Return the records of labelled files in blocks, and the settings with the columns that were chosen.

    A table whose columns are known by name is read twice, block by block: now, to check all of it, and for use. Other
    files are held in memory. The arguments are those of `read_records`, and:

    Args:
        check: Called with each block, before anything is computed.
    """
    how: dict[str, Any] = {"counts": counts, "needs_answer": needs_answer, "like": like}
    if (opened := _open_texts(config, files, check=check, **how)) is not None:
        return opened
    records, config = read_records(config, files, **how)
    for block in blocks_of(records):
        check(block)
    labels = count_labels(config, records if needs_answer else ())
    return RecordBlocks(lambda: blocks_of(records), len(records), labels), config


def _open_texts(
    config: TaskConfig,
    files: Sequence[str],
    *,
    counts: Counter[str],
    needs_answer: bool,
    like: TaskConfig,
    check: Callable[[Sequence[Any]], None],
) -> tuple[RecordBlocks, TaskConfig] | None:
    """Return the records of `classify` and `pair` in blocks, and the settings with the columns.

    None for other tasks, and if columns are known by their content only, which takes all rows.
    """
    is_online = any(file.startswith(HUB_PREFIX) for file in files)
    if TASKS[config.name].head != "sequence" or is_online:
        return None
    found, names = Counter[str](), column_names(config, like)

    def make(block: Table, chosen: tuple[TextColumns, TaskConfig], counts: Counter[str]) -> list[TextExample]:
        columns, config = chosen
        how: dict[str, Any] = {"kind": config.kind, "counts": counts, "keep_empty": not needs_answer}
        records = make_text_examples(block, columns, has_plus=columns.label in table.with_plus, **how)
        return TASKS[config.name].with_answer(records) if needs_answer else records

    with advise_task(config, files):
        table = TableBlocks(files, names=names, counts=found, block_size=BLOCK_SIZE)
        while True:
            made, labels, num_records, chosen, known = Counter[str](), Counter[str](), 0, None, set[str]()
            for block in table:
                if chosen is None:
                    known = set(block.columns)
                    chosen = _choose_named_columns(config, like, block, needs_answer=needs_answer)
                    if chosen is None:
                        return None
                records = make(block, chosen, made)
                num_records += len(records)
                labels += count_labels(chosen[1], records if needs_answer else ())
                check(records)
            assert chosen is not None
            label = chosen[0].label
            # Later rows may have had more columns, or a + that makes each - a label: check again.
            if known == set(table.columns) and not (label in table.with_plus and made[NO_GOLD_LABEL]):
                break
        counts.update(found + made)
        check_not_empty(num_records, files, counts, needs_answer=needs_answer)

    last = chosen
    return RecordBlocks(lambda: (make(block, last, Counter()) for block in table), num_records, labels), last[1]


def _choose_named_columns(
    config: TaskConfig, like: TaskConfig, table: Table, *, needs_answer: bool
) -> tuple[TextColumns, TaskConfig] | None:
    """Return what `choose_text_columns` does; None if it takes all rows to choose."""
    wanted = with_columns_of(config, like, table)
    # A label column that is guessed by its content may be an id, whose metrics say nothing.
    is_usual = any(usual_name(column) in names for column in table.columns for names in LABEL_NAMES)
    if needs_answer and wanted.label is None and isinstance(like.label, str) and not is_usual:
        problem = f"{table.source} has no label column '{like.label}'. Columns: {quoted(table.columns)}"
        raise DataError(f"{problem}. Set another one with --label-column; predict needs none.")
    is_named = wanted.text or has_usual_names(table, num_texts=2 if config.name == "pair" else 1, needs_label=False)
    is_absent = not {*wanted.text, *wanted.label_columns} <= set(table.columns)
    if not is_named or is_absent or (needs_answer and wanted.label is None):
        return None
    return choose_text_columns(wanted, table, needs_answer=needs_answer)
