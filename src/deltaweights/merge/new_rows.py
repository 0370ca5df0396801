"""What the new rows of an extended vocabulary are combined with if a recipe says so: zeros, or the mean of the base's rows.

Zeros: FastChat's apply_delta.py, which grows the base by ``resize_token_embeddings`` and clears the new rows. Mean: Alpaca's
weight_diff.py, in float32; it depends on neither block size nor workers nor machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.merge.arithmetic import Kernels
from deltaweights.merge.blocks import Block
from deltaweights.merge.floats import ITEM_SIZES
from deltaweights.merge.mean_rows import INTERLEAVED, RowMean
from deltaweights.merge.operation import MEAN_ROWS, ZERO_ROWS
from deltaweights.merge.plan import PlannedTensor

READ = 1 << 19  # bytes of the base that are read at once for its mean, or four rows


class RepeatedRow:
    """The row that every new row of a tensor is combined with."""

    def __init__(self, row: bytes, item_size: int, block: int) -> None:
        """Repeat ``row`` to cover a block of ``block`` elements that begins anywhere in a row."""
        self._width, self._item_size = len(row) // item_size, item_size
        self._rows = memoryview(bytearray(row * (block // self._width + 2)))

    def operand(self, block: Block) -> memoryview | None:
        """Return what the elements of ``block`` behind its base's are combined with; None when there are none."""
        with_base = block.runs[-1].stop if block.runs else 0
        count = block.stop - block.start - with_base
        first = (block.start + with_base) % self._width
        return self._rows[first * self._item_size : (first + count) * self._item_size] if count else None


def new_row_operands(
    tensors: Iterable[PlannedTensor],
    base: Mapping[str, LazyTensor],
    compute: str,
    block: int,
    make_kernels: Callable[[], Kernels],
) -> dict[str, RepeatedRow]:
    """Return by tensor what new rows are combined with, in the compute dtype. Raises ``InputOutputError``."""
    found = {}
    for tensor in tensors:
        match, item = tensor.match, ITEM_SIZES[compute]
        if match.base is None or match.fate not in ZERO_ROWS | MEAN_ROWS or not match.base.shape[1]:
            continue
        is_mean = match.fate in MEAN_ROWS  # for which recipes allow float32 only
        row = mean_row(base[match.base.name], make_kernels()) if is_mean else bytes(match.base.shape[1] * item)
        found[match.primary.name] = RepeatedRow(row, item, block)
    return found


def mean_row(tensor: LazyTensor, kernels: Kernels) -> bytes:
    """Return the mean of the rows of a matrix that has columns, as the bytes of float32 numbers; zeros when it has no rows.

    Like Alpaca's script, cast the matrix to float32 and take torch's mean over rows (``RowMean``).
    """
    import numpy as np  # noqa: PLC0415  (few need it)

    rows, columns = tensor.spec.shape
    if not rows:
        return bytes(4 * columns)
    row_bytes = columns * tensor.spec.item_size
    at_once = min(rows, INTERLEAVED * max(1, READ // (INTERLEAVED * row_bytes)))
    stored, cast = kernels.buffer(at_once * row_bytes), kernels.buffer(at_once * columns * ITEM_SIZES["F32"])
    mean = RowMean(rows, columns)
    with np.errstate(invalid="ignore", over="ignore"):  # infinities of both signs in one column; sums beyond float32
        for first in range(0, rows, at_once):
            count = min(at_once, rows - first)
            piece, numbers = stored[: count * row_bytes], cast[: count * columns * ITEM_SIZES["F32"]]
            tensor.source.read_into(piece, first * row_bytes)
            kernels.cast(kernels.as_array(piece, tensor.spec.dtype), kernels.as_array(numbers, "F32"))
            mean.add(np.frombuffer(numbers, "<f4").reshape(count, columns))
        return bytes(mean.mean().tobytes())
