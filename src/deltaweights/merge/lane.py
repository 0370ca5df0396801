"""One shard in flight: what must happen to its blocks in order, while the rest happens in any.

Enters: blocks from several workers. Leaves: the shard's fragment. Never: a digest over bytes in the wrong order, or a worker that
waits for a block which nobody has.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from deltaweights.checkpoint.checksums import refuse_damage
from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.manifest.digest import Hasher, tensor_digest, tensor_hasher
from deltaweights.manifest.manifest import Fragment, TensorRecord
from deltaweights.merge.arithmetic import Outcome
from deltaweights.merge.blocks import Block
from deltaweights.merge.plan import Shard
from deltaweights.merge.writer import ShardWriter


class Stopped(Exception):
    """Another worker failed, or the run was interrupted; this one has nothing to report."""


class Turns:
    """Lets the holders of numbers 0, 1, 2, ... pass one after the other."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._next = 0
        self._moved = threading.Condition()

    @contextmanager
    def turn(self, number: int) -> Iterator[None]:
        """Wait until all lower numbers have passed, then let the caller work. Raises ``Stopped`` when the run ends first."""
        if self._next != number:
            with self._moved:
                while self._next != number:
                    if self._stop.is_set():
                        raise Stopped
                    self._moved.wait(timeout=0.1)
        yield
        with self._moved:
            self._next += 1
            self._moved.notify_all()


class SourceDigest:
    """BLAKE3 of a source tensor's bytes, and their checksum where the container recorded one."""

    def __init__(self, tensor: LazyTensor) -> None:
        self._tensor = tensor
        self._hasher = tensor_hasher()
        self._stored = tensor.checksum.start() if tensor.checksum else None

    def update(self, data: memoryview) -> None:
        """Add the next bytes of the tensor."""
        self._hasher.update(data)
        if self._stored is not None:
            self._stored.update(data)

    def finish(self) -> str:
        """Return the tensor digest. Raises ``MalformedInput`` when the bytes are not those that the container recorded."""
        refuse_damage(self._tensor, self._stored)
        return tensor_digest(self._hasher)


class Lane:
    """The ordered work of one shard; ``tensor_turns`` and ``file_turns`` admit its blocks one at a time.

    ``done`` counts the bytes of tensors that are written and digested.
    """

    def __init__(
        self,
        shard: Shard,
        writer: ShardWriter,
        base: Mapping[str, LazyTensor],
        lead: Mapping[str, LazyTensor],
        stop: threading.Event,
    ) -> None:
        self.shard = shard
        self.writer = writer
        self.tensor_turns = Turns(stop)
        self.file_turns = Turns(stop)
        self.done = 0
        self._inputs = base, lead
        self._records: list[TensorRecord] = []
        self._result: Hasher = tensor_hasher()
        self._sources: list[SourceDigest | None] = []
        self._nonfinite = 0
        self._inexact: int | None = None

    def digest_tensors(self, block: Block, base: memoryview, lead: memoryview, outcome: Outcome) -> None:
        """Digest one block of both sources and of the result; to be called in block order."""
        name = block.tensor.spec.name
        if block.first_of_tensor:
            self._result = tensor_hasher()
            uses_base = block.tensor.match.base is not None
            self._sources = [
                SourceDigest(self._inputs[0][name]) if uses_base else None,
                SourceDigest(self._inputs[1][name]),
            ]
            self._nonfinite, self._inexact = 0, None if outcome.inexact is None else 0
        self._result.update(outcome.data)
        for source, data in zip(self._sources, (base, lead), strict=True):
            if source is not None:
                source.update(data)
        self._nonfinite += outcome.nonfinite
        if self._inexact is not None and outcome.inexact is not None:
            self._inexact += outcome.inexact
        if block.last_of_tensor:
            base_digest, lead_digest = (source.finish() if source else None for source in self._sources)
            assert lead_digest is not None  # noqa: S101  (there is always a lead; this tells mypy)
            digest = tensor_digest(self._result)
            self._records.append(TensorRecord(name, digest, base_digest, lead_digest, self._nonfinite, self._inexact))

    def finish(self, plan: str) -> Fragment:
        """Flush the shard and return its fragment; to be called after the last block's turns."""
        return Fragment(plan, self.shard.file, self.writer.finish(), tuple(self._records))
