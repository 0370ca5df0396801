"""Files of the Hub, opened: on their way, or in the cache.

Enters: what the scheduler fetches, or a blob. Leaves: ``InputFile``. Never: bytes of a file that was begun anew, given out as if
they were those of before.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deltaweights.checkpoint.files import InputFile, LocalFile
from deltaweights.errors import InputOutputError
from deltaweights.hub.downloads import Downloads
from deltaweights.hub.hashed import Job
from deltaweights.hub.transfer import Damaged

AGAIN = "run again"
"""What is left to do where nobody begins anew by himself."""


class Refetched(Damaged):
    """What was read of a file was damaged on its way, and is fetched anew: what was made of it is worth nothing."""

    @classmethod
    def of(cls, job: Job) -> Refetched:
        """Return that it happened to this file."""
        problem, expected = "was damaged on its way, and is fetched again", job.arrival.file.key
        return cls(problem, where=job.path, found=f"hash {job.found}", expected=expected, remedy=AGAIN)


class ArrivingFile(InputFile):
    """A file on its way."""

    def __init__(self, downloads: Downloads, job: Job, path: Path) -> None:
        self.path, self.size = path, job.arrival.file.size
        self.verified_sha256 = job.arrival.file.sha256 if job.store is not None else None
        self.streamed = job.store is None
        self._downloads, self._job = downloads, job
        self._generation, self.arrival = downloads.state_of(job)

    def read_into(self, out: memoryview, offset: int) -> None:
        if offset + len(out) > self.size:
            raise InputOutputError(
                "ends too early", where=self.path, found=f"{self.size} bytes", remedy="fetch it again"
            )
        try:
            self._downloads.read(self._job, out, offset)
        finally:  # also where reading failed, since the file was emptied meanwhile
            self._check_generation()

    def prefetch(self, places: Iterable[tuple[int, int]]) -> None:
        inside = [(offset, min(length, self.size - offset)) for offset, length in places if 0 <= offset < self.size]
        self._downloads.expect(self._job, inside)

    @property
    def pending_bytes(self) -> int:
        return self.size - self._job.arrival.arrived if self._job.store is not None else 0

    def check_unchanged(self) -> None:
        """See ``InputFile``: waits until the file is whole and its hash was compared. Raises ``Refetched``."""
        if self._job.store is not None:
            self._downloads.wait_until_verified(self._job)
        self._check_generation()

    def _check_generation(self) -> None:
        if self._job.arrival.generation != self._generation:
            raise Refetched.of(self._job)

    def close(self) -> None:
        """See ``InputFile``: the scheduler holds it."""


class VerifiedFile(LocalFile):
    """A file of the cache that has the hash that the Hub states; ``name`` is its place in a snapshot, for messages.

    ``fd`` is the blob, opened, if it was.
    """

    def __init__(self, blob: Path, name: Path, sha256: str | None, fd: int | None = None) -> None:
        super().__init__(blob, fd)
        self.rely_on_hash()
        self.path, self.verified_sha256 = name, sha256
