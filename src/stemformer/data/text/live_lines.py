"""Lines of a pipe or a terminal, read as they arrive."""

import os
import select
import stat
import sys
import time
from collections.abc import Iterator

from stemformer.data.text.files import CONVERT, STANDARD_INPUT_NAME
from stemformer.errors import DataError

# Seconds after the first line of a block in which more of them join it.
_WAIT = 0.1
_READ_BYTES = 1 << 16


class LiveLines:
    """Lines of a pipe or a terminal, which need not end before they are used; a byte order mark is dropped.

    Args:
        descriptor: File descriptor to read from, which `is_live`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        # The start of a line that has not ended, and the number of those that have.
        self._rest, self._number = b"", 0

    def __iter__(self) -> Iterator[str]:
        return (line for block in self.blocks(1) for line in block)

    def blocks(self, size: int) -> Iterator[list[str]]:
        """Yield the lines that have arrived a moment after the first of them, or at the end: at most `size`.

        Raises:
            DataError: A line is not UTF-8; those before it come first.
        """
        block: list[str] = []
        until = 0.0
        while True:
            seconds = until - time.monotonic()
            if block and (seconds <= 0 or not select.select([self._descriptor], [], [], seconds)[0]):
                yield block
                block = []
            data = os.read(self._descriptor, _READ_BYTES)
            try:
                for line in self._lines_of(data):
                    until = until if block else time.monotonic() + _WAIT
                    block.append(line)
                    if len(block) == size:
                        yield block
                        block = []
            except DataError:
                if block:
                    yield block
                raise
            if not data:
                break
        if block:
            yield block

    def _lines_of(self, data: bytes) -> Iterator[str]:
        """Yield the lines that end in the next bytes, or that are left if there are none."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines if data or not self._rest else [*lines, self._rest]:
            self._number += 1
            try:
                text = line.removesuffix(b"\r").decode("utf-8-sig" if self._number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                problem = f"{STANDARD_INPUT_NAME}: Line {self._number} is not UTF-8 ({error.reason})"
                raise DataError(f"{problem}. Convert it to UTF-8 ({CONVERT} of the text).") from error
            # As in files, a carriage return ends a line.
            yield from text.split("\r")


def is_live(descriptor: int) -> bool:
    """Return whether a file descriptor is a pipe, socket or terminal, which `select` can watch."""
    mode = os.fstat(descriptor).st_mode
    can_select = sys.platform != "win32"
    return can_select and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor))
