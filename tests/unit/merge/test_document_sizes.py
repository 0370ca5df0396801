"""Tests of the bounds of documents: no document exceeds its bound."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deltaweights.errors import MalformedInput
from deltaweights.jobs.apply import apply_delta
from deltaweights.jobs.convert import convert_checkpoint, convert_request
from deltaweights.jobs.prepare import prepare
from deltaweights.manifest.records import FileRecord, Fragment, TensorRecord
from deltaweights.manifest.tally import Proof, Tally
from deltaweights.merge import document_sizes
from deltaweights.merge.plan import Plan
from deltaweights.report import Report
from deltaweights.util import limits
from deltaweights.util.limits import Limit
from tests.support.pairs import Tensors, save
from tests.support.prepared import prepare_merge

NAMES = ("w", "слой.{}", 'a"\\{,[', "x" * 300, "😀.weight")


def faulty(shape: tuple[int, ...], order: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a base and a delta with every finding: NaNs in both, an overflow, violations of the base proof."""
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
    with prepare_merge(base, delta, base.parent / "none", max_shard_size=limit, allow_unproved_base=True) as job:
        return job.plan


@pytest.mark.parametrize("shards", [1, 3])
def test_the_rough_bound_is_above_the_bound(tmp_path: Path, shards: int) -> None:
    """In every sign that is limited, of manifest, fragments and headers; names with such signs have no rough bound."""
    names = [f"model.layers.{number}.w{'x' * (number * 7 % 40)}" for number in range(20)]
    plan = plan_of(*pair_of(names, tmp_path, shards), 4000)
    rough = document_sizes._rough(plan)
    assert rough is not None
    pairs = [(rough.manifest, document_sizes._manifest(plan))]
    for shard in plan.shards:
        pairs += [(rough.fragment, document_sizes._fragment(shard))]
        exact = document_sizes.DocumentSize(0, 0)
        for tensor in shard.tensors:
            exact.add(tensor.spec.name, 0, commas=max(len(tensor.spec.shape), 1) + 3, objects=1, lists=2)
        pairs += [(rough.header(shard), exact)]
    for above, below in pairs:
        for sign in ("bytes", "objects", "lists", "commas"):
            assert getattr(above, sign) >= getattr(below, sign), sign
    strange = plan_of(*pair_of(["a,b", "c"], tmp_path / "strange", 1), 4000)
    assert document_sizes._rough(strange) is None


@pytest.mark.parametrize("shards", [1, 3])
def test_no_manifest_passes_its_bound(tmp_path: Path, shards: int) -> None:
    """A manifest with every finding is below its bound, and not far below it."""
    base, delta = pair_of([f"{number}.{kind}" for kind in NAMES for number in range(120)], tmp_path, shards)
    apply_delta(
        base, delta, tmp_path / "merged", max_shard_size=100_000 if shards > 1 else 10**9, allow_unproved_base=True
    )
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
    """A tensor's record in a fragment, with every field, is below its bound."""
    most = 2**53
    tally = Tally(most, most, most, most, most, Proof(most, most, most, most), -1.2345678901234567e-300)
    digest = f"blake3:{'0' * 64}"
    record = TensorRecord('a"\\{,[😀', digest, digest, digest, tally, ("result", "base", "lead"))
    empty, one, two = (
        "".join(Fragment("plan1:x", "x", FileRecord(1, "y"), (record,) * count).pieces()) for count in range(3)
    )
    size = document_sizes.DocumentSize(0, 0)
    size.add(record.name, document_sizes.FRAGMENT_ROW, commas=18, objects=1, lists=2)
    assert len(two.encode()) - len(one.encode()) <= size.bytes
    for sign, count in ((",", size.commas), ("{", size.objects), ("[", size.lists)):
        assert two.count(sign) - one.count(sign) <= count
    assert len(empty) < document_sizes.REST


SMALL = Limit(2000, 30, 60, 300)


@pytest.mark.parametrize("which", ["MANIFEST", "FRAGMENT", "HEADER", "INDEX"])
def test_each_limit_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """If any document would exceed its limit, the run is refused before it starts, and the error names the document."""
    base, delta = pair_of([f"{number}.w" for number in range(40)], tmp_path, 1)
    monkeypatch.setattr(document_sizes, which, SMALL)
    says = {"MANIFEST": "manifest.json", "FRAGMENT": "the record of", "HEADER": "the header of", "INDEX": "index.json"}
    with pytest.raises(MalformedInput) as caught:
        plan_of(base, delta, limit=10_000 if which == "INDEX" else 10**9)
    assert says[which] in caught.value.problem


def test_what_is_as_large_as_it_may_be_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound of a header is exact in bytes, objects, lists and commas."""
    base, delta = pair_of([f"{number}.w" for number in range(40)], tmp_path, 1)
    (shard,) = plan_of(base, delta, limit=10**9).shards
    header = shard.frame.bytes_before(0, ())[8:]
    exact = Limit(len(header), header.count(b"{"), header.count(b"["), header.count(b","))
    monkeypatch.setattr(document_sizes, "HEADER", exact)
    assert document_sizes._header_is_readable(shard)
    for smaller in ("size", "objects", "lists", "commas"):
        monkeypatch.setattr(document_sizes, "HEADER", replace(exact, **{smaller: getattr(exact, smaller) - 1}))
        assert not document_sizes._header_is_readable(shard), smaller


def test_limits_fit_each_other() -> None:
    """The limits of a manifest allow three times the tensors that a checkpoint may have, and all findings."""
    assert limits.MANIFEST.objects > 4 * limits.MOST_TENSORS
    assert limits.MOST_STEPS > 11 * limits.MOST_TENSORS
    assert limits.HEADER.objects > limits.MOST_TENSORS


def test_copied_tensors_have_up_to_three_findings(tmp_path: Path) -> None:
    """A copied tensor may be NaN in its source, infinite in the result, and overflow, all of it recorded by name."""
    names = [f"{number}.weight" for number in range(300)]
    source = save({name: torch.tensor([math.nan, 1e6]) for name in names}, tmp_path / "source", "safetensors", 1)
    convert_checkpoint(source, tmp_path / "out", dtype="float16")
    data = (tmp_path / "out" / "manifest.json").read_bytes()
    found = json.loads(data)["result"]
    assert [len(found[key]) for key in ("nonfinite", "nonfinite_lead", "overflow")] == [300] * 3
    with prepare(convert_request(source, tmp_path / "none", dtype="float16"), Report()) as prepared:
        bound = document_sizes._manifest(prepared.plan)
    assert data.count(b",") <= bound.commas
    assert len(data) < bound.bytes
