"""The merge: read, combine, write, digest, record; block by block, on several workers.

Enters: a plan and the lazy tensors of both inputs. Leaves: shards on the disk, each with a fragment that was kept after its flush.
Never: more in memory than a few blocks per worker, or an unfinished shard after an error.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.errors import InputOutputError
from deltaweights.manifest.manifest import Fragment
from deltaweights.merge.arithmetic import Kernels, Task, Workbench
from deltaweights.merge.blocks import Block, blocks_of
from deltaweights.merge.device import kernels_on
from deltaweights.merge.lane import Lane, Stopped
from deltaweights.merge.new_rows import NewRows, new_rows_of
from deltaweights.merge.plan import Plan, Shard
from deltaweights.merge.writer import ShardWriter
from deltaweights.report import Report
from deltaweights.util.open_folder import OpenFolder

BLOCK = 1 << 18
"""Elements per block: 512 KiB of float16, so that a block is still in a core's own cache when it is digested and written. Twice as
much makes writing three times as slow (docs/benchmarks.md)."""

WORKERS_PER_LANE = 2
"""SHA-256 of one file is sequential and takes about a third of all work, so more workers on one shard would wait."""


@dataclass(frozen=True)
class Resources:
    """How to run, none of which changes a bit of the result. ``block`` counts elements."""

    device: str = "cpu"
    workers: int = 2
    block: int = BLOCK


class Stream:
    """One run over the shards that are still to be made."""

    def __init__(
        self,
        plan: Plan,
        base: Mapping[str, LazyTensor],
        lead: Mapping[str, LazyTensor],
        folder: OpenFolder,
        keep: Callable[[Fragment], None],
        resources: Resources,
        report: Report,
    ) -> None:
        """``keep`` is given the fragment of each shard once it is on the disk; shards are written into ``folder``.

        ``report`` is told of each shard, from the workers' threads.
        """
        self._new_rows: Mapping[str, NewRows] = {}
        self._plan, self._base, self._lead = plan, base, lead
        self._folder, self._keep, self._resources, self._report = folder, keep, resources, report
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._lanes: list[Lane] = []
        self._errors: list[BaseException] = []
        self._ended = threading.Semaphore(0)

    def run(self, shards: Sequence[Shard]) -> Iterator[int]:
        """Make ``shards``; yield the bytes done so far, about ten times a second. Raises what a worker met first."""
        tensors = [tensor for shard in shards for tensor in shard.tensors]
        self._new_rows = new_rows_of(tensors, self._base, self._plan.options.compute_dtype, self._resources.block)
        self._feed = self._blocks(shards)
        running = 0
        with kernels_on(self._resources.device) as make_kernels:
            workers = [
                threading.Thread(target=self._guard, args=(make_kernels,), daemon=True)
                for _ in range(self._resources.workers)
            ]
            try:
                for worker in workers:
                    worker.start()
                    running += 1
                while running:
                    # Not Thread.join: before Python 3.13, one that a signal interrupts takes a running thread for ended.
                    running -= self._ended.acquire(timeout=0.1)
                    yield sum(lane.done for lane in self._lanes)
            except RuntimeError as error:
                raise InputOutputError(f"cannot start a worker: {error}", remedy="run with fewer --workers") from error
            finally:
                self._stop.set()
                self._wait_for(running)
                for lane in self._lanes:
                    lane.writer.abandon()
        if self._errors:
            raise self._errors[0]

    def _wait_for(self, running: int) -> None:
        """Wait until all workers have ended, however often a signal asks not to; then pass its exception on."""
        late: BaseException | None = None
        while running:
            try:
                running -= self._ended.acquire()
            except BaseException as error:  # noqa: BLE001  (raised below)
                late = error
        if late is not None:
            raise late

    @property
    def flush_seconds(self) -> float:
        """Seconds that workers waited for the disk to have finished shards."""
        return sum(lane.writer.flush_seconds for lane in self._lanes)

    def _guard(self, make_kernels: Callable[[], Kernels]) -> None:
        """Run a worker; keep its error for ``run`` to raise, and stop the others."""
        try:
            self._work(make_kernels())
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001  (raised again by run, in the caller's thread)
            self._errors.append(error)
            self._stop.set()
        finally:
            self._ended.release()

    def _work(self, kernels: Kernels) -> None:
        options = self._plan.options
        task = Task(self._plan.operation, options.compute_dtype, options.dtype, self._plan.check, self._plan.adds_up)
        bench = Workbench(kernels, task, self._resources.block)
        while (job := self._next()) is not None:
            lane, block = job
            if block.number == 0:
                self._report.shard_started(lane.shard.file, lane.shard.size, lane.shard.nbytes)
            lead, base = read_block(block, bench, self._base, self._lead)
            match = block.tensor.match
            base_dtype = match.base.dtype if match.base else None
            new_rows = self._new_rows.get(match.lead.name)
            rest = new_rows.beside(block) if new_rows else None
            outcome = bench.combine(block.stop - block.start, match.lead.dtype, base_dtype, block.runs, rest)
            lane.writer.write(outcome.data, block.offset)
            with lane.tensor_turns.turn(block.number):
                lane.digest_tensors(block, base, lead, outcome)
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
            if self._stop.is_set():
                raise Stopped
            return next(self._feed, None)

    def _blocks(self, shards: Sequence[Shard]) -> Iterator[tuple[Lane, Block]]:
        """Yield the blocks of all shards: those of one shard in order, those of the shards in flight in turn."""
        waiting = deque(shards)
        flying: deque[tuple[Lane, Iterator[Block]]] = deque()
        most = max(1, self._resources.workers // WORKERS_PER_LANE)
        while waiting or flying:
            while waiting and len(flying) < most:
                shard = waiting.popleft()
                lane = Lane(shard, ShardWriter(self._folder, shard), self._base, self._lead, self._stop)
                self._lanes.append(lane)
                flying.append((lane, blocks_of(shard.tensors, self._resources.block)))
            lane, blocks = flying.popleft()
            block = next(blocks, None)
            if block is not None:
                flying.append((lane, blocks))
                yield lane, block


def read_block(
    block: Block, bench: Workbench, base: Mapping[str, LazyTensor], lead: Mapping[str, LazyTensor]
) -> tuple[memoryview, memoryview]:
    """Read a block of the lead and its part of the base into the bench's buffers; return the parts that were filled.

    Raises ``InputOutputError`` when the bytes cannot be read.
    """
    match = block.tensor.match
    item = match.lead.item_size
    of_lead = bench.lead[: (block.stop - block.start) * item]
    lead[match.lead.name].source.read_into(of_lead, block.start * item)
    if match.base is None:
        return of_lead, bench.base[:0]
    item = match.base.item_size
    of_base = bench.base[: (block.base_stop - block.base_start) * item]
    base[match.base.name].source.read_into(of_base, block.base_start * item)
    return of_lead, of_base
