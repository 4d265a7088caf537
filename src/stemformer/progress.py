"""Progress reporting, a bar and lines of text: long-running functions take a `Progress` and never print."""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable


def format_count(number: int, noun: str) -> str:
    """Return a number with its noun.

    Example:
        >>> format_count(1, "label"), format_count(2500, "label")
        ('1 label', '2,500 labels')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def format_list(items: Iterable[str], most: int) -> str:
    """Return items separated by commas; of more than `most`, the first ones and their number.

    Example:
        >>> format_list(["a", "b", "c"], 2)
        'a, b, ... (3 in all)'
    """
    names = list(items)
    return ", ".join(names[:most]) + (f", ... ({len(names):,} in all)" if len(names) > most else "")


@runtime_checkable
class Progress(Protocol):
    """Progress reporter of a long-running function."""

    def start(self, what: str, *, total: float | None = None, unit: str = "") -> None:
        """Start a bar of `total` units (plural, such as "steps"), and end the previous one."""

    def advance(self, amount: float, note: str = "") -> None:
        """Advance the bar by `amount` units, and show a note (such as the loss) next to it."""

    def say(self, line: str) -> None:
        """Write a line of text."""

    def finish(self) -> None:
        """End the bar, if any."""


class Silent:
    """Progress reporter that ignores everything."""

    def start(self, what: str, *, total: float | None = None, unit: str = "") -> None: ...
    def advance(self, amount: float, note: str = "") -> None: ...
    def say(self, line: str) -> None: ...
    def finish(self) -> None: ...


class SubProgress:
    """Progress of one run of several, whose `phase` moves its `share` of their common bar."""

    def __init__(self, outer: Progress, name: str, *, share: float, phase: str = "training") -> None:
        self._outer, self._name, self._share, self._phase = outer, name, share, phase
        self._scale = 0.0

    def start(self, what: str, *, total: float | None = None, unit: str = "") -> None:
        self._scale = self._share / total if what == self._phase and total else 0.0

    def advance(self, amount: float, note: str = "") -> None:
        if self._scale:
            self._outer.advance(amount * self._scale, f"{self._name}: {note}" if note else self._name)

    def say(self, line: str) -> None:
        # Other lines of several runs would be too many.
        if line.startswith("Stopped"):
            advice = "" if "--resume" in line else " Finished runs are kept; continue with --resume."
            self._outer.say(f"{self._name}: {line}{advice}")

    def finish(self) -> None: ...
