"""Floating-point numbers as bits: awkward ones, and reference arithmetic that shares no code with ours."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import strategies as st

from deltaweights.manifest.tally import Proof

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

QUIET_NAN = {"float16": 0x7E00, "bfloat16": 0x7FC0, "float32": 0x7FC00000}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bit patterns of a tensor, as integers of its width."""
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return tensor.contiguous().view(width)


def distinct_bits(tensor: torch.Tensor) -> set[int]:
    """Return the different bit patterns in a tensor, as unsigned integers."""
    mask = (1 << (8 * tensor.element_size())) - 1
    return {pattern & mask for pattern in bits(tensor).flatten().tolist()}


def of_bits(patterns: list[int] | np.ndarray[tuple[int], np.dtype[np.integer]], dtype: torch.dtype) -> torch.Tensor:
    """Return the tensor of ``dtype`` that has these bit patterns."""
    unsigned = np.asarray(patterns, dtype=np.uint16 if dtype.itemsize == 2 else np.uint32)
    return torch.from_numpy(unsigned.view(np.int16 if dtype.itemsize == 2 else np.int32).copy()).view(dtype)


STRANGE = {
    "float16": [0x7C00, 0xFC00, 0x7E00, 0xFE00, 0x7C01, 0xFC01, 0x7DFF, 0x7F55, 0xFFFF, 0x3C00, 0x0000, 0x8000, 0x7BFF],
    "bfloat16": [0x7F80, 0xFF80, 0x7FC0, 0xFFC0, 0x7F81, 0xFF81, 0x7FBF, 0x7FD5, 0xFFFF, 0x3F80, 0x0000, 0x8000, 0x7F7F],
    "float32": [
        0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF800001, 0x7FBFFFFF, 0x7FD55555, 0xFFFFFFFF,
        0x3F800000, 0x00000000, 0x80000000, 0x7F7FFFFF,
    ],
}  # fmt: skip
"""Infinities, quiet and signalling NaNs with odd payloads, one, both zeros, and the largest finite number."""


def strange_pair(dtype: str, repeat: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two tensors that pair every strange number with every other, in an odd count so that vectors have tails."""
    patterns = np.array(STRANGE[dtype], dtype=np.uint32)
    one, other = (np.tile(grid.ravel(), repeat) for grid in np.meshgrid(patterns, patterns))
    return of_bits(one, DTYPES[dtype]), of_bits(other, DTYPES[dtype])


Words = np.ndarray[tuple[int], np.dtype[np.unsignedinteger]]


def widen(patterns: Words, dtype: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the numbers that bit patterns of ``dtype`` stand for, in float64."""
    if dtype == "bfloat16":
        patterns, dtype = np.left_shift(patterns.astype(np.uint32), np.uint32(16)), "float32"
    kind = np.float16 if dtype == "float16" else np.float32
    return patterns.view(kind).astype(np.float64)


def narrow(numbers: np.ndarray[tuple[int], np.dtype[np.float64]], dtype: str) -> Words:
    """Return the bit patterns of the numbers of ``dtype`` that are nearest to float64 numbers, ties to even, NaN quiet.

    Sums of two numbers that are rounded to float64 first round to the same, since float64 has more than twice the digits.
    """
    half = dtype == "float16"
    rounded: Words = numbers.astype(np.float16).view(np.uint16) if half else numbers.astype(np.float32).view(np.uint32)
    if dtype == "bfloat16":  # add half of the last place, less one when that place is even
        rounded = ((rounded.astype(np.uint64) + 0x7FFF + ((rounded >> 16) & 1)) >> 16).astype(np.uint16)
    rounded[np.isnan(numbers)] = QUIET_NAN[dtype]
    return rounded


def every_or_random(dtype: str, seed: int) -> tuple[Words, Words]:
    """Return two rows of bit patterns: a million random ones, and every pattern of 16 bits against the awkward ones."""
    generator = np.random.default_rng(seed)
    kind = np.uint32 if dtype == "float32" else np.uint16
    one, other = generator.integers(0, 1 << (8 * kind().itemsize), (2, 1_000_000)).astype(kind)
    # Neighbours in exponent, where rounding is hard: random pairs are mostly too far apart to meet.
    sign = kind(1 << (8 * kind().itemsize - 1))
    near = one ^ generator.integers(0, 1 << {"float16": 12, "bfloat16": 9, "float32": 25}[dtype], len(one)).astype(kind)
    rows = [(one, other), (one, near), (one, near ^ sign)]
    if dtype != "float32":
        awkward = [0, 1, 2, 3, 0x3FF, 0x400, *STRANGE[dtype], *generator.integers(0, 1 << 16, 12)]
        every = np.arange(1 << 16, dtype=kind)
        rows += [(every, np.full_like(every, pattern)) for pattern in awkward]
    return np.concatenate([row[0] for row in rows]), np.concatenate([row[1] for row in rows])


FLOAT_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}

SIZE = {"F16": 2, "BF16": 2, "F32": 4}

INFINITY = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F80_0000}

STEP = {"F16": 1 << 10, "BF16": 1 << 7, "F32": 1 << 23}
"""How far apart, as integers, the bits of a number and of its double are."""


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


def expected_proof(base: Sequence[int], delta: Sequence[int], dtype: str) -> Proof:
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


SPECIAL = {
    dtype: [
        0, 1, 2, STEP[dtype] - 1, STEP[dtype], STEP[dtype] + 1, 2 * STEP[dtype], INFINITY[dtype] - 1, INFINITY[dtype],
        INFINITY[dtype] + 1, INFINITY[dtype] + STEP[dtype] // 2, nearest(1.0, dtype), nearest(65504.0, dtype),
    ]
    for dtype in FLOAT_NAMES
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


DtypeAndPairs = st.sampled_from([*FLOAT_NAMES]).flatmap(lambda dtype: st.tuples(st.just(dtype), pairs_of(dtype)))
