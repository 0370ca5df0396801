"""Which kernels compute: those of the processor, or torch's.

Enters: a device as the user names it. Leaves: kernels that have proved themselves on this machine. Never: torch loaded for a merge
that does without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from types import ModuleType

from deltaweights.errors import InputOutputError, UsageError
from deltaweights.merge.arithmetic import Kernels
from deltaweights.merge.known_answers import proven


def check_device(name: str) -> None:
    """Load what computes on device ``name``. Raises ``UsageError`` when this machine has no such device."""
    if name == "cpu":
        import deltaweights.merge.kernels_cpu  # noqa: F401, PLC0415  (only who merges needs it)
    else:
        _torch(f"device {name} needs torch").choose_device(name)


def _torch(why: str) -> ModuleType:
    """Import and return torch's kernels: over a second, and 190 MB. Raises ``UsageError`` when torch is not installed."""
    try:
        return import_module("deltaweights.merge.kernels_torch")
    except ModuleNotFoundError as error:
        raise UsageError(why, found="no torch", remedy="pip install torch, or --device cpu") from error


@contextmanager
def kernels_on(name: str) -> Iterator[Callable[[], Kernels]]:
    """Yield what makes the kernels of one worker, in the worker's thread.

    On the processor, torch stands in where ours do not give the known answers. Raises ``UsageError`` when there is no such device,
    ``InputOutputError`` when torch does not give them either.
    """
    if name == "cpu":
        from deltaweights.merge.kernels_cpu import ProcessorKernels  # noqa: PLC0415

        if proven(ProcessorKernels()):
            yield ProcessorKernels
            return
    torch = _torch("numkong does not round as IEEE 754 demands on this machine, and torch would have to stand in")
    make = partial(torch.TorchKernels, torch.choose_device(name))
    with torch.single_threaded():
        if not proven(make()):
            raise InputOutputError(
                f"device {name} does not round as IEEE 754 demands: the result would differ from everybody else's",
                remedy="use another machine or --device",
            )
        yield make
