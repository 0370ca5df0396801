"""A Hub repository as a directory whose files are read while they arrive; small ones only once their hash is verified."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable
from pathlib import Path, PurePath

from deltaweights.checkpoint.directory import Directory
from deltaweights.checkpoint.file_type import HEAD_BYTES
from deltaweights.checkpoint.files import InputFile, LocalFile, MemoryFile
from deltaweights.checkpoint.foreign.listing import FolderListing
from deltaweights.checkpoint.layout_names import SUFFIXES
from deltaweights.checkpoint.safe_open import LeadsOutside
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import InputOutputError, MalformedInput
from deltaweights.hub.access import Access
from deltaweights.hub.downloads import Downloads
from deltaweights.hub.file_download import FileDownload
from deltaweights.hub.files import AGAIN, DownloadingFile, VerifiedFile
from deltaweights.hub.ids import HubId
from deltaweights.hub.list_files import with_size
from deltaweights.hub.local_folder import LocalFolder
from deltaweights.hub.memory_pool import MOST_AHEAD
from deltaweights.hub.piece_map import PieceMap
from deltaweights.hub.piece_storage import DiskPieces
from deltaweights.hub.repo_cache import RepoCache, not_in_cache
from deltaweights.hub.repo_listing import HubFile, RepoListing, at_top
from deltaweights.hub.transfer import DamagedFile
from deltaweights.hub.verified import VerificationRecords
from deltaweights.report import Report
from deltaweights.util.interruption import check
from deltaweights.util.litter import is_litter

MAX_IN_MEMORY = 64 * 1024 * 1024  # bytes of a small file that is not stored


class HubDirectory(Directory):
    """The files of a listing but ``hidden`` endings; ``stream`` stores nothing, ``recheck`` hashes cached files again.

    Files are kept in the cache, or ``into`` a folder. With ``once``, a streamed file is forgotten when it is closed.
    """

    def __init__(
        self,
        access: Access,
        listing: RepoListing,
        downloads: Downloads,
        report: Report,
        hidden: tuple[str, ...] = (),
        *,
        stream: bool = False,
        recheck: bool = False,
        into: LocalFolder | None = None,
        once: bool = False,
    ) -> None:
        self.listing, self.stream, self._recheck, self.into = listing, stream, recheck, into
        self._shared = RepoCache.of(access.cache, listing.repo)
        self.cache = into or self._shared
        self.path, self.id = self.cache.snapshot(listing.commit), HubId(listing.repo, listing.commit)
        self._access, self._downloads, self._report = access, downloads, report
        self._records = VerificationRecords(report, access)
        shown = (name for name in listing.all_files if not name.endswith(hidden) and not is_litter(PurePath(name).name))
        self._all = self._files = {name: listing.all_files[name] for name in shown}
        self.fetched, self._once = 0, once  # bytes that were not in the cache when their files were opened
        self._streams: dict[str, FileDownload] = {}
        self._heads: dict[str, bytes] = {}
        self._unstated: set[str] = set()

    @property
    def origin(self) -> dict[str, str]:
        return {"repo": self.listing.repo, "commit": self.listing.commit}

    def names(self) -> list[str]:
        return sorted(at_top(self._files))

    def has(self, name: str) -> bool:
        return name in self._files and "/" not in name

    def tree(self) -> FolderListing:
        return self.listing.tree()

    @property
    def paths(self) -> list[str]:
        """The names of all files, sorted. Those in folders can be fetched, and are no part of a checkpoint."""
        return sorted(self._files)

    def file(self, name: str) -> HubFile:
        """Return what the Hub states of a file, also of one in folders. Raises ``InputOutputError`` when there is none."""
        if name not in self._files:
            raise InputOutputError("no such file", where=f"{self.id}/{name}", code=ErrorCode.NOT_FOUND)
        return self._files[name]

    def complete(self, names: Iterable[str]) -> None:
        """Ask for what the listing does not state of ``names`` in folders, of a mirror. Raises ``InputOutputError``."""
        for name in self.listing.bare.intersection(names):
            self._files[name] = with_size(self._access, self.id, self._files[name])

    def leave_out(self, names: Collection[str]) -> None:
        """Do as if these files, and no others, were not there."""
        self._files = {name: file for name, file in self._all.items() if name not in names}

    def missing(self, names: Iterable[str]) -> list[HubFile]:
        """Return those of ``names`` that are not in the cache."""
        files = [self.file(name) for name in names]
        return [file for file in files if not self.cache.has(self.listing.commit, file)]

    def to_fetch(self, missing: Iterable[HubFile]) -> list[HubFile]:
        """Return those of the ``missing`` files that are not to be copied from the cache."""
        return [file for file in missing if self.into is None or not self._shared.has(self.listing.commit, file)]

    def forget(self, names: Iterable[str]) -> None:
        """Remove files from the cache, or from the folder if they were downloaded there. Raises ``InputOutputError``."""
        for file in map(self.file, names):
            for cache in {self.cache, self._shared}:
                cache.forget(self.listing.commit, file)

    def head(self, name: str) -> bytes:
        # No more than this is fetched: the file may be of the format that is not used.
        file = self.file(name)
        with contextlib.suppress(LeadsOutside):
            found = self.cache.open(self.listing.commit, file)
            if found is not None:
                with contextlib.closing(LocalFile(*found)) as local:
                    return local.read(0, min(local.size, HEAD_BYTES))
        if name not in self._heads:
            self._refuse_offline(file)
            download = self._downloads.add(
                self.listing, PieceMap(file, self._downloads.pool.open(), read_ahead=0), None, None
            )
            head = DownloadingFile(self._downloads, download, self.path / name)
            self._heads[name] = head.read(0, min(file.size, HEAD_BYTES))
        return self._heads[name]

    def read(self, name: str, most: int) -> bytes:
        file = self.file(name)
        if file.size > most:  # not even fetched
            where, found, expected = f"{self.id}/{name}", f"{file.size} bytes", f"at most {most}"
            problem, remedy = "file is too long", "check that this is the right repository"
            raise MalformedInput(problem, where=where, found=found, expected=expected, remedy=remedy)
        return super().read(name, most)

    def open(self, name: str) -> InputFile:
        file, large = self.file(name), name.endswith(SUFFIXES)
        cached = self._open_verified(file) if self.stream else None
        if self.stream and cached is None:
            self._refuse_offline(file)
            return self._stream(file) if large else self._load(file)
        while cached is None:
            download = self.fetch(file)
            if download is not None and large:
                return DownloadingFile(self._downloads, download, self.path / name)
            if download is not None:
                self._downloads.wait_until_verified([download])
            cached = self._open_verified(file)
        self.cache.drop_leftovers(file.key)
        try:
            self.cache.link(self.listing.commit, file)
        except InputOutputError as error:  # it is read all the same: the cache may be another user's, or read-only
            self._report.note(f"{error.where}: {error.problem}: not linked into the snapshot")
        return cached

    def fetch(self, file: HubFile) -> FileDownload | None:
        """Start to download a file to the cache; return None when it is there already. Raises ``InputOutputError``."""
        announced = False
        while True:
            download = self._downloads.find(self.cache.place(file))
            if download is not None and not download.verified:
                return download
            cached = self._open_verified(file)
            if cached is not None:
                cached.close()
                self.cache.drop_leftovers(file.key)
                return None
            if self.into is not None and self._copied(file, self.into):
                continue
            self._refuse_offline(file)
            self.cache.create()
            self.cache.hold(self.listing.commit)
            try:
                storage = DiskPieces(self.cache.gathering(file), file.size)
            except BlockingIOError:
                if not announced:
                    self._report.note(f"another process is fetching {file.name}: waiting for it")
                    announced = True
                self._wait_for_other(file)
                continue
            if self.cache.has(self.listing.commit, file):  # another process put it in place meanwhile
                storage.discard()
                storage.close()
                continue
            try:
                pieces = PieceMap(file, storage, storage.resume())
            except BaseException:
                storage.close()  # else its lock lasts as long as the error, and a second try waits for it
                raise
            self.fetched += file.size - pieces.bytes_present
            return self._downloads.add(self.listing, pieces, self.cache, self._records)

    def _wait_for_other(self, file: HubFile) -> None:
        self._downloads.raise_failed()  # the other process may be waiting for a file that this one holds
        stopped = self._access.stop.wait(0.5)
        check()
        if stopped:
            raise InputOutputError("the download was stopped", where=file.name, remedy="run again") from None

    def _refuse_offline(self, file: HubFile) -> None:
        if self._access.offline:
            raise not_in_cache(f"{self.id}/{file.name}")

    def _stream(self, file: HubFile) -> InputFile:
        if self._once:
            pieces = PieceMap(file, self._downloads.pool.open(), read_ahead=MOST_AHEAD)
            download = self._downloads.add(self.listing, pieces, None, None)
            return DownloadingFile(self._downloads, download, self.path / file.name, once=True)
        if file.name not in self._streams:
            pieces = PieceMap(file, self._downloads.pool.open(), read_ahead=MOST_AHEAD)
            self._streams[file.name] = self._downloads.add(self.listing, pieces, None, None)
        return DownloadingFile(self._downloads, self._streams[file.name], self.path / file.name)

    def _load(self, file: HubFile) -> InputFile:
        where = f"{self.id}/{file.name}"
        if file.size > MAX_IN_MEMORY:
            raise InputOutputError("too large to be kept in memory", where=where, found=file.size)
        data = self._stream(file).read(0, file.size) if file.size else b""
        found = _hash_of(file, [data])
        if not file.accepts(found):
            raise DamagedFile("arrived damaged", where=where, found=found, expected=file.key, remedy=AGAIN)
        return MemoryFile(self.path / file.name, data)

    def _copied(self, file: HubFile, into: LocalFolder) -> bool:
        """Copy a file that the cache has ``into`` a folder; return whether it has it. Raises ``InputOutputError``."""
        cached = self._open_verified(file, self._shared)
        if cached is None:
            return False
        with contextlib.closing(cached):
            into.copy(file, cached)
        return True

    def _open_verified(self, file: HubFile, cache: RepoCache | None = None) -> LocalFile | None:
        """Open a cached file that has its hash, or of which none is stated anywhere. A damaged one is removed, or an error offline.

        One open file is examined, hashed and read, whatever happens to its name. A link out of the cache is ignored: its target
        may be a file that only this user can read, so not even its hash is reported.
        """
        cache = cache or self.cache
        blob = cache.place(file)
        try:
            found_at = cache.open(self.listing.commit, file)
        except LeadsOutside:
            self._report_damage(cache, blob, "a link out of it")
            return None
        if found_at is None:
            return None
        blob, fd = found_at
        if not file.has_stated_hash:
            return self._open_unstated(file, fd)
        local = VerifiedFile(blob, self.path / file.name, file.sha256, fd)
        try:
            record = self._records.find(blob, file.key, local.status)
            local.arrival = record.download_id if record is not None else None
            if record is not None and record.current and not self._recheck:
                return local
            self._report.note(f"checking {file.key[:12]}, {file.name}, {cache.kind}")
            found = _hash_of(file, local.chunks())
            local.check_unchanged()
            if found == file.key:
                self._records.add(blob, file.key, local.status, local.arrival)
                return local
        except BaseException:
            local.close()
            raise
        local.close()
        stated = f"sha256 is {found}, the Hub states {file.key}" if file.sha256 else f"git's hash is {found}"
        cache.refuse_other(file, local.status)
        self._report_damage(cache, blob, stated)
        cache.discard(blob, local.status)
        return None

    def _open_unstated(self, file: HubFile, fd: int) -> LocalFile:
        if file.name not in self._unstated:
            self._unstated.add(file.name)
            self._report.note(f"{self.path / file.name}: the cache states no hash of this file: used as it is")
        local = LocalFile(self.path / file.name, fd)
        local.has_stated_hash = False
        return local

    def _report_damage(self, cache: RepoCache, blob: Path, problem: str) -> None:
        problem = f"{cache.damage}: {problem}"
        if self._access.offline:
            raise DamagedFile(problem, where=blob, remedy="fetch it again, without --offline") from None
        self._report.warn(f"{blob}: {problem}: fetching it again")


def _hash_of(file: HubFile, chunks: Iterable[bytes | memoryview]) -> str:
    digest = file.new_hash()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
