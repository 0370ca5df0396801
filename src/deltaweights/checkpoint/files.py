"""Input files, opened once and read by position.

Enters: a path. Leaves: an ``InputFile`` that reads byte ranges and knows when the file changed under it, and byte sources for
contiguous tensors. Never: mmap (a mapped file that shrinks kills the process), a whole file in memory, or a read
from anything but a regular file.
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
from deltaweights.checkpoint.opening import READ, kind_of
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.util.interruption import check

CHUNK = 1024 * 1024
"""Bytes per read of a file that is read whole: stays in the processor's cache until it is digested."""

MOST_PIECES = 1024
"""Buffers that one call of the system fills (IOV_MAX of Linux and macOS)."""


class InputFile(ABC):
    """One file of fixed content, read by position; ``path`` is for messages, ``size`` counts its bytes.

    ``crc32`` is what is recorded outside of the file for all of its bytes, as in an archive; None when nothing is.
    """

    path: Path
    size: int
    verified_sha256: str | None = None
    """The sha256 that the content was compared with, or is by the time that ``check_unchanged`` returns."""
    arrival: str | None = None
    """The mark of the download that the content came by, if it did: another download, another mark."""
    streamed: bool = False
    """Whether the content is kept nowhere, so that nobody can hash it."""
    crc32: int | None = None

    @abstractmethod
    def read_into(self, out: memoryview, offset: int) -> None:
        """Fill ``out`` with the bytes from ``offset`` on. Thread-safe. Raises ``InputOutputError`` when they are not there."""

    def expect(self, places: Iterable[tuple[int, int]]) -> None:  # noqa: B027  (most files are here already)
        """Take a hint: (offset, length) that will soon be read, one after the other."""

    @property
    def to_come(self) -> int:
        """Bytes that will still be written to the disk on which the file is kept."""
        return 0

    def scatter_into(self, pieces: Sequence[memoryview], offset: int) -> None:
        """Fill ``pieces`` one after the other with the bytes from ``offset`` on. Raises ``InputOutputError``."""
        for piece in pieces:
            self.read_into(piece, offset)
            offset += len(piece)

    def hash_counts(self) -> None:  # noqa: B027  (most files are not others')
        """Take that a hash of the content will be relied on: a change must be noticed although the file's times were set back."""

    @abstractmethod
    def check_unchanged(self) -> None:
        """Raise ``InputOutputError`` when the content changed since the file was opened."""

    @abstractmethod
    def close(self) -> None:
        """Release what the file holds."""

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset`` on; for headers and documents, not for weights."""
        data = io.BytesIO()  # gives its bytes away without a copy, and some documents have hundreds of megabytes
        for begin in range(offset, offset + length, CHUNK):
            piece = bytearray(min(CHUNK, offset + length - begin))
            self.read_into(memoryview(piece), begin)
            data.write(piece)
        return data.getvalue()

    def sha256(self) -> str:
        """Return the sha256 of the whole file as hex digits, from one pass in order."""
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
    """One regular file of this machine: what was opened is what is read, whatever becomes of its name."""

    def __init__(self, path: Path, fd: int | None = None, *, follow: bool = True) -> None:
        """Open ``path``, also where it is a link unless ``follow`` is False; or take ``fd``, which was opened for it.

        Raises ``InputOutputError``, and ``MalformedInput`` when it is no regular file.
        """
        self.path, self._hash_counts = path, False
        try:
            fd = os.open(path, READ if follow else READ | os.O_NOFOLLOW) if fd is None else fd
        except OSError as error:
            if not follow and error.errno == errno.ELOOP:
                remedy = "nothing else may change the folder meanwhile"
                raise MalformedInput("not a regular file", where=path, found="a link", remedy=remedy) from None
            raise InputOutputError.from_os(error, path, "open") from error
        self._opened = os.fstat(fd)
        if not stat.S_ISREG(self._opened.st_mode):
            os.close(fd)
            found, remedy = kind_of(self._opened.st_mode), "give the weights file itself"
            raise MalformedInput("not a regular file", where=path, found=found, remedy=remedy)
        self.size = self._opened.st_size
        if hasattr(os, "posix_fadvise"):
            # The system reads further ahead: 3 to 13 % off a cold merge. Asking it for ranges (WILLNEED) made all slower.
            with contextlib.suppress(OSError):  # advice
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        self._descriptor = Descriptor(fd, path, self._opened)

    @property
    def fd(self) -> int:
        """The descriptor, for as long as the file is open; -1 where it is not held."""
        return self._descriptor.held

    @property
    def status(self) -> os.stat_result:
        """What the system said of the file when it was opened."""
        return self._opened

    def close(self) -> None:
        self._descriptor.close()

    def read_into(self, out: memoryview, offset: int) -> None:
        check()
        done = 0
        while done < len(out):
            try:
                got = self._read([out[done:]], offset + done)
            except OSError as error:
                raise InputOutputError.from_os(error, self.path, f"read at byte {offset + done}") from error
            if got == 0:
                raise _cut_short(self, offset + done)
            done += got

    def scatter_into(self, pieces: Sequence[memoryview], offset: int) -> None:
        """See ``InputFile``. One call of the system for many pieces."""
        check()
        for first in range(0, len(pieces), MOST_PIECES):
            some = pieces[first : first + MOST_PIECES]
            wanted = sum(map(len, some))
            try:
                got = self._read(some, offset)
            except OSError as error:
                raise InputOutputError.from_os(error, self.path, f"read at byte {offset}") from error
            if got < wanted:  # a read may be short for many reasons; whether the file is, the plain way finds out
                super().scatter_into(some, offset)
            offset += wanted

    def _read(self, pieces: Sequence[memoryview], offset: int) -> int:
        if self._descriptor.held >= 0:
            return os.preadv(self._descriptor.held, pieces, offset)
        with self._descriptor.use() as fd:
            return os.preadv(fd, pieces, offset)

    def hash_counts(self) -> None:
        self._hash_counts = True

    def check_unchanged(self) -> None:
        """See ``InputFile``: size and time of modification are what they were.

        Whoever owns a file can set the latter back, but not the time of its last change, which links and modes change, too. So
        that one is compared where it matters: of a hash that counts, in files of others.
        """
        try:
            with self._descriptor.use() as fd:
                now, then = os.fstat(fd), self._opened
        except OSError as error:
            raise InputOutputError.from_os(error, self.path, "look at it again") from error
        same = (now.st_size, now.st_mtime_ns) == (then.st_size, then.st_mtime_ns)
        if self._hash_counts and then.st_uid not in {0, os.geteuid()}:
            same = same and now.st_ctime_ns == then.st_ctime_ns
        if not same:
            raise InputOutputError(
                "changed while being read",
                where=self.path,
                found=f"{now.st_size} bytes, modified after the run began",
                expected=f"the {then.st_size} bytes that were opened",
                remedy="wait until nothing writes to it, and run again",
            )


class MemoryFile(InputFile):
    """A small file, in memory; it is unchanged as long as ``origin``, what it was made of, is."""

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

    def close(self) -> None:
        """See ``InputFile``: holds nothing."""


class Window(InputFile):
    """``size`` bytes of ``file`` from ``offset`` on, read as a file of its own; whoever opened ``file`` closes it."""

    def __init__(self, file: InputFile, path: Path, offset: int, size: int, crc32: int | None = None) -> None:
        self.path, self.size, self.crc32 = path, size, crc32
        self._file, self._offset = file, offset

    def read_into(self, out: memoryview, offset: int) -> None:
        self._file.read_into(out, self._place(offset, len(out)))

    def scatter_into(self, pieces: Sequence[memoryview], offset: int) -> None:
        self._file.scatter_into(pieces, self._place(offset, sum(map(len, pieces))))

    def _place(self, offset: int, length: int) -> int:
        """Return where ``offset`` is in the other file. Raises ``InputOutputError`` when ``length`` bytes do not follow it."""
        if not 0 <= offset <= self.size - length:
            raise _cut_short(self, self.size)
        return self._offset + offset

    def hash_counts(self) -> None:
        self._file.hash_counts()

    def check_unchanged(self) -> None:
        """See ``InputFile``: the other file is what it was."""
        self._file.check_unchanged()

    def close(self) -> None:
        """See ``InputFile``: holds nothing."""


def _cut_short(file: InputFile, at: int) -> InputOutputError:
    return InputOutputError(
        "cut short while being read",
        where=file.path,
        found=f"end of file at byte {at}",
        expected=f"{file.size} bytes",
        remedy="check the file and the disk, and run again",
    )


def read_small(path: Path, most: int, *, follow: bool = True) -> bytes:
    """Return the contents of a regular file of at most ``most`` bytes, also by a link unless ``follow`` is False.

    Raises ``MalformedInput`` when it is something else or longer, ``InputOutputError`` when it cannot be read.
    """
    file = LocalFile(path, follow=follow)
    try:
        return read_all(file, most)
    finally:
        file.close()


def read_all(file: InputFile, most: int) -> bytes:
    """Return the contents of a file. Raises ``MalformedInput`` when they are more than ``most`` bytes."""
    refuse_long(file, most)
    return file.read(0, file.size)


def refuse_long(file: InputFile, most: int) -> None:
    """Raise ``MalformedInput`` when a file has more than ``most`` bytes."""
    if file.size > most:
        raise MalformedInput(
            "too long for what it is",
            where=file.path,
            found=f"{file.size} bytes",
            expected=f"at most {most}",
            remedy="the file is damaged, or another one has its name: fetch it again",
        )
