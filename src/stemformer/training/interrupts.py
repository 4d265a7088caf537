"""Ctrl-C and SIGTERM while a model trains: noted at once, acted on between two steps, so that what is saved is never half a step."""

import signal
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulInterrupt:
    """A context in which Ctrl-C and SIGTERM are only noted; a second Ctrl-C acts at once.

    Attributes:
        is_requested: True once a signal came.

    Example:
        >>> with StopBetweenSteps() as stop:
        ...     stop.is_requested
        False
    """

    def __init__(self) -> None:
        self.is_requested = False
        self._number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopBetweenSteps":
        try:
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        except ValueError:  # not in the main thread, where signals are another's
            self._before = {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def act(self) -> None:
        """Do what the signal would have done, had it not been held back: raises KeyboardInterrupt or one of its kinds."""
        self._restore()
        if self._number is not None:
            signal.raise_signal(self._number)
        raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.is_requested, self._number = True, number
        if (
            number == signal.SIGINT
        ):  # a second Ctrl-C is impatience; a second SIGTERM is how `timeout` and clusters send it
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
