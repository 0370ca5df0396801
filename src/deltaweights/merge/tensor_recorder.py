"""What is recorded of each tensor while its blocks pass: digests of result and sources, counts, and whether it is of one number."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from deltaweights.checkpoint.tensors import LazyTensor
from deltaweights.manifest.digest import Hasher, SourceDigest, tensor_digest, tensor_hasher
from deltaweights.manifest.records import TensorRecord
from deltaweights.manifest.tally import Tally
from deltaweights.merge.arithmetic import BlockResult
from deltaweights.merge.blocks import Block
from deltaweights.merge.plan import PlannedTensor


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


class TensorRecorder:
    """Records tensors one after the other; each block of them once, in order. ``crcs`` has the CRC-32 of each result, if wanted."""

    def __init__(
        self, base: Mapping[str, LazyTensor], primary: Mapping[str, LazyTensor], *, needs_crcs: bool = False
    ) -> None:
        self._base, self._primary, self._needs_crcs = base, primary, needs_crcs
        self.records: list[TensorRecord] = []
        self.crcs: list[int] = []
        # Of the current tensor:
        self._result: Hasher = tensor_hasher()
        self._sources: list[SourceDigest | None] = []
        self._uniform: dict[str, UniformCheck] = {}
        self._tally = Tally()

    def add(self, block: Block, base: memoryview, primary: memoryview, result: BlockResult) -> None:
        """Digest one block of both sources and of the result."""
        if block.start == 0:
            self._begin_tensor(block.tensor)
        self._result.update(result.data)
        if self._needs_crcs:
            self.crcs[-1] = zlib.crc32(result.data, self.crcs[-1])
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
            self.records.append(TensorRecord(name, digest, base_digest, primary_digest, self._tally, uniform))

    def _begin_tensor(self, tensor: PlannedTensor) -> None:
        match = tensor.match
        self._result = tensor_hasher()
        if self._needs_crcs:
            self.crcs.append(0)
        self._sources = [
            SourceDigest(self._base[match.base.name]) if match.base else None,
            SourceDigest(self._primary[match.primary.name]),
        ]
        self._uniform = {
            role: UniformCheck(spec.item_size)
            for role, spec in (("result", tensor.spec), ("base", match.base), ("lead", match.primary))
            if spec and len(spec.shape) > 1 and spec.count > 1
        }
