"""Options as keyword arguments of Python functions, and old names of options."""

import dataclasses
import difflib
import functools
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from stemformer.errors import ConfigError
from stemformer.options.groups import O, Options

R = TypeVar("R")

EMPTY, KEYWORD_ONLY = inspect.Parameter.empty, inspect.Parameter.KEYWORD_ONLY
POSITIONAL_OR_KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD

# Old names of options, and the new names: the first that a command has, if it lacks the old one.
OLD_NAMES: dict[str, tuple[str, ...]] = {
    "among": ("candidates",),
    "column": ("text_column",),
    "data": ("files",),
    "documents": ("num_documents",),
    "draws": ("num_draws",),
    "examples": ("demonstrations",),
    "label": ("label_column",),
    "learning_rate": ("learning_rates",),
    "models": ("model",),
    "prompt_task": ("fewshot_tasks",),
    "prompt_tasks": ("fewshot_tasks",),
    "rate": ("learning_rates",),
    "rate_power": ("lr_width_exponent",),
    "rates": ("learning_rates",),
    "seeds": ("num_seeds",),
    "show": ("dry_run",),
    "slide": ("sliding_window",),
    "starts": ("initializations",),
    "symbol_size": ("kmer",),
    "task": ("tasks",),
    "text": ("text_column", "texts"),
    "trials": ("num_seeds",),
    "worst": ("num_worst",),
}


def accepts(options_class: type[Options]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Let a function that takes an options object be called with the options as keywords.

    The decorated function takes the fields of `options_class` as keywords (some also without a
    name), or an object as `options=`, which further keywords override. Its signature and docstring
    list every option. Its other parameters, such as `progress`, stay keywords.
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        parameters = list(inspect.signature(function).parameters.values())
        own = {parameter.name for parameter in parameters[1:]}

        @functools.wraps(function)
        def call(*args: Any, options: Options | None = None, **keywords: Any) -> R:
            rest = {name: keywords.pop(name) for name in own & keywords.keys()}
            return function(_build(options_class, function.__name__, args, options, keywords), **rest)

        call.__signature__ = _signature(options_class, function, parameters)  # type: ignore[attr-defined]
        call.__doc__ = _with_docs(function.__doc__ or "", options_class, own)
        call.options_class = options_class  # type: ignore[attr-defined]
        del call.__wrapped__
        return call

    return decorate


def renamed(names: Iterable[str], old: str) -> str | None:
    """Return the new name of an option, for a command with the options `names`; None if it has none."""
    names = set(names)
    return None if old in names else next((new for new in OLD_NAMES.get(old, ()) if new in names), None)


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
    fields = {item.name: item for item in dataclasses.fields(options_class)}
    positional = [name for name, item in fields.items() if "is_positional" in item.metadata]
    if len(args) > len(positional):
        raise TypeError(f"{function}() takes {len(positional)} arguments without a name, got {len(args)}")
    values = dict(zip(positional, args, strict=False))
    for name, value in _new_names(function, fields, keywords):
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"{function}() has no option {name!r}.{hint}")
        if name in values:
            raise TypeError(f"{function}() got several values for {name!r}")
        values[name] = value
    if options is not None:
        return options_class.make(**vars(options) | values)
    required = [name for name, item in fields.items() if item.default is dataclasses.MISSING]
    if missing := [name for name in required if name not in values]:
        raise TypeError(f"{function}() lacks {' and '.join(f'{name}=' for name in missing)}")
    return options_class.make(**values)


def _new_names(function: str, fields: Iterable[str], keywords: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield keywords under their new names, with a warning for each old one."""
    for name, value in keywords.items():
        new = renamed(fields, name)
        if name == "overflow" and "sliding_window" in fields:
            new, value = "sliding_window", value == "slide"
        if new is not None:
            warnings.warn(f"{function}(): {name} is now {new}.", FutureWarning, stacklevel=4)
        yield new or name, value


def _signature(
    options_class: type, function: Callable[..., Any], parameters: Sequence[inspect.Parameter]
) -> inspect.Signature:
    """Return positional parameters, required keywords, other keywords, `options`, and the function's own."""
    own = [inspect.Parameter("options", KEYWORD_ONLY, default=None, annotation=options_class | None)]
    own += [parameter.replace(kind=KEYWORD_ONLY) for parameter in parameters[1:]]
    options = []
    for item in dataclasses.fields(options_class):
        kind = POSITIONAL_OR_KEYWORD if "is_positional" in item.metadata else KEYWORD_ONLY
        default = EMPTY if item.default is dataclasses.MISSING else item.default
        options.append(inspect.Parameter(item.name, kind, default=default, annotation=item.type))
    options.sort(key=lambda parameter: (parameter.kind, parameter.default is not EMPTY))
    return inspect.Signature([*options, *own], return_annotation=inspect.signature(function).return_annotation)


def _with_docs(doc: str, options_class: type[Options], own: Iterable[str]) -> str:
    """Return a docstring whose `Args:` lists every option, before the function's own arguments."""
    docs = options_class.docs()
    lines = [f"{item.name}: {docs[item.name]}" for item in dataclasses.fields(options_class)]
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
