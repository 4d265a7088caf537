"""What a long job tells the person who waits for it: how far it is, and lines of text.

Functions that take long get a `Progress` and never print. `Silent` says nothing; `terminal.Terminal` draws bars.
"""

from typing import Protocol, runtime_checkable

__all__ = ["Progress", "Silent"]


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
