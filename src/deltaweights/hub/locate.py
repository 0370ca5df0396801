"""Finds the checkpoints that a user names: local paths, or Hub repositories that are downloaded while they are read.

Downloads are listed, and checked against the free disk space, before they start.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from deltaweights.checkpoint.companions import COPIED, LEGAL, README, belongs
from deltaweights.checkpoint.directory import Directory
from deltaweights.checkpoint.index import read_index
from deltaweights.checkpoint.layout import find_main_file
from deltaweights.checkpoint.layout_names import META_PART, PARAMS, SUFFIXES
from deltaweights.checkpoint.look_around import explain
from deltaweights.checkpoint.projector import FILE as PROJECTOR
from deltaweights.error_codes import ErrorCode
from deltaweights.errors import InputOutputError, MalformedInput, Mismatch
from deltaweights.hub.access import configured_access
from deltaweights.hub.connections import CONNECTIONS
from deltaweights.hub.directory import HubDirectory
from deltaweights.hub.downloads import Downloads
from deltaweights.hub.files import Refetched
from deltaweights.hub.ids import HubId, ModelLocation, ModelSource, model_source
from deltaweights.hub.list_files import list_files
from deltaweights.hub.local_folder import LocalFolder
from deltaweights.hub.repo_cache import RepoCache, not_in_cache
from deltaweights.hub.repo_listing import RepoListing
from deltaweights.hub.verified import VerificationRecords
from deltaweights.report import Report
from deltaweights.util.interruption import GO_ON, Interrupted
from deltaweights.util.sizes import human_bytes
from deltaweights.util.text import counted

MAX_TAKEN_ALONG = 64 * 1024 * 1024  # bytes of a file that nobody may read: a licence, a card, a manifest

SLACK = 16 * 1024 * 1024  # bytes kept free in the cache beyond what is downloaded


@dataclass(frozen=True)
class HubOptions:
    """How to use the Hub; None stands for the environment's setting, as the ``hf`` command reads it."""

    token: str | None = field(default=None, repr=False)
    cache_dir: Path | None = None
    offline: bool = False
    stream: bool = False
    recheck: bool = False
    max_workers: int = CONNECTIONS


