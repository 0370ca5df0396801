"""What is recorded of each tensor while its blocks pass: digests of result and inputs, counts, and whether it is of one number.

Each recorder has its own order, so that three workers can digest the three tensors of a block, and of the next ones, at once.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter

from deltaweights.checkpoint.tensors import LazyTensor, TensorSpec
from deltaweights.manifest.digest import Hasher, SourceDigest, tensor_digest, tensor_hasher
from deltaweights.manifest.records import TensorRecord
from deltaweights.manifest.tally import Tally
from deltaweights.merge.arithmetic import BlockResult
from deltaweights.merge.blocks import Block
from deltaweights.merge.rules import Match


class UniformCheck:
    """Tracks whether all elements of a tensor are equal: a matrix of zeros, say, was never trained or was lost."""

    def __init__(self, spec: TensorSpec | None) -> None:
        """Vectors are left out, as are single numbers: those of a norm may well be equal."""
        self.holds = spec is not None and len(spec.shape) > 1 and spec.count > 1
        self._item_size = spec.item_size if spec else 0
        self._first = b""

    def add(self, data: memoryview) -> None:
        """Look at the next bytes; mostly the first few show that they do not repeat the first element."""
        if not self.holds:
            return
        if not self._first:
            self._first = bytes(data[: self._item_size])
        for length in (64 * self._item_size, len(data)):
            piece = data[:length]
            if piece != self._first * (len(piece) // self._item_size):
                self.holds = False
                return


class InputRecorder:
    """Records the tensors of one input, one after the other; each block of them once, in order."""

    def __init__(self, tensors: Mapping[str, LazyTensor], spec_of: Callable[[Match], TensorSpec | None]) -> None:
        """``spec_of`` returns the tensor of this input that takes part in a match."""
        self._tensors, self._spec_of = tensors, spec_of
        self.digests: list[str | None] = []
        self.uniform: list[bool] = []
        self._digest: SourceDigest | None = None  # of the current tensor
        self._check = UniformCheck(None)

    def add(self, block: Block, data: memoryview) -> None:
        """Digest what was read for a block. Raises ``MalformedInput`` at the end of a tensor whose checksum is another one."""
        if block.start == 0:
            spec = self._spec_of(block.tensor.match)
            self._digest = None if spec is None else SourceDigest(self._tensors[spec.name])
            self._check = UniformCheck(spec)
        if self._digest is not None:
            self._digest.update(data)
            self._check.add(data)
        if block.last_of_tensor:
            self.digests.append(None if self._digest is None else self._digest.finish())
            self.uniform.append(self._check.holds)


class ResultRecorder:
    """Records the tensors of the result, as ``InputRecorder`` does, with their counts; ``crcs`` has their CRC-32, if wanted."""

    def __init__(self, *, needs_crcs: bool) -> None:
        self._needs_crcs = needs_crcs
        self.names: list[str] = []
        self.digests: list[str] = []
        self.uniform: list[bool] = []
        self.tallies: list[Tally] = []
        self.crcs: list[int] = []
        self._hasher: Hasher = tensor_hasher()  # of the current tensor
        self._check = UniformCheck(None)

    def add(self, block: Block, result: BlockResult) -> None:
        """Digest one block, and add up what was counted in it."""
        if block.start == 0:
            self._hasher, self._check = tensor_hasher(), UniformCheck(block.tensor.spec)
            self.tallies.append(result.tally)
            if self._needs_crcs:
                self.crcs.append(0)
        else:
            self.tallies[-1] += result.tally
        self._hasher.update(result.data)
        self._check.add(result.data)
        if self._needs_crcs:
            self.crcs[-1] = zlib.crc32(result.data, self.crcs[-1])
        if block.last_of_tensor:
            self.names.append(block.tensor.spec.name)
            self.digests.append(tensor_digest(self._hasher))
            self.uniform.append(self._check.holds)


class TensorRecorder:
    """The three recorders of one run of blocks."""

    def __init__(
        self, base: Mapping[str, LazyTensor], primary: Mapping[str, LazyTensor], *, needs_crcs: bool = False
    ) -> None:
        self.base = InputRecorder(base, attrgetter("base"))
        self.primary = InputRecorder(primary, attrgetter("primary"))
        self.result = ResultRecorder(needs_crcs=needs_crcs)

    def add(self, block: Block, base: memoryview, primary: memoryview, result: BlockResult) -> None:
        """Record a block in all three."""
        self.base.add(block, base)
        self.primary.add(block, primary)
        self.result.add(block, result)

    def records(self) -> Iterator[TensorRecord]:
        """Yield the record of each tensor that has ended."""
        result, base, primary = self.result, self.base, self.primary
        for place, name in enumerate(result.names):
            digest_of_primary = primary.digests[place]
            assert digest_of_primary is not None  # noqa: S101  (there is always a primary; this tells mypy)
            uniform = (("result", result.uniform), ("base", base.uniform), ("lead", primary.uniform))
            roles = tuple(role for role, holds in uniform if holds[place])
            digests = result.digests[place], base.digests[place], digest_of_primary
            yield TensorRecord(name, *digests, result.tallies[place], roles)
