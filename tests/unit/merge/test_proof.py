"""What a merge counts: the round trip that proves its base, the health of its numbers, and what new rows are added to.

The law behind the proof is tried on every pair of 16-bit numbers; what is counted is held against a reference that looks at one
number after the other.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count, groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaweights.errors import CheckFailed, MalformedInput, Mismatch
from deltaweights.jobs.apply import ApplyResult, apply_delta
from deltaweights.jobs.check_base import check_base
from deltaweights.jobs.findings import SumFound, check_sum, judge_base, proof_line
from deltaweights.jobs.make import make_delta
from deltaweights.manifest.findings import Findings, ProofRecord
from deltaweights.manifest.parse import parse_manifest
from deltaweights.manifest.records import Fragment, TensorRecord
from deltaweights.manifest.tally import Proof, Tally
from deltaweights.merge.arithmetic import Kernels, Task, Workbench
from deltaweights.merge.blocks import Run as Meeting
from deltaweights.merge.evidence import suspicion, untested, verdict
from deltaweights.merge.floats import RoundTrip
from deltaweights.merge.kernels_cpu import ProcessorKernels
from deltaweights.merge.kernels_torch import TorchKernels, single_threaded
from deltaweights.merge.operation import Operation
from deltaweights.merge.record import proof_of as record_of
from deltaweights.recipes.recipe import Recipe, parse_recipe
from deltaweights.report import Report
from deltaweights.staging.location import locate_target
from deltaweights.staging.staged_shards import StagedShards
from tests.conftest import Run
from tests.support.pairs import GROWN, Tensors, base_tensors, delta_tensors, load, same_bits, save
from tests.unit.merge.test_exactness import (
    DTYPES,
    SMALL,
    bits,
    blocks_of,
    every_or_random,
    files_of,
    model_of,
    of_bits,
    widen,
)

EMBEDDING, PROJECTOR = "model.embed_tokens.weight", "model.mm_projector.weight"

NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
SIZE = {"F16": 2, "BF16": 2, "F32": 4}
INFINITY = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F80_0000}
STEP = {"F16": 1 << 10, "BF16": 1 << 7, "F32": 1 << 23}
"""How far apart, as integers, the bits of a number and of its double are."""


def without_card(folder: Path) -> dict[str, bytes]:
    """Return the files of the model, but for the card, which says by which recipe it was made and whether its base is proved."""
    return {name: data for name, data in model_of(folder).items() if name != "README.md"}


def torch_kernels() -> TorchKernels:
    """Return torch's kernels for the processor."""
    return TorchKernels(torch.device("cpu"))


ENGINES: dict[str, Callable[[], Kernels]] = {"ours": ProcessorKernels, "torch": torch_kernels}


class Told(Report):
    """A report that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        """Keep a remark."""
        self.notes.append(text)

    def warn(self, text: str) -> None:
        """Keep a warning."""
        self.warnings.append(text)


def save_pair(folder: Path, base: Tensors, delta: Tensors) -> None:
    """Save a pair that knows no configuration, one file each."""
    save(base, folder / "base", "torch", 1, config=False)
    save(delta, folder / "delta", "torch", 1, config=False)


def merge(folder: Path, name: str = "merged", **options: Any) -> tuple[ApplyResult, Told]:
    """Merge ``folder/base`` and ``folder/delta`` into ``folder/name``; return the result and what was told."""
    told = Told()
    return apply_delta(folder / "base", folder / "delta", folder / name, report=told, **options), told


def merge_pair(folder: Path, base: Tensors, delta: Tensors, **options: Any) -> tuple[ApplyResult, Told]:
    """Save a pair and merge it."""
    save_pair(folder, base, delta)
    return merge(folder, **options)


def manifest_of(folder: Path) -> dict[str, Any]:
    """Return what ``result`` of the manifest in ``folder`` says."""
    result: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())["result"]
    return result


def recipe_file(folder: Path, dtype: str = "float16", *, stated: bool = True, more: str = "") -> Path:
    """Write a recipe of our own, which knows no files, shapes or base."""
    head = 'format = "deltaweights-recipe"\nversion = 1\nname = "own"\n'
    path = folder / "own.toml"
    path.write_text(f'{head}[arithmetic]\ncompute_dtype = "{dtype}"\nstated = {str(stated).lower()}\n{more}')
    return path


# The reference: one number after the other, in plain Python. (A float64 sum of two such numbers that is rounded again is rounded as
# if once, since float64 has more than twice their digits.)


def number(word: int, dtype: str) -> float:
    """Return the number that the bits ``word`` stand for."""
    if dtype == "F16":
        return float(struct.unpack("<e", word.to_bytes(2, "little"))[0])
    return float(struct.unpack("<f", (word << 16 if dtype == "BF16" else word).to_bytes(4, "little"))[0])


def nearest(value: float, dtype: str) -> int:
    """Return the bits of the number of ``dtype`` that is nearest, ties to even; NaN is the quiet one."""
    if math.isnan(value):
        return {"F16": 0x7E00, "BF16": 0x7FC0, "F32": 0x7FC0_0000}[dtype]
    if dtype == "BF16":  # add half of the last place, less one when that place is even
        single = nearest(value, "F32")
        return (single + 0x7FFF + (single >> 16 & 1)) >> 16
    code, sign = ("<e", 0x8000) if dtype == "F16" else ("<f", 0x8000_0000)
    try:
        return int.from_bytes(struct.pack(code, value), "little")
    except OverflowError:
        return INFINITY[dtype] | (sign if value < 0 else 0)


def total_of(base: int, delta: int, dtype: str) -> int:
    """Return the bits of the sum of two numbers, rounded once."""
    return nearest(number(base, dtype) + number(delta, dtype), dtype)


def proof_of(base: Sequence[int], delta: Sequence[int], dtype: str) -> Proof:
    """Count as docs/manifest-format.md defines ``proof``."""
    region = violations = evidence = 0
    for b, d in zip(base, delta, strict=True):
        t = total_of(b, d, dtype)
        if not math.isfinite(number(t, dtype)) or (t - b + STEP[dtype]) % (1 << 8 * SIZE[dtype]) > 2 * STEP[dtype]:
            continue
        region += 1
        evidence += t != b
        back = nearest(number(t, dtype) - number(b, dtype), dtype)
        violations += number(back, dtype) != number(d, dtype)
    return Proof(len(base), region, violations, evidence)


def words_of(tensor: torch.Tensor) -> list[int]:
    """Return the bits of all elements of a tensor."""
    mask = (1 << 8 * tensor.itemsize) - 1
    return [word & mask for word in bits(tensor).flatten().tolist()]


def packed(words: Sequence[int], dtype: str) -> bytes:
    """Return bits as bytes."""
    return np.array(words, f"<u{SIZE[dtype]}").tobytes()


# The law.

EVERY = np.arange(1 << 16, dtype=np.uint16)
"""All 16-bit numbers."""


def arrays(kernels: Kernels, count: int, dtype: str) -> tuple[list[Any], list[Any]]:
    """Return five arrays of the kernels (base, target, delta, sum, difference), and the same memory as unsigned integers."""
    buffers = [kernels.buffer(count * SIZE[dtype]) for _ in range(5)]
    return [kernels.over(each, dtype) for each in buffers], [
        np.frombuffer(each, f"<u{SIZE[dtype]}") for each in buffers
    ]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("dtype", "count"), [("F16", 127_987_712), ("BF16", 16_743_936)], ids=["F16", "BF16"])
def test_every_difference_within_one_exponent_step_is_exact(dtype: str, count: int, engine: str) -> None:
    """For all finite pairs whose bits are at most one exponent step apart, target - base is exact, and none violates the law.

    Where the target is -0 and the base negative the sum is +0: right, and out of the region by its sign bit.
    """
    name, step, rows = NAMES[dtype], STEP[dtype], 64
    kernels = ENGINES[engine]()
    bases = EVERY[INFINITY[dtype] > (EVERY & 0x7FFF)]
    gaps = np.arange(-step, step + 1).astype(np.uint16)
    whole, words = arrays(kernels, rows * len(gaps), dtype)
    found = Proof()
    with single_threaded():
        for first in range(0, len(bases), rows):
            base = np.repeat(bases[first : first + rows], len(gaps))
            target = base + np.tile(gaps, len(base) // len(gaps))
            near = (target & 0x7FFF) < INFINITY[dtype]
            base, target = base[near], target[near]
            words[0][: len(base)], words[1][: len(base)] = base, target
            of_base, of_target, delta, total, _ = (array[: len(base)] for array in whole)
            kernels.subtract(of_target, of_base, delta)
            kernels.add(of_base, delta, total)
            exact = widen(target, name) - widen(base, name)  # in float64, which has room for it
            assert np.array_equal(widen(words[2][: len(base)], name), exact)
            assert np.array_equal(widen(words[3][: len(base)], name), widen(target, name))
            found += kernels.prove(of_base, delta, total, finite=True)
    negative_zeros = step + 1
    assert (found.weights, found.region, found.violations) == (count, count - negative_zeros, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "in_region", "with_zeros"),
    [("F16", 127_987_768, 127_989_818), ("BF16", 16_744_440, 16_744_698)],
    ids=["F16", "BF16"],
)
def test_no_delta_of_its_base_ever_violates_the_law(dtype: str, in_region: int, with_zeros: int) -> None:
    """For all 2^32 pairs of base and target, NaN and infinities included, base + (target - base) has no violation.

    In float16 the bits of 127,987,768 sums are within a step of their base's. 127,989,818 are when a sum that is zero is taken to
    have the sign of its base: a negative base of at most one step meets a target of +0 or -0 in 2,050 pairs.
    """
    step, rows = STEP[dtype], 16
    kernels, round_trip = ProcessorKernels(), RoundTrip(dtype, rows << 16)
    (base, target, delta, total, difference), words = arrays(kernels, rows << 16, dtype)
    words[1][:] = np.tile(EVERY, rows)
    memory = [memoryview(words[at]).cast("B") for at in (0, 2, 3, 4)]
    found, zeros = Proof(), 0
    for first in range(0, 1 << 16, rows):
        words[0][:] = np.repeat(EVERY[first : first + rows], 1 << 16)
        kernels.subtract(target, base, delta)
        kernels.add(base, delta, total)
        kernels.subtract(total, base, difference)
        found += round_trip.count(*memory, finite=False)
        if 0x8000 <= first <= 0x8000 + step:
            zeros += int(np.count_nonzero((words[3] == 0) & (words[0] <= 0x8000 + step)))
    assert (found.weights, found.violations) == (1 << 32, 0)
    assert (found.region, found.region + zeros) == (in_region, with_zeros)


# The counts, against the reference.

SPECIAL = {
    dtype: [
        0, 1, 2, STEP[dtype] - 1, STEP[dtype], STEP[dtype] + 1, 2 * STEP[dtype], INFINITY[dtype] - 1, INFINITY[dtype],
        INFINITY[dtype] + 1, INFINITY[dtype] + STEP[dtype] // 2, nearest(1.0, dtype), nearest(65504.0, dtype),
    ]
    for dtype in NAMES
}  # fmt: skip
"""Zero, subnormals and the first normal numbers, the largest finite one, infinity, NaN, one."""


def numbers_near(dtype: str) -> st.SearchStrategy[tuple[int, int]]:
    """Draw a base, and the delta to a target that is about an exponent step away at most, at times spoiled."""
    step, most = STEP[dtype], (1 << 8 * SIZE[dtype]) - 1
    gaps = st.integers(-step - 2, step + 2) | st.sampled_from([-step - 1, -step, -2, -1, 0, 1, step, step + 1])

    def build(base: int, gap: int, target_sign: int, slip: int) -> tuple[int, int]:
        target = (base + gap & most) ^ target_sign
        return base, (nearest(number(target, dtype) - number(base, dtype), dtype) ^ slip) & most

    sign = (most >> 1) + 1
    return st.builds(
        build, st.integers(0, most), gaps, st.sampled_from([0, 0, 0, sign]), st.sampled_from([0, 0, 1, sign])
    )


def pairs_of(dtype: str) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Draw a block of bases and deltas: any bits, special numbers of both signs, and what matters for the round trip."""
    most = (1 << 8 * SIZE[dtype]) - 1
    special = st.builds(
        lambda word, sign: word | sign, st.sampled_from(SPECIAL[dtype]), st.sampled_from([0, most // 2 + 1])
    )
    word = st.integers(0, most) | special
    return st.lists(numbers_near(dtype) | st.tuples(word, word), min_size=1, max_size=80)


DtypeAndPairs = st.sampled_from([*NAMES]).flatmap(lambda dtype: st.tuples(st.just(dtype), pairs_of(dtype)))


@settings(deadline=None, max_examples=300)
@given(drawn=DtypeAndPairs, shift=st.integers(0, 3))
def test_the_round_trip_is_counted_as_it_is_defined(drawn: tuple[str, list[tuple[int, int]]], shift: int) -> None:
    """``RoundTrip``, our kernels and torch's count what the definition says, number by number, wherever a block begins."""
    dtype, pairs = drawn
    base, delta = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    total = [total_of(b, d, dtype) for b, d in pairs]
    wanted = proof_of(base, delta, dtype)
    finite = all(word & (INFINITY[dtype]) != INFINITY[dtype] for word in total)
    back = [nearest(number(t, dtype) - number(b, dtype), dtype) for t, b in zip(total, base, strict=True)]
    blocks = [memoryview(packed(words, dtype)) for words in (base, delta, total, back)]
    for flag in {False, finite}:
        assert RoundTrip(dtype, len(pairs) + 5).count(*blocks, finite=flag) == wanted
        for engine, make_kernels in ENGINES.items():
            kernels = make_kernels()
            blocks_there = []
            for words in (base, delta, total):
                buffer = kernels.buffer((shift + len(pairs)) * SIZE[dtype])
                buffer[shift * SIZE[dtype] :] = packed(words, dtype)
                blocks_there.append(kernels.over(buffer, dtype)[shift:])
            assert kernels.prove(*blocks_there, finite=flag) == wanted, engine


@pytest.mark.parametrize("engine", ENGINES)
def test_one_instance_proves_in_several_dtypes(engine: str) -> None:
    """What was made for one dtype, and for as many numbers, is not taken for another: the wider ones would not fit."""
    kernels = ENGINES[engine]()
    random = np.random.default_rng(7)
    for dtype, length in (("F16", 5000), ("F32", 5000), ("BF16", 3000), ("F32", 7000), ("F16", 6000), ("F32", 10)):
        base = [nearest(float(x), dtype) for x in random.standard_normal(length)]
        delta = [nearest(float(x), dtype) for x in random.standard_normal(length) / 50]
        total = [total_of(b, d, dtype) for b, d in zip(base, delta, strict=True)]
        (of_base, of_delta, of_total, *_), words = arrays(kernels, length, dtype)
        for there, here in zip(words, (base, delta, total), strict=False):
            there[:] = here
        assert kernels.prove(of_base, of_delta, of_total, finite=True) == proof_of(base, delta, dtype)


def test_our_kernels_refuse_two_dtypes_in_one_sum() -> None:
    """The library would write numbers of 4 bytes into room for as many of 2."""
    kernels = ProcessorKernels()
    wide, narrow = kernels.room(64, "F32"), kernels.room(64, "F16")
    for compute in (kernels.add, kernels.subtract):
        for operands in ((wide, wide, narrow), (narrow, wide, wide), (wide, narrow, wide)):
            with pytest.raises(TypeError, match="arrays of float"):
                compute(*operands)


def meetings(meets: Sequence[bool]) -> tuple[Meeting, ...]:
    """Return the runs in which a block meets its base."""
    runs, place, done = [], 0, 0
    for met, group in groupby(meets):
        length = len(list(group))
        if met:
            runs.append(Meeting(place, place + length, done))
            done += length
        place += length
    return tuple(runs)


def tally_of(pairs: Sequence[tuple[int, int]], meets: Sequence[bool], dtype: str, stored: str) -> Tally:
    """Count as docs/manifest-format.md defines it, number by number."""
    nonfinite = overflow = 0
    for (b, d), met in zip(pairs, meets, strict=True):
        result = number(nearest(number(total_of(b, d, dtype) if met else d, dtype), stored), stored)
        nonfinite += not math.isfinite(result)
        inputs = [number(word, dtype) for word in ((b, d) if met else (d,))]
        overflow += all(map(math.isfinite, inputs)) and not math.isfinite(result)
    met_pairs = [pair for pair, met in zip(pairs, meets, strict=True) if met]
    of_base, of_primary = [b for b, _ in met_pairs], [d for _, d in pairs]
    counts = [sum(not math.isfinite(number(word, dtype)) for word in words) for words in (of_base, of_primary)]
    proof = proof_of(of_base, [d for _, d in met_pairs], dtype)
    return Tally(nonfinite, counts[0], counts[1], overflow, proof=proof)


@settings(deadline=None, max_examples=200)
@given(data=st.data(), drawn=DtypeAndPairs, engine=st.sampled_from([*ENGINES]), stored=st.sampled_from([*NAMES]))
def test_counts_are_the_reference_s_in_blocks_of_any_size(
    data: st.DataObject, drawn: tuple[str, list[tuple[int, int]]], engine: str, stored: str
) -> None:
    """Whatever is met or kept, stored as whatever, and cut into whatever blocks: the counts are those of the definition."""
    dtype, pairs = drawn
    meets = data.draw(st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs)) | st.just([True] * len(pairs)))
    block = data.draw(st.integers(1, len(pairs)))
    bench = Workbench(ENGINES[engine](), Task(Operation.APPLY, dtype, stored, check=True), block)
    found = Tally(proof=Proof())
    for first in range(0, len(pairs), block):
        part, met = pairs[first : first + block], meets[first : first + block]
        primary = packed([d for _, d in part], dtype)
        base = packed([b for (b, _), there in zip(part, met, strict=True) if there], dtype)
        bench.primary[: len(primary)], bench.base[: len(base)] = primary, base
        found += bench.combine(len(part), dtype, dtype, meetings(met)).tally
    assert found == tally_of(pairs, meets, dtype, stored)


