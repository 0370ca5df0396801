"""The sum of two blocks, bit for bit the same on every machine.

Enters: a block of delta bytes and a block of base bytes. Leaves: a block of result bytes and the count of its non-finite elements.
Never: a file, a tensor larger than a block, or a bit that depends on device, vector width or block size.

What differs between devices is behind ``Kernels``. NaN and subnormal rules: docs/design.md, "Arithmetic".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from deltaweights.merge.blocks import Run
from deltaweights.merge.floats import ITEM_SIZES, settle_nans

LARGEST_ITEM = 8
"""Bytes per element that the input buffers have room for: those of float64."""

Array = Any
"""A row of numbers of one dtype, of whatever class the kernels work on; slices of it share its memory."""


class Kernels(Protocol):
    """What one worker asks of a device. Dtypes are safetensors' names: F16, BF16, F32, F64.

    ``on_host`` says that arrays over host memory can be computed with directly.
    """

    on_host: bool

    def buffer(self, nbytes: int) -> memoryview:
        """Return new host memory, the fastest kind to exchange with the device."""

    def over(self, buffer: memoryview, dtype: str) -> Array:
        """Return the array of ``dtype`` that shares the memory of ``buffer``."""

    def room(self, count: int, dtype: str) -> Array:
        """Return a new array on the device."""

    def cast(self, source: Array, out: Array) -> None:
        """Write ``source`` to ``out``, rounded to nearest, ties to even; between one and the same dtype, bit for bit."""

    def add(self, one: Array, other: Array, out: Array) -> None:
        """Write the sum of two arrays of one dtype to ``out``, correctly rounded; ``out`` may be one of them."""

    def finite(self, numbers: Array) -> bool:
        """Return whether all numbers of a host array are finite; it may say no if their sum is not."""


@dataclass(frozen=True)
class Sum:
    """The result's bytes, valid until the next block, and how many of its elements are NaN or infinite."""

    data: memoryview
    nonfinite: int


class Workbench:
    """One worker's buffers, and the addition. ``delta`` and ``base`` are where the worker puts the bytes that it read."""

    def __init__(self, kernels: Kernels, compute_dtype: str, dtype: str, block: int) -> None:
        """Make room for ``block`` elements."""
        self._kernels = kernels
        self._compute, self._store = compute_dtype, dtype
        self.delta, self.base = (kernels.buffer(block * LARGEST_ITEM) for _ in range(2))
        self._result = kernels.buffer(block * ITEM_SIZES[dtype])
        self._stored = kernels.over(self._result, dtype)
        # Made when first needed: the common case, float16 on the processor, needs no room of its own.
        self._arrays: dict[tuple[str, str], Array] = {}
        self._block = block

    def combine(self, count: int, delta_dtype: str, base_dtype: str | None, runs: tuple[Run, ...]) -> Sum:
        """Return the sum of the ``count`` elements in the delta buffer with the ``runs`` of elements in the base buffer.

        Elements outside all runs are kept, cast to the compute dtype and then to the stored one. Sums are made in the compute
        dtype, correctly rounded once, and rounded once more when they are stored in another. Raises ``InputOutputError`` when the
        device has no memory left.
        """
        kernels = self._kernels
        needs_cast = not delta_dtype == self._compute == self._store
        delta = self._input("delta", self.delta, delta_dtype)[:count]
        if not runs and not needs_cast:
            copied = self.delta[: count * ITEM_SIZES[delta_dtype]]
            return Sum(copied, 0 if kernels.finite(delta) else settle_nans(copied, self._store, ()))
        stored = self._stored[:count]
        work = self._at_compute(delta, delta_dtype, "delta")
        in_place = self._store == self._compute and kernels.on_host
        total = stored if in_place else self._room("total", count)
        if runs != (Run(0, count, 0),):
            kernels.cast(work, total)
        if base_dtype is not None and runs:
            base_count = runs[-1].base + runs[-1].stop - runs[-1].start
            base = self._at_compute(self._input("base", self.base, base_dtype)[:base_count], base_dtype, "base")
            for run in runs:
                part = base[run.base : run.base + run.stop - run.start]
                kernels.add(work[run.start : run.stop], part, total[run.start : run.stop])
        if not in_place:
            kernels.cast(total, stored)
        data = self._result[: count * ITEM_SIZES[self._store]]
        if kernels.finite(stored):
            return Sum(data, 0)
        return Sum(data, settle_nans(data, self._store, (Run(0, count, 0),) if needs_cast else runs))

    def _input(self, name: str, buffer: memoryview, dtype: str) -> Array:
        """Return an input buffer as an array of ``dtype``."""
        if (name, dtype) not in self._arrays:
            self._arrays[name, dtype] = self._kernels.over(buffer, dtype)
        return self._arrays[name, dtype]

    def _at_compute(self, host: Array, dtype: str, name: str) -> Array:
        """Return the elements on the device and in the compute dtype."""
        if self._kernels.on_host and dtype == self._compute:
            return host
        room = self._room(name, len(host))
        self._kernels.cast(host, room)
        return room

    def _room(self, name: str, count: int) -> Array:
        if (name, "") not in self._arrays:
            self._arrays[name, ""] = self._kernels.room(self._block, self._compute)
        return self._arrays[name, ""][:count]
