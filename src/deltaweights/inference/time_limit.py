"""An end to what the library may take: it reads documents that strangers wrote.

Enters: how many seconds. Leaves: a process that ends by itself. Never: an exception in the middle of code that is not ours.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import time
from types import FrameType
from typing import NoReturn

from deltaweights.errors import CheckFailed, printable

SECONDS = 120
"""Of the processor, for a whole check: most take 4, and models of ten thousands of experts ten times as many."""

GRACE = 30
"""Seconds more for code that hears of no signal, after which the system ends the process."""


def end_after(seconds: int, name: str, where: str) -> None:
    """Have this process end with the code of ``CheckFailed`` and a line on stderr when it has taken that much of the processor.

    To be called in the main thread, by a process that has nothing to put right.
    """
    said_to = os.dup(2)  # while the library works, 2 leads nowhere

    def give_up(_number: int, _frame: FrameType | None) -> NoReturn:
        problem = f"the library takes more than {seconds} seconds of the processor"
        said = str(
            CheckFailed(problem, where=where, remedy="do not use this folder; its documents are not those of a model")
        )
        os.write(said_to, f"{name}: error: {printable(said)}\n".encode(errors="backslashreplace"))
        os._exit(CheckFailed.exit_code)

    signal.signal(signal.SIGPROF, give_up)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    _soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    most = math.ceil(time.process_time()) + seconds + GRACE
    resource.setrlimit(resource.RLIMIT_CPU, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
