"""What a tensor is to this program before its bytes are read.

Enters: names, dtypes and shapes from headers. Leaves: ``TensorSpec``, a value, and ``LazyTensor``, which can also put any range of
its bytes into a buffer. Never: an array library, or a whole tensor in memory.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from deltaweights.errors import printable

ITEM_SIZES: dict[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes per element of every whole-byte dtype of safetensors 0.8, by safetensors' name for it."""

MAX_BYTES = 2**63 - 1
"""No tensor may claim more bytes than a file offset can express."""


MAX_NAME = 4096
"""Longest name of a tensor; known ones have at most some hundred characters."""


UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters and surrogates: the whole of Unicode's categories Cc and Cs."""


def name_fault(name: str) -> str | None:
    """Return what is wrong with a tensor's or file's name, or None."""
    if not name:
        return "an empty name"
    if len(name) > MAX_NAME:
        return f"a name of {len(name)} characters, more than {MAX_NAME}"
    if UNPRINTABLE.search(name):
        return f"a name with a control character or half a surrogate pair: {printable(name)}"
    return None


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype (safetensors' name for it) and shape of one tensor."""

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
    """Where a tensor's bytes come from."""

    def read_into(self, out: memoryview, start: int) -> None:
        """Fill ``out`` with the row-major little-endian bytes ``[start, start + len(out))`` of the tensor.

        ``out`` is a writable view of format ``B``; both ends lie on element boundaries. Thread-safe.

        Raises ``InputOutputError`` when the bytes cannot be read or are no longer there.
        """


class Running(Protocol):
    """A checksum in the making, fed in the order in which the tensor is read."""

    def update(self, data: memoryview) -> None:
        """Add the next bytes of the tensor."""

    def fault(self) -> tuple[str, str] | None:
        """Return what was found and what is recorded when they differ; to be called after all bytes."""


class Checksum(Protocol):
    """What is recorded for the bytes of one tensor."""

    def start(self) -> Running:
        """Return a new running checksum."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Which stored bytes a tensor shows, and how: ``key`` names them within ``file``, ``offset`` and ``strides`` count elements.

    Tensors of one checkpoint with equal storage and spec are tied; those that share file and key share bytes.
    """

    file: str
    key: str | int
    offset: int
    strides: tuple[int, ...]


@lru_cache(maxsize=1024)  # a checkpoint has few shapes, and many tensors
def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of a tensor without gaps."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    return tuple(reversed(strides[: len(shape)]))


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor whose bytes are still in their file, whose place is ``path``, for messages.

    ``checksum`` is what the container records for exactly these bytes, or None; whoever reads the whole tensor is to compare it.
    """

    spec: TensorSpec
    source: ByteSource
    path: Path
    storage: Storage
    checksum: Checksum | None = None

    @property
    def file(self) -> str:
        """The name of the tensor's file."""
        return self.path.name
