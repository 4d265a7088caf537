"""Public names: the package lists and documents them, each exists, and none means two things."""

import ast
import inspect
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import stemformer

SOURCE = Path(__file__).resolve().parents[2] / "src" / "stemformer"


def definitions(text: str) -> list[str]:
    """Return the public functions and classes that a module defines."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node.name for node in ast.parse(text).body if isinstance(node, kinds) and not node.name.startswith("_")]


def duplicates(texts: dict[str, str]) -> dict[str, list[str]]:
    """Return the public names that several modules define, with those modules."""
    modules = defaultdict(list)
    for module, text in texts.items():
        for name in definitions(text):
            modules[name].append(module)
    return {name: found for name, found in modules.items() if len(found) > 1}


def dotted(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, str]:
    return {dotted(path): path.read_text(encoding="utf-8") for path in sorted(SOURCE.rglob("*.py"))}


def test_no_public_name_is_defined_twice():
    texts = {module: text for module, text in sources().items() if not module.startswith("stemformer.cli")}
    # main() of a module that can be run by itself.
    assert {name: found for name, found in duplicates(texts).items() if name != "main"} == {}


def test_checker_finds_a_made_up_duplicate():
    assert duplicates({"a": "def f(): pass\ndef _g(): pass", "b": "class f: pass\ndef _g(): pass"}) == {"f": ["a", "b"]}


def test_only_packages_list_their_names():
    lists = [module for module, text in sources().items() if "\n__all__ =" in text]
    files = {dotted(path) for path in SOURCE.rglob("__init__.py")}
    assert set(lists) <= files


@pytest.mark.parametrize("name", stemformer.__all__)
def test_every_public_name_exists_and_has_a_docstring(name):
    value = getattr(stemformer, name)
    assert name == "__version__" or inspect.getdoc(value)


def test_dir_shows_the_public_names():
    assert set(stemformer.__all__) <= set(dir(stemformer))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        stemformer.nothing  # noqa: B018


def test_importing_the_package_loads_no_torch():
    code = "import stemformer, sys; print(stemformer.__version__, 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [stemformer.__version__, "False"]
