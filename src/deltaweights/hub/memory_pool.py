"""The pieces of streamed files in memory: a fixed number of them, whatever the number of files."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from typing import Protocol

MEMORY_PIECE = 256 * 1024
"""Bytes. Small enough that samples from all over a file do not fetch most of it first."""

CAPACITY = 112
"""Pieces in memory, of all files together: 28 MiB."""

RECENT = 64
"""Reads by which the files are told that are being read at the moment."""

MOST_AHEAD, LEAST_AHEAD = 128, 4
"""Pieces requested ahead of the reader of a file: all, while it is the only one, and few of each while many are read."""


class Reader(Protocol):
    """A file that is being read: ``cursor`` is the piece that will be read next, ``count`` the number of pieces."""

    cursor: int
    count: int

    def forget(self, piece: int) -> None:
        """Take note that a piece was evicted."""


class MemoryPool:
    """Pieces of several files; those that were read already are evicted first, those that somebody waits for never.

    ``Downloads`` guards it with its lock.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._pieces: OrderedDict[tuple[MemoryPieces, int], bytearray] = OrderedDict()
        self._pins = Counter[tuple[MemoryPieces, int]]()
        self._recent = deque[MemoryPieces](maxlen=RECENT)

    def open(self) -> MemoryPieces:
        """Return the storage of another file."""
        return MemoryPieces(self)

    def add(self, key: tuple[MemoryPieces, int], data: bytearray) -> None:
        """Keep a piece, and evict another if there are too many."""
        self._pieces[key] = data
        while len(self._pieces) > self._capacity:
            free = [each for each in self._pieces if each not in self._pins and each != key]
            read = (each for each in free if each[1] < each[0].reader.cursor)
            evicted = next(read, None) or next(iter(free), None)
            if evicted is None:
                return  # as many readers as pieces
            del self._pieces[evicted]
            evicted[0].reader.forget(evicted[1])

    def pin(self, keys: Iterable[tuple[MemoryPieces, int]]) -> None:
        """Keep pieces, also those that are yet to come, until they are unpinned."""
        self._pins.update(keys)

    def unpin(self, keys: Iterable[tuple[MemoryPieces, int]]) -> None:
        """Undo ``pin``."""
        for key in keys:
            self._pins[key] -= 1
            if not self._pins[key]:
                del self._pins[key]

    def drop(self, file: MemoryPieces) -> None:
        """Forget all pieces of a file."""
        for key in [each for each in self._pieces if each[0] is file]:
            del self._pieces[key]

    def find(self, key: tuple[MemoryPieces, int]) -> bytearray | None:
        """Return a piece, None once it is evicted."""
        return self._pieces.get(key)

    def share(self, file: MemoryPieces) -> int:
        """Return how many pieces may be requested ahead of ``file``, which is being read, so that none is evicted unread."""
        self._recent.append(file)
        return min(MOST_AHEAD, max(LEAST_AHEAD, self._capacity // 2 // len(set(self._recent))))


class MemoryPieces:
    """The pieces of one file that are in ``pool``."""

    piece_size = MEMORY_PIECE
    reader: Reader

    def __init__(self, pool: MemoryPool) -> None:
        self._pool = pool
        self._partial: dict[int, bytearray] = {}

    def attach(self, reader: Reader) -> None:
        """Tell ``reader`` of evictions from now on."""
        self.reader = reader

    def share(self) -> int:
        """Return how many pieces may be requested ahead."""
        return self._pool.share(self)

    def pin(self, pieces: range) -> None:
        """Keep ``pieces`` until they are unpinned."""
        self._pool.pin((self, piece) for piece in pieces)

    def unpin(self, pieces: range) -> None:
        """Undo ``pin``."""
        self._pool.unpin((self, piece) for piece in pieces)

    def put(self, data: memoryview, offset: int) -> None:
        """Store bytes of a piece that is not complete yet."""
        while data:
            piece, at = divmod(offset, self.piece_size)
            part = data[: self.piece_size - at]
            self._partial.setdefault(piece, bytearray(self.piece_size))[at : at + len(part)] = part
            data, offset = data[len(part) :], offset + len(part)

    def clear(self) -> None:
        """Forget all pieces."""
        self._pool.drop(self)
        self._partial.clear()

    def mark_present(self, piece: int) -> None:
        """Keep a complete piece in the pool."""
        self._pool.add((self, piece), self._partial.pop(piece))

    def get(self, out: memoryview, offset: int) -> bool:
        """Fill ``out``; return False when a piece was evicted."""
        while out:
            piece, at = divmod(offset, self.piece_size)
            data = self._pool.find((self, piece))
            if data is None:
                return False
            part = min(len(out), self.piece_size - at)
            out[:part] = memoryview(data)[at : at + part]
            out, offset = out[part:], offset + part
        return True
