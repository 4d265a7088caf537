"""Frozen dataclasses to TOML and back; overrides such as `optimizer.learning_rate=1e-3`.

TOML has no null: a field that is None is omitted if None is its default, and written as `"none"`
otherwise. Where a field's type admits None, `"none"` is read as None: `budget.steps=none`.
"""

import dataclasses
import difflib
import os
import tomllib
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

import msgspec
import tomli_w

from stemformer.errors import ConfigError

T = TypeVar("T")

SIMILAR = 0.6
"""Least similarity of a name to one that is suggested in its place."""


def to_toml(config: Any) -> str:
    """Return the TOML text of a dataclass; nested dataclasses become tables."""
    return tomli_w.dumps(_to_table(config))


def from_toml(cls: type[T], text: str, *, source: str = "", renamed: Mapping[str, str] | None = None) -> T:
    """Return a dataclass from TOML; `renamed` maps old keys to new ones, both in the same table."""
    return _build(cls, _rename_keys(parse_toml(text, source), renamed), source)


def merge_toml(config: T, text: str, *, source: str, renamed: Mapping[str, str] | None = None) -> T:
    """Return `config` with the values of a partial TOML text; old keys cause a warning."""
    changes = _rename_keys(parse_toml(text, source), renamed, warn=True)
    return _build(type(config), _merge(_to_table(config), changes), source)


def with_settings(config: T, settings: Sequence[str], *, renamed: Mapping[str, str] | None = None) -> T:
    """Return `config` with overrides `key=value`; of two equal keys the last wins.

    Values are TOML; bare words, and any value of a field that only takes strings, are strings.
    """
    cls, table = type(config), _to_table(config)
    for setting in settings:
        key, equals, text = setting.partition("=")
        parts = [part.strip() for part in key.split(".")]
        if not equals or not all(parts):
            raise ConfigError(f"Setting {setting!r}: expected key=value, such as {next(_keys(cls), 'key')}=...")
        value: Any = text.strip()
        for part in reversed(parts):
            value = {part: value}
        table = _merge(table, _rename_keys(_parse_text(value, cls), renamed, warn=True))
    return _build(cls, table, "Setting")


def differences(a: T, b: T) -> list[tuple[str, Any, Any]]:
    """Return (key, value in `a`, value in `b`) of each difference; None for absent keys."""
    left, right = dict(_flatten(a)), dict(_flatten(b))
    return [(key, left.get(key), right.get(key)) for key in left | right if left.get(key) != right.get(key)]


def nearest_first(name: str, choices: Iterable[str], *, cutoff: float = 0.0) -> list[str]:
    """Return the choices, the most similar to `name` first, without those of a similarity below `cutoff`."""
    names, lowered = list(choices), name.lower()
    similar = {x: difflib.SequenceMatcher(None, x.lower(), lowered).ratio() for x in names}
    # Of equally similar ones, that with the longest common beginning.
    shared = {x: len(os.path.commonprefix([x.lower(), lowered])) for x in names}  # noqa: RUF071
    return sorted((x for x in names if similar[x] >= cutoff), key=lambda x: (-similar[x], -shared[x], x))


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the most similar choice, or "" if there is none."""
    # The name itself is no suggestion.
    matches = nearest_first(name, (choice for choice in choices if choice != name), cutoff=SIMILAR)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def check_seed(seed: int, *, called: str = "seed is") -> None:
    """Check that random number generators accept a seed; `called` starts the error message."""
    if not 0 <= seed < 2**63:
        raise ConfigError(f"{called} {seed}: expected a number from 0 to 2**63 - 1")


def check_fields(config: Any, table: str, expected: str, is_valid: Callable[[Any], bool], *names: str) -> None:
    """Check fields of a config that are not None; `table` is the prefix of their keys."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not is_valid(value):
            raise ConfigError(f"{table}{name} is {value}: expected {expected}")


