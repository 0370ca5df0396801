"""The float32 mean over the rows of a matrix as torch computes it on a processor, without torch.

Original scripts take the mean of an embedding's rows with ``mean(dim=0)``, and float32 sums depend on their order. Torch's order
(``SumKernel.cpp``) is the same for any number of threads, and with AVX2, AVX-512 or neither.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

Rows = Any  # a float32 array of rows and columns

LEVELS = 4
AT_ONCE = 32  # columns that torch adds at once on x86: four vectors of eight; those that are left over it adds in another order
VECTOR, SCALARS = 8, 4  # narrower than a vector, a matrix is added by four columns at once
INTERLEAVED = 4  # partial sums of a column that is left over


class CascadeSum:
    """The sum of ``count`` rows by a cascade of four float32 accumulators per column.

    Rows are added to the first. Every ``step`` rows it is added to the second and cleared, every step^2 the second to the third,
    and every step^3 the third to the last.
    """

    def __init__(self, count: int, columns: int) -> None:
        import numpy as np  # noqa: PLC0415  (few need it)

        self._step = 1 << max(4, max(count - 1, 0).bit_length() // LEVELS)
        self._levels = np.zeros((LEVELS, columns), "<f4")
        self._added = 0

    def add(self, rows: Rows) -> None:
        """Add the next rows, in order."""
        first = self._levels[0]
        for row in rows:
            first += row
            self._added += 1
            if self._added % self._step == 0:
                self._carry()

    def _carry(self) -> None:
        every = self._step
        for lower, upper in pairwise(self._levels):
            upper[:] += lower
            lower[:] = 0
            every *= self._step
            if self._added % every:
                break

    def total(self) -> Rows:
        """Return the sum of the accumulators, in order."""
        return _in_order(self._levels)


def _in_order(parts: Rows) -> Rows:
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    return total


class RowMean:
    """The mean of ``count`` rows, at least one, which are given in pieces; all but the last piece have a multiple of 4 rows.

    Torch adds columns in groups of 32. What is left over it adds in four partial sums: rows 0, 4, 8, ..., rows 1, 5, 9, ... and so
    on, each by a cascade of its own; up to three rows at the end go to the first. (So on x86. Other processors may differ in what
    is left over. One column alone torch adds in an order that depends on its threads; here it is left over.)
    """

    def __init__(self, count: int, columns: int) -> None:
        at_once = AT_ONCE if columns >= VECTOR else SCALARS
        self._count, self._grouped = count, columns - columns % at_once
        self._left_over = columns - self._grouped
        self._groups = CascadeSum(count, self._grouped)
        self._rest = CascadeSum(count // INTERLEAVED, INTERLEAVED * self._left_over)
        self._last_rows: Rows = ()

    def add(self, rows: Rows) -> None:
        """Add the next rows."""
        self._groups.add(rows[:, : self._grouped])
        if self._left_over:
            rest = rows[:, self._grouped :]
            whole = len(rest) - len(rest) % INTERLEAVED
            self._rest.add(rest[:whole].reshape(-1, INTERLEAVED * self._left_over))
            self._last_rows = rest[whole:].copy()

    def mean(self) -> Rows:
        """Return the mean, a float32 array of one row."""
        import numpy as np  # noqa: PLC0415  (few need it)

        parts = self._rest.total().reshape(INTERLEAVED, self._left_over)
        for row in self._last_rows:
            parts[0] += row
        return np.concatenate([self._groups.total(), _in_order(parts)]) / np.float32(self._count)
