"""Code lines have at most 120 columns; docstrings and comment lines may have 140, which ruff checks."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_COLUMNS = 120


def long_code_lines(text: str) -> list[int]:
    """Return the numbers of the code lines that are too long."""
    lines = text.splitlines()
    prose: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            prose.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
            prose.add(token.start[0])
    return [i for i, line in enumerate(lines, start=1) if len(line) > MAX_COLUMNS and i not in prose]


def test_long_code_is_found_and_long_prose_is_not():
    long = "x" * MAX_COLUMNS
    text = f'"""{long}"""\n# {long}\ndef f():\n    """{long}\n\n    {long}\n    """\n    return "{long}"\ny = 1  # {long}\n'
    assert long_code_lines(text) == [8, 9]


@pytest.mark.parametrize("folder", ["src", "benchmarks"])
def test_code_lines_are_short(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    found = [f"{file.relative_to(ROOT)}:{n}" for file in files for n in long_code_lines(file.read_text("utf-8"))]
    assert files
    assert not found, f"Break code lines over {MAX_COLUMNS} columns: {', '.join(found)}"
