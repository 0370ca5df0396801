"""Tensors and weights files as their headers describe them, before any weights are read."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from deltaweights.checkpoint.files import InputFile
from deltaweights.errors import printable

ITEM_SIZES: dict[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes per element of every whole-byte dtype of safetensors 0.8, by its safetensors name."""

MAX_BYTES = 2**63 - 1
"""No tensor may claim more bytes than a file offset can express."""

MAX_NAME = 4096
"""Longest accepted tensor name; real ones have at most a few hundred characters."""

UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters and surrogates: all of Unicode's categories Cc and Cs."""


def name_fault(name: str) -> str | None:
    """Return what is wrong with the name of a tensor or file, or None."""
    if not name:
        return "an empty name"
    if len(name) > MAX_NAME:
        return f"a name of {len(name)} characters, more than {MAX_NAME}"
    if UNPRINTABLE.search(name):
        return f"a name with a control character or half a surrogate pair: {printable(name)}"
    return None


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype (its safetensors name) and shape of a tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements; 1 for a scalar, whose shape is empty."""
        return math.prod(self.shape)

    @property
    def item_size(self) -> int:
        """Bytes per element."""
        return ITEM_SIZES[self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.count * self.item_size

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class ByteSource(Protocol):
    """Reads the bytes of one tensor."""

    def read_into(self, out: memoryview, start: int) -> None:
        """Fill ``out`` with the row-major little-endian bytes ``[start, start + len(out))`` of the tensor.

        ``out`` is a writable view of format ``B``; both ends lie on element boundaries. Thread-safe.
        Raises ``InputOutputError`` when the bytes cannot be read.
        """


@dataclass(frozen=True, slots=True)
class ContiguousSource:
    """A tensor whose row-major bytes are one range of ``file``, starting at ``offset``."""

    file: InputFile
    offset: int

    def read_into(self, out: memoryview, start: int) -> None:
        self.file.read_into(out, self.offset + start)


class RunningChecksum(Protocol):
    """A checksum being computed, fed in the order in which the tensor is read."""

    def update(self, data: memoryview) -> None:
        """Add the next bytes of the tensor."""

    def fault(self) -> tuple[str, str] | None:
        """Return the computed and the recorded checksum if they differ; call it after all bytes."""


class Checksum(Protocol):
    """The recorded checksum of one tensor."""

    def start(self) -> RunningChecksum:
        """Return a new running checksum."""


@dataclass(frozen=True, slots=True)
class Storage:
    """The stored bytes that a tensor is a view of: ``key`` identifies them in ``file``; ``offset`` and ``strides`` are in elements.

    Tensors of one checkpoint with equal storage and spec are tied; those with equal file and key share bytes.
    """

    file: str
    key: str | int
    offset: int
    strides: tuple[int, ...]


@lru_cache(maxsize=1024)  # a checkpoint has few shapes, and many tensors
def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of a contiguous tensor."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    return tuple(reversed(strides[: len(shape)]))


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor whose bytes have not been read. ``path`` is its file, for messages."""

    spec: TensorSpec
    source: ByteSource
    path: Path
    storage: Storage
    checksum: Checksum | None = None
    """Recorded by the container for exactly these bytes; code that reads the whole tensor must verify it."""

    @property
    def file(self) -> str:
        """The name of the tensor's file."""
        return self.path.name


def stored_bytes(file: InputFile, name: str, offset: int, size: int, checksum: Checksum) -> LazyTensor:
    """Return a range of ``file`` as a U8 tensor, so that its checksum can be verified like that of any tensor."""
    storage = Storage(file.path.name, name, 0, (1,))
    return LazyTensor(TensorSpec(name, "U8", (size,)), ContiguousSource(file, offset), file.path, storage, checksum)


@dataclass(frozen=True)
class WeightsFile:
    """A weights file whose header was read and checked.

    ``header_digest`` is ``blake3:`` and the digest of all bytes that say where the tensors are. ``extra_checksums`` are ranges
    with a recorded checksum that is not a tensor's. ``checks`` lists what is verified when they and all tensors have been read:
    "header", and "crc32" where checksums are recorded. ``notes`` are warnings for the user.
    """

    file: InputFile
    container: str
    header_digest: str
    tensors: dict[str, LazyTensor]
    checks: tuple[str, ...] = ("header",)
    extra_checksums: tuple[LazyTensor, ...] = ()
    notes: tuple[str, ...] = ()
