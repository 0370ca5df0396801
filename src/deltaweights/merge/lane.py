"""One shard in flight: what must happen to its blocks in order, while the rest happens in any.

Enters: blocks from several workers. Leaves: the shard's fragment. Never: a digest over bytes in the wrong order, or a worker that
waits for a block which nobody has.
"""

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
from deltaweights.merge.arithmetic import Outcome
from deltaweights.merge.blocks import Block
from deltaweights.merge.plan import Shard
from deltaweights.merge.writer import ShardWriter
from deltaweights.util.workers import WorkerPool


class Stopped(Exception):
    """Another worker failed, or the run was interrupted; this one has nothing to report."""


class Turns:
    """Lets the holders of numbers 0, 1, 2, ... pass one after the other."""

    def __init__(self, crew: WorkerPool) -> None:
        self._crew = crew
        self._next = 0
        self._moved = threading.Condition()

    @contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """Wait until all lower numbers have passed, then let the caller work. Raises ``Stopped`` when the run ends first."""
        if self._next != number:
            with self._moved:
                while self._next != number:
                    if self._crew.stopped:
                        raise Stopped
                    self._moved.wait(timeout=0.1)
        yield
        with self._moved:
            self._next += 1
            self._moved.notify_all()


class Lane:
    """The ordered work of one shard; ``tensor_turns`` and ``file_turns`` admit its blocks one at a time.

    ``done`` counts the bytes of tensors that are written and digested; ``began`` is when, by the monotonic clock.
    """

    def __init__(
        self,
        shard: Shard,
        writer: ShardWriter,
        base: Mapping[str, LazyTensor],
        primary: Mapping[str, LazyTensor],
        crew: WorkerPool,
    ) -> None:
        self.shard = shard
        self.writer = writer
        self.tensor_turns = Turns(crew)
        self.file_turns = Turns(crew)
        self.done = 0
        self.began = time.monotonic()
        self._inputs = base, primary
        self._records: list[TensorRecord] = []
        self._result: Hasher = tensor_hasher()
        self._crcs: list[int] = []  # of the result's tensors so far, where the frame needs them
        self._past = 0  # tensors whose last byte the file's digest has
        self._sources: list[SourceDigest | None] = []
        self._uniform: dict[str, Uniform] = {}
        self._tally = Tally()

    def digest_tensors(self, block: Block, base: memoryview, primary: memoryview, outcome: Outcome) -> None:
        """Digest one block of both sources and of the result; to be called in block order."""
        name, match = block.tensor.spec.name, block.tensor.match
        if block.first_of_tensor:
            self._result = tensor_hasher()
            if self.shard.frame.needs_crcs:
                self._crcs.append(0)
            self._sources = [
                SourceDigest(self._inputs[0][match.base.name]) if match.base else None,
                SourceDigest(self._inputs[1][match.primary.name]),
            ]
            items = {"result": block.tensor.spec, "base": match.base, "lead": match.primary}
            matrices = {role: spec for role, spec in items.items() if spec and len(spec.shape) > 1 and spec.count > 1}
            self._uniform = {role: Uniform(spec.item_size) for role, spec in matrices.items()}
        self._result.update(outcome.data)
        if self._crcs:
            self._crcs[-1] = zlib.crc32(outcome.data, self._crcs[-1])
        for source, data in zip(self._sources, (base, primary), strict=True):
            if source is not None:
                source.update(data)
        for role, data in (("result", outcome.data), ("base", base), ("lead", primary)):
            if role in self._uniform and not self._uniform[role].holds(data):
                del self._uniform[role]
        self._tally = outcome.tally if block.first_of_tensor else self._tally + outcome.tally
        if block.last_of_tensor:
            base_digest, primary_digest = (source.finish() if source else None for source in self._sources)
            assert primary_digest is not None  # noqa: S101  (there is always a primary; this tells mypy)
            digest = tensor_digest(self._result)
            uniform = tuple(self._uniform)
            self._records.append(TensorRecord(name, digest, base_digest, primary_digest, self._tally, uniform))

    def digest_file(self, block: Block, data: memoryview) -> None:
        """Digest one block as part of the file, and write what the frame has behind it; to be called in block order.

        The block's own turn at the tensors' digests must be over: it made the CRC-32 that the frame asks for.
        """
        self.writer.digest(data)
        self.done += len(data)
        if block.last_of_tensor:
            self._past += 1
            self.writer.append(self.shard.frame.between(self._past, self._crcs))

    def finish(self, plan: str) -> Fragment:
        """Flush the shard and return its fragment; to be called after the last block's turns."""
        return Fragment(plan, self.shard.file, self.writer.finish(), tuple(self._records))


class Uniform:
    """Whether all elements of a tensor are one and the same: a matrix of zeros, say, was never trained or was lost."""

    def __init__(self, item_size: int) -> None:
        self._item_size = item_size
        self._first = b""

    def holds(self, data: memoryview) -> bool:
        """Return whether the next bytes are like those before; mostly the first few say that they are not."""
        if not self._first:
            self._first = bytes(data[: self._item_size])
        for length in (64 * self._item_size, len(data)):
            piece = data[:length]
            if piece != self._first * (len(piece) // self._item_size):
                return False
        return True
