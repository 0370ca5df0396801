"""What is decided before a byte of weights is read: how tensors meet, the plan, and the blocks.

Rules and plan are values in, values out, so no test here needs a checkpoint but those of the plan's identity.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize

from deltaweights.checkpoint.tensors import ITEM_SIZES, LazyTensor, Storage, TensorSpec
from deltaweights.errors import Mismatch
from deltaweights.jobs.prepare import prepare
from deltaweights.jobs.request import Wanted
from deltaweights.merge.blocks import base_part, blocks_of
from deltaweights.merge.operation import Fate, Operation
from deltaweights.merge.plan import (
    Companion,
    InputFileRecord,
    InputRecord,
    Options,
    PlannedTensor,
    Shard,
    fates,
    make_plan,
)
from deltaweights.merge.rules import FLOATS, Dropped, Match, Matching, match_tensors
from deltaweights.merge.shards import safetensors_header, shard_cuts
from deltaweights.util.text import compact_pieces, natural_key
from tests.support.pairs import Tensors, base_tensors, delta_tensors, save

SETTINGS = settings(deadline=None)

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PROJECTOR, PROJECTOR_BIAS = "model.mm_projector.weight", "model.mm_projector.bias"


@dataclass(frozen=True)
class NoBytes:
    """Stands where a tensor's bytes would come from; whoever reads it has broken the promise of the rules."""

    def read_into(self, out: memoryview, start: int) -> None:
        """Fail."""
        raise AssertionError(f"rules and plan read no weights, but {len(out)} bytes from {start} were asked for")


Shapes = dict[str, tuple[int, ...]]


def stored(key: str) -> Storage:
    """Return the storage named ``key``; that it has no strides is nothing to the rules."""
    return Storage("x.bin", key, 0, ())


def checkpoint(
    file: str, shapes: Shapes, dtype: str = "F16", storages: dict[str, str] | None = None
) -> dict[str, LazyTensor]:
    """Return a checkpoint of one file; ``storages`` names the storage of tensors that do not have one of their own."""
    return {
        name: LazyTensor(
            TensorSpec(name, dtype, shape), NoBytes(), Path(file), stored((storages or {}).get(name, name))
        )
        for name, shape in shapes.items()
    }


def base_of(shapes: Shapes, dtype: str = "F16", storages: dict[str, str] | None = None) -> dict[str, LazyTensor]:
    return checkpoint("base.bin", shapes, dtype, storages)


def delta_of(shapes: Shapes, dtype: str = "F16") -> dict[str, LazyTensor]:
    return checkpoint("delta.bin", shapes, dtype)


