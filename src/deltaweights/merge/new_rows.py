"""What the new rows of an extended vocabulary are added to if a recipe says so: zeros, or the mean of the base's rows.

Zeros: FastChat's apply_delta.py, which grows the base by ``resize_token_embeddings`` and clears the new rows. Mean: Alpaca's
weight_diff.py, in float32; it depends on neither block size nor workers nor machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.merge.blocks import Block
from deltaweights.merge.floats import ITEM_SIZES, as_float64
from deltaweights.merge.operation import Fate
from deltaweights.merge.plan import PlannedTensor

READ = 1 << 19  # bytes of the base that are read at once for its mean


class RepeatedRow:
    """The row that every new row of a tensor is added to."""

    def __init__(self, row: bytes, item_size: int, block: int) -> None:
        """Repeat ``row`` to cover a block of ``block`` elements that begins anywhere in a row."""
        self._width, self._item_size = len(row) // item_size, item_size
        self._rows = memoryview(bytearray(row * (block // self._width + 2)))

    def operand(self, block: Block) -> memoryview | None:
        """Return what the elements of ``block`` behind its base's are added to; None when there are none."""
        with_base = block.runs[-1].stop if block.runs else 0
        count = block.stop - block.start - with_base
        first = (block.start + with_base) % self._width
        return self._rows[first * self._item_size : (first + count) * self._item_size] if count else None


def new_row_operands(
    tensors: Iterable[PlannedTensor], base: Mapping[str, LazyTensor], compute: str, block: int
) -> dict[str, RepeatedRow]:
    """Return by tensor what new rows are added to, in the compute dtype. Raises ``InputOutputError`` if the base is unreadable."""
    found = {}
    for tensor in tensors:
        match, item = tensor.match, ITEM_SIZES[compute]
        if match.base is None or match.fate not in {Fate.ADD_ZERO_ROWS, Fate.ADD_MEAN_ROWS} or not match.base.shape[1]:
            continue
        is_mean = match.fate is Fate.ADD_MEAN_ROWS  # for which recipes allow float32 only
        row = mean_row(base[match.base.name]) if is_mean else bytes(match.base.shape[1] * item)
        found[match.primary.name] = RepeatedRow(row, item, block)
    return found


def mean_row(tensor: LazyTensor) -> bytes:
    """Return the mean of the rows of a matrix that has columns, as the bytes of float32 numbers.

    It is summed in float64, row by row from the first on, so that it is the same everywhere, and rounded twice: by the division and
    to float32. torch's float32 mean, which Alpaca's script takes, is within some 2^-23 of the column's mean magnitude, and depends
    on how torch adds up.
    """
    import numpy as np  # noqa: PLC0415  (few need it)

    rows, columns = tensor.spec.shape
    row_bytes = columns * tensor.spec.item_size
    rows_at_once = max(1, READ // row_bytes)
    buffer = memoryview(bytearray(rows_at_once * row_bytes))
    total: Any = np.zeros(columns, "<f8")
    with np.errstate(invalid="ignore", over="ignore"):  # infinities of both signs in one column; sums beyond float32
        for first in range(0, rows, rows_at_once):
            piece = buffer[: min(rows_at_once, rows - first) * row_bytes]
            tensor.source.read_into(piece, first * row_bytes)
            for row in as_float64(piece, tensor.spec.dtype).reshape(-1, columns):
                total += row
        return (total / rows).astype("<f4").tobytes() if rows else bytes(4 * columns)