def proof_of_pair(base: Tensors, delta: Tensors, dtype: str) -> dict[str, Proof]:
    """Return what the definition counts for each tensor that is added, cast to ``dtype`` first."""
    found = {}
    for name, primary in delta.items():
        if name in base and not name.endswith("inv_freq"):
            part = primary[tuple(slice(size) for size in base[name].shape)] if primary.ndim else primary
            words = [words_of(tensor.to(DTYPES[NAMES[dtype]])) for tensor in (base[name], part)]
            found[name] = proof_of(words[0], words[1], dtype)
    return found


@pytest.mark.parametrize("dtype", NAMES)
def test_blocks_workers_and_roads_count_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """Merges in any blocks by any workers write one manifest, with the definition's proof; ``check_base`` finds the same."""
    base, delta = SMALL(), delta_tensors(SMALL())
    base["lm_head.weight"] = base["lm_head.weight"][:, :11].clone()
    base["model.norm.weight"] = base["model.norm.weight"].flip(0)
    for seed, other in enumerate(DTYPES):
        base[f"sum.{other}"], delta[f"sum.{other}"] = (
            of_bits(row[::2999], DTYPES[other]) for row in every_or_random(other, seed)
        )
    proofs = proof_of_pair(base, delta, dtype)
    whole = sum(proofs.values(), Proof())
    save_pair(tmp_path, base, delta)
    options: dict[str, Any] = {"compute_dtype": NAMES[dtype], "max_shard_size": 9000}
    first, _ = merge(tmp_path, "first", workers=1, **options)
    assert first.proof is not None
    assert whole.violations
    assert Proof(first.proof.weights, first.proof.region, first.proof.violations, first.proof.evidence) == whole
    assert first.proof.tensors == {name: proof.violations for name, proof in proofs.items() if proof.violations}
    assert first.shards > 1
    assert parse_manifest((tmp_path / "first" / "manifest.json").read_bytes()).findings.proof == first.proof
    for block, workers in ((1 << 20, 3), (1000, 2), (37, 4), (5, 1)):
        with blocks_of(block):
            merge(tmp_path, "again", workers=workers, **options)
        assert files_of(tmp_path / "again") == files_of(tmp_path / "first"), f"{block} elements, {workers} workers"
        shutil.rmtree(tmp_path / "again")
        monkeypatch.setattr("deltaweights.jobs.check_base.BLOCK", block)
        looked = check_base(tmp_path / "base", tmp_path / "delta", compute_dtype=NAMES[dtype], workers=workers)
        assert looked.proof == first.proof


# What the proof says of a base.

SHAPE = (1000, 2000)

STD, TUNING = 0.02, 0.0004
"""Of the weights, and of a fine-tuning step of 2 %."""

DAMAGED = "a few weights of base or delta are damaged, or were edited"
ROUNDED = "the base is a rounded copy (through bfloat16, say) or a lightly tuned sibling of the right one"
SIBLING = "the base is a sibling of the right one, fine-tuned from it, such as Vicuna for LLaMA"
UNRELATED = "the base is an unrelated model of the same shape, such as LLaMA-2 for LLaMA-1"
OTHER = "the delta was computed in another arithmetic than it was added in"

Given = tuple[torch.Tensor, torch.Tensor]


