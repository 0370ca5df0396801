"""Verify the checksums that containers record, while the bytes are read."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from deltaweights.checkpoint.files import CHUNK
from deltaweights.checkpoint.malformed import MalformedAt
from deltaweights.checkpoint.tensors import LazyTensor, RunningChecksum, WeightsFile, stored_bytes
from deltaweights.error_codes import ErrorCode


@dataclass(frozen=True)
class Crc32:
    """The CRC-32 of a tensor's bytes in order."""

    value: int

    def start(self) -> RunningChecksum:
        return _RunningCrc32(self.value)


class _RunningCrc32:
    def __init__(self, expected: int) -> None:
        self._expected, self._crc = expected, 0

    def update(self, data: memoryview) -> None:
        self._crc = zlib.crc32(data, self._crc)

    def fault(self) -> tuple[str, str] | None:
        return crc_mismatch(self._crc, self._expected)


def crc_mismatch(found: int, recorded: int) -> tuple[str, str] | None:
    """Return both in words if they differ."""
    return None if found == recorded else (f"CRC-32 {found:08x}", f"{recorded:08x}, as the file records")


def refuse_damage(tensor: LazyTensor, running: RunningChecksum | None) -> None:
    """Raise ``MalformedInput`` if ``running``, which was fed the whole tensor, does not match the recorded checksum."""
    fault = None if running is None else running.fault()
    if fault is not None:
        name = None if tensor.spec.name == tensor.file else tensor.spec.name  # the former is a whole file
        malformed = MalformedAt(tensor.path, "fetch the file again")
        raise malformed("stored bytes are damaged", *fault, tensor=name, code=ErrorCode.DAMAGED)


def with_whole_file_checksum(weights: WeightsFile) -> WeightsFile:
    """Add the checksum of the whole file if it is the only one recorded, as in an archive; verifying it takes another pass."""
    file = weights.file
    if file.crc32 is None or "crc32" in weights.checks:
        return weights
    whole = stored_bytes(file, file.path.name, 0, file.size, Crc32(file.crc32))
    return replace(weights, checks=(*weights.checks, "crc32"), extra_checksums=(whole,))


def verify_checksum(tensor: LazyTensor) -> None:
    """Read a tensor that nothing else reads. Raises ``MalformedInput`` if its checksum does not match."""
    for _ in verify_in_pieces(tensor):
        pass


def pieces_of(tensor: LazyTensor) -> Iterator[memoryview]:
    """Yield a tensor's row-major bytes, in one buffer that is used again. Raises ``InputOutputError``."""
    nbytes, step = tensor.spec.nbytes, CHUNK // tensor.spec.item_size * tensor.spec.item_size
    buffer = memoryview(bytearray(min(step, nbytes)))
    for start in range(0, nbytes, step):
        piece = buffer[: min(step, nbytes - start)]
        tensor.source.read_into(piece, start)
        yield piece


def verify_in_pieces(tensor: LazyTensor) -> Iterator[int]:
    """Do ``verify_checksum``, and yield the size of each piece read."""
    if tensor.checksum is None:
        return
    running = tensor.checksum.start()
    for piece in pieces_of(tensor):
        running.update(piece)
        yield len(piece)
    refuse_damage(tensor, running)