def llama(rows: int = 32000, hidden: int = 4096, layers: int = 2) -> Shapes:
    """Return names and shapes of a LLaMA; those of its layers stand for all others."""
    shapes: Shapes = {EMBEDDING: (rows, hidden), "model.norm.weight": (hidden,), HEAD: (rows, hidden)}
    for layer in range(layers):
        shapes[f"model.layers.{layer}.self_attn.q_proj.weight"] = (hidden, hidden)
        shapes[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = (64,)
    return shapes


def fate_of(matching: Matching, name: str) -> Fate:
    return next(found.fate for found in matching.matches if found.primary.name == name)


# Fates.


def test_fates_of_a_llava_med_pair() -> None:
    """Each tensor of a pair with the published shapes meets as in the original script: added, into a block, copied, dropped."""
    base = base_of(llama())
    delta = delta_of(llama(32004) | {PROJECTOR: (4096, 1024), PROJECTOR_BIAS: (4096,)})
    buffers = [f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in (0, 1)]
    matching = match_tensors(base, delta)
    assert {found.primary.name: found.fate for found in matching.matches} == {
        EMBEDDING: Fate.ADD_BLOCK,
        HEAD: Fate.ADD_BLOCK,
        "model.norm.weight": Fate.ADD,
        "model.layers.0.self_attn.q_proj.weight": Fate.ADD,
        "model.layers.1.self_attn.q_proj.weight": Fate.ADD,
        PROJECTOR: Fate.COPY,
        PROJECTOR_BIAS: Fate.COPY,
    }
    assert tuple(Dropped(base[name].spec, "buffer") for name in buffers) == matching.dropped_base
    assert tuple(Dropped(delta[name].spec, "buffer") for name in buffers) == matching.dropped_primary
    assert matching.warnings == ()
    for found in matching.matches:
        assert found.primary is delta[found.primary.name].spec
        assert (None if found.fate is Fate.COPY else base[found.primary.name].spec) is found.base


@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_dtypes_may_differ(dtype: str) -> None:
    """Base and delta may be of two different floating-point dtypes."""
    assert fate_of(match_tensors(base_of({"w": (3,)}, dtype), delta_of({"w": (3,)})), "w") is Fate.ADD


@pytest.mark.parametrize(
    ("base", "delta", "fate"),
    [
        ((5, 4), (5, 4), Fate.ADD),
        ((5, 4), (6, 4), Fate.ADD_BLOCK),
        ((5, 4), (5, 6), Fate.ADD_BLOCK),
        ((5, 4), (6, 6), Fate.ADD_BLOCK),
        ((0, 4), (6, 4), Fate.ADD_BLOCK),
    ],
)
@pytest.mark.parametrize("name", [EMBEDDING, HEAD])
def test_grown(name: str, base: tuple[int, ...], delta: tuple[int, ...], fate: Fate) -> None:
    """A base embedding or head that is larger in no dimension is added into the delta's top-left block."""
    assert fate_of(match_tensors(base_of({name: base}), delta_of({name: delta})), name) is fate


def test_tied_base_tensor_is_dropped() -> None:
    """A base tensor without a delta is dropped, by its twin's name, when it is a second name of a storage that is used."""
    base = base_of({"a.weight": (3, 4), "b.weight": (3, 4)}, storages={"b.weight": "a.weight"})
    matching = match_tensors(base, delta_of({"a.weight": (3, 4)}))
    assert (Dropped(base["b.weight"].spec, "tied to a.weight"),) == matching.dropped_base


@pytest.mark.parametrize(
    ("shape", "storages"),
    [((3, 4), {}), ((4, 3), {"b.weight": "a.weight"}), ((3, 4), {"b.weight": "x.rotary_emb.inv_freq"})],
    ids=["own-storage", "other-shape", "twin-is-dropped"],
)
def test_base_tensor_that_is_not_tied_is_refused(shape: tuple[int, ...], storages: dict[str, str]) -> None:
    """A base tensor without a delta is never dropped when its values are not in the result under another name."""
    shapes = {"a.weight": (3, 4), "b.weight": shape, "x.rotary_emb.inv_freq": (3, 4)}
    with pytest.raises(Mismatch, match=r"b\.weight: is in the base, not in the delta"):
        match_tensors(
            base_of(shapes, storages=storages), delta_of({"a.weight": (3, 4), "x.rotary_emb.inv_freq": (3, 4)})
        )


# Refusals.


def refusal(base: dict[str, LazyTensor], delta: dict[str, LazyTensor]) -> str:
    """Return the message with which a pair is refused."""
    with pytest.raises(Mismatch) as caught:
        match_tensors(base, delta)
    return str(caught.value)


ORIGINAL = "use the original LLaMA-1 of the delta's size as the base"
META: Shapes = {"tok_embeddings.weight": (32000, 4096), "layers.0.attention.wq.weight": (4096, 4096)}
LORA: Shapes = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (8, 4096)}

