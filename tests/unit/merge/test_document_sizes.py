"""Tests of what documents may hold: bounds that no document passes, and readers that take what is written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltaweights.errors import MalformedInput
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.prepare import prepare
from deltaweights.jobs.request import Wanted
from deltaweights.manifest.records import FileRecord, Fragment, TensorRecord
from deltaweights.manifest.tally import Proof, Tally
from deltaweights.merge import document_sizes
from deltaweights.merge.operation import Operation
from deltaweights.merge.plan import Plan
from deltaweights.util import limits
from deltaweights.util.json_reader import JsonReader
from deltaweights.util.limits import MANIFEST, MOST_VALUE, Limit
from deltaweights.util.text import LazyList, LazyObject, compact_json, compact_pieces, readable_json, strict_json
from tests.support.pairs import Tensors, save

NAMES = ("w", "слой.{}", 'a"\\{,[', "x" * 300, "😀.weight")


def faulty(shape: tuple[int, ...], order: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a base and a delta in which everything is found: NaNs in both, an overflow, violations of the base."""
    base, delta = (torch.empty(shape).normal_(0, 1, generator=order).half() for _ in range(2))
    if base.numel() > 4:
        base.view(-1)[0] = delta.view(-1)[1] = math.nan
        base.view(-1)[2] = delta.view(-1)[2] = 60000
    return base, delta


def pair_of(names: list[str], folder: Path, shards: int) -> tuple[Path, Path]:
    order = torch.Generator().manual_seed(0)
    base: Tensors = {}
    delta: Tensors = {}
    for number, name in enumerate(names):
        shape = ((1500,), (30, 60), (2, 3, 4, 5))[number % 3]
        base[name], delta[name] = faulty(shape, order)
        if number % 5 == 0:
            base[name], delta[name] = torch.ones(shape).half(), torch.zeros(shape).half()
    for number in range(3):
        base[f"model.layers.{number}.self_attn.rotary_emb.inv_freq"] = torch.ones(64)
    return save(base, folder / "base", "safetensors", shards), save(delta, folder / "delta", "safetensors", shards)


def plan_of(base: Path, delta: Path, limit: int) -> Plan:
    with prepare(Operation.APPLY, base, delta, base.parent / "none", Wanted(max_shard_size=limit), check=True) as job:
        return job.plan


@pytest.mark.parametrize("shards", [1, 3])
def test_no_manifest_passes_its_bound(tmp_path: Path, shards: int) -> None:
    """A manifest that tells of everything that can be found holds no more than was computed from the plan, nor much less."""
    base, delta = pair_of([f"{number}.{kind}" for kind in NAMES for number in range(120)], tmp_path, shards)
    apply_delta(base, delta, tmp_path / "merged", max_shard_size=100_000 if shards > 1 else 10**9)
    data = (tmp_path / "merged" / "manifest.json").read_bytes()
    found = json.loads(data)["result"]
    assert all(len(found[key]) > 200 for key in ("nonfinite", "nonfinite_base", "nonfinite_lead", "overflow"))
    assert len(found["proof"]["tensors"]) > 200
    assert found["uniform"]
    bound = document_sizes._manifest(plan_of(base, delta, limit=100_000 if shards > 1 else 10**9))
    bound.bytes -= document_sizes.REST
    assert len(data) < bound.bytes + document_sizes.REST
    assert bound.bytes < 1.35 * len(data)
    for sign, count in ((b",", bound.commas), (b"{", bound.objects), (b"[", bound.lists)):
        assert data.count(sign) <= count


