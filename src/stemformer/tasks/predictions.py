"""Output files of predictions, and the selection of examples for reports."""

import csv
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from stemformer.errors import ConfigError, DataError
from stemformer.io import to_json
from stemformer.tasks.task import Task, TaskOutputs

# Words that a file of one word a line cannot hold: what would be read back as something else.
_UNWRITABLE_WORD = re.compile(r"(-DOCSTART-|\ufeff).*|.*[\t\n\r].*|", re.DOTALL)
# Labels that need no quotes when they are joined by commas.
_PLAIN_LABEL = re.compile(r"""[^\s,\[\]{}()'"]([^,\[\]{}()'"]*[^\s,\[\]{}()'"])?""")


class PredictionFile:
    """Contents of an output file of predictions; its suffix, `.jsonl` without a name, is the format."""

    def __init__(self, out: str | None, task: Task) -> None:
        self.suffix = Path(out).suffix if out else ".jsonl"
        if self.suffix not in task.formats:
            formats = f"{', '.join(task.formats)}, not as '{self.suffix}'"
            name = task.config.name
            raise ConfigError(f"--out {out}: predictions of {name} are written as {formats}. Change the name.")
        self._out, self._task = out, task
        self._ids: set[str] = set()
        self._has_gold = False

    def check(self, records: Sequence[Any]) -> None:
        """Refuse what the format cannot hold: repeated ids as keys, and words that are read back as something else."""
        advice = f"Write .jsonl instead of {self._out}"
        for record in records if self.suffix == ".json" else ():
            if record.id in self._ids:
                problem = f"The id {record.id!r} occurs more than once, and .json holds one answer for an id"
                raise DataError(f"{problem}. {advice}, or predict each file by itself.")
            self._ids.add(record.id)
        for record in records if self.suffix == ".conll" else ():
            self._has_gold = self._has_gold or record.tags is not None
            bad = [word for word in record.words or [""] if _UNWRITABLE_WORD.fullmatch(word)]
            if bad:
                raise DataError(f"{record.location}: CoNLL cannot hold the word {bad[0]!r}. {advice}.")

    def contents(self, blocks: Iterable[tuple[Sequence[Any], Sequence[Any]]]) -> Iterator[bytes]:
        """Yield the contents of the file for blocks of records and their predictions."""
        separator = "{" if self.suffix == ".json" else ""
        for number, (records, predictions) in enumerate(blocks):
            yield (separator + self._text(records, predictions, is_first=number == 0)).encode()
            separator = {".json": ", ", ".conll": "\n"}.get(self.suffix, "")
        yield b"}\n" if self.suffix == ".json" else b""

    def _text(self, records: Sequence[Any], predictions: Sequence[Any], *, is_first: bool) -> str:
        pairs = list(zip(records, predictions, strict=True))
        if self.suffix == ".json":
            return ", ".join(f"{to_json(r.id)}: {to_json(p.text)}" for r, p in pairs)
        if self.suffix == ".conll":
            return "\n".join("".join(f"{line}\n" for line in self._lines(r, p)) for r, p in pairs)
        rows = [self._task.to_row(record, prediction) for record, prediction in pairs]
        if self.suffix == ".jsonl":
            return "".join(f"{to_json(row)}\n" for row in rows)
        return self._table(rows, is_first=is_first)

    def _lines(self, record: Any, prediction: Any) -> list[str]:
        gold = [record.tags or ["_"] * len(record.words)] if self._has_gold else []
        return ["\t".join(line) for line in zip(record.words, *gold, prediction.tags, strict=True)]

    def _table(self, rows: Sequence[dict[str, Any]], *, is_first: bool) -> str:
        lines: list[str] = []
        # With this end of a line, a cell with a carriage return or a newline is quoted.
        how: dict[str, Any] = {"lineterminator": "\r\n", "delimiter": "\t" if self.suffix == ".tsv" else ","}
        file = SimpleNamespace(write=lambda line: lines.append(line.removesuffix("\r\n") + "\n"))
        rows = [self._task.table_columns(row) for row in rows]
        names = list(rows[0]) if rows else []
        if is_first:
            # Quotes around the names of a TSV say that its fields are quoted where they need it.
            quoting: Any = csv.QUOTE_ALL if self.suffix == ".tsv" else csv.QUOTE_MINIMAL
            csv.writer(file, quoting=quoting, **how).writerow(names)
        writer = csv.writer(file, **how)
        writer.writerows([_cell(row[name], is_prediction=name == "prediction") for name in names] for row in rows)
        return "".join(lines)


def _cell(value: Any, *, is_prediction: bool) -> Any:
    """Return a cell of a table: lists and objects as JSON, predicted labels joined by commas if they hold none."""
    if is_prediction and isinstance(value, list) and all(map(_PLAIN_LABEL.fullmatch, value)):
        return ",".join(value)
    if isinstance(value, list | dict | bool):
        return to_json(value)
    return "" if isinstance(value, float) and math.isnan(value) else value


class WorstExamples:
    """Records with their predictions for a report: the `number` worst, wrong ones first, by decreasing error."""

    def __init__(self, task: Task, number: int, *, only_wrong: bool = False) -> None:
        self._task, self._number, self._only_wrong = task, number, only_wrong
        self._ranked: list[tuple[tuple[bool, float, int], dict[str, Any]]] = []
        self.num_examples = self.num_wrong = 0

    def add(self, records: Sequence[Any], predictions: Sequence[Any], outputs: TaskOutputs | None = None) -> None:
        """Add records; with `outputs`, entries have the `report_details` of the task, such as token probabilities."""
        examples = [self._task.to_report_example(r, p) for r, p in zip(records, predictions, strict=True)]
        first = self.num_examples
        found = [((not is_wrong, -error, first + i), entry) for i, (error, is_wrong, entry) in enumerate(examples)]
        self.num_examples += len(found)
        self.num_wrong += sum(is_wrong for _, is_wrong, _ in examples)
        kept = [(rank, entry) for rank, entry in found if not (self._only_wrong and rank[0])]
        self._ranked = sorted([*self._ranked, *kept], key=lambda example: example[0])[: self._number]
        if outputs is not None:
            for (*_, number), entry in self._ranked:
                if (i := number - first) >= 0:
                    entry |= self._task.report_details(records[i], predictions[i], i, outputs)

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [entry for _, entry in self._ranked]
