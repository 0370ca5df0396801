"""Choose the kernels that compute: those of the processor, or torch's, which are loaded only if needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from deltaweights.errors import InputOutputError
from deltaweights.merge.arithmetic import Kernels
from deltaweights.merge.self_test import passes_self_test
from deltaweights.util.extras import WITHOUT_GPU, is_installed, require


def check_device(name: str) -> None:
    """Load what computes on device ``name``. Raises ``UsageError`` when this machine has no such device, or no torch for it."""
    if name == "cpu":
        import deltaweights.merge.kernels_cpu  # noqa: F401, PLC0415  (only merges need it)
    else:
        require("gpu", f"device {name}", WITHOUT_GPU)
        _torch_kernels(name)


def _torch_kernels(name: str) -> Callable[[], Kernels]:
    from deltaweights.merge.kernels_torch import TorchKernels, choose_device  # noqa: PLC0415  (over a second, 190 MB)

    return partial(TorchKernels, choose_device(name))


def untested_kernels() -> Kernels:
    """Return the processor's kernels without the self-test, which takes longer than samples; no result may rest on them."""
    from deltaweights.merge.kernels_cpu import CpuKernels  # noqa: PLC0415

    return CpuKernels()


@contextmanager
def kernels_on(name: str) -> Iterator[Callable[[], Kernels]]:
    """Yield a factory of kernels, to be called in each worker's thread.

    On the processor, the compiled library is left out if it fails the self-test, and torch takes over if numkong does. Raises
    ``UsageError`` when there is no such device, ``InputOutputError`` when torch fails the self-test, too, or is needed but not
    installed.
    """
    wrong = f"device {name} does not round as IEEE 754 demands: the result would differ from everybody else's"
    if name == "cpu":
        from deltaweights.merge.kernels_cpu import CpuKernels  # noqa: PLC0415

        for make_kernels in (CpuKernels, partial(CpuKernels, compiled=False)):
            if passes_self_test(make_kernels()):
                yield make_kernels
                return
        if not is_installed("gpu"):
            raise InputOutputError(wrong, remedy="pip install 'deltaweights[gpu]': torch may round correctly here")
    make = _torch_kernels(name)
    from deltaweights.merge.kernels_torch import torch_workers  # noqa: PLC0415

    with torch_workers():
        if not passes_self_test(make()):
            raise InputOutputError(wrong, remedy="use another machine or --device")
        yield make
