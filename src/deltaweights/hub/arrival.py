"""One file on its way: which pieces of it are here, and which are wanted next.

Enters: pieces, in any order. Leaves: them again, to readers. Never: a connection; a lock of its own (the scheduler's guards it), or
a piece that is given out before it is here.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

from deltaweights.errors import InputOutputError
from deltaweights.hub.access import HubFile

MISSING, COMING, HERE = 0, 1, 2
"""What is known of a piece."""

PIECE = 1024 * 1024
"""Bytes of a piece that is kept on disk: little enough that samples from all over a file do not fetch most of it first."""

SMALL_PIECE = 256 * 1024
"""Bytes of a piece that is kept in memory for a while."""

NEAR = 8
"""Pieces between two demands that still follow each other: several workers take turns."""

RUN = 64 * 1024 * 1024
"""Most bytes that one request asks for: many connections share a file, and one that broke loses little."""


class Room(Protocol):
    """Where pieces are kept."""

    piece: int

    def put(self, data: memoryview, offset: int) -> None:
        """Keep bytes. Raises ``InputOutputError``."""

    def finished(self, piece: int) -> list[int]:
        """Note that a piece is here; return those that had to make room for it."""

    def get(self, out: memoryview, offset: int) -> bool:
        """Fill ``out`` with bytes that are here; return False when they were given up meanwhile. Raises ``InputOutputError``."""


class Arrival:
    """The state of one file.

    ``ahead`` is how many pieces after the last demand may be fetched at most, None for all; where it is limited, that begins once
    demands follow each other, since samples from all over the file would have it fetched several times.
    """

    def __init__(self, file: HubFile, room: Room, here: bytes = b"", ahead: int | None = None) -> None:
        self.file, self.room, self.ahead = file, room, ahead
        self._reach = 0
        self.count = -(-file.size // room.piece)
        self.state = bytearray(here.ljust(self.count, b"\0")[: self.count])
        self.cursor = 0
        self.demanded = 0
        self.sequential = False
        self.failed: Exception | None = None
        self.generation = 0

    @property
    def whole(self) -> bool:
        """Whether all pieces are here."""
        return self.state.count(HERE) == self.count

    @property
    def arrived(self) -> int:
        """Bytes that are here, about."""
        return min(self.state.count(HERE) * self.room.piece, self.file.size)

    def extent(self, first: int, last: int) -> tuple[int, int]:
        """Return where the pieces from ``first`` up to ``last`` begin and end in the file."""
        return first * self.room.piece, min(last * self.room.piece, self.file.size)

    def pieces(self, offset: int, length: int) -> range:
        """Return the pieces in which ``length`` bytes from ``offset`` on lie."""
        return range(offset // self.room.piece, -(-(offset + length) // self.room.piece))

    def demand(self, pieces: range) -> None:
        """Note that a reader wants ``pieces``: what follows them will likely be wanted next."""
        follows = abs(pieces.start - self.cursor) <= NEAR
        self._reach = min(max(NEAR, 2 * self._reach), self.ahead or 0) if follows else 0
        self.cursor = pieces.stop

    def lacks(self, pieces: range) -> int | None:
        """Return the first of ``pieces`` that is not here."""
        return next((piece for piece in pieces if self.state[piece] != HERE), None)

    def next_run(self, most: int = RUN) -> tuple[int, int] | None:
        """Return the next pieces to fetch, from the last demand on, then from the beginning; None when there is nothing to do."""
        if self.sequential:
            return (0, self.count) if MISSING in self.state and COMING not in self.state else None
        first = self.state.find(MISSING, self.cursor)
        end = self.count if self.ahead is None else min(self.count, self.cursor + self._reach)
        if first == -1 and self.ahead is None:
            first = self.state.find(MISSING)
        if first == -1 or first >= end:
            return None
        last = first + 1
        while last < end and last - first < most // self.room.piece and self.state[last] == MISSING:
            last += 1
        return first, last

    def claim(self, first: int, last: int) -> None:
        """Mark pieces as coming, those that are here apart."""
        for piece in range(first, last):
            if self.state[piece] == MISSING:
                self.state[piece] = COMING

    def release(self, first: int, last: int) -> None:
        """Mark pieces that were coming as missing again."""
        for piece in range(first, last):
            if self.state[piece] == COMING:
                self.state[piece] = MISSING

    def arrive(self, piece: int) -> None:
        """Mark a piece as here."""
        self.state[piece] = HERE
        for given_up in self.room.finished(piece):
            self.state[given_up] = MISSING


class DiskRoom:
    """A sparse file, and beside it a byte for each piece that is here, so that the next process goes on."""

    piece = PIECE

    def __init__(self, path: Path, size: int) -> None:
        """Open what an earlier run left, or begin. Raises ``InputOutputError``; ``BlockingIOError`` when another process has it."""
        self.path, self._size, self._marks = path, size, path.with_suffix(".pieces")
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise InputOutputError.from_os(error, path, "open") from error
        try:
            _lock(self.fd, path)
            self._marks_fd = os.open(self._marks, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except BaseException:
            os.close(self.fd)
            raise

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
            os.ftruncate(self._marks_fd, 0)
            os.pwrite(self._marks_fd, secrets.token_hex(_MARK // 2).encode(), 0)
            os.ftruncate(self.fd, 0)
            os.ftruncate(self.fd, self._size)
        except OSError as error:
            raise InputOutputError.from_os(error, self.path, "make room for the file") from error

    def put(self, data: memoryview, offset: int) -> None:
        """See ``Room``."""
        try:
            while data:
                written = os.pwrite(self.fd, data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            raise InputOutputError.from_os(error, self.path, "write", "make room; what has arrived is kept") from error

    def finished(self, piece: int) -> list[int]:
        """See ``Room``. The mark follows the bytes; should a power cut turn that round, the file's hash tells."""
        try:
            os.pwrite(self._marks_fd, b"\1", _MARK + piece)
        except OSError as error:
            raise InputOutputError.from_os(
                error, self._marks, "write", "make room; what has arrived is kept"
            ) from error
        return []

    def get(self, out: memoryview, offset: int) -> bool:
        """See ``Room``."""
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
            self.path.replace(blob)
            self._marks.unlink(missing_ok=True)
        except OSError as error:
            raise InputOutputError.from_os(error, blob, "put in place") from error

    def discard(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)
        self._marks.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; what is here stays for the next run."""
        os.close(self.fd)
        os.close(self._marks_fd)


_MARK = 32
"""Hex digits before the bytes of the pieces."""


def _lock(fd: int, path: Path) -> None:
    """Lock a file. Raises ``BlockingIOError`` when another process has it, or had it and has put it in place meanwhile.

    Where the file system has no locks, goes on.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return
    if not path.exists() or os.fstat(fd).st_ino != path.stat().st_ino:
        raise BlockingIOError


class MemoryRoom:
    """The pieces that came last; the oldest makes room."""

    piece = SMALL_PIECE

    def __init__(self, most: int) -> None:
        """Keep ``most`` pieces."""
        self._most = most
        self._coming: dict[int, bytearray] = {}
        self._pieces: OrderedDict[int, bytearray] = OrderedDict()

    def put(self, data: memoryview, offset: int) -> None:
        """See ``Room``."""
        while data:
            piece, at = divmod(offset, self.piece)
            part = data[: self.piece - at]
            self._coming.setdefault(piece, bytearray(self.piece))[at : at + len(part)] = part
            data, offset = data[len(part) :], offset + len(part)

    def finished(self, piece: int) -> list[int]:
        """See ``Room``."""
        self._pieces[piece] = self._coming.pop(piece)
        return [self._pieces.popitem(last=False)[0]] if len(self._pieces) > self._most else []

    def get(self, out: memoryview, offset: int) -> bool:
        """See ``Room``."""
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
