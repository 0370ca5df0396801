"""The weights of two checkpoints, read side by side, in blocks, by several workers.

Enters: pairs of tensors of one name and shape. Leaves: in each pair, figures of what differs. Never: a block in memory once it is
compared, a figure that depends on which worker made it, or when, or one of bytes that the checksums of their file contradict.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from deltaweights.checkpoint.checksums import refuse_damage, verify_in_pieces
from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.diff.distance import Figures, Gauge, comparable
from deltaweights.report import Report
from deltaweights.util.workers import run_parallel

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

    @property
    def step(self) -> int:
        """The elements of a block."""
        return BLOCK // max(self.one.spec.item_size, self.other.spec.item_size)

    @property
    def is_proved(self) -> bool:
        """Whether a file records a checksum of one of the two."""
        return self.one.checksum is not None or self.other.checksum is not None


class _Job(NamedTuple):
    """Elements ``start`` to ``stop`` of a pair: a block, or, where a file records a checksum, which needs an order, all of them."""

    pair: Pair
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return (self.stop - self.start) * self.pair.one.spec.item_size

    def blocks(self) -> Iterator[_Job]:
        for start in range(self.start, self.stop, self.pair.step):
            yield _Job(self.pair, start, min(start + self.pair.step, self.stop))


class _Desk:
    """One worker's two buffers and gauge, and what it does with a block."""

    def __init__(self) -> None:
        self._buffers = [memoryview(bytearray(BLOCK)) for _ in range(2)]
        self._gauge = Gauge(BLOCK)

    def do(self, job: _Job | LazyTensor) -> Iterator[int]:
        """Compare what there is to compare of a pair, or of loose bytes; yield how many bytes that were, now and then."""
        return verify_in_pieces(job) if isinstance(job, LazyTensor) else self.compare(job)

    def compare(self, job: _Job) -> Iterator[int]:
        """Find out whether blocks differ, and, if so, how far; yield the bytes of each."""
        pair = job.pair
        sides = [(tensor, tensor.checksum.start() if tensor.checksum else None) for tensor in (pair.one, pair.other)]
        for block in job.blocks():
            one, other = (self._load(block, tensor, side) for side, (tensor, _) in enumerate(sides))
            for (_, running), data in zip(sides, (one, other), strict=True):
                if running is not None:
                    running.update(data)
            figures = self._gauge.measure(one, other, pair.dtypes)
            if figures is None and pair.parts:  # it will be needed, and it is here
                figures = self._gauge.norm(one, pair.dtypes[0])
            if figures is not None:
                pair.parts[block.start] = figures
            yield block.nbytes
        for tensor, running in sides:
            refuse_damage(tensor, running)

    def weigh(self, job: _Job) -> Iterator[int]:
        """Add the norm of a block that was found equal before another of its tensor was found to differ; yield its bytes."""
        job.pair.parts[job.start] = self._gauge.norm(self._load(job, job.pair.one, 0), job.pair.dtypes[0])
        yield job.nbytes

    def _load(self, job: _Job, tensor: LazyTensor, side: int) -> memoryview:
        item = tensor.spec.item_size
        block = self._buffers[side][: (job.stop - job.start) * item]
        tensor.source.read_into(block, job.start * item)
        return block


def read_pairs(pairs: Sequence[Pair], loose: Sequence[LazyTensor], workers: int, report: Report) -> None:
    """Read all pairs that can be compared, and give those that differ their figures.

    What the files record of their bytes is compared on the way; ``loose`` is what they record of bytes that are no whole tensor's
    (see ``WeightsFile``), which is read for that alone. Raises ``MalformedInput`` when bytes are not those that were stored,
    ``InputOutputError`` when they cannot be read or no worker can be started.
    """
    pairs = [pair for pair in pairs if comparable(*pair.dtypes)]
    jobs: Iterator[_Job | LazyTensor] = chain(loose, _jobs(pairs))
    total = sum(pair.one.spec.nbytes for pair in pairs) + sum(tensor.spec.nbytes for tensor in loose)
    run_parallel(jobs, _Desk, _Desk.do, workers=workers, report=report, doing="comparing", total=total)
    # Tensors mostly differ in no block or in all: to read some again, for the norm, takes less than to weigh all at once.
    differing = (_Job(pair, 0, pair.one.spec.count) for pair in pairs if pair.parts)
    again = [block for job in differing for block in job.blocks() if block.start not in block.pair.parts]
    if again:
        total = sum(job.nbytes for job in again)
        run_parallel(iter(again), _Desk, _Desk.weigh, workers=workers, report=report, doing="measuring", total=total)


def _jobs(pairs: Iterable[Pair]) -> Iterator[_Job]:
    for pair in pairs:
        whole = _Job(pair, 0, pair.one.spec.count)
        if pair.is_proved:
            yield whole
        else:
            yield from whole.blocks()