REFUSALS: dict[str, tuple[dict[str, LazyTensor], dict[str, LazyTensor], tuple[str, ...]]] = {
    "base-of-vicuna": (
        base_of(llama(32001)),
        delta_of(llama(32000)),
        (
            f"base.bin: tensor {EMBEDDING}: shapes do not fit",
            "found [32001, 4096] in the base, expected [32000, 4096], as in the delta",
            "(and 1 more tensor not fitting)",
            "32001 rows: the base is likely Vicuna v0 or Alpaca, which is already fine-tuned",
            ORIGINAL,
        ),
    ),
    "base-of-llava-med": (
        base_of(llama(32004)),
        delta_of(llama(32003)),
        ("32004 rows: the base is likely LLaVA-Med", ORIGINAL),
    ),
    "base-of-llama-3": (base_of(llama(128256)), delta_of(llama(32004)), ("likely LLaMA-3", ORIGINAL)),
    "13b-on-7b": (
        base_of(llama(hidden=4096)),
        delta_of(llama(32004, hidden=5120, layers=3)),
        (
            "tensor model.norm.weight: shapes do not fit: found [4096] in the base, expected [5120]",
            "likely models of two sizes: base 7B (hidden size 4096), delta 13B (hidden size 5120)",
            ORIGINAL,
        ),
    ),
    "unknown-sizes": (
        base_of(llama(hidden=32)),
        delta_of(llama(hidden=16)),
        ("two sizes: base hidden size 32, delta hidden size 16",),
    ),
    "fewer-layers-in-the-base": (
        base_of(llama(layers=2)),
        delta_of(llama(layers=3)),
        (
            "delta.bin: tensor model.layers.2.self_attn.q_proj.weight: is in the delta, not in the base",
            "found no such tensor, expected F16 [4096, 4096]",
            "base has 2 layers, the delta 3",
        ),
    ),
    "fewer-layers-in-the-delta": (
        base_of(llama(layers=3)),
        delta_of(llama(layers=2)),
        (
            "base.bin: tensor model.layers.2.self_attn.q_proj.weight: is in the base, not in the delta",
            "found F16 [4096, 4096], expected no such tensor",
            "base has 3 layers, the delta 2",
        ),
    ),
    "delta-only": (
        base_of(llama()),
        delta_of(llama() | {"model.extra.weight": (7, 9)}),
        ("tensor model.extra.weight: is in the delta, not in the base", "F16 [7, 9]", "likely not a pair", ORIGINAL),
    ),
    "delta-only-nearly-a-projector": (
        base_of(llama()),
        delta_of(llama() | {"model.mm_projector.0.weight": (7, 9)}),
        ("tensor model.mm_projector.0.weight: is in the delta, not in the base",),
    ),
    "base-only": (
        base_of(llama() | {"model.extra.weight": (7, 9)}),
        delta_of(llama()),
        ("base.bin: tensor model.extra.weight: is in the base, not in the delta", "F16 [7, 9]", "likely not a pair"),
    ),
    "base-only-projector": (
        base_of(llama() | {PROJECTOR: (7, 9)}),
        delta_of(llama()),
        (f"tensor {PROJECTOR}: is in the base, not in the delta", "the base is likely already a LLaVA model", ORIGINAL),
    ),
    "base-integers": (
        base_of({"w": (3,)}, "I8"),
        delta_of({"w": (3,)}),
        ("base.bin: tensor w: cannot be added: found dtype I8, expected one of F16 BF16 F32 F64",),
    ),
    "delta-integers": (
        base_of({"w": (3,)}),
        delta_of({"w": (3,)}, "U64"),
        ("delta.bin: tensor w: cannot be added: found dtype U64",),
    ),
    "eight-bit-floats": (base_of({"w": (3,)}, "F8_E4M3"), delta_of({"w": (3,)}), ("found dtype F8_E4M3",)),
    "grown-integers": (
        base_of({EMBEDDING: (3, 2)}, "I8"), delta_of({EMBEDDING: (4, 2)}), ("cannot be added: found dtype I8",)
    ),
    "copied-integers": (
        base_of({"w": (3,)}),
        delta_of({"w": (3,)}) | delta_of({PROJECTOR: (3, 2)}, "I8"),
        (f"delta.bin: tensor {PROJECTOR}: cannot be added: found dtype I8",),
    ),
    "base-larger-in-one-dimension": (
        base_of({EMBEDDING: (3, 5)}),
        delta_of({EMBEDDING: (4, 4)}),
        ("found [3, 5] in the base, expected [4, 4], as in the delta",),
    ),
    "base-larger": (
        base_of({HEAD: (5, 4)}), delta_of({HEAD: (4, 4)}), ("found [5, 4] in the base, expected [4, 4]",)
    ),
    "grown-elsewhere": (
        base_of({"model.norm.weight": (4,)}), delta_of({"model.norm.weight": (5,)}), ("shapes do not fit",)
    ),
    "grown-in-rank": (base_of({HEAD: (4,)}), delta_of({HEAD: (4, 4)}), ("found [4] in the base, expected [4, 4]",)),
    "grown-vector": (base_of({HEAD: (4,)}), delta_of({HEAD: (5,)}), ("found [4] in the base, expected [5]",)),
    "same-count-other-shape": (base_of({"w": (2, 3)}), delta_of({"w": (3, 2)}), ("shapes do not fit",)),
    "meta's-names": (
        base_of(META),
        delta_of(llama()),
        (
            f"tensor {EMBEDDING}: is in the delta, not in the base",
            "Meta's tensor names: give the folder with all its consolidated.*.pth files and params.json",
        ),
    ),
    "without-a-head": (
        base_of({"embed_tokens.weight": (32000, 4096), "layers.0.self_attn.q_proj.weight": (4096, 4096)}),
        delta_of(llama()),
        ("the base was saved without its head (LlamaModel, not LlamaForCausalLM): use the full checkpoint",),
    ),
    "lora": (base_of(llama()), delta_of(LORA), ("the delta holds LoRA adapters", "merge it with peft")),
    "empty-delta": (base_of({"w": (3,)}), {}, ("tensor w: is in the base, not in the delta",)),
    "empty-both": ({}, {}, ("nothing to add: the delta has no weights",)),
    "only-buffers": (
        base_of({"x.rotary_emb.inv_freq": (4,)}), delta_of({"x.rotary_emb.inv_freq": (4,)}), ("nothing to add",)
    ),
    "reserved-name": (
        base_of({"__metadata__": (3,)}),
        delta_of({"__metadata__": (3,)}),
        ("tensor __metadata__: cannot be written: safetensors keeps this name for itself",),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("base", "delta", "parts"), REFUSALS.values(), ids=REFUSALS)
def test_refuses(base: dict[str, LazyTensor], delta: dict[str, LazyTensor], parts: tuple[str, ...]) -> None:
    """A pair that does not fit is refused with the tensor, both shapes, how many more do not fit, and the likely reason."""
    message = refusal(base, delta)
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize(
    ("base", "delta", "warning"),
    [
        (llama(32001), llama(32004), "base has 32001 rows: it is likely Vicuna v0 or Alpaca, not the original LLaMA"),
        (llama() | {PROJECTOR: (4, 4)}, llama() | {PROJECTOR: (4, 4)}, "it is likely already a LLaVA model"),
    ],
    ids=["vicuna", "llava"],
)
def test_warns(base: Shapes, delta: Shapes, warning: str) -> None:
    """A base that fits by its shapes but looks fine-tuned is merged with a warning that says what it is, and what to use."""
    (found,) = match_tensors(base_of(base), delta_of(delta)).warnings
    assert warning in found
    assert ORIGINAL in found


# The property: nothing is passed over.

NAMES = [f"model.layers.{layer}.weight" for layer in range(6)]
BUFFERS = [f"model.layers.{layer}.rotary_emb.inv_freq" for layer in range(3)]


@st.composite
def legal_pairs(draw: st.DrawFn) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor]]:
    """Make pairs that the rules must take."""
    shape = st.lists(st.integers(0, 4), max_size=3).map(tuple)
    dtype = st.sampled_from(sorted(FLOATS))
    base: dict[str, LazyTensor] = {}
    delta: dict[str, LazyTensor] = {}

    def put(into: dict[str, LazyTensor], name: str, size: tuple[int, ...], storage: str | None = None) -> None:
        spec = TensorSpec(name, draw(dtype), size)
        into[name] = LazyTensor(spec, NoBytes(), Path("x.bin"), stored(storage or name))

    for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True)):
        size = draw(shape)
        put(base, name, size)
        put(delta, name, size)
        if draw(st.booleans()):
            put(base, f"{name}.twin", size, name)
    for name in draw(st.lists(st.sampled_from([EMBEDDING, HEAD]), unique=True)):
        rows, columns, more_rows, more_columns = (draw(st.integers(0, 3)) for _ in range(4))
        put(base, name, (rows, columns))
        put(delta, name, (rows + more_rows, columns + more_columns))
    for name in draw(st.lists(st.sampled_from([PROJECTOR, PROJECTOR_BIAS]), unique=True)):
        put(delta, name, draw(shape))
    for side in (base, delta):
        for name in draw(st.lists(st.sampled_from(BUFFERS), unique=True)):
            put(side, name, draw(shape))

    def shuffled(side: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
        return {name: side[name] for name in draw(st.permutations(sorted(side)))}

    return shuffled(base), shuffled(delta)


@SETTINGS
@given(pair=legal_pairs())
def test_every_tensor_has_exactly_one_fate(pair: tuple[dict[str, LazyTensor], dict[str, LazyTensor]]) -> None:
    """For any legal pair, every tensor of both inputs stands exactly once among the matches and the dropped."""
    base, delta = pair
    matching = match_tensors(base, delta)
    of_delta = [found.primary for found in matching.matches] + [item.spec for item in matching.dropped_primary]
    of_base = [found.base for found in matching.matches if found.base] + [item.spec for item in matching.dropped_base]
    for given_tensors, seen in ((base, of_base), (delta, of_delta)):
        assert sorted(given_tensors) == sorted(spec.name for spec in seen)
        assert all(given_tensors[spec.name].spec is spec for spec in seen)
    for found in matching.matches:
        assert (found.base is None) == (found.fate is Fate.COPY)
        assert found.base is None or found.base.name == found.primary.name


@SETTINGS
@given(pair=legal_pairs())
def test_one_more_tensor_is_never_passed_over(
    pair: tuple[dict[str, LazyTensor], dict[str, LazyTensor]],
) -> None:
    """A legal pair with one more tensor on either side, under a name without a rule, is refused by that name."""
    base, delta = pair
    stranger = checkpoint("x.bin", {"stranger": (2,)})
    assert "tensor stranger: is in the base" in refusal(base | stranger, delta)
    assert "tensor stranger: is in the delta" in refusal(base, delta | stranger)


# Shards.


def brute_force(sizes: list[int], limit: int) -> list[tuple[int, ...]]:
    """Return all ways to cut ``sizes`` into the fewest shards that are legal under ``limit``."""
    for count in range(len(sizes)):
        legal = []
        for inner in combinations(range(1, len(sizes)), count):
            cuts = (0, *inner, len(sizes))
            if all(sum(sizes[a:b]) <= limit or b - a == 1 for a, b in pairwise(cuts)):
                legal.append(cuts)
        if legal:
            return legal
    raise AssertionError("a shard for each tensor is always legal")


def loads(sizes: list[int], cuts: tuple[int, ...] | list[int]) -> list[int]:
    return [sum(sizes[a:b]) for a, b in pairwise(cuts)]


@SETTINGS
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=9),
    limit=st.integers(1, 30),
    unit=st.sampled_from([1, 1000, 2**40, 2**55 + 1]),
)
def test_shard_laws(sizes: list[int], limit: int, unit: int) -> None:
    """Shards keep the order and the limit, are the fewest possible, the largest is the smallest possible, and so is the limit."""
    sizes, limit = [size * unit for size in sizes], limit * unit
    cuts = shard_cuts(sizes, limit)
    legal = brute_force(sizes, limit)
    assert tuple(cuts) in legal  # in order, within the limit unless alone, as few as can be
    assert min(max(loads(sizes, each)) for each in legal) == max(loads(sizes, cuts))

    def needed(each: tuple[int, ...] | list[int]) -> int:
        return max((sum(sizes[a:b]) for a, b in pairwise(each) if b - a > 1), default=0)

    assert min(map(needed, legal)) == needed(cuts)


