"""Combine blocks of primary and base; no result bit depends on device, vectors or block size (docs/design.md, "Arithmetic")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from deltaweights.manifest.tally import Proof, Tally
from deltaweights.merge.blocks import Run
from deltaweights.merge.floats import (
    ITEM_SIZES,
    as_float64,
    canonicalize_nans,
    count_different,
    count_nonfinite,
    count_unequal,
)
from deltaweights.merge.operation import Operation

COMPARED = 1 << 16  # elements that are compared at once with a target of another dtype: they stay in a core's own cache
VIEWS = 64  # arrays that are kept for the next blocks
LARGEST_ITEM = 8  # bytes per element of the input buffers: those of float64
Array = Any  # a row of numbers of one dtype, of whatever class the kernels work on; slices of it share its memory
Part = tuple[int, int, Array]  # elements [start, stop) of a block, and what they are combined with


class Kernels(Protocol):
    """What one worker needs from a device, by safetensors' dtypes F16, BF16, F32, F64. ``on_host``: arrays are in host memory."""

    on_host: bool

    def buffer(self, nbytes: int) -> memoryview:
        """Return new host memory, of the kind that is fastest to exchange with the device."""

    def as_array(self, buffer: memoryview, dtype: str) -> Array:
        """Return an array of ``dtype`` that shares the memory of ``buffer``."""

    def scratch(self, count: int, dtype: str) -> Array:
        """Return a new array on the device."""

    def cast(self, source: Array, out: Array) -> None:
        """Write ``source`` to ``out``, rounded to nearest, ties to even; bit for bit if the dtypes are the same."""

    def add(self, one: Array, other: Array, out: Array) -> None:
        """Write the sum of two arrays of one dtype to ``out``, correctly rounded; ``out`` may be one of them."""

    def subtract(self, one: Array, other: Array, out: Array) -> None:
        """Write ``one`` less ``other`` to ``out``, as ``add`` does."""

    def count_different(self, one: Array, other: Array) -> int:
        """Return how many numbers of two arrays of one dtype differ in any bit."""

    def all_finite(self, numbers: Array) -> bool:
        """Return whether all numbers of a host array are finite; may be False if only their sum is not."""

    def prove_base(self, base: Array, delta: Array, total: Array, *, finite: bool) -> Proof:
        """Count the round trip of a sum; all arrays have one dtype. ``finite``: all of ``total`` is known to be finite."""

    def add_proved(self, base: Array, delta: Array, out: Array) -> tuple[Proof, bool]:
        """Write the sum to ``out`` and count its round trip; return the counts, and whether all sums are known to be finite."""


@dataclass(frozen=True)
class Task:
    """What to do with every block. ``check`` proves the base when adding, and tries out the delta when one is made.

    ``restored`` is the dtype in which the model of a delta that is made will be stored when it is applied.
    """

    operation: Operation
    compute: str
    store: str
    check: bool = False
    wants_sum: bool = False  # of the result's elements
    restored: str = ""


class BlockResult(NamedTuple):
    """The result's bytes, valid until the next block, and what was counted of its elements."""

    data: memoryview
    tally: Tally


