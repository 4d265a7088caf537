"""Progress reporter that interrupts a run; `from interrupts import ...`, since `tests` is on the path."""

import signal

from stemformer.progress import Silent

__all__ = ["StopAt"]


class StopAt(Silent):
    """Progress reporter that presses Ctrl-C during a step of training."""

    def __init__(self, step):
        self.left, self.is_training = step, False

    def start(self, what, total=None, unit=""):
        self.is_training = what == "training"

    def advance(self, amount, note=""):
        if self.is_training:
            self.left -= amount
            if amount and self.left == 0:
                signal.raise_signal(signal.SIGINT)
