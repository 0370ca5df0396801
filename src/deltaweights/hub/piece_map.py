"""Which pieces of a file being downloaded are present, and which to request next; ``Downloads`` guards this with its lock."""

from __future__ import annotations

from deltaweights.hub.piece_storage import MISSING, PRESENT, REQUESTED, PieceStorage
from deltaweights.hub.repo_listing import HubFile

NEAR = 8  # pieces between two reads that still count as sequential: several workers take turns

MAX_REQUEST_BYTES = 64 * 1024 * 1024  # many connections share a file, and one that breaks loses little


class PieceMap:
    """The state of one file.

    ``read_ahead`` limits how many pieces after the last read are requested, None for no limit. A limited read-ahead starts only
    once reads are sequential: samples from all over the file would otherwise have it fetched several times.
    """

    def __init__(
        self, file: HubFile, storage: PieceStorage, present: bytes = b"", read_ahead: int | None = None
    ) -> None:
        self.file, self.storage, self.read_ahead = file, storage, read_ahead
        self.count = -(-file.size // storage.piece_size)
        self.state = bytearray(present.ljust(self.count, b"\0")[: self.count])
        self.read: set[int] = set()
        self.cursor, self.last_read, self._window, self.generation = 0, 0, 0, 0
        self.in_order = False
        self.failed: Exception | None = None
        storage.attach(self)

    @property
    def bytes_present(self) -> int:
        """Bytes that are present, to within a piece."""
        return min(self.state.count(PRESENT) * self.storage.piece_size, self.file.size)

    def extent(self, first: int, last: int) -> tuple[int, int]:
        """Return where the pieces from ``first`` up to ``last`` begin and end in the file."""
        return first * self.storage.piece_size, min(last * self.storage.piece_size, self.file.size)

    def covering(self, offset: int, length: int) -> range:
        """Return the pieces that hold ``length`` bytes from ``offset`` on."""
        return range(offset // self.storage.piece_size, -(-(offset + length) // self.storage.piece_size))

    def note_read(self, pieces: range) -> None:
        """Record that a reader wants ``pieces``: the pieces after them are likely to be next."""
        sequential = abs(pieces.start - self.cursor) <= NEAR
        ahead = min(self.read_ahead or 0, self.storage.share())
        self._window = min(max(1, 2 * self._window), ahead) if sequential else 0
        self.cursor = pieces.stop
        self.read.update(pieces)

    def first_absent(self, pieces: range) -> int | None:
        """Return the first of ``pieces`` that is not present."""
        return next((piece for piece in pieces if self.state[piece] != PRESENT), None)

    def next_request(self, max_bytes: int = MAX_REQUEST_BYTES) -> tuple[int, int] | None:
        """Return the next pieces to request: after the last read, then from the beginning; None when there are none."""
        if self.in_order:
            return (0, self.count) if MISSING in self.state and REQUESTED not in self.state else None
        first = self.state.find(MISSING, self.cursor)
        end = self.count if self.read_ahead is None else min(self.count, self.cursor + self._window)
        if first == -1 and self.read_ahead is None:
            first = self.state.find(MISSING)
        if first == -1 or first >= end:
            return None
        last = first + 1
        while last < end and last - first < max_bytes // self.storage.piece_size and self.state[last] == MISSING:
            last += 1
        return first, last

    def change(self, first: int, last: int, old: int, new: int) -> None:
        """Mark the pieces from ``first`` up to ``last`` that are in the state ``old`` as ``new``."""
        for piece in range(first, last):
            if self.state[piece] == old:
                self.state[piece] = new

    def mark_present(self, piece: int) -> None:
        """Mark a piece as present; the storage may evict others for it."""
        self.state[piece] = PRESENT
        self.storage.mark_present(piece)

    def forget(self, piece: int) -> None:
        """Mark a piece as missing that the storage has evicted."""
        self.state[piece] = MISSING

    def clear(self) -> None:
        """Forget all pieces, and begin the next generation of the file."""
        self.state = bytearray(self.count)
        self.generation += 1
