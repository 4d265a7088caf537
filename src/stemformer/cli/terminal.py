"""Progress on standard error, and results as text that is aligned by columns of the screen (Chinese, too)."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from textwrap import indent
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress


# Columns of the screen that each cell of a table keeps.
_MIN_CELL = 4
# Columns of the screen to which cells are padded where they are not cut; longer ones move the rest of their line.
_MAX_PADDED = 40


class Terminal:
    """Progress on standard error: bars on a terminal, else a plain line every `interval` seconds and one at the end.

    Rates exclude the first call of `advance`, which on resume skips what was done before.
    """

    def __init__(self, *, is_live: bool | None = None, interval: float = 10.0) -> None:
        self.is_live = sys.stderr.isatty() if is_live is None else is_live
        self.interval = interval
        # Lines of `say`.
        self.said: set[str] = set()
        self._bar: RichProgress | None = None
        self._title: str | None = None

    def start(self, what: str, *, total: float | None = None, unit: str = "") -> None:
        self.finish()
        self._title, self._total, self._unit, self._note = what, total, unit, ""
        self._done = self._first = self._printed_done = 0.0
        self._started: float | None = None
        self._printed_at = time.monotonic()
        if self.is_live:
            self._bar = _new_bar()
            self._bar.start()
            self._task = self._bar.add_task(what, total=total, unit=unit, done="", rate="", note="")

    def advance(self, amount: float, note: str = "") -> None:
        if self._title is None:
            return
        now = time.monotonic()
        self._done += amount
        self._note = note or self._note
        if self._started is None:
            self._started, self._first = now, self._done
        if self._bar is not None:
            self._bar.update(self._task, advance=amount, done=self._amount(), rate=self._rate(now), note=self._note)
        elif now - self._printed_at >= self.interval:
            self._print(now)

    def say(self, line: str) -> None:
        self.said.add(line)
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._title is not None and self._done != self._printed_done:
            self._print(time.monotonic())
        self._title = None

    def _print(self, now: float) -> None:
        parts = [f"{self._title}: {self._amount()}", self._rate(now), self._time_left(now), self._note]
        print("  ".join(part for part in parts if part), file=sys.stderr, flush=True)
        self._printed_at, self._printed_done = now, self._done

    def _amount(self) -> str:
        if self._unit == "%" and self._total:
            return f"{self._done / self._total:.0%}"
        total = f"/{_format_number(self._total)}" if self._total is not None else ""
        share = f" ({self._done / self._total:.0%})" if self._total else ""
        return f"{_format_number(self._done)}{total} {self._unit}".rstrip() + share

    def _speed(self, now: float) -> float:
        """Return units per second; 0 if there is nothing to measure yet."""
        if self._started is None or now <= self._started:
            return 0.0
        return (self._done - self._first) / (now - self._started)

    def _rate(self, now: float) -> str:
        speed = self._speed(now) if self._unit not in ("seconds", "%") else 0.0
        return f"{_format_number(speed)} {self._unit or 'units'}/s" if speed else ""

    def _time_left(self, now: float) -> str:
        speed = self._speed(now)
        return f"{_format_duration((self._total - self._done) / speed)} left" if speed and self._total else ""


def _new_bar() -> "RichProgress":
    # Imported here: most commands draw no bar.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    title, done, rate, note = (
        TextColumn(f"{{task.{name}}}", markup=False)
        for name in ("description", "fields[done]", "fields[rate]", "fields[note]")
    )
    columns = (title, BarColumn(bar_width=30), done, rate, TimeElapsedColumn(), TimeRemainingColumn(), note)
    return Progress(*columns, console=Console(stderr=True), redirect_stdout=False)


def _format_number(number: float) -> str:
    """Format a number briefly: 12, 3.4, 1,250, 1.2M."""
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if abs(number) >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:,.0f}" if number == int(number) or abs(number) >= 100 else f"{number:.2g}"


def _format_duration(seconds: float) -> str:
    minutes, seconds = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


# What an empty cell of a column means.
_EMPTY = {"predicted": "(no answer)"}


def as_text(result: Any, *, width: int | None = None) -> str:
    """Format a result: a dict as names and values above its tables and lines, a list of dicts as a table.

    Long cells of tables are cut to fit `width` columns of the screen; None cuts nothing.

    Example:
        >>> print(as_text({"steps": 1000, "loss": 2.5}))
        steps  1,000
        loss   2.5
    """
    if isinstance(result, Mapping):
        result = _name_confusion(
            {name: value for name, value in result.items() if name not in ("notes", "counts") or value}
        )
        blocks = {
            name: text
            for name, value in result.items()
            if (text := _format_block(value, width and width - 2)) is not None
        }
        named = _align([*_named_rows({name: value for name, value in result.items() if name not in blocks})])
        tables = [f"{name}\n{indent(text, '  ', lambda line: True)}" for name, text in blocks.items()]
        return "\n\n".join(["\n".join(named), *tables])
    if (text := _format_block(result, width)) is not None:
        return text
    is_list = isinstance(result, Sequence) and not isinstance(result, str)
    return "\n".join(map(_format_value, result)) if is_list else str(result)


def _name_confusion(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Name the rows and columns of a confusion matrix by the labels."""
    labels, rows = result.get("labels") or (), result.get("confusion") or ()
    if len(labels) != len(rows):
        return result
    # No label is empty, so that the heading of the names is none of them.
    named = [{"": label, **dict(zip(labels, row, strict=True))} for label, row in zip(labels, rows, strict=True)]
    return {name: named if name == "confusion" else value for name, value in result.items()}