@pytest.mark.parametrize(
    ("sizes", "limit", "cuts"),
    [
        ([4], 10, [0, 1]),
        ([4], 1, [0, 1]),
        ([5, 5, 5, 5], 10, [0, 2, 4]),
        ([1, 1, 1, 1, 1, 1], 4, [0, 3, 6]),
        ([9, 1, 1, 1, 9], 10, [0, 1, 4, 5]),
        ([100, 20, 20, 20, 20], 70, [0, 1, 3, 5]),
        ([0, 0, 0], 1, [0, 3]),
    ],
)
def test_shard_goldens(sizes: list[int], limit: int, cuts: list[int]) -> None:
    """These rows of tensors are cut at these places, in this version and any later one of the format."""
    assert cuts == shard_cuts(sizes, limit)


def test_natural_order() -> None:
    """Numbers inside names are compared as numbers, whatever their length, and equal numbers by the name itself."""
    huge = "a.1" + "0" * 5000  # more digits than int() takes
    names = ["b0", "b", huge, "a.10.b", "a.2.c", "a.2.b", "a.1", "a.01", "a"]
    assert ["a", "a.01", "a.1", "a.2.b", "a.2.c", "a.10.b", huge, "b", "b0"] == sorted(names, key=natural_key)


@SETTINGS
@given(names=st.lists(st.text(alphabet="a.01٣x9é", max_size=6), unique=True))
def test_natural_order_is_total(names: list[str]) -> None:
    """Any names have one order, whatever order they come in."""
    assert sorted(names, key=natural_key) == sorted(sorted(names), key=natural_key)