def check_at_least(minimum: int, config: Any, table: str, *names: str) -> None:
    """Check a lower bound as `check_fields` does."""
    expected = f"at least {minimum}" if minimum else "0 or more"
    check_fields(config, table, expected, lambda value: value >= minimum, *names)


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """Return the tables of a TOML text; errors name `source`."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source or 'config'} is not valid TOML: {error}") from error


def _build(cls: type[T], table: Mapping[str, Any], source: str) -> T:
    return typing.cast(T, _Builder(source, cls).build(cls, table))


@dataclasses.dataclass(frozen=True)
class _Builder:
    """Builds dataclasses from tables; `source` and the keys of `root` are for error messages."""

    source: str
    root: type

    def build(self, cls: type, table: Mapping[str, Any], path: tuple[str, ...] = ()) -> Any:
        fields = _fields(cls)
        for name in table:
            if name not in fields:
                raise self._unknown((*path, name), list(fields))
        values = {name: self._convert(fields[name], value, (*path, name)) for name, value in table.items()}
        for field in dataclasses.fields(cls):
            is_required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if field.init and is_required and field.name not in values:
                problem = f" is missing: give it a value ({_describe(fields[field.name])})"
                raise self._error((*path, field.name), problem)
        try:
            return cls(**values)
        # From the checks of __post_init__.
        except ValueError as error:
            raise self._error(path, f": {error}" if path else str(error)) from error

    def _convert(self, kind: Any, value: Any, path: tuple[str, ...]) -> Any:
        if value == "none" and type(None) in _members(kind):
            return None
        inner = _dataclass_in(kind)
        if inner and isinstance(value, dict):
            return self.build(inner, value, path)
        container, arguments = typing.get_origin(kind), typing.get_args(kind)
        if container in (tuple, list) and _dataclass_in(arguments[0]) and isinstance(value, list):
            return container(self._convert(arguments[0], item, (*path, str(i))) for i, item in enumerate(value))
        if container is dict and isinstance(value, dict):
            return {key: self._convert(arguments[1], item, (*path, key)) for key, item in value.items()}
        converted = _try_convert(kind, value)
        if converted is _REFUSED:
            is_table = isinstance(value, dict) and not inner
            literals = [member for member in _members(kind) if typing.get_origin(member) is Literal]
            choices = [str(choice) for literal in literals for choice in typing.get_args(literal)]
            hint = "; it holds no keys of its own" if is_table else nearest(str(value), choices)
            raise self._error(path, f": expected {_describe(kind)}, got {value!r}{hint}")
        return converted

    def _error(self, path: tuple[str, ...], problem: str) -> ConfigError:
        return ConfigError(": ".join(part for part in (self.source, f"{'.'.join(path)}{problem}") if part))

    def _unknown(self, path: tuple[str, ...], fields: list[str]) -> ConfigError:
        *table, name = path
        keys = {key: key.rpartition(".")[2] for key in _keys(self.root)}
        # The right name in another table, or the initials of a name (lr).
        elsewhere = [key for key, last in keys.items() if last == name]
        elsewhere += [key for key, last in keys.items() if "".join(w[0] for w in last.split("_")) == name and name[1:]]
        # A misspelled name, or one word of a name (hidden).
        likely = nearest_first(name, fields, cutoff=0.8)[:1]
        likely = likely or [field for field in fields if name in field.split("_")]
        likely = likely or nearest_first(name, fields, cutoff=SIMILAR)[:1]
        here = [".".join((*table, field)) for field in likely]
        if found := elsewhere[:1] or here or nearest_first(".".join(path), keys, cutoff=SIMILAR)[:1]:
            return self._error(path, f" is not a setting (did you mean {' or '.join(map(repr, found))}?)")
        expected = ", ".join(".".join((*table, field)) for field in fields)
        return self._error(path, f" is not a setting; expected one of {expected}")


_REFUSED = object()


def _try_convert(kind: Any, value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and float not in _members(kind):
        # "steps = 1e6" is 1000000.
        value = int(value)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return _REFUSED


def _parse_text(value: Any, kind: Any) -> Any:
    """Parse the text inside nested tables as TOML; it stays text if its field only takes text."""
    if isinstance(value, dict):
        return {name: _parse_text(inner, _field_type(kind, name)) for name, inner in value.items()}
    try:
        table = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return value
    parsed = table["value"] if len(table) == 1 else value
    takes_text_only = _try_convert(kind, parsed) is _REFUSED and _try_convert(kind, value) is not _REFUSED
    return value if takes_text_only else parsed


def _field_type(kind: Any, name: str) -> Any:
    if inner := _dataclass_in(kind):
        return _fields(inner).get(name, Any)
    return typing.get_args(kind)[1] if typing.get_origin(kind) is dict else Any


def _merge(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: _merge(old.get(key), value) for key, value in new.items()}


def _rename_keys(value: Any, renamed: Mapping[str, str] | None, path: str = "", *, warn: bool = False) -> Any:
    """Replace old keys in tables, also in configs that are part of another one."""
    if isinstance(value, list):
        return [_rename_keys(item, renamed, path, warn=warn) for item in value]
    if not isinstance(value, dict) or not renamed:
        return value
    table = {}
    for name, inner in value.items():
        key = f"{path}.{name}"
        old = next((old for old in renamed if key.endswith(f".{old}")), None)
        if old is not None:
            if warn:
                current = key.removesuffix(old) + renamed[old]
                warnings.warn(f"Setting '{key[1:]}' is now '{current[1:]}'.", stacklevel=4)
            name = renamed[old].rpartition(".")[2]
        table[name] = _rename_keys(inner, renamed, key, warn=warn)
    return table


def _fields(cls: type) -> dict[str, Any]:
    """Return the names and types of the constructor's fields."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _members(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)


def _dataclass_in(kind: Any) -> type | None:
    return next((m for m in _members(kind) if isinstance(m, type) and dataclasses.is_dataclass(m)), None)


def _keys(cls: type) -> Iterator[str]:
    for name, kind in _fields(cls).items():
        inner = _dataclass_in(kind)
        yield from (f"{name}.{key}" for key in _keys(inner)) if inner else (name,)


def _flatten(config: Any) -> Iterator[tuple[str, Any]]:
    for name in _fields(type(config)):
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            yield from ((f"{name}.{key}", inner) for key, inner in _flatten(value))
        else:
            yield name, value


def _to_table(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
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
