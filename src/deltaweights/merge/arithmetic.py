"""The sum or difference of two blocks, bit for bit the same on every machine.

Enters: a block of bytes of the primary (the delta, or the target that one is made from) and one of the base. Leaves: a block of
result bytes and the count of its non-finite elements. Never: a file, a tensor larger than a block, or a bit that depends on
device, vector width or block size.

What differs between devices is behind ``Kernels``. NaN and subnormal rules: docs/design.md, "Arithmetic".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

from deltaweights.manifest.tally import Proof, Tally
from deltaweights.merge.blocks import Run
from deltaweights.merge.floats import ITEM_SIZES, as_float64, count_different, count_nonfinite, settle_nans
from deltaweights.merge.operation import Operation

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

    def subtract(self, one: Array, other: Array, out: Array) -> None:
        """Write ``one`` less ``other`` to ``out``, as ``add`` does."""

    def different(self, one: Array, other: Array) -> int:
        """Return how many numbers of two arrays of one dtype differ in any bit."""

    def finite(self, numbers: Array) -> bool:
        """Return whether all numbers of a host array are finite; it may say no if their sum is not."""

    def prove(self, base: Array, delta: Array, total: Array, *, finite: bool) -> Proof:
        """Return what a sum says of its base; all of one dtype. ``finite`` says that all of ``total`` is."""


@dataclass(frozen=True)
class Task:
    """What to do with every block, the dtype to do it in, and the one to store.

    ``check`` proves the base of what is added, and tries a delta that is made; ``sum`` adds up the result.
    """

    operation: Operation
    compute: str
    store: str
    check: bool = False
    sum: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result's bytes, valid until the next block, and what was counted of its elements."""

    data: memoryview
    tally: Tally


