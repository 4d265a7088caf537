"""`__all__` is the truth: each module has it, each name in it exists, each public function and class is in it."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import stemformer

SOURCE = Path(__file__).resolve().parents[2] / "src" / "stemformer"


def problems(text: str) -> list[str]:
    """What is wrong with a module's `__all__`, from its text alone."""
    tree = ast.parse(text)
    listed = None
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            listed = ast.literal_eval(node.value)
    if listed is None:
        return ["there is no __all__"]
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    public = [node.name for node in tree.body if isinstance(node, definitions) and not node.name.startswith("_")]
    found = [f"{name} is public and not in __all__" for name in public if name not in listed]
    found += [f"{name} stands twice in __all__" for name in set(listed) if listed.count(name) > 1]
    return found


def modules() -> list[Path]:
    """All modules but `__main__.py` and the `__init__.py` of folders, which hold no more than a line of text."""
    files = sorted(path for path in SOURCE.rglob("*.py") if path.name != "__main__.py")
    return [path for path in files if len(ast.parse(path.read_text(encoding="utf-8")).body) > 1]


def dotted(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_all_lists_every_public_name(path):
    assert problems(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_every_listed_name_exists(path):
    module = importlib.import_module(dotted(path))
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("def f(): pass", "there is no __all__"),
        ("__all__ = []\ndef f(): pass", "f is public and not in __all__"),
        ("__all__ = ['f']\ndef f(): pass\nclass G: pass", "G is public and not in __all__"),
        ("__all__ = ['f', 'f']\ndef f(): pass", "f stands twice in __all__"),
    ],
)
def test_checker_finds_a_made_up_fault(text, problem):
    assert problems(text) == [problem]


def test_private_names_need_no_listing():
    assert problems("__all__ = ['f']\ndef f(): pass\ndef _g(): pass") == []


def test_dir_shows_the_public_names():
    assert set(stemformer.__all__) <= set(dir(stemformer))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        stemformer.nothing  # noqa: B018


def test_importing_the_package_loads_no_torch():
    code = "import stemformer, sys; print(stemformer.__version__, 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [stemformer.__version__, "False"]
