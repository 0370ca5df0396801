"""Dataclasses to JSON and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pytest

from deltaweights.util.codec import decode, encode


class Fate(Enum):
    """An enum whose names are encoded, not its values."""

    ADDED = 1
    COPIED = 2


@dataclass(frozen=True)
class Inner:
    """Part of ``Outer``."""

    name: str
    fate: Fate = Fate.ADDED


@dataclass(frozen=True)
class Outer:
    """A value of every kind that is encoded."""

    inner: Inner
    many: tuple[Inner, ...] = ()
    pair: tuple[str, int] = ("a", 1)
    names: frozenset[str] = frozenset()
    by_name: Mapping[str, Inner] = field(default_factory=dict)
    ratio: float = 0.5
    maybe: Inner | None = None
    flag: bool = False


FULL = Outer(
    Inner("a", Fate.COPIED),
    many=(Inner("b"), Inner("c")),
    pair=("x", 2),
    names=frozenset({"z", "y"}),
    by_name={"k": Inner("d")},
    ratio=1e300,
    maybe=Inner("e"),
    flag=True,
)


@pytest.mark.parametrize("value", [FULL, Outer(Inner("é"))], ids=["every field", "defaults"])
def test_what_is_encoded_is_decoded(value: Outer) -> None:
    """A value that went through JSON is equal to the original."""
    assert decode(Outer, json.loads(json.dumps(encode(value)))) == value


def test_enums_are_their_names_and_sets_are_sorted() -> None:
    """The JSON of a value is the same whenever it is made."""
    assert encode(Fate.COPIED) == "COPIED"
    assert encode(frozenset({"b", "a"})) == ["a", "b"]


def test_what_is_missing_has_its_default() -> None:
    """Fields with a default may be left out, and a whole number is a float, too."""
    assert decode(Outer, {"inner": {"name": "a"}, "ratio": 2}) == Outer(Inner("a"), ratio=2.0)


@pytest.mark.parametrize(
    "value",
    [
        3,
        [],
        None,
        {},
        {"inner": {"name": 3}},
        {"inner": {"name": "\ud800"}},
        {"inner": {"name": "a"}, "unknown": 1},
        {"inner": {"name": "a", "fate": "NO_SUCH"}},
        {"inner": {"name": "a", "fate": 1}},
        {"inner": {"name": "a"}, "many": {}},
        {"inner": {"name": "a"}, "pair": ["a"]},
        {"inner": {"name": "a"}, "by_name": []},
        {"inner": {"name": "a"}, "flag": 1},
        {"inner": {"name": "a"}, "ratio": "0.5"},
    ],
    ids=repr,
)
def test_other_values_are_refused(value: Any) -> None:
    """JSON that no value of the class is encoded to is a ``ValueError``, never an object with fields of the wrong type."""
    with pytest.raises(ValueError):  # noqa: PT011  (each has a message of its own)
        decode(Outer, value)
