"""A repository of the Hub as a directory: its files are opened as if they were here, and read as they arrive.

Enters: a listing. Leaves: open files: of the cache, when they are known to be whole; on their way; or read by ranges and kept
nowhere. Never: a small file (a configuration, an index, a tokenizer) that is used before its hash was compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deltaweights.checkpoint.directory import Directory, LocalDirectory
from deltaweights.checkpoint.files import InputFile, LocalFile
from deltaweights.checkpoint.index import SUFFIXES
from deltaweights.checkpoint.sniff import HEAD_BYTES
from deltaweights.errors import InputOutputError
from deltaweights.hub.access import Access, HubFile, Listing
from deltaweights.hub.arrival import Arrival, DiskRoom, MemoryRoom
from deltaweights.hub.downloads import Damaged, Downloads
from deltaweights.hub.hashed import Job
from deltaweights.hub.ids import HubId
from deltaweights.hub.store import Store
from deltaweights.report import Report

AHEAD, KEPT = 128, 256
"""Pieces in memory of one file that is streamed: how many are fetched before they are asked for, and how many are kept at most."""

MOST_IN_MEMORY = 64 * 1024 * 1024
"""Bytes of a small file that is not stored."""

BUSY = 0.5
"""Seconds between two looks at whether another process has finished a file."""


class Refetched(Damaged):
    """What was read of a file was damaged on its way, and is fetched anew: what was made of it is worth nothing."""

    @classmethod
    def of(cls, job: Job) -> Refetched:
        """Return that it happened to this file."""
        problem, expected = "was damaged on its way, and is fetched again", job.arrival.file.key
        return cls(problem, where=job.path, found=f"hash {job.found}", expected=expected, remedy="run again")


@dataclass(frozen=True)
class How:
    """How files are had: ``stream`` keeps nothing, ``recheck`` hashes what is in the cache once more."""

    stream: bool = False
    recheck: bool = False


class ArrivingFile(InputFile):
    """A file on its way."""

    def __init__(self, downloads: Downloads, job: Job, path: Path) -> None:
        self.path, self.size = path, job.arrival.file.size
        self.verified_sha256 = job.arrival.file.sha256 if job.store is not None else None
        self.streamed = job.store is None
        self.arrival = job.arrival.room.mark if isinstance(job.arrival.room, DiskRoom) else None
        self._downloads, self._job = downloads, job
        self._generation = job.arrival.generation

    def read_into(self, out: memoryview, offset: int) -> None:
        """See ``InputFile``."""
        if offset + len(out) > self.size:
            raise InputOutputError(
                "ends too early", where=self.path, found=f"{self.size} bytes", remedy="fetch it again"
            )
        self._downloads.read(self._job, out, offset)
        self._check_generation()

    def expect(self, places: Iterable[tuple[int, int]]) -> None:
        """See ``InputFile``."""
        inside = [(offset, min(length, self.size - offset)) for offset, length in places if 0 <= offset < self.size]
        self._downloads.expect(self._job, inside)

    @property
    def to_come(self) -> int:
        """See ``InputFile``."""
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
    """A file of the cache that was found to have the hash that the Hub states."""

    def __init__(self, path: Path, sha256: str | None, arrival: str | None) -> None:
        super().__init__(path)
        self.verified_sha256, self.arrival = sha256, arrival


class MemoryFile(InputFile):
    """A small file that is kept nowhere."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path, self.size, self._data = path, len(data), data

    def read_into(self, out: memoryview, offset: int) -> None:
        """See ``InputFile``."""
        out[:] = self._data[offset : offset + len(out)]

    def check_unchanged(self) -> None:
        """See ``InputFile``: nobody can change it."""

    def close(self) -> None:
        """See ``InputFile``: holds nothing."""


