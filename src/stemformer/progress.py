"""Progress reporting: a bar and lines of text.

Long-running functions take a `Progress` and never print. `Silent` ignores everything;
`cli.terminal.Terminal` draws bars.
"""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Progress reporter of a long-running function."""

    def start(self, what: str, *, total: float | None = None, unit: str = "") -> None:
        """Start a bar and end the previous one.

        Args:
            what: Name of the task, in a word or two.
            total: Number of units; None if unknown.
            unit: Name of the unit in the plural: steps, tokens, bytes.
        """

    def advance(self, amount: float, note: str = "") -> None:
        """Advance the bar by `amount` units, and show a note (such as the loss) next to it."""

    def say(self, line: str) -> None:
        """Write a line of text."""

    def finish(self) -> None:
        """End the bar, if any."""


class Silent:
    """Progress reporter that ignores everything.

    Example:
        >>> progress = Silent()
        >>> progress.start("training", total=10, unit="steps")
        >>> progress.advance(1)
        >>> progress.finish()
    """

    def start(self, what: str, *, total: float | None = None, unit: str = "") -> None:
        """Do nothing."""

    def advance(self, amount: float, note: str = "") -> None:
        """Do nothing."""

    def say(self, line: str) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


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
        if line.startswith("Stopped"):
            advice = "" if "--resume" in line else " Finished runs are kept; continue with --resume."
            self._outer.say(f"{self._name}: {line}{advice}")

    def finish(self) -> None:
        """Do nothing: other runs follow."""
