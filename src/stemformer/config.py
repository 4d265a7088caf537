"""Frozen dataclasses to TOML and back; overrides such as `optimizer.learning_rate=1e-3`.

Works for any dataclass. An unknown key or a value of the wrong type raises `ConfigError` with the
full key, the expected type and the nearest key.

TOML has no null: a field that is None is omitted if None is its default, and written as the string
`"none"` otherwise. Wherever a field's type admits None, `"none"` is read as None, so that
`budget.steps=none` removes a budget.
"""

import dataclasses
import difflib
import tomllib
import types
import typing
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

import msgspec
import tomli_w

from stemformer.errors import ConfigError

T = TypeVar("T")


def to_toml(config: Any) -> str:
    """Return the TOML text of a dataclass; nested dataclasses become tables."""
    return tomli_w.dumps(_to_table(config))


def from_toml(cls: type[T], text: str, *, source: str = "", renamed: Mapping[str, str] | None = None) -> T:
    """Return an instance of the dataclass `cls` from TOML; absent keys take their defaults.

    Args:
        source: File name, for error messages.
        renamed: Old key -> new key (with dots, both in the same table); old keys are accepted
            silently.

    Raises:
        ConfigError: The text is not TOML, has an unknown key or a value of the wrong type, or lacks
        a required key.
    """
    return typing.cast(T, _Builder(source, cls).build(cls, _rename_keys(parse_toml(text, source), renamed)))


def merge_toml(config: T, text: str, *, source: str, renamed: Mapping[str, str] | None = None) -> T:
    """Return `config` with the values of a TOML text, which may be partial.

    Args:
        source: File name, for error messages.
        renamed: As in `from_toml`; each old key is reported by a warning.

    Raises:
        ConfigError: As in `from_toml`.
    """
    changes = _rename_keys(parse_toml(text, source), renamed, warn=True)
    return typing.cast(T, _Builder(source, type(config)).build(type(config), _merge(_to_table(config), changes)))


def with_settings(config: T, settings: Sequence[str], *, renamed: Mapping[str, str] | None = None) -> T:
    """Return `config` with overrides of the form `key=value`; of two equal keys the last wins.

    A value is parsed as TOML. Bare words are strings, and so is any value of a field that only
    takes strings.

    Args:
        settings: Keys with dots, for example `optimizer.learning_rate=1e-3`.
        renamed: As in `from_toml`; each old key is reported by a warning.

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
    cls, table = type(config), _to_table(config)
    for setting in settings:
        key, equals, text = setting.partition("=")
        parts = [part.strip() for part in key.split(".")]
        if not equals or not all(parts):
            raise ConfigError(f"setting {setting!r}: expected key=value, such as {next(_keys(cls), 'key')}=...")
        value = _parse_value(text.strip())
        for part in reversed(parts):
            value = {part: value}
        table = _merge(table, _rename_keys(value, renamed, warn=True))
    return typing.cast(T, _Builder("setting", cls).build(cls, table))


def differences(a: T, b: T) -> list[tuple[str, Any, Any]]:
    """Return (key, value in `a`, value in `b`) for each key in which two configs differ.

    The value of a key that one of them lacks is None.
    """
    left, right = dict(_flatten(a)), dict(_flatten(b))
    return [(key, left.get(key), right.get(key)) for key in left | right if left.get(key) != right.get(key)]


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the most similar choice, or "" if there is none.

    Example:
        >>> nearest("hidden_siz", ["hidden_size", "vocab_size"])
        " (did you mean 'hidden_size'?)"
    """
    matches = difflib.get_close_matches(name, list(choices), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def check_seed(seed: int, *, called: str = "seed is") -> None:
    """Check that random number generators accept a seed.

    Args:
        called: Start of the error message.

    Raises:
        ConfigError: It is negative or too large.
    """
    if not 0 <= seed < 2**63:
        raise ConfigError(f"{called} {seed}: expected a number from 0 to 2**63 - 1")


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """Return the tables of a TOML text.

    Raises:
        ConfigError: It is not valid TOML; the message names `source`.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source or 'config'} is not valid TOML: {error}") from error


class _RawValue(str):
    """Text of a setting's value; the type of the field decides how it is parsed."""


class _Builder:
    """Builds dataclasses from tables; `source` and the keys of `root` are for error messages."""

    def __init__(self, source: str, root: type) -> None:
        self.source = source
        self.root = root

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
        except ValueError as error:  # from the checks of __post_init__
            raise self._error(path, f": {error}" if path else str(error)) from error

    def _convert(self, kind: Any, value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, _RawValue):
            value = _parse_raw(value, kind)
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
        value = _without_raw_values(value)
        converted = _try_convert(kind, value)
        if converted is _REFUSED:
            is_table = isinstance(value, dict) and not inner
            hint = "; it holds no keys of its own" if is_table else nearest(str(value), _choices(kind))
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
        likely = difflib.get_close_matches(name, fields, n=1, cutoff=0.8)
        likely = likely or [field for field in fields if name in field.split("_")]
        likely = likely or difflib.get_close_matches(name, fields, n=1)
        here = [".".join((*table, field)) for field in likely]
        if found := elsewhere[:1] or here or difflib.get_close_matches(".".join(path), keys, n=1):
            return self._error(path, f" is not a setting (did you mean {' or '.join(map(repr, found))}?)")
        expected = ", ".join(".".join((*table, field)) for field in fields)
        return self._error(path, f" is not a setting; expected one of {expected}")


_REFUSED = object()


def _try_convert(kind: Any, value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and float not in _members(kind):
        value = int(value)  # steps = 1e6
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return _REFUSED


def _parse_value(text: str) -> Any:
    """Parse tables and lists of tables; other values need the type of their field."""
    value = _load_value(text)
    is_table = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value))
    return value if is_table else _RawValue(text)


def _parse_raw(text: str, kind: Any) -> Any:
    """Parse as TOML if the field's type accepts the result, otherwise return the text."""
    value = _load_value(text)
    takes_text_only = _try_convert(kind, value) is _REFUSED and _try_convert(kind, str(text)) is not _REFUSED
    return str(text) if takes_text_only else value


def _load_value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return str(text)
    return table["value"] if len(table) == 1 else str(text)


def _without_raw_values(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_raw_values(inner) for key, inner in value.items()}
    return _load_value(value) if isinstance(value, _RawValue) else value


def _merge(table: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(table)
    for key, new in changes.items():
        old = merged.get(key)
        merged[key] = _merge(old, new) if isinstance(old, dict) and isinstance(new, dict) else new
    return merged


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


def _is_config(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _keys(cls: type) -> Iterator[str]:
    for name, kind in _fields(cls).items():
        inner = _dataclass_in(kind)
        yield from (f"{name}.{key}" for key in _keys(inner)) if inner else (name,)


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


def _choices(kind: Any) -> list[str]:
    return [str(x) for m in _members(kind) if typing.get_origin(m) is Literal for x in typing.get_args(m)]


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
