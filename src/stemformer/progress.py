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
    """Progress of one run of several, which moves a share of their common bar.

    Args:
        outer: Progress of all runs.
        name: Name of the run, shown next to the bar.
        share: Units of the common bar that the run is worth.
        phase: Part of the run that moves the bar, as passed to `start`; other parts are not shown.
    """

    def __init__(self, outer: Progress, name: str, *, share: float, phase: str = "training") -> None:
        self._outer = outer
        self._name = name
        self._share = share
        self._phase = phase
        self._scale = 0.0

    def start(self, what: str, *, total: float | None = None, unit: str = "") -> None:
        """Set the scale; no bar is started."""
        self._scale = self._share / total if what == self._phase and total else 0.0

    def advance(self, amount: float, note: str = "") -> None:
        """Move the common bar."""
        if self._scale:
            self._outer.advance(amount * self._scale, f"{self._name}: {note}" if note else self._name)

    def say(self, line: str) -> None:
        """Pass on that the run was stopped; other lines would be too many."""
        if line.startswith("stopped"):
            advice = "" if "--resume" in line else "; finished runs are kept: go on with --resume"
            self._outer.say(f"{self._name}: {line}{advice}")

    def finish(self) -> None:
        """Do nothing: other runs follow."""
