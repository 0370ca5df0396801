"""A shard in progress: what must happen to its blocks in order, while workers do the rest in any order."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.manifest.records import Fragment
from deltaweights.merge.arithmetic import BlockResult
from deltaweights.merge.blocks import Block
from deltaweights.merge.plan import Shard
from deltaweights.merge.tensor_recorder import TensorRecorder
from deltaweights.merge.writer import ShardWriter
from deltaweights.util.workers import WorkerPool


class RunStopped(Exception):
    """Another worker failed, or the run was interrupted; this worker has nothing to report."""


class InOrder:
    """Admits blocks 0, 1, 2, ... to a section of code one at a time, in that order."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._next = 0
        self._moved = threading.Condition()

    @contextmanager
    def section(self, number: int) -> Iterator[None]:
        """Wait until all lower numbers have left the section. Raises ``RunStopped`` when the run ends first."""
        if self._next != number:
            with self._moved:
                while self._next != number:
                    if self._pool.stopped:
                        raise RunStopped
                    self._moved.wait(timeout=0.1)
        yield
        with self._moved:
            self._next += 1
            self._moved.notify_all()


class OpenShard:
    """The ordered work of one shard; ``tensor_order`` and ``file_order`` admit its blocks to the two ``digest`` methods."""

    def __init__(
        self,
        planned: Shard,
        writer: ShardWriter,
        base: Mapping[str, LazyTensor],
        primary: Mapping[str, LazyTensor],
        pool: WorkerPool,
    ) -> None:
        self.planned, self.writer = planned, writer
        self.tensor_order, self.file_order = InOrder(pool), InOrder(pool)
        self.done = 0  # bytes of tensors that are written and digested
        self.began = time.monotonic()
        self._recorder = TensorRecorder(base, primary, needs_crcs=planned.frame.needs_crcs)
        self._tensors_in_file_digest = 0

    def digest_tensors(self, block: Block, base: memoryview, primary: memoryview, result: BlockResult) -> None:
        """Digest one block of both sources and of the result; to be called in block order."""
        self._recorder.add(block, base, primary, result)

    def digest_file(self, block: Block, data: memoryview) -> None:
        """Digest a block of the file, and write the frame behind it; in order, and after ``digest_tensors``, for the CRC-32."""
        self.writer.digest(data)
        self.done += len(data)
        if block.last_of_tensor:
            self._tensors_in_file_digest += 1
            self.writer.append(self.planned.frame.bytes_before(self._tensors_in_file_digest, self._recorder.crcs))

    def finish(self, plan: str) -> Fragment:
        """Flush the shard and return its fragment; to be called after the last block was digested."""
        return Fragment(plan, self.planned.file, self.writer.finish(), tuple(self._recorder.records))