class Workbench:
    """One worker's buffers, and the arithmetic. ``primary`` and ``base`` are where the worker puts the bytes that it read."""

    def __init__(self, kernels: Kernels, task: Task, block: int) -> None:
        """Make room for ``block`` elements."""
        self._kernels, self._task, self._block = kernels, task, block
        self.primary, self.base = (kernels.buffer(block * LARGEST_ITEM) for _ in range(2))
        self._result = kernels.buffer(block * ITEM_SIZES[task.store])
        self._stored = kernels.over(self._result, task.store)
        self._combine = kernels.add if task.operation is Operation.APPLY else kernels.subtract
        # Made when first needed: the common case, float16 on the processor, needs no room of its own.
        self._inputs: dict[tuple[str, str], Array] = {}
        self._rooms: dict[str, Array] = {}

    def combine(
        self,
        count: int,
        primary_dtype: str,
        base_dtype: str | None,
        runs: tuple[Run, ...],
        rest: memoryview | None = None,
    ) -> Outcome:
        """Return what the operation gives for the ``count`` elements in the primary buffer and the ``runs`` in the base buffer.

        The last elements, behind all runs, meet the numbers of ``rest``, which are of the compute dtype. Other elements outside all
        runs are kept, cast to the compute dtype and then to the stored one. Sums and differences are made in the compute dtype,
        correctly rounded once, and rounded once more when they are stored in another. Raises ``InputOutputError`` when the device
        has no memory left.
        """
        kernels, task = self._kernels, self._task
        needs_cast = not primary_dtype == task.compute == task.store
        primary = self._input("lead", self.primary, primary_dtype)[:count]
        if not runs and not rest and not needs_cast:
            copied = self.primary[: count * ITEM_SIZES[primary_dtype]]
            tally = self._tally(primary, copied, primary_dtype, base_dtype, ())
            return Outcome(copied, replace(tally, inexact=0) if self._tries else tally)
        stored = self._stored[:count]
        work = self._at_compute(primary, primary_dtype, "lead")
        base = self._base(base_dtype, runs)
        in_place = task.store == task.compute and kernels.on_host
        total = stored if in_place else self._room("total", count)
        everything = (Run(0, count, 0),)
        if runs != everything:
            kernels.cast(work, total)
        for run in runs:
            self._combine(work[run.start : run.stop], base[run.base : run.end], total[run.start : run.stop])
        settled = runs
        if rest:
            first = count - len(rest) // ITEM_SIZES[task.compute]
            self._combine(work[first:], self._rest(rest), total[first:])
            settled = (*runs, Run(first, count, 0))
        if not in_place:
            kernels.cast(total, stored)
        data = self._result[: count * ITEM_SIZES[task.store]]
        tally = self._tally(stored, data, primary_dtype, base_dtype, runs, everything if needs_cast else settled, rest)
        if self._proves and runs:
            finite = tally.nonfinite == 0 and task.store == task.compute
            proofs = [
                kernels.prove(base[r.base : r.end], work[r.start : r.stop], total[r.start : r.stop], finite=finite)
                for r in runs
            ]
            tally = replace(tally, proof=proofs[0] if len(proofs) == 1 else sum(proofs, Proof()))
        if self._tries:
            delta = total if task.store == task.compute else stored
            rounded = primary_dtype != task.compute
            tally = replace(tally, inexact=self._inexact(work, base, delta, runs, tally.nonfinite, rounded=rounded))
        return Outcome(data, tally)

    @property
    def _proves(self) -> bool:
        return self._task.check and self._task.operation is Operation.APPLY

    @property
    def _tries(self) -> bool:
        return self._task.check and self._task.operation is Operation.MAKE

    def _tally(
        self,
        stored: Array,
        data: memoryview,
        primary_dtype: str,
        base_dtype: str | None,
        runs: tuple[Run, ...],
        settled: tuple[Run, ...] = (),
        rest: memoryview | None = None,
    ) -> Tally:
        """Count what is not finite in ``data``, the bytes of ``stored``, and settle the NaNs that were computed.

        What is not finite has no part in the sum.
        """
        task = self._task
        if self._kernels.finite(stored) or settle_nans(data, task.store, settled) == 0:
            return Tally(sum=float(as_float64(data, task.store).sum())) if task.sum else Tally()
        primary = self.primary[: len(stored) * ITEM_SIZES[primary_dtype]]
        base = self.base[: (runs[-1].end if runs else 0) * ITEM_SIZES[base_dtype or "F32"]]
        met = (primary, primary_dtype), (base, base_dtype or "F32"), (rest or b"", task.compute)
        tally = count_nonfinite((data, task.store), *met, runs)
        return replace(tally, sum=0.0) if task.sum else tally

    def _inexact(
        self, target: Array, base: Array, delta: Array, runs: tuple[Run, ...], nonfinite: int, *, rounded: bool
    ) -> int:
        """Apply ``delta`` as it is stored; return how many elements of ``target``, in the compute dtype, do not come back."""
        if nonfinite:
            return self._inexact_with_nans(target, base, delta, runs, rounded=rounded)
        same = self._task.store == self._task.compute
        back = self._applied(base, delta, runs, copy=not same)
        tried = runs if same else (Run(0, len(target), 0),)
        return sum(self._kernels.different(back[run.start : run.stop], target[run.start : run.stop]) for run in tried)

    def _inexact_with_nans(
        self, target: Array, base: Array, delta: Array, runs: tuple[Run, ...], *, rounded: bool
    ) -> int:
        """Do the same where there are NaNs: as in a merge, those that are computed are the quiet one, whatever the device made.

        ``rounded`` says that the target was rounded to the compute dtype, so that its NaNs were computed, too.
        """
        everything = (Run(0, len(target), 0),)
        same = self._task.store == self._task.compute
        back = self._on_host(self._applied(base, delta, runs, copy=True), runs if same else everything)
        wanted = self._on_host(target, everything if rounded else ())
        return count_different(back, wanted, self._task.compute)

    def _applied(self, base: Array, delta: Array, runs: tuple[Run, ...], *, copy: bool) -> Array:
        """Return base + delta; outside ``runs`` only with ``copy`` anything that means something."""
        kernels = self._kernels
        back = self._room("back", len(delta))
        if copy:
            kernels.cast(delta, back)
            delta = back
        for run in runs:
            kernels.add(delta[run.start : run.stop], base[run.base : run.end], back[run.start : run.stop])
        return back

    def _on_host(self, numbers: Array, settled: tuple[Run, ...]) -> memoryview:
        """Return a copy of numbers in the compute dtype as bytes, every NaN within ``settled`` the quiet one."""
        host = self._kernels.buffer(len(numbers) * ITEM_SIZES[self._task.compute])
        self._kernels.cast(numbers, self._kernels.over(host, self._task.compute))
        settle_nans(host, self._task.compute, settled)
        return host

    def _base(self, dtype: str | None, runs: tuple[Run, ...]) -> Array:
        """Return what was read of the base, on the device and in the compute dtype; None when there is nothing."""
        if dtype is None or not runs:
            return None
        return self._at_compute(self._input("base", self.base, dtype)[: runs[-1].end], dtype, "base")

    def _rest(self, rest: memoryview) -> Array:
        """Return what new rows meet, on the device."""
        return self._at_compute(self._kernels.over(rest, self._task.compute), self._task.compute, "rest")

    def _input(self, name: str, buffer: memoryview, dtype: str) -> Array:
        """Return an input buffer as an array of ``dtype``."""
        if (name, dtype) not in self._inputs:
            self._inputs[name, dtype] = self._kernels.over(buffer, dtype)
        return self._inputs[name, dtype]

    def _at_compute(self, host: Array, dtype: str, name: str) -> Array:
        """Return the elements on the device and in the compute dtype."""
        if self._kernels.on_host and dtype == self._task.compute:
            return host
        room = self._room(name, len(host))
        self._kernels.cast(host, room)
        return room

    def _room(self, name: str, count: int) -> Array:
        if name not in self._rooms:
            self._rooms[name] = self._kernels.room(self._block, self._task.compute)
        return self._rooms[name][:count]
