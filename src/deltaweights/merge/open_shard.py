"""A shard in progress: what must happen to its blocks in order, while workers do the rest in any order."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.manifest.digest import Hasher, SourceDigest, tensor_digest, tensor_hasher
from deltaweights.manifest.records import Fragment, TensorRecord
from deltaweights.manifest.tally import Tally
from deltaweights.merge.arithmetic import BlockResult
from deltaweights.merge.blocks import Block
from deltaweights.merge.plan import PlannedTensor, Shard
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


class UniformCheck:
    """Tracks whether all elements of a tensor are equal: a matrix of zeros, say, was never trained or was lost."""

    def __init__(self, item_size: int) -> None:
        self._item_size = item_size
        self._first = b""

    def holds(self, data: memoryview) -> bool:
        """Return whether the next bytes repeat the first element, too; mostly the first few show that they do not."""
        if not self._first:
            self._first = bytes(data[: self._item_size])
        for length in (64 * self._item_size, len(data)):
            piece = data[:length]
            if piece != self._first * (len(piece) // self._item_size):
                return False
        return True


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
        self._base, self._primary = base, primary
        self._records: list[TensorRecord] = []
        self._crcs: list[int] = []  # of the result's tensors so far, if the frame needs them
        self._tensors_in_file_digest = 0
        # Of the current tensor:
        self._result: Hasher = tensor_hasher()
        self._sources: list[SourceDigest | None] = []
        self._uniform: dict[str, UniformCheck] = {}
        self._tally = Tally()

    def digest_tensors(self, block: Block, base: memoryview, primary: memoryview, result: BlockResult) -> None:
        """Digest one block of both sources and of the result; to be called in block order."""
        if block.start == 0:
            self._begin_tensor(block.tensor)
        self._result.update(result.data)
        if self._crcs:
            self._crcs[-1] = zlib.crc32(result.data, self._crcs[-1])
        for source, data in zip(self._sources, (base, primary), strict=True):
            if source is not None:
                source.update(data)
        for role, data in (("result", result.data), ("base", base), ("lead", primary)):
            if role in self._uniform and not self._uniform[role].holds(data):
                del self._uniform[role]
        self._tally = result.tally if block.start == 0 else self._tally + result.tally
        if block.last_of_tensor:
            base_digest, primary_digest = (source.finish() if source else None for source in self._sources)
            assert primary_digest is not None  # noqa: S101  (there is always a primary; this tells mypy)
            digest, uniform = tensor_digest(self._result), tuple(self._uniform)
            name = block.tensor.spec.name
            self._records.append(TensorRecord(name, digest, base_digest, primary_digest, self._tally, uniform))

    def _begin_tensor(self, tensor: PlannedTensor) -> None:
        match = tensor.match
        self._result = tensor_hasher()
        if self.planned.frame.needs_crcs:
            self._crcs.append(0)
        self._sources = [
            SourceDigest(self._base[match.base.name]) if match.base else None,
            SourceDigest(self._primary[match.primary.name]),
        ]
        self._uniform = {
            role: UniformCheck(spec.item_size)
            for role, spec in (("result", tensor.spec), ("base", match.base), ("lead", match.primary))
            if spec and len(spec.shape) > 1 and spec.count > 1
        }

    def digest_file(self, block: Block, data: memoryview) -> None:
        """Digest a block of the file, and write the frame behind it; in order, and after ``digest_tensors``, for the CRC-32."""
        self.writer.digest(data)
        self.done += len(data)
        if block.last_of_tensor:
            self._tensors_in_file_digest += 1
            self.writer.append(self.planned.frame.bytes_before(self._tensors_in_file_digest, self._crcs))

    def finish(self, plan: str) -> Fragment:
        """Flush the shard and return its fragment; to be called after the last block was digested."""
        return Fragment(plan, self.planned.file, self.writer.finish(), tuple(self._records))
