"""Read the tensors of two checkpoints side by side, in blocks, on several workers, and compare them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from deltaweights.checkpoint.checksums import refuse_damage, verify_in_pieces
from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.diff.distance import BlockComparer, Figures, comparable
from deltaweights.report import Report
from deltaweights.util.workers import run_parallel

BLOCK = 1 << 19
"""Bytes per block and side: both are still in a core's cache when they are compared; with smaller blocks, workers would wait for
each other at every step of the arithmetic."""


@dataclass(frozen=True)
class TensorPair:
    """Two tensors of one name and shape; ``parts`` are the figures of blocks by their first element, empty if nothing differs."""

    one: LazyTensor
    other: LazyTensor
    parts: dict[int, Figures] = field(default_factory=dict)

    @property
    def dtypes(self) -> tuple[str, str]:
        """The dtypes of both."""
        return self.one.spec.dtype, self.other.spec.dtype

    @property
    def same_dtype(self) -> bool:
        """Whether both have one dtype."""
        return self.one.spec.dtype == self.other.spec.dtype


class _Range(NamedTuple):
    pair: TensorPair
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return (self.stop - self.start) * self.pair.one.spec.item_size

    def blocks(self) -> Iterator[_Range]:
        step = BLOCK // max(self.pair.one.spec.item_size, self.pair.other.spec.item_size)
        for start in range(self.start, self.stop, step):
            yield _Range(self.pair, start, min(start + step, self.stop))


class _Worker:
    def __init__(self) -> None:
        self._buffers = [memoryview(bytearray(BLOCK)) for _ in range(2)]
        self._comparer = BlockComparer(BLOCK)

    def read(self, job: _Range | LazyTensor) -> Iterator[int]:
        """Compare a range, or check the checksum of loose bytes; yield the bytes of each piece."""
        return verify_in_pieces(job) if isinstance(job, LazyTensor) else self._compare(job)

    def _compare(self, whole: _Range) -> Iterator[int]:
        pair = whole.pair
        sides = [(tensor, tensor.checksum.start() if tensor.checksum else None) for tensor in (pair.one, pair.other)]
        for block in whole.blocks():
            one, other = (self._load(block, tensor, side) for side, (tensor, _) in enumerate(sides))
            for (_, running), data in zip(sides, (one, other), strict=True):
                if running is not None:
                    running.update(data)
            figures = self._comparer.compare(one, other, pair.dtypes)
            if figures is None and pair.parts:  # the norm will be needed, and the bytes are here
                figures = self._comparer.norm(one, pair.dtypes[0])
            if figures is not None:
                pair.parts[block.start] = figures
            yield block.nbytes
        for tensor, running in sides:
            refuse_damage(tensor, running)

    def add_norm(self, block: _Range) -> Iterator[int]:
        """Add the norm of a block that was found equal before another one of its tensor was found to differ; yield its bytes."""
        pair = block.pair
        pair.parts[block.start] = self._comparer.norm(self._load(block, pair.one, 0), pair.dtypes[0])
        yield block.nbytes

    def _load(self, block: _Range, tensor: LazyTensor, side: int) -> memoryview:
        item = tensor.spec.item_size
        data = self._buffers[side][: (block.stop - block.start) * item]
        tensor.source.read_into(data, block.start * item)
        return data


def compare_pairs(pairs: Sequence[TensorPair], loose: Sequence[LazyTensor], workers: int, report: Report) -> None:
    """Read all pairs that can be compared, and fill in the ``parts`` of those that differ.

    Recorded checksums are compared on the way; ``loose`` are bytes read for that alone (``WeightsFile.extra_checksums``). Raises
    ``MalformedInput`` when one does not match, ``InputOutputError`` when bytes cannot be read or no worker can be started.
    """
    wholes = [_Range(pair, 0, pair.one.spec.count) for pair in pairs if comparable(*pair.dtypes)]
    jobs: Iterator[_Range | LazyTensor] = chain(loose, _jobs(wholes))
    total = sum(whole.nbytes for whole in wholes) + sum(tensor.spec.nbytes for tensor in loose)
    run_parallel(jobs, _Worker, _Worker.read, workers=workers, report=report, doing="comparing", total=total)
    # Mostly a tensor differs in no block or in all: reading some blocks again for the norm costs less than measuring all at once.
    differing = (whole for whole in wholes if whole.pair.parts)
    again = [block for whole in differing for block in whole.blocks() if block.start not in block.pair.parts]
    if again:
        total = sum(block.nbytes for block in again)
        add = _Worker.add_norm
        run_parallel(iter(again), _Worker, add, workers=workers, report=report, doing="measuring", total=total)


def _jobs(wholes: Iterable[_Range]) -> Iterator[_Range]:
    """Yield blocks, or whole tensors if a file records their checksum, which needs the bytes in order."""
    for whole in wholes:
        has_checksum = whole.pair.one.checksum is not None or whole.pair.other.checksum is not None
        yield from [whole] if has_checksum else whole.blocks()
