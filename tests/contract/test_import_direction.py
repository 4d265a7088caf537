"""Imports go one way: a room imports only rooms on earlier lines of ORDER."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "stemformer"

# One room a line, lowest first. `a | b` on a line: neither may import the other.
ORDER = """
errors
config
progress
io
options
samples
data | models
output_dir
device
huggingface
objectives
tasks
generation
evaluation
training
recipes
reports
commands
experiments
stemformer
cli
__main__
"""
LEVELS = {
    room.strip(): level
    for level, line in enumerate(line for line in ORDER.splitlines() if line)
    for room in line.split("|")
}


def room_of(module: str) -> str:
    """Return the room of a dotted name; the package itself is the room `stemformer`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def imported(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[str]:
    """Yield every module of ours that a file imports: at its top, in functions, relatively, by name as a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: len(module.split(".")) + is_package - node.level] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            found = [f"{start}.{alias.name}" for alias in node.names] if start == "stemformer" else [start]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        else:
            continue
        yield from (name for name in found if name.split(".")[0] == "stemformer")


def wrong_imports(text: str, module: str, *, is_package: bool = False) -> list[str]:
    importer = room_of(module)
    assert importer in LEVELS, f"{module} is in no room of ORDER: add the room there and to the design"
    wrong = []
    for name in imported(ast.parse(text), module, is_package=is_package):
        # A name that is no room is a public name of the package.
        room = room_of(name) if room_of(name) in LEVELS else "stemformer"
        if room != importer and LEVELS[room] >= LEVELS[importer]:
            wrong.append(f"{module} imports {name}: {room} is not below {importer}")
    return wrong


def source_files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_module_imports_only_lower_rooms(path):
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    if module == "stemformer":
        pytest.skip("the package imports its functions lazily, from any room")
    assert wrong_imports(path.read_text(encoding="utf-8"), module, is_package=is_package) == []


def test_every_room_of_the_order_exists():
    rooms = {path.stem for path in SOURCE.iterdir() if path.is_dir() or path.suffix == ".py"} - {"__init__"}
    assert set(LEVELS) - {"stemformer"} == rooms - {"__pycache__"}


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("stemformer.data.examples.batch", "from stemformer.models.bert import BertConfig"),
        ("stemformer.models.bert", "import stemformer.data.examples.batch"),
        ("stemformer.models.bert", "def f():\n    from stemformer.data.examples import batch"),
        ("stemformer.models.bert", "from ..data.examples import batch"),
        ("stemformer.models.bert", "from ..training.loop import train"),
        (
            "stemformer.objectives.masked_lm",
            "if TYPE_CHECKING:\n    from stemformer.training.config import RunConfig",
        ),
        ("stemformer.training.loop", "from stemformer import commands"),
        ("stemformer.training.loop", "from stemformer import fill"),
        ("stemformer.training.loop", "import stemformer"),
        ("stemformer.training.loop", "importlib.import_module('stemformer.cli')"),
        ("stemformer.errors", "from stemformer.config import nearest"),
        ("stemformer.recipes", "from stemformer.commands.pretrain import pretrain"),
    ],
)
def test_checker_finds_a_made_up_wrong_import(module, text):
    assert len(wrong_imports(text, module)) == 1


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("stemformer.data.examples.batch", "from stemformer.data.shards.reader import Shards"),
        ("stemformer.data.examples.batch", "from .sampling import permuted"),
        ("stemformer.config", "from stemformer.errors import ConfigError"),
        ("stemformer.commands.pretrain", "from stemformer import recipes"),
        ("stemformer.cli.app", "import stemformer"),
        ("stemformer.models.bert", "import torch"),
    ],
)
def test_checker_accepts_a_right_import(module, text):
    assert wrong_imports(text, module) == []


def test_checker_resolves_relative_imports_of_a_package():
    assert wrong_imports("from .shards import reader", "stemformer.data", is_package=True) == []
    assert len(wrong_imports("from ..models import bert", "stemformer.data", is_package=True)) == 1


def test_module_in_no_room_is_an_error():
    with pytest.raises(AssertionError, match="is in no room of ORDER"):
        wrong_imports("", "stemformer.utils")
