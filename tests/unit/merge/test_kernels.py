"""Tests of both sets of kernels, numkong's and torch's: the same bits, whatever the processor can do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaweights.manifest.tally import Proof
from deltaweights.merge.arithmetic import Array, BlockCombiner, Kernels, Task
from deltaweights.merge.floats import RoundTripCounter
from deltaweights.merge.kernels_cpu import CpuKernels
from deltaweights.merge.kernels_torch import torch_workers
from deltaweights.merge.operation import Operation
from tests.support.float_bits import (
    DTYPES,
    FLOAT_NAMES,
    INFINITY,
    SIZE,
    STEP,
    DtypeAndPairs,
    every_or_random,
    expected_proof,
    nearest,
    number,
    of_bits,
    packed,
    strange_pair,
    total_of,
    widen,
)
from tests.support.kernels import ENGINES, WITHOUT, older_processors, torch_kernels
from tests.support.limits import LONG, PATIENCE
from tests.support.merging import files_of, merge_and_load
from tests.support.pairs import base_tensors, delta_tensors, save

EVERY_SUM = """
import numpy as np, torch
from deltaweights.merge.kernels_cpu import CpuKernels
from deltaweights.merge.kernels_torch import TORCH_DTYPES
kernels = CpuKernels()
torch.set_num_threads(1)
rows = 64
one, other, total = (kernels.buffer(rows * 131072) for _ in range(3))
np.frombuffer(one, np.uint16)[:] = np.tile(np.arange(65536, dtype=np.uint16), rows)
others = np.frombuffer(other, np.uint16)
arrays = [kernels.as_array(buffer, DTYPE) for buffer in (one, other, total)]
tensors = [torch.frombuffer(buffer, dtype=TORCH_DTYPES[DTYPE]) for buffer in (one, other, total)]
expected = torch.empty_like(tensors[0])
by_numpy = CpuKernels(compiled=False)
def add_proved(*arrays):
    proof, finite = kernels.add_proved(*arrays)
    assert proof == by_numpy.prove_base(*arrays, finite=False)
    assert not finite or tensors[2].isfinite().all()
compute, by_torch = {
    "add": (kernels.add, torch.add), "subtract": (kernels.subtract, torch.sub), "add proved": (add_proved, torch.add)
}[OPERATION]
for first in range(0, 65536, STEP * rows):
    others[:] = np.repeat(np.arange(first, first + rows, dtype=np.uint16), 65536)
    compute(*arrays)
    by_torch(tensors[0], tensors[1], out=expected)
    differ = tensors[2].view(torch.int16) != expected.view(torch.int16)
    if differ.any():  # NaN payloads may
        assert (tensors[2].isnan() == expected.isnan()).all(), first
        assert expected[differ].isnan().all(), first
