"""Tensors whose values follow from their size: an identity matrix, and zeros. They are streamed, never held whole in memory."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from deltaweights.checkpoint.tensors import LazyTensor, Storage, TensorSpec, row_major

ONE = {"F16": struct.pack("<e", 1.0), "BF16": b"\x80\x3f", "F32": struct.pack("<f", 1.0)}
"""The bytes of 1 in each dtype that is written; BF16 is the upper half of F32."""


@dataclass(frozen=True)
class IdentitySource:
    """The bytes of an identity matrix of ``size`` rows and columns."""

    size: int
    dtype: str

    def read_into(self, out: memoryview, start: int) -> None:
        one = ONE[self.dtype]
        out[:] = bytes(len(out))
        step = (self.size + 1) * len(one)  # from one place on the diagonal to the next
        for place in range(-(-start // step) * step, start + len(out), step):
            out[place - start : place - start + len(one)] = one


@dataclass(frozen=True)
class ZeroSource:
    """Zero bytes."""

    def read_into(self, out: memoryview, start: int) -> None:
        del start
        out[:] = bytes(len(out))


def constant_tensor(spec: TensorSpec, source: IdentitySource | ZeroSource) -> LazyTensor:
    """Return the tensor whose bytes are those of ``source``."""
    return LazyTensor(spec, source, Path(spec.name), Storage("", spec.name, 0, row_major(spec.shape)))
