"""From options dataclasses to command-line parameters, and from old names to new ones."""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import NoneType
from typing import Annotated, Any

from cyclopts import Group, Parameter, convert

from stemformer.cli.display import DisplayOptions
from stemformer.options import Options, renamed

# Groups in the help of a command, by the names of options; all others are in `Parameters`.
_GROUPS = {
    "Data": "train dev documents text_column label_column source_language target_language "
    "source_language_column target_language_column errors kind symbols kmer num_maps max_length held_out "
    "words stdin",
    "Budget": "steps tokens epochs time flops tokens_per_parameter",
    "Config": "config settings finetune_settings show_config batch_size learning_rate learning_rates seed",
    "Compute": "device precision threads compile",
    "Output": "out resume overwrite report json quiet debug",
}
_GROUP_BY_NAME = {
    name: Group(title, sort_key=number)
    for number, (title, names) in enumerate(_GROUPS.items(), start=1)
    for name in names.split()
}

OLD_COMMANDS = {
    "tokenizer": ("train-tokenizer",),
    "synthetic": ("make-synthetic",),
    "scale": ("scaling-laws",),
    "prompt": ("fewshot",),
    "glue": ("benchmark", "glue"),
    "squad": ("benchmark", "squad"),
}
# Values of required options in the example of an error.
_EXAMPLES = {
    "files": "FILE",
    "texts": '"A text."',
    "prompts": '"A prompt"',
    "task": "classify",
    "tasks": "TASK",
    "model": "MODEL_FOLDER",
    "data": "DATA_FOLDER",
    "tokenizer": "TOKENIZER_FOLDER",
    "recipe": "bert_tiny",
    "train": "FILE.csv",
    "out": "NEW_FOLDER",
    "path": "FOLDER",
}
_OLD_FLAGS = {"--regression": ["--kind", "score"], "--multi-label": ["--kind", "labels"]}


class Command:
    """A function of options objects, as cyclopts calls it: with one parameter for each of their fields.

    `classes` are those of the arguments before the last, `DisplayOptions`; the first describes the command.
    """

    def __init__(self, group: Group | None, function: Callable[..., None], *classes: type[Options]) -> None:
        self.group, self.function = group, function
        self.classes: tuple[type[Options], ...] = (*classes, DisplayOptions)
        self.optional = {name for cls in classes for name in cls.replaces}
        self.help = classes[0].summary()

    # Built when the command is parsed, not for the list of all commands.
    @functools.cached_property
    def __signature__(self) -> inspect.Signature:
        parameters = []
        for cls in self.classes:
            docs = cls.docs()
            for item in dataclasses.fields(cls):
                parameters.append(_parameter(item, docs[item.name], is_optional=item.name in self.optional))
        # Arguments come first.
        return inspect.Signature(sorted(parameters, key=lambda parameter: parameter.kind))

    @property
    def __annotations__(self) -> dict[str, Any]:  # type: ignore[override]
        return {name: parameter.annotation for name, parameter in self.__signature__.parameters.items()}

    def required(self) -> tuple[str, str]:
        """Return the names of the arguments and options without a default, and the words of an example."""
        items = [item for cls in self.classes for item in dataclasses.fields(cls) if _is_required(item)]
        items.sort(key=lambda item: ("is_argument" not in item.metadata, item.name == "out"))
        names, words = [], []
        for item in items:
            flag = () if "is_argument" in item.metadata else (_flags(item)[0],)
            names.append(flag[0] if flag else item.name.upper())
            words += [*flag, _EXAMPLES.get(item.name, item.name.upper())]
        return ", ".join(names), " ".join(words)

    def __call__(self, *args: Any, **keywords: Any) -> None:
        values = dict.fromkeys(self.optional, ()) | self.__signature__.bind(*args, **keywords).arguments
        objects = (
            cls.make(**{item.name: values[item.name] for item in dataclasses.fields(cls) if item.name in values})
            for cls in self.classes
        )
        self.function(*objects)


def convert_value(kind: Any, tokens: Any) -> Any:
    """Convert an option's value as cyclopts does, but refuse fractions that it would round."""
    if int in (kind, *typing.get_args(kind)):
        for token in tokens:
            if "." in token.value:
                raise ValueError(f'expected an integer, got "{token.value}".')
    return convert(kind, tokens)


