"""Input files: opened once, read by position, checked for changes.

Files are never mapped into memory: a mapped file that shrinks kills the process.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from deltaweights.checkpoint.descriptor import Descriptor
from deltaweights.checkpoint.malformed import MalformedAt
from deltaweights.checkpoint.safe_open import READ, file_kind
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import InputOutputError, wrap_os_errors
from deltaweights.util.interruption import check

CHUNK = 1024 * 1024
"""Bytes per read of a file that is read whole: they stay in the processor's cache until they are hashed."""

MAX_PIECES = 1024
"""Buffers that one system call fills (IOV_MAX of Linux and macOS)."""


class InputFile(ABC):
    """One file of fixed content, read by position; ``path`` is for messages, ``size`` is in bytes."""

    path: Path
    size: int
    verified_sha256: str | None = None
    """The sha256 that the content was compared with, or will have been when ``check_unchanged`` returns."""
    arrival: str | None = None
    """An identifier of the download that the content came from, if any; it differs between downloads."""
    streamed: bool = False
    """Whether the content is not kept anywhere, so that it cannot be hashed."""
    has_stated_hash: bool = True
    """False for a file of the Hub, or of a mirror, that states no hash of it."""
    crc32: int | None = None
    """A checksum of the whole file that is recorded outside of it, as in an archive."""

    @abstractmethod
    def read_into(self, out: memoryview, offset: int) -> None:
        """Fill ``out`` with the bytes from ``offset`` on. Thread-safe. Raises ``InputOutputError`` when they are not there."""

    def prefetch(self, places: Iterable[tuple[int, int]]) -> None:  # noqa: B027  (most files are local)
        """Take the hint that these ranges (offset, length) will soon be read, in this order."""

    @property
    def pending_bytes(self) -> int:
        """Bytes that have yet to be written to the disk on which the file is kept."""
        return 0

    def scatter_into(self, pieces: Sequence[memoryview], offset: int) -> None:
        """Fill ``pieces`` one after the other with the bytes from ``offset`` on. Raises ``InputOutputError``."""
        for piece in pieces:
            self.read_into(piece, offset)
            offset += len(piece)

    def rely_on_hash(self) -> None:  # noqa: B027  (for files that belong to other users)
        """Have ``check_unchanged`` detect a change even if the file's modification time was set back."""

    @abstractmethod
    def check_unchanged(self) -> None:
        """Raise ``InputOutputError`` when the content changed since the file was opened."""

    def close(self) -> None:  # noqa: B027  (many hold nothing)
        """Release what the file holds."""

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset`` on; for headers and small files, not for weights."""
        data = io.BytesIO()  # getvalue() does not copy, and some headers have hundreds of megabytes
        for begin in range(offset, offset + length, CHUNK):
            piece = bytearray(min(CHUNK, offset + length - begin))
            self.read_into(memoryview(piece), begin)
            data.write(piece)
        return data.getvalue()

    def sha256(self) -> str:
        """Read the whole file in order, and return its sha256 in hex digits."""
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk)
        return digest.hexdigest()

    def chunks(self) -> Iterator[memoryview]:
        """Yield the whole file in order, in pieces that are valid until the next one."""
        buffer = memoryview(bytearray(CHUNK))
        for offset in range(0, self.size, CHUNK):
            piece = buffer[: min(CHUNK, self.size - offset)]
            self.read_into(piece, offset)
            yield piece


class LocalFile(InputFile):
    """One regular file of this machine. Later changes of its name do not matter."""

    def __init__(self, path: Path, fd: int | None = None, *, follow: bool = True) -> None:
        """Open ``path`` (without ``follow`` no link), or take over its ``fd``. Raises ``InputOutputError``, ``MalformedInput``."""
        self.path, self._relies_on_hash = path, False
        try:
            fd = os.open(path, READ if follow else READ | os.O_NOFOLLOW) if fd is None else fd
        except OSError as error:
            if not follow and error.errno == errno.ELOOP:
                malformed = MalformedAt(path, "nothing else may change the folder meanwhile")
                raise malformed("not a regular file", "a link") from None
            raise InputOutputError.from_os(error, path, "open") from error
        self.status = os.fstat(fd)  # when it was opened
        if not stat.S_ISREG(self.status.st_mode):
            os.close(fd)
            raise MalformedAt(path, "give the file itself")("not a regular file", file_kind(self.status.st_mode))
        self.size = self.status.st_size
        if hasattr(os, "posix_fadvise"):
            # The system reads further ahead: a cold merge takes 3 to 13 % less time. POSIX_FADV_WILLNEED made all slower.
            with contextlib.suppress(OSError):  # it is only advice
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        self._descriptor = Descriptor(fd, path, self.status)

    @property
    def fd(self) -> int:
        """The descriptor while the file is open; -1 where it is not held."""
        return self._descriptor.held

    def close(self) -> None:
        self._descriptor.close()

    def read_into(self, out: memoryview, offset: int) -> None:
        check()
        done = 0
        while done < len(out):
            got = self._read([out[done:]], offset + done)
            if got == 0:
                raise _cut_short(self, offset + done)
            done += got

    def scatter_into(self, pieces: Sequence[memoryview], offset: int) -> None:
        check()
        for first in range(0, len(pieces), MAX_PIECES):
            some = pieces[first : first + MAX_PIECES]
            wanted = sum(map(len, some))
            got = self._read(some, offset)
            if got < wanted:  # a read may be short for many reasons; read_into finds out whether the file is
                super().scatter_into(some, offset)
            offset += wanted

    def _read(self, pieces: Sequence[memoryview], offset: int) -> int:
        try:
            if self._descriptor.held >= 0:
                return os.preadv(self._descriptor.held, pieces, offset)
            with self._descriptor.use() as fd:
                return os.preadv(fd, pieces, offset)
        except OSError as error:
            raise InputOutputError.from_os(error, self.path, f"read at byte {offset}") from error

    def rely_on_hash(self) -> None:
        self._relies_on_hash = True

    def check_unchanged(self) -> None:
        with wrap_os_errors(self.path, "check it again"), self._descriptor.use() as fd:
            now, then = os.fstat(fd), self.status
        same = (now.st_size, now.st_mtime_ns) == (then.st_size, then.st_mtime_ns)
        # A file's owner can set back its modification time, but not its ctime. That also changes with links and modes, so it
        # is compared only where a hash is relied on, in files of other users.
        if self._relies_on_hash and then.st_uid not in {0, os.geteuid()}:
            same = same and now.st_ctime_ns == then.st_ctime_ns
        if not same:
            problem, remedy = "changed while being read", "wait until nothing writes to it, and run again"
            found = f"{now.st_size} bytes, modified after the run began"
            expected = f"the {then.st_size} bytes that were opened"
            raise InputOutputError(
                problem, where=self.path, found=found, expected=expected, remedy=remedy, code=ErrorCode.INPUT_CHANGED
            )


class MemoryFile(InputFile):
    """A small file in memory; it is unchanged as long as ``origin``, the file that it was read from, is."""

    def __init__(self, path: Path, content: bytes, origin: InputFile | None = None) -> None:
        self.path, self.size = path, len(content)
        self._content, self._origin = content, origin

    def read_into(self, out: memoryview, offset: int) -> None:
        piece = self._content[offset : offset + len(out)]
        if len(piece) < len(out):
            raise InputOutputError("read past the end", where=self.path, expected=f"{self.size} bytes")
        out[:] = piece

    def check_unchanged(self) -> None:
        if self._origin is not None:
            self._origin.check_unchanged()


class FileSlice(InputFile):
    """``size`` bytes of ``file`` from ``offset`` on, as a file of its own; closing it leaves ``file`` open."""

    def __init__(self, file: InputFile, path: Path, offset: int, size: int, crc32: int | None = None) -> None:
        self.path, self.size, self.crc32 = path, size, crc32
        self._file, self._offset = file, offset

    def read_into(self, out: memoryview, offset: int) -> None:
        self._file.read_into(out, self._place(offset, len(out)))

    def scatter_into(self, pieces: Sequence[memoryview], offset: int) -> None:
        self._file.scatter_into(pieces, self._place(offset, sum(map(len, pieces))))

    def _place(self, offset: int, length: int) -> int:
        if not 0 <= offset <= self.size - length:
            raise _cut_short(self, self.size)
        return self._offset + offset

    def rely_on_hash(self) -> None:
        self._file.rely_on_hash()

    def check_unchanged(self) -> None:
        self._file.check_unchanged()


def _cut_short(file: InputFile, at: int) -> InputOutputError:
    problem, remedy = "cut short while being read", "check the file and the disk, and run again"
    found, expected = f"end of file at byte {at}", f"{file.size} bytes"
    return InputOutputError(
        problem, where=file.path, found=found, expected=expected, remedy=remedy, code=ErrorCode.INPUT_CHANGED
    )
