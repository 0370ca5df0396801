"""A limit on this process's CPU time: transformers reads documents that strangers wrote."""

from __future__ import annotations

import math
import os
import resource
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from deltaweights.errors import CheckFailed, printable

CPU_SECONDS = 120  # for a whole check: most take 4, and models with tens of thousands of experts ten times as many
GRACE_SECONDS = 30  # more for native code that does not handle the signal; then the kernel ends the process


def exit_after(
    seconds: int, program: str, where: str, document: Callable[[CheckFailed], bytes] = lambda _: b""
) -> None:
    """End this process with ``CheckFailed``'s exit code and message once it has used that much CPU time.

    ``document`` returns what is then written to stdout.

    An exception could be swallowed by the libraries. Call it in the main thread of a process that has nothing to clean up.
    """
    stdout, stderr = os.dup(1), os.dup(2)  # these descriptors may be redirected while a library works

    def give_up(_number: int, _frame: FrameType | None) -> NoReturn:
        remedy = "do not use this folder: its documents are not those of a model"
        error = CheckFailed(f"transformers takes more than {seconds} seconds of CPU time", where=where, remedy=remedy)
        os.write(stderr, f"{program}: error: {printable(str(error))}\n".encode(errors="backslashreplace"))
        os.write(stdout, document(error))
        os._exit(CheckFailed.exit_code)

    signal.signal(signal.SIGPROF, give_up)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    _soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    most = math.ceil(time.process_time()) + seconds + GRACE_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