# Plans.


def record(shapes: Shapes) -> InputRecord:
    specs = tuple(TensorSpec(name, "F16", shape) for name, shape in shapes.items())
    return InputRecord("torch", (), specs, ("blake3:0",) * len(specs), ())


def plan_of(shapes: Shapes, options: Options | None = None) -> tuple[Shard, ...]:
    matching = match_tensors(base_of(shapes), delta_of(shapes))
    return make_plan(matching, options or Options(), {"base": record(shapes), "delta": record(shapes)}, []).shards


def test_header_golden() -> None:
    """The header of a tiny shard is exactly these bytes, the last of which is padding."""
    specs = [TensorSpec("b", "F16", (2, 3)), TensorSpec("ü", "BF16", ()), TensorSpec("a", "F32", (0,))]
    expected = (
        b"\xc8\0\0\0\0\0\0\0"
        b'{"__metadata__":{"format":"pt"},'
        b'"b":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]},'
        b'"\xc3\xbc":{"dtype":"BF16","shape":[],"data_offsets":[12,14]},'
        b'"a":{"dtype":"F32","shape":[0],"data_offsets":[14,14]}} '
    )
    assert expected == safetensors_header(specs)


def test_empty_header_golden() -> None:
    """The header of no tensors is exactly these bytes, which need no padding."""
    assert safetensors_header([]) == b'\x20\0\0\0\0\0\0\0{"__metadata__":{"format":"pt"}}'


