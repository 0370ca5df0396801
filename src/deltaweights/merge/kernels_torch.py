"""Arithmetic by torch: on GPUs, and on processors where numkong fails the self-test."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch

from deltaweights.errors import InputOutputError, UsageError
from deltaweights.manifest.tally import Proof
from deltaweights.merge.floats import FORMATS

TORCH_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}

WORDS = {2: torch.int16, 4: torch.int32}
"""Integers by their bytes, to look at bits with: signed ones, since torch cannot compute with most unsigned types."""


def choose_device(name: str) -> torch.device:
    """Return the torch device for ``cpu``, ``cuda``, ``cuda:N`` or ``auto``. Raises ``UsageError`` when there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    unknown = UsageError("no such device", found=name, expected="cpu, cuda, cuda:N or auto")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown from None
    if device.type not in {"cpu", "cuda"}:
        raise unknown
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found, remedy = f"{torch.cuda.device_count()} CUDA devices", "run with --device cpu; the bits are the same"
        raise UsageError(f"device {name} is not available", found=found, remedy=remedy)
    return device


@contextmanager
def torch_workers() -> Iterator[None]:
    """Compute on each worker's own thread, not in torch's pool. Raises ``InputOutputError`` when the GPU's memory is full."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        remedy = "run with fewer --workers or --device cpu"
        raise InputOutputError("the GPU has no memory left", remedy=remedy) from error
    finally:
        torch.set_num_threads(before)


class TorchKernels:
    """``Kernels`` by torch; to be made in the thread that uses them."""

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

    def as_array(self, buffer: memoryview, dtype: str) -> torch.Tensor:
        return torch.frombuffer(buffer, dtype=TORCH_DTYPES[dtype])

    def scratch(self, count: int, dtype: str) -> torch.Tensor:
        return torch.empty(count, dtype=TORCH_DTYPES[dtype], device=self._device)

    def cast(self, source: torch.Tensor, out: torch.Tensor) -> None:
        # To the device it returns at once: the next operation there waits for it.
        out.copy_(source, non_blocking=out.device.type == "cuda")

    def add(self, one: torch.Tensor, other: torch.Tensor, out: torch.Tensor) -> None:
        torch.add(one, other, out=out)

    def subtract(self, one: torch.Tensor, other: torch.Tensor, out: torch.Tensor) -> None:
        torch.sub(one, other, out=out)

    def count_different(self, one: torch.Tensor, other: torch.Tensor) -> int:
        words = WORDS[one.itemsize]
        return int((one.view(words) != other.view(words)).sum())

    def all_finite(self, numbers: torch.Tensor) -> bool:
        return math.isfinite(numbers.sum(dtype=torch.float32).item())

    def prove_base(self, base: torch.Tensor, delta: torch.Tensor, total: torch.Tensor, *, finite: bool) -> Proof:
        """Count as ``RoundTripCounter`` does, which explains the region."""
        del finite  # looking again costs nothing here
        step, words = FORMATS[DTYPES[total.dtype]].exponent_step, WORDS[total.itemsize]
        gap = total.view(words) - base.view(words)
        inside = (gap >= -step) & (gap <= step) & total.isfinite()
        wrong = inside & (torch.sub(total, base) != delta)
        moved = inside & (gap != 0)
        region, violations, evidence = torch.stack([part.sum() for part in (inside, wrong, moved)]).tolist()
        return Proof(len(total), region, violations, evidence)

    def add_proved(self, base: torch.Tensor, delta: torch.Tensor, out: torch.Tensor) -> tuple[Proof, bool]:
        self.add(base, delta, out)
        return self.prove_base(base, delta, out, finite=False), False