"""


@pytest.mark.slow
@pytest.mark.timeout(LONG)
@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.exhaustive)], ids=["some", "all"])
@pytest.mark.parametrize("operation", ["add", "subtract", "add proved"])
@pytest.mark.parametrize(
    ("dtype", "left_out"),
    [("BF16", ()), *(("F16", left_out) for left_out in older_processors())],
    ids=lambda part: part if isinstance(part, str) else f"without-{'-'.join(part) or 'none'}",
)
def test_every_sum_and_difference_of_16_bits_is_torchs(
    dtype: str, left_out: tuple[str, ...], operation: str, step: int
) -> None:
    """All 2^32, or one in ``step``, equal torch's, but for NaN payloads: bfloat16, and float16 on every kind of processor.

    Where sums are proved at once, the counts equal numpy's, too.
    """
    program = f"OPERATION, DTYPE, STEP = {operation!r}, {dtype!r}, {step}{WITHOUT}{EVERY_SUM}"
    subprocess.run([sys.executable, "-c", program, *left_out], check=True, timeout=LONG - 60)


NAN_TEST = """
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-k", "test_a_cast_keeps_nan and ours", FILE]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("left_out", older_processors()[1:], ids=lambda names: f"without-{'-'.join(names)}")
def test_older_processors_keep_nan(left_out: tuple[str, ...]) -> None:
    """Casts of NaN, which the self-test leaves out, are right on every kind of processor."""
    program = f"FILE = {__file__!r}{WITHOUT}{NAN_TEST}"
    done = subprocess.run(
        [sys.executable, "-c", program, *left_out], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.sampled(3)
@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("compute", DTYPES)
def test_both_sets_of_kernels_write_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compute: str, stored: str
) -> None:
    """Torch on the processor writes the same bytes as numkong, with NaN, subnormal and cast numbers in them."""
    base, delta = base_tensors(), delta_tensors(base_tensors())
    for seed, dtype in enumerate(DTYPES):
        patterns = every_or_random(dtype, seed)
        base[f"sum.{dtype}"], delta[f"sum.{dtype}"] = (of_bits(row[::9], DTYPES[dtype]) for row in patterns)
        base[f"strange.{dtype}"], delta[f"strange.{dtype}"] = strange_pair(dtype)
    base["wide"], delta["wide"] = (of_bits(row[:1000], torch.float32).double() for row in every_or_random("float32", 3))
    save(base, tmp_path / "base")
    save(delta, tmp_path / "delta")
    ours = merge_and_load(tmp_path, "ours", compute_dtype=compute, dtype=stored, allow_unproved_base=True)
    monkeypatch.setattr("deltaweights.merge.kernels_cpu.CpuKernels", _FailsSelfTest)
    by_torch = merge_and_load(tmp_path, "by-torch", compute_dtype=compute, dtype=stored, allow_unproved_base=True)
    assert files_of(ours.folder) == files_of(by_torch.folder)


class _FailsSelfTest(CpuKernels):
    """Kernels that fail the self-test."""

    def add(self, one: Array, other: Array, out: Array) -> None:
        """Leave ``out`` as it is."""


@pytest.mark.parametrize("make", [CpuKernels, torch_kernels], ids=["ours", "torch"])
def test_a_cast_keeps_nan(make: type[CpuKernels]) -> None:
    """No NaN becomes a number, whatever its payload, in any cast of float16, float32 and float64 (some roundings lose them)."""
    kernels: Kernels = make()
    patterns = {
        "F16": [*range(0x7C01, 0x8000), *range(0xFC01, 0x10000)],
        "F32": [0x7F800000 + (1 << bit) for bit in range(23)] + [0xFFFFFFFF, 0xFF800001, 0x7FFF8000, 0x7FFFFFFF],
        "F64": [0x7FF0000000000000 + (1 << bit) for bit in range(52)] + [0xFFFFFFFFFFFFFFFF, 0x7FFFFFFFE0000000],
    }
    for dtype, words in patterns.items():
        for wanted, torch_dtype in DTYPES_BY_CODE.items():
            size = {"F16": 2, "F32": 4, "F64": 8}[dtype]
            bench = BlockCombiner(kernels, Task(Operation.APPLY, wanted, wanted), len(words))
            bench.primary[: len(words) * size] = b"".join(word.to_bytes(size, "little") for word in words)
            result = bench.combine(len(words), dtype, None, ())
            assert result.tally.nonfinite == len(words), f"{dtype} to {wanted}"
            stored = torch.frombuffer(bytearray(result.data), dtype=torch_dtype)
            assert stored.isnan().all(), f"{dtype} to {wanted}"


DTYPES_BY_CODE = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}

EVERY = np.arange(1 << 16, dtype=np.uint16)
"""All 16-bit numbers."""


def arrays(kernels: Kernels, count: int, dtype: str) -> tuple[list[Any], list[Any]]:
    """Return five arrays of the kernels (base, target, delta, sum, difference), and the same memory as unsigned integers."""
    buffers = [kernels.buffer(count * SIZE[dtype]) for _ in range(5)]
    return [kernels.as_array(each, dtype) for each in buffers], [
        np.frombuffer(each, f"<u{SIZE[dtype]}") for each in buffers
    ]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("dtype", "count"), [("F16", 127_987_712), ("BF16", 16_743_936)], ids=["F16", "BF16"])
