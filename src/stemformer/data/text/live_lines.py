"""Lines of a pipe or a terminal, read as they arrive."""

import os
import select
import stat
import sys
from collections.abc import Iterator

from stemformer.data.text.files import CONVERT, STANDARD_INPUT_NAME
from stemformer.errors import DataError

# Seconds without a new line after which the lines so far are a block.
_PAUSE = 0.05
_READ_BYTES = 1 << 16


class LiveLines:
    """Lines of a pipe or a terminal, which need not end before they are used; a byte order mark is dropped.

    Args:
        descriptor: File descriptor to read from, which `is_live`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __iter__(self) -> Iterator[str]:
        return (line for line in self._lines_and_pauses() if line is not None)

    def blocks(self, size: int) -> Iterator[list[str]]:
        """Yield the lines that have arrived after a short pause or the end: at least one, at most `size`.

        Raises:
            DataError: They are not UTF-8.
        """
        block: list[str] = []
        for line in self._lines_and_pauses():
            if line is not None:
                block.append(line)
            if len(block) == size or (line is None and block):
                yield block
                block = []
        if block:
            yield block

    def _lines_and_pauses(self) -> Iterator[str | None]:
        """Yield lines, and None after each pause."""
        rest, number = b"", 0
        while True:
            if not select.select([self._descriptor], [], [], _PAUSE)[0]:
                yield None
                continue
            data = os.read(self._descriptor, _READ_BYTES)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines if data else [*lines, *([rest] if rest else [])]:
                number += 1
                try:
                    yield line.removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    problem = f"{STANDARD_INPUT_NAME}: Line {number} is not UTF-8 ({error.reason})"
                    raise DataError(f"{problem}. Convert it to UTF-8 ({CONVERT} of the text).") from error
            if not data:
                return


def is_live(descriptor: int) -> bool:
    """Return whether a file descriptor is a pipe, socket or terminal, which `select` can watch."""
    mode = os.fstat(descriptor).st_mode
    can_select = sys.platform != "win32"
    return can_select and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor))
