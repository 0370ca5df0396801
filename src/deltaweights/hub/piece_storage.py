"""Where the pieces of a file are kept while it is downloaded: on disk, until it is whole."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from deltaweights.checkpoint.safe_open import SEARCH
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import InputOutputError, wrap_os_errors
from deltaweights.hub.memory_pool import Reader

MISSING, REQUESTED, PRESENT = 0, 1, 2  # states of a piece

DISK_PIECE = 1024 * 1024
"""Bytes. Small enough that samples from all over a file do not fetch most of it first."""

ID_LENGTH = 32  # hex digits of the download's id, at the beginning of the marks file

MAKE_ROOM = "make room; what has arrived is kept"


class PieceStorage(Protocol):
    """Where pieces are kept."""

    piece_size: int

    def put(self, data: memoryview, offset: int) -> None:
        """Store bytes. Raises ``InputOutputError``."""

    def attach(self, reader: Reader) -> None:
        """Tell ``reader`` when a piece is evicted."""

    def share(self) -> int:
        """Return how many pieces may be requested ahead of a reader."""

    def pin(self, pieces: range) -> None:
        """Keep ``pieces`` until they are unpinned."""

    def unpin(self, pieces: range) -> None:
        """Undo ``pin``."""

    def clear(self) -> None:
        """Forget all pieces. Raises ``InputOutputError``."""

    def mark_present(self, piece: int) -> None:
        """Record that a piece is complete."""

    def get(self, out: memoryview, offset: int) -> bool:
        """Fill ``out`` with bytes that are present; return False when they were evicted. Raises ``InputOutputError``."""


class DiskPieces:
    """A sparse file, and beside it a marks file with a byte for each piece, so that the next process can resume.

    Both belong to this user, and nobody else can write them: in a shared cache, another user could change what was hashed before
    it is read. Both are opened relative to their open folder, and links are not followed, so that nothing is written elsewhere.
    """

    piece_size = DISK_PIECE

    def __init__(self, path: Path, size: int) -> None:
        """Open what an earlier run left, or begin. Raises ``InputOutputError``; ``BlockingIOError`` if another process has it."""
        self._size, self._closed, self._guard = size, False, threading.Lock()
        # Descriptors are reused, so these are closed by ``close`` or, if somebody still reads, with the last reference.
        self._descriptors = contextlib.ExitStack()
        self._close_descriptors = weakref.finalize(self, self._descriptors.close)
        try:
            self._folder = self._keep_open(_open_folder(path.parent))
            self._open_and_lock(path)
        except BaseException:
            self._close_descriptors()
            raise

    def _open_and_lock(self, path: Path) -> None:
        for own in ("", f".{os.geteuid()}"):
            self.path = path.with_name(f"{path.stem}{own}{path.suffix}")
            self._marks = self.path.with_suffix(".pieces")
            try:
                self.fd = self._keep_open(_open(self.path.name, self._folder))
            except OSError:  # a link, or another user's file
                continue
            if not _is_own(self.fd):
                continue
            if not _lock(self.fd, self.path.name, self._folder):
                break
            with contextlib.suppress(OSError):
                self._marks_fd = self._keep_open(_open(self._marks.name, self._folder))
                if _is_own(self._marks_fd):
                    return
        # Another user's, or without locks: two processes must not share a file.
        self.path = path.with_name(f"{path.stem}.{secrets.token_hex(8)}{path.suffix}")
        self._marks = self.path.with_suffix(".pieces")
        with wrap_os_errors(self.path, "open"):
            self.fd = self._keep_open(_open(self.path.name, self._folder, os.O_EXCL))
            self._marks_fd = self._keep_open(_open(self._marks.name, self._folder, os.O_EXCL))

    def _keep_open(self, fd: int) -> int:
        self._descriptors.callback(os.close, fd)
        return fd

    def resume(self) -> bytes:
        """Return the state of each piece that an earlier run left: none is present in a file of another size."""
        if os.fstat(self.fd).st_size != self._size or len(self.download_id) != ID_LENGTH:
            self.clear()
        count = -(-self._size // self.piece_size)
        return bytes(PRESENT if mark == 1 else MISSING for mark in os.pread(self._marks_fd, count, ID_LENGTH))

    @property
    def download_id(self) -> str:
        """Tells this download from another of the same file."""
        return os.pread(self._marks_fd, ID_LENGTH, 0).decode("ascii", "replace")

    def clear(self) -> None:
        """Forget all pieces. Raises ``InputOutputError``."""
        with _writing(self.path), self._guard:
            self._refuse_closed()
            os.ftruncate(self._marks_fd, 0)
            os.pwrite(self._marks_fd, secrets.token_hex(ID_LENGTH // 2).encode(), 0)
            os.ftruncate(self.fd, 0)
            os.ftruncate(self.fd, self._size)

    def put(self, data: memoryview, offset: int) -> None:
        with _writing(self.path), self._guard:
            while data and not self._closed:
                written = os.pwrite(self.fd, data, offset)
                if not written:
                    raise OSError(errno.EIO, "the disk accepts no more bytes, and gives no reason")
                data, offset = data[written:], offset + written

    def attach(self, reader: Reader) -> None:
        """Do nothing: a disk keeps all pieces."""

    def share(self) -> int:
        return sys.maxsize

    def pin(self, pieces: range) -> None:
        """Do nothing, as above."""

    def unpin(self, pieces: range) -> None:
        """Do nothing, as above."""

    def mark_present(self, piece: int) -> None:
        # The mark follows the bytes; should a power cut reverse that, the file's hash shows it.
        with _writing(self._marks), self._guard:
            if not self._closed:
                os.pwrite(self._marks_fd, b"\1", ID_LENGTH + piece)

    def get(self, out: memoryview, offset: int) -> bool:
        try:
            while out:
                got = os.preadv(self.fd, [out], offset)
                if got == 0:
                    raise InputOutputError(
                        "cut short while being read", where=self.path, remedy="run again", code=ErrorCode.INPUT_CHANGED
                    )
                out, offset = out[got:], offset + got
        except OSError as error:
            raise InputOutputError.from_os(error, self.path, f"read at byte {offset}") from error
        return True

    def publish(self, blob: Path, folder: int) -> None:
        """Flush the complete file and give it its final name in the open ``folder``. Raises ``InputOutputError``."""
        with wrap_os_errors(blob, "put in place"):
            os.fsync(self.fd)
            with self._guard:
                self._refuse_closed()
                os.replace(self.path.name, blob.name, src_dir_fd=self._folder, dst_dir_fd=folder)
                self._remove(self._marks)

    def mark_missing(self, pieces: Iterable[int]) -> None:
        """Mark ``pieces`` as missing for the next run, after ``close``."""
        with contextlib.suppress(OSError, InputOutputError), contextlib.ExitStack() as stack:
            folder = _open_folder(self._marks.parent)
            stack.callback(os.close, folder)
            marks = os.open(self._marks.name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            stack.callback(os.close, marks)
            for piece in pieces if _is_own(marks) else ():
                os.pwrite(marks, b"\0", ID_LENGTH + piece)

    def discard(self) -> None:
        """Remove the file and its marks, before ``close``."""
        self._remove(self.path)
        self._remove(self._marks)

    def _remove(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path.name, dir_fd=self._folder)

    def _refuse_closed(self) -> None:
        if self._closed:  # another process may have it by now
            raise InputOutputError("the download was stopped", where=self.path, remedy="run again")

    def close(self, *, in_use: bool = False) -> None:
        """Leave the file to the next run; later writes are ignored. A file that is still ``in_use`` stays readable."""
        with self._guard:
            self._closed = True
            with contextlib.suppress(OSError):
                fcntl.flock(self.fd, fcntl.LOCK_UN)
        if not in_use:
            self._close_descriptors()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputOutputError.from_os(error, path, "write", MAKE_ROOM) from error


def _open_folder(path: Path) -> int:
    try:
        return os.open(path, SEARCH | os.O_NOFOLLOW)
    except OSError as error:
        remedy = "choose another cache with --cache-dir or HF_HUB_CACHE"
        raise InputOutputError.from_os(error, path, "open the folder, which must not be a link", remedy) from error


def _open(name: str, folder: int, more: int = 0) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | more
    return os.open(name, flags, 0o644, dir_fd=folder)  # others cannot write it, whatever the umask


def _is_own(fd: int) -> bool:
    """Return whether a file is this user's, nobody else can write it, and it has no other name, which might be one to keep."""
    about = os.fstat(fd)
    own = stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid()
    return own and not about.st_mode & 0o022 and about.st_nlink <= 1


def _lock(fd: int, name: str, folder: int) -> bool:
    """Lock a file; False where locks are missing. Raises ``BlockingIOError`` if another process has it, or put it in place."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=folder, follow_symlinks=False)):
            return True
    raise BlockingIOError
