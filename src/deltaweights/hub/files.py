"""Hub files as ``InputFile``: while they are downloaded, or verified in the cache."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deltaweights.checkpoint.files import InputFile, LocalFile
from deltaweights.errors import InputOutputError
from deltaweights.hub.downloads import Downloads
from deltaweights.hub.file_download import FileDownload
from deltaweights.hub.transfer import DamagedFile

AGAIN = "run again; if it stays so, something between here and the Hub changes what comes"
"""Unless the caller starts over by itself."""


class Refetched(DamagedFile):
    """What was read of a file arrived damaged, and is downloaded again: results made of it must be discarded."""

    def __init__(self, download: FileDownload) -> None:
        problem, found = "arrived damaged, and is downloaded again", f"hash {download.found}"
        super().__init__(problem, where=download.path, found=found, expected=download.pieces.file.key, remedy=AGAIN)

    def twice(self) -> DamagedFile:
        """Return the error for a file that arrived damaged after this one was started over, too."""
        problem, remedy = "downloaded twice, damaged both times", "try again later, or from another network"
        return DamagedFile(problem, where=self.where, found=self.found, expected=self.expected, remedy=remedy)


class DownloadingFile(InputFile):
    """A file that is being downloaded."""

    def __init__(self, downloads: Downloads, download: FileDownload, path: Path, *, once: bool = False) -> None:
        self.path, self.size = path, download.pieces.file.size
        self.verified_sha256 = download.pieces.file.sha256 if download.cache is not None else None
        self.has_stated_hash = download.pieces.file.has_stated_hash
        self.streamed = download.cache is None
        self._downloads, self._download, self._once = downloads, download, once
        self._generation, self.arrival = downloads.state_of(download)

    def read_into(self, out: memoryview, offset: int) -> None:
        if offset + len(out) > self.size:
            found, remedy = f"{self.size} bytes", "fetch it again"
            raise InputOutputError("ends too early", where=self.path, found=found, remedy=remedy)
        try:
            self._downloads.read(self._download, out, offset)
        finally:  # even when reading failed, since the file was emptied meanwhile
            self._check_generation()

    def prefetch(self, places: Iterable[tuple[int, int]]) -> None:
        inside = [(offset, min(length, self.size - offset)) for offset, length in places if 0 <= offset < self.size]
        self._downloads.expect(self._download, inside)

    @property
    def pending_bytes(self) -> int:
        return 0 if self.streamed else self.size - self._download.pieces.bytes_present

    def check_unchanged(self) -> None:
        """Wait until the file is complete and its hash verified. Raises ``Refetched``."""
        if not self.streamed:
            self._downloads.wait_until_verified([self._download])
        self._check_generation()

    def _check_generation(self) -> None:
        if self._download.pieces.generation != self._generation:
            raise Refetched(self._download)

    def close(self) -> None:
        """Free the memory of a file that is read once; ``Downloads`` closes the others."""
        if self._once:
            self._downloads.drop(self._download)


class VerifiedFile(LocalFile):
    """A cached file that has the hash the Hub states; ``name`` is its place in a snapshot, for messages."""

    def __init__(self, blob: Path, name: Path, sha256: str | None, fd: int | None = None) -> None:
        super().__init__(blob, fd)
        self.rely_on_hash()
        self.path, self.verified_sha256 = name, sha256
