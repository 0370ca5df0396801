"""Frozen dataclasses to JSON and back; what is made is the class that the caller asks for, never one that the JSON names."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from deltaweights.util.text import Json


def encode(value: object) -> Json:
    """Return ``value`` as JSON: dataclasses, enums (as their names), tuples, frozen sets, mappings, and what JSON has itself."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value) if field.init}
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, frozenset):
        return sorted(encode(item) for item in value)
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return value


def decode(wanted: Any, value: Json) -> Any:
    """Return the value of the type ``wanted`` that ``encode`` turned into ``value``. Raises ``ValueError`` when there is none."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin in {Union, types.UnionType}:
        if value is None and type(None) in arguments:
            return None
        (kind,) = (kind for kind in arguments if kind is not type(None))
        return decode(kind, value)
    if is_dataclass(wanted):
        return _dataclass(wanted, value)
    if origin in {dict, Mapping}:
        if not isinstance(value, dict):
            raise ValueError("not an object")
        return {key: decode(arguments[1], item) for key, item in value.items()}
    if origin in {tuple, frozenset}:
        return _sequence(origin, arguments, value)
    if isinstance(wanted, type) and issubclass(wanted, Enum):
        if not isinstance(value, str) or value not in wanted.__members__:
            raise ValueError(f"not a {_name(wanted)}")
        return wanted[value]
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise ValueError(f"not a {_name(wanted)}: {value!r:.40}")
    if isinstance(value, str):
        value.encode()  # a lone surrogate, which JSON can spell, is a ValueError, too
    return value


def _dataclass(wanted: Any, value: Json) -> Any:
    hints = _hints(wanted)
    if not isinstance(value, dict) or value.keys() - hints.keys():
        raise ValueError(f"not a {_name(wanted)}")
    try:
        return wanted(**{key: decode(hints[key], item) for key, item in value.items()})
    except TypeError as error:
        raise ValueError(f"not a {_name(wanted)}: {error}") from None


def _sequence(origin: Any, arguments: tuple[Any, ...], value: Json) -> Any:
    if not isinstance(value, list):
        raise ValueError("not a list")
    if origin is tuple and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise ValueError(f"not {len(arguments)} items")
        return tuple(decode(kind, item) for kind, item in zip(arguments, value, strict=True))
    return origin(decode(arguments[0], item) for item in value)


@cache
def _hints(wanted: Any) -> dict[str, Any]:
    names = {field.name for field in fields(wanted)}
    return {name: hint for name, hint in get_type_hints(wanted).items() if name in names}


def _name(wanted: Any) -> str:
    return str(getattr(wanted, "__name__", wanted))
