"""What a person at a terminal sees: progress on standard error, results as aligned text.

`Terminal` draws bars with rate and time left, or writes a line about every ten seconds where standard error is no
terminal. `as_text` lays out results; widths are columns of the screen, so that Chinese aligns too.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class Terminal:
    """A progress on standard error: bars on a terminal, else a plain line from time to time and one at the end.

    Rates leave out the first call of `advance`, which on resume jumps over what was done before.

    Args:
        is_live: Whether to draw bars; None means where standard error is a terminal.
        interval: Seconds between plain lines.
    """

    def __init__(self, *, is_live: bool | None = None, interval: float = 10.0) -> None:
        self.is_live = sys.stderr.isatty() if is_live is None else is_live
        self.interval = interval
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._what: str | None = None

    def start(self, what: str, *, total: float | None = None, unit: str = "") -> None:
        """Begins a bar and ends the one before it."""
        self.finish()
        self._what, self._total, self._unit, self._note = what, total, unit, ""
        self._done = self._first = 0.0
        self._started: float | None = None
        self._told_at, self._told_done = time.monotonic(), 0.0
        if self.is_live:
            self._bar, self._task = _bar(), None
            self._bar.start()
            self._task = self._bar.add_task(what, total=total, unit=unit, done="", rate="", note="")

    def advance(self, amount: float, note: str = "") -> None:
        """Moves the bar on by `amount` units."""
        if self._what is None:
            return
        now = time.monotonic()
        self._done += amount
        self._note = note or self._note
        if self._started is None:
            self._started, self._first = now, self._done
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=amount, done=self._amount(), rate=self._rate(now), note=self._note)
        elif now - self._told_at >= self.interval:
            self._tell(now)

    def say(self, line: str) -> None:
        """Writes a line of text, above the bar where one is drawn."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Ends the bar, which stays on the screen with its last numbers."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._what is not None and self._done != self._told_done:
            self._tell(time.monotonic())
        self._what = None

    def _tell(self, now: float) -> None:
        parts = [f"{self._what}: {self._amount()}", self._rate(now), self._left(now), self._note]
        print("  ".join(part for part in parts if part), file=sys.stderr, flush=True)
        self._told_at, self._told_done = now, self._done

    def _amount(self) -> str:
        if self._unit == "%" and self._total:
            return f"{self._done / self._total:.0%}"
        total = f"/{_short(self._total)}" if self._total is not None else ""
        share = f" ({self._done / self._total:.0%})" if self._total else ""
        return f"{_short(self._done)}{total} {self._unit}".rstrip() + share

    def _speed(self, now: float) -> float:
        """Units a second since the first call of `advance`; 0 where there is nothing to measure yet."""
        if self._started is None or now <= self._started:
            return 0.0
        return (self._done - self._first) / (now - self._started)

    def _rate(self, now: float) -> str:
        speed = self._speed(now) if self._unit not in ("seconds", "%") else 0.0
        return f"{_short(speed)} {self._unit or 'units'}/s" if speed else ""

    def _left(self, now: float) -> str:
        speed = self._speed(now)
        return f"{_clock((self._total - self._done) / speed)} left" if speed and self._total else ""


def _bar() -> "RichProgress":
    """A rich progress with our columns; rich is imported here, since most commands draw no bar."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns: list[Any] = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[done]}", markup=False),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    ]
    return Progress(*columns, console=Console(stderr=True), redirect_stdout=False)


def _short(number: float) -> str:
    """A number in few characters: 12, 3.4, 1,250, 1.2M."""
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if abs(number) >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:,.0f}" if number == int(number) or abs(number) >= 100 else f"{number:.2g}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def as_text(result: Any) -> str:
    """Returns a result as text for people: a dict as names and values, filled masks as tables, else columns.

    Args:
        result: What a function of `stemformer.api` returns: a dict, or a list of dicts. In a dict, a list of dicts or of sentences is
            set below as a table or as lines. Filled masks are dicts with
            `text`, `masks` (one dict a mask, with `candidates`: dicts of `token` and `probability`) and `filled`.

    Example:
        >>> print(as_text({"steps": 1000, "loss": 2.5}))
        steps  1,000
        loss   2.5
    """
    if isinstance(result, Mapping):
        blocks = {name: value for name, value in result.items() if _is_block(value)}
        named = "\n".join(_aligned(list(_named({k: v for k, v in result.items() if k not in blocks}))))
        return "\n\n".join([named, *(f"{name}\n{_indented(as_text(value))}" for name, value in blocks.items())])
    if not isinstance(result, Sequence) or isinstance(result, str):
        return str(result)
    if result and all(isinstance(record, Mapping) and "masks" in record for record in result):
        return "\n\n".join(_filled(record) for record in result)
    if result and all(isinstance(record, Mapping) for record in result):
        header = list(dict.fromkeys(key for record in result for key in record))
        return "\n".join(_aligned([header, *([_value(record.get(key, "")) for key in header] for record in result)]))
    if result and all(map(_is_row, result)):
        return "\n".join(_aligned([[_value(item) for item in row] for row in result]))
    return "\n".join(_value(item) for item in result)


def _is_row(value: Any) -> bool:
    """Says whether a value is a row of a matrix, such as a confusion's."""
    return isinstance(value, list | tuple) and all(isinstance(item, int | float) for item in value)


def _is_block(value: Any) -> bool:
    """Says whether a value is a table or lines of text, which stand below the names and values."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return False
    return (
        all(isinstance(item, Mapping) for item in value)
        or all(isinstance(item, str) and " " in item for item in value)
        or all(map(_is_row, value))
    )


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _filled(record: Mapping[str, Any]) -> str:
    rows = []
    for number, mask in enumerate(record["masks"], start=1):
        for rank, candidate in enumerate(mask["candidates"]):
            name = f"  mask {number}" if rank == 0 else ""
            rows.append([name, str(candidate["token"]), f"{candidate['probability']:.4f}"])
    return "\n".join([str(record["text"]), *_aligned(rows), f"  {record['filled']}"])


def _named(table: Mapping[str, Any], indent: str = "") -> Iterator[list[str]]:
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            yield [f"{indent}{name}", ""]
            yield from _named(value, indent + "  ")
        else:
            yield [f"{indent}{name}", _value(value)]


def _value(value: Any) -> str:
    if value is None or value == {} or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(inner)}" for name, inner in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_value(item) for item in value)
    return str(value)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    from rich.cells import cell_len

    if not rows:
        return []
    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
