"""From what a user gave for a checkpoint to where its bytes are: a path of this machine, or a repository of the Hub.

Enters: paths, ids, and options. Leaves: paths, and directories whose files arrive while they are read. Never: a download before its
size is said and known to fit on the disk.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deltaweights.checkpoint.companions import COPIED, LEGAL, README
from deltaweights.checkpoint.directory import Directory
from deltaweights.checkpoint.index import read_index
from deltaweights.checkpoint.layout import META_PART, PARAMS, find_main_file
from deltaweights.checkpoint.projector import FILE as PROJECTOR
from deltaweights.errors import InputOutputError, MalformedInput, Mismatch
from deltaweights.hub.access import Access, Listing, access
from deltaweights.hub.directory import How, HubDirectory
from deltaweights.hub.downloads import Downloads
from deltaweights.hub.files import Refetched
from deltaweights.hub.ids import Given, HubId, PathLike, Source, hub_id
from deltaweights.hub.notes import Notes
from deltaweights.hub.store import Store
from deltaweights.report import Report
from deltaweights.util.sizes import human_bytes
from deltaweights.util.text import counted

SLACK = 16 * 1024 * 1024
"""Bytes kept free in the cache beyond what is fetched."""


@dataclass(frozen=True)
class HubOptions:
    """How to use the Hub: what is None is the environment's, as the ``hf`` command reads it."""

    token: str | None = field(default=None, repr=False)
    cache_dir: Path | None = None
    offline: bool = False
    stream: bool = False
    recheck: bool = False


class Hub:
    """Opens repositories; what they are read from arrives until it is closed."""

    def __init__(self, options: HubOptions, report: Report) -> None:
        self._access: Access = access(
            token=options.token, cache=options.cache_dir, offline=options.offline, note=report.note
        )
        self._how, self._report, self._notes = How(options.stream, options.recheck), report, Notes(report)
        self._downloads = Downloads(self._access, report.warn)
        self._promised = 0
        self._opened: list[tuple[HubId, HubDirectory]] = []
        self._used: dict[HubDirectory, Sequence[str]] = {}

    def open(self, wanted: HubId, hidden: Sequence[str] = ()) -> HubDirectory:
        """Return the directory of ``wanted``, files whose names end as one of ``hidden`` left out. Raises ``InputOutputError``."""
        listing = self._listing(wanted)
        directory = HubDirectory(self._access, listing, self._downloads, self._how, self._report, tuple(hidden))
        self._opened.append((wanted, directory))
        return directory

    def _listing(self, wanted: HubId) -> Listing:
        store = Store.of(self._access.cache, wanted.repo)
        if self._access.offline:
            known = store.listing(wanted)
            if known is None:
                remedy = "leave --offline out, or fetch it first: deltaweights download"
                raise InputOutputError("not in the cache", where=str(wanted), found=self._access.cache, remedy=remedy)
            return self._notes.as_the_hub_had_it(known)
        listing = self._access.list_files(wanted)
        self._notes.keep_listing(listing)
        return listing

    def announce(self, directory: HubDirectory, names: Sequence[str]) -> None:
        """Say which files are used and how much is to be fetched. Raises ``InputOutputError`` when it does not fit on the disk."""
        self._used[directory] = names
        missing = directory.missing(names)
        begun = sum(_on_disk(directory.store.incomplete(file.key)) for file in missing)
        total, to_fetch = sum(directory.file(name).size for name in names), sum(file.size for file in missing) - begun
        what = "read by ranges, and not kept" if self._how.stream else "to fetch"
        files = f"{counted(len(names), 'file')}, {human_bytes(total)}; {human_bytes(max(0, to_fetch))} {what}"
        self._report.note(f"{directory.id}: {files}")
        for file in missing:
            self._report.note(f"  {human_bytes(file.size):>9}  {file.name}")
        if not missing or self._how.stream:
            return
        directory.store.prepare()
        self._promised += to_fetch
        needed, free = self._promised + SLACK, shutil.disk_usage(directory.store.root).free
        if free < needed:
            raise InputOutputError(
                "not enough free disk for the download",
                where=directory.store.root,
                found=f"{human_bytes(free)} free",
                expected=human_bytes(needed),
                remedy="make room, choose another place with --cache-dir, or keep nothing with --stream",
            )

    def fetch(self, chosen: Sequence[tuple[HubDirectory, Sequence[str]]]) -> None:
        """Fetch files into the cache, and return when all are there and have their hashes. Raises ``InputOutputError``."""
        jobs = {
            job: None for directory, names in chosen for name in names if (job := directory.fetch(directory.file(name)))
        }
        began = sum(job.arrival.arrived for job in jobs)
        self._report.begin("fetching", sum(job.arrival.file.size for job in jobs) - began)
        try:
            self._downloads.wait_for_all(
                jobs, lambda: self._report.progress(max(0, sum(job.arrival.arrived for job in jobs) - began))
            )
        finally:
            self._report.end()
        for directory, names in chosen:
            for name in names:
                directory.store.link(directory.listing.commit, directory.file(name))

    def doubt(self, error: MalformedInput) -> None:
        """Wait for the hashes of what is on its way: only they tell whether a file is malformed, or became so on its way.

        Raises ``Refetched`` when one came damaged, and ``InputOutputError`` when one does not come.
        """
        if self._downloads.under_way:
            self._report.note(f"{error}: whether it only came so is seen when all of it is here")
        damaged = self._downloads.came_damaged()
        if damaged is not None:
            raise Refetched.of(damaged) from error

    def forget(self) -> None:
        """Let the next run fetch again what was read of files that have no hash yet. Only after ``close``."""
        self._downloads.forget()

    def close(self) -> None:
        """End all connections. A branch is at a commit, for those who are offline, once what is used of it is all here."""
        self._downloads.close()
        for wanted, directory in self._opened:
            used = self._used.get(directory)
            if used and not self._access.offline and not self._how.stream and not directory.missing(used):
                directory.store.name_commit(wanted, directory.listing.commit)