def new_words(words: Sequence[str], commands: Mapping[str, Command]) -> tuple[list[str], list[str]]:
    """Replace old names of commands and options in the words after `stemformer`; return the words, and a note for each."""
    if not words:
        return [], []
    first, *rest = words
    old, new = first, OLD_COMMANDS.get(first, (first,))
    if first == "fill" and "--score" in rest:
        old, new = "fill --score", ("score",)
        rest = [word for word in rest if word != "--score"]
    notes = [] if new == (old,) else [f"'stemformer {old}' is now 'stemformer {' '.join(new)}'."]
    command = commands.get(" ".join([*new, *rest[:1]] if new == ("benchmark",) else new))
    fields = {item.name: item for cls in (command.classes if command else ()) for item in dataclasses.fields(cls)}
    end = rest.index("--") if "--" in rest else len(rest)
    changed: list[str] = []
    file_options = [_flags(fields[name])[0] for name in ("train", "dev") if name in fields]
    for word in rest[:end]:
        if word == "-" and changed and changed[-1] in file_options:
            # Otherwise cyclopts takes the hyphen for an option.
            changed[-1] += "=-"
            continue
        replacement = _new_option(word, fields)
        changed += replacement
        if replacement != [word]:
            notes.append(f"{word.partition('=')[0]} is now {' '.join(replacement).partition('=')[0]}.")
    return [*new, *changed, *rest[end:]], list(dict.fromkeys(notes))


def _new_option(word: str, fields: Mapping[str, Any]) -> list[str]:
    if word in _OLD_FLAGS and "kind" in fields:
        return _OLD_FLAGS[word]
    name, equals, value = word.partition("=")
    names = {key for key, item in fields.items() if "is_argument" not in item.metadata}
    new = renamed(names, name[2:].replace("-", "_")) if name.startswith("--") else None
    return [word if new is None else f"{_flags(fields[new])[0]}{equals}{value}"]


def _is_required(item: "dataclasses.Field[Any]") -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _flags(item: "dataclasses.Field[Any]") -> tuple[str, ...]:
    flags: str | tuple[str, ...] = item.metadata.get("flag", f"--{item.name.replace('_', '-')}")
    return (flags,) if isinstance(flags, str) else flags


def _parameter(item: "dataclasses.Field[Any]", doc: str, *, is_optional: bool) -> inspect.Parameter:
    default = inspect.Parameter.empty if item.default is dataclasses.MISSING else item.default
    is_argument = "is_argument" in item.metadata
    kind, is_list = _command_line_type(item.type)
    settings: dict[str, Any] = {"help": doc}
    if not is_argument:
        settings["name"] = _flags(item)
    if item.name in _GROUP_BY_NAME:
        settings["group"] = _GROUP_BY_NAME[item.name]
    if "commas" in item.metadata:
        settings |= {"help": f"{doc} Separated by commas.", "converter": _split_at_commas}
        settings["show_default"] = lambda value: ",".join(map(str, value))
    elif is_list and not is_argument:
        settings["help"] = f"{doc} Repeatable."
    if item.type is bool and not default:
        settings |= {"negative": (), "show_default": False}
    elif is_list and default in ((), inspect.Parameter.empty):
        settings["show_default"] = False
    if is_optional:
        kind, default = kind | None, None
    order = inspect.Parameter.POSITIONAL_ONLY if is_argument else inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(item.name, order, default=default, annotation=Annotated[kind, Parameter(**settings)])


def _command_line_type(kind: Any) -> tuple[Any, bool]:
    """Return the type that cyclopts reads for the type of a field, and whether it is a list."""
    members = [member for member in (typing.get_args(kind) or (kind,)) if member is not NoneType]
    for member in (kind, *members):
        if typing.get_origin(member) in (tuple, Sequence, Iterable):
            inner = typing.get_args(member)[0]
            return {int: list[int], float: list[float]}.get(inner, list[str]), True
    # Of several types, a text; the command reads it.
    if str in members and len(members) > 1:
        return (str | None if NoneType in typing.get_args(kind) else str), False
    return kind, False


def _split_at_commas(kind: Any, tokens: Any) -> Any:
    [inner] = typing.get_args(kind)
    text = ",".join(token.value for token in tokens)
    try:
        return [inner(word.strip()) for word in text.split(",") if word.strip()]
    except ValueError:
        noun = "integers" if inner is int else "numbers"
        raise ValueError(f'expected {noun} separated by commas, such as 0,1,4, got "{text}".') from None
