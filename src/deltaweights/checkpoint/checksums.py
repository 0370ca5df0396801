"""Checksums that containers record for stored bytes, compared while the bytes pass.

Enters: what a container recorded. Leaves: running checksums, fed in the order in which a tensor is read, and ``MalformedInput``
when bytes are not those that were stored. Never: a second reading of what the caller reads anyway, but of a file whose only
checksum is over all of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from deltaweights.checkpoint.tensors import LazyTensor, Running, Storage, TensorSpec
from deltaweights.checkpoint.weights_file import ContiguousSource, WeightsFile
from deltaweights.errors import MalformedInput

CHUNK = 1024 * 1024


@dataclass(frozen=True)
class Crc32:
    """The CRC-32 of a tensor's bytes in their order."""

    value: int

    def start(self) -> Running:
        return _RunningCrc32(self.value)


class _RunningCrc32:
    def __init__(self, expected: int) -> None:
        self._expected, self._crc = expected, 0

    def update(self, data: memoryview) -> None:
        self._crc = zlib.crc32(data, self._crc)

    def fault(self) -> tuple[str, str] | None:
        return crc_fault(self._crc, self._expected)


def crc_fault(found: int, recorded: int) -> tuple[str, str] | None:
    """Return both in words when they differ."""
    return None if found == recorded else (f"CRC-32 {found:08x}", f"{recorded:08x}, as the file records")


def refuse_damage(tensor: LazyTensor, running: Running | None) -> None:
    """Raise ``MalformedInput`` when the bytes that ``running`` was given, all of the tensor's, are not those that were stored."""
    fault = None if running is None else running.fault()
    if fault is not None:
        found, expected = fault
        name = tensor.spec.name
        raise MalformedInput(
            "stored bytes are damaged",
            where=tensor.path,
            tensor=None if name == tensor.file else name,  # a whole file
            found=found,
            expected=expected,
            remedy="fetch the file again",
        )


def cover_whole(weights: WeightsFile) -> WeightsFile:
    """Return ``weights``, the file as a whole among what is loose when it has a checksum only as a whole.

    That is a file in an archive, of a format without checksums. Its tensors are read by range, in the order of the plan, so the
    recorded CRC-32 takes a pass of its own, in order (``prove``).
    """
    file = weights.file
    if file.crc32 is None or "crc32" in weights.checks:
        return weights
    name = file.path.name
    spec, storage = TensorSpec(name, "U8", (file.size,)), Storage(name, name, 0, (1,))
    whole = LazyTensor(spec, ContiguousSource(file, 0), file.path, storage, Crc32(file.crc32))
    return replace(weights, checks=(*weights.checks, "crc32"), loose=(whole,))


def prove(tensor: LazyTensor) -> None:
    """Read a tensor that has no other reader, and raise ``MalformedInput`` when its bytes are not those that were stored."""
    for _ in proving(tensor):
        pass


def proving(tensor: LazyTensor) -> Iterator[int]:
    """``prove`` a tensor, and yield the bytes of every piece that was read."""
    if tensor.checksum is None:
        return
    running = tensor.checksum.start()
    step = CHUNK // tensor.spec.item_size * tensor.spec.item_size
    buffer = memoryview(bytearray(min(step, tensor.spec.nbytes)))
    for start in range(0, tensor.spec.nbytes, step):
        piece = buffer[: min(step, tensor.spec.nbytes - start)]
        tensor.source.read_into(piece, start)
        running.update(piece)
        yield len(piece)
    refuse_damage(tensor, running)