class BlockCombiner:
    """One worker's buffers and arithmetic. The worker reads a block's bytes into ``primary`` and ``base``, then combines them."""

    def __init__(self, kernels: Kernels, task: Task, block: int) -> None:
        self._kernels, self._task, self._block = kernels, task, block
        self.primary, self.base = (kernels.buffer(block * LARGEST_ITEM) for _ in range(2))
        self._result = kernels.buffer(block * ITEM_SIZES[task.store])
        self._in_place = task.store == task.compute and kernels.on_host
        self._combine = kernels.add if task.operation is Operation.APPLY else kernels.subtract
        self._proves_base = task.check and task.operation is Operation.APPLY
        self._tries_delta = task.check and task.operation is Operation.MAKE
        # Allocated when first needed: the common case, float16 on the processor, needs no scratch buffers.
        self._scratch_buffers: dict[str, Array] = {}
        self._hosts: dict[tuple[str, str], memoryview] = {}
        self._views: dict[tuple[str, str, int], Array] = {}

    def combine(
        self,
        count: int,
        primary_dtype: str,
        base_dtype: str | None,
        runs: tuple[Run, ...],
        tail: memoryview | None = None,
    ) -> BlockResult:
        """Combine the ``count`` elements in the primary buffer with the ``runs`` in the base buffer.

        The last elements, behind all runs, are combined with the numbers of ``tail``, which are of the compute dtype. Elements
        outside all runs are copied: cast to the compute dtype and then to the stored one. Sums and differences are rounded once,
        to the compute dtype, and once more if they are stored in another. Raises ``InputOutputError`` when the device has no
        memory left.
        """
        kernels, task = self._kernels, self._task
        needs_cast = not primary_dtype == task.compute == task.store
        primary = self._numbers("primary", self.primary, primary_dtype, count)
        if not runs and not tail and not needs_cast:
            copied = self.primary[: count * ITEM_SIZES[primary_dtype]]
            tally = self._tally(primary, copied, primary_dtype, base_dtype, ())
            return BlockResult(copied, replace(tally, inexact=0) if self._tries_delta else tally)
        stored = self._numbers("result", self._result, task.store, count)
        work = self._at_compute(primary, primary_dtype, "primary")
        base: Array = None
        if base_dtype is not None and runs:
            base = self._numbers("base", self.base, base_dtype, runs[-1].end)
            base = self._at_compute(base, base_dtype, "base")
        data = self._result[: count * ITEM_SIZES[task.store]]
        total = stored if self._in_place else self._scratch("total", count)
        everything = (Run(0, count, 0),)
        if runs != everything:
            kernels.cast(work, total)
        parts = [(run.start, run.stop, _part(base, run.base, run.end)) for run in runs]
        computed = runs
        if tail:
            first = count - len(tail) // ITEM_SIZES[task.compute]
            parts.append((first, count, self._at_compute(kernels.as_array(tail, task.compute), task.compute, "tail")))
            computed = (*runs, Run(first, count, 0))
        proof, finite = self._combine_parts(work, total, parts, proved=len(runs))
        if not self._in_place:
            kernels.cast(total, stored)
        if finite and self._in_place and runs == everything and not task.wants_sum:
            tally = Tally(proof=proof)
        else:
            computed = everything if needs_cast else computed
            tally = self._tally(stored, data, primary_dtype, base_dtype, runs, computed, tail).with_proof(proof)
        if self._tries_delta:
            delta, has_nonfinite = total if task.store == task.compute else stored, tally.nonfinite > 0
            inexact, other = self._try_delta(work, delta, parts, primary_dtype, has_nonfinite=has_nonfinite)
            tally = replace(tally, inexact=inexact, not_restored=other)
        return BlockResult(data, tally)

    def _combine_parts(
        self, work: Array, total: Array, parts: Sequence[Part], proved: int
    ) -> tuple[Proof | None, bool]:
        """Combine ``work`` with the parts, and prove the first ``proved`` of them.

        Return the proof, None where none is wanted, and whether all of the proved sums are known to be finite.
        """
        proof, all_finite, proves = Proof(), True, self._proves_base and proved > 0
        for number, (start, stop, operand) in enumerate(parts):
            one, out = _part(work, start, stop), _part(total, start, stop)
            if not proves or number >= proved:
                self._combine(one, operand, out)
                continue
            counted, finite = self._kernels.add_proved(operand, one, out)
            proof = counted if number == 0 else proof + counted
            all_finite &= finite
        return (proof, all_finite) if proves else (None, False)

    def _tally(
        self,
        stored: Array,
        data: memoryview,
        primary_dtype: str,
        base_dtype: str | None,
        runs: tuple[Run, ...],
        computed: tuple[Run, ...] = (),
        tail: memoryview | None = None,
    ) -> Tally:
        """Count what is not finite in ``data``, the bytes of ``stored``, but do not sum it; make NaNs in ``computed`` quiet."""
        task = self._task
        if self._kernels.all_finite(stored) or canonicalize_nans(data, task.store, computed) == 0:
            return Tally(sum=float(as_float64(data, task.store).sum())) if task.wants_sum else Tally()
        primary = self.primary[: len(stored) * ITEM_SIZES[primary_dtype]]
        base = self.base[: (runs[-1].end if runs else 0) * ITEM_SIZES[base_dtype or "F32"]]
        sources = (primary, primary_dtype), (base, base_dtype or "F32"), (tail or b"", task.compute)
        tally = count_nonfinite((data, task.store), *sources, runs)
        return replace(tally, sum=0.0) if task.wants_sum else tally

    def _try_delta(
        self, target: Array, delta: Array, parts: Sequence[Part], target_dtype: str, *, has_nonfinite: bool
    ) -> tuple[int, int | None]:
        """Return ``inexact`` and ``not_restored``, as in ``Tally``, of the stored ``delta``.

        ``target`` is in the compute dtype; if it was rounded to it, its NaNs were computed.
        """
        kernels, compute = self._kernels, self._task.compute
        everything = (Run(0, len(target), 0),)
        same, rounded = self._task.store == compute, target_dtype != compute
        computed = tuple(Run(start, stop, 0) for start, stop, _ in parts) if same else everything
        back = self._scratch("back", len(delta))
        if has_nonfinite or not same or (rounded and computed != everything):
            kernels.cast(delta, back)  # else what is outside the parts is not looked at
            delta = back
        for start, stop, operand in parts:
            kernels.add(delta[start:stop], operand, back[start:stop])
        other = self._count_not_restored(back, target_dtype, has_nonfinite=has_nonfinite) if rounded else None
        if not has_nonfinite:
            pieces = [(back[run.start : run.stop], target[run.start : run.stop]) for run in computed]
            return sum(kernels.count_different(*piece) for piece in pieces), other
        # As in a merge, computed NaNs are the quiet one, whichever the device made.
        wanted = self._on_host(target, everything if rounded else ())
        return count_different(self._on_host(back, computed), wanted, compute), other

    def _count_not_restored(self, back: Array, dtype: str, *, has_nonfinite: bool) -> int:
        """Count what is other in the model that comes ``back`` than in the primary, of ``dtype``, as ``diff`` compares the two.

        In one dtype they differ where any bit does, and all NaNs that come back are the quiet one; in two they differ in value.
        """
        same, wide = self._task.restored == dtype, "F64" if dtype == "F64" else "F32"  # which holds the numbers of both
        compared = dtype if same else wide
        target, item, count = self._numbers("primary", self.primary, dtype, len(back)), ITEM_SIZES[dtype], 0
        for start in range(0, len(back), COMPARED):
            stop = min(start + COMPARED, len(back))
            found = self._host("restored", back[start:stop], compared)
            data = self.primary[start * item : stop * item]
            if not same:
                data = data if dtype == wide else self._host("target", target[start:stop], wide)
                count += count_unequal(found, data, wide)
                continue
            if has_nonfinite:
                canonicalize_nans(found, dtype, (Run(0, stop - start, 0),))
            count += count_different(found, data, dtype)
        return count

    def _host(self, name: str, numbers: Array, dtype: str) -> memoryview:
        """Return the bytes of at most ``COMPARED`` numbers, cast to ``dtype``, in a host buffer of that name."""
        if (name, dtype) not in self._hosts:
            self._hosts[name, dtype] = self._kernels.buffer(COMPARED * ITEM_SIZES[dtype])
        self._kernels.cast(numbers, self._numbers(name, self._hosts[name, dtype], dtype, len(numbers)))
        return self._hosts[name, dtype][: len(numbers) * ITEM_SIZES[dtype]]

    def _on_host(self, numbers: Array, computed: tuple[Run, ...]) -> memoryview:
        """Return a copy of numbers in the compute dtype as bytes, every NaN within ``computed`` the quiet one."""
        host = self._kernels.buffer(len(numbers) * ITEM_SIZES[self._task.compute])
        self._kernels.cast(numbers, self._kernels.as_array(host, self._task.compute))
        canonicalize_nans(host, self._task.compute, computed)
        return host

    def _numbers(self, name: str, buffer: memoryview, dtype: str, count: int) -> Array:
        """Return the first ``count`` numbers of a buffer. Nearly all blocks have the same count, so few arrays serve all."""
        key = name, dtype, count
        if key not in self._views:
            if len(self._views) == VIEWS:
                self._views.clear()
            self._views[key] = self._kernels.as_array(buffer, dtype)[:count]
        return self._views[key]

    def _at_compute(self, host: Array, dtype: str, name: str) -> Array:
        if self._kernels.on_host and dtype == self._task.compute:
            return host
        out = self._scratch(name, len(host))
        self._kernels.cast(host, out)
        return out

    def _scratch(self, name: str, count: int) -> Array:
        if name not in self._scratch_buffers:
            self._scratch_buffers[name] = self._kernels.scratch(self._block, self._task.compute)
        return self._scratch_buffers[name][:count]


def _part(numbers: Array, start: int, stop: int) -> Array:
    """Return ``numbers[start:stop]``; all of them as they are, since each slice takes half a microsecond."""
    return numbers if start == 0 and stop == len(numbers) else numbers[start:stop]
