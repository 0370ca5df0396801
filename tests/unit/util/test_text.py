"""Strict JSON in and out, and text for people."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaweights.util.text import (
    BATCH,
    CHUNK,
    MOST_FOREIGN,
    LazyList,
    LazyObject,
    compact_json,
    compact_pieces,
    counted,
    in_chunks,
    natural_key,
    readable_json,
    strict_json,
)


def test_counts_have_a_plural() -> None:
    """Anything but one is plural, and thousands are separated."""
    assert [counted(number, "shard") for number in (0, 1, 2000)] == ["0 shards", "1 shard", "2,000 shards"]


def test_natural_order() -> None:
    """Numbers inside names are compared as numbers, whatever their length, and equal numbers by the name itself."""
    huge = "a.1" + "0" * 5000  # more digits than int() takes
    names = ["b0", "b", huge, "a.10.b", "a.2.c", "a.2.b", "a.1", "a.01", "a"]
    assert ["a", "a.01", "a.1", "a.2.b", "a.2.c", "a.10.b", huge, "b", "b0"] == sorted(names, key=natural_key)


@settings(deadline=None)
@given(names=st.lists(st.text(alphabet="a.01٣x9é", max_size=6), unique=True))
def test_natural_order_is_total(names: list[str]) -> None:
    """Any names have one order, whatever order they come in."""
    assert sorted(names, key=natural_key) == sorted(sorted(names), key=natural_key)


# Writing.


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.dictionaries(st.text("ab"), st.integers()))
)
def test_pieces_are_the_document(members: dict[str, dict[str, int]]) -> None:
    """A document with lazy parts has the same bytes as the same document in memory, compact and readable."""
    lazy = {"a": [LazyObject(members.items)], "b": LazyList(members.values), "c": {"d": LazyObject(dict)}}
    whole = {"a": [members], "b": list(members.values()), "c": {"d": {}}}
    assert "".join(compact_pieces({key: lazy[key] for key in "ac"})) == compact_json({key: whole[key] for key in "ac"})
    assert readable_json(lazy) == readable_json(whole)


def test_a_lazy_object_of_many_members() -> None:
    """Members are encoded in batches, which does not show; they are made again each time."""
    lazy = LazyObject(lambda: ((str(number), number) for number in range(2 * BATCH + 1)))
    expected = compact_json({str(number): number for number in range(2 * BATCH + 1)})
    assert ["".join(compact_pieces(lazy)) for _ in range(2)] == [expected, expected]


def test_chunks_are_long_and_lose_nothing() -> None:
    """Pieces are joined into chunks of at least ``CHUNK`` characters, the last one apart."""
    pieces = ["é" * 1000] * 150
    chunks = list(in_chunks(pieces))
    assert b"".join(chunks).decode() == "".join(pieces)
    assert all(len(chunk.decode()) >= CHUNK for chunk in chunks[:-1])


def test_readable_json_is_indented_down_to_small_objects() -> None:
    """Lists without objects, and objects of at most 8 keys that hold none, are on one line."""
    value = {"a": [1, 2], "b": {"x": 1}, "c": [{"y": "é"}], "d": {str(number): number for number in range(9)}}
    assert readable_json(value).decode().splitlines() == [
        "{",
        '  "a": [1, 2],',
        '  "b": {"x": 1},',
        '  "c": [',
        '    {"y": "é"}',
        "  ],",
        '  "d": {',
        *(f'    "{number}": {number},' for number in range(8)),
        '    "8": 8',
        "  }",
        "}",
    ]


@pytest.mark.parametrize("value", [math.nan, {"a": [math.inf]}], ids=repr)
def test_what_json_cannot_represent_is_not_written(value: object) -> None:
    """NaN and infinity are no JSON."""
    for write in (readable_json, compact_json):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write(value)


def test_what_is_nested_too_deeply_is_not_written() -> None:
    """A document that could not be read back is refused before it is written."""
    value: list[object] = []
    for _ in range(300):
        value = [value]
    with pytest.raises(ValueError, match="nested too deeply"):
        readable_json(value)


# Reading.

REFUSED = {
    "a key twice": (b'{"a": 1, "\\u0061": 2}', 'duplicate key "a"'),
    "NaN": (b"NaN", "NaN is not JSON"),
    "infinity": (b"-Infinity", "-Infinity is not JSON"),
    "a large float": (b"1e999", "1e999 is larger than any number"),
    "a long integer": (b"1" * 21, "number with 21 digits"),
    "a byte-order mark": ("\ufeff{}".encode(), "starts with a byte-order mark"),
    "bad UTF-8": (b'"\xff"', "not UTF-8 at byte 1"),
    "trailing text": (b"{} {}", "Extra data at character 3"),
    "nesting": (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize(("data", "says"), REFUSED.values(), ids=REFUSED)
def test_what_readers_could_take_for_different_things_is_refused(data: bytes, says: str) -> None:
    """Each rule of strict JSON is told by its own message."""
    with pytest.raises(ValueError, match=says):
        strict_json(data)


@given(st.recursive(st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.text("aé\n"), st.lists))
def test_other_json_is_read(value: object) -> None:
    """What follows the rules has the value that any reader gives it."""
    assert strict_json(json.dumps(value).encode()) == value


def test_minus_zero_is_no_integer() -> None:
    """``-0`` is read as a float, which no size is: other readers refuse it as one."""
    assert type(strict_json(b"-0")) is float


BIG: dict[str, tuple[bytes, str]] = {
    "lists": (b"[" + b"[]," * 500_000 + b"0]", "more than 440,000 lists"),
    "not ASCII": ("🙂".encode() + b" " * MOST_FOREIGN, "not all of them ASCII"),
    "commas": (b"[" + b"0," * 2_000_000 + b"0]", "1,100,000 commas"),
}


@pytest.mark.parametrize(("data", "says"), BIG.values(), ids=BIG)
def test_documents_that_would_fill_the_memory(data: bytes, says: str) -> None:
    """A document that would take many times its size in memory is refused before it is parsed."""
    with pytest.raises(ValueError, match=says):
        strict_json(data)