class Model:
    """A base of one dtype and what it was tuned to, in float64; bases and deltas that people may have."""

    def __init__(self, name: str) -> None:
        self.name, self.dtype = name, DTYPES[name]
        self.base = self.unrelated(seed=0)
        self.tuned = self.base.double() + _normal(TUNING, seed=1)

    def delta(self, by_way_of: torch.dtype | None = None) -> torch.Tensor:
        """Return target - base, in the dtype of both; the target may have been saved in another one before."""
        return self.tuned.to(by_way_of or self.dtype).to(self.dtype) - self.base

    def base_and(self, step: float) -> torch.Tensor:
        """Return a base that is ``step`` away."""
        return (self.base.double() + _normal(step, seed=2)).to(self.dtype)

    def unrelated(self, seed: int = 3) -> torch.Tensor:
        """Return weights of the same kind."""
        return _normal(STD, seed).to(self.dtype)

    def damaged(self) -> torch.Tensor:
        """Return the base with 500 weights doubled."""
        base = self.base.clone()
        base.view(-1)[:: base.numel() // 500] *= 2
        return base


def _normal(std: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPE, generator=generator, dtype=torch.float64) * std


@dataclass(frozen=True)
class Case:
    """What people give, which shares of the region violate the law then, and what is said."""

    given: Callable[[Model], Given]
    least: float
    most: float
    verdict: str
    likely: str = ""


CASES = {
    "right": Case(lambda m: (m.base, m.delta()), 0, 0, "proved"),
    "right, target saved from bfloat16": Case(lambda m: (m.base, m.delta(torch.bfloat16)), 0, 0, "proved"),
    "right, both stored in float32": Case(lambda m: (m.base.float(), m.delta().float()), 0, 0, "proved"),
    "damaged": Case(lambda m: (m.damaged(), m.delta()), 1e-5, 0.001, "violated", DAMAGED),
    "rounded through bfloat16": Case(
        lambda m: (m.base.bfloat16().to(m.dtype), m.delta()), 0.01, 0.025, "violated", ROUNDED
    ),
    "sibling, 0.1 % away": Case(lambda m: (m.base_and(STD * 0.001), m.delta()), 0.013, 0.023, "violated", ROUNDED),
    "sibling, 2 % away": Case(lambda m: (m.base_and(STD * 0.02), m.delta()), 0.03, 0.042, "violated", SIBLING),
    "unrelated": Case(lambda m: (m.unrelated(), m.delta()), 0.27, 0.32, "violated", UNRELATED),
    "right, delta from wider arithmetic": Case(
        lambda m: (m.base, (m.tuned - m.base.double()).to(m.dtype)), 0.9, 0.99, "another arithmetic", OTHER
    ),
}
"""The table of docs/design.md, "The round trip"."""


@pytest.fixture(scope="module", params=DTYPES)
def model(request: pytest.FixtureRequest) -> Model:
    """Make two million weights of each dtype, tuned by 2 %."""
    return Model(request.param)


OF_EACH = [
    (dtype, case) for dtype in DTYPES for case in CASES if (dtype, case) != ("bfloat16", "rounded through bfloat16")
]


@pytest.mark.parametrize(("model", "case"), OF_EACH, indirect=["model"])
def test_the_table_of_the_round_trip(tmp_path: Path, model: Model, case: str) -> None:
    """The right base has no violation; rates of others are as measured, and the one warning says what they suggest."""
    wanted = CASES[case]
    base, delta = wanted.given(model)
    result, told = merge_pair(tmp_path, {"w": base}, {"w": delta}, compute_dtype=model.name)
    proof = result.proof
    assert proof is not None
    assert proof.weights == base.numel()
    assert 0.975 < proof.region / proof.weights < 0.987
    assert proof.evidence > proof.region * 0.85
    rate = proof.violations / proof.region
    assert wanted.least <= rate <= wanted.most
    assert proof.verdict == wanted.verdict
    assert proof.tensors == ({"w": proof.violations} if proof.violations else {})
    share = f"{proof.weights:,} weights, {proof.region / proof.weights:.1%} in the region"
    found = f"{proof.violations:,} of {proof.region:,} weights do not come back ({rate:.2%})"
    likely = f"{found}, most in w; likely {wanted.likely}"
    if wanted.verdict == "proved":
        assert told.warnings == []
        assert proof_line(proof) == f"proved: {share}, 0 violations"
        return
    assert proof_line(proof) == f"NOT proved: {share}, {proof.violations:,} violations ({rate:.2%})"
    if wanted.verdict == "violated":
        assert told.warnings == [f"the base is not the one that the delta was made from: {likely}"]
    else:
        assert told.warnings == [f"the base cannot be proved: {likely}"]


@pytest.mark.parametrize(
    ("violations", "likely"),
    [
        (1, DAMAGED), (1_000, DAMAGED), (1_001, ROUNDED), (25_000, ROUNDED), (25_001, SIBLING), (120_000, SIBLING),
        (120_001, UNRELATED), (800_000, UNRELATED), (800_001, OTHER), (1_000_000, OTHER),
    ],
)  # fmt: skip
def test_up_to_which_share_of_a_million_violations_what_is_likely(violations: int, likely: str) -> None:
    """The shares at which one suspicion gives way to the next; another verdict comes with the last alone."""
    proof = Proof(weights=2_000_000, region=1_000_000, violations=violations, evidence=900_000)
    assert suspicion(proof) == likely
    assert verdict({"w": proof}).value == ("another arithmetic" if likely == OTHER else "violated")


MOVED = Proof(weights=200_000, region=198_000, violations=0, evidence=150_000)
"""What proves a base, but for other tensors."""

UNTESTED: dict[str, tuple[dict[str, Proof], tuple[str, ...]]] = {
    "three quarters lie in the region": ({"w": Proof(1024, 768, 0, 700)}, ()),
    "less than three quarters": ({"w": Proof(1024, 767, 0, 700)}, ("w",)),
    "a tensor that is too small to count": ({"w": Proof(1023, 0, 0, 0)}, ()),
    "no weights": ({"w": Proof()}, ()),
    "a tensor that did not move": ({"w": Proof(4096, 4096, 0, 0)}, ()),
    "several, in natural order": (
        {f"layers.{at}": Proof(2048, 100, 0, 100) for at in (10, 2, 1)}, ("layers.1", "layers.2", "layers.10"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNTESTED)
def test_a_base_is_proved_where_every_sizeable_tensor_is(case: str) -> None:
    """One tensor of 1,024 weights or more of which less than three quarters lie in the region, and the proof is partial."""
    proofs, names = UNTESTED[case]
    assert untested({"moved": MOVED} | proofs) == names
    assert verdict({"moved": MOVED} | proofs).value == ("partial" if names else "proved")


def test_violations_and_too_little_evidence_come_before_holes() -> None:
    """A violation refutes the base, and too little evidence says nothing of it, whatever is untested."""
    hole, lost = Proof(4096, 0, 0, 0), Proof(4096, 4096, 1, 4096)
    assert verdict({"moved": MOVED, "hole": hole, "lost": lost}).value == "violated"
    assert verdict({"hole": hole, "few": Proof(99_999, 99_999, 0, 99_999)}).value == "no evidence"
    assert verdict({}).value == "no evidence"


def test_the_record_names_what_is_untested_where_there_is_something() -> None:
    """``untested`` is in the record, and in its JSON only where it has names; a record without it, of before, is read."""
    whole, holed = record_of({"moved": MOVED}), record_of({"moved": MOVED, "b10": UNLIKE, "b2": UNLIKE})
    assert whole is not None
    assert holed is not None
    assert (whole.untested, list(whole.document())) == (
        (),
        ["weights", "region", "violations", "evidence", "verdict", "tensors"],
    )
    assert (holed.verdict, holed.document()["untested"]) == ("partial", ["b2", "b10"])
    for record in (whole, holed):
        assert ProofRecord.from_document(json.loads(json.dumps(record.document()))) == record


UNLIKE = Proof(weights=4096, region=10, violations=0, evidence=10)
"""Of a tensor of zeros, to which a delta is added."""


@pytest.mark.parametrize(
    ("named", "words"),
    [(("b2",), "of b2"), (("b2", "b10"), "of b2 and 1 more tensor"), (("b2", "b10", "c"), "of b2 and 2 more tensors")],
)
def test_what_is_untested_is_told(named: tuple[str, ...], words: str) -> None:
    """Result and warning name the first untested tensor, and how many more there are."""
    record = record_of({"moved": MOVED} | dict.fromkeys(named, UNLIKE))
    assert record is not None
    told = Told()
    judge_base(record, told, stated=False, allowed=False)
    few = f"{words} too few weights lie in the region"
    assert told.warnings == [
        f"the base is proved in part only: {few}; likely holes in the base, or a delta that is none"
    ]
    weights = 200_000 + 4096 * len(named)
    share = f"{weights:,} weights, {(198_000 + 10 * len(named)) / weights:.1%} in the region"
    assert proof_line(record) == f"NOT proved: {share}, 0 violations, but {few}"


def test_the_stored_dtype_does_not_change_the_proof(tmp_path: Path, model: Model) -> None:
    """The sums are proved in the dtype that they are made in, whatever they are stored in."""
    save_pair(tmp_path, {"w": model.unrelated()}, {"w": model.delta()})
    proofs = [merge(tmp_path, stored, compute_dtype=model.name, dtype=stored)[0].proof for stored in DTYPES]
    assert proofs[0] is not None
    assert proofs[0].violations
    assert proofs[0] == proofs[1] == proofs[2]


def moved(count: int) -> tuple[Tensors, Tensors]:
    """Return a pair of 120,000 weights of which ``count`` move, each by one place."""
    base = (torch.rand(300, 400, generator=torch.Generator().manual_seed(1)) + 0.5).half()
    target = bits(base).clone()
    target.view(-1)[:count] += 1
    return {"w": base}, {"w": target.view(torch.float16) - base}


@pytest.mark.parametrize(("count", "verdict"), [(100_000, "proved"), (99_999, "no evidence"), (0, "no evidence")])
def test_what_does_not_move_is_no_evidence(tmp_path: Path, count: int, verdict: str) -> None:
    """From 100,000 weights that moved on a base is proved; with one less, or a delta of zeros, a remark says that nothing is."""
    result, told = merge_pair(tmp_path, *moved(count))
    assert result.proof == ProofRecord(
        weights=120_000, region=120_000, violations=0, evidence=count, verdict=verdict, tensors={}
    )
    silence = f"the base is neither proved nor refuted: only {count:,} weights of the sum moved"
    assert (silence in told.notes) == (verdict == "no evidence")
    assert told.warnings == []
    line = f"no evidence: {count:,} weights moved; less than 100,000 say nothing"
    assert proof_line(result.proof) == (
        line if verdict == "no evidence" else "proved: 120,000 weights, 100.0% in the region, 0 violations"
    )


def test_one_violation_outweighs_all_evidence(tmp_path: Path) -> None:
    """A single weight that does not come back, of a hundred thousand that do, is named with its tensor."""
    base, delta = moved(110_000)
    delta["w"][299, 399] = 1e-5  # less than half a place of its base: the sum stays, the delta is gone
    result, told = merge_pair(tmp_path, base | {"v": base["w"]}, delta | {"v": delta["w"] * 0})
    assert result.proof is not None
    assert (result.proof.violations, result.proof.tensors, result.proof.verdict) == (1, {"w": 1}, "violated")
    assert told.warnings == [
        (
            "the base is not the one that the delta was made from: 1 of 240,000 weights do not come back (less than 0.01%), "
            f"most in w; likely {DAMAGED}"
        )
    ]


def test_the_three_worst_tensors_are_named(tmp_path: Path) -> None:
    """Of five tensors with violations the three with the most are named, most first, and by name where equal."""
    base = {name: torch.ones(4, 50).half() for name in "edcba"}
    delta = {name: torch.zeros(4, 50).half() for name in base}
    for name, lost in zip("edcba", (3, 9, 5, 5, 4), strict=True):
        delta[name][0, :lost] = 1e-5
    result, told = merge_pair(tmp_path, base, delta)
    assert result.proof is not None
    assert list(result.proof.tensors.items()) == [("a", 4), ("b", 5), ("c", 5), ("d", 9), ("e", 3)]
    assert ", most in d, b, c; likely" in told.warnings[-1]


# What counts.


@pytest.mark.parametrize("rule", ["copy", "zero", "mean"])
def test_only_elements_that_are_added_count(tmp_path: Path, rule: str) -> None:
    """Of a grown embedding the base's block counts; new rows and copied tensors do not, whatever they hold."""
    dtype = "float32" if rule == "mean" else "float16"
    base, delta = base_tensors(), delta_tensors(base_tensors())
    own = recipe_file(tmp_path, dtype, more=f'[rules]\nnew_rows = "{rule}"\n')
    plain, _ = merge_pair(tmp_path / "plain", base, delta, recipe_file=own, allow_unproved_base=True)
    assert plain.proof is not None
    assert plain.proof.weights == sum(base[name].numel() for name in delta if name in base and "inv_freq" not in name)
    for name, tensor in delta.items():
        if name in GROWN:
            tensor[base[name].shape[0] :] = torch.tensor([torch.nan, 3e-8, 65504, -0.0]).half()[:, None]
        elif name not in base:
            tensor[:] = torch.inf
    with blocks_of(100):
        spoiled, _ = merge_pair(tmp_path / "spoiled", base, delta, recipe_file=own, allow_unproved_base=True)
    assert spoiled.nonfinite
    assert spoiled.proof == plain.proof


def test_of_a_narrower_base_its_block_counts(tmp_path: Path) -> None:
    """Where the base has fewer columns, too, exactly its elements are proved, in blocks that begin anywhere."""
    target = torch.randn(9, 12, generator=torch.Generator().manual_seed(2)).half()
    base, delta = {EMBEDDING: target[:7, :5] * 0.75}, {EMBEDDING: target.clone()}
    delta[EMBEDDING][:7, :5] -= base[EMBEDDING]
    for block in (1 << 20, 17, 5, 1):
        with blocks_of(block):
            result, _ = merge_pair(tmp_path / str(block), base, delta)
        assert result.proof is not None
        assert (result.proof.weights, result.proof.region, result.proof.violations) == (35, 35, 0)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_where_nothing_is_added_there_is_no_proof(tmp_path: Path, dtype: str) -> None:
    """A delta of copied tensors alone, on a base of buffers alone, says nothing of a base, cast or not."""
    base = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    result, _ = merge_pair(tmp_path, base, {PROJECTOR: torch.randn(3, 4).half()}, dtype=dtype)
    assert result.proof is None
    assert "proof" not in manifest_of(tmp_path / "merged")


def test_a_delta_that_is_made_has_no_proof(tmp_path: Path) -> None:
    """What a ``make`` finds is the count of what does not come back, not a proof of its base."""
    base = SMALL()
    save(base, tmp_path / "base")
    save({name: tensor * 2 for name, tensor in base.items()}, tmp_path / "target")
    made = make_delta(tmp_path / "base", tmp_path / "target", tmp_path / "made")
    assert made.proof is None
    assert "proof" not in manifest_of(tmp_path / "made")


# With and without a recipe.


def wrong_pair(folder: Path) -> tuple[Tensors, Tensors]:
    """Save a small pair whose base is a sibling of the right one; return its tensors."""
    right, wrong = SMALL(), SMALL(seed=5)
    delta = delta_tensors(right)
    base = {name: wrong[name] if tensor.ndim == 2 else tensor for name, tensor in right.items()}
    save_pair(folder, base, delta)
    return base, delta


def violations_of(proof: ProofRecord) -> str:
    """Return how the violations of a wrong pair are told."""
    share = f"{proof.violations:,} of {proof.region:,} weights do not come back ({proof.violations / proof.region:.2%})"
    worst = sorted(proof.tensors, key=lambda name: (-proof.tensors[name], name))[:3]
    return (
        f"the base is not the one that the delta was made from: {share}, most in {', '.join(worst)}; likely {UNRELATED}"
    )


@pytest.mark.parametrize("stated", [None, False], ids=["no-recipe", "recipe-that-does-not-state"])
def test_where_the_arithmetic_is_not_stated_a_wrong_base_is_a_warning(tmp_path: Path, stated: bool | None) -> None:
    """Without a recipe, or with one that does not state the arithmetic, the merge is published, with its violations by tensor."""
    base, delta = wrong_pair(tmp_path)
    options: dict[str, Any] = {} if stated is None else {"recipe_file": recipe_file(tmp_path, stated=stated)}
    result, told = merge(tmp_path, **options)
    merge(tmp_path, "allowed", allow_unproved_base=True, **options)  # there is nothing to allow
    assert files_of(tmp_path / "allowed") == files_of(tmp_path / "merged")
    proof = manifest_of(tmp_path / "merged")["proof"]
    expected = proof_of_pair(base, delta, "F16")
    assert proof["verdict"] == "violated"
    assert proof["tensors"] == {name: each.violations for name, each in expected.items() if each.violations}
    assert list(proof) == ["weights", "region", "violations", "evidence", "verdict", "tensors"]
    assert result.proof is not None
    assert told.warnings == [violations_of(result.proof)]


def test_where_it_is_stated_a_wrong_base_is_refused_before_anything_is_published(tmp_path: Path) -> None:
    """With a stated arithmetic: ``Mismatch``, the shards wait in staging; ``allow_unproved_base`` publishes those very files."""
    wrong_pair(tmp_path)
    options: dict[str, Any] = {"recipe_file": recipe_file(tmp_path), "max_shard_size": 2500}
    with pytest.raises(Mismatch) as caught:
        merge(tmp_path, **options)
    assert caught.value.exit_code == 4
    assert not (tmp_path / "merged").exists()
    staged = {path.name: path.stat().st_ino for path in locate_target(tmp_path / "merged").shards.iterdir()}
    assert len(staged) >= 4
    result, told = merge(tmp_path, allow_unproved_base=True, **options)
    assert result.status == "merged"
    assert result.proof is not None
    assert str(caught.value) == (
        f"{violations_of(result.proof)}; use the right base; --allow-unproved-base publishes it anyway, "
        "deltaweights clean gives it up"
    )
    assert told.warnings == [violations_of(result.proof)]
    assert f"{len(staged)} of {len(staged)} shards are finished already" in told.notes
    assert {path.name: path.stat().st_ino for path in (tmp_path / "merged").glob("*.safetensors")} == staged
    assert list(manifest_of(tmp_path / "merged")["proof"].items())[-1] == ("allowed", True)
    assert not locate_target(tmp_path / "merged").root.exists()


def test_what_stands_there_is_judged_again(tmp_path: Path) -> None:
    """A complete target whose base was let pass is refused by a run that does not let it pass, told by one that does."""
    wrong_pair(tmp_path)
    own = recipe_file(tmp_path)
    first, _ = merge(tmp_path, recipe_file=own, allow_unproved_base=True)
    before = files_of(tmp_path / "merged")
    again, told = merge(tmp_path, recipe_file=own, allow_unproved_base=True)
    assert (again.status, again.proof) == ("already complete", first.proof)
    assert first.proof is not None
    assert told.warnings == [violations_of(first.proof)]
    with pytest.raises(Mismatch, match="the base is not the one that the delta was made from"):
        merge(tmp_path, recipe_file=own)
    assert files_of(tmp_path / "merged") == before


def test_a_result_that_stands_there_is_kept_when_another_base_is_refused(tmp_path: Path) -> None:
    """With ``overwrite``, a refused base leaves the earlier result as it is."""
    base, delta = SMALL(), delta_tensors(SMALL())
    own = recipe_file(tmp_path)
    merge_pair(tmp_path, base, delta, recipe_file=own)
    before = files_of(tmp_path / "merged")
    shutil.rmtree(tmp_path / "base")
    save(wrong_pair(tmp_path / "wrong")[0], tmp_path / "base", "torch", 1, config=False)
    with pytest.raises(Mismatch):
        merge(tmp_path, recipe_file=own, overwrite=True)
    assert files_of(tmp_path / "merged") == before


def test_allowing_what_is_proved_records_nothing(tmp_path: Path) -> None:
    """``allow_unproved_base`` on the right base writes the files that a merge without it writes."""
    save_pair(tmp_path, *moved(110_000))
    own = recipe_file(tmp_path)
    merge(tmp_path, "strictly", recipe_file=own)
    result, told = merge(tmp_path, "allowed", recipe_file=own, allow_unproved_base=True)
    assert result.proof is not None
    assert (result.proof.verdict, told.warnings) == ("proved", [])
    assert files_of(tmp_path / "allowed") == files_of(tmp_path / "strictly")


def other_arithmetic(folder: Path) -> Path:
    """Save a pair whose delta was computed in float32; return a recipe that states float16."""
    generator = torch.Generator().manual_seed(3)
    base = (torch.randn(100, 200, generator=generator) * STD).half()
    delta = (torch.randn(100, 200, generator=generator) * TUNING).half()
    save_pair(folder, {"w": base}, {"w": delta})
    return recipe_file(folder)


# A base with holes, and a delta that is none.


def zeros(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that was never filled."""
    return torch.zeros_like(tensor)


def noise(tensor: torch.Tensor) -> torch.Tensor:
    """Return numbers that are none of a model's."""
    return (torch.randn(tensor.shape, generator=torch.Generator().manual_seed(8)) * 1e-6).to(tensor.dtype)


HOLES = {"zeros": zeros, "noise": noise}


def holed_pair(folder: Path, fill: Callable[[torch.Tensor], torch.Tensor]) -> tuple[str, ...]:
    """Save a pair whose base lost layers 1 and 3 of four; return the names of their matrices, in natural order."""
    right = base_tensors(4, 320, 64)
    lost = [name for name, tensor in right.items() if tensor.ndim == 2 and name.startswith(LOST)]
    save_pair(folder, right | {name: fill(right[name]) for name in lost}, delta_tensors(right))
    return tuple(sorted(lost))


LOST = ("model.layers.1.", "model.layers.3.")


@pytest.mark.parametrize("fill", HOLES.values(), ids=HOLES)
def test_a_base_with_holes_is_not_proved(tmp_path: Path, fill: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """A base of which two layers are missing proves the rest, and exactly the matrices of those layers are untested."""
    lost = holed_pair(tmp_path, fill)
    assert len(lost) == 14
    result, told = merge(tmp_path)
    assert result.proof is not None
    assert (result.proof.verdict, result.proof.untested, result.proof.violations) == ("partial", lost, 0)
    assert not result.proof.allowed
    assert manifest_of(tmp_path / "merged")["proof"]["untested"] == list(lost)
    assert told.warnings[-1] == part_of(lost)
    assert check_base(tmp_path / "base", tmp_path / "delta").proof == result.proof


def part_of(lost: tuple[str, ...]) -> str:
    """Return what is said of a base without these."""
    few = f"of {lost[0]} and {len(lost) - 1} more tensors too few weights lie in the region"
    return f"the base is proved in part only: {few}; likely holes in the base, or a delta that is none"


@pytest.mark.parametrize("fill", HOLES.values(), ids=HOLES)
def test_where_it_is_stated_a_base_with_holes_is_refused(
    tmp_path: Path, fill: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """With a stated arithmetic a base with holes ends an apply; ``allow_unproved_base`` publishes it, which is recorded."""
    lost, own = holed_pair(tmp_path, fill), recipe_file(tmp_path)
    with pytest.raises(Mismatch) as caught:
        merge(tmp_path, recipe_file=own)
    assert str(caught.value) == (
        f"{part_of(lost)}; use the right base; --allow-unproved-base publishes it anyway, deltaweights clean gives it up"
    )
    assert not (tmp_path / "merged").exists()
    _, told = merge(tmp_path, recipe_file=own, allow_unproved_base=True)
    assert part_of(lost) in told.warnings
    proof = manifest_of(tmp_path / "merged")["proof"]
    assert (proof["verdict"], proof["untested"], proof["allowed"]) == ("partial", list(lost), True)
    found = parse_manifest((tmp_path / "merged" / "manifest.json").read_bytes()).findings.proof
    assert found is not None
    assert found.untested == lost


def codes(run: Run, folder: Path) -> dict[str, tuple[int, int]]:
    """Return how check-base and apply end for a pair, with a recipe that states its arithmetic and without one."""
    recipe_file(folder)
    found = {}
    for what, options in (("stated", ["--recipe", "own.toml"]), ("unstated", [])):
        inputs = ("--base", "base", "--delta", "delta", "-q", *options)
        check = run("check-base", *inputs, cwd=folder)
        done = run("apply", *inputs, "--target", what, cwd=folder)
        found[what] = check.returncode, done.returncode
        assert (folder / what).exists() == (done.returncode == 0)
        kind = "error" if done.returncode else "warning"
        assert done.stderr.splitlines()[-1].startswith(f"deltaweights: {kind}: the base ")
    return found


@pytest.mark.parametrize("fill", HOLES.values(), ids=HOLES)
def test_row58_exit_codes_of_a_base_with_holes(
    run: Run, tmp_path: Path, fill: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """A base with holes ends check-base and apply with 4 where the arithmetic is stated; else with 6, and 0 and a warning."""
    holed_pair(tmp_path, fill)
    assert codes(run, tmp_path) == {"stated": (4, 4), "unstated": (6, 0)}


def test_row58_exit_codes_of_another_arithmetic(run: Run, tmp_path: Path) -> None:
    """A delta of another arithmetic ends check-base and apply with 4 where one is stated; else with 6, and 0 and a warning."""
    other_arithmetic(tmp_path)
    assert codes(run, tmp_path) == {"stated": (4, 4), "unstated": (6, 0)}


def test_row58_exit_codes_of_another_base(run: Run, tmp_path: Path) -> None:
    """A refuted base ends check-base with 4, stated or not, and apply with 4 where the arithmetic is stated, else with 0."""
    wrong_pair(tmp_path)
    assert codes(run, tmp_path) == {"stated": (4, 4), "unstated": (4, 0)}


def test_what_check_base_says_of_another_arithmetic(run: Run, tmp_path: Path) -> None:
    """Its one line is apply's, with the way out: another base where the arithmetic is stated, else another arithmetic."""
    other_arithmetic(tmp_path)
    result, told = merge(tmp_path)
    (problem,) = told.warnings
    assert problem.startswith("the base cannot be proved: ")
    inputs = ("--base", "base", "--delta", "delta", "-q")
    line = f"base            {proof_line(result.proof)}\n"
    stated = run("check-base", *inputs, "--recipe", "own.toml", cwd=tmp_path)
    remedy = "use the base that the delta was made from"
    assert (stated.stdout, stated.stderr) == (line, f"deltaweights: error: base: {problem}; {remedy}\n")
    unstated = run("check-base", *inputs, cwd=tmp_path)
    remedy = "try --compute-dtype, if you know in which arithmetic the delta was computed"
    assert (unstated.stdout, unstated.stderr) == (line, f"deltaweights: error: base: {problem}; {remedy}\n")


@pytest.mark.parametrize(("options", "code"), [((), 6), (("--recipe", "own.toml"), 4)], ids=["unstated", "stated"])
def test_what_check_base_says_of_holes(run: Run, tmp_path: Path, options: tuple[str, ...], code: int) -> None:
    """Its one line is apply's, and the way out is the right base: no other arithmetic fills a hole."""
    lost = holed_pair(tmp_path, zeros)
    recipe_file(tmp_path)
    done = run("check-base", "--base", "base", "--delta", "delta", "-q", *options, cwd=tmp_path)
    error = f"deltaweights: error: base: {part_of(lost)}; use the base that the delta was made from\n"
    assert (done.returncode, done.stderr) == (code, error)


TUNINGS = {"of 2 %": TUNING, "hardly any": 2e-5, "half the weights' size": STD / 2}


@pytest.mark.parametrize("step", TUNINGS.values(), ids=TUNINGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_row58_a_merged_model_in_place_of_a_delta_proves_nothing(tmp_path: Path, dtype: str, step: float) -> None:
    """``check_base`` never says that a merged model proves its base, however little it was tuned, with or without a recipe."""
    base = base_tensors(6, 320, 64, dtype=DTYPES[dtype])
    base = {name: tensor for name, tensor in base.items() if not name.endswith("inv_freq")}
    generator = torch.Generator().manual_seed(9)
    merged = {
        name: (tensor.float() + torch.randn(tensor.shape, generator=generator) * step).to(tensor.dtype)
        for name, tensor in base.items()
    }
    save_pair(tmp_path, base, merged)
    own, told = recipe_file(tmp_path, dtype), Told()
    found = check_base(tmp_path / "base", tmp_path / "delta", compute_dtype=dtype, report=told)
    assert found.proof is not None
    assert found.proof.evidence > 100_000
    assert not found.proved
    with pytest.raises((Mismatch, CheckFailed)):
        found.raise_unless_proved()
    assert told.warnings[0].startswith(f"{tmp_path / 'delta'}: likely already a merged model, not a delta: found ")
    with pytest.raises(Mismatch, match=r"likely already a merged model, not a delta: .*; give the delta itself$"):
        check_base(tmp_path / "base", tmp_path / "delta", recipe_file=own)


def test_another_arithmetic_than_the_stated_one_is_refused(tmp_path: Path) -> None:
    """Where the arithmetic is stated, a delta from another one does not pass as its own."""
    with pytest.raises(Mismatch, match=r"^the base cannot be proved: .* likely the delta was computed in another"):
        merge(tmp_path, recipe_file=other_arithmetic(tmp_path))
    assert not (tmp_path / "merged").exists()


def test_another_arithmetic_that_was_let_pass_is_recorded(tmp_path: Path) -> None:
    """``allowed`` is true wherever a recipe would have refused and the user insisted."""
    merge(tmp_path, recipe_file=other_arithmetic(tmp_path), allow_unproved_base=True)
    proof = manifest_of(tmp_path / "merged")["proof"]
    assert (proof["verdict"], proof.get("allowed")) == ("another arithmetic", True)


@pytest.mark.parametrize("stated", [True, False])
def test_that_nobody_looked_is_told_where_it_is_stated(tmp_path: Path, stated: bool) -> None:
    """With ``prove=False`` a recipe that states the arithmetic gives a warning, also when the result is there; others do not."""
    save_pair(tmp_path, *moved(110_000))
    own = recipe_file(tmp_path, stated=stated)
    expected = [NOBODY_LOOKED] if stated else []
    for status in ("merged", "already complete"):
        result, told = merge(tmp_path, recipe_file=own, prove=False)
        assert (result.status, told.warnings) == (status, expected)
    assert merge(tmp_path, "plain", prove=False)[1].warnings == []


NOBODY_LOOKED = "the base is not proved: nobody looked (--no-prove)"


def test_exit_codes(tmp_path: Path, run: Run) -> None:
    """A refuted base ends with 4 and one line where it is stated, with 0 where it is let pass, not stated, or not looked at."""
    wrong_pair(tmp_path)
    recipe_file(tmp_path)
    command = ("apply", "--base", "base", "--delta", "delta", "-q")
    refused = run(*command, "--target", "a", "--recipe", "own.toml", cwd=tmp_path)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (4, "", 1)
    assert refused.stderr.startswith("deltaweights: error: the base is not the one that the delta was made from: ")
    for target, more in {"a": ["--recipe", "own.toml", "--allow-unproved-base"], "b": []}.items():
        done = run(*command, "--target", target, *more, cwd=tmp_path)
        assert done.returncode == 0
        assert done.stderr.startswith("deltaweights: warning: the base is not the one that the delta was made from: ")
        assert "\nbase            NOT proved: " in done.stdout
    unseen = run(*command, "--target", "c", "--recipe", "own.toml", "--no-prove", cwd=tmp_path)
    assert (unseen.returncode, unseen.stderr) == (0, f"deltaweights: warning: {NOBODY_LOOKED}\n")
    assert "proved" not in unseen.stdout


def test_without_the_proof_the_weights_are_the_same(tmp_path: Path) -> None:
    """``prove=False`` writes the same weights, records nothing of the base in manifest and result, and refuses no base."""
    wrong_pair(tmp_path)
    own = recipe_file(tmp_path)
    proved, _ = merge(tmp_path, "proved", recipe_file=own, allow_unproved_base=True, max_shard_size=2500)
    blind, told = merge(tmp_path, "blind", recipe_file=own, prove=False, max_shard_size=2500)
    assert blind.proof is None
    assert proof_line(blind.proof) is None
    assert told.warnings == [NOBODY_LOOKED]
    assert "proof" not in manifest_of(tmp_path / "blind")
    assert "proof" in manifest_of(tmp_path / "proved")
    assert without_card(tmp_path / "blind") == without_card(tmp_path / "proved")
    assert blind.content_digest == proved.content_digest


class Killed(BaseException):
    """What ends a run in these tests."""


@contextmanager
def killed_after(finished: int) -> Iterator[None]:
    """Let runs die when so many shards are finished."""
    number, really_keep = count(), StagedShards.keep

    def keep(self: StagedShards, fragment: Fragment) -> None:
        if next(number) >= finished:
            raise Killed
        really_keep(self, fragment)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StagedShards, "keep", keep)
        yield


@pytest.mark.parametrize("finished", [1, 3])
def test_a_run_that_was_cut_off_counts_like_one_that_was_not(tmp_path: Path, finished: int) -> None:
    """A run that dies after some shards and goes on writes the manifest of an uninterrupted one: proof, numbers and all."""
    base, delta = wrong_pair(tmp_path)
    for tensor in list(delta.values())[1::3]:
        tensor.view(-1)[0] = torch.inf
    base["model.layers.0.mlp.up_proj.weight"] = torch.full_like(base["model.layers.0.mlp.up_proj.weight"], 0.5)
    for folder in ("base", "delta"):
        shutil.rmtree(tmp_path / folder)
    save_pair(tmp_path, base, delta)
    options: dict[str, Any] = {"max_shard_size": 2500, "workers": 2}
    whole, _ = merge(tmp_path, "whole", **options)
    assert whole.shards > finished + 1
    with killed_after(finished), pytest.raises(Killed):
        merge(tmp_path, **options)
    resumed, told = merge(tmp_path, **options)
    assert f"{finished} of {whole.shards} shards are finished already" in told.notes
    assert resumed.proof == whole.proof
    assert whole.nonfinite
    assert whole.uniform
    assert files_of(tmp_path / "merged") == files_of(tmp_path / "whole")


# The health of the numbers.

ANYWAY = "check the inputs; run without --strict to publish it, or give it up with deltaweights clean"

TOO_LARGE = "too large for the dtype"


@dataclass(frozen=True)
class Sick:
    """Numbers to put somewhere (tensor, place, base's number or None, delta's), options, and what is to be found and told."""

    numbers: Sequence[tuple[str, int, float | None, float]]
    nonfinite: dict[str, int]
    base: dict[str, int]
    primary: dict[str, int]
    overflow: dict[str, int]
    causes: str
    dtype: torch.dtype = torch.float16
    options: dict[str, Any] = field(default_factory=dict)


NAN, INF = math.nan, math.inf

F32 = {"compute_dtype": "float32"}

SICK = {
    "base alone": Sick(
        [("w", 0, NAN, 1), ("w", 7, INF, 1), ("w", 14, -INF, -0.0)],
        {"w": 3}, {"w": 3}, {}, {}, "3 of the base",
    ),
    "delta alone": Sick(
        [("w", 0, 1, NAN), ("w", 14, 0, -INF)],
        {"w": 2}, {}, {"w": 2}, {}, "2 of the delta",
    ),
    "both, in one weight and in others": Sick(
        [("w", 0, INF, -INF), ("w", 3, NAN, INF), ("w", 4, NAN, 0), ("w", 9, 0, INF)],
        {"w": 4}, {"w": 3}, {"w": 3}, {}, "3 of the base, 3 of the delta",
    ),
    "a sum that is too large": Sick(
        [("w", 0, 65504, 16), ("w", 1, 65504, 15.99), ("w", 2, -65504, -65504), ("w", 3, 65504, -65504)],
        {"w": 2}, {}, {}, {"w": 2}, f"2 {TOO_LARGE}",
    ),
    "inputs that are too large": Sick(
        [("w", 0, 1e7, 1), ("w", 1, 0, -1e6), ("w", 2, 1e6, -1e6), ("w", 3, 65519, 0)],
        {"w": 3}, {}, {}, {"w": 3}, f"3 {TOO_LARGE}", torch.float32,
    ),
    "a result that is too large to be stored": Sick(
        [("w", 0, 40000, 40000), ("w", 1, 40000, 20000), ("w", 2, 3e38, 3e38), ("w", 3, INF, 3e38)],
        {"w": 3}, {"w": 1}, {}, {"w": 2}, f"1 of the base, 2 {TOO_LARGE}", torch.float32, F32 | {"dtype": "float16"},
    ),
    "a result that rounds to infinity in bfloat16": Sick(
        [("w", 0, 3.4e38, 0), ("w", 1, 3.3e38, 0)],
        {"w": 1}, {}, {}, {"w": 1}, f"1 {TOO_LARGE}", torch.float32, F32 | {"dtype": "bfloat16"},
    ),
    "a copy": Sick(
        [(PROJECTOR, 0, None, NAN), (PROJECTOR, 14, None, -INF)],
        {PROJECTOR: 2}, {}, {PROJECTOR: 2}, {}, "2 of the delta",
    ),
    "a copy that is too large": Sick(
        [(PROJECTOR, 0, None, 1e6)],
        {PROJECTOR: 1}, {}, {}, {PROJECTOR: 1}, f"1 {TOO_LARGE}", torch.float32,
    ),
    "the first of the delta, others too large": Sick(
        [(PROJECTOR, 0, None, NAN), ("v", 1, 65504, 16), ("w", 2, 65504, 16)],
        {PROJECTOR: 1, "v": 1, "w": 1}, {}, {PROJECTOR: 1}, {"v": 1, "w": 1},
        f"1 of the delta, 2 {TOO_LARGE}, as in v",
    ),
    "all at once": Sick(
        [("w", 0, NAN, 0), (PROJECTOR, 1, None, INF), ("v", 2, 65504, 65504), ("v", 3, NAN, INF)],
        {PROJECTOR: 1, "v": 2, "w": 1}, {"v": 1, "w": 1}, {PROJECTOR: 1, "v": 1}, {"v": 1},
        f"2 of the base, as in v, 2 of the delta, 1 {TOO_LARGE}, as in v",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SICK)
def test_numbers_that_are_not_finite_are_counted_by_where_they_are_from(tmp_path: Path, case: str) -> None:
    """Exact counts of the result, of either input and of overflow, in any blocks; one warning; ``strict`` makes it fatal."""
    sick = SICK[case]
    base = {name: torch.arange(1, 16).reshape(3, 5).to(sick.dtype) / 64 for name in "wv"}
    delta = {name: tensor / 64 for name, tensor in [*base.items(), (PROJECTOR, base["w"])]}
    for name, place, of_base, of_delta in sick.numbers:
        delta[name].view(-1)[place] = of_delta
        if of_base is not None:
            base[name].view(-1)[place] = of_base
    save_pair(tmp_path, base, delta)
    first, *others = sick.nonfinite
    tensors = f"{1 + len(others)} tensors" if others else "1 tensor"
    found = f"found {sum(sick.nonfinite.values())} NaN or infinite weights in {tensors} ({sick.causes})"
    warning = f"tensor {first}: result is not finite: {found}"
    counts = {
        "nonfinite": sick.nonfinite,
        "nonfinite_base": sick.base,
        "nonfinite_lead": sick.primary,
        "overflow": sick.overflow,
    }
    for block in (1 << 20, 4):
        with blocks_of(block):
            result, told = merge(tmp_path, str(block), prove=False, **sick.options)
        assert {key: getattr(result, key) for key in counts} == counts
        manifest = manifest_of(tmp_path / str(block))
        assert {key: manifest[key] for key in counts if key in manifest} == {
            key: number for key, number in counts.items() if number or key == "nonfinite"
        }
        assert told.warnings == [warning]
    with pytest.raises(CheckFailed) as caught:
        merge(tmp_path, "strict", prove=False, strict=True, **sick.options)
    assert (caught.value.exit_code, str(caught.value)) == (6, f"{warning}; {ANYWAY}")
    assert not (tmp_path / "strict").exists()
    assert merge(tmp_path, "strict", prove=False, **sick.options)[0].nonfinite == sick.nonfinite
    with pytest.raises(CheckFailed):
        merge(tmp_path, "strict", prove=False, strict=True, **sick.options)


@pytest.mark.parametrize("block", [1 << 20, 7, 3])
def test_numbers_of_a_grown_embedding_are_counted_where_they_meet(tmp_path: Path, block: int) -> None:
    """Of a narrower base each number is counted with the weight that it meets; new rows and columns are the delta's."""
    base, delta = {EMBEDDING: torch.ones(3, 4).half()}, {EMBEDDING: torch.full((5, 6), 0.5).half()}
    base[EMBEDDING][1, 3], base[EMBEDDING][2, 0] = INF, 65504
    delta[EMBEDDING][1, 3], delta[EMBEDDING][2, 0] = -INF, 65504
    delta[EMBEDDING][1, 4], delta[EMBEDDING][4, 5] = NAN, INF
    with blocks_of(block):
        result, _ = merge_pair(tmp_path, base, delta)
    found = result.nonfinite, result.nonfinite_base, result.nonfinite_lead, result.overflow
    assert found == ({EMBEDDING: 4}, {EMBEDDING: 1}, {EMBEDDING: 3}, {EMBEDDING: 1})


def test_healthy_numbers_are_not_spoken_of(tmp_path: Path) -> None:
    """Where all is finite and no matrix uniform, ``strict`` passes, and the manifest has an empty ``nonfinite`` and no more."""
    result, told = merge_pair(tmp_path, *moved(110_000), strict=True)
    assert told.warnings == []
    assert Findings(**{key: getattr(result, key) for key in vars(Findings())}) == Findings(proof=result.proof)
    keys = {*manifest_of(tmp_path / "merged")} & {*vars(Findings())}
    assert keys == {"nonfinite", "proof"}


# Uniform matrices.

ROWS, COLUMNS = 40, 30


def varied(*shape: int) -> torch.Tensor:
    """Return numbers no two neighbours of which are equal, and which are exact in float16 with halves added."""
    return (torch.arange(math.prod(shape)) % 7 + 1).reshape(shape).half()


UNIFORM: dict[str, tuple[Tensors, Tensors, dict[str, list[str]]]] = {
    "base of zeros": ({"w": torch.zeros(ROWS, COLUMNS)}, {"w": varied(ROWS, COLUMNS)}, {"w": ["base"]}),
    "base of halves": ({"w": torch.full((ROWS, COLUMNS), 0.5)}, {"w": varied(ROWS, COLUMNS)}, {"w": ["base"]}),
    "delta of zeros": ({"w": varied(ROWS, COLUMNS)}, {"w": torch.zeros(ROWS, COLUMNS)}, {"w": ["lead"]}),
    "result alone": ({"w": varied(ROWS, COLUMNS)}, {"w": 8 - varied(ROWS, COLUMNS)}, {"w": ["result"]}),
    "all": ({"w": torch.ones(2, 3)}, {"w": torch.zeros(2, 3)}, {"w": ["result", "base", "lead"]}),
    "a copy": (
        {"w": torch.rand(3)},
        {"w": torch.rand(3), PROJECTOR: torch.ones(9, 9)},
        {PROJECTOR: ["result", "lead"]},
    ),
    "a grown base": ({EMBEDDING: torch.zeros(5, 6)}, {EMBEDDING: varied(7, 6)}, {EMBEDDING: ["base"]}),
    "a narrower base": ({EMBEDDING: torch.ones(5, 4)}, {EMBEDDING: varied(7, 6)}, {EMBEDDING: ["base"]}),
    "three axes": ({"w": torch.ones(2, 3, 4)}, {"w": varied(2, 3, 4)}, {"w": ["base"]}),
    "several": (
        {name: torch.zeros(2, 3) for name in "cab"},
        {name: varied(2, 3) for name in "cab"},
        {name: ["base"] for name in "abc"},
    ),
    "vectors": ({"w": torch.ones(ROWS)}, {"w": torch.zeros(ROWS)}, {}),
    "scalars": ({"w": torch.tensor(1.0)}, {"w": torch.tensor(0.0)}, {}),
    "one element": ({"w": torch.ones(1, 1)}, {"w": torch.zeros(1, 1)}, {}),
    "no elements": ({"w": torch.ones(0, 3)}, {"w": torch.zeros(0, 3)}, {}),
}


def what_is_told(uniform: dict[str, list[str]]) -> list[str]:
    """Return the warnings that are due: of base and result, never of a delta, which may well be zero."""
    warnings = []
    for role in ("base", "result"):
        names = [name for name, roles in uniform.items() if role in roles]
        more = f" and {len(names) - 1} more tensor{'s' * (len(names) > 2)}" if len(names) > 1 else ""
        if names:
            warnings.append(
                f"tensor {names[0]}{more}: all elements of the {role} are one number, where weights are expected"
            )
    return warnings


@pytest.mark.parametrize("block", [1 << 20, 64, 7])
@pytest.mark.parametrize("case", UNIFORM)
def test_matrices_of_one_number_are_named(tmp_path: Path, case: str, block: int) -> None:
    """The manifest says which of base, delta and result hold one number; base and result are warned of, fatally if strict."""
    base, delta, uniform = UNIFORM[case]
    save_pair(tmp_path, base, {name: tensor.half() for name, tensor in delta.items()})
    with blocks_of(block):
        result, told = merge(tmp_path, prove=False)
    assert {name: [*roles] for name, roles in result.uniform.items()} == uniform
    assert list(result.uniform) == list(uniform)
    assert manifest_of(tmp_path / "merged").get("uniform", {}) == uniform
    wanted = what_is_told(uniform)
    assert [text for text in told.warnings if "one number" in text] == wanted
    again, told = merge(tmp_path, prove=False)
    assert (again.status, again.uniform) == ("already complete", result.uniform)
    assert [text for text in told.warnings if "one number" in text] == wanted
    for name in ("merged", "strict"):
        if wanted:
            with pytest.raises(CheckFailed) as caught:
                merge(tmp_path, name, prove=False, strict=True)
            assert str(caught.value) == f"{wanted[0]}; {ANYWAY}"
        else:
            merge(tmp_path, name, prove=False, strict=True)
    assert (tmp_path / "strict").exists() == (not wanted)


@pytest.mark.parametrize("block", [1 << 20, 600, 64, 7, 1])
@pytest.mark.parametrize("place", [0, 1, 6, 7, 63, 64, 65, 599, 600, ROWS * COLUMNS - 1])
def test_one_other_element_makes_a_matrix_ordinary(tmp_path: Path, place: int, block: int) -> None:
    """One element that differs in its lowest bit, first, last or at a block's border, and the matrix is not named."""
    base, delta = torch.full((ROWS, COLUMNS), 0.5).half(), torch.zeros(ROWS, COLUMNS).half()
    for tensor, other in ((base, 0.50048828125), (delta, 6e-8)):
        assert (words_of(tensor)[0] ^ words_of(torch.tensor(other).half())[0]) == 1
    pair = (
        {"spoiled base": base.clone(), "spoiled delta": base},
        {"spoiled base": delta, "spoiled delta": delta.clone()},
    )
    pair[0]["spoiled base"].view(-1)[place] = 0.50048828125
    pair[1]["spoiled delta"].view(-1)[place] = 6e-8
    with blocks_of(block):
        result, _ = merge_pair(tmp_path, *pair, prove=False)
    assert result.uniform == {"spoiled base": ("lead",), "spoiled delta": ("result", "base")}


def test_a_delta_that_is_made_may_be_zero_for_some_tensors(tmp_path: Path) -> None:
    """A tensor that was not tuned gives a delta of zeros: nothing to warn of, nor to refuse."""
    base = {"w": varied(3, 4), "v": varied(5, 6)}
    save(base, tmp_path / "base")
    save(base | {"w": base["w"] * 1.5}, tmp_path / "target")
    told = Told()
    make_delta(tmp_path / "base", tmp_path / "target", tmp_path / "made", strict=True, report=told)
    assert told.warnings == []


# New rows.

ZERO, MEAN = '[rules]\nnew_rows = "zero"\n', '[rules]\nnew_rows = "mean"\n'


def grown(dtype: torch.dtype, new: int = 4, rows: int = 20, columns: int = 16) -> tuple[Tensors, Tensors]:
    """Return a pair of which embedding and head have new rows, with zeros of both signs and NaN among them."""
    generator = torch.Generator().manual_seed(4)
    base = {name: torch.randn(rows, columns, generator=generator).to(dtype) for name in (*GROWN, "w")}
    delta = {name: (torch.randn(rows, columns, generator=generator) / 50).to(dtype) for name in base}
    for name in GROWN:
        added = torch.randn(new, columns, generator=generator).to(dtype)
        added[0, ::3], added[-1, 1::3], added[new // 2, 2::5] = -0.0, 0.0, -0.0
        delta[name] = torch.cat([delta[name], added])
    return base, delta


@pytest.mark.parametrize("block", [1 << 20, 100, 16, 7, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_added_to_zeros_lose_the_sign_of_zero(tmp_path: Path, dtype: str, block: int) -> None:
    """Under ``zero`` -0 of new rows becomes +0, and nothing else differs from ``copy``, which keeps it; fates say which."""
    base, delta = grown(DTYPES[dtype])
    save_pair(tmp_path, base, delta)
    with blocks_of(block):
        zero, _ = merge(tmp_path, "zero", recipe_file=recipe_file(tmp_path, dtype, stated=False, more=ZERO), workers=3)
        copy, _ = merge(tmp_path, "copy", compute_dtype=dtype, workers=3)
    of_zero, of_copy = load(tmp_path / "zero"), load(tmp_path / "copy")
    assert (zero.fates["add_zero_rows"], zero.fates["add_block"]) == (2, 0)
    assert copy.fates["add_block"] == 2
    for name, primary in delta.items():
        old = base[name].shape[0]
        assert torch.equal(bits(of_zero[name][:old]), bits(of_copy[name][:old]))
        assert torch.equal(bits(of_copy[name][old:]), bits(primary[old:]))
        assert torch.equal(bits(of_zero[name][old:]), bits(primary[old:] + 0))
        negative = (primary[old:] == 0) & primary[old:].signbit()
        changed = bits(of_zero[name][old:]) != bits(of_copy[name][old:])
        assert torch.equal(changed, negative)
        assert negative.any() == (name in GROWN)
    fates = {name: tensor["fate"] for name, tensor in manifest_of(tmp_path / "zero")["tensors"].items()}
    assert fates == {EMBEDDING: "add_zero_rows", "lm_head.weight": "add_zero_rows", "w": "add"}


def mean_row(base: torch.Tensor) -> list[int]:
    """Return the mean of a matrix's rows, as documented: summed in float64 from the first on, divided, rounded to float32."""
    totals = [0.0] * base.shape[1]
    for row in base.double().tolist():
        totals = [total + x for total, x in zip(totals, row, strict=True)]
    return [nearest(total / base.shape[0], "F32") for total in totals]


@pytest.mark.parametrize("new", [1, 5])
@pytest.mark.parametrize("given", DTYPES)
def test_rows_that_are_added_to_the_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, new: int) -> None:
    """Under ``mean`` each new row is the delta's and the documented mean, added once in float32, in any blocks by any workers."""
    base, delta = grown(DTYPES[given], new)
    save_pair(tmp_path, base, delta)
    own = recipe_file(tmp_path, "float32", stated=False, more=MEAN)
    whole, _ = merge(tmp_path, "whole", recipe_file=own, workers=1)
    merged = load(tmp_path / "whole")
    assert whole.fates["add_mean_rows"] == 2
    for name in GROWN:
        mean, rows = mean_row(base[name]), delta[name][20:].float()
        wanted = [total_of(m, d, "F32") for row in rows for m, d in zip(mean, words_of(row), strict=True)]
        assert words_of(merged[name][20:]) == wanted
        assert torch.equal(merged[name][:20], base[name].float() + delta[name][:20].float())
    assert torch.equal(merged["w"], base["w"].float() + delta["w"].float())
    # Blocks that begin and end within old and new rows; a base that is read in several pieces for its mean.
    for block, read in ((100, 1 << 19), (16, 3 * 16 * 4), (7, 64), (1, 1)):
        monkeypatch.setattr("deltaweights.merge.new_rows.READ", read)
        with blocks_of(block):
            merge(tmp_path, "again", recipe_file=own, workers=3)
        assert files_of(tmp_path / "again") == files_of(tmp_path / "whole")
        shutil.rmtree(tmp_path / "again")


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("compute", DTYPES)
def test_new_rows_are_stored_as_anything(tmp_path: Path, compute: str, stored: str) -> None:
    """Sums with zeros or a mean are rounded once to the stored dtype, wherever blocks are cut, like the rows above them."""
    save_pair(tmp_path, *grown(torch.float32))
    for rule in (ZERO, MEAN) if compute == "float32" else (ZERO,):
        own = recipe_file(tmp_path, compute, stated=False, more=rule)
        for folder in ("plain", "stored"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)
        merge(tmp_path, "plain", recipe_file=own)
        with blocks_of(37):
            merge(tmp_path, "stored", recipe_file=own, dtype=stored)
        plain, found = load(tmp_path / "plain"), load(tmp_path / "stored")
        assert same_bits(found, {name: tensor.to(DTYPES[stored]) for name, tensor in plain.items()})


def test_the_mean_is_rounded_correctly_and_torch_s_is_near(tmp_path: Path) -> None:
    """The mean of many rows is within half a place of the exact one; torch's float32 mean within a rounding of the mean magnitude.

    torch's may be many places of the mean itself away: positive and negative numbers cancel, its float32 roundings do not.
    """
    rows = 3000
    base = torch.randn(rows, 16, generator=torch.Generator().manual_seed(6)) * STD
    delta = torch.cat([torch.zeros(rows, 16), torch.full((1, 16), -0.0)])
    save_pair(tmp_path, {EMBEDDING: base}, {EMBEDDING: delta})
    merge(tmp_path, recipe_file=recipe_file(tmp_path, "float32", stated=False, more=MEAN))
    found = load(tmp_path / "merged")[EMBEDDING][rows]
    exact = torch.tensor([math.fsum(column) / rows for column in base.double().T.tolist()], dtype=torch.float64)
    place = torch.from_numpy(np.spacing(found.abs().numpy())).double()
    assert ((found.double() - exact).abs() <= place * 0.5001).all()
    assert torch.equal(found, exact.float())
    by_torch = base.mean(dim=0)
    magnitude = base.double().abs().mean(dim=0)
    assert ((by_torch.double() - found.double()).abs() <= 2**-23 * magnitude).all()


def test_a_mean_in_float16_is_refused(tmp_path: Path) -> None:
    """The mean is made in float32: a recipe that adds in float16 is malformed, and nothing is written."""
    save_pair(tmp_path, *grown(torch.float16))
    own = recipe_file(tmp_path, "float16", stated=False, more=MEAN)
    expected = (
        r'rules.new_rows is not usable: found "mean", expected mean only with arithmetic.compute_dtype = "float32"'
    )
    with pytest.raises(MalformedInput, match=expected):
        merge(tmp_path, recipe_file=own)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "delta", "own.toml"]


@pytest.mark.parametrize("rule", [ZERO, MEAN], ids=["zero", "mean"])
def test_a_narrower_base_has_no_rows_to_add_to(tmp_path: Path, rule: str) -> None:
    """A base with fewer columns is refused where new rows are added to zeros or a mean, and taken where they are copied."""
    base, delta = grown(torch.float32)
    base[EMBEDDING] = base[EMBEDDING][:, :15].clone()
    save_pair(tmp_path, base, delta)
    with pytest.raises(
        Mismatch, match=r"shapes do not fit: found \[20, 15\] in the base, expected \[24, 16\], as in the delta"
    ):
        merge(tmp_path, recipe_file=recipe_file(tmp_path, "float32", stated=False, more=rule))
    assert merge(tmp_path, compute_dtype="float32")[0].status == "merged"


@pytest.mark.parametrize("rule", [ZERO, MEAN], ids=["zero", "mean"])
def test_a_base_with_all_rows_has_no_new_ones(tmp_path: Path, rule: str) -> None:
    """Where the delta has as many rows as its base, every rule adds."""
    base, delta = grown(torch.float32)
    delta = {name: tensor[:20].clone() for name, tensor in delta.items()}
    result, _ = merge_pair(tmp_path, base, delta, recipe_file=recipe_file(tmp_path, "float32", stated=False, more=rule))
    assert result.fates == {"add": 3, "add_block": 0, "copy": 0, "dropped": 0}
    assert torch.equal(load(tmp_path / "merged")[EMBEDDING], base[EMBEDDING] + delta[EMBEDDING])


@pytest.mark.parametrize(
    "shape",
    [
        (0, 4),
        (3, 0),
    ],
    ids=str,
)
def test_the_mean_of_nothing_is_zero(tmp_path: Path, shape: tuple[int, int]) -> None:
    """A base without rows or columns is no traceback: new rows are the delta's."""
    delta = torch.ones(6, shape[1])
    merge_pair(
        tmp_path,
        {EMBEDDING: torch.zeros(shape)},
        {EMBEDDING: delta},
        recipe_file=recipe_file(tmp_path, "float32", stated=False, more=MEAN),
    )
    assert torch.equal(load(tmp_path / "merged")[EMBEDDING], delta)


def test_an_infinite_mean_is_the_base_s_fault(tmp_path: Path) -> None:
    """Where the base's mean is infinite, the new rows are not what finite inputs gave."""
    base = torch.ones(3, 4)
    base[1, 2] = INF
    own = recipe_file(tmp_path, "float32", stated=False, more=MEAN)
    result, _ = merge_pair(tmp_path, {EMBEDDING: base}, {EMBEDDING: torch.ones(5, 4)}, recipe_file=own)
    assert result.nonfinite == {EMBEDDING: 3}
    assert result.overflow == {}


@pytest.mark.parametrize(
    "strange", [[0x7F80_0000, 0xFF80_0000], [0x7F80_0001]], ids=["both-infinities", "signalling-nan"]
)
def test_a_mean_that_is_nan_is_no_warning_of_numpy_s(tmp_path: Path, strange: list[int]) -> None:
    """Infinities of both signs in a column, or a NaN, give a mean that is NaN, which is counted, and no other word of it."""
    base = torch.ones(3, 4)
    base[: len(strange), 2] = of_bits(strange, torch.float32)
    own = recipe_file(tmp_path, "float32", stated=False, more=MEAN)
    result, _ = merge_pair(tmp_path, {EMBEDDING: base}, {EMBEDDING: torch.ones(5, 4)}, recipe_file=own)
    assert result.nonfinite == {EMBEDDING: len(strange) + 2}


# Published sums.

FREQUENCIES = 238.7185
"""The sum of the inv_freq buffers of LLaMA-1 7B, 32 layers of heads of 128, as docs/recipes.md has it."""


def recipe_with_sum(
    published: float, tolerance: float, *, buffers: bool = False, shapes: dict[str, int] | None = None
) -> Recipe:
    """Return a recipe with a published sum."""
    checks = {"sum": published, "tolerance": tolerance, "with_buffers": buffers}
    head = {"format": "deltaweights-recipe", "version": 1, "name": "own", "arithmetic": {"compute_dtype": "float32"}}
    return parse_recipe(head | {"checks": checks, "shapes": shapes or {}}, "own.toml")


def records(*sums: float | None) -> list[TensorRecord]:
    """Return records of tensors that have these sums."""
    return [TensorRecord(f"w{at}", "d", "b", "l", Tally(sum=total)) for at, total in enumerate(sums)]


LLAMA = {"hidden_size": 4096, "layers": 32, "heads": 32}


@pytest.mark.parametrize(
    ("sums", "recipe", "found"),
    [
        ((1.0, 2.5, None, -0.25), recipe_with_sum(3.0, 0.25), SumFound(found=3.25, published=3.0, tolerance=0.25, agrees=True)),
        ((1.0, 2.5), recipe_with_sum(3.25, 0.2), SumFound(found=3.5, published=3.25, tolerance=0.2, agrees=False)),
        ((-8.0,), recipe_with_sum(-8.0, 0), SumFound(found=-8.0, published=-8.0, tolerance=0.0, agrees=True)),
        ((1e16, 1.0, -1e16), recipe_with_sum(1, 0), SumFound(found=1.0, published=1.0, tolerance=0.0, agrees=True)),
        ((), recipe_with_sum(1, 0.5), SumFound(found=0.0, published=1.0, tolerance=0.5, agrees=False)),
    ],
)  # fmt: skip
def test_a_sum_agrees_within_its_tolerance(sums: Sequence[float | None], recipe: Recipe, found: SumFound) -> None:
    """The sums of all tensors, added without a rounding, are compared with the published one, and told, or warned of."""
    told = Told()
    assert check_sum(records(*sums), recipe, told) == found
    line = f"sum of all elements {found.found:.4f}, published {found.published} (within {found.tolerance})"
    if found.agrees:
        assert (told.notes, told.warnings) == ([f"sum             agrees: {line}"], [])
    else:
        doubt = "base or delta may be another, or damaged"
        assert (told.notes, told.warnings) == ([], [f"sum does not agree: {line}; {doubt}"])


def test_a_sum_over_buffers_adds_them() -> None:
    """``with_buffers`` adds the frequencies of every layer, 238.7185 for LLaMA-1 7B, and without it nothing is added."""
    exact = math.fsum(32 / 10000 ** (2 * i / 128) for i in range(64))
    assert round(exact, 4) == FREQUENCIES
    buffers = torch.cat([1.0 / 10000 ** (torch.arange(0, 128, 2).double() / 128)] * 32)
    assert abs(float(buffers.sum()) - exact) < 1e-9
    for with_buffers, more in ((True, FREQUENCIES), (False, 0)):
        recipe = recipe_with_sum(50637.1836, 0.01, buffers=with_buffers, shapes=LLAMA)
        found = check_sum(records(50000.0, 637.1836 - more), recipe, Told())
        assert found is not None
        assert found.agrees
        assert found.found is not None
        assert abs(found.found - 50637.1836) < 1e-4


def test_without_a_published_sum_nothing_is_compared() -> None:
    """No recipe, or one without a sum: nothing is said."""
    told = Told()
    assert check_sum(records(1.0), None, told) is None
    assert check_sum(records(1.0), replace(recipe_with_sum(1, 1), checks=None), told) is None
    assert (told.notes, told.warnings) == ([], [])


def checks(total: float, tolerance: float) -> str:
    """Return a recipe's lines for a published sum."""
    return f"[checks]\nsum = {total!r}\ntolerance = {tolerance!r}\n"


@pytest.mark.parametrize("stored", DTYPES)
def test_the_sum_is_that_of_what_is_stored(tmp_path: Path, stored: str) -> None:
    """All elements of the result, as stored, copies and new rows included, are added up: on one road or when a run goes on."""
    save_pair(tmp_path, base_tensors(), delta_tensors(base_tensors()))
    options: dict[str, Any] = {"dtype": stored, "max_shard_size": 30_000}
    merge(tmp_path, "plain", **options)
    exact = math.fsum(x for tensor in load(tmp_path / "plain").values() for x in tensor.double().flatten().tolist())
    own = recipe_file(tmp_path, more=checks(exact, 1e-9))
    with blocks_of(100):
        result, told = merge(tmp_path, "one", recipe_file=own, workers=1, **options)
    assert result.published_sum is not None
    assert result.published_sum.agrees
    assert result.published_sum.found is not None
    assert abs(result.published_sum.found - exact) <= 1e-9
    line = f"sum of all elements {exact:.4f}, published {exact} (within 1e-09)"
    assert f"sum             agrees: {line}" in told.notes
    with blocks_of(100), killed_after(2), pytest.raises(Killed):
        merge(tmp_path, "two", recipe_file=own, workers=3, **options)
    with blocks_of(100):
        resumed, _ = merge(tmp_path, "two", recipe_file=own, workers=3, **options)
    assert resumed.published_sum == result.published_sum
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")
    assert without_card(tmp_path / "two") == without_card(tmp_path / "plain")
    assert merge(tmp_path, "two", recipe_file=own, **options)[0].published_sum is None


def test_a_sum_that_does_not_agree_is_never_fatal(tmp_path: Path) -> None:
    """Even under ``strict`` another sum than the published one is a warning, and the result is published."""
    base, delta = moved(110_000)
    own = recipe_file(tmp_path, more=checks(12.5, 0.01))
    result, told = merge_pair(tmp_path, base, delta, recipe_file=own, strict=True)
    assert result.status == "merged"
    found = result.published_sum
    assert found is not None
    assert found == SumFound(found=found.found, published=12.5, tolerance=0.01, agrees=False)
    assert found.found is not None
    assert abs(found.found - float((base["w"] + delta["w"]).double().sum())) < 1e-6
    assert told.warnings == [
        (
            f"sum does not agree: sum of all elements {found.found:.4f}, published 12.5 (within 0.01); "
            "base or delta may be another, or damaged"
        )
    ]


@pytest.mark.parametrize("strange", [[[NAN]], [[INF]], [[INF], [-INF]], [[INF, -INF]]], ids=str)
def test_a_sum_with_nan_in_it_is_a_warning_like_any(tmp_path: Path, strange: list[list[float]]) -> None:
    """A result with NaN or infinities has no sum that agrees; it is told, not a traceback, and published."""
    base, delta = moved(110_000)
    tensors = {f"w{at}": base["w"].clone() for at in range(len(strange))}
    for tensor, numbers in zip(tensors.values(), strange, strict=True):
        tensor[0, : len(numbers)] = torch.tensor(numbers)
    own = recipe_file(tmp_path, more=checks(12.5, 0.01))
    result, told = merge_pair(tmp_path, tensors, {name: delta["w"].clone() for name in tensors}, recipe_file=own)
    assert result.nonfinite == {name: len(numbers) for name, numbers in zip(tensors, strange, strict=True)}
    assert "the sum of all elements cannot be compared: not all of them are finite" in told.warnings
