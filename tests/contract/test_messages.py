"""Errors name options that exist, in the style of the guide: sentence case, one space, one period."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest

import stemformer
from stemformer import options as o
from stemformer.cli.app import COMMANDS
from stemformer.cli.parameters import _OLD_FLAGS
from stemformer.errors import ConfigError
from stemformer.evaluation.few_shot.task import PromptTask
from stemformer.training.config import FinetuneConfig, GptRunConfig, RunConfig

SOURCES = sorted((Path(__file__).resolve().parents[2] / "src/stemformer").rglob("*.py"))
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]\b(?!-)")
# Options of other programs.
FOREIGN = {"--nproc-per-node", "--max-restarts", "--help", "--version", "--no-cov"}
# Errors that are not shown to a user, and those that the command line completes.
INTERNAL = {"AttributeError", "TypeError", "ValueError", "EOFError", "OSError", "AssertionError", "KeyError"}


def flags_of(command):
    fields = [item for cls in COMMANDS[command].classes for item in dataclasses.fields(cls)]
    flags = [item.metadata.get("flag", f"--{item.name.replace('_', '-')}") for item in fields]
    named = {flag for value in flags for flag in ((value,) if isinstance(value, str) else value)}
    return named | {f"--no-{item.name.replace('_', '-')}" for item in fields if item.type in (bool, bool | None)}


def keys_of(cls):
    """Return the names of the fields of a configuration and of those within it."""
    for item in dataclasses.fields(cls):
        yield item.name
        factory = item.default_factory
        if factory is not dataclasses.MISSING and dataclasses.is_dataclass(inner := factory()):
            yield from keys_of(type(inner))


ALL_FLAGS = {flag for command in COMMANDS for flag in flags_of(command)}
SETTINGS = {key for cls in (RunConfig, GptRunConfig, FinetuneConfig) for key in keys_of(cls)}
OPTIONS = {item.name for command in COMMANDS for cls in COMMANDS[command].classes for item in dataclasses.fields(cls)}
# Names in files of few-shot tasks, and of parameters.
PARAMETERS = {*keys_of(PromptTask), "attend", "budget"}


def docstrings(tree):
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {id(n.body[0].value) for n in ast.walk(tree) if isinstance(n, nodes) and isinstance(n.body[0], ast.Expr)}


def strings(path):
    """Yield the line numbers and texts of strings that are not docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    ignored = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in ignored:
            yield node.lineno, node.value


def errors(path):
    """Yield the line numbers and texts of errors, with {} for values; None where the text is a variable."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and node.args and (name := ast.unparse(node.func)).endswith("Error"):
            first = node.args[0]
            if name not in INTERNAL and isinstance(first, ast.Constant | ast.JoinedStr):
                parts = first.values if isinstance(first, ast.JoinedStr) else [first]
                yield node.lineno, "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in parts)


def fault(text):
    """Return what is wrong with the style of an error; None if nothing is."""
    first = re.match(r"[\w.]*", text)[0]
    is_name = "." in first or "_" in first or first in SETTINGS | OPTIONS | PARAMETERS
    if first[:1].islower() and not is_name:
        return "starts in lower case"
    if "  " in text:
        return "two spaces"
    if re.search(r"\.\.(?!/)|[.:;,] ?[:;,]|[:;,] ?\.(?!\w)", text.replace("...", "")):
        return "doubled punctuation"
    return None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.parent.name + "/" + path.name)
def test_every_option_in_a_message_exists(path):
    # The command line knows old options.
    known = ALL_FLAGS | FOREIGN | (set(_OLD_FLAGS) | {"--score"} if path.name == "parameters.py" else set())
    found = [(line, flag) for line, text in strings(path) for flag in FLAG.findall(text)]
    assert [(line, flag) for line, flag in found if flag not in known] == []


# Files whose messages are those of several commands, and options that a condition excludes for the others.
SHARED = {
    "training/resume.py": (("pretrain", "finetune"), {"--recipe", "--time"}),
    "training/checkpoint.py": (("pretrain", "finetune"), set()),
    "training/loop.py": (("pretrain", "finetune", "compare", "scaling-laws", "ablate"), set()),
    "commands/predict.py": (("predict", "evaluate"), {"--label-column"}),
    "commands/evaluate.py": (("evaluate",), set()),
    "commands/finetune.py": (("finetune",), set()),
    "commands/pretrain.py": (("pretrain",), set()),
    "experiments/ablation.py": (("ablate",), set()),
    "experiments/ablation_plan.py": (("ablate",), set()),
    "experiments/ablation_results.py": (("ablate",), set()),
    "experiments/ablation_runs.py": (("ablate",), set()),
    "experiments/comparison.py": (("compare",), set()),
    "experiments/scaling.py": (("scaling-laws",), {"--held-out"}),
    "tasks/labels.py": (("evaluate",), set()),
}


@pytest.mark.parametrize("name", SHARED)
def test_message_of_a_command_names_options_that_it_has(name):
    commands, excluded = SHARED[name]
    path = next(path for path in SOURCES if str(path).endswith(f"stemformer/{name}"))
    found = {flag for _, text in strings(path) for flag in FLAG.findall(text)} - excluded - FOREIGN
    assert {command: found - flags_of(command) for command in commands} == {command: set() for command in commands}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.parent.name + "/" + path.name)
def test_errors_are_sentences(path):
    assert [(line, fault(text), text) for line, text in errors(path) if fault(text)] == []


@pytest.mark.parametrize("text", ["the file is empty", "It is bad.. Mend it.", "It is  bad.", "It is bad: . Mend it."])
def test_checker_finds_a_made_up_fault(text):
    assert fault(text) is not None


@pytest.mark.parametrize(
    ("function", "values", "message"),
    [
        (
            "finetune",
            {"task": "classify", "model": "", "train": "a.csv", "out": "o"},
            r"^--model is empty\. Expected: ",
        ),
        ("finetune", {"task": "classify", "model": "m", "train": ["a.csv", " "], "out": "o"}, r"^--train is empty\."),
        ("prepare", {"files": "", "tokenizer": "t", "out": "o"}, r"^Argument 'files' is empty\. Expected: Text files"),
        ("pretrain", {"recipe": "bert_tiny", "data": "", "out": "o"}, r"^--data is empty\."),
        ("pretrain", {"recipe": "", "data": "d", "out": "o"}, r"^--recipe is empty\."),
        ("pretrain", {"recipe": "bert_tiny", "data": "d", "out": ""}, r"^--out is empty\."),
        ("pretrain", {"recipe": "bert_tiny", "data": "d", "out": "o", "settings": ""}, r"^--set is empty\."),
        ("inspect", {"path": ""}, r"^Argument 'path' is empty\."),
    ],
)
def test_empty_names_are_errors(function, values, message):
    with pytest.raises(ConfigError, match=message):
        getattr(stemformer, function)(**values)


def test_empty_prompt_is_no_empty_name():
    assert o.GenerateOptions(prompts=[""], model="m").prompts == [""]
