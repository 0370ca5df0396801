"""One file on its way: which pieces of it are here, and which are wanted next.

Enters: pieces, in any order. Leaves: them again, to readers. Never: a connection; a lock of its own (the scheduler's guards it), or
a piece that is given out before it is here.
"""

from __future__ import annotations

from deltaweights.hub.access import HubFile
from deltaweights.hub.piece_storage import COMING, HERE, MISSING, PieceStorage

NEAR = 8
"""Pieces between two demands that still follow each other: several workers take turns."""

RUN = 64 * 1024 * 1024
"""Most bytes that one request asks for: many connections share a file, and one that broke loses little."""


class PieceMap:
    """The state of one file.

    ``ahead`` is how many pieces after the last demand may be fetched at most, None for all; where it is limited, that begins once
    demands follow each other, since samples from all over the file would have it fetched several times.
    """

    def __init__(self, file: HubFile, room: PieceStorage, here: bytes = b"", ahead: int | None = None) -> None:
        self.file, self.room, self.ahead = file, room, ahead
        self._reach = 0
        self.used: set[int] = set()
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
        self.used.update(pieces)

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
