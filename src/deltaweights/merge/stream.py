"""Stream shards to the disk, with a few blocks per worker in memory. An error leaves no unfinished shard behind."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.manifest.records import Fragment
from deltaweights.merge.arithmetic import BlockCombiner, BlockResult, Kernels, Task
from deltaweights.merge.blocks import Block, blocks_of
from deltaweights.merge.device import kernels_on
from deltaweights.merge.new_rows import RepeatedRow, new_row_operands
from deltaweights.merge.open_shard import OpenShard, RunStopped
from deltaweights.merge.plan import Plan, PlannedTensor, Shard
from deltaweights.merge.writer import ShardWriter
from deltaweights.report import Report
from deltaweights.util.open_folder import OpenFolder
from deltaweights.util.processor import second_level_cache
from deltaweights.util.workers import WorkerPool, default_workers

SMALLEST_BLOCK, LARGEST_BLOCK = 1 << 18, 1 << 19


def block_for(cache: int | None) -> int:
    """Return the elements per block for a core with so many bytes of second-level cache.

    Two of the three float16 arrays of a block then stay in it until they are digested and written. Smaller blocks cost more of the
    interpreter than they save; with larger ones, writing takes three times as long where the cache has 1 MiB (docs/benchmarks.md).
    """
    return SMALLEST_BLOCK if cache is None else min(max(cache // 4, SMALLEST_BLOCK), LARGEST_BLOCK)


BLOCK = block_for(second_level_cache())
"""Elements per block on this machine."""

WORKERS_PER_SHARD = 2
"""The SHA-256 of one file is sequential and takes about a third of all work, so more workers on one shard would wait."""

TINY = 1 << 16  # bytes of a tensor that is combined and digested in less time than the interpreter needs to set it up


@dataclass(frozen=True)
class Resources:
    """How to run; it changes no bit. With ``workers`` None, as many start as the tensors keep busy, up to ``default_workers``."""

    device: str = "cpu"
    workers: int | None = 2
    block: int = BLOCK  # elements


class Stream:
    """One run over the shards that are still missing."""

    def __init__(
        self,
        plan: Plan,
        base: Mapping[str, LazyTensor],
        primary: Mapping[str, LazyTensor],
        folder: OpenFolder,
        record: Callable[[Fragment], None],
        resources: Resources,
        report: Report,
    ) -> None:
        """Write into ``folder``; ``record`` gets the fragment of each shard on the disk. Workers call it and ``report``."""
        self._plan, self._base, self._primary = plan, base, primary
        self._folder, self._record, self._resources, self._report = folder, record, resources, report
        self._new_rows: Mapping[str, RepeatedRow] = {}
        self._opened: list[OpenShard] = []
        self._lock = threading.Lock()

    @property
    def flush_seconds(self) -> float:
        """Seconds that workers waited for the disk at the end of shards."""
        return sum(shard.writer.flush_seconds for shard in self._opened)

    def run(self, shards: Sequence[Shard]) -> Iterator[int]:
        """Write ``shards``; yield the bytes done so far, about ten times a second. Raises the first error of a worker."""
        tensors = [tensor for shard in shards for tensor in shard.tensors]
        workers = self._resources.workers or (default_workers() if _keeps_several_busy(tensors) else 1)
        self._blocks = self._blocks_in_turn(shards, max(1, workers // WORKERS_PER_SHARD))
        compute, block = self._plan.options.compute_dtype, self._resources.block
        with kernels_on(self._resources.device) as make_kernels:
            self._new_rows = new_row_operands(tensors, self._base, compute, block, make_kernels)
            self._pool = WorkerPool(lambda: self._work(make_kernels), workers)
            try:
                for _ in self._pool.run():
                    yield sum(shard.done for shard in self._opened)
            finally:
                for shard in self._opened:
                    shard.writer.discard_unfinished()

    def _blocks_in_turn(self, shards: Sequence[Shard], open_at_once: int) -> Iterator[tuple[OpenShard, Block]]:
        """Yield the blocks of all shards: those of one shard in order, alternating between the open shards."""
        waiting = deque(shards)
        opened: deque[tuple[OpenShard, Iterator[Block]]] = deque()
        while waiting or opened:
            while waiting and len(opened) < open_at_once:
                planned = waiting.popleft()
                writer = ShardWriter(self._folder, planned)
                shard = OpenShard(planned, writer, self._base, self._primary, self._pool)
                self._opened.append(shard)
                opened.append((shard, blocks_of(planned.tensors, self._resources.block)))
            shard, blocks = opened.popleft()
            block = next(blocks, None)
            if block is not None:
                opened.append((shard, blocks))
                yield shard, block

    def _next_block(self) -> tuple[OpenShard, Block] | None:
        with self._lock:
            return None if self._pool.stopped else next(self._blocks, None)

    def _work(self, make_kernels: Callable[[], Kernels]) -> None:
        with contextlib.suppress(RunStopped):
            self._stream_blocks(make_kernels())

    def _stream_blocks(self, kernels: Kernels) -> None:
        combiner = BlockCombiner(kernels, task_of(self._plan), self._resources.block)
        while (job := self._next_block()) is not None:
            shard, block = job
            if block.number == 0:
                self._report.shard_started(shard.planned.file, shard.planned.size, shard.planned.nbytes)
            sources, result = combine_block(block, combiner, self._base, self._primary, self._new_rows)
            shard.writer.write(result.data, block.offset)
            shard.digest(block, *sources, result)
            shard.writer.start_writeback()
            if block.last_of_shard:
                self._flush_and_record(shard)

    def _flush_and_record(self, shard: OpenShard) -> None:
        fragment = shard.finish(self._plan.identity)
        self._record(fragment)
        seconds, file = time.monotonic() - shard.began, fragment.record
        self._report.shard_finished(fragment.file, file.size, shard.planned.nbytes, seconds, file.sha256)


def _keeps_several_busy(tensors: Sequence[PlannedTensor]) -> bool:
    """Return whether most work needs no interpreter's lock: for tiny tensors, two workers take up to 1.6 times as long as one."""
    return sum(tensor.spec.nbytes for tensor in tensors) >= TINY * len(tensors)


