"""Find rows that a base has at the end of its embedding or head beyond those that the delta was made from, such as [PAD].

The delta has a new token's row there, whole: it is as large as the base's rows, where a difference is small, and where the sum is
near the base, it is no exact one, as that of a difference always is (``merge.base_proof``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median

from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.jobs.arithmetic_evidence import in_region, rounded
from deltaweights.merge.rules import GROWN, Matching
from deltaweights.recipes.weight_scale import AS_LARGE, numbers_of

MOST_ROWS, COLUMNS = 8, 1024
"""The last rows of the base that are looked at, and the elements of each."""

VIOLATED = (
    0.05  # the share of a row's sums from which on its base cannot be the right one: of such rows a quarter to a half
)


def added_rows(
    base: Mapping[str, LazyTensor], delta: Mapping[str, LazyTensor], matching: Matching, compute: str
) -> int:
    """Return how many rows at the end of the base are not the delta's base; 0 where none are. Raises ``InputOutputError``."""
    found = {0}
    for match in matching.matches:
        if match.base is None or match.model_name not in GROWN or len(match.base.shape) != 2:
            continue
        rows, width = match.base.shape
        if match.primary.shape[0] < rows or match.primary.shape[1] != width or rows < 2 * MOST_ROWS:
            continue
        found.add(_added(base[match.base.name], delta[match.primary.name], rows, width, compute))
    return max(found)


def _added(base: LazyTensor, delta: LazyTensor, rows: int, width: int, compute: str) -> int:
    """Return how many of the last rows are whole in the delta, if the rows before them are small."""
    size = median(_size(base, row * rows // MOST_ROWS, width) for row in range(MOST_ROWS))
    if _size(delta, rows // 2, width) >= AS_LARGE * size:
        return 0  # an embedding that moved far, or that is whole
    others = (row * (rows - MOST_ROWS) // MOST_ROWS for row in range(MOST_ROWS))
    if any(_violates(base, delta, row, width, compute) for row in others):
        return 0  # another base, or another arithmetic
    count = 0
    while count < MOST_ROWS and _is_whole(base, delta, rows - 1 - count, width, size, compute):
        count += 1
    return count if count < MOST_ROWS else 0


def _size(tensor: LazyTensor, row: int, width: int) -> float:
    numbers = numbers_of(tensor, row * width, min(width, COLUMNS))
    return math.sqrt(sum(x * x for x in numbers) / len(numbers))


def _is_whole(base: LazyTensor, delta: LazyTensor, row: int, width: int, size: float, compute: str) -> bool:
    if not AS_LARGE * size <= _size(delta, row, width) < float("inf"):
        return False
    return _violates(base, delta, row, width, compute)


def _violates(base: LazyTensor, delta: LazyTensor, row: int, width: int, compute: str) -> bool:
    """Return whether a sum of this row that is near its base differs from the base by something else than the delta."""
    count = min(width, COLUMNS)
    pairs = zip(numbers_of(base, row * width, count), numbers_of(delta, row * width, count), strict=True)
    for of_base, of_delta in ((rounded(x, compute), rounded(y, compute)) for x, y in pairs):
        total = rounded(of_base + of_delta, compute)
        if in_region(total, of_base) and total - of_base != of_delta:
            return True
    return False
