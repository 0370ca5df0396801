"""Arithmetic on the processor, by numkong: loads in a tenth of a second, where torch takes more than a second and 190 MB.

Enters: arrays of numbers. Leaves: their casts and sums. Never: a thread of its own, or memory beyond its arrays.

Whether it rounds as it should on the machine at hand, ``known_answers`` tells; the test suite compares every sum of two 16-bit
numbers with torch's.
"""

from __future__ import annotations

import ctypes
import math
import mmap
from typing import Literal, cast

import numkong

from deltaweights.manifest.tally import Proof
from deltaweights.merge.floats import ITEM_SIZES, RoundTrip, copy_nans, count_different

Name = Literal["float16", "bfloat16", "float32", "float64"]

NAMES: dict[str, Name] = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
DTYPES: dict[str, str] = {name: dtype for dtype, name in NAMES.items()}


class ProcessorKernels:
    """See ``Kernels``."""

    on_host = True

    def __init__(self) -> None:
        self._rooms: dict[str, tuple[numkong.Tensor, RoundTrip]] = {}  # to prove in, by dtype: a run needs one, or none

    def buffer(self, nbytes: int) -> memoryview:
        """See ``Kernels``. The memory begins at a page and is the machine's only once it is written to."""
        return memoryview(mmap.mmap(-1, nbytes))

    def over(self, buffer: memoryview, dtype: str) -> numkong.Tensor:
        count = buffer.nbytes // ITEM_SIZES[dtype]
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        return numkong.from_pointer(address, count, NAMES[dtype], owner=buffer)

    def room(self, count: int, dtype: str) -> numkong.Tensor:
        return self.over(self.buffer(count * ITEM_SIZES[dtype]), dtype)

    def cast(self, source: numkong.Tensor, out: numkong.Tensor) -> None:
        """See ``Kernels``. float64 goes by way of float32, as torch has it, so that the original scripts' bits come out."""
        if source.dtype == "float64" and out.dtype != "float32":
            source = numkong.astype(source, "float32")
        numkong.astype(source, out.dtype, out=out)
        if out.dtype == "bfloat16" and source.dtype != "bfloat16" and not self.finite(source):
            # numkong rounds some NaNs to zero or infinity.
            copy_nans(_bytes_of(source), DTYPES[source.dtype], _bytes_of(out), DTYPES[out.dtype])

    def add(self, one: numkong.Tensor, other: numkong.Tensor, out: numkong.Tensor) -> None:
        _refuse_mixed(one, other, out)
        numkong.add(one, other, out=out)

    def subtract(self, one: numkong.Tensor, other: numkong.Tensor, out: numkong.Tensor) -> None:
        """See ``Kernels``. One rounding, as in a sum: both products are exact, and the rest is a fused multiply-add."""
        _refuse_mixed(one, other, out)
        numkong.blend(one, other, alpha=1.0, beta=-1.0, out=out)

    def different(self, one: numkong.Tensor, other: numkong.Tensor) -> int:
        return count_different(_bytes_of(one), _bytes_of(other), DTYPES[one.dtype])

    def finite(self, numbers: numkong.Tensor) -> bool:
        """See ``Kernels``. One pass: a sum of finite numbers is finite unless it overflows; looking at each costs many."""
        return math.isfinite(numkong.sum(numbers))

    def prove(self, base: numkong.Tensor, delta: numkong.Tensor, total: numkong.Tensor, *, finite: bool) -> Proof:
        count, dtype = len(total), DTYPES[total.dtype]
        if not count:
            return Proof()
        if dtype not in self._rooms or len(self._rooms[dtype][0]) < count:
            self._rooms[dtype] = self.room(count, dtype), RoundTrip(dtype, count)
        room, round_trip = self._rooms[dtype]
        difference = cast(numkong.Tensor, room[:count])
        self.subtract(total, base, difference)
        return round_trip.count(*map(_bytes_of, (base, delta, total, difference)), finite=finite)


def _refuse_mixed(one: numkong.Tensor, other: numkong.Tensor, out: numkong.Tensor) -> None:
    """Raise ``TypeError`` for arrays of several dtypes: numkong would write the wider numbers past the end of the narrower ones."""
    if not one.dtype == other.dtype == out.dtype:
        raise TypeError(f"arrays of {one.dtype} and {other.dtype} and {out.dtype}")


def _bytes_of(numbers: numkong.Tensor) -> memoryview:
    size = len(numbers) * ITEM_SIZES[DTYPES[numbers.dtype]]
    return memoryview((ctypes.c_char * size).from_address(numbers.data_ptr)).cast("B")
