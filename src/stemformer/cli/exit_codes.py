"""Exit codes and signals of the command line, and one line for every error.

0 done; 1 our bug; 2 the user's mistake; 3 damaged data or a full disk; 4 a loss that is not
finite; 130 Ctrl-C; 141 broken pipe; 143 SIGTERM. A command that keeps failed runs in its result ends with the code of
the first of them.
"""

import contextlib
import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from stemformer.errors import StemformerError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk or an exhausted quota."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived; a KeyboardInterrupt, so that code that saves before it exits handles one exception."""


def describe_error(error: BaseException) -> tuple[int, str]:
    """Return the exit code for an error and the line to print; a broken pipe prints nothing, and ends the output."""
    text = " ".join(str(error).split())
    match error:
        case Terminated():
            return 143, "stopped by SIGTERM"
        case KeyboardInterrupt():
            return 130, "stopped"
        case BrokenPipeError():
            # The interpreter flushes standard output again when it exits.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141, ""
        case StemformerError():
            return error.exit_code, f"error: {text}"
        case OSError() if error.errno in DISK_FULL:
            where = f" at {error.filename}" if error.filename else ""
            return 3, f"error: the disk is full{where}: make room and run again"
        case OSError(filename=str() | bytes() | os.PathLike()):
            return 2, f"error: {os.fsdecode(error.filename)}: {error.strerror}"
    name = type(error).__name__
    return 1, f"error: unexpected {name}: {text}; this is a bug of stemformer: run again with --debug and report it"


def report_to_torchrun(line: str) -> None:
    """Write an error to the file, if any, from which `torchrun` takes the message of its summary."""
    if line and (file := os.environ.get("TORCHELASTIC_ERROR_FILE")):
        facts = {"py_callstack": line, "timestamp": str(int(time.time()))}
        with contextlib.suppress(OSError):
            Path(file).write_text(json.dumps({"message": {"message": line, "extraInfo": facts}}), encoding="utf-8")


@contextlib.contextmanager
def signals_raise() -> Iterator[list[KeyboardInterrupt]]:
    """Make SIGTERM raise `Terminated` once: a second signal, as `timeout` sends it, must not stop the saving.

    Yield the exceptions raised so far by SIGTERM and Ctrl-C, which a library that is being imported may replace.
    """
    raised: list[KeyboardInterrupt] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raised.append(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
        raise raised[-1]

    numbers = []
    # Only the main thread handles signals.
    if threading.current_thread() is threading.main_thread():
        # Unless the parent process has Ctrl-C ignored.
        is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        numbers = [signal.SIGTERM, signal.SIGINT] if is_default else [signal.SIGTERM]
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield raised
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
