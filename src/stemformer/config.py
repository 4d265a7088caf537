"""Frozen dataclasses to TOML and back; settings such as `training.learning_rate=1e-3`.

This file knows no field of any config: it reads the dataclass it is given. An unknown key or a wrong type raises
`ConfigError` with the full key, what was expected and the nearest key.

TOML has no null. A field that is None is left out where None is its default and written as the word `"none"` elsewhere;
the word is read back as None wherever the field's type admits None, so that `training.steps=none` takes a budget away.
"""

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

import msgspec
import tomli_w

from stemformer.errors import ConfigError

T = TypeVar("T")


def to_toml(config: Any) -> str:
    r"""Returns the TOML text of a frozen dataclass; nested dataclasses become tables.

    Args:
        config: An instance of a dataclass whose leaves are strings, numbers, truth values, tuples or dicts of these.

    Returns:
        Text that `from_toml` reads back to an equal config.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Budget:
        ...     steps: int = 10
        >>> to_toml(Budget())
        'steps = 10\n'
    """
    return tomli_w.dumps(_to_table(config))


def check_seed(seed: int, *, called: str = "seed is") -> None:
    """Refuses a seed that generators of random numbers do not take.

    Args:
        seed: Given by a person.
        called: What stands before it in the message.

    Raises:
        ConfigError: It is negative or too large.
    """
    if not 0 <= seed < 2**63:
        raise ConfigError(f"{called} {seed}: expected a number from 0 to 2**63 - 1")


def from_toml(cls: type[T], text: str, *, source: str = "") -> T:
    """Returns an instance of the dataclass `cls` with the values of a TOML text, defaults elsewhere.

    Args:
        cls: The dataclass.
        text: TOML.
        source: Where the text comes from (a file name), for the error message.

    Raises:
        ConfigError: The text is no TOML, has an unknown key or a value of the wrong type, or lacks a required key.
    """
    return typing.cast(T, _build(cls, parse_toml(text, source), _Place(source, cls)))


def merge_toml(config: T, text: str, *, source: str) -> T:
    """Returns `config` with the values of a TOML text, which may be partial, laid over it.

    Args:
        config: An instance of a dataclass.
        text: TOML with any of its keys.
        source: Where the text comes from, for the error message.

    Raises:
        ConfigError: As in `from_toml`.
    """
    return typing.cast(T, _overlay(config, parse_toml(text, source), _Place(source, type(config))))


def with_settings(config: T, settings: Sequence[str]) -> T:
    """Returns `config` with settings such as `training.learning_rate=1e-3` laid over it.

    Of two equal keys the last wins. A value is read as TOML. A bare word is a string, and so is anything else where
    the field takes strings only.

    Args:
        config: An instance of a dataclass.
        settings: `key=value`, the key with dots.

    Raises:
        ConfigError: A setting without `=`, an unknown key or a value of the wrong type.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Budget:
        ...     steps: int = 10
        >>> with_settings(Budget(), ["steps=20"])
        Budget(steps=20)
    """
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        parts = [part.strip() for part in key.split(".")]
        if not equals or not all(parts):
            raise ConfigError(f"setting {setting!r}: expected key=value, such as {_example_key(config)}=...")
        table = changes
        for part in parts[:-1]:
            inner = table.get(part)
            table[part] = table = inner if isinstance(inner, dict) else {}
        table[parts[-1]] = _Word(text.strip())
    return typing.cast(T, _overlay(config, changes, _Place("setting", type(config))))


