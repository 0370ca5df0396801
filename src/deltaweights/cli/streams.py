"""Make stdin, stdout and stderr usable, also when they were closed, and writes to them interruptible by signals."""

from __future__ import annotations

import contextlib
import io
import os
import select
import stat
import sys
from typing import TYPE_CHECKING

from deltaweights.util.interruption import POLL, check, signalled

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def open_standard_streams() -> None:
    """Open closed standard streams on /dev/null: otherwise the first files that are opened get their numbers, and our messages."""
    for number, stream in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
        if getattr(sys, stream) is None:
            # By its number: the wrapper below does not keep a file object's descriptor open.
            setattr(sys, stream, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in ("stdout", "stderr"):
        given = getattr(sys, stream)
        if isinstance(given, io.TextIOWrapper):
            raw = _Output(given.fileno(), "wb", closefd=False)
            lines = stream == "stderr" or given.isatty()
            # Foreign names may have characters that the terminal's encoding lacks.
            text = io.TextIOWrapper(io.BufferedWriter(raw), given.encoding, "backslashreplace", line_buffering=lines)
            setattr(sys, stream, text)


def drop_unwritten() -> None:
    """Discard what could not be written to stdout or stderr: otherwise the interpreter tries again at exit, and complains."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def write(fd: int, data: ReadableBuffer) -> int:
    """Write as much of ``data`` as the reader takes, and return how much; after a signal, drop what it does not take.

    Python restarts a write that a signal interrupts: one to a pager that does not read would never end.
    """
    view = memoryview(data)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return os.write(fd, view)
    while not select.select([], [fd], [], POLL)[1]:
        if signalled():
            check()
            return len(view)
    return os.write(fd, view[: select.PIPE_BUF])


class _Output(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        return write(self.fileno(), data)
