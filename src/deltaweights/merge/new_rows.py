"""What the rows of an extended vocabulary are added to, where a recipe says: zeros, or the mean of the base's rows.

Enters: planned tensors, and the lazy tensors of the base. Leaves: for each block the numbers that its new rows meet, in the compute
dtype. Never: a mean that depends on block size, workers or machine.

Zeros: FastChat's apply_delta.py, which grows the base by ``resize_token_embeddings`` and clears the new rows. Mean: Alpaca's
weight_diff.py, in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.merge.blocks import Block
from deltaweights.merge.floats import ITEM_SIZES, as_float64
from deltaweights.merge.operation import Fate
from deltaweights.merge.plan import PlannedTensor

READ = 1 << 19
"""Bytes of the base that are read at once for its mean."""


class NewRows:
    """One row, repeated: what every new row of a tensor meets."""

    def __init__(self, row: bytes, item_size: int, block: int) -> None:
        """Make room for a block of ``block`` elements that begins anywhere in a row."""
        self._width, self._item_size = len(row) // item_size, item_size
        self._rows = memoryview(bytearray(row * (block // self._width + 2)))

    def beside(self, block: Block) -> memoryview | None:
        """Return what the elements of ``block`` meet that lie behind those of its base; None when there are none."""
        met = block.runs[-1].stop if block.runs else 0
        count = block.stop - block.start - met
        first = (block.start + met) % self._width
        return self._rows[first * self._item_size : (first + count) * self._item_size] if count else None


def new_rows_of(
    tensors: Iterable[PlannedTensor], base: Mapping[str, LazyTensor], compute: str, block: int
) -> dict[str, NewRows]:
    """Return, by name, what new rows meet. Reads those tensors of the base of whose rows the mean is wanted.

    Recipes want means in float32 alone. Raises ``InputOutputError`` when the base cannot be read.
    """
    found = {}
    for tensor in tensors:
        match, item = tensor.match, ITEM_SIZES[compute]
        if match.base is None or match.fate not in {Fate.ADD_ZERO_ROWS, Fate.ADD_MEAN_ROWS} or not match.base.shape[1]:
            continue
        zeros = bytes(match.base.shape[1] * item)
        row = mean_row(base[match.base.name]) if match.fate is Fate.ADD_MEAN_ROWS else zeros
        found[match.primary.name] = NewRows(row, item, block)
    return found


def mean_row(tensor: LazyTensor) -> bytes:
    """Return the mean of the rows of a matrix that has columns, as the bytes of float32 numbers.

    Summed in float64, row by row from the first on, so that the result is the same everywhere, and rounded twice: when it is
    divided by the number of rows and to float32. torch's float32 mean, which Alpaca's script takes, is within some 2^-23 of the
    column's mean magnitude, and depends on how torch adds up.
    """
    import numpy as np  # noqa: PLC0415  (few need it)

    rows, columns = tensor.spec.shape
    row_bytes = columns * tensor.spec.item_size
    together = max(1, READ // row_bytes)
    buffer = memoryview(bytearray(together * row_bytes))
    total: Any = np.zeros(columns, "<f8")
    with np.errstate(invalid="ignore", over="ignore"):  # infinities of both signs in one column; sums beyond float32
        for first in range(0, rows, together):
            piece = buffer[: min(together, rows - first) * row_bytes]
            tensor.source.read_into(piece, first * row_bytes)
            for row in as_float64(piece, tensor.spec.dtype).reshape(-1, columns):
                total += row
        return (total / rows).astype("<f4").tobytes() if rows else bytes(4 * columns)
