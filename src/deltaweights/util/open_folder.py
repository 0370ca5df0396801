"""A folder held open by a descriptor, and what is done to the names in it.

Everything is done relative to the descriptor and without following links, so it happens in the folder that was opened, even when
somebody renames that folder or puts a link under its name.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.util.disk import exchange_names, flush

LOSES_DATA = "the disk, or what stands between, loses data: repair it or use another one"

_FOLDER = os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_CLOEXEC | os.O_NOFOLLOW


Data = bytes | Iterable[bytes | memoryview]
"""What is written: bytes, or chunks of them."""


class OpenFolder:
    """An open folder; ``path`` is its name at the time, for messages.

    All methods raise ``InputOutputError`` when the system refuses, but for those that say ``OSError``.
    """

    def __init__(self, fd: int, path: Path) -> None:
        """Take over the descriptor ``fd`` of a folder."""
        self.fd, self.path = fd, path

    @classmethod
    def at(cls, path: Path, *, follow: bool = True) -> OpenFolder:
        """Open the folder at ``path``; with ``follow`` False a link in its last component is refused."""
        flags = _FOLDER | (0 if follow else os.O_NOFOLLOW)
        try:
            return cls(_open_folder(str(path), flags, None), path)
        except OSError as error:
            raise InputOutputError.from_os(error, path, "open the folder") from error

    def __enter__(self) -> OpenFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder; may be called twice."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)

    # Looking.

    def status(self) -> os.stat_result:
        """Return what the system says of the folder itself."""
        return os.fstat(self.fd)

    def is_named(self, folder: OpenFolder) -> bool:
        """Tell whether ``folder`` still has its name in this one."""
        found, held = self.look(folder.path.name), folder.status()
        return found is not None and (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)

    def look(self, name: str) -> os.stat_result | None:
        """Return what the system says of ``name``, a link itself and not where it leads; None when nothing is there."""
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputOutputError.from_os(error, self.path / name, "look at it") from error

    def names(self) -> list[str]:
        """Return the names in the folder, sorted."""
        try:
            return sorted(os.listdir(self.fd))  # noqa: PTH208  (a descriptor has no path)
        except OSError as error:
            raise InputOutputError.from_os(error, self.path, "list") from error

    def folder(self, name: str) -> OpenFolder:
        """Open the folder ``name``. Raises ``MalformedInput`` when it is a link or no folder."""
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
        """Open the file ``name`` for reading and return its descriptor; a link is refused. Raises ``OSError``."""
        # Without O_NONBLOCK, opening a FIFO that nobody writes to would wait for ever.
        return os.open(name, os.O_RDONLY | os.O_NONBLOCK | _FILE, dir_fd=self.fd)

    def read(self, name: str, most: int) -> bytes:
        """Return the contents of a regular file of at most ``most`` bytes. Raises ``MalformedInput`` when it is something else."""
        try:
            with open(self.open(name), "rb", buffering=0) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise MalformedInput("not a regular file", where=self.path / name, remedy="remove it")
                data = bytearray()
                while len(data) <= most and (piece := file.read(most + 1 - len(data))):
                    data += piece
        except OSError as error:
            raise InputOutputError.from_os(error, self.path / name, "read") from error
        if len(data) > most:
            expected = f"at most {most} bytes"
            raise MalformedInput(
                "too long for what it is", where=self.path / name, expected=expected, remedy="remove it"
            )
        return bytes(data)

    def begins(self, name: str, head: bytes) -> bool:
        """Tell whether the file ``name`` is there and begins with ``head``; one that is no regular file does not."""
        try:
            with open(self.open(name), "rb") as file:
                return stat.S_ISREG(os.fstat(file.fileno()).st_mode) and file.read(len(head)) == head
        except FileNotFoundError:
            return False
        except OSError as error:
            raise InputOutputError.from_os(error, self.path / name, "read") from error

    # Changing.

    def create(self, name: str, mode: int = 0o666) -> int:
        """Make the new file ``name``, in place of whatever has that name, and return its descriptor. Raises ``OSError``.

        What was there is unlinked, never written to: it may have a second name elsewhere.
        """
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)
        return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE, mode, dir_fd=self.fd)

    def write(self, name: str, data: Data, mode: int = 0o666) -> None:
        """Write ``data`` to the new file ``name`` and flush it. Raises also when the file is not as long as was written."""
        wanted = 0
        try:
            with open(self.create(name, mode), "wb", buffering=0) as file:
                for chunk in [data] if isinstance(data, bytes) else data:
                    view, wanted = memoryview(chunk), wanted + len(chunk)
                    while view:
                        count = file.write(view)
                        if not count:
                            break
                        view = view[count:]
                written = os.fstat(file.fileno()).st_size
                flush(file.fileno())
        except OSError as error:
            raise InputOutputError.from_os(error, self.path / name, "write") from error
        if (
            written != wanted
        ):  # of a disk that takes nothing and gives no reason, or says that it took what is not there
            found, expected = f"{written} bytes", f"{wanted} bytes"
            where = self.path / name
            raise InputOutputError(
                "was not written in full", where=where, found=found, expected=expected, remedy=LOSES_DATA
            )

    def replace(self, name: str, data: Data) -> None:
        """Put ``data`` at ``name`` in one step: whoever looks sees the old file or the whole new one, also when several do so."""
        temporary = _own_name(name)
        try:
            self.write(temporary, data)
            self.rename(temporary, self, name)
        except BaseException:
            with suppress(InputOutputError):  # of a disk that fails, what failed first is said
                self.remove(temporary)
            raise

    def write_once(self, name: str, data: Data, mode: int = 0o666) -> bool:
        """Put ``data`` at ``name`` in one step, unless something is there: then return False."""
        temporary = _own_name(name)
        try:
            self.write(temporary, data, mode)
            return self.move_if_absent(temporary, self, name)
        finally:
            self.remove(temporary)

    def move_if_absent(self, name: str, to: OpenFolder, new: str) -> bool:
        """Move the file ``name`` to the folder ``to`` under the name ``new``, unless something is there: then return False.

        A run that is killed in between leaves the file under both names.
        """
        try:
            # Unlike a rename it fails when the name is taken, also on network file systems.
            os.link(name, new, src_dir_fd=self.fd, dst_dir_fd=to.fd, follow_symlinks=False)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}:
                raise InputOutputError.from_os(error, to.path / new, f"move {name} here") from error
            if to.look(new) is not None:  # a file system without hard links: the best that there is
                return False
            self.rename(name, to, new)
            return True
        to.flush()
        self.remove(name)
        return True

    def make(self, name: str, mode: int = 0o777) -> OpenFolder:
        """Open the folder ``name``, made when it is not there, with the permissions that the umask leaves of ``mode``."""
        while True:
            try:
                os.mkdir(name, mode, dir_fd=self.fd)
            except FileExistsError:
                pass
            except OSError as error:
                raise InputOutputError.from_os(error, self.path / name, "create the folder") from error
            try:
                return self.folder(name)
            except InputOutputError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
                # Somebody removed it in between.

    def rename(self, name: str, to: OpenFolder, new: str) -> None:
        """Move ``name`` to the folder ``to`` under the name ``new``, and flush both folders."""
        try:
            os.rename(name, new, src_dir_fd=self.fd, dst_dir_fd=to.fd)
        except OSError as error:
            raise InputOutputError.from_os(error, to.path / new, f"move {name} here") from error
        to.flush()
        if to is not self:
            self.flush()

    def exchange(self, name: str, other: OpenFolder, other_name: str) -> bool:
        """Swap two names in one step; return False where the system or the file system cannot."""
        try:
            done = exchange_names(self.fd, name, other.fd, other_name)
        except OSError as error:
            where = other.path / other_name
            raise InputOutputError.from_os(error, where, f"exchange with {self.path / name}") from error
        if done:
            self.flush()
            other.flush()
        return done

    def remove(self, name: str) -> None:
        """Remove a file, a link, or a folder with all that it holds; what is not there is removed already."""
        try:
            self._remove(name)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise InputOutputError.from_os(error, self.path / name, "remove") from error

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
        """Make the entries of the folder last."""
        try:
            flush(self.fd)
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP}:
                return  # some network and user-space file systems cannot flush folders, nor can O_PATH
            raise InputOutputError.from_os(error, self.path, "flush to the disk") from error


def _open_folder(path: str, flags: int, dir_fd: int | None) -> int:
    try:
        return os.open(path, os.O_RDONLY | flags, dir_fd=dir_fd)
    except PermissionError:
        if not hasattr(os, "O_PATH"):
            raise
        return os.open(path, os.O_PATH | flags, dir_fd=dir_fd)  # one that may be written to, and not be listed


def _own_name(name: str) -> str:
    """Return a name that nobody else has, on this machine or another."""
    return f"{name}.{secrets.token_hex(8)}.new"


def replace_file(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` in one step. Raises ``InputOutputError``."""
    with OpenFolder.at(path.parent) as folder:
        folder.replace(path.name, data)


def remove_file(path: Path) -> None:
    """Remove what is at ``path``, if anything is. Raises ``InputOutputError``."""
    with OpenFolder.at(path.parent) as folder:
        folder.remove(path.name)
