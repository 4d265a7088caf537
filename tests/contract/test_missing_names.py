"""Every name that code uses exists: ruff and mypy cannot say so, since the axes in jaxtyping's shapes are no names."""

import ast
import builtins
import symtable
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for folder in ("src", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
# Of modules and packages, besides those of builtins.
KNOWN = {*dir(builtins), "__file__", "__path__", "__annotations__"}


def scopes(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for inner in table.get_children():
        yield from scopes(inner)


def quoted_names(tree: ast.AST) -> Iterator[str]:
    """Yield the names in quoted annotations, but for `Literal["a"]` and shapes, as in `Float[Tensor, "N D"]`."""
    nodes = list(ast.walk(tree))
    shapes = {
        alias.asname or alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module == "jaxtyping"
        for alias in node.names
    }
    pending = [getattr(node, name, None) for node in nodes for name in ("annotation", "returns")]
    while pending:
        match pending.pop():
            case ast.Subscript(value=ast.Name(id=name), slice=content) if name in {"Literal", *shapes}:
                # The first is the type of the array.
                pending += content.elts[:1] if name in shapes and isinstance(content, ast.Tuple) else []
            case ast.Constant(value=str(text)):
                found = [node.id for node in ast.walk(ast.parse(text, mode="eval")) if isinstance(node, ast.Name)]
                yield from found
            case ast.AST() as node:
                pending += ast.iter_child_nodes(node)


def missing_names(source: str) -> set[str]:
    """Return the names that a module uses and neither defines nor imports."""
    module = symtable.symtable(source, "module", "exec")
    tables = list(scopes(module))
    defined = {
        symbol.get_name()
        for table in tables
        for symbol in table.get_symbols()
        if (symbol.is_assigned() or symbol.is_imported()) and (table is module or symbol.is_declared_global())
    }
    used = {
        symbol.get_name()
        for table in tables
        for symbol in table.get_symbols()
        if symbol.is_referenced() and (symbol.is_global() or table is module)
    }
    return (used | set(quoted_names(ast.parse(source)))) - defined - KNOWN


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_exists(path):
    assert missing_names(path.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    "source",
    [
        "absent",
        "def f():\n    return absent(1)",
        "def f(x: absent):\n    pass",
        "def f() -> 'absent':\n    pass",
        "x: 'list[absent] | None' = None",
        "from jaxtyping import Float\ndef f(x: Float['absent', 'N D']):\n    pass",
        "class A:\n    absent = 1\n    def f(self):\n        return absent",
        "def g():\n    absent = 1\ndef f():\n    return [absent for _ in range(3)]",
        "@absent\ndef f():\n    pass",
        "import a.b as c\nc.d(lambda x: absent.y(x))",
    ],
)
def test_missing_name_is_found(source):
    assert missing_names(source) == {"absent"}


@pytest.mark.parametrize(
    "source",
    [
        "from jaxtyping import Float\nfrom torch import Tensor\ndef f(x: Float[Tensor, 'N 2*D']) -> 'Tensor':\n    pass",
        "from typing import Literal\nx: Literal['a', 'b'] = 'a'",
        "class A:\n    x = 1\n    y = x\n    def f(self) -> 'A':\n        return __class__",
        "try:\n    import a\nexcept ImportError as error:\n    a = print(error)",
        "def f():\n    global x\n    x = 1\ndef g():\n    return x",
        "if (n := len('a')) > 1:\n    print(n, __name__, __file__)",
    ],
)
def test_existing_name_is_not_found(source):
    assert missing_names(source) == set()
