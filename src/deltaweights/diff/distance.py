"""How far two blocks of numbers are apart.

Enters: bytes of two blocks of as many elements, and their dtypes. Leaves: counts, the largest difference, and sums of squares in
float64, which add up to the same figures in whatever order blocks were finished. Never: a file, or a NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltaweights.checkpoint.tensors import ITEM_SIZES

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

NUMPY = {
    "BF16": "<u2", "F16": "<f2", "F32": "<f4", "F64": "<f8",
    "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
    "U8": "<u1", "U16": "<u2", "U32": "<u4", "U64": "<u8",
}  # fmt: skip
"""The dtypes that have figures, by numpy's name for their bytes (BF16 has none); of others only elements and bits are counted."""

ROUNDED = frozenset({"I64", "U64"})
"""Dtypes with numbers that float64 cannot hold; their differences are taken before they are rounded to it."""


@dataclass(frozen=True)
class Figures:
    """What is known of a block, or, added up, of a tensor.

    ``elements`` and ``bits`` count those that differ, ``nonfinite`` the differing elements of which one is NaN or infinite: these
    have no part in ``max_abs`` and ``squares``, the largest difference and the sum of the squares of all. ``norm`` is the sum of
    the squares of the first block's finite elements.
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
    """Return the figures of all parts together; ``math.fsum`` rounds once, so their order does not matter."""
    return Figures(
        sum(part.elements for part in parts),
        sum(part.bits for part in parts),
        sum(part.nonfinite for part in parts),
        max((part.max_abs for part in parts), default=0.0),
        _total([part.squares for part in parts]),
        _total([part.norm for part in parts]),
    )


class Gauge:
    """What measures one worker's blocks, with the room for it: numpy's own, made anew for every step, costs more than the steps."""

    def __init__(self, count: int) -> None:
        """Make room for ``count`` elements; pages that are never used cost nothing."""
        import numpy as np  # noqa: PLC0415  (a tenth of a second, for those who compare)

        self._one, self._other, self._room = (np.empty(count, "<f8") for _ in range(3))

    def measure(self, one: memoryview, other: memoryview, dtypes: tuple[str, str]) -> Figures | None:
        """Return the figures of two blocks of as many elements, of ``dtypes`` that are ``comparable``; None when no bit differs.

        Elements of one dtype differ when any bit does, of two dtypes when their values do (``bits`` is 0 then, and two NaNs are one
        value).
        """
        import numpy as np  # noqa: PLC0415  (see above)

        a, b = (np.frombuffer(data, f"<u{ITEM_SIZES[dtype]}") for data, dtype in zip((one, other), dtypes, strict=True))
        if dtypes[0] != dtypes[1]:
            return self._of_numbers(a, b, dtypes, None, 0)
        if np.array_equal(a, b):  # fifty times as fast as comparing memoryviews, and other threads can run
            return None
        differs = a != b
        bits = _ones(np.bitwise_xor(a, b, out=self._room.view(a.dtype)[: len(a)]))
        if dtypes[0] not in NUMPY:
            return Figures(int(np.count_nonzero(differs)), bits)
        return self._of_numbers(a, b, dtypes, differs, bits)

    def norm(self, one: memoryview, dtype: str) -> Figures:
        """Return the figures of a block that differs in nothing: its norm, where there is arithmetic."""
        import numpy as np  # noqa: PLC0415  (see above)

        if dtype not in NUMPY:
            return Figures()
        return Figures(norm=_squares(self._numbers(np.frombuffer(one, f"<u{ITEM_SIZES[dtype]}"), dtype, self._one)))

    def _of_numbers(
        self, one: Array, other: Array, dtypes: tuple[str, str], differs: Array | None, bits: int
    ) -> Figures:
        """Return the figures of two blocks, given as unsigned integers; without ``differs``, values tell which elements do."""
        import numpy as np  # noqa: PLC0415  (see above)

        a, b = self._numbers(one, dtypes[0], self._one), self._numbers(other, dtypes[1], self._other)
        apart, nonfinite = self._room[: len(a)], 0
        with np.errstate(all="ignore"):
            if differs is None:
                differs = (a != b) & ~(np.isnan(a) & np.isnan(b))
            if dtypes[0] in ROUNDED:
                x, y = one.view(NUMPY[dtypes[0]]), other.view(NUMPY[dtypes[0]])
                # Where the difference overflows as a signed number, the same bits are right as an unsigned one.
                np.copyto(apart, np.where(x > y, x - y, y - x).view("<u8"))
            else:
                np.abs(np.subtract(a, b, out=apart), out=apart)
            if not math.isfinite(apart.max()):  # NaN is the largest of all
                finite = np.isfinite(a) & np.isfinite(b)
                nonfinite = int(np.count_nonzero(differs & ~finite))
                apart[~finite] = 0.0
            max_abs, norm = float(apart.max()), _squares(a)
            squares = float(np.square(apart, out=apart).sum())
        return Figures(int(np.count_nonzero(differs)), bits, nonfinite, max_abs, squares, norm)

    def _numbers(self, words: Array, dtype: str, out: Array) -> Array:
        """Write the values to ``out``; but for those of ``ROUNDED`` dtypes, all are exact."""
        import numpy as np  # noqa: PLC0415  (see above)

        numbers = words.view(NUMPY[dtype])
        if dtype == "BF16":  # the upper half of a float32
            wide = self._room.view("<u4")[: len(words)]
            np.copyto(wide, words)
            numbers = np.left_shift(wide, 16, out=wide).view("<f4")
        np.copyto(out[: len(words)], numbers)
        return out[: len(words)]


def _squares(numbers: Array) -> float:
    """Return the sum of the squares of those ``numbers`` that are finite; they are overwritten."""
    import numpy as np  # noqa: PLC0415  (see above)

    with np.errstate(all="ignore"):
        if not math.isfinite(numbers.max() - numbers.min()):  # NaN is the largest, and the smallest, of all
            numbers[~np.isfinite(numbers)] = 0.0
        return float(np.square(numbers, out=numbers).sum())


def _ones(words: Array) -> int:
    import numpy as np  # noqa: PLC0415  (see above)

    if words.nbytes % 8 == 0:
        words = words.view("<u8")  # fewer counts to add up
    if hasattr(np, "bitwise_count"):
        return int(np.bitwise_count(words).sum())
    return int(np.count_nonzero(np.unpackbits(words.view("u1"))))  # numpy 1


def _total(values: Sequence[float]) -> float:
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf
