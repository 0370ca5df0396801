"""Tests of the rules by which tensors are matched, and of the messages when they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaweights.checkpoint.tensors import LazyTensor, TensorSpec
from deltaweights.errors import Mismatch
from deltaweights.merge.operation import Fate
from deltaweights.merge.rules import FLOATS, Dropped, Matching, match_tensors
from tests.support.headers import HEAD, PROJECTOR_BIAS, NoBytes, Shapes, base_of, checkpoint, delta_of, llama, stored
from tests.support.merging import EMBEDDING, PROJECTOR


def fate_of(matching: Matching, name: str) -> Fate:
    return next(found.fate for found in matching.matches if found.primary.name == name)


def test_fates_of_a_llava_med_pair() -> None:
    """Each tensor of a pair with the published shapes has the fate of the original script: add, add block, copy, drop."""
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


def refusal(base: dict[str, LazyTensor], delta: dict[str, LazyTensor]) -> str:
    """Return the error message for a pair."""
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
        (
            "tensor model.extra.weight: is in the delta, not in the base",
            "F16 [7, 9]",
            "all of the base fits, and the delta has more: model.extra.weight",
            "delta_only",
        ),
    ),
    "delta-only-nearly-a-projector": (
        base_of(llama()),
        delta_of(llama() | {"model.mm_projector.0.weight": (7, 9)}),
        ("tensor model.mm_projector.0.weight: is in the delta, not in the base",),
    ),
    "base-only": (
        base_of(llama() | {"model.extra.weight": (7, 9)}),
        delta_of(llama()),
        ("base.bin: tensor model.extra.weight: is in the base, not in the delta", "F16 [7, 9]", "nothing more is known"),
    ),
    "base-only-projector": (
        base_of(llama() | {PROJECTOR: (7, 9)}),
        delta_of(llama()),
        (f"tensor {PROJECTOR}: is in the base, not in the delta", "the base is already a vision-language model", ORIGINAL),
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
            "the base is in Meta's layout: give the folder with all its consolidated.*.pth files and params.json",
        ),
    ),
    "without-a-head": (
        base_of({"embed_tokens.weight": (32000, 4096), "layers.0.self_attn.q_proj.weight": (4096, 4096)}),
        delta_of(llama()),
        ("the base is saved without its head (LlamaModel, not LlamaForCausalLM): use the full checkpoint",),
    ),
    "lora": (base_of(llama()), delta_of(LORA), ("the delta is made of adapters, such as LoRA's", "merge it with peft")),
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
    """The error names the first tensor, both shapes, how many more do not fit, and the likely reason."""
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


NAMES = [f"model.layers.{layer}.weight" for layer in range(6)]

BUFFERS = [f"model.layers.{layer}.rotary_emb.inv_freq" for layer in range(3)]


@st.composite
def legal_pairs(draw: st.DrawFn) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor]]:
    """Draw pairs that the rules must accept."""
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


@settings(deadline=None)
@given(pair=legal_pairs())
def test_every_tensor_has_exactly_one_fate(pair: tuple[dict[str, LazyTensor], dict[str, LazyTensor]]) -> None:
    """For any legal pair, every tensor of both inputs is exactly once among the matches and the dropped."""
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


@settings(deadline=None)
@given(pair=legal_pairs())
def test_one_more_tensor_is_never_passed_over(
    pair: tuple[dict[str, LazyTensor], dict[str, LazyTensor]],
) -> None:
    """A legal pair with one more tensor on either side, under a name without a rule, is refused by that name."""
    base, delta = pair
    stranger = checkpoint("x.bin", {"stranger": (2,)})
    assert "tensor stranger: is in the base" in refusal(base | stranger, delta)
    assert "tensor stranger: is in the delta" in refusal(base, delta | stranger)
