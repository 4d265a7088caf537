"""Lines of a pipe: as they arrive, and what is wrong with them."""

import os

import pytest

from stemformer.data.text import live_lines
from stemformer.data.text.live_lines import LiveLines, is_live
from stemformer.errors import DataError


def blocks_of(*parts, size=2):
    """Return the blocks of lines of a pipe that gets the next part once all lines before were used."""
    read, write = os.pipe()
    assert is_live(read)
    rest, found = list(parts), []
    try:
        os.write(write, rest.pop(0))
        if not rest:
            os.close(write)
        for block in LiveLines(read).blocks(size):
            found.append(block)
            if rest:
                os.write(write, rest.pop(0))
                if not rest:
                    os.close(write)
    finally:
        os.close(read)
    return found


def test_lines_are_used_before_the_next_ones_arrive():
    assert blocks_of(b"one\n", b"two\nthree", b"\nfour") == [["one"], ["two"], ["three", "four"]]


def test_many_lines_are_split_into_blocks():
    assert blocks_of(b"a\nb\nc\n\nd\n") == [["a", "b"], ["c", ""], ["d"]]
    assert blocks_of(b"") == []


def test_marks_and_carriage_returns_are_dropped():
    assert blocks_of("\ufeffé\r\nb\r\n".encode()) == [["é", "b"]]
    assert blocks_of(b"a\rb\n") == [["a", "b"]]


def test_a_line_that_is_not_utf8_is_named_after_those_before():
    read, write = os.pipe()
    os.write(write, b"one\ntwo\nb\xff\n")
    blocks = LiveLines(read).blocks(5)
    assert next(blocks) == ["one", "two"]
    with pytest.raises(DataError, match=r"standard input: Line 3 is not UTF-8 .* Convert it to UTF-8"):
        next(blocks)
    os.close(write)
    os.close(read)


def test_a_steady_stream_is_answered(monkeypatch):
    # A line each 30 ms of a clock of its own.
    now, rest = [0.0], [b"line\n"] * 10

    def read(descriptor, number):
        now[0] += 0.03
        return rest.pop() if rest else b""

    monkeypatch.setattr(live_lines.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(live_lines.os, "read", read)
    monkeypatch.setattr(live_lines.select, "select", lambda *_: ([0], [], []))
    assert [len(block) for block in LiveLines(0).blocks(100)] == [5, 5]


def test_a_file_is_not_live(tmp_path):
    with (tmp_path / "file").open("w") as file:
        assert not is_live(file.fileno())
