"""A self-test, in milliseconds, that kernels round as IEEE 754 demands on the machine at hand.

Libraries choose their kernels by what the processor can do, so a test suite run elsewhere says little about this machine: one that
flushes subnormal numbers to zero, or rounds ties away from zero, would write wrong weights without an error. NaN is left out,
since IEEE 754 does not fix its payload.
"""

from __future__ import annotations

from array import array
from dataclasses import astuple
from itertools import chain

from blake3 import blake3

from deltaweights.merge.arithmetic import Array, Kernels
from deltaweights.merge.floats import FORMATS, ITEM_SIZES

EXPECTED_DIGEST = "dc86f485e181855eaaaa0a0cee0b75673a52524b8cabe91277c4ead0b867ffd9"
"""What ``results_digest`` returns for correct arithmetic: made with torch on a processor (tests/unit/merge/test_self_test.py)."""

PAIRINGS = ((1, 0, 0), (1024, 1, 30), (30103, 3, 11))
"""By how many places the second operand is rotated (neighbours, neighbours in exponent, unrelated numbers of either sign), and how
many numbers are cut off at the beginning and at the end: kernels take other paths for unaligned data and for tails."""


NUMBERS = 1021
"""A prime: what is left over when vectors have taken their part is tried, too."""


def passes_self_test(kernels: Kernels) -> bool:
    """Return whether ``kernels`` compute and count correctly in this thread, and so in those that it starts."""
    return results_digest(kernels) == EXPECTED_DIGEST and _finds_what_is_not_finite(kernels)


def results_digest(kernels: Kernels) -> str:
    """Return a digest of sums, differences and casts of all finite 16-bit numbers, with ties, subnormals and overflow.

    Sums are also taken for those of a base and a delta, and the counts of their round trip added to the digest.
    """
    # All patterns that are finite as F16; all of them are finite as BF16, too, and so is any F32 or F64 with one on top.
    patterns = array("H", chain(range(0x7C00), range(0x8000, 0xFC00))).tobytes()
    digest = blake3()
    count = len(patterns) // 2
    results = {dtype: kernels.buffer(count * ITEM_SIZES[dtype]) for dtype in ("F16", "BF16", "F32")}

    def cast_to_all(numbers: Array) -> None:
        for wanted, buffer in results.items():
            kernels.cast(numbers, kernels.as_array(buffer, wanted)[: len(numbers)])
            digest.update(buffer[: len(numbers) * ITEM_SIZES[wanted]])

    for rotation, begin, cut_off in PAIRINGS:
        rotated = patterns[2 * rotation :] + patterns[: 2 * rotation]
        for dtype, wanted in (("F16", "F16"), ("BF16", "BF16"), ("F32", "F32"), ("F16", "F32"), ("BF16", "F32")):
            operands = [_load(kernels, data, dtype, wanted) for data in (patterns, rotated)]
            one, other = (operand[begin : len(operand) - cut_off] for operand in operands)
            for compute in (kernels.add, kernels.subtract):
                total = kernels.scratch(len(one), wanted)
                compute(one, other, total)
                cast_to_all(total)
                if compute == kernels.add:
                    proof = kernels.prove_base(one, other, total, finite=False)
                    proved, _ = kernels.add_proved(one, other, total)
                    cast_to_all(total)
                    digest.update(repr((astuple(proof), astuple(proved))).encode())
    cast_to_all(_load(kernels, patterns, "F64", "F64")[1:-2])
    return digest.hexdigest()


def _finds_what_is_not_finite(kernels: Kernels) -> bool:
    """Return whether ``all_finite`` is true of zeros, and false of an infinity or a NaN wherever one of them stands."""
    for dtype in ("F16", "BF16", "F32"):
        form = FORMATS[dtype]
        buffer = kernels.buffer(NUMBERS * form.item_size)
        buffer[:] = bytes(len(buffer))
        numbers = kernels.as_array(buffer, dtype)
        if not kernels.all_finite(numbers):
            return False
        for place, value in ((0, form.infinity), (NUMBERS // 2, form.quiet_nan), (NUMBERS - 1, form.infinity)):
            there = buffer[place * form.item_size : (place + 1) * form.item_size]
            for word in (value, value | (form.magnitude + 1)):  # and its negative
                there[:] = word.to_bytes(form.item_size, "little")
                if kernels.all_finite(numbers):
                    return False
            there[:] = bytes(form.item_size)
    return True


def _load(kernels: Kernels, data: bytes, dtype: str, wanted: str) -> Array:
    buffer = kernels.buffer(len(data))
    buffer[:] = data
    numbers = kernels.scratch(len(data) // ITEM_SIZES[dtype], wanted)
    kernels.cast(kernels.as_array(buffer, dtype), numbers)
    return numbers
