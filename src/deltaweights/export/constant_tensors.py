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


def identity(name: str, dtype: str, size: int) -> LazyTensor:
    """Return an identity matrix of ``size`` rows and columns."""
    return _lazy(TensorSpec(name, dtype, (size, size)), IdentitySource(size, dtype))


def zeros(name: str, dtype: str, size: int) -> LazyTensor:
    """Return a vector of ``size`` zeros."""
    return _lazy(TensorSpec(name, dtype, (size,)), ZeroSource())


def _lazy(spec: TensorSpec, source: IdentitySource | ZeroSource) -> LazyTensor:
    return LazyTensor(spec, source, Path(spec.name), Storage("", spec.name, 0, row_major(spec.shape)))
