"""Tests of the plan: shards, counts, and an identity that follows everything that decides the result."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize

from deltaweights.checkpoint.tensors import TensorSpec
from deltaweights.merge.plan import Companion, InputFileRecord, InputRecord, PlanOptions, Shard, fates, make_plan
from deltaweights.merge.rules import Dropped, match_tensors
from deltaweights.util.text import compact_pieces, natural_key
from tests.support.headers import HEAD, Shapes, base_of, delta_of, llama
from tests.support.merging import PROJECTOR
from tests.support.pairs import Tensors, base_tensors, delta_tensors, save
from tests.support.prepared import prepare_merge


def record(shapes: Shapes) -> InputRecord:
    specs = tuple(TensorSpec(name, "F16", shape) for name, shape in shapes.items())
    return InputRecord("torch", (), specs, ("blake3:0",) * len(specs), ())


def plan_of(shapes: Shapes, options: PlanOptions | None = None) -> tuple[Shard, ...]:
    matching = match_tensors(base_of(shapes), delta_of(shapes))
    return make_plan(matching, options or PlanOptions(), {"base": record(shapes), "delta": record(shapes)}, []).shards


@settings(deadline=None)
@given(
    shapes=st.dictionaries(
        st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=4),
        st.lists(st.integers(0, 3), max_size=3).map(tuple),
        min_size=1,
        max_size=5,
    ),
    limit=st.integers(1, 60),
    dtype=st.sampled_from(["F16", "F32"]),
)
def test_shards_are_safetensors_files(shapes: Shapes, limit: int, dtype: str) -> None:
    """The safetensors library reads every shard as planned: names in order, dtype, shape, each tensor at its offset."""
    shards = plan_of(shapes, PlanOptions("F16", dtype, limit))
    assert sorted(shapes, key=natural_key) == [t.spec.name for shard in shards for t in shard.tensors]
    for number, shard in enumerate(shards, start=1):
        header = shard.frame.bytes_before(0, ())
        content = header + os.urandom(shard.nbytes)
        items = dict(deserialize(content))  # type: ignore[no-untyped-call]
        assert {t.spec.name for t in shard.tensors} == items.keys()
        assert len(header) % 8 == 0
        assert len(content) == shard.size
        for tensor in shard.tensors:
            item = items[tensor.spec.name]
            assert (dtype, list(shapes[tensor.spec.name])) == (item["dtype"], item["shape"])
            assert content[tensor.offset : tensor.offset + tensor.spec.nbytes] == bytes(item["data"])
        total = len(shards)
        name = "model.safetensors" if total == 1 else f"model-{number:05d}-of-{total:05d}.safetensors"
        assert name == shard.file


def test_plan_counts_fates() -> None:
    """The plan counts every fate, the dropped of both inputs together."""
    base = base_of(llama())
    delta = delta_of(llama(32004) | {PROJECTOR: (4096, 1024)})
    matching = match_tensors(base, delta)
    dropped_base, dropped_primary = (
        replace(record({}), dropped=items) for items in (matching.dropped_base, matching.dropped_primary)
    )
    plan = make_plan(matching, PlanOptions(), {"base": dropped_base, "delta": dropped_primary}, [])
    assert fates(plan) == {"add": 3, "add_block": 2, "copy": 1, "dropped": 4}
    assert sum(shard.nbytes for shard in plan.shards) == plan.nbytes


def test_companions_are_sorted() -> None:
    """The order in which companions are found does not change the plan."""
    matching = match_tensors(base_of({"w": (1,)}), delta_of({"w": (1,)}))
    companions = [Companion(name, 1, "00") for name in "cab"]
    plans = {
        make_plan(matching, PlanOptions(), {"base": record({}), "delta": record({})}, order).identity
        for order in (companions, companions[::-1])
    }
    assert len(plans) == 1


W = TensorSpec("w", "F16", (1,))

RECORD = InputRecord("torch", (InputFileRecord("x.bin", 9, "blake3:0", ("header",)),), (W,), ("blake3:0",), ())

RECORDS = {
    "container": replace(RECORD, container="safetensors"),
    "file-name": replace(RECORD, files=(InputFileRecord("y.bin", 9, "blake3:0", ("header",)),)),
    "file-size": replace(RECORD, files=(InputFileRecord("x.bin", 8, "blake3:0", ("header",)),)),
    "header-digest": replace(RECORD, files=(InputFileRecord("x.bin", 9, "blake3:1", ("header",)),)),
    "one-more-file": replace(RECORD, files=(*RECORD.files, InputFileRecord("y.bin", 9, "blake3:0", ("header",)))),
    "dtype": replace(RECORD, tensors=(TensorSpec("w", "F32", (1,)),)),
    "shape": replace(RECORD, tensors=(TensorSpec("w", "F16", (1, 1)),)),
    "sample": replace(RECORD, samples=("blake3:1",)),
    "dropped": replace(RECORD, dropped=(Dropped(W, "buffer"),)),
}


@pytest.mark.parametrize("other", RECORDS.values(), ids=RECORDS)
def test_plan_identity_follows_every_field(other: InputRecord) -> None:
    """Each single field of what is recorded of an input changes the identity, on the base's side and on the delta's."""
    matching = match_tensors(base_of({"w": (1,)}), delta_of({"w": (1,)}))
    sides = [(RECORD, RECORD), (other, RECORD), (RECORD, other)]
    assert (
        len({make_plan(matching, PlanOptions(), {"base": side[0], "delta": side[1]}, []).identity for side in sides})
        == 3
    )


@dataclass
class Inputs:
    """A tiny pair on the disk, and what it is made of."""

    folder: Path
    base: Tensors
    delta: Tensors

    def identity(self, **options: Any) -> str:
        """Return the identity of the plan for the pair on the disk."""
        base, delta, out = (self.folder / name for name in ("base", "delta", "out"))
        with prepare_merge(base, delta, out, allow_unproved_base=True, **options) as job:
            return job.plan.identity

    def write(self) -> None:
        """Put the tensors as they are now on the disk."""
        save(self.base, self.folder / "base", "safetensors", 1)
        save(self.delta, self.folder / "delta", "safetensors", 2)


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    base = base_tensors(layers=1, vocabulary=8, hidden=8)
    made = Inputs(tmp_path / "pair", base, delta_tensors(base))
    made.write()
    return made


def change_one_bit(tensors: Tensors, name: str, place: int) -> None:
    tensors[name].view(torch.uint8).reshape(-1)[place] ^= 1


def change_base_bit(inputs: Inputs) -> None:
    change_one_bit(inputs.base, HEAD, -1)
    inputs.write()


def change_delta_bit(inputs: Inputs) -> None:
    change_one_bit(inputs.delta, "model.norm.weight", 3)
    inputs.write()


def change_companion(inputs: Inputs) -> None:
    (inputs.folder / "delta" / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizeR"}')


def add_companion(inputs: Inputs) -> None:
    (inputs.folder / "delta" / "LICENSE").write_text("words")


def change_base_dtype(inputs: Inputs) -> None:
    inputs.base["model.norm.weight"] = inputs.base["model.norm.weight"].float()
    inputs.write()


def change_dropped(inputs: Inputs) -> None:
    del inputs.base["model.layers.0.self_attn.rotary_emb.inv_freq"]
    inputs.write()


def change_base_sharding(inputs: Inputs) -> None:
    (inputs.folder / "base" / "model.safetensors").unlink()
    save(inputs.base, inputs.folder / "base", "safetensors", 2)


def change_base_container(inputs: Inputs) -> None:
    (inputs.folder / "base" / "model.safetensors").unlink()
    save(inputs.base, inputs.folder / "base", "torch", 1)


CHANGES: list[Callable[[Inputs], None]] = [
    change_base_bit,
    change_delta_bit,
    change_companion,
    add_companion,
    change_base_dtype,
    change_dropped,
    change_base_sharding,
    change_base_container,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_plan_identity_follows_the_inputs(inputs: Inputs, change: Callable[[Inputs], None]) -> None:
    """The plan has another identity when a bit of an input, a companion, a dtype or the layout of the files changes."""
    before = inputs.identity()
    change(inputs)
    assert before != inputs.identity()


@pytest.mark.parametrize(
    "options",
    [{"compute_dtype": "float32"}, {"dtype": "float32"}, {"max_shard_size": "1000B"}, {"max_shard_size": "4999999999"}],
    ids=str,
)
def test_plan_identity_follows_the_options(inputs: Inputs, options: dict[str, str]) -> None:
    """The plan has another identity when any option that belongs to it changes, even where the shards stay the same."""
    assert inputs.identity() != inputs.identity(**options)


def test_plan_identity_ignores_place_and_time(inputs: Inputs, tmp_path: Path) -> None:
    """The plan keeps its identity when the inputs are moved, touched, opened by another path, or hold files that are not copied."""
    before = inputs.identity()
    for path in inputs.folder.rglob("*"):
        os.utime(path, (1, 1))
    (inputs.folder / "delta" / "training_log.txt").write_text("words")
    assert before == inputs.identity()
    inputs.folder = inputs.folder.rename(tmp_path / "elsewhere")
    assert before == inputs.identity()
    start = inputs.folder / "delta" / "model.safetensors.index.json"
    with prepare_merge(inputs.folder / "base" / "model.safetensors", start, tmp_path / "other") as job:
        assert before == job.plan.identity
        assert str(tmp_path) not in "".join(compact_pieces(job.plan.document))


def test_plan_identity_spells_equal_options_equally(inputs: Inputs) -> None:
    """Options that ask for the same have one identity, however they are written."""
    assert inputs.identity() == inputs.identity(dtype="float16", max_shard_size="5000MB")
