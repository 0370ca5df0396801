"""Small files and folders, written so that a power cut cannot half-undo them.

Enters: bytes and paths. Leaves: files, and entries of renamed files, that are on the disk when the call returns. Never: a link
followed in a folder of ours.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from deltaweights.errors import InputOutputError
from deltaweights.merge.writer import flush

MEND = "the disk, or what stands between, loses data: mend it, or use another one"

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""From linux/fcntl.h and linux/fs.h."""


def write_file(path: Path, data: bytes | Iterable[bytes | memoryview]) -> None:
    """Write ``data``, or pieces of it, to ``path`` and flush it.

    Raises ``InputOutputError``, also when the file is not as long as was written.
    """
    wanted = 0
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with open(fd, "wb", buffering=0) as file:
            for piece in [data] if isinstance(data, bytes) else data:
                view, wanted = memoryview(piece), wanted + len(piece)
                while view:
                    count = file.write(view)
                    if not count:
                        break
                    view = view[count:]
            written = os.fstat(fd).st_size
            flush(fd)
    except OSError as error:
        raise InputOutputError.from_os(error, path, "write") from error
    if written != wanted:  # of a disk that takes nothing and gives no reason, or says that it took what is not there
        found, expected = f"{written} bytes", f"{wanted} bytes"
        raise InputOutputError("was not written in full", where=path, found=found, expected=expected, remedy=MEND)


def replace_file(path: Path, data: bytes | Iterable[bytes | memoryview]) -> None:
    """Put ``data`` at ``path`` in one step: whoever looks sees the old file or the whole new one, also when several do so."""
    temporary = _own_name(path)
    try:
        write_file(temporary, data)
        rename(temporary, path)
    except BaseException:
        with suppress(InputOutputError):  # of a disk that fails, what failed first is said
            remove(temporary)
        raise


def create_file(path: Path, data: bytes | Iterable[bytes | memoryview]) -> bool:
    """Put ``data`` at ``path`` in one step, unless something is there: then return False. Raises ``InputOutputError``."""
    temporary = _own_name(path)
    try:
        write_file(temporary, data)
        os.link(temporary, path)  # unlike a rename it fails when the name is taken, also on network file systems
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}:
            raise InputOutputError.from_os(error, path, "create") from error
        if path.exists():  # a file system without hard links: the best that there is
            return False
        rename(temporary, path)
    finally:
        remove(temporary)
    flush_folder(path.parent)
    return True


def _own_name(path: Path) -> Path:
    """Return a name beside ``path`` that nobody else has, on this machine or another."""
    return path.with_name(f"{path.name}.{secrets.token_hex(8)}.new")


def rename(source: Path, target: Path) -> None:
    """Rename, and make the rename last. Raises ``InputOutputError``."""
    try:
        source.rename(target)
    except OSError as error:
        raise InputOutputError.from_os(error, target, f"move {source.name} here") from error
    flush_folder(target.parent)
    if source.parent != target.parent:
        flush_folder(source.parent)


def flush_folder(folder: Path) -> None:
    """Make the entries of ``folder`` last. Raises ``InputOutputError``."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flush(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in {errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP}:
            return  # some network and user-space file systems cannot flush folders
        raise InputOutputError.from_os(error, folder, "flush to the disk") from error


def exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; return False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:  # a C library older than glibc 2.28
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        flush_folder(one.parent)
        flush_folder(other.parent)
        return True
    code = ctypes.get_errno()
    if code in {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}:
        return False
    raise InputOutputError.from_os(OSError(code, os.strerror(code)), other, f"exchange with {one}")


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


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all it holds; what is not there is removed already. Raises ``InputOutputError``."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise InputOutputError.from_os(error, path, "remove") from error


def free_bytes(folder: Path) -> int:
    """Return the bytes that an ordinary user can still write where ``folder`` is, or will be. Raises ``InputOutputError``."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise InputOutputError.from_os(error, folder, "look at the disk") from error
