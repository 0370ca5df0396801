"""A proof, in milliseconds, that kernels round as they should on the machine at hand.

Enters: kernels. Leaves: whether their sums, differences and casts are, bit for bit, those of IEEE 754. Never: NaN, whose payload
no law fixes.

Kernels are chosen by what the processor can do, so that a test suite elsewhere says little about this machine: one that flushes
subnormal numbers to zero, or rounds ties away, would write other weights and tell nobody.
"""

from __future__ import annotations

from array import array
from itertools import chain

from blake3 import blake3

from deltaweights.merge.arithmetic import Array, Kernels
from deltaweights.merge.floats import ITEM_SIZES

KNOWN = "95a02a758b0ef47a549d5bcdc28db15916091fc4035cbd1050c2321ba8b25da6"
"""What ``answers`` returns where arithmetic is right: made with torch on a processor (tests/unit/merge/test_arithmetic.py)."""

PAIRINGS = ((1, 0, 0), (1024, 1, 30), (30103, 3, 11))
"""By how many places the second operand is rotated (neighbours, neighbours in exponent, strangers of either sign), and how many
numbers are left out at the beginning and at the end: kernels take other paths for what is not aligned, and for tails."""


def proven(kernels: Kernels) -> bool:
    """Return whether ``kernels`` give the known answers in this thread, and so in those that it starts."""
    return answers(kernels) == KNOWN


def answers(kernels: Kernels) -> str:
    """Return a digest of sums, differences and casts in which all finite 16-bit numbers take part: ties, subnormals, overflow."""
    # All patterns that are finite as F16; all of them are finite as BF16, too, and so is any F32 or F64 with one on top.
    patterns = array("H", chain(range(0x7C00), range(0x8000, 0xFC00))).tobytes()
    digest = blake3()
    count = len(patterns) // 2
    results = {dtype: kernels.buffer(count * ITEM_SIZES[dtype]) for dtype in ("F16", "BF16", "F32")}

    def cast_to_all(numbers: Array) -> None:
        for wanted, buffer in results.items():
            kernels.cast(numbers, kernels.over(buffer, wanted)[: len(numbers)])
            digest.update(buffer[: len(numbers) * ITEM_SIZES[wanted]])

    def compute_and_cast(operands: list[Array], dtype: str, first: int, left_out: int) -> None:
        one, other = (operand[first : len(operand) - left_out] for operand in operands)
        for compute in (kernels.add, kernels.subtract):
            total = kernels.room(len(one), dtype)
            compute(one, other, total)
            cast_to_all(total)

    for rotation, *cut in PAIRINGS:
        rotated = patterns[2 * rotation :] + patterns[: 2 * rotation]
        for dtype in ("F16", "BF16", "F32"):
            compute_and_cast([_load(kernels, data, dtype, dtype) for data in (patterns, rotated)], dtype, *cut)
        for dtype in ("F16", "BF16"):
            compute_and_cast([_load(kernels, data, dtype, "F32") for data in (patterns, rotated)], "F32", *cut)
    cast_to_all(_load(kernels, patterns, "F64", "F64")[1:-2])
    return digest.hexdigest()


def _load(kernels: Kernels, data: bytes, dtype: str, wanted: str) -> Array:
    """Return the numbers of ``dtype`` in ``data``, on the device, as ``wanted``."""
    buffer = kernels.buffer(len(data))
    buffer[:] = data
    room = kernels.room(len(data) // ITEM_SIZES[dtype], wanted)
    kernels.cast(kernels.over(buffer, dtype), room)
    return room
