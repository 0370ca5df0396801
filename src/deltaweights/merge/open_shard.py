"""A shard in progress: what must happen to its blocks in order, while workers do the rest in any order."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

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
    """Admits blocks 0, 1, 2, ... to a section of code one at a time, in that order: ``with order.turn(number): ...``."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._next = self._waiting = 0
        self._moved = threading.Condition()

    def turn(self, number: int) -> InOrder:
        """Wait until all lower numbers have left the section; return the section. Raises ``RunStopped`` when the run ends first."""
        if self._next != number:
            with self._moved:
                self._waiting += 1  # before looking: whoever leaves counts on, and then looks whether somebody waits
                while self._next != number:
                    if self._pool.stopped:
                        raise RunStopped
                    self._moved.wait(timeout=0.1)
                self._waiting -= 1
        return self

    def __enter__(self) -> None:
        """Nothing is left to wait for."""

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:  # the run ends; whoever waits finds out
            return
        self._next += 1  # without the lock: only who is in the section writes it
        if self._waiting:
            with self._moved:
                self._moved.notify_all()


class OpenShard:
    """The ordered work of one shard: four digests, each of which takes the blocks in order, whichever workers bring them."""

    def __init__(
        self,
        planned: Shard,
        writer: ShardWriter,
        base: Mapping[str, LazyTensor],
        primary: Mapping[str, LazyTensor],
        pool: WorkerPool,
    ) -> None:
        self.planned, self.writer = planned, writer
        self.done = 0  # bytes of tensors that are written and digested
        self.began = time.monotonic()
        self._recorder = TensorRecorder(base, primary, needs_crcs=planned.frame.needs_crcs)
        self._base_order, self._primary_order, self._result_order, self._file_order = (InOrder(pool) for _ in range(4))
        self._tensors_in_file_digest = 0

    def digest(self, block: Block, base: memoryview, primary: memoryview, result: BlockResult) -> None:
        """Digest a written block and what it was made of. Raises ``RunStopped`` when the run ends while it waits."""
        number, recorder = block.number, self._recorder
        with self._base_order.turn(number):
            recorder.base.add(block, base)
        with self._primary_order.turn(number):
            recorder.primary.add(block, primary)
        with self._result_order.turn(number):
            recorder.result.add(block, result)
        with self._file_order.turn(number):
            self._digest_file(block, result.data)

    def _digest_file(self, block: Block, data: memoryview) -> None:
        """Digest a block of the file, and write the frame behind it, which may state the tensor's CRC-32."""
        self.writer.digest(data)
        self.done += len(data)
        if block.last_of_tensor:
            self._tensors_in_file_digest += 1
            self.writer.append(
                self.planned.frame.bytes_before(self._tensors_in_file_digest, self._recorder.result.crcs)
            )

    def finish(self, plan: str) -> Fragment:
        """Flush the shard and return its fragment; to be called after the last block was digested."""
        return Fragment(plan, self.planned.file, self.writer.finish(), tuple(self._recorder.records()))
