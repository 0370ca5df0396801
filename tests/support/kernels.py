"""Both sets of kernels, and the processors that numkong can be made to take this one for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numkong
import torch

from deltaweights.merge.arithmetic import Kernels
from deltaweights.merge.kernels_cpu import CpuKernels
from deltaweights.merge.kernels_torch import TorchKernels

LEVELS = [name for name, here in numkong.get_capabilities().items() if here and name != "serial"]
"""What this processor can do beyond plain C, from old to new; leaving out the newest few gives an older processor."""


def older_processors() -> list[tuple[str, ...]]:
    """Return what to leave out to have this processor and each older kind of it, down to plain C."""
    return [tuple(LEVELS[count:]) for count in range(len(LEVELS), -1, -1)]


def torch_kernels() -> TorchKernels:
    """Return torch's kernels for the processor."""
    return TorchKernels(torch.device("cpu"))


WITHOUT = """
import sys, numkong
for name in sys.argv[1:]:
    numkong.disable_capability(name)
    assert not numkong.get_capabilities()[name]
"""

ENGINES: dict[str, Callable[[], Kernels]] = {
    "ours": CpuKernels,  # with the compiled counts where they were built
    "numpy": partial(CpuKernels, compiled=False),
    "torch": torch_kernels,
}
