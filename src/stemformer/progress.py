"""What a long job tells the person who waits for it: how far it is, and lines of text.

Functions that take long get a `Progress` and never print. `Silent` says nothing; `terminal.Terminal` draws bars.
"""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """What a long job calls."""

    def start(self, what: str, *, total: float | None = None, unit: str = "") -> None:
        """Begins a bar and ends the one before it.

        Args:
            what: What is being done, in a word or two.
            total: How many units there are; None where nobody knows.
            unit: The unit's name in the plural: steps, tokens, bytes.
        """

    def advance(self, amount: float, note: str = "") -> None:
        """Moves the bar on by `amount` units; `note` (a loss, a file name) stands behind it until the next note."""

    def say(self, line: str) -> None:
        """Writes a line of text."""

    def finish(self) -> None:
        """Ends the bar; without a bar, nothing."""


class Silent:
    """A progress that says nothing.

    Example:
        >>> progress = Silent()
        >>> progress.start("training", total=10, unit="steps")
        >>> progress.advance(1)
        >>> progress.finish()
    """

    def start(self, what: str, *, total: float | None = None, unit: str = "") -> None:
        """Does nothing."""

    def advance(self, amount: float, note: str = "") -> None:
        """Does nothing."""

    def say(self, line: str) -> None:
        """Does nothing."""

    def finish(self) -> None:
        """Does nothing."""


class SubProgress:
    """The progress of one run of many, as a part of the one bar that they share: its training moves that bar, the rest is left out.

    Args:
        outer: The progress of all.
        name: Of the run; stands behind the bar.
        share: Units of the shared bar that its training is worth, whatever units it counts in itself.
    """

    def __init__(self, outer: Progress, name: str, *, share: float) -> None:
        self._outer = outer
        self._name = name
        self._share = share
        self._scale = 0.0

    def start(self, what: str, *, total: float | None = None, unit: str = "") -> None:
        """Begins no bar: there is one for all."""
        self._scale = self._share / total if what == "training" and total else 0.0

    def advance(self, amount: float, note: str = "") -> None:
        """Moves the shared bar on by this run's part of it."""
        if self._scale:
            self._outer.advance(amount * self._scale, f"{self._name}: {note}" if note else self._name)

    def say(self, line: str) -> None:
        """Says nothing but that it was stopped: each evaluation of each run would be too much."""
        if line.startswith("stopped"):
            way_on = "" if "--resume" in line else "; finished runs are kept: go on with --resume"
            self._outer.say(f"{self._name}: {line}{way_on}")

    def finish(self) -> None:
        """Ends nothing."""
