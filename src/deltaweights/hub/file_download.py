"""One file on its way to the cache, hashed from its beginning on while its pieces come in any order.

Enters: an arrival. Leaves: its hash, once it is whole; the file under its final name. Never: a lock of its own, or a decision: the
scheduler's are both.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deltaweights.hub.piece_map import PieceMap
from deltaweights.hub.piece_storage import DiskPieces
from deltaweights.hub.repo_cache import RepoCache
from deltaweights.hub.transfer import Transfer
from deltaweights.hub.verified import VerificationRecords

if TYPE_CHECKING:
    from hashlib import _Hash


@dataclass(eq=False)
class FileDownload:
    """One file: its state, how it is fetched, and, where it is kept, what is hashed of it. Its scheduler's alone to change.

    ``attempts`` counts the times that it came with another hash than the Hub states, the last one ``found``; ``restarts`` how often
    it was begun anew from a server without ranges.
    """

    arrival: PieceMap
    transfer: Transfer
    store: RepoCache | None = None
    notes: VerificationRecords | None = None
    commit: str = ""
    hashed: int = 0
    attempts: int = 0
    restarts: int = 0
    found: str = ""
    verified: bool = False
    _digest: _Hash = field(init=False)

    def __post_init__(self) -> None:
        self._digest = self.arrival.file.new_hash()

    @property
    def path(self) -> Path | None:
        """The name under which the cache will have the file; None when it is kept nowhere."""
        return None if self.store is None else self.store.snapshot(self.commit) / self.arrival.file.name

    @property
    def ready(self) -> bool:
        """Whether the piece that is hashed next is here, or none is left."""
        if self.store is None or self.verified or self.arrival.failed is not None:
            return False
        return self.arrival.lacks(range(self.hashed, min(self.hashed + 1, self.arrival.count))) is None

    def hash_on(self, stop: threading.Event) -> str | None:
        """Hash what is here in order; return the hash at the end of the file, None before it. Raises ``InputOutputError``."""
        arrival, room = self.arrival, self.arrival.room
        buffer = memoryview(bytearray(room.piece))
        while self.hashed < arrival.count and self.ready and not stop.is_set():
            begin, end = arrival.extent(self.hashed, self.hashed + 1)
            room.get(buffer[: end - begin], begin)
            self._digest.update(buffer[: end - begin])
            self.hashed += 1
        return self._digest.hexdigest() if self.hashed == arrival.count else None

    def put_in_place(self) -> None:
        """Give the file, which has its hash, its final name. Raises ``InputOutputError``."""
        room, key = self.arrival.room, self.arrival.file.key
        if self.store is None or not isinstance(room, DiskPieces):
            return
        mark = room.mark
        room.publish(self.store.blob(key))
        self.store.link(self.commit, self.arrival.file)
        if self.notes is not None:
            self.notes.keep(self.store.blob(key), key, os.fstat(room.fd), mark)

    def begin_anew(self) -> None:
        """Forget what came, since it is damaged. Raises ``InputOutputError``."""
        room, arrival = self.arrival.room, self.arrival
        if isinstance(room, DiskPieces):
            room.clear()
        arrival.state = bytearray(arrival.count)
        arrival.generation += 1
        self.hashed, self._digest = 0, self.arrival.file.new_hash()

    def discard(self) -> None:
        """Remove what came. Raises ``OSError``."""
        if isinstance(self.arrival.room, DiskPieces):
            self.arrival.room.discard()
