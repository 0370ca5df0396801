"""Byte sources for strided views of stored bytes: rows, columns, transposes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from deltaweights.checkpoint.files import InputFile
from deltaweights.checkpoint.tensors import ITEM_SIZES, ContiguousSource, LazyTensor, Storage, TensorSpec
from deltaweights.checkpoint.torch_format.pickled_types import TensorView


@dataclass(frozen=True)
class StridedSource:
    """A view with arbitrary positive ``strides``, in elements, over the bytes at ``offset``, such as the transpose of a tensor."""

    file: InputFile
    offset: int
    item_size: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read_into(self, out: memoryview, start: int) -> None:
        cells = out.cast(_CELLS[self.item_size])
        first = start // self.item_size
        self._gather(cells, first, first + len(cells), 0, 0)

    def _gather(self, out: memoryview, start: int, stop: int, axis: int, origin: int) -> None:
        """Put elements ``[start, stop)`` of the sub-view ``axis:``, which begins at element ``origin``, into ``out``."""
        if start == stop:
            return
        if axis == len(self.shape):
            self._read_run(out, origin)
            return
        inner = math.prod(self.shape[axis + 1 :])
        row, skip = divmod(start, inner)
        if skip:  # the rest of a row that an earlier block began
            cut = min(stop, (row + 1) * inner)
            self._gather(out[: cut - start], skip, skip + cut - start, axis + 1, origin + row * self.strides[axis])
            self._gather(out[cut - start :], cut, stop, axis, origin)
            return
        rows = (stop - start) // inner
        if rows and self.strides[axis] == 1:
            # Neighbours along this axis are neighbours in the file: one read per column, not one per element.
            for column, place in enumerate(_places(self.shape[axis + 1 :], self.strides[axis + 1 :])):
                self._read_run(out[column : rows * inner : inner], origin + row + place)
        else:
            for k in range(rows):
                place = origin + (row + k) * self.strides[axis]
                self._gather(out[k * inner : (k + 1) * inner], 0, inner, axis + 1, place)
        rest = out[rows * inner :]
        self._gather(rest, 0, len(rest), axis + 1, origin + (row + rows) * self.strides[axis])

    def _read_run(self, out: memoryview, element: int) -> None:
        run = bytearray(len(out) * self.item_size)  # all the memory that is needed besides the caller's buffer
        self.file.read_into(memoryview(run), self.offset + element * self.item_size)
        out[:] = memoryview(run).cast(_CELLS[self.item_size])


_CELLS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
"""The memoryview format for each element size."""


def _places(shape: Sequence[int], strides: Sequence[int]) -> Iterator[int]:
    """Return the element offsets of a view in row-major order."""
    steps = (range(0, n * s, s) for n, s in zip(shape, strides, strict=True))
    return (sum(index) for index in itertools.product(*steps))


def view_source(
    file: InputFile, offset: int, item_size: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> ContiguousSource | StridedSource:
    """Return the simplest source for a view: axes of length one are dropped, and adjacent axes without gaps are merged."""
    axes: list[tuple[int, int]] = []
    for length, stride in zip(shape, strides, strict=True):
        if length == 1:
            continue
        if axes and axes[-1][1] == length * stride:
            axes[-1] = (axes[-1][0] * length, stride)
        else:
            axes.append((length, stride))
    if not axes or math.prod(shape) == 0 or (len(axes) == 1 and axes[0][1] == 1):
        return ContiguousSource(file, offset)
    return StridedSource(file, offset, item_size, tuple(n for n, _ in axes), tuple(s for _, s in axes))


def view_tensor(file: InputFile, name: str, view: TensorView, storage_offset: int) -> LazyTensor:
    """Return the tensor ``name``, a view of the storage that begins at ``storage_offset`` of ``file``."""
    item_size = ITEM_SIZES[view.dtype]
    source = view_source(file, storage_offset + view.offset * item_size, item_size, view.shape, view.strides)
    storage = Storage(file.path.name, view.storage, view.offset, view.strides)
    return LazyTensor(TensorSpec(name, view.dtype, view.shape), source, file.path, storage)