def test_every_difference_within_one_exponent_step_is_exact(dtype: str, count: int, engine: str) -> None:
    """For all finite pairs whose bits are at most one exponent step apart, target - base is exact, and none violates the law.

    Where the target is -0 and the base negative the sum is +0: right, and out of the region by its sign bit.
    """
    name, step, rows = FLOAT_NAMES[dtype], STEP[dtype], 64
    kernels = ENGINES[engine]()
    bases = EVERY[INFINITY[dtype] > (EVERY & 0x7FFF)]
    gaps = np.arange(-step, step + 1).astype(np.uint16)
    whole, words = arrays(kernels, rows * len(gaps), dtype)
    found = Proof()
    with torch_workers():
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
            found += kernels.prove_base(of_base, delta, total, finite=True)
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
    kernels, round_trip = CpuKernels(), RoundTripCounter(dtype, rows << 16)
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


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(drawn=DtypeAndPairs, shift=st.integers(0, 3))
def test_the_round_trip_is_counted_as_it_is_defined(drawn: tuple[str, list[tuple[int, int]]], shift: int) -> None:
    """``RoundTripCounter`` and both sets of kernels count as defined, number by number, wherever a block begins."""
    dtype, pairs = drawn
    base, delta = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    total = [total_of(b, d, dtype) for b, d in pairs]
    wanted = expected_proof(base, delta, dtype)
    finite = all(word & (INFINITY[dtype]) != INFINITY[dtype] for word in total)
    back = [nearest(number(t, dtype) - number(b, dtype), dtype) for t, b in zip(total, base, strict=True)]
    blocks = [memoryview(packed(words, dtype)) for words in (base, delta, total, back)]
    for flag in {False, finite}:
        assert RoundTripCounter(dtype, len(pairs) + 5).count(*blocks, finite=flag) == wanted
        for engine, make_kernels in ENGINES.items():
            kernels = make_kernels()
            blocks_there = []
            for words in (base, delta, total):
                buffer = kernels.buffer((shift + len(pairs)) * SIZE[dtype])
                buffer[shift * SIZE[dtype] :] = packed(words, dtype)
                blocks_there.append(kernels.as_array(buffer, dtype)[shift:])
            assert kernels.prove_base(*blocks_there, finite=flag) == wanted, engine
            out = kernels.as_array(kernels.buffer((shift + len(pairs)) * SIZE[dtype]), dtype)[shift:]
            proof, finite_sums = kernels.add_proved(blocks_there[0], blocks_there[1], out)
            assert proof == wanted, engine
            assert finite or not finite_sums, engine


@pytest.mark.parametrize("engine", ENGINES)
def test_one_instance_proves_in_several_dtypes(engine: str) -> None:
    """Scratch buffers for one dtype and length are not used for wider or more numbers."""
    kernels = ENGINES[engine]()
    random = np.random.default_rng(7)
    for dtype, length in (("F16", 5000), ("F32", 5000), ("BF16", 3000), ("F32", 7000), ("F16", 6000), ("F32", 10)):
        base = [nearest(float(x), dtype) for x in random.standard_normal(length)]
        delta = [nearest(float(x), dtype) for x in random.standard_normal(length) / 50]
        total = [total_of(b, d, dtype) for b, d in zip(base, delta, strict=True)]
        (of_base, of_delta, of_total, *_), words = arrays(kernels, length, dtype)
        for there, here in zip(words, (base, delta, total), strict=False):
            there[:] = here
        assert kernels.prove_base(of_base, of_delta, of_total, finite=True) == expected_proof(base, delta, dtype)


def test_our_kernels_refuse_two_dtypes_in_one_sum() -> None:
    """Mixed dtypes are refused: numkong would write numbers of 4 bytes into a buffer for as many of 2."""
    kernels = CpuKernels()
    wide, narrow = kernels.scratch(64, "F32"), kernels.scratch(64, "F16")
    for compute in (kernels.add, kernels.subtract):
        for operands in ((wide, wide, narrow), (narrow, wide, wide), (wide, narrow, wide)):
            with pytest.raises(TypeError, match="arrays of float"):
                compute(*operands)
