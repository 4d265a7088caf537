"""Exit codes and signals of the command line, and one line for every error.

```
0    done
1    our bug
2    the user's mistake
3    damaged data or a full disk
4    a loss that is not finite
130  Ctrl-C
141  broken pipe
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

# Error numbers of a full disk or an exhausted quota.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived; a KeyboardInterrupt, so that code that saves before it exits handles one exception."""


def verdict(error: BaseException) -> tuple[int, str]:
    """Return the exit code for an error and the line to print; a broken pipe prints nothing."""
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
    """Make SIGTERM raise `Terminated` once: a second signal, as `timeout` sends it, must not stop the saving.

    Yield the exceptions raised so far by SIGTERM and Ctrl-C, which a library that is being imported may replace.
    """
    raised: list[KeyboardInterrupt] = []

    def on_signal(number: int, frame: "FrameType | None") -> None:
        if number == signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raised.append(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
        raise raised[-1]

    numbers = [signal.SIGTERM]
    # Unless the parent process has it ignored.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers.append(signal.SIGINT)
    try:
        before = {number: signal.signal(number, on_signal) for number in numbers}
    except ValueError:
        # Only the main thread handles signals.
        yield raised
        return
    try:
        yield raised
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _discard_stdout() -> None:
    """Redirect standard output to nothing, since the interpreter flushes it again when it exits."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
