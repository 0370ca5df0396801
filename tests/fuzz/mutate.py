"""Damage to sound examples: to their bytes, and to the values of JSON documents, which damaged bytes seldom reach."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**19, 0.5, -0.0, 1e308, 1e-9, "", "\0", "\x1b[2J", "\ud800", "..",
    "../x", "/etc/passwd", "a\\b", "x" * 300, "0" * 64, "9" * 40, "\u2028", [], {}, [[]], [None], {"": None}, "__metadata__", "NaN",
)  # fmt: skip
"""Values that a reader may not expect."""

PIECES = (
    b"\0",
    b"\xff",
    b"\x80",
    b"{",
    b"}",
    b"[",
    b'"',
    b",",
    b"\\u0000",
    b"\n",
    b"PK\3\4",
    b"PK\1\2",
    b"PK\5\6",
    b"\x80\x02",
    b".",
)


def mutated(data: bytes, most: int, random: Random, of_bytes: Callable[[bytes], bytes] | None = None) -> bytes:
    """Return ``data`` with something changed, at most ``most`` bytes; ``of_bytes`` changes bytes in place of our own way."""
    changed = _of_json(data, random) if data[:1] in b"{[" and random.random() < 0.7 else None
    if changed is None:
        changed = of_bytes(data) if of_bytes is not None else _of_bytes(data, random)
    return changed[:most]


def _of_bytes(data: bytes, random: Random) -> bytes:
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4, 8))):
        at = random.randrange(len(out) + 1)
        what = random.randrange(6)
        if what == 0 and at < len(out):
            out[at] ^= 1 << random.randrange(8)
        elif what == 1:
            del out[at : at + random.choice((1, 2, 4, 8, 64, 1024))]
        elif what == 2:
            out[at:at] = random.choice(PIECES)
        elif what == 3:
            begin = random.randrange(len(out) + 1)
            out[at:at] = out[begin : begin + random.choice((1, 4, 16, 128))]
        elif what == 4:
            size = random.choice((1, 2, 4, 8))
            out[at : at + size] = random.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)).to_bytes(8, "little")[:size]
        else:
            out[at : at + 1] = bytes([random.randrange(256)])
    return bytes(out)


def _of_json(data: bytes, random: Random) -> bytes | None:
    """Return a JSON document with some of its values changed, None when ``data`` is no document."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    for _ in range(random.choice((1, 1, 2, 3))):
        document = _changed(document, random)
    try:
        return json.dumps(document).encode()
    except (ValueError, RecursionError):
        return None


def _changed(value: Any, random: Random) -> Any:
    """Return ``value`` with a change somewhere in it."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(list(value))
        what = random.randrange(10)
        if what == 0:
            return {name: item for name, item in value.items() if name != key}
        if what == 1:
            return value | {random.choice(("", "x", "\x1b[2J", "../x", "a" * 300, f"{key}\0")): value[key]}
        return value | {key: _changed(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.9:
        at, what = random.randrange(len(value)), random.randrange(10)
        if what == 0:
            return value[:at] + value[at + 1 :]
        if what == 1:
            return [*value, value[at]]
        return [*value[:at], _changed(value[at], random), *value[at + 1 :]]
    if isinstance(value, str) and value and random.random() < 0.4:
        at = random.randrange(len(value))
        return (
            value[:at]
            + random.choice(("", "\0", "/", "..", "é", "\x9b", "0", "A" * 20))
            + value[at + random.randrange(2) :]
        )
    if type(value) is int and random.random() < 0.4:
        return value + random.choice((-1, 1, 2**16, -(2**40)))
    return random.choice(ODD)
