"""A repository of the Hub as a directory: its files are opened as if they were here, and read as they arrive.

Enters: a listing. Leaves: open files: of the cache, when they are known to be whole; on their way; or read by ranges and kept
nowhere. Never: a small file (a configuration, an index, a tokenizer) that is used before its hash was compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

from deltaweights.checkpoint.directory import Directory
from deltaweights.checkpoint.file_type import HEAD_BYTES
from deltaweights.checkpoint.files import InputFile, LocalFile, MemoryFile
from deltaweights.checkpoint.index import SUFFIXES
from deltaweights.checkpoint.safe_open import LeadsOutside
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.hub.access import Access, HubFile, Listing
from deltaweights.hub.arrival import Arrival
from deltaweights.hub.downloads import Downloads
from deltaweights.hub.files import ArrivingFile, VerifiedFile
from deltaweights.hub.hashed import Job
from deltaweights.hub.ids import HubId
from deltaweights.hub.notes import Notes
from deltaweights.hub.rooms import DiskRoom, MemoryRoom
from deltaweights.hub.store import Store
from deltaweights.hub.transfer import Damaged
from deltaweights.report import Report
from deltaweights.util.interruption import check

AHEAD, KEPT = 128, 256
"""Pieces in memory of one file that is streamed: how many are fetched before they are asked for, and how many are kept at most."""

MOST_IN_MEMORY = 64 * 1024 * 1024
"""Bytes of a small file that is not stored."""

BUSY = 0.5
"""Seconds between two looks at whether another process has finished a file."""


@dataclass(frozen=True)
class How:
    """How files are had: ``stream`` keeps nothing, ``recheck`` hashes what is in the cache once more."""

    stream: bool = False
    recheck: bool = False


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
        self._notes = Notes(report)
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
        return {"repo": self.listing.repo, "commit": self.listing.commit}

    def names(self) -> list[str]:
        return sorted(self._files)

    def has(self, name: str) -> bool:
        return name in self._files

    def file(self, name: str) -> HubFile:
        """Return what the Hub states of a file. Raises ``InputOutputError`` when there is none of this name."""
        if name not in self._files:
            raise InputOutputError("no such file", where=f"{self.id}/{name}")
        return self._files[name]

    def missing(self, names: Iterable[str]) -> list[HubFile]:
        """Return those of ``names`` that are not in the cache."""
        files = [self.file(name) for name in names]
        return [file for file in files if not self.store.has_blob(file.key)]

    def head(self, name: str) -> bytes:
        """See ``Directory``. Of a file that is not here, no more is fetched: it may be of the format that is not used."""
        file = self.file(name)
        with contextlib.suppress(LeadsOutside):
            fd = self.store.open_blob(file.key)
            if fd is not None:
                with contextlib.closing(LocalFile(self.store.blob(file.key), fd)) as local:
                    return local.read(0, min(local.size, HEAD_BYTES))
        if name not in self._heads:
            self._refuse_offline(file)
            job = self._downloads.add(self.listing, Arrival(file, MemoryRoom(1), ahead=0), None)
            arriving = ArrivingFile(self._downloads, job, self.path / name)
            self._heads[name] = arriving.read(0, min(file.size, HEAD_BYTES))
        return self._heads[name]

    def read(self, name: str, most: int) -> bytes:
        """See ``Directory``. What is too long is not even fetched."""
        file = self.file(name)
        if file.size > most:
            where, found = f"{self.id}/{name}", f"{file.size} bytes"
            remedy = "it is no such file: see what the repository has"
            raise MalformedInput(
                "too long for what it is", where=where, found=found, expected=f"at most {most}", remedy=remedy
            )
        return super().read(name, most)

    def open(self, name: str) -> InputFile:
        file, arriving = self.file(name), name.endswith(SUFFIXES)
        here = self._verified(file) if self.how.stream else None
        if self.how.stream and here is None:
            self._refuse_offline(file)
            return self._streamed(file) if arriving else self._in_memory(file)
        while here is None:
            job = self.fetch(file)
            if job is not None and arriving:
                return ArrivingFile(self._downloads, job, self.path / name)
            if job is not None:
                self._downloads.wait_until_verified(job)
            here = self._verified(file)
        self.store.link(self.listing.commit, file)
        return here

    def fetch(self, file: HubFile) -> Job | None:
        """Fetch a file into the cache from now on; return None when it is there, whole. Raises ``InputOutputError``."""
        said = False
        while True:
            blob = self.store.blob(file.key)
            job = self._downloads.job_for(blob)
            if job is not None and not job.verified:
                return job
            here = self._verified(file)
            if here is not None:
                here.close()
                return None
            self._refuse_offline(file)
            self.store.prepare()
            try:
                room = DiskRoom(self.store.incomplete(file.key), file.size)
            except BlockingIOError:
                if not said:
                    self._report.note(f"another process fetches {file.name}: waiting for it")
                    said = True
                self._downloads.raise_failed()  # that other process may wait for what this one has begun
                stopped = self._access.stop.wait(BUSY)
                check()
                if stopped:
                    raise InputOutputError("the download was stopped", where=file.name, remedy="run again") from None
                continue
            if self.store.has_blob(file.key):  # another process put it in place meanwhile
                room.discard()
                room.close()
                continue
            arrival = Arrival(file, room, room.here())
            self.fetched += file.size - arrival.arrived
            return self._downloads.add(self.listing, arrival, self.store, self._notes)

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
        found = _hash_of(file, [bytes(data)])
        if found != file.key:
            problem = "what arrived is not the file of the Hub"
            raise Damaged(problem, where=f"{self.id}/{file.name}", found=found, expected=file.key, remedy="run again")
        return MemoryFile(self.path / file.name, bytes(data))

    def _verified(self, file: HubFile) -> VerifiedFile | None:
        """Open the file in the cache, when it is there and whole; what is damaged is removed, unless it cannot be fetched again.

        What is looked at, hashed and read is one open file, whatever becomes of its name. A link out of the cache is as good as
        nothing: what it leads to may be a file of the user's that whoever made the link may not read, so not even its hash is said.
        """
        blob = self.store.blob(file.key)
        try:
            fd = self.store.open_blob(file.key)
        except LeadsOutside:
            problem = "damaged in the cache: a link out of it"
            if self._access.offline:
                raise Damaged(problem, where=blob, remedy="fetch it again, without --offline") from None
            self._report.warn(f"{blob}: {problem}: fetched again")
            return None
        if fd is None:
            return None
        local = VerifiedFile(blob, self.path / file.name, file.sha256, fd)
        try:
            note = self._notes.known(blob, file.key, local.status)
            local.arrival = note.arrival if note is not None else None
            if note is not None and note.holds and not self.how.recheck:
                return local
            self._report.note(f"checking {blob.name[:12]}, {file.name}, of the cache")
            found = _hash_of(file, local.chunks())
            local.check_unchanged()
            if found == file.key:
                self._notes.keep(blob, file.key, local.status, local.arrival)
                return local
        except BaseException:
            local.close()
            raise
        local.close()
        problem = f"sha256 is {found}, the Hub states {file.key}" if file.sha256 else f"git's hash is {found}"
        if self._access.offline:
            raise Damaged(f"damaged in the cache: {problem}", where=blob, remedy="fetch it again, without --offline")
        self._report.warn(f"{blob}: damaged in the cache: {problem}: fetched again")
        try:
            if blob.stat().st_ino == local.status.st_ino:  # not what another process has put in its place meanwhile
                blob.unlink()
        except FileNotFoundError:
            pass
        except OSError as error:  # or it would be found again and again
            raise InputOutputError.from_os(error, blob, "remove", "choose another cache with --cache-dir") from error
        return None


def _hash_of(file: HubFile, chunks: Iterable[bytes | memoryview]) -> str:
    """Return the hash by which the Hub knows a file, made of its content."""
    digest = file.new_hash()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
