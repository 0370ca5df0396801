"""Strict JSON in and out, and text for people."""

from __future__ import annotations

import codecs
import itertools
import json
import math
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

from deltaweights.errors import is_shown, printable
from deltaweights.util.interruption import check
from deltaweights.util.limits import USUAL, Limit

Json = Any
"""A value that ``json`` can represent. (A recursive type would add no safety: every reader checks what it takes.)"""

# Made once, because ``json.dumps`` would make one for each of a manifest's tensors.
_COMPACT = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_SPACED = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def counted(number: int, thing: str) -> str:
    """Return ``number`` and ``thing``, in the plural unless the number is 1."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def finished_of(number: int, total: int, thing: str) -> str:
    """Return that ``number`` of ``total`` are finished: ``1 of 3 shards is finished``."""
    return f"{number:,} of {counted(total, thing)} {'is' if 1 in {number, total} else 'are'} finished"


def natural_key(name: str) -> tuple[list[object], str]:
    """Return a sort key by which numbers in names compare as numbers; ties (``1`` and ``01``) are broken by the name itself."""
    check()
    parts = re.split("([0-9]+)", name)
    # (length, digits) orders like the number, without int()'s limit on the count of digits.
    numbers = [(len(digits.lstrip("0")), digits.lstrip("0")) for digits in parts[1::2]]
    key: list[object] = list(parts)
    key[1::2] = numbers
    return key, name


def shell_quoted(text: str | os.PathLike[str]) -> str:
    """Return ``text`` as one word of a command for sh that can be copied from a terminal.

    What a terminal would not show as it is, such as bytes that the locale cannot decode, is in ``$'...'``, as bash, zsh and ksh
    read it.
    """
    text = os.fspath(text)
    if all(map(is_shown, text)):
        return shlex.quote(text)
    plain = (chr(byte) if 0x20 <= byte < 0x7F and byte not in b"'\\" else f"\\{byte:03o}" for byte in os.fsencode(text))
    return f"$'{''.join(plain)}'"


# Writing.


@dataclass(frozen=True)
class LazyObject:
    """An object too large for memory: ``make`` yields its members at each writing. In a readable document these hold no objects."""

    make: Callable[[], Iterable[Json]]

    def __iter__(self) -> Iterator[Json]:
        return iter(self.make())


class LazyList(LazyObject):
    """The same for a list of objects, which must hold no others; only readable documents may have one."""


def compact_json(value: Json) -> str:
    """Return ``value`` as JSON without spaces, non-ASCII characters unescaped: the form that digests are made of."""
    check()
    return _COMPACT.encode(value)


CHUNK = 1 << 16  # characters of a document that are written at once
BATCH = 1000  # members encoded at once: enough to spend most of the time in the encoder, too few to fill memory


def compact_pieces(value: Json) -> Iterator[str]:
    """Yield ``compact_json`` of a value that may hold ``LazyObject``, in pieces."""
    if isinstance(value, LazyObject):
        members, separator = iter(value), "{"
        while batch := dict(itertools.islice(members, BATCH)):
            yield f"{separator}{compact_json(batch)[1:-1]}"
            separator = ","
        yield "{}" if separator == "{" else "}"
    elif isinstance(value, dict):
        separator = "{"
        for key, item in value.items():
            yield f"{separator}{compact_json(key)}:"
            yield from compact_pieces(item)
            separator = ","
        yield "{}" if separator == "{" else "}"
    elif isinstance(value, list):
        separator = "["
        for item in value:
            yield separator
            yield from compact_pieces(item)
            separator = ","
        yield "[]" if separator == "[" else "]"
    else:
        yield compact_json(value)


def in_chunks(pieces: Iterable[str]) -> Iterator[bytes]:
    """Yield ``pieces`` in UTF-8, in chunks of at least ``CHUNK`` characters."""
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
    """Return the document that ``readable_pieces`` yields. Raises ``ValueError``."""
    return b"".join(in_chunks(readable_pieces(value)))


def readable_pieces(value: Json) -> Iterator[str]:
    """Yield a JSON document that people can read and ``diff`` can compare, including a final newline.

    It is indented by two spaces. A list, or an object of at most 8 keys, is on one line if it holds no object. Raises
    ``ValueError`` for what JSON cannot represent, or is nested too deeply to be read back.
    """
    try:
        holders: set[int] = set()
        _find_holders(value, holders, MOST_LEVELS)
        yield from _indented(value, "", holders)
        yield "\n"
    except RecursionError:
        raise ValueError("nested too deeply") from None


MOST_LEVELS = 200  # levels of nesting in a document that we write


def _find_holders(value: Json, holders: set[int], levels: int) -> bool:
    """Return whether ``value`` is or holds an object; add to ``holders`` each list and object that holds one."""
    if isinstance(value, LazyObject):
        return True
    if not isinstance(value, dict | list):
        return False
    if not levels:
        raise ValueError("nested too deeply")
    check()
    inside = value.values() if isinstance(value, dict) else value
    holds = True in [_find_holders(item, holders, levels - 1) for item in inside]  # a list, to visit every item
    if holds:
        holders.add(id(value))
    return holds or isinstance(value, dict)


def _indented(value: Json, indent: str, holders: Set[int]) -> Iterator[str]:
    check()
    lazy = isinstance(value, LazyObject)
    if not lazy and id(value) not in holders and not (isinstance(value, dict) and len(value) > 8):
        yield _SPACED.encode(value)
        return
    is_list = isinstance(value, LazyList | list)
    begin, end = "[]" if is_list else "{}"
    deeper, separator = f"{indent}  ", f"{begin}\n"
    for item in value.items() if isinstance(value, dict) else value:
        key, inside = ("", item) if is_list else (f"{_SPACED.encode(item[0])}: ", item[1])
        if lazy and len(inside) <= 8:  # most of a large document, so without another generator
            check()
            yield f"{separator}{deeper}{key}{_SPACED.encode(inside)}"
        else:
            yield f"{separator}{deeper}{key}"
            yield from _indented(inside, deeper, frozenset() if lazy else holders)
        separator = ",\n"
    yield f"\n{indent}{end}" if separator == ",\n" else f"{begin}{end}"


# Reading.


def duplicate_key(key: str) -> ValueError:
    """Return the error for a key that is written twice in one object."""
    return ValueError(f"duplicate key {printable(json.dumps(key[:200], ensure_ascii=False))}")


def _no_duplicates(pairs: Sequence[tuple[str, Json]]) -> dict[str, Json]:
    check()
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise duplicate_key(key)
            seen.add(key)
    return result


def _no_constant(text: str) -> Json:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is larger than any number")
    return number


def _bounded_int(text: str) -> int | float:
    if len(text) > 20:
        raise ValueError(f"number with {len(text)} digits")
    return -0.0 if text == "-0" else int(text)  # minus zero is no size, and other readers refuse it as one


STRICT = json.JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite, parse_int=_bounded_int
)
"""Refuses everything that two readers may interpret differently."""

PLAIN_INTEGERS = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite)
"""The same for a text without ``STRANGE_INTEGER``: a call of Python for each of 800,000 numbers takes its time."""

STRANGE_INTEGER = re.compile(rb"-0|[0-9]{20}")

MOST_FOREIGN = 20 * 1024 * 1024
"""Bytes of a document that is not ASCII: one such character can make every character take 4 bytes of memory, twice."""


UTF8_MARK = codecs.BOM_UTF8
MARKED = "starts with a byte-order mark"  # an editor's, which is harmless in other people's files and never in ours
SAVE_UNMARKED = "save it as UTF-8 without BOM"


def refuse_excess(data: bytes, limit: Limit) -> None:
    """Raise ``ValueError`` for a document that exceeds ``limit``, or ``MOST_FOREIGN`` bytes that are not all ASCII."""
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

    Raises ``ValueError`` for: bytes that are not UTF-8, a byte-order mark, a key written twice in one object (also with different
    escapes), NaN, Infinity, floats out of range, integers of more than 20 characters, nesting that exhausts the stack, trailing
    bytes, and what ``refuse_excess`` refuses.
    """
    refuse_excess(data, limit)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    if text.startswith("\ufeff"):
        raise ValueError(MARKED)
    try:
        return (STRICT if STRANGE_INTEGER.search(data) else PLAIN_INTEGERS).decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def short_repr(result: object, **facts: object) -> str:
    """Return a line for the console: the class of ``result``, and the facts of it that matter first."""
    return f"{type(result).__name__}({', '.join(f'{name}={value!r}' for name, value in facts.items())})"
