"""The descriptors of input files, of which a process may have few and a checkpoint may need thousands.

Enters: a file that was opened. Leaves: its descriptor, whenever it is used. Never: another file under the same name.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deltaweights.checkpoint.opening import READ
from deltaweights.util.open_files import most_open

HOLD = os.O_PATH | os.O_CLOEXEC if hasattr(os, "O_PATH") and Path("/proc/self/fd").is_dir() else READ
"""To hold what has a name without opening it, where the system can."""

SPARE = 512
"""Descriptors left for all that is no input; half of them where there are fewer than twice as many."""


class Replaced(OSError):
    """Another file has the name of one that was opened."""


class Descriptor:
    """An open file: its descriptor is held, or, where too many are held already, it is opened anew for each use.

    ``status`` is what the system said of the file when it was first opened.
    """

    _lock = threading.Lock()
    _held = 0  # by all files of the process

    def __init__(self, fd: int, path: Path, status: os.stat_result) -> None:
        """Take over ``fd``, the file at ``path``."""
        self.status, self._path, self.held = status, path, fd
        limit = most_open()
        with Descriptor._lock:
            holds = limit is None or Descriptor._held < max(limit - SPARE, limit // 2)
            Descriptor._held += holds
        if not holds:
            self.held = -1
            os.close(fd)

    def close(self) -> None:
        """Let go of it; to be called once."""
        if self.held >= 0:
            with Descriptor._lock:
                Descriptor._held -= 1
            fd, self.held = self.held, -1
            os.close(fd)

    @contextmanager
    def use(self) -> Iterator[int]:
        """Yield a descriptor of the file. Raises ``OSError`` when it cannot be opened again, or is another one by now."""
        if self.held >= 0:
            yield self.held
            return
        held = os.open(self._path, HOLD)  # not for reading yet: it may be a device by now
        try:
            found = os.fstat(held)
            if (found.st_dev, found.st_ino) != (self.status.st_dev, self.status.st_ino):
                raise Replaced(0, "another file has its name by now")
            fd = os.dup(held) if HOLD == READ else os.open(f"/proc/self/fd/{held}", READ)
        finally:
            os.close(held)
        try:
            yield fd
        finally:
            os.close(fd)
