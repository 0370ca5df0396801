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

KNOWN = "c9d5bcd9deaa36ef092aa85599d927dbe4720b4db766efcfb89d6404d7f20b63"
"""What ``answers`` returns where arithmetic is right: made with torch on a processor (tests/test_arithmetic.py)."""

ROTATIONS = (1, 1024, 30103)
"""By how many places the second operand is rotated: neighbours, neighbours in exponent, strangers of either sign."""


def proven(kernels: Kernels) -> bool:
    """Return whether ``kernels`` give the known answers in this thread, and so in those that it starts."""
    return answers(kernels) == KNOWN


def answers(kernels: Kernels) -> str:
    """Return a digest of sums, differences and casts in which all finite 16-bit numbers take part: ties, subnormals, overflow."""
    # All patterns that are finite as F16; all of them are finite as BF16, too, and so is any F32 with one on top.
    patterns = array("H", chain(range(0x7C00), range(0x8000, 0xFC00))).tobytes()
    digest = blake3()
    count = len(patterns) // 2
    results = {dtype: kernels.buffer(count * ITEM_SIZES[dtype]) for dtype in ("F16", "BF16", "F32")}

    def compute_and_cast(operands: list[Array], dtype: str) -> None:
        one, other = operands
        for compute in (kernels.add, kernels.subtract):
            total = kernels.room(len(one), dtype)
            compute(one, other, total)
            for wanted, buffer in results.items():
                kernels.cast(total, kernels.over(buffer, wanted)[: len(one)])
                digest.update(buffer[: len(one) * ITEM_SIZES[wanted]])

    for rotation in ROTATIONS:
        rotated = patterns[2 * rotation :] + patterns[: 2 * rotation]
        for dtype in ("F16", "BF16", "F32"):
            compute_and_cast([_load(kernels, data, dtype, dtype) for data in (patterns, rotated)], dtype)
        for dtype in ("F16", "BF16"):
            compute_and_cast([_load(kernels, data, dtype, "F32") for data in (patterns, rotated)], "F32")
    return digest.hexdigest()


def _load(kernels: Kernels, data: bytes, dtype: str, wanted: str) -> Array:
    """Return the numbers of ``dtype`` in ``data``, on the device, as ``wanted``."""
    buffer = kernels.buffer(len(data))
    buffer[:] = data
    room = kernels.room(len(data) // ITEM_SIZES[dtype], wanted)
    kernels.cast(kernels.over(buffer, dtype), room)
    return room
