"""Foreign text, made safe: strict JSON in, printable lines out.

Enters: bytes of JSON documents and names from files that strangers wrote. Leaves: Python values, or a ``ValueError`` that says
which rule was broken; strings without control characters. Never: a duplicate key that wins in silence, NaN, or an escape
sequence that reaches a terminal.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import Any

from deltaweights.errors import printable
from deltaweights.util.interruption import check
from deltaweights.util.limits import USUAL, Limit

Json = Any
"""A value that ``json`` can represent. (A recursive type gives no more safety: every reader checks what it takes.)"""


_COMPACT = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_SPACED = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
"""Made once: ``json.dumps`` would make one for each of a manifest's tensors."""


def counted(number: int, thing: str) -> str:
    """Return ``number`` and ``thing``, in the plural unless it is one."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def natural_key(name: str) -> tuple[list[object], str]:
    """Sort key under which numbers inside names compare as numbers; ties (``1`` and ``01``) fall back to the name itself."""
    check()
    parts = re.split("([0-9]+)", name)
    # (length, digits) orders like the number, and has no limit on the count of digits, as int() has.
    numbers = [(len(digits.lstrip("0")), digits.lstrip("0")) for digits in parts[1::2]]
    key: list[object] = list(parts)
    key[1::2] = numbers
    return key, name


class LazyObject:
    """An object of a document that is too large to be held: its members are made while it is written, anew each time.

    Where it is written for people, their values are objects that hold no others.
    """

    def __init__(self, make: Callable[[], Iterable[tuple[str, Json]]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[tuple[str, Json]]:
        return iter(self._make())


class LazyList:
    """The same for a list of objects, which hold no others."""

    def __init__(self, make: Callable[[], Iterable[Json]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Json]:
        return iter(self._make())


def compact_json(value: Json) -> str:
    """Return ``value`` as JSON without spaces, non-ASCII characters as themselves: the form that digests are made over."""
    check()
    return _COMPACT.encode(value)


CHUNK = 1 << 16
"""Characters of a document that are written at once."""

BATCH = 1000
"""LazyObject that are written at once: enough that most of the time goes into writing them, too few to fill memory."""


def compact_pieces(value: Json) -> Iterator[str]:
    """Yield ``compact_json`` of a value that may hold ``LazyObject``, in pieces."""
    if isinstance(value, LazyObject):
        members, sign = iter(value), "{"
        while batch := dict(itertools.islice(members, BATCH)):
            yield f"{sign}{compact_json(batch)[1:-1]}"
            sign = ","
        yield "{}" if sign == "{" else "}"
    elif isinstance(value, dict):
        yield "{"
        for number, (key, item) in enumerate(value.items()):
            yield f"{',' if number else ''}{compact_json(key)}:"
            yield from compact_pieces(item)
        yield "}"
    elif isinstance(value, list):
        yield "["
        for number, item in enumerate(value):
            yield "," * (number > 0)
            yield from compact_pieces(item)
        yield "]"
    else:
        yield compact_json(value)


def in_chunks(pieces: Iterable[str]) -> Iterator[bytes]:
    """Yield ``pieces`` in UTF-8, some ten thousands of characters at once."""
    waiting, length = [], 0
    for piece in pieces:
        waiting.append(piece)
        length += len(piece)
        if length >= CHUNK:
            yield "".join(waiting).encode()
            waiting, length = [], 0
    if waiting:
        yield "".join(waiting).encode()


def readable_json(value: Json) -> bytes:
    """Return a JSON document that people can read. Raises as ``readable_pieces`` does."""
    return b"".join(in_chunks(readable_pieces(value)))


def readable_pieces(value: Json) -> Iterator[str]:
    """Yield a JSON document that people can read and ``diff`` can compare, a final newline included.

    Two spaces of indent, keys in their order; a list, or an object of at most 8 keys, that holds no object stands on one line.
    Raises ``ValueError`` for what JSON cannot say, or that is nested too deeply to be read.
    """
    try:
        holders: set[int] = set()
        _find_holders(value, holders, MOST_LEVELS)
        yield from _indented(value, "", holders)
        yield "\n"
    except RecursionError:
        raise ValueError("nested too deeply") from None


MOST_LEVELS = 200
"""Of nesting in a document that we write: each is indented."""


def _find_holders(value: Json, holders: set[int], levels: int) -> bool:
    """Tell whether ``value`` is an object or holds one, having put what lists and objects below it do into ``holders``."""
    if isinstance(value, LazyObject | LazyList):
        return True
    if not isinstance(value, dict | list):
        return False
    if not levels:
        raise ValueError("nested too deeply")
    check()
    inside = value.values() if isinstance(value, dict) else value
    holds = (
        sum(_find_holders(item, holders, levels - 1) for item in inside) > 0
    )  # all of them, each with what is below it
    if holds:
        holders.add(id(value))
    return holds or isinstance(value, dict)


def _indented(value: Json, indent: str, holders: Set[int]) -> Iterator[str]:
    check()
    made = isinstance(value, LazyObject | LazyList)
    if not made and id(value) not in holders and not (isinstance(value, dict) and len(value) > 8):
        yield _SPACED.encode(value)
        return
    is_list = isinstance(value, LazyList | list)
    begin, end = "[]" if is_list else "{}"
    deeper, sign = f"{indent}  ", f"{begin}\n"
    for item in value.items() if isinstance(value, dict) else value:
        key, inside = ("", item) if is_list else (f"{_SPACED.encode(item[0])}: ", item[1])
        if made and len(inside) <= 8:  # most of a large document, so not by way of another generator
            check()
            yield f"{sign}{deeper}{key}{_SPACED.encode(inside)}"
        else:
            yield f"{sign}{deeper}{key}"
            yield from _indented(inside, deeper, frozenset() if made else holders)
        sign = ",\n"
    yield f"\n{indent}{end}" if sign == ",\n" else f"{begin}{end}"


def _no_duplicates(pairs: Sequence[tuple[str, Json]]) -> dict[str, Json]:
    check()
    result: dict[str, Json] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"duplicate key {printable(json.dumps(key[:200], ensure_ascii=False))}")
        result[key] = value
    return result


def _no_constant(text: str) -> Json:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in {math.inf, -math.inf}:
        raise ValueError(f"{text[:40]} is larger than any number")
    return number


def _bounded_int(text: str) -> int | float:
    if len(text) > 20:
        raise ValueError(f"number with {len(text)} digits")
    return -0.0 if text == "-0" else int(text)  # minus zero is no size, and other readers refuse it as one


STRICT = json.JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite, parse_int=_bounded_int
)
"""Refuses what readers may take for two different things."""

MOST_FOREIGN = 20 * 1024 * 1024
"""Bytes of a document that is not ASCII: one character may make each of its characters take 4 bytes of memory, twice."""


def refuse_excess(data: bytes, limit: Limit) -> None:
    """Raise ``ValueError`` for a document that holds more than ``limit``, or is long and not all ASCII; see ``strict_json``."""
    if len(data) > limit.size:
        raise ValueError(f"more than {limit.size:,} bytes")
    if data.count(b"{") > limit.objects or data.count(b",") > limit.commas:
        raise ValueError(f"more than {limit.objects:,} objects or {limit.commas:,} commas")
    if data.count(b"[") > limit.lists:
        raise ValueError(f"more than {limit.lists:,} lists")
    if len(data) > MOST_FOREIGN and not data.isascii():
        raise ValueError(f"more than {MOST_FOREIGN:,} bytes, not all of them ASCII")


def strict_json(data: bytes, limit: Limit = USUAL) -> Json:
    """Parse one UTF-8 JSON document.

    Raises ``ValueError`` for: bytes that are not UTF-8, a byte-order mark, a key written twice in one object (also when spelled
    with different escapes), NaN, Infinity and what is larger than any number, integers of more than 20 characters, nesting that
    exhausts the stack, trailing bytes, and more than ``limit``, or more than ``MOST_FOREIGN`` bytes that are not all ASCII.
    """
    refuse_excess(data, limit)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    if text.startswith("\ufeff"):
        raise ValueError("starts with a byte-order mark")
    try:
        return STRICT.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