class Hub:
    """Opens repositories, and downloads their files until it is closed."""

    def __init__(self, options: HubOptions, report: Report) -> None:
        token, cache, offline = options.token, options.cache_dir, options.offline
        self._access = configured_access(token=token, cache=cache, offline=offline, note=report.note)
        self._options, self._report, self._records = options, report, VerificationRecords(report)
        self.downloads = Downloads(self._access, report.warn, options.max_workers)
        self._reserved = 0
        self._opened: list[tuple[HubId, HubDirectory]] = []
        self._used: dict[HubDirectory, Sequence[str]] = {}

    def open(
        self, wanted: HubId, hidden: Sequence[str] = (), into: LocalFolder | None = None, *, once: bool = False
    ) -> HubDirectory:
        """Return the directory of ``wanted``, without files whose names end with one of ``hidden``.

        Files are kept in the cache, or ``into`` a folder; with ``once``, those of a stream only until they are closed. Raises
        ``InputOutputError``.
        """
        listing = self._listing(wanted)
        stream, recheck, said = self._options.stream, self._options.recheck, self._report
        directory = HubDirectory(
            self._access,
            listing,
            self.downloads,
            said,
            tuple(hidden),
            stream=stream,
            recheck=recheck,
            into=into,
            once=once,
        )
        self._opened.append((wanted, directory))
        return directory

    def _listing(self, wanted: HubId) -> RepoListing:
        try:
            return self._find(wanted)
        except InputOutputError:
            if Path(wanted.repo).parent.is_dir():  # ORG is a folder here: the path was misspelt, perhaps
                self._report.note(f"{wanted.repo} was taken for an id of the Hub, since there is no such path here")
            raise

    def _find(self, wanted: HubId) -> RepoListing:
        if self._access.offline:
            cached = RepoCache.of(self._access.cache, wanted.repo).listing(wanted)
            if cached is None:
                raise not_in_cache(str(wanted), self._access.cache)
            return self._records.with_stated_hashes(cached)
        listing = list_files(self._access, wanted)
        self._records.add_listing(listing)
        return listing

    def announce(self, directory: HubDirectory, names: Sequence[str], *, dry_run: bool = False) -> None:
        """Report which files are used and how much is to be downloaded. Raises ``InputOutputError`` when it does not fit."""
        self._used[directory] = names
        missing = directory.missing(names)
        fetched = directory.to_fetch(missing)
        begun = sum(_bytes_on_disk(directory.cache.gathering(file)) for file in missing)
        total, to_fetch = sum(directory.file(name).size for name in names), sum(file.size for file in fetched) - begun
        what = "read by ranges, and not kept" if self._options.stream and not dry_run else "to fetch"
        files = f"{counted(len(names), 'file')}, {human_bytes(total)}; {human_bytes(max(0, to_fetch))} {what}"
        self._report.note(f"{directory.id}: {files}")
        for file in fetched:
            self._report.note(f"  {human_bytes(file.size):>9}  {file.name}")
        unstated = [name for name in names if not directory.file(name).has_stated_hash]
        if unstated:
            what = f"{counted(len(unstated), 'file')} of {len(names)}, such as {unstated[0]}"
            self._report.warn(f"{directory.id}: hashes not stated: {what}: nothing shows whether they arrive undamaged")
        if not missing or self._options.stream:
            return
        directory.cache.create()
        self._reserved += sum(file.size for file in missing) - begun
        needed, free = self._reserved + SLACK, shutil.disk_usage(directory.cache.root).free
        if free < needed:
            remedy = (
                "make room, choose another place with --cache-dir, or keep nothing: --stream, where the command has it"
            )
            if directory.into is not None:
                remedy = "make room, or choose a folder on another disk with --local-dir"
            raise InputOutputError(
                "not enough free disk for the download",
                where=directory.cache.root,
                found=f"{human_bytes(free)} free",
                expected=human_bytes(needed),
                remedy=remedy,
                code=ErrorCode.DISK_FULL,
            )

    @contextmanager
    def showing_progress(self) -> Iterator[None]:
        """Report how much of what was announced has arrived, whenever the main thread waits for some of it."""
        missing = [(directory, file) for directory, names in self._used.items() for file in directory.missing(names)]
        total = sum(file.size for _, file in missing)
        if not total or self._options.stream:
            yield
            return
        begun = min(total, sum(_bytes_on_disk(directory.cache.gathering(file)) for directory, file in missing))
        self._report.begin("fetching", total)
        self._report.resumed(begun)
        main = threading.main_thread()

        def show() -> None:
            if threading.current_thread() is main:  # reports are the main thread's
                self._report.progress(min(total, max(begun, self.downloads.bytes_present)))

        self.downloads.tick = show
        try:
            yield
        except Interrupted as error:
            raise _keeping(error, max(begun, self.downloads.bytes_present), total) from None
        finally:
            self.downloads.tick = lambda: None
            self._report.end()

    def fetch(self, chosen: Sequence[tuple[HubDirectory, Sequence[str]]]) -> None:
        """Download files into the cache, and return when all are verified. Raises ``InputOutputError``."""
        files = [(directory, directory.file(name)) for directory, names in chosen for name in names]
        started = (directory.fetch(file) for directory, file in files)
        downloads = list(dict.fromkeys(download for download in started if download is not None))

        def present() -> int:
            return sum(download.pieces.bytes_present for download in downloads)

        total = sum(download.pieces.file.size for download in downloads)
        self._report.begin("fetching", total)
        self._report.resumed(present())
        try:
            self.downloads.wait_until_verified(downloads, lambda: self._report.progress(present()))
        except Interrupted as error:
            raise _keeping(error, present(), total) from None
        finally:
            self._report.end()
        for directory, file in files:
            directory.cache.link(directory.listing.commit, file)

    def fetch_companions(self) -> None:
        """Download what a run announced and did not read, such as manifests, and the base's tokenizer beside that of the delta.

        Else the cache would have a commit of which files are missing, and the same run with --offline would refuse it.
        """
        if self._options.stream or self._access.offline:
            return
        chosen = []
        for directory, names in self._used.items():
            missing = directory.missing(names)
            if not any(file.name.endswith(SUFFIXES) for file in missing):
                chosen.append((directory, [file.name for file in missing if file.size <= MAX_TAKEN_ALONG]))
        if any(names for _, names in chosen):
            self.fetch(chosen)

    def recheck(self, error: MalformedInput) -> None:
        """Wait for all hashes: a file that seems malformed may have arrived damaged. Raises ``Refetched`` if so."""
        if self.downloads.any_unverified:
            self._report.note(f"{error}: waiting for the complete file to see whether it only arrived damaged")
        damaged = self.downloads.first_damaged()
        if damaged is not None:
            raise Refetched(damaged) from error

    def close(self) -> None:
        """End all connections. A branch's commit is recorded for offline use once all used files are cached."""
        self.downloads.close()
        for wanted, directory in self._opened:
            used = self._used.get(directory)
            kept = directory.into is None and not self._access.offline and not self._options.stream
            if used and kept and not directory.missing(used):
                directory.cache.set_ref(wanted, directory.listing.commit)