def differences(a: T, b: T) -> list[tuple[str, Any, Any]]:
    """Returns the keys in which two configs differ, as (key with dots, value in `a`, value in `b`).

    A key that one of them lacks has the value None there.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Budget:
        ...     steps: int = 10
        >>> differences(Budget(), Budget(20))
        [('steps', 10, 20)]
    """
    left, right = dict(_flatten(a)), dict(_flatten(b))
    keys = [*left, *(key for key in right if key not in left)]
    return [(key, left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)]


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns " (did you mean 'x'?)" for the choice most like `name`, and "" where none is like it.

    Example:
        >>> nearest("hidden_siz", ["hidden_size", "vocab_size"])
        " (did you mean 'hidden_size'?)"
    """
    found = difflib.get_close_matches(name, list(choices), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


class _Word(str):
    """The text of a setting's value, not yet read: how it is read depends on the field's type."""


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where in a config a value stands, for error messages.

    Args:
        source: File name or "setting"; may be empty.
        root: The class of the outermost config.
        parts: The keys down to here.
    """

    source: str
    root: type
    parts: tuple[str, ...] = ()

    def below(self, key: str) -> "_Place":
        return dataclasses.replace(self, parts=(*self.parts, key))

    def error(self, problem: str) -> ConfigError:
        return ConfigError(": ".join(part for part in (self.source, f"{'.'.join(self.parts)}{problem}") if part))

    def unknown(self, fields: Iterable[str]) -> ConfigError:
        table, name, fields = self.parts[:-1], self.parts[-1], list(fields)
        keys = list(_keys(self.root))
        last = {key: key.rpartition(".")[2] for key in keys}
        elsewhere = [key for key in keys if last[key] == name]  # learning_rate for training.learning_rate
        elsewhere += [
            key for key in keys if "".join(word[0] for word in last[key].split("_")) == name and name[1:]
        ]  # and lr
        mistyped = difflib.get_close_matches(name, fields, n=1, cutoff=0.8)
        shortened = [field for field in fields if name in field.split("_")]  # hidden for hidden_size, hidden_act
        likely = mistyped or shortened or difflib.get_close_matches(name, fields, n=1)
        here = [".".join((*table, field)) for field in likely]
        found = elsewhere[:1] or here or difflib.get_close_matches(".".join(self.parts), keys, n=1)
        if found:
            return self.error(f" is no setting (did you mean {' or '.join(map(repr, found))}?)")
        return self.error(f" is no setting; expected one of {', '.join('.'.join((*table, field)) for field in fields)}")


def _fields(cls: type) -> dict[str, Any]:
    """The names and types of the fields that the constructor takes."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _members(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)


def _dataclass_in(kind: Any) -> type | None:
    found = [member for member in _members(kind) if isinstance(member, type) and dataclasses.is_dataclass(member)]
    assert len(found) <= 1, f"a field may hold one dataclass or None, this one is {kind}"
    return found[0] if found else None


def _is_config(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _keys(cls: type) -> Iterator[str]:
    for name, kind in _fields(cls).items():
        inner = _dataclass_in(kind)
        yield from (f"{name}.{key}" for key in _keys(inner)) if inner else (name,)


def _example_key(config: Any) -> str:
    return next(_keys(type(config)), "key")


def _flatten(config: Any) -> Iterator[tuple[str, Any]]:
    for name in _fields(type(config)):
        value = getattr(config, name)
        if _is_config(value):
            yield from ((f"{name}.{key}", inner) for key, inner in _flatten(value))
        else:
            yield name, value


def _to_table(value: Any) -> Any:
    if _is_config(value):
        defaults = {field.name: field.default for field in dataclasses.fields(value)}
        pairs = ((name, getattr(value, name)) for name in _fields(type(value)))
        return {
            name: "none" if inner is None else _to_table(inner)
            for name, inner in pairs
            if inner is not None or defaults[name] is not None
        }
    if isinstance(value, Mapping):
        return {key: _to_table(inner) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [_to_table(inner) for inner in value]
    return msgspec.to_builtins(value)


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """Returns the tables of a TOML text.

    Raises:
        ConfigError: It is no TOML; `source` says which file.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source or 'config'} is no TOML: {error}") from error


