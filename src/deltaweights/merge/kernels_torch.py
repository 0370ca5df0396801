"""Arithmetic by torch: on GPUs, and on processors where ours does not prove itself.

Enters: arrays of numbers. Leaves: their casts and sums. Never: on the processor, a number flushed to zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar, cast

import torch

from deltaweights.errors import InputOutputError, UsageError
from deltaweights.manifest.tally import Proof
from deltaweights.merge.floats import FORMATS

TORCH_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}

WORDS = {2: torch.int16, 4: torch.int32}
"""Integers by their bytes, to look at bits with."""

P = ParamSpec("P")
R = TypeVar("R")


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


@contextmanager
def single_threaded() -> Iterator[None]:
    """Let each worker compute on its own thread: torch's thread pool would only make workers wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _within_memory(function: Callable[P, R]) -> Callable[P, R]:
    """Turn a full GPU into an error of ours."""

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except torch.cuda.OutOfMemoryError as error:
            raise InputOutputError(
                "the GPU has no memory left", remedy="run with fewer --workers or --device cpu"
            ) from error

    return guarded


class TorchKernels:
    """See ``Kernels``; to be made in the thread that uses them."""

    def __init__(self, device: torch.device) -> None:
        torch.set_flush_denormal(False)  # in this thread; small weights of bfloat16 and float32 would vanish
        self._device = device
        self.on_host = device.type == "cpu"
        if not self.on_host:
            # A stream for each worker: while one's block is computed, another's is copied. The current stream is the thread's.
            torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]  # torch 2.13 says no type

    def buffer(self, nbytes: int) -> memoryview:
        host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=not self.on_host)
        # numpy's arrays have no buffer protocol in their type stubs before Python 3.12's own Buffer.
        return memoryview(cast(bytearray, host.numpy()))

    def over(self, buffer: memoryview, dtype: str) -> torch.Tensor:
        return torch.frombuffer(buffer, dtype=TORCH_DTYPES[dtype])

    @_within_memory
    def room(self, count: int, dtype: str) -> torch.Tensor:
        return torch.empty(count, dtype=TORCH_DTYPES[dtype], device=self._device)

    @_within_memory
    def cast(self, source: torch.Tensor, out: torch.Tensor) -> None:
        """See ``Kernels``. To the device it returns at once: what comes next on the device waits for it."""
        out.copy_(source, non_blocking=out.device.type == "cuda")

    @_within_memory
    def add(self, one: torch.Tensor, other: torch.Tensor, out: torch.Tensor) -> None:
        torch.add(one, other, out=out)

    @_within_memory
    def subtract(self, one: torch.Tensor, other: torch.Tensor, out: torch.Tensor) -> None:
        torch.sub(one, other, out=out)

    @_within_memory
    def different(self, one: torch.Tensor, other: torch.Tensor) -> int:
        words = WORDS[one.itemsize]
        return int((one.view(words) != other.view(words)).sum())

    def finite(self, numbers: torch.Tensor) -> bool:
        return math.isfinite(numbers.sum(dtype=torch.float32).item())

    @_within_memory
    def prove(self, base: torch.Tensor, delta: torch.Tensor, total: torch.Tensor, *, finite: bool) -> Proof:
        """See ``Kernels``, and ``RoundTrip``; signed integers here, since torch can compute with no others."""
        del finite  # one more step costs nothing here
        form = FORMATS[{dtype: name for name, dtype in TORCH_DTYPES.items()}[total.dtype]]
        words = WORDS[total.itemsize]
        gap = total.view(words) - base.view(words)
        inside = (gap >= -form.exponent_step) & (gap <= form.exponent_step) & total.isfinite()
        wrong = inside & (torch.sub(total, base) != delta)
        moved = inside & (gap != 0)
        region, violations, evidence = torch.stack([part.sum() for part in (inside, wrong, moved)]).tolist()
        return Proof(len(total), region, violations, evidence)