@SETTINGS
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
    shards = plan_of(shapes, Options("F16", dtype, limit))
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
    plan = make_plan(matching, Options(), {"base": dropped_base, "delta": dropped_primary}, [])
    assert fates(plan) == {"add": 3, "add_block": 2, "copy": 1, "dropped": 4}
    assert sum(shard.nbytes for shard in plan.shards) == plan.nbytes


def test_companions_are_sorted() -> None:
    """The order in which companions are found does not change the plan."""
    matching = match_tensors(base_of({"w": (1,)}), delta_of({"w": (1,)}))
    companions = [Companion(name, 1, "00") for name in "cab"]
    plans = {
        make_plan(matching, Options(), {"base": record({}), "delta": record({})}, order).identity
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
        len({make_plan(matching, Options(), {"base": side[0], "delta": side[1]}, []).identity for side in sides}) == 3
    )


# The plan's identity, from real files.


@dataclass
class Inputs:
    """A tiny pair on the disk, and what it is made of."""

    folder: Path
    base: Tensors
    delta: Tensors

    def identity(self, **options: Any) -> str:
        """Return the identity of the plan for the pair as it stands on the disk."""
        rest = {name: options.pop(name) for name in ("check", "recipe") if name in options}
        base, delta, out = (self.folder / name for name in ("base", "delta", "out"))
        with prepare(Operation.APPLY, base, delta, out, Wanted(**options), **rest) as job:
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
    [{"compute_dtype": "float32"}, {"dtype": "float32"}, {"max_shard_size": "1000"}, {"max_shard_size": "4999999999"}],
    ids=str,
)
def test_plan_identity_follows_the_options(inputs: Inputs, options: dict[str, str]) -> None:
    """The plan has another identity when any option that belongs to it changes, even where the shards stay the same."""
    assert inputs.identity() != inputs.identity(**options)


def test_plan_identity_ignores_place_and_time(inputs: Inputs, tmp_path: Path) -> None:
    """The plan keeps its identity when the inputs are moved, touched, opened by another path, or hold files nobody copies."""
    before = inputs.identity()
    for path in inputs.folder.rglob("*"):
        os.utime(path, (1, 1))
    (inputs.folder / "delta" / "training_log.txt").write_text("words")
    assert before == inputs.identity()
    inputs.folder = inputs.folder.rename(tmp_path / "elsewhere")
    assert before == inputs.identity()
    start = inputs.folder / "delta" / "model.safetensors.index.json"
    with prepare(Operation.APPLY, inputs.folder / "base" / "model.safetensors", start, tmp_path / "other") as job:
        assert before == job.plan.identity
        assert str(tmp_path) not in "".join(compact_pieces(job.plan.document))


