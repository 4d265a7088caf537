"""Progress reporter that interrupts a run; `from interrupts import ...`, since `tests` is on the path."""

import signal

from stemformer.progress import Silent

__all__ = ["StopAt"]


class StopAt(Silent):
    """Progress reporter that presses Ctrl-C during a step."""

    def __init__(self, step):
        self.left = step

    def advance(self, amount, note=""):
        self.left -= amount
        if amount and self.left == 0:
            signal.raise_signal(signal.SIGINT)