def _on_disk(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0


def needed(directory: Directory, role: str) -> list[str]:
    """Return the names of the files of a checkpoint that are used: weights, index, and what travels with them.

    Raises ``MalformedInput`` when there are no weights.
    """
    start, names = find_main_file(directory, role).name, directory.names()
    used = {start, *(name for name in names if name in COPIED or LEGAL.fullmatch(name) or name in {README, PROJECTOR})}
    if start == PARAMS:
        used |= {name for name in names if META_PART.fullmatch(name)}
    elif start.endswith(".index.json"):
        index = read_index(directory, start)
        index.refuse_missing(directory)
        used |= set(index.shards)
    return sorted(used)


@contextmanager
def located(
    given: Sequence[tuple[str, Given]], options: HubOptions | None, report: Report
) -> Iterator[list[Path | HubDirectory]]:
    """Yield where each checkpoint is, of its role, and a path, an id of the Hub, or a source.

    Nothing of the Hub is loaded when all are paths. Raises ``UsageError``, ``MalformedInput`` and ``InputOutputError``.
    """
    sources = [place if isinstance(place, Source) else source_of(place) for _, place in given]
    if not any(sources):
        yield [Path(place) for _, place in given if not isinstance(place, Source)]
        return
    hub = Hub(options or HubOptions(), report)
    try:
        places: list[Path | HubDirectory] = []
        for (role, place), source in zip(given, sources, strict=True):
            if source is not None:
                directory = hub.open(source.id, source.hidden)
                hub.announce(directory, needed(directory, role))
                places.append(directory)
            elif not isinstance(place, Source):
                places.append(Path(place))
        yield places
    except MalformedInput as error:
        hub.doubt(error)
        raise
    except Mismatch:  # by a flipped bit a name may become another: the next run does not start from it
        hub.close()
        hub.forget()
        raise
    finally:
        hub.close()


def paths_among(given: Iterable[Given]) -> list[PathLike]:
    """Return those that are paths, empty ones left out. Raises ``UsageError``."""
    return [place for place in given if not isinstance(place, Source) and os.fspath(place) and not source_of(place)]


def source_of(place: PathLike) -> Source | None:
    """Return the repository that ``place`` names, None when it is a path. Raises ``UsageError``."""
    wanted = hub_id(place)
    return None if wanted is None else Source(wanted)