def test_plan_identity_spells_equal_options_equally(inputs: Inputs) -> None:
    """Options that ask for the same have one identity, however they are written."""
    assert inputs.identity() == inputs.identity(dtype="float16", max_shard_size="5000MB")


# Blocks.


def part_by_numpy(match: Match, start: int, stop: int) -> dict[int, int]:
    """Return, for each element of the delta in the range that has one, the element of the base that is added to it."""
    assert match.base is not None
    rows, columns = match.base.shape
    sources = np.full(match.primary.shape, -1)
    sources[:rows, :columns] = np.arange(rows * columns).reshape(rows, columns)
    return {place: int(source) for place, source in enumerate(sources.reshape(-1)[start:stop].tolist()) if source >= 0}


small = st.integers(0, 7)


@SETTINGS
@given(
    rows=small,
    columns=small,
    more_rows=small,
    more_columns=st.sampled_from([0, 0, 1, 2, 5]),
    ends=st.tuples(st.integers(0, 200), st.integers(0, 200)),
)
def test_base_part_is_the_top_left_block(
    rows: int, columns: int, more_rows: int, more_columns: int, ends: tuple[int, int]
) -> None:
    """For any range of any grown tensor, runs say which base element meets which delta element, as numpy's indexing does."""
    delta = TensorSpec(HEAD, "F16", (rows + more_rows, columns + more_columns))
    grown = Match(delta, TensorSpec(HEAD, "F16", (rows, columns)), Fate.ADD_BLOCK)
    start, stop = sorted(min(end, delta.count) for end in ends)
    first, last, runs = base_part(grown, start, stop)
    assert all(0 <= run.start < run.stop <= stop - start for run in runs)
    assert all(one.stop <= other.start for one, other in pairwise(runs))
    found = {run.start + i: first + run.base + i for run in runs for i in range(run.stop - run.start)}
    assert part_by_numpy(grown, start, stop) == found
    assert len(found) == last - first  # what is read of the base is used, all of it
    assert set(found.values()) == set(range(first, last))


@SETTINGS
@given(
    shape=st.lists(st.integers(0, 5), max_size=3).map(tuple), ends=st.tuples(st.integers(0, 200), st.integers(0, 200))
)
def test_base_part_of_equal_shapes(shape: tuple[int, ...], ends: tuple[int, int]) -> None:
    """Where the shapes are equal each range of the delta meets the same range of the base; a copied tensor meets nothing."""
    spec = TensorSpec("w", "F16", shape)
    start, stop = sorted(min(end, spec.count) for end in ends)
    first, last, runs = base_part(Match(spec, spec, Fate.ADD), start, stop)
    assert (start, stop) == (first, last)
    assert [(0, stop - start, 0)] == [(run.start, run.stop, run.base) for run in runs]
    assert base_part(Match(spec, None, Fate.COPY), start, stop) == (0, 0, ())


@SETTINGS
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=4),
    size=st.integers(1, 9),
    dtype=st.sampled_from(["F16", "F32"]),
)
def test_blocks_tile_the_shard(shapes: list[tuple[int, ...]], size: int, dtype: str) -> None:
    """Blocks cover every byte of a shard's tensors once, in order, none larger than asked, with their ends marked."""
    placed, offset = [], 24
    for number, shape in enumerate(shapes):
        spec = TensorSpec(f"w{number}", dtype, shape)
        placed.append(PlannedTensor(spec, Match(spec, None, Fate.COPY), offset))
        offset += spec.nbytes
    blocks = list(blocks_of(placed, size))
    place = 24
    for block in blocks:
        assert place == block.offset
        assert block.stop - block.start <= size
        place += (block.stop - block.start) * ITEM_SIZES[dtype]
    assert offset == place
    assert list(range(len(blocks))) == [block.number for block in blocks]
    assert [False] * (len(blocks) - 1) + [True] == [block.last_of_shard for block in blocks]
    names = [tensor.spec.name for tensor in placed]
    assert names == [block.tensor.spec.name for block in blocks if block.start == 0]
    assert names == [block.tensor.spec.name for block in blocks if block.last_of_tensor]
