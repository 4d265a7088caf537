"""How the command line ends: exit codes, and one line for whatever went wrong.

```
0    done
1    our bug
2    the user's mistake
3    damaged data or a full disk
4    a loss that is not finite
130  Ctrl-C
141  nobody reads our output any more
143  SIGTERM
```
"""

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from stemformer.errors import StemformerError

if TYPE_CHECKING:
    from types import FrameType


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says of a disk that is full, or as full as a user may make it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM has come. A kind of KeyboardInterrupt, so that the code that saves on the way out knows one kind only."""


def verdict(error: BaseException) -> tuple[int, str]:
    """Returns the exit code for an error and the line that tells it; the line is empty where silence is right.

    Example:
        >>> verdict(KeyboardInterrupt())
        (130, 'stopped')
    """
    text = " ".join(str(error).split())
    match error:
        case Terminated():
            return 143, "stopped by SIGTERM"
        case KeyboardInterrupt():
            return 130, "stopped"
        case BrokenPipeError():
            _discard_stdout()
            return 141, ""
        case StemformerError():
            return error.exit_code, f"error: {text}"
        case OSError() if error.errno in FULL:
            where = f" at {error.filename}" if error.filename else ""
            return 3, f"error: the disk is full{where}: make room and run again"
        case OSError(filename=str() | bytes() | os.PathLike()):
            return 2, f"error: {os.fsdecode(error.filename)}: {error.strerror}"
    name = type(error).__name__
    return 1, f"error: unexpected {name}: {text}; this is a bug of stemformer: run again with --debug and report it"


@contextlib.contextmanager
def signals_raise() -> Iterator[list[KeyboardInterrupt]]:
    """Makes SIGTERM raise `Terminated`, once: a second signal, as `timeout` sends it, must not stop the saving.

    Yields:
        What SIGTERM and Ctrl-C raised so far: a library that is being imported may make another error of it.
    """
    raised: list[KeyboardInterrupt] = []

    def on_signal(number: int, frame: "FrameType | None") -> None:
        if number == signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raised.append(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
        raise raised[-1]

    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nobody said that it be ignored
        numbers.append(signal.SIGINT)
    try:
        before = {number: signal.signal(number, on_signal) for number in numbers}
    except ValueError:  # not in the main thread, where signals are another's
        yield raised
        return
    try:
        yield raised
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _discard_stdout() -> None:
    """Points standard output at nothing, since the interpreter flushes it once more at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
