"""How far two blocks of numbers are apart; figures of blocks add up to the same figures of a tensor in any order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltaweights.checkpoint.tensors import ITEM_SIZES

Array = Any
"""A numpy array; numpy is loaded only if something is compared."""

NUMPY = {
    "BF16": "<u2", "F16": "<f2", "F32": "<f4", "F64": "<f8",
    "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
    "U8": "<u1", "U16": "<u2", "U32": "<u4", "U64": "<u8",
}  # fmt: skip
"""Dtypes that are numbers to us, by numpy's name for their bytes (BF16 has none); of others only elements and bits are counted."""

ROUNDED = frozenset({"I64", "U64"})
"""Dtypes with numbers that float64 cannot hold; their differences are taken before they are rounded to it."""


@dataclass(frozen=True)
class Figures:
    """The figures of a block, or of a tensor.

    ``elements`` and ``bits`` count those that differ, ``nonfinite`` the differing elements of which one is NaN or infinite. These
    are left out of ``max_abs``, the largest difference, and of ``squares``, the sum of the squared differences in float64.
    ``norm`` is the sum of the squares of the first block's finite elements.
    """

    elements: int = 0
    bits: int = 0
    nonfinite: int = 0
    max_abs: float = 0.0
    squares: float = 0.0
    norm: float = 0.0


def comparable(one: str, other: str) -> bool:
    """Return whether elements of two dtypes can be compared: as bits if they are the same, else as exact float64 numbers."""
    return one == other or {one, other} <= NUMPY.keys() - ROUNDED


def add_up(parts: Sequence[Figures]) -> Figures:
    """Return the figures of all parts together."""
    return Figures(
        elements=sum(part.elements for part in parts),
        bits=sum(part.bits for part in parts),
        nonfinite=sum(part.nonfinite for part in parts),
        max_abs=max((part.max_abs for part in parts), default=0.0),
        squares=_total([part.squares for part in parts]),
        norm=_total([part.norm for part in parts]),
    )


def _total(values: Sequence[float]) -> float:
    try:
        return math.fsum(values)  # rounds once, so that the order does not matter
    except OverflowError:
        return math.inf


class BlockComparer:
    """Compares blocks, with one worker's scratch buffers: if numpy allocated for each step, that would cost more than the steps."""

    def __init__(self, count: int) -> None:
        """Allocate buffers for ``count`` elements; pages that are never used cost nothing."""
        import numpy as np  # noqa: PLC0415  (a tenth of a second)

        self._one, self._other, self._scratch = (np.empty(count, "<f8") for _ in range(3))

    def compare(self, one: memoryview, other: memoryview, dtypes: tuple[str, str]) -> Figures | None:
        """Return the figures of two blocks of equal length, of ``comparable`` dtypes; None when no bit differs.

        Elements of one dtype differ when any bit does; elements of two dtypes when their values do (then ``bits`` is 0, and all
        NaNs are equal).
        """
        import numpy as np  # noqa: PLC0415  (see above)

        a, b = (np.frombuffer(data, f"<u{ITEM_SIZES[dtype]}") for data, dtype in zip((one, other), dtypes, strict=True))
        if dtypes[0] != dtypes[1]:
            return self._compare_numbers(a, b, dtypes)
        if np.array_equal(a, b):  # fifty times as fast as comparing memoryviews, and other threads can run
            return None
        differs = a != b
        bits = _count_ones(np.bitwise_xor(a, b, out=self._scratch.view(a.dtype)[: len(a)]))
        if dtypes[0] not in NUMPY:
            return Figures(int(np.count_nonzero(differs)), bits)
        return self._compare_numbers(a, b, dtypes, differs, bits)

    def norm(self, one: memoryview, dtype: str) -> Figures:
        """Return the figures of a block without differences: the norm, if the dtype has numbers."""
        import numpy as np  # noqa: PLC0415  (see above)

        if dtype not in NUMPY:
            return Figures()
        words = np.frombuffer(one, f"<u{ITEM_SIZES[dtype]}")
        return Figures(norm=_sum_of_squares(self._as_float64(words, dtype, self._one)))

    def _compare_numbers(
        self, one: Array, other: Array, dtypes: tuple[str, str], differs: Array | None = None, bits: int = 0
    ) -> Figures:
        """Return the figures of two blocks of unsigned integers; if ``differs`` is None, elements differ if their values do."""
        import numpy as np  # noqa: PLC0415  (see above)

        a, b = self._as_float64(one, dtypes[0], self._one), self._as_float64(other, dtypes[1], self._other)
        apart, nonfinite = self._scratch[: len(a)], 0
        with np.errstate(all="ignore"):
            if differs is None:
                differs = (a != b) & ~(np.isnan(a) & np.isnan(b))
            if dtypes[0] in ROUNDED:
                x, y = one.view(NUMPY[dtypes[0]]), other.view(NUMPY[dtypes[0]])
                # If the difference overflows as a signed number, the same bits are right as an unsigned one.
                np.copyto(apart, np.where(x > y, x - y, y - x).view("<u8"))
            else:
                np.abs(np.subtract(a, b, out=apart), out=apart)
            if not math.isfinite(apart.max()):  # NaN is the largest of all
                finite = np.isfinite(a) & np.isfinite(b)
                nonfinite = int(np.count_nonzero(differs & ~finite))
                apart[~finite] = 0.0
            max_abs, norm = float(apart.max()), _sum_of_squares(a)
            squares = float(np.square(apart, out=apart).sum())
        return Figures(int(np.count_nonzero(differs)), bits, nonfinite, max_abs, squares, norm)

    def _as_float64(self, words: Array, dtype: str, out: Array) -> Array:
        """Write the values to ``out``: exactly, unless the dtype is one of ``ROUNDED``."""
        import numpy as np  # noqa: PLC0415  (see above)

        numbers = words.view(NUMPY[dtype])
        if dtype == "BF16":  # the upper half of a float32
            wide = self._scratch.view("<u4")[: len(words)]
            np.copyto(wide, words)
            numbers = np.left_shift(wide, 16, out=wide).view("<f4")
        np.copyto(out[: len(words)], numbers)
        return out[: len(words)]


def _sum_of_squares(numbers: Array) -> float:
    """Return the sum of the squares of the finite ``numbers``, which are overwritten."""
    import numpy as np  # noqa: PLC0415  (see above)

    with np.errstate(all="ignore"):
        if not math.isfinite(numbers.max() - numbers.min()):  # NaN is the largest, and the smallest, of all
            numbers[~np.isfinite(numbers)] = 0.0
        return float(np.square(numbers, out=numbers).sum())


def _count_ones(words: Array) -> int:
    import numpy as np  # noqa: PLC0415  (see above)

    if words.nbytes % 8 == 0:
        words = words.view("<u8")  # fewer counts to add up
    if hasattr(np, "bitwise_count"):
        return int(np.bitwise_count(words).sum())
    return int(np.count_nonzero(np.unpackbits(words.view("u1"))))  # numpy 1
