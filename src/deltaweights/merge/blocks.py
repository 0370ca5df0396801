"""The unit of streaming: a range of elements of one result tensor, and the part of the base that belongs to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from deltaweights.merge.operation import Fate
from deltaweights.merge.plan import PlannedTensor
from deltaweights.merge.rules import Match


class Run(NamedTuple):
    """Elements ``[start, stop)`` of a block, to be combined with the elements from ``base`` on of the base's part."""

    start: int
    stop: int
    base: int

    @property
    def end(self) -> int:
        """Where its part of the base ends."""
        return self.base + self.stop - self.start


class Block(NamedTuple):  # a tuple is made in a third of a dataclass's time, once a block
    """Elements ``[start, stop)`` of ``tensor``, block ``number`` of a shard; the base's part is one range: both are row-major."""

    tensor: PlannedTensor
    start: int
    stop: int
    number: int
    last_of_shard: bool
    base_start: int
    base_stop: int
    runs: tuple[Run, ...]
    last_of_tensor: bool

    @property
    def offset(self) -> int:
        """Where the block's bytes go in the shard's file."""
        return self.tensor.offset + self.start * self.tensor.spec.item_size


def blocks_of(tensors: Sequence[PlannedTensor], size: int) -> Iterator[Block]:
    """Yield the blocks of a shard's ``tensors`` in file order, at most ``size`` elements each; an empty tensor is one block."""
    number = 0
    for tensor in tensors:
        count = tensor.spec.count
        for start in range(0, max(count, 1), size):
            stop = min(start + size, count)
            last = stop == count
            ends = last and tensor is tensors[-1]
            yield Block(tensor, start, stop, number, ends, *base_part(tensor.match, start, stop), last)
            number += 1


def base_part(match: Match, start: int, stop: int) -> tuple[int, int, tuple[Run, ...]]:
    """Return the bounds of the base's elements that belong to elements ``[start, stop)`` of the primary, and their runs."""
    if match.base is None:
        return 0, 0, ()
    if match.fate in {Fate.ADD, Fate.SUBTRACT}:
        return start, stop, (Run(0, stop - start, 0),)
    rows, columns = match.base.shape
    width = match.primary.shape[1]
    if columns == width:  # only the vocabulary grew: the base is the beginning of the primary
        end = max(start, min(stop, match.base.count))
        return start, end, (Run(0, end - start, 0),) if start < end else ()
    first = _elements_before(start, rows, columns, width)
    last = _elements_before(stop, rows, columns, width)
    runs: list[Run] = []
    done = first
    while done < last:
        row, column = divmod(done, columns)
        length = min(columns - column, last - done)
        place = row * width + column - start
        runs.append(Run(place, place + length, done - first))
        done += length
    return first, last, tuple(runs)


def _elements_before(element: int, rows: int, columns: int, width: int) -> int:
    """Return how many elements of a top-left block of ``rows x columns`` precede ``element`` of a matrix of ``width`` columns."""
    row, column = divmod(element, width)
    return rows * columns if row >= rows else row * columns + min(column, columns)
