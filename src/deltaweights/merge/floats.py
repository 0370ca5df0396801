"""Floating-point formats as bits: what is NaN, what is infinite, and which NaN is written.

Enters: bytes of numbers. Leaves: the same with every computed NaN as the one quiet NaN, and counts. Never: arithmetic that is
rounded to a dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from deltaweights.manifest.tally import Proof, Tally
from deltaweights.merge.blocks import Run


@dataclass(frozen=True)
class Format:
    """An IEEE 754 layout: bytes per number, the bits of infinity and of the quiet NaN that we write, and the fraction's length."""

    item_size: int
    infinity: int
    quiet_nan: int
    fraction: int

    @property
    def magnitude(self) -> int:
        """All bits but the sign."""
        return (1 << (8 * self.item_size - 1)) - 1

    @property
    def exponent_step(self) -> int:
        """How far apart, as integers, the bits of a number and of its double are."""
        return 1 << self.fraction


FORMATS = {
    "F16": Format(2, 0x7C00, 0x7E00, 10),
    "BF16": Format(2, 0x7F80, 0x7FC0, 7),
    "F32": Format(4, 0x7F80_0000, 0x7FC0_0000, 23),
    "F64": Format(8, 0x7FF0_0000_0000_0000, 0x7FF8_0000_0000_0000, 52),
}

ITEM_SIZES = {dtype: form.item_size for dtype, form in FORMATS.items()}


def settle_nans(data: memoryview, dtype: str, runs: Iterable[Run]) -> int:
    """Make every NaN within ``runs`` of the numbers in ``data`` the quiet one; return how many numbers are NaN or infinite."""
    import numpy as np  # noqa: PLC0415  (not for those who only verify)

    form = FORMATS[dtype]
    words = np.frombuffer(data, f"<u{form.item_size}")
    magnitudes = words & form.magnitude
    for run in runs:
        words[run.start : run.stop][magnitudes[run.start : run.stop] > form.infinity] = form.quiet_nan
    return int((magnitudes >= form.infinity).sum())


Numbers = tuple[memoryview | bytes, str]
"""The bytes of some numbers, and their dtype."""


def count_nonfinite(result: Numbers, primary: Numbers, base: Numbers, rest: Numbers, runs: Sequence[Run]) -> Tally:
    """Count the NaN and infinite numbers of a block's result, of its primary and of the part of its base that meets it at ``runs``.

    ``rest`` is what the last numbers met that have no base; like the base's part it may be empty.
    """
    import numpy as np  # noqa: PLC0415  (see above)

    in_result, in_primary, in_base, in_rest = (_nonfinite(*numbers) for numbers in (result, primary, base, rest))
    met = np.zeros_like(in_result)
    for run in runs:
        met[run.start : run.stop] = in_base[run.base : run.end]
    met[len(met) - len(in_rest) :] |= in_rest
    overflow = in_result & ~in_primary & ~met
    counts = [int(np.count_nonzero(found)) for found in (in_result, in_base, in_primary, overflow)]
    return Tally(nonfinite=counts[0], nonfinite_base=counts[1], nonfinite_lead=counts[2], overflow=counts[3])


def _nonfinite(data: memoryview | bytes, dtype: str) -> Any:
    import numpy as np  # noqa: PLC0415  (see above)

    form = FORMATS[dtype]
    return (np.frombuffer(data, f"<u{form.item_size}") & form.magnitude) >= form.infinity


def as_float64(data: memoryview, dtype: str) -> Any:
    """Return the numbers in ``data``, exactly, as a numpy array of float64."""
    import numpy as np  # noqa: PLC0415  (see above)

    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        if dtype == "BF16":  # the upper half of a float32
            return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").astype("<f8")
        return np.frombuffer(data, f"<f{FORMATS[dtype].item_size}").astype("<f8")


class RoundTrip:
    """Counts where ``sum - base == delta`` must hold, and where it does not; one worker's, with its room.

    The region, for either sign: the bits of sum and base, as integers, are at most one exponent step apart, and the sum is finite.
    """

    def __init__(self, dtype: str, block: int) -> None:
        """Make room for ``block`` numbers of ``dtype``."""
        import numpy as np  # noqa: PLC0415  (see above)

        self._form = FORMATS[dtype]
        self._word = f"<u{self._form.item_size}"
        self._gap = np.empty(block, self._word)
        self._inside, self._wrong = np.empty(block, bool), np.empty(block, bool)

    def count(
        self, base: memoryview, delta: memoryview, total: memoryview, difference: memoryview, *, finite: bool
    ) -> Proof:
        """Return the counts for blocks of as many numbers; ``difference`` is ``total`` less ``base``, correctly rounded.

        ``finite`` says that all of ``total`` is finite.
        """
        import numpy as np  # noqa: PLC0415  (see above)

        form, step = self._form, self._form.exponent_step
        b, d, t, apart = (np.frombuffer(data, self._word) for data in (base, delta, total, difference))
        gap, inside, wrong = (room[: len(t)] for room in (self._gap, self._inside, self._wrong))
        np.subtract(t, b, out=gap)
        unmoved = len(gap) - int(np.count_nonzero(gap))
        np.add(gap, gap.dtype.type(step), out=gap)  # unsigned: the region is now from 0 to two steps
        np.less_equal(gap, 2 * step, out=inside)
        if not finite:
            inside &= (t & form.magnitude) < form.infinity
            unmoved = int(np.count_nonzero(inside & (gap == step)))
        region = int(np.count_nonzero(inside))
        np.not_equal(apart, d, out=wrong)
        wrong &= inside
        if wrong.any():  # numerically: a difference of +0 is right for a delta of -0
            np.bitwise_or(apart, d, out=gap)
            np.bitwise_and(gap, form.magnitude, out=gap)
            np.not_equal(gap, 0, out=inside)
            wrong &= inside
        return Proof(len(t), region, int(np.count_nonzero(wrong)), region - unmoved)


def count_different(one: memoryview, other: memoryview, dtype: str) -> int:
    """Return how many numbers of ``dtype`` in ``one`` and ``other`` differ in any bit."""
    import numpy as np  # noqa: PLC0415  (see above)

    words = [np.frombuffer(data, f"<u{FORMATS[dtype].item_size}") for data in (one, other)]
    return int(np.count_nonzero(words[0] != words[1]))


def copy_nans(source: memoryview, source_dtype: str, out: memoryview, dtype: str) -> None:
    """Write the quiet NaN to ``out`` wherever ``source`` has a NaN: some ways of rounding make another number of it."""
    import numpy as np  # noqa: PLC0415  (see above)

    form, target = FORMATS[source_dtype], FORMATS[dtype]
    words = np.frombuffer(source, f"<u{form.item_size}")
    magnitudes = words & form.magnitude
    np.frombuffer(out, f"<u{target.item_size}")[magnitudes > form.infinity] = target.quiet_nan
