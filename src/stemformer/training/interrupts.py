"""Defer Ctrl-C and SIGTERM to the end of a step, so that no half step is saved."""

import contextlib
import signal
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulInterrupt:
    """Context manager that defers Ctrl-C and SIGTERM; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.is_requested = False
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "GracefulInterrupt":
        # Only the main thread can set handlers.
        with contextlib.suppress(ValueError):
            self._handlers = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def raise_interrupt(self) -> None:
        """Do what the deferred signal would have done: raise KeyboardInterrupt or a subclass."""
        self._restore()
        if self._signal is not None:
            signal.raise_signal(self._signal)
        raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.is_requested, self._signal = True, number
        # A second SIGTERM is not impatience: `timeout` and clusters send it twice.
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._handlers[signal.SIGINT])

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