def _build(cls: type, table: dict[str, Any], place: _Place) -> Any:
    fields = _fields(cls)
    values = {}
    for name, value in table.items():
        if name not in fields:
            raise place.below(name).unknown(fields)
        values[name] = _convert(fields[name], value, place.below(name))
    for field in dataclasses.fields(cls):
        is_required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if field.init and is_required and field.name not in values:
            raise place.below(field.name).error(f" is missing: give it a value ({_describe(fields[field.name])})")
    return _construct(lambda: cls(**values), place)


def _overlay(config: Any, changes: dict[str, Any], place: _Place) -> Any:
    fields = _fields(type(config))
    values = {}
    for name, value in changes.items():
        if name not in fields:
            raise place.below(name).unknown(fields)
        old = getattr(config, name)
        new = _read(value, fields[name]) if isinstance(value, _Word) else value
        if isinstance(new, dict) and _is_config(old):
            values[name] = _overlay(old, new, place.below(name))
        elif isinstance(new, dict) and isinstance(old, Mapping):
            values[name] = {**old, **_convert(fields[name], new, place.below(name))}
        else:
            values[name] = _convert(fields[name], new, place.below(name))
    return _construct(lambda: dataclasses.replace(config, **values), place)


def _construct(make: Callable[[], Any], place: _Place) -> Any:
    """Runs a constructor; a ValueError from its checks becomes a ConfigError that says where."""
    try:
        return make()
    except ValueError as error:
        raise place.error(f": {error}" if place.parts else str(error)) from error


def _convert(kind: Any, value: Any, place: _Place) -> Any:
    if isinstance(value, _Word):
        value = _read(value, kind)
    if value == "none" and type(None) in _members(kind):
        return None
    inner = _dataclass_in(kind)
    if inner and isinstance(value, dict):
        return _build(inner, value, place)
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) in (tuple, list) and _dataclass_in(arguments[0]) and isinstance(value, list):
        items = [_convert(arguments[0], item, place.below(str(i))) for i, item in enumerate(value)]
        return typing.get_origin(kind)(items)
    if typing.get_origin(kind) is dict and isinstance(value, dict):
        return {key: _convert(arguments[1], item, place.below(key)) for key, item in value.items()}
    value = _plain(value)
    converted = _try_convert(kind, value)
    if converted is _REFUSED:
        if isinstance(value, dict) and not inner:
            hint = "; it holds no keys of its own"
        else:
            hint = nearest(str(value), _choices(kind))
        raise place.error(f": expected {_describe(kind)}, got {value!r}{hint}")
    return converted


_REFUSED = object()


def _try_convert(kind: Any, value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and float not in _members(kind):
        value = int(value)  # steps = 1e6
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return _REFUSED


def _read(word: str, kind: Any) -> Any:
    """Reads the text of a setting: as TOML where the type takes the outcome, else as a string."""
    try:
        table = tomllib.loads(f"value = {word}")
    except tomllib.TOMLDecodeError:
        return str(word)
    value = table["value"] if len(table) == 1 else str(word)
    is_text_field = _try_convert(kind, value) is _REFUSED and _try_convert(kind, str(word)) is not _REFUSED
    return str(word) if is_text_field and not isinstance(value, dict) else value


def _plain(value: Any) -> Any:
    """Reads the settings that stand inside a table."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return _read(value, Any) if isinstance(value, _Word) else value


def _choices(kind: Any) -> list[str]:
    return [
        str(x) for member in _members(kind) if typing.get_origin(member) is Literal for x in typing.get_args(member)
    ]


def _describe(kind: Any) -> str:
    names = []
    for member in _members(kind):
        if member is type(None):
            names.append("none")
        elif typing.get_origin(member) is Literal:
            names.append("one of " + ", ".join(repr(choice) for choice in typing.get_args(member)))
        elif isinstance(member, type) and dataclasses.is_dataclass(member):
            names.append(f"a table ({', '.join(_fields(member))})")
        elif typing.get_origin(member) in (tuple, list):
            names.append(f"a list of {_describe(typing.get_args(member)[0])}")
        else:
            names.append(member.__name__ if type(member) is type else str(member))
    return " or ".join(names)
