"""Arithmetic on the processor, by numkong: loads in a tenth of a second, where torch takes more than a second and 190 MB."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
from typing import Literal, cast

import numkong

from deltaweights.manifest.tally import Proof
from deltaweights.merge.compiled import CompiledKernels, compiled_kernels
from deltaweights.merge.floats import ITEM_SIZES, RoundTripCounter, copy_nans, count_different
from deltaweights.util.processor import second_level_cache

Name = Literal["float16", "bfloat16", "float32", "float64"]
NAMES: dict[str, Name] = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
DTYPES: dict[str, str] = {name: dtype for dtype, name in NAMES.items()}


PIECE = 1 << (17 if (second_level_cache() or 0) >= 2 << 20 else 16)
"""Elements that are added and proved at once: all arrays of a piece stay in a core's own cache. On smaller pieces
the interpreter costs more than the cache saves."""

HUGE_PAGE = 1 << 21
"""Bytes of Linux's huge pages on x86-64 and most ARM. With pages of 4 KiB, the three arrays of a block take more pages than the
processor's table of them holds."""


class CpuKernels:
    """``Kernels`` by numkong, which starts no threads of its own; ``self_test`` checks its rounding on the machine at hand.

    With ``compiled``, the compiled library adds and counts instead, as far as it can; else numpy counts.
    """

    on_host = True

    def __init__(self, *, compiled: bool = True) -> None:
        self._compiled = compiled
        # By dtype: a run needs one or two.
        self._counts: dict[str, CompiledKernels | None] = {}
        self._proof_scratch: dict[str, tuple[numkong.Tensor, RoundTripCounter]] = {}

    def buffer(self, nbytes: int) -> memoryview:
        # Page-aligned, and no memory of the machine is taken until it is written to.
        if nbytes < HUGE_PAGE // 4 or not hasattr(mmap, "MADV_HUGEPAGE"):
            return memoryview(mmap.mmap(-1, nbytes))
        memory = mmap.mmap(-1, nbytes + HUGE_PAGE)
        with contextlib.suppress(OSError):  # only advice
            memory.madvise(mmap.MADV_HUGEPAGE)
        skipped = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % HUGE_PAGE
        return memoryview(memory)[skipped : skipped + nbytes]

    def as_array(self, buffer: memoryview, dtype: str) -> numkong.Tensor:
        count = buffer.nbytes // ITEM_SIZES[dtype]
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        return numkong.from_pointer(address, count, NAMES[dtype], owner=buffer)

    def scratch(self, count: int, dtype: str) -> numkong.Tensor:
        return self.as_array(self.buffer(count * ITEM_SIZES[dtype]), dtype)

    def cast(self, source: numkong.Tensor, out: numkong.Tensor) -> None:
        if source.dtype == "float64" and out.dtype != "float32":
            source = numkong.astype(source, "float32")  # torch rounds twice, too, and the original scripts use torch
        numkong.astype(source, out.dtype, out=out)
        if out.dtype == "bfloat16" and source.dtype != "bfloat16" and not self.all_finite(source):
            # numkong rounds some NaNs to zero or infinity.
            copy_nans(_bytes_of(source), DTYPES[source.dtype], _bytes_of(out), DTYPES[out.dtype])

    def add(self, one: numkong.Tensor, other: numkong.Tensor, out: numkong.Tensor) -> None:
        _refuse_mixed(one, other, out)
        numkong.add(one, other, out=out)

    def subtract(self, one: numkong.Tensor, other: numkong.Tensor, out: numkong.Tensor) -> None:
        _refuse_mixed(one, other, out)
        # Rounded once, as a sum is: both products are exact, and the rest is a fused multiply-add.
        numkong.blend(one, other, alpha=1.0, beta=-1.0, out=out)

    def count_different(self, one: numkong.Tensor, other: numkong.Tensor) -> int:
        return count_different(_bytes_of(one), _bytes_of(other), DTYPES[one.dtype])

    def all_finite(self, numbers: numkong.Tensor) -> bool:
        if counts := self._compiled_kernels(DTYPES[numbers.dtype]):
            return counts.nonfinite(numbers.data_ptr, len(numbers)) == 0
        # One pass: a sum of finite numbers is finite unless it overflows; testing each number takes several.
        return math.isfinite(numkong.sum(numbers))

    def prove_base(self, base: numkong.Tensor, delta: numkong.Tensor, total: numkong.Tensor, *, finite: bool) -> Proof:
        dtype, proof = DTYPES[total.dtype], Proof()
        if dtype not in self._proof_scratch:
            self._proof_scratch[dtype] = self.scratch(PIECE, dtype), RoundTripCounter(dtype, PIECE)
        if len(total) <= PIECE:
            return self._prove_piece(base, delta, total, dtype, finite=finite)
        for start in range(0, len(total), PIECE):
            stop = min(start + PIECE, len(total))
            b, d, t = (cast(numkong.Tensor, numbers[start:stop]) for numbers in (base, delta, total))
            proof += self._prove_piece(b, d, t, dtype, finite=finite)
        return proof

    def add_proved(self, base: numkong.Tensor, delta: numkong.Tensor, out: numkong.Tensor) -> tuple[Proof, bool]:
        _refuse_mixed(base, delta, out)
        if not len(base) == len(delta) == len(out):  # the library does not know where an array ends
            raise ValueError(f"{len(base)} and {len(delta)} and {len(out)} numbers")
        counts, proof, all_finite = self._compiled_kernels(DTYPES[out.dtype]), Proof(), True
        if counts and counts.adds:
            return counts.add(base.data_ptr, delta.data_ptr, out.data_ptr, len(out))
        for start in range(0, len(out), PIECE):
            stop = min(start + PIECE, len(out))
            b, d, t = (cast(numkong.Tensor, numbers[start:stop]) for numbers in (base, delta, out))
            self.add(b, d, t)
            finite = self.all_finite(t)
            proof += self.prove_base(b, d, t, finite=finite)
            all_finite &= finite
        return proof, all_finite

    def _prove_piece(
        self, base: numkong.Tensor, delta: numkong.Tensor, total: numkong.Tensor, dtype: str, *, finite: bool
    ) -> Proof:
        _refuse_mixed(base, delta, total)
        scratch, counter = self._proof_scratch[dtype]
        count = len(total)
        self.subtract(total, base, cast(numkong.Tensor, scratch[:count]))
        arrays = base.data_ptr, delta.data_ptr, total.data_ptr, scratch.data_ptr
        if compiled := self._compiled_kernels(dtype):
            return compiled.round_trip(*arrays, count)
        size = count * ITEM_SIZES[dtype]
        return counter.count(*(_bytes_at(array, size) for array in arrays), finite=finite)

    def _compiled_kernels(self, dtype: str) -> CompiledKernels | None:
        if dtype not in self._counts:
            self._counts[dtype] = compiled_kernels(dtype) if self._compiled else None
        return self._counts[dtype]


def _refuse_mixed(one: numkong.Tensor, other: numkong.Tensor, out: numkong.Tensor) -> None:
    """Raise ``TypeError`` for mixed dtypes: numkong would write the wider numbers past the end of the narrower array."""
    if not one.dtype == other.dtype == out.dtype:
        raise TypeError(f"arrays of {one.dtype} and {other.dtype} and {out.dtype}")


def _bytes_of(numbers: numkong.Tensor) -> memoryview:
    return _bytes_at(numbers.data_ptr, len(numbers) * ITEM_SIZES[DTYPES[numbers.dtype]])


def _bytes_at(address: int, size: int) -> memoryview:
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")
