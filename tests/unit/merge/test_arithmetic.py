"""Tests of the bits and counts of combined blocks, against other implementations of the same arithmetic."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaweights.manifest.parse import parse_manifest
from deltaweights.manifest.tally import Proof, Tally
from deltaweights.merge.arithmetic import BlockCombiner, Task
from deltaweights.merge.blocks import Run as BlockRun
from deltaweights.merge.kernels_cpu import CpuKernels
from deltaweights.merge.operation import Operation
from tests.support.float_bits import (
    DTYPES,
    FLOAT_NAMES,
    QUIET_NAN,
    STRANGE,
    DtypeAndPairs,
    Words,
    bits,
    distinct_bits,
    every_or_random,
    expected_proof,
    narrow,
    nearest,
    number,
    of_bits,
    packed,
    strange_pair,
    total_of,
    widen,
)
from tests.support.kernels import ENGINES, torch_kernels
from tests.support.merging import EMBEDDING, PROJECTOR, block_size, merge_tensors, small_base
from tests.support.pairs import Tensors, delta_tensors, same_bits


@pytest.mark.parametrize("make", [CpuKernels, torch_kernels], ids=["ours", "torch"])
def test_kernels_leave_their_inputs_alone(make: type[CpuKernels]) -> None:
    """Sums, casts and NaNs do not change the input buffers, which are digested afterwards."""
    base, delta = strange_pair("float16")
    bench = BlockCombiner(make(), Task(Operation.APPLY, "BF16", "F16"), len(base))
    before = [tensor.view(torch.uint8).numpy().tobytes() for tensor in (base, delta)]
    size = len(before[0])
    bench.base[:size], bench.primary[:size] = before
    bench.combine(len(base), "F16", "F16", (BlockRun(0, len(base), 0),))
    assert [bytes(bench.base[:size]), bytes(bench.primary[:size])] == before
    assert same_bits({"w": base}, {"w": torch.frombuffer(bytearray(bench.base[:size]), dtype=torch.float16)})


@pytest.mark.sampled(3)
@pytest.mark.parametrize("block", [1 << 20, 100, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_computed_nan_is_the_quiet_nan(tmp_path: Path, dtype: str, block: int) -> None:
    """Whatever NaNs and infinities are added, a sum that is NaN has one bit pattern, and all other sums are exact."""
    base, delta = strange_pair(dtype)
    with block_size(block):
        merged = merge_tensors(tmp_path, {"w": base}, {"w": delta}, compute_dtype=dtype, workers=3)
    result = merged.tensors["w"]
    expected = base + delta
    is_nan = expected.isnan()
    assert is_nan.sum() > len(expected) // 3
    assert distinct_bits(result[is_nan]) == {QUIET_NAN[dtype]}
    assert torch.equal(bits(result)[~is_nan], bits(expected)[~is_nan])
    assert merged.result.nonfinite == {"w": int((~expected.isfinite()).sum())}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("compute", DTYPES)
def test_a_nan_that_a_cast_makes_is_the_quiet_nan(tmp_path: Path, compute: str, stored: str) -> None:
    """Sums and copies that pass through a cast, to the compute dtype or to the stored one, hold no other NaN than the quiet one."""
    for source, dtype in DTYPES.items():
        if source == compute == stored:
            continue  # no cast: another rule, proven below
        base, delta = strange_pair(source, 1)
        ones = {"w": torch.ones(2, 2, dtype=dtype)}
        merged = merge_tensors(
            tmp_path / source,
            ones | {"sum": base},
            ones | {"sum": delta, PROJECTOR: delta},
            compute_dtype=compute,
            dtype=stored,
        )
        for name in ("sum", PROJECTOR):
            result = merged.tensors[name]
            assert distinct_bits(result[result.isnan()]) == {QUIET_NAN[stored]}, f"{name} from {source}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_without_a_cast_keep_every_bit(tmp_path: Path, dtype: str) -> None:
    """A copied tensor, and the rows of a grown one that no base reaches, keep the payloads of their NaNs, and are counted."""
    strange = of_bits(STRANGE[dtype], DTYPES[dtype])
    width = len(strange)
    base = {EMBEDDING: torch.ones(2, width - 1, dtype=DTYPES[dtype])}
    delta = {EMBEDDING: strange.repeat(4, 1), PROJECTOR: strange.repeat(3, 1)}
    for block in (1 << 20, 5):
        with block_size(block):
            merged = merge_tensors(tmp_path / str(block), base, delta, compute_dtype=dtype)
        rows = merged.tensors[EMBEDDING]
        assert torch.equal(bits(merged.tensors[PROJECTOR]), bits(delta[PROJECTOR]))
        assert torch.equal(bits(rows[2:]), bits(delta[EMBEDDING][2:]))
        assert torch.equal(bits(rows[:2, -1]), bits(delta[EMBEDDING][:2, -1]))
        inside = rows[:2, :-1]
        assert distinct_bits(inside[inside.isnan()]) == {QUIET_NAN[dtype]}
        assert merged.result.nonfinite == {EMBEDDING: 4 * 9, PROJECTOR: 3 * 9}


def test_counts_of_nonfinite_weights_are_exact(tmp_path: Path) -> None:
    """Every tensor with NaN or infinities is reported with their number, in result and manifest, and no other tensor is."""
    base = small_base()
    delta = delta_tensors(base)
    name = "model.layers.0.mlp.up_proj.weight"
    delta[name][3, 5] = torch.nan
    delta[name][-1, -1] = -torch.inf
    delta["model.norm.weight"][0] = torch.inf
    base["model.layers.0.mlp.gate_proj.weight"][0, 0] = delta["model.layers.0.mlp.gate_proj.weight"][0, 0] = 65504
    expected = {"model.layers.0.mlp.gate_proj.weight": 1, name: 2, "model.norm.weight": 1}
    for block in (1 << 20, 50):
        with block_size(block):
            merged = merge_tensors(tmp_path / str(block), base, delta, workers=3, max_shard_size=2500)
        assert merged.result.nonfinite == expected
        assert parse_manifest((merged.folder / "manifest.json").read_bytes()).findings.nonfinite == expected


def test_finite_weights_whose_sum_overflows_are_not_counted(tmp_path: Path) -> None:
    """Weights that are finite, though all together they are more than float32 can hold, are not reported."""
    base = {"w": torch.full((4000,), 3e38, dtype=torch.float32)}
    merged = merge_tensors(tmp_path, base, {"w": torch.zeros(4000)}, compute_dtype="float32")
    assert merged.result.nonfinite == {}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormal_numbers_survive(tmp_path: Path, dtype: str, flush: bool) -> None:
    """Subnormal inputs, sums and casts keep their value, also when the calling thread flushes such numbers to zero."""
    width = {"float16": 10, "bfloat16": 7, "float32": 23}[dtype]
    generator = np.random.default_rng(5)
    patterns = generator.integers(0, 1 << width, (2, 5001)).astype(np.uint32)
    base, delta = (of_bits(row, DTYPES[dtype]) for row in patterns)
    pair = {"w": base}, {"w": delta, PROJECTOR: delta}
    wanted = of_bits(patterns.sum(0), DTYPES[dtype])  # without an exponent, significands add like integers
    stored = merge_in_thread_with(tmp_path / "same", pair, flush=flush, compute_dtype=dtype)
    assert torch.equal(bits(stored["w"]), bits(wanted))
    assert torch.equal(bits(stored[PROJECTOR]), bits(delta))
    widened = merge_in_thread_with(tmp_path / "wide", pair, flush=flush, compute_dtype=dtype, dtype="float32")
    value = 2.0 ** {"float16": -24, "bfloat16": -133, "float32": -149}[dtype]
    expected = torch.from_numpy((patterns.sum(0) * value).astype(np.float32))
    assert torch.equal(bits(widened["w"]), bits(expected))


def merge_in_thread_with(folder: Path, pair: tuple[Tensors, Tensors], *, flush: bool, **options: Any) -> Tensors:
    """Merge in a thread of its own, which flushes subnormal numbers to zero if asked to, and return the stored tensors."""
    outcome: list[Tensors] = []

    def work() -> None:
        if flush:
            assert torch.set_flush_denormal(True), "this processor cannot flush"
            assert not (torch.tensor([2.0**-140]) + 0).any(), "flushing has no effect here"
        outcome.append(merge_tensors(folder, *pair, workers=2, **options).tensors)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return outcome[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_correctly_rounded(tmp_path: Path, dtype: str) -> None:
    """Millions of sums over all exponents equal those that numpy makes in float64 and rounds once."""
    base, delta = every_or_random(dtype, seed=11)
    merged = merge_tensors(
        tmp_path,
        {"w": of_bits(base, DTYPES[dtype])},
        {"w": of_bits(delta, DTYPES[dtype])},
        "safetensors",
        compute_dtype=dtype,
    )
    with np.errstate(all="ignore"):
        expected = narrow(widen(base, dtype) + widen(delta, dtype), dtype)
    result = bits(merged.tensors["w"]).numpy().view(expected.dtype)
    wrong = np.flatnonzero(result != expected)
    assert not len(wrong), f"{len(wrong)} wrong, first {base[wrong[0]]:#x} + {delta[wrong[0]]:#x}"


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("given", DTYPES)
def test_casts_are_correctly_rounded(tmp_path: Path, given: str, stored: str) -> None:
    """Copies that are cast, every pattern of 16 bits or a million of 32, equal what numpy gives, rounded once."""
    if given == stored:
        patterns = np.arange(1 << 16, dtype=np.uint32) << (16 if given == "float32" else 0)
    elif given == "float32":
        patterns = np.random.default_rng(3).integers(0, 1 << 32, 1_000_000, dtype=np.uint32)
        # Most random numbers are too large or too small for float16: bring half of them near.
        patterns[::2] = (patterns[::2] & 0x87FFFFFF) | 0x38000000
        patterns[1::4] &= 0xFFFFE000 + (patterns[1::4] & 1) * 0x1FFF  # ties
    else:
        patterns = np.arange(1 << 16, dtype=np.uint32)
    words: Words = patterns.astype(np.uint32 if given == "float32" else np.uint16)
    pair = {"w": torch.ones(1)}, {"w": torch.zeros(1), PROJECTOR: of_bits(words, DTYPES[given])}
    merged = merge_tensors(tmp_path, *pair, compute_dtype=stored)
    result = bits(merged.tensors[PROJECTOR]).numpy()
    if given == stored:
        expected = words
    else:
        with np.errstate(all="ignore"):
            expected = narrow(widen(words, given), stored)
    assert np.array_equal(result.view(expected.dtype), expected)


def meetings(meets: Sequence[bool]) -> tuple[BlockRun, ...]:
    """Return the runs of the elements that have a base."""
    runs, place, done = [], 0, 0
    for met, group in groupby(meets):
        length = len(list(group))
        if met:
            runs.append(BlockRun(place, place + length, done))
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
    proof = expected_proof(of_base, [d for _, d in met_pairs], dtype)
    return Tally(nonfinite, counts[0], counts[1], overflow, proof=proof)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(data=st.data(), drawn=DtypeAndPairs, engine=st.sampled_from([*ENGINES]), stored=st.sampled_from([*FLOAT_NAMES]))
def test_counts_are_as_defined_in_blocks_of_any_size(
    data: st.DataObject, drawn: tuple[str, list[tuple[int, int]]], engine: str, stored: str
) -> None:
    """The counts are as defined, whatever is added or copied, however it is stored and cut into blocks."""
    dtype, pairs = drawn
    meets = data.draw(st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs)) | st.just([True] * len(pairs)))
    block = data.draw(st.integers(1, len(pairs)))
    bench = BlockCombiner(ENGINES[engine](), Task(Operation.APPLY, dtype, stored, check=True), block)
    found = Tally(proof=Proof())
    for first in range(0, len(pairs), block):
        part, met = pairs[first : first + block], meets[first : first + block]
        primary = packed([d for _, d in part], dtype)
        base = packed([b for (b, _), there in zip(part, met, strict=True) if there], dtype)
        bench.primary[: len(primary)], bench.base[: len(base)] = primary, base
        found += bench.combine(len(part), dtype, dtype, meetings(met)).tally
    assert found == tally_of(pairs, meets, dtype, stored)
