"""Processes that ``torchrun`` or ``accelerate launch`` started together: each does one part of the merge."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from deltaweights.errors import UsageError
from deltaweights.merge.parts import Part
from deltaweights.util.extras import require
from deltaweights.util.interruption import run_in_side_thread, signalled

LONGEST = timedelta(days=7)
"""How long one process waits for the others. Torch's default of half an hour is too short: shards are uneven, disks may be slow."""


@dataclass(frozen=True)
class Rank:
    """One of the launched processes; ``wait`` returns when all have called it."""

    part: Part
    device: str
    is_main: bool
    wait: Callable[[], None]


def is_launched(environ: Mapping[str, str]) -> bool:
    """Return whether this process is one of several that a launcher started."""
    return "RANK" in environ and environ.get("WORLD_SIZE", "1") not in {"0", "1"}


@contextmanager
def rank(device: str) -> Iterator[Rank]:
    """Join the other processes; ``device`` is "cpu", or "auto" or "cuda" for a GPU per process where there is one.

    Raises ``UsageError`` when accelerate or torch is not installed, when ``device`` names one GPU, and when accelerate sees another
    number of processes than the launcher started.
    """
    if ":" in device:
        remedy = "say --device cuda or auto: each process takes its own"
        raise UsageError("the processes cannot share one device", found=device, remedy=remedy)
    require("launch", "a merge by launched processes")
    import torch  # noqa: PLC0415  (slow)
    from accelerate import PartialState  # type: ignore[import-untyped]  # noqa: PLC0415

    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its number of threads, but computes nothing here
        # Without ``cpu=True`` on a machine without a GPU, accelerate tells each process that it is the only one.
        state = run_in_side_thread(lambda: PartialState(cpu=on_cpu, timeout=LONGEST))
    world = int(os.environ["WORLD_SIZE"])
    if state.num_processes != world:
        raise UsageError(
            "the launcher and accelerate disagree about the number of processes",
            found=state.num_processes,
            expected=world,
            remedy="launch with torchrun, or do it by hand: --part K/N",
        )
    try:
        yield Rank(
            part=Part(state.process_index + 1, world),
            device="cpu" if on_cpu else f"cuda:{state.local_process_index}",
            is_main=state.is_main_process,
            wait=lambda: run_in_side_thread(state.wait_for_everyone),
        )
    finally:
        if not signalled():  # after a signal it would block: the others may be waiting for this process
            state.destroy_process_group()
