"""Options as keyword arguments of Python functions, and old names of options."""

import functools
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from inspect import Parameter
from typing import Any, TypeVar

from stemformer.errors import ConfigError
from stemformer.options.groups import O, Options

R = TypeVar("R")

# New names of options, each with its old ones; the first new name that a command has is taken, if it lacks the old one.
OLD_NAMES = {
    "candidates": ("among",),
    "demonstrations": ("examples",),
    "dry_run": ("show",),
    "fewshot_tasks": ("prompt_task", "prompt_tasks"),
    "files": ("data",),
    "initializations": ("starts",),
    "kmer": ("symbol_size",),
    "label_column": ("label",),
    "learning_rates": ("learning_rate", "rate", "rates"),
    "lr_width_exponent": ("rate_power",),
    "model": ("models",),
    "num_documents": ("documents",),
    "num_draws": ("draws",),
    "num_seeds": ("seeds", "trials"),
    "num_worst": ("worst",),
    "sliding_window": ("slide",),
    "tasks": ("task",),
    "text_column": ("column", "text"),
    "texts": ("text",),
}


def accepts(options_class: type[Options]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Let a function that takes an options object be called with the options as keywords.

    The decorated function takes the fields of `options_class` as keywords (some also without a name), or an object as
    `options=`, which further keywords override. Its signature and docstring list every option. Its other parameters,
    such as `progress`, stay keywords.
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        signature = inspect.signature(function)
        own = list(signature.parameters.values())[1:]

        @functools.wraps(function)
        def call(*args: Any, options: Options | None = None, **keywords: Any) -> R:
            rest = {parameter.name: keywords.pop(parameter.name) for parameter in own if parameter.name in keywords}
            return function(_build(options_class, function.__name__, args, options, keywords), **rest)

        call.__signature__ = signature.replace(parameters=_parameters(options_class, own))  # type: ignore[attr-defined]
        call.__doc__ = _with_docs(function.__doc__ or "", options_class, signature.parameters)
        call.options_class = options_class  # type: ignore[attr-defined]
        del call.__wrapped__
        return call

    return decorate


def renamed(names: Iterable[str], old: str) -> str | None:
    """Return the new name of an option, for a command with the options `names`; None if it has none."""
    known = set(names)
    found = [new for new, old_names in OLD_NAMES.items() if old in old_names and new in known]
    return found[0] if found and old not in known else None


def read_duration(text: str | float) -> float:
    """Return the seconds of a duration such as 90s, 30m, 1h30m or 2d; a plain number is in seconds."""
    compact = str(text).strip().lower()
    number = r"(\d+\.?\d*|\.\d+)"
    if re.fullmatch(number, compact) or isinstance(text, int | float):
        return float(text)
    if not re.fullmatch(f"({number}[smhd])+", compact):
        raise ConfigError(f"--time {text}: expected a duration such as 90s, 30m, 1h30m or 2d.")
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    return sum(float(amount) * units[unit] for amount, unit in re.findall(f"{number}([smhd])", compact))


def _build(
    options_class: type[O], function: str, args: Sequence[Any], options: O | None, keywords: Mapping[str, Any]
) -> O:
    known = {item.name: item for item in fields(options_class)}
    positional = [name for name, item in known.items() if "is_positional" in item.metadata]
    if len(args) > len(positional):
        raise TypeError(f"{function}() takes {len(positional)} arguments without a name, got {len(args)}")
    values = dict(zip(positional, args, strict=False))
    for name, value in _new_names(function, known, keywords):
        if name not in known:
            # Imported here, which keeps --help fast.
            from stemformer.config import SIMILAR, nearest_first

            close = nearest_first(name, known, cutoff=SIMILAR)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"{function}() has no option {name!r}.{hint}")
        if name in values:
            raise TypeError(f"{function}() got several values for {name!r}")
        values[name] = value
    if options is not None:
        return options_class.make(**vars(options) | values)
    if missing := [f"{name}=" for name, item in known.items() if item.default is MISSING and name not in values]:
        raise TypeError(f"{function}() lacks {' and '.join(missing)}")
    return options_class.make(**values)


def _new_names(function: str, names: Iterable[str], keywords: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield keywords under their new names, with a warning for each old one."""
    for name, value in keywords.items():
        new = renamed(names, name)
        if name == "overflow" and "sliding_window" in names:
            new, value = "sliding_window", value == "slide"
        if new is not None:
            warnings.warn(f"{function}(): {name} is now {new}.", FutureWarning, stacklevel=4)
        yield new or name, value


def _parameters(options_class: type[Options], own: Iterable[Parameter]) -> list[Parameter]:
    """Return positional parameters, required keywords, other keywords, `options`, and the function's own."""
    found = []
    for item in fields(options_class):
        kind = Parameter.POSITIONAL_OR_KEYWORD if "is_positional" in item.metadata else Parameter.KEYWORD_ONLY
        default = Parameter.empty if item.default is MISSING else item.default
        found.append(Parameter(item.name, kind, default=default, annotation=item.type))
    found.sort(key=lambda parameter: (parameter.kind, parameter.default is not Parameter.empty))
    found.append(Parameter("options", Parameter.KEYWORD_ONLY, default=None, annotation=options_class | None))
    return [*found, *(parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in own)]


def _with_docs(doc: str, options_class: type[Options], own: Iterable[str]) -> str:
    """Return a docstring whose `Args:` lists every option, before the function's own arguments."""
    docs = options_class.docs()
    lines = [f"{item.name}: {docs[item.name]}" for item in fields(options_class)]
    lines.append(f"options: All of the above as one {options_class.__name__}; other keywords override its fields.")
    doc = inspect.cleandoc(doc)
    if "progress" in own and "    progress:" not in doc:
        lines.append("progress: Progress reporter; silent by default.")
    block = "Args:\n" + "\n".join(f"    {line}" for line in lines)
    if "\nArgs:\n" in doc:
        return doc.replace("Args:", block, 1)
    section = re.search(r"^(Returns|Yields|Raises|Example):", doc, re.MULTILINE)
    position = section.start() if section else len(doc)
    return f"{doc[:position].rstrip()}\n\n{block}\n\n{doc[position:]}".rstrip() + "\n"