def task_of(plan: Plan) -> Task:
    """Return what is to be done with every block of a plan."""
    return Task(
        plan.operation,
        plan.options.compute_dtype,
        plan.options.dtype,
        check=plan.check,
        wants_sum=plan.wants_sum,
        restored=plan.restored_dtype,
    )


def combine_block(
    block: Block,
    combiner: BlockCombiner,
    base: Mapping[str, LazyTensor],
    primary: Mapping[str, LazyTensor],
    new_rows: Mapping[str, RepeatedRow],
) -> tuple[tuple[memoryview, memoryview], BlockResult]:
    """Read a block and combine it; return what was read of base and primary, and the result. Raises ``InputOutputError``."""
    match = block.tensor.match
    of_primary, of_base = read_block(block, combiner, base, primary)
    base_dtype = match.base.dtype if match.base else None
    row = new_rows.get(match.primary.name)
    tail = row.operand(block) if row else None
    return (of_base, of_primary), combiner.combine(
        block.stop - block.start, match.primary.dtype, base_dtype, block.runs, tail
    )


def read_block(
    block: Block, combiner: BlockCombiner, base: Mapping[str, LazyTensor], primary: Mapping[str, LazyTensor]
) -> tuple[memoryview, memoryview]:
    """Read a block of the primary and its part of the base for ``combiner``; return both. Raises ``InputOutputError``."""
    match = block.tensor.match
    item = match.primary.item_size
    of_primary = combiner.primary[: (block.stop - block.start) * item]
    primary[match.primary.name].source.read_into(of_primary, block.start * item)
    if match.base is None:
        return of_primary, combiner.base[:0]
    item = match.base.item_size
    of_base = combiner.base[: (block.base_stop - block.base_start) * item]
    base[match.base.name].source.read_into(of_base, block.base_start * item)
    return of_primary, of_base