def _keeping(error: Interrupted, present: int, total: int) -> Interrupted:
    """Return the interruption with how much of what was to be fetched is kept for the next run."""
    kept = f"{human_bytes(min(present, total))} of {human_bytes(total)} fetched and kept"
    return Interrupted(error.number, f"{kept}; {error.remedy or GO_ON}")


def _bytes_on_disk(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_blocks * 512
    return 0


def needed_files(directory: Directory, role: str, *, keep: bool = False) -> list[str]:
    """Return the names of a checkpoint's weights, index and companion files; with ``keep``, of all files that belong to it.

    Raises ``MalformedInput`` without weights.
    """
    start, names = find_main_file(directory, role).name, directory.names()
    used = {start, *(name for name in names if name in COPIED or LEGAL.fullmatch(name) or name in {README, PROJECTOR})}
    if keep:
        used |= set(filter(belongs, names))
    if start == PARAMS:
        used |= {name for name in names if META_PART.fullmatch(name)}
    elif start.endswith(".index.json"):
        index = read_index(directory, start)
        index.refuse_missing(directory)
        used |= set(index.shards)
    return sorted(used)


@contextmanager
def located(
    given: Sequence[tuple[str, ModelLocation]], options: HubOptions | None, report: Report, *, keep: bool = False
) -> Iterator[list[Path | HubDirectory]]:
    """Yield where each checkpoint is, given its role and location. Nothing of the Hub is loaded when all are paths.

    What was announced is in the cache at the end, unless the weights are not; with ``keep``, that is all that belongs to the
    checkpoints, whoever reads it: proofs, licences, cards.
    Raises ``UsageError``, ``MalformedInput`` and ``InputOutputError``.
    """
    sources = [place if isinstance(place, ModelSource) else model_source(place) for _, place in given]
    if not any(sources):
        yield [Path(place) for _, place in given if not isinstance(place, ModelSource)]
        return
    hub = Hub(options or HubOptions(), report)
    try:
        places: list[Path | HubDirectory] = []
        for (role, place), source in zip(given, sources, strict=True):
            if source is not None:
                directory = hub.open(source.id, source.hidden)
                try:
                    needed = needed_files(directory, role, keep=keep)
                except MalformedInput as error:
                    raise explain(directory, error) from error.__cause__
                hub.announce(directory, needed)
                places.append(directory)
            elif not isinstance(place, ModelSource):
                places.append(Path(place))
        with hub.showing_progress():
            yield places
        hub.fetch_companions()
    except MalformedInput as error:
        hub.recheck(error)
        raise
    except Mismatch:  # a flipped bit may turn one name into another: the next run must not start from it
        hub.close()
        hub.downloads.forget_unverified()
        raise
    finally:
        hub.close()
