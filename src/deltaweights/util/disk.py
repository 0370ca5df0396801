"""Operations on files and folders that Python has no function for, or no durable one."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import sys
from pathlib import Path

from deltaweights.errors import InputOutputError, wrap_os_errors

RENAME_EXCHANGE = 2  # from linux/fs.h


def flush(fd: int) -> None:
    """Wait until what was written to ``fd`` is on the disk; on macOS, where fsync leaves it in the drive's cache, also there."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        with contextlib.suppress(OSError):  # not every file system there supports it
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
    os.fsync(fd)


def exchange_names(folder: int, name: str, other: int, other_name: str) -> bool:
    """Swap two names, in the folders of two descriptors, atomically; return False where that is unsupported. Raises ``OSError``."""
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
    """Create ``folder`` and its parents, with the umask's permissions. Raises ``InputOutputError``."""
    while True:
        try:
            return folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if isinstance(error, FileExistsError) and not os.path.lexists(folder):
                continue  # a run that ended removed it in between
            raise InputOutputError.from_os(error, folder, "create the folder") from error


def free_bytes(folder: Path) -> int:
    """Return the bytes that a user can still write where ``folder`` is, or will be created. Raises ``InputOutputError``."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    with wrap_os_errors(folder, "look at the disk"):
        return shutil.disk_usage(folder).free
