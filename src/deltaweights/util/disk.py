"""Files and folders by their paths, and what makes them last."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import sys
from pathlib import Path

from deltaweights.errors import InputOutputError

RENAME_EXCHANGE = 2
"""From linux/fs.h."""


def flush(fd: int) -> None:
    """Wait until what was written to ``fd`` is on the disk; on macOS also out of the drive's own cache, where fsync leaves it."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        with contextlib.suppress(OSError):  # not every file system there knows it
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
    os.fsync(fd)


def exchange_names(folder: int, name: str, other: int, other_name: str) -> bool:
    """Swap two names in the folders of two descriptors in one step; return False where nobody can. Raises ``OSError``."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:  # a C library older than glibc 2.28
        return False
    if renameat2(folder, os.fsencode(name), other, os.fsencode(other_name), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}:
        return False
    raise OSError(code, os.strerror(code))


def make_folder(folder: Path) -> None:
    """Make ``folder`` and its parents, with the umask's permissions. Raises ``InputOutputError``."""
    while True:
        try:
            return folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            if os.path.lexists(folder):
                raise InputOutputError.from_os(error, folder, "create the folder") from error
            # A run that ended removed it in between.
        except OSError as error:
            raise InputOutputError.from_os(error, folder, "create the folder") from error


def free_bytes(folder: Path) -> int:
    """Return the bytes that an ordinary user can still write where ``folder`` is, or will be. Raises ``InputOutputError``."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise InputOutputError.from_os(error, folder, "look at the disk") from error
