"""One file being downloaded, hashed in order while pieces arrive in any order; ``Downloads`` guards this with its lock."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deltaweights.errors import wrap_os_errors
from deltaweights.hub.piece_map import PieceMap
from deltaweights.hub.piece_storage import REQUESTED, DiskPieces
from deltaweights.hub.repo_cache import RepoCache
from deltaweights.hub.transfer import DamagedFile, Transfer
from deltaweights.hub.verified import VerificationRecords

if TYPE_CHECKING:
    from hashlib import _Hash


@dataclass(eq=False)
class FileDownload:
    """One file; ``damaged``: it arrived once, with the hash ``found``; ``restarts`` counts those from servers without ranges."""

    pieces: PieceMap
    transfer: Transfer
    cache: RepoCache | None = None
    records: VerificationRecords | None = None
    commit: str = ""
    hashed: int = 0
    damaged: bool = False
    restarts: int = 0
    found: str = ""
    verified: bool = False
    _digest: _Hash = field(init=False)

    def __post_init__(self) -> None:
        self._digest = self.pieces.file.new_hash()

    @property
    def disk(self) -> DiskPieces | None:
        """The storage of the pieces, if it is on disk."""
        return self.pieces.storage if isinstance(self.pieces.storage, DiskPieces) else None

    @property
    def path(self) -> Path | None:
        """Where the cache will have the file; None when it is not kept."""
        return None if self.cache is None else self.cache.snapshot(self.commit) / self.pieces.file.name

    @property
    def ready(self) -> bool:
        """Whether the next piece to hash is present, or none is left."""
        if self.cache is None or self.verified or self.pieces.failed is not None:
            return False
        return self.pieces.first_absent(range(self.hashed, min(self.hashed + 1, self.pieces.count))) is None

    def receive(self, first: int, last: int, arrived: Callable[[int, int], bool]) -> None:
        """Fetch the pieces from ``first`` up to ``last``; ``arrived(piece, generation)`` takes each, False ends it.

        Raises what ``Transfer.read`` and the storage raise.
        """
        pieces, generation = self.pieces, self.pieces.generation
        at, end = pieces.extent(first, last)
        piece = first
        for chunk in self.transfer.read(at, end):
            data = memoryview(chunk)
            while data:
                _, until = pieces.extent(piece, piece + 1)
                part, data = data[: until - at], data[until - at :]
                if not pieces.in_order or pieces.state[piece] == REQUESTED:
                    pieces.storage.put(part, at)
                at += len(part)
                if at == until:
                    if not arrived(piece, generation):
                        return
                    piece += 1

    def hash_on(self, stop: threading.Event) -> str | None:
        """Hash the pieces that are present, in order; return the hash at the end of the file. Raises ``InputOutputError``."""
        pieces, storage = self.pieces, self.pieces.storage
        buffer = memoryview(bytearray(storage.piece_size))
        while self.hashed < pieces.count and self.ready and not stop.is_set():
            begin, end = pieces.extent(self.hashed, self.hashed + 1)
            storage.get(buffer[: end - begin], begin)
            self._digest.update(buffer[: end - begin])
            self.hashed += 1
        return self._digest.hexdigest() if self.hashed == pieces.count else None

    def publish(self) -> None:
        """Give the verified file its final name. Raises ``InputOutputError``."""
        disk, file = self.disk, self.pieces.file
        if self.cache is None or disk is None:
            return
        download_id = disk.download_id
        self.cache.make_way(file)
        where = self.cache.place(file)
        with wrap_os_errors(where, "put in place"), self.cache.folder_of(where, create=True) as folder:
            disk.publish(where, folder)
        self.cache.link(self.commit, file)
        if self.records is not None:
            self.records.add(self.cache.place(file), file.key, os.fstat(disk.fd), download_id)

    def refuse_damage(self, found: str) -> str:
        """Return what to say of a file that arrived damaged, with the hash ``found``. Raises ``DamagedFile`` the second time."""
        key = self.pieces.file.key
        if not self.damaged:
            return f"{self.path}: the download has hash {found}, the Hub states {key}: downloading it again"
        if self.disk is not None:
            self.disk.discard()
        problem, remedy = "downloaded twice, damaged both times", "try again later, or from another network"
        raise DamagedFile(problem, where=self.path, found=f"hash {found}", expected=key, remedy=remedy)

    def restart(self) -> None:
        """Drop what arrived, since it is damaged. Raises ``InputOutputError``."""
        if self.disk is not None:
            self.disk.clear()
        self.pieces.clear()
        self.hashed, self._digest = 0, self.pieces.file.new_hash()