class HubDirectory(Directory):
    """The files of a listing, but for those whose names end as one of ``hidden``; ``path`` is its snapshot in the cache.

    ``fetched`` counts the bytes that were not in the cache when their files were asked for.
    """

    def __init__(
        self,
        access: Access,
        listing: Listing,
        downloads: Downloads,
        how: How,
        report: Report,
        hidden: tuple[str, ...] = (),
    ) -> None:
        self.listing, self.how = listing, how
        self.store = Store.of(access.cache, listing.repo)
        self.path = self.store.snapshot(listing.commit)
        self._access, self._downloads, self._report = access, downloads, report
        self._files = {name: file for name, file in listing.files.items() if not name.endswith(hidden)}
        self.fetched = 0
        self._open: dict[str, Job] = {}
        self._heads: dict[str, bytes] = {}

    @property
    def id(self) -> HubId:
        """The repository and its commit."""
        return HubId(self.listing.repo, self.listing.commit)

    @property
    def origin(self) -> dict[str, str]:
        """See ``Directory``."""
        return {"repo": self.listing.repo, "commit": self.listing.commit}

    def names(self) -> list[str]:
        """See ``Directory``."""
        return sorted(self._files)

    def has(self, name: str) -> bool:
        """See ``Directory``."""
        return name in self._files

    def file(self, name: str) -> HubFile:
        """Return what the Hub states of a file. Raises ``InputOutputError`` when there is none of this name."""
        if name not in self._files:
            raise InputOutputError("no such file", where=f"{self.id}/{name}")
        return self._files[name]

    def missing(self, names: Iterable[str]) -> list[HubFile]:
        """Return those of ``names`` that are not in the cache."""
        files = [self.file(name) for name in names]
        return [file for file in files if not self.store.blob(file.key).is_file()]

    def head(self, name: str) -> bytes:
        """See ``Directory``. Of a file that is not here, no more is fetched: it may be of the format that is not used."""
        file = self.file(name)
        blob = self.store.blob(file.key)
        if blob.is_file():
            return LocalDirectory(blob.parent).head(blob.name)
        if name not in self._heads:
            self._refuse_offline(file)
            job = self._downloads.add(self.listing, Arrival(file, MemoryRoom(1), ahead=0), None)
            arriving = ArrivingFile(self._downloads, job, self.path / name)
            self._heads[name] = arriving.read(0, min(file.size, HEAD_BYTES))
        return self._heads[name]

    def open(self, name: str) -> InputFile:
        """See ``Directory``."""
        file, arriving = self.file(name), name.endswith(SUFFIXES)
        if self.how.stream and not self._is_here(file):
            self._refuse_offline(file)
            return self._streamed(file) if arriving else self._in_memory(file)
        job = self.fetch(file)
        if job is not None and arriving:
            return ArrivingFile(self._downloads, job, self.path / name)
        if job is not None:
            self._downloads.wait_until_verified(job)
        self.store.link(self.listing.commit, file)
        return VerifiedFile(self.path / name, file.sha256, self.store.arrival(file.key))

    def fetch(self, file: HubFile) -> Job | None:
        """Fetch a file into the cache from now on; return None when it is there, whole. Raises ``InputOutputError``."""
        said = False
        while True:
            blob = self.store.blob(file.key)
            job = self._downloads.job_for(blob)
            if job is not None and not job.verified:
                return job
            if self._is_here(file):
                return None
            self._refuse_offline(file)
            self.store.prepare()
            try:
                room = DiskRoom(self.store.incomplete(file.key), file.size)
            except BlockingIOError:
                if not said:
                    self._report.note(f"another process fetches {file.name}: waiting for it")
                    said = True
                if self._access.stop.wait(BUSY):
                    raise InputOutputError("the download was stopped", where=file.name) from None
                continue
            if blob.is_file():  # another process put it in place meanwhile
                room.discard()
                room.close()
                continue
            arrival = Arrival(file, room, room.here())
            self.fetched += file.size - arrival.arrived
            return self._downloads.add(self.listing, arrival, self.store)

    def _refuse_offline(self, file: HubFile) -> None:
        if self._access.offline:
            remedy = "leave --offline out, or fetch it first: deltaweights download"
            raise InputOutputError("not in the cache", where=f"{self.id}/{file.name}", remedy=remedy)

    def _streamed(self, file: HubFile) -> InputFile:
        if file.name not in self._open:
            arrival = Arrival(file, MemoryRoom(KEPT), ahead=AHEAD)
            self._open[file.name] = self._downloads.add(self.listing, arrival, None)
        return ArrivingFile(self._downloads, self._open[file.name], self.path / file.name)

    def _in_memory(self, file: HubFile) -> InputFile:
        if file.size > MOST_IN_MEMORY:
            raise InputOutputError("too large to be kept in memory", where=f"{self.id}/{file.name}", found=file.size)
        data = bytearray(file.size)
        if file.size:
            self._streamed(file).read_into(memoryview(data), 0)
        found = _hash_of(file, bytes(data))
        if found != file.key:
            problem = "what arrived is not the file of the Hub"
            raise Damaged(problem, where=f"{self.id}/{file.name}", found=found, expected=file.key, remedy="run again")
        return MemoryFile(self.path / file.name, bytes(data))

    def _is_here(self, file: HubFile) -> bool:
        """Tell whether the cache has the file, whole; what it has damaged is removed, unless it cannot be fetched again."""
        blob = self.store.blob(file.key)
        if not blob.is_file():
            return False
        if self.store.is_verified(file.key) and not self.how.recheck:
            return True
        self._report.note(f"checking {blob.name[:12]}, {file.name}, of the cache")
        found = _hash_of(file, blob)
        if found == file.key:
            self.store.keep_verified(file.key)
            return True
        problem = f"sha256 is {found}, the Hub states {file.key}" if file.sha256 else f"git's hash is {found}"
        if self._access.offline:
            raise Damaged(f"damaged in the cache: {problem}", where=blob, remedy="fetch it again, without --offline")
        self._report.warn(f"{blob}: damaged in the cache: {problem}: fetched again")
        blob.unlink(missing_ok=True)
        return False


def _hash_of(file: HubFile, content: bytes | Path) -> str:
    """Return the hash by which the Hub knows a file, made of its content. Raises ``InputOutputError``."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    if isinstance(content, bytes):
        digest.update(content)
        return digest.hexdigest()
    local = LocalFile(content)
    try:
        for chunk in local.chunks():
            digest.update(chunk)
    finally:
        local.close()
    return digest.hexdigest()
