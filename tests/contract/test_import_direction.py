"""Arrows go one way: a module imports only what stands below it, and data and models do not know each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "stemformer"

# From the bottom up. Within a line a module may import those left of it; a bar parts modules that know nothing of each
# other.
ORDER = """
errors, config, progress, terminal, exits, samples
data | models
pretrained, adapt, objectives, tasks
generation, evaluation
training, probing, report
recipes, folders, contents, problems, results, resuming, pretraining, labelling, starting, finetuning, cells, comparing
prompt_figures, prompting, harness, sizes, scaling
predicting, benchmark_tasks, benchmarking, planning, api
serve
stemformer, cli, __main__
"""
RANKS = {
    name.strip(): (row, column)
    for row, line in enumerate(ORDER.split("\n"))
    for column, names in enumerate(line.split(","))
    for name in names.split("|")
}


def owner(module: str) -> str:
    """The part of the package that a dotted name belongs to; the package itself is the top."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def imported(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[str]:
    """Every module of ours that a file imports: at its top, in functions, relatively, by its name as a string."""
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
    importer = owner(module)
    assert importer in RANKS, f"{module} has no place in the order: add it to ORDER and to the design"
    wrong = []
    for name in imported(ast.parse(text), module, is_package=is_package):
        target = owner(name) if owner(name) in RANKS else "stemformer"  # a public name of the package
        if target != importer and RANKS[target] >= RANKS[importer]:
            wrong.append(f"{module} imports {name}: {target} is not below {importer}")
    return wrong


def source_files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_module_imports_only_what_stands_below_it(path):
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    assert wrong_imports(path.read_text(encoding="utf-8"), module, is_package=is_package) == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("stemformer.data.batches", "from stemformer.models.bert import BertConfig"),
        ("stemformer.models.bert", "import stemformer.data.batches"),
        ("stemformer.models.bert", "def f():\n    from stemformer.data import batches"),
        ("stemformer.models.bert", "from ..data import batches"),
        ("stemformer.models.bert", "from ..training.loop import train"),
        ("stemformer.objectives.masked", "if TYPE_CHECKING:\n    from stemformer.training.run import RunConfig"),
        ("stemformer.training.loop", "from stemformer import api"),
        ("stemformer.training.loop", "from stemformer import fill"),
        ("stemformer.training.loop", "import stemformer"),
        ("stemformer.training.loop", "importlib.import_module('stemformer.cli')"),
        ("stemformer.errors", "from stemformer.config import nearest"),
        ("stemformer.recipes", "from stemformer.api import pretrain"),
    ],
)
def test_checker_finds_a_made_up_wrong_import(module, text):
    assert len(wrong_imports(text, module)) == 1


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("stemformer.data.batches", "from stemformer.data.shards import Shards"),
        ("stemformer.data.batches", "from .shards import Shards"),
        ("stemformer.config", "from stemformer.errors import ConfigError"),
        ("stemformer.api", "from stemformer import recipes"),
        ("stemformer.cli", "from stemformer import api"),
        ("stemformer.models.bert", "import torch"),
    ],
)
def test_checker_lets_a_right_import_pass(module, text):
    assert wrong_imports(text, module) == []


def test_checker_resolves_relative_imports_of_a_package():
    assert wrong_imports("from .shards import Shards", "stemformer.data", is_package=True) == []
    assert len(wrong_imports("from ..models import bert", "stemformer.data", is_package=True)) == 1


def test_module_without_a_place_is_told():
    with pytest.raises(AssertionError, match="has no place in the order"):
        wrong_imports("", "stemformer.utils")
