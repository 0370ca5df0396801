"""Where the pieces of a file are kept until it is whole, or for a while.

Enters: bytes, in any order. Leaves: them again; a whole file under another name. Never: a write after it was closed, or a link that
is followed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from deltaweights.checkpoint.safe_open import SEARCH
from deltaweights.errors import InputOutputError

MISSING, COMING, HERE = 0, 1, 2
"""What is known of a piece."""

PIECE = 1024 * 1024
"""Bytes of a piece that is kept on disk: little enough that samples from all over a file do not fetch most of it first."""

SMALL_PIECE = 256 * 1024
"""Bytes of a piece that is kept in memory for a while."""


class Room(Protocol):
    """Where pieces are kept."""

    piece: int

    def put(self, data: memoryview, offset: int) -> None:
        """Keep bytes. Raises ``InputOutputError``."""

    def finished(self, piece: int) -> list[int]:
        """Note that a piece is here; return those that had to make room for it."""

    def get(self, out: memoryview, offset: int) -> bool:
        """Fill ``out`` with bytes that are here; return False when they were given up meanwhile. Raises ``InputOutputError``."""


class DiskRoom:
    """A sparse file, and beside it a byte for each piece that is here, so that the next process goes on.

    Both are this user's, and nobody else can write them: in a cache that several share, who could might change what was hashed
    before it is read. They are named in their folder as it was opened, so that they are never written elsewhere.
    """

    piece = PIECE

    def __init__(self, path: Path, size: int) -> None:
        """Open what an earlier run left, or begin. Raises ``InputOutputError``; ``BlockingIOError`` when another process has it.

        Where another user began the file, this user's has another name. Where the file system has no locks, two processes must not
        share a file: then it is one of this process alone.
        """
        self._size, self._closed, self._guard = size, False, threading.Lock()
        # Numbers of files are given anew: these are closed by ``close`` or, if somebody still reads, when nobody can any more.
        self._files = contextlib.ExitStack()
        self._end = weakref.finalize(self, self._files.close)
        try:
            self._folder = self._kept(_open_folder(path.parent))
            self._take(path)
        except BaseException:
            self._end()
            raise

    def _take(self, path: Path) -> None:
        """Open a file and its marks, under the first name that is not another user's, and lock it."""
        for own in ("", f".{os.geteuid()}"):
            self.path = path.with_name(f"{path.stem}{own}{path.suffix}")
            self._marks = self.path.with_suffix(".pieces")
            try:
                self.fd = self._kept(_open(self.path.name, self._folder))
            except OSError:  # a link, or a file that others have
                continue
            if not _is_own(self.fd):
                continue
            if not _lock(self.fd, self.path.name, self._folder):
                break
            with contextlib.suppress(OSError):
                self._marks_fd = self._kept(_open(self._marks.name, self._folder))
                if _is_own(self._marks_fd):
                    return
        self.path = path.with_name(f"{path.stem}.{secrets.token_hex(8)}{path.suffix}")
        self._marks = self.path.with_suffix(".pieces")
        try:
            self.fd = self._kept(_open(self.path.name, self._folder, os.O_EXCL))
            self._marks_fd = self._kept(_open(self._marks.name, self._folder, os.O_EXCL))
        except OSError as error:
            raise InputOutputError.from_os(error, self.path, "open") from error

    def _kept(self, fd: int) -> int:
        self._files.callback(os.close, fd)
        return fd

    def here(self) -> bytes:
        """Return for each piece ``HERE`` when it is, else ``MISSING``; nothing is here in a file of another size."""
        if os.fstat(self.fd).st_size != self._size or len(self.mark) != _MARK:
            self.clear()
        count = -(-self._size // self.piece)
        return bytes(HERE if mark == 1 else MISSING for mark in os.pread(self._marks_fd, count, _MARK))

    @property
    def mark(self) -> str:
        """What tells this download from another of the same file."""
        return os.pread(self._marks_fd, _MARK, 0).decode("ascii", "replace")

    def clear(self) -> None:
        """Forget all pieces. Raises ``InputOutputError``."""
        try:
            with self._guard:
                self._refuse_closed()
                os.ftruncate(self._marks_fd, 0)
                os.pwrite(self._marks_fd, secrets.token_hex(_MARK // 2).encode(), 0)
                os.ftruncate(self.fd, 0)
                os.ftruncate(self.fd, self._size)
        except OSError as error:
            raise InputOutputError.from_os(error, self.path, "write", "make room; what has arrived is kept") from error

    def put(self, data: memoryview, offset: int) -> None:
        try:
            with self._guard:
                while data and not self._closed:
                    written = os.pwrite(self.fd, data, offset)
                    if not written:
                        raise OSError(errno.EIO, "the disk takes no more bytes, and says no reason")  # noqa: TRY301
                    data, offset = data[written:], offset + written
        except OSError as error:
            raise InputOutputError.from_os(error, self.path, "write", "make room; what has arrived is kept") from error

    def finished(self, piece: int) -> list[int]:
        """See ``Room``. The mark follows the bytes; should a power cut turn that round, the file's hash tells."""
        try:
            with self._guard:
                if not self._closed:
                    os.pwrite(self._marks_fd, b"\1", _MARK + piece)
        except OSError as error:
            raise InputOutputError.from_os(
                error, self._marks, "write", "make room; what has arrived is kept"
            ) from error
        return []

    def get(self, out: memoryview, offset: int) -> bool:
        try:
            while out:
                got = os.preadv(self.fd, [out], offset)
                if got == 0:
                    raise InputOutputError("cut short while being read", where=self.path, remedy="run again")
                out, offset = out[got:], offset + got
        except OSError as error:
            raise InputOutputError.from_os(error, self.path, f"read at byte {offset}") from error
        return True

    def publish(self, blob: Path) -> None:
        """Give the file, whole and flushed, its final name. Raises ``InputOutputError``."""
        try:
            os.fsync(self.fd)
            with self._guard:
                self._refuse_closed()
                os.replace(self.path.name, blob.name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
                self._remove(self._marks)
        except OSError as error:
            raise InputOutputError.from_os(error, blob, "put in place") from error

    def forget(self, pieces: Iterable[int]) -> None:
        """Mark ``pieces`` as missing, in a file that is closed, for the next run."""
        with contextlib.suppress(OSError, InputOutputError), contextlib.ExitStack() as stack:
            folder = _open_folder(self._marks.parent)
            stack.callback(os.close, folder)
            marks = os.open(self._marks.name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            stack.callback(os.close, marks)
            for piece in pieces if _is_own(marks) else ():
                os.pwrite(marks, b"\0", _MARK + piece)

    def discard(self) -> None:
        """Remove the file. Only before ``close``."""
        self._remove(self.path)
        self._remove(self._marks)

    def _remove(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path.name, dir_fd=self._folder)

    def _refuse_closed(self) -> None:
        if self._closed:  # it may be another process's by now
            raise InputOutputError("the download was stopped", where=self.path, remedy="run again")

    def close(self, *, used: bool = False) -> None:
        """Leave the file to the next run; what comes late is passed over. Where it is still ``used``, it stays readable so long."""
        with self._guard:
            self._closed = True
            with contextlib.suppress(OSError):
                fcntl.flock(self.fd, fcntl.LOCK_UN)
        if not used:
            self._end()


_MARK = 32
"""Hex digits before the bytes of the pieces."""


def _open_folder(path: Path) -> int:
    try:
        return os.open(path, SEARCH | os.O_NOFOLLOW)
    except OSError as error:
        remedy = "choose another cache with --cache-dir or HF_HUB_CACHE"
        raise InputOutputError.from_os(error, path, "open the folder, which must be no link", remedy) from error


def _open(name: str, folder: int, more: int = 0) -> int:
    """Open a file, or make it, so that nobody else can write it whatever the umask. Raises ``OSError``."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | more
    return os.open(name, flags, 0o644, dir_fd=folder)


def _is_own(fd: int) -> bool:
    """Tell whether a file is this user's, nobody else can write it, and it has no other name: it may be one to be kept."""
    about = os.fstat(fd)
    ours = stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid()
    return ours and not about.st_mode & 0o022 and about.st_nlink <= 1


def _lock(fd: int, name: str, folder: int) -> bool:
    """Lock a file, and tell whether the file system can.

    Raises ``BlockingIOError`` when another process has it, or had it and has put it in place meanwhile.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    try:
        current = os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=folder, follow_symlinks=False))
    except FileNotFoundError:
        current = False
    if not current:
        raise BlockingIOError
    return True


class MemoryRoom:
    """The pieces that came last; the oldest makes room."""

    piece = SMALL_PIECE

    def __init__(self, most: int) -> None:
        """Keep ``most`` pieces."""
        self._most = most
        self._coming: dict[int, bytearray] = {}
        self._pieces: OrderedDict[int, bytearray] = OrderedDict()

    def put(self, data: memoryview, offset: int) -> None:
        while data:
            piece, at = divmod(offset, self.piece)
            part = data[: self.piece - at]
            self._coming.setdefault(piece, bytearray(self.piece))[at : at + len(part)] = part
            data, offset = data[len(part) :], offset + len(part)

    def finished(self, piece: int) -> list[int]:
        self._pieces[piece] = self._coming.pop(piece)
        return [self._pieces.popitem(last=False)[0]] if len(self._pieces) > self._most else []

    def get(self, out: memoryview, offset: int) -> bool:
        while out:
            piece, at = divmod(offset, self.piece)
            data = self._pieces.get(piece)
            if data is None:
                return False
            part = min(len(out), self.piece - at)
            out[:part] = memoryview(data)[at : at + part]
            out, offset = out[part:], offset + part
        return True

    def close(self) -> None:
        """Forget all."""
        self._pieces.clear()