def _format_block(value: Any, width: int | None) -> str | None:
    """Return the text of a table, a matrix, filled masks, sources with targets or lines with blanks; None for other values."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return None
    if all(isinstance(row, Mapping) for row in value):
        if all("masks" in record for record in value):
            return "\n\n".join(map(_format_masks, value))
        if all(set(record) == {"source", "target"} for record in value):
            # Long texts, which a table would cut.
            pairs = ([[name, _on_one_line(text)] for name, text in record.items()] for record in value)
            return "\n\n".join("\n".join(_align(pair)) for pair in pairs)
        header = list(dict.fromkeys(key for record in value for key in record))
        rows = [
            [_on_one_line(_format_value(record.get(key, "")) or _EMPTY.get(key, "")) for key in header]
            for record in value
        ]
        return "\n".join(_align([header, *rows], width))
    if all(isinstance(row, list | tuple) and all(isinstance(item, int | float) for item in row) for row in value):
        return "\n".join(_align([[_format_value(item) for item in row] for row in value]))
    if all(isinstance(item, str) and " " in item for item in value):
        return "\n".join(value)
    return None


def _format_masks(record: Mapping[str, Any]) -> str:
    rows = [
        [f"  mask {number}" if rank == 0 else "", str(candidate["token"]), f"{candidate['probability']:.4f}"]
        for number, mask in enumerate(record["masks"], start=1)
        for rank, candidate in enumerate(mask["candidates"])
    ]
    method = record.get("method", "vocabulary")
    scored = [f"  candidates scored by {method}"] if method != "vocabulary" else []
    filled = "no [MASK]" if record["filled"] is None else record["filled"]
    return "\n".join([str(record["text"]), *_align(rows), f"  {filled}", *scored])


def _named_rows(table: Mapping[str, Any], margin: str = "") -> Iterator[list[str]]:
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            yield [f"{margin}{name}", ""]
            yield from _named_rows(value, margin + "  ")
        else:
            yield [f"{margin}{name}", _format_value(value)]


def _format_value(value: Any) -> str:
    if value is None or value == {} or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_format_value(inner)}" for name, inner in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_format_value(item) for item in value)
    return str(value)


def _on_one_line(text: str) -> str:
    return " ".join(text.split()) if len(text.splitlines()) > 1 else text.replace("\t", " ")


def _align(rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Align columns; with `width`, cut the cells of the widest ones, which end in an ellipsis."""
    from rich.cells import cell_len, set_cell_size

    def fit(text: str, size: int) -> str:
        if cell_len(text) <= size:
            return set_cell_size(text, size)
        return text if width is None else set_cell_size(text, size - 1) + "…"

    widths = [max(map(cell_len, column)) for column in zip_longest(*rows, fillvalue="")]
    limit = _MAX_PADDED
    if width is not None:
        room = width - 2 * (len(widths) - 1)
        limits = (limit for limit in range(room, _MIN_CELL, -1) if sum(min(w, limit) for w in widths) <= room)
        limit = next(limits, _MIN_CELL)
    return ["  ".join(fit(cell, min(w, limit)) for cell, w in zip(row, widths, strict=False)).rstrip() for row in rows]
