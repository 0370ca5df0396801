"""Documents that are read member by member."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltaweights.util.json_reader import JsonReader
from deltaweights.util.limits import MANIFEST, MOST_VALUE, Limit
from deltaweights.util.text import strict_json


def tree(reader: JsonReader, levels: int) -> object:
    """Read a value the way that manifests are read: member by member as far as ``levels`` go."""
    reader._skip_space()
    sign = reader._text[reader._position : reader._position + 1]
    if levels and sign == "{":
        return {key: tree(reader, levels - 1) for key in reader.members()}
    if levels and sign == "[":
        return [tree(reader, levels - 1) for _ in reader.items()]
    return reader.value()


def chunks_of(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
)


@pytest.mark.slow
@given(JSON, st.integers(1, 40), st.integers(0, 4), st.sampled_from([None, 2]), st.booleans())
def test_reads_what_strict_json_reads(
    value: object, size: int, levels: int, indent: int | None, ascii_only: bool
) -> None:
    """However a document is written and cut into chunks, reading by member gives what reading at once gives."""
    data = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()
    reader = JsonReader(chunks_of(data, size), MANIFEST)
    assert tree(reader, levels) == strict_json(data)
    reader.end()
    reader = JsonReader(chunks_of(data, size), MANIFEST)
    reader.skip()
    reader.end()


BAD = {
    "a key twice": b'{"a": 1, "\\u0061": 2}',
    "NaN": b'{"a": NaN}',
    "infinity": b'{"a": 1e999}',
    "a long number": b'{"a": 123456789012345678901234}',
    "a byte-order mark": "\ufeff{}".encode(),
    "not UTF-8": b'{"a": "\xff"}',
    "cut in a character": b'{"a": "\xc3',
    "cut": b'{"a": [1, 2',
    "cut behind a key": b'{"a"',
    "no colon": b'{"a" 1}',
    "a comma too many": b'{"a": 1,}',
    "a comma too few": b'{"a": 1 "b": 2}',
    "a bare key": b"{a: 1}",
    "another end": b'{"a": 1]',
    "more behind it": b"{} {}",
    "nothing": b"",
    "a control character": b'{"a\n": 1}',
    "deep": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
@pytest.mark.parametrize("how", ["skip", "tree"])
def test_refuses_what_strict_json_refuses(data: bytes, how: str) -> None:
    """Malformed JSON is refused, also in parts that are skipped."""
    with pytest.raises(ValueError):  # noqa: PT011  (each has a message of its own)
        strict_json(data)

    def read() -> None:
        reader = JsonReader(chunks_of(data, 3), MANIFEST)
        reader.skip() if how == "skip" else tree(reader, 2)
        reader.end()

    with pytest.raises(ValueError):  # noqa: PT011
        read()


FULL = {
    "bytes": (b'{"a": "' + b"x" * 3000 + b'"}', "more than 2,000 bytes"),
    "objects": (b"[" + b"{}," * 40 + b"0]", "more than 30 objects"),
    "lists": (b"[" + b"[]," * 70 + b"0]", "60 lists"),
    "commas": (b"[" + b"0," * 400 + b"0]", "300 commas"),
}


@pytest.mark.parametrize(("data", "says"), FULL.values(), ids=FULL)
def test_refuses_more_than_its_limit(data: bytes, says: str) -> None:
    """Bytes, objects, lists and commas are limited before anything is parsed."""
    with pytest.raises(ValueError, match=says):
        JsonReader(data, Limit(2000, 30, 60, 300)).skip()


def test_refuses_values_and_counts_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value may be as long as ``MOST_VALUE`` and no longer, wherever the chunks end; members and items are counted."""
    for size in (1000, MOST_VALUE, 10**7):
        fits = b'["' + b"x" * (MOST_VALUE - 2) + b'", 1]'
        assert tree(JsonReader(chunks_of(fits, size), MANIFEST), 1) == ["x" * (MOST_VALUE - 2), 1]
        with pytest.raises(ValueError, match="a value of more than 131,072 characters at character 1"):
            tree(JsonReader(chunks_of(b'["' + b"x" * (MOST_VALUE - 1) + b'", 1]', size), MANIFEST), 1)
    reader = JsonReader(b'{"a":1,"b":1,"c":1,"d":1}', MANIFEST)
    with pytest.raises(ValueError, match="more than 3 members in one object"):
        tuple(reader.value() for _ in reader.members(3))
    reader = JsonReader(b"[1,1,1,1]", MANIFEST)
    with pytest.raises(ValueError, match="more than 3 items in one list"):
        tuple(reader.value() for _ in reader.items(3))
    names = json.dumps({f"{number}{'x' * 10_000}": 1 for number in range(20)}).encode()
    monkeypatch.setattr("deltaweights.util.json_reader.MOST_NAMES", 100_000)
    with pytest.raises(ValueError, match="names that take more than 100,000 bytes"):
        JsonReader(names, MANIFEST).skip()
    monkeypatch.setattr("deltaweights.util.json_reader.MOST_STEPS", 5)
    with pytest.raises(ValueError, match="more than 5 members and items"):
        JsonReader(names, MANIFEST).skip()
