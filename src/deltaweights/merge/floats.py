"""Floating-point formats as bits: what is NaN, what is infinite, and which NaN is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from deltaweights.manifest.tally import Proof, Tally
from deltaweights.merge.blocks import Run


@dataclass(frozen=True)
class FloatFormat:
    """An IEEE 754 layout: ``magnitude`` masks all but the sign; ``exponent_step`` is, as integers, from a number to its double."""

    item_size: int
    infinity: int
    quiet_nan: int
    magnitude: int
    exponent_step: int


FORMATS = {
    "F16": FloatFormat(2, 0x7C00, 0x7E00, 0x7FFF, 1 << 10),
    "BF16": FloatFormat(2, 0x7F80, 0x7FC0, 0x7FFF, 1 << 7),
    "F32": FloatFormat(4, 0x7F80_0000, 0x7FC0_0000, 0x7FFF_FFFF, 1 << 23),
    "F64": FloatFormat(8, 0x7FF0 << 48, 0x7FF8 << 48, (1 << 63) - 1, 1 << 52),
}

ITEM_SIZES = {dtype: form.item_size for dtype, form in FORMATS.items()}
Numbers = tuple[memoryview | bytes, str]  # the bytes of some numbers, and their dtype


def _words(data: memoryview | bytes, dtype: str) -> Any:
    """Return a numpy array of unsigned integers over the bytes of some numbers."""
    import numpy as np  # noqa: PLC0415  (a tenth of a second that commands such as verify do without)

    return np.frombuffer(data, f"<u{FORMATS[dtype].item_size}")


def canonicalize_nans(data: memoryview, dtype: str, runs: Iterable[Run]) -> int:
    """Make every NaN within ``runs`` of ``data`` the quiet one; return how many of all numbers are NaN or infinite."""
    form, words = FORMATS[dtype], _words(data, dtype)
    magnitudes = words & form.magnitude
    for run in runs:
        words[run.start : run.stop][magnitudes[run.start : run.stop] > form.infinity] = form.quiet_nan
    return int((magnitudes >= form.infinity).sum())


def copy_nans(source: memoryview, source_dtype: str, out: memoryview, dtype: str) -> None:
    """Write the quiet NaN to ``out`` wherever ``source`` has a NaN: some ways of rounding make another number of it."""
    form = FORMATS[source_dtype]
    is_nan = (_words(source, source_dtype) & form.magnitude) > form.infinity
    _words(out, dtype)[is_nan] = FORMATS[dtype].quiet_nan


def count_nonfinite(result: Numbers, primary: Numbers, base: Numbers, tail: Numbers, runs: Sequence[Run]) -> Tally:
    """Count NaN and infinite numbers of a block, and of the base's part that ``runs`` read; ``tail`` was added to the last."""
    import numpy as np  # noqa: PLC0415  (see above)

    in_result, in_primary, in_base, in_tail = (_nonfinite(*numbers) for numbers in (result, primary, base, tail))
    in_operand = np.zeros_like(in_result)
    for run in runs:
        in_operand[run.start : run.stop] = in_base[run.base : run.end]
    in_operand[len(in_operand) - len(in_tail) :] |= in_tail
    return Tally(
        nonfinite=int(np.count_nonzero(in_result)),
        nonfinite_base=int(np.count_nonzero(in_base)),
        nonfinite_lead=int(np.count_nonzero(in_primary)),
        overflow=int(np.count_nonzero(in_result & ~in_primary & ~in_operand)),
    )


def _nonfinite(data: memoryview | bytes, dtype: str) -> Any:
    return (_words(data, dtype) & FORMATS[dtype].magnitude) >= FORMATS[dtype].infinity


def count_different(one: memoryview, other: memoryview, dtype: str) -> int:
    """Return how many numbers of ``dtype`` in ``one`` and ``other`` differ in any bit."""
    import numpy as np  # noqa: PLC0415  (see above)

    return int(np.count_nonzero(_words(one, dtype) != _words(other, dtype)))


def count_unequal(one: memoryview, other: memoryview, dtype: str) -> int:
    """Return how many numbers of ``dtype``, F32 or F64, are not equal: a zero is one of either sign, a NaN any other."""
    import numpy as np  # noqa: PLC0415  (see above)

    a, b = (np.frombuffer(data, f"<f{FORMATS[dtype].item_size}") for data in (one, other))
    with np.errstate(invalid="ignore"):  # a signalling NaN
        differ = a != b
        if differ.any():
            differ &= ~(np.isnan(a) & np.isnan(b))
    return int(np.count_nonzero(differ))


def as_float64(data: memoryview, dtype: str) -> Any:
    """Return the numbers in ``data``, exactly, as a numpy array of float64."""
    import numpy as np  # noqa: PLC0415  (see above)

    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        if dtype == "BF16":  # the upper half of a float32
            return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").astype("<f8")
        return np.frombuffer(data, f"<f{FORMATS[dtype].item_size}").astype("<f8")


class RoundTripCounter:
    """Counts where ``sum - base == delta`` must hold, and where it does not; has scratch buffers, so one for each worker.

    It must hold in the region, for either sign: the bits of sum and base, as integers, are at most one exponent step apart, and
    the sum is finite.
    """

    def __init__(self, dtype: str, block: int) -> None:
        import numpy as np  # noqa: PLC0415  (see above)

        self._form = FORMATS[dtype]
        self._word = f"<u{self._form.item_size}"
        self._gap = np.empty(block, self._word)
        self._inside, self._wrong = np.empty(block, bool), np.empty(block, bool)

    def count(
        self, base: memoryview, delta: memoryview, total: memoryview, difference: memoryview, *, finite: bool
    ) -> Proof:
        """Count equally long blocks; ``difference`` is ``total`` less ``base``, rounded once; ``finite``: all of ``total`` is."""
        import numpy as np  # noqa: PLC0415  (see above)

        form, step = self._form, self._form.exponent_step
        b, d, t, apart = (np.frombuffer(data, self._word) for data in (base, delta, total, difference))
        gap, inside, wrong = (scratch[: len(t)] for scratch in (self._gap, self._inside, self._wrong))
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
        if wrong.any():  # compared as numbers: a difference of +0 is right for a delta of -0
            np.bitwise_or(apart, d, out=gap)
            np.bitwise_and(gap, form.magnitude, out=gap)
            np.not_equal(gap, 0, out=inside)
            wrong &= inside
        return Proof(len(t), region, int(np.count_nonzero(wrong)), region - unmoved)
