"""Descriptors of input files: a process may have few, and a checkpoint may need thousands."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deltaweights.checkpoint.safe_open import READ
from deltaweights.util.open_files import most_open

HOLD = os.O_PATH | os.O_CLOEXEC if hasattr(os, "O_PATH") and Path("/proc/self/fd").is_dir() else READ
"""Holds a file without opening it for reading, where the system can."""

SPARE = 512
"""Descriptors left for everything but inputs, or half of them where the limit is less than twice as high."""


class Replaced(OSError):
    """A different file now has the name of one that was opened."""


class Descriptor:
    """An open file: its descriptor ``held``, or -1 and a new one for each use if too many are held; ``status`` at first."""

    _lock = threading.Lock()
    _count = 0  # held by all files of the process

    def __init__(self, fd: int, path: Path, status: os.stat_result) -> None:
        self.status, self._path, self.held = status, path, fd
        limit = most_open()
        with Descriptor._lock:
            if limit is None or Descriptor._count < max(limit - SPARE, limit // 2):
                Descriptor._count += 1
                return
        self.held = -1
        os.close(fd)

    def close(self) -> None:
        """Release the descriptor; call it once."""
        if self.held >= 0:
            with Descriptor._lock:
                Descriptor._count -= 1
            fd, self.held = self.held, -1
            os.close(fd)

    @contextmanager
    def use(self) -> Iterator[int]:
        """Yield a descriptor of the file. Raises ``OSError``: ``Replaced`` when a different file now has its name."""
        if self.held >= 0:
            yield self.held
            return
        held = os.open(self._path, HOLD)  # not for reading yet: it may be a device by now
        try:
            found = os.fstat(held)
            if (found.st_dev, found.st_ino) != (self.status.st_dev, self.status.st_ino):
                raise Replaced(0, "a different file now has its name")
            fd = os.dup(held) if HOLD == READ else os.open(f"/proc/self/fd/{held}", READ)
        finally:
            os.close(held)
        try:
            yield fd
        finally:
            os.close(fd)
