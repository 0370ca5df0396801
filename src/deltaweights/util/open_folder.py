"""A folder that is held open by a descriptor, and operations on the names in it.

They are relative to the descriptor and follow no links, so they happen in the folder that was opened, even when somebody renames
that folder or puts a link in its place.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from deltaweights.errors import InputOutputError, MalformedInput, wrap_os_errors
from deltaweights.util.disk import exchange_names, flush

LOSES_DATA = "the disk, or the connection to it, loses data: repair it or use another one"
_FOLDER = os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_CLOEXEC | os.O_NOFOLLOW
Data = bytes | Iterable[bytes | memoryview]  # bytes to write, or chunks of them


class OpenFolder:
    """An open folder, which messages call ``path``. Methods raise ``InputOutputError``, except those that document ``OSError``."""

    def __init__(self, fd: int, path: Path) -> None:
        self.fd, self.path = fd, path

    @classmethod
    def at(cls, path: Path, *, follow: bool = True) -> OpenFolder:
        """Open the folder at ``path``; unless ``follow``, its last component must not be a symbolic link."""
        flags = _FOLDER | (0 if follow else os.O_NOFOLLOW)
        with wrap_os_errors(path, "open the folder"):
            return cls(_open_folder(str(path), flags, None), path)

    def __enter__(self) -> OpenFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the folder; may be called twice."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)

    # Reading.

    def status(self) -> os.stat_result:
        """Return the ``fstat`` of the folder."""
        return os.fstat(self.fd)

    def is_named(self, folder: OpenFolder) -> bool:
        """Return whether ``folder`` still has its name in this one."""
        found = self.look(folder.path.name)
        return found is not None and os.path.samestat(found, folder.status())

    def look(self, name: str) -> os.stat_result | None:
        """Return the ``lstat`` of ``name``, None when it does not exist."""
        with wrap_os_errors(self.path / name, "look at it"), suppress(FileNotFoundError):
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        return None

    def names(self) -> list[str]:
        """Return the names in the folder, sorted."""
        with wrap_os_errors(self.path, "list"):
            return sorted(os.listdir(self.fd))  # noqa: PTH208  (a descriptor has no path)

    def folder(self, name: str) -> OpenFolder:
        """Open the folder ``name``. Raises ``MalformedInput`` when it is a symbolic link or no folder."""
        try:
            return OpenFolder(_open_folder(name, _FOLDER | os.O_NOFOLLOW, self.fd), self.path / name)
        except OSError as error:
            found = self.look(name) if error.errno in {errno.ELOOP, errno.ENOTDIR, errno.EMLINK} else None
            if found is not None:
                what = "a link" if stat.S_ISLNK(found.st_mode) else "something else"
                problem, remedy = "not a folder", "see what it is, and remove it"
                raise MalformedInput(problem, where=self.path / name, found=what, remedy=remedy) from error
            raise InputOutputError.from_os(error, self.path / name, "open the folder") from error

    def open(self, name: str) -> int:
        """Open the file ``name``, which must not be a symbolic link, for reading; return its descriptor. Raises ``OSError``."""
        # Without O_NONBLOCK, opening a FIFO without a writer would block for ever.
        return os.open(name, os.O_RDONLY | os.O_NONBLOCK | _FILE, dir_fd=self.fd)

    def read(self, name: str, most: int) -> bytes:
        """Return the contents of ``name``. Raises ``MalformedInput`` unless it is a regular file of at most ``most`` bytes."""
        with wrap_os_errors(self.path / name, "read"), open(self.open(name), "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise MalformedInput("not a regular file", where=self.path / name, remedy="remove it")
            data = bytearray()
            while len(data) <= most and (piece := file.read(most + 1 - len(data))):
                data += piece
        if len(data) > most:
            problem, expected = "file is too long", f"at most {most} bytes"
            raise MalformedInput(problem, where=self.path / name, expected=expected, remedy="remove it")
        return bytes(data)

    def begins(self, name: str, head: bytes) -> bool:
        """Return whether ``name`` is a regular file that begins with ``head``."""
        with wrap_os_errors(self.path / name, "read"), suppress(FileNotFoundError), open(self.open(name), "rb") as file:
            return stat.S_ISREG(os.fstat(file.fileno()).st_mode) and file.read(len(head)) == head
        return False

    # Writing.

    def create(self, name: str, mode: int = 0o666) -> int:
        """Create a file, and return its descriptor; an old one, which may have a second name, is unlinked. Raises ``OSError``."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)
        return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE, mode, dir_fd=self.fd)

    def write(self, name: str, data: Data, mode: int = 0o666) -> None:
        """Write ``data`` to the new file ``name``, flush it, and check its length."""
        wanted = 0
        with wrap_os_errors(self.path / name, "write"), open(self.create(name, mode), "wb", buffering=0) as file:
            for chunk in [data] if isinstance(data, bytes) else data:
                view, wanted = memoryview(chunk), wanted + len(chunk)
                while view and (count := file.write(view)):
                    view = view[count:]
            written = os.fstat(file.fileno()).st_size
            flush(file.fileno())
        if written != wanted:  # some disks write nothing without an error, or claim to have written what is lost
            found, expected = f"{written} bytes", f"{wanted} bytes"
            where, problem = self.path / name, "was not written in full"
            raise InputOutputError(problem, where=where, found=found, expected=expected, remedy=LOSES_DATA)

    def replace(self, name: str, data: Data) -> None:
        """Write ``data`` to ``name`` atomically: readers see the old file or the complete new one, even with several writers."""
        temporary = _unique_name(name)
        try:
            self.write(temporary, data)
            self.rename(temporary, self, name)
        except BaseException:
            with suppress(InputOutputError):  # the first error is the one to report
                self.remove(temporary)
            raise

    def write_once(self, name: str, data: Data, mode: int = 0o666) -> bool:
        """Write ``data`` to ``name`` atomically; return False, having changed nothing, when the name exists."""
        temporary = _unique_name(name)
        try:
            self.write(temporary, data, mode)
            return self.move_if_absent(temporary, self, name)
        finally:
            self.remove(temporary)

    def move_if_absent(self, name: str, to: OpenFolder, new: str) -> bool:
        """Move a file to ``new`` in ``to``; return False if that exists. A kill meanwhile may leave it under both names."""
        try:
            # Unlike a rename, this fails when the name exists, also on network file systems.
            os.link(name, new, src_dir_fd=self.fd, dst_dir_fd=to.fd, follow_symlinks=False)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}:
                raise InputOutputError.from_os(error, to.path / new, f"move {name} here") from error
            if to.look(new) is not None:  # without hard links, a check before the rename is the best there is
                return False
            self.rename(name, to, new)
            return True
        to.flush()
        self.remove(name)
        return True

    def make(self, name: str, mode: int = 0o777) -> OpenFolder:
        """Open the folder ``name``, created if necessary, with the permissions that the umask leaves of ``mode``."""
        while True:
            with wrap_os_errors(self.path / name, "create the folder"), suppress(FileExistsError):
                os.mkdir(name, mode, dir_fd=self.fd)
            try:
                return self.folder(name)
            except InputOutputError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
                # Another process removed it in between.

    def rename(self, name: str, to: OpenFolder, new: str) -> None:
        """Move ``name`` to ``new`` in the folder ``to``, and flush both folders."""
        with wrap_os_errors(to.path / new, f"move {name} here"):
            os.rename(name, new, src_dir_fd=self.fd, dst_dir_fd=to.fd)
        to.flush()
        if to is not self:
            self.flush()

    def exchange(self, name: str, other: OpenFolder, other_name: str) -> bool:
        """Swap two names atomically; return False where the system or the file system does not support it."""
        with wrap_os_errors(other.path / other_name, f"exchange with {self.path / name}"):
            done = exchange_names(self.fd, name, other.fd, other_name)
        if done:
            self.flush()
            other.flush()
        return done

    def remove(self, name: str) -> None:
        """Remove a file, a link, or a folder with everything in it, if it exists."""
        with wrap_os_errors(self.path / name, "remove"), suppress(FileNotFoundError):
            self._remove(name)

    def _remove(self, name: str) -> None:
        if not stat.S_ISDIR(os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=self.fd)
            return
        with OpenFolder(_open_folder(name, _FOLDER | os.O_NOFOLLOW, self.fd), self.path / name) as folder:
            for each in os.listdir(folder.fd):  # noqa: PTH208  (see above)
                with suppress(FileNotFoundError):
                    folder._remove(each)
        os.rmdir(name, dir_fd=self.fd)

    def flush(self) -> None:
        """Wait until the folder's entries are on the disk."""
        with wrap_os_errors(self.path, "flush to the disk"):
            try:
                flush(self.fd)
            except OSError as error:  # unsupported by some network and user-space file systems, and by O_PATH
                if error.errno not in {errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP}:
                    raise


def _open_folder(path: str, flags: int, dir_fd: int | None) -> int:
    try:
        return os.open(path, os.O_RDONLY | flags, dir_fd=dir_fd)
    except PermissionError:
        if not hasattr(os, "O_PATH"):
            raise
        return os.open(path, os.O_PATH | flags, dir_fd=dir_fd)  # a folder that may be written to, but not listed


def _unique_name(name: str) -> str:
    return f"{name}.{secrets.token_hex(8)}.new"


def replace_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically. Raises ``InputOutputError``."""
    with OpenFolder.at(path.parent) as folder:
        folder.replace(path.name, data)


def remove_file(path: Path) -> None:
    """Remove ``path`` if it exists. Raises ``InputOutputError``."""
    with OpenFolder.at(path.parent) as folder:
        folder.remove(path.name)
