"""The merge: read, combine, write, digest, record; block by block, on several workers.

Enters: a plan and the lazy tensors of both inputs. Leaves: shards on the disk, each with a fragment that was kept after its flush.
Never: more in memory than a few blocks per worker, or an unfinished shard after an error.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.manifest.records import Fragment
from deltaweights.merge.arithmetic import Kernels, Task, Workbench
from deltaweights.merge.blocks import Block, blocks_of
from deltaweights.merge.device import kernels_on
from deltaweights.merge.lane import Lane, Stopped
from deltaweights.merge.new_rows import NewRows, new_rows_of
from deltaweights.merge.plan import Plan, PlannedTensor, Shard
from deltaweights.merge.writer import ShardWriter
from deltaweights.report import Report
from deltaweights.util.open_folder import OpenFolder
from deltaweights.util.workers import WorkerPool, default_workers

BLOCK = 1 << 18
"""Elements per block: 512 KiB of float16, so that a block is still in a core's own cache when it is digested and written. Twice as
much makes writing three times as slow (docs/benchmarks.md)."""

WORKERS_PER_LANE = 2
"""SHA-256 of one file is sequential and takes about a third of all work, so more workers on one shard would wait."""


TINY = 1 << 16
"""Bytes of a tensor that is added and digested in less time than the interpreter needs to arrange it."""


@dataclass(frozen=True)
class Resources:
    """How to run, none of which changes a bit of the result. ``block`` counts elements.

    Without a number of ``workers``, there are as many as the tensors keep busy, and at most ``default_workers``.
    """

    device: str = "cpu"
    workers: int | None = 2
    block: int = BLOCK


class Stream:
    """One run over the shards that are still to be made."""

    def __init__(
        self,
        plan: Plan,
        base: Mapping[str, LazyTensor],
        primary: Mapping[str, LazyTensor],
        folder: OpenFolder,
        keep: Callable[[Fragment], None],
        resources: Resources,
        report: Report,
    ) -> None:
        """``keep`` is given the fragment of each shard once it is on the disk; shards are written into ``folder``.

        ``report`` is told of each shard, from the workers' threads.
        """
        self._new_rows: Mapping[str, NewRows] = {}
        self._plan, self._base, self._primary = plan, base, primary
        self._folder, self._keep, self._resources, self._report = folder, keep, resources, report
        self._lock = threading.Lock()
        self._lanes: list[Lane] = []

    def run(self, shards: Sequence[Shard]) -> Iterator[int]:
        """Make ``shards``; yield the bytes done so far, about ten times a second. Raises what a worker met first."""
        tensors = [tensor for shard in shards for tensor in shard.tensors]
        self._workers = self._resources.workers or (default_workers() if _keeps_several_busy(tensors) else 1)
        self._new_rows = new_rows_of(tensors, self._base, self._plan.options.compute_dtype, self._resources.block)
        self._feed = self._blocks(shards)
        with kernels_on(self._resources.device) as make_kernels:
            self._crew = WorkerPool(lambda: self._work_unless_stopped(make_kernels), self._workers)
            try:
                for _ in self._crew.run():
                    yield sum(lane.done for lane in self._lanes)
            finally:
                for lane in self._lanes:
                    lane.writer.abandon()

    @property
    def flush_seconds(self) -> float:
        """Seconds that workers waited for the disk to have finished shards."""
        return sum(lane.writer.flush_seconds for lane in self._lanes)

    def _work_unless_stopped(self, make_kernels: Callable[[], Kernels]) -> None:
        with contextlib.suppress(Stopped):
            self._work(make_kernels())

    def _work(self, kernels: Kernels) -> None:
        options = self._plan.options
        task = Task(self._plan.operation, options.compute_dtype, options.dtype, self._plan.check, self._plan.adds_up)
        bench = Workbench(kernels, task, self._resources.block)
        while (job := self._next()) is not None:
            lane, block = job
            if block.number == 0:
                self._report.shard_started(lane.shard.file, lane.shard.size, lane.shard.nbytes)
            primary, base = read_block(block, bench, self._base, self._primary)
            match = block.tensor.match
            base_dtype = match.base.dtype if match.base else None
            new_rows = self._new_rows.get(match.primary.name)
            rest = new_rows.beside(block) if new_rows else None
            outcome = bench.combine(block.stop - block.start, match.primary.dtype, base_dtype, block.runs, rest)
            lane.writer.write(outcome.data, block.offset)
            with lane.tensor_turns.turn(block.number):
                lane.digest_tensors(block, base, primary, outcome)
            with lane.file_turns.turn(block.number):
                lane.digest_file(block, outcome.data)
            lane.writer.send()
            if block.last_of_shard:
                self._finish(lane)

    def _finish(self, lane: Lane) -> None:
        fragment = lane.finish(self._plan.identity)
        self._keep(fragment)
        seconds, record = time.monotonic() - lane.began, fragment.record
        self._report.shard_finished(fragment.file, record.size, lane.shard.nbytes, seconds, record.sha256)

    def _next(self) -> tuple[Lane, Block] | None:
        with self._lock:
            if self._crew.stopped:
                raise Stopped
            return next(self._feed, None)

    def _blocks(self, shards: Sequence[Shard]) -> Iterator[tuple[Lane, Block]]:
        """Yield the blocks of all shards: those of one shard in order, those of the shards in flight in turn."""
        waiting = deque(shards)
        flying: deque[tuple[Lane, Iterator[Block]]] = deque()
        most = max(1, self._workers // WORKERS_PER_LANE)
        while waiting or flying:
            while waiting and len(flying) < most:
                shard = waiting.popleft()
                lane = Lane(shard, ShardWriter(self._folder, shard), self._base, self._primary, self._crew)
                self._lanes.append(lane)
                flying.append((lane, blocks_of(shard.tensors, self._resources.block)))
            lane, blocks = flying.popleft()
            block = next(blocks, None)
            if block is not None:
                flying.append((lane, blocks))
                yield lane, block


def _keeps_several_busy(tensors: Sequence[PlannedTensor]) -> bool:
    """Return whether most of the work is done outside the interpreter's lock.

    Where tensors are tiny it is not, and two workers that pass the lock to and fro take up to 1.6 times as long as one.
    """
    return sum(tensor.spec.nbytes for tensor in tensors) >= TINY * len(tensors)


def read_block(
    block: Block, bench: Workbench, base: Mapping[str, LazyTensor], primary: Mapping[str, LazyTensor]
) -> tuple[memoryview, memoryview]:
    """Read a block of the primary and its part of the base into the bench's buffers; return the parts that were filled.

    Raises ``InputOutputError`` when the bytes cannot be read.
    """
    match = block.tensor.match
    item = match.primary.item_size
    of_primary = bench.primary[: (block.stop - block.start) * item]
    primary[match.primary.name].source.read_into(of_primary, block.start * item)
    if match.base is None:
        return of_primary, bench.base[:0]
    item = match.base.item_size
    of_base = bench.base[: (block.base_stop - block.base_start) * item]
    base[match.base.name].source.read_into(of_base, block.base_start * item)
    return of_primary, of_base
