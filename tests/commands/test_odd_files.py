"""Every command that reads files makes something of an odd file, or says why not, and loses no text without a word."""

import re

import pytest
from odd_files import FILES, Commands, write_files

# Words by which a command says that texts are left out.
_LEFT_OUT = re.compile(r"skipped|empty|no label|no gold|left out|without")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_files(folder)
    return folder


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("name", FILES)
def test_odd_file_is_read_in_full_or_refused_with_a_reason(name, commands, inputs):
    expected = FILES[name][1]
    for command in Commands.NAMES:
        if command.endswith("-") and not (inputs / name).is_file():
            continue
        code, number, said = commands(command, inputs / name)
        assert code in (0, 2, 3), f"{command}: {said}"
        if code:
            assert said.startswith("error: ") and "bug of stemformer" not in said, f"{command}: {said}"
        elif number is not None and number < expected and command != "embed -":
            assert _LEFT_OUT.search(said), f"{command}: {number} of {expected} texts: {said}"
