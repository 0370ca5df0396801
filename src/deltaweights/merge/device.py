"""Which kernels compute: those of the processor, or torch's.

Enters: a device as the user names it. Leaves: kernels that have proved themselves on this machine. Never: torch loaded for a merge
that does without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from deltaweights.errors import DeltaweightsError, InputOutputError, UsageError
from deltaweights.merge.arithmetic import Kernels
from deltaweights.merge.known_answers import proven


def check_device(name: str) -> None:
    """Load what computes on device ``name``. Raises ``UsageError`` when this machine has no such device, or no torch for it."""
    if name == "cpu":
        import deltaweights.merge.kernels_cpu  # noqa: F401, PLC0415  (only who merges needs it)
    else:
        _torch_kernels(
            name, UsageError(f"device {name} needs torch", remedy="pip install torch, or run with --device cpu")
        )


def _torch_kernels(name: str, otherwise: DeltaweightsError) -> Callable[[], Kernels]:
    """Return what makes torch's kernels for device ``name``; raise ``otherwise`` when torch is not installed."""
    try:
        from deltaweights.merge.kernels_torch import TorchKernels, choose_device  # noqa: PLC0415  (over a second, 190 MB)
    except ModuleNotFoundError as error:
        raise otherwise from error
    return partial(TorchKernels, choose_device(name))


@contextmanager
def kernels_on(name: str) -> Iterator[Callable[[], Kernels]]:
    """Yield what makes the kernels of one worker, in the worker's thread.

    On the processor, torch stands in where ours do not give the known answers. Raises ``UsageError`` when there is no such device,
    ``InputOutputError`` when torch does not give them either, or would have to stand in and is not installed.
    """
    wrong = f"device {name} does not round as IEEE 754 demands: the result would differ from everybody else's"
    if name == "cpu":
        from deltaweights.merge.kernels_cpu import ProcessorKernels  # noqa: PLC0415

        if proven(ProcessorKernels()):
            yield ProcessorKernels
            return
    make = _torch_kernels(name, InputOutputError(wrong, remedy="pip install torch, which may do it right"))
    from deltaweights.merge.kernels_torch import single_threaded  # noqa: PLC0415

    with single_threaded():
        if not proven(make()):
            raise InputOutputError(wrong, remedy="use another machine or --device")
        yield make
