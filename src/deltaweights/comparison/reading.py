"""The weights of two checkpoints, read side by side, in blocks, by several workers.

Enters: pairs of tensors of one name and shape. Leaves: in each pair, figures of what differs. Never: a block in memory once it is
compared, or a figure that depends on which worker made it, or when.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.comparison.figures import Figures, Gauge, comparable
from deltaweights.report import Report
from deltaweights.work import share_out

BLOCK = 1 << 19
"""Bytes per block and side: both are still in a core's cache when they are compared; in smaller ones, workers would wait for each
other at every step of the arithmetic."""


@dataclass(frozen=True)
class Pair:
    """Two tensors of one name and shape; ``parts`` are the figures of blocks by their first element, none while nothing differs."""

    one: LazyTensor
    other: LazyTensor
    parts: dict[int, Figures] = field(default_factory=dict)

    @property
    def dtypes(self) -> tuple[str, str]:
        """The dtypes of both."""
        return self.one.spec.dtype, self.other.spec.dtype


class _Job(NamedTuple):
    """A block of a pair: elements ``start`` to ``stop``."""

    pair: Pair
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return (self.stop - self.start) * self.pair.one.spec.item_size


class _Desk:
    """One worker's two buffers and gauge, and what it does with a block."""

    def __init__(self) -> None:
        self._buffers = [memoryview(bytearray(BLOCK)) for _ in range(2)]
        self._gauge = Gauge(BLOCK)

    def compare(self, job: _Job) -> Iterator[int]:
        """Find out whether a block differs, and, if so, how far; yield its bytes."""
        pair = job.pair
        one, other = self._load(job, pair.one, 0), self._load(job, pair.other, 1)
        figures = self._gauge.measure(one, other, pair.dtypes)
        if figures is None and pair.parts:  # it will be needed, and it is here
            figures = self._gauge.norm(one, pair.dtypes[0])
        if figures is not None:
            pair.parts[job.start] = figures
        yield job.nbytes

    def weigh(self, job: _Job) -> Iterator[int]:
        """Add the norm of a block that was found equal before another of its tensor was found to differ; yield its bytes."""
        job.pair.parts[job.start] = self._gauge.norm(self._load(job, job.pair.one, 0), job.pair.dtypes[0])
        yield job.nbytes

    def _load(self, job: _Job, tensor: LazyTensor, side: int) -> memoryview:
        item = tensor.spec.item_size
        block = self._buffers[side][: (job.stop - job.start) * item]
        tensor.source.read_into(block, job.start * item)
        return block


def read_pairs(pairs: Sequence[Pair], workers: int, report: Report) -> None:
    """Read all pairs that can be compared, and give those that differ their figures.

    Raises ``InputOutputError`` when the bytes cannot be read or no worker can be started.
    """
    pairs = [pair for pair in pairs if comparable(*pair.dtypes)]
    total = sum(pair.one.spec.nbytes for pair in pairs)
    share_out(_jobs(pairs), _Desk, _Desk.compare, workers=workers, report=report, doing="comparing", total=total)
    # Tensors mostly differ in no block or in all: to read some again, for the norm, takes less than to weigh all at once.
    again = [job for job in _jobs(pair for pair in pairs if pair.parts) if job.start not in job.pair.parts]
    if again:
        total = sum(job.nbytes for job in again)
        share_out(iter(again), _Desk, _Desk.weigh, workers=workers, report=report, doing="measuring", total=total)


def _jobs(pairs: Iterable[Pair]) -> Iterator[_Job]:
    for pair in pairs:
        step = BLOCK // max(pair.one.spec.item_size, pair.other.spec.item_size)
        for start in range(0, pair.one.spec.count, step):
            yield _Job(pair, start, min(start + step, pair.one.spec.count))
