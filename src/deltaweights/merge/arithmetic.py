"""The sum of two blocks, bit for bit the same on every machine; the only module that imports torch.

Enters: a block of delta bytes and a block of base bytes. Leaves: a block of result bytes and the count of its non-finite elements.
Never: a file, a tensor larger than a block, or a bit that depends on device, vector width or block size.

NaN and subnormal rules: docs/design.md, "Arithmetic".
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch

from deltaweights.errors import InputOutputError, UsageError
from deltaweights.merge.blocks import Run

TORCH_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}

LARGEST_ITEM = 8
"""Bytes per element that the input buffers have room for: those of float64."""


@dataclass(frozen=True)
class Sum:
    """The result's bytes, valid until the next block, and how many of its elements are NaN or infinite."""

    data: memoryview
    nonfinite: int


def choose_device(name: str) -> torch.device:
    """Return the torch device for ``cpu``, ``cuda``, ``cuda:N`` or ``auto`` (the GPU if there is one).

    Raises ``UsageError`` when there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError("no such device", found=name, expected="cpu, cuda, cuda:N or auto") from None
    if device.type not in {"cpu", "cuda"}:
        raise UsageError("no such device", found=name, expected="cpu, cuda, cuda:N or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = f"{torch.cuda.device_count()} CUDA devices"
        raise UsageError(
            f"device {name} is not here", found=found, remedy="run with --device cpu; the bits are the same"
        )
    return device


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Let each worker compute on its own thread: torch's thread pool would only make workers wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Workbench:
    """One worker's buffers, and the addition. ``delta`` and ``base`` are where the worker puts the bytes that it read."""

    def __init__(self, device: torch.device, compute_dtype: str, dtype: str, block: int) -> None:
        """Make room for ``block`` elements. Raises ``InputOutputError`` when subnormal numbers would be flushed to zero."""
        _keep_subnormals(device)
        self._device = device
        self._compute, self._store = TORCH_DTYPES[compute_dtype], TORCH_DTYPES[dtype]
        self._inputs = [self._host(block * LARGEST_ITEM) for _ in range(2)]
        self._output = self._host(block * self._store.itemsize)
        self.delta, self.base = (_bytes_of(tensor) for tensor in self._inputs)
        self._result = _bytes_of(self._output)
        # Allocated when first needed: the common case, float16 on the CPU, needs none of them.
        self._scratch: dict[str, torch.Tensor] = {}
        self._block = block

    def _host(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._device.type == "cuda")

    def combine(self, count: int, delta_dtype: str, base_dtype: str | None, runs: tuple[Run, ...]) -> Sum:
        """Return the sum of the ``count`` elements in the delta buffer with the ``runs`` of elements in the base buffer.

        Elements outside all runs are kept, cast to the compute dtype and then to the stored one. Sums are made in the compute
        dtype, correctly rounded once, and rounded once more when they are stored in another. Raises ``InputOutputError`` when the
        device has no memory left.
        """
        try:
            return self._combine(count, delta_dtype, base_dtype, runs)
        except torch.cuda.OutOfMemoryError as error:
            raise InputOutputError(
                "the GPU has no memory left", remedy="run with fewer --workers or --device cpu"
            ) from error

    def _combine(self, count: int, delta_dtype: str, base_dtype: str | None, runs: tuple[Run, ...]) -> Sum:
        delta = self._elements(self._inputs[0], TORCH_DTYPES[delta_dtype], count)
        needs_cast = not delta.dtype == self._compute == self._store
        if not runs and not needs_cast:
            return Sum(self.delta[: delta.nbytes], _count_nonfinite(delta))
        stored = self._elements(self._output, self._store, count)
        work = self._at_compute(delta, "delta")
        in_place = self._store == self._compute and self._device.type == "cpu"
        total = stored if in_place else self._room("total", count)
        if runs != (Run(0, count, 0),):
            total.copy_(work)
        if base_dtype is not None and runs:
            base_count = runs[-1].base + runs[-1].stop - runs[-1].start
            base = self._at_compute(self._elements(self._inputs[1], TORCH_DTYPES[base_dtype], base_count), "base")
            for run in runs:
                part = base[run.base : run.base + run.stop - run.start]
                torch.add(work[run.start : run.stop], part, out=total[run.start : run.stop])
        if not in_place:
            stored.copy_(total)
        nonfinite = _count_nonfinite(stored)
        if nonfinite:
            for run in [Run(0, count, 0)] if needs_cast else runs:
                computed = stored[run.start : run.stop]
                computed.masked_fill_(computed.isnan(), torch.nan)
        return Sum(self._result[: stored.nbytes], nonfinite)

    def _elements(self, buffer: torch.Tensor, dtype: torch.dtype, count: int) -> torch.Tensor:
        return buffer[: count * dtype.itemsize].view(dtype)

    def _at_compute(self, host: torch.Tensor, name: str) -> torch.Tensor:
        """Return the elements on the device and in the compute dtype."""
        if self._device.type == "cpu" and host.dtype == self._compute:
            return host
        return self._room(name, len(host)).copy_(host, non_blocking=True)

    def _room(self, name: str, count: int) -> torch.Tensor:
        if name not in self._scratch:
            self._scratch[name] = torch.empty(self._block, dtype=self._compute, device=self._device)
        return self._scratch[name][:count]


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    # numpy's arrays have no buffer protocol in their type stubs before Python 3.12's own Buffer.
    return memoryview(cast(bytearray, tensor.numpy()))


def _count_nonfinite(elements: torch.Tensor) -> int:
    # A sum of finite numbers is finite unless it overflows, and then the second look finds nothing. Looking closely at
    # every block would cost twenty times as much.
    if math.isfinite(elements.sum(dtype=torch.float32).item()):
        return 0
    return len(elements) - int(torch.isfinite(elements).sum())


def _keep_subnormals(device: torch.device) -> None:
    """Turn flush-to-zero off in this thread, and prove it: with it on, small weights of bfloat16 and float32 vanish."""
    torch.set_flush_denormal(False)
    smallest = torch.full((64,), 2.0**-149, dtype=torch.float32, device=device)
    if not bool(((smallest + smallest) == 2.0**-148).all()):
        raise InputOutputError(
            "this machine flushes subnormal numbers to zero; results would differ",
            remedy="use another machine or --device cpu",
        )
