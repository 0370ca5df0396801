"""Foreign text, made safe: strict JSON in, printable lines out.

Enters: bytes of JSON documents and names from files that strangers wrote. Leaves: Python values, or a ``ValueError`` that says
which rule was broken; strings without control characters. Never: a duplicate key that wins in silence, NaN, or an escape
sequence that reaches a terminal.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

Json = Any
"""A value that ``json`` can represent. (A recursive type gives no more safety: every reader checks what it takes.)"""


_COMPACT = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_SPACED = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
"""Made once: ``json.dumps`` would make one for each of a manifest's tensors."""


_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Letters and marks that nothing is seen of: two names that differ in one of them look alike."""


def is_shown(character: str) -> bool:
    """Return whether a terminal shows the character, and does nothing else: no control, no change of direction, no line break."""
    return character.isprintable() and not _UNSEEN.match(character)


def printable(text: str) -> str:
    """Return ``text`` on one line; escaped is what a terminal could act on or would not show, and what cannot be encoded."""
    if text.isprintable() and not _UNSEEN.search(text):
        return text
    return "".join(c if is_shown(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def counted(number: int, thing: str) -> str:
    """Return ``number`` and ``thing``, in the plural unless it is one."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def natural_key(name: str) -> tuple[list[object], str]:
    """Sort key under which numbers inside names compare as numbers; ties (``1`` and ``01``) fall back to the name itself."""
    parts = re.split("([0-9]+)", name)
    # (length, digits) orders like the number, and has no limit on the count of digits, as int() has.
    numbers = [(len(digits.lstrip("0")), digits.lstrip("0")) for digits in parts[1::2]]
    key: list[object] = list(parts)
    key[1::2] = numbers
    return key, name


def compact_json(value: Json) -> str:
    """Return ``value`` as JSON without spaces, non-ASCII characters as themselves: the form that digests are made over."""
    return _COMPACT.encode(value)


def readable_json(value: Json) -> bytes:
    """Return ``value`` as the bytes of a JSON document that people can read and ``diff`` can compare, a final newline included.

    Two spaces of indent, keys in their order; a list, or an object of at most 8 keys, that holds no object stands on one line.
    Raises ``ValueError`` for what JSON cannot say, or that is nested too deeply to be read.
    """
    try:
        holders: set[int] = set()
        _find_holders(value, holders, MOST_LEVELS)
        return f"{_indented(value, '', holders)}\n".encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None


MOST_LEVELS = 200
"""Of nesting in a document that we write: each is indented."""


def _find_holders(value: Json, holders: set[int], levels: int) -> bool:
    """Tell whether ``value`` is an object or holds one, having put what lists and objects below it do into ``holders``."""
    if not isinstance(value, dict | list):
        return False
    if not levels:
        raise ValueError("nested too deeply")
    inside = value.values() if isinstance(value, dict) else value
    holds = (
        sum(_find_holders(item, holders, levels - 1) for item in inside) > 0
    )  # all of them, each with what is below it
    if holds:
        holders.add(id(value))
    return holds or isinstance(value, dict)


def _indented(value: Json, indent: str, holders: set[int]) -> str:
    if id(value) not in holders and not (isinstance(value, dict) and len(value) > 8):
        return _SPACED.encode(value)
    deeper = f"{indent}  "
    if isinstance(value, list):
        lines = [f"{deeper}{_indented(item, deeper, holders)}" for item in value]
        return "[\n" + ",\n".join(lines) + f"\n{indent}]"
    lines = [f"{deeper}{_SPACED.encode(key)}: {_indented(item, deeper, holders)}" for key, item in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def _no_duplicates(pairs: Sequence[tuple[str, Json]]) -> dict[str, Json]:
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


MOST_OBJECTS = 110_000
"""Objects that a document may hold: enough for a header of 100,000 tensors, too little to fill the memory of a machine."""

COMMAS_PER_OBJECT = 10
"""Commas allowed per object: a tensor's entry in a header, an index or a manifest has 3 to 8."""

LISTS_PER_OBJECT = 4
"""Lists allowed per object: a tensor's entry has 2."""

MOST_COMMAS = 1_600_000
"""In any document: a manifest of 100,000 tensors has as many."""

MOST_FOREIGN = 20 * 1024 * 1024
"""Bytes of a document that is not ASCII: one character may make each of its characters take 4 bytes of memory, twice."""


def strict_json(data: bytes, most_objects: int = MOST_OBJECTS, most_commas: int | None = None) -> Json:
    """Parse one UTF-8 JSON document.

    Raises ``ValueError`` for: bytes that are not UTF-8, a byte-order mark, a key written twice in one object (also when spelled
    with different escapes), NaN, Infinity and what is larger than any number, integers of more than 20 characters, nesting that
    exhausts the stack, trailing bytes, and more than ``most_objects`` objects, ``most_commas`` (``COMMAS_PER_OBJECT`` times as
    many) or ``LISTS_PER_OBJECT`` times as many lists, or more than ``MOST_FOREIGN`` bytes that are not all ASCII.
    """
    if most_commas is None:
        most_commas = min(COMMAS_PER_OBJECT * most_objects, MOST_COMMAS)
    if data.count(b"{") > most_objects or data.count(b",") > most_commas:
        raise ValueError(f"more than {most_objects:,} objects or {most_commas:,} commas")
    if data.count(b"[") > LISTS_PER_OBJECT * most_objects:
        raise ValueError(f"more than {LISTS_PER_OBJECT * most_objects:,} lists")
    if len(data) > MOST_FOREIGN and not data.isascii():
        raise ValueError(f"more than {MOST_FOREIGN:,} bytes, not all of them ASCII")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    if text.startswith("\ufeff"):
        raise ValueError("starts with a byte-order mark")
    try:
        return json.loads(
            text,
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_bounded_int,
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