def test_no_fragment_passes_its_bound() -> None:
    """Nor does a tensor's record in a fragment that has every field."""
    most = 2**53
    tally = Tally(most, most, most, most, most, Proof(most, most, most, most), -1.2345678901234567e-300)
    digest = f"blake3:{'0' * 64}"
    record = TensorRecord('a"\\{,[😀', digest, digest, digest, tally, ("result", "base", "lead"))
    empty, one, two = (
        "".join(Fragment("plan1:x", "x", FileRecord(1, "y"), (record,) * count).pieces()) for count in range(3)
    )
    size = document_sizes.Size(0, 0)
    size.add(record.name, document_sizes.FRAGMENT_ROW, commas=18, objects=1, lists=2)
    assert len(two.encode()) - len(one.encode()) <= size.bytes
    for sign, count in ((",", size.commas), ("{", size.objects), ("[", size.lists)):
        assert two.count(sign) - one.count(sign) <= count
    assert len(empty) < document_sizes.REST


SMALL = Limit(2000, 30, 60, 300)


@pytest.mark.parametrize("which", ["MANIFEST", "FRAGMENT", "HEADER", "INDEX"])
def test_each_limit_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """Whichever document would hold too much, nothing is begun, and the line says which one."""
    base, delta = pair_of([f"{number}.w" for number in range(40)], tmp_path, 1)
    monkeypatch.setattr(document_sizes, which, SMALL)
    says = {"MANIFEST": "manifest.json", "FRAGMENT": "the record of", "HEADER": "the header of", "INDEX": "index.json"}
    with pytest.raises(MalformedInput, match=f"{says[which]}.*could not be read back: found .* tensors with names of"):
        plan_of(base, delta, limit=10_000 if which == "INDEX" else 10**9)


def test_what_is_as_large_as_it_may_be_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header is held against its limit to the byte and the sign."""
    base, delta = pair_of([f"{number}.w" for number in range(40)], tmp_path, 1)
    (shard,) = plan_of(base, delta, limit=10**9).shards
    header = shard.frame.between(0, ())[8:]
    exact = Limit(len(header), header.count(b"{"), header.count(b"["), header.count(b","))
    monkeypatch.setattr(document_sizes, "HEADER", exact)
    assert document_sizes._header_is_read(shard)
    for smaller in ("size", "objects", "lists", "commas"):
        monkeypatch.setattr(document_sizes, "HEADER", replace(exact, **{smaller: getattr(exact, smaller) - 1}))
        assert not document_sizes._header_is_read(shard), smaller


# Reading.


def tree(reader: JsonReader, levels: int) -> object:
    """Read a value the way that manifests are read: member by member as far as ``levels`` go."""
    reader._skip_space()
    sign = reader._text[reader._at : reader._at + 1]
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


@given(JSON, st.integers(1, 40), st.integers(0, 4), st.sampled_from([None, 2]), st.booleans())
def test_reads_what_strict_json_reads(
    value: object, size: int, levels: int, indent: int | None, ascii_only: bool
) -> None:
    """However a document is written and cut, what is read member by member is what is read at once; the same is refused."""
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
    """Whatever breaks the rules is refused also where nobody asks what it says."""
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
    """What a document may hold is counted before it is parsed."""
    with pytest.raises(ValueError, match=says):
        JsonReader(data, SMALL).skip()


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


# Writing.


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.dictionaries(st.text("ab"), st.integers()))
)
def test_pieces_are_the_document(members: dict[str, dict[str, int]]) -> None:
    """What is made while it is written has the bytes of what is written at once, compact and readable."""
    lazy = {"a": [LazyObject(members.items)], "b": LazyList(members.values), "c": {"d": LazyObject(dict)}}
    whole = {"a": [members], "b": list(members.values()), "c": {"d": {}}}
    assert "".join(compact_pieces({key: lazy[key] for key in "ac"})) == compact_json({key: whole[key] for key in "ac"})
    assert readable_json(lazy) == readable_json(whole)


def test_limits_fit_each_other() -> None:
    """A manifest may hold every tensor that a checkpoint may have, thrice, and whatever is found in it."""
    assert limits.MANIFEST.objects > 4 * limits.MOST_TENSORS
    assert limits.MOST_STEPS > 11 * limits.MOST_TENSORS
    assert limits.HEADER.objects > limits.MOST_TENSORS
